"""Scheduling stories: overlap, missed slots, jitter, pauses, budgets, pools, backfills, repeated runs, retention.

Each ends by deciding the whole past again from its ledger alone, which must give the same hashes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from story import NOON, Story

from ledger.instant import Now, ms_of, text_of
from ledger.reader import read
from policies import due
from policies.clock import jumped
from policies.outcome import judge
from policies.overlap import overlap_of
from policies.policy import BEFORE, IllegalPolicy, SchedulingPolicy, adopt
from policies.reaction import finished
from policies.replay import verify_decisions
from policies.request import Declined
from policies.retention import forgotten, left_over
from state.events import draft
from state.graph import OVER, Run
from state.views import VIEWS

Json = Any
EVERY_MINUTE = {"every": "1m"}
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000


@pytest.fixture
def story() -> Iterator[Story]:
    told = Story()
    yield told
    again = list(verify_decisions(read(told.disk)))
    assert again
    assert all(verdict.agrees for verdict in again)
    assert VIEWS["control_plane_integrity"](told.graph)["holds"]


def decided(story: Story, **preflight: str) -> list[tuple[str, str]]:
    """What the next plan says: verdict and rule of each decision."""
    return [(d["verdict"], d["rule"]) for d in story.plan(preflight).decisions]


def active(story: Story, state: str) -> list[str]:
    return [run.name for run in story.graph.active.values() if run.state == state]


def tick(story: Story) -> list[tuple[str, str]]:
    story.pass_ms(MINUTE_MS)
    return decided(story)


def run_to_end(story: Story, outcome: str = "succeeded", code: int = 0) -> str:
    (name,) = active(story, "granted")
    story.begin(name)
    story.end(name, outcome, code=code)
    return name


def test_buffer_one_holds_one_slot_back_and_skips_the_rest(story: Story) -> None:
    story.define("a", EVERY_MINUTE, overlap="buffer_one")
    assert tick(story) == [("started", "admitted")]
    assert tick(story) == [("buffered", "overlap.buffer_one")]
    assert tick(story) == [("skipped", "overlap.full")]

    first = run_to_end(story)

    assert decided(story) == [("started", "admitted")]
    second = active(story, "granted")[0]
    assert (story.run(first).at, story.run(second).at) == (text_of(NOON + MINUTE_MS), text_of(NOON + 2 * MINUTE_MS))


def test_of_two_starts_asked_for_at_once_the_second_waits_for_the_first(story: Story) -> None:
    jobs = [f"job{number}" for number in range(8)]  # The order of the runs' names is chance, another for each.
    for job in jobs:
        story.define(job, "manual", overlap="buffer_one")
        story.start(job, f"{job}-first")
        story.start(job, f"{job}-second")

    assert sorted(decided(story)) == [("buffered", "overlap.buffer_one")] * 8 + [("started", "admitted")] * 8
    assert decided(story) == []
    assert len(active(story, "granted")) == 8


@pytest.mark.parametrize(
    ("overlap", "at_once"), [("buffer_one", 1), ("buffer_all(<=3)", 1), ("skip", 1), ("allow_all", 2)]
)
def test_a_start_asked_for_just_before_a_slot_does_not_run_beside_it(story: Story, overlap: str, at_once: int) -> None:
    story.define("a", EVERY_MINUTE, overlap=overlap)
    story.pass_ms(MINUTE_MS - 100)
    story.start("a")
    story.pass_ms(200)
    decided(story)
    decided(story)
    assert len(active(story, "granted")) == at_once


@pytest.mark.parametrize(("overlap", "force"), [("cancel_other", False), ("terminate_other", True)])
def test_of_a_start_and_a_slot_that_replace_each_other_one_is_left(story: Story, overlap: str, force: bool) -> None:
    story.define("a", EVERY_MINUTE, overlap=overlap)
    story.pass_ms(MINUTE_MS - 100)
    story.start("a")
    story.pass_ms(200)
    decided(story)
    story.react()
    decided(story)
    going = active(story, "granted") + active(story, "running")
    assert len(going) + len(active(story, "stopping")) == 1


def test_buffer_all_runs_every_slot_in_turn_up_to_its_bound(story: Story) -> None:
    story.define("a", EVERY_MINUTE, overlap="buffer_all(<=3)")
    assert tick(story) == [("started", "admitted")]
    assert [tick(story)[0][1] for _ in range(4)] == ["overlap.buffer_all"] * 3 + ["overlap.full"]

    ran = []
    while active(story, "granted"):
        ran.append(story.run(run_to_end(story)).at)
        decided(story)

    assert ran == [text_of(NOON + n * MINUTE_MS) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(("policy", "force"), [("cancel_other", False), ("terminate_other", True)])
def test_a_later_slot_takes_the_place_of_the_run_before_it(story: Story, policy: str, force: bool) -> None:
    story.define("a", EVERY_MINUTE, overlap=policy)
    tick(story)
    (first,) = active(story, "granted")
    story.begin(first)
    assert tick(story) == [("buffered", f"overlap.{policy}")]

    (stopping,) = story.react()

    assert (stopping.data["run"], stopping.data["why"], stopping.data["force"]) == (first, "overlap", force)
    assert decided(story) == []  # It starts only once the other is over.
    verdict = judge(story.run(first), story.wall_ms, code=None, signal_number=15)
    assert verdict.outcome == "cancelled"
    story.end(first, verdict.outcome, code=None)
    assert decided(story) == [("started", "admitted")]


def test_of_several_slots_that_replace_each_other_only_the_last_runs(story: Story) -> None:
    story.define("a", EVERY_MINUTE, overlap="cancel_other")
    tick(story)
    (first,) = active(story, "granted")
    story.begin(first)
    tick(story)
    story.react()
    tick(story)
    story.react()
    second, third = story.graph.jobs["a"].unrun[-1], story.graph.jobs["a"].active[-1]
    assert story.run(second).state == "cancelled"
    story.end(first, "cancelled", code=None)
    decided(story)
    assert active(story, "granted") == [third]


def test_slots_side_by_side_when_the_job_allows_it(story: Story) -> None:
    story.define("a", EVERY_MINUTE, overlap="allow_all")
    assert [tick(story), tick(story)] == [[("started", "admitted")]] * 2


def test_every_missed_slot_within_the_window_runs_one_after_another(story: Story) -> None:
    story.define("a", EVERY_MINUTE, missed={"policy": "all", "window": "10m", "max": 3})
    story.pass_ms(30 * MINUTE_MS + 45_000)

    plan = story.plan()

    assert [(d["verdict"], d["rule"], d.get("count", 1)) for d in plan.decisions] == [
        ("missed", "missed.max", 27),
        ("started", "admitted", 1),
        ("buffered", "overlap.missed", 1),
        ("buffered", "overlap.missed", 1),
    ]


def test_runs_that_make_up_for_missed_slots_start_staggered_across_jobs(story: Story) -> None:
    for name in ("a", "b", "c"):
        story.define(name, {"every": "1d"})
    story.pass_ms(12 * HOUR_MS + 5 * MINUTE_MS)

    assert decided(story) == [("started", "admitted"), ("deferred", "stagger"), ("deferred", "stagger")]
    starts = sorted(run.not_before_ms - story.wall_ms for run in story.graph.active.values() if run.not_before_ms)
    assert starts == [1000, 2000]
    story.define("d", {"every": "1d", "offset": "1h"})
    story.pass_ms(1000)
    assert decided(story) == [("started", "admitted")]
    story.pass_ms(1000)
    assert decided(story) == [("started", "admitted")]


def test_a_long_outage_with_missed_all_loses_none_of_the_newest() -> None:
    story = Story(max_slots_per_job=50)
    story.define("a", EVERY_MINUTE, missed={"policy": "all", "window": "10d", "max": 20})
    story.pass_ms(1003 * MINUTE_MS + 45_000)
    decisions = []
    while (plan := story.plan()).decisions:
        decisions += plan.decisions

    assert sum(d.get("count", 1) for d in decisions) == 1003
    alive = [d["at"] for d in decisions if d["verdict"] in ("started", "buffered")]
    assert alive == [text_of(NOON + n * MINUTE_MS) for n in range(984, 1004)]


def test_jitter_puts_each_slot_off_by_its_own_fixed_time(story: Story) -> None:
    story.define("a", {"every": "1h"}, jitter="10m", overlap="allow_all")
    waits = set()
    for _ in range(6):
        story.pass_ms(HOUR_MS)
        (decision,) = [d for d in story.plan().decisions if d["verdict"] == "deferred"]
        assert decision["rule"] == "jitter"
        wait_ms = ms_of(decision["not_before"]) - ms_of(decision["at"])
        assert wait_ms == due.jitter_ms(600_000, decision["slot"]) <= 600_000
        waits.add(wait_ms)
        assert decided(story) == []  # It waits, and that is no news.
    assert len(waits) > 3
    story.pass_ms(600_000)
    assert ("started", "admitted") in decided(story)


def test_a_paused_job_skips_its_slots_and_says_who_paused_it(story: Story) -> None:
    story.define("a", EVERY_MINUTE)
    story.request("pause", "p1", job="a", reason="the disk is being changed")
    story.pass_ms(3 * MINUTE_MS)

    (decision,) = story.plan().decisions

    assert (decision["verdict"], decision["count"]) == ("skipped", 3)
    assert decision["reason"] == "me@here paused this job: the disk is being changed"
    assert decided(story) == []
    story.request("resume", "p2", job="a")
    assert tick(story) == [("started", "admitted")]


def test_a_paused_job_still_runs_what_a_person_starts(story: Story) -> None:
    story.define("a", EVERY_MINUTE)
    story.request("pause", "p1", job="a")
    story.start("a")
    assert decided(story) == [("started", "admitted")]


def test_while_everything_is_paused_nothing_starts_and_what_was_missed_follows_the_job(story: Story) -> None:
    story.define("a", EVERY_MINUTE)
    story.define("b")
    story.request("pause", "p1", reason="a benchmark")
    for _ in range(5):
        assert tick(story) == []
    run = story.start("b")
    assert decided(story) == [("deferred", "paused")]
    assert story.run(run).reason == "me@here paused everything: a benchmark"
    assert story.request("pause", "p9")["already"]

    story.request("resume", "p2")
    story.pass_ms(45_000)

    assert sorted(decided(story)) == [("coalesced", "missed.latest"), ("started", "admitted"), ("started", "admitted")]


def test_a_drain_lets_what_runs_end_and_starts_nothing_more(story: Story) -> None:
    story.define("a", EVERY_MINUTE)
    tick(story)
    assert story.request("drain", "d1") == {"request": "d1", "running": 1}
    run_to_end(story)
    assert tick(story) == []
    assert story.graph.here.paused["drain"] is True


def test_a_job_is_paused_after_so_many_failures_in_a_row_and_resumes_afresh(story: Story) -> None:
    story.define("a", EVERY_MINUTE, stop_after_failures=2)
    for _ in range(2):
        tick(story)
        run_to_end(story, "failed", 1)
    (paused,) = story.react()
    assert (paused.type, paused.data["actor"]) == ("job.paused", "hermesd")
    assert tick(story) == [("skipped", "paused")]

    story.request("resume", "p2", job="a")
    tick(story)
    run_to_end(story, "failed", 1)
    assert story.react() == []


def test_a_budget_of_runs_makes_the_next_wait_until_the_window_has_room(story: Story) -> None:
    story.define("a", EVERY_MINUTE, budget={"runs_per_hour": 2})
    for _ in range(2):
        assert tick(story) == [("started", "admitted")]
        run_to_end(story)
    assert tick(story) == [("deferred", "budget.runs_per_hour")]
    (waiting,) = active(story, "waiting")
    assert story.run(waiting).not_before_ms == NOON + MINUTE_MS + HOUR_MS
    assert tick(story) == [("skipped", "overlap.skip")]

    story.wall_ms = NOON + MINUTE_MS + HOUR_MS
    assert ("started", "admitted") in decided(story)


@pytest.mark.parametrize("set_ms", [-DAY_MS, -HOUR_MS, HOUR_MS, DAY_MS])
def test_a_clock_that_is_set_makes_no_retry_and_no_budget_wait_longer_or_shorter(story: Story, set_ms: int) -> None:
    story.define("again", retry={"attempts": 2})
    story.define("dear", budget={"runs_per_hour": 1}, overlap="allow_all")
    again, dear = story.start("again", "r1"), story.start("dear", "r2")
    assert decided(story) == [("started", "admitted")] * 2
    story.begin(again)
    story.end(again, "failed", code=1, retry_in_ms=30_000)
    story.begin(dear)
    story.end(dear)
    late = story.start("dear", "r3")
    assert decided(story) == [("deferred", "budget.runs_per_hour")]

    story.wall_ms += set_ms
    story.record(draft("clock.jumped", "node/here", {"jump_ms": set_ms, "wall": text_of(story.wall_ms)}))

    assert decided(story) == []
    story.pass_ms(29_999)
    assert decided(story) == []
    story.pass_ms(1)
    assert decided(story) == [("started", "admitted")]
    assert active(story, "granted") == [again]
    run_to_end(story)
    story.pass_ms(HOUR_MS - 30_001)
    assert decided(story) == []
    story.pass_ms(1)
    assert decided(story) == [("started", "admitted")]
    assert active(story, "granted") == [late]


def test_tokens_are_reserved_at_the_start_and_settled_at_the_end(story: Story) -> None:
    story.define("a", budget={"tokens_per_day": 1000}, needs={"tokens": 600}, overlap="allow_all")
    first = story.start("a", "r1")
    assert decided(story) == [("started", "admitted")]
    story.start("a", "r2")
    assert decided(story) == [("deferred", "budget.tokens_per_day")]
    story.begin(first)
    story.record(finished(story.run(first), "succeeded", "as told", code=0, tokens=150))

    spent = VIEWS["runtime_resource_state"](story.graph)["spent"]
    assert spent == [{"account": "job:a", "runs": 1, "tokens": 150}]
    story.start("a", "r3")
    assert decided(story) == [("started", "admitted")]


def test_one_is_one(story: Story) -> None:
    """What is said of one thing is not said as of several."""
    limits: Json = {"needs": {"tokens": 1}, "stop_after_failures": 1}
    story.define("a", EVERY_MINUTE, overlap="buffer_all", budget={"runs_per_hour": 1}, **limits)
    story.start("a")
    decided(story)
    story.start("a", "r2")
    decided(story)
    run_to_end(story, "failed", code=1)
    (second,) = story.plan().decisions
    assert second["reason"] == "runs_per_hour of a is 1, and 1 is spent"
    (paused,) = story.react()
    assert paused.data["reason"] == "a run has failed, and the job says stop_after_failures"
    story.define("agent", kind="agent", steps=[{"name": "only", "kind": "command", "argv": ["true"]}])
    agent = story.start("agent", "r3")
    decided(story), decided(story)
    story.end(f"{agent}.only")
    (ended,) = story.react()
    assert ended.data["reason"] == "its only step succeeded"
    story.define("big", needs={"memory": "20TiB"})
    story.start("big", "r4")
    (blocked,) = story.plan().decisions
    assert blocked["reason"] == "needs 20 TiB of memory; this machine gives 7.2 GiB"


def test_one_that_is_cancelled_between_its_attempts_has_begun(story: Story) -> None:
    story.define("a", retry={"attempts": 2})
    run = story.start("a")
    decided(story)
    story.end(run, "failed", code=1, retry_in_ms=60_000)
    story.cancel(run)
    assert story.run(run).reason == "was cancelled before its next attempt: me@here asked for it"


def test_one_attempt_that_no_budget_could_ever_hold_is_blocked(story: Story) -> None:
    story.define("a", budget={"tokens_per_day": 100}, needs={"tokens": 600})
    story.start("a")
    assert decided(story) == [("blocked", "budget.tokens_per_day")]


def test_jobs_with_one_tag_share_the_places_and_the_budget_of_its_pool() -> None:
    story = Story(pools={"gpu": {"places": 1, "runs_per_hour": 2}})
    story.define("a", tags=["gpu"])
    story.define("b", tags=["gpu", "other"])
    story.start("a", "r1")
    story.start("b", "r2")
    assert decided(story) == [("started", "admitted"), ("deferred", "pool.gpu")]
    run_to_end(story)
    assert decided(story) == [("started", "admitted")]
    run_to_end(story)
    story.start("a", "r3")
    assert decided(story) == [("deferred", "budget.runs_per_hour")]


def test_a_backfill_runs_each_slot_under_the_spec_in_force_then_one_after_another(story: Story) -> None:
    story.define("a", {"every": "1h"}, argv=["old"])
    story.pass_ms(2 * HOUR_MS + 1)
    story.define("a", {"every": "1h"}, argv=["new"])
    story.pass_ms(2 * HOUR_MS)
    while decided(story):
        pass
    for name in active(story, "granted"):
        story.end(name)

    span = {"from": text_of(NOON), "to": text_of(story.wall_ms)}
    dry = story.request("backfill", "x", job="a", dry_run=True, **span)
    assert [slot["revision"] for slot in dry["slots"]] == [1, 1, 1, 2, 2]
    assert not story.graph.requests
    story.request("backfill", "b1", job="a", **span)

    ran = []
    while story.graph.requests:
        assert decided(story) == [("started", "admitted")]
        name = run_to_end_of_backfill(story)
        ran.append(name)
    assert ran == [("old", NOON), ("old", NOON + HOUR_MS), ("old", NOON + 2 * HOUR_MS)] + [
        ("new", NOON + n * HOUR_MS) for n in (3, 4)
    ]


def run_to_end_of_backfill(story: Story) -> tuple[str, int]:
    (name,) = active(story, "granted")
    run = story.run(name)
    assert (run.trigger, run.slots) == ("backfill", 1)
    story.begin(name)
    story.end(name)
    return run.spec["argv"][0], ms_of(run.at)


def test_a_live_slot_is_not_skipped_for_a_backfill_that_waits(story: Story) -> None:
    story.define("a", {"every": "1h"})
    story.pass_ms(5 * HOUR_MS)
    decided(story)
    run_to_end(story)
    story.request("backfill", "b1", job="a", **{"from": text_of(NOON), "to": text_of(NOON + 3 * HOUR_MS)})
    story.pass_ms(HOUR_MS)
    assert decided(story) == [("started", "admitted")]
    assert story.run(active(story, "granted")[0]).trigger == "schedule"
    assert len(story.graph.requests["b1"].slots) == 3


def test_slots_of_a_backfill_end_neither_each_other_nor_the_live_run(story: Story) -> None:
    story.define("a", EVERY_MINUTE, overlap="cancel_other")
    for _ in range(4):
        tick(story)
        if story.wall_ms < NOON + 4 * MINUTE_MS:
            run_to_end(story)
    span = {"from": text_of(NOON), "to": text_of(NOON + 3 * MINUTE_MS)}
    story.request("backfill", "b1", job="a", overlap="allow_all", **span)
    assert decided(story) == [("started", "admitted")] * 3
    assert story.react() == []
    assert len(active(story, "granted")) == 4


def test_a_live_slot_that_waits_comes_before_the_rest_of_a_backfill() -> None:
    story = Story(max_running=1)
    story.define("a", EVERY_MINUTE, overlap="buffer_one")
    for _ in range(3):
        tick(story)
        run_to_end(story)
    span = {"from": text_of(NOON), "to": text_of(story.wall_ms + 1)}
    story.request("backfill", "b1", job="a", overlap="allow_all", **span)
    assert decided(story) == [("started", "admitted")]
    assert tick(story) == [("buffered", "overlap.buffer_one")]
    run_to_end(story)
    assert decided(story) == [("started", "admitted")]
    assert story.run(active(story, "granted")[0]).trigger == "schedule"
    run_to_end(story)
    assert decided(story) == [("started", "admitted")]
    assert story.run(active(story, "granted")[0]).trigger == "backfill"


def test_an_edit_of_the_overlap_is_no_broken_invariant(story: Story) -> None:
    story.define("a", EVERY_MINUTE, overlap="allow_all")
    for _ in range(2):
        tick(story)
    story.define("a", EVERY_MINUTE, overlap="skip")
    assert tick(story) == [("skipped", "overlap.skip")]
    assert len(active(story, "granted")) == 2


def test_a_backfill_that_is_given_up_starts_no_more(story: Story) -> None:
    story.define("a", {"every": "1h"})
    story.pass_ms(5 * HOUR_MS)
    decided(story)
    run_to_end(story)
    story.request("backfill", "b1", job="a", **{"from": text_of(NOON), "to": text_of(NOON + 3 * HOUR_MS)})
    decided(story)
    assert story.request("cancel", "c1", run="b1")["slots"] == 2
    run_to_end(story)
    assert decided(story) == []


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ({"from": "2020-01-01T00:00:00Z", "to": "2020-02-01T00:00:00Z"}, "nothing-to-backfill"),
        ({"from": text_of(NOON), "to": text_of(NOON - 1)}, "nothing-to-backfill"),
        ({"from": "yesterday", "to": text_of(NOON)}, "bad-time"),
        ({}, "bad-time"),
        ({"from": text_of(NOON), "to": text_of(NOON + 5000), "overlap": "skip"}, "bad-overlap"),
    ],
)
def test_a_backfill_that_cannot_be_done_says_why(story: Story, args: Json, code: str) -> None:
    story.define("a", EVERY_MINUTE)
    tick(story)
    with pytest.raises(Declined) as declined:
        story.request("backfill", "b1", job="a", **args)
    assert declined.value.code == code
    assert declined.value.advice


def test_before_its_first_spec_a_job_is_backfilled_with_the_one_of_today(story: Story) -> None:
    story.define("a", {"every": "1h"})
    tick(story)
    story.define("b", EVERY_MINUTE)
    tick(story)
    span = {"from": text_of(NOON - 3 * HOUR_MS), "to": text_of(NOON)}
    assert len(story.request("backfill", "b1", job="a", current_spec=True, **span)["slots"]) == 3


def test_a_lost_run_waits_for_a_person_who_has_it_done_again(story: Story) -> None:
    story.define("a", EVERY_MINUTE)
    tick(story)
    (name,) = active(story, "granted")
    story.begin(name)
    verdict = judge(story.run(name), story.wall_ms, code=None, signal_number=None)
    assert verdict.retry_at_ms is None
    assert f"hermesd retry {name}" in verdict.reason
    with pytest.raises(Declined, match="is not over"):
        story.request("retry", "x", run=name)
    story.end(name, "lost", code=None)

    again = story.request("retry", "t1", run=name)["run"]

    assert decided(story) == [("started", "admitted")]
    assert (story.run(again).retries, story.run(again).trigger) == (name, "retry")


def test_an_end_without_the_promised_output_is_no_success(story: Story) -> None:
    story.define("a", EVERY_MINUTE, retry={"attempts": 2, "base": "10s"})
    tick(story)
    (name,) = active(story, "granted")
    story.begin(name)
    verdict = judge(story.run(name), 0, code=0, signal_number=None, unmet="report.md was not written")
    assert verdict.outcome == "failed"
    assert verdict.reason.startswith("exit status 0, but report.md was not written; attempt 2 of 2")
    assert verdict.retry_at_ms == 10_000


def test_the_wait_before_another_attempt_is_longer_by_a_fixed_share(story: Story) -> None:
    waits = set()
    story.define("a", EVERY_MINUTE, retry={"attempts": 2, "base": "100s"}, overlap="allow_all")
    for _ in range(5):
        tick(story)
    for name in active(story, "granted"):
        verdict = [judge(story.run(name), 0, code=1, signal_number=None, jitter_percent=10) for _ in range(2)]
        assert verdict[0] == verdict[1]
        waits.add(verdict[0].retry_at_ms)
    assert len(waits) == 5
    assert all(100_000 <= wait <= 110_000 for wait in waits if wait is not None)


def test_a_job_that_was_switched_off_owes_no_slots_of_that_time(story: Story) -> None:
    story.define("a", EVERY_MINUTE)
    tick(story)
    run_to_end(story)
    story.define("a", EVERY_MINUTE, enabled=False)
    story.pass_ms(HOUR_MS)
    story.define("a", EVERY_MINUTE)
    assert tick(story) == [("started", "admitted")]


def test_slots_that_are_skipped_push_no_run_out(story: Story) -> None:
    """They would take its folder with them: of a job that is often skipped nobody could read what it had printed."""
    story.define("a", EVERY_MINUTE, keep={"runs": 2, "days": 1})
    ran = []
    for _ in range(3):
        tick(story)
        for _ in range(5):
            assert tick(story) == [("skipped", "overlap.skip")]
        ran.append(run_to_end(story))
    job = story.graph.jobs["a"]
    assert job.kept == tuple(ran[1:])
    assert [story.run(name).state for name in job.unrun] == ["skipped"] * 2
    gone = [node for node in story.graph.nodes.values() if isinstance(node, Run) and node.name not in job.kept]
    assert len(gone) == 2
    assert VIEWS["jobs"](story.graph)["jobs"][0]["last_run"] == ran[2]
    event = forgotten(story.graph, story.wall_ms + 2 * DAY_MS)
    assert event is not None
    story.record(event)
    assert (story.graph.jobs["a"].kept, story.graph.jobs["a"].unrun) == ((), ())


def test_runs_leave_the_graph_when_their_days_are_over(story: Story) -> None:
    story.define("a", {"every": "1d"}, keep={"days": 2})
    names = []
    for _ in range(4):
        story.pass_ms(DAY_MS)
        decided(story)
        names.append(run_to_end(story))
    event = forgotten(story.graph, story.wall_ms)
    assert event is not None
    assert event.data["runs"] == names[:2]
    story.record(event)
    assert forgotten(story.graph, story.wall_ms) is None
    assert story.graph.run(names[0]) is None
    assert list(story.graph.jobs["a"].kept) == names[2:]


@pytest.mark.parametrize("text", ["skip", "buffer_one", "buffer_all(<=7)", "cancel_other", "allow_all"])
def test_an_overlap_policy_reads_as_it_is_written(text: str) -> None:
    assert overlap_of(text).policy == text.partition("(")[0]


def test_every_slot_has_one_decision_whatever_the_overlap_and_missed_policies(story: Story) -> None:
    for number, overlap in enumerate(("skip", "buffer_one", "buffer_all(<=2)", "cancel_other", "terminate_other")):
        for missed in ("skip", "latest", "all"):
            story.define(f"j{number}-{missed}", EVERY_MINUTE, overlap=overlap, missed={"policy": missed, "max": 3})
    slots: dict[str, int] = {}
    for turn in range(60):
        story.pass_ms(MINUTE_MS * (10 if turn % 20 == 19 else 1) + (40_000 if turn % 7 == 0 else 0))
        while (plan := story.plan()).decisions:
            for decision in plan.decisions:
                first = story.run(decision["run"]).decided_seq == story.graph.seq
                if first and decision["attempt"] == 1 and decision["run"] not in slots:
                    slots[decision["run"]] = decision.get("count", 1)
            story.react()
        for run in list(story.graph.active.values()):
            if run.state == "granted" and turn % 3:
                story.begin(run.name)
            elif run.state == "stopping":
                story.end(run.name, "cancelled", code=None)
            elif run.state == "running" and turn % 2:
                story.end(run.name)
    per_job: dict[str, int] = {}
    for name, count in slots.items():
        job = name.partition(".")[0]
        per_job[job] = per_job.get(job, 0) + count
    whole = (story.wall_ms // MINUTE_MS) - (NOON // MINUTE_MS)
    assert per_job == dict.fromkeys(per_job, whole)
    assert len(per_job) == 15
    assert all(run.state in OVER or run.name in story.graph.jobs[run.job].active for run in story.graph.active.values())


def test_a_policy_that_an_older_version_adopted_can_still_be_asked() -> None:
    story = Story()
    whole = story.policy.values()
    older = {name: value for name, value in whole.items() if not name.startswith("notice") and name != "pools"}
    known = SchedulingPolicy.recorded({**older, "gone_since": 7})
    assert known.values() == {**whole, **{name: BEFORE[name] for name in whole if name not in older}}
    story.record(draft("policy.adopted", "policy", {"digest": "d" * 32, "policy": older}))
    assert story.past.policy() == known


@pytest.mark.parametrize("field", [it.name for it in fields(SchedulingPolicy) if it.name != "pools"])
def test_no_number_of_a_policy_is_too_large_to_be_recorded_or_waited_for(field: str) -> None:
    with pytest.raises(IllegalPolicy, match=f"{field}: it must be .* at most"):
        adopt(BEFORE, {field: 10**400})
    with pytest.raises(IllegalPolicy, match="it must be .* at most"):
        adopt(BEFORE, {"pools": {"a": {"tokens_per_day": 2**63}}})


def test_each_field_of_the_policy_says_what_held_before_it() -> None:
    assert list(BEFORE) == [field.name for field in fields(SchedulingPolicy)]
    assert SchedulingPolicy.recorded({}).values() == BEFORE


@pytest.mark.parametrize(
    ("wall_ms", "boot_ms", "jump_ms"),
    [
        (12_000, 5_000, None),
        (12_001, 5_000, 2_001),
        (8_000, 5_000, None),
        (7_999, 5_000, -2_001),
        (99_000, 94_000, None),
    ],
)
def test_the_clock_has_jumped_if_it_and_the_boot_clock_disagree_by_more_than_the_policy_says(
    wall_ms: int, boot_ms: int, jump_ms: int | None
) -> None:
    before, now = (Now(wall * 1_000_000, boot * 1_000_000) for wall, boot in ((10_000, 5_000), (wall_ms, boot_ms)))
    policy = SchedulingPolicy.recorded({})
    event = jumped(before, now, policy)
    assert (event.data["jump_ms"] if event else None) == jump_ms
    assert jumped(None, now, policy) is None


def test_what_an_errand_left_goes_unless_somebody_waits_for_it(story: Story) -> None:
    story.define("a", EVERY_MINUTE)
    tick(story)
    (name,) = story.graph.active
    assert left_over(story.graph, [f"@{name}.1.expected", "@gone.1.expected", "@n-1"]) == ["@gone.1.expected", "@n-1"]
