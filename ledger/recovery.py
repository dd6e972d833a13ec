"""Recovery: what a ledger that may have crashed still holds, what must be cut, and the cutting.

Looking (`survey`) changes nothing and raises Corrupt where a person must decide. Acting (`carry_out`) may itself be cut
short at any point: what is to be cut is durable in `quarantine/` first, and looking again finds the same or less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

from ledger import manifest, seal, watermark
from ledger.chain import Head
from ledger.disk import Disk, write_atomically
from ledger.errors import Corrupt
from ledger.instant import Now
from ledger.manifest import MANIFEST, Manifest
from ledger.reader import Walk, missing, repairs
from ledger.record import GENESIS, Unsound, timestamp
from ledger.seal import Seal
from ledger.segment import ARCHIVE, KEEPING, Segment, named, segments_in, superseded_in
from ledger.watermark import Watermark

QUARANTINE = "quarantine"
_NEW_EPOCH = "nothing was changed; move this file away and start again: a new one is made from the segments"


@dataclass(frozen=True, slots=True)
class Cut:
    """Bytes taken out of `file` from `offset` to its end, and where they are kept."""

    file: str
    offset: int
    bytes: int
    sha256: str
    quarantine: str
    """The name in `quarantine/`; "" until it is kept there."""
    reason: str


@dataclass(frozen=True, slots=True)
class Rewritten:
    """`file` up to `bytes`, which ends with the record `last_seq`."""

    file: str
    bytes: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found, and what was done about it."""

    ledger_id: str
    """"" when there was no ledger yet."""
    epoch: int
    """The highest that ever was; 0 if none."""
    records: int
    segments: tuple[Segment, ...]
    head: Head
    watermark_seq: int
    """The highest seq that HEAD or EPOCH proves durable."""
    cuts: tuple[Cut, ...]
    found: tuple[Cut, ...]
    """Quarantined by a recovery that was itself cut short before it could record what it did."""
    stale: tuple[str, ...]
    """Temporary files left by a crash: never published, so nothing depends on them."""
    seals: Mapping[int, Seal]
    """By the number of the segment. The files of those not in it are not sealed yet."""
    rewritten: Rewritten | None
    """Whole at its end, but nothing proves its last batch to be on the device and not only in memory: so the file is
    written anew. Its records keep their seqs and hashes, which callers and workers may have been told."""

    @property
    def changed(self) -> bool:
        return bool(self.cuts or self.found or self.rewritten)

    def data(self) -> dict[str, Any]:
        """For the `ledger.recovered` record."""

        return {
            "last_seq": self.head.seq,
            "last_hash": self.head.hash,
            "watermark_seq": self.watermark_seq,
            "cuts": [asdict(cut) for cut in self.cuts],
            "found": [asdict(cut) for cut in self.found],
            "rewritten": asdict(self.rewritten) if self.rewritten else None,
        }


def survey(disk: Disk, folder: str, *, trusted_seq: int = 0, to_be_recorded: frozenset[str] = frozenset()) -> Recovery:
    """Read everything and decide. Changes nothing; raises Corrupt (rows 3 and 4 of the table).

    `to_be_recorded` names what the caller has put into quarantine and will record itself.
    Of sealed segments only one hash is made, and of those up to `trusted_seq` only the lengths are looked at.
    """
    names = disk.list(folder)
    segments = segments_in(names)
    marks, cuts = _marks(disk, folder)
    noted = manifest.read(disk, folder)
    if noted.why:
        cuts.append(_cut(disk, folder, MANIFEST, noted.good_bytes, noted.why))
    superseded = {segment.stem for segment in superseded_in(names)}
    late = [name for name in names if _stem(name) in superseded]
    cuts += [_cut(disk, folder, name, 0, "begun by a superseded epoch after its successor began") for name in late]
    seals, damaged = _seals(disk, folder, segments, noted, [name for name in names if name not in late])
    cuts += damaged
    for segment in segments:
        # After a failed sync the cache may hold what the disk never got.
        if segment.number not in seals and disk.exists(f"{folder}/{segment.name}"):
            disk.drop_cache(f"{folder}/{segment.name}")
    epoch = marks.get(watermark.EPOCH, Watermark("", 0, 0, GENESIS))
    if not segments:
        proof = max(marks.values(), key=lambda mark: mark.seq, default=epoch)
        if proof.seq:
            reason = f"no segment is there, but the records up to seq {proof.seq} had been durable"
            raise Corrupt(folder, 0, reason, advice=repairs(folder, 0))
        stale = _stale(disk, folder)
        head = Head(0, GENESIS)
        return Recovery(epoch.ledger_id, epoch.epoch, 0, (), head, 0, tuple(cuts), (), stale, {}, None)
    highest = max(segment.epoch for segment in segments)
    if watermark.EPOCH in marks and epoch.epoch < highest:
        reason = f"it says epoch {epoch.epoch}; there is a segment of epoch {highest}"
        raise Corrupt(f"{folder}/{watermark.EPOCH}", 0, reason, advice=_NEW_EPOCH)

    walk = Walk(disk, segments, marks, folder=folder, seals=seals, sealed="hash", trusted_seq=trusted_seq)
    recorded = {name for sealed in seals.values() for name in sealed.quarantined} | to_be_recorded
    for record in walk:
        if record.type in KEEPING:
            recorded |= {cut["quarantine"] for cut in record.data["cuts"] + record.data["found"]}
    assert walk.place is not None
    for file, mark in marks.items():
        if mark.ledger_id != walk.ledger_id:
            reason = f"it belongs to ledger {mark.ledger_id}, the segments to {walk.ledger_id}"
            raise Corrupt(f"{folder}/{file}", 0, reason, first_good=1, last_good=walk.place.head.seq)
    for segment, offset in walk.strays:
        cuts.append(_cut(disk, folder, segment.name, offset, "written by a superseded epoch after its successor began"))
    last, head = walk.place.segment, walk.place.head
    if walk.torn:
        cuts.append(_cut(disk, folder, last.name, walk.place.offset, walk.torn))
    watermark_seq = max((mark.seq for mark in marks.values()), default=0)
    # A segment's name is published with its first record durable behind it, and a seal when all of it is.
    unproven = head.seq > max(watermark_seq, last.first_seq) and last.number not in seals
    return Recovery(
        ledger_id=walk.ledger_id,
        epoch=max(epoch.epoch, highest),
        records=head.seq,
        segments=tuple(segments),
        head=head,
        watermark_seq=watermark_seq,
        cuts=tuple(cuts),
        found=tuple(_found(disk, folder, recorded)),
        stale=_stale(disk, folder),
        seals=seals,
        rewritten=Rewritten(last.name, walk.place.offset, head.seq) if unproven else None,
    )


def carry_out(disk: Disk, folder: str, recovery: Recovery, now: Now) -> Recovery:
    """Keep what is cut, cut it, and make what survives durable, so that a new segment may chain onto it."""
    for path in recovery.stale:
        disk.remove(path)
    kept = tuple(keep(disk, folder, cut, now) for cut in recovery.cuts)
    last = recovery.segments[-1] if recovery.segments else None
    shortened = {cut.file: cut.offset for cut in kept}
    if last is not None and last.number not in recovery.seals:
        shortened.setdefault(last.name, -1)
    gone = [file for file, offset in shortened.items() if offset == 0]
    for file in gone:
        disk.remove(f"{folder}/{file}")
    for file, offset in sorted(shortened.items()):
        if file not in gone:
            cut_off(disk, f"{folder}/{file}", offset)
    _sync_names(disk, folder)
    if recovery.rewritten is not None:
        path = f"{folder}/{recovery.rewritten.file}"
        write_atomically(disk, path, disk.read(path), durable=True)
    return replace(recovery, cuts=kept)


def _sync_names(disk: Disk, folder: str) -> None:
    """What is to be claimed durable was found by its name, and its writer may have died between giving a segment its
    name and the sync of the folder."""
    disk.sync_folder(folder)


def cut_off(disk: Disk, path: str, offset: int) -> None:
    """Durably shorten the file to `offset` bytes (-1: leave it as long as it is)."""
    disk.set_read_only(path, read_only=False)
    file = disk.append(path)
    try:
        if offset >= 0:
            file.truncate(offset)
        file.sync()
    finally:
        file.close()


def _seals(
    disk: Disk, folder: str, segments: list[Segment], noted: Manifest, names: list[str]
) -> tuple[dict[int, Seal], list[Cut]]:
    """The seals in force, and the damaged ones: those count as not being there. Corrupt if two contradict each other,
    or if what was sealed is missing."""
    seals = {sealed.number: sealed for sealed in (*noted.beyond, *(entry.seal for entry in noted.entries))}
    cuts = []
    for name in names:
        segment = named(f"{_stem(name)}.jsonl") if name.endswith(".seal") else None
        if segment is None:
            continue
        try:
            sealed = seal.read(disk, folder, segment)
        except Unsound as unsound:
            if segment not in segments:
                raise _missing(disk, folder, segments, segment, seals) from None
            cuts.append(_cut(disk, folder, name, 0, str(unsound)))
            continue
        assert sealed is not None
        if seals.setdefault(sealed.number, sealed) != sealed:
            reason = f"it names other content than {MANIFEST} does for segment {segment.number}"
            raise Corrupt(f"{folder}/{name}", 0, reason, advice=repairs(f"{folder}/{segment.name}", 0))
    there = set(segments)
    for number in sorted(seals):
        if seals[number].segment not in there:
            raise _missing(disk, folder, segments, seals[number].segment, seals)
    return seals, cuts


def _missing(disk: Disk, folder: str, segments: list[Segment], segment: Segment, seals: Mapping[int, Seal]) -> Corrupt:
    """Corrupt, also from what is wrong before it: only then the records before it are said to be good."""
    before = [other for other in segments if other.number < segment.number]
    for _ in Walk(disk, before, {}, folder=folder, seals={n: s for n, s in seals.items() if n < segment.number}):
        pass
    return missing(folder, segment, seals)


def _stem(name: str) -> str:
    return name.removesuffix(ARCHIVE).rpartition(".")[0]


def _marks(disk: Disk, folder: str) -> tuple[dict[str, Watermark], list[Cut]]:
    marks: dict[str, Watermark] = {}
    cuts = []
    for file in (watermark.EPOCH, watermark.HEAD):
        try:
            mark = watermark.read(disk, folder, file)
        except Unsound as unsound:
            if file == watermark.EPOCH:
                raise Corrupt(f"{folder}/{file}", 0, str(unsound), advice=_NEW_EPOCH) from None
            # HEAD is noted without a sync, so a power cut may leave anything under its name. Then it proves nothing.
            cuts.append(_cut(disk, folder, file, 0, str(unsound)))
            continue
        if mark is not None:
            marks[file] = mark
    return marks, cuts


def _cut(disk: Disk, folder: str, file: str, offset: int, reason: str) -> Cut:
    data = disk.read(f"{folder}/{file}", offset)
    return Cut(file, offset, len(data), sha256(data).hexdigest(), "", reason)


def _found(disk: Disk, folder: str, recorded: set[str]) -> list[Cut]:
    found = []
    for name in disk.list(f"{folder}/{QUARANTINE}"):
        if name in recorded or _is_temporary(name):
            continue
        data = disk.read(f"{folder}/{QUARANTINE}/{name}")
        reason = "kept by a recovery that did not come to its end"
        found.append(Cut("", 0, len(data), sha256(data).hexdigest(), name, reason))
    return found


def keep(disk: Disk, folder: str, cut: Cut, now: Now) -> Cut:
    """Durable in the quarantine once this returns. Never over another file there."""
    quarantine = f"{folder}/{QUARANTINE}"
    disk.make_folder(quarantine)
    disk.sync_folder(folder)
    time = timestamp(now.wall_ns).replace("-", "").replace(":", "")
    name = f"{cut.file.removesuffix('.jsonl')}.{cut.offset}.{time}.tail"
    data = disk.read(f"{folder}/{cut.file}", cut.offset)
    again = 1
    while disk.exists(f"{quarantine}/{name}") and disk.read(f"{quarantine}/{name}") != data:
        again += 1
        name = f"{name.removesuffix('.tail').removesuffix(f'-{again - 1}')}-{again}.tail"
    write_atomically(disk, f"{quarantine}/{name}", data, durable=True)
    return Cut(cut.file, cut.offset, len(data), sha256(data).hexdigest(), name, cut.reason)


def _stale(disk: Disk, folder: str) -> tuple[str, ...]:
    return tuple(
        f"{place}/{name}"
        for place in (folder, f"{folder}/{QUARANTINE}")
        for name in disk.list(place)
        if _is_temporary(name)
    )


def _is_temporary(name: str) -> bool:
    """Whether `write_atomically` gave this name to a file not yet published."""
    return name.startswith(".") and name.endswith(".new")
