"""The life of models over HTTP: `/api/v1/runtime`."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any

import orjson

from daemon.gateway.answer import Answer, Desk, new_id, together
from daemon.gateway.call import Call, Response, json
from daemon.gateway.models import Catalogue
from daemon.gateway.openai import broken_off, merged, sampling, streamed
from daemon.gateway.refusal import Refusal
from daemon.gateway.shapes import GenerateRequest, ModelName, RegisterRequest
from daemon.gateway.stream import Stream
from daemon.inference.runtimes import Generation, Piece, Spec
from daemon.inference.views import ModelSpec, ModelView

Json = Any


class Runtime:
    """The routes, over the models that this home knows."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._began_s = time.monotonic()

    async def register(self, desk: Desk, call: Call) -> Response:
        asked: RegisterRequest = call.body
        more = asked.parameters
        if more.key_file and call.asker.client != "socket":
            # What is in it goes to `url`: by this, whoever has the token could have any file of this user's.
            raise Refusal(
                403,
                "a key file can be named over the gateway's own socket, or in hermesd.yaml, and not over TCP.",
                kind="permission_error",
                code="key_file",
                parameter="parameters.key_file",
            )
        spec = Spec(
            model=self._catalogue.place(asked.model_id, asked.runtime_type),
            runtime=asked.runtime_type,
            device=asked.device_type,
            quantization=asked.quantization,
            context=asked.max_tokens,
            rows=asked.batch_size,
            cache_mb=asked.cache_size,
            dtype=more.dtype,
            threads=more.threads,
            prefix_cache=more.prefix_cache,
            digest=more.digest,
            url=more.url,
            key_file=more.key_file,
        )
        try:
            self._catalogue.check(spec)
        except ValueError as error:
            raise Refusal(409, str(error), kind="conflict_error", code="load_failed") from None
        defaults = more.defaults.model_dump(exclude_none=True) if more.defaults else {}
        desk.pool.register(
            ModelSpec(
                asked.model_name,
                spec,
                kind=asked.model_type,
                instances=more.instances,
                fallback=more.fallback,
                parameters=defaults,
            )
        )
        return json(_state(desk.model(asked.model_name)))

    async def load(self, desk: Desk, call: Call) -> Response:
        asked: ModelName = call.body
        desk.model(asked.model_name)
        return json(_state(await call.while_there(desk.pool.load(asked.model_name))))

    async def unload(self, desk: Desk, call: Call) -> Response:
        asked: ModelName = call.body
        desk.model(asked.model_name)
        await call.while_there(desk.pool.unload(asked.model_name))
        return json(_state(desk.model(asked.model_name)))

    async def unload_all(self, desk: Desk, call: Call) -> Response:
        names = sorted({engine.model for engine in desk.pool.engines()})
        for name in names:
            await call.while_there(desk.pool.unload(name))
        return json({"unloaded": names})

    async def models(self, desk: Desk, call: Call) -> Response:
        return json({"models": [_state(view) for view in desk.pool.models()]})

    async def model(self, desk: Desk, call: Call) -> Response:
        return json(_state(desk.model(call.path["name"])))

    async def health(self, desk: Desk, call: Call) -> Response:
        states = {view.name: view.state for view in desk.pool.models()}
        up_s = round(time.monotonic() - self._began_s, 3)
        return json({"status": "ok", "pid": os.getpid(), "uptime_s": up_s, "models": states})

    async def stats(self, desk: Desk, call: Call) -> Response:
        return json({"pool": desk.pool.stats(), "engines": desk.pool.engines(), "streams": len(desk.streams)})

    async def generate(self, desk: Desk, call: Call) -> Response:
        asked: GenerateRequest = call.body
        desk.model(asked.model_name)
        request = Generation(
            id=new_id(),
            prompt=asked.prompt,
            max_new_tokens=asked.max_tokens,
            **sampling(asked, desk.model(asked.model_name).parameters),
            seed=secrets.randbits(48) if asked.seed is None else asked.seed,
            stop=(asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ()),
        )
        answer = desk.answer(asked.model_name, request, call.asker)
        if asked.stream:
            return await streamed(desk, call, Stream(answer.id, _events(answer, desk, call)))
        await call.while_there(together([answer]))
        return json(_generated(answer, desk))


def _state(view: ModelView) -> Json:
    return {
        "model_name": view.name,
        "model_id": view.spec.model,
        "model_type": view.kind,
        "runtime_type": view.spec.runtime,
        "state": view.state,
        "why": view.why,
        "running": view.running,
        "waiting": view.waiting,
        "engines": list(view.engines),
        "peak_bytes": view.peak_bytes,
        "facts": dict(view.facts),
        "parameters": dict(view.parameters),
    }


def _generated(answer: Answer, desk: Desk) -> Json:
    choice = answer.choices[0]
    facts = desk.pool.facts(answer.model)
    metadata = {
        "id": answer.id,
        "seed": answer.request.seed,
        "finish_reason": choice.done.finish if choice.done else "length",
        "prompt_tokens": answer.prompt_tokens,
        "model_digest": facts.get("digest", ""),
        "runtime": facts.get("runtime", ""),
        "device": facts.get("device", ""),
        "dtype": facts.get("dtype", ""),
        "determinism": facts.get("determinism", ""),
    }
    return {
        "text": "".join(choice.text),
        "model_name": answer.model,
        "tokens_generated": answer.generated_tokens,
        "execution_time": round(answer.took_s, 6),
        "metadata": metadata,
    }


async def _events(answer: Answer, desk: Desk, call: Call) -> AsyncGenerator[bytes, None]:
    """`{"text"}` for each piece, and at last what the whole answer would be."""
    begun = False
    async with contextlib.aclosing(merged([answer])) as said:
        try:
            async for _, one in said:
                begun = True
                if isinstance(one, Piece) and one.text:
                    yield orjson.dumps({"text": one.text})
            yield orjson.dumps(_generated(answer, desk))
        except Exception as error:
            if not begun:
                raise
            yield broken_off(error, call)
