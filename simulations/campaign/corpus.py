"""Ledgers of all shapes, written by the real writer, and what is true of them as long as nobody touches them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import NamedTuple

from ledger import repair
from ledger.archive import archive
from ledger.instant import Now
from ledger.ledger import Bounds, Ledger
from ledger.reader import read
from ledger.record import Draft, Record
from ledger.segment import ARCHIVE, CUT, Writer, content, segments_in
from simulations.campaign.memory import Memory

WRITER = Writer(host="box", boot_id="boot-1", pid=4711, started=99, code="campaign")
OTHER = Writer(host="other", boot_id="boot-2", pid=815, started=7, code="campaign")
_TEXTS = ("", "é", "日本", "\u2028\x00\n", '"\\', "x" * 60)


class Line(NamedTuple):
    """Where a record lies in its segment; `end` is behind its newline."""

    start: int
    end: int
    seq: int
    batch: int
    more: bool


@dataclass(frozen=True)
class Whole:
    """An undamaged ledger. `files` are its paths and their content."""

    shape: str
    files: dict[str, bytes]
    records: tuple[Record, ...]
    """Of complete batches."""
    lines: dict[str, tuple[Line, ...]]
    """Of each segment, by its path as a plain file."""
    sealed: dict[str, int]
    """Segments with a seal or a line in the manifest, and how long they are by it."""
    proven_seq: int
    """The highest seq that HEAD or EPOCH proves durable."""
    head_seq: int
    epoch_seq: int
    foreign: tuple[bytes, ...]
    """The lines of another ledger, whose records have the same places as this one's last segment's."""

    @property
    def last(self) -> str:
        return max(self.lines)


def now(seconds: int) -> Now:
    return Now(1_795_235_940_123_456_000 + seconds * 1_000_000_000, 5_000_000_000 + seconds * 1_000_000_000)


class _Author:
    """Writes a ledger whose every choice follows from the seed. A twin of another name makes the same choices."""

    def __init__(self, seed: int, writer: Writer) -> None:
        self.disk, self._chance, self._writer = Memory({}), Random(seed), writer
        self._clock = 0
        self.ledger: Ledger | None = None

    def open(self, segment_bytes: int = 1 << 20) -> None:
        self._clock += 1
        bounds = Bounds(segment_bytes=segment_bytes, reserve_bytes=0)
        self.ledger = Ledger.open(self.disk, self._writer, now(self._clock), bounds=bounds)

    def write(self, *batches: int) -> None:
        assert self.ledger is not None
        for size in batches:
            self._clock += 1
            drafts = [
                Draft("run.finished", f"run/{self._chance.randrange(9)}", {"text": self._chance.choice(_TEXTS)})
                for _ in range(size)
            ]
            self.ledger.append(drafts, now(self._clock))

    def note(self) -> None:
        assert self.ledger is not None
        self.ledger.note_head()

    def close(self) -> None:
        assert self.ledger is not None
        self.ledger.close()

    def session(self, *batches: int, segment_bytes: int = 1 << 20) -> None:
        self.open(segment_bytes)
        self.write(*batches)
        self.close()

    def tear(self, cut_bytes: int) -> None:
        """A write in the middle of which the process was killed: no HEAD was noted since."""
        path = self.path
        self.disk.files[path] = self.disk.files[path][:-cut_bytes]

    @property
    def path(self) -> str:
        return f"ledger/{segments_in(self.disk.list('ledger'))[-1].name}"


def _one_record(author: _Author) -> None:
    author.session()


def _killed_at_once(author: _Author) -> None:
    author.open()
    author.write(1)


def _many_batches(author: _Author) -> None:
    author.session(1, 2, 1, 3, 1, 1)


def _killed(author: _Author) -> None:
    author.open()
    author.write(2, 1)
    author.note()
    author.write(1, 3, 1, 2)


def _one_large_batch(author: _Author) -> None:
    author.open()
    author.write(9)


def _torn(author: _Author) -> None:
    author.session(1)
    author.open()
    author.write(1, 1, 3)
    author.tear(140)


def _epochs(author: _Author) -> None:
    for batches in ((1,), (2, 1), (1, 1)):
        author.session(*batches)


def _killed_in_the_third_epoch(author: _Author) -> None:
    author.session(1, 1)
    author.session(2)
    author.open()
    author.write(1, 2, 1)


def _rotated(author: _Author) -> None:
    author.session(1, 2, 2, 1, 2, 1, segment_bytes=900)


def _archived(author: _Author) -> None:
    author.session(2, 2, 1, segment_bytes=900)
    author.session(1)
    archive(author.disk, keep=1)


def _archived_by_half(author: _Author) -> None:
    author.session(2)
    author.session(1)
    plain = dict(author.disk.files)
    archive(author.disk, keep=0)
    author.disk.files |= {path: data for path, data in plain.items() if path not in author.disk.files}


def _recovered(author: _Author) -> None:
    author.session(1)
    author.open()
    author.write(1, 2)
    author.tear(30)
    author.session(2)


def _recovered_and_killed(author: _Author) -> None:
    author.open()
    author.write(1, 2)
    author.tear(30)
    author.session(1)
    author.open()
    author.write(1, 1)


def _rewritten(author: _Author) -> None:
    author.open()
    author.write(1, 2)
    author.session(1)


def _not_sealed(author: _Author) -> None:
    for batches in ((1, 1), (2,), (1,)):
        author.session(*batches)
    for path in [path for path in author.disk.files if path.endswith((".seal", "MANIFEST.jsonl"))]:
        del author.disk.files[path]


def _sealed_but_not_noted(author: _Author) -> None:
    author.session(1)
    author.session(2)
    del author.disk.files["ledger/MANIFEST.jsonl"]


def _epoch_ahead(author: _Author) -> None:
    """A crash between the claim of an epoch and its first segment."""
    author.session(1, 2)
    before = dict(author.disk.files)
    author.open()
    author.disk.files, before = before, author.disk.files
    author.disk.files["ledger/EPOCH"] = before["ledger/EPOCH"]


def _cut(author: _Author) -> None:
    """A person gave up what was behind a damage."""
    author.session(1, 2)
    author.session(1, 1)
    done = repair.cut(author.disk, repair.loss(author.disk, 3), now(50))
    names = frozenset(cut["quarantine"] for cut in done["cuts"])
    ledger = Ledger.open(author.disk, WRITER, now(51), to_be_recorded=names)
    ledger.append([Draft(CUT, "ledger", done | {"actor": "somebody", "reason": "rot"})], now(51))
    ledger.append([Draft("run.finished", "run/1", {})], now(52))
    ledger.close()


SHAPES: dict[str, Callable[[_Author], None]] = {
    function.__name__.strip("_").replace("_", " "): function
    for function in (
        _one_record,
        _killed_at_once,
        _many_batches,
        _killed,
        _one_large_batch,
        _torn,
        _epochs,
        _killed_in_the_third_epoch,
        _rotated,
        _archived,
        _archived_by_half,
        _recovered,
        _recovered_and_killed,
        _rewritten,
        _not_sealed,
        _sealed_but_not_noted,
        _epoch_ahead,
        _cut,
    )
}


@lru_cache(maxsize=len(SHAPES))
def whole(shape: str, seed: int) -> Whole:
    author, twin = _Author(seed, WRITER), _Author(seed, OTHER)
    SHAPES[shape](author)
    SHAPES[shape](twin)
    disk = author.disk
    lines: dict[str, tuple[Line, ...]] = {}
    for segment in segments_in(disk.list("ledger")):
        path = f"ledger/{segment.name}"
        lines[path] = tuple(_lines(content(disk, path)))
    seals = [json.loads(data) for path, data in disk.files.items() if path.endswith(".seal")]
    sealed = {
        f"ledger/{s['segment']:010}-e{s['epoch']:04}-{s['first_seq']:016}.jsonl": int(s["size_bytes"]) for s in seals
    }
    marks = {name: json.loads(disk.files.get(f"ledger/{name}", b'{"seq":0}'))["seq"] for name in ("HEAD", "EPOCH")}
    return Whole(
        shape=shape,
        files={path: data for path, data in disk.files.items() if data},
        records=tuple(read(disk)),
        lines=lines,
        sealed=sealed,
        proven_seq=max(marks.values()),
        head_seq=marks["HEAD"],
        epoch_seq=marks["EPOCH"],
        foreign=tuple(twin.disk.files[twin.path].splitlines(keepends=True)),
    )


def _lines(data: bytes) -> list[Line]:
    found, at = [], 0
    for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
        fields = json.loads(line)
        seq, more = fields["seq"], "n" in fields and "of" not in fields
        found.append(Line(at, at + len(line), seq, seq - fields.get("n", 1) + 1, more))
        at += len(line)
    return found


def plain(path: str) -> str:
    return path.removesuffix(ARCHIVE)
