"""The daemon's care for the gateway process: started where hermesd.yaml has `gateway:`, found again by a daemon that
comes later, started anew when it dies, after a while that grows.

It runs in a session of its own and outlives the daemon, so that loaded models stay loaded; what it prints is in
engines/gateway.log.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from daemon.workers import identity
from daemon.workers.exits import Exit
from daemon.workers.keeper import DEFAULTED
from policies.engines import SETTLED_MS, again_after_ms

Json = Any

FACTS = "gateway.json"
"""In the home: who the gateway is, written by itself when it is ready."""
STARTED = "gateway.started.json"
"""In engines/: whom a daemon has started, ready or not."""
LOG = "gateway.log"
LOG_BYTES_MAX = 8 << 20
LOOK_EVERY_MS = 60_000


class GatewayWatch:
    """`watch` and `unwatch` are the loop's; everything happens in its callbacks and in `housekeep`."""

    def __init__(
        self,
        home: Path,
        wanted: bool,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        now_ms: Callable[[], int],
        *,
        command: tuple[str, ...] = (),
    ) -> None:
        self._home, self._folder, self._wanted = home, home / "engines", wanted
        self._watch, self._unwatch, self._now_ms = watch, unwatch, now_ms
        self._argv = command or (sys.executable, "-P", "-m", "daemon.cli", "--home", str(home), "gateway")
        self._exit: Exit | None = None
        self._process: tuple[int, int] | None = None
        self._since_ms = self._looked_ms = 0
        self._deaths = 0
        self._again_ms: int | None = None
        self.problem = ""

    @property
    def process(self) -> tuple[int, int] | None:
        """pid and start time, while one runs."""
        return self._process

    def begin(self) -> None:
        """Find the one that runs, or start one; end one that a daemon started and that nobody wants any more."""
        found = self._found()
        if not self._wanted:
            mine = _who(self._folder / STARTED, "start")
            if found is not None and found == mine:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(found[0], signal.SIGTERM)
            return
        if found is not None:
            self._follow(*found)
        else:
            self._start()

    def housekeep(self, boot_ms: int) -> None:
        """Start it again when its time has come. Cheap; called whenever the loop turns."""
        if self._deaths and self._process is not None and boot_ms - self._since_ms >= SETTLED_MS:
            self._deaths, self.problem = 0, ""
        if self._process is not None and boot_ms - self._looked_ms >= LOOK_EVERY_MS:
            self._looked_ms = boot_ms
            self._bound_log()
        if self._again_ms is not None and boot_ms >= self._again_ms:
            self._again_ms = None
            found = self._found()  # A person may have started one meanwhile.
            if found is not None:
                self._follow(*found)
            else:
                self._start()

    def next_deadline(self) -> int | None:
        return self._again_ms

    def close(self) -> None:
        """Look no more; it goes on."""
        if self._exit is not None:
            self._unwatch(self._exit.fileno())
            self._exit.close()
            self._exit = None

    def _found(self) -> tuple[int, int] | None:
        for path in (self._home / FACTS, self._folder / STARTED):
            who = _who(path, "start")
            if who is not None and identity.alive(*who):
                return who
        return None

    def _start(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            log = self._folder / LOG
            append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            pid = os.posix_spawn(
                self._argv[0],
                self._argv,
                _environment(),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o600),
                    (os.POSIX_SPAWN_OPEN, 2, str(log), append, 0o600),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=DEFAULTED,
            )
        except OSError as error:
            self._later(f"the gateway cannot be started: {error.strerror or error}")
            return
        started = identity.start_time(pid) or 0
        with contextlib.suppress(OSError):
            path = self._folder / STARTED
            path.write_bytes(orjson.dumps({"pid": pid, "start": started}))
        self._follow(pid, started)

    def _bound_log(self) -> None:
        """The gateway holds the file open, for appending: it is emptied in place, and one older part is kept."""
        log = self._folder / LOG
        with contextlib.suppress(OSError):
            if log.stat().st_size > LOG_BYTES_MAX:
                shutil.copyfile(log, log.with_suffix(".log.1"))
                os.truncate(log, 0)

    def _follow(self, pid: int, started: int) -> None:
        try:
            self._exit = Exit(pid)
        except ProcessLookupError:
            self._later("the gateway ended at once")
            return
        self._process, self._since_ms = (pid, started), self._now_ms()
        self._watch(self._exit.fileno(), self._ended)

    def _ended(self) -> None:
        assert self._process is not None
        pid = self._process[0]
        self.close()
        self._process = None
        how = "ended"
        with contextlib.suppress(ChildProcessError):  # That of an earlier daemon is not our child.
            waited, status = os.waitpid(pid, os.WNOHANG)
            if waited:
                code = os.waitstatus_to_exitcode(status)
                how = f"ended with status {code}" if code >= 0 else f"was ended by signal {-code}"
        if self._now_ms() - self._since_ms >= SETTLED_MS:
            self._deaths = 0
        self._later(f"the gateway (pid {pid}) {how}")

    def _later(self, what: str) -> None:
        self._deaths += 1
        after_ms = again_after_ms(self._deaths)
        self._again_ms = self._now_ms() + after_ms
        self.problem = f"{what}; it is started again after {after_ms // 1000} s; its log is {self._folder / LOG}"


def _environment() -> Mapping[str, str]:
    """The daemon's own, where its modules are found again: the gateway is a part of it. Engines get a clean one."""
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _who(path: Path, start: str) -> tuple[int, int] | None:
    try:
        told = orjson.loads(path.read_bytes())
        return int(told["pid"]), int(told[start])
    except (OSError, ValueError, KeyError, TypeError):
        return None
