"""The two files by which an attempt outlives whoever started it. Standard library only: workers import this.

`claim` is created by whoever performs the attempt, exclusively, so that exactly one ever does. It holds one line:
`<pid>` (the command wrapper, whose command line names the folder), `<pid> <start time>` (a warm worker), or
`never` (a daemon took it so that nobody performs the attempt).

`status` is written at the end, once, by whoever saw it: `<exit status>` or `signal <number>`.

    no claim                            never began
    claim, live process                 runs
    claim, no live process, status      over, with that status
    claim, no live process, no status   lost: nobody saw the end
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Claim(NamedTuple):
    """Who performs the attempt. `pid` is None if nobody ever will, or if the claim was cut off before it was written
    (`torn`: the process may live, and is then found by its command line)."""

    pid: int | None
    started: int | None = None
    torn: bool = False


class Status(NamedTuple):
    code: int | None
    signal: int | None


def take_claim(folder: str, line: str) -> bool:
    """Claim the attempt; False if it is claimed already. OSError if the folder is gone or the disk is full."""
    return _write_new(f"{folder}/claim", line)


def read_claim(folder: str) -> Claim | None:
    words = _words(f"{folder}/claim")
    if words is None:
        return None
    if words == ["never"]:
        return Claim(None)
    if not words or not all(word.isdigit() for word in words):
        return Claim(None, torn=True)
    return Claim(int(words[0]), int(words[1]) if len(words) > 1 else None)


def write_status(folder: str, status: Status) -> bool:
    """Write down how the attempt ended; False if that is written already."""
    return _write_new(f"{folder}/status", str(status.code) if status.signal is None else f"signal {status.signal}")


def read_status(folder: str) -> Status | None:
    """None if the end was not written down, or only in part."""
    words = _words(f"{folder}/status")
    if not words or not words[-1].isdigit():
        return None
    return Status(None, int(words[1])) if words[0] == "signal" else Status(int(words[0]), None)


def _write_new(path: str, line: str) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)
    return True


def _words(path: str) -> list[str] | None:
    """The words of a line, [] if its end is missing, None if there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        line = os.read(descriptor, 256)
    finally:
        os.close(descriptor)
    return line.decode("utf-8", "replace").split() if line.endswith(b"\n") else []
