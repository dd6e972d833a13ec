"""The indexes of the graph: whatever has happened, they say what the nodes say."""

from __future__ import annotations

from story import Story

from state.graph import Graph
from state.projector import REQUESTS_REMEMBERED


def indexes(graph: Graph) -> list[object]:
    tripped, contested, taken = graph.tripped, graph.contested, graph.taken
    return [graph.active, graph.holding, graph.jobs, graph.leases, graph.requests, tripped, contested, taken]


def made_anew(graph: Graph) -> Graph:
    anew = Graph()
    anew.take(graph.nodes.values(), (), graph.seq)
    return anew


def test_only_so_many_requests_are_remembered_and_each_of_them_is_taken_once() -> None:
    story = Story()
    for number in range(REQUESTS_REMEMBERED + 5):
        story.request("note", f"n{number}", text="something")
    assert story.graph.taken == set(story.graph.seen.requests)
    assert len(story.graph.taken) == REQUESTS_REMEMBERED
    assert story.request("note", f"n{REQUESTS_REMEMBERED}", text="again") == {
        "request": f"n{REQUESTS_REMEMBERED}", "already": True,
    }  # fmt: skip


def test_a_grant_is_held_from_the_plan_to_the_end_and_not_while_the_next_attempt_waits() -> None:
    story = Story()
    story.define("a", retry={"attempts": 2})
    run = story.start("a")
    story.plan()
    assert list(story.graph.holding) == [run]
    story.begin(run)
    assert story.graph.holding[run].state == "running"
    story.end(run, "failed", code=1, retry_in_ms=10_000)
    assert story.graph.holding == {}
    assert indexes(made_anew(story.graph)) == indexes(story.graph)


def test_a_job_is_contested_while_a_later_run_waits_for_the_one_it_replaces() -> None:
    story = Story()
    story.define("a", overlap="cancel_other")
    first = story.start("a", "r1")
    story.plan()
    assert story.graph.contested == set()
    story.start("a", "r2")
    story.plan()
    assert story.graph.contested == {"a"}
    assert indexes(made_anew(story.graph)) == indexes(story.graph)
    story.end(first, "cancelled", code=None)
    assert story.graph.contested == set()
