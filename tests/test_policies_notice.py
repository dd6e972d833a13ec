"""Whom to tell of what: which notices follow from what happened, when they are tried again, and when given up."""

from __future__ import annotations

from typing import Any

import pytest
from story import Story

from ledger.instant import ms_of, text_of
from ledger.record import Draft, Record
from policies.notice import due, failed, retry_at_ms
from policies.request import Declined
from state.events import draft
from state.graph import Notice
from state.projector import GIVEN_UP_KEPT
from state.views import notices

ALL = ["failed", "succeeded", "recovered", "missed", "skipped", "cancelled", "paused"]
HOOK = "https://example.org/hook"


class Told(Story):
    """What is to be told is recorded with what it tells, as the loop does it."""

    def record(self, *drafts: Draft) -> list[Record]:
        records = []
        for one in drafts:
            [record] = self.ledger.append([one], self.now)
            follows = due(self.graph, record, self.policy)
            self.past.fold(record)
            records += [record, *(self.record(*follows) if follows else ())]
        return records

    def run_once(self, job: str, outcome: str, request: str, **more: Any) -> str:
        name = self.start(job, request)
        self.plan()
        self.begin(name)
        self.end(name, outcome, code=int(outcome != "succeeded"), **more)
        return name

    def queued(self) -> list[tuple[str, str]]:
        return [(notice.job, notice.on) for notice in self.graph.notices.values() if notice.state == "queued"]

    def only(self) -> Notice:
        [notice] = self.graph.notices.values()
        return notice


def test_a_failure_is_told_to_each_who_asked_and_its_end_goes_on_the_run() -> None:
    story = Told()
    story.define("a", notify=[{"on": ["failed", "missed"], "webhook": HOOK}, {"on": "recovered", "command": ["say"]},
                              {"command": ["page", "{{ secret.me }}"]}])  # fmt: skip
    name = story.run_once("a", "failed", "r1")
    first, second = story.graph.notices.values()
    assert [first.to, second.to] == [{"webhook": HOOK}, {"command": ["page", "{{ secret.me }}"]}]
    assert (first.run, first.on, first.outcome, first.state) == (name, "failed", "failed", "queued")
    assert first.notice != second.notice

    story.record(draft("notice.delivered", first.id, {"notice": first.notice, "attempt": 1}))
    story.record(failed(second.notice, 1, "no such host", None))

    assert story.run(name).notices == {first.notice: "delivered", second.notice: "given_up"}
    assert story.run(name).state == "failed"
    assert [row["error"] for row in notices(story.graph)["given_up"]] == ["no such host"]


def test_an_attempt_that_is_made_again_is_no_failure_yet() -> None:
    story = Told()
    story.define("a", notify={"webhook": HOOK}, retry={"attempts": 2})
    story.run_once("a", "failed", "r1", retry_in_ms=1000)
    assert story.queued() == []


def test_the_first_success_after_a_failure_is_told_as_a_recovery_and_no_other() -> None:
    story = Told()
    story.define("a", notify={"on": "recovered", "webhook": HOOK})
    story.run_once("a", "succeeded", "r1")
    assert story.queued() == []
    for number, outcome in enumerate(("timed_out", "cancelled", "succeeded", "succeeded")):
        story.run_once("a", outcome, f"s{number}")
    assert story.queued() == [("a", "recovered")]
    assert "it had failed since 2026-03-02T12:00:00" in story.only().reason


def test_who_asks_for_success_and_recovery_is_told_once() -> None:
    story = Told()
    story.define("a", notify={"on": ["succeeded", "recovered"], "webhook": HOOK})
    story.run_once("a", "failed", "r1")
    story.run_once("a", "succeeded", "r2")
    story.run_once("a", "succeeded", "r3")
    assert story.queued() == [("a", "recovered"), ("a", "succeeded")]


def test_a_run_that_cannot_start_is_told_as_a_failure_and_the_next_success_as_a_recovery() -> None:
    story = Told()
    story.define("a", notify={"on": ["failed", "recovered"], "webhook": HOOK})
    story.start("a", "r1")
    story.plan({"a": "there is no secret slack"})
    assert story.queued() == [("a", "failed")]
    assert (story.only().outcome, story.only().reason) == ("blocked", "there is no secret slack")
    story.run_once("a", "succeeded", "r2")
    assert story.queued() == [("a", "failed"), ("a", "recovered")]


def test_many_missed_slots_are_one_notice() -> None:
    story = Told()
    story.define("a", {"every": "1m"}, missed={"policy": "skip"}, notify={"on": "missed", "webhook": HOOK})
    story.pass_ms(3_600_000 - 15_000)
    story.plan()
    assert story.queued() == [("a", "missed")]
    assert story.only().slots == 59


def test_a_steps_failure_is_told_with_its_agent_and_a_pause_only_where_hermes_made_it() -> None:
    story = Told()
    story.define("b", kind="agent", steps=[{"name": "s", "kind": "command", "argv": ["x"]}],
                 notify={"on": ALL, "webhook": HOOK}, stop_after_failures=1)  # fmt: skip
    story.request("pause", "p1", job="b")
    story.request("resume", "p2", job="b")
    name = story.start("b")
    story.plan()
    story.plan()
    story.begin(f"{name}.s")
    story.end(f"{name}.s", "failed", code=1)
    story.react()
    assert story.queued() == [("b", "failed"), ("b", "paused")]


def test_each_wait_is_longer_than_the_one_before_and_the_last_attempt_comes_after_about_a_day() -> None:
    story = Told()
    story.define("a", notify={"webhook": HOOK})
    story.run_once("a", "failed", "r1")
    begun_ms, waits = story.wall_ms, []
    for attempt in range(1, 100):
        at_ms = retry_at_ms(story.only(), attempt, story.policy, story.wall_ms)
        assert at_ms == retry_at_ms(story.only(), attempt, story.policy, story.wall_ms)
        story.record(failed(story.only().notice, attempt, "no", at_ms))
        if at_ms is None:
            break
        waits.append(at_ms - story.wall_ms)
        story.pass_ms(at_ms - story.wall_ms)
    assert attempt == story.policy.notice_attempts
    assert waits == sorted(waits)
    assert 20 <= (story.wall_ms - begun_ms) / 3_600_000 <= 30
    assert story.only().state == "given_up"


def test_the_next_attempt_to_tell_comes_no_later_because_the_clock_was_set_back() -> None:
    story = Told()
    story.define("a", notify={"webhook": HOOK})
    story.run_once("a", "failed", "r1")
    story.record(failed(story.only().notice, 1, "no", story.wall_ms + 30_000))
    story.wall_ms -= 86_400_000
    story.record(draft("clock.jumped", "node/here", {"jump_ms": -86_400_000, "wall": text_of(story.wall_ms)}))
    assert story.only().not_before_ms == story.wall_ms + 30_000


def test_when_too_many_wait_a_new_one_is_given_up_at_once_and_only_the_last_are_remembered() -> None:
    story = Told(notices_waiting_max=2)
    story.define("a", notify={"webhook": HOOK})
    for number in range(GIVEN_UP_KEPT + 5):
        story.pass_ms(1000)
        story.run_once("a", "failed", f"r{number}")
    given_up = [notice for notice in story.graph.notices.values() if notice.state == "given_up"]
    assert len(story.queued()) == 2
    assert len(given_up) == GIVEN_UP_KEPT
    assert "2 others wait" in given_up[0].error
    assert min(ms_of(notice.at) for notice in given_up) == story.wall_ms - 1000 * (GIVEN_UP_KEPT - 1)


def test_one_that_was_given_up_is_tried_again_when_a_person_asks_under_its_old_name() -> None:
    story = Told()
    story.define("a", notify={"webhook": HOOK})
    story.run_once("a", "failed", "r1")
    name = story.only().notice
    story.record(failed(name, 1, "no", None))
    assert story.request("renotify", "n1", notice=name) == {"request": "n1", "notice": name}
    assert (story.only().state, story.only().attempts, story.only().last_attempt) == ("queued", 0, 1)
    assert story.request("renotify", "n2", notice=name)["already"]
    with pytest.raises(Declined, match="no notice 'x'"):
        story.request("renotify", "n3", notice="x")


def test_no_two_notices_of_two_machines_or_two_lives_have_one_name() -> None:
    names = set()
    for wait_ms in (0, 1):
        story = Told()
        story.pass_ms(wait_ms)
        story.define("a", notify=[{"webhook": HOOK}, {"webhook": HOOK}])
        story.run_once("a", "failed", "r1")
        names |= story.graph.notices.keys()
    assert len(names) == 4
