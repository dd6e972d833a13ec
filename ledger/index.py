"""The index beside a sealed segment: where its records of a time, a type or a subject lie, so that a search seeks.

It is derived: deleting it costs time only, and one that was made for other bytes, or is damaged, is made anew. It
speaks of blocks of records, so a search gives every record that is wanted among some that are not: whoever asks looks
again. Each record found is checked against its own hash; the chain between them is the verifier's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from ledger.disk import Disk, write_atomically
from ledger.errors import Corrupt
from ledger.instant import ms_of
from ledger.manifest import seals_in
from ledger.reader import FOLDER, read
from ledger.record import Record, Unsound, decode
from ledger.seal import Seal
from ledger.segment import Segment, lines, segments_in

FORMAT = 1
BLOCK_RECORDS = 256

Mentions = Callable[[Record], Iterable[str]]
"""What a record is about besides its subject, each written as a subject would be (`run/...`, `job/...`)."""


class Block(NamedTuple):
    first_seq: int
    offset: int
    """Of its first line, in the segment's uncompressed bytes."""
    earliest_ms: int
    latest_ms: int


@dataclass(frozen=True, slots=True)
class Index:
    sha256: str
    """Of the segment, as its seal has it."""
    last_seq: int
    bytes: int
    blocks: tuple[Block, ...]
    types: dict[str, list[int]]
    """Type -> the blocks that have it, ascending."""
    subjects: dict[str, list[int]]
    """Subject, or what else a record is about -> the blocks that have it, ascending."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a search is for; what is None is not asked about."""

    after: int = 0
    until: int | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    type: Callable[[str], bool] | None = None
    subject: Callable[[str], bool] | None = None
    """Whether a subject, or something else that a record is about, is wanted."""


class Found(NamedTuple):
    record: Record
    line: bytes
    """As it stands in the ledger, newline included; empty for a record of a segment that is not sealed yet."""


def path_of(segment: Segment, folder: str = FOLDER) -> str:
    return f"{folder}/{segment.stem}.idx"


def build(disk: Disk, segment: Segment, seal: Seal, mentions: Mentions, *, folder: str = FOLDER) -> Index:
    """Read the sealed segment through. Corrupt if it is not as it was sealed."""
    blocks: list[Block] = []
    types: dict[str, list[int]] = {}
    subjects: dict[str, list[int]] = {}
    path, whole, at = f"{folder}/{segment.name}", sha256(), 0
    earliest = latest = ""
    for count, (offset, line) in enumerate(lines(disk, path)):
        if offset >= seal.size_bytes:
            break  # What a superseded writer may have added since is no part of the ledger.
        whole.update(line + b"\n")
        at = offset + len(line) + 1
        record = _decoded(path, offset, line)
        if count % BLOCK_RECORDS == 0:
            if blocks:
                blocks[-1] = blocks[-1]._replace(earliest_ms=ms_of(earliest), latest_ms=ms_of(latest))
            blocks.append(Block(record.seq, offset, 0, 0))
            earliest = latest = record.ts
        earliest, latest = min(earliest, record.ts), max(latest, record.ts)
        number = len(blocks) - 1
        _post(types, record.type, number)
        _post(subjects, record.subject, number)
        for mention in mentions(record):
            _post(subjects, mention, number)
    if (at, whole.hexdigest()) != (seal.size_bytes, seal.sha256):
        raise Corrupt(path, 0, "its bytes are not those that were sealed")
    blocks[-1] = blocks[-1]._replace(earliest_ms=ms_of(earliest), latest_ms=ms_of(latest))
    return Index(seal.sha256, seal.last_seq, seal.size_bytes, tuple(blocks), types, subjects)


def _post(postings: dict[str, list[int]], term: str, block: int) -> None:
    found = postings.setdefault(term, [])
    if not found or found[-1] != block:
        found.append(block)


def encode(index: Index) -> bytes:
    """One line of JSON, and a line with its SHA-256."""
    data = orjson.dumps(
        {
            "v": FORMAT,
            "sha256": index.sha256,
            "last_seq": index.last_seq,
            "bytes": index.bytes,
            "blocks": [tuple(block) for block in index.blocks],
            "types": index.types,
            "subjects": index.subjects,
        }
    )
    return data + b"\n" + sha256(data).hexdigest().encode() + b"\n"


def decoded(data: bytes, seal: Seal) -> Index | None:
    """None if it is damaged, of another format, or made for other bytes than the sealed ones."""
    text, _, digest = data.removesuffix(b"\n").rpartition(b"\n")
    if sha256(text).hexdigest().encode() != digest:
        return None
    told: dict[str, Any] = orjson.loads(text)
    if told["v"] != FORMAT or told["sha256"] != seal.sha256:
        return None
    blocks = tuple(Block._make(block) for block in told["blocks"])
    return Index(told["sha256"], told["last_seq"], told["bytes"], blocks, told["types"], told["subjects"])


def index_of(disk: Disk, segment: Segment, seal: Seal, mentions: Mentions, *, folder: str = FOLDER) -> Index:
    """The segment's index, made and kept if there is none that fits."""
    path = path_of(segment, folder)
    found = None
    with suppress(FileNotFoundError):
        found = decoded(disk.read(path), seal)
    if found is None:
        found = build(disk, segment, seal, mentions, folder=folder)
        # A reader that may not write here, or finds no room, or another that is just writing it, goes on without.
        with suppress(OSError):
            write_atomically(disk, path, encode(found), durable=False)
    return found


def search(disk: Disk, wanted: Wanted, mentions: Mentions, *, folder: str = FOLDER) -> Iterator[Found]:
    """Every record that is wanted, among some that are not, in order. Corrupt at damage, as `reader.read`."""
    after = wanted.after
    for segment, seal in _sealed(disk, folder):
        if seal.last_seq > after and (wanted.until is None or segment.first_seq <= wanted.until):
            index = index_of(disk, segment, seal, mentions, folder=folder)
            for found in _in_blocks(disk, segment, index, _blocks(index, wanted), folder):
                if found.record.seq > after and (wanted.until is None or found.record.seq <= wanted.until):
                    yield found
        after = max(after, seal.last_seq)
    if wanted.until is None or after < wanted.until:
        for record in read(disk, after=after, until=wanted.until, folder=folder):
            yield Found(record, b"")


def last_before(disk: Disk, at_ms: int, mentions: Mentions, *, folder: str = FOLDER) -> int:
    """The seq of the last record whose wall time is not after `at_ms`; 0 if there is none."""
    sealed = list(_sealed(disk, folder))
    tail = sealed[-1][1].last_seq if sealed else 0
    found = max((r.seq for r in read(disk, after=tail, folder=folder) if ms_of(r.ts) <= at_ms), default=0)
    for segment, seal in reversed(sealed):
        if found:
            break
        index = index_of(disk, segment, seal, mentions, folder=folder)
        numbers = [number for number, block in enumerate(index.blocks) if block.earliest_ms <= at_ms][-1:]
        inside = _in_blocks(disk, segment, index, numbers, folder)
        found = max((it.record.seq for it in inside if ms_of(it.record.ts) <= at_ms), default=0)
    return found


def _sealed(disk: Disk, folder: str) -> Iterator[tuple[Segment, Seal]]:
    """The sealed segments from the first on, without a gap."""
    seals = seals_in(disk, folder)
    for segment in segments_in(disk.list(folder)):
        if segment.number not in seals:
            return
        yield segment, seals[segment.number]


def _blocks(index: Index, wanted: Wanted) -> list[int]:
    """The blocks that can hold something wanted, ascending."""
    ends = [block.first_seq - 1 for block in index.blocks[1:]] + [index.last_seq]
    chosen = {
        number
        for number, (block, end) in enumerate(zip(index.blocks, ends, strict=True))
        if end > wanted.after
        and (wanted.until is None or block.first_seq <= wanted.until)
        and (wanted.since_ms is None or block.latest_ms >= wanted.since_ms)
        and (wanted.until_ms is None or block.earliest_ms <= wanted.until_ms)
    }
    for asked, postings in ((wanted.type, index.types), (wanted.subject, index.subjects)):
        if asked is not None and chosen:
            chosen &= {number for term, numbers in postings.items() if asked(term) for number in numbers}
    return sorted(chosen)


def _in_blocks(disk: Disk, segment: Segment, index: Index, numbers: Iterable[int], folder: str) -> Iterator[Found]:
    path = f"{folder}/{segment.name}"
    ends = [block.offset for block in index.blocks[1:]] + [index.bytes]
    stretches: list[tuple[int, int]] = []
    for number in numbers:
        begin, end = index.blocks[number].offset, ends[number]
        if stretches and stretches[-1][1] == begin:
            begin = stretches.pop()[0]
        stretches.append((begin, end))
    for begin, end in stretches:
        for offset, line in lines(disk, path, begin):
            if offset >= end:
                break
            yield Found(_decoded(path, offset, line), line + b"\n")


def _decoded(path: str, offset: int, line: bytes) -> Record:
    try:
        return decode(line)
    except Unsound as unsound:
        raise Corrupt(path, offset, str(unsound)) from None
