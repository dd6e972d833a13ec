"""The verifier: every byte of every file of a ledger, and each place that is not as it was written.

It does not stop at the first damage, and it is stricter than recovery: a whole line that does not verify is damage,
also where recovery would take it for a torn write. Only an unfinished end (a line without its newline, a batch without
its last record) is left to recovery, counted in `torn_bytes`. A sealed segment is compared with its seal by one hash;
its records are followed only to say where it differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from ledger import frames, manifest, seal, watermark
from ledger.chain import Chain, Head
from ledger.disk import Disk
from ledger.errors import Corrupt
from ledger.ledger import ARCHIVING, LOCK
from ledger.manifest import MANIFEST, Manifest
from ledger.reader import FOLDER
from ledger.record import GENESIS, Record, Unsound, check, decode, record_of
from ledger.recovery import QUARANTINE
from ledger.seal import Seal, line_at
from ledger.segment import ARCHIVE, KEEPING, Segment, content, lines, named, segments_in, superseded_in
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
        self._seals: dict[int, Seal] = {}

    def run(self) -> Verification:
        # The watermarks come first: a writer may note a later one while the segments are read.
        marks = [(file, mark) for file in (EPOCH, HEAD) if (mark := self._mark(file)) is not None]
        self._hashes = dict.fromkeys((mark.seq for _, mark in marks), "")
        noted = manifest.read(self._disk, self._folder)
        segments = self._segments(self._disk.list(self._folder))
        self._read_seals(noted, segments)
        self._read_manifest(noted)
        there = set(segments)
        shown = sorted(there | {sealed.segment for sealed in self._seals.values()})
        for index, segment in enumerate(shown):
            follower = shown[index + 1] if index + 1 < len(shown) else None
            if segment not in there:
                self._report(segment.name, 0, "the sealed segment is missing")
                self._stand_behind(self._seals[segment.number])
            elif not self._sealed(segment):
                try:
                    self._segment(segment, follower)
                except Corrupt as corrupt:  # an archive that nothing vouches for and that cannot be unpacked
                    self._damages.append(Damage(corrupt.file, corrupt.offset, corrupt.reason))
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

    def _segments(self, names: list[str]) -> list[Segment]:
        segments = segments_in(names)
        known = {EPOCH, HEAD, QUARANTINE, MANIFEST}
        for segment in segments:
            known |= {segment.name, segment.name + ARCHIVE, segment.seal_name, segment.index_name}
        late = {segment.stem for segment in superseded_in(names)}
        for name in names:
            if name.removesuffix(ARCHIVE).rpartition(".")[0] in late:
                self._report(name, 0, "begun by a superseded epoch after its successor began")
            elif name in (LOCK, ARCHIVING):
                if self._disk.size(f"{self._folder}/{name}"):
                    self._report(name, 0, "the lock file must be empty")
            elif name not in known and not name.endswith(".seal") and not (name[0] == "." and name.endswith(".new")):
                self._report(name, 0, "this is no file of a ledger; move it away")
        return segments

    def _read_seals(self, noted: Manifest, segments: list[Segment]) -> None:
        self._seals = {sealed.number: sealed for sealed in (*noted.beyond, *(entry.seal for entry in noted.entries))}
        names = self._disk.list(self._folder)
        late = set(superseded_in(names))
        for name in names:
            segment = named(f"{name.removesuffix('.seal')}.jsonl") if name.endswith(".seal") else None
            if segment is None or segment in late:
                continue
            try:
                sealed = seal.read(self._disk, self._folder, segment)
            except Unsound as unsound:
                self._report(name, 0, unsound)
                continue
            if sealed is not None and self._seals.setdefault(sealed.number, sealed) != sealed:
                self._report(name, 0, f"it names other content than {MANIFEST} does for segment {sealed.number}")
        for number, entry in enumerate(noted.entries, 1):
            if not self._disk.exists(f"{self._folder}/{entry.seal.segment.seal_name}"):
                reason = f"the seal is missing; {MANIFEST} says what is in it"
                self._report(entry.seal.segment.seal_name, 0, reason)
            assert number == entry.seal.number

    def _read_manifest(self, noted: Manifest) -> None:
        if noted.torn and not _is_entry(self._disk.read(f"{self._folder}/{MANIFEST}", noted.good_bytes)):
            return  # an unfinished write, which the next start does again
        if noted.why:
            self._report(MANIFEST, noted.good_bytes, noted.why)

    def _sealed(self, segment: Segment) -> bool:
        """Look a sealed segment over. False if its records must be followed, since it is not sealed, or not as it
        was."""
        sealed = self._seals.get(segment.number)
        if sealed is None or sealed.segment != segment:
            return False
        path = f"{self._folder}/{segment.name}"
        if self._disk.exists(path + ARCHIVE):
            try:
                plain = frames.unpack(self._disk.read(path + ARCHIVE))
                if sha256(plain).hexdigest() != sealed.sha256:
                    raise Unsound("the archive's content is not that which the seal names")
            except Unsound as unsound:
                self._report(segment.name + ARCHIVE, 0, unsound)
            if not self._disk.exists(path):
                self._quarantined(sealed.quarantined, f"{segment.seal_name} says")
                self._records += sealed.records * (not self._reported(segment.name + ARCHIVE))
                self._stand_behind(sealed)
                return True
        data = self._disk.read(path)
        if sha256(data[: sealed.size_bytes]).hexdigest() != sealed.sha256:
            before = len(self._damages)
            self._segment(segment, None)
            if len(self._damages) == before:
                self._report(segment.name, 0, "its bytes are not those that its seal names")
            self._torn_bytes = 0
            self._stand_behind(sealed, trust=True)
            return True
        self._quarantined(sealed.quarantined, f"{segment.seal_name} says")
        if len(data) > sealed.size_bytes:
            self._report(segment.name, sealed.size_bytes, "written by a superseded epoch after it was sealed")
        for seq in self._hashes:
            if sealed.first_seq <= seq <= sealed.last_seq:
                at = line_at(data, seq)
                self._hashes[seq] = decode(data[at : data.index(b"\n", at)]).hash
        self._records += sealed.records
        self._stand_behind(sealed)
        return True

    def _reported(self, file: str) -> bool:
        return any(damage.file == f"{self._folder}/{file}" for damage in self._damages)

    def _stand_behind(self, sealed: Seal, *, trust: bool = False) -> None:
        """With `trust`, what lies before is damaged and has been reported."""
        chain = self._chain
        try:
            chain.enter_sealed(sealed, first=trust)
        except Unsound as unsound:
            self._report(sealed.segment.name, 0, unsound)
            known, chain.ledger_id = chain.ledger_id, sealed.ledger_id
            chain.enter_sealed(sealed, first=True)
            chain.ledger_id = known
        self._last = Head(chain.seq, chain.hash)

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
            if not lost and not chain.more:
                good, self._last = whole, Head(chain.seq, chain.hash)
                ended = follower is not None and chain.seq + 1 == follower.first_seq
        self._unfinished(segment, follower, good, whole, lost)
        if lost or chain.more:
            self._step_over(follower)

    def _take(self, record: Record) -> None:
        self._records += 1
        if record.seq in self._hashes:
            self._hashes[record.seq] = record.hash
        if record.type in KEEPING:
            cuts = (*record.data.get("cuts", ()), *record.data.get("found", ()))
            self._quarantined({cut["quarantine"]: cut["sha256"] for cut in cuts}, f"record {record.seq} says")

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

    def _ends_early(self, follower: Segment) -> bool:
        return follower.number == self._chain.number + 1 and self._chain.seq + 1 < follower.first_seq

    def _unfinished(self, segment: Segment, follower: Segment | None, good: int, whole: int, lost: bool) -> None:
        """What lies behind the last complete batch."""
        rest = content(self._disk, f"{self._folder}/{segment.name}")[whole:]
        if rest and _is_whole(rest[:-1]):
            self._report(segment.name, whole, "the line does not end with a newline")
        elif follower is not None and (rest or self._chain.more):
            self._report(segment.name, whole if rest else good, "the segment ends within a batch")
            if not lost and self._ends_early(follower):
                self._step_over(follower)
        elif follower is not None and not lost and self._ends_early(follower):
            reason = f"the segment ends with seq {self._chain.seq}; the next one begins with {follower.first_seq}"
            self._report(segment.name, whole, reason)
            self._step_over(follower)
        elif not whole:
            self._report(segment.name, 0, "the segment has no first line")
        elif follower is None and not lost:
            self._torn_bytes = whole + len(rest) - good

    def _quarantined(self, kept: Mapping[str, str], who_says: str) -> None:
        """What was cut is still there, as it was."""
        for name, digest in kept.items():
            file = f"{QUARANTINE}/{name}"
            path = f"{self._folder}/{file}"
            if not self._disk.exists(path):
                self._report(file, 0, f"the file is missing; {who_says} that it was put there")
            elif sha256(self._disk.read(path)).hexdigest() != digest:
                self._report(file, 0, f"the content is not what {who_says} that was put there")

    def _compare(self, file: str, mark: Watermark, segments: list[Segment]) -> None:
        if self._chain.ledger_id and mark.ledger_id != self._chain.ledger_id:
            self._report(file, 0, f"it belongs to ledger {mark.ledger_id}, the segments to {self._chain.ledger_id}")
        elif mark.seq > self._last.seq:
            last = segments[-1].name if segments else ""
            path = f"{self._folder}/{last}"
            size = self._disk.size(path) if last and self._disk.exists(path) else 0
            reason = f"the ledger ends with seq {self._last.seq}; {file} proves that seq {mark.seq} had been durable"
            self._report(last, size, reason)
        elif self._hashes[mark.seq] not in ("", mark.hash):
            self._report(file, 0, f"it names another record as seq {mark.seq} than the segments hold")
        if segments and (mark.epoch < segments[-1].epoch) and file == EPOCH:
            self._report(file, 0, f"it says epoch {mark.epoch}; there is a segment of epoch {segments[-1].epoch}")


def _is_entry(rest: bytes) -> bool:
    """Whether only the last byte of a manifest's line is wrong."""
    try:
        manifest.entry_of(rest[:-1] + b"\n")
    except Unsound:
        return False
    return True


def _is_whole(line: bytes) -> bool:
    try:
        record_of(line, check(line))
    except Unsound:
        return False
    return True
