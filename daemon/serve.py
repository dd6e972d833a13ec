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
from typing import Any, Generic, TypeVar

import yaml
from pydantic import ValidationError

from daemon import notify, resources
from daemon.arrivals import Lookout
from daemon.auditor import Auditor
from daemon.control import Asked, ControlServer, Request, done, take
from daemon.gateway_watch import GatewayWatch
from daemon.heartbeat import Heart
from daemon.home import Home, Settings
from daemon.jobloader import JobLoader
from daemon.leases import LeaseFolder, Me
from daemon.loop import Doors, Loop
from daemon.order import Surroundings, models_of
from daemon.outputs import OutputFolder
from daemon.ports import SpawnError
from daemon.reading import replaying
from daemon.system import OsDisk, SystemClock
from daemon.version import ROOT, code_digest, tzdb_version, version
from daemon.wake import Waker
from daemon.workers.preflight import preflight
from daemon.workers.spawner import PosixSpawner
from ledger.segment import Writer
from policies.policy import SchedulingPolicy, adopt
from policies.upgrade.policy import UpgradePolicy
from policies.upgrade.policy import adopt as adopt_upgrades

Json = Any
P = TypeVar("P")

HOUSEKEEPING_S = 60.0
_COLLECT = (20_000, 20, 50)
"""The loop makes many small values and hardly a cycle: looking for cycles as often as Python does by itself would take
a fifth of its time."""


class PolicyFile(Generic[P]):
    """A policy in force: the defaults that come with Hermes, and the home's override as long as it is legal."""

    def __init__(self, folder: Path, name: str, adopt: Callable[[Mapping[str, Json], Mapping[str, Json]], P]) -> None:
        self._path, self._adopt = folder / name, adopt
        self._defaults = yaml.safe_load((ROOT / "policies" / "defaults" / name).read_text())
        self._good = adopt(self._defaults, {})

    def read(self) -> tuple[P, str]:
        """The policy, and what is wrong with the override; then the last good one stays."""
        try:
            override = yaml.safe_load(self._path.read_text(encoding="utf-8")) or {}
            if not isinstance(override, dict):
                return self._good, f"{self._path}: a policy is written as `name: value`, one a line"
            self._good = self._adopt(self._defaults, override)
        except FileNotFoundError:
            self._good = self._adopt(self._defaults, {})
        except ValidationError as error:
            first = error.errors()[0]
            known = ", ".join(self._defaults)
            field = ".".join(map(str, first["loc"]))
            return self._good, f"{self._path}: {field}: {first['msg']}; the names are {known}"
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            return self._good, f"{self._path}: {' '.join(str(error).split())}"
        return self._good, ""


def scheduling_policy(home: Home) -> PolicyFile[SchedulingPolicy]:
    return PolicyFile(home.policies, "scheduling.yaml", adopt)


def upgrade_policy(home: Home) -> PolicyFile[UpgradePolicy]:
    return PolicyFile(home.policies, "upgrades.yaml", adopt_upgrades)


def environment(settings: Settings) -> dict[str, str]:
    """The clean environment of every run: what the settings let through, and nothing else of the daemon's own."""
    given = {name: os.environ[name] for name in settings.environment if name in os.environ}
    return {"PATH": os.defpath, "HOME": str(Path.home()), "LANG": "C.UTF-8"} | given


def surroundings(home: Home, settings: Settings) -> Surroundings:
    named = {name: str(path) for name, path in settings.models.items()}
    models = models_of(home.path, named, Path.home())
    return Surroundings(home.path, Path.home(), environment(settings), models, str(home.path / "gateway.sock"))


def _give_back_memory() -> None:
    """Starting reads the ledger and every job file; what that took is not needed again, and what is left stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT)
    with contextlib.suppress(OSError, AttributeError):  # a C library without it keeps what it has
        ctypes.CDLL(None).malloc_trim(0)


class Daemon:
    """One home's daemon, in the main thread of its process."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.settings = home.settings()
        self.clock = SystemClock()
        self.waker = Waker()
        self.spawner = PosixSpawner(self.waker.watch, self.waker.unwatch)
        self._loader = JobLoader(
            home.jobs, self.settings.timezone, self.waker.watch, self.waker.unwatch, lambda: self.waker.poke("jobs")
        )
        self._auditor = Auditor(home.path)
        self._gateway = GatewayWatch(
            home.path, self.settings.gateway is not None, self.waker.watch, self.waker.unwatch, self._boot_ms
        )
        self._lookout = Lookout(Path.home(), self.clock, self.waker)
        self._upgrades: PolicyFile[UpgradePolicy] | None = None
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
            policy=scheduling_policy(home).read,
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
        # Before anything is read: what changes while we read must be told of.
        for folder, reason in (
            (self.home.jobs, "job files"),
            (self.home.policies, "policies"),
            (self.home.leases, "leases"),
            (self.home.inbox, "inbox"),
        ):
            self.waker.watch_folder(folder, reason)
        with replaying():
            self.loop.begin()
        self._control = ControlServer(self.home.path, self.waker)
        self.waker.every(HOUSEKEEPING_S, "housekeeping")
        interval_s = notify.watchdog_interval_s()
        if interval_s is not None:
            self.waker.every(interval_s, "watchdog")
        self._take_inbox()
        self._gateway.begin()
        reasons = frozenset({"start", "policies"})  # The loop has read the policy before this watched its file.
        told_ready = False
        while "stop" not in reasons:
            while self.loop.tick(reasons):
                reasons = frozenset()
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
            for folder, reason in ((self.home.jobs, "job files"), (self.home.leases, "leases")):
                folder.mkdir(mode=0o700, exist_ok=True)
                self.waker.watch_folder(folder, reason)
        if reasons & {"job files", "reload"}:
            self._loader.again()
        if "inbox" in reasons:
            self._take_inbox()

    def _upgrade_policy(self) -> Mapping[str, Json]:
        """Read when an upgrade is planned, and never in a home that has none."""
        self._upgrades = self._upgrades or upgrade_policy(self.home)
        policy, problem = self._upgrades.read()
        self.loop.problems.pop("upgrade policy", None)
        if problem:
            self.loop.problems["upgrade policy"] = problem
        return policy.values()

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
