"""The exit codes of `hermesd`, the same for every verb."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    meaning: str

    def __new__(cls, code: int, meaning: str) -> Exit:
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    FINE = 0, "fine"
    NO = 1, "the answer is no: damage was found, a check failed, a run did not succeed, something is stuck"
    BAD_INPUT = 2, "the command line, or a file it names, is wrong"
    UNKNOWN = 3, "there is no such job, run, lease, view or record"
    NOT_RUNNING = 4, "no daemon runs in this home, or it does not answer"
    UNAVAILABLE = 69, "something needed is missing here: room on the disk, a local file system, a part not installed"
    IO = 74, "reading or writing failed; of `lease exec`: the lease was taken away"
    HELD = 75, "somebody else holds it: another daemon the home, or somebody the lease"
    CONFIGURATION = 78, "the home, its settings or its ledger cannot be used as they are; trying again would not help"
    INTERRUPTED = 130, "ended by Ctrl-C"


TABLE = "\b\nExit codes:\n" + "\n".join(f"  {code.value:>3}  {code.meaning}" for code in Exit)
