"""The ledger's errors, split by who must act. (`Locked` stands beside the Disk port, which raises it.)"""

from __future__ import annotations


class Refused(Exception):
    """The caller asked for something a ledger cannot hold. Nothing was changed; the message names the place in it."""


class Conflict(Exception):
    """A subject is not as the caller of a conditional append saw it. Nothing was changed; `seq` is its last record."""

    def __init__(self, message: str, subject: str, seq: int) -> None:
        super().__init__(message)
        self.subject, self.seq = subject, seq


class Full(Exception):
    """No room on the disk. What was staged is dropped, what was durable stays; appending works again with room."""


class Poisoned(Exception):
    """A write or a sync failed, so nobody knows what the disk holds. Only a new `Ledger.open` may go on: it looks."""


class NotLocal(Exception):
    """The home lies on a network or FUSE file system, where locks and syncs do not keep their promises."""


class Missing(Exception):
    """No artifact has this digest here."""


class Corrupt(Exception):
    """Bytes that had been durable are gone or different. Nothing was changed; a person must decide.

    `offset` counts bytes from the start of `file` to the start of the damaged line; the records `first_good` to
    `last_good` verify (both 0 where none does).
    """

    def __init__(
        self, file: str, offset: int, reason: str, *, first_good: int = 0, last_good: int = 0, advice: str = ""
    ) -> None:
        self.file, self.offset, self.reason = file, offset, reason
        self.first_good, self.last_good = first_good, last_good
        self.advice = advice or (
            f"nothing was changed; keep a copy of the folder, then put {file} back from a backup that holds it whole, "
            "or move the folder away to start a new ledger"
        )
        good = f"records {first_good} to {last_good} are good" if last_good else "no record before it is good"
        super().__init__(f"{file} is damaged at byte {offset}: {reason}; {good}; {self.advice}")
