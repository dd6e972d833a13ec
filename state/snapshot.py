"""Snapshots: the graph as of one record, kept so that a start need not read the whole past again.

A snapshot is derived and never trusted over the ledger. It is bound to a record by seq and hash, to the projector that
folded it and to the vocabulary it knew by their digests, and to its own bytes by a hash in its name. One that fits in
all of these stands for the records up to its own; any other is passed over, as if it were not there.

What a start from a snapshot does not do is look at the records before it: that their bytes are still whole is left to
the auditor, which replays everything in the background, and to `hermesd verify`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from hashlib import sha256
from itertools import chain
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import orjson

from ledger.chain import Head
from ledger.disk import Disk, write_atomically
from ledger.reader import FOLDER as LEDGER
from ledger.reader import read
from ledger.record import GENESIS, Record
from ledger.segment import KEEPING, OPEN
from state.events import VERSIONS, VOCABULARY
from state.graph import AnyNode, Graph, GraphPatch
from state.projector import fold
from state.spec import shared

Json = Any

FOLDER = "snapshots"
KEPT = 2
"""The newest, from which a start begins."""
MILESTONES = 14
"""Older ones, spread over the past: whoever looks back begins at the nearest."""
_OPENING = frozenset((OPEN, *KEEPING))
FORMAT = 2
_HEAD_BYTES = 1 << 16
"""More than the first line takes."""
ROWS_A_LINE = 200
"""Of nodes. A whole snapshot read at once would take up several times what the graph does."""
_NAME = re.compile(r"(\d{16})-([0-9a-f]{32})\.json")
_KINDS: tuple[type, ...] = get_args(AnyNode)


class Stored(NamedTuple):
    """A snapshot's file, as its name tells it."""

    seq: int
    digest: str

    @property
    def path(self) -> str:
        return f"{FOLDER}/{self.seq:016d}-{self.digest}.json"


class Snapshot(NamedTuple):
    graph: Graph
    head: Head


class Restored(NamedTuple):
    """The graph after `last`, the last record read (None of an empty ledger), and what it was made from."""

    graph: Graph
    last: Record | None
    snapshot_seq: int
    """0: every record was folded."""
    records: int
    """How many were folded behind the snapshot."""
    before: Record | None = None
    """The last record that was read and does not merely tell of an opening: when somebody was last known to live."""

    @property
    def head(self) -> Head:
        return Head(self.last.seq, self.last.hash) if self.last is not None else Head(0, GENESIS)


@cache
def vocabulary_digest() -> str:
    """Names the events that are known here, their versions and their fields."""
    told = {
        name: [VERSIONS.get(name, 1), sorted((field, str(kind)) for field, kind in shape.__annotations__.items())]
        for name, shape in VOCABULARY.items()
    }
    return sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


@cache
def _shapes() -> dict[str, tuple[type, tuple[str, ...], tuple[tuple[int, bool], ...]]]:
    """Kind -> its class, its fields, and the places of those that are tuples, which JSON would make lists of (with
    whether their items are tuples, too)."""
    shapes = {}
    for kind in _KINDS:
        hints = get_type_hints(kind)
        fields: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
        tuples = tuple(
            (place, any(get_origin(item) is tuple for item in get_args(hints[field])))
            for place, field in enumerate(fields)
            if get_origin(hints[field]) is tuple
        )
        shapes[kind.__name__] = (kind, fields, tuples)
    return shapes


@cache
def _specs() -> dict[str, int]:
    """Kind -> the place of the spec in it."""
    return {kind: fields.index("spec") for kind, (_, fields, _) in _shapes().items() if "spec" in fields}


def encode(graph: Graph, head: Head, projector: str) -> bytes:
    """The bytes of a snapshot, lines of JSON: the same graph at the same head gives the same bytes.

    Nodes stand in the order in which the graph has them, because the order of what is active is a part of the state.
    """
    told = {
        "v": FORMAT,
        "seq": head.seq,
        "hash": head.hash,
        "projector": projector,
        "vocabulary": vocabulary_digest(),
        "fields": {kind: fields for kind, (_, fields, _) in _shapes().items()},
    }
    lines, kind, rows = [orjson.dumps(told)], "", list[tuple[Any, ...]]()
    for node in graph.nodes.values():
        if len(rows) == ROWS_A_LINE or kind != type(node).__name__:
            lines += [orjson.dumps([kind, rows])] if rows else []
            kind, rows = type(node).__name__, []
        rows.append(tuple(node))
    lines += [orjson.dumps([kind, rows])] if rows else []
    return b"\n".join(lines)


def decode(data: bytes, projector: str) -> Snapshot | None:
    """None if it is of another format, projector or vocabulary, or no snapshot at all."""
    try:
        lines = _lines(data)
        told = orjson.loads(next(lines))
        if not _made_here(told, projector):
            return None
        graph, head = Graph(), Head(told["seq"], told["hash"])
        for line in lines:
            kind, rows = orjson.loads(line)
            graph.merge(GraphPatch(tuple(_nodes(kind, rows))), head.seq)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None
    graph.seq = head.seq
    return Snapshot(graph, head)


def _made_here(told: Json, projector: str) -> bool:
    mine = (FORMAT, projector, vocabulary_digest(), {kind: list(shape[1]) for kind, shape in _shapes().items()})
    return (told["v"], told["projector"], told["vocabulary"], told["fields"]) == mine


def _lines(data: bytes) -> Iterator[memoryview]:
    view, start = memoryview(data), 0
    while start <= len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        yield view[start:end]
        start = end + 1


def _nodes(kind: str, rows: Iterable[list[Json]]) -> Iterator[AnyNode]:
    made, _, tuples = _shapes()[kind]
    make = made._make  # type: ignore[attr-defined]
    spec = _specs().get(kind)
    for row in rows:
        if spec is not None:
            row[spec] = shared(row[spec])
        for place, nested in tuples:
            row[place] = tuple(map(tuple, row[place])) if nested else tuple(row[place])
        yield make(row)


def write(disk: Disk, graph: Graph, head: Head, projector: str, *, milestones: int = MILESTONES) -> Stored:
    """Keep the graph as of `head`, which must be durable, and of the older ones as many as `KEPT` and `milestones` say.
    Durable once this returns."""
    data = encode(graph, head, projector)
    stored = Stored(head.seq, sha256(data).hexdigest()[:32])
    disk.make_folder(FOLDER)
    for name in disk.list(FOLDER):
        if name.startswith("."):  # what a crash left of a snapshot in the making
            disk.remove(f"{FOLDER}/{name}")
    write_atomically(disk, stored.path, data, durable=True)
    # One that is ahead of the ledger, or beside it, tells of another past: of a ledger that was cut or moved away.
    kept = [other for other in stored_in(disk) if other == stored or other.seq < head.seq]
    kept = kept[:KEPT] + [other for other in kept[KEPT:] if _fits(disk, other, projector)]
    while len(kept) > KEPT + milestones:
        del kept[_spare(kept)]
    for other in stored_in(disk):
        if other not in kept:
            disk.remove(other.path)
    return stored


def _spare(kept: list[Stored]) -> int:
    """The place of the one, behind the newest, without which the past is still seen best: where the gap that it leaves
    is the smallest, and of those the oldest."""
    seqs = [*(stored.seq for stored in kept), 0]
    return min(range(len(kept) - 1, KEPT - 1, -1), key=lambda place: seqs[place - 1] - seqs[place + 1])


def seqs_between(disk: Disk, projector: str, *, after: int = 0, until: int | None = None) -> list[int]:
    """The records between these two of which there is a snapshot that this code can read, in order. `restore` says
    whether the ledger agrees."""
    kept = (other for other in stored_in(disk) if after < other.seq and (until is None or other.seq < until))
    return sorted(other.seq for other in kept if _fits(disk, other, projector))


def _fits(disk: Disk, stored: Stored, projector: str) -> bool:
    """Whether this code made it, by what its first line says."""
    try:
        head, _, rest = disk.read(stored.path, 0, _HEAD_BYTES).partition(b"\n")
        return bool(rest) and _made_here(orjson.loads(head), projector)
    except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError):
        return False


def stored_in(disk: Disk) -> list[Stored]:
    """Newest first."""
    matches = (_NAME.fullmatch(name) for name in disk.list(FOLDER))
    return sorted((Stored(int(match[1]), match[2]) for match in matches if match is not None), reverse=True)


def load(disk: Disk, stored: Stored, projector: str) -> Snapshot | None:
    """None if its bytes are not those it was named by, or it was made by other code. The ledger was not asked yet."""
    try:
        data = disk.read(stored.path)
    except FileNotFoundError:  # replaced by a newer one since it was listed
        return None
    if sha256(data).hexdigest()[:32] != stored.digest:
        return None
    found = decode(data, projector)
    return found if found is not None and found.head.seq == stored.seq else None


def usable(disk: Disk, projector: str, *, until: int | None = None) -> Iterator[Snapshot]:
    """Snapshots at or before the record `until`, newest first, each as good as it can be without the ledger."""
    for stored in stored_in(disk):
        if until is None or stored.seq <= until:
            found = load(disk, stored, projector)
            if found is not None:
                yield found


def restore(
    disk: Disk, projector: str, *, until: int | None = None, first: Snapshot | None = None, folder: str = LEDGER
) -> Restored:
    """The graph after the record `until` (or the last one): from the nearest snapshot that the ledger agrees with, or
    from the first record. `first` is tried before all others, and used up. Corrupt, Unknown and Impossible come
    through."""
    for graph, head in chain([first] if first is not None else [], usable(disk, projector, until=until)):
        records = read(disk, after=head.seq - 1, until=until, folder=folder)
        bound = next(records, None)
        if bound is not None and (bound.seq, bound.hash) == head:
            return _tail(graph, bound, records, head.seq)
    return _tail(Graph(), None, read(disk, until=until, folder=folder), 0)


def _tail(graph: Graph, last: Record | None, records: Iterable[Record], snapshot_seq: int) -> Restored:
    count, before = 0, last

    def counted() -> Iterator[Record]:
        nonlocal last, count, before
        for record in records:
            count += 1
            last = record
            if record.type not in _OPENING:
                before = record
            yield record

    fold(graph, counted())
    return Restored(graph, last, snapshot_seq, count, before)
