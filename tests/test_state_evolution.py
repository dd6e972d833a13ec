"""Events of every version ever released stay readable: tests/data/events has one of each, with what must come before.

A fixture is never edited. A new type, or a new version of one, brings a new file: {"before": [events], "event": event},
named TYPE.vVERSION.json, and a line in DIGESTS (`sha256sum *.json > DIGESTS` in that folder).
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from story import Story

from ledger.chain import Head
from ledger.record import Draft, Record
from state import events, upcast
from state.events import BY_THE_LEDGER, VERSIONS, VOCABULARY, draft
from state.graph import Graph
from state.projector import apply, fold
from state.snapshot import encode
from state.upcast import Unknown, as_current, current

FOLDER = Path(__file__).parent / "data" / "events"
FIXTURES = sorted(path.name for path in FOLDER.glob("*.json"))


def told(seq: int, event: dict[str, Any]) -> Record:
    return Record(
        seq, 1, seq, False, event["ts"], event["mt"], event["type"], event["tv"], event["subject"], event.get("id"),
        None, None, event["data"], "",
    )  # fmt: skip


def records(fixture: str) -> list[Record]:
    """What comes before, and then the event itself."""
    told_of = json.loads((FOLDER / fixture).read_text())
    return [told(seq, event) for seq, event in enumerate([*told_of["before"], told_of["event"]], 1)]


def test_every_type_and_every_version_of_it_has_a_fixture() -> None:
    wanted = {f"{name}.v{v}.json" for name in VOCABULARY for v in range(1, VERSIONS.get(name, 1) + 1)}
    assert wanted <= set(FIXTURES), "a new type or version needs a fixture; see the head of this file"


def test_no_fixture_was_edited() -> None:
    listed = dict(reversed(line.split()) for line in (FOLDER / "DIGESTS").read_text().splitlines())
    assert listed == {name: sha256((FOLDER / name).read_bytes()).hexdigest() for name in FIXTURES}


@pytest.mark.parametrize("fixture", FIXTURES)
def test_an_event_of_the_past_folds_and_is_legal_in_todays_words(fixture: str) -> None:
    past = records(fixture)
    assert fixture == f"{past[-1].type}.v{past[-1].tv}.json"
    graph, head = Graph(), Head(past[-1].seq, "")
    for record in past:
        graph.merge(apply(graph, record), record.seq)
    assert encode(fold(Graph(), past), head, "") == encode(graph, head, "")
    today = current(past[-1])
    assert today.tv == VERSIONS.get(today.type, 1)
    if today.type not in BY_THE_LEDGER:
        draft(today.type, today.subject, today.data)


def test_an_old_version_is_read_as_the_present_one(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {
        ("note.added", 1): lambda data: {"request": data["request"], "said": data["text"], "actor": data["by"]},
        ("note.added", 2): lambda data: {"request": data["request"], "text": data["said"], "actor": data["actor"]},
    }
    monkeypatch.setattr(upcast, "UPCASTERS", steps)
    for module in (upcast, events):
        monkeypatch.setattr(module, "VERSIONS", {"note.added": 3})
    monkeypatch.setattr("state.projector.VERSIONS", {"note.added": 3})
    story = Story()
    data = {"request": "n1", "text": "x", "by": "me"}
    old = story.ledger.stage(Draft("note.added", "notes", data, tv=1), story.now)
    (today,) = as_current([old])
    assert (today.tv, today.data) == (3, {"request": "n1", "text": "x", "actor": "me"})
    assert old.data == data
    apply(story.graph, old)
    assert draft("note.added", "notes", today.data).tv == 3


def test_a_newer_version_of_a_core_type_is_an_error_and_types_of_others_pass() -> None:
    story = Story()
    newer = story.ledger.stage(Draft("note.added", "notes", {}, tv=2), story.now)
    with pytest.raises(Unknown, match=rf"event {newer.seq} has type 'note.added' \(version 2\)"):
        current(newer)
    foreign = story.ledger.stage(Draft("x-mine.thing", "thing", {"a": 1}, tv=9), story.now)
    assert current(foreign) is foreign
