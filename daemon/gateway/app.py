"""The gateway as an ASGI application: who may come in, which route it is, and what every answer has in common."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import BaseModel

from daemon.gateway import log, metrics, openai, shapes
from daemon.gateway.answer import Asker, Desk
from daemon.gateway.call import Answered, Call, Gone, Receive, Response, Scope, Send, body_of, json
from daemon.gateway.describe import described
from daemon.gateway.refusal import Refusal, refusal_of
from daemon.gateway.runtime import Runtime
from daemon.version import version

Json = Any
Endpoint = Callable[[Desk, Call], Awaitable[Response]]

LOCAL = "hermes.local"
"""In the scope's state: whether the request came by the Unix socket, which only its owner can open."""

_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_ENGINE = (409, 429, 502, 503)


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    """A last part `{name...}` takes the rest of the path, slashes too."""
    name: str
    summary: str
    endpoint: Endpoint
    asks: type[BaseModel] | None = None
    answers: type[BaseModel] | None = None
    statuses: tuple[int, ...] = ()
    bad: int = 400
    """The status of a request that is wrong."""
    streams: bool = False
    resumes: bool = False
    media: str = "application/json"

    @property
    def described_path(self) -> str:
        return self.path.replace("...}", "}")

    @property
    def parameters(self) -> list[str]:
        return re.findall(r"{(\w+)}", self.described_path)

    @property
    def pattern(self) -> re.Pattern[str]:
        def group(match: re.Match[str]) -> str:
            return f"(?P<{match[1]}>.+)" if match[2] else f"(?P<{match[1]}>[^/]+)"

        return re.compile(re.sub(r"{(\w+)(\.\.\.)?}", group, self.path))


def routes(runtime: Runtime) -> list[Route]:
    asks = (400, 401, 404, 408, 413, 415, *_ENGINE)
    tells = (400, 401, 404, 408, 409, 413, 415, 422, 429, 502, 503)
    own = "/api/v1/runtime"
    return [
        Route("GET", "/v1/models", "list_models", "The models there are", openai.models,
              answers=shapes.ModelList, statuses=(401,)),
        Route("GET", "/v1/models/{model...}", "get_model", "One model", openai.model,
              answers=shapes.ModelCard, statuses=(401, 404)),
        Route("POST", "/v1/chat/completions", "create_chat_completion", "The next turn of a talk", openai.chat,
              asks=shapes.ChatRequest, answers=shapes.ChatAnswer, statuses=asks, streams=True, resumes=True),
        Route("POST", "/v1/completions", "create_completion", "Text that goes on from a prompt", openai.completions,
              asks=shapes.CompletionRequest, answers=shapes.CompletionAnswer, statuses=asks, streams=True,
              resumes=True),
        Route("POST", "/v1/embeddings", "create_embedding", "Vectors of texts", openai.embeddings,
              asks=shapes.EmbeddingRequest, answers=shapes.EmbeddingAnswer, statuses=asks),
        Route("GET", "/v1/streams/{stream}", "resume_stream", "Go on reading an answer that was cut off",
              openai.stream_again, statuses=(400, 401, 404), resumes=True, media="text/event-stream"),
        Route("POST", f"{own}/models/register", "register_model", "Make a model known", runtime.register,
              asks=shapes.RegisterRequest, answers=shapes.ModelState, statuses=(*tells, 403), bad=422),
        Route("POST", f"{own}/models/load", "load_model", "Have it loaded before somebody asks", runtime.load,
              asks=shapes.ModelName, answers=shapes.ModelState, statuses=tells, bad=422),
        Route("POST", f"{own}/models/unload", "unload_model", "End its engines", runtime.unload,
              asks=shapes.ModelName, answers=shapes.ModelState, statuses=tells, bad=422),
        Route("GET", f"{own}/models", "list_model_states", "The models, and how they are", runtime.models,
              answers=shapes.ModelStates, statuses=(401,)),
        Route("GET", f"{own}/models/{{name...}}", "get_model_state", "One model, and how it is", runtime.model,
              answers=shapes.ModelState, statuses=(401, 404)),
        Route("POST", f"{own}/generate", "generate", "Text that goes on from a prompt", runtime.generate,
              asks=shapes.GenerateRequest, answers=shapes.GenerateAnswer, statuses=tells, bad=422, streams=True),
        Route("POST", f"{own}/unload-all", "unload_all", "End every engine", runtime.unload_all,
              answers=shapes.Unloaded, statuses=(401, 502, 503)),
        Route("GET", f"{own}/health", "health", "Whether the gateway is up", runtime.health,
              answers=shapes.Health, statuses=(401,)),
        Route("GET", f"{own}/stats", "stats", "Counters and engines", runtime.stats,
              answers=shapes.Stats, statuses=(401,)),
        Route("GET", "/metrics", "metrics", "For Prometheus", _metrics, statuses=(401,), media="text/plain"),
    ]  # fmt: skip


async def _metrics(desk: Desk, call: Call) -> Response:
    return Answered(desk.metrics.text(), media=metrics.CONTENT_TYPE)


class Application:
    def __init__(self, desk: Desk, runtime: Runtime, token: str) -> None:
        self._desk = desk
        self._token_hash = hashlib.sha256(token.encode()).digest()
        table = routes(runtime)
        self.description = described(table, version())
        text = orjson.dumps(self.description)

        async def openapi(desk: Desk, call: Call) -> Response:
            return Answered(text)

        table.append(Route("GET", "/openapi.json", "openapi", "This description", openapi))
        self._table = [(route, route.pattern) for route in table]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = time.monotonic()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if _GIVEN_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        local = bool(scope.get("state", {}).get(LOCAL))
        trace_id, keep = log.trace_id(headers.get("traceparent")), headers.get("hermes-keep") != "none"
        asker = Asker(request_id, trace_id, "socket" if local else "tcp", keep)
        call = Call(scope, receive, asker, headers)
        name, begun = "none", False

        async def tell(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            response: Response | None = None
            try:
                if not local:
                    self._let_in(headers)
                route = self._route(call)
                name = route.name
                response = await self._answer(route, call)
            except Exception as error:
                response = _refused(error, asker)
            await response.send(call, tell)
            status = response.status
        except Gone:
            status = 499
        except Exception as error:
            if not begun:
                raise
            log.say("bug", "error", trace_id=asker.trace_id, request_id=request_id, error=log.where(error))
            status = 500
        finally:
            call.over()
        self._desk.metrics.http.labels(name, status).inc()
        log.say(
            "request",
            trace_id=asker.trace_id,
            request_id=request_id,
            client=asker.client,
            method=scope["method"],
            route=name,
            status=status,
            took_ms=round((time.monotonic() - began_s) * 1000, 1),
        )

    async def _answer(self, route: Route, call: Call) -> Response:
        if route.resumes and route.method == "POST":
            again = openai.resumed(self._desk, call)
            if again is not None:
                return again
        if route.asks is not None:
            call.body = shapes.checked(route.asks, await body_of(call.scope, call.receive, call.headers), route.bad)
        try:
            return await route.endpoint(self._desk, call)
        except Exception as error:
            refusal = refusal_of(error)
            if refusal is not None and refusal.status == 400 and route.bad != 400:
                refusal.status = route.bad
                raise refusal from None
            raise

    def _let_in(self, headers: dict[str, str]) -> None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(token.strip().encode("latin-1")).digest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, self._token_hash):
            raise Refusal(
                401, "this needs `Authorization: Bearer TOKEN`; the token is in gateway.token of the home.",
                kind="authentication_error", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer", "Connection": "close"},
            )  # fmt: skip

    def _route(self, call: Call) -> Route:
        path, method = call.scope["path"], call.scope["method"]
        allowed = []
        for route, pattern in self._table:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if route.method == method or (method == "HEAD" and route.method == "GET"):
                call.path = match.groupdict()
                return route
            allowed.append(route.method)
        if allowed:
            allow = ", ".join(sorted({*allowed, *(["HEAD"] if "GET" in allowed else [])}))
            raise Refusal(
                405, f"{method[:20]} is not for this page; {allow} is.", code="method_not_allowed",
                headers={"Allow": allow, "Connection": "close"},
            )  # fmt: skip
        raise Refusal(
            404, f"there is no page {path[:200]!r}; /openapi.json lists them.", kind="not_found_error",
            code="unknown_url", headers={"Connection": "close"},
        )  # fmt: skip


def _refused(error: Exception, asker: Asker) -> Answered:
    if isinstance(error, Gone):
        raise error
    refusal = refusal_of(error)
    if refusal is None:
        log.say("bug", "error", trace_id=asker.trace_id, request_id=asker.request_id, error=log.where(error))
        refusal = Refusal(500, "the gateway failed; its log has the request id.", kind="server_error", code="internal")
    answer = json(refusal.json(asker.request_id), refusal.status)
    answer.headers = refusal.headers
    return answer


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
