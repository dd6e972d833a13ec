"""The job files, read by a child process.

Reading them takes pydantic's models, a YAML parser and, with a thousand jobs, tens of megabytes for a moment: all of it
goes with the child. A file that kills its reader is a problem to report and not the end of the daemon, and a large
folder does not hold up the loop.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import orjson

from policies.adoption import FOLDER, Accepted, Problem

Found = tuple[Mapping[str, Accepted], list[Problem]]


class JobLoader:
    """`again` has the files read; `ready` is called when that is done, and `found` then says what they say."""

    def __init__(
        self,
        folder: Path,
        zone: str,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        ready: Callable[[], None],
    ) -> None:
        self._folder, self._zone = folder, zone
        self._watch, self._unwatch, self._ready = watch, unwatch, ready
        self._child: subprocess.Popen[bytes] | None = None
        self._data = bytearray()
        self._once_more = False
        self._found: Found | None = None

    def found(self) -> Found:
        """What was read last. It is given away, since the graph holds it from then on; asked once more (after a full
        disk has undone that), the files are read again."""
        found, self._found = self._found or self.read(), None
        return found

    def read(self) -> Found:
        """Have them read now, and wait for it."""
        data, _ = (child := self._start()).communicate()
        return self._understood(data, child.returncode)

    def again(self) -> None:
        """Have them read; a change while that goes on has them read once more."""
        if self._child is not None:
            self._once_more = True
            return
        self._child, self._once_more = self._start(), False
        assert self._child.stdout is not None
        os.set_blocking(self._child.stdout.fileno(), False)
        self._watch(self._child.stdout.fileno(), self._take)

    def close(self) -> None:
        if self._child is not None:
            assert self._child.stdout is not None
            self._unwatch(self._child.stdout.fileno())
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _start(self) -> subprocess.Popen[bytes]:
        # In the daemon's own session: a child in another one would be taken for an orphan of a run.
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "daemon.jobfiles", str(self._folder), self._zone],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/",
        )  # fmt: skip

    def _take(self) -> None:
        assert self._child is not None
        assert self._child.stdout is not None
        try:
            data = os.read(self._child.stdout.fileno(), 1 << 20)
        except BlockingIOError:
            return
        if data:
            self._data += data
            return
        self._unwatch(self._child.stdout.fileno())
        self._child.stdout.close()
        self._found = self._understood(bytes(self._data), self._child.wait())
        self._child = None
        self._data.clear()
        self._ready()
        if self._once_more:
            self.again()

    def _understood(self, data: bytes, code: int) -> Found:
        if code:
            what = f"the process that reads the job files ended with status {code}"
            advice = "Its words are in the daemon's log; look for a file that is huge or no text"
            return {}, [Problem(FOLDER, 0, 0, "", what, advice)]
        jobs, problems = orjson.loads(data)
        return {name: Accepted(*job) for name, job in jobs.items()}, [Problem(*problem) for problem in problems]
