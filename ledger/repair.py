"""Repair: what a person decides about damage. `cut` gives up what lies behind a record; `restore` puts back what a
backup holds, if it is what the seals, or the chain, say. Nothing is overwritten that is not in quarantine first.

The caller holds the ledger's lock, and records what was done once the ledger opens again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from typing import Any

from ledger import manifest, watermark
from ledger.chain import Chain, Head
from ledger.disk import Disk, write_atomically
from ledger.errors import Refused
from ledger.instant import Now
from ledger.manifest import MANIFEST
from ledger.reader import FOLDER, Walk, marks_in, sound_in
from ledger.record import Unsound
from ledger.recovery import QUARANTINE, Cut, cut_off, keep
from ledger.seal import Seal
from ledger.segment import ARCHIVE, Segment, content, lines, segments_in
from ledger.watermark import Watermark


@dataclass(frozen=True, slots=True)
class Loss:
    """What a cut would leave and take."""

    head: Head
    """The last record that stays."""
    segment: Segment
    offset: int
    """Where it ends in its segment."""
    last_lost: int
    """The highest seq that can still be read behind it; 0 if none can."""
    files: tuple[tuple[str, int], ...]
    """Each file, and from which byte on it goes into quarantine; the segments' from the last to the first."""


@dataclass(frozen=True, slots=True)
class Restored:
    file: str
    bytes: int
    sha256: str


def loss(disk: Disk, at: int, folder: str = FOLDER) -> Loss:
    """What cutting the ledger at record `at` would do: that record's batch and everything behind it goes. Changes
    nothing. Refused if nothing would be left, or nothing is to be cut; Corrupt if there is damage before."""
    segments = segments_in(disk.list(folder))
    seals = manifest.seals_in(disk, folder)
    kept = [segment for segment in segments if segment.first_seq < at]
    if not kept:
        raise Refused(f"nothing would be left before record {at}; to begin anew, move the folder {folder} away")
    for _ in Walk(disk, kept[:-1], {}, folder=folder, seals={n: s for n, s in seals.items() if n < kept[-1].number}):
        pass
    last = kept[-1]
    head, offset, chain = Head(0, ""), 0, Chain()
    for start, line in lines(disk, f"{folder}/{last.name}"):
        try:
            if not chain.number:
                chain.adopt(line, last)
            chain.take(line)
        except Unsound:
            break
        if chain.seq >= at:
            break
        if not chain.more:
            head, offset = Head(chain.seq, chain.hash), start + len(line) + 1
    if not offset:
        raise Refused(f"{folder}/{last.name} is damaged from its first line; cut at {last.first_seq}, or restore it")
    if chain.seq + 1 < at:
        raise Refused(f"record {head.seq} is the last good one before {at}: cut at {head.seq + 1}")
    whole = last.number in seals and seals[last.number].last_seq == head.seq
    files = [(name, 0) for segment in reversed(segments[len(kept) :]) for name in _files(disk, folder, segment)]
    if not whole:
        files += [(name, 0) for name in _files(disk, folder, last) if name != last.name]
        if disk.exists(f"{folder}/{last.name}") and disk.size(f"{folder}/{last.name}") > offset:
            files.append((last.name, offset))
    if not files:
        raise Refused(f"record {head.seq} is the last one; there is nothing behind it to cut")
    noted = manifest.read(disk, folder)
    stays = sum(len(entry.line) for entry in noted.entries if entry.seal.number < last.number + whole)
    if disk.exists(f"{folder}/{MANIFEST}") and disk.size(f"{folder}/{MANIFEST}") > stays:
        files.append((MANIFEST, stays))
    ends = [seal.last_seq for seal in seals.values()]
    ends += [record.seq for name, start in files for record in sound_in(disk.read(f"{folder}/{name}", start))]
    last_lost = max((seq for seq in ends if seq > head.seq), default=0)
    return Loss(head, last, offset, last_lost, tuple(files))


def cut(disk: Disk, planned: Loss, now: Now, folder: str = FOLDER) -> dict[str, Any]:
    """Do it. The data of the `ledger.cut` record to come, but for who did it and why."""
    cuts = [keep(disk, folder, _cut(disk, folder, file, offset), now) for file, offset in planned.files]
    marks = marks_in(disk, folder)
    data = content(disk, f"{folder}/{planned.segment.name}", planned.offset)
    for file, mark in marks.items():
        if mark.seq > planned.head.seq:
            lowered = Watermark(mark.ledger_id, mark.epoch, *planned.head)
            write_atomically(disk, f"{folder}/{file}", watermark.encode(file, lowered), durable=True)
    if (planned.segment.name + ARCHIVE, 0) in planned.files and not disk.exists(f"{folder}/{planned.segment.name}"):
        write_atomically(disk, f"{folder}/{planned.segment.name}", data, durable=True)
    # The manifest first: what it does not name may be missing.
    for file, offset in reversed(planned.files):
        if file == MANIFEST:
            cut_off(disk, f"{folder}/{file}", offset)
    for file, offset in planned.files:
        if not offset and file != MANIFEST:
            disk.remove(f"{folder}/{file}")
            disk.sync_folder(folder)
    for file, offset in planned.files:
        if offset and file != MANIFEST:
            cut_off(disk, f"{folder}/{file}", offset)
    return {
        "last_seq": planned.head.seq,
        "last_hash": planned.head.hash,
        "last_lost": planned.last_lost,
        "cuts": [asdict(one) for one in cuts],
        "found": [],
    }


def restore(
    disk: Disk, source: Disk, now: Now, *, names: frozenset[str] | None = None, at: str = "", folder: str = FOLDER
) -> tuple[list[Restored], list[Cut]]:
    """Put back, from the folder `at` of `source`, each segment that is missing or not as it was sealed, the last one if
    it is damaged, and each quarantined file that is missing or different; only `names`, if given. Also what was in
    their place and is in quarantine now. Refused, and nothing changed, if what is offered is not what the ledger needs.
    A backup that only ends earlier than a last segment that is sound here is no less good for all before it."""
    seals = manifest.seals_in(disk, folder)
    place = f"{at}/" if at else ""
    wanted: list[tuple[str, Callable[[], bytes], bool]] = []
    restored: list[Restored] = []
    cuts: list[Cut] = []

    def put(file: str, data: bytes, *, read_only: bool) -> None:
        path = f"{folder}/{file}"
        for old in (file, file + ARCHIVE):
            if disk.exists(f"{folder}/{old}") and not file.startswith(QUARANTINE):
                cuts.append(keep(disk, folder, _cut(disk, folder, old, 0), now))
        write_atomically(disk, path, data, durable=True)
        disk.set_read_only(path, read_only=read_only)
        if disk.exists(path + ARCHIVE):
            disk.remove(path + ARCHIVE)
            disk.sync_folder(folder)
        restored.append(Restored(file, len(data), sha256(data).hexdigest()))

    for sealed in sorted(seals.values(), key=lambda sealed: sealed.number):
        file = sealed.segment.name
        if _is_sound(disk, f"{folder}/{file}", sealed):
            continue
        offered = names is None or file in names or file + ARCHIVE in names
        if not offered or not (source.exists(place + file) or source.exists(place + file + ARCHIVE)):
            continue
        if not _is_sound(source, place + file, sealed):
            raise Refused(f"{file} in the backup is not what was sealed: its SHA-256 must be {sealed.sha256}")
        wanted.append((file, partial(content, source, place + file, sealed.size_bytes), True))
    last = max(segments_in([*disk.list(folder), *(names or source.list(at))]), default=None)
    offered = last is not None and last.number not in seals and (names is None or last.name in names)
    if last is not None and offered and source.exists(place + last.name):
        here = disk.read(f"{folder}/{last.name}") if disk.exists(f"{folder}/{last.name}") else b""
        known = _known(disk, folder, last, here)
        try:
            data = _followed(last, seals, source.read(place + last.name), known)
        except Refused:
            if not here or not _holds(last, seals, here, known):
                raise
            data = b""
        if here[: len(data)] != data or not here:
            wanted.append((last.name, partial(bytes, data), False))
    kept = {name: digest for sealed in seals.values() for name, digest in sealed.quarantined.items()}
    for name, digest in kept.items():
        path = f"{QUARANTINE}/{name}"
        if disk.exists(f"{folder}/{path}") and sha256(disk.read(f"{folder}/{path}")).hexdigest() == digest:
            continue
        if (names is None or name in names) and source.exists(place + path):
            data = source.read(place + path)
            if sha256(data).hexdigest() != digest:
                raise Refused(f"{path} in the backup is not what was quarantined: its SHA-256 must be {digest}")
            wanted.append((path, partial(bytes, data), False))
    for file, data_of, read_only in wanted:
        if file.startswith(QUARANTINE):
            disk.make_folder(f"{folder}/{QUARANTINE}")
        put(file, data_of(), read_only=read_only)
    return restored, cuts


def _known(disk: Disk, folder: str, last: Segment, here: bytes) -> dict[int, str]:
    """seq -> hash of what the last segment is known to have held: by the watermarks, and by what is left of it."""
    marks = {mark.seq: mark.hash for mark in marks_in(disk, folder).values() if mark.seq >= last.first_seq}
    return marks | {record.seq: record.hash for record in sound_in(here)}


def _holds(last: Segment, seals: Mapping[int, Seal], here: bytes, known: Mapping[int, str]) -> bool:
    """Whether the last segment is sound as it stands, but for an end that a crash tore."""
    hashes, _, _ = _walked(last, seals, here)  # A segment without its first record never came to be: it is damaged.
    return bool(hashes) and all(hashes.get(seq) == digest for seq, digest in known.items())


def _followed(last: Segment, seals: Mapping[int, Seal], data: bytes, known: Mapping[int, str]) -> bytes:
    """The whole batches of what is offered as the last segment. Refused if it does not follow what is before, or holds
    less than what is known."""
    hashes, more, unsound = _walked(last, seals, data)
    if unsound is not None:
        raise Refused(f"{last.name} in the backup does not verify: {unsound}")
    if any(hashes.get(seq) != digest for seq, digest in known.items()):
        raise Refused(f"{last.name} in the backup lacks records that were durable, up to seq {max(known)}")
    if more:
        raise Refused(f"{last.name} in the backup ends within a batch")
    return data[: data.rfind(b"\n") + 1]


def _walked(last: Segment, seals: Mapping[int, Seal], data: bytes) -> tuple[dict[int, str], bool, Unsound | None]:
    """seq -> hash up to the end or to what does not verify, whether that is within a batch, and why it does not."""
    chain = Chain()
    before = seals.get(last.number - 1)
    if before is not None:
        chain.enter_sealed(before, first=True)
    hashes: dict[int, str] = {}
    try:
        if last.number == 1 or before is not None:
            chain.enter(last)
        for line in data.split(b"\n")[:-1]:
            if not chain.number:
                chain.adopt(line, last)
            record = chain.take(line)
            hashes[record.seq] = record.hash
    except Unsound as unsound:
        return hashes, chain.more, unsound
    return hashes, chain.more, None


def _is_sound(disk: Disk, path: str, sealed: Seal) -> bool:
    try:
        return sha256(content(disk, path, sealed.size_bytes)).hexdigest() == sealed.sha256
    except (FileNotFoundError, Unsound):
        return False


def _cut(disk: Disk, folder: str, file: str, offset: int) -> Cut:
    data = disk.read(f"{folder}/{file}", offset)
    return Cut(file, offset, len(data), sha256(data).hexdigest(), "", "cut or replaced by a person")


def _files(disk: Disk, folder: str, segment: Segment) -> list[str]:
    names = (segment.name, segment.name + ARCHIVE, segment.seal_name, segment.index_name)
    return [name for name in names if disk.exists(f"{folder}/{name}")]
