"""The days ahead: a home's jobs and policy lived through by a `Future`, and what to make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from ledger.instant import Now, text_of
from policies import due
from policies.adoption import Accepted, changes
from policies.due import explain_shift
from policies.policy import SchedulingPolicy
from policies.schedule import AtSchedule, CronSchedule, Schedule, schedule_of
from policies.zone import change_ms, offset_ms, wall_text, zone_named
from simulations.future import Future
from simulations.habits import Fate, Habits
from simulations.tally import BY_DESIGN, Tally
from state.events import draft
from state.graph import Graph, Run

Json = Any

FAULTS = ("kill", "power", "sleep")
_MINUTE_MS, _HOUR_MS, _DAY_MS = 60_000, 3_600_000, 86_400_000
_BOOTED_MS = 1_000_000
_STARVED_PART = 10
"""A job starves if more than one in so many of its slots is not run."""


class Outage(NamedTuple):
    begin_ms: int
    end_ms: int
    kind: str
    """kill: the daemon is gone, runs go on. power: the machine goes, runs end unseen. sleep: everything stands still,
    and the clock that timeouts count on goes on."""


class Shift(NamedTuple):
    """A slot that daylight saving moved or made two of."""

    job: str
    at_ms: int
    text: str


class Starving(NamedTuple):
    job: str
    why: str


def outages(seed: int, faults: Sequence[str], begin_ms: int, end_ms: int) -> list[Outage]:
    """One every two days or so, of the chosen kinds; by the seed alone."""
    found: list[Outage] = []
    chance, at_ms = Random(f"{seed} outages"), begin_ms
    while faults:
        at_ms += int(chance.uniform(0.2, 3.8) * _DAY_MS)
        kind = chance.choice(sorted(faults))
        longest_ms = {"kill": 30 * _MINUTE_MS, "power": 4 * _HOUR_MS, "sleep": 12 * _HOUR_MS}[kind]
        long_ms = int(chance.uniform(0.02, 1) * longest_ms)
        if at_ms + long_ms >= end_ms:
            break
        found.append(Outage(at_ms, at_ms + long_ms, kind))
        at_ms += long_ms
    return found


@dataclass(frozen=True, slots=True)
class Forecast:
    begin_ms: int
    end_ms: int
    tally: Tally
    outages: list[Outage]
    shifts: list[Shift]
    skipped_hours: list[tuple[str, str]]
    """Zone, and what its clock does in this time, in words."""
    unknown: list[str]
    """Jobs with no past: their durations are assumed."""
    not_driven: list[str]
    """Jobs that people or files start: nothing is assumed about when."""
    starving: list[Starving]
    records: int


def forecast(
    jobs: Mapping[str, Accepted],
    policy: SchedulingPolicy,
    resources: Mapping[str, Json],
    habits: Habits,
    *,
    begin_ms: int,
    end_ms: int,
    seed: int,
    faults: Sequence[str] = (),
    paused: Mapping[str, str] | None = None,
    tzdb: str = "",
) -> Forecast:
    """`paused`: jobs that are paused now, and stay so -> why."""
    specs = {name: job.spec for name, job in jobs.items()}
    tally = Tally(specs, begin_ms, end_ms)

    def fate_of(run: Run, wall_ms: int) -> Fate:
        del wall_ms
        timeout_ms = run.spec.get("timeout")
        return habits.draw(run.job, run.step, run.name, run.attempt, timeout_ms)

    future = Future(Graph(), policy, fate_of, tally, Now(begin_ms * 1_000_000, _BOOTED_MS * 1_000_000))
    future.take(draft("policy.adopted", "policy/scheduling", {"digest": policy.digest(), "policy": policy.values()}))
    future.take(draft("resources.sampled", "node/here", dict(resources)))
    for event in changes(future.graph, jobs, []):
        future.take(event)
    for name, why in sorted((paused or {}).items()):
        future.take(draft("job.paused", f"job/{name}", {"job": name, "actor": "as now", "reason": why}))
    down = outages(seed, faults, begin_ms, end_ms)
    future.look()
    for outage in down:
        future.pass_until(outage.begin_ms)
        if outage.kind == "power":
            future.lose_power()
        elif outage.kind == "sleep":
            future.delay_ends(outage.end_ms - outage.begin_ms)
        future.move_to(outage.end_ms)
        future.look()
    future.pass_until(end_ms)
    tally.finish(end_ms)
    schedules = {name: schedule_of(spec["schedule"]) for name, spec in specs.items() if spec["enabled"]}
    zones = sorted({s.timezone for s in schedules.values() if isinstance(s, CronSchedule | AtSchedule)})
    changed = {zone: clock_changes(zone, begin_ms, end_ms) for zone in zones}
    driven = [name for name in specs if not {"on", "manual"} & specs[name]["schedule"].keys()]
    return Forecast(
        begin_ms, end_ms, tally, down, shifts(schedules, changed, begin_ms, end_ms),
        [(zone, _told(zone, at_ms)) for zone, found in changed.items() for at_ms in found],
        sorted(habits.unknown), sorted(specs.keys() - set(driven)),
        starving(tally, schedules, end_ms), future.records,
    )  # fmt: skip


def clock_changes(name: str, begin_ms: int, end_ms: int) -> list[int]:
    """The instants in a span at which the clock of a zone is moved."""
    zone, found = zone_named(name), []
    at_ms = begin_ms
    while at_ms < end_ms:
        next_ms = min(at_ms + _DAY_MS, end_ms)
        if offset_ms(zone, at_ms) != offset_ms(zone, next_ms):
            found.append(change_ms(zone, at_ms, next_ms))
        at_ms = next_ms
    return found


def _told(name: str, at_ms: int) -> str:
    zone = zone_named(name)
    before, after = offset_ms(zone, at_ms - 1), offset_ms(zone, at_ms)
    return f"{wall_text(at_ms + before)[:16].replace('T', ' ')} becomes {wall_text(at_ms + after)[11:16]}"


def shifts(
    schedules: Mapping[str, Schedule], changed: Mapping[str, Sequence[int]], begin_ms: int, end_ms: int
) -> list[Shift]:
    """The slots that a clock moves or shows twice. Only those near a change can be any."""
    found = []
    for name, schedule in sorted(schedules.items()):
        if not isinstance(schedule, CronSchedule | AtSchedule):
            continue
        for at_ms in changed[schedule.timezone]:
            first_ms, last_ms = max(begin_ms, at_ms - 4 * _HOUR_MS), min(end_ms, at_ms + 4 * _HOUR_MS)
            for slot_ms in due.slots(schedule, first_ms, last_ms, 1000):
                if text := explain_shift(schedule, slot_ms):
                    found.append(Shift(name, slot_ms, text))
    return found


def starving(tally: Tally, schedules: Mapping[str, Schedule], end_ms: int) -> list[Starving]:
    """Jobs that do not get what they were promised: too many slots are not run, or one waits for longer than it is to
    the next."""
    found = []
    left = tally.waits_at_end(end_ms)
    for name, job in sorted(tally.jobs.items()):
        lost = {rule: count for rule, count in job.not_run.items() if not rule.startswith("coalesced")}
        if job.slots and sum(lost.values()) * _STARVED_PART > job.slots:
            worst = max(lost, key=lambda rule: (lost[rule], rule))
            found.append(Starving(name, f"{sum(lost.values())} of {job.slots} slots are not run, mostly {worst}"))
            continue
        longest_ms, rule = job.longest.ms, job.longest.rule
        if left.get(name, (0, ""))[0] > longest_ms:
            longest_ms, rule = left[name]
        turn_ms = turn_ms_of(schedules.get(name), tally.begin_ms)
        if turn_ms is not None and rule not in BY_DESIGN and rule and longest_ms >= turn_ms:
            found.append(Starving(name, f"a run waited longer ({rule}) than it is from one slot to the next"))
    return found


def turn_ms_of(schedule: Schedule | None, after_ms: int) -> int | None:
    """From one slot to the next; None if there are no two."""
    if schedule is None:
        return None
    two = due.slots(schedule, after_ms, after_ms + 400 * _DAY_MS, 2)
    return two[1] - two[0] if len(two) == 2 else None


def told(outage: Outage) -> str:
    return f"{text_of(outage.begin_ms)} {outage.kind} for {(outage.end_ms - outage.begin_ms) // _MINUTE_MS} min"
