"""The past decided again: the same under the same policy, and under another one what a life under it really came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from lived import FRIDAY, Life, accepted, any_fate, any_jobs, policy

from ledger.instant import Now, ms_of
from ledger.reader import read
from ledger.record import Record
from policies.adoption import Accepted
from policies.policy import SchedulingPolicy
from simulations.counterfactual import Chronicle, Comparison, Counterfactual, differences, reordered
from simulations.habits import Fate, Habits
from state.graph import Graph
from state.projector import fold

Json = Any
HOUR_MS = 3_600_000


def again(
    life: Life, rules: SchedulingPolicy | None, jobs: Mapping[str, Accepted] | None = None, habits: Habits | None = None
) -> Comparison:
    since = life.first_seq
    graph, begin = Graph(), Now(FRIDAY * 1_000_000, 1_000_000 * 1_000_000)
    for record in read(life.disk, until=since):
        fold(graph, [record])
        begin = Now(ms_of(record.ts) * 1_000_000, record.mt)

    def records() -> Iterator[Record]:
        return read(life.disk, after=since)

    return Counterfactual(graph, records, habits or Habits(1), rules, jobs, begin, policy()).compare()


def chronicle_of(life: Life, until_ms: int) -> Chronicle:
    found = Chronicle()
    for record in life.records():
        if ms_of(record.ts) > until_ms:
            break
        if record.type == "plan.decided":
            for decided in record.data["decisions"]:
                found.decided(decided, record.data["wall_ms"])
        elif record.type == "run.finished":
            data = record.data
            found.end(data["run"], data["outcome"], data["retry_at"] is None, ms_of(record.ts))
    return found


def lived(jobs: Mapping[str, Accepted], rules: SchedulingPolicy, fate: Any, hours: float, late_ms: int = 0) -> Life:
    life = Life(jobs, rules, fate, late_ms=late_ms)
    life.pass_until(FRIDAY + int(hours * HOUR_MS))
    return life


@pytest.mark.parametrize("seed", range(6))
def test_under_the_same_policy_every_decision_comes_out_as_recorded(seed: int) -> None:
    rules = policy(max_running=1 + seed % 3)
    life = lived(any_jobs(seed, 6), rules, any_fate(seed), 8, late_ms=seed * 7)

    found = again(life, rules)

    assert found.divergence is None
    assert found.agreed == found.recorded.decisions > 40
    assert list(differences(found)) == []


@pytest.mark.parametrize("seed", [0, 1, 2, 4, 6, 7])
def test_under_another_policy_it_is_the_life_that_would_have_been(seed: int) -> None:
    # Where a later run ends an earlier one, nobody knows how long that would have gone on.
    jobs = any_jobs(seed, 6, ("skip", "allow_all", "buffer_one", "buffer_all(<=3)"))
    before, after = policy(max_running=1), policy(max_running=3)

    def fate(run: str, attempt: int) -> Fate:
        """By the job alone, so that a run that never was has the course of those that were."""
        return any_fate(seed)(run.split(".")[0] + run.partition("Z.")[2].partition(".")[2], 1)

    recorded, otherwise = lived(jobs, before, fate, 5), lived(jobs, after, fate, 5)

    habits = Habits(1)
    for _ in habits.learn(otherwise.records()):  # How long those take that had no turn in the recorded life.
        pass

    found = again(recorded, after, habits=habits)

    assert found.divergence is not None
    assert found.simulated > 0
    assert found.drawn["assumed"] == 0
    real = chronicle_of(otherwise, found.end_ms)
    assert found.again.told == real.told
    assert found.again.order == real.order
    assert found.drawn["recorded"] > 0


def test_more_places_end_the_waits_and_one_place_makes_them() -> None:
    jobs = accepted(*({"name": f"job{number}", "schedule": {"every": "1h"}} for number in range(4)))
    fate = Fate(60_000, 0)
    life = lived(jobs, policy(), lambda run, attempt: fate, 10.5)

    found = again(life, policy(max_running=1))

    changed = [one for one in differences(found) if one.recorded and one.recorded.at_ms < FRIDAY + 10 * HOUR_MS]
    assert {one.kind for one in changed} == {"time"}
    assert len(changed) == 9 * 3
    assert [one.again.wait_ms for one in changed[:3] if one.again] == [60_000, 120_000, 180_000]
    assert (found.recorded.most_runs, found.again.most_runs) == (4, 1)
    assert found.divergence is not None
    assert [one["rule"] for one in found.divergence.only_again] == ["places"] * 3
    assert reordered(found) == 0


def test_other_jobs_are_another_world_from_the_start_and_keep_the_courses_that_were_recorded() -> None:
    jobs = accepted({"name": "report", "schedule": {"every": "1h"}}, {"name": "gone", "schedule": {"every": "2h"}})
    life = lived(jobs, policy(), lambda run, attempt: Fate(77_000, 0), 6.5)
    others = accepted({"name": "report", "schedule": {"every": "1h"}, "leases": ["repo:a"]},
                      {"name": "new", "schedule": {"every": "3h"}, "leases": ["repo:a"]})  # fmt: skip

    found = again(life, None, others)

    kinds = {(one.kind, (one.recorded or one.again).job) for one in differences(found)}  # type: ignore[union-attr]
    assert kinds == {("gone", "gone"), ("new", "new"), ("time", "report")}
    assert found.drawn == {"recorded": 6, "assumed": 2}


def test_what_people_asked_comes_as_it_came_and_what_has_no_object_is_counted() -> None:
    class Asked:
        def __init__(self, id: str, verb: str, **args: Json) -> None:
            self.request, self.id, self.verb, self.args, self.actor = self, id, verb, args, "me"

        def answer(self, value: Json) -> None: ...
        def fail(self, *words: str) -> None:
            raise AssertionError(words)

    jobs = accepted({"name": "once", "schedule": "manual"}, {"name": "busy", "schedule": {"every": "30m"}})
    life = Life(jobs, policy(), lambda run, attempt: Fate(600_000, 0))
    life.pass_until(FRIDAY + 31 * 60_000)
    life.asked.append(Asked("r1", "start", job="once"))
    life.look()
    life.pass_until(FRIDAY + 35 * 60_000)
    [run] = [name for name in life.loop.graph.active if name.startswith("busy")]
    life.asked.append(Asked("r2", "cancel", run=run))
    life.look()
    life.pass_until(FRIDAY + 2 * HOUR_MS)

    without = again(life, None, {"once": jobs["once"]})
    slower = again(life, policy(max_running=1))

    assert without.left_out == {"cancel.requested": 1}
    assert without.again.told["once", "start", "r1"].verdict == "started"
    assert slower.again.told["once", "start", "r1"].wait_ms == 4 * 60_000  # The cancelled one had the place until then.
    assert slower.left_out == {}


def test_a_plan_of_another_planner_is_told_apart_from_one_of_another_policy() -> None:
    jobs = accepted({"name": "report", "schedule": {"every": "1h"}})
    life = lived(jobs, policy(), lambda run, attempt: Fate(1000, 0), 3.5)
    life.end()
    path = next(name for name in life.disk.list("ledger") if name.endswith(".jsonl"))
    since = life.first_seq

    def records() -> Iterator[Record]:
        for record in read(life.disk, after=since):
            if record.type == "plan.decided":
                decisions = [{**one, "reason": "as an older planner said"} for one in record.data["decisions"]]
                yield record._replace(data={**record.data, "decisions": decisions})
            else:
                yield record

    graph = fold(Graph(), read(life.disk, until=since))
    begin = Now(FRIDAY * 1_000_000, 1_000_000 * 1_000_000)
    found = Counterfactual(graph, records, Habits(1), policy(max_running=9), None, begin, policy()).compare()

    assert path
    assert found.divergence is not None
    assert found.divergence.by_planner
