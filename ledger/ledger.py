"""The ledger as its one writer sees it: open (which recovers), stage, commit, close.

Not for several threads at once: one thread stages and commits; others may read the files.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256

from ledger import manifest, recovery, watermark
from ledger.chain import Head
from ledger.condition import Remembered
from ledger.disk import AppendFile, Disk, Lock, Locked, write_atomically
from ledger.errors import Full, NotLocal, Poisoned
from ledger.instant import Now
from ledger.reader import FOLDER
from ledger.record import Draft, Record, Unsound, compose, decode, place
from ledger.recovery import Recovery
from ledger.seal import seal_of
from ledger.segment import OPEN, RECOVERED, Segment, Writer, content, lines, opening, segments_in
from ledger.watermark import EPOCH, HEAD, Watermark

LOCK = "LOCK"
ARCHIVING = "ARCHIVING"
"""Held by who compresses sealed segments, beside the writer."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
# fmt: off
NOT_LOCAL = frozenset((
    "nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "9p", "afs", "coda", "ceph", "lustre", "gpfs", "beegfs",
    "glusterfs", "ocfs2", "gfs2", "virtiofs", "webdav", "afpfs", "fuse", "fuseblk", "osxfuse", "macfuse",
))
# fmt: on


@dataclass(frozen=True, slots=True)
class Bounds:
    segment_bytes: int = 16 << 20
    """A segment that has grown to this is sealed, and the next one begun."""
    reserve_bytes: int = 16 << 10
    """Room asked for ahead of what is written, so that a disk filled by others does not stop the ledger at once."""

    def __post_init__(self) -> None:
        if self.segment_bytes < 1 or self.reserve_bytes < 0:
            raise ValueError(f"{self}: a segment needs at least 1 byte, and no reserve is less than none")


class Ledger:
    """The ledger in `folder`, open for appending. Whoever holds one holds its lock.

    Bytes reach the file only in `commit`. A failed write or sync poisons it, because after that nobody knows what the
    disk holds; a full disk does not, because cutting back to the last good byte makes it known again.
    """

    def __init__(
        self, disk: Disk, folder: str, lock: Lock, found: Recovery, ledger_id: str, writer: Writer, bounds: Bounds
    ) -> None:
        """Use `Ledger.open`."""
        self._disk, self._folder, self._lock, self._writer, self._bounds = disk, folder, lock, writer, bounds
        self.recovery = found
        self.ledger_id = ledger_id
        self.epoch = found.epoch + 1
        self.head = found.head
        """The last durable record."""
        self.bytes_written = 0
        self.commits = 0
        self._staged: list[tuple[Record, bytes]] = []
        self._remembered: Remembered | None = None
        self._poison = ""
        self._now = Now(0, 0)
        self._segment = found.segments[-1] if found.segments else Segment(0, 0, 0)
        self._open = list(found.segments)  # not sealed yet, or not noted to be
        self._path = ""
        self._file: AppendFile | None = None
        self._good_bytes = self._reserved_bytes = 0
        self._rotate_bytes = bounds.segment_bytes
        self._digest = sha256()

    @classmethod
    def open(
        cls,
        disk: Disk,
        writer: Writer,
        now: Now,
        *,
        folder: str = FOLDER,
        anywhere: bool = False,
        bounds: Bounds | None = None,
        trusted_seq: int = 0,
        to_be_recorded: frozenset[str] = frozenset(),
    ) -> Ledger:
        """Take the lock, recover, claim a new epoch and open its segment; durable once this returns.

        Each sealed segment is hashed once; of those up to `trusted_seq` only the lengths are looked at, for one who
        starts from a snapshot and has the rest looked over later. `to_be_recorded` is for who has
        repaired it: see `survey`.

        Locked if another process has it open; Corrupt if a person must decide; NotLocal on a network or FUSE file
        system unless `anywhere`; Full without room; OSError if the folder cannot be read or written.
        """
        kind = disk.file_system()
        if not anywhere and kind.partition(".")[0] in NOT_LOCAL:
            raise NotLocal(
                f"the home lies on a {kind} file system, where a lock does not exclude and a sync does not keep; "
                "choose a home on a local disk (--home DIR), or allow it all the same (`any_file_system: true` in "
                "hermesd.yaml)"
            )
        disk.make_folder(folder)
        disk.sync_folder(folder.rpartition("/")[0])
        try:
            lock = disk.lock(f"{folder}/{LOCK}")
        except Locked as locked:
            raise Locked(f"{locked}{_holder(disk, folder)}") from None
        ledger = None
        try:
            found = recovery.survey(disk, folder, trusted_seq=trusted_seq, to_be_recorded=to_be_recorded)
            found = recovery.carry_out(disk, folder, found, now)
            ledger_id = found.ledger_id or _first_id(writer, now)
            ledger = cls(disk, folder, lock, found, ledger_id, writer, bounds or Bounds())
            ledger._begin(now)
            if found.changed:
                ledger.append([Draft(RECOVERED, f"ledger/{ledger.ledger_id}", found.data())], now)
            ledger.note_head(durable=True)
            ledger._seal()
            ledger._raise_if_poisoned()
        except BaseException as error:
            if ledger is not None and ledger._file is not None:
                ledger._file.close()
            lock.release()
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                raise Full(f"no room to open {folder}: {error}; free some space and start again") from error
            raise
        return ledger

    @property
    def durable_seq(self) -> int:
        """Everything up to here survives a power cut; nothing beyond it may be acted on."""
        return self.head.seq

    @property
    def segment(self) -> Segment:
        """The one being written."""
        return self._segment

    @property
    def next_seq(self) -> int:
        return self.head.seq + len(self._staged) + 1

    def stage(self, draft: Draft, now: Now) -> Record:
        """Give `draft` its place, in memory only. Refused if a ledger cannot hold it (nothing is staged then).

        The record is as a reader will see it, but for `more` and `hash`, which `commit` settles.
        """
        self._raise_if_poisoned()
        body, ts, data = compose(draft, now)
        record = Record(
            self.next_seq, self.epoch, self.head.seq + 1, False, ts, now.boot_ns // 1000 * 1000,
            draft.type, draft.tv, draft.subject, draft.id, draft.cause, draft.corr, data, "",
        )  # fmt: skip
        self._staged.append((record, body))
        self._now = now
        return record

    def commit(self) -> Head:
        """Write what is staged as one batch, wholly there after a crash or not at all; durable once this returns.

        The head may be one further than the batch: a segment that has reached its bound is followed by the next one.
        Full: the batch is dropped, its seqs are free again, and later commits may succeed. Poisoned: nobody knows.
        """
        self._commit()
        return self.head

    def append(
        self, drafts: Iterable[Draft], now: Now, *, once: bool = False, expect: Mapping[str, int] | None = None
    ) -> list[Record]:
        """Stage and commit as one batch; the records with their hashes. Refused drafts leave nothing staged behind.

        `once`: a draft whose id a remembered record has (`ledger.condition`) is not written again; that record stands
        in its place. `expect`: subject -> the seq of its last record, 0 for none; Conflict, and nothing written, if it
        has another.
        """
        if self._staged:
            raise ValueError("append within a batch being staged; stage the drafts instead")
        if self._remembered is None and (once or expect):
            self._remembered = Remembered(self._disk, self._folder, self.head.seq)
        remembered, answers = self._remembered, list[Record | int]()
        places: dict[str, int] = {}
        try:
            for draft in drafts:
                if once and draft.id is not None and remembered is not None:
                    known = places.get(draft.id, remembered.by_id(draft.id))
                    if known is not None:
                        answers.append(known)
                        continue
                    places[draft.id] = len(self._staged)
                answers.append(len(self._staged))
                self.stage(draft, now)
            if remembered is not None and expect and self._staged:
                remembered.require(expect)
        except BaseException:
            self._staged.clear()
            raise
        written = self._commit()
        return [written[it] if isinstance(it, int) else it for it in answers]

    def note_head(self, *, durable: bool = False) -> None:
        """Write down how far the ledger is durable, outside of it. What a crash leaves of a note that is not `durable`
        is the old note, the new one, or one that recovery can tell is neither. Full without room; OSError."""
        self._raise_if_poisoned()
        try:
            self._note(HEAD, durable=durable)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise Full(f"no room for {self._folder}/{HEAD}: {error}") from error
            raise

    def close(self) -> None:
        """Note the head durably and release the lock. What is only staged is dropped."""
        if self._file is None:
            return
        try:
            if not self._poison:
                with suppress(OSError):  # it only gives back what was reserved
                    self._file.truncate(self._good_bytes)
                # Without room the ledger is no less whole: the next opening reads it to its end, as it always does.
                with suppress(Full):
                    self.note_head(durable=True)
        finally:
            self._file.close()
            self._file = None
            self._poison = self._poison or "it is closed"
            self._lock.release()

    def _begin(self, now: Now) -> None:
        # The epoch is durable before anything of it is, so no two writers ever share one, whatever a crash leaves.
        self._note(EPOCH, durable=True)
        self._open_segment(now)

    def _open_segment(self, now: Now) -> None:
        """Begin the next segment, durably; nothing has changed if that fails and its file is not there."""
        segment = Segment(self._segment.number + 1, self.epoch, self.next_seq)
        path = f"{self._folder}/{segment.name}"
        data = opening(segment, self.head.hash, self.ledger_id, self._writer)
        self.stage(Draft(OPEN, f"segment/{segment.number}", data), now)
        try:
            line, records = self._lines()
            # A segment's name appears with its first record durable behind it, never before.
            write_atomically(self._disk, path, line, durable=True)
            file = self._disk.append(path)
        except BaseException:
            self._staged.clear()
            raise
        self._segment, self._path, self._file = segment, path, file
        self._good_bytes = self._reserved_bytes = 0
        self._digest = sha256()
        self._settle(line, records)

    def _rotate(self) -> None:
        """Go on in the next segment and seal this one. What fails here fails nobody: the batch before is durable."""
        ended = self._segment
        file, path, size, digest = self._file, self._path, self._good_bytes, self._digest.hexdigest()
        assert file is not None
        following = f"{self._folder}/{Segment(self._segment.number + 1, self.epoch, self.next_seq).name}"
        try:
            self._open_segment(self._now)
        except OSError as error:
            if error.errno in _NO_ROOM and not self._disk.exists(following):
                self._rotate_bytes = size + self._bounds.segment_bytes
            else:  # another segment may be there after a crash, so nothing may follow in this one
                self._poisoned(error)
            return
        except BaseException as error:
            self._poisoned(error)
            raise
        self._rotate_bytes = self._bounds.segment_bytes
        try:
            file.truncate(size)  # gives back what was reserved
            file.close()
            data = self._disk.read(path)
            if len(data) != size or sha256(data).hexdigest() != digest:
                raise OSError(errno.EIO, f"{path} does not hold what was written to it")
        except OSError as error:
            self._poisoned(error)
            return
        self._open.append(ended)
        self._seal()

    def _seal(self) -> None:
        """Seal what is behind the segment being written, and note it in the manifest. Without room that is left to the
        next time; any other error poisons, and fails nobody who was answered."""
        try:
            noted = manifest.read(self._disk, self._folder)
            while self._open:
                segment = self._open[0]
                path = f"{self._folder}/{segment.name}"
                seal_path = f"{self._folder}/{segment.seal_name}"
                sealed = self.recovery.seals.get(segment.number)
                if sealed is None:
                    sealed = seal_of(segment, content(self._disk, path))
                if not self._disk.exists(seal_path):
                    write_atomically(self._disk, seal_path, sealed.line(), durable=True)
                    if self._disk.exists(path):
                        self._disk.set_read_only(path, read_only=True)
                if len(noted.entries) < segment.number:
                    noted = manifest.note(self._disk, self._folder, noted, sealed)
                del self._open[0]
        except OSError as error:
            if error.errno not in _NO_ROOM:
                self._poisoned(error)

    def _commit(self) -> list[Record]:
        self._raise_if_poisoned()
        if not self._staged:
            return []
        data, records = self._lines()
        assert self._file is not None
        try:
            self._reserve(len(data))
            taken = 0
            while taken < len(data):
                count = self._file.write(data[taken:] if taken else data)
                if count <= 0:
                    raise OSError(errno.EIO, "the write took nothing")
                taken += count
            self._file.sync()
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise self._cut_back(error) from error
            raise self._poisoned(error) from error
        except BaseException as error:  # an interrupt in the middle leaves part of a batch behind
            self._poisoned(error)
            raise
        self._settle(data, records)
        if self._good_bytes >= self._rotate_bytes:
            self._rotate()
        return records

    def _reserve(self, length: int) -> None:
        """Ask for room ahead. There may be none: the write will tell whether what there is suffices."""
        assert self._file is not None
        if self._bounds.reserve_bytes and self._good_bytes + length > self._reserved_bytes:
            self._reserved_bytes = self._good_bytes + length + self._bounds.reserve_bytes
            try:
                self._file.reserve(self._reserved_bytes)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                self._reserved_bytes = 0

    def _lines(self) -> tuple[bytes, list[Record]]:
        """The staged batch as it will be written."""
        parts, records = [], []
        previous, count = self.head.hash, len(self._staged)
        for number, (record, body) in enumerate(self._staged, 1):
            line, previous = place(
                body, seq=record.seq, epoch=self.epoch, number=number, count=count, previous=previous
            )
            parts.append(line)
            records.append(record.settled(number < count, previous))
        return b"".join(parts), records

    def _settle(self, data: bytes, records: list[Record]) -> None:
        self._staged.clear()
        self.head = Head(records[-1].seq, records[-1].hash)
        self._good_bytes += len(data)
        self._digest.update(data)
        if self._remembered is not None:
            for record in records:
                self._remembered.note(record)
        self.bytes_written += len(data)
        self.commits += 1

    def _cut_back(self, error: OSError) -> Full | Poisoned:
        """No room: undo the batch. The cut is durable before anyone hears of it, or a crash could bring back, whole, a
        batch whose callers were told that it failed."""
        assert self._file is not None
        self._staged.clear()
        self._reserved_bytes = 0
        try:
            self._file.truncate(self._good_bytes)
            self._file.sync()
        except BaseException as second:
            poisoned = self._poisoned(second)
            if isinstance(second, OSError):
                return poisoned
            raise
        return Full(
            f"no room on the disk for {self._path}: {error}; the last batch was not recorded, what was durable is "
            "untouched; free some space and try again"
        )

    def _poisoned(self, error: BaseException) -> Poisoned:
        self._staged.clear()
        self._poison = f"writing {self._path} failed behind seq {self.head.seq}: {error!r}"
        return Poisoned(self._poison_text())

    def _raise_if_poisoned(self) -> None:
        if self._poison:
            raise Poisoned(self._poison_text())

    def _poison_text(self) -> str:
        return f"the ledger takes no more records: {self._poison}; restart, so that recovery can look at the disk"

    def _note(self, file: str, *, durable: bool) -> None:
        mark = Watermark(self.ledger_id, self.epoch, self.head.seq, self.head.hash)
        write_atomically(self._disk, f"{self._folder}/{file}", watermark.encode(file, mark), durable=durable)


def _first_id(writer: Writer, now: Now) -> str:
    """Names a new ledger: no two processes are the same at the same instant, and chance has no door into this room."""
    seed = f"{writer.host}\0{writer.boot_id}\0{writer.pid}\0{writer.started}\0{now.wall_ns}\0{now.boot_ns}"
    return sha256(seed.encode()).hexdigest()[:32]


def _holder(disk: Disk, folder: str) -> str:
    """Who, by the last segment's first record, holds the lock; "" if that cannot be read."""
    for segment in reversed(segments_in(disk.list(folder))):
        for _, line in lines(disk, f"{folder}/{segment.name}"):
            with suppress(Unsound):
                data = decode(line).data
                return f", probably by pid {data.get('pid')} on {data.get('host')}"
            break
    return ""
