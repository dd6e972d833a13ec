"""The heartbeat: one small file in the home that tells, without a socket, who the daemon is and when its loop last
completed a turn.

It is no part of the ledger and no view of it. Writing it is the one thing an idle daemon does: some two hundred bytes,
in place and not synced, when it wakes for its housekeeping anyway, once a minute. It is gone after a clean stop.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import NamedTuple

import orjson

from daemon.workers import identity

FILE = "heartbeat"
TURN_EVERY_MS = 60_000
"""A healthy loop completes a turn at least so often: its housekeeping wakes it."""
_BEAT_EVERY_NS = 10_000_000_000  # a busy loop turns thousands of times a second, and one look an hour is enough
_BYTES = 256


class Beat(NamedTuple):
    """`awake_ms` is on the clock that stands still while the host sleeps: a loop is not late for having slept."""

    pid: int
    process_started: int
    boot_id: str
    wall_ms: int
    awake_ms: int

    def alive(self, boot_id: str) -> bool:
        """Whether the very process that wrote it lives, on the machine's present boot."""
        return self.boot_id == boot_id and identity.alive(self.pid, self.process_started)

    def age_ms(self) -> int:
        """How long ago the loop completed a turn. Only of the present boot."""
        return max(0, awake_ms() - self.awake_ms)


def awake_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Heart:
    """The daemon's side. Only for the holder of the ledger's lock."""

    def __init__(self, home: Path, pid: int, process_started: int, boot_id: str) -> None:
        self._path = home / FILE
        self._who = {"pid": pid, "process_started": process_started, "boot_id": boot_id}
        self._next_ns = 0

    def beat(self) -> None:
        """The loop has completed a turn. Written at most every few seconds."""
        now_ns = time.monotonic_ns()
        if now_ns < self._next_ns:
            return
        self._next_ns = now_ns + _BEAT_EVERY_NS
        line = orjson.dumps({**self._who, "wall_ms": time.time_ns() // 1_000_000, "awake_ms": now_ns // 1_000_000})
        # Always of one length: it is written over in place, and a reader finds one line whichever it meets.
        data = line.ljust(_BYTES - 1) + b"\n"
        # No room, or no permission, is no reason to stop the work; who looks will find the heartbeat late, as it is.
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.pwrite(descriptor, data, 0)
            finally:
                os.close(descriptor)

    def end(self) -> None:
        """A clean stop."""
        self._path.unlink(missing_ok=True)


def read(home: Path) -> Beat | None:
    """None if no daemon has left one, or has made the file and not written it yet. ValueError if it is no heartbeat."""
    try:
        data = (home / FILE).read_bytes()
        return Beat(**orjson.loads(data)) if data else None
    except FileNotFoundError:
        return None
    except (TypeError, orjson.JSONDecodeError) as error:
        raise ValueError(f"{home / FILE} is no heartbeat: {error}") from error
