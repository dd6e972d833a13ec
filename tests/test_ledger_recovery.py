"""Recovery: each row of the table, every way an end can be torn, every byte flipped, and every point of a crash."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_home import WRITER, at, copy_of, fact, grown, last_segment, opened

from ledger import watermark
from ledger.chain import Head
from ledger.errors import Corrupt, Poisoned
from ledger.ledger import Ledger
from ledger.reader import Tail, read, repairs
from ledger.record import GENESIS, Draft, Record, Unsound, decode
from ledger.recovery import Recovery, survey
from ledger.segment import CUT, RECOVERED
from ledger.verify import verify
from simulations.disk import PowerCut, SimDisk


def facts(disk: SimDisk) -> list[Record]:
    return [record for record in read(disk) if record.type == "run.finished"]


def without_head(disk: SimDisk) -> SimDisk:
    """As a crash leaves it that comes before the head is noted again: what is proven is what EPOCH proves."""
    twin = copy_of(disk)
    twin.remove("ledger/HEAD")
    return twin


def batch_ends(data: bytes) -> Iterator[tuple[int, Record]]:
    offset = 0
    for line in data.splitlines(keepends=True):
        offset += len(line)
        record = decode(line)
        if not record.more:
            yield offset, record


def test_a_whole_ledger_gets_a_new_segment_and_a_new_epoch() -> None:
    disk = SimDisk(1)
    before = grown(disk)
    ledger = opened(disk)
    assert not ledger.recovery.changed
    assert (ledger.epoch, ledger.head.seq, ledger.ledger_id) == (3, before[-1].seq + 1, ledger.recovery.ledger_id)
    assert list(read(disk))[: len(before)] == before
    assert disk.list("ledger/quarantine") == []


TAILS: dict[str, bytes | None] = {
    "cut": b"",
    "NULs": bytes(100),
    "garbage": b"\x93\n\xff}garbage\n{",
    "the next record fused": None,
    "half a UTF-8 character": b'{"seq":9,"data":{"text":"\xc3',
}


@pytest.mark.parametrize("tail", TAILS)
def test_whatever_the_end_is_torn_into_recovery_finds_the_last_complete_batch(tail: str) -> None:
    whole = SimDisk(1)
    grown(whole, ((1,), (1, 2)))
    path = last_segment(whole)
    data = whole.read(path)
    ends = list(batch_ends(data))
    follower = data.splitlines(keepends=True)[-1]
    behind = TAILS[tail]
    for cut in range(len(data)):
        left = data[:cut] + (follower if behind is None else behind)
        disk = without_head(whole)
        disk.corrupt(path, left)
        good, head = max(((end, record) for end, record in ends if end <= cut), default=(0, None))
        later = tail == "the next record fused" and head and decode(follower).batch > head.seq + 1
        if left == data or (head and left == data[:good]):
            assert not survey(disk, "ledger").cuts
            continue
        if head is None or later:
            with pytest.raises(Corrupt) as caught:
                survey(disk, "ledger")
            assert caught.value.file == path
            assert good <= caught.value.offset <= cut
            assert disk.read(path) == left
            continue
        ledger = opened(disk)
        assert ledger.recovery.head == (head.seq, head.hash)
        assert disk.read(path) == data[:good]
        (kept,) = disk.list("ledger/quarantine")
        assert disk.read(f"ledger/quarantine/{kept}") == left[good:]
        if cut % 16 == 0:
            ledger.append([fact(77)], at())
            ledger.close()
            records = list(read(disk))
            assert records[-2].type == RECOVERED
            assert records[-2].data["cuts"][0]["sha256"] == sha256(left[good:]).hexdigest()
            assert verify(disk).ok


def test_an_end_that_the_head_vouches_for_is_never_cut() -> None:
    whole = SimDisk(1)
    records = grown(whole, ((1,), (1, 2)))
    path = last_segment(whole)
    data = whole.read(path)
    ends = list(batch_ends(data))
    for cut in range(len(data)):
        for tail in (b"", bytes(8)):
            disk = copy_of(whole)
            disk.corrupt(path, data[:cut] + tail)
            with pytest.raises(Corrupt) as caught:
                opened(disk)
            good, last = max(((end, record.seq) for end, record in ends if end <= cut), default=(0, records[1].seq))
            assert (caught.value.file, caught.value.last_good) == (path, last)
            assert good <= caught.value.offset <= cut
            assert disk.read(path) == data[:cut] + tail
            assert disk.list("ledger/quarantine") == []


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_no_flipped_byte_loses_what_was_acknowledged(flip: int) -> None:
    whole = SimDisk(1)
    before = grown(whole, ((1,), (2,)))
    for path, data in whole.files().items():
        for index in range(len(data)):
            changed = bytearray(data)
            changed[index] ^= flip
            disk = copy_of(whole)
            disk.corrupt(path, bytes(changed))
            if path == "ledger/HEAD":  # it is noted without a sync, so a damaged one proves nothing, and is no harm
                assert survey(disk, "ledger").cuts[0].file == "HEAD"
                assert list(read(disk)) == before
                continue
            if path.endswith((".seal", "MANIFEST.jsonl")):  # each says what the other does, and the records say both
                assert f"ledger/{survey(disk, 'ledger').cuts[0].file}" == path
                assert list(read(disk)) == before
                opened(disk).close()
                assert verify(disk).ok
                assert list(read(disk))[: len(before)] == before
                continue
            with pytest.raises(Corrupt) as caught:
                survey(disk, "ledger")
            assert caught.value.file == path
            line = data.rfind(b"\n", 0, index) + 1
            assert line <= caught.value.offset <= index or caught.value.offset == 0


def test_a_damaged_batch_with_a_sound_later_one_behind_it_is_corruption_not_a_torn_end() -> None:
    whole = SimDisk(1)
    grown(whole, ((1, 1, 1),))
    path = last_segment(whole)
    lines = whole.read(path).splitlines(keepends=True)
    disk = without_head(whole)
    disk.corrupt(path, b"".join((lines[0], lines[1], bytes(len(lines[2])), lines[3])))
    with pytest.raises(Corrupt, match="the later batch that begins with seq 4 ") as caught:
        opened(disk)
    assert caught.value.offset == len(lines[0]) + len(lines[1])
    assert (caught.value.first_good, caught.value.last_good) == (1, 2)
    with pytest.raises(Corrupt):
        list(read(disk))


def test_a_torn_batch_whose_last_pages_came_first_is_still_torn() -> None:
    whole = SimDisk(1)
    grown(whole, ((1, 3),))
    path = last_segment(whole)
    lines = whole.read(path).splitlines(keepends=True)
    disk = without_head(whole)
    disk.corrupt(path, b"".join((lines[0], lines[1], bytes(len(lines[2])), lines[3], lines[4])))
    assert [record.seq for record in read(disk)] == [1, 2]
    ledger = opened(disk)
    assert ledger.recovery.head.seq == 2


def test_whole_lines_missing_at_the_end_are_seen_by_the_head() -> None:
    disk = SimDisk(1)
    grown(disk, ((1, 1, 1),))
    path = last_segment(disk)
    lines = disk.read(path).splitlines(keepends=True)
    disk.corrupt(path, b"".join(lines[:-1]))
    with pytest.raises(Corrupt, match="HEAD proves that the records up to seq 4"):
        opened(disk)
    with pytest.raises(Corrupt):
        list(read(disk))


def test_a_missing_segment_is_corruption() -> None:
    whole = SimDisk(1)
    grown(whole, ((1,), (1,), (1,)))
    for name in [name for name in whole.list("ledger") if name[0] == "0" and name.endswith(".jsonl")]:
        disk = copy_of(whole)
        disk.remove(f"ledger/{name}")
        with pytest.raises(Corrupt) as caught:
            opened(disk)
        if disk.exists(f"ledger/{name.removesuffix('.jsonl')}.seal"):
            assert caught.value.file == f"ledger/{name}"
            assert f"ledger/{name}" in [damage.file for damage in verify(disk).damages]
        assert not verify(disk).ok
    empty = copy_of(whole)
    for name in [name for name in whole.list("ledger") if name[0] in "0M"]:
        empty.remove(f"ledger/{name}")
    with pytest.raises(Corrupt) as caught:
        opened(empty)
    head = 6  # three records of the facts and three that open segments
    reason = f"no segment is there, but the records up to seq {head} had been durable"
    assert (caught.value.file, caught.value.offset, caught.value.reason) == ("ledger", 0, reason)
    assert caught.value.advice == repairs("ledger", 0)
    # Whichever note proves more: here HEAD, and an EPOCH that was claimed before anything was written.
    name = Ledger.open(copy_of(whole), WRITER, at()).ledger_id
    claimed = watermark.encode(watermark.EPOCH, watermark.Watermark(name, 9, 0, GENESIS))
    empty.corrupt("ledger/EPOCH", claimed)
    with pytest.raises(Corrupt, match=reason):
        survey(empty, "ledger")


def test_where_an_epoch_was_claimed_and_no_segment_begun_the_ledger_keeps_its_name() -> None:
    disk = SimDisk(1)
    disk.make_folder("ledger")
    assert survey(disk, "ledger") == Recovery("", 0, 0, (), Head(0, GENESIS), 0, (), (), (), {}, None)
    disk.cut_power_at(r"create ledger/\.0000000001", after=False)
    with pytest.raises(PowerCut):
        opened(disk)
    disk.crash()
    disk.corrupt("ledger/.HEAD.new", b"half a note")
    found = survey(disk, "ledger")
    assert (found.epoch, found.records, found.watermark_seq, found.stale) == (1, 0, 0, ("ledger/.HEAD.new",))
    ledger = opened(disk, 5)
    assert (ledger.ledger_id, ledger.epoch) == (found.ledger_id, 2)
    assert not disk.exists("ledger/.HEAD.new")


def test_the_head_of_another_ledger_is_refused() -> None:
    disk, other = SimDisk(1), SimDisk(2)
    grown(disk, ((1,),))
    ledger = Ledger.open(other, WRITER, at(5))
    ledger.append([fact(0)], at())
    ledger.close()
    disk.corrupt("ledger/HEAD", other.read("ledger/HEAD"))
    with pytest.raises(Corrupt, match="HEAD names another record"):
        opened(disk)


def test_a_damaged_epoch_is_refused_and_a_missing_one_is_made_anew() -> None:
    disk = SimDisk(1)
    grown(disk, ((1,), (1,)))
    disk.corrupt("ledger/EPOCH", b"")
    with pytest.raises(Corrupt) as refused:
        opened(disk)
    assert (refused.value.file, refused.value.offset) == ("ledger/EPOCH", 0)
    assert "move this file away" in refused.value.advice
    disk.remove("ledger/EPOCH")
    assert opened(disk).epoch == 3


@pytest.mark.parametrize("lost_bytes", [1, 200, 20_000, 60_000])
def test_of_a_long_batch_without_its_end_nothing_is_kept(lost_bytes: int) -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    kept = ledger.append([fact(0)], at())[-1]
    path, size = last_segment(disk), len(disk.read(last_segment(disk)))
    ledger.append([fact(number) for number in range(700)], at())
    disk.kill()
    disk.corrupt(path, disk.read(path)[:-lost_bytes])
    assert list(read(disk))[-1] == kept
    found = survey(disk, "ledger")
    assert (found.head, [(cut.file, cut.offset) for cut in found.cuts]) == (
        (kept.seq, kept.hash), [(path.removeprefix("ledger/"), size)],
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_what_an_opening_has_recorded_is_proven_by_a_head_that_a_power_cut_leaves(seed: int) -> None:
    disk = SimDisk(seed)
    opened(disk).append([fact(0)], at())
    disk.kill()
    ledger = opened(disk, 1)  # writes the unproven batch anew, and records that
    disk.crash()
    mark = watermark.read(disk, "ledger", watermark.HEAD)
    assert mark is not None
    assert (mark.seq, mark.hash) == ledger.head


def test_without_head_and_epoch_nothing_is_proven_and_nothing_lost() -> None:
    disk = SimDisk(1)
    before = grown(disk)
    disk.remove("ledger/HEAD")
    disk.remove("ledger/EPOCH")
    disk.make_folder("ledger/quarantine")
    stale, others = ("ledger/.HEAD.new", "ledger/quarantine/.a.tail.new"), ("ledger/.mine", "ledger/mine.new")
    for path in (*stale, *others):
        disk.corrupt(path, b"half a note")
    found = survey(disk, "ledger")
    assert (found.watermark_seq, found.stale, found.head.seq) == (0, stale, before[-1].seq)
    opened(disk).close()
    assert [disk.exists(path) for path in (*stale, *others)] == [False, False, True, True]
    assert [damage.file for damage in verify(disk).damages] == list(others)


def test_what_several_records_of_one_segment_put_into_quarantine_is_not_found_again() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    disk.make_folder("ledger/quarantine")
    for name in ("a.tail", "b.tail"):
        disk.corrupt(f"ledger/quarantine/{name}", name.encode())
        cut = {"quarantine": name, "sha256": sha256(name.encode()).hexdigest()}
        ledger.append([Draft(CUT, "ledger", {"cuts": [cut], "found": []})], at())
    ledger.note_head(durable=True)
    disk.kill()
    assert survey(disk, "ledger").found == ()


def test_a_damaged_head_is_kept_and_proves_nothing() -> None:
    disk = SimDisk(1)
    grown(disk)
    disk.corrupt("ledger/HEAD", bytes(50))
    with pytest.raises(Unsound) as unsound:
        watermark.read(disk, "ledger", "HEAD")
    ledger = opened(disk)
    assert (ledger.recovery.cuts[0].file, ledger.recovery.cuts[0].reason) == ("HEAD", str(unsound.value))
    assert disk.read(f"ledger/quarantine/{ledger.recovery.cuts[0].quarantine}") == bytes(50)
    ledger.close()
    assert verify(disk).ok


def test_what_a_superseded_writer_added_is_quarantined_and_never_shown() -> None:
    disk = SimDisk(1)
    before = grown(disk, ((1,),))
    first = last_segment(disk)
    zombie = disk.append(first)
    after = opened(disk)
    after.append([fact(1)], at())
    shown = list(read(disk))
    tail = Tail(disk)
    assert tail.poll() == shown
    behind = Tail(disk)
    behind.poll(until=after.durable_seq - 2)
    line = disk.read(first).splitlines(keepends=True)[-1]
    zombie.write(line)
    zombie.sync()
    after.close()
    assert list(read(disk)) == shown
    assert tail.poll() == []
    assert behind.poll() == shown[-2:]
    assert not verify(disk).ok
    last = opened(disk)
    (cut,) = last.recovery.cuts
    assert (f"ledger/{cut.file}", cut.bytes) == (first, len(line))
    assert cut.reason == "written by a superseded epoch after its successor began"
    last.close()
    assert list(read(disk))[: len(shown)] == shown
    assert shown[: len(before)] == before
    assert verify(disk).ok


def test_after_a_failed_sync_recovery_believes_the_device_and_not_the_cache() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    ledger.append([fact(0)], at())
    disk.fail(disk.operations + 2, errno.EIO)
    with pytest.raises(Poisoned):
        ledger.append([fact(1)], at())
    ledger.close()
    again = opened(disk)  # the same boot: the cache still shows the batch that the device never got
    acknowledged = again.append([fact(2)], at())
    again.close()
    disk.crash()
    assert [record.data["number"] for record in facts(disk)] == [0, 2]
    assert list(read(disk))[-1] == acknowledged[-1]
    assert verify(disk).ok


def work(disk: SimDisk, acknowledged: list[Record]) -> None:
    """Two sessions; whatever was answered is in `acknowledged`."""
    for session in range(2):
        ledger = Ledger.open(disk, WRITER, at(session))
        for size in (1, 3):
            number = len(acknowledged)
            acknowledged += ledger.append([fact(number + i, "x" * 300) for i in range(size)], at(session))
            ledger.note_head()
        ledger.close()


def held(disk: SimDisk, acknowledged: list[Record]) -> None:
    """Open again: nothing acknowledged is lost, no batch is there in part, what is there verifies, and stays."""
    ledger = Ledger.open(disk, WRITER, at(9))
    acknowledged = [*acknowledged, *ledger.append([Draft("test.over", "test", {})], at(9))]
    found = list(read(disk))
    assert [record for record in found if record in acknowledged] == acknowledged
    assert len(facts(disk)) - len(acknowledged) + 1 in (0, 1, 3)
    disk.crash()
    assert list(read(disk)) == found
    opened(disk).close()
    assert list(read(disk))[: len(found)] == found
    assert verify(disk).ok, verify(disk).damages


def test_no_crash_at_any_point_loses_what_was_acknowledged() -> None:
    dry = SimDisk(0)
    work(dry, [])
    for point in range(1, dry.operations + 1):
        for after in (False, True):
            for seed in range(15):
                disk = SimDisk(seed, short_writes=seed % 2 == 1)
                acknowledged: list[Record] = []
                disk.cut_power(point, after=after)
                with suppress(PowerCut):
                    work(disk, acknowledged)
                if seed % 3:
                    disk.crash()
                else:  # the process is killed: the next one must not build on what only the cache has
                    disk.kill()
                held(disk, acknowledged)


def test_no_crash_during_recovery_loses_what_was_acknowledged() -> None:
    dry = SimDisk(0)
    work(dry, [])
    for seed, point in enumerate(range(1, dry.operations + 1, 3)):
        for second in range(1, 60):
            disk = SimDisk(seed * 1000 + second)
            acknowledged: list[Record] = []
            disk.cut_power(point)
            with pytest.raises(PowerCut):
                work(disk, acknowledged)
            disk.crash()
            disk.cut_power(disk.operations + second, after=second % 2 == 0)
            try:
                opened(disk)
            except PowerCut:
                disk.crash()
                held(disk, acknowledged)
            else:
                break


def test_what_is_cut_is_never_lost_wherever_recovery_is_interrupted() -> None:
    for point in range(1, 20):
        for seed in range(12):
            disk = SimDisk(seed)
            grown(disk, ((1, 2),))
            disk.remove("ledger/HEAD")
            path = last_segment(disk)
            whole = disk.read(path)
            disk.corrupt(path, whole[:-5])
            disk.sync_folder("ledger")
            disk.cut_power(disk.operations + point)
            with suppress(PowerCut):
                opened(disk)
            disk.crash()
            kept = [disk.read(f"ledger/quarantine/{name}") for name in disk.list("ledger/quarantine")]
            assert disk.read(path) == whole[:-5] or disk.read(path) + kept[0] == whole[:-5]


def test_recovering_twice_is_recovering_once() -> None:
    disk = SimDisk(1)
    grown(disk, ((1, 2),))
    disk.remove("ledger/HEAD")
    disk.corrupt(last_segment(disk), disk.read(last_segment(disk))[:-5])
    opened(disk).close()
    kept = disk.list("ledger/quarantine")
    second = opened(disk)
    assert not second.recovery.changed
    assert disk.list("ledger/quarantine") == kept


def test_what_an_interrupted_recovery_had_quarantined_is_recorded_by_the_next() -> None:
    disk = SimDisk(1)
    grown(disk, ((1, 2),))
    disk.remove("ledger/HEAD")
    disk.corrupt(last_segment(disk), disk.read(last_segment(disk))[:-5])
    cut = next(i for i in range(1, 60) if _trace(disk, i)[-1].startswith("truncate"))
    disk.cut_power(disk.operations + cut, after=True)
    with pytest.raises(PowerCut):
        opened(disk, 1)
    disk.crash()
    ledger = opened(disk, 2)
    assert ledger.recovery.found or ledger.recovery.cuts
    ledger.close()
    recorded = next(record for record in read(disk) if record.type == RECOVERED).data
    names = {cut["quarantine"] for cut in recorded["cuts"] + recorded["found"]}
    assert names == set(disk.list("ledger/quarantine"))
    assert verify(disk).ok


def _trace(disk: SimDisk, operations: int) -> list[str]:
    twin = copy_of(disk)
    twin.cut_power(twin.operations + operations)
    with pytest.raises(PowerCut):
        opened(twin, 1)
    return list(twin.trace)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(1, 4), max_size=6), st.integers(0, 2**32), st.integers(1, 60), st.booleans())
def test_any_batches_any_crash(sizes: list[int], seed: int, point: int, after: bool) -> None:
    disk = SimDisk(seed, short_writes=True)
    acknowledged: list[Record] = []
    disk.cut_power(point, after=after)
    try:
        ledger = opened(disk)
        for size in sizes:
            acknowledged += ledger.append([fact(size, "y" * 200) for _ in range(size)], at())
    except PowerCut:
        pass
    disk.crash()
    ledger = opened(disk)
    found = facts(disk)
    assert found[: len(acknowledged)] == acknowledged
    assert ledger.next_seq == len(list(read(disk))) + 1


def test_a_tail_that_followed_a_batch_which_a_crash_took_back_gives_its_successors() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    ledger.append([fact(0)], at())
    durable = copy_of(disk)
    tail = Tail(durable)
    assert [record.seq for record in tail.poll()] == [1, 2]
    path = last_segment(durable)
    ledger.append([fact(1)], at())
    durable.corrupt(path, disk.read(path))
    assert [record.data.get("number") for record in tail.poll()] == [1]
    durable.corrupt(path, disk.read(path)[:-5])
    durable.remove("ledger/HEAD")
    again = opened(durable, 7)
    again.append([fact(2)], at())
    assert [record.data.get("number") for record in tail.poll()][-1] == 2
    assert tail.poll() == []
