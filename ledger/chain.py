"""The chain: which line may come next. The one place that decides it, for readers, recovery and verifier alike."""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

from ledger.record import GENESIS, HASHED_TO, START, Record, Unsound, check, predecessor, record_of
from ledger.seal import Seal
from ledger.segment import Segment, ledger_of


class Head(NamedTuple):
    """The last record: its seq and hash."""

    seq: int
    hash: str


class Chain:
    """The last record taken. `take` accepts the one that follows it and nothing else."""

    __slots__ = ("_segment", "batch", "epoch", "hash", "ledger_id", "number", "remaining", "seq")

    def __init__(self) -> None:
        self.ledger_id = ""
        self.seq = 0
        self.hash = GENESIS
        self.number = 0
        self.epoch = 0
        self.batch = 0
        self.remaining = 0
        self._segment: Segment | None = None

    def copy(self) -> Chain:
        twin = Chain.__new__(Chain)
        twin.ledger_id, twin.number, twin.epoch, twin._segment = self.ledger_id, self.number, self.epoch, self._segment
        twin.seq, twin.hash, twin.batch, twin.remaining = self.seq, self.hash, self.batch, self.remaining
        return twin

    def enter(self, segment: Segment) -> None:
        """The next line is the first of `segment`. Unsound if this segment cannot follow."""
        if self.remaining:
            raise Unsound(f"the segment before ends within batch {self.batch}")
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
            if seal.previous != self.hash or seal.first_batch != self.batch + 1:
                raise Unsound("the segment does not name the record before it as its predecessor")
        if self.ledger_id and seal.ledger_id != self.ledger_id:
            raise Unsound(f"the segment belongs to ledger {seal.ledger_id}, the ones before to {self.ledger_id}")
        self.ledger_id, self.number, self.epoch, self._segment = seal.ledger_id, seal.number, seal.epoch, None
        self.seq, self.hash, self.batch, self.remaining = seal.last_seq, seal.last_hash, seal.last_batch, 0

    def take(self, line: bytes) -> Record:
        """The record of `line` (no newline), which becomes the last one. Unsound, and nothing changed, if it does not
        follow."""
        digest = sha256(line[:HASHED_TO]).hexdigest()[:32]
        if line[-79:] != f',"p":"{self.hash}","h":"{digest}"}}'.encode() or not line.startswith(START):
            check(line)
            raise Unsound("the record does not name the one before it as its predecessor")
        record = record_of(line, digest)
        seq, epoch, batch, remaining = record[:4]
        if seq != self.seq + 1:
            raise Unsound(f"seq is {seq}; {self.seq + 1} must come next")
        if epoch != self.epoch:
            raise Unsound(f"the record is of epoch {epoch}; the segment is of epoch {self.epoch}")
        if self.remaining:
            if batch != self.batch or remaining != self.remaining - 1:
                raise Unsound(f"batch {self.batch} must go on with {self.remaining - 1} to come")
        elif batch != self.batch + 1 or remaining < 0:
            raise Unsound(f"batch is {batch}; {self.batch + 1} must come next")
        if self._segment is not None:
            self._begin(record, self._segment)
        self.seq, self.hash, self.batch, self.remaining = seq, digest, batch, remaining
        return record

    def adopt(self, line: bytes, segment: Segment) -> None:
        """Stand just before `line`, the first sound one after a gap or where reading starts. Unsound if it is not."""
        record = record_of(line, check(line))
        self.seq, self.hash = record.seq - 1, predecessor(line)
        self.remaining, self.batch = 0, record.batch - 1
        self.number, self.epoch = segment.number, segment.epoch
        self._segment = segment if record.seq == segment.first_seq else None

    def _begin(self, record: Record, segment: Segment) -> None:
        ledger_id = ledger_of(record, segment)
        if self.ledger_id and ledger_id != self.ledger_id:
            raise Unsound(f"the segment belongs to ledger {ledger_id}, the ones before to {self.ledger_id}")
        if record.remaining:
            raise Unsound("a segment's first record must be a batch of its own")
        self.ledger_id = ledger_id
        self._segment = None
