"""Readers: every record of the ledger, verified and in order; and the tail, which follows a living writer."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from hashlib import sha256
from typing import Literal, NamedTuple

from ledger import manifest, watermark
from ledger.chain import Chain, Head
from ledger.disk import Disk
from ledger.errors import Corrupt
from ledger.record import START, Record, Unsound, decode, ending, predecessor, trusted
from ledger.seal import Seal, line_at
from ledger.segment import ARCHIVE, Segment, content, lines, plain_bytes, segments_in, stretches
from ledger.watermark import Watermark

FOLDER = "ledger"
_PARSED_BYTES = 1 << 16
_TOGETHER = 256
"""Lines that are parsed together."""


class Place(NamedTuple):
    """Just behind a complete batch: what recovery would cut back to."""

    segment: Segment
    offset: int
    """Bytes from the start of the segment's file."""
    head: Head


class Walk:
    """One pass over the segments, shared by readers and recovery, so that no reader shows what recovery would cut.

    Iterating gives each record of each complete batch. Bytes in the last segment that are no complete batch are torn
    (a write in progress, or one that nobody was answered on) unless something proves that they had been durable: a
    sound record of a later batch beyond them, or a watermark. Then, and for damage anywhere else, iterating raises
    Corrupt. Afterwards `place`, `torn` and `strays` say where it ended.

    A sealed segment is compared with its seal, by one hash, and its records are only parsed. Not if it is not the same:
    then its records are followed one by one, to say where it differs.
    """

    def __init__(
        self,
        disk: Disk,
        segments: list[Segment],
        marks: Mapping[str, Watermark],
        *,
        folder: str,
        after: int = 0,
        seals: Mapping[int, Seal] | None = None,
        sealed: Literal["read", "hash"] = "read",
        trusted_seq: int = 0,
    ) -> None:
        """`after`: start at the segment that holds the record behind it; what lies before is taken on trust. `sealed`:
        the records of sealed segments are given, or their bytes only hashed; of those that end at or before
        `trusted_seq` only the lengths are compared."""
        self._disk, self._folder, self._marks = disk, folder, dict(marks)
        self._seals, self._sealed, self._trusted_seq = seals or {}, sealed, trusted_seq
        self._start = max((i for i, segment in enumerate(segments) if segment.first_seq <= after + 1), default=0)
        self._segments, self._after = segments, after
        self._expected = {mark.seq: (file, mark) for file, mark in marks.items() if mark.seq}
        self._first_good = 0
        self.ledger_id = ""
        self.place: Place | None = None
        self.torn = ""
        """Why the bytes behind `place` are not a complete batch; "" if there are none."""
        self.strays: list[tuple[Segment, int]] = []
        """Segments that go on (from the offset given) beyond the record that the next segment follows: a superseded
        writer's bytes. No reader shows them."""

    def __iter__(self) -> Iterator[Record]:
        chain = Chain()
        after, expected = self._after, self._expected
        for index, segment in enumerate(self._segments[self._start :], self._start + 1):
            ends_before = self._segments[index].first_seq if index < len(self._segments) else 0
            path = f"{self._folder}/{segment.name}"
            seal = self._seals.get(segment.number)
            if seal is not None and (yield from self._as_sealed(chain, segment, seal, after)):
                if not ends_before:
                    self._end(self._place(), seal.size_bytes, "")
                continue
            offset = 0
            batch: list[Record] = []
            place: Place | None = None
            why = ""
            try:
                if chain.seq or self._start == 0:
                    chain.enter(segment)
            except Unsound as unsound:
                self._look_for(chain.number + 1, segment.number)
                raise self._corrupt(segment, 0, str(unsound), chain.seq) from None
            try:
                for some, records in _taken(self._disk, path, chain, segment, ends_before - 1, expected):
                    seq = records[0].seq
                    if seq in expected:
                        self._compare(segment, offset, records[0], *expected[seq])
                    whole = len(records)  # so many of them end a batch, or come before one that does
                    while whole and records[whole - 1].more:
                        whole -= 1
                    if whole:
                        self._first_good = self._first_good or next(it.seq for it in records if not it.more)
                        yield from batch
                        yield from records[:whole] if whole < len(records) else records
                        batch.clear()
                        offset += sum(map(len, some[:whole])) + whole
                        place = None
                    if whole < len(records):
                        if not batch:
                            place = Place(segment, offset, Head(records[whole].seq - 1, predecessor(some[whole])))
                        batch += records[whole:]
                        offset += sum(map(len, some[whole:])) + len(some) - whole
                    if records[-1].seq + 1 == ends_before:
                        break
            except Unsound as unsound:
                why = str(unsound)
            if place is None:
                place = Place(segment, offset, Head(chain.seq, chain.hash))
            self.place, self.ledger_id = place, chain.ledger_id
            if not ends_before:
                self._end(place, offset, why)
            elif why or chain.seq + 1 != ends_before or chain.more:
                why = why or f"the segment ends with seq {place.head.seq}; the next one begins with {ends_before}"
                raise self._corrupt(segment, offset, why, place.head.seq)
            elif plain_bytes(self._disk, path) > place.offset:
                self.strays.append((segment, place.offset))
            if seal is not None:
                raise self._corrupt(segment, 0, "its bytes are not those that its seal names", seal.first_seq - 1)

    def _place(self) -> Place:
        assert self.place is not None
        return self.place

    def _as_sealed(self, chain: Chain, segment: Segment, seal: Seal, after: int) -> Generator[Record, None, bool]:
        """The records of a sealed segment; False, and nothing given or changed, if it is not as it was sealed."""
        path, data = f"{self._folder}/{segment.name}", b""
        try:
            if seal.segment != segment:
                raise Unsound(f"segment {segment.number} was sealed as {seal.segment.name}")
            if seal.last_seq <= self._trusted_seq:
                same = plain_bytes(self._disk, path) >= seal.size_bytes
            else:
                data = content(self._disk, path, seal.size_bytes)
                same = sha256(data).hexdigest() == seal.sha256
        except Unsound as unsound:
            raise self._corrupt(segment, 0, str(unsound), chain.seq) from None
        if not same:
            return self._expect(segment, seal)
        try:
            chain.enter_sealed(seal, first=not chain.number and self._start > 0)
        except Unsound as unsound:
            self._look_for(chain.number + 1, segment.number)
            raise self._corrupt(segment, 0, str(unsound), chain.seq) from None
        for seq, (file, mark) in self._expected.items():
            if data and seal.first_seq <= seq <= seal.last_seq:
                at = line_at(data, seq)
                if decode(data[at : data.index(b"\n", at)]).hash != mark.hash:
                    raise self._corrupt(segment, at, f"{file} names another record as seq {seq}", seq - 1)
        self._first_good = self._first_good or seal.first_seq
        self.place = Place(segment, seal.size_bytes, Head(chain.seq, chain.hash))
        self.ledger_id = seal.ledger_id
        if self._disk.exists(path) and self._disk.size(path) > seal.size_bytes:
            self.strays.append((segment, seal.size_bytes))
        if self._sealed == "read":
            at = line_at(data, after + 1) if after >= seal.first_seq else 0
            while at < len(data):
                end = data.find(b"\n", min(at + _PARSED_BYTES, len(data) - 1)) + 1
                last_hash = seal.last_hash if end == len(data) else predecessor(data[end : data.index(b"\n", end)])
                yield from trusted(data[at:end], last_hash)
                at = end
        return True

    def _expect(self, segment: Segment, seal: Seal) -> bool:
        """It is not as it was sealed, so its records are followed one by one; the seal then vouches for all of them."""
        mark = Watermark(seal.ledger_id, seal.epoch, seal.last_seq, seal.last_hash)
        self._marks[segment.seal_name] = mark
        self._expected.setdefault(mark.seq, (segment.seal_name, mark))
        return False

    def _end(self, place: Place, damage_at: int, why: str) -> None:
        """What lies behind the last complete batch is torn, or it is Corrupt."""
        tail = b""
        if place.segment.number not in {segment.number for segment, _ in self.strays}:
            tail = self._tail(place)
        if tail and not why:
            why = "the last batch is not complete"
        self._look_for(place.segment.number + 1, max(self._seals, default=0) + 1)
        proof = proof_of_more(place, tail, self._marks)
        if proof:
            why = why or f"the ledger ends with seq {place.head.seq}"
            raise self._corrupt(place.segment, damage_at, f"{why}; {proof}", place.head.seq)
        self.torn = why

    def _look_for(self, number: int, end: int) -> None:
        """Corrupt if one of the segments from `number` on is known to have been sealed: for it is not there."""
        for seal in (self._seals[n] for n in range(number, end) if n in self._seals):
            raise missing(self._folder, seal.segment, self._seals)

    def _tail(self, place: Place) -> bytes:
        path = f"{self._folder}/{place.segment.name}"
        return self._disk.read(path, place.offset) if self._disk.exists(path) else b""

    def _compare(self, segment: Segment, offset: int, record: Record, file: str, mark: Watermark) -> None:
        if record.hash != mark.hash:
            raise self._corrupt(segment, offset, f"{file} names another record as seq {mark.seq}", record.seq - 1)

    def _corrupt(self, segment: Segment, offset: int, reason: str, last_good: int) -> Corrupt:
        path = f"{self._folder}/{segment.name}"
        file = path if self._disk.exists(path) else path + ARCHIVE
        first_good, advice = min(self._first_good, last_good), repairs(file, last_good)
        return Corrupt(file, offset, reason, first_good=first_good, last_good=last_good, advice=advice)


def _taken(
    disk: Disk, path: str, chain: Chain, segment: Segment, until: int, alone: Mapping[int, object]
) -> Iterator[tuple[list[bytes], list[Record]]]:
    """The lines that follow, some at a time, and their records; those with the seqs `alone` each by themselves.
    Unsound at the first one that does not follow."""
    for _, some in stretches(disk, path, 0, _TOGETHER):
        at = 0
        while at < len(some):
            if not chain.number:
                chain.adopt(some[at], segment)
            records = chain.take_many(some[at:] if at else some, until) or [chain.take(some[at])]
            those = some[at : at + len(records)]
            at += len(records)
            first = records[0].seq
            if any(first <= seq < first + len(records) for seq in alone):
                yield from (([line], [record]) for line, record in zip(those, records, strict=True))
            else:
                yield those, records


def missing(folder: str, segment: Segment, seals: Mapping[int, Seal]) -> Corrupt:
    """A sealed segment is not there; what lies before it is good."""
    path, good, seal = f"{folder}/{segment.name}", segment.first_seq - 1, seals.get(segment.number)
    held = f"; it holds the records {seal.first_seq} to {seal.last_seq}" if seal is not None else ""
    reason = f"the sealed segment is missing{held}"
    return Corrupt(path, 0, reason, first_good=min(1, good), last_good=good, advice=repairs(path, good))


def repairs(file: str, last_good: int) -> str:
    """What a person may do about damage: the commands."""
    restore = f"put {file} back from a backup that holds it whole: `hermesd ledger restore BACKUP`"
    cut = f"`hermesd ledger cut --at {last_good + 1} --accept-loss`"
    give_up = f"; or give up what lies behind record {last_good}: {cut}" if last_good else ""
    return f"nothing was changed; {restore}{give_up}"


def proof_of_more(place: Place, tail: bytes, marks: Mapping[str, Watermark]) -> str:
    """What proves that more than the batches up to `place` had been durable; "" if nothing does.

    A batch is written only after the one before it is durable, so a sound record of a later batch in `tail`, the bytes
    behind `place`, is proof. Sound records of the torn batch itself are not: pages reach the disk in any order.
    """
    if place.head.seq < place.segment.first_seq:
        return "a segment's name is published only after its first record is durable"
    for file, mark in marks.items():
        if mark.seq > place.head.seq:
            return f"{file} proves that the records up to seq {mark.seq} had been durable"
    if _goes_on(place, tail):
        return ""  # Whoever writes it was at work while it was read.
    for record in sound_in(tail):
        if record.batch > place.head.seq + 1:
            return f"the later batch that begins with seq {record.batch} proves that this one had been durable"
    return ""


def _goes_on(place: Place, tail: bytes) -> bool:
    """Whether `tail` begins with the whole of the batch that follows `place`."""
    chain = Chain()
    (chain.seq, chain.hash), chain.number, chain.epoch = place.head, place.segment.number, place.segment.epoch
    for line in tail.split(b"\n")[:-1]:
        try:
            if not chain.take(line).more:
                return True
        except Unsound:
            return False
    return False


def sound_in(data: bytes) -> Iterator[Record]:
    """Each record in `data` that vouches for itself, also one fused to the end of something else."""
    for piece in data.split(b"\n"):
        at = piece.find(START)
        while at >= 0:
            try:
                yield decode(piece[at:])
                break
            except Unsound:
                at = piece.find(START, at + 1)


def marks_in(disk: Disk, folder: str) -> dict[str, Watermark]:
    """The watermarks that can be read. A damaged one proves nothing; recovery and the verifier speak of it."""
    marks = {}
    for file in (watermark.EPOCH, watermark.HEAD):
        try:
            mark = watermark.read(disk, folder, file)
        except Unsound:
            continue
        if mark is not None:
            marks[file] = mark
    return marks


def read(disk: Disk, *, after: int = 0, until: int | None = None, folder: str = FOLDER) -> Iterator[Record]:
    """The records with `after` < seq <= `until`, each verified and chained to the one before it.

    Raises Corrupt at the damage, after the good records before it. An incomplete last batch is left out.
    """
    # The watermarks are read first: a writer may note a later one while this reads, which would prove too much.
    marks = marks_in(disk, folder)
    seals = manifest.seals_in(disk, folder)
    records = iter(Walk(disk, segments_in(disk.list(folder)), marks, folder=folder, after=after, seals=seals))
    for record in records:
        if record.seq > after:
            if until is not None and record.seq > until:
                return
            yield record
            if until is None:
                yield from records


class Tail:
    """Follows a ledger that is being written, from batch to batch and from segment to segment."""

    def __init__(self, disk: Disk, *, after: int = 0, folder: str = FOLDER) -> None:
        self._disk, self._folder, self._after = disk, folder, after
        self._here: tuple[Segment, int, Chain] | None = None
        # Only one batch is ever unanswered, so only one can be taken back.
        self._before: tuple[Segment, int, Chain] | None = None

    def poll(self, until: int | None = None) -> list[Record]:
        """The records of the batches completed since the last call; never waits. Corrupt as `read`.

        With `until` (the writer's `durable_seq`) nothing beyond it is given. Without it, a batch may be given before it
        is durable; if a crash or a full disk takes that batch back, its successors come with the same seqs, and count.
        """
        segments = segments_in(self._disk.list(self._folder))
        if not segments:
            return []
        if self._here is None:
            start = max((s for s in segments if s.first_seq <= self._after + 1), default=segments[0])
            self._here = (start, 0, Chain())
        if self._before is not None and self._taken_back(self._here, segments):
            self._here, self._before = self._before, None
        return [record for record in self._follow(segments, until) if record.seq > self._after]

    def _taken_back(self, here: tuple[Segment, int, Chain], segments: list[Segment]) -> bool:
        """Whether the batch given last is no longer where it was."""
        segment, offset, chain = here
        if any(other.number > segment.number and other.first_seq <= chain.seq for other in segments):
            return True
        trailer = ending(chain.hash)
        try:
            return self._disk.read(f"{self._folder}/{segment.name}", offset - len(trailer), len(trailer)) != trailer
        except FileNotFoundError:
            return False  # archived, so sealed before that

    def _follow(self, segments: list[Segment], until: int | None) -> Iterator[Record]:
        assert self._here is not None
        first, begin, chain = self._here
        for segment in segments:
            if segment.number < first.number:
                continue
            path = f"{self._folder}/{segment.name}"
            begin = begin if segment == first else 0
            follower = next((other for other in segments if other.number == segment.number + 1), None)
            if follower is not None and chain.seq + 1 == follower.first_seq:
                continue  # what a superseded writer may have added since is no part of the ledger
            chain = chain.copy()
            batch: list[Record] = []
            for offset, line in lines(self._disk, path, begin):
                try:
                    if chain.number == 0:
                        chain.adopt(line, segment)
                    elif chain.number != segment.number:
                        chain.enter(segment)
                    batch.append(chain.take(line))
                except Unsound as unsound:
                    given = self._here[2]
                    place = Place(segment, begin, Head(given.seq, given.hash))
                    if follower is None and not proof_of_more(
                        place, self._disk.read(path, begin), marks_in(self._disk, self._folder)
                    ):
                        return
                    first_good = min(1, given.seq)
                    raise Corrupt(
                        path,
                        offset,
                        str(unsound),
                        first_good=first_good,
                        last_good=given.seq,
                        advice=repairs(path, given.seq),
                    ) from None
                if chain.more:
                    continue
                if until is not None and chain.seq > until:
                    return
                begin = offset + len(line) + 1
                self._before, self._here = self._here, (segment, begin, chain.copy())
                yield from batch
                batch.clear()
                if follower is not None and chain.seq + 1 == follower.first_seq:
                    break
