"""A model behind another server, over HTTP: what the runtimes openai and ollama share.

Every call is a thread that reads the server's stream into a queue, which `step` empties. Whoever cancels closes the
stream, by which the server learns of it.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.inference.engine import EngineError
from daemon.inference.runtimes import Done, Failed, Generation, Json, Piece, Refused, Said, Spec

CONNECT_S = 10.0
SILENCE_S = 300.0
"""A server that says nothing for so long, within an answer, is lost."""
_WAIT_S = 0.05
_WORDS_MAX = 500


class Turned(Exception):
    """The server refused, or its answer is no answer."""

    def __init__(self, kind: str, words: str, parameter: str = "") -> None:
        super().__init__(words)
        self.kind, self.words, self.parameter = kind, words, parameter


@dataclass(slots=True, eq=False)
class Call:
    """One request to the server: all choices of a request, or one of them."""

    request: Generation
    choices: tuple[int, ...]
    body: dict[str, Json]
    path: str
    order: int
    open: set[int] = field(default_factory=set)
    generated: dict[int, int] = field(default_factory=dict)
    finish: dict[int, str] = field(default_factory=dict)
    tools: dict[int, dict[int, dict[str, str]]] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)
    response: Any = None


class Remote(ABC):
    """A Runtime over a server. What differs between servers is in `calls`, `lines` and `heard`."""

    runtime = ""

    def __init__(self, spec: Spec) -> None:
        self._httpx: Any = importlib.import_module("httpx")
        if not spec.url.startswith(("http://", "https://")):
            raise EngineError(f"the runtime {self.runtime} needs the url of its server, not {spec.url!r}.")
        if spec.options:
            raise EngineError(f"the runtime {self.runtime} has no option {sorted(spec.options)[0]!r}; it has none.")
        headers = {}
        if spec.key_file:
            try:
                key = Path(spec.key_file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise EngineError(f"the key file {spec.key_file} cannot be read: {error}.") from error
            if not key or not key.isascii() or not key.isprintable():  # httpx would quote it in its error.
                raise EngineError(f"the key file {spec.key_file} holds no key: write one line of ASCII to it.")
            headers["Authorization"] = f"Bearer {key}"
        self.model, self._rows = spec.model, spec.rows
        self._url = spec.url.rstrip("/")
        # No proxy from the environment: where a model's server is, its url says.
        limits = self._httpx.Limits(max_connections=spec.rows + 2)
        self._client = self._httpx.Client(
            headers=headers, trust_env=False, timeout=self._httpx.Timeout(SILENCE_S, connect=CONNECT_S), limits=limits
        )
        self._waiting: list[Call] = []
        self._running: set[Call] = set()
        self._said: queue.Queue[tuple[Call, Json]] = queue.Queue()
        self._now: list[Said] = []
        self._order = 0
        self.facts: dict[str, Json] = {
            "path": spec.url,
            "digest": "",
            "runtime": self.runtime,
            "versions": {},
            "architecture": "",
            "device": "remote",
            "dtype": "",
            "quantization": "",
            "parameters": 0,
            "context": spec.context,
            "rows": spec.rows,
            "threads": 0,
            "determinism": "",
        }

    # What a server is like

    @abstractmethod
    def calls(self, request: Generation) -> Iterator[tuple[str, tuple[int, ...], dict[str, Json]]]:
        """The calls that make the request: path, choices, body."""

    @abstractmethod
    def lines(self, line: str) -> Json:
        """What a line of the stream holds; None for nothing."""

    @abstractmethod
    def heard(self, call: Call, message: Json) -> list[Said]:
        """What the driver is told of it."""

    # What a driver calls

    def submit(self, request: Generation) -> None:
        request.check()
        if request.so_far:
            raise Refused("so_far", f"the runtime {self.runtime} cannot go on with an answer that was begun elsewhere")
        made = []
        for path, choices, body in self.calls(request):
            self._order += 1
            made.append(Call(request, choices, body, path, self._order, open=set(choices)))
        self._waiting += made
        self._waiting.sort(key=lambda call: (-call.request.priority, call.order))

    def cancel(self, id: str) -> None:
        for call in [*self._waiting, *self._running]:
            if call.request.id == id:
                self._now += [Done(id, each, "cancelled", 0, call.generated.get(each, 0)) for each in sorted(call.open)]
                self._leave(call)

    def busy(self) -> bool:
        return bool(self._waiting or self._running or self._now)

    def step(self) -> list[Said]:
        while self._waiting and len(self._running) < self._rows:
            call = self._waiting.pop(0)
            self._running.add(call)
            threading.Thread(target=self._read, args=(call,), daemon=True).start()
        said, self._now = self._now, []
        until = time.monotonic() + _WAIT_S
        while self._running:
            left = 0.0 if said else until - time.monotonic()
            try:
                call, message = self._said.get(timeout=left) if left > 0 else self._said.get_nowait()
            except queue.Empty:
                break
            if call not in self._running:
                continue
            if isinstance(message, Turned):
                said += self._failed(call, message)
                continue
            try:
                said += self.heard(call, message)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                said += self._failed(call, Turned("internal", f"the server's answer is not understood: {error!r}"))
            if not call.open:
                self._leave(call)
        return said

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> list[list[float]]: ...

    def tokenize(self, request: Generation) -> list[int]:
        if request.tokens is not None:
            return list(request.tokens)
        raise Refused("prompt", f"the runtime {self.runtime} does not tell the tokens of a text")

    def memory_bytes(self) -> int:
        return 0

    def close(self) -> None:
        for call in [*self._waiting, *self._running]:
            self._leave(call)
        self._client.close()

    # For servers

    def get(self, path: str) -> Json:
        return self._answer("GET", path, None)

    def post(self, path: str, body: Json) -> Json:
        return self._answer("POST", path, body)

    def done(self, call: Call, choice: int, prompt_tokens: int, generated: int, cached: int = 0) -> Done:
        call.open.discard(choice)
        return Done(call.request.id, choice, call.finish.get(choice, "stop"), prompt_tokens, generated, cached)

    def piece(self, call: Call, choice: int, text: str, **more: Any) -> Piece:
        call.generated[choice] = call.generated.get(choice, 0) + 1
        return Piece(call.request.id, choice, -1, text, **more)

    def unit(self, vector: Sequence[float]) -> list[float]:
        size = math.sqrt(sum(each * each for each in vector)) or 1.0
        return [each / size for each in vector]

    def _answer(self, method: str, path: str, body: Json) -> Json:
        try:
            response = self._client.request(method, self._url + path, json=body)
            if response.status_code >= 400:
                raise _turned(response.status_code, response.content)
            return response.json()
        except self._httpx.HTTPError as error:
            raise Turned("lost", f"the server {self._url} does not answer: {error}") from error
        except ValueError as error:
            raise Turned("internal", f"the server {self._url} does not answer in JSON: {error}") from error

    def _read(self, call: Call) -> None:
        try:
            with self._client.stream("POST", self._url + call.path, json=call.body) as response:
                call.response = response
                if response.status_code >= 400:
                    raise _turned(response.status_code, response.read())
                for line in response.iter_lines():
                    if call.over.is_set():
                        return
                    message = self.lines(line)
                    if message is not None:
                        self._said.put((call, message))
            self._said.put((call, Turned("lost", "the server broke off before its answer was complete")))
        except Turned as turned:
            self._said.put((call, turned))
        except Exception as error:  # whatever a stream that is closed under its reader raises
            words = f"the server {self._url} is lost: {type(error).__name__} {error}".strip()
            self._said.put((call, Turned("lost", words)))

    def _failed(self, call: Call, turned: Turned) -> list[Said]:
        id = call.request.id
        for other in [each for each in [*self._waiting, *self._running] if each.request.id == id]:
            self._leave(other)
        return [Failed(id, turned.kind, turned.words, turned.parameter)]

    def _leave(self, call: Call) -> None:
        call.over.set()
        call.open.clear()
        self._running.discard(call)
        if call in self._waiting:
            self._waiting.remove(call)
        if call.response is not None:
            threading.Thread(target=_close, args=(call.response,), daemon=True).start()


def seeded(request: Generation, choice: int, bits: int) -> int:
    """A seed of its own for each choice, of so many bits."""
    if request.n == 1 and 0 <= request.seed < 1 << bits:
        return request.seed
    return int.from_bytes(hashlib.sha256(f"{request.seed} {choice}".encode()).digest()[:8], "big") % (1 << bits)


def _close(response: Any) -> None:
    import contextlib

    with contextlib.suppress(Exception):
        response.close()


def _turned(status: int, body: bytes) -> Turned:
    text, parameter = body.decode("utf-8", "replace"), ""
    try:
        import json

        error = json.loads(text).get("error", text)
        if isinstance(error, dict):
            text, parameter = str(error.get("message", error)), str(error.get("param") or "")
        else:
            text = str(error)
    except (ValueError, AttributeError):
        pass
    kind = "refused" if status in (400, 404, 413, 422) else "lost" if status in (429, 502, 503, 504) else "internal"
    return Turned(kind, f"the server answers {status}: {' '.join(text.split())[:_WORDS_MAX]}", parameter)
