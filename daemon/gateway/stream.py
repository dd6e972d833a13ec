"""Server-sent events of one answer, kept for a while behind the reader: one who was cut off goes on where it was.

Each event has an id, `REQUEST.N`. A reader gives the last one it has as `Last-Event-ID`, and is sent what follows. The
engine is held to a credit: with so many bytes that nobody has taken, nothing more is asked of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable

from daemon.gateway.refusal import Refusal

CREDIT_BYTES = 64 * 1024
"""Ahead of the reader."""
KEPT_BYTES = 256 * 1024
"""Behind the reader, for who comes again. More of an answer than this is there once only."""
ENDED_MAX = 256
"""Answers that are over and still kept."""
SILENCE_S = 10.0
"""A comment is sent after so long without an event, so that nothing between the two hangs up."""

EVENT_ID = r"^[A-Za-z0-9_-]{1,64}\.[0-9]{1,15}$"

_SILENCE = b": waiting\n\n"


class Stream:
    """One answer as events. One reader at a time: the newest."""

    def __init__(self, id: str, source: AsyncGenerator[bytes, None]) -> None:
        """`source` gives the data of each event; it is closed when the stream is. An error of its own belongs before
        the first event."""
        self.id = id
        self._source = source
        self._events: deque[bytes] = deque()
        self._first = 1  # the number of the oldest event that is kept
        self._taken = 0  # the number of the last event that was handed to a reader
        self._kept_bytes = self._ahead_bytes = 0
        self._reader: object | None = None
        self.over = False
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._producer: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self._last_reader_left: Callable[[Stream], None] | None = None

    def start(self) -> None:
        self._producer = asyncio.create_task(self._produce())

    async def opened(self) -> None:
        """Wait for the first event. If something went wrong before it, that is raised."""
        while not self._events and not self.over:
            self._news.clear()
            await self._news.wait()
        if self._error is not None:
            raise self._error

    def on_alone(self, act: Callable[[Stream], None]) -> None:
        """What to do when a reader left and none is there."""
        self._last_reader_left = act

    async def close(self) -> None:
        """Ask nothing more of the engine, and end whoever still reads."""
        if self._producer is not None and not self._producer.done():
            self._producer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._producer
        self._events.clear()
        self.over = True
        self._news.set()

    def follows(self, last: int) -> bool:
        """Whether what comes behind event `last` is still here."""
        return self._first - 1 <= last <= self._newest

    def has(self, last: int) -> bool:
        """Whether something follows event `last` already."""
        return self._newest > last

    async def read(self, last: int) -> AsyncGenerator[bytes, None]:
        """What follows event `last`, several events at once where they are there. A reader that is replaced by a newer
        one ends."""
        me = self._reader = object()
        self._news.set()  # whoever reads until now looks, and sees that it is replaced
        self._rewind(last)
        silence = _Silence(self._news)
        try:
            while self._reader is me:
                self._news.clear()
                if self._taken < self._newest:
                    silence.broken()
                    yield self._take()
                elif self.over:
                    return
                elif silence.long():
                    yield _SILENCE
                else:
                    await self._news.wait()
        finally:
            silence.close()
            if self._reader is me:
                self._reader = None
                if self._last_reader_left is not None:
                    self._last_reader_left(self)

    @property
    def alone(self) -> bool:
        return self._reader is None

    @property
    def _newest(self) -> int:
        return self._first + len(self._events) - 1

    def _rewind(self, last: int) -> None:
        self._taken = last
        self._ahead_bytes = sum(len(event) for event in list(self._events)[last - self._first + 1 :])

    def _take(self) -> bytes:
        skip = self._taken - self._first + 1
        events = self._events if skip == 0 else list(self._events)[skip:]
        together = b"".join(events)
        self._taken = self._newest
        self._ahead_bytes = 0
        self._room.set()
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= len(self._events.popleft())
            self._first += 1
        return together

    async def _produce(self) -> None:
        try:
            async for data in self._source:
                event = b"id: %s.%d\ndata: %s\n\n" % (self.id.encode(), self._newest + 1, data)
                self._events.append(event)
                self._kept_bytes += len(event)
                self._ahead_bytes += len(event)
                self._news.set()
                while self._ahead_bytes > CREDIT_BYTES:
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:
            self._error = error
        finally:
            await self._source.aclose()
            self.over = True
            self._news.set()


class _Silence:
    """Wakes a reader when it was quiet for `SILENCE_S`. One timer, whatever is said meanwhile."""

    def __init__(self, wake: asyncio.Event) -> None:
        self._wake, self._loop = wake, asyncio.get_running_loop()
        self.broken()
        self._timer = self._loop.call_at(self._ends_s, self._look)

    def broken(self) -> None:
        self._ends_s = self._loop.time() + SILENCE_S

    def long(self) -> bool:
        """It is to be broken now."""
        if self._loop.time() < self._ends_s:
            return False
        self.broken()
        return True

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        if self._loop.time() >= self._ends_s:
            self._wake.set()
        self._timer = self._loop.call_at(max(self._ends_s, self._loop.time() + SILENCE_S / 10), self._look)


class Streams:
    """The answers that are being read, or may be read again. `patience_s`: how long one without a reader is kept."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._streams: OrderedDict[str, Stream] = OrderedDict()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, stream: Stream) -> None:
        self._streams[stream.id] = stream
        stream.on_alone(self._alone)

    def again(self, event_id: str, of: str = "") -> tuple[Stream, int]:
        """The stream that an event was of (`of`: which it must be), and the event's number. Refusal."""
        request_id, _, number = event_id.rpartition(".")
        if not re.fullmatch(EVENT_ID, event_id, re.ASCII) or event_id.endswith("\n"):
            raise Refusal(400, "Last-Event-ID must be the id of an event, such as 0123abc.7.", code="invalid_event_id")
        if of and of != request_id:  # Whoever is refused here does not read: that stream goes on being given up.
            raise Refusal(404, "Last-Event-ID is of another stream.", kind="not_found_error", code="event_gone")
        return self.behind(request_id, int(number))

    def behind(self, request_id: str, last: int) -> tuple[Stream, int]:
        """The same by the request's id and the event's number. Refusal."""
        stream = self._streams.get(request_id)
        if stream is None:
            raise Refusal(
                404,
                f"there is no stream {request_id[:80]!r} any more: ask anew.",
                kind="not_found_error",
                code="stream_gone",
            )
        if not stream.follows(last):
            raise Refusal(
                404, f"what follows event {last} of this stream is not kept any more: ask anew.",
                kind="not_found_error", code="event_gone",
            )  # fmt: skip
        timer = self._timers.pop(request_id, None)
        if timer is not None:
            timer.cancel()
        return stream, last

    async def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        streams, self._streams = list(self._streams.values()), OrderedDict()
        await asyncio.gather(*(stream.close() for stream in streams), *self._closing)

    def _alone(self, stream: Stream) -> None:
        if self._streams.get(stream.id) is not stream:
            return
        self._streams.move_to_end(stream.id)
        timer = asyncio.get_running_loop().call_later(self._patience_s, self._give_up, stream)
        self._timers[stream.id] = timer
        if len(self._streams) > ENDED_MAX:
            ended = [one for one in self._streams.values() if one.over and one.alone]
            for one in ended[: max(0, len(ended) - ENDED_MAX)]:
                self._give_up(one)

    def _give_up(self, stream: Stream) -> None:
        timer = self._timers.pop(stream.id, None)
        if timer is not None:
            timer.cancel()
        if self._streams.pop(stream.id, None) is not None:
            task = asyncio.create_task(stream.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
