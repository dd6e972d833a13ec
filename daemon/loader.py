"""What people have written into the home (settings, policies, job files), read by a child process (`daemon.written`).

Reading it takes pydantic's models, a YAML parser and, with a thousand jobs, tens of megabytes for a moment: all of it
goes with the child. A file that kills its reader is a problem to report and not the end of the daemon, and a large
folder does not hold up the loop.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from daemon.home import Home, HomeError, InForce
from policies.adoption import FOLDER, Problem, Unread
from policies.policy import SchedulingPolicy, adopt

Json = Any
Found = tuple[Mapping[str, Unread], list[Problem]]


class Loader:
    """`settings` has everything read once, and waits for it. After that `again` has the rest read; `ready` is called
    when that is done, and `found` and the policies then say what was read. A policy that is not legal now is as it was
    when it last was."""

    def __init__(
        self,
        home: Home,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        ready: Callable[[], None],
    ) -> None:
        self._home = home
        self._watch, self._unwatch, self._ready = watch, unwatch, ready
        self._zone = ""
        self._child: subprocess.Popen[bytes] | None = None
        self._data = bytearray()
        self._once_more = False
        self.overdue = False
        """What was to be read could not be: ask again, a while later."""
        self._found: Found | None = None
        self._policies: dict[str, tuple[Mapping[str, Json], str]] = {}

    def settings(self) -> InForce:
        """Those that hold from now on, whatever is written into the file. HomeError if they cannot be used."""
        first = self._read()
        if first is None:
            what = f"the process that reads {self._home.settings_file} ended without an answer"
            raise HomeError(f"{what}. Its words are in the daemon's log; is there too little memory?")
        if first["error"]:
            raise HomeError(first["error"])
        settings = InForce(*first["settings"])
        self._zone = settings.timezone
        return settings

    def found(self) -> Found:
        """The jobs as read last. They are given away, since the graph holds them from then on; asked once more (after
        a full disk has undone that), the files are read again."""
        if self._found is None:
            self._read()
        assert self._found is not None
        found, self._found = self._found, None
        return found

    def policy(self) -> tuple[SchedulingPolicy, str]:
        """The scheduling policy in force, and what is wrong with the override; "" if nothing."""
        values, problem = self._policies["scheduling"]
        return adopt(values, {}), problem

    def upgrades(self) -> tuple[Mapping[str, Json], str]:
        """The values of the upgrade policy in force, and what is wrong with the override."""
        return self._policies["upgrades"]

    def again(self) -> None:
        """Have it read; a change while that goes on has it read once more."""
        if self._child is not None:
            self._once_more = True
            return
        try:
            self._child, self._once_more, self.overdue = self._start(), False, False
        except OSError as error:  # No room for one more process, or descriptor.
            what = f"the job files cannot be read, since no process can be started for it: {error.strerror}"
            self._found = {}, [Problem(FOLDER, 0, 0, "", what, "It is tried again once a minute")]
            self.overdue = True
            self._ready()
            return
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
            [sys.executable, "-P", "-m", "daemon.written", str(self._home.path), *filter(None, [self._zone])],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/",
        )  # fmt: skip

    def _read(self) -> Json:
        data, _ = (child := self._start()).communicate()
        return self._understand(data, child.returncode)

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
        self._understand(bytes(self._data), self._child.wait())
        self._child = None
        self._data.clear()
        self._ready()
        if self._once_more:
            self.again()

    def _understand(self, data: bytes, code: int) -> Json:
        """Take up what was read, and give back the first line; None if there is none."""
        lines = map(orjson.loads, io.BytesIO(data))
        first = next(lines) if b"\n" in data else None
        if first is not None and not first["error"]:
            for name in ("scheduling", "upgrades"):
                values, problem = first[name]
                known = self._policies.get(name)
                self._policies[name] = (known[0] if problem and known is not None else values, problem)
        if code:
            what = f"the process that reads the job files ended with status {code}"
            advice = "Its words are in the daemon's log; look for a file that is huge or no text"
            self._found = {}, [Problem(FOLDER, 0, 0, "", what, advice)]
        elif first is not None and not first["error"]:
            jobs, problems = {}, list[Json]()
            for line in lines:
                match line:
                    case [str(name), digest, text, source]:
                        jobs[name] = Unread(digest, text, source)
                    case _:
                        problems = line
            self._found = jobs, [Problem(*problem) for problem in problems]
        return first
