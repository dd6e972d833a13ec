"""A home as its files tell it, with the daemon up or down: the ledger replayed. Nothing is written."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from functools import cached_property

from daemon.home import Home
from daemon.system import OsDisk
from daemon.version import code_digest
from ledger.chain import Head
from ledger.index import Found, Wanted, last_before, search
from ledger.reader import FOLDER, read
from ledger.record import GENESIS, Record, decode, ending
from ledger.segment import Segment, lines, segments_in, stored_bytes
from policies.agenda import Agenda
from state.graph import Graph, Run
from state.mention import mentions
from state.snapshot import restore
from state.upcast import as_current, current

Progress = Callable[[int, int], None]
"""Told how many bytes of how many have been read; equal when it is done."""


class _CountingDisk(OsDisk):
    """Counts what is read, for whoever watches."""

    def __init__(self, root: str, told: Callable[[int], None]) -> None:
        super().__init__(root)
        self._told = told

    def read(self, path: str, offset: int = 0, limit: int = -1) -> bytes:
        data = super().read(path, offset, limit)
        self._told(len(data))
        return data


@contextlib.contextmanager
def replaying() -> Iterator[None]:
    """The collector of cycles rests: a replay makes none, and very many objects that it would look at again and again.
    A start from a large snapshot takes four times as long with it."""
    active = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if active:
            gc.enable()


class Reading:
    """The ledger's errors (Corrupt) and the projector's (Unknown, Impossible) come through."""

    def __init__(self, home: Home, progress: Progress = lambda done, whole: None) -> None:
        self.home = home
        self._progress = progress
        self._done = self._whole = 0
        self.disk = _CountingDisk(str(home.path), self._count)
        self.head_read = Head(0, GENESIS)
        """The last record of the graph read last."""

    def records(self, *, after: int = 0, until: int | None = None) -> Iterator[Record]:
        """As `ledger.reader.read`, in today's words."""
        with self.watched():
            yield from as_current(read(self.disk, after=after, until=until))

    def search(self, wanted: Wanted) -> Iterator[Found]:
        """Records that are wanted, among some that are not, in order and in today's words; by the indexes."""
        with self.watched():
            for record, line in search(self.disk, wanted, mentions):
                yield Found(current(record), line)

    def seq_at(self, at_ms: int) -> int:
        """The last record that was written at or before this instant of the wall; 0 if there is none."""
        with self.watched():
            return last_before(self.disk, at_ms, mentions)

    def last_seq(self) -> int:
        """The ledger's head, without a look at the segments before the last; 0 if there is none."""
        segments = segments_in(self.disk.list(FOLDER))
        after = segments[-1].first_seq - 1 if segments else 0
        return max((record.seq for record in read(self.disk, after=after)), default=after)

    @cached_property
    def ledger_id(self) -> str:
        """The ledger's name, which its first record bears; "" while there is none."""
        for segment in segments_in(self.disk.list(FOLDER))[:1]:
            for _, line in lines(self.disk, f"{FOLDER}/{segment.name}"):
                return str(decode(line).data["ledger"])
        return ""

    def watched(self) -> _Watched:
        """Tell the progress of one pass over the ledger."""
        return _Watched(self)

    @cached_property
    def _now(self) -> tuple[Graph, Head]:
        return self.graph_at(None), self.head_read

    @property
    def graph(self) -> Graph:
        return self._now[0]

    @property
    def head(self) -> Head:
        """The last record of `graph`."""
        return self._now[1]

    @cached_property
    def agenda(self) -> Agenda:
        return Agenda.of(self.graph)

    def graph_at(self, seq: int | None) -> Graph:
        """The graph after the record `seq`, or after the last one; `head_read` tells which that was. It comes from the
        nearest snapshot below it: what lies before that is not looked at."""
        with self.watched(), replaying():
            restored = restore(self.disk, code_digest(), until=seq)
        self.head_read = restored.head
        return restored.graph

    def runs(self) -> list[Run]:
        """Every run still in the graph, steps of agents included, in the order they came."""
        runs = [node for node in self.graph.nodes.values() if isinstance(node, Run)]
        return sorted(runs, key=lambda run: (run.created_at, run.name))

    def ledger_bytes(self) -> int:
        segments = segments_in(self.disk.list(FOLDER))
        return sum(stored_bytes(self.disk, f"{FOLDER}/{segment.name}") for segment in segments)

    def passed(self, done: int, parts: int) -> None:
        """Another process has read so many of so many parts of the pass that is watched."""
        self._count(self._whole * done // parts - self._done)

    def _count(self, count: int) -> None:
        self._done += count
        if self._whole:
            self._progress(min(self._done, self._whole - 1), self._whole)


class _Watched:
    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def __enter__(self) -> None:
        self._reading._done, self._reading._whole = 0, self._reading.ledger_bytes()

    def __exit__(self, *error: object) -> None:
        reading = self._reading
        if reading._whole:
            reading._progress(reading._whole, reading._whole)
        reading._whole = 0


class RawLines:
    """The bytes of records, as they stand in the ledger. Ask for records in ascending order: it reads each once."""

    def __init__(self, disk: OsDisk) -> None:
        self._disk = disk
        self._segment: Segment | None = None
        self._offset = 0
        self._lines: Iterator[tuple[int, bytes]] = iter(())

    def of(self, record: Record) -> bytes:
        """The whole line, newline included. LookupError if it is not there (any more)."""
        trailer = ending(record.hash)[:-1]
        found = self._next(trailer)
        if found is not None:
            return found
        # The file has grown since it was listed, the record is in a later segment, or the last batch was taken back.
        segment = [s for s in segments_in(self._disk.list(FOLDER)) if s.first_seq <= record.seq][-1]
        starts = [self._offset, 0] if segment == self._segment else [0]
        for start in starts:
            self._segment, self._offset = segment, start
            self._lines = lines(self._disk, f"{FOLDER}/{segment.name}", start)
            found = self._next(trailer)
            if found is not None:
                return found
        raise LookupError(f"record {record.seq} is not in the ledger any more")

    def _next(self, trailer: bytes) -> bytes | None:
        for offset, line in self._lines:
            if line.endswith(trailer):
                self._offset = offset + len(line) + 1
                return line + b"\n"
        return None
