"""Ledgers changed by someone who recomputes the hashes: each line vouches for itself, and yet it does not belong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from ledger_home import WRITER, at, copy_of, fact, grown, last_segment, opened, segment_paths

from ledger import frames, manifest, merkle, proof, recovery, repair, seal
from ledger.archive import archive
from ledger.chain import Chain, Head
from ledger.errors import Corrupt, Missing, Refused
from ledger.instant import Now, ms_of, text_of
from ledger.ledger import Bounds, Ledger
from ledger.manifest import MANIFEST
from ledger.reader import Tail, Walk, read, repairs
from ledger.record import Draft, Record, Unsound, decode, hash_of, own_hash, with_own_hash
from ledger.recovery import Cut, keep, survey
from ledger.segment import RECOVERED, Segment, named, segments_in
from ledger.verify import verify
from simulations.campaign.law import alone
from simulations.disk import SimDisk

Json = Any
Edit = Callable[[list[dict[str, Json]]], None]


def three_epochs() -> SimDisk:
    disk = SimDisk(1)
    grown(disk, ((1, 1), (2,), (1, 1)))
    return disk


def hashed(line: bytes) -> bytes:
    """A line that is no record, with its own hash."""
    return line + b',"h":"' + hash_of(line).encode() + b'"}\n'


def chained(line: bytes, previous: str) -> tuple[bytes, str]:
    """The line of a record, and its hash."""
    line += b',"h":"' + previous.encode()
    digest = hash_of(line)
    return line + digest[:8].encode() + b'"}\n', digest


def rewrite(disk: SimDisk, path: str, edit: Edit) -> None:
    """Change the records of a segment and chain them anew."""
    records = [json.loads(line) for line in disk.read(path).splitlines()]
    previous = records[0]["h"][:22]
    edit(records)
    data = b""
    for record in records:
        before = previous if record.pop("h") != "?" else "0" * 22
        line = json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()[:-1]
        line, previous = chained(line, before)
        data += line
    disk.corrupt(path, data)


def field(number: int, name: str, value: Json) -> Edit:
    def edit(records: list[dict[str, Json]]) -> None:
        records[number][name] = value

    return edit


def opening(name: str, value: Json) -> Edit:
    def edit(records: list[dict[str, Json]]) -> None:
        records[0]["data"][name] = value

    return edit


FORGED = {
    "begins with no segment.open": (field(0, "type", "run.finished"), 0, "must begin with"),
    "names another segment": (opening("segment", 7), 0, "the file's name is not that of the segment in it"),
    "another format": (opening("format", 3), 0, "format 3"),
    "another ledger": (opening("ledger", "f" * 32), 0, "belongs to ledger"),
    "opens in a larger batch": (field(0, "n", 1), 0, "a segment's first record must be a batch of its own"),
    "a seq is left out": (field(1, "seq", 99), 1, "must come next"),
    "another epoch": (field(1, "ep", 99), 1, "the segment is of epoch"),
    "the start of a batch is left out": (field(1, "n", 2), 1, "a batch must begin"),
    "not the last of as many": (field(1, "of", 2), 1, "the last of a batch of 2"),
    "another predecessor": (field(1, "h", "?"), 1, "as its predecessor"),
    "a field is missing": (lambda records: records[1].pop("ts"), 1, "no field 'ts'"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_record_that_vouches_for_itself_and_does_not_belong_is_found_by_all(name: str) -> None:
    edit, number, why = FORGED[name]
    disk = three_epochs()
    path = last_segment(disk)
    rewrite(disk, path, edit)
    offset = sum(len(line) for line in disk.read(path).splitlines(keepends=True)[:number])
    with pytest.raises(Corrupt, match=rf"(?<!\w){why}(?!\w)") as refused:
        survey(disk, "ledger")
    with pytest.raises(Corrupt) as shown:
        list(read(disk))
    for caught in (refused.value, shown.value):
        assert (caught.file, caught.offset) == (path, offset)
    first = verify(disk).damages[0]
    assert (first.file, first.offset) == (path, offset)
    if name not in ("another format", "a field is missing"):  # the page of plain Python does not look at these
        status, places = alone(disk.files())
        assert status == 1
        assert (path.removeprefix("ledger/"), offset) in places


def test_a_batch_that_does_not_go_on_as_it_began_is_found() -> None:
    for change in (field(2, "n", 1), field(2, "n", 5)):
        disk = SimDisk(1)
        grown(disk, ((1,), (3,)))
        rewrite(disk, last_segment(disk), change)
        with pytest.raises(Corrupt, match="the batch that began with seq 4 must go on"):
            survey(disk, "ledger")
        assert not verify(disk).ok
        assert alone(disk.files())[0] == 1


def test_a_line_that_is_hashed_and_is_no_json_is_found() -> None:
    disk = SimDisk(1)
    grown(disk, ((1, 1),))
    path = last_segment(disk)
    lines = disk.read(path).splitlines(keepends=True)
    lines[1] = chained(b'{"seq":2,"ep":1]]]', decode(lines[0]).hash)[0]
    disk.corrupt(path, b"".join(lines))
    with pytest.raises(Corrupt, match="not JSON"):
        survey(disk, "ledger")
    assert not verify(disk).ok


def changed(line: bytes, **fields: Json) -> bytes:
    """A line with its own hash, with other fields."""
    told = own_hash(line)
    told.pop("h")
    return with_own_hash(told | fields)


def test_a_seal_that_contradicts_the_manifest_is_refused_and_named() -> None:
    disk = three_epochs()
    path = f"ledger/{segments_in(disk.list('ledger'))[0].seal_name}"
    disk.corrupt(path, changed(disk.read(path), merkle="0" * 64))
    with pytest.raises(Corrupt, match=f"other content than {MANIFEST}") as caught:
        survey(disk, "ledger")
    assert (caught.value.file, caught.value.offset) == (path, 0)
    assert caught.value.advice == repairs(segment_paths(disk)[0], 0)
    assert [damage.file for damage in verify(disk).damages] == [path]
    assert alone(disk.files())[0] == 1


def test_each_of_several_damaged_seals_is_set_aside() -> None:
    disk = three_epochs()
    seals = [segment.seal_name for segment in segments_in(disk.list("ledger"))[:2]]
    for name in seals:
        disk.corrupt(f"ledger/{name}", b"?")
    why = "the line does not end with the hash of its bytes"
    assert [(cut.file, cut.reason) for cut in survey(disk, "ledger").cuts] == [(name, why) for name in seals]
    opened(disk).close()
    assert verify(disk).ok


def test_a_seal_of_another_segment_or_that_lacks_a_field_is_set_aside_and_made_again() -> None:
    whole = three_epochs()
    first, second = segments_in(whole.list("ledger"))[:2]
    seals = [whole.read(f"ledger/{segment.seal_name}") for segment in (first, second)]
    lacking = own_hash(seals[0])
    del lacking["h"], lacking["merkle"]
    for forged in (seals[1], with_own_hash(lacking), with_own_hash([1])):  # type: ignore[arg-type]
        disk = copy_of(whole)
        disk.corrupt(f"ledger/{first.seal_name}", forged)
        assert verify(disk).damages[0].file == f"ledger/{first.seal_name}"
        assert alone(disk.files())[0] == 1
        with pytest.raises(Corrupt, match="seal"):
            archive(disk, keep=0)
        ledger = opened(disk)
        assert [cut.file for cut in ledger.recovery.cuts] == [first.seal_name]
        ledger.close()
        assert disk.read(f"ledger/{first.seal_name}") == seals[0]
        assert verify(disk).ok
    disk = copy_of(whole)
    disk.remove(f"ledger/{first.seal_name}")
    assert [damage.file for damage in verify(disk).damages] == [f"ledger/{first.seal_name}"]
    assert alone(disk.files())[0] == 1


def test_a_damaged_seal_of_a_segment_that_is_gone_is_the_missing_segment() -> None:
    disk = three_epochs()
    second = segments_in(disk.list("ledger"))[1]
    disk.corrupt(f"ledger/{second.seal_name}", b"?")
    disk.remove(f"ledger/{second.name}")
    with pytest.raises(Corrupt, match="sealed segment is missing") as caught:
        survey(disk, "ledger")
    assert caught.value.file == f"ledger/{second.name}"
    assert (caught.value.first_good, caught.value.last_good) == (1, second.first_seq - 1)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"previous": "0" * 22}, "as its predecessor"),
        ({"ledger": "f" * 32}, "belongs to ledger"),
    ],
)
def test_a_seal_that_does_not_follow_the_one_before_it_is_found(change: dict[str, Json], why: str) -> None:
    disk = three_epochs()
    second = segments_in(disk.list("ledger"))[1]
    disk.remove(f"ledger/{MANIFEST}")
    path = f"ledger/{second.seal_name}"
    disk.corrupt(path, changed(disk.read(path), **change))
    for look in (lambda: survey(disk, "ledger"), lambda: list(read(disk))):
        with pytest.raises(Corrupt, match=why) as caught:
            look()  # type: ignore[no-untyped-call]
        assert caught.value.file == f"ledger/{second.name}"
    assert f"ledger/{second.name}" in [damage.file for damage in verify(disk).damages]


def test_a_seal_under_a_name_that_the_manifest_does_not_give_is_not_believed() -> None:
    disk = three_epochs()
    first = segments_in(disk.list("ledger"))[0]
    sealed = seal.read(disk, "ledger", first)
    assert sealed is not None
    other = sealed._replace(first_seq=5)
    with pytest.raises(Corrupt, match="was sealed as"):
        list(Walk(disk, [first], {}, folder="ledger", seals={1: other}))


def test_each_way_a_manifest_can_contradict_itself_is_set_aside_and_made_again() -> None:
    whole = three_epochs()
    opened(whole).close()
    path = f"ledger/{MANIFEST}"
    data = whole.read(path)
    lines = data.splitlines(keepends=True)
    lacking = own_hash(lines[1])
    del lacking["h"], lacking["root"]
    forged = {
        "a line is left out": lines[:1] + lines[2:],
        "the order is another": [lines[1], lines[0], *lines[2:]],
        "another predecessor": [lines[0], changed(lines[1], p="0" * 22), *lines[2:]],
        "another root": [lines[0], changed(lines[1], root="0" * 64), *lines[2:]],
        "one field more": [lines[0], changed(lines[1], more=1), *lines[2:]],
        "one field less": [lines[0], with_own_hash(lacking), *lines[2:]],
        "no line at all": [b"{}\n", *lines[1:]],
    }
    for name, content in forged.items():
        disk = copy_of(whole)
        disk.corrupt(path, b"".join(content))
        assert verify(disk).damages[0].file == path, name
        if name != "one field more":
            assert alone(disk.files())[0] == 1, name
        ledger = opened(disk)
        assert [cut.file for cut in ledger.recovery.cuts] == [MANIFEST], name
        ledger.close()
        assert disk.read(path).startswith(data), name
        assert verify(disk).ok, name
    noted = manifest.parse(lines[0])
    with pytest.raises(Unsound, match="2 must come next"):
        noted.followed_by(noted.entries[0].seal)


def test_a_watermark_that_contradicts_the_segments_is_refused_and_named() -> None:
    whole = three_epochs()
    epochs = segments_in(whole.list("ledger"))
    for file, change, why in (
        ("EPOCH", {"epoch": 1}, "it says epoch 1; there is a segment of epoch 3"),
        ("EPOCH", {"ledger": "f" * 32}, "it belongs to ledger f+, the segments to [0-9a-e]"),
        ("HEAD", {"ledger": "f" * 32}, "it belongs to ledger f+, the segments to [0-9a-e]"),
        ("HEAD", {"seq": 2, "hash": "0" * 22}, "another record as seq 2"),
        ("HEAD", {"seq": epochs[-1].first_seq, "hash": "0" * 22}, "another record as seq"),
    ):
        disk = copy_of(whole)
        disk.corrupt(f"ledger/{file}", changed(disk.read(f"ledger/{file}"), **change))
        with pytest.raises(Corrupt, match=why) as refused:
            survey(disk, "ledger")
        if "it " in why:
            assert (refused.value.file, refused.value.offset) == (f"ledger/{file}", 0)
        if "it belongs" in why:
            assert (refused.value.first_good, refused.value.last_good) == (1, list(read(whole))[-1].seq)
        assert ("move this file away" in refused.value.advice) == ("epoch" in why)
        assert [damage.file for damage in verify(disk).damages] == [f"ledger/{file}"]
        assert alone(disk.files()) == (1, [(file, 0)])


@pytest.mark.parametrize("sizes", [(1,) * 12, (3, 1, 5, 2)])
def test_whichever_record_a_watermark_contradicts_the_good_ones_before_it_are_read(sizes: tuple[int, ...]) -> None:
    disk = SimDisk(1)
    grown(disk, (sizes,))
    path, head = segment_paths(disk)[0], disk.read("ledger/HEAD")
    records, text = list(read(disk)), disk.read(path)
    for record in records[1:]:
        disk.corrupt("ledger/HEAD", changed(head, seq=record.seq, hash="0" * 22))
        given: list[Record] = []
        with pytest.raises(Corrupt, match=f"HEAD names another record as seq {record.seq};") as caught:
            given.extend(read(disk))
        assert given == records[: record.batch - 1]
        assert caught.value.offset == text.index(b'{"seq":%d,' % record.seq)
        assert (caught.value.first_good, caught.value.last_good) == (1, record.seq - 1)


def without_seals(disk: SimDisk) -> SimDisk:
    for name in disk.list("ledger"):
        if name.endswith(".seal") or name == MANIFEST:
            disk.remove(f"ledger/{name}")
    return disk


def test_damage_in_segments_without_seals_is_reported_once_and_where_it_is() -> None:
    whole = without_seals(three_epochs())
    paths = segment_paths(whole)
    first = whole.read(paths[0])
    lines = first.splitlines(keepends=True)
    for content, offset in (
        (b"".join(lines[:-1]), len(first) - len(lines[-1])),
        (b"", 0),
        (first[:-9], len(first) - len(lines[-1])),
        (first + lines[-1], len(first)),
    ):
        disk = copy_of(whole)
        disk.corrupt(paths[0], content)
        damages = verify(disk).damages
        assert (damages[0].file, damages[0].offset) == (paths[0], offset)
        status, places = alone(disk.files())
        assert (status, places[0][0]) == (1, paths[0].removeprefix("ledger/"))
    disk = copy_of(whole)
    disk.corrupt(paths[1], b"?\n?\n")
    disk.corrupt(paths[0], first[:-9])
    assert {damage.file for damage in verify(disk).damages[:2]} == set(paths[:2])
    disk = copy_of(whole)
    disk.remove(paths[1])
    assert [damage.file for damage in verify(disk).damages] == [paths[2]]
    with pytest.raises(Corrupt) as caught:
        list(read(disk))
    assert caught.value.file in paths[:1] + paths[2:]


def test_a_chain_takes_no_segment_that_cannot_come_next() -> None:
    disk = SimDisk(1)
    grown(disk, ((3,),))
    lines = disk.read(last_segment(disk)).splitlines()
    chain = Chain()
    chain.enter(Segment(1, 1, 1))
    for line in lines[:2]:
        chain.take(line)
    with pytest.raises(Unsound, match="ends within the batch that begins with seq 2"):
        chain.enter(Segment(2, 1, 4))
    for line in lines[2:]:
        chain.take(line)
    for segment, why in ((Segment(3, 1, 5), "2 must come next"), (Segment(2, 1, 9), "the one before ends with 4")):
        with pytest.raises(Unsound, match=why):
            chain.enter(segment)
    with pytest.raises(Unsound, match="is of epoch 0; the one before is of 1"):
        chain.enter(Segment(2, 0, 5))
    twin = chain.copy()
    twin.enter(Segment(2, 2, 5))
    assert (chain.number, twin.number) == (1, 2)
    adopted = Chain()
    adopted.adopt(lines[0], Segment(1, 1, 1))
    assert adopted.take(lines[0]).seq == 1
    elsewhere = Chain()
    elsewhere.adopt(lines[0], Segment(9, 1, 1))
    with pytest.raises(Unsound, match="^the file's name is not that of the segment in it$"):
        elsewhere.take(lines[0])


def test_a_segment_that_does_not_end_well_is_not_sealed() -> None:
    disk = SimDisk(1)
    grown(disk, ((3,),))
    data = disk.read(last_segment(disk))
    segment = named(last_segment(disk).removeprefix("ledger/"))
    assert segment is not None
    with pytest.raises(Unsound, match="newline"):
        seal.seal_of(segment, data[:-1])
    with pytest.raises(Unsound, match="within a batch"):
        seal.seal_of(segment, b"".join(data.splitlines(keepends=True)[:-1]))
    sealed = seal.seal_of(segment, data)
    assert seal.line_at(data, 3) == data.index(b'{"seq":3,')
    assert seal.line_at(data, 9) == len(data)
    assert seal.decode(sealed.line()) == sealed
    assert named("0000000001-e00001-0000000000000001.jsonl") is None


def test_what_recovery_did_is_recorded_with_every_detail() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    ledger.append([fact(0)], at())
    ledger.note_head(durable=True)
    marked = ledger.head
    ledger.append([fact(1)], at())
    head = ledger.head
    disk.kill()
    path = last_segment(disk)
    good = disk.size(path)
    disk.corrupt(path, disk.read(path) + b"half a record")
    again = opened(disk, 7)
    again.close()
    (recorded,) = [record for record in read(disk) if record.type == RECOVERED]
    name = path.removeprefix("ledger/")
    aside = f"{name.removesuffix('.jsonl')}.{good}.20261121T043907.123456Z.tail"
    assert recorded.subject == f"ledger/{ledger.ledger_id}"
    assert recorded.data == {
        "last_seq": head.seq,
        "last_hash": head.hash,
        "watermark_seq": marked.seq,
        "cuts": [
            {
                "file": name,
                "offset": good,
                "bytes": 13,
                "sha256": sha256(b"half a record").hexdigest(),
                "quarantine": aside,
                "reason": "the last batch is not complete",
            }
        ],
        "found": [],
        "rewritten": {"file": name, "bytes": good, "last_seq": head.seq},
    }
    assert disk.read(f"ledger/quarantine/{aside}") == b"half a record"
    assert (again.recovery.records, again.recovery.watermark_seq) == (head.seq, marked.seq)


def test_what_is_to_be_cut_is_known_before_it_is_kept() -> None:
    disk = SimDisk(1)
    grown(disk)
    disk.corrupt("ledger/HEAD", b"?" * 9)
    (cut,) = survey(disk, "ledger").cuts
    assert cut == Cut("HEAD", 0, 9, sha256(b"?" * 9).hexdigest(), "", cut.reason)


def test_two_files_of_one_name_and_time_are_both_kept_in_quarantine() -> None:
    disk = SimDisk(1)
    disk.make_folder("ledger")
    names = []
    for content in (b"one", b"two", b"three", b"one"):
        disk.corrupt("ledger/x.jsonl", content)
        names.append(keep(disk, "ledger", Cut("x.jsonl", 0, 0, "", "", "why"), at()).quarantine)
    assert names[3] == names[0]
    assert [name.rpartition("Z")[2] for name in names[:3]] == [".tail", "-2.tail", "-3.tail"]
    kept = {disk.read(f"ledger/quarantine/{name}") for name in names}
    assert kept == {b"one", b"two", b"three"}


def test_the_quarantine_itself_survives_a_power_cut() -> None:
    for seed in range(10):
        disk = SimDisk(seed)
        disk.make_folder("ledger")
        disk.corrupt("ledger/x.jsonl", b"one")
        disk.sync_folder("")
        disk.sync_folder("ledger")
        cut = keep(disk, "ledger", Cut("x.jsonl", 0, 0, "", "", "why"), at())
        disk.crash()
        assert disk.read(f"ledger/quarantine/{cut.quarantine}") == b"one"


def archived() -> SimDisk:
    disk = three_epochs()
    opened(disk).close()
    archive(disk, keep=1)
    return disk


def test_an_archive_whose_trailer_lies_is_found() -> None:
    packed = frames.pack(b"some content\n")
    size = int(packed[-9:-1])
    line = packed[-9 - size : -9]
    for fields in ({"bytes": 3}, {"more": 1}, {"sha256": "0" * 64}):
        forged = changed(line, **fields)
        behind = len(forged).to_bytes(4, "little")
        body = packed[: -17 - size] + packed[-17 - size : -13 - size] + (len(forged) + 9).to_bytes(4, "little")
        assert behind
        with pytest.raises(Unsound):
            frames.unpack(body + forged + b"%08d\n" % len(forged))
    for junk in (b"", b"?" * 40, b"?" * 40 + b"00000003\n"):
        with pytest.raises(Unsound):
            frames.unpack(junk)
        disk = SimDisk(1)
        disk.corrupt("a.zst", junk)
        with pytest.raises(Unsound):
            frames.plain_bytes(disk, "a.zst")
    with pytest.raises(Unsound, match="cannot be unpacked"):
        frames._frame(b"no frame")


def test_a_start_that_trusts_what_is_sealed_still_looks_at_the_length_of_archives() -> None:
    whole = archived()
    records = list(read(whole))
    path = next(path for path in whole.files() if path.endswith(".zst"))
    assert survey(whole, "ledger", trusted_seq=len(records)).records == len(records)
    data = whole.read(path)
    whole.corrupt(path, data[:-3])
    with pytest.raises(Corrupt, match="trailer") as caught:
        survey(whole, "ledger", trusted_seq=len(records))
    assert caught.value.file == path


def test_a_segment_that_is_not_as_it_was_sealed_is_not_archived() -> None:
    disk = three_epochs()
    path = segment_paths(disk)[0]
    data = disk.read(path)
    disk.corrupt(path, data.replace(b"run", b"rum", 1))
    with pytest.raises(Corrupt, match="not those that its seal names"):
        archive(disk, keep=0)
    assert disk.exists(path)
    assert not disk.exists(path + ".zst")


def test_a_tail_stops_at_damage_and_names_it() -> None:
    for change, last_good in ((0, 0), (2, 2)):
        disk = SimDisk(1)
        grown(disk, ((1, 1, 1),))
        path = last_segment(disk)
        lines = disk.read(path).splitlines(keepends=True)
        lines[change] = lines[change].replace(b'"ep":', b'"eq":', 1)
        disk.corrupt(path, b"".join(lines))
        tail = Tail(disk)
        with pytest.raises(Corrupt) as caught:
            tail.poll()
        assert caught.value.file == path
        assert caught.value.offset == sum(map(len, lines[:change]))
        assert (caught.value.first_good, caught.value.last_good) == (min(1, last_good), last_good)


def test_a_tail_follows_a_segment_that_is_damaged_at_its_end_only_if_it_is_torn() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    ledger.append([fact(0)], at())
    path = last_segment(disk)
    tail = Tail(disk)
    assert len(tail.poll()) == 2
    disk.corrupt(path, disk.read(path) + b"half\n")
    assert tail.poll() == []


def test_small_things_that_are_refused_say_why() -> None:
    with pytest.raises(ValueError, match="at least 1 byte"):
        Bounds(segment_bytes=0)
    with pytest.raises(ValueError, match="no reserve is less"):
        Bounds(reserve_bytes=-1)
    with pytest.raises(ValueError, match="no offset from UTC"):
        ms_of("2026-11-21T04:30:00")
    assert ms_of(text_of(1_795_235_940_123)) == 1_795_235_940_123
    assert text_of(1_795_235_940_000) == "2026-11-21T04:39:00Z"
    assert (Now(3_000_000, 5_000_000).wall_ms, Now(3_000_000, 5_000_000).boot_ms) == (3, 5)
    assert merkle.Tree().root == merkle.EMPTY
    with pytest.raises(Unsound, match="has no leaf"):
        merkle.root_by([], b"", 3, 3)
    disk = SimDisk(1)
    ledger = opened(disk)
    ledger.stage(fact(0), at())
    with pytest.raises(ValueError, match="being staged"):
        ledger.append([fact(1)], at())
    with pytest.raises(Missing, match="no record 0"):
        proof.prove(disk, 0)
    with pytest.raises(Unsound, match="no kind of proof"):
        proof.check({"proof": "another"})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"a": [{"b": 2**64}]}, "data.a[0].b is 18446744073709551616, beyond 64 bits; write it as a text"),
        ({"a": -(2**63) - 1}, "data.a is -9223372036854775809, beyond 64 bits; write it as a text"),
        ({"a": {"b": {1}}}, "data.a.b is a set, which JSON cannot carry"),
        ({"a": {1: 2}}, "data.a has the key 1; a JSON key must be a text"),
        (
            {"x": {"\ud800": 1}},
            "data.x.\\ud800 has half a character in it (a lone surrogate), which UTF-8 cannot carry",
        ),
        ({"x": "\ud800"}, "data.x has half a character in it (a lone surrogate), which UTF-8 cannot carry"),
        ({"x": float("inf")}, "data.x is inf, which JSON cannot carry; leave it out or write null"),
    ],
)
def test_what_json_cannot_carry_is_refused_with_its_place(data: dict[str, Json], said: str) -> None:
    with pytest.raises(Refused) as caught:
        opened(SimDisk(1)).append([Draft("x", "y", data)], at())
    assert str(caught.value) == said


def test_the_least_and_the_greatest_numbers_are_carried() -> None:
    disk = SimDisk(1)
    ledger = opened(disk)
    numbers = [-(2**63), 2**64 - 1, -127, 1.5, True, None]
    ledger.append([Draft("x", "y", {"numbers": numbers, "tuple": (1, 2)})], at())
    found = list(read(disk))[-1].data
    assert found == {"numbers": numbers, "tuple": [1, 2]}


def nested(levels: int) -> Json:
    value: Json = 2**64  # makes the refusal look for the place
    for _ in range(levels):
        value = [value]
    return value


def test_how_deep_a_value_may_be_is_said() -> None:
    ledger = opened(SimDisk(1))
    with pytest.raises(Refused, match=r"^data\.a(\[0\])+ is nested deeper than 200 levels$"):
        ledger.append([Draft("x", "y", {"a": nested(250)})], at())
    with pytest.raises(Refused, match=r"^data\.a(\[0\]){150} is 18446744073709551616, beyond 64 bits"):
        ledger.append([Draft("x", "y", {"a": nested(150)})], at())


def test_a_proof_from_a_segment_that_was_changed_is_not_made() -> None:
    disk = three_epochs()
    path = segment_paths(disk)[0]
    disk.corrupt(path, disk.read(path).replace(b"run", b"rum", 1))
    with pytest.raises(Unsound, match="not as it was sealed"):
        proof.prove(disk, 2)


def test_what_a_backup_offers_that_is_not_what_is_needed_is_refused() -> None:
    disk, other = three_epochs(), SimDisk(2)
    ledger = Ledger.open(other, replace(WRITER, host="another"), at(3))
    ledger.append([fact(1)], at())
    ledger.close()
    path = last_segment(disk)
    sealed = segment_paths(disk)[0]
    disk.corrupt(sealed, b"?")
    other.corrupt(sealed, b"??")
    with pytest.raises(Refused, match="is not what was sealed"):
        repair.restore(disk, other, at(), at="ledger")
    disk = three_epochs()
    data = disk.read(path)
    offered = copy_of(disk)
    disk.corrupt(path, data[:-9])
    for content, why in (
        (data.replace(b'"ep":', b'"eq":', 1), "does not verify"),
        (b"".join(data.splitlines(keepends=True)[:-1]), "lacks records that were durable"),
    ):
        offered.corrupt(path, content)
        with pytest.raises(Refused, match=why):
            repair.restore(disk, offered, at(), at="ledger")
    assert recovery.QUARANTINE not in [name for name in disk.list("ledger") if disk.list(f"ledger/{name}")]


def test_records_know_how_they_end() -> None:
    disk = SimDisk(1)
    records: list[Record] = grown(disk, ((2,),))
    assert [record.more for record in records] == [False, True, False]
    assert Head(records[-1].seq, records[-1].hash) == survey(disk, "ledger").head
