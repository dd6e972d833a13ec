"""One HTTP request as a route is given it, and the answers it can give."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson

from daemon.gateway.answer import Asker
from daemon.gateway.refusal import Refusal
from daemon.gateway.stream import Stream

Json = Any
T = TypeVar("T")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

WRITES = "hermes.writes"
"""In the scope's state: the connection's Writes."""

BODY_BYTES_MAX = 8 << 20
BODY_S = 30.0
"""A body that is not there by then is not waited for."""


class Gone(Exception):
    """The client hung up before it was answered."""


class Writes:
    """A connection's transport that can be told to hold what is written: a head, a body and its end would each be a
    system call, and wake the client."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held: list[bytes] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._held is None:
            self._transport.write(data)
        else:
            self._held.append(data)

    def close(self) -> None:
        self._let_go()
        self._transport.close()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        self._held = []
        try:
            yield
        finally:
            self._let_go()
            self._held = None

    def _let_go(self) -> None:
        if self._held:
            self._transport.write(b"".join(self._held))
            self._held.clear()


@dataclass(slots=True)
class Call:
    scope: Scope
    receive: Receive
    asker: Asker
    headers: Mapping[str, str]
    path: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    """Of the route's shape."""
    _leaving: asyncio.Task[None] | None = None

    @property
    def last_event_id(self) -> str | None:
        return self.headers.get("last-event-id")

    def streams(self) -> None:
        """Refusal for a client of HTTP/1.0, to which a part of an answer cannot be told as such."""
        if self.scope["http_version"] == "1.0":
            raise Refusal(400, "a stream needs HTTP/1.1.", code="http_version", parameter="stream")

    async def while_there(self, work: Awaitable[T]) -> T:
        """Do the work as long as the client waits for it. Gone."""
        me = asyncio.current_task()
        assert me is not None
        asked, gone = me.cancelling(), False

        def leave(_: asyncio.Task[None]) -> None:
            nonlocal gone
            gone = True
            me.cancel()

        if self._leaving is None:
            self._leaving = asyncio.create_task(self._gone())
        self._leaving.add_done_callback(leave)
        try:
            return await work
        except asyncio.CancelledError:
            if gone and me.uncancel() <= asked:
                raise Gone from None
            raise
        finally:
            self._leaving.remove_done_callback(leave)

    def over(self) -> None:
        """It is answered: nobody watches any more whether the client is there."""
        if self._leaving is not None:
            self._leaving.cancel()

    def together(self) -> contextlib.AbstractContextManager[None]:
        """What is sent inside goes out in one write."""
        writes: Writes | None = self.scope.get("state", {}).get(WRITES)
        return contextlib.nullcontext() if writes is None else writes.together()

    async def _gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass


class Answered:
    """A whole answer."""

    def __init__(self, data: bytes, *, status: int = 200, media: str = "application/json", **headers: str) -> None:
        self.status, self.data, self.media = status, data, media
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    async def send(self, call: Call, send: Send) -> None:
        headers = {"content-type": self.media, "content-length": str(len(self.data))} | self.headers
        with call.together():
            await start(send, self.status, headers, call.asker)
            await send({"type": "http.response.body", "body": self.data})


class Events:
    """Server-sent events, from behind event `last` on."""

    status = 200

    def __init__(self, stream: Stream, last: int, **headers: str) -> None:
        self._stream, self._last = stream, last
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}

    async def send(self, call: Call, send: Send) -> None:
        headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store"}

        async def tell() -> None:
            begun, more = not self._stream.has(self._last), True
            if begun:
                await start(send, 200, headers | self._headers, call.asker)
            async with contextlib.aclosing(self._stream.read(self._last)) as events:
                async for data in events:
                    more = not self._stream.over
                    with call.together():
                        if not begun:
                            begun = True
                            await start(send, 200, headers | self._headers, call.asker)
                        await send({"type": "http.response.body", "body": data, "more_body": more})
            if more:
                await send({"type": "http.response.body", "body": b""})

        with contextlib.suppress(Gone):
            await call.while_there(tell())


Response = Answered | Events


def json(value: Json, status: int = 200, **headers: str) -> Answered:
    return Answered(orjson.dumps(value), status=status, **headers)


async def start(send: Send, status: int, headers: Mapping[str, str], asker: Asker) -> None:
    told = dict(headers) | {"x-request-id": asker.request_id}
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def body_of(scope: Scope, receive: Receive, headers: Mapping[str, str]) -> Json:
    """The JSON of the body. Refusal."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("", "application/json"):
        raise Refusal(
            415, f"the body is {kind[:80]!r}; this takes application/json.", code="unsupported_media_type",
            headers=_LAST,
        )  # fmt: skip
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > BODY_BYTES_MAX:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                body += message.get("body", b"")
                if len(body) > BODY_BYTES_MAX:
                    raise _too_large()
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        words = f"the body was not there within {BODY_S:g} s."
        raise Refusal(408, words, kind="timeout_error", code="body_timeout", headers=_LAST) from None
    try:
        return orjson.loads(bytes(body))
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"the body is not JSON: {error}.", code="invalid_json") from None


_LAST = {"Connection": "close"}
"""What is left of the body is not read."""


def _too_large() -> Refusal:
    return Refusal(413, f"the body has more than {BODY_BYTES_MAX} bytes.", code="body_too_large", headers=_LAST)
