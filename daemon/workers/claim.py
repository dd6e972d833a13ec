"""How an attempt outlives whoever started it: who performs it, and how it ended. Standard library only.

The file `claim` in an attempt's folder is created by whoever performs the attempt, exclusively, so that exactly one
ever does. It is one more name of its owner's journal, since a name costs a tenth of what a file costs; where a file
system has no second names, it is a journal of its own. The journal's first line tells the owner, the others what became
of the attempts it claimed, each by `<run>/<attempt>`:

    keeper <pid> <start time>                   owner: the process that starts commands and keeps their ends
    worker <pid> <start time>                   owner: a warm worker, which performs attempts itself
    never                                       owner: a daemon that made sure that nobody performs this attempt
    began <attempt> <pid> <start time>          a keeper's: the command's own process
    ended <attempt> exit <exit status>          written once, by whoever saw it; of two the first holds
    ended <attempt> signal <number>

    no claim                            never began
    claim, live process                 runs
    claim, no live process, end         over, with that status
    claim, no live process, no end      lost: nobody saw the end
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

JOURNAL_ATTEMPTS_MAX = 256
"""A journal lives as long as the folder of any attempt in it; past this a new one is begun."""

Identity = tuple[int, int]
"""(pid, start time) names a process."""


class Status(NamedTuple):
    """How a process ended: an exit status or a signal. Both None where nobody saw it."""

    code: int | None
    signal: int | None


class Claim(NamedTuple):
    process: Identity | None
    """Who performs the attempt: the command's own process, or a worker. None if nobody ever will, or not known."""
    keeper: Identity | None
    """Who writes down the end of a command."""
    never: bool
    status: Status | None


class Journal:
    """The journal of this process, in folder `place`; without one, every claim is a journal of its own."""

    def __init__(self, place: str, kind: str, owner: Identity) -> None:
        self._place, self._pid = place, owner[0]
        self._header = f"{kind} {owner[0]} {owner[1]}\n".encode()
        self._descriptor = -1
        self._path = ""
        self._inode = 0
        self._taken = self._journals = 0
        self._open: set[str] = set()  # attempts in the journal that is open; of others it is written into their claims

    def take(self, folder: str) -> bool:
        """Claim the attempt; False if it is claimed already. OSError if the folder is gone or the disk is full."""
        try:
            if self._descriptor < 0 or self._taken == JOURNAL_ATTEMPTS_MAX:
                self._begin()
            os.link(self._path, f"{folder}/claim")
        except FileExistsError:
            return False
        except OSError:
            if not _write_new(f"{folder}/claim", self._header):
                return False
        else:
            self._taken += 1
            self._open.add(folder)
        return True

    def move(self, spare: str, folder: str) -> bool:
        """Claim the attempt by moving `spare` there: what was the folder of a run, with nothing of its first attempt
        but a claim. False if that cannot be; `take` then tells why, or finds another way."""
        run, _, attempt = folder.rpartition("/")
        claim = f"{spare}/1/claim"
        try:
            if self._descriptor < 0 or self._taken == JOURNAL_ATTEMPTS_MAX:
                self._begin()
            if attempt != "1":
                return False
            if os.stat(claim).st_ino != self._inode:
                os.unlink(claim)
                os.link(self._path, claim)
            os.rename(spare, run)  # Nobody can claim an attempt in an empty folder, and no other is replaced.
        except OSError:
            return False
        self._taken += 1
        self._open.add(folder)
        return True

    def began(self, folder: str, process: Identity) -> None:
        self._write(folder, f"began {_name(folder)} {process[0]} {process[1]}\n")

    def ended(self, folder: str, status: Status) -> None:
        """Write down how the attempt ended. It is its last line."""
        self._write(folder, f"ended {_name(folder)} {_words(status)}\n")
        self._open.discard(folder)

    def close(self) -> None:
        """What it says is still read by the claims."""
        self._open.clear()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def _begin(self) -> None:
        self.close()
        if not self._place:
            raise FileNotFoundError
        self._journals += 1
        self._path = f"{self._place}/{self._pid}-{self._journals}.journal"
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        self._taken = 0
        try:
            self._inode = os.fstat(self._descriptor).st_ino
            os.write(self._descriptor, self._header)
        except OSError:
            self.close()
            raise

    def _write(self, folder: str, line: str) -> None:
        # No room is no reason to stop: who lives is told by other ways, and a run without an end is lost, not wrong.
        with contextlib.suppress(OSError):
            if folder in self._open:
                os.write(self._descriptor, line.encode())
            else:
                _append(folder, line)


def claim_never(folder: str) -> bool:
    """Make sure that nobody performs the attempt; False if it is claimed already. OSError as `Journal.take`."""
    return _write_new(f"{folder}/claim", b"never\n")


def read_claim(folder: str) -> Claim | None:
    """None if there is none."""
    try:
        with open(f"{folder}/claim", "rb", buffering=0) as file:
            data = file.read()
    except FileNotFoundError:
        return None
    name = _name(folder).encode()
    process = keeper = status = None
    never = False
    for line in data.split(b"\n")[:-1]:  # A line without its end was cut off by a crash.
        match line.split(b" "):
            case [b"never"]:
                never = True
            case [b"worker", pid, started] if pid.isdigit() and started.isdigit():
                process = int(pid), int(started)
            case [b"keeper", pid, started] if pid.isdigit() and started.isdigit():
                keeper = int(pid), int(started)
            case [b"began", who, pid, started] if who == name and pid.isdigit() and started.isdigit():
                process = int(pid), int(started)
            case [b"ended", who, b"exit", code] if who == name and code.isdigit():
                status = status or Status(int(code), None)
            case [b"ended", who, b"signal", number] if who == name and number.isdigit():
                status = status or Status(None, int(number))
    return Claim(process, keeper, never, status)


def read_status(folder: str) -> Status | None:
    """How the attempt ended; None if that was not written down."""
    claim = read_claim(folder)
    return claim and claim.status


def write_status(folder: str, status: Status) -> None:
    """Write down how an attempt ended whose owner cannot any more. OSError if there is no claim, or no room."""
    _append(folder, f"ended {_name(folder)} {_words(status)}\n")


def make_folder(folder: str) -> None:
    """The attempt's folder, if it is not there yet. OSError if it cannot be made."""
    try:
        if folder.endswith("/1"):  # The first attempt of a run makes the run's folder, as a rule.
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder[:-2], 0o700)
        os.mkdir(folder, 0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        try:
            os.mkdir(folder.rpartition("/")[0], 0o700)
            os.mkdir(folder, 0o700)
        except (FileExistsError, FileNotFoundError):
            os.makedirs(folder, 0o700, exist_ok=True)


def _name(folder: str) -> str:
    """`<run>/<attempt>`, which stays the same where the home is moved."""
    return "/".join(folder.rsplit("/", 2)[1:])


def _words(status: Status) -> str:
    return f"exit {status.code}" if status.signal is None else f"signal {status.signal}"


def _append(folder: str, line: str) -> None:
    descriptor = os.open(f"{folder}/claim", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def _write_new(path: str, line: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)
    return True
