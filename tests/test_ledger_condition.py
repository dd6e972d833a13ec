"""Conditional appends: the same fact twice is written once, and a subject that has moved on refuses."""

from __future__ import annotations

import pytest
from ledger_home import at, fact, grown, opened

from ledger import condition
from ledger.errors import Conflict, Full
from ledger.reader import read
from ledger.record import Draft
from simulations.disk import SimDisk


def about(subject: str, id_: str | None = None) -> Draft:
    return Draft("note.added", subject, {"text": subject}, id=id_)


def seqs(disk: SimDisk) -> list[int]:
    return [record.seq for record in read(disk)]


def test_the_same_id_again_is_answered_with_the_first_record_and_written_once() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    (first,) = ledger.append([fact(1)], at(), once=True)
    (again,) = ledger.append([fact(1)], at(9), once=True)
    assert again == first
    assert seqs(disk) == [1, 2]


def test_it_is_known_again_after_a_restart_and_after_other_records() -> None:
    disk = SimDisk(1)
    written = grown(disk, ((3, 2), (4,)))
    ledger = opened(disk, 99)
    records = ledger.append([fact(0), about("new"), fact(5)], at(99), once=True)
    assert [record.seq for record in records] == [2, ledger.head.seq, 8]
    assert [record.id for record in records] == ["fact-0", None, "fact-5"]
    assert records[0] == written[1]
    assert len(seqs(disk)) == ledger.head.seq


def test_the_same_id_twice_in_one_batch_is_written_once() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    one, two, three = ledger.append([fact(1), about("x"), fact(1)], at(), once=True)
    assert (one, two.seq) == (three, 3)
    assert seqs(disk) == [1, 2, 3]


def test_an_id_is_forgotten_beyond_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(condition.Remembered.__init__, "__kwdefaults__", {"window_records": 4})
    disk = SimDisk(1)
    ledger = opened(disk)
    ledger.append([fact(number) for number in range(6)], at(), once=True)
    assert ledger.append([fact(5)], at(), once=True)[0].seq == 7
    assert ledger.append([fact(0)], at(), once=True)[0].seq == 8


def test_a_subject_that_goes_on_keeps_its_version_when_its_older_records_leave_the_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(condition.Remembered.__init__, "__kwdefaults__", {"window_records": 2})
    ledger = opened(SimDisk(1))
    for number in range(2, 7):
        ledger.append([about("x")], at(), expect={"x": number - 1 if number > 2 else 0})
    assert ledger.head.seq == 6


def test_without_the_wish_the_same_id_is_written_again() -> None:
    ledger = opened(SimDisk(1))
    assert [ledger.append([fact(1)], at())[0].seq for _ in range(2)] == [2, 3]
    assert ledger.append([fact(1)], at(), once=True)[0].seq == 2
    assert ledger.append([fact(1)], at())[0].seq == 4


def test_an_append_is_refused_if_its_subject_has_moved_on_and_nothing_is_written() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    (seen,) = ledger.append([about("run/a")], at(), expect={"run/a": 0})
    ledger.append([about("run/a")], at(), expect={"run/a": seen.seq})
    with pytest.raises(Conflict, match="the last about 'run/a' is record 3, not record 2") as refused:
        ledger.append([about("run/a"), about("run/b")], at(), expect={"run/a": seen.seq})
    assert (refused.value.subject, refused.value.seq) == ("run/a", 3)
    with pytest.raises(Conflict, match="not none"):
        ledger.append([about("run/a")], at(), expect={"run/a": 0})
    with pytest.raises(Conflict, match="is no record, not record 2"):
        ledger.append([about("run/b")], at(), expect={"run/b": 2})
    assert seqs(disk) == [1, 2, 3]
    assert ledger.append([about("run/b")], at(), expect={"run/a": 3, "run/b": 0})[0].seq == 4


@pytest.mark.parametrize(("expected", "found"), [(2, 2), (0, 2), (3, 2), (1, 2)])
def test_a_version_older_than_the_window_is_looked_up(
    monkeypatch: pytest.MonkeyPatch, expected: int, found: int
) -> None:
    monkeypatch.setattr(condition.Remembered.__init__, "__kwdefaults__", {"window_records": 3})
    disk = SimDisk(1)
    ledger = opened(disk)
    ledger.append([about("run/a"), *(about(f"run/{n}") for n in range(8))], at())
    if expected == found:
        ledger.append([about("run/a")], at(), expect={"run/a": expected})
        return
    with pytest.raises(Conflict):
        ledger.append([about("run/a")], at(), expect={"run/a": expected})


def test_a_retry_of_what_was_written_is_answered_though_its_expectation_has_passed() -> None:
    ledger = opened(SimDisk(1))
    draft, expect = about("run/a", "once"), {"run/a": 0}
    (first,) = ledger.append([draft], at(), once=True, expect=expect)
    assert ledger.append([draft], at(), once=True, expect=expect) == [first]


def test_what_found_no_room_is_not_remembered() -> None:
    disk = SimDisk(1, capacity_bytes=20_000)
    ledger = opened(disk)
    ledger.append([fact(1)], at(), once=True)
    with pytest.raises(Full):
        ledger.append([fact(2, "x" * 20_000)], at(), once=True)
    disk.capacity_bytes = None
    (record,) = ledger.append([fact(2)], at(), once=True, expect={"run/2": 0})
    assert (record.seq, record.data["text"]) == (3, "é")
