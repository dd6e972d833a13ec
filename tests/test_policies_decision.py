"""The planner: what starts, waits or is skipped, in which order; and its hash tells one question from another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from story import Story

from ledger.reader import read
from policies.decision import decide
from policies.outcome import judge
from policies.question import GROUPS, VOLATILE, Question, canonical, digest
from policies.replay import verify_decisions

EVERY_MINUTE = {"every": "1m"}


def verdicts(story: Story) -> dict[str, tuple[str, str]]:
    return {d["job"]: (d["verdict"], d["rule"]) for d in story.plan().decisions}


def test_a_due_slot_starts_once_and_the_next_look_has_nothing_to_say() -> None:
    story = Story()
    story.define("a", EVERY_MINUTE)
    story.pass_ms(60_000)
    assert verdicts(story) == {"a": ("started", "admitted")}
    assert story.plan().decisions == ()


def test_a_slot_is_skipped_while_the_run_before_is_not_over() -> None:
    story = Story()
    story.define("a", EVERY_MINUTE)
    story.pass_ms(60_000)
    story.plan()
    story.pass_ms(60_000)
    assert verdicts(story) == {"a": ("skipped", "overlap.skip")}


def test_a_job_that_may_overlap_starts_again_beside_itself() -> None:
    story = Story()
    story.define("a", EVERY_MINUTE, overlap="allow_all")
    story.pass_ms(60_000)
    story.plan()
    story.pass_ms(60_000)
    assert verdicts(story) == {"a": ("started", "admitted")}
    assert len(story.graph.active) == 2


def test_of_a_days_missed_slots_only_the_latest_runs_and_the_others_are_accounted_for() -> None:
    story = Story()
    story.define("a", EVERY_MINUTE, missed={"policy": "latest", "window": "1h"})
    story.pass_ms(86_400_000 - 31_000)  # Noticed 29 s after the last slot is on time; 31 s before it, that is late.
    old, latest = story.plan().decisions
    assert (old["verdict"], old["count"]) == ("coalesced", 1438)
    assert (latest["verdict"], latest["at"]) == ("started", "2026-03-03T11:59:00Z")


def test_a_job_that_skips_what_it_missed_runs_nothing_late() -> None:
    story = Story()
    story.define("a", {"every": "1h"}, missed={"policy": "skip"})
    story.pass_ms(3_600_000 * 5 + 60_000)
    (decided,) = story.plan().decisions
    assert (decided["verdict"], decided["rule"], decided["count"]) == ("missed", "missed.skip", 5)


def test_what_lies_beyond_the_window_is_missed_and_says_how_late_it_was_noticed() -> None:
    story = Story()
    story.define("a", {"at": "2026-03-02T13:00:00Z"}, missed={"policy": "latest", "window": "10m"})
    story.pass_ms(7_200_000)
    (decided,) = story.plan().decisions
    assert (decided["verdict"], decided["rule"]) == ("missed", "missed.window")
    assert "1h late" in decided["reason"]


def test_a_long_outage_is_worked_off_over_several_plans_without_losing_a_slot() -> None:
    story = Story(max_slots_per_job=100)
    story.define("a", EVERY_MINUTE)
    story.pass_ms(60_000 * 1000 + 45_000)
    counted, plans = 0, 0
    while (plan := story.plan()).decisions:
        plans += 1
        counted += sum(d.get("count", 1) for d in plan.decisions)
    assert (counted, plans) == (1000, 11)


def test_setting_the_clock_back_fires_nothing_twice() -> None:
    story = Story()
    story.define("a", EVERY_MINUTE)
    story.pass_ms(60_000)
    story.plan()
    story.end(next(iter(story.graph.active)))
    story.wall_ms -= 3_600_000
    for _ in range(59):
        story.pass_ms(60_000)
        assert story.plan().decisions == ()


def test_a_new_schedule_owes_nothing_for_its_past() -> None:
    story = Story()
    story.define("a", {"cron": "0 0 1 1 *"})
    story.pass_ms(3_600_000)
    story.define("a", EVERY_MINUTE)
    assert story.plan().decisions == ()


def test_an_edit_that_leaves_the_schedule_alone_loses_no_slot() -> None:
    story = Story()
    story.define("a", EVERY_MINUTE)
    story.pass_ms(61_000)
    story.define("a", EVERY_MINUTE, priority=80)
    assert verdicts(story) == {"a": ("started", "admitted")}


def test_a_removed_job_owes_nothing_and_one_that_comes_back_starts_afresh() -> None:
    story = Story()
    story.define("a", EVERY_MINUTE)
    job = story.jobs["a"]
    story.remove("a")
    story.pass_ms(3_600_000)
    assert story.plan().decisions == ()
    story.jobs["a"] = job
    story.adopt()
    assert story.plan().decisions == ()
    assert story.graph.jobs["a"].revision == 2


def test_what_waits_of_a_job_that_is_removed_does_not_start() -> None:
    story = Story()
    story.define("a", EVERY_MINUTE, overlap="buffer_one", retry={"attempts": 2})
    for _ in range(2):
        story.pass_ms(60_000)
        story.plan()
    first, second = story.graph.jobs["a"].active
    story.end(first, "failed", code=1, retry_in_ms=1000)
    story.remove("a")
    story.pass_ms(1000)
    found = [(d["run"], d["verdict"], d["reason"]) for _ in range(2) for d in story.plan().decisions]
    assert found == [
        (first, "skipped", "the job was removed before its next attempt"),
        (second, "skipped", "the job was removed before it began"),
    ]


def test_many_requests_of_one_second_are_as_many_runs() -> None:
    story = Story()
    story.define("a", overlap="allow_all")
    assert len({story.start("a", f"r{n}") for n in range(500)}) == 500
    while story.plan().more:
        pass
    assert len(story.graph.active) == 500


def test_a_request_for_a_job_that_has_gone_meanwhile_is_answered_and_starts_nothing() -> None:
    story = Story()
    story.define("a")
    story.start("a")
    story.remove("a")
    assert verdicts(story) == {"a": ("skipped", "removed")}
    assert story.graph.requests == {}


def test_the_order_is_depth_then_priority_then_name() -> None:
    story = Story(max_running=1)
    for name, priority in (("b", 50), ("a", 50), ("z", 90)):
        story.define(name, EVERY_MINUTE, priority=priority)
    story.pass_ms(60_000)
    assert [(d["job"], d["verdict"]) for d in story.plan().decisions] == [
        ("z", "started"),
        ("a", "deferred"),
        ("b", "deferred"),
    ]


def test_one_that_waits_long_enough_goes_before_a_higher_priority_that_has_just_come() -> None:
    story = Story(max_running=1, aging_ms=1000)
    story.define("holder")
    run = story.start("holder")
    story.plan()
    story.define("patient", priority=10)
    story.start("patient", "r2")
    story.plan()
    story.pass_ms(60_000)
    story.define("eager", priority=60)
    story.start("eager", "r3")
    story.plan()
    story.end(run)
    assert verdicts(story) == {"patient": ("started", "admitted")}


def test_one_that_waits_long_enough_does_not_starve_behind_jobs_that_wait_for_nobody() -> None:
    story = Story(max_running=1, aging_ms=1000)
    story.define("up", overlap="allow_all", priority=100)
    story.define("down", {"after": ["other"]}, priority=50)
    before, down = story.start("up", "u"), story.start("down", "d")
    for number in range(100):
        story.plan()
        if story.run(down).state == "granted":
            break
        story.pass_ms(1000)
        before, ended = story.start("up", f"u{number}"), before
        story.end(ended)
    assert story.run(down).state == "granted"
    assert 45 < number < 60, "until its priority has risen above all, it stands behind what it does not wait for"


WANTED_IN_PARTS: list[dict[str, object]] = [
    {"leases": ["a", "b"]},
    {"needs": {"cpu": 4}},
    {"tags": ["t"], "leases": ["b"]},
]


@pytest.mark.parametrize("wanted", WANTED_IN_PARTS, ids=str)
def test_one_that_wants_several_things_gets_them_though_others_take_turns_at_each(wanted: dict[str, object]) -> None:
    story = Story(aging_ms=1000, pools={"t": {"places": 1}})
    story.define("both", **wanted)
    others = {"one": {"leases": ["a"], "tags": ["t"]}, "two": {"leases": ["b"]}}
    for name, fields in others.items():
        story.define(name, overlap="allow_all", priority=100, needs={"cpu": 2}, **fields)
    running = [story.start("one", "first")]
    story.plan()
    both = story.start("both", "r")
    for turn in range(100):
        story.pass_ms(1000)
        running.append(story.start(("two", "one")[turn % 2], f"t{turn}"))
        decisions = {d["run"]: d["reason"] for d in story.plan().decisions}
        if story.run(running[-1]).state == "waiting":
            break
        story.end(running.pop(0))
    assert turn > 45, "not before it has waited for long"
    assert f"is kept for {both}, which has waited for long" in decisions[running.pop()]
    story.end(*running)
    story.plan()
    assert story.run(both).state == "granted"


def test_nothing_is_kept_back_for_one_that_waits_for_somebody_elses_lease() -> None:
    from policies.foreign import SeenLease, changes

    story = Story(aging_ms=1000)
    story.record(*changes(story.graph, [SeenLease("x", "an editor", 0, "")], story.boot_ms))
    story.define("foreign", leases=["a", "x"])
    story.define("late", leases=["a"])
    story.start("foreign", "r1")
    story.plan()
    story.pass_ms(100_000)
    story.start("late", "r2")
    assert verdicts(story) == {"late": ("started", "admitted")}


def test_nothing_is_kept_back_from_the_steps_of_the_run_that_has_the_lease() -> None:
    story = Story(aging_ms=1000, pools={"t": {"places": 1}})
    story.define("agent", kind="agent", steps=steps(), leases=["b"], tags=["t"])
    story.define("behind", leases=["b"], tags=["t"])
    agent = story.start("agent", "r1")
    story.plan(), story.plan()
    behind = story.start("behind", "r2")
    story.plan()
    for step in ("a", "b"):
        story.pass_ms(100_000)
        story.end(f"{agent}.{step}")
        story.plan()
    assert story.run(f"{agent}.c").state == "granted"
    story.end(f"{agent}.c")
    story.react()
    story.plan()
    assert story.run(behind).state == "granted"


def test_two_jobs_with_one_lease_take_turns() -> None:
    story = Story()
    story.define("a", leases=["repo:x"])
    story.define("b", leases=["repo:x"])
    first = story.start("a", "r1")
    story.start("b", "r2")
    assert verdicts(story) == {"a": ("started", "admitted"), "b": ("deferred", "lease:repo:x")}
    assert story.plan().decisions == (), "one that still waits by the same rule is no news"
    story.end(first)
    assert verdicts(story) == {"b": ("started", "admitted")}
    assert story.graph.leases["repo:x"].holder.startswith("b.")


def test_a_foreign_lease_wins() -> None:
    from policies.foreign import SeenLease, changes

    story = Story()
    story.define("a", leases=["repo:x"])
    story.record(*changes(story.graph, [SeenLease("repo:x", "an editor", story.boot_ms + 5000, "")], story.boot_ms))
    story.start("a")
    assert verdicts(story) == {"a": ("deferred", "lease:repo:x")}
    story.pass_ms(5000)
    story.record(*changes(story.graph, [], story.boot_ms))
    assert verdicts(story) == {"a": ("started", "admitted")}


def test_a_grant_that_met_a_foreign_lease_waits_again_with_the_same_attempt() -> None:
    from state.events import draft

    story = Story()
    story.define("a", leases=["k"])
    run = story.start("a")
    story.plan()
    token = story.run(run).token
    data = {"run": run, "attempt": 1, "token": token, "key": "k", "holder": "vim"}
    story.record(draft("lease.refused", f"run/{run}", data))
    assert story.run(run).state == "waiting"
    assert "k" not in story.graph.leases
    story.plan()
    assert (story.run(run).state, story.run(run).attempt) == ("granted", 1)
    assert story.run(run).token > token


def test_a_grant_that_met_a_foreign_lease_costs_the_budget_nothing() -> None:
    from state.events import draft

    story = Story(pools={"t": {"tokens_per_day": 10}})
    story.define("a", leases=["k"], tags=["t"], needs={"tokens": 10}, budget={"runs_per_hour": 1})
    run = story.start("a")
    story.plan()
    data = {"run": run, "attempt": 1, "token": story.run(run).token, "key": "k", "holder": "vim"}
    story.record(draft("lease.refused", f"run/{run}", data))
    assert verdicts(story) == {"a": ("started", "admitted")}
    story.end(run)
    story.start("a", "r2")
    assert verdicts(story) == {"a": ("deferred", "budget.tokens_per_day")}


@pytest.mark.parametrize(
    ("needs", "verdict", "rule"),
    [
        ({"cpu": 5}, "blocked", "needs.cpu"),
        ({"memory": "9GiB"}, "blocked", "needs.memory"),
        ({"gpu_memory": "1GiB"}, "blocked", "needs.gpu_memory"),
        ({"cpu": 4}, "started", "admitted"),
    ],
)
def test_what_this_machine_can_never_give_blocks_at_once(needs: dict[str, object], verdict: str, rule: str) -> None:
    story = Story()
    story.define("a", needs=needs)
    story.start("a")
    assert verdicts(story) == {"a": (verdict, rule)}


def test_needs_are_shared_out_and_given_back() -> None:
    story = Story()
    story.define("a", needs={"cpu": 3})
    story.define("b", needs={"cpu": 2})
    first = story.start("a", "r1")
    story.start("b", "r2")
    assert verdicts(story) == {"a": ("started", "admitted"), "b": ("deferred", "needs.cpu")}
    story.end(first)
    assert verdicts(story) == {"b": ("started", "admitted")}


def test_a_script_that_is_not_there_blocks_its_slot_and_frees_its_place_for_another() -> None:
    story = Story(max_running=1)
    story.define("a", priority=90)
    story.define("b")
    story.start("a", "r1")
    story.start("b", "r2")
    plan = story.plan({"a": "/no/such/script does not exist"})
    assert {d["job"]: d["verdict"] for d in plan.decisions} == {"a": "blocked", "b": "started"}


def test_a_diamond_of_dependencies_runs_its_end_once() -> None:
    story = Story()
    story.define("top")
    story.define("left", {"after": ["top"]})
    story.define("right", {"after": ["top"]})
    story.define("end", {"after": ["left", "right"]})
    top = story.start("top")
    story.plan()
    story.end(top)
    assert verdicts(story) == {"left": ("started", "admitted"), "right": ("started", "admitted")}
    left, right = sorted(story.graph.active)
    story.end(left)
    assert story.plan().decisions == ()
    story.end(right)
    assert verdicts(story) == {"end": ("started", "admitted")}
    assert story.plan().decisions == ()


@pytest.mark.parametrize(
    ("outcome", "code", "started"),
    [("failed", 1, {"on-failure", "on-any"}), ("cancelled", None, {"on-any"})],
)
def test_who_asked_for_a_failure_starts_after_one_and_not_after_a_cancelled_run(
    outcome: str, code: int | None, started: set[str]
) -> None:
    story = Story()
    story.define("top")
    for when in ("success", "failure", "any"):
        story.define(f"on-{when}", {"after": ["top"], "when": when})
    top = story.start("top")
    story.plan()
    story.begin(top)
    story.end(top, outcome, code=code)
    assert set(verdicts(story)) == started


def test_a_job_defined_later_does_not_answer_what_its_dependency_did_before() -> None:
    story = Story()
    story.define("top")
    top = story.start("top")
    story.plan()
    story.end(top)
    story.define("late", {"after": ["top"]})
    assert story.plan().decisions == ()


def test_a_job_that_has_expired_does_not_start_after_another() -> None:
    story = Story()
    story.define("top", overlap="allow_all")
    story.define("after", {"after": ["top"]}, expires="2026-03-02T12:01:00Z")
    for number, expected in enumerate(({"after"}, set())):
        top = story.start("top", f"r{number}")
        story.plan()
        story.end(top)
        assert set(verdicts(story)) == expected
        story.pass_ms(60_000)


def test_however_jobs_wait_for_each_other_their_depth_is_found_at_once() -> None:
    story = Story()
    layer = ["a0", "b0", "c0"]
    for name in layer:
        story.define(name)
    for number in range(1, 25):  # 3**24 ways lead to the last.
        before, layer = layer, [f"{name}{number}" for name in "abc"]
        for name in layer:
            story.define(name, {"after": before})
    agenda = story.past.agenda
    assert [agenda.depth(name) for name in ("a0", "b1", "c24")] == [0, 1, 24]
    story.define("c24", {"after": ["a0"]})
    assert agenda.depth("c24") == 1
    story.define("b1", {"after": ["a24"]})  # Two files, each sound by itself, may close a circle.
    assert agenda.depth("a0") == 0
    assert agenda.depth("c1") == 1


def steps() -> list[dict[str, object]]:
    return [
        {"name": "a", "kind": "command", "argv": ["true"]},
        {"name": "b", "kind": "command", "argv": ["true"]},
        {"name": "c", "kind": "command", "argv": ["true"], "after": ["a", "b"]},
    ]


def test_independent_steps_start_together_and_their_successor_after_both() -> None:
    story = Story()
    story.define("agent", kind="agent", steps=steps())
    run = story.start("agent")
    story.plan()
    assert [d["step"] for d in story.plan().decisions] == ["a", "b"]
    story.end(f"{run}.a")
    assert story.plan().decisions == ()
    story.end(f"{run}.b")
    assert [d["step"] for d in story.plan().decisions] == ["c"]
    story.end(f"{run}.c")
    story.react()
    assert story.run(run).state == "succeeded"


def test_a_failed_step_skips_what_follows_it_and_fails_the_run() -> None:
    story = Story()
    story.define("agent", kind="agent", steps=steps())
    run = story.start("agent")
    story.plan(), story.plan()
    story.end(f"{run}.a", "failed", code=2)
    story.end(f"{run}.b")
    assert [(d["step"], d["verdict"]) for d in story.plan().decisions] == [("c", "skipped")]
    story.react()
    assert story.run(run).state == "failed"
    assert "step a failed" in story.run(run).reason


def test_a_step_is_tried_again_as_the_job_says_and_what_waits_for_it_waits_on() -> None:
    story = Story()
    story.define("agent", kind="agent", steps=steps(), retry={"attempts": 2, "base": "5s"})
    run = story.start("agent")
    story.plan(), story.plan()
    verdict = judge(story.run(f"{run}.a"), story.wall_ms, code=1, signal_number=None)
    assert verdict.retry_at_ms == story.wall_ms + 5_000
    story.end(f"{run}.a", "failed", code=1, retry_in_ms=5_000)
    story.end(f"{run}.b")
    assert story.plan().decisions == ()
    story.pass_ms(5_000)
    assert [(d["step"], d["attempt"]) for d in story.plan().decisions] == [("a", 2)]
    story.end(f"{run}.a")
    assert [d["step"] for d in story.plan().decisions] == ["c"]


def test_cancelling_an_agent_stops_its_steps_first_and_starts_no_more() -> None:
    story = Story()
    story.define("agent", kind="agent", steps=steps())
    run = story.start("agent")
    story.plan(), story.plan()
    story.begin(f"{run}.a"), story.begin(f"{run}.b")
    story.cancel(run)
    assert {story.run(f"{run}.{s}").state for s in "ab"} == {"stopping"}
    assert story.plan().decisions == ()
    story.end(f"{run}.a", "cancelled", code=None), story.end(f"{run}.b", "cancelled", code=None)
    story.react()
    assert story.run(run).state == "cancelled"


def test_a_retry_waits_its_time_and_is_the_same_run() -> None:
    story = Story()
    story.define("a", retry={"attempts": 2})
    run = story.start("a")
    story.plan()
    story.end(run, "failed", code=1, retry_in_ms=10_000)
    assert story.run(run).state == "backoff"
    assert story.plan().decisions == ()
    story.pass_ms(10_000)
    (decided,) = story.plan().decisions
    assert (decided["run"], decided["attempt"], decided["verdict"]) == (run, 2, "started")


def test_a_request_that_comes_twice_starts_one_run() -> None:
    story = Story()
    story.define("a", overlap="allow_all")
    story.start("a", "same")
    story.start("a", "same")
    assert len(story.plan().decisions) == 1


def test_every_past_plan_gives_its_hash_again_from_the_ledger_alone() -> None:
    story = Story()
    story.define("a", EVERY_MINUTE, leases=["k"])
    story.define("b", {"after": ["a"]}, leases=["k"])
    for turn in range(20):
        story.pass_ms(30_000)
        story.plan({"b": "not today"} if turn % 3 else {})
        for name in list(story.graph.active):
            if turn % 2 and story.run(name).state == "granted":
                story.end(name)
    again = list(verify_decisions(read(story.disk)))
    assert len(again) > 10
    assert all(verdict.agrees for verdict in again)


def busy_question() -> Question:
    story = Story()
    story.define("a", EVERY_MINUTE, leases=["k"], needs={"cpu": 1})
    story.define("b", EVERY_MINUTE)
    story.define("c", {"after": ["a"]})
    story.define("agent", kind="agent", steps=steps())
    story.start("agent", "r1")
    story.plan()
    story.pass_ms(60_000)
    story.start("b", "r2")
    story.plan()
    story.pass_ms(60_000)
    story.start("a", "r3")
    return story.ask()


def _moved(question: Question) -> Question:
    return replace(question, wall_ms=question.wall_ms + 1)


def _edited(question: Question) -> Question:
    job = question.jobs["a"]
    return replace(question, jobs={**question.jobs, "a": job._replace(digest="0" * 32)})


def _deeper(question: Question) -> Question:
    job = question.jobs["a"]
    return replace(question, jobs={**question.jobs, "a": job._replace(depth=job.depth + 1)})


CHANGES: dict[str, tuple[str, Callable[[Question], Question]]] = {
    "the instant": ("clock", _moved),
    "a job's spec": ("jobs", _edited),
    "a job's depth": ("jobs", _deeper),
    "whether a job was removed": (
        "jobs",
        lambda q: replace(q, jobs={**q.jobs, "a": q.jobs["a"]._replace(removed=True)}),
    ),
    "the policy": ("policy", lambda q: replace(q, policy=replace(q.policy, max_running=3))),
    "who holds a lease": ("leases", lambda q: replace(q, leases={**q.leases, "k": ("x", 1, True)})),
    "the latest token": ("leases", lambda q: replace(q, tokens=q.tokens + 1)),
    "how far a job is accounted for": (
        "history",
        lambda q: replace(q, jobs={**q.jobs, "a": q.jobs["a"]._replace(cursor_ms=0)}),
    ),
    "a job's runs": ("history", lambda q: replace(q, jobs={**q.jobs, "a": q.jobs["a"]._replace(active=())})),
    "a request": ("history", lambda q: replace(q, requests=())),
    "an agent's steps": ("history", lambda q: replace(q, agents=())),
    "the processors": ("resources", lambda q: replace(q, capacity=q.capacity._replace(cpus=64))),
    "what runs": ("resources", lambda q: replace(q, running=())),
    "what preflight said": ("resources", lambda q: replace(q, preflight={"a": "gone"})),
    "the zone database": ("tzdb", lambda q: replace(q, tzdb="2099z")),
    "the code": ("code", lambda q: replace(q, code="other")),
}


@pytest.mark.parametrize("what", CHANGES)
def test_changing_what_may_matter_changes_its_group_and_no_other(what: str) -> None:
    group, change = CHANGES[what]
    before, after = busy_question(), change(busy_question())
    differing = {g for g in GROUPS if digest(before.groups()[g]) != digest(after.groups()[g])}
    assert differing == {group}
    assert decide(before).decision_hash != decide(after).decision_hash


def test_every_group_has_a_change_that_shows_it() -> None:
    assert {group for group, _ in CHANGES.values()} == set(GROUPS)


@given(st.dictionaries(st.sampled_from(sorted(VOLATILE)), st.integers() | st.text(), min_size=1))
def test_volatile_fields_change_nothing_wherever_they_stand(noise: dict[str, object]) -> None:
    value = {"jobs": [{"name": "a", "deep": {"x": 1}}]}
    noisy = {"jobs": [{"name": "a", "deep": {"x": 1, **noise}, **noise}], **noise}
    assert canonical(value) == canonical(noisy)


@settings(max_examples=25, deadline=None)
@given(st.permutations(["a", "b", "c", "d"]), st.randoms(use_true_random=False))
def test_the_order_in_which_jobs_were_written_down_changes_nothing(names: list[str], chance: object) -> None:
    def told(order: list[str]) -> tuple[str, object]:
        story = Story(max_running=2)
        story.jobs = {}
        for name in order:
            story.define(name, EVERY_MINUTE, leases=["k"] if name in "ab" else [])
        story.pass_ms(60_000)
        question = story.ask()
        shuffled = replace(question, jobs={n: question.jobs[n] for n in order})
        plan = decide(shuffled)
        return plan.decision_hash, plan.decisions

    assert told(names) == told(sorted(names))


def test_the_hash_is_the_same_under_another_hash_seed() -> None:
    program = "import test_policies_decision as t; from policies.decision import decide; p = decide(t.busy_question());"
    program += "print(p.decision_hash, len(p.decisions))"
    here = Path(__file__).resolve().parent
    said = set()
    for seed in ("0", "1", "4711"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=True)
        said.add(done.stdout)
    assert len(said) == 1
    assert not next(iter(said)).endswith(" 0\n")


def test_a_decision_is_json_that_a_ledger_can_hold() -> None:
    plan = decide(busy_question())
    assert json.loads(json.dumps(plan.decisions)) == list(plan.decisions)
