"""The verifier: every byte of every file of a ledger, and each place that is not as it was written.

It does not stop at the first damage, and it is stricter than recovery: a whole line that does not verify is damage,
also where recovery would take it for a torn write. Only an unfinished end (a line without its newline, a batch without
its last record) is left to recovery, counted in `torn_bytes`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from ledger import watermark
from ledger.chain import Chain, Head
from ledger.disk import Disk
from ledger.ledger import LOCK
from ledger.reader import FOLDER
from ledger.record import GENESIS, Record, Unsound, check, record_of
from ledger.recovery import QUARANTINE, RECOVERED
from ledger.segment import Segment, lines, named
from ledger.watermark import EPOCH, HEAD, Watermark


@dataclass(frozen=True, slots=True)
class Damage:
    """`offset` counts bytes from the start of `file` (a path below the home) to the start of the damaged line."""

    file: str
    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class Verification:
    records: int
    """How many verify."""
    segments: int
    last: Head
    """The last record of the last complete batch."""
    damages: tuple[Damage, ...]
    torn_bytes: int
    """Behind the last complete batch: a write in progress, or one that a crash cut short and nobody was answered on."""

    @property
    def ok(self) -> bool:
        return not self.damages


def verify(disk: Disk, folder: str = FOLDER) -> Verification:
    """Read everything; changes nothing and raises nothing but OSError."""
    return _Pass(disk, folder).run()


class _Pass:
    def __init__(self, disk: Disk, folder: str) -> None:
        self._disk, self._folder = disk, folder
        self._damages: list[Damage] = []
        self._chain = Chain()
        self._records = 0
        self._last = Head(0, GENESIS)
        self._torn_bytes = 0
        self._hashes: dict[int, str] = {}

    def run(self) -> Verification:
        # The watermarks come first: a writer may note a later one while the segments are read.
        marks = [(file, mark) for file in (EPOCH, HEAD) if (mark := self._mark(file)) is not None]
        self._hashes = dict.fromkeys((mark.seq for _, mark in marks), "")
        segments = self._segments(self._disk.list(self._folder))
        for index, segment in enumerate(segments):
            self._segment(segment, segments[index + 1] if index + 1 < len(segments) else None)
        for file, mark in marks:
            self._compare(file, mark, segments)
        if not segments and not marks:
            self._report("", 0, "there is no ledger here")
        if segments and not self._disk.exists(f"{self._folder}/{EPOCH}"):
            self._report(EPOCH, 0, "the file is missing")
        return Verification(self._records, len(segments), self._last, tuple(self._damages), self._torn_bytes)

    def _report(self, file: str, offset: int, reason: object) -> None:
        self._damages.append(Damage(f"{self._folder}/{file}".rstrip("/"), offset, str(reason)))

    def _mark(self, file: str) -> Watermark | None:
        try:
            return watermark.read(self._disk, self._folder, file)
        except Unsound as unsound:
            self._report(file, 0, unsound)
            return None

    def _segments(self, names: Iterable[str]) -> list[Segment]:
        segments = []
        for name in names:
            segment = named(name)
            if segment is not None:
                segments.append(segment)
            elif name == LOCK:
                if self._disk.size(f"{self._folder}/{name}"):
                    self._report(name, 0, "the lock file must be empty")
            elif name not in (EPOCH, HEAD, QUARANTINE) and not (name.startswith(".") and name.endswith(".new")):
                self._report(name, 0, "this is no file of a ledger; move it away")
        return sorted(segments)

    def _segment(self, segment: Segment, follower: Segment | None) -> None:
        path = f"{self._folder}/{segment.name}"
        chain = self._chain
        good = whole = 0  # where the last complete batch, and the last whole line, end
        lost = ended = False
        try:
            chain.enter(segment)
        except Unsound as unsound:
            self._report(segment.name, 0, unsound)
            lost = True
        for offset, line in lines(self._disk, path):
            whole = offset + len(line) + 1
            if ended:
                self._report(segment.name, offset, "written by a superseded epoch after its successor began")
                break
            try:
                if lost:
                    chain.adopt(line, segment)
                self._take(chain.take(line))
            except Unsound as unsound:
                if not lost:
                    self._report(segment.name, offset, unsound)
                # Another record may stand here, sound but out of place: go on from it, and report it once.
                lost = not self._resume(line, segment)
            else:
                lost = False
            if not lost and not chain.remaining:
                good, self._last = whole, Head(chain.seq, chain.hash)
                ended = follower is not None and chain.seq + 1 == follower.first_seq
        self._unfinished(segment, follower, good, whole, lost)
        if lost or chain.remaining:
            self._step_over(follower)

    def _take(self, record: Record) -> None:
        self._records += 1
        if record.seq in self._hashes:
            self._hashes[record.seq] = record.hash
        if record.type == RECOVERED:
            self._quarantined(record)

    def _resume(self, line: bytes, segment: Segment) -> bool:
        try:
            self._chain.adopt(line, segment)
            self._take(self._chain.take(line))
        except Unsound:
            return False
        return True

    def _step_over(self, follower: Segment | None) -> None:
        """Stand before `follower` as if the segment before it had ended well: its damage has been reported."""
        if follower is None:
            return
        for _, line in lines(self._disk, f"{self._folder}/{follower.name}"):
            try:
                self._chain.adopt(line, follower)
            except Unsound:
                return
            self._chain.number -= 1
            return

    def _unfinished(self, segment: Segment, follower: Segment | None, good: int, whole: int, lost: bool) -> None:
        """What lies behind the last complete batch."""
        path = f"{self._folder}/{segment.name}"
        rest = self._disk.read(path, whole)
        if rest and _is_whole(rest[:-1]):
            self._report(segment.name, whole, "the line does not end with a newline")
        elif follower is not None and (rest or self._chain.remaining):
            self._report(segment.name, whole if rest else good, "the segment ends within a batch")
        elif not whole:
            self._report(segment.name, 0, "the segment has no first line")
        elif follower is None and not lost:
            self._torn_bytes = self._disk.size(path) - good

    def _quarantined(self, record: Record) -> None:
        """What recovery cut is still there, as it was."""
        for cut in (*record.data.get("cuts", ()), *record.data.get("found", ())):
            file = f"{QUARANTINE}/{cut['quarantine']}"
            path = f"{self._folder}/{file}"
            if not self._disk.exists(path):
                self._report(file, 0, f"the file is missing; record {record.seq} says that recovery put it there")
            elif sha256(self._disk.read(path)).hexdigest() != cut["sha256"]:
                self._report(file, 0, f"the content is not what record {record.seq} says that recovery put there")

    def _compare(self, file: str, mark: Watermark, segments: list[Segment]) -> None:
        if self._chain.ledger_id and mark.ledger_id != self._chain.ledger_id:
            self._report(file, 0, f"it belongs to ledger {mark.ledger_id}, the segments to {self._chain.ledger_id}")
        elif mark.seq > self._last.seq:
            last = segments[-1].name if segments else ""
            size = self._disk.size(f"{self._folder}/{last}") if last else 0
            reason = f"the ledger ends with seq {self._last.seq}; {file} proves that seq {mark.seq} had been durable"
            self._report(last, size, reason)
        elif self._hashes[mark.seq] not in ("", mark.hash):
            self._report(file, 0, f"it names another record as seq {mark.seq} than the segments hold")
        if segments and (mark.epoch < segments[-1].epoch) and file == EPOCH:
            self._report(file, 0, f"it says epoch {mark.epoch}; there is a segment of epoch {segments[-1].epoch}")


def _is_whole(line: bytes) -> bool:
    try:
        record_of(line, check(line))
    except Unsound:
        return False
    return True
