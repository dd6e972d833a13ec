"""Appending: a durable event beside the same bytes written bare, and beside a durable row in SQLite."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter_ns

import orjson

from daemon.system import OsDisk, SystemClock
from ledger.ledger import Ledger
from ledger.record import Draft
from ledger.segment import Writer
from simulations.bench.figure import Figure, Target, figure, percentile
from simulations.bench.place import Bench
from state.events import draft

_OUTPUT = {"bytes": 18240, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}
BATCHES = (1, 100, 1000)
_ORDERS = ((0, 1, 2), (2, 0, 1), (1, 2, 0))


def event(number: int) -> Draft:
    """The end of a run, as the daemon records it."""
    run = f"disk-facts.20261121T0439{number % 60:02d}Z.{number:06x}"
    data = {
        "run": run, "attempt": 1, "token": number, "outcome": "succeeded", "code": 0, "signal": None,
        "reason": "exit status 0", "retry_at": None, "cpu_ms": 12, "rss_kib": 3120, "outputs": {"stdout.log": _OUTPUT},
    }  # fmt: skip
    return draft("run.finished", f"run/{run}", data)


def measure(bench: Bench) -> list[Figure]:
    with ExitStack() as opened:
        clock, disk = SystemClock(), OsDisk(_made(bench.folder / "home"))
        ledger = Ledger.open(disk, Writer("bench", clock.boot_id, os.getpid(), 1, "0"), clock.now())
        opened.callback(ledger.close)
        file = os.open(bench.folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        opened.callback(os.close, file)
        rows = sqlite3.connect(bench.folder / "rows.db", isolation_level=None)
        opened.callback(rows.close)
        rows.execute("pragma journal_mode=wal")
        rows.execute("pragma synchronous=full")
        rows.execute("create table event (seq integer primary key, body blob not null)")
        events = [event(number) for number in range(1000)]
        size = ledger.bytes_written
        ledger.append(events, clock.now())
        line_bytes = (ledger.bytes_written - size) // len(events)
        line = b"x" * (line_bytes - 1) + b"\n"

        def ours(count: int) -> None:
            ledger.append(events[:count], clock.now())

        def bare(count: int) -> None:
            os.write(file, line * count)
            os.fdatasync(file)

        def sqlite(count: int) -> None:
            rows.execute("begin immediate")
            rows.executemany("insert into event (body) values (?)", [(line,)] * count)
            rows.execute("commit")

        bench.tell("warming up")
        for append in (ours, bare, sqlite):
            # SQLite's log is at its fastest, and steady, once it has grown to its full length and begins anew.
            for _ in range(bench.some(500, 2)):
                append(1)
        found = _single(bench, ours, bare, sqlite)
        for size in BATCHES:
            found += _batches(bench, size, ours, bare, sqlite)
        return [*found, _overhead(events, line_bytes)]


Append = Callable[[int], None]


def _single(bench: Bench, *appends: Append) -> list[Figure]:
    """Latency of one event at a time, in short turns, so that a disk that is slow for a while is slow for all."""
    blocks, size = bench.some(20, 1), bench.some(10, 5)
    p50: list[list[float]] = [[], [], []]
    p99: list[list[float]] = [[], [], []]
    for turn in range(bench.rounds):
        bench.tell(f"one event at a time, round {turn + 1} of {bench.rounds}")
        took_us: list[list[float]] = [[], [], []]
        for block in range(blocks):
            for who in _ORDERS[(turn + block) % 3]:
                for _ in range(size):
                    began_ns = perf_counter_ns()
                    appends[who](1)
                    took_us[who].append((perf_counter_ns() - began_ns) / 1000)
        for who in range(3):
            p50[who].append(percentile(took_us[who], 50))
            p99[who].append(percentile(took_us[who], 99))
    target = Target(at_most=1.3, of_ratio=True)
    return [
        figure("append, one event, p50", "us", p50[0], "write + fdatasync", p50[1], target),
        figure("append, one event, p99", "us", p99[0], "write + fdatasync", p99[1]),
        figure("append, one event, p50", "us", p50[0], "sqlite3, WAL, FULL", p50[2]),
        figure("append, one event, p99", "us", p99[0], "sqlite3, WAL, FULL", p99[2]),
    ]


def _batches(bench: Bench, size: int, *appends: Append) -> list[Figure]:
    """Durable events per second, so many to a sync."""
    turns = bench.some(max(10, 4000 // size // 10), 2)
    rates: list[list[float]] = [[], [], []]
    for turn in range(bench.rounds):
        bench.tell(f"{size} events to a sync, round {turn + 1} of {bench.rounds}")
        for who in _ORDERS[turn % 3]:
            began_ns = perf_counter_ns()
            for _ in range(turns):
                appends[who](size)
            rates[who].append(turns * size * 1e9 / (perf_counter_ns() - began_ns))
    name = f"append, {size} to a sync" if size > 1 else "append, each with its sync"
    target = Target(at_least=100_000) if size == 100 else None
    return [
        figure(name, "events/s", rates[0], "write + fdatasync", rates[1], target),
        figure(name, "events/s", rates[0], "sqlite3, WAL, FULL", rates[2]),
    ]


def _overhead(events: list[Draft], line_bytes: int) -> Figure:
    """What chain, order and fencing add to a line, beside a log line that only says when, what and about whom."""
    ts = "2026-11-21T04:39:00.123456Z"
    plain = [len(orjson.dumps({"ts": ts, "type": e.type, "subject": e.subject, "data": e.data})) + 1 for e in events]
    added = line_bytes - sum(plain) / len(plain)
    return figure("overhead of a record", "bytes", [added], target=Target(at_most=85))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
