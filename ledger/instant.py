"""Instants: integer milliseconds since the Unix epoch inside, RFC 3339 UTC text in records."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Now(NamedTuple):
    """One reading of both clocks, always taken together.

    `wall_ns` is CLOCK_REALTIME (for people and for schedules; it can jump);
    `boot_ns` is CLOCK_BOOTTIME (for deadlines; it counts while the host sleeps and never jumps).
    """

    wall_ns: int
    boot_ns: int

    @property
    def wall_ms(self) -> int:
        return self.wall_ns // 1_000_000

    @property
    def boot_ms(self) -> int:
        return self.boot_ns // 1_000_000


@lru_cache(maxsize=1024)
def text_of(ms: int) -> str:
    """`2026-11-21T04:30:00Z`; milliseconds are written only when there are some."""
    seconds, rest_ms = divmod(ms, 1000)
    text = (_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]
    return f"{text}.{rest_ms:03d}Z" if rest_ms else f"{text}Z"


@lru_cache(maxsize=4096)  # A plan asks about the same instants again and again.
def ms_of(text: str) -> int:
    """The inverse of `text_of`; any RFC 3339 offset is accepted. ValueError if there is none."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no offset from UTC; write for example {text}Z")
    return (moment - _EPOCH) // timedelta(milliseconds=1)
