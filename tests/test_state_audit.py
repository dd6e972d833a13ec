"""The auditor: whatever is derived and not what follows from the ledger is found, and named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from story import Story

from ledger.chain import Head
from policies.request import Declined
from state import snapshot, views
from state.audit import Audited, audit
from state.events import draft

CODE = "c0de"


def settled() -> Story:
    """A home at rest: a past, its views, and a snapshot below and at the head."""
    story = Story()
    started = {
        "version": "1", "code": CODE, "python": "3", "host": "h", "boot_id": "b", "pid": 1, "process_started": 1,
        "zone": "UTC", "tzdb": "x",
    }  # fmt: skip
    story.record(draft("daemon.started", "daemon", started))
    story.define("a", leases=["k"])
    snapshot.write(story.disk, story.graph, story.ledger.head, CODE)
    story.start("a")
    story.plan()
    snapshot.write(story.disk, story.graph, story.ledger.head, CODE)
    views.publish(story.disk, story.graph, story.ledger.head)
    return story


def places(found: Audited) -> list[str]:
    return [finding.where for finding in found.findings]


def test_a_home_at_rest_agrees_with_its_ledger() -> None:
    story = settled()
    found = audit(story.disk, CODE)
    assert (found.ok, found.head) == (True, story.ledger.head)
    assert found.compared == {"views": len(views.VIEWS), "snapshots": 2}
    assert found.records == story.ledger.head.seq


def test_views_that_are_behind_are_compared_with_the_ledger_of_their_own_record() -> None:
    story = settled()
    story.pass_ms(1000)
    story.record(draft("note.added", "notes", {"request": "n", "text": "later", "actor": "me"}))
    story.disk.corrupt("state/runs.json", views.render(story.graph, story.ledger.head)["runs.json"])
    found = audit(story.disk, CODE)
    assert (found.ok, found.compared["views"]) == (True, len(views.VIEWS))


@pytest.mark.parametrize("name", views.VIEWS)
def test_an_edited_view_is_named(name: str) -> None:
    story = settled()
    path = f"state/{name}.json"
    story.disk.corrupt(path, story.disk.read(path).replace(b'"view"', b'"View"'))
    assert places(audit(story.disk, CODE)) == [path]


def _write(story: Story, path: str, change: Callable[[bytes], bytes]) -> str:
    story.disk.corrupt(path, change(story.disk.read(path)))
    return path


def _other_record(story: Story) -> str:
    wrong = ("0" * 32).encode()
    return _write(story, "state/jobs.json", lambda data: data.replace(story.ledger.head.hash.encode(), wrong))


def _no_head(story: Story) -> str:
    return _write(story, "state/jobs.json", lambda data: b"[]")


def _view_ahead(story: Story) -> str:
    data = views.render(story.graph, Head(99_999, "0" * 32))["jobs.json"]
    return _write(story, "state/jobs.json", lambda _: data)


def _rotten_snapshot(story: Story) -> str:
    return _write(story, snapshot.stored_in(story.disk)[0].path, lambda data: data[:-1] + b" ")


def _snapshot_of_another_state(story: Story) -> str:
    graph = Story().graph
    return snapshot.write(story.disk, graph, story.ledger.head, CODE).path


def _snapshot_of_another_record(story: Story) -> str:
    return snapshot.write(story.disk, story.graph, Head(story.ledger.head.seq, "0" * 32), CODE).path


def _snapshot_ahead(story: Story) -> str:
    return snapshot.write(story.disk, story.graph, Head(99_999, "0" * 32), CODE).path


def _damaged_record(story: Story) -> str:
    name = next(name for name in story.disk.list("ledger") if name.endswith(".jsonl"))
    return _write(story, f"ledger/{name}", lambda data: data.replace(b'"true"', b'"True"', 1))


@pytest.mark.parametrize(
    "spoil",
    [_other_record, _no_head, _view_ahead, _rotten_snapshot, _snapshot_of_another_state, _snapshot_of_another_record,
     _snapshot_ahead, _damaged_record],
)  # fmt: skip
def test_what_does_not_agree_is_named_and_nothing_else(spoil: Callable[[Story], str]) -> None:
    story = settled()
    path = spoil(story)
    before = story.disk.files()
    found = audit(story.disk, CODE)
    assert path in places(found)
    assert not found.ok
    assert set(places(found)) <= {path, "ledger/HEAD", "ledger/EPOCH"}
    assert story.disk.files() == before  # It only looks.


def test_what_other_code_made_is_not_held_against_this_one() -> None:
    story = settled()
    story.disk.corrupt("state/jobs.json", story.disk.read("state/jobs.json").replace(b'"jobs"', b'"Jobs"'))
    found = audit(story.disk, "newer code")
    assert (found.ok, found.compared) == (True, {"views": 0, "snapshots": 0})


def test_an_event_that_cannot_be_folded_is_a_finding() -> None:
    story = settled()
    run = "nobody"
    story.ledger.append([draft("run.started", f"run/{run}", {"run": run, "attempt": 1, "token": 1, "pid": 1,
                                                            "process_started": 1})], story.now)  # fmt: skip
    found = audit(story.disk, CODE)
    assert places(found) == [f"record {story.ledger.head.seq}"]


def test_the_verdict_is_recorded_and_shown() -> None:
    story = settled()
    assert views.runtime_consensus_state(story.graph) == {"verdict": "never audited"}
    _rotten_snapshot(story)
    found = audit(story.disk, CODE)
    story.request("audit", "a1", **found.told())
    shown = views.runtime_consensus_state(story.graph)
    assert (shown["verdict"], shown["audited_seq"], shown["findings_in_all"]) == ("differs", found.head.seq, 1)
    assert shown["findings"] == [found.findings[0]._asdict()]
    story.request("audit", "a1", **found.told())  # the same one again
    assert len([r for r in story.graph.seen.requests if r == "a1"]) == 1
    with pytest.raises(Declined, match="audit.finished"):
        story.request("audit", "a2", ok=True)
