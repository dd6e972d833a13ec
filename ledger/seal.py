"""A seal: what a finished segment holds, in one line: one hash of the whole file tells whether it still does."""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

from ledger import merkle
from ledger.disk import Disk
from ledger.record import FORMAT, Unsound, check, own_hash, predecessor, record_of, with_own_hash
from ledger.segment import KEEPING, Segment, ledger_of

_KEEPING = b',"type":"ledger.'


class Seal(NamedTuple):
    """`previous` and `last_hash` are the hashes of the records before the first and of the last one."""

    ledger_id: str
    number: int
    epoch: int
    first_seq: int
    last_seq: int
    previous: str
    last_hash: str
    size_bytes: int
    """The length of the file; what lies behind was written by a superseded process."""
    sha256: str
    """Of the whole file, 64 hex digits."""
    merkle: str
    """Root of the Merkle tree over the lines, without their newlines; 64 hex digits."""
    quarantined: dict[str, str]
    """Name in `quarantine/` to SHA-256 of everything that the segment's records say was put there."""

    @property
    def segment(self) -> Segment:
        return Segment(self.number, self.epoch, self.first_seq)

    @property
    def records(self) -> int:
        return self.last_seq - self.first_seq + 1

    def line(self) -> bytes:
        """As it stands in the seal's file, newline included."""
        names = ("ledger", "segment", *Seal._fields[2:])
        return with_own_hash(
            {"v": FORMAT, "file": "seal", **dict(zip(names, self, strict=True)), "records": self.records}
        )


def decode(line: bytes) -> Seal:
    """Unsound if it is not exactly what `Seal.line` writes."""
    fields = own_hash(line)
    try:
        seal = Seal(fields["ledger"], fields["segment"], *(fields[name] for name in Seal._fields[2:]))
        sound = seal.line() == line
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise Unsound("it is not the one line, with a hash that matches, that a seal must be")
    return seal


def read(disk: Disk, folder: str, segment: Segment) -> Seal | None:
    """None if the segment has no seal; Unsound if it is damaged, or that of another segment."""
    path = f"{folder}/{segment.seal_name}"
    if not disk.exists(path):
        return None
    seal = decode(disk.read(path))
    if seal.segment != segment:
        raise Unsound(f"it seals {seal.segment.name}")
    return seal


def seal_of(segment: Segment, data: bytes) -> Seal:
    """The seal of a segment whose records verify and whose content is `data`. Unsound if it cannot be that."""
    if not data.endswith(b"\n"):
        raise Unsound("the segment does not end with a newline")
    lines = data[:-1].split(b"\n")
    first, last = (record_of(line, check(line)) for line in (lines[0], lines[-1]))
    if last.more:
        raise Unsound("the segment ends within a batch")
    quarantined: dict[str, str] = {}
    at = data.find(_KEEPING)
    while at >= 0:
        line = data[data.rfind(b"\n", 0, at) + 1 : data.index(b"\n", at)]
        record = record_of(line, check(line))
        if record.type in KEEPING:
            quarantined |= {cut["quarantine"]: cut["sha256"] for cut in record.data["cuts"] + record.data["found"]}
        at = data.find(_KEEPING, at + 1)
    return Seal(
        ledger_id=ledger_of(first, segment),
        number=segment.number,
        epoch=segment.epoch,
        first_seq=first.seq,
        last_seq=last.seq,
        previous=predecessor(lines[0]),
        last_hash=last.hash,
        size_bytes=len(data),
        sha256=sha256(data).hexdigest(),
        merkle=merkle.root([merkle.leaf(line) for line in lines]).hex(),
        quarantined=quarantined,
    )


def line_at(data: bytes, seq: int) -> int:
    """Where the line of record `seq` begins in the content of a sealed segment; its length if it is not in it."""
    start = b'{"seq":%d,' % seq
    if data.startswith(start):
        return 0
    at = data.find(b"\n" + start)
    return at + 1 if at >= 0 else len(data)
