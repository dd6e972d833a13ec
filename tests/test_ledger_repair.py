"""Repair: the end of a damaged ledger cut off, files put back from a backup; wherever a crash comes in between."""

from __future__ import annotations

from contextlib import suppress

import pytest
from ledger_home import WRITER, at, copy_of, fact, last_segment, opened, segment_paths

from ledger import repair
from ledger.archive import archive
from ledger.errors import Corrupt, Refused
from ledger.ledger import Bounds, Ledger
from ledger.reader import read
from ledger.record import Draft, Record
from ledger.segment import CUT, RECOVERED, segments_in
from ledger.verify import verify
from simulations.disk import PowerCut, SimDisk

SMALL = Bounds(segment_bytes=1_500, reserve_bytes=300)


def grown(disk: SimDisk) -> list[Record]:
    for session in range(2):
        ledger = Ledger.open(disk, WRITER, at(session), bounds=SMALL)
        for number in range(5):
            ledger.append([fact(number), fact(number + 100)], at(session))
        ledger.close()
    archive(disk, keep=2)
    return list(read(disk))


def recorded(disk: SimDisk, data: dict[str, object]) -> None:
    """As the command does it, once the cut is made."""
    cuts = data["cuts"]
    assert isinstance(cuts, list)
    kept = frozenset(cut["quarantine"] for cut in cuts)
    ledger = Ledger.open(disk, WRITER, at(20), to_be_recorded=kept)
    ledger.append([Draft(CUT, f"ledger/{ledger.ledger_id}", data)], at(20))
    ledger.close()


def damaged(disk: SimDisk, path: str) -> None:
    data = bytearray(disk.read(path))
    data[len(data) // 2] ^= 1
    disk.corrupt(path, bytes(data))


def test_a_cut_leaves_the_whole_batches_before_it_and_keeps_every_byte_it_took() -> None:
    whole = SimDisk(1)
    before = grown(whole)
    for seq in range(2, before[-1].seq + 1):
        disk = copy_of(whole)
        planned = repair.loss(disk, seq)
        files = disk.files()
        assert planned.head.seq < seq
        assert planned.last_lost == before[-1].seq
        data = repair.cut(disk, planned, at(10))
        recorded(disk, data)
        found = list(read(disk))
        assert found[: planned.head.seq] == before[: planned.head.seq]
        assert found[planned.head.seq].type == "segment.open"
        assert found[-1].data["last_lost"] == before[-1].seq
        assert RECOVERED not in [record.type for record in found[planned.head.seq :]]
        kept = {path: content for path, content in disk.files().items() if "/quarantine/" in path}
        for file, offset in planned.files:
            assert files[f"ledger/{file}"][offset:] in kept.values()
        assert verify(disk).ok, (seq, verify(disk).damages)


def test_the_command_that_a_refusal_names_makes_the_ledger_open_again() -> None:
    whole = SimDisk(1)
    grown(whole)
    for path in segment_paths(whole):
        disk = copy_of(whole)
        damaged(disk, path if disk.exists(path) else path + ".zst")
        with pytest.raises(Corrupt) as caught:
            opened(disk)
        if not caught.value.last_good:
            assert "--at" not in caught.value.advice
            continue
        assert f"hermesd ledger cut --at {caught.value.last_good + 1} --accept-loss" in caught.value.advice
        recorded(disk, repair.cut(disk, repair.loss(disk, caught.value.last_good + 1), at(10)))
        assert verify(disk).ok
        assert list(read(disk))[-1].data["last_seq"] <= caught.value.last_good


def test_nothing_is_cut_where_nothing_would_be_left_or_there_is_nothing_or_more_damage_before() -> None:
    disk = SimDisk(1)
    records = grown(disk)
    for seq in (1, 0, records[-1].seq + 1, 1000):
        with pytest.raises(Refused):
            repair.loss(disk, seq)
    damaged(disk, segment_paths(disk)[-2])
    with pytest.raises((Corrupt, Refused)):
        repair.loss(disk, records[-1].seq)


def test_a_cut_that_a_crash_interrupts_can_be_made_again_and_loses_no_byte() -> None:
    whole = SimDisk(1)
    before = grown(whole)
    seq = before[-1].seq - 9
    for point in range(1, 120):
        disk = copy_of(whole, seed=point)
        disk.cut_power(disk.operations + point)
        try:
            repair.cut(disk, repair.loss(disk, seq), at(10))
        except PowerCut:
            disk.crash()
        else:
            break
        with suppress(Refused, Corrupt):
            repair.cut(disk, repair.loss(disk, seq), at(11))
        opened(disk).close()
        assert list(read(disk))[: seq - 3] == before[: seq - 3]
        assert verify(disk).ok, (point, verify(disk).damages)
    assert point > 20


def test_what_a_backup_holds_is_put_back_if_it_is_what_was_sealed() -> None:
    backup = SimDisk(1)
    before = grown(backup)
    for index, path in enumerate(segment_paths(backup)[:-1]):
        stored = path if backup.exists(path) else path + ".zst"
        for missing in (True, False):
            disk = copy_of(backup)
            disk.remove(stored) if missing else damaged(disk, stored)
            with pytest.raises(Corrupt):
                opened(disk)
            restored, cuts = repair.restore(disk, backup, at(10), at="ledger")
            assert [f"ledger/{one.file}" for one in restored] == [path]
            assert len(cuts) == (not missing)
            assert list(read(disk)) == before
            opened(disk).close()
            assert verify(disk).ok, verify(disk).damages
            assert repair.restore(disk, backup, at(11), at="ledger") == ([], [])
        rotten = copy_of(backup)
        damaged(rotten, stored)
        disk = copy_of(backup)
        disk.remove(stored)
        with pytest.raises(Refused, match="is not what was sealed"):
            repair.restore(disk, rotten, at(10), at="ledger")
        assert not disk.exists(path), index


def test_the_segment_being_written_is_put_back_only_if_nothing_durable_is_missing_in_the_backup() -> None:
    backup = SimDisk(1)
    ledger = opened(backup)
    for number in range(4):
        ledger.append([fact(number)], at())
    ledger.note_head(durable=True)
    older = copy_of(backup)
    ledger.append([fact(5)], at())
    ledger.close()
    before = list(read(backup))
    disk = copy_of(backup)
    damaged(disk, last_segment(disk))
    with pytest.raises(Refused, match="lacks records that were durable"):
        repair.restore(disk, older, at(10), at="ledger")
    restored, cuts = repair.restore(disk, backup, at(10), at="ledger")
    assert (len(restored), len(cuts)) == (1, 1)
    assert list(read(disk)) == before


def archived_or_not(disk: SimDisk, path: str) -> str:
    return path if disk.exists(path) else path + ".zst"


def outgrown() -> tuple[SimDisk, SimDisk]:
    """A backup, and the ledger some records later, in the same last segment."""
    disk = SimDisk(1)
    grown(disk)
    ledger = Ledger.open(disk, WRITER, at(2), bounds=SMALL)
    ledger.append([fact(1)], at(2))
    ledger.note_head(durable=True)
    backup = copy_of(disk)
    ledger.append([fact(2)], at(2))
    ledger.close()
    assert segment_paths(disk) == segment_paths(backup)
    return backup, disk


def test_a_backup_made_before_the_last_records_puts_back_what_was_sealed_then() -> None:
    older, disk = outgrown()
    before, first = list(read(disk)), segment_paths(disk)[0]
    damaged(disk, archived_or_not(disk, first))
    restored, cuts = repair.restore(disk, older, at(10), at="ledger")
    assert [f"ledger/{one.file}" for one in restored] == [first]
    assert len(cuts) == 1
    assert list(read(disk)) == before
    assert verify(disk).ok


def test_a_restore_that_is_refused_has_put_nothing_back() -> None:
    older, disk = outgrown()
    first, last = archived_or_not(disk, segment_paths(disk)[0]), last_segment(disk)
    damaged(disk, first)
    damaged(disk, last)
    there = disk.read(first), disk.read(last)
    with pytest.raises(Refused, match="lacks records that were durable"):
        repair.restore(disk, older, at(10), at="ledger")
    assert (disk.read(first), disk.read(last)) == there


def test_a_quarantined_file_is_put_back() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    ledger.append([fact(0)], at())
    ledger.append([fact(1), fact(2)], at())
    ledger.close()
    disk.remove("ledger/HEAD")
    disk.corrupt(last_segment(disk), disk.read(last_segment(disk))[:-9])
    for second in range(2):
        opened(disk, second).close()
    backup = copy_of(disk)
    (name,) = disk.list("ledger/quarantine")
    disk.remove(f"ledger/quarantine/{name}")
    assert not verify(disk).ok
    restored, _ = repair.restore(disk, backup, at(10), at="ledger")
    assert [one.file for one in restored] == [f"quarantine/{name}"]
    assert verify(disk).ok
    assert len(segments_in(disk.list("ledger"))) == 3
