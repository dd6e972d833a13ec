"""A small process that lives on a ledger in the folder given: it opens it, writes, rotates, archives, closes, and
prints each acknowledged record's seq and hash at once. It ends by printing how: `done`, or the names of the errors."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from daemon.system import OsDisk
from ledger.archive import archive
from ledger.errors import Full, Poisoned
from ledger.instant import Now
from ledger.ledger import Bounds, Ledger
from ledger.record import Draft
from ledger.segment import Writer

BOUNDS = Bounds(segment_bytes=2_000, reserve_bytes=600)
WRITER = Writer(host="box", boot_id="boot-1", pid=4711, started=99, code="test")


def say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def now() -> Now:
    return Now(1_795_235_940_123_456_000, 5_000_000_000)


def opened(home: Path) -> Ledger:
    return Ledger.open(OsDisk(home), WRITER, now(), bounds=BOUNDS, anywhere=True)


def append(ledger: Ledger, number: int, text: str = "x" * 200) -> None:
    for record in ledger.append([Draft("run.finished", f"run/{number}", {"text": text}) for _ in range(2)], now()):
        say(f"ack {record.seq} {record.hash}")


def live(home: Path) -> None:
    ledger = opened(home)
    for number in range(8):
        try:
            append(ledger, number)
        except (Full, Poisoned) as error:
            say(type(error).__name__)
            append(ledger, number)  # with room again it goes on; poisoned it must not
        if number == 4:
            ledger.note_head()
    ledger.close()
    archive(OsDisk(home), keep=1)


if __name__ == "__main__":
    try:
        live(Path(sys.argv[1]))
    except (Full, Poisoned, OSError) as error:
        say(type(error).__name__)
        sys.exit(74 if isinstance(error, Poisoned) else 1)
    say("done")
