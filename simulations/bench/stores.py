"""What an event is appended to: ours, the same bytes written bare, and the stores of others, each as durable as it can.

Each has `append(count)`, durable once it returns. A peer that is not installed is known by its name only.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from daemon.system import OsDisk, SystemClock
from ledger.ledger import Ledger
from ledger.record import Draft
from ledger.segment import Writer
from state.events import draft

Append = Callable[[int], None]

OURS, BARE, SQLITE, LMDB, SOURCED = (
    "ours", "write + fdatasync", "sqlite3, WAL, FULL", "lmdb, sync", "eventsourcing, SQLite",
)  # fmt: skip
PEERS = (BARE, SQLITE, LMDB, SOURCED)
_PACKAGES = {LMDB: "lmdb", SOURCED: "eventsourcing"}
_OUTPUT = {"bytes": 18240, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}
_MAP_BYTES = 1 << 32


def event(number: int) -> Draft:
    """The end of a run, as the daemon records it."""
    run = f"disk-facts.20261121T0439{number % 60:02d}Z.{number:06x}"
    data = {
        "run": run, "attempt": 1, "token": number, "outcome": "succeeded", "code": 0, "signal": None,
        "reason": "exit status 0", "retry_at": None, "cpu_ms": 12, "rss_kib": 3120, "outputs": {"stdout.log": _OUTPUT},
    }  # fmt: skip
    return draft("run.finished", f"run/{run}", data)


class Stores(NamedTuple):
    ledger: Ledger
    clock: SystemClock
    events: list[Draft]
    line_bytes: int
    """Of a record of ours; the others are given as many."""
    appends: dict[str, Append]


def installed(peer: str) -> bool:
    return peer not in _PACKAGES or find_spec(_PACKAGES[peer]) is not None


def told(peer: str) -> str:
    """As the table names it."""
    return peer if installed(peer) else f"{peer.partition(',')[0]}: not installed"


def opened(folder: Path, opened: ExitStack) -> Stores:
    """All of them, in a new folder; `opened` closes them."""
    (folder / "home").mkdir(parents=True)
    clock = SystemClock()
    ledger = Ledger.open(OsDisk(folder / "home"), Writer("bench", clock.boot_id, os.getpid(), 1, "0"), clock.now())
    opened.callback(ledger.close)
    events = [event(number) for number in range(1000)]
    size = ledger.bytes_written
    ledger.append(events, clock.now())
    line_bytes = (ledger.bytes_written - size) // len(events)
    line = b"x" * (line_bytes - 1) + b"\n"
    appends: dict[str, Append] = {OURS: lambda count: _drop(ledger.append(events[:count], clock.now()))}
    for peer, make in ((BARE, _bare), (SQLITE, _sqlite), (LMDB, _lmdb), (SOURCED, _sourced)):
        if installed(peer):
            appends[peer] = make(folder, line, opened)
    return Stores(ledger, clock, events, line_bytes, appends)


def _bare(folder: Path, line: bytes, opened: ExitStack) -> Append:
    file = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    opened.callback(os.close, file)

    def append(count: int) -> None:
        os.write(file, line * count)
        os.fdatasync(file)

    return append


def _sqlite(folder: Path, line: bytes, opened: ExitStack) -> Append:
    rows = sqlite3.connect(folder / "rows.db", isolation_level=None, check_same_thread=False)
    opened.callback(rows.close)
    rows.execute("pragma journal_mode=wal")
    rows.execute("pragma synchronous=full")
    rows.execute("create table event (seq integer primary key, body blob not null)")

    def append(count: int) -> None:
        rows.execute("begin immediate")
        rows.executemany("insert into event (body) values (?)", [(line,)] * count)
        rows.execute("commit")

    return append


def _lmdb(folder: Path, line: bytes, opened: ExitStack) -> Append:
    import lmdb

    (folder / "lmdb").mkdir()
    env = lmdb.open(str(folder / "lmdb"), map_size=_MAP_BYTES, sync=True, metasync=True)
    opened.callback(env.close)
    seq = 0

    def append(count: int) -> None:
        nonlocal seq
        with env.begin(write=True) as transaction:
            for _ in range(count):
                seq += 1
                transaction.put(seq.to_bytes(8, "big"), line, append=True)

    return append


def _sourced(folder: Path, line: bytes, opened: ExitStack) -> Append:
    """Its recorder alone: what it takes to make an aggregate's event, and bytes of it, is not counted."""
    from eventsourcing.persistence import StoredEvent
    from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteDatastore

    store: Any = SQLiteDatastore(str(folder / "sourced.db"))
    opened.callback(store.close)
    recorder: Any = SQLiteApplicationRecorder(store)
    recorder.create_table()
    originator, version = uuid4(), 0

    def append(count: int) -> None:
        nonlocal version
        recorder.insert_events([StoredEvent(originator, version + n, "run:Finished", line) for n in range(count)])
        version += count

    return append


def _drop(_: object) -> None:
    """`append` gives nothing back."""
