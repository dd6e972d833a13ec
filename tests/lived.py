"""A life of the real loop on make-believe doors: real events on a make-believe disk, and processes that do as told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from random import Random
from typing import Any

from story import DEFAULTS

from daemon.loop import Doors, Loop
from daemon.order import Surroundings
from daemon.ports import Began, Ended, Order, Report
from ledger.instant import Now, ms_of, text_of
from ledger.ledger import Bounds
from ledger.reader import read
from ledger.record import Record
from ledger.segment import Writer
from policies.adoption import Accepted
from policies.job import parse_job
from policies.policy import SchedulingPolicy, adopt
from simulations.disk import SimDisk
from simulations.habits import Fate

Json = Any
FateOf = Callable[[str, int], Fate]  # run, attempt

FRIDAY = ms_of("2026-03-27T20:00:00Z")  # Two days before Europe changes its clocks.
OVERLAPS = ("skip", "allow_all", "buffer_one", "buffer_all(<=3)", "cancel_other", "terminate_other")
RESOURCES = {
    "cpus": 4, "memory_bytes": 8 << 30, "memory_free_bytes": 4 << 30, "disk_bytes": 1 << 40,
    "disk_free_bytes": 1 << 39, "gpu_memory_bytes": 0,
}  # fmt: skip


def policy(**values: Json) -> SchedulingPolicy:
    return adopt(DEFAULTS, values)


def accepted(*raws: Json) -> dict[str, Accepted]:
    jobs = [parse_job({"kind": "command", "argv": ["work"], **raw}) for raw in raws]
    return {job.name: Accepted(job.digest(), job.canonical(), "jobs.yaml") for job in jobs}


def any_jobs(seed: int, count: int, overlaps: tuple[str, ...] = OVERLAPS) -> dict[str, Accepted]:
    """Jobs of every kind, that get in each other's way."""
    chance, raws = Random(seed), []
    for number in range(count):
        schedule: Json = chance.choice(
            (
                {"every": "10m"}, {"every": "7m", "offset": "1m"}, {"cron": "*/15 * * * *", "timezone": "Europe/Paris"},
                {"cron": "30 2 * * *", "timezone": "Europe/Paris"}, {"at": text_of(FRIDAY + 3_600_000)},
            )
        )  # fmt: skip
        if number and chance.random() < 0.3:
            schedule = {"after": f"job{number - 1}", "when": chance.choice(("success", "any"))}
        raw: Json = {
            "name": f"job{number}", "schedule": schedule, "priority": chance.randint(0, 100), "grace": "3s",
            "timeout": chance.choice(("5m", "1h")), "jitter": chance.choice(("0", "3m")),
            "overlap": chance.choice(overlaps),
            "missed": {"policy": chance.choice(("latest", "skip", "all")), "window": "1d", "max": 5},
            "stop_after_failures": chance.choice((None, None, 3)), "tags": chance.choice(([], ["gpu"])),
            "budget": chance.choice((None, None, {"runs_per_hour": 3, "tokens_per_day": 500})),
            "retry": {"attempts": chance.randint(1, 3), "base": "20s", "max": "5m", "on": ["exit", "timeout"]},
            "leases": chance.sample(["repo:a", "repo:b"], k=chance.randint(0, 2)),
            "needs": {"cpu": chance.choice((0, 1, 2)), "tokens": 5}, "keep": {"runs": chance.randint(3, 50)},
        }  # fmt: skip
        if chance.random() < 0.25:
            del raw["retry"], raw["needs"]
            steps = [{"name": name, "kind": "command", "argv": ["work"]} for name in "abc"]
            steps[2]["after"] = ["a", "b"]  # type: ignore[assignment]
            raw |= {"kind": "agent", "steps": steps}
            raws.append(parse_job(raw))
        else:
            raws.append(parse_job({"kind": "command", "argv": ["work"], **raw}))
    return {job.name: Accepted(job.digest(), job.canonical(), "jobs.yaml") for job in raws}


def any_fate(seed: int) -> FateOf:
    def fate_of(run: str, attempt: int) -> Fate:
        chance = Random(f"{seed}/{run}/{attempt}")
        ms = int(chance.choice((50, 5_000, 60_000, 600_000)) * (0.5 + chance.random()))
        return Fate(ms, 0 if chance.random() < 0.8 else 3, tokens=chance.choice((None, 2, 9)))

    return fate_of


class _Clock:
    boot_id = "boot"

    def __init__(self, wall_ms: int) -> None:
        self.wall_ms, self.boot_ms = wall_ms, 1_000_000

    def now(self) -> Now:
        return Now(self.wall_ms * 1_000_000, self.boot_ms * 1_000_000)


class _Nothing:
    """The doors that nobody uses here: foreign leases, files, outputs."""

    def seen(self) -> list[Any]:
        return []

    def publish(self, key: str, holder: str, token: int) -> None: ...
    def withdraw(self, key: str, token: int) -> None: ...
    def sync(self, ours: Mapping[str, tuple[str, int]]) -> None: ...
    def look(self, wanted: object) -> None: ...

    def found(self) -> list[Any]:
        return []


class _Unseen(Loop):
    def _view(self, now: Now) -> None:
        self._view_dirty = False  # Nobody reads the views of this life.


class Life:
    """It looks exactly when something is due, or `late_ms` later."""

    def __init__(
        self, jobs: Mapping[str, Accepted], rules: SchedulingPolicy, fate_of: FateOf, *, late_ms: int = 0,
        code: str = "sim",
    ) -> None:  # fmt: skip
        self.jobs, self.rules, self.fate_of, self.late_ms, self.code = jobs, rules, fate_of, late_ms, code
        self.clock, self.disk = _Clock(FRIDAY), SimDisk(1)
        self.ends: dict[tuple[str, int], tuple[int, Fate]] = {}
        self.fates: dict[tuple[str, int], Fate] = {}
        self.told: list[Report] = []
        self.asked: list[Any] = []
        self.timer_ms: int | None = None
        self.lives = 0
        self.begin()

    # The processes.

    def start(self, order: Order) -> None:
        key = (order.run, order.attempt)
        self.fates[key] = fate = self.fate_of(*key)
        self.ends[key] = (self.clock.wall_ms + fate.ms, fate)
        self.told.append(Began(*key, 7, 7))

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()

    def recorded(self, run: str, attempt: int) -> None: ...

    def resume(self, order: Order, pid: int | None, started: int | None, *, begin: bool = True) -> None: ...

    def stop(self, run: str, attempt: int, *, force: bool) -> None:
        if self.ends.pop((run, attempt), None) is not None:
            self.told.append(Ended(run, attempt, None, 15))

    def collect(self) -> list[Report]:
        told, self.told = self.told, []
        for key, (ends_ms, fate) in sorted(self.ends.items(), key=lambda item: item[1][0]):
            if ends_ms <= self.clock.wall_ms:
                told.append(Ended(*key, fate.code, fate.signal))
                del self.ends[key]
        return told

    # What they leave.

    def measure(self, run: str, attempt: int) -> dict[str, Json]:
        return {}

    def read(self, run: str, attempt: int, name: str) -> str:
        return f"{name} is not there"

    def unmet(self, run: str, attempt: int, expects: object) -> str:
        return ""

    def tokens(self, run: str, attempt: int) -> int | None:
        fate = self.fates.get((run, attempt))
        return fate.tokens if fate is not None else None

    def forget(self, run: str) -> None: ...
    def errands(self) -> list[str]:
        return []

    # The daemon.

    def begin(self) -> None:
        nothing: Any = _Nothing()
        me: Any = self

        def set_timer(wall_ms: int | None) -> None:
            self.timer_ms = wall_ms

        def take() -> list[Any]:
            asked, self.asked = self.asked, []
            return asked

        doors = Doors(
            clock=self.clock, disk=self.disk, spawner=me, leases=nothing, outputs=me, arrivals=nothing, requests=take,
            jobs=lambda: (self.jobs, []), policy=lambda: (self.rules, ""), resources=lambda: dict(RESOURCES),
            preflight=lambda task, env: None, set_timer=set_timer, worker_deadline=lambda: None,
            bounds=Bounds(segment_bytes=200_000, reserve_bytes=1_000),
        )  # fmt: skip
        self.lives += 1
        started = {
            "version": "0", "code": self.code, "python": "3", "host": "sim", "boot_id": "boot", "pid": self.lives,
            "process_started": 1, "zone": "UTC", "tzdb": "sim",
        }  # fmt: skip
        around = Surroundings(Path("/home"), Path("/root"), {}, {})
        self.loop = _Unseen(doors, around, Writer("sim", "boot", self.lives, 1, "0"), started)
        self.loop.begin()
        self.first_seq = self.loop.ledger.head.seq
        self.look("start")

    def end(self) -> None:
        self.loop.end("the test is over")

    def look(self, *reasons: str) -> None:
        given = frozenset(reasons)
        for _ in range(500):
            if not self.loop.tick(given) and not self.told:  # A report wakes it, as it does the real one.
                return
            given = frozenset()
        raise AssertionError("500 looks in a row had news")

    def move_to(self, wall_ms: int) -> None:
        self.clock.boot_ms += wall_ms - self.clock.wall_ms
        self.clock.wall_ms = wall_ms

    def pass_until(self, until_ms: int) -> None:
        while (next_ms := self._next_ms() + self.late_ms) < until_ms:
            self.move_to(max(next_ms, self.clock.wall_ms))
            self.look("timer")
        self.move_to(until_ms)

    def _next_ms(self) -> int:
        instants = [at for at, _ in self.ends.values()] + [1 << 50]
        return min(instants + ([self.timer_ms] if self.timer_ms is not None else []))

    def records(self) -> list[Record]:
        return list(read(self.disk))
