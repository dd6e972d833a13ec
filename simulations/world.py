"""One make-believe life of the daemon: a seed decides the jobs, what people do, and what goes wrong.

The loop, the planner, the ledger and the projector are the ones that ship. What goes wrong is told in
`simulations.faults`, what people do in `simulations.workload`, and what must hold in `simulations.checkers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import daemon.loop as loop_module
from daemon.loop import Doors, Loop
from daemon.order import Surroundings
from ledger.chain import Head
from ledger.errors import Corrupt, Full, Poisoned
from ledger.instant import ms_of
from ledger.ledger import Bounds
from ledger.segment import Writer
from policies.adoption import Accepted, Problem
from policies.job import parse_job
from policies.policy import SchedulingPolicy
from simulations import checkers, workload
from simulations.checkers import Violation
from simulations.disk import PowerCut, SimDisk
from simulations.faults import FAULTS, NOTHING, Luck
from simulations.fence import fenced
from simulations.host import Host, SimArrivals, SimClock, SimLeases, SimSpawner

Json = Any

CPUS = 2
LENGTHS = (2, 2, 3, 3, 4, 4, 5, 6, 12)
"""How often, in a life, time passes to what happens next. Many short lives find most, and some bugs take a long one."""
START_MS = ms_of("2026-03-27T20:00:00Z")  # Two days before Europe changes its clocks.
POLICY = SchedulingPolicy(
    max_running=4, late_after_ms=30_000, max_decisions_per_plan=20, max_slots_per_job=50, clock_jump_ms=2000,
    memory_percent=90, aging_ms=60_000, stagger_ms=500, retry_jitter_percent=10, pools={},
    notice_attempts=8, notice_base_ms=30_000, notice_max_ms=3_600_000, notices_at_once=2, notices_waiting_max=8,
)  # fmt: skip
_POLICIES = tuple(replace(POLICY, max_running=places) for places in (1, 2, 4))
_STARTED = {"version": "0", "code": "sim", "python": "3", "host": "sim", "zone": "UTC", "tzdb": "sim"}
NEVER_MS = 1 << 62
_SELDOM_MS = 1 << 45
"""Views are published when a daemon starts and stops, and not between."""
_LIVES_MAX = 200
_CALM_LOOKS_MAX = 4_000
_DAY_MS = 86_400_000
_CALM_MS_MAX = 30 * _DAY_MS


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
    """The classes that may strike from now on."""
    steps: int = max(LENGTHS)
    without: frozenset[str] = field(default_factory=frozenset)
    """What is left out: strikes ("kill@17"), jobs ("job3"), what people do at a step ("people@4")."""

    def __post_init__(self) -> None:
        self.drawn = self.faults
        self.luck = Luck(self.seed, self.faults, self.without)
        knobs = Random(f"{self.seed} knobs")
        self.bounds = Bounds(segment_bytes=knobs.choice((4_000, 12_000, 100_000)), reserve_bytes=1_000)
        self.view_every_ms = knobs.choice((250, 60_000, *[_SELDOM_MS] * 6))
        self.snapshot_every = knobs.choice((6, 20, 1_000_000))
        self.clock = SimClock(START_MS)
        self.host = Host(self.clock, Random(f"{self.seed} host"), name=str(self.seed))
        self.host.odd_workers, self.host.bad_lines = "workers" in self.faults, "notices" in self.faults
        self.disk = SimDisk(self.seed, short_writes=knobs.random() < 0.3)
        self.disk.synced = self._take_time_to_sync
        self.policy = knobs.choice(_POLICIES)
        self.step = 0
        self.timer_ms: int | None = None
        self.loop: Loop | None = None
        self.lives = self.epoch = self.requests = 0
        self.lives_max = _LIVES_MAX
        self.thorough = knobs.random() < 0.125
        """Whether what is derived is looked at in the end, too, which takes as long as much of a life."""
        self.disk.heeds_advice = knobs.random() < 0.5
        self.policy = replace(self.policy, max_decisions_per_plan=knobs.choice((3, 20, 20, 20)))
        self.decides_again = knobs.random() < 0.5
        """Whether each plan is decided again in the end, which takes as long as all other watchers together."""
        self.durable: Head | None = None
        """The last record that a daemon is known to have made durable."""
        self.backup: dict[str, bytes] = {}
        self.rotten: set[str] = set()
        """Files that have rotted without harm, and may still lie there."""
        self.jumped_ms = self.full_until_step = self.calm_since_ns = 0
        self.slow_syncs: list[int] = []
        self.jobs: dict[str, Accepted] = {}
        self.asked: list[Asked] = []
        self.unanswered: dict[str, Request] = {}
        self.acknowledged: set[str] = set()
        self.dropped: dict[str, int] = {}
        self._define_jobs()

    # What people do.

    def _define_jobs(self) -> None:
        names = workload.names(self.seed)
        for place, name in enumerate(names):
            if name not in self.without:
                before = [other for other in names[:place] if other not in self.without]
                self._define(workload.job(self.seed, name, before, START_MS))
        for place in range(2 if "files" in self.faults else 0):
            if f"drop{place}" not in self.without:
                self._define(workload.job_on_files(self.seed, place))

    def _define(self, raw: dict[str, Json]) -> None:
        name = raw["name"]
        wishes = {"notify": workload.wishes(self.seed, name)} if "notices" in self.faults else {}
        self.jobs[name] = workload.accepted(raw | wishes)

    def define(self, name: str, raw: Json) -> None:
        """A job's file is there, or says something else now."""
        job = parse_job(raw)
        self.jobs[name] = Accepted(job.digest(), job.canonical(), f"{name}.yaml")

    def ask(self, verb: str, args: Mapping[str, Json]) -> None:
        self.requests += 1
        self._send(Request(f"r{self.requests}", verb, args))

    def _send(self, request: Request) -> None:
        def acknowledge(answer: Json) -> None:
            self.unanswered.pop(request.id, None)
            if not answer.get("already"):
                self.acknowledged.add(request.id)

        self.unanswered[request.id] = request
        self.asked.append(Asked(request, acknowledge, lambda *_: None))

    def _take_asked(self) -> list[Asked]:
        asked, self.asked = self.asked, []
        return asked

    # One life of the daemon.

    def _doors(self, spawner: SimSpawner) -> Doors:
        def jobs() -> tuple[Mapping[str, Accepted], list[Problem]]:
            return self.jobs, []

        def set_timer(wall_ms: int | None) -> None:
            self.timer_ms = wall_ms if wall_ms is None or wall_ms < _SELDOM_MS else None

        return Doors(
            clock=self.clock, disk=self.disk, spawner=spawner, leases=SimLeases(self.host), outputs=_NoOutputs(),
            arrivals=SimArrivals(self.host),
            requests=self._take_asked, jobs=jobs, policy=lambda: (self.policy, ""),
            resources=lambda: {
                "cpus": CPUS, "memory_bytes": 8 << 30, "memory_free_bytes": 4 << 30, "disk_bytes": 1 << 40,
                "disk_free_bytes": 1 << 39, "gpu_memory_bytes": 0,
            },
            preflight=lambda task, env: None, set_timer=set_timer, worker_deadline=lambda: None, bounds=self.bounds,
        )  # fmt: skip

    def _spawner(self) -> SimSpawner:
        return SimSpawner(self.host)

    def new_loop(self) -> Loop:
        """Another daemon on this home, which has not begun."""
        spawner = self._spawner()
        pid = 10 + self.lives
        started = _STARTED | {"boot_id": self.clock.boot_id, "pid": pid, "process_started": self.lives}
        writer = Writer("sim", self.clock.boot_id, pid, self.lives, "0")
        around = Surroundings(Path("/home"), Path("/root"), {}, {})
        loop = Loop(self._doors(spawner), around, writer, started)
        loop.snapshot_every, loop.snapshot_at_stop, loop.milestones = self.snapshot_every, 25, 1
        spawner.check_order = lambda order: checkers.before_an_effect(self, order, loop)
        return loop

    def start(self) -> None:
        """Begin a daemon; again and again if it dies while it begins."""
        while self.loop is None:
            self._plan_death()
            self._begin_once()

    def restart(self) -> bool:
        """Begin a daemon beside one that believes it lives. Whether it came to live."""
        self.loop = None
        self._begin_once()
        begun = self.loop is not None
        self.start()
        return begun

    def _begin_once(self) -> None:
        self.lives += 1
        if self.lives > self.lives_max:
            raise self.violation("a start succeeds in the end", self.lives)
        if "rot" in self.faults:
            self.backup = self.disk.files()
        loop = self.new_loop()
        try:
            loop.begin()
        except PowerCut:
            self._die()
        except Full:
            self._make_room()
            self.disk.kill()
        except (Poisoned, OSError):
            self.disk.heal()
            self.disk.kill()
        else:
            self.loop = loop
            checkers.after_start(self)

    def stop(self) -> bool:
        """Let the daemon end, with nothing in its way. Whether it has noted how far its ledger goes."""
        assert self.loop is not None
        self.calm_faults()
        noted = True
        try:
            self.loop.end("stopped")
        except Poisoned:  # A rotation behind the last batch may have failed: it ends without a word then.
            noted = False
        self.durable, self.loop, self.timer_ms = self.loop.ledger.head, None, None
        self.disk.kill()
        self.asked.clear()
        return noted

    def _plan_death(self) -> None:
        """A start is where much is done at once: a daemon that keeps dying may die in it, too."""
        if self.faults & {"kill", "power", "point"}:
            for name in ("kill", "point", "foreign"):  # An editor may take what has no file, granted or not.
                if (chance := self.luck.chance(name, -self.lives, 4)) is not None:
                    FAULTS[name].strike(self, chance)

    def _die(self) -> None:
        """The daemon is dead; with "power" the machine may be, too."""
        if self.loop is not None:
            self.durable = self.loop.ledger.head
        self.loop, self.timer_ms = None, None
        self.host.deadly_in = self.host.deadly_at = None
        self.asked.clear()
        chance = Random(f"{self.seed} death {self.lives}")
        if "power" in self.faults and chance.random() < 0.5:
            self.disk.crash()
            self.host.lose_power()
            self.host.trace.append("-- power cut")
        else:
            self.disk.kill()
            self.host.trace.append("-- killed")
        self.clock.advance_ns(int(chance.choice((0.5, 20, 4_000)) * 1e9))

    def rouse(self, reasons: frozenset[str]) -> None:
        """Have the daemon look until it has nothing more to do."""
        assert self.loop is not None
        try:
            for _ in range(200):
                self.host.pass_time()
                again = self.loop.tick(reasons)
                self.durable = self.loop.ledger.head
                reasons = NOTHING
                checkers.watch(self)
                if not again:
                    checkers.when_the_loop_rests(self)
                    return
            raise self.violation("a look that records nothing comes in the end", "200 looks in a row had news")
        except PowerCut:
            self._die()
            self.start()
        except Poisoned:
            self.host.trace.append("-- poisoned")
            self.durable = self.loop.ledger.head
            self.disk.heal()
            self.disk.kill()
            self.loop = None
            self.start()

    def live(self) -> None:
        """From the first start to the last check."""
        before = loop_module.VIEW_EVERY_MS
        loop_module.VIEW_EVERY_MS = self.view_every_ms  # How often views are published is a knob like others.
        try:
            with fenced():
                self._live()
        except Corrupt as error:
            raise self.violation("no durable byte is lost", str(error)) from error
        finally:
            loop_module.VIEW_EVERY_MS = before

    def _live(self) -> None:
        self.start()
        self.rouse(frozenset({"start"}))
        stuck = 0
        for _ in range(self.steps):
            self.step += 1
            before_ns = self.clock.lived_ns
            self._pass_step()
            stuck = stuck + 1 if self.clock.lived_ns == before_ns else 0
            if stuck > 100:
                raise self.violation("the loop sleeps when there is nothing to do", f"timer {self.timer_ms}")
        self._calm_down()
        if self.thorough or any(strike.startswith("zombie@") for strike in self.luck.struck):
            self.stop()  # What a zombie has added is told by the verifier until the next start takes it out.
            self.start()
        checkers.whole_life(self)

    def _pass_step(self) -> None:
        """Let time pass to the next thing that happens, and have the daemon look."""
        chance = Random(f"{self.seed} people {self.step}")
        reasons = NOTHING
        next_ms = self._next_ms()
        gap_ms = chance.choice(workload.TEMPOS[workload.tempo_of(self.seed)][1])
        now_ms = self.clock.wall_ns // 1_000_000
        people = f"people@{self.step}" not in self.without
        if next_ms <= now_ms + gap_ms:
            self.clock.advance_ns(max(0, next_ms - now_ms) * 1_000_000)
            reasons = frozenset({"timer"})
        else:
            self.clock.advance_ns(gap_ms * 1_000_000)
            if people:
                reasons = self._something_happens(chance)
        if people and "files" in self.faults and chance.random() < 0.2 and workload.touch_files(self, chance):
            reasons |= {"files"}
        if "again" in self.faults and self.unanswered and chance.random() < 0.5:
            self._send(chance.choice(sorted(self.unanswered.values(), key=lambda request: int(request.id[1:]))))
        if self.full_until_step and self.step >= self.full_until_step:
            self._make_room()
        for fault, details in self.luck.strikes(self.step):
            reasons |= fault.strike(self, details)
        if chance.random() < 0.3:
            reasons |= {"housekeeping"}
        if people and "timer" in reasons and chance.random() < 0.15:  # Just as something falls due.
            reasons |= self._something_happens(chance)
        self.rouse(reasons)

    def _something_happens(self, chance: Random) -> frozenset[str]:
        return workload.ask_something(self, chance)

    def _next_ms(self) -> int:
        now_ms, boot_ms = self.clock.wall_ns // 1_000_000, self.clock.boot_ns // 1_000_000
        instants = [NEVER_MS]
        spawner = self.loop.doors.spawner if self.loop is not None else None
        if isinstance(spawner, SimSpawner) and spawner.has_news():
            return now_ms + 1
        if self.timer_ms is not None:
            instants.append(self.timer_ms)
        if (ends_ms := self.host.next_end_ms()) is not None:
            instants.append(now_ms + max(0, ends_ms - boot_ms))
        return min(instants)

    def _take_time_to_sync(self) -> None:
        if self.slow_syncs:
            self.clock.advance_ns(self.slow_syncs.pop() * 1_000_000)

    def _make_room(self) -> None:
        self.disk.capacity_bytes, self.full_until_step = None, 0

    def calm_faults(self) -> None:
        self.disk.heal()
        self._make_room()
        self.disk.spare()
        self.host.deadly_in = self.host.deadly_at = None

    def _calm_down(self) -> None:
        """No more faults and no more work: every run must come to an end in bounded time."""
        self.faults = frozenset()
        due = self.host.deadly_at
        self.calm_faults()
        if due is not None and due[0] in ("stop ", "kill "):
            self.host.deadly_at = due  # Most is stopped now: in this, it may still be killed once.
        self.host.foreign.clear()
        self.host.bad_lines = self.host.odd_workers = False
        if self.host.files:
            checkers.files_arrive(self)
        if Random(f"{self.seed} calm").random() < 0.3:
            workload.tire_of_jobs(self)
            self.rouse(NOTHING)
        self.jobs = {}
        self.ask("resume", {})
        lives = self.lives
        self.rouse(frozenset({"jobs", "leases"}))
        self.calm_since_ns = self.clock.lived_ns
        for _ in range(_CALM_LOOKS_MAX):
            assert self.loop is not None
            if self.clock.lived_ns - self.calm_since_ns > _CALM_MS_MAX * 1_000_000:
                break
            if not self.loop.graph.active and self.timer_ms is None and lives == self.lives:
                self.host.deadly_at = None
                return
            lives = self.lives  # A daemon that has only just begun has not said yet what it waits for.
            now_ms, next_ms = self.clock.wall_ns // 1_000_000, self._next_ms()
            gap_ms = 600_000 if next_ms == NEVER_MS else min(max(0, next_ms - now_ms), _DAY_MS)
            self.clock.advance_ns(gap_ms * 1_000_000)
            self.rouse(frozenset({"timer"}))
        assert self.loop is not None
        left = {run.name: (run.state, run.reason) for run in self.loop.graph.active.values()}
        raise self.violation("with faults off, every run ends in bounded time", f"left {left}, timer {self.timer_ms}")

    def violation(self, invariant: str, found: object) -> Violation:
        tail = "\n  ".join(self.host.trace[-25:])
        again = f"python -m simulations --seeds 1 --first-seed {self.seed}"
        again += f" --steps {self.steps} --faults {','.join(sorted(self.drawn)) or 'none'}"
        again += f" --without {','.join(sorted(self.without))}" if self.without else ""
        error = Violation(
            f"seed {self.seed}, step {self.step} of {self.steps}, faults {', '.join(sorted(self.drawn)) or 'none'}\n"
            f"{invariant}: {found}\n  {tail}\nstruck: {' '.join(self.luck.struck)}\nagain: {again}"
        )
        error.invariant = invariant
        return error

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

    def unmet(self, run: str, attempt: int, expects: Sequence[Mapping[str, Json]]) -> str:
        return ""

    def tokens(self, run: str, attempt: int) -> int | None:
        return None

    def result(self, run: str, attempt: int) -> Json:
        return None

    def forget(self, run: str) -> None:
        pass

    def errands(self) -> list[str]:
        return []


def drawn(seed: int) -> frozenset[str]:
    """Swarm: each class of faults is on with probability one half."""
    swarm = Random(f"{seed} swarm")
    return frozenset(fault for fault in FAULTS if swarm.random() < 0.5)


def length(seed: int) -> int:
    return Random(f"{seed} length").choice(LENGTHS)


def live(
    seed: int, *, steps: int | None = None, faults: frozenset[str] | None = None, without: frozenset[str] = NOTHING
) -> World:
    """One life. What is not told, the seed draws."""
    steps, faults = length(seed) if steps is None else steps, drawn(seed) if faults is None else faults
    world = World(seed, faults, steps, without)
    world.live()
    return world
