"""A lease that another took while no daemon ran: who waits for it again, who is stopped, and who is left alone."""

from __future__ import annotations

from typing import Any

import pytest
from story import Story

from daemon.ports import LeasesBusy
from policies import foreign
from policies.outcome import judge
from simulations.disk import PowerCut
from simulations.transcript import Stage
from state.graph import Run

STEPS = [{"name": name, "kind": "command", "argv": [name]} for name in ("read", "write")]
TAKEN = {"repo:core": "an editor"}


def agent(story: Story) -> tuple[str, list[str]]:
    """It has begun: its steps are granted."""
    story.define("agent", kind="agent", leases=["gpu", "repo:core"], steps=STEPS)
    run = story.start("agent")
    story.plan()
    story.plan()
    return run, list(story.run(run).children)


def stops(story: Story) -> dict[str, Any]:
    return {stop.data["run"]: stop.data for stop in foreign.deprived(story.graph, TAKEN)}


def test_an_agent_that_has_begun_is_stopped_with_what_it_was_about_to_begin_and_fails_by_name_of_the_key() -> None:
    story = Story()
    run, (read, write) = agent(story)
    story.begin(read)
    orders = foreign.deprived(story.graph, TAKEN)
    assert {order.data["run"]: order.data["why"] for order in orders} == {run: "lease", write: "parent"}
    assert (orders[0].data["key"], orders[0].data["holder"]) == ("repo:core", "an editor")
    assert not foreign.refused(story.graph, TAKEN)

    story.record(*orders)

    assert not stops(story), "once is enough"
    assert {event.data["run"]: event.data["why"] for event in story.react()} == {read: "parent"}
    verdict = judge(story.run(write), 0, code=None, signal_number=15)
    assert (verdict.outcome, verdict.reason) == ("cancelled", "was stopped: its agent's run was stopped")
    for step in (read, write):
        story.end(step, "cancelled", code=None)
    story.react()
    ended = story.run(run)
    assert (ended.state, story.graph.leases) == ("failed", {})
    assert ended.reason == (
        f"was stopped: lease repo:core was taken by an editor while no daemon ran; "
        f"`hermesd retry {run}` runs it again, once the lease is free"
    )


def test_an_agent_that_plans_nothing_yet_waits_for_its_lease_and_is_not_stopped() -> None:
    story = Story()
    story.define("agent", kind="agent", leases=["repo:core"], steps=STEPS)
    run = story.start("agent")
    assert foreign.may_be_refused(story.graph, story.plan().decisions)
    assert foreign.refused(story.graph, TAKEN) == {run: "repo:core"}
    assert not stops(story)


def test_a_run_with_a_process_of_its_own_waits_if_it_had_not_begun_and_else_goes_on() -> None:
    story = Story()
    story.define("a", leases=["repo:core"])
    run = story.start("a")
    story.plan()
    assert foreign.refused(story.graph, TAKEN) == {run: "repo:core"}
    story.begin(run)
    assert not foreign.refused(story.graph, TAKEN)
    assert not stops(story)


def test_who_is_being_stopped_already_keeps_the_reason_it_has() -> None:
    story = Story()
    run, _ = agent(story)
    story.cancel(run)
    assert not stops(story)
    assert story.run(run).stopping_why == "cancel"


def test_others_leases_stop_nobody() -> None:
    story = Story()
    agent(story)
    assert not foreign.deprived(story.graph, {"repo:other": "an editor"})


# The loop that ships, on a make-believe machine.


def stage_with_an_agent() -> Stage:
    stage = Stage()
    steps = "[{name: read, kind: command, argv: [a]}, {name: write, kind: command, argv: [b], after: [read]}]"
    for line in (f"define agent {{kind: agent, leases: [repo:core], steps: {steps}}}", "takes agent 5m", "begin"):
        stage.tell(line)
    stage.tell("start agent")
    return stage


def die_in(stage: Stage, act: str) -> None:
    """The first step is over; the daemon dies in the middle of what it does then."""
    stage.clock.advance_ns(300_000_000_000)
    stage.host.pass_time()
    stage.host.deadly_at = (act, 1)
    assert stage.loop is not None
    with pytest.raises(PowerCut):
        stage.loop.tick()


def states(stage: Stage) -> dict[str, str]:
    assert stage.loop is not None
    runs = (node for node in stage.loop.graph.nodes.values() if isinstance(node, Run))
    return {run.step or run.job: run.state for run in runs}


@pytest.mark.parametrize(("act", "begun"), [("start ", 1), ("started ", 2)])
def test_a_step_granted_as_the_power_went_does_not_begin_whether_or_not_it_had(act: str, begun: int) -> None:
    stage = stage_with_an_agent()
    die_in(stage, act)
    for line in ("power", "hold repo:core 10m", "begin"):
        stage.tell(line)
    assert states(stage) == {"agent": "failed", "read": "succeeded", "write": "cancelled"}
    assert (len(stage.host.begun), stage.host.alive()) == (begun, [])


@pytest.mark.parametrize("noted", [True, False])
def test_a_step_that_lives_is_ended_before_its_agent_is(noted: bool) -> None:
    """With the machine up, only a person's `lease release --force` lets others have the key."""
    stage = stage_with_an_agent()
    if noted:
        stage.tell("pass 1m")
    else:
        die_in(stage, "started ")
    stage.tell("kill")
    (living,) = stage.host.alive()
    stage.host.lease_files.clear()
    for line in ("hold repo:core 10m", "begin"):
        stage.tell(line)
    stage.rouse(frozenset({"timer"}))  # Upon its end.
    assert living.ended is not None
    assert living.ended.signal == 15
    assert states(stage) == {
        "agent": "failed",
        **({} if noted else {"read": "succeeded"}),
        living.key[0].split(".")[-1]: "cancelled",
    }
    assert not stage.host.alive()


def test_a_step_granted_before_a_plain_power_cut_goes_on_under_its_lease() -> None:
    stage = stage_with_an_agent()
    die_in(stage, "start ")
    for line in ("power", "begin"):
        stage.tell(line)
    assert states(stage) == {"agent": "running", "read": "succeeded", "write": "running"}
    assert "repo:core" in stage.host.lease_files


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), LeasesBusy("the guard is locked")])
def test_a_lease_file_that_cannot_be_written_fails_its_run_and_one_that_cannot_be_removed_is_asked_for_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage()
    for line in ("define job {leases: [gpu]}", "takes job 5m", "begin"):
        stage.tell(line)
    loop = stage.loop
    assert loop is not None

    def broken(*_: object) -> None:
        raise error

    with monkeypatch.context() as bad:
        bad.setattr(type(loop.doors.leases), "publish", broken)
        stage.tell("start job")
        stage.tell("pass 1m")
    assert states(stage) == {"job": "failed"}
    assert "its lease gpu could not be written" in stage.tell("why job")
    stage.tell("start job")
    assert list(stage.host.lease_files) == ["gpu"]
    with monkeypatch.context() as bad:
        bad.setattr(type(loop.doors.leases), "withdraw", broken)
        stage.tell("pass 10m")
        assert list(stage.host.lease_files) == ["gpu"]
        assert "lease gpu is free" in loop.problems["leases"]
    stage.tell("start job")
    stage.tell("pass 10m")
    assert not stage.host.lease_files
    assert "leases" not in loop.problems
