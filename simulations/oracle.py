"""`python -m simulations.oracle --jobs 1000 --days 365`: a simulated year of the real loop against a slow oracle.

Jobs of every kind that the clock drives (cron in many zones, every, at; with expiry, jitter, overlap and all policies
for missed slots) run on a host that now and then sleeps for minutes or days. What the loop decides is held against
`simulations.watcher`, which finds the slots by watching the wall minute by minute, and against rules told here anew:

- every slot has one decision that ends it, none has two, and no decision is about an instant that is no slot;
- it is noticed at once, or when the host wakes;
- of the slots noticed late, the job's policy keeps those it should, and the others are missed or coalesced.

Exit status 0: all of it held. 1: it did not; the job and the instants are named.
"""

from __future__ import annotations

import argparse
import heapq
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import yaml

from daemon.loop import Loop
from daemon.order import Surroundings
from daemon.ports import Began, Ended, Order, Report
from ledger.disk import AppendFile
from ledger.instant import Now, ms_of, text_of
from ledger.record import Record
from ledger.segment import Writer, segments_in
from policies.agenda import Agenda
from policies.policy import SchedulingPolicy, adopt
from simulations import watcher
from simulations.checkers import Violation
from simulations.disk import SimDisk
from simulations.host import SimSpawner
from simulations.world import World

Json = Any

ZONES = (
    "UTC", "Europe/Paris", "Europe/London", "America/New_York", "America/Los_Angeles", "America/Santiago",
    "America/Havana", "America/Sao_Paulo", "America/St_Johns", "Africa/Cairo", "Africa/Casablanca", "Asia/Beirut",
    "Asia/Jerusalem", "Asia/Kolkata", "Asia/Kathmandu", "Asia/Gaza", "Antarctica/Troll", "Australia/Lord_Howe",
    "Australia/Adelaide", "Pacific/Chatham", "Pacific/Apia", "Pacific/Auckland",
)  # fmt: skip
_POLICY = Path(__file__).resolve().parents[1] / "policies" / "defaults" / "scheduling.yaml"
_MINUTE_MS, _HOUR_MS, _DAY_MS = 60_000, 3_600_000, 86_400_000
_HOUSEKEEPING_MS = 6 * _HOUR_MS
_PROMPT_MS = 2_000
_EVERY_GRID_MS = 30_000
_NOT_KEPT = ("missed", "coalesced")


@dataclass(frozen=True, slots=True)
class Promise:
    """A job, and what is needed to tell its slots without reading its spec as Hermes does."""

    spec: Mapping[str, Json]
    kind: str  # cron, every, at
    zone: str = ""
    expression: str = ""
    """Of an `at`: the expression that is due on its minute of every year."""
    wall: datetime | None = None
    """Of an `at`: its reading."""
    every_ms: int = 0
    offset_ms: int = 0
    expires_ms: int | None = None
    runs_ms: int = 1000
    """How long each run takes."""

    @property
    def name(self) -> str:
        return str(self.spec["name"])


class Sleep(NamedTuple):
    """The host sleeps from the one to the other."""

    begin_ms: int
    end_ms: int


def make_promises(count: int, seed: int, start_ms: int, days: int) -> list[Promise]:
    """Mostly daily and weekly jobs, and a few that are due every few minutes."""
    chance = Random(f"{seed} promises")
    promises = []
    for number in range(count):
        missed = {
            "policy": chance.choice(("skip", "latest", "all")),
            "window": chance.choice(("10m", "3h", "1d")), "max": chance.choice((1, 3, 20)),
        }  # fmt: skip
        spec: dict[str, Json] = {
            "name": f"job-{number:05d}", "kind": "command", "argv": ["work"], "missed": missed,
            "overlap": chance.choice(("skip", "skip", "allow_all", "buffer_all(<=20)")),
            "needs": {"cpu": 0}, "timeout": "1d", "keep": {"runs": 1}, "priority": chance.randint(0, 100),
        }  # fmt: skip
        if chance.random() < 0.1:
            spec["jitter"] = chance.choice(("30s", "5m"))
        expires_ms = None
        if chance.random() < 0.15:
            expires_ms = start_ms + chance.randrange(days * 24) * _HOUR_MS
            spec["expires"] = text_of(expires_ms)
        promise = _schedule(chance, number, start_ms, days)
        runs_ms = chance.choice((300, 5_000, 60_000, 600_000) if promise.every_ms or number % 5 else (20 * _MINUTE_MS,))
        spec["schedule"] = promise.spec["schedule"]
        promises.append(replace(promise, spec=spec, expires_ms=expires_ms, runs_ms=runs_ms))
    return promises


def _schedule(chance: Random, number: int, start_ms: int, days: int) -> Promise:
    zone = chance.choice(ZONES)
    # Nights are where clocks change.
    minute, hour = chance.choice((0, 0, 5, 15, 30, 45)), chance.choice((0, 0, 1, 2, 2, 3, 23, chance.randrange(24)))
    kind = number % 100
    if kind == 0:  # The quick ones: they make most of the slots.
        fields = chance.choice(("*/15 1-3 * * *", "0 * * * *", "*/20 9-17 * * 1-5"))
        return _cron(fields, zone)
    if kind == 1:
        every_ms = chance.choice((15 * 90_000, 45 * _MINUTE_MS, 100 * _MINUTE_MS))
        return _every(every_ms, chance.randrange(every_ms // _EVERY_GRID_MS) * _EVERY_GRID_MS)
    if kind < 10:
        every_ms = chance.choice((7, 12, 24, 36, 168)) * _HOUR_MS
        return _every(every_ms, chance.randrange(every_ms // _EVERY_GRID_MS) * _EVERY_GRID_MS)
    if kind < 15:
        moment = datetime.fromtimestamp(start_ms / 1000, UTC) + timedelta(days=chance.randrange(days))
        wall = moment.replace(hour=hour, minute=minute, second=0, microsecond=0, tzinfo=None)
        schedule = {"at": wall.isoformat(), "timezone": zone}
        fields = f"{minute} {hour} {wall.day} {wall.month} *"
        return Promise({"schedule": schedule}, "at", zone, fields, wall)
    if kind < 40:
        return _cron(f"{minute} {hour} * * {chance.choice(('0', '7', '1', '1,4', 'SAT', '6-7'))}", zone)
    if kind < 48:
        rest = chance.choice(("1 * *", "L * *", "LW * *", "* * 5L", "* * 1#2", "13 * 5", "1-3 */2 *", "29 2,3 *"))
        return _cron(f"{minute} {hour} {rest}", zone)
    if kind < 55:
        return _cron(f"{minute} {chance.choice(('2,14', '*/8', '0-3'))} * * *", zone)
    return _cron(chance.choice((f"{minute} {hour} * * *", f"{minute} {hour} * * *", "@daily")), zone)


def _cron(fields: str, zone: str) -> Promise:
    return Promise({"schedule": {"cron": fields, "timezone": zone}}, "cron", zone, fields)


def _every(every_ms: int, offset_ms: int) -> Promise:
    schedule = {"every": f"{every_ms // 1000}s", "offset": f"{offset_ms // 1000}s"}
    return Promise({"schedule": schedule}, "every", every_ms=every_ms, offset_ms=offset_ms)


def make_sleeps(seed: int, start_ms: int, days: int) -> list[Sleep]:
    """From two minutes to three days, some days apart, and at least one."""
    chance = Random(f"{seed} sleeps")
    sleeps: list[Sleep] = []
    at_ms = start_ms + _HOUR_MS
    while True:
        at_ms += int(chance.uniform(0.1, min(8, days / 4)) * _DAY_MS)
        long_ms = chance.choice((2 * _MINUTE_MS, 40 * _MINUTE_MS, 5 * _HOUR_MS, 30 * _HOUR_MS, 72 * _HOUR_MS))
        if at_ms + long_ms >= start_ms + days * _DAY_MS:
            return sleeps or [Sleep(at_ms, at_ms + 5 * _HOUR_MS)]
        sleeps.append(Sleep(at_ms, at_ms + long_ms))
        at_ms += long_ms


def expected(promises: list[Promise], start_ms: int, until_ms: int) -> dict[str, list[int]]:
    """Job -> its slots with start < t <= until, by the slow oracle alone."""
    after, until = (datetime.fromtimestamp(at_ms / 1000, UTC) for at_ms in (start_ms, until_ms))
    by_zone: dict[str, list[str]] = {}
    for promise in promises:
        if promise.expression:
            by_zone.setdefault(promise.zone, []).append(promise.expression)
    seen = {zone: watcher.watch(texts, zone, after, until) for zone, texts in sorted(by_zone.items())}
    found = {}
    for promise in promises:
        if promise.kind == "every":
            grid = range(start_ms // _EVERY_GRID_MS * _EVERY_GRID_MS, until_ms + 1, _EVERY_GRID_MS)
            every = [at for at in grid if at > start_ms and (at - promise.offset_ms) % promise.every_ms == 0]
        else:
            moments = seen[promise.zone][promise.expression]
            if (wall := promise.wall) is not None:
                moments = [moment for moment in moments if _shows(moment, promise.zone, wall)][:1]
            every = [round(moment.timestamp() * 1000) for moment in moments]
        found[promise.name] = [at for at in every if promise.expires_ms is None or at < promise.expires_ms]
    return found


def _shows(moment: datetime, zone: str, wall: datetime) -> bool:
    """The right year's, among the slots of every year; in a gap the wall is at most hours further."""
    return abs(moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None) - wall) < timedelta(days=1)


class _Workers(SimSpawner):
    """Runs that take as long as their job says and succeed."""

    def __init__(self, world: Year) -> None:
        super().__init__(world.host)
        self._world = world
        self._ends: list[tuple[int, str, int]] = []
        self._new: list[Report] = []

    def start(self, order: Order) -> None:
        takes_ms = self._world.by_name[order.run.partition(".")[0]].runs_ms
        heapq.heappush(self._ends, (self._world.boot_ms + takes_ms, order.run, order.attempt))
        self._new.append(Began(order.run, order.attempt, 7, 7))

    def next_end_ms(self) -> int | None:
        return self._ends[0][0] if self._ends else None

    def collect(self) -> list[Report]:
        reports, self._new = self._new, []
        while self._ends and self._ends[0][0] <= self._world.boot_ms:
            _, run, attempt = heapq.heappop(self._ends)
            reports.append(Ended(run, attempt, 0))
        return reports


class _Unsynced:
    def __init__(self, file: AppendFile) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        return self._file.write(data)

    def sync(self) -> None: ...

    def truncate(self, size: int) -> None:
        self._file.truncate(size)

    def reserve(self, size: int) -> None: ...

    def close(self) -> None:
        self._file.close()


class _NeverCrashed(SimDisk):
    """What the device holds shows after a crash, and this year has none: copying it there would take most of it."""

    def append(self, path: str) -> AppendFile:
        return _Unsynced(super().append(path))

    def create(self, path: str) -> AppendFile:
        return _Unsynced(super().create(path))


class _Unseen(Loop):
    """Nobody reads the views of this year, and they would take most of its time."""

    told: list[Record]

    def _record(self, now: Now) -> list[Record]:
        recorded = super()._record(now)
        self.told += [record for record in recorded if record.type == "plan.decided"]
        return recorded

    def _view(self, now: Now) -> None:
        self._view_dirty = False


class Year(World):
    """The world's host, disk and loop, with other jobs, other processes, and sleep as the only trouble."""

    def __init__(self, promises: list[Promise], sleeps: list[Sleep], start_ms: int) -> None:
        self.by_name = {promise.name: promise for promise in promises}
        self._sleeps = list(sleeps)
        self._late = Random("late")
        self._kept_at_ms = start_ms
        super().__init__(seed=0)
        self.clock.wall_ns = start_ms * 1_000_000
        self.disk = _NeverCrashed(0)
        policy = adopt(yaml.safe_load(_POLICY.read_text()), {"max_running": 64})
        self.workers = _Workers(self)
        self._begin(policy)

    @property
    def wall_ms(self) -> int:
        return self.clock.wall_ns // 1_000_000

    @property
    def boot_ms(self) -> int:
        return self.clock.boot_ns // 1_000_000

    def _define_jobs(self) -> None:
        for name, promise in self.by_name.items():
            self.define(name, dict(promise.spec))

    def _begin(self, policy: SchedulingPolicy) -> None:
        doors = replace(self._doors(self.workers), policy=lambda: (policy, ""))
        started = {
            "version": "0", "code": "sim", "python": "3", "host": "sim", "boot_id": self.clock.boot_id, "pid": 1,
            "process_started": 1, "zone": "UTC", "tzdb": "sim",
        }  # fmt: skip
        around = Surroundings(Path("/home"), Path("/root"), {}, {})
        self.daemon = _Unseen(doors, around, Writer("sim", self.clock.boot_id, 1, 1, "0"), started)
        self.daemon.told = []
        self.daemon.begin()
        self.look("start")

    def pass_until(self, until_ms: int) -> None:
        """Live on while something happens before an instant."""
        while (next_ms := self._next_look_ms()) < until_ms:
            late_ms = self._late.choice((0, 0, 1, 40))
            if self._sleeps and next_ms >= self._sleeps[0].begin_ms:
                next_ms = max(next_ms, self._sleeps[0].end_ms)
                if next_ms >= until_ms:
                    return
                self._sleeps.pop(0)
                # As after a restart: the index of what is due must be the same when it is made anew.
                self.daemon.agenda = Agenda.of(self.daemon.graph)
            self.move_to(next_ms + late_ms)
            self.look("timer")

    def finish(self, until_ms: int) -> None:
        """Look at an instant for the last time; what waits still runs."""
        self.move_to(until_ms)
        self.look("timer")
        self.jobs = {}
        self.look("jobs")
        for _ in range(100_000):
            if not self.daemon.graph.active:
                return
            self.move_to(self._next_look_ms())
            self.look("timer")
        raise Violation(f"runs that never end: {sorted(self.daemon.graph.active)[:10]}")

    def look(self, *reasons: str) -> None:
        if self.wall_ms - self._kept_at_ms >= _HOUSEKEEPING_MS:
            self._kept_at_ms = self.wall_ms
            reasons += ("housekeeping",)
            self._make_room()
        given = frozenset(reasons)
        for _ in range(1000):
            if not self.daemon.tick(given):
                return
            given = frozenset()
        raise Violation("1000 looks in a row had news")

    def _next_look_ms(self) -> int:
        instants = [1 << 62]
        if self.timer_ms is not None:
            instants.append(max(self.timer_ms, self.wall_ms))
        if (ends_ms := self.workers.next_end_ms()) is not None:
            instants.append(self.wall_ms + max(0, ends_ms - self.boot_ms))
        return min(instants)

    def move_to(self, wall_ms: int) -> None:
        """To the first reading of the clock that is not before it."""
        self.clock.advance_ns(max(0, wall_ms * 1_000_000 - self.clock.wall_ns))

    def _make_room(self) -> None:
        """A year's ledger is more than the memory of a small machine: of what has been checked nothing is kept."""
        for segment in segments_in(self.disk.list("ledger"))[:-1]:
            self.disk.remove(f"ledger/{segment.name}")
        self.disk.sync_folder("ledger")
        self.disk.trace.clear()
        self.host.trace.clear()


@dataclass
class Book:
    """What was decided about the slots of each job."""

    def __post_init__(self) -> None:
        self.noticed: dict[str, dict[int, tuple[int, str]]] = {}
        """Job -> slot -> when the first decision about it was made, and its verdict."""
        self.ended: dict[str, Counter[int]] = {}
        """Job -> slot -> how many decisions have ended it."""
        self.ranges: dict[str, list[tuple[int, int, int, int, str]]] = {}
        self.verdicts: Counter[str] = Counter()
        self.slots = 0

    def enter(self, record: Record) -> None:
        wall_ms = record.data["wall_ms"]
        for decided in record.data["decisions"]:
            if decided["trigger"] != "schedule":
                continue
            job, at_ms, verdict = decided["job"], ms_of(decided["at"]), decided["verdict"]
            self.verdicts[verdict] += 1
            if "until" in decided:
                span = (at_ms, ms_of(decided["until"]), decided["count"], wall_ms, verdict)
                self.ranges.setdefault(job, []).append(span)
                continue
            self.noticed.setdefault(job, {}).setdefault(at_ms, (wall_ms, verdict))
            if verdict not in ("deferred", "buffered"):
                self.ended.setdefault(job, Counter())[at_ms] += 1

    def check(self, promise: Promise, due: list[int], sleeps: list[Sleep], late_after_ms: int) -> None:
        """Hold it against the oracle's slots."""
        name = promise.name
        noticed, ended = dict(self.noticed.get(name, {})), Counter(self.ended.get(name, {}))
        for first_ms, last_ms, count, wall_ms, verdict in self.ranges.get(name, []):
            inside = [at for at in due if first_ms <= at <= last_ms]
            if len(inside) != count or {first_ms, last_ms} - set(inside):
                said = f"{count} slots from {text_of(first_ms)} to {text_of(last_ms)}"
                raise _violation(promise, f"a range counts its slots: {said}, but there are {len(inside)}", inside)
            for at in inside:
                ended[at] += 1
                noticed[at] = (wall_ms, verdict)
        if none := [at for at in due if not ended[at]]:
            raise _violation(promise, "no slot is without a decision", none)
        if alien := sorted(ended.keys() - set(due)):
            raise _violation(promise, "no decision is about an instant that is no slot", alien)
        if twice := sorted(at for at, times in ended.items() if times > 1):
            raise _violation(promise, "no slot has two decisions", twice)
        kept = _kept(promise, due, {at: wall_ms for at, (wall_ms, _) in noticed.items()}, late_after_ms)
        for at in due:
            wall_ms, verdict = noticed[at]
            awake_ms = max((s.end_ms for s in sleeps if s.begin_ms <= at + _PROMPT_MS and at < s.end_ms), default=at)
            if not at <= wall_ms <= max(at, awake_ms) + _PROMPT_MS:
                raise _violation(promise, f"a slot is noticed in time, not at {text_of(wall_ms)}", [at])
            if (at in kept) == (verdict in _NOT_KEPT):
                should = "runs" if at in kept else "is made up for by no run"
                raise _violation(promise, f"a slot {should}, noticed at {text_of(wall_ms)}: {verdict}", [at])
        self.slots += len(due)


def _kept(promise: Promise, due: list[int], noticed_ms: Mapping[int, int], late_after_ms: int) -> set[int]:
    """The slots that are neither missed nor coalesced, by the words of docs/jobs.md."""
    missed = promise.spec["missed"]
    window_ms = {"10m": 10 * _MINUTE_MS, "3h": 3 * _HOUR_MS, "1d": _DAY_MS}[missed["window"]]
    looks: dict[int, list[int]] = {}
    for at in due:
        looks.setdefault(noticed_ms[at], []).append(at)
    kept = set()
    for wall_ms, slots in looks.items():
        on_time = [at for at in slots if wall_ms - at <= late_after_ms]
        young = [at for at in slots if late_after_ms < wall_ms - at <= window_ms]
        if missed["policy"] == "latest" and not on_time:
            kept.update(young[-1:])
        elif missed["policy"] == "all":
            kept.update(young[-missed["max"] :])
        kept.update(on_time)
    return kept


def _violation(promise: Promise, invariant: str, instants: list[int]) -> Violation:
    shown = ", ".join(text_of(at) for at in instants[:5]) + (", ..." if len(instants) > 5 else "")
    return Violation(f"{invariant}: {promise.name} {dict(promise.spec)}: {shown}")


@dataclass(frozen=True, slots=True)
class Outcome:
    jobs: int
    slots: int
    decisions: Mapping[str, int]
    ranges: int
    sleeps: int
    by_kind: Mapping[str, int]
    loop_s: float
    oracle_s: float


def live(jobs: int, days: int, *, start: str = "2026-01-01T00:00:00Z", seed: int = 1) -> Outcome:
    """Violation if a slot was not decided as it should be."""
    start_ms = ms_of(start)
    until_ms = start_ms + days * _DAY_MS
    promises, sleeps = make_promises(jobs, seed, start_ms, days), make_sleeps(seed, start_ms, days)
    began_s = perf_counter()
    year, book = Year(promises, sleeps, start_ms), Book()
    defined_ms = year.wall_ms
    for day in range(1, days + 1):
        year.pass_until(start_ms + day * _DAY_MS)
        _enter(year, book)
        if sys.stderr.isatty():
            print(f"\rday {day}, {sum(book.verdicts.values())} decisions ", end="", file=sys.stderr)
    ended_ms = max(until_ms, year.wall_ms)
    year.finish(ended_ms)
    _enter(year, book)
    lived_s = perf_counter()
    slots = expected(promises, defined_ms, ended_ms)
    late_after_ms = year.daemon.policy.late_after_ms
    for promise in promises:
        book.check(promise, slots[promise.name], sleeps, late_after_ms)
    by_kind: Counter[str] = Counter()
    for promise in promises:
        by_kind[promise.kind] += len(slots[promise.name])
    ranges = sum(map(len, book.ranges.values()))
    return Outcome(
        len(promises), book.slots, book.verdicts, ranges, len(sleeps), by_kind, lived_s - began_s,
        perf_counter() - lived_s,
    )  # fmt: skip


def _enter(year: Year, book: Book) -> None:
    for record in year.daemon.told:
        book.enter(record)
    year.daemon.told.clear()


def main(arguments: list[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m simulations.oracle", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--from", dest="start", default="2026-01-01T00:00:00Z", metavar="INSTANT")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(arguments)
    print(f"seed {asked.seed}: {asked.jobs} jobs, {asked.days} days from {asked.start}", flush=True)
    try:
        lived = live(asked.jobs, asked.days, start=asked.start, seed=asked.seed)
    except Violation as violation:
        print(violation)
        return 1
    print(f"{lived.slots} slots ({_listed(lived.by_kind)}), the host asleep {lived.sleeps} times")
    print(f"{sum(lived.decisions.values())} decisions ({_listed(lived.decisions)}), {lived.ranges} about ranges")
    print(
        f"each slot decided once, at its instant ({lived.loop_s:.0f} s of the loop, {lived.oracle_s:.0f} s of oracle)"
    )
    return 0


def _listed(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counted.items(), key=lambda item: -item[1]))


if __name__ == "__main__":
    sys.exit(main())
