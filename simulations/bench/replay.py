"""Reading it all again: verified, then folded into the graph, beside a bare JSON parse of every line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter

import orjson

from daemon.system import OsDisk
from ledger.reader import read
from simulations.bench.daemon import DaemonProcess, make_home
from simulations.bench.figure import Figure, Target, figure
from simulations.bench.past import job_of, make_past
from simulations.bench.place import Bench
from state.graph import Graph
from state.projector import fold


def measure(bench: Bench) -> list[Figure]:
    count = bench.some(100_000, 600)
    bench.tell(f"making a ledger of {count} events")
    jobs = [job_of(number) for number in range(100)]
    home, fresh = make_home(bench.folder / "old", jobs), make_home(bench.folder / "fresh", jobs)
    records = make_past(home, count, len(jobs))
    disk = OsDisk(home)
    files = sorted((home / "ledger").glob("*.jsonl"))
    rates: list[list[float]] = [[], [], []]
    for turn in range(bench.rounds):
        bench.tell(f"reading it, round {turn + 1} of {bench.rounds}")
        for which, work in enumerate((
            lambda: _drain(read(disk)), lambda: fold(Graph(), read(disk)), lambda: _parse(files)
        )):  # fmt: skip
            rates[which].append(records / _seconds(work))
    target = Target(at_least=250_000)
    starts: list[list[float]] = [[], []]
    for turn in range(bench.some(3, 1)):
        bench.tell(f"starting a daemon on it, round {turn + 1}")
        for which, folder in enumerate((home, fresh)):
            began_s = perf_counter()
            with DaemonProcess(folder):
                starts[which].append(perf_counter() - began_s)
    return [
        figure("read, verified", "events/s", rates[0], "orjson.loads per line", rates[2], target),
        figure("read, verified, folded", "events/s", rates[1], "orjson.loads per line", rates[2]),
        figure(f"daemon ready, {count} events", "s", starts[0], "a fresh home", starts[1]),
    ]


def _parse(files: list[Path]) -> None:
    for file in files:
        for line in file.read_bytes().splitlines():
            orjson.loads(line)


def _drain(records: Iterable[object]) -> None:
    for _ in records:
        pass


def _seconds(work: Callable[[], object]) -> float:
    began_s = perf_counter()
    work()
    return perf_counter() - began_s
