"""Conditions on an append: a fact is written once whoever retries it, and only if its subject is as the writer saw it.

Both are asked of the last records, remembered from the first question on; before that they cost nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from ledger.disk import Disk
from ledger.errors import Conflict
from ledger.reader import read
from ledger.record import Record

WINDOW_RECORDS = 10_000
"""An id is known again within so many records. A subject's version is known however old it is."""


class Remembered:
    """The ids and subjects of the last records of a ledger."""

    def __init__(self, disk: Disk, folder: str, head_seq: int, *, window_records: int = WINDOW_RECORDS) -> None:
        self._disk, self._folder, self._window = disk, folder, window_records
        self._first_seq = max(1, head_seq - window_records + 1)
        self._ids: dict[str, int] = {}
        self._versions: dict[str, int] = {}
        self._last: deque[tuple[int, str | None, str]] = deque()
        for record in read(disk, after=self._first_seq - 1, until=head_seq, folder=folder):
            self.note(record)

    def note(self, record: Record) -> None:
        """A record has become durable."""
        self._last.append((record.seq, record.id, record.subject))
        self._versions[record.subject] = record.seq
        if record.id is not None:
            self._ids.setdefault(record.id, record.seq)
        while len(self._last) > self._window:
            seq, id_, subject = self._last.popleft()
            self._first_seq = seq + 1
            if id_ is not None and self._ids.get(id_) == seq:
                del self._ids[id_]
            if self._versions.get(subject) == seq:
                del self._versions[subject]

    def by_id(self, id_: str | None) -> Record | None:
        """The first remembered record with this id."""
        seq = self._ids.get(id_) if id_ is not None else None
        return None if seq is None else next(read(self._disk, after=seq - 1, folder=self._folder))

    def require(self, expect: Mapping[str, int]) -> None:
        """Conflict unless the last record about each subject has the seq that is expected; 0 expects none."""
        for subject, expected in expect.items():
            found = self._version(subject, expected)
            if found != expected:
                last = f"record {found}" if found else "no record"
                wanted = f"record {expected}" if expected else "none"
                raise Conflict(
                    f"the last about {subject!r} is {last}, not {wanted}: read what happened since, and decide again",
                    subject,
                    found,
                )

    def _version(self, subject: str, expected: int) -> int:
        if subject in self._versions:
            return self._versions[subject]
        # It is older than what is remembered: only what lies between can still speak against the expected one.
        after = max(0, min(expected, self._first_seq) - 1)
        older = read(self._disk, after=after, until=self._first_seq - 1, folder=self._folder)
        return max((record.seq for record in older if record.subject == subject), default=0)
