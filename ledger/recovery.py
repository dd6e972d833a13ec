"""Recovery: what a ledger that may have crashed still holds, what must be cut, and the cutting.

Looking (`survey`) changes nothing and raises Corrupt where a person must decide. Acting (`carry_out`) may itself be cut
short at any point: what is to be cut is durable in `quarantine/` first, and looking again finds the same or less.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from ledger import watermark
from ledger.chain import Head
from ledger.disk import Disk, write_atomically
from ledger.errors import Corrupt
from ledger.instant import Now
from ledger.reader import Walk
from ledger.record import GENESIS, Unsound, timestamp
from ledger.segment import Segment, segments_in
from ledger.watermark import Watermark

RECOVERED = "ledger.recovered"
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
class Recovery:
    """What was found, and what was done about it."""

    ledger_id: str
    """"" when there was no ledger yet."""
    epoch: int
    """The highest that ever was; 0 if none."""
    records: int
    segments: tuple[Segment, ...]
    head: Head
    batch: int
    watermark_seq: int
    """The highest seq that HEAD or EPOCH proves durable."""
    cuts: tuple[Cut, ...]
    found: tuple[Cut, ...]
    """Quarantined by a recovery that was itself cut short before it could record what it did."""
    stale: tuple[str, ...]
    """Temporary files left by a crash: never published, so nothing depends on them."""

    @property
    def changed(self) -> bool:
        return bool(self.cuts or self.found)

    def data(self) -> dict[str, Any]:
        """For the `ledger.recovered` record."""

        def plain(cut: Cut) -> dict[str, Any]:
            return {name: getattr(cut, name) for name in ("file", "offset", "bytes", "sha256", "quarantine", "reason")}

        return {
            "last_seq": self.head.seq,
            "last_hash": self.head.hash,
            "watermark_seq": self.watermark_seq,
            "cuts": [plain(cut) for cut in self.cuts],
            "found": [plain(cut) for cut in self.found],
        }


def survey(disk: Disk, folder: str) -> Recovery:
    """Read everything and decide. Changes nothing; raises Corrupt (rows 3 of the table)."""
    names = disk.list(folder)
    segments = segments_in(names)
    if segments:
        # After a failed sync the cache may hold what the disk never got; earlier segments were synced when left.
        disk.drop_cache(f"{folder}/{segments[-1].name}")
    marks, cuts = _marks(disk, folder)
    epoch = marks.get(watermark.EPOCH, Watermark("", 0, 0, GENESIS))
    if not segments:
        proof = max(marks.values(), key=lambda mark: mark.seq, default=epoch)
        if proof.seq:
            raise Corrupt(folder, 0, f"no segment is there, but the records up to seq {proof.seq} had been durable")
        stale = _stale(disk, folder)
        return Recovery(epoch.ledger_id, epoch.epoch, 0, (), Head(0, GENESIS), 0, 0, tuple(cuts), (), stale)
    if watermark.EPOCH in marks and epoch.epoch < segments[-1].epoch:
        reason = f"it says epoch {epoch.epoch}; there is a segment of epoch {segments[-1].epoch}"
        raise Corrupt(f"{folder}/{watermark.EPOCH}", 0, reason, advice=_NEW_EPOCH)

    walk = Walk(disk, segments, marks, folder=folder)
    records = 0
    recorded = set()
    for record in walk:
        records += 1
        if record.type == RECOVERED:
            recorded |= {cut["quarantine"] for cut in record.data["cuts"] + record.data["found"]}
    assert walk.place is not None
    for mark in marks.values():
        if mark.ledger_id != walk.ledger_id:
            reason = f"HEAD or EPOCH belongs to ledger {mark.ledger_id}, the segments to {walk.ledger_id}"
            raise Corrupt(folder, 0, reason, first_good=1, last_good=walk.place.head.seq)
    for segment, offset in walk.strays:
        cuts.append(_cut(disk, folder, segment.name, offset, "written by a superseded epoch after its successor began"))
    if walk.torn:
        cuts.append(_cut(disk, folder, walk.place.segment.name, walk.place.offset, walk.torn))
    return Recovery(
        ledger_id=walk.ledger_id,
        epoch=max(epoch.epoch, segments[-1].epoch),
        records=records,
        segments=tuple(segments),
        head=walk.place.head,
        batch=walk.place.batch,
        watermark_seq=max((mark.seq for mark in marks.values()), default=0),
        cuts=tuple(cuts),
        found=tuple(_found(disk, folder, recorded)),
        stale=_stale(disk, folder),
    )


def carry_out(disk: Disk, folder: str, recovery: Recovery, now: Now) -> Recovery:
    """Keep what is cut, cut it, and make what survives durable, so that a new segment may chain onto it."""
    for path in recovery.stale:
        disk.remove(path)
    kept = tuple(_keep(disk, folder, cut, now) for cut in recovery.cuts)
    last = recovery.segments[-1].name if recovery.segments else ""
    shortened = {cut.file: cut.offset for cut in kept}
    for name in sorted({*shortened, last} - {"", watermark.HEAD}):
        file = disk.append(f"{folder}/{name}")
        try:
            if name in shortened:
                file.truncate(shortened[name])
            file.sync()
        finally:
            file.close()
    if watermark.HEAD in shortened:
        disk.remove(f"{folder}/{watermark.HEAD}")
    done = {name: getattr(recovery, name) for name in Recovery.__slots__}
    return Recovery(**{**done, "cuts": kept})


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


def _keep(disk: Disk, folder: str, cut: Cut, now: Now) -> Cut:
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
