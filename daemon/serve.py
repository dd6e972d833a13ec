"""The daemon as a process: the loop behind the real doors, from start to stop."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from daemon import notify, resources
from daemon.arrivals import Lookout
from daemon.auditor import Auditor
from daemon.control import Asked, ControlServer, Request, done, take
from daemon.gateway_watch import GatewayWatch
from daemon.heartbeat import Heart
from daemon.home import Home, HomeError, InForce
from daemon.leases import LeaseFolder, Me
from daemon.loader import Loader
from daemon.loop import Doors, Loop
from daemon.order import Surroundings, models_of
from daemon.outputs import OutputFolder
from daemon.ports import SpawnError
from daemon.reading import replaying
from daemon.system import OsDisk, SystemClock
from daemon.version import code_digest, tzdb_version, version
from daemon.wake import CannotWatch, Waker
from daemon.workers.preflight import preflight
from daemon.workers.spawner import PosixSpawner
from ledger.segment import Writer

Json = Any

HOUSEKEEPING_S = 60.0
_COLLECT = (20_000, 20, 50)
"""The loop makes many small values and hardly a cycle: looking for cycles as often as Python does by itself would take
a fifth of its time."""


def environment(settings: InForce) -> dict[str, str]:
    """The clean environment of every run: what the settings let through, and nothing else of the daemon's own."""
    given = {name: os.environ[name] for name in settings.environment if name in os.environ}
    return {"PATH": os.defpath, "HOME": str(Path.home()), "LANG": "C.UTF-8"} | given


def surroundings(home: Home, settings: InForce) -> Surroundings:
    models = models_of(home.path, settings.models, Path.home())
    return Surroundings(home.path, Path.home(), environment(settings), models, str(home.path / "gateway.sock"))


def _give_back_memory() -> None:
    """Starting reads the ledger and every job file; what that took is not needed again, and what is left stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT)
    _trim()


def _trim() -> None:
    with contextlib.suppress(OSError, AttributeError):  # a C library without it keeps what it has
        ctypes.CDLL(None).malloc_trim(0)


class Daemon:
    """One home's daemon, in the main thread of its process."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.clock = SystemClock()
        self.waker = Waker()
        self.spawner = PosixSpawner(self.waker.watch, self.waker.unwatch)
        self._loader = Loader(home, self.waker.watch, self.waker.unwatch, self._written_again)
        try:
            # Before anything is read: what changes while we read must be told of.
            self._watched = (
                (home.jobs, "job files"),
                (home.policies, "policy files"),
                (home.leases, "leases"),
                (home.inbox, "inbox"),
            )
            for folder, reason in self._watched:
                self.waker.watch_folder(folder, reason)
            self.settings = self._loader.settings()
        except (CannotWatch, HomeError):
            self.waker.close()
            raise
        self._auditor = Auditor(home.path)
        self._gateway = GatewayWatch(
            home.path, self.settings.gateway, self.waker.watch, self.waker.unwatch, self._boot_ms
        )
        self._lookout = Lookout(Path.home(), self.clock, self.waker)
        self._asked: list[Asked] = []
        self._control: ControlServer | None = None
        pid = os.getpid()
        me = Me.here()
        doors = Doors(
            clock=self.clock,
            disk=OsDisk(home.path),
            spawner=self.spawner,
            leases=LeaseFolder(home.leases, self.clock, me),
            outputs=OutputFolder(home.runs),
            arrivals=self._lookout,
            requests=self._requests,
            jobs=self._loader.found,
            policy=self._loader.policy,
            upgrades=self._upgrade_policy,
            resources=lambda: resources.sample(home.path),
            preflight=preflight,
            set_timer=self.waker.set_timer,
            worker_deadline=self._next_deadline,
            anywhere=self.settings.any_file_system,
        )
        host = socket.gethostname()
        started = {
            "version": version(),
            "code": code_digest(),
            "python": platform.python_version(),
            "host": host,
            "boot_id": self.clock.boot_id,
            "pid": pid,
            "process_started": me.started or 0,
            "zone": self.settings.timezone,
            "tzdb": tzdb_version(),
        }
        writer = Writer(host=host, boot_id=self.clock.boot_id, pid=pid, started=me.started or 0, code=version())
        self.loop = Loop(doors, surroundings(home, self.settings), writer, started)
        self._heart = Heart(home.path, pid, me.started or 0, self.clock.boot_id)

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until told to stop. The ledger's errors, AlreadyRunning and HomeError come through."""
        self.waker.watch_signals()
        with replaying():
            self.loop.begin()
        self._control = ControlServer(self.home.path, self.waker)
        self.waker.every(HOUSEKEEPING_S, "housekeeping")
        interval_s = notify.watchdog_interval_s()
        if interval_s is not None:
            self.waker.every(interval_s, "watchdog")
        self._take_inbox()
        self._gateway.begin()
        reasons = frozenset({"start"})
        told_ready = False
        while "stop" not in reasons:
            read_again = "jobs" in reasons
            while self.loop.tick(reasons):
                reasons = frozenset()
            if read_again:
                _trim()
            if not told_ready:
                told_ready = True
                _give_back_memory()
                notify.tell("READY=1")
                ready()
                self._prepare()
            # The loop itself says that it lives, so that one that hangs is noticed.
            notify.tell("WATCHDOG=1")
            self._heart.beat()
            self.waker.wait()
            reasons = frozenset(self.waker.reasons())
            self._keep_house(reasons)
        notify.tell("STOPPING=1")
        self._heart.end()  # Before the ledger is free: the next daemon's heartbeat is not ours to remove.
        self.loop.end("stopped")

    def close(self) -> None:
        """Give back what was opened; the workers go on."""
        if self._control is not None:
            self._control.close()
        self._auditor.close()
        self._gateway.close()
        self._loader.close()
        self._lookout.close()
        self.spawner.close()
        self.waker.close()

    def _prepare(self) -> None:
        """Have ready what starts commands, where a job is one: the first would be late by that. What fails here fails
        again, and is told, when a command is due."""
        jobs = self.loop.graph.jobs.values()
        if any(job.spec.get("kind") in ("command", "agent", "upgrade") for job in jobs if not job.removed):
            with contextlib.suppress(SpawnError):
                self.spawner.prepare(str(self.home.runs))

    def _keep_house(self, reasons: frozenset[str]) -> None:
        self.spawner.housekeep(self.clock.now().boot_ms)
        self._gateway.housekeep(self.clock.now().boot_ms)
        if "housekeeping" in reasons and self._control is not None:
            self._control.housekeep()
            self._auditor.housekeep(self.clock.now().boot_ms / 1000)
            self.loop.problems.pop("folders", None)
            for folder, reason in self._watched:
                try:
                    folder.mkdir(mode=0o700, exist_ok=True)
                    self.waker.watch_folder(folder, reason)
                except (OSError, CannotWatch) as error:
                    self.loop.problems["folders"] = f"what changes in {folder} is not seen: {error}"
        if reasons & {"job files", "policy files", "reload"} or (self._loader.overdue and "housekeeping" in reasons):
            self._loader.again()
        if "inbox" in reasons:
            self._take_inbox()

    def _upgrade_policy(self) -> Mapping[str, Json]:
        policy, problem = self._loader.upgrades()
        self.loop.problems.pop("upgrade policy", None)
        if problem:
            self.loop.problems["upgrade policy"] = problem
        return policy

    def _written_again(self) -> None:
        self.waker.note("jobs")
        self.waker.note("policies")

    def _boot_ms(self) -> int:
        return self.clock.now().boot_ms

    def _next_deadline(self) -> int | None:
        deadlines = [self.spawner.next_deadline(), self._gateway.next_deadline()]
        return min((at for at in deadlines if at is not None), default=None)

    def _requests(self) -> list[Asked]:
        asked, self._asked = self._asked, []
        assert self._control is not None or not asked
        for one in self._control.requests() if self._control is not None else ():
            match one.request.verb:
                case "ping":
                    one.answer(self._pulse())
                case "stop":
                    one.answer({"stopping": True})
                    self.waker.poke("stop")
                case _:
                    asked.append(one)
        return asked

    def _pulse(self) -> Json:
        """How the loop is doing, for `hermesd status`."""
        now, completed = self.clock.now(), self.loop.completed
        return {
            "pid": os.getpid(),
            "tick": self.loop.graph.here.tick,
            "loop_completed_ms_ago": None if completed is None else now.boot_ms - completed.boot_ms,
            "ledger_seq": self.loop.ledger.head.seq,
            "view_problem": self.loop.view_problem,
            "problems": [*self.loop.problems.values(), *filter(None, [self._auditor.problem, self._gateway.problem])],
            "snapshot_seq": self.loop.snapshot_seq,
            "trusted_seq": self.loop.trusted_seq,
            "workers": [
                {"pid": w.pid, "kind": w.kind, "serves": w.serves, "state": w.state, "run": w.run}
                for w in self.spawner.workers()
            ],
        }

    def _take_inbox(self) -> None:
        """Requests left while nobody listened. Each is taken once: the ledger remembers their ids."""
        for path, request in take(self.home.path):
            self._asked.append(_left(path, request))


def _left(path: Path, request: Request) -> Asked:
    return Asked(request, answer=lambda _: done(path), fail=lambda *_: done(path))
