"""A segment: one file of the ledger, what its name says, and its lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ledger.disk import Disk
from ledger.record import FORMAT, Record, Unsound

OPEN = "segment.open"
_NAME = re.compile(r"(\d{10})-e(\d{4,20})-(\d{16})\.jsonl")
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
    def name(self) -> str:
        return f"{self.number:010d}-e{self.epoch:04d}-{self.first_seq:016d}.jsonl"


def named(name: str) -> Segment | None:
    """The segment a file name names; None if it is no segment's."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    segment = Segment(*map(int, match.groups()))
    return segment if segment.name == name else None


def segments_in(names: Iterable[str]) -> list[Segment]:
    return sorted(segment for segment in map(named, names) if segment is not None)


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
    """Each line with its offset, without its newline, from `offset`, where a line must begin.

    Bytes after the last newline are not a line. Memory is bounded by a chunk, or by the longest line.
    """
    held: list[bytes] = []
    at = offset
    while chunk := disk.read(path, at, _CHUNK_BYTES):
        at += len(chunk)
        pieces = chunk.split(b"\n")
        held.append(pieces[0])
        if len(pieces) == 1:
            continue
        pieces[0] = b"".join(held)
        held = [pieces.pop()]
        for piece in pieces:
            yield offset, piece
            offset += len(piece) + 1
