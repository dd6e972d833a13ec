"""The engine process: one model, one device, one runtime; it lives no longer than the pool that started it.

It and the pool (`daemon.inference.handle` is that side) say one JSON object a line to each other, over a socketpair.

To the engine:
    {"op": "load", "spec": {...}, "scratch": path, "parent": pid, "beat_ms": n, "hermetic": bool}   first, and once
    {"op": "submit", "request": {...}}            a Generation; answered by token, done and error
    {"op": "cancel", "id"}
    {"op": "embed", "id", "texts": [...]}         answered by embedding, or error
    {"op": "tokenize", "id", "request": {...}}    answered by tokens, or error
The end of the stream means: end at once.

To the pool:
    {"op": "facts", "state": "loading" | "warming" | "serving", ...}      with the runtime's facts once they are known
    {"op": "failed", "class": "model" | "impossible" | "memory" | "internal", "words"}      its last words
    {"op": "token", "id", "choice", "token", "text"} and, if asked for, "logprob", "top", "said"
    {"op": "done", "id", "choice", "finish", "prompt_tokens", "generated_tokens", "cached_tokens"}
    {"op": "error", "id", "class": "refused" | "memory" | "lost" | "internal", "words", "parameter"}
    {"op": "embedding", "id", "vectors"}
    {"op": "tokens", "id", "tokens"}
    {"op": "beat", "rss", "used"}                 bytes; said between two steps, so that an engine that hangs is silent
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque

import psutil

from daemon.inference import sandbox
from daemon.inference.engine import EngineError
from daemon.inference.runtimes import (
    Done,
    Failed,
    Generation,
    Impossible,
    OutOfMemory,
    Piece,
    Refused,
    Runtime,
    Said,
    Spec,
    load,
)
from daemon.workers.wire import Lines, Message, line_of

_PR_SET_PDEATHSIG = 1


class _Over(Exception):
    """The pool wants no more, or is gone."""


class Engine:
    """The engine's side of the wire."""

    def __init__(self, channel: int) -> None:
        os.set_inheritable(channel, False)
        self._socket = socket.socket(fileno=channel)
        self._lines = Lines()
        self._orders: deque[Message] = deque()
        self._process = psutil.Process()
        self._beat_s = 1.0
        self._beat_at = 0.0
        self._runtime: Runtime | None = None

    def live(self) -> int:
        """Until the pool has no more to say. The exit status."""
        order = self._first()
        if order["hermetic"]:
            sandbox.begin(order["scratch"])  # Before the imports, which start threads; and it may untie us.
        tie_to(order["parent"])
        self._beat_s = order["beat_ms"] / 1000
        os.chdir(order["scratch"])
        self._tell([{"op": "facts", "state": "loading"}])
        try:
            runtime = self._runtime = load(Spec.of_json(order["spec"]))
            if order["hermetic"]:
                runtime.facts["sandbox"] = ", ".join(sandbox.enter(order["scratch"]))
            self._tell([{"op": "facts", "state": "warming", **runtime.facts}])
            _warm_up(runtime)
        except _Over:
            raise
        except Exception as error:
            return self._fail(error)
        self._tell([{"op": "facts", "state": "serving"}, self._beat()])
        while True:
            try:
                self._turn(runtime)
            except _Over:
                raise
            except Exception as error:
                return self._fail(error)

    def _first(self) -> Message:
        while not self._orders:
            self._listen(None)
        return self._orders.popleft()

    def _turn(self, runtime: Runtime) -> None:
        now = time.monotonic()
        self._listen(0 if runtime.busy() or self._orders else max(0.0, self._beat_at - now))
        said: list[Message] = []
        while self._orders:
            said += _heeded(runtime, self._orders.popleft())
        said += [_message(one) for one in runtime.step()]
        if time.monotonic() >= self._beat_at:
            said.append(self._beat())
        if said:
            self._tell(said)

    def _listen(self, timeout_s: float | None) -> None:
        """Take what has come; wait so long for something, None for ever."""
        if not select.select([self._socket], [], [], timeout_s)[0]:
            return
        try:
            data = self._socket.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            raise _Over
        self._orders.extend(self._lines.feed(data))

    def _tell(self, messages: list[Message]) -> None:
        try:
            self._socket.sendall(b"".join(map(line_of, messages)))
        except OSError:
            raise _Over from None

    def _beat(self) -> Message:
        self._beat_at = time.monotonic() + self._beat_s
        rss = self._process.memory_info().rss
        runtime = self._runtime
        on_host = runtime is None or not str(runtime.facts.get("device", "cpu")).startswith("cuda")
        return {"op": "beat", "rss": rss, "used": rss if on_host or runtime is None else runtime.memory_bytes()}

    def _fail(self, error: Exception) -> int:
        kind, words = _failure(error)
        if kind == "internal":
            traceback.print_exc()
        self._tell([{"op": "failed", "class": kind, "words": words}])
        return 1


def _heeded(runtime: Runtime, order: Message) -> list[Message]:
    """What is to be said at once."""
    id = order.get("id", "")
    try:
        match order["op"]:
            case "submit":
                id = order["request"]["id"]
                runtime.submit(Generation.of_json(order["request"]))
            case "cancel":
                runtime.cancel(id)
            case "embed":
                return [{"op": "embedding", "id": id, "vectors": runtime.embed(order["texts"])}]
            case "tokenize":
                return [{"op": "tokens", "id": id, "tokens": runtime.tokenize(Generation.of_json(order["request"]))}]
    except Refused as error:
        return [{"op": "error", "id": id, "class": "refused", "words": error.words, "parameter": error.parameter}]
    except Exception as error:
        kind, words = _failure(error)
        if kind == "memory":
            raise
        traceback.print_exc()  # It was not begun: the others go on.
        return [{"op": "error", "id": id, "class": "internal", "words": words, "parameter": ""}]
    return []


def _message(said: Said) -> Message:
    if isinstance(said, Piece):
        message: Message = {
            "op": "token", "id": said.id, "choice": said.choice, "token": said.token, "text": said.text,
        }  # fmt: skip
        if said.logprob is not None:
            message |= {"logprob": said.logprob, "said": said.said}
            message["top"] = [[top.token, top.text, top.logprob] for top in said.top]
        return message
    if isinstance(said, Done):
        return {
            "op": "done", "id": said.id, "choice": said.choice, "finish": said.finish,
            "prompt_tokens": said.prompt_tokens, "generated_tokens": said.generated_tokens,
            "cached_tokens": said.cached_tokens,
        }  # fmt: skip
    assert isinstance(said, Failed)
    return {"op": "error", "id": said.id, "class": said.kind, "words": said.words, "parameter": said.parameter}


def _failure(error: Exception) -> tuple[str, str]:
    """Its class, and what to say of it."""
    if isinstance(error, OutOfMemory | MemoryError) or _is_out_of_memory(error):
        return "memory", str(error) or "there was not enough memory"
    if isinstance(error, EngineError):
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError | OutOfMemory) or _is_out_of_memory(cause):
                return "memory", str(error)
            cause = cause.__cause__ or cause.__context__
        return "model", str(error)
    if isinstance(error, Impossible):
        return "impossible", str(error)
    if isinstance(error, Refused):
        return "model", f"{error.parameter}: {error.words}"
    text = " ".join(str(error).split())[:500]
    return "internal", f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_out_of_memory(error: BaseException) -> bool:
    """Runtimes say it in their own ways: torch raises a RuntimeError for the host's memory, and mmap an OSError."""
    if type(error).__name__ == "OutOfMemoryError" or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    words = ("can't allocate memory", "Cannot allocate memory", "out of memory", "not enough memory", "bad_alloc")
    return isinstance(error, RuntimeError | OSError | SystemError) and any(word in str(error) for word in words)


def _warm_up(runtime: Runtime) -> None:
    """One token, so that the first request pays for nothing but itself. Not where it would be paid for elsewhere."""
    if runtime.facts.get("runtime") in ("openai", "ollama"):
        return
    try:
        runtime.submit(Generation(id="warm-up", prompt="warm-up", max_new_tokens=1))
    except Refused:
        return  # A model that makes vectors.
    while runtime.busy():
        for said in runtime.step():
            if isinstance(said, Failed):
                raise EngineError(f"the model is loaded but does not answer: {said.words}")


def tie_to(parent: int) -> None:
    """Die with the pool's process, also in the middle of a step."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def main(channel: int) -> None:
    code = 0
    with contextlib.suppress(_Over):
        code = Engine(channel).live()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Some runtimes' threads would hold up an ordinary exit.
