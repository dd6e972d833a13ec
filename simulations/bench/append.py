"""Appending by one writer: a durable event beside the same bytes written bare and beside the stores of others."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from time import perf_counter_ns

import orjson

from ledger.record import TRAILER_BYTES
from simulations.bench import stores
from simulations.bench.figure import Figure, Target, figure, percentile
from simulations.bench.place import Bench
from simulations.bench.stores import BARE, OURS, PEERS, Append, Stores

BATCHES = (1, 100, 1000)
_TS = "2026-11-21T04:39:00.123456Z"


def measure(bench: Bench) -> list[Figure]:
    with ExitStack() as opened:
        there = stores.opened(bench.folder, opened)
        bench.tell("warming up")
        for append in there.appends.values():
            # SQLite's log is at its fastest, and steady, once it has grown to its full length and begins anew.
            for _ in range(bench.some(500, 2)):
                append(1)
        found = _single(bench, there.appends)
        for size in BATCHES:
            found += _batches(bench, size, there.appends)
        return [*found, *_overhead(there)]


def in_turn(appends: Iterable[str], turn: int) -> list[str]:
    """Their names, each first once in as many turns as there are."""
    names = list(appends)
    first = turn % len(names)
    return names[first:] + names[:first]


def _single(bench: Bench, appends: dict[str, Append]) -> list[Figure]:
    """Latency of one event at a time, in short turns, so that a disk that is slow for a while is slow for all."""
    blocks, size = bench.some(20, 1), bench.some(10, 5)
    p50: dict[str, list[float]] = {name: [] for name in appends}
    p99: dict[str, list[float]] = {name: [] for name in appends}
    for turn in range(bench.rounds):
        bench.tell(f"one event at a time, round {turn + 1} of {bench.rounds}")
        took_us: dict[str, list[float]] = {name: [] for name in appends}
        for block in range(blocks):
            for name in in_turn(appends, turn + block):
                for _ in range(size):
                    began_ns = perf_counter_ns()
                    appends[name](1)
                    took_us[name].append((perf_counter_ns() - began_ns) / 1000)
        for name, took in took_us.items():
            p50[name].append(percentile(took, 50))
            p99[name].append(percentile(took, 99))
    found = []
    for peer in PEERS:
        target = Target(at_most=1.3, of_ratio=True) if peer == BARE else None
        told = stores.told(peer)
        found += [
            figure("append, one event, p50", "us", p50[OURS], told, p50.get(peer, ()), target),
            figure("append, one event, p99", "us", p99[OURS], told, p99.get(peer, ())),
        ]
    return found


def _batches(bench: Bench, size: int, appends: dict[str, Append]) -> list[Figure]:
    """Durable events per second, so many to a sync."""
    turns = bench.some(max(10, 4000 // size // 10), 2)
    rates: dict[str, list[float]] = {name: [] for name in appends}
    for turn in range(bench.rounds):
        bench.tell(f"{size} events to a sync, round {turn + 1} of {bench.rounds}")
        for name in in_turn(appends, turn):
            began_ns = perf_counter_ns()
            for _ in range(turns):
                appends[name](size)
            rates[name].append(turns * size * 1e9 / (perf_counter_ns() - began_ns))
    name = f"append, {size} to a sync" if size > 1 else "append, each with its sync"
    return [
        figure(name, "events/s", rates[OURS], stores.told(peer), rates.get(peer, ()),
               Target(at_least=100_000) if size == 100 and peer == BARE else None)
        for peer in PEERS
    ]  # fmt: skip


def _overhead(there: Stores) -> list[Figure]:
    """What a record costs beside a log line that only says when, what, about whom, and the data."""
    events = there.events
    plain = [len(orjson.dumps({"ts": _TS, "type": e.type, "subject": e.subject, "data": e.data})) + 1 for e in events]
    added = there.line_bytes - sum(plain) / len(plain)
    chain = TRAILER_BYTES - len(b"}")  # A plain line ends in one, too.
    clock = len(f'"mt":{there.clock.now().boot_ns // 1000},')
    return [
        figure("overhead of a record", "bytes", [added], target=Target(at_most=85), note=(
            "Beside a line of ts, type, subject and data, in batches of 1,000; a record that is a batch of its "
            "own takes 8 less.")),
        figure("... the chain: h", "bytes", [chain]),
        figure("... the event's own: mt", "bytes", [clock]),
        figure("... order and fencing: seq, n, ep", "bytes", [added - chain - clock]),
    ]  # fmt: skip
