"""Small verbs for the ledger's tests: a home in memory, facts, and sessions that write them."""

from __future__ import annotations

from collections.abc import Sequence

from ledger.instant import Now
from ledger.ledger import Bounds, Ledger
from ledger.reader import read
from ledger.record import Draft, Record
from ledger.segment import Writer, segments_in
from simulations.disk import SimDisk

WRITER = Writer(host="box", boot_id="boot-1", pid=4711, started=99, code="test")


def at(seconds: int = 0) -> Now:
    return Now(1_795_235_940_123_456_000 + seconds * 1_000_000_000, 5_000_000_000 + seconds * 1_000_000_000)


def fact(number: int, text: str = "é") -> Draft:
    return Draft("run.finished", f"run/{number}", {"number": number, "text": text}, id=f"fact-{number}")


def opened(disk: SimDisk, seconds: int = 0, bounds: Bounds | None = None) -> Ledger:
    return Ledger.open(disk, WRITER, at(seconds), bounds=bounds)


def grown(disk: SimDisk, sessions: Sequence[Sequence[int]] = ((1, 2), (1, 3, 1))) -> list[Record]:
    """A ledger written in whole sessions, each of batches of these sizes; its records."""
    number = 0
    for session in sessions:
        ledger = opened(disk, number)
        for size in session:
            ledger.append([fact(number + i) for i in range(size)], at(number))
            number += size
        ledger.close()
    return list(read(disk))


def segment_paths(disk: SimDisk) -> list[str]:
    return [f"ledger/{segment.name}" for segment in segments_in(disk.list("ledger"))]


def last_segment(disk: SimDisk) -> str:
    return "ledger/" + segments_in(disk.list("ledger"))[-1].name


def copy_of(disk: SimDisk, seed: int = 0) -> SimDisk:
    """The same files, all durable, on another disk."""
    twin = SimDisk(seed)
    twin.make_folder("ledger/quarantine")
    for path, data in disk.files().items():
        twin.corrupt(path, data)
    twin.sync_folder("")
    twin.sync_folder("ledger")
    return twin
