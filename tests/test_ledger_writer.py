"""The writer: batches, a full disk, a failing disk, short writes, the lock, and the real disk underneath."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from ledger_home import WRITER, at, fact, grown, last_segment, opened

from daemon.system import OsDisk, SystemClock
from ledger.disk import Locked
from ledger.errors import Full, NotLocal, Poisoned, Refused
from ledger.instant import Now
from ledger.ledger import Bounds, Ledger
from ledger.reader import Tail, read
from ledger.record import Draft
from ledger.verify import verify
from simulations.disk import SimDisk

ROOMS = Path(__file__).parent.parent


def numbers(disk: SimDisk | OsDisk) -> list[int]:
    return [record.data["number"] for record in read(disk) if record.type == "run.finished"]


def test_what_append_gives_back_is_what_a_reader_gets() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    given = ledger.append([fact(0), Draft("a", "b", {"pair": (1, 2.0), "n": None}, cause=1, corr="c")], at())
    assert given == list(read(disk, after=1))
    assert [(record.batch, record.more) for record in given] == [(2, True), (2, False)]
    assert ledger.head == (given[-1].seq, given[-1].hash)
    assert ledger.append([], at()) == []
    late = Now(at().wall_ns, (1 << 53) * 1000 + 1_999)  # a whole number of microseconds that no float has
    (record,) = ledger.append([fact(1)], late)
    assert record == list(read(disk))[-1]
    assert record.mt == (1 << 53) * 1000 + 1_000


def test_a_segment_begins_with_who_writes_it_and_with_what_it_follows() -> None:
    disk = SimDisk(1)
    opened(disk).append([fact(0)], at())
    disk.kill()
    before = list(read(disk))
    ledger = opened(disk, 1)
    begun = list(read(disk))[len(before)]
    assert (begun.type, begun.subject) == ("segment.open", "segment/2")
    assert begun.data == {
        "ledger": ledger.ledger_id, "segment": 2, "first_seq": before[-1].seq + 1, "previous": before[-1].hash,
        "epoch": 2, "host": "box", "boot_id": "boot-1", "pid": 4711, "started": 99, "code": "test", "format": 2,
    }  # fmt: skip


def test_what_is_staged_is_not_written_until_it_is_committed() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    before, operations = list(read(disk)), disk.operations
    data = {"number": 1}
    staged = ledger.stage(Draft("a", "b", data), at())
    data["number"] = 2
    assert (staged.seq, staged.hash, ledger.next_seq, ledger.durable_seq) == (2, "", 3, 1)
    assert (list(read(disk)), disk.operations) == (before, operations)
    assert ledger.commit().seq == ledger.durable_seq == 2
    assert list(read(disk))[-1]._replace(hash="") == staged
    operations = disk.operations
    assert ledger.commit().seq == 2
    assert disk.operations == operations


def test_one_commit_is_one_write_and_one_sync() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    commits, written = ledger.commits, ledger.bytes_written
    assert commits == 1  # the segment's first record
    operations = disk.operations
    ledger.append([fact(i) for i in range(100)], at())
    assert [entry.split()[0] for entry in list(disk.trace)[operations:]] == ["reserve", "write", "sync"]
    assert ledger.commits == commits + 1
    assert ledger.bytes_written == disk.size(last_segment(disk))
    assert ledger.bytes_written - written == len(b"".join(disk.read(last_segment(disk)).splitlines(True)[1:]))


def test_a_note_of_the_head_is_synced_where_that_is_asked_for() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    for durable, calls in ((False, ["create", "write", "replace"]), (True, ["create", "write", "sync", "replace"])):
        operations = disk.operations
        ledger.note_head(durable=durable) if durable else ledger.note_head()
        assert [entry.split()[0] for entry in list(disk.trace)[operations:]][: len(calls)] == calls


def test_a_ledger_has_a_name_of_its_own_and_its_folder_survives_a_power_cut() -> None:
    disk = SimDisk(1)
    disk.make_folder("deep")
    disk.sync_folder("")
    ledger = Ledger.open(disk, WRITER, at(), folder="deep/ledger")
    other = Ledger.open(SimDisk(1), WRITER, at(1))
    assert ledger.ledger_id != other.ledger_id
    assert all(re.fullmatch("[0-9a-f]{32}", one.ledger_id) for one in (ledger, other))
    disk.crash()
    assert [record.type for record in read(disk, folder="deep/ledger")] == ["segment.open"]


def test_append_does_not_mix_with_a_batch_being_staged() -> None:
    ledger = opened(SimDisk(1))
    ledger.stage(fact(0), at())
    with pytest.raises(ValueError, match="^append within a batch being staged; stage the drafts instead$"):
        ledger.append([fact(1)], at())
    assert ledger.commit().seq == 2


def test_a_refused_draft_leaves_nothing_of_its_batch() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    with pytest.raises(Refused):
        ledger.append([fact(0), Draft("", "b", {})], at())
    ledger.append([fact(1)], at())
    assert numbers(disk) == [1]


def test_short_writes_are_finished() -> None:
    disk = SimDisk(1, short_writes=True)
    ledger = opened(disk)
    for number in range(20):
        ledger.append([fact(number)], at())
    ledger.close()
    assert numbers(disk) == list(range(20))
    assert verify(disk).ok


def test_a_write_that_takes_nothing_does_not_go_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = opened(SimDisk(1))
    assert ledger._file is not None
    monkeypatch.setattr(ledger._file, "write", lambda data: 0)
    with pytest.raises(Poisoned, match=r"OSError\(5, 'the write took nothing'\)"):
        ledger.append([fact(0)], at())


def test_a_write_that_takes_one_byte_at_a_time_comes_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    assert ledger._file is not None
    write = ledger._file.write
    monkeypatch.setattr(ledger._file, "write", lambda data: write(data[:1]))
    ledger.append([fact(0), fact(1)], at())
    assert numbers(disk) == [0, 1]
    assert verify(disk).ok


def test_a_full_disk_drops_the_batch_keeps_the_rest_and_goes_on_when_there_is_room() -> None:
    disk = SimDisk(1)
    ledger = opened(disk, bounds=Bounds(reserve_bytes=0))
    ledger.append([fact(0)], at())
    tail = Tail(disk)
    tail.poll()
    before = disk.read(last_segment(disk))
    disk.capacity_bytes = disk.used_bytes() + 100
    for _ in range(3):
        with pytest.raises(Full) as full:
            ledger.append([fact(1), fact(2)], at())
        said = str(full.value)
        assert said.startswith(f"no room on the disk for {last_segment(disk)}: [Errno {errno.ENOSPC}]")
        assert said.endswith(
            "; the last batch was not recorded, what was durable is untouched; free some space and try again"
        )
        assert disk.read(last_segment(disk)) == before
        assert tail.poll() == []
    assert numbers(disk) == [0]
    disk.capacity_bytes = None
    assert ledger.append([fact(3)], at())[0].seq == 3
    assert [record.seq for record in tail.poll()] == [3]
    ledger.close()
    assert numbers(disk) == [0, 3]
    assert verify(disk).ok


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_batch_that_the_sync_had_no_room_for_is_not_brought_back_by_a_crash(number: int) -> None:
    for seed in range(40):
        disk = SimDisk(seed)
        ledger = opened(disk)
        disk.fail(disk.operations + 2, number)
        with pytest.raises(Full):
            ledger.append([fact(1)], at())
        disk.crash()
        opened(disk)
        assert numbers(disk) == []


def test_a_full_disk_that_cannot_even_be_cut_back_poisons() -> None:
    for then in (2, 3):  # the truncation, its sync
        disk = SimDisk(1)
        ledger = opened(disk)
        disk.fail(disk.operations + 1, errno.ENOSPC)
        disk.fail(disk.operations + then, errno.EIO)
        with pytest.raises(Poisoned):
            ledger.append([fact(0)], at())
        with pytest.raises(Poisoned, match="restart"):
            ledger.append([fact(0)], at())


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EBADF])
@pytest.mark.parametrize("which", [1, 2])
def test_a_failed_write_or_sync_poisons_for_good(number: int, which: int) -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    ledger.append([fact(0)], at())
    disk.fail(disk.operations + which, number)
    with pytest.raises(Poisoned, match="behind seq 2"):
        ledger.append([fact(1)], at())
    operations = disk.operations
    for call in (lambda: ledger.append([fact(2)], at()), ledger.commit, ledger.note_head):
        with pytest.raises(Poisoned):
            call()
    assert disk.operations == operations
    ledger.close()
    again = opened(disk)
    again.append([fact(3)], at())
    assert [n for n in numbers(disk) if n != 1] == [0, 3]


def test_an_interrupt_in_the_middle_of_a_write_poisons(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimDisk(1, short_writes=True)
    ledger = opened(disk)
    assert ledger._file is not None
    write, calls = ledger._file.write, iter(range(2))

    def interrupted(data: bytes) -> int:
        if next(calls):
            raise KeyboardInterrupt
        return write(data)

    monkeypatch.setattr(ledger._file, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ledger.append([fact(0)], at())
    with pytest.raises(Poisoned, match=r"failed behind seq 1: KeyboardInterrupt\("):
        ledger.append([fact(1)], at())


def test_an_opening_that_fails_at_any_point_leaves_a_ledger_that_opens() -> None:
    dry = SimDisk(0)
    grown(dry, ((1,),))
    opened(dry)
    for number in (errno.ENOSPC, errno.EIO):
        for point in range(1, 20):
            disk = SimDisk(point)
            before = grown(disk, ((1,),))
            disk.fail(disk.operations + point, number)
            try:
                opened(disk)
            except (OSError, Full, Poisoned):
                disk.heal()
                opened(disk).close()
            assert list(read(disk))[: len(before)] == before
            disk.crash()
            assert verify(disk).ok


def test_a_full_disk_does_not_keep_the_ledger_from_closing() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    ledger.append([fact(0)], at())
    disk.capacity_bytes = disk.used_bytes()
    with pytest.raises(Full):
        ledger.note_head()
    ledger.close()
    disk.capacity_bytes = None
    assert opened(disk).recovery.head.seq == 2


@pytest.mark.parametrize(("operation", "number"), [(1, errno.EIO), (2, errno.ENOSPC)])
def test_what_closing_cannot_give_back_or_note_keeps_nobody_out(operation: int, number: int) -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    ledger.append([fact(0)], at())
    disk.fail(disk.operations + operation, number)  # the truncation, or the note of the head
    ledger.close()
    assert opened(disk).recovery.head.seq == 2


def test_a_closed_ledger_writes_nothing_more_whoever_holds_it_now() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    ledger.append([fact(0)], at())
    ledger.close()
    after = opened(disk)
    after.append([fact(1)], at())
    operations = disk.operations
    for call in (lambda: ledger.append([fact(2)], at()), ledger.commit, ledger.note_head):
        with pytest.raises(Poisoned, match="takes no more records: it is closed; restart"):
            call()
    ledger.close()
    assert disk.operations == operations
    assert numbers(disk) == [0, 1]


def test_a_full_disk_is_named_when_the_ledger_cannot_be_opened() -> None:
    disk = SimDisk(1)
    grown(disk)
    disk.capacity_bytes = disk.used_bytes()
    with pytest.raises(Full, match="no room to open ledger"):
        opened(disk)
    disk.capacity_bytes = None
    opened(disk)


def test_a_second_writer_is_told_who_holds_the_ledger() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    with pytest.raises(Locked, match="pid 4711 on box"):
        opened(disk)
    ledger.close()
    ledger.close()
    opened(disk)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "fuseblk", "9p"])
def test_a_network_file_system_is_refused_unless_asked_for(kind: str) -> None:
    disk = SimDisk(1)
    disk.kind = kind
    advice = r"choose .*\(--home DIR\), or .* \(`any_file_system: true` in hermesd\.yaml\)"
    with pytest.raises(NotLocal, match=rf"on a {kind} file system,.* does not keep; {advice}$"):
        opened(disk)
    assert Ledger.open(disk, WRITER, at(), anywhere=True).epoch == 1


def test_where_nothing_was_written_there_is_nothing_to_read() -> None:
    assert list(read(SimDisk(1))) == Tail(SimDisk(1)).poll() == []


def test_reading_from_and_to_a_seq() -> None:
    disk = SimDisk(1)
    records = grown(disk, ((2, 1), (3,), (1, 1)))
    for after in range(len(records) + 2):
        for until in (None, after, after + 2, 100):
            want = [record for record in records if record.seq > after and (until is None or record.seq <= until)]
            assert list(read(disk, after=after, until=until)) == want
        assert Tail(disk, after=after).poll() == records[after:]


def test_a_tail_follows_across_segments_and_stops_at_complete_batches_and_at_the_durable_seq() -> None:
    disk = SimDisk(1)
    tail, seen = Tail(disk), []
    assert tail.poll() == []
    for session in range(3):
        ledger = opened(disk, session)
        for size in (1, 2):
            seen += tail.poll(until=ledger.durable_seq)
            ledger.append([fact(i) for i in range(size)], at(session))
            assert tail.poll(until=seen[-1].seq if seen else 0) == []
        seen += tail.poll()
        ledger.close()
    assert seen == list(read(disk))
    assert tail.poll() == []
    ledger = opened(disk)
    ledger.append([fact(1), fact(2)], at())
    path = last_segment(disk)
    whole = disk.read(path)
    opening = whole.index(b"\n") + 1
    for end in range(opening, len(whole)):
        disk.corrupt(path, whole[:end])
        assert [record.type for record in tail.poll()] == (["segment.open"] if end == opening else [])
    disk.corrupt(path, whole)
    assert [record.data["number"] for record in tail.poll()] == [1, 2]


def test_the_real_disk_keeps_the_ledger_to_its_owner_and_survives_reopening(tmp_path: Path) -> None:
    disk, clock = OsDisk(tmp_path), SystemClock()
    for session in range(2):
        ledger = Ledger.open(disk, WRITER, clock.now())
        ledger.append([fact(session)], clock.now())
        ledger.close()
    assert numbers(disk) == [0, 1]
    assert verify(disk).ok
    for path in tmp_path.rglob("*"):
        sealed = path.suffix == ".jsonl" and path.with_suffix(".seal").exists()
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o400 if sealed else 0o600)
    assert not list(tmp_path.rglob(".*.new"))
    assert disk.file_system()
    assert OsDisk("/proc").file_system() in ("proc", "")
    assert disk.free_bytes() > 0


def test_the_real_disk_gives_back_its_descriptors(tmp_path: Path) -> None:
    disk, folder = OsDisk(tmp_path), Path("/dev/fd")
    Ledger.open(disk, WRITER, at()).close()
    before = len(os.listdir(folder))
    for _ in range(3):
        ledger = Ledger.open(disk, WRITER, at())
        with pytest.raises(Locked):
            Ledger.open(disk, WRITER, at())
        ledger.close()
    disk.append("ledger/HEAD").truncate(3)
    Ledger.open(disk, WRITER, at()).close()
    assert len(os.listdir(folder)) <= before + 1  # the one the interpreter has not collected yet


def test_a_symbolic_link_in_a_files_place_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    disk = OsDisk(tmp_path)
    for door in (disk.append, disk.create, disk.lock):
        with pytest.raises(OSError, match="link"):
            door("link")


HOLD = """
import sys
from daemon.system import OsDisk
from ledger.instant import Now
from ledger.ledger import Ledger
from ledger.record import Draft
from ledger.segment import Writer
ledger = Ledger.open(OsDisk(sys.argv[1]), Writer("box", "boot", 4242, 1, "test"), Now(1, 1))
number = 0
while True:
    record, = ledger.append([Draft("run.finished", "run/1", {"number": number, "text": "x" * 500})], Now(1, number))
    print(record.seq, flush=True)
    number += 1
"""


def test_another_process_is_kept_out_for_as_long_as_the_first_lives_and_its_kill_loses_nothing(tmp_path: Path) -> None:
    acknowledged = 0
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=ROOMS, stdout=subprocess.PIPE)
        assert child.stdout is not None
        for _ in range(20):
            acknowledged = int(child.stdout.readline())
        with pytest.raises(Locked, match="pid 4242"):
            Ledger.open(OsDisk(tmp_path), WRITER, at())
        child.kill()
        acknowledged = int((child.stdout.read().split() or [b"%d" % acknowledged])[-1])
        child.wait()
        child.stdout.close()
        assert [record.seq for record in read(OsDisk(tmp_path))][acknowledged - 1] == acknowledged
    Ledger.open(OsDisk(tmp_path), WRITER, at()).close()
    assert verify(OsDisk(tmp_path)).ok
