"""The projector: every event has its effect, an impossible one is named, and the views follow from the ledger alone."""

from __future__ import annotations

import json

import pytest
from story import Story

from ledger.chain import Head
from ledger.reader import read
from ledger.record import Draft
from policies.agenda import Agenda
from policies.replay import Past
from state import projector
from state.events import VOCABULARY, IllegalEvent, draft
from state.graph import Edge, Graph, Run, snapshot
from state.projector import Impossible, Unknown, apply, fold
from state.snapshot import encode
from state.views import VIEWS, publish, render


def lively() -> Story:
    story = Story()
    story.define("a", {"every": "1m"}, leases=["k"], keep={"runs": 3})
    story.define("b", {"after": ["a"]})
    story.define("agent", kind="agent", steps=[{"name": "s", "kind": "command", "argv": ["true"]}])
    story.start("agent")
    for turn in range(8):
        story.pass_ms(60_000)
        story.plan()
        for name in sorted(story.graph.active):
            if story.run(name).state == "granted":
                story.begin(name)
                story.end(name, "failed" if turn == 4 else "succeeded", code=int(turn == 4))
        story.react()
    return story


def test_folding_the_ledger_again_gives_the_same_graph_indexes_and_views() -> None:
    story = lively()
    again = Past()
    for record in read(story.disk):
        again.fold(record)
    head = story.ledger.head
    assert snapshot(again.graph, head) == snapshot(story.graph, head)
    assert (again.graph.active, again.graph.leases, again.graph.jobs) == (
        story.graph.active, story.graph.leases, story.graph.jobs,
    )  # fmt: skip
    assert render(again.graph, head) == render(story.graph, head)


def test_folding_all_at_once_gives_the_bytes_that_patch_by_patch_does() -> None:
    story = lively()
    head, records = story.ledger.head, list(read(story.disk))
    by_patches = Graph()
    for record in records:
        by_patches.merge(apply(by_patches, record), record.seq)
    at_once = fold(Graph(), records)
    assert encode(at_once, head, "") == encode(by_patches, head, "") == encode(story.graph, head, "")
    assert (at_once.active, at_once.holding, at_once.decisions) == (
        by_patches.active, by_patches.holding, by_patches.decisions,
    )  # fmt: skip
    # Runs share what is empty in them: one that changed it in place would change all.
    new = projector._NEW
    assert [new.outputs, new.artifacts, new.expected, new.notices] == [{}, {}, {}, {}]


def test_what_has_no_process_takes_no_place_in_the_view_either() -> None:
    story = Story()
    steps = [{"name": "only", "kind": "command", "argv": ["true"]}]
    story.define("agent", kind="agent", steps=steps, needs={"cpu": 2})
    key = {"key": "a", "path": "/srv/a", "remotes": {"origin": "origin"}}
    story.define("fleet", kind="upgrade", repos=[key], needs={"cpu": 2})
    story.define("plain", needs={"cpu": 1})
    for name in ("agent", "fleet", "plain"):
        story.start(name, name)
    story.plan()
    reserved = VIEWS["runtime_resource_state"](story.graph)["reserved"]
    assert (reserved["places"], reserved["cpu"], len(story.graph.holding)) == (1, 1, 3)


def test_an_agenda_built_at_once_agrees_with_one_that_followed_every_patch() -> None:
    story = lively()
    fresh, now = Agenda.of(story.graph), story.wall_ms + 3_600_000
    followed = story.past.agenda
    assert (fresh.due(now), fresh.ready(now), fresh.next_ms()) == (
        followed.due(now),
        followed.ready(now),
        followed.next_ms(),
    )


def test_a_patch_leaves_the_graph_alone_until_it_is_merged() -> None:
    story = lively()
    before = snapshot(story.graph, Head(0, ""))
    record = story.ledger.stage(draft("note.added", "notes", {"request": "n", "text": "x", "actor": "me"}), story.now)
    patch = apply(story.graph, record)
    assert snapshot(story.graph, Head(0, "")) == before
    assert patch.put


def test_a_job_keeps_so_many_ended_runs_and_the_ledger_keeps_them_all() -> None:
    story = lively()
    kept = [node for node in story.graph.nodes.values() if isinstance(node, Run) and node.job == "a"]
    assert len(kept) == 3
    decided = [d for r in read(story.disk) if r.type == "plan.decided" for d in r.data["decisions"] if d["job"] == "a"]
    assert len(decided) == 8


def test_counts_failures_and_successes_follow_the_outcomes() -> None:
    story = lively()
    job = story.graph.jobs["a"]
    assert (job.last_outcome, job.failures_in_row) == ("succeeded", 0)
    assert story.graph.here.counts["failed"] >= 1


def test_edges_say_who_holds_what_and_what_waits_for_what() -> None:
    story = Story()
    story.define("a", leases=["k"])
    story.define("b", {"after": ["a"]})
    run = story.start("a")
    story.plan()
    edges = snapshot(story.graph, Head(0, "")).edges
    assert Edge(f"run/{run}", "holds", "lease/k") in edges
    assert Edge("job/b", "depends-on", "job/a") in edges
    assert Edge(f"run/{run}", "of", "job/a") in edges


@pytest.mark.parametrize(
    "data",
    [
        {"run": "nobody", "attempt": 1, "token": 1, "pid": 1, "process_started": 1},
        {"run": "RUN", "attempt": 1, "token": 999, "pid": 1, "process_started": 1},
    ],
)
def test_an_event_that_cannot_happen_is_named(data: dict[str, object]) -> None:
    story = Story()
    story.define("a")
    run = story.start("a")
    story.plan()
    data = {**data, "run": run if data["run"] == "RUN" else data["run"]}
    record = story.ledger.stage(draft("run.started", f"run/{data['run']}", data), story.now)
    with pytest.raises(Impossible, match=rf"event {record.seq} \(run.started\) cannot happen here"):
        apply(story.graph, record)


def test_an_end_after_the_end_is_impossible() -> None:
    story = Story()
    story.define("a")
    run = story.start("a")
    story.plan()
    event = story.run(run)
    story.end(run)
    with pytest.raises(Impossible, match="is over"):
        story.record(
            draft(
                "run.finished", event.id,
                {"run": run, "attempt": 1, "token": event.token, "outcome": "failed", "code": 1, "signal": None,
                 "reason": "", "retry_at": None, "cpu_ms": None, "rss_kib": None, "outputs": {}},
            )
        )  # fmt: skip


def test_a_type_of_others_is_kept_and_changes_nothing_but_an_unknown_core_type_is_an_error() -> None:
    story = Story()
    foreign = story.ledger.stage(Draft("x-mine.thing", "thing", {"a": 1}), story.now)
    assert apply(story.graph, foreign) == ((), ())
    newer = story.ledger.stage(Draft("run.teleported", "run/a", {}), story.now)
    with pytest.raises(Unknown, match="run.teleported"):
        apply(story.graph, newer)
    future = story.ledger.stage(Draft("note.added", "notes", {}, tv=2), story.now)
    with pytest.raises(Unknown, match="version 2"):
        apply(story.graph, future)


def test_an_event_outside_the_vocabulary_or_with_a_wrong_field_is_never_drafted() -> None:
    with pytest.raises(IllegalEvent, match="no event type"):
        draft("run.exploded", "run/a", {})
    with pytest.raises(IllegalEvent, match="segment.open"):
        draft("segment.open", "segment/1", {})
    with pytest.raises(IllegalEvent, match="note.added: actor"):
        draft("note.added", "notes", {"request": "n", "text": "x"})
    with pytest.raises(IllegalEvent, match="note.added: more"):
        draft("note.added", "notes", {"request": "n", "text": "x", "actor": "me", "more": 1})


def test_every_type_is_documented() -> None:
    assert all(name == name.lower() and "." in name for name in VOCABULARY)


def test_views_are_written_whole_stamped_and_the_same_each_time() -> None:
    story = lively()
    publish(story.disk, story.graph, story.ledger.head)
    first = {name: story.disk.read(f"state/{name}.json") for name in VIEWS}
    for name, data in first.items():
        told = json.loads(data)
        assert told["view"] == name
        assert told["head"] == {"seq": story.ledger.head.seq, "hash": story.ledger.head.hash}
    for name in VIEWS:
        story.disk.remove(f"state/{name}.json")
    again = Past()
    fold(again.graph, read(story.disk))
    publish(story.disk, again.graph, story.ledger.head)
    assert {name: story.disk.read(f"state/{name}.json") for name in VIEWS} == first
    assert not [name for name in story.disk.list("state") if name.endswith(".new")]


def test_the_integrity_view_holds_and_names_what_does_not() -> None:
    story = Story()
    story.define("a", leases=["k"])
    story.start("a")
    story.plan()
    assert VIEWS["control_plane_integrity"](story.graph)["holds"]
    del story.graph.leases["k"]
    broken = VIEWS["control_plane_integrity"](story.graph)
    assert not broken["holds"]
    assert next(row["evidence"] for row in broken["invariants"] if not row["holds"])[0].endswith(": k")
