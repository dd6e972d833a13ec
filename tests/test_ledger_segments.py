"""Segments: rotation, seals, the manifest, proofs, the archive; a byte changed in any of them; a crash at any point."""

from __future__ import annotations

import contextlib
import errno
import io
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest
from ledger_home import WRITER, at, copy_of, fact, last_segment, opened, segment_paths

from daemon.system import OsDisk
from ledger import frames, manifest, merkle, proof, seal, standalone
from ledger import segment as segment_module
from ledger.archive import archive
from ledger.errors import Corrupt, Full, Missing, Poisoned
from ledger.ledger import Bounds, Ledger
from ledger.manifest import MANIFEST
from ledger.reader import Tail, read
from ledger.record import Draft, Record, Unsound, linked
from ledger.recovery import survey
from ledger.segment import ARCHIVE, OPEN, Segment, lines, segments_in, stretches, superseded_in
from ledger.verify import verify
from simulations.disk import PowerCut, SimDisk

SMALL = Bounds(segment_bytes=1_500, reserve_bytes=300)


def rotated(disk: SimDisk | OsDisk, sessions: int = 2, each: int = 8) -> list[Record]:
    """A ledger of several segments in each of several epochs; its records."""
    for session in range(sessions):
        ledger = Ledger.open(disk, WRITER, at(session), bounds=SMALL)
        for number in range(each):
            ledger.append([fact(number), fact(number + 100)], at(session))
        ledger.close()
    return list(read(disk))


def alone(home: Path) -> tuple[int, list[str]]:
    """The stand-alone verifier's exit status, and the files it names."""
    standalone.damages.clear()
    with contextlib.redirect_stdout(io.StringIO()):
        status = standalone.main(home)
    return status, [line.split(": byte ")[0] for line in standalone.damages]


def laid_out(disk: SimDisk, home: Path) -> Path:
    for path, data in disk.files().items():
        file = home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_bytes(data)
    return home


def test_a_segment_that_has_grown_to_its_bound_is_sealed_and_the_next_begins() -> None:
    disk = SimDisk(1)
    tail = Tail(disk)
    ledger = opened(disk, bounds=SMALL)
    given, followed = list(read(disk)), tail.poll()
    for number in range(20):
        given += ledger.append([fact(number)], at(number))
        followed += tail.poll()
        given += read(disk, after=given[-1].seq)
    assert list(read(disk)) == given == followed
    segments = segments_in(disk.list("ledger"))
    assert len(segments) > 3
    assert {segment.epoch for segment in segments} == {1}
    for segment in segments[:-1]:
        sealed = seal.read(disk, "ledger", segment)
        assert sealed is not None
        data = disk.read(f"ledger/{segment.name}")
        assert (sealed.sha256, sealed.size_bytes) == (sha256(data).hexdigest(), len(data))
        assert len(data) < SMALL.segment_bytes + 400
        with pytest.raises(OSError, match="ermission"):
            disk.append(f"ledger/{segment.name}")
    assert [record.seq for record in given if record.type == OPEN] == [segment.first_seq for segment in segments]
    noted = manifest.read(disk, "ledger")
    assert [entry.seal.segment for entry in noted.entries] == segments[:-1]
    assert not noted.why
    for after in range(0, len(given), 3):
        assert list(read(disk, after=after)) == given[after:]
    ledger.close()
    assert verify(disk).ok
    assert verify(disk).records == len(given)


def test_archives_without_seals_are_read_and_sealed_again() -> None:
    disk = SimDisk(1)
    before = rotated(disk)
    archive(disk, keep=0)
    for name in disk.list("ledger"):
        if name.endswith(".seal") or name == MANIFEST:
            disk.remove(f"ledger/{name}")
    opened(disk).close()
    assert list(read(disk))[: len(before)] == before
    assert verify(disk).ok


def test_a_home_without_seals_opens_and_is_sealed_by_the_first_start() -> None:
    disk = SimDisk(1)
    before = rotated(disk)
    for name in disk.list("ledger"):
        if name.endswith(".seal") or name == MANIFEST:
            disk.remove(f"ledger/{name}")
    assert verify(disk).ok
    ledger = opened(disk)
    assert not ledger.recovery.changed
    ledger.close()
    noted = [entry.seal.number for entry in manifest.read(disk, "ledger").entries]
    assert noted == list(range(1, ledger.segment.number))
    assert list(read(disk))[: len(before)] == before
    assert verify(disk).ok


def test_opening_decodes_no_sealed_record_and_hashes_each_sealed_file_at_most_once() -> None:
    disk = _CountingDisk(1)
    rotated(disk, sessions=3)
    sealed = set(segment_paths(disk)[:-1])
    for trust, expected in ((False, 1), (True, 0)):
        twin = _CountingDisk(2)
        for path, data in disk.files().items():
            twin.make_folder(path.rpartition("/")[0])
            twin.corrupt(path, data)
        Ledger.open(twin, WRITER, at(9), trusted_seq=1 << 62 if trust else 0).close()
        counts = {path: count for path, count in twin.reads.items() if path in sealed}
        assert all(count <= expected for count in counts.values()), counts


class _CountingDisk(SimDisk):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.reads: dict[str, int] = {}

    def read(self, path: str, offset: int = 0, limit: int = -1) -> bytes:
        self.reads[path] = self.reads.get(path, 0) + 1
        return super().read(path, offset, limit)


def test_without_room_for_the_next_segment_the_ledger_goes_on_in_this_one() -> None:
    disk = SimDisk(1)
    ledger = opened(disk, bounds=Bounds(segment_bytes=1_200, reserve_bytes=0))
    given = []
    while len(segment_paths(disk)) == 1:
        operations = disk.operations
        disk.fail(operations + 3, errno.ENOSPC)  # the write and the sync of the batch, then the new segment's file
        given += ledger.append([fact(1)], at())
        disk.heal()
        if len(given) == 30:
            break
    assert len(segment_paths(disk)) == 1
    while len(segment_paths(disk)) == 1:
        given += ledger.append([fact(2)], at())
    ledger.close()
    assert [record for record in read(disk) if record.type != OPEN] == given
    assert verify(disk).ok


def test_an_error_while_rotating_fails_nobody_who_was_answered_and_poisons_what_comes() -> None:
    dry = SimDisk(0)
    rotated(dry, sessions=1)
    for point in range(1, dry.operations):
        for number in (errno.EIO, errno.ENOSPC):
            disk = SimDisk(point, short_writes=point % 2 == 0)
            acknowledged: list[Record] = []
            disk.fail(point, number)
            try:
                ledger = Ledger.open(disk, WRITER, at(), bounds=SMALL)
                for index in range(8):
                    acknowledged += ledger.append([fact(index)], at())
            except (OSError, Full, Poisoned):
                pass
            disk.heal()
            disk.crash()
            opened(disk).close()
            assert [record for record in read(disk) if record in acknowledged] == acknowledged
            assert verify(disk).ok, (point, verify(disk).damages)


def test_a_sealed_segment_of_one_record_is_hashed_by_a_start_as_others_are() -> None:
    disk = SimDisk(1)
    opened(disk, bounds=Bounds(segment_bytes=1)).close()  # its first record fills a segment
    opened(disk, 1).close()
    first = segment_paths(disk)[0]
    assert disk.read(first).count(b"\n") == 1
    disk.corrupt(first, disk.read(first).replace(b"box", b"bax"))
    for start in (lambda: survey(disk, "ledger"), lambda: opened(disk, 2)):
        with pytest.raises(Corrupt) as refused:
            start()
        assert refused.value.file == first


def test_after_a_segment_found_no_room_the_next_is_begun_a_whole_segment_later() -> None:
    disk = SimDisk(1)
    bounds = Bounds(segment_bytes=900, reserve_bytes=0)
    ledger = opened(disk, bounds=bounds)
    while not any(entry.startswith("create ledger/.0000000002") for entry in disk.trace):
        disk.heal()
        disk.fail(disk.operations + 3, errno.ENOSPC)
        ledger.append([fact(1)], at())
    disk.heal()
    full_at = disk.size(last_segment(disk))
    sizes = []
    while len(segment_paths(disk)) == 1:
        sizes.append(disk.size(last_segment(disk)))
        ledger.append([fact(2)], at())
    assert sizes[-1] < full_at + bounds.segment_bytes <= disk.size(segment_paths(disk)[0])


@pytest.mark.parametrize(("number", "goes_on"), [(errno.ENOSPC, True), (errno.EIO, False)])
def test_a_seal_without_room_waits_and_one_that_fails_poisons(number: int, goes_on: bool) -> None:
    disk = SimDisk(1)
    ledger = opened(disk, bounds=Bounds(segment_bytes=1, reserve_bytes=0))
    disk.fail_at(r"create ledger/\.0000000001.*seal", number)
    ledger.append([fact(0)], at())
    first = segments_in(disk.list("ledger"))[0]
    assert not disk.exists(f"ledger/{first.seal_name}")
    if goes_on:
        ledger.append([fact(1)], at())
        assert disk.exists(f"ledger/{first.seal_name}")
    else:
        with pytest.raises(Poisoned, match=r"OSError\(5, "):
            ledger.append([fact(1)], at())


def test_a_segment_of_just_its_bound_is_followed_by_the_next() -> None:
    disk = SimDisk(1)
    opened(disk).append([fact(0)], at())
    whole = disk.size(last_segment(disk))
    for bound, segments in ((whole + 1, 1), (whole, 2)):
        disk = SimDisk(1)
        opened(disk, bounds=Bounds(segment_bytes=bound)).append([fact(0)], at())
        assert len(segment_paths(disk)) == segments


def test_a_segment_of_one_byte_is_the_smallest() -> None:
    assert Bounds(segment_bytes=1, reserve_bytes=0)
    for wrong in ({"segment_bytes": 0}, {"reserve_bytes": -1}):
        with pytest.raises(ValueError, match="a segment needs at least 1 byte"):
            Bounds(**wrong)


def test_a_power_cut_while_rotating_is_said_by_what_refuses_after_it() -> None:
    disk = SimDisk(1)
    ledger = opened(disk, bounds=Bounds(segment_bytes=1, reserve_bytes=0))
    disk.cut_power(disk.operations + 3)
    with pytest.raises(PowerCut):
        ledger.append([fact(0)], at())
    with pytest.raises(Poisoned, match=r"behind seq 2: PowerCut\("):
        ledger.append([fact(1)], at())


def test_when_the_next_segment_may_be_there_nothing_more_is_written_to_this_one() -> None:
    disk = SimDisk(1)
    ledger = opened(disk, bounds=Bounds(segment_bytes=900, reserve_bytes=0))
    acknowledged = []
    while len(segment_paths(disk)) == 1:
        # The batch's write and sync, then, if it is time, the next segment's create, write, sync, replace, sync_folder.
        disk.heal()
        disk.fail(disk.operations + 7, errno.ENOSPC)
        acknowledged += ledger.append([fact(1)], at())
    assert disk.trace[-1].startswith("sync_folder")
    with pytest.raises(Poisoned, match=rf"OSError\({errno.ENOSPC}, "):
        ledger.append([fact(2)], at())
    disk.heal()
    disk.kill()
    opened(disk).close()
    assert [record for record in read(disk) if record in acknowledged] == acknowledged
    assert verify(disk).ok


def test_a_file_that_does_not_hold_what_was_written_is_not_sealed() -> None:
    disk = SimDisk(1)
    ledger = opened(disk, bounds=SMALL)
    path = last_segment(disk)
    ledger.append([fact(0)], at())
    disk._file(path).cache[-60] ^= 1
    while len(segment_paths(disk)) == 1:
        ledger.append([fact(1)], at())
    with pytest.raises(Poisoned, match=rf"OSError\({errno.EIO}, '{path} does not hold what was written to it'\)"):
        ledger.append([fact(2)], at())
    assert not disk.exists(path.replace(".jsonl", ".seal"))
    with pytest.raises(Corrupt):
        list(read(disk))


def test_a_segment_stays_until_its_archive_has_been_read_back_and_is_the_same() -> None:
    class Rotten(SimDisk):
        def read(self, path: str, offset: int = 0, limit: int = -1) -> bytes:
            data = super().read(path, offset, limit)
            return data[:60] + b"?" + data[61:] if path.endswith(ARCHIVE) else data

    disk = Rotten(1)
    before = rotated(disk)
    with pytest.raises(Corrupt, match="does not give back"):
        archive(disk, keep=0)
    assert all(disk.exists(path) for path in segment_paths(disk))
    assert list(read(disk)) == before


def test_less_room_than_is_asked_for_ahead_is_no_reason_to_refuse() -> None:
    disk = SimDisk(1)
    ledger = opened(disk, bounds=Bounds(reserve_bytes=2_000))
    disk.capacity_bytes = disk.used_bytes() + 700
    assert ledger.append([fact(0)], at())
    ledger.close()
    assert verify(disk).ok


def test_reserved_room_is_used_when_others_have_filled_the_disk_and_given_back_when_sealed() -> None:
    disk = SimDisk(1)
    ledger = opened(disk, bounds=Bounds(segment_bytes=10_000, reserve_bytes=2_000))
    ledger.append([fact(0)], at())
    disk.capacity_bytes = disk.used_bytes()
    before = ledger.head.seq
    with suppress(Full):
        for _ in range(100):
            ledger.append([fact(1)], at())
    assert before + 3 < ledger.head.seq < before + 100
    assert b"\0" not in disk.read(last_segment(disk))
    disk.capacity_bytes = None
    for number in range(40):
        ledger.append([fact(number)], at())
    ledger.close()
    assert disk.used_bytes() == sum(map(len, disk.files().values()))
    assert verify(disk).ok


def test_reserved_room_on_the_real_disk_has_no_length_and_no_content(tmp_path: Path) -> None:
    disk = OsDisk(tmp_path)
    disk.make_folder("ledger")
    file = disk.create("ledger/a")
    file.write(b"abc")
    file.reserve(1 << 20)
    assert disk.read("ledger/a") == b"abc"
    taken = (tmp_path / "ledger/a").stat().st_blocks
    file.truncate(3)
    file.close()
    assert (tmp_path / "ledger/a").stat().st_blocks <= taken
    assert disk.read("ledger/a") == b"abc"


def test_a_merkle_path_proves_each_entry_and_no_other() -> None:
    for size in range(1, 40):
        leaves = [merkle.leaf(b"%d" % number) for number in range(size)]
        root, tree = merkle.root(leaves), merkle.Tree()
        for leaf in leaves:
            tree = tree.followed_by(leaf)
        assert tree.root == root
        for index, leaf in enumerate(leaves):
            path = merkle.path(leaves, index)
            assert merkle.root_by(path, leaf, index, size) == root
            for wrong in ([*path, leaf], path[:-1]):
                if wrong != path:
                    with pytest.raises(Unsound):
                        merkle.root_by(wrong, leaf, index, size)
            assert merkle.root_by(path, merkle.leaf(b"?"), index, size) != root
    # RFC 6962: the tree of no entries, and of one empty entry.
    assert merkle.root([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert merkle.leaf(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"


def test_a_proof_holds_without_the_ledger_and_no_changed_proof_does() -> None:
    disk = SimDisk(1)
    records = rotated(disk, sessions=3)
    opened(disk).close()
    root = manifest.read(disk, "ledger").entries[-1].root
    for record in records[::3]:
        given = proof.prove(disk, record.seq)
        assert proof.check(given, root) == (record, root, len(manifest.read(disk, "ledger").entries))
        with pytest.raises(Unsound, match="rests on the root"):
            proof.check(given, "0" * 64)
        changed = [{**given, name: None} for name in given]
        changed += [{**given, "path": given["path"][::-1]}] if given["path"] != given["path"][::-1] else []
        changed += [{**given, "line": proof.prove(disk, record.seq + 1)["line"]}]
        changed += [{**given, "seal": {**given["seal"], "merkle": "0" * 64}}]
        changed += [{**given, "manifest": {**given["manifest"], "root": "0" * 64}}]
        for one in changed:
            with pytest.raises(Unsound):
                proof.check(one, root)
    with pytest.raises(Missing, match="being written"):
        proof.prove(disk, len(list(read(disk))))
    with pytest.raises(Missing, match="the last one is"):
        proof.prove(disk, 10_000)


def test_archived_segments_are_read_in_place_by_everyone(tmp_path: Path) -> None:
    disk = SimDisk(1)
    before = rotated(disk, sessions=3)
    behind = Tail(disk, after=3)
    done = archive(disk, keep=1)
    sealed = len(manifest.read(disk, "ledger").entries)
    assert len(done) == sealed - 1
    assert archive(disk, keep=1) == []
    assert list(read(disk)) == before == Tail(disk).poll()
    assert behind.poll() == before[3:]
    for after in range(0, len(before), 5):
        assert list(read(disk, after=after)) == before[after:]
    assert verify(disk).ok
    assert verify(disk).records == len(before)
    if shutil.which("zstd") or sys.version_info >= (3, 14):
        assert alone(laid_out(disk, tmp_path)) == (0, [])
    ledger = opened(disk)
    assert not ledger.recovery.changed
    ledger.close()
    assert list(read(disk))[: len(before)] == before


def test_an_archive_nobody_here_can_unpack_is_named_and_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = SimDisk(1)
    rotated(disk)
    archive(disk, keep=1)
    laid_out(disk, tmp_path)
    if sys.version_info >= (3, 14):
        pytest.skip("this Python unpacks it itself")
    monkeypatch.setenv("PATH", "")
    standalone.damages.clear()
    assert standalone.main(tmp_path) == 3
    assert f"{segments_in(disk.list('ledger'))[0].name}.zst could not be read" in capsys.readouterr().out


@pytest.mark.parametrize("chunk_bytes", [7, 100, 1 << 22])
def test_a_segment_is_read_in_chunks_of_any_size_also_when_it_is_archived_between_two(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(segment_module, "_CHUNK_BYTES", chunk_bytes)
    disk = SimDisk(1)
    rotated(disk)
    path = segment_paths(disk)[0]
    data = disk.read(path)
    told = [(at, data[at:].split(b"\n")[0]) for at in (0, *(n + 1 for n, byte in enumerate(data[:-1]) if byte == 10))]
    third = told[2][0]
    assert list(lines(disk, path)) == told
    assert list(lines(disk, path, third)) == told[2:]
    assert [(at, len(some)) for at, some in stretches(disk, path, 0, 1)] == [(at, 1) for at, _ in told]
    reading = lines(disk, path)
    first = next(reading)
    archive(disk, keep=0)
    assert not disk.exists(path)
    assert [first, *reading] == told
    disk.corrupt(path + ARCHIVE, b"?" + disk.read(path + ARCHIVE)[1:])
    with pytest.raises(Corrupt) as caught:
        list(lines(disk, path))
    assert (caught.value.file, caught.value.offset) == (path + ARCHIVE, 0)


def test_a_large_archive_is_read_from_any_offset_frame_by_frame() -> None:
    data = b"".join(b"line %d %s\n" % (number, b"x" * 90) for number in range(30_000))
    packed = frames.pack(data)
    assert frames.unpack(packed) == data
    disk = _CountingDisk(1)
    disk.corrupt("a.zst", packed)
    for offset in (0, 5, frames.FRAME_BYTES - 1, frames.FRAME_BYTES, 2 * frames.FRAME_BYTES + 7, len(data)):
        disk.reads.clear()
        assert b"".join(frames.chunks(disk, "a.zst", offset)) == data[offset:]
        frames_from = -(-len(data) // frames.FRAME_BYTES) - offset // frames.FRAME_BYTES
        assert disk.reads["a.zst"] == 2 + frames_from


def whole_ledger() -> SimDisk:
    """Segments of two epochs, archived, sealed and being written."""
    disk = SimDisk(1)
    rotated(disk, sessions=2, each=4)
    archive(disk, keep=1)
    opened(disk).close()
    return disk


@pytest.mark.parametrize("flip", [0x01, 0x80])
def test_a_byte_changed_in_any_file_is_found_there_by_all(flip: int, tmp_path: Path) -> None:
    whole = whole_ledger()
    before = list(read(whole))
    laid_out(whole, tmp_path)
    can_unpack = shutil.which("zstd") or sys.version_info >= (3, 14)
    kinds = set()
    for path, data in whole.files().items():
        name = path.removeprefix("ledger/")
        kinds.add(Path(name).suffix)
        for index in range(flip % 3, len(data), 7):
            changed = data[:index] + bytes([data[index] ^ flip]) + data[index + 1 :]
            whole.corrupt(path, changed)
            found = verify(whole)
            line = data.rfind(b"\n", 0, index) + 1 if name.endswith(".jsonl") else 0
            assert (found.damages[0].file, found.damages[0].offset) == (path, line), (path, index, found.damages)
            if index % 5 == 0:
                (tmp_path / path).write_bytes(changed)
                status, files = alone(tmp_path)
                found_it = status == 1 and files[0] == name
                assert found_it or (status == 3 and not can_unpack), (path, index, files)
            if name[0] == "0" and not name.endswith(".seal"):
                with pytest.raises(Corrupt) as caught:
                    list(read(whole))
                assert (caught.value.file, caught.value.offset) == (path, line)
                with pytest.raises(Corrupt) as refused:
                    survey(whole, "ledger")
                assert refused.value.file == path
                assert "hermesd ledger" in refused.value.advice
            else:
                assert list(read(whole)) == before
        whole.corrupt(path, data)
        (tmp_path / path).write_bytes(data)
    assert kinds == {".jsonl", ".seal", ".zst", ""}


def test_a_sealed_segment_that_is_missing_short_or_different_is_named() -> None:
    whole = whole_ledger()
    for segment in segments_in(whole.list("ledger"))[:-1]:
        path = f"ledger/{segment.name}"
        path = path if whole.exists(path) else path + ARCHIVE
        data = whole.read(path)
        for case in ("missing", "short", "other"):
            disk = copy_of(whole)
            disk.remove(path)
            if case != "missing":
                disk.corrupt(path, data[: -len(data) // 3] if case == "short" else bytes(len(data)))
            named = f"ledger/{segment.name}" if case == "missing" else path
            with pytest.raises(Corrupt) as caught:
                opened(disk)
            assert caught.value.file == named
            assert caught.value.last_good <= segment.first_seq + 10
            with pytest.raises(Corrupt) as seen:
                list(read(disk))
            assert seen.value.file == named
            assert named in [damage.file for damage in verify(disk).damages]


def test_the_newest_segments_taken_away_together_are_missed_thanks_to_the_manifest() -> None:
    disk = whole_ledger()
    last = segments_in(disk.list("ledger"))[-2:]
    for segment in last:
        for name in (segment.name, segment.name + ARCHIVE, segment.seal_name):
            if disk.exists(f"ledger/{name}"):
                disk.remove(f"ledger/{name}")
    disk.remove("ledger/HEAD")
    disk.remove("ledger/EPOCH")
    with pytest.raises(Corrupt, match="sealed segment is missing"):
        opened(disk)
    with pytest.raises(Corrupt, match="sealed segment is missing"):
        list(read(disk))


def test_what_a_zombie_adds_to_a_sealed_segment_is_not_shown_and_goes_into_quarantine() -> None:
    disk = SimDisk(1)
    ledger = opened(disk, bounds=SMALL)
    zombie = disk.append(last_segment(disk))
    for number in range(20):
        ledger.append([fact(number)], at())
    ledger.close()
    shown = list(read(disk))
    first = segment_paths(disk)[0]
    zombie._life = disk._life  # type: ignore[attr-defined]
    zombie.write(disk.read(first).splitlines(True)[-1])
    zombie.sync()
    assert list(read(disk)) == shown
    assert (verify(disk).damages[0].file, verify(disk).ok) == (first, False)
    again = opened(disk)
    (cut,) = again.recovery.cuts
    assert f"ledger/{cut.file}" == first
    again.close()
    assert verify(disk).ok
    assert list(read(disk))[: len(shown)] == shown


@pytest.mark.parametrize("archived", ["", ARCHIVE])
def test_a_segment_that_a_zombie_begins_is_no_part_of_the_ledger_and_goes_into_quarantine(archived: str) -> None:
    disk = SimDisk(1)
    shown = rotated(disk)
    epochs = segments_in(disk.list("ledger"))
    late = Segment(epochs[-1].number + 1, 1, shown[-1].seq + 1)
    disk.corrupt(f"ledger/{late.name}{archived}", b"anything\n")
    assert list(read(disk)) == shown
    assert verify(disk).damages[0].file == f"ledger/{late.name}{archived}"
    ledger = opened(disk)
    (cut,) = ledger.recovery.cuts
    assert (cut.file, cut.reason) == (late.name + archived, "begun by a superseded epoch after its successor began")
    ledger.append([fact(1)], at())
    ledger.close()
    assert list(read(disk))[: len(shown)] == shown
    assert verify(disk).ok


def test_of_two_segments_of_one_number_the_later_epoch_counts() -> None:
    first, zombie, successor, last = Segment(1, 1, 1), Segment(2, 1, 9), Segment(2, 2, 7), Segment(3, 2, 20)
    names = [segment.name for segment in (last, zombie, first, successor)]
    assert segments_in(names) == [first, successor, last]
    assert superseded_in(names) == [zombie]


def test_a_tail_that_nothing_proves_is_written_anew_with_the_same_seqs_and_hashes() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    given = ledger.append([fact(0)], at()) + ledger.append([fact(1), fact(2)], at())
    path = last_segment(disk)
    old = disk._file(path)
    disk.kill()
    again = opened(disk)
    assert again.recovery.rewritten is not None
    assert again.recovery.rewritten.last_seq == given[-1].seq
    assert disk._file(path) is not old
    again.close()
    found = list(read(disk))
    assert found[1:4] == given
    assert found[5].data["rewritten"]["last_seq"] == given[-1].seq
    clean = opened(disk)
    assert clean.recovery.rewritten is None
    assert not clean.recovery.changed


def test_a_torn_line_of_the_manifest_is_written_again() -> None:
    whole = SimDisk(1)
    rotated(whole)
    data = whole.read(f"ledger/{MANIFEST}")
    last = data.rfind(b"\n", 0, -1) + 1
    for end in range(last, len(data), 13):
        disk = copy_of(whole)
        disk.corrupt(f"ledger/{MANIFEST}", data[:end])
        assert verify(disk).ok
        why = manifest.read(disk, "ledger").why
        assert [cut.reason for cut in survey(disk, "ledger").cuts] == ([why] if end > last else [])
        opened(disk).close()
        assert disk.read(f"ledger/{MANIFEST}").startswith(data)
        assert verify(disk).ok


def living(disk: SimDisk, acknowledged: list[Record]) -> None:
    """Rotate, seal, archive, recover; whatever was answered is in `acknowledged`."""
    for session in range(2):
        ledger = Ledger.open(disk, WRITER, at(session), bounds=SMALL)
        for number in range(4):
            acknowledged += ledger.append([fact(number + i, "x" * 150) for i in range(2)], at(session))
        if session:
            archive(disk, keep=1)
        ledger.close()


def test_no_crash_at_any_operation_of_rotating_sealing_archiving_loses_what_was_acknowledged() -> None:
    dry = SimDisk(0)
    living(dry, [])
    for point in range(1, dry.operations + 1):
        for after in (False, True):
            for seed in range(3):
                disk = SimDisk(seed * 1000 + point, short_writes=seed == 1)
                acknowledged: list[Record] = []
                disk.cut_power(point, after=after)
                with suppress(PowerCut):
                    living(disk, acknowledged)
                disk.crash() if seed else disk.kill()
                ledger = Ledger.open(disk, WRITER, at(5), bounds=SMALL)
                acknowledged += ledger.append([Draft("test.over", "test", {})], at(5))
                ledger.close()
                found = list(read(disk))
                assert [record for record in found if record in acknowledged] == acknowledged
                disk.crash()
                assert list(read(disk)) == found
                archive(disk, keep=0)
                assert verify(disk).ok, (point, after, seed, verify(disk).damages)
                assert list(read(disk)) == found


def test_no_crash_during_the_recovery_of_a_rotated_ledger_loses_anything() -> None:
    dry = SimDisk(0)
    living(dry, [])
    for point in range(1, dry.operations + 1, 5):
        for second in range(1, 80, 3):
            disk = SimDisk(point * 1000 + second)
            acknowledged: list[Record] = []
            disk.cut_power(point)
            with suppress(PowerCut):
                living(disk, acknowledged)
            disk.crash()
            disk.cut_power(disk.operations + second, after=second % 2 == 0)
            try:
                Ledger.open(disk, WRITER, at(6), bounds=SMALL)
            except PowerCut:
                disk.crash()
                opened(disk).close()
                assert [record for record in read(disk) if record in acknowledged] == acknowledged
                assert verify(disk).ok
            else:
                break


def test_sealed_records_are_not_followed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench measures what that brings; this only sees that the fast way is taken."""
    disk = SimDisk(1)
    ledger = opened(disk)
    for _ in range(4):
        ledger.append([fact(number) for number in range(300)], at())
    ledger.close()
    followed = 0

    def counting(some: Sequence[bytes], previous: str) -> list[str]:
        nonlocal followed
        followed += len(some)
        return linked(some, previous)

    parsed: list[bytes] = []
    monkeypatch.setattr("ledger.chain.linked", counting)
    records = list(read(disk, until=1_200))
    assert followed >= 1_199
    opened(disk, 1).close()
    followed = 0
    assert list(read(disk, until=1_200)) == records
    assert followed == 0
    monkeypatch.setattr("ledger.reader.trusted", lambda lines, last_hash: parsed.append(lines) or [])
    survey(disk, "ledger")
    assert not parsed  # whoever starts need not know what they say
    monkeypatch.undo()
