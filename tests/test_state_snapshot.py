"""Snapshots: what comes back is what was kept, and one that does not fit the ledger is as if it were not there."""

from __future__ import annotations

from itertools import pairwise

import pytest
from story import Story

from daemon.system import OsDisk
from ledger.chain import Head
from ledger.reader import read
from ledger.record import Record
from policies.agenda import Agenda
from simulations.disk import SimDisk
from state import snapshot
from state.events import draft
from state.graph import Graph
from state.projector import fold
from state.views import render

CODE = "this code"


def eventful() -> Story:
    story = Story()
    story.define("a", {"every": "1m"}, leases=["k"], keep={"runs": 3})
    story.define("b", {"after": ["a"]})
    story.define("c", budget={"runs_per_day": 5})
    story.define("agent", kind="agent", steps=[{"name": "s", "kind": "command", "argv": ["true"]}])
    story.start("agent")
    story.start("c", request="r2")
    for turn in range(5):
        story.pass_ms(60_000)
        story.plan()
        for name in sorted(story.graph.active):
            if story.run(name).state == "granted" and turn < 4:
                story.begin(name)
                story.end(name, "failed" if turn == 2 else "succeeded", code=int(turn == 2))
        story.react()
    note(story, 0)
    return story


def note(story: Story, number: int) -> Record:
    data = {"request": f"n{number}", "text": "x", "actor": "me"}
    (record,) = story.record(draft("note.added", "notes", data))
    return record


def same(one: Graph, other: Graph) -> None:
    """Nodes, indexes, and the order of each: what is active is asked in its order."""
    assert one == other
    for name in ("nodes", "jobs", "active", "leases", "requests"):
        assert list(getattr(one, name)) == list(getattr(other, name)), name
    assert {type(value) for node in one.nodes.values() for value in node} == {
        type(value) for node in other.nodes.values() for value in node
    }


def test_a_snapshot_gives_the_graph_back_with_every_type_and_order() -> None:
    story = eventful()
    stored = snapshot.write(story.disk, story.graph, story.ledger.head, CODE)
    found = snapshot.load(story.disk, stored, CODE)
    assert found is not None
    assert found.head == story.ledger.head
    same(found.graph, story.graph)
    assert Agenda.of(found.graph).next_ms() == story.past.agenda.next_ms()
    assert snapshot.encode(found.graph, found.head, CODE) == snapshot.encode(story.graph, story.ledger.head, CODE)


def test_what_many_jobs_say_alike_is_held_once_also_after_a_start_from_a_snapshot() -> None:
    story = Story()
    for name in ("a", "b"):
        story.define(name, retry={"attempts": 3})
    found = snapshot.load(story.disk, snapshot.write(story.disk, story.graph, story.ledger.head, CODE), CODE)
    assert found is not None
    one, other = found.graph.jobs.values()
    assert one.spec["retry"] is other.spec["retry"]
    assert one.spec["missed"] is other.spec["missed"]


def test_a_snapshot_of_many_nodes_is_many_lines() -> None:
    story = Story()
    for number in range(2 * snapshot.ROWS_A_LINE):
        story.define(f"job-{number}")
    data = snapshot.encode(story.graph, story.ledger.head, CODE)
    assert data.count(b'\n["Job",') == 2
    found = snapshot.decode(data, CODE)
    assert found is not None
    same(found.graph, story.graph)


def test_a_start_takes_the_newest_snapshot_and_folds_only_what_came_behind_it() -> None:
    story = eventful()
    snapshot.write(story.disk, story.graph, story.ledger.head, CODE)
    for number in range(1, 4):
        note(story, number)
    restored = snapshot.restore(story.disk, CODE)
    assert (restored.snapshot_seq, restored.records) == (story.ledger.head.seq - 3, 3)
    assert restored.head == story.ledger.head
    same(restored.graph, story.graph)
    assert render(restored.graph, restored.head) == render(story.graph, story.ledger.head)


def test_the_newest_two_are_kept_and_what_a_crash_left_unfinished_goes() -> None:
    story = eventful()
    for number in range(1, 5):
        note(story, number)
        story.disk.corrupt("snapshots/.left.new", b"half") if number == 3 else None
        snapshot.write(story.disk, story.graph, story.ledger.head, CODE, milestones=0)
    head = story.ledger.head.seq
    assert [stored.seq for stored in snapshot.stored_in(story.disk)] == [head, head - 1]
    assert len(story.disk.list("snapshots")) == 2


def test_older_ones_are_spread_over_the_past_and_those_of_other_code_go() -> None:
    story, milestones = eventful(), 5
    snapshot.write(story.disk, story.graph, story.ledger.head, "code of last year")
    other, first = story.ledger.head.seq, story.ledger.head.seq + 1
    for number in range(1, 200):
        note(story, number)
        snapshot.write(story.disk, story.graph, story.ledger.head, CODE, milestones=milestones)
        kept = [stored.seq for stored in snapshot.stored_in(story.disk)]
        head = story.ledger.head.seq
        assert kept[: snapshot.KEPT] == [head, head - 1][: len(kept)]
        assert len(kept) <= snapshot.KEPT + milestones
        assert max(late - early for late, early in pairwise([*kept, 0])) <= first + (head - first) // 2
    assert other not in kept
    assert snapshot.seqs_between(story.disk, CODE, after=kept[-1], until=head) == kept[-2:0:-1]
    assert snapshot.restore(story.disk, CODE, until=kept[3] + 1).snapshot_seq == kept[3]


def test_snapshots_of_a_ledger_that_was_moved_away_do_not_push_out_those_of_the_new_one() -> None:
    old, new = eventful(), Story()
    stored = snapshot.write(old.disk, old.graph, old.ledger.head, CODE)
    new.disk.make_folder("snapshots")
    new.disk.corrupt(stored.path, old.disk.read(stored.path))
    assert snapshot.restore(new.disk, CODE).snapshot_seq == 0
    kept = snapshot.write(new.disk, new.graph, new.ledger.head, CODE)
    assert snapshot.stored_in(new.disk) == [kept]


@pytest.mark.parametrize("spoiled", ["a byte", "its name", "its code", "its record", "its vocabulary", "cut short"])
def test_a_snapshot_that_does_not_fit_is_passed_over_and_the_ledger_is_folded(
    spoiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = eventful()
    head, code = story.ledger.head, CODE
    if spoiled == "its code":
        code = "other code"
    if spoiled == "its record":
        head = Head(head.seq, "0" * 22)
    if spoiled == "its vocabulary":
        with monkeypatch.context() as patch:
            patch.setattr(snapshot, "vocabulary_digest", lambda: "of another release")
            stored = snapshot.write(story.disk, story.graph, head, code)
    else:
        stored = snapshot.write(story.disk, story.graph, head, code)
    data = story.disk.read(stored.path)
    if spoiled == "a byte":
        story.disk.corrupt(stored.path, data.replace(b'"succeeded"', b'"succeedeD"', 1))
    if spoiled == "cut short":
        story.disk.corrupt(stored.path, data[: len(data) // 2])
    if spoiled == "its name":
        story.disk.remove(stored.path)
        story.disk.corrupt(stored._replace(seq=stored.seq - 1).path, data)
    restored = snapshot.restore(story.disk, CODE)
    assert (restored.snapshot_seq, restored.records) == (0, story.ledger.head.seq)
    same(restored.graph, story.graph)


def test_every_changed_byte_of_a_snapshot_is_noticed() -> None:
    story = Story()
    stored = snapshot.write(story.disk, story.graph, story.ledger.head, CODE)
    data = story.disk.read(stored.path)
    for place in range(0, len(data), 7):
        story.disk.corrupt(stored.path, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert snapshot.load(story.disk, stored, CODE) is None


def test_the_state_of_every_earlier_record_comes_from_the_snapshot_below_it() -> None:
    story = eventful()
    records = list(read(story.disk))
    middle = len(records) // 2
    at_middle = fold(Graph(), records[:middle])
    snapshot.write(story.disk, at_middle, Head(middle, records[middle - 1].hash), CODE)
    for seq in range(1, len(records) + 1):
        restored = snapshot.restore(story.disk, CODE, until=seq)
        assert restored.snapshot_seq == (middle if seq >= middle else 0)
        same(restored.graph, fold(Graph(), records[:seq]))


def test_a_snapshot_ahead_of_a_ledger_that_was_cut_is_passed_over(tmp_path: object) -> None:
    story = eventful()
    snapshot.write(story.disk, story.graph, story.ledger.head, CODE)
    shorter = SimDisk(1)
    shorter.make_folder("snapshots")
    for path, data in story.disk.files().items():
        if path.endswith(".jsonl"):
            data = b"".join(data.splitlines(keepends=True)[:-1])
        if not path.endswith(("HEAD", "EPOCH")):
            shorter.make_folder(path.rpartition("/")[0])
            shorter.corrupt(path, data)
    restored = snapshot.restore(shorter, CODE)
    assert (restored.snapshot_seq, restored.head.seq) == (0, story.ledger.head.seq - 1)


def test_an_empty_home_restores_to_nothing(tmp_path: object) -> None:
    restored = snapshot.restore(OsDisk(str(tmp_path)), CODE)
    assert (restored.head.seq, restored.last, restored.records) == (0, None, 0)
