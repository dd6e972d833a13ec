"""The corners that no other situation reaches: each branch of the ledger that is left."""

from __future__ import annotations

import builtins
import errno
import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from ledger_home import at, copy_of, fact, grown, last_segment, opened, segment_paths

from ledger import frames, index, manifest, proof, repair, seal, standalone
from ledger.archive import archive
from ledger.artifacts import Artifacts
from ledger.chain import Chain
from ledger.disk import Locked, write_atomically
from ledger.errors import Corrupt, Full, Missing, Poisoned, Refused
from ledger.ledger import Bounds
from ledger.manifest import MANIFEST
from ledger.reader import Place, Walk, read
from ledger.record import Draft, Unsound, check, hash_of, with_own_hash
from ledger.recovery import Cut, survey
from ledger.segment import CUT, content, lines, segments_in, stored_bytes
from ledger.verify import verify
from simulations.campaign.law import alone
from simulations.campaign.memory import MemoryPath
from simulations.disk import PowerCut, SimDisk


def test_a_removed_artifact_is_gone_for_good_and_removing_it_again_is_no_error() -> None:
    disk = SimDisk(1)
    disk.make_folder("artifacts")
    artifacts = Artifacts(disk)
    digest = artifacts.put(b"content")
    artifacts.remove(digest)
    artifacts.remove(digest)
    disk.crash()
    assert not artifacts.has(digest)
    with pytest.raises(Missing):
        artifacts.get(digest)


def test_a_full_disk_on_which_not_even_the_cut_back_succeeds_poisons() -> None:
    for second, raised in ((errno.EIO, Poisoned), (None, PowerCut)):
        disk = SimDisk(1)
        ledger = opened(disk, bounds=Bounds(reserve_bytes=0))
        disk.fail(disk.operations + 1, errno.ENOSPC)
        if second is None:
            disk.cut_power(disk.operations + 2)
        else:
            disk.fail(disk.operations + 2, second)
        with pytest.raises(raised):
            ledger.append([fact(0)], at())
        disk.heal()
        with pytest.raises(Poisoned, match=rf"failed behind seq 1: ({raised.__name__}|OSError)\("):
            ledger.append([fact(1)], at())


def test_who_holds_the_lock_is_said_where_it_can_be_read() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    with pytest.raises(Locked, match="probably by pid 4711 on box"):
        opened(disk)
    path = last_segment(disk)
    for rest in (b"?\n", b""):
        disk.corrupt(path, rest)
        with pytest.raises(Locked) as caught:
            opened(disk)
        assert str(caught.value).endswith("by another process")
    assert ledger.durable_seq == 1


def test_the_room_a_segment_takes_is_that_of_its_file_or_of_its_archive() -> None:
    disk = SimDisk(1)
    grown(disk, ((1,), (1,)))
    path = segment_paths(disk)[0]
    before = stored_bytes(disk, path)
    assert before == disk.size(path)
    data = disk.read(path)
    archive(disk, keep=0)
    assert stored_bytes(disk, path) == disk.size(path + ".zst") != before
    for limit in (-1, 0, 1, 70, len(data)):
        assert content(disk, path, limit) == (data if limit < 0 else data[:limit])


def test_lines_of_a_segment_that_is_not_there_or_cannot_be_unpacked() -> None:
    disk = SimDisk(1)
    for reading in (lines, content):
        with pytest.raises(FileNotFoundError) as absent:
            list(reading(disk, "nowhere.jsonl"))
        assert absent.value.filename == "nowhere.jsonl"
    disk.corrupt("a.jsonl.zst", b"?" * 50)
    with pytest.raises(Corrupt, match="no trailer") as caught:
        list(lines(disk, "a.jsonl"))
    assert caught.value.file == "a.jsonl.zst"


def test_what_a_superseded_writer_added_to_a_segment_without_a_seal_is_named_and_not_shown() -> None:
    disk = SimDisk(1)
    before = grown(disk, ((1,), (1,)))
    for name in disk.list("ledger"):
        if name.endswith(".seal") or name == MANIFEST:
            disk.remove(f"ledger/{name}")
    path = segment_paths(disk)[0]
    data = disk.read(path)
    disk.corrupt(path, data + data.splitlines(keepends=True)[-1])
    assert list(read(disk)) == before
    assert [(damage.file, damage.offset) for damage in verify(disk).damages] == [(path, len(data))]
    assert alone(disk.files()) == (1, [(path.removeprefix("ledger/"), len(data))])
    ledger = opened(disk)
    assert [(cut.file, cut.offset) for cut in ledger.recovery.cuts] == [(path.removeprefix("ledger/"), len(data))]


def resealed(disk: SimDisk, **change: str) -> str:
    """Forge the seal of the first segment, with nothing else that tells of it; the segment's path."""
    first = segments_in(disk.list("ledger"))[0]
    disk.remove(f"ledger/{MANIFEST}")
    sealed = seal.read(disk, "ledger", first)
    assert sealed is not None
    disk.corrupt(f"ledger/{first.seal_name}", sealed._replace(**change).line())  # type: ignore[arg-type]
    return f"ledger/{first.name}"


def test_a_seal_that_is_not_that_of_its_sound_segment_is_found() -> None:
    disk = SimDisk(1)
    grown(disk, ((1,), (1,)))
    path = resealed(disk, sha256="0" * 64)
    with pytest.raises(Corrupt, match="not those that its seal names") as caught:
        list(read(disk))
    assert caught.value.file == path
    assert [damage.file for damage in verify(disk).damages] == [path]
    assert alone(disk.files())[0] == 1


def test_a_seal_with_another_merkle_root_is_found_by_the_stand_alone_verifier() -> None:
    disk = SimDisk(1)
    grown(disk, ((1,), (1,)))
    path = resealed(disk, merkle="0" * 64)
    assert alone(disk.files()) == (1, [(path.removeprefix("ledger/").replace(".jsonl", ".seal"), 0)])


def test_the_stand_alone_verifier_sets_a_superseded_writers_segment_apart() -> None:
    disk = SimDisk(1)
    grown(disk, ((1,), (1,)))
    last = segments_in(disk.list("ledger"))[-1]
    late = last._replace(number=last.number + 1, epoch=1, first_seq=last.first_seq + 9)
    disk.corrupt(f"ledger/{late.name}", b"anything\n")
    assert alone(disk.files()) == (1, [(late.name, 0)])


def test_the_stand_alone_verifier_says_what_it_cannot_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = SimDisk(1)
    grown(disk, ((1,), (1,)))
    archive(disk, keep=0)
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "compression":
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(builtins, "__import__", without)
    standalone.damages.clear()
    home = MemoryPath(disk.files())
    assert standalone.main(home) == 3  # type: ignore[arg-type]
    assert "could not be read" in capsys.readouterr().out


def test_a_line_too_short_to_name_its_predecessor_is_no_record() -> None:
    hashed = b'{"seq":1,"data":"' + b"x" * 60
    line = hashed + hash_of(hashed)[:8].encode() + b'"}'
    with pytest.raises(Unsound, match="does not name its predecessor"):
        check(line)


def test_a_proof_whose_seal_is_not_in_the_manifest_proves_nothing() -> None:
    disk = SimDisk(1)
    grown(disk, ((1,), (1,), (1,)))
    given = proof.prove(disk, 2)
    other = json.loads(manifest.read(disk, "ledger").entries[0].line)
    with pytest.raises(Unsound):
        proof.check({**given, "manifest": other})


def test_a_proof_whose_manifest_line_lacks_the_seal_proves_nothing() -> None:
    disk = SimDisk(1)
    grown(disk, ((1,), (1,), (1,), (1,)))
    given = proof.prove(disk, 2)
    path = [node[::-1] for node in given["seal_path"]]
    with pytest.raises(Unsound, match="not in the manifest"):
        proof.check({**given, "seal_path": path})


def test_a_record_of_its_own_that_only_looks_like_one_of_the_ledgers_is_no_matter() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    ledger.append([Draft("x", "y", {"a": 1, "type": "ledger.recovered"}), Draft("ledger.other", "y", {})], at())
    ledger.close()
    opened(disk).close()
    sealed = manifest.read(disk, "ledger").entries[0].seal
    assert sealed.quarantined == {}
    assert verify(disk).ok


def test_the_stand_alone_verifier_tells_how_it_is_used() -> None:
    ended = subprocess.run([sys.executable, standalone.__file__], capture_output=True, text=True, check=False)
    assert (ended.returncode, "HOME_OR_LEDGER_FOLDER" in ended.stderr) == (2, True)


def test_an_archive_of_other_content_than_was_sealed_is_found_by_both() -> None:
    disk = SimDisk(1)
    grown(disk, ((1,), (1,)))
    archive(disk, keep=0)
    path = segment_paths(disk)[0] + ".zst"
    plain = frames.unpack(disk.read(path))
    disk.corrupt(path, frames.pack(plain.replace(b"run", b"rum", 1)))
    assert [damage.file for damage in verify(disk).damages] == [path]
    assert alone(disk.files()) == (1, [(path.removeprefix("ledger/"), 0)])
    with pytest.raises(Corrupt) as caught:
        list(read(disk))
    assert caught.value.file == path


def test_a_line_that_is_hashed_and_has_no_place_for_its_predecessor_is_found_by_the_stand_alone_verifier() -> None:
    disk = SimDisk(1)
    grown(disk, ((1,),))
    path = last_segment(disk)
    lines_ = disk.read(path).splitlines(keepends=True)
    hashed = lines_[1][:-11].replace(b',"h":"', b',"q":"')
    lines_[1] = hashed + hash_of(hashed)[:8].encode() + b'"}\n'
    disk.corrupt(path, b"".join(lines_))
    name = path.removeprefix("ledger/")
    assert (name, len(lines_[0])) in alone(disk.files())[1]
    assert [(damage.file, damage.offset) for damage in verify(disk).damages][:1] == [(path, len(lines_[0]))]


def test_damage_before_a_segment_that_has_no_sound_first_line_is_reported_in_both() -> None:
    for follower, end in ((b"?\n", b""), (b"", b""), (b"?\n", b"\n"), (b"", b"\n")):
        disk = SimDisk(1)
        grown(disk, ((1,), (1,)))
        unseal(disk)
        first, second = segment_paths(disk)
        disk.corrupt(first, disk.read(first)[:-9] + end)
        disk.corrupt(second, follower)
        assert {damage.file for damage in verify(disk).damages} >= {first, second}


def test_a_cut_at_the_first_line_of_a_damaged_segment_says_what_to_do() -> None:
    disk = SimDisk(1)
    grown(disk, ((1,), (1, 1)))
    path = last_segment(disk)
    first = segments_in(disk.list("ledger"))[-1].first_seq
    data = disk.read(path)
    disk.corrupt(path, b"?" + data)
    with pytest.raises(Refused, match=f"cut at {first}, or restore it"):
        repair.loss(disk, first + 1)
    repair.cut(disk, repair.loss(disk, first), at())
    assert [record.seq for record in read(disk)] == list(range(1, first))


def test_a_backup_that_lacks_what_is_needed_puts_nothing_back() -> None:
    disk = SimDisk(1)
    records = grown(disk, ((1,), (1,), (1,)))
    whole = copy_of(disk)
    path = segment_paths(disk)[0]
    disk.remove(path)
    empty = SimDisk(2)
    empty.make_folder("ledger")
    assert repair.restore(disk, empty, at(), at="ledger") == ([], [])
    assert repair.restore(disk, whole, at(), at="ledger", names=frozenset({"another"})) == ([], [])
    restored, _ = repair.restore(disk, whole, at(), at="ledger", names=frozenset({path.removeprefix("ledger/")}))
    assert [one.file for one in restored] == [path.removeprefix("ledger/")]
    assert list(read(disk)) == records


def test_a_backup_whose_last_segment_ends_within_a_batch_or_quarantine_differs_is_refused() -> None:
    disk = SimDisk(1)
    grown(disk, ((1,), (1,)))
    disk.remove("ledger/HEAD")
    disk.corrupt(last_segment(disk), disk.read(last_segment(disk))[:-7])
    opened(disk).close()  # quarantines the torn batch
    opened(disk).close()  # seals the segment that says so
    (kept,) = disk.list("ledger/quarantine")
    backup = copy_of(disk)
    path = f"ledger/quarantine/{kept}"
    disk.remove(path)
    backup.corrupt(path, b"other")
    with pytest.raises(Refused, match="not what was quarantined"):
        repair.restore(disk, backup, at(), at="ledger")
    last = SimDisk(1)
    ledger = opened(last)
    ledger.append([fact(0), fact(1)], at())
    last.kill()
    last.remove("ledger/HEAD")
    name = last_segment(last)
    backup = copy_of(last)
    whole = last.read(name).splitlines(keepends=True)
    last.corrupt(name, whole[0].replace(b"box", b"bax"))
    backup.corrupt(name, b"".join(whole[:-1]))
    with pytest.raises(Refused, match="ends within a batch"):
        repair.restore(last, backup, at(), at="ledger")


def test_a_full_disk_at_the_note_of_the_head_is_said_and_harms_nothing(tmp_path: Path) -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    disk.fail(disk.operations + 1, errno.ENOSPC)
    with pytest.raises(Full, match="HEAD"):
        ledger.note_head()
    disk.fail(disk.operations + 1, errno.EIO)
    with pytest.raises(OSError, match="rror"):
        ledger.note_head()
    ledger.append([fact(0)], at())
    ledger.close()
    ledger.close()
    assert verify(disk).ok


def test_a_sealed_record_is_read_with_every_field_that_it_had() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    ledger.append([Draft("x", "y", {"a": 1}, id="i", cause=1, corr="c", tv=3), Draft("x", "y", {})], at())
    ledger.close()
    before = list(read(disk))
    opened(disk).close()
    assert list(read(disk))[: len(before)] == before
    assert (before[1].id, before[1].cause, before[1].corr, before[1].tv) == ("i", 1, "c", 3)


def test_what_an_interrupted_recovery_had_kept_is_recorded_in_full_among_what_was_recorded_before() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    ledger.append([fact(0)], at())
    disk.kill()
    disk.remove("ledger/HEAD")
    path = last_segment(disk)
    good = disk.size(path)
    disk.corrupt(path, disk.read(path) + b"half")
    (cut,) = survey(disk, "ledger").cuts
    assert (cut.offset, cut.bytes, cut.sha256) == (good, 4, sha256(b"half").hexdigest())
    opened(disk).close()
    disk.corrupt("ledger/quarantine/zzz.tail", b"kept")
    (found,) = survey(disk, "ledger").found
    reason = "kept by a recovery that did not come to its end"
    assert found == Cut("", 0, 4, sha256(b"kept").hexdigest(), "zzz.tail", reason)


def test_the_reasons_are_sentences_that_people_can_act_on() -> None:
    with pytest.raises(Unsound, match="^it is not the one line, with a hash that matches, that a seal must be$"):
        seal.decode(with_own_hash({"v": 1}))
    disk = SimDisk(1)
    grown(disk, ((1,), (1,), (1,)))
    second = segments_in(disk.list("ledger"))[1]
    sealed = seal.read(disk, "ledger", second)
    assert sealed is not None
    chain = Chain()
    with pytest.raises(Unsound, match="^the segment has number 2; 1 must come next$"):
        chain.enter_sealed(sealed)
    first = seal.read(disk, "ledger", segments_in(disk.list("ledger"))[0])
    assert first is not None
    chain.enter_sealed(first)
    with pytest.raises(Unsound, match="^the segment does not name the record before it as its predecessor$"):
        chain.copy().enter_sealed(sealed._replace(previous="0" * 22))
    with pytest.raises(Unsound, match="^the segment belongs to ledger f+, the ones before to "):
        chain.copy().enter_sealed(sealed._replace(ledger_id="f" * 32))
    chain.enter_sealed(sealed)
    assert (chain.seq, chain.hash, chain.more) == (sealed.last_seq, sealed.last_hash, False)


def test_a_seal_names_what_every_record_of_its_segment_put_into_quarantine() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    digests = {name: sha256(name.encode()).hexdigest() for name in ("a.tail", "b.tail", "c.tail")}
    entries = [{"quarantine": name, "sha256": digest} for name, digest in digests.items()]
    for cuts, found in ((entries[:1], entries[1:2]), (entries[2:], [])):
        ledger.append([fact(0), Draft(CUT, "ledger", {"cuts": cuts, "found": found}), fact(1)], at())
    ledger.close()
    segment = segments_in(disk.list("ledger"))[0]
    data = disk.read(f"ledger/{segment.name}")
    assert seal.seal_of(segment, data).quarantined == digests
    with pytest.raises(Unsound, match="^the segment does not end with a newline$"):
        seal.seal_of(segment, data[:-1])
    with pytest.raises(Unsound, match="^the segment ends within a batch$"):
        seal.seal_of(segment, b"".join(data.splitlines(keepends=True)[:-1]))


def test_a_ledger_of_format_1_is_refused_by_that_name_file_by_file() -> None:
    disk = SimDisk(1)
    grown(disk, ((1,),))
    segment = last_segment(disk)
    old = b'{"v":1,' + disk.read("ledger/EPOCH").partition(b",")[2]
    line = b'{"v":1,' + disk.read(segment)[1:]
    for mark in (old, None):
        disk.remove("ledger/HEAD") if disk.exists("ledger/HEAD") else None
        disk.corrupt("ledger/EPOCH", mark) if mark else disk.remove("ledger/EPOCH")
        disk.corrupt(segment, line)
        with pytest.raises(Corrupt, match="of format 1; this program reads format 2"):
            survey(disk, "ledger")


def unseal(disk: SimDisk) -> None:
    """As an early version left it: nothing says what is in a finished segment."""
    for name in disk.list("ledger"):
        if name.endswith(".seal") or name == MANIFEST:
            disk.remove(f"ledger/{name}")


def test_a_segment_that_nothing_vouches_for_and_that_has_the_wrong_number_is_refused() -> None:
    disk = SimDisk(1)
    grown(disk, ((1,), (1,)))
    unseal(disk)
    path = last_segment(disk)
    data = disk.read(path)
    disk.remove(path)
    write_atomically(disk, path.replace("0000000002-", "0000000003-"), data, durable=True)
    with pytest.raises(Corrupt, match="the segment has number 3; 2 must come next"):
        list(read(disk))


def test_the_verifier_names_an_archive_that_nothing_vouches_for_and_that_cannot_be_unpacked() -> None:
    disk = SimDisk(1)
    grown(disk, ((1,), (1,), (1,)))
    archive(disk, keep=0)
    unseal(disk)
    path = f"{segment_paths(disk)[0]}.zst"
    disk.corrupt(path, b"?" + disk.read(path)[1:])
    assert path in {damage.file for damage in verify(disk).damages}


def test_the_seal_of_an_archived_segment_is_made_again_from_the_manifest() -> None:
    disk = SimDisk(1)
    grown(disk, ((1,), (1,), (1,)))
    archive(disk, keep=0)
    path = f"ledger/{segments_in(disk.list('ledger'))[0].seal_name}"
    line = disk.read(path)
    disk.remove(path)
    opened(disk).close()
    assert disk.read(path) == line
    assert verify(disk).ok


def test_a_damaged_seal_says_nothing_and_what_it_would_have_said_is_followed_line_by_line() -> None:
    disk = SimDisk(1)
    before = grown(disk, ((1,), (1,)))
    segment = segments_in(disk.list("ledger"))[0]
    disk.remove(f"ledger/{MANIFEST}")
    disk.corrupt(f"ledger/{segment.seal_name}", b"?")
    assert manifest.seals_in(disk, "ledger") == {}
    assert list(read(disk)) == before


def test_an_index_is_made_of_what_was_sealed_and_of_nothing_else() -> None:
    disk = SimDisk(1)
    grown(disk, ((1,), (1,)))
    segment = segments_in(disk.list("ledger"))[0]
    sealed = manifest.seals_in(disk, "ledger")[segment.number]
    made = index.build(disk, segment, sealed, lambda _: ())
    path = f"ledger/{segment.name}"
    disk.corrupt(path, disk.read(path) + b"a superseded writer's\n")
    assert index.build(disk, segment, sealed, lambda _: ()) == made
    with pytest.raises(Corrupt, match="not those that were sealed"):
        index.build(disk, segment, sealed._replace(sha256="0" * 64), lambda _: ())


def test_a_search_ends_where_all_is_sealed_and_a_superseded_writer_went_on() -> None:
    disk = SimDisk(1)
    before = grown(disk, ((1,), (1,)))
    first, last = segment_paths(disk)
    for path in (last, "ledger/HEAD", "ledger/EPOCH"):
        disk.remove(path)
    disk.corrupt(first, disk.read(first) + b"a superseded writer's\n")
    kept = [record for record in before if record.seq <= 2]
    assert [found.record for found in index.search(disk, index.Wanted(), lambda _: ())] == kept
    assert list(read(disk)) == kept


def test_a_last_segment_is_put_back_also_where_nothing_says_what_was_before_it() -> None:
    backup = SimDisk(1)
    before = grown(backup, ((1,), (1, 1)))
    unseal(backup)
    disk = copy_of(backup)
    path = last_segment(disk)
    disk.corrupt(path, disk.read(path)[:-200] + b"?" * 9)
    restored, _ = repair.restore(disk, backup, at(10), at="ledger")
    assert [f"ledger/{one.file}" for one in restored] == [path]
    assert list(read(disk)) == before


def test_a_quarantined_file_that_is_there_or_nowhere_is_left_alone() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    ledger.append([fact(0)], at())
    ledger.close()
    disk.remove("ledger/HEAD")
    disk.corrupt(last_segment(disk), disk.read(last_segment(disk)) + b"torn")
    for second in range(3):
        opened(disk, second).close()
    (name,) = disk.list("ledger/quarantine")
    backup = copy_of(disk)
    assert repair.restore(disk, backup, at(10), at="ledger") == ([], [])
    for one in (disk, backup):
        one.remove(f"ledger/quarantine/{name}")
    assert repair.restore(disk, backup, at(10), at="ledger") == ([], [])


def test_a_damaged_line_is_nowhere_to_begin() -> None:
    disk = SimDisk(1)
    grown(disk, ((1,),))
    line = disk.read(last_segment(disk)).splitlines()[0]
    with pytest.raises(Unsound, match="does not match"):
        Chain().adopt(line.replace(b"boot", b"root"), segments_in(disk.list("ledger"))[0])


def test_damage_at_the_end_of_a_segment_is_not_said_of_the_sound_one_behind_it() -> None:
    for end in (b"", b"\n"):
        disk = SimDisk(1)
        grown(disk, ((1,), (1, 2)))
        unseal(disk)
        first, _ = segment_paths(disk)
        disk.corrupt(first, disk.read(first)[:-9] + end)
        assert {damage.file for damage in verify(disk).damages} == {first}


@pytest.mark.parametrize("seen", [1, 2, 3, 4, 5, 6])
def test_what_is_written_while_a_reader_stands_at_the_end_is_no_damage(
    monkeypatch: pytest.MonkeyPatch, seen: int
) -> None:
    """The end of the file is read twice, and the writer has gone on by two batches in between."""
    disk = SimDisk(0)
    records = grown(disk, ((1, 2, 3),))
    for name in ("HEAD", "EPOCH"):
        disk.remove(f"ledger/{name}")  # What they prove is known before the reading begins.
    path = last_segment(disk)
    whole = disk.read(path)
    ends = [index + 1 for index, byte in enumerate(whole) if byte == 10]
    disk.corrupt(path, whole[: ends[seen - 1] + 40])
    tail = Walk._tail

    def meanwhile(self: Walk, place: Place) -> bytes:
        disk.corrupt(path, whole)
        return tail(self, place)

    monkeypatch.setattr(Walk, "_tail", meanwhile)
    found = list(read(disk))
    assert found == records[: len(found)]
    assert len(found) == {1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4}[seen]
