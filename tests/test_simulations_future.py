"""The future is the loop's: what is foreseen is held against what the real loop does, decision by decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from lived import FRIDAY, RESOURCES, Life, accepted, any_fate, any_jobs, policy

from ledger.instant import ms_of
from policies.adoption import Accepted
from policies.policy import SchedulingPolicy
from simulations.forecast import Outage, forecast
from simulations.habits import ASSUMED_MS, Attempts, Fate, Habits
from state.graph import Run

Json = Any
HOUR_MS = 3_600_000


class Decisions:
    """A witness that keeps everything."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Json]] = []
        self.ends: list[tuple[int, str, str]] = []

    def decided(self, decision: Mapping[str, Json], wall_ms: int) -> None:
        self.told.append((wall_ms, dict(decision)))

    def ended(self, run: Run, event: Mapping[str, Json], wall_ms: int) -> None:
        self.ends.append((wall_ms, run.name, event["outcome"]))


def lived(life: Life) -> Decisions:
    """What the ledger of a life says."""
    found = Decisions()
    for record in life.records():
        if record.type == "plan.decided":
            found.told += [(record.data["wall_ms"], one) for one in record.data["decisions"]]
        elif record.type == "run.finished":
            found.ends.append((ms_of(record.ts), record.data["run"], record.data["outcome"]))
    return found


def foreseen(
    jobs: Mapping[str, Accepted], rules: SchedulingPolicy, seed: int, until_ms: int, gaps: list[Outage]
) -> Decisions:
    from ledger.instant import Now
    from policies.adoption import changes
    from simulations.future import Future
    from state.events import draft
    from state.graph import Graph

    fate, witness = any_fate(seed), Decisions()
    future = Future(
        Graph(),
        rules,
        lambda run, at: fate(run.name, run.attempt),
        witness,
        Now(FRIDAY * 1_000_000, 1_000_000 * 1_000_000),
    )
    future.take(draft("policy.adopted", "policy", {"digest": rules.digest(), "policy": rules.values()}))
    future.take(draft("resources.sampled", "node/here", RESOURCES))
    for event in changes(future.graph, jobs, []):
        future.take(event)
    future.look()
    for gap in gaps:
        future.pass_until(gap.begin_ms)
        future.move_to(gap.end_ms)
        future.look()
    future.pass_until(until_ms)
    return witness


@pytest.mark.parametrize("seed", range(12))
def test_every_decision_and_every_end_is_as_the_loop_has_it(seed: int) -> None:
    jobs = any_jobs(seed, 8)
    rules = policy(max_running=1 + seed % 5, pools={"gpu": {"places": 1, "runs_per_hour": 9}}, aging_ms=60_000)
    until_ms = FRIDAY + 9 * HOUR_MS
    gaps = [Outage(FRIDAY + 2 * HOUR_MS, FRIDAY + 4 * HOUR_MS, "kill")] if seed % 2 else []
    life = Life(jobs, rules, any_fate(seed))
    for gap in gaps:
        life.pass_until(gap.begin_ms)
        life.move_to(gap.end_ms)
        life.look("timer")
    life.pass_until(until_ms)

    real, found = lived(life), foreseen(jobs, rules, seed, until_ms, gaps)

    assert len(real.told) > 100
    assert found.told == real.told
    assert sorted(found.ends) == sorted(real.ends)


def forecast_of(jobs: Mapping[str, Accepted], **more: Json) -> Any:
    given: dict[str, Json] = {"habits": Habits(1), "begin_ms": FRIDAY, "end_ms": FRIDAY + 72 * HOUR_MS, "seed": 1}
    rules = more.pop("rules", policy())
    given |= more
    return forecast(jobs, rules, RESOURCES, given.pop("habits"), **given)


def test_a_lease_that_two_jobs_want_is_a_collision_with_both_names() -> None:
    jobs = accepted(
        {"name": "first", "schedule": {"every": "1h"}, "leases": ["repo:a"], "priority": 90},
        {"name": "second", "schedule": {"every": "1h"}, "leases": ["repo:a"]},
    )

    found = forecast_of(jobs)

    [collision] = found.tally.collisions
    assert collision == ("lease:repo:a", "second", "first")
    assert found.tally.jobs["second"].longest.ms == ASSUMED_MS
    assert found.tally.collision_ms[collision] == 71 * ASSUMED_MS
    assert found.starving == []


def test_a_job_whose_slots_are_mostly_skipped_starves() -> None:
    jobs = accepted({"name": "slow", "schedule": {"every": "10s"}}, {"name": "well", "schedule": {"every": "1h"}})

    found = forecast_of(jobs, end_ms=FRIDAY + HOUR_MS)

    assert [(one.job, "overlap.skip" in one.why) for one in found.starving] == [("slow", True)]
    assert found.tally.jobs["slow"].slots == 359


def test_daylight_saving_is_told_by_job_and_instant() -> None:
    jobs = accepted(
        {"name": "night", "schedule": {"cron": "30 2 * * *", "timezone": "Europe/Paris"}},
        {"name": "noon", "schedule": {"cron": "0 12 * * *", "timezone": "Europe/Paris"}},
    )

    found = forecast_of(jobs)

    assert [(one.job, one.text.split(":")[0]) for one in found.shifts] == [("night", "shifted")]
    assert found.skipped_hours == [("Europe/Paris", "2026-03-29 02:00 becomes 03:00")]


def test_the_same_seed_foresees_the_same_and_a_fault_leaves_its_mark() -> None:
    jobs = any_jobs(3, 6)
    week = {"end_ms": FRIDAY + 8 * 24 * HOUR_MS}

    first, second = (forecast_of(jobs, **week) for _ in range(2))
    asleep = forecast_of(jobs, **week, faults=["sleep", "power"])

    assert first.tally.jobs == second.tally.jobs
    assert {outage.kind for outage in asleep.outages} == {"sleep", "power"}
    missed = sum(job.count("missed") + job.count("coalesced") for job in asleep.tally.jobs.values())
    assert missed > sum(job.count("missed") + job.count("coalesced") for job in first.tally.jobs.values())
    assert sum(job.outcomes["lost"] for job in asleep.tally.jobs.values()) > 0


def test_how_long_runs_take_is_learned_from_the_ledger() -> None:
    jobs = accepted({"name": "report", "schedule": {"every": "1h"}}, {"name": "new", "schedule": {"every": "2h"}})
    life = Life({"report": jobs["report"]}, policy(), lambda run, attempt: Fate(123_000, 0))
    life.pass_until(FRIDAY + 10 * HOUR_MS)
    habits = Habits(1)

    attempts = list(habits.learn(life.records()))
    found = forecast_of(jobs, habits=habits)

    assert {attempt.fate.ms for attempt in attempts} == {123_000}
    assert habits.typical_ms("report") == 123_000
    assert found.unknown == ["new"]
    assert found.tally.jobs["report"].busy_ms == 123_000 * 71


def test_an_attempt_is_followed_from_its_start_to_its_end() -> None:
    jobs = accepted({"name": "flaky", "schedule": {"every": "1h"}, "retry": {"attempts": 2, "base": "1m"}})
    life = Life(jobs, policy(), lambda run, attempt: Fate(5_000, 1 if attempt == 1 else 0))
    life.pass_until(FRIDAY + HOUR_MS + 10 * 60_000)
    attempts = Attempts()

    found = [ended for record in life.records() if (ended := attempts.follow(record)) is not None]

    assert [(one.attempt, one.outcome, one.final, one.fate.ms, one.fate.code) for one in found[:2]] == [
        (1, "failed", False, 5_000, 1),
        (2, "succeeded", True, 5_000, 0),
    ]
