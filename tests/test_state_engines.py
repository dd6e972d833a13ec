"""What gateways tell of their engines: taken once, in order, whatever comes twice, late or broken."""

from __future__ import annotations

from typing import Any

import pytest
from story import Story

from policies import told
from state.views import render


def event(type_: str, number: int, by: str = "gw-1", **data: Any) -> dict[str, Any]:
    return {"type": type_, "data": {"by": by, "number": number, "at": "2026-03-02T12:00:00Z", **data}}


def begun(number: int = 1, by: str = "gw-1") -> dict[str, Any]:
    return event("gateway.started", number, by, version="0.1.0", pid=7, process_started=9)


def spawned(number: int, engine: str, by: str = "gw-1", model: str = "tiny") -> dict[str, Any]:
    return event(
        "engine.spawned", number, by, engine=engine, model=model, device="cpu", runtime="exact", rung="as asked",
        rows=4, needed_bytes=1, free_bytes=2,
    )  # fmt: skip


def tell(story: Story, *events: Any) -> Any:
    drafts, answer = told.events(story.graph, {"events": list(events)})
    for draft in drafts:
        story.record(draft)
    return answer


@pytest.fixture
def story() -> Story:
    return Story()


def test_what_comes_twice_counts_once_also_within_a_batch(story: Story) -> None:
    assert tell(story, begun(), spawned(2, "e1"), spawned(2, "e1")) == {"recorded": 2, "already": 1, "refused": []}
    assert tell(story, begun(), spawned(2, "e1"), spawned(3, "e2"))["recorded"] == 1
    assert story.graph.models["tiny"].loads == 2
    assert sorted(story.graph.engines) == ["e1", "e2"]


def test_engines_of_a_gateway_that_was_killed_are_gone_when_the_next_one_begins(story: Story) -> None:
    tell(story, begun(), spawned(2, "e1"))
    tell(story, begun(by="gw-2"), spawned(2, "e2", "gw-2"))
    assert sorted(story.graph.engines) == ["e2"]
    late = event("engine.warmed", 3, engine="e1", model="tiny", took_ms=5)
    assert tell(story, late)["recorded"] == 1, "what waited in a spool is kept, and wakes no dead engine"
    assert sorted(story.graph.engines) == ["e2"]
    assert [gateway.state for gateway in story.graph.gateways.values()] == ["stopped", "running"]
    for number in range(3, 20):
        tell(story, begun(by=f"gw-{number}"))
    assert len(story.graph.gateways) == 8


@pytest.mark.parametrize(
    "broken",
    [
        "text",
        {"type": "run.started", "data": {}},
        {"type": "engine.warmed", "data": {"by": "gw-1", "number": 5, "at": "yesterday"}},
        event("engine.warmed", 0, engine="e1", model="m", took_ms=5),
        event("engine.warmed", 5, engine="e1", model="m", took_ms="soon"),
        event("engine.warmed", 5, engine="e1", model="m", took_ms=5, more=1),
        event("engine.warmed", 5, "g" * 65, engine="e1", model="m", took_ms=5),
        event("engine.loaded", 5, engine="e1", model="m", pid=1, took_ms=5, facts={"a": "x" * 5000}),
        event("engine.loaded", 5, engine="e1", model="m", pid=1, took_ms=5, facts={"a": [[[[[[[[[[1]]]]]]]]]]}),
    ],
)
def test_one_that_is_broken_is_refused_and_holds_up_none_behind_it(story: Story, broken: Any) -> None:
    answer = tell(story, begun(), broken, spawned(6, "e1"))
    assert (answer["recorded"], len(answer["refused"])) == (2, 1)
    assert answer["refused"][0]["why"]


def test_a_batch_that_is_none_is_refused(story: Story) -> None:
    batches: list[dict[str, Any]] = [{}, {"events": {}}, {"events": [begun()] * (told.EVENTS_MAX + 1)}]
    for args in batches:
        drafts, answer = told.events(story.graph, args)
        assert drafts == []
        assert answer["refused"]


def test_the_view_is_there_once_there_was_a_gateway_and_tells_what_serving_was_like(story: Story) -> None:
    assert "engines.json" not in render(story.graph, story.ledger.head)
    generation = event(
        "generation.finished", 3, request="r", model="tiny", engine="e1", outcome="answered", digest="d", runtime="e",
        versions={}, device="cpu", dtype="w8a16", quantization="none", determinism="exact", parameters={}, seed=0,
        prompt_sha256="a", request_sha256="b", output_sha256="c", finish=["stop"], prompt_tokens=3, cached_tokens=0,
        generated_tokens=5, queued_ms=0, first_token_ms=1, took_ms=2, tokens_per_second=2.5,
    )  # fmt: skip
    fell = event(
        "engine.fell", 4, engine="e1", model="tiny", rung="smaller batch", rows=1, quantization="none", device="cpu",
        instead="", words="out of memory",
    )  # fmt: skip
    opened = event("breaker.opened", 5, model="tiny", failures=3, open_ms=1000, words="signal 11")
    tell(story, begun(), spawned(2, "e1"), generation, fell, opened)
    assert b'"answered": 1' in render(story.graph, story.ledger.head)["engines.json"]
    model = story.graph.models["tiny"]
    assert (model.tokens, model.rung["rung"], model.breaker["failures"]) == (5, "smaller batch", 3)
    tell(story, event("breaker.closed", 6, model="tiny"), event("model.forgotten", 7, model="tiny"))
    assert story.graph.models == {}
    tell(story, event("gateway.stopped", 8, why="asked to"))
    assert story.graph.engines == {}
