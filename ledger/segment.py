"""A segment: one file of the ledger, what its name says, and its lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ledger import frames
from ledger.disk import Disk
from ledger.errors import Corrupt
from ledger.record import FORMAT, Record, Unsound

OPEN = "segment.open"
RECOVERED = "ledger.recovered"
CUT = "ledger.cut"
RESTORED = "ledger.restored"
KEEPING = frozenset((RECOVERED, CUT, RESTORED))
"""Types of records whose `cuts` and `found` name what was put into quarantine."""
ARCHIVE = ".zst"
_NAME = re.compile(r"(\d{10})-e(\d{4,20})-(\d{16})\.jsonl(?:\.zst)?")
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes: a process of one boot of one host, and the version of its code."""

    host: str
    boot_id: str
    pid: int
    started: int
    """The process's start time; with `pid` it names a process."""
    code: str


class Segment(NamedTuple):
    """Numbers count from 1 without gaps; the epoch is its writer's; `first_seq` is the seq of its first record."""

    number: int
    epoch: int
    first_seq: int

    @property
    def stem(self) -> str:
        return f"{self.number:010d}-e{self.epoch:04d}-{self.first_seq:016d}"

    @property
    def name(self) -> str:
        """Of the file, which may be there as its archive only (then `.zst` follows)."""
        return f"{self.stem}.jsonl"

    @property
    def seal_name(self) -> str:
        return f"{self.stem}.seal"

    @property
    def index_name(self) -> str:
        """Of a file beside it that is derived from it, proves nothing, and may be deleted."""
        return f"{self.stem}.idx"


def named(name: str) -> Segment | None:
    """The segment that the name of a file, or of an archive, names; None if it is no segment's."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    segment = Segment(*map(int, match.groups()))
    return segment if segment.name == name.removesuffix(ARCHIVE) else None


def segments_in(names: Iterable[str]) -> list[Segment]:
    """The ledger's segments, each once, in order. Those of a superseded writer are none."""
    return _apart(names)[0]


def superseded_in(names: Iterable[str]) -> list[Segment]:
    """What a writer began that did not know of its successor: a later epoch has a segment of this number or a lower
    one, and an epoch's first segment is behind every one that was there."""
    return _apart(names)[1]


def _apart(names: Iterable[str]) -> tuple[list[Segment], list[Segment]]:
    there = {segment for segment in map(named, names) if segment is not None}
    kept: list[Segment] = []
    behind: list[Segment] = []
    highest = 0
    for segment in sorted(there, key=lambda segment: (segment.number, -segment.epoch, segment.first_seq)):
        highest = max(highest, segment.epoch)
        (behind if segment.epoch < highest else kept).append(segment)
    return kept, behind


def opening(segment: Segment, previous: str, ledger_id: str, writer: Writer) -> dict[str, Any]:
    """The data of the `segment.open` record that begins `segment`."""
    return {
        "ledger": ledger_id,
        "segment": segment.number,
        "first_seq": segment.first_seq,
        "previous": previous,
        "epoch": segment.epoch,
        "host": writer.host,
        "boot_id": writer.boot_id,
        "pid": writer.pid,
        "started": writer.started,
        "code": writer.code,
        "format": FORMAT,
    }


def ledger_of(record: Record, segment: Segment) -> str:
    """The ledger id in the record that begins `segment`. Unsound if it begins another segment, or none."""
    data = record.data
    if record.type != OPEN:
        raise Unsound(f"a segment must begin with {OPEN}, not {record.type}")
    if (data.get("segment"), data.get("epoch"), data.get("first_seq")) != segment:
        raise Unsound("the file's name is not that of the segment in it")
    if data.get("format") != FORMAT:
        raise Unsound(f"the segment has format {data.get('format')}; this program reads format {FORMAT}")
    return str(data.get("ledger"))


def lines(disk: Disk, path: str, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Each line with its offset, without its newline, from `offset`, where a line must begin. `path` without `.zst`,
    also where only the archive is there.

    Bytes after the last newline are not a line. Memory is bounded by a chunk, or by the longest line. Corrupt if the
    archive cannot be unpacked.
    """
    for at, pieces in stretches(disk, path, offset):
        for piece in pieces:
            yield at, piece
            at += len(piece) + 1


def stretches(disk: Disk, path: str, offset: int, lines_max: int = 1 << 30) -> Iterator[tuple[int, list[bytes]]]:
    """As `lines`, but up to `lines_max` of them at a time, with the offset of the first."""
    held: list[bytes] = []
    for chunk in _chunks(disk, path, offset):
        pieces = chunk.split(b"\n")
        held.append(pieces[0])
        if len(pieces) == 1:
            continue
        pieces[0] = b"".join(held)
        held = [pieces.pop()]
        for at in range(0, len(pieces), lines_max):
            some = pieces[at : at + lines_max]
            yield offset, some
            offset += sum(map(len, some)) + len(some)


def content(disk: Disk, path: str, limit: int = -1) -> bytes:
    """The first `limit` bytes of a segment (-1: all), archived or not. Unsound if the archive cannot be unpacked."""
    try:
        return disk.read(path, 0, limit)
    except FileNotFoundError:
        if not disk.exists(path + ARCHIVE):
            raise
        plain = frames.unpack(disk.read(path + ARCHIVE))
        return plain if limit < 0 else plain[:limit]


def plain_bytes(disk: Disk, path: str) -> int:
    """How long the content of a segment is, archived or not. Unsound if the archive does not say."""
    try:
        return disk.size(path)
    except FileNotFoundError:
        return frames.plain_bytes(disk, path + ARCHIVE)


def stored_bytes(disk: Disk, path: str) -> int:
    """How much room a segment takes, archived or not."""
    try:
        return disk.size(path)
    except FileNotFoundError:
        return disk.size(path + ARCHIVE)


def _chunks(disk: Disk, path: str, offset: int) -> Iterator[bytes]:
    # It may be archived between any two reads.
    while True:
        try:
            chunk = disk.read(path, offset, _CHUNK_BYTES)
        except FileNotFoundError:
            if not disk.exists(path + ARCHIVE):
                raise
            break
        if not chunk:
            return
        offset += len(chunk)
        yield chunk
    try:
        yield from frames.chunks(disk, path + ARCHIVE, offset)
    except Unsound as unsound:
        raise Corrupt(path + ARCHIVE, 0, str(unsound)) from None
