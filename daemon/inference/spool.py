"""What engines and generations have to tell the ledger: kept in a bounded file until the daemon has recorded it.

The gateway outlives the daemon, and may be killed itself. Each fact gets the gateway's name and a number; it goes to
the spool file first, in batches to the daemon's socket, and out of the file once it is recorded. Sending a batch a
second time does no harm: the ledger knows the numbers. When too many wait the oldest are dropped, and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections import deque
from pathlib import Path
from typing import Any

import orjson

from daemon.control import REQUEST_BYTES_MAX, CallFailed, NotRunning, call
from daemon.inference.views import Fact
from daemon.system import SystemClock
from daemon.version import version
from daemon.workers.identity import start_time
from ledger.instant import text_of
from policies.told import EVENTS_MAX, VERB

Json = Any

FILE = "spool.jsonl"
LINES_MAX = 20_000
"""Facts that wait at most."""
_BATCH_BYTES = REQUEST_BYTES_MAX * 3 // 4
_AGAIN_S = 2.0
_WITHIN_S = 20.0
_COMPANY_S = 0.05
"""Facts come in groups; so long is waited for company."""


class Spool:
    """The gateway's side. Made and used in its event loop; `start` before the first fact, `close` at the end."""

    def __init__(self, home: Path, folder: Path, *, lines_max: int = LINES_MAX, again_s: float = _AGAIN_S) -> None:
        self.name = f"gw-{secrets.token_hex(4)}"
        self._home, self._path, self._lines_max, self._again_s = home, folder / FILE, lines_max, again_s
        self._clock = SystemClock()
        self._number = 0
        self._waiting: deque[bytes] = deque()
        self._unwritten: list[bytes] = []
        self._in_file = 0
        self._amiss = False
        """The file is not as it should be, for want of room: it is written anew with the next facts."""
        self._work, self._closing = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.dropped = self.refused = self.recorded = 0

    async def start(self) -> None:
        """Take up what an earlier gateway left, and say that this one has begun."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            # A line that a crash cut off is no fact.
            lines = self._path.read_bytes().splitlines(keepends=True)
            self._waiting.extend(line for line in lines if line.endswith(b"\n") and _is_json(line))
            self._rewrite()
        self._task = asyncio.get_running_loop().create_task(self._send())
        pid = os.getpid()
        data = {"version": version(), "pid": pid, "process_started": start_time(pid) or 0}
        self.take(Fact("gateway.started", "", data))

    def take(self, fact: Fact) -> None:
        """Have it recorded, now or when the daemon is back."""
        self._number += 1
        at = text_of(self._clock.now().wall_ms)
        line = orjson.dumps(
            {"type": fact.type, "data": {"by": self.name, "number": self._number, "at": at, **fact.data}}
        )
        self._waiting.append(line + b"\n")
        self._unwritten.append(line + b"\n")
        while len(self._waiting) > self._lines_max:
            self._waiting.popleft()
            self.dropped += 1
        self._work.set()

    async def close(self, why: str) -> None:
        """Say that the gateway ends, and try once more to have all recorded; the file keeps what is not."""
        self.take(Fact("gateway.stopped", "", {"why": why}))
        self._closing.set()
        self._work.set()
        if self._task is not None:
            await self._task

    async def _send(self) -> None:
        while not self._closing.is_set():
            await self._work.wait()
            self._work.clear()
            await self._pause(_COMPANY_S)
            self._write()
            if not await self._tell_all():
                await self._pause(self._again_s)
                self._work.set()
        await self._tell_all()
        self._rewrite()

    async def _pause(self, seconds: float) -> None:
        """Or until it is to close."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)

    async def _tell_all(self) -> bool:
        """False if the daemon does not hear."""
        try:
            while self._waiting:
                await self._tell()
        except (NotRunning, CallFailed, OSError):
            return False
        if self._in_file:
            self._rewrite()
        return True

    async def _tell(self) -> None:
        """One batch. NotRunning or CallFailed, and it is told again later."""
        batch: list[bytes] = []
        size = 0
        for line in self._waiting:
            size += len(line) + 1
            if batch and (len(batch) >= EVENTS_MAX or size > _BATCH_BYTES):
                break
            batch.append(line)
        events = [orjson.loads(line) for line in batch if len(line) <= _BATCH_BYTES]
        first = self._waiting[0]
        answer = await asyncio.to_thread(call, self._home, VERB, {"events": events}, _WITHIN_S)
        self.recorded += answer["recorded"]
        self.refused += len(answer["refused"])
        if self._waiting and self._waiting[0] is first:  # Else so many came meanwhile that it was dropped.
            for _ in batch:
                self._waiting.popleft()

    def _write(self) -> None:
        """Append what is new. Not synced: a power cut ends the engines, too."""
        lines, self._unwritten = self._unwritten, []
        self._in_file += len(lines)
        if self._amiss or self._in_file > 2 * self._lines_max:
            self._rewrite()
        elif lines:
            try:
                fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                with open(fd, "ab") as file:
                    file.write(b"".join(lines))
            except OSError:
                self._amiss = True

    def _rewrite(self) -> None:
        """Leave in the file what waits."""
        self._unwritten.clear()
        beside = self._path.with_suffix(".new")
        try:
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(b"".join(self._waiting))
            beside.replace(self._path)
        except OSError:
            self._amiss = True
        else:
            self._in_file, self._amiss = len(self._waiting), False


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False
