"""The chain: which line may come next. The one place that decides it, for readers, recovery and verifier alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ledger.record import (
    GENESIS,
    HASHED_TO,
    OWN_LENGTH,
    START,
    TRAILER_BYTES,
    Record,
    Unsound,
    check,
    hash_of,
    linked,
    predecessor,
    record_of,
    records_of,
)
from ledger.seal import Seal
from ledger.segment import Segment, ledger_of


class Head(NamedTuple):
    """The last record: its seq and hash."""

    seq: int
    hash: str


class Chain:
    """The last record taken. `take` accepts the one that follows it and nothing else."""

    __slots__ = ("_segment", "batch", "epoch", "hash", "ledger_id", "more", "number", "seq")

    def __init__(self) -> None:
        self.ledger_id = ""
        self.seq = 0
        self.hash = GENESIS
        self.number = 0
        self.epoch = 0
        self.batch = 0
        self.more = False
        self._segment: Segment | None = None

    def copy(self) -> Chain:
        twin = Chain.__new__(Chain)
        twin.ledger_id, twin.number, twin.epoch, twin._segment = self.ledger_id, self.number, self.epoch, self._segment
        twin.seq, twin.hash, twin.batch, twin.more = self.seq, self.hash, self.batch, self.more
        return twin

    def enter(self, segment: Segment) -> None:
        """The next line is the first of `segment`. Unsound if this segment cannot follow."""
        if self.more:
            raise Unsound(f"the segment before ends within the batch that begins with seq {self.batch}")
        if segment.number != self.number + 1:
            raise Unsound(f"the segment has number {segment.number}; {self.number + 1} must come next")
        if segment.first_seq != self.seq + 1:
            raise Unsound(f"the segment begins with seq {segment.first_seq}; the one before ends with {self.seq}")
        if segment.epoch < self.epoch:
            raise Unsound(f"the segment is of epoch {segment.epoch}; the one before is of {self.epoch}")
        self.number, self.epoch, self._segment = segment.number, segment.epoch, segment

    def enter_sealed(self, seal: Seal, *, first: bool = False) -> None:
        """Stand behind the last record of a segment whose bytes are those of its seal. Unsound if it cannot follow.
        With `first`, reading starts here, and what lies before is taken on trust."""
        if not first:
            self.enter(seal.segment)
            if seal.previous != self.hash:
                raise Unsound("the segment does not name the record before it as its predecessor")
        if self.ledger_id and seal.ledger_id != self.ledger_id:
            raise Unsound(f"the segment belongs to ledger {seal.ledger_id}, the ones before to {self.ledger_id}")
        self.ledger_id, self.number, self.epoch, self._segment = seal.ledger_id, seal.number, seal.epoch, None
        self.seq, self.hash, self.more = seal.last_seq, seal.last_hash, False

    def take(self, line: bytes) -> Record:
        """The record of `line` (no newline), which becomes the last one. Unsound, and nothing changed, if it does not
        follow."""
        digest = hash_of(line[:HASHED_TO])
        trailer = f',"h":"{self.hash}{digest[:OWN_LENGTH]}"}}'.encode()
        if line[-TRAILER_BYTES:] != trailer or not line.startswith(START):
            check(line)
            raise Unsound("the record does not name the one before it as its predecessor")
        record = record_of(line, digest)
        seq, epoch, batch, more = record[:4]
        if seq != self.seq + 1:
            raise Unsound(f"seq is {seq}; {self.seq + 1} must come next")
        if epoch != self.epoch:
            raise Unsound(f"the record is of epoch {epoch}; the segment is of epoch {self.epoch}")
        if batch != (self.batch if self.more else seq):
            goes_on = f"the batch that began with seq {self.batch} must go on" if self.more else "a batch must begin"
            raise Unsound(f"the record is of the batch that began with seq {batch}; {goes_on}")
        if self._segment is not None:
            self._begin(record, self._segment)
        self.seq, self.hash, self.batch, self.more = seq, digest, batch, more
        return record

    def take_many(self, lines: Sequence[bytes], until: int) -> list[Record]:
        """The records of as many of `lines`, from the first on, as follow each other, up to seq `until` (0: no bound):
        what `take` gives for each, at half its price. `take` says what is wrong with the line behind them."""
        if self._segment is not None:
            return []
        digests = linked(lines, self.hash)
        seq, batch, more, epoch = self.seq, self.batch, self.more, self.epoch
        taken = records_of(lines[: len(digests)], digests)
        for place, record in enumerate(taken):
            if not more:
                batch = seq + 1
            if seq == until or record[0] != seq + 1 or record[1] != epoch or record[2] != batch:
                del taken[place:]
                break
            seq += 1
            more = record[3]
        if taken:
            self.seq, self.hash, self.batch, self.more = seq, taken[-1].hash, taken[-1].batch, more
        return taken

    def adopt(self, line: bytes, segment: Segment) -> None:
        """Stand just before `line`, the first sound one after a gap or where reading starts. Unsound if it is not."""
        record = record_of(line, check(line))
        self.seq, self.hash = record.seq - 1, predecessor(line)
        self.more, self.batch = record.batch < record.seq, record.batch
        self.number, self.epoch = segment.number, segment.epoch
        self._segment = segment if record.seq == segment.first_seq else None

    def _begin(self, record: Record, segment: Segment) -> None:
        ledger_id = ledger_of(record, segment)
        if self.ledger_id and ledger_id != self.ledger_id:
            raise Unsound(f"the segment belongs to ledger {ledger_id}, the ones before to {self.ledger_id}")
        if record.more:
            raise Unsound("a segment's first record must be a batch of its own")
        self.ledger_id = ledger_id
        self._segment = None
