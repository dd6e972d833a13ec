"""Many threads that each wait for their own event to be durable: our one writer, which lets them share syncs, beside
stores that give each its own, behind one lock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from time import perf_counter, perf_counter_ns

from daemon.recorder import Recorder
from simulations.bench import stores
from simulations.bench.append import in_turn
from simulations.bench.figure import Figure, figure, percentile
from simulations.bench.place import Bench
from simulations.bench.stores import BARE, OURS, PEERS, Append

PRODUCERS = (1, 8, 64)


def measure(bench: Bench) -> list[Figure]:
    with ExitStack() as opened:
        there = stores.opened(bench.folder, opened)
        recorder = opened.enter_context(Recorder(there.ledger, there.clock))
        lock = threading.Lock()

        def alone(append: Append) -> Callable[[], None]:
            def one() -> None:
                with lock:
                    append(1)

            return one

        def shared() -> None:
            recorder.append(there.events[:1]).result()

        asks = {name: alone(append) for name, append in there.appends.items()} | {OURS: shared}
        return [found for count in PRODUCERS for found in _measure(bench, count, asks, recorder)]


def _measure(bench: Bench, producers: int, asks: dict[str, Callable[[], None]], recorder: Recorder) -> list[Figure]:
    each = bench.some(max(25, 400 // producers), 2)
    rates: dict[str, list[float]] = {name: [] for name in asks}
    p50: dict[str, list[float]] = {name: [] for name in asks}
    p99: dict[str, list[float]] = {name: [] for name in asks}
    to_a_sync: list[float] = []
    who = "1 producer" if producers == 1 else f"{producers} producers"
    for turn in range(bench.rounds):
        bench.tell(f"{who}, round {turn + 1} of {bench.rounds}")
        for name in in_turn(asks, turn):
            before = recorder.counts
            rate, took_us = _produced(asks[name], producers, each)
            rates[name].append(rate)
            p50[name].append(percentile(took_us, 50))
            p99[name].append(percentile(took_us, 99))
            if name == OURS:
                commits = recorder.counts.commits - before.commits
                to_a_sync.append((recorder.counts.records - before.records) / commits)
    return [
        *(figure(who, "events/s", rates[OURS], stores.told(peer), rates.get(peer, ())) for peer in PEERS),
        figure(f"{who}, answer p50", "us", p50[OURS], BARE, p50[BARE]),
        figure(f"{who}, answer p99", "us", p99[OURS], BARE, p99[BARE]),
        figure(f"{who}, events to a sync", "events", to_a_sync),
    ]


def _produced(ask: Callable[[], None], producers: int, each: int) -> tuple[float, list[float]]:
    """Events per second, and how long each answer took, in microseconds."""
    took_us: list[list[float]] = [[] for _ in range(producers)]
    start = threading.Barrier(producers + 1)

    def produce(mine: list[float]) -> None:
        start.wait()
        for _ in range(each):
            began_ns = perf_counter_ns()
            ask()
            mine.append((perf_counter_ns() - began_ns) / 1000)

    threads = [threading.Thread(target=produce, args=(mine,)) for mine in took_us]
    for thread in threads:
        thread.start()
    start.wait()
    began_s = perf_counter()
    for thread in threads:
        thread.join()
    return producers * each / (perf_counter() - began_s), [took for mine in took_us for took in mine]
