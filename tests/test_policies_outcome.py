"""What an attempt came to, what follows at once, and whether there is another attempt."""

from __future__ import annotations

import pytest
from story import Story

from policies.outcome import accepts, backoff_ms, judge
from state.graph import Run


def started(**fields: object) -> tuple[Story, Run]:
    story = Story()
    story.define("a", **fields)  # type: ignore[arg-type]
    name = story.start("a")
    story.plan()
    story.begin(name)
    return story, story.run(name)


@pytest.mark.parametrize(
    ("code", "signal", "outcome", "reason"),
    [
        (0, None, "succeeded", "exit status 0"),
        (3, None, "failed", "exit status 3"),
        (139, None, "failed", "SIGSEGV"),
        (None, 9, "failed", "SIGKILL"),
        (None, None, "lost", "nobody saw its end"),
    ],
)
def test_the_outcome_is_what_was_seen(code: int | None, signal: int | None, outcome: str, reason: str) -> None:
    _, run = started()
    verdict = judge(run, 0, code=code, signal_number=signal)
    assert verdict.outcome == outcome
    assert reason in verdict.reason
    assert verdict.retry_at_ms is None


def test_of_all_that_can_be_said_as_much_is_as_fits_in_a_record() -> None:
    _, run = started()
    endless = "no such file; " * 100_000
    for told in ({"note": endless, "unmet": endless}, {"note": endless, "unstarted": endless}):
        assert len(judge(run, 0, code=0, signal_number=None, **told).reason) < 10_000


def test_a_lost_attempt_is_run_again_only_if_the_job_says_it_does_no_harm() -> None:
    _, run = started(retry={"attempts": 3, "on": ["lost"], "idempotent": True, "base": "10s"})
    assert judge(run, 1000, code=None, signal_number=None).retry_at_ms == 11_000
    _, run = started(retry={"attempts": 3, "on": ["exit", "timeout"]})
    assert judge(run, 1000, code=None, signal_number=None).retry_at_ms is None


def test_a_late_report_is_not_heard() -> None:
    story, run = started(retry={"attempts": 2})
    assert accepts(run, 1)
    story.end(run.name, "failed", code=1, retry_in_ms=1_000)
    assert not accepts(story.run(run.name), 1), "the attempt is over, and the next has not begun"
    story.pass_ms(1_000)
    story.plan()
    assert not accepts(story.run(run.name), 1), "another attempt holds the grant"
    assert accepts(story.run(run.name), 2)
    story.end(run.name)
    assert not accepts(story.run(run.name), 2)


def test_the_last_attempt_is_the_last() -> None:
    _, run = started(retry={"attempts": 2})
    assert judge(run, 0, code=1, signal_number=None).retry_at_ms == 10_000
    assert judge(run._replace(attempt=2), 0, code=1, signal_number=None).retry_at_ms is None


def test_backoff_grows_up_to_its_bound() -> None:
    retry = {"backoff": "exponential", "base": 10, "max": 55}
    assert [backoff_ms(retry, attempt) for attempt in (1, 2, 3, 4, 99)] == [10, 20, 40, 55, 55]
    assert backoff_ms({**retry, "backoff": "fixed"}, 7) == 10


def test_a_run_over_its_timeout_is_asked_to_stop_and_after_the_grace_forced() -> None:
    story, run = started(timeout="1m", grace="5s")
    story.pass_ms(59_999)
    assert story.react() == []
    story.pass_ms(1)
    (stopping,) = story.react()
    assert (stopping.type, stopping.data["why"], stopping.data["force"]) == ("run.stopping", "timeout", False)
    story.pass_ms(5_000)
    (forced,) = story.react()
    assert forced.data["force"]
    assert story.react() == []
    verdict = judge(story.run(run.name), 0, code=None, signal_number=9)
    assert (verdict.outcome, "timeout of 60 s" in verdict.reason) == ("timed_out", True)


def test_a_jump_of_the_wall_clock_times_nothing_out() -> None:
    story, _ = started(timeout="1m")
    story.wall_ms += 86_400_000
    assert story.react() == []


def test_a_run_cancelled_before_it_began_ends_at_once_and_one_that_runs_is_asked_to_stop() -> None:
    story = Story(max_running=1)
    story.define("a")
    story.define("b")
    first, second = story.start("a", "r1"), story.start("b", "r2")
    story.plan()
    story.cancel(second, "c1")
    assert story.run(second).state == "cancelled"
    story.begin(first)
    story.cancel(first, "c2")
    assert story.run(first).state == "stopping"
    assert judge(story.run(first), 0, code=0, signal_number=None).outcome == "cancelled"
