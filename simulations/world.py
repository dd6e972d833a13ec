"""One make-believe life of the daemon: a seed decides the jobs, what people do, and what goes wrong.

The loop, the planner, the ledger and the projector are the ones that ship. Checkers watch beside them and raise
`Violation` with the seed, the invariant and the last steps.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from daemon.loop import Doors, Loop
from daemon.order import Surroundings
from daemon.ports import Order
from ledger.errors import Corrupt, Full, Poisoned
from ledger.instant import ms_of, text_of
from ledger.reader import read
from ledger.segment import Writer
from ledger.verify import verify
from policies import due
from policies.adoption import Accepted, Problem
from policies.foreign import SeenLease
from policies.job import parse_job
from policies.policy import SchedulingPolicy
from policies.replay import Past, verify_decisions
from simulations.disk import PowerCut, SimDisk
from simulations.host import Host, SimClock, SimLeases, SimSpawner
from state.graph import OVER
from state.views import render

Json = Any

START_MS = ms_of("2026-03-27T20:00:00Z")  # Two days before Europe changes its clocks.
FAULTS = ("kill", "power", "full", "error", "jump", "foreign", "edit")
POLICY = SchedulingPolicy(
    max_running=4, late_after_ms=30_000, max_decisions_per_plan=20, max_slots_per_job=50, clock_jump_ms=2000,
    memory_percent=90, aging_ms=60_000,
)  # fmt: skip


class Violation(Exception):
    """An invariant does not hold. The message names the seed, so that one command shows it again."""


@dataclass(frozen=True, slots=True)
class Request:
    id: str
    verb: str
    args: Mapping[str, Json]
    actor: str = "sim"


@dataclass(slots=True)
class Asked:
    request: Request
    answer: Callable[[Json], None]
    fail: Callable[[str, str, str], None]


@dataclass
class World:
    seed: int
    faults: frozenset[str] = field(default_factory=frozenset)
    hours: float = 3.0

    def __post_init__(self) -> None:
        # Apart, so that taking a fault class away leaves the workload as it was.
        self._people = Random(f"{self.seed} people")
        self._bad_luck = Random(f"{self.seed} faults")
        self.clock = SimClock(START_MS)
        self.host = Host(self.clock, Random(f"{self.seed} host"))
        self.disk = SimDisk(self.seed, short_writes=self._bad_luck.random() < 0.3)
        self.jobs: dict[str, Accepted] = {}
        self.asked: list[Asked] = []
        self.acknowledged: set[str] = set()
        self.requests = 0
        self.timer_ms: int | None = None
        self.lives = 0
        self.loop: Loop | None = None
        self._define_jobs()

    # What people do.

    def _define_jobs(self) -> None:
        chance = self._people
        schedules: list[Json] = [
            {"every": "90s"}, {"every": "10m"}, {"every": "7s"}, {"cron": "*/5 * * * *", "timezone": "Europe/Paris"},
            {"cron": "30 2 * * *", "timezone": "Europe/Paris"}, "manual", {"at": text_of(START_MS + 3_600_000)},
        ]  # fmt: skip
        names = [f"job{i}" for i in range(chance.randint(1, 6))]
        for index, name in enumerate(names):
            schedule = chance.choice(schedules)
            if index and chance.random() < 0.3:
                when = chance.choice(("success", "any"))
                schedule = {"after": chance.sample(names[:index], k=min(index, chance.randint(1, 2))), "when": when}
            raw: dict[str, Json] = {
                "name": name, "kind": "command", "argv": ["work"], "schedule": schedule,
                "priority": chance.randint(0, 100), "timeout": chance.choice(("5s", "1m", "1h")), "grace": "3s",
                "overlap": chance.choice(("skip", "skip", "allow_all")),
                "missed": {"policy": chance.choice(("latest", "skip")), "window": chance.choice(("10m", "1d"))},
                "retry": {"attempts": chance.randint(1, 3), "base": "2s", "max": "1m", "on": ["exit", "timeout"]},
                "leases": chance.sample(["repo:a", "repo:b", "gpu"], k=chance.randint(0, 2)),
                "needs": {"cpu": chance.choice((0, 1, 2))}, "keep": {"runs": chance.randint(3, 50)},
            }  # fmt: skip
            if chance.random() < 0.25:
                for field_ in ("argv", "retry", "needs"):
                    raw.pop(field_)
                raw |= {
                    "kind": "agent",
                    "steps": [
                        {"name": "a", "kind": "command", "argv": ["work"]},
                        {"name": "b", "kind": "command", "argv": ["work"]},
                        {"name": "c", "kind": "command", "argv": ["work"], "after": ["a", "b"], "timeout": "30s"},
                    ],
                }
            self._write(name, raw)

    def _write(self, name: str, raw: Json) -> None:
        job = parse_job(raw)
        self.jobs[name] = Accepted(job.digest(), job.canonical(), f"{name}.yaml")

    def _ask(self, verb: str, args: Mapping[str, Json]) -> None:
        self.requests += 1
        request = Request(f"r{self.requests}", verb, args)

        def acknowledge(_: Json) -> None:
            self.acknowledged.add(request.id)

        self.asked.append(Asked(request, acknowledge, lambda *_: None))

    def _take_asked(self) -> list[Asked]:
        asked, self.asked = self.asked, []
        return asked

    # One life of the daemon.

    def _doors(self, spawner: SimSpawner) -> Doors:
        def jobs() -> tuple[Mapping[str, Accepted], list[Problem]]:
            return self.jobs, []

        def set_timer(wall_ms: int | None) -> None:
            self.timer_ms = wall_ms

        return Doors(
            clock=self.clock, disk=self.disk, spawner=spawner, leases=SimLeases(self.host), outputs=_NoOutputs(),
            requests=self._take_asked, jobs=jobs, policy=lambda: (POLICY, ""),
            resources=lambda: {
                "cpus": 4, "memory_bytes": 8 << 30, "memory_free_bytes": 4 << 30, "disk_bytes": 1 << 40,
                "disk_free_bytes": 1 << 39, "gpu_memory_bytes": 0,
            },
            preflight=lambda task, env: None, set_timer=set_timer, worker_deadline=lambda: None,
        )  # fmt: skip

    def _start(self) -> None:
        """Begin a daemon; again and again if it dies while it begins."""
        while self.loop is None:
            self.lives += 1
            spawner = SimSpawner(self.host)
            around = Surroundings(Path("/home"), Path("/root"), {}, {})
            pid = 10 + self.lives
            started = {
                "version": "0", "code": "sim", "python": "3", "host": "sim", "boot_id": self.clock.boot_id, "pid": pid,
                "process_started": self.lives, "zone": "UTC", "tzdb": "sim",
            }  # fmt: skip
            loop = Loop(self._doors(spawner), around, Writer("sim", self.clock.boot_id, pid, self.lives, "0"), started)
            spawner.check_order = lambda order, loop=loop: self._check_durable(order, loop)  # type: ignore[misc]
            self._plan_death()
            try:
                loop.begin()
                self.loop = loop
            except PowerCut:
                self._die()
            except (Poisoned, OSError):
                self.disk.heal()
                self.disk.die()
            except Full:
                self.disk.capacity_bytes = None
                self.disk.die()

    def _plan_death(self) -> None:
        luck = self._bad_luck
        if self.faults & {"kill", "power"} and luck.random() < 0.5:
            if luck.random() < 0.5:
                self.disk.cut_power(self.disk.operations + luck.randint(1, 400), after=luck.random() < 0.5)
            else:
                self.host.deadly_in = luck.randint(1, 60)

    def _die(self) -> None:
        """The daemon is dead; with "power" the machine may be, too."""
        self.loop, self.timer_ms, self.host.deadly_in = None, None, None
        self.asked.clear()
        if "kill" not in self.faults or ("power" in self.faults and self._bad_luck.random() < 0.5):
            self.disk.crash()
            self.host.lose_power()
            self.host.trace.append("-- power cut")
        else:
            self.disk.die()
            self.host.trace.append("-- killed")
        self.clock.advance_ns(int(self._bad_luck.choice((0.5, 20, 4_000)) * 1e9))

    def _run_loop(self, reasons: frozenset[str]) -> None:
        assert self.loop is not None
        try:
            for _ in range(200):
                self.host.pass_time()
                again = self.loop.tick(reasons)
                reasons = frozenset()
                self._watch()
                if not again:
                    return
            raise self.violation("a look that records nothing comes in the end", "200 ticks in a row had news")
        except PowerCut:
            self._die()
            self._start()
        except Poisoned:
            self.host.trace.append("-- poisoned")
            self.disk.heal()
            self.disk.die()
            self.loop = None
            self._start()

    def live(self) -> None:
        """From the first start to the last check."""
        try:
            self._start()
            self._run_loop(frozenset({"start"}))
            while self.clock.lived_ns < self.hours * 3600e9:
                self._step()
            self._calm_down()
            self._check_past()
        except Corrupt as error:
            raise self.violation("no durable byte is lost", str(error)) from error

    def _step(self) -> None:
        """Let time pass to the next thing that happens, and have the daemon look."""
        reasons: frozenset[str] = frozenset()
        chance, luck = self._people, self._bad_luck
        next_ms = self._next_ms()
        gap_ms = chance.choice((500, 5_000, 60_000, 600_000))
        now_ms = self.clock.wall_ns // 1_000_000
        if next_ms <= now_ms + gap_ms:
            self.clock.advance_ns(max(0, next_ms - now_ms) * 1_000_000)
            reasons = frozenset({"timer"})
        else:
            self.clock.advance_ns(gap_ms * 1_000_000)
            self._something_happens()
        if "jump" in self.faults and luck.random() < 0.01:
            self.clock.wall_ns += luck.choice((-86_400, -3_600, -30, 30, 3_600, 86_400)) * 1_000_000_000
        if "foreign" in self.faults and luck.random() < 0.05:
            key = luck.choice(("repo:a", "gpu"))
            if key not in self.host.lease_files:
                ends = self.clock.boot_ns // 1_000_000 + luck.choice((1_000, 60_000))
                self.host.foreign[key] = SeenLease(key, "editor", ends, "")
                if luck.random() < 0.5:  # Else the daemon has not been told yet when it grants the key.
                    reasons |= {"leases"}
        if self.disk.capacity_bytes is not None and luck.random() < 0.3:
            self.disk.capacity_bytes = None
        elif "full" in self.faults and luck.random() < 0.02:
            used = sum(map(len, self.disk.files().values()))
            self.disk.capacity_bytes = used + luck.randint(0, 4_000)
        if "error" in self.faults and luck.random() < 0.01:
            self.disk.fail(self.disk.operations + luck.randint(1, 30), errno.EIO)
        if self.faults & {"kill", "power"} and luck.random() < 0.03:
            self._plan_death()
        self._run_loop(reasons)

    def _next_ms(self) -> int:
        now_ms, boot_ms = self.clock.wall_ns // 1_000_000, self.clock.boot_ns // 1_000_000
        instants = [1 << 62]
        if self.timer_ms is not None:
            instants.append(self.timer_ms)
        if (ends_ms := self.host.next_end_ms()) is not None:
            instants.append(now_ms + max(0, ends_ms - boot_ms))
        return min(instants)

    def _something_happens(self) -> None:
        chance = self._people
        assert self.loop is not None
        kind = chance.random()
        if kind < 0.5:
            self._ask("start", {"job": chance.choice(sorted(self.jobs))})
        elif kind < 0.7 and self.loop.graph.active:
            self._ask("cancel", {"run": chance.choice(sorted(self.loop.graph.active))})
        elif kind < 0.8 and "edit" in self.faults:
            name = chance.choice(sorted(self.jobs))
            self._write(name, {**self.jobs[name].spec, "priority": chance.randint(0, 100)})
            self._run_loop(frozenset({"jobs"}))

    def _calm_down(self) -> None:
        """No more faults and no more work: every run must come to an end in bounded time."""
        self.faults = frozenset()
        self.disk.heal()
        self.disk.capacity_bytes = None
        self.disk.cut_power(0)
        self.host.deadly_in = None
        self.host.foreign.clear()
        self.jobs = {}
        self._run_loop(frozenset({"jobs", "leases"}))
        for _ in range(3_000):
            assert self.loop is not None
            if not self.loop.graph.active and self.timer_ms is None:
                return
            now_ms = self.clock.wall_ns // 1_000_000
            self.clock.advance_ns(max(0, min(self._next_ms(), now_ms + 600_000) - now_ms) * 1_000_000)
            self._run_loop(frozenset({"timer"}))
        assert self.loop is not None
        left = {run.name: (run.state, run.reason) for run in self.loop.graph.active.values()}
        raise self.violation("with faults off, every run ends in bounded time", f"left {left}, timer {self.timer_ms}")

    # The watchers.

    def violation(self, invariant: str, found: object) -> Violation:
        tail = "\n  ".join(self.host.trace[-25:])
        return Violation(
            f"seed {self.seed}: {invariant}: {found}\n  {tail}\n"
            f"again: python -m simulations --seeds 1 --first-seed {self.seed}"
        )

    def _check_durable(self, order: Order, loop: Loop) -> None:
        run = loop.graph.run(order.run)
        if run is None or run.decided_seq > loop.ledger.durable_seq or run.token != order.token:
            raise self.violation("no effect before it is durable", order)

    def _watch(self) -> None:
        """What must hold whenever the loop has come round."""
        assert self.loop is not None
        graph = self.loop.graph
        if self.timer_ms is not None and self.clock.wall_ns // 1_000_000 - self.timer_ms > 3_600_000 * 48:
            raise self.violation("the timer is never left behind", self.timer_ms)
        for key, times in self.host.begun.items():
            if times > 1:
                raise self.violation("an attempt begins once", key)
        live: dict[str, list[str]] = {}
        for process in self.host.alive():
            run = graph.run(process.key[0])
            if run is None or run.state in OVER or run.attempt != process.key[1]:
                raise self.violation("no process outlives its attempt's end", (process.key, run and run.state))
            if not run.parent:
                live.setdefault(run.job, []).append(run.name)
        for job, runs in live.items():
            if len(runs) > 1 and graph.jobs[job].spec["overlap"] == "skip":
                raise self.violation("a job that does not overlap runs once at a time", runs)

    def _check_past(self) -> None:
        """What must hold of the whole life."""
        assert self.loop is not None
        found = verify(self.disk)
        if not found.ok:
            raise self.violation("the ledger verifies", found.damages)
        records = list(read(self.disk))
        past = Past()
        for verdict in verify_decisions(records, past):
            if not verdict.agrees:
                raise self.violation(
                    "a decision is reproduced from the ledger alone",
                    (verdict.seq, verdict.differing_inputs, verdict.recorded, verdict.again),
                )
        head = self.loop.ledger.head
        if render(past.graph, head) != render(self.loop.graph, head):
            raise self.violation("replay equals the live state", head)
        taken = {record.data["request"] for record in records if record.type in ("start.requested", "cancel.requested")}
        if self.acknowledged - taken:
            raise self.violation("no acknowledged request is lost", self.acknowledged - taken)
        self._check_slots(records, past)

    def _check_slots(self, records: list[Any], past: Past) -> None:
        """Every slot has its decision, and each run one end: counted from the events, without the projector."""
        ends: dict[str, int] = {}
        for record in records:
            if record.type == "run.finished" and record.data["retry_at"] is None:
                ends[record.data["run"]] = ends.get(record.data["run"], 0) + 1
            if record.type == "plan.decided":
                for decided in record.data["decisions"]:
                    if decided["verdict"] not in ("started", "deferred"):
                        ends[decided["run"]] = ends.get(decided["run"], 0) + 1
        doubled = {run: times for run, times in ends.items() if times != 1}
        if doubled:
            raise self.violation("a run ends exactly once", doubled)
        decided_slots: dict[str, dict[int, set[str]]] = {}
        spans: dict[str, list[tuple[int, int, int]]] = {}
        for record in records:
            if record.type == "plan.decided":
                for decided in record.data["decisions"]:
                    if decided["run"] not in ends:
                        raise self.violation("a run that was decided has an end", decided["run"])
                    if decided["trigger"] != "schedule":
                        continue
                    at_ms = ms_of(decided["at"])
                    if "until" in decided:
                        spans.setdefault(decided["job"], []).append((at_ms, ms_of(decided["until"]), decided["count"]))
                    else:
                        decided_slots.setdefault(decided["job"], {}).setdefault(at_ms, set()).add(decided["run"])
        for record in records:
            if record.type != "job.defined":
                continue
            name = record.data["job"]
            job, schedule = past.graph.jobs[name], parse_job(record.data["spec"]).schedule
            expected = due.slots(schedule, ms_of(record.ts), job.cursor_ms, 1_000_000)
            singles = decided_slots.get(name, {})
            covered: dict[int, int] = {at_ms: len(runs) for at_ms, runs in singles.items()}
            for start_ms, until_ms, count in spans.get(name, []):
                inside = [at_ms for at_ms in expected if start_ms <= at_ms <= until_ms]
                if len(inside) != count:
                    raise self.violation("a range counts its slots", (name, start_ms, until_ms, count, len(inside)))
                for at_ms in inside:
                    covered[at_ms] = covered.get(at_ms, 0) + 1
            if sorted(covered) != expected or any(times != 1 for times in covered.values()):
                wrong = [text_of(at) for at in sorted(set(expected) ^ set(covered))][:5]
                twice = [text_of(at) for at, times in covered.items() if times != 1][:5]
                raise self.violation("every slot has exactly one decision", (name, wrong, twice))

    def trace_hash(self) -> str:
        """Names everything that happened: the same seed gives the same hash."""
        digest = sha256("\n".join(self.host.trace).encode())
        for path, content in self.disk.files().items():
            digest.update(path.encode() + content)
        return digest.hexdigest()


class _NoOutputs:
    def measure(self, run: str, attempt: int) -> dict[str, Json]:
        return {}

    def read(self, run: str, attempt: int, name: str) -> bytes | str:
        return f"{name} is not simulated"


def live(seed: int, *, hours: float = 3.0, faults: frozenset[str] | None = None) -> World:
    """One life. Without `faults`, each class is on with probability one half, decided by the seed."""
    if faults is None:
        swarm = Random(f"{seed} swarm")
        faults = frozenset(fault for fault in FAULTS if swarm.random() < 0.5)
    world = World(seed, faults, hours)
    world.live()
    return world
