"""Reading the past: verified, sealed, folded into the graph, beside bare parsing of the same bytes; and a daemon's
start on a long one, with and without a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter

import orjson

from daemon.reading import replaying
from daemon.system import OsDisk
from ledger.ledger import Bounds
from ledger.reader import read
from ledger.segment import segments_in
from simulations.bench.daemon import DaemonProcess, Stuck, make_home
from simulations.bench.figure import Figure, Target, figure
from simulations.bench.past import job_of, make_past
from simulations.bench.place import Bench
from state import snapshot
from state.graph import Graph
from state.projector import fold

JOBS = 100


def measure(bench: Bench) -> list[Figure]:
    jobs = [job_of(number) for number in range(JOBS)]
    long = make_home(bench.folder / "long", jobs)
    bench.tell(f"making a ledger of {bench.events} events")
    make_past(long, bench.events, JOBS)
    with replaying():  # as every replay of Hermes is
        rates = _rates(bench)
    return [*rates, *_starts(bench, long)]


def _rates(bench: Bench) -> list[Figure]:
    """The same events in one segment that is not sealed, and in ones that are."""
    count = bench.some(100_000, 3000)
    jobs = [job_of(number) for number in range(JOBS)]
    plain, sealed = make_home(bench.folder / "plain", jobs), make_home(bench.folder / "sealed", jobs)
    bench.tell(f"making two ledgers of {count} events")
    records = make_past(plain, count, JOBS, Bounds(segment_bytes=1 << 40))
    make_past(sealed, count, JOBS, Bounds(segment_bytes=bench.some(16 << 20, 1 << 18)))
    last = segments_in(OsDisk(sealed).list("ledger"))[-1].first_seq - 1
    files = sorted((plain / "ledger").glob("0*.jsonl"))
    works: tuple[tuple[int, Callable[[], object]], ...] = (
        (records, lambda: _parse(files)),
        (records, lambda: _drain(read(OsDisk(plain)))),
        (last, lambda: _drain(read(OsDisk(sealed), until=last))),
        (records, lambda: fold(Graph(), read(OsDisk(plain)))),
        (last, lambda: fold(Graph(), read(OsDisk(sealed), until=last))),
    )
    rates: list[list[float]] = [[] for _ in works]
    for turn in range(bench.rounds):
        bench.tell(f"reading them, round {turn + 1} of {bench.rounds}")
        for which, (events, work) in enumerate(works):
            rates[which].append(events / _seconds(work))
    parsed, verified, of_sealed, folded, sealed_folded = rates
    bare = "orjson.loads per line"
    return [
        figure("read, verified", "events/s", verified, bare, parsed, Target(at_least=250_000)),
        figure("read, sealed", "events/s", of_sealed, bare, parsed, Target(at_least=500_000)),
        figure("read, sealed", "events/s", of_sealed, "read, verified", verified, Target(at_least=2, of_ratio=True)),
        figure("verified and folded", "events/s", folded, bare, parsed, Target(at_least=250_000)),
        figure("sealed and folded", "events/s", sealed_folded, "verified and folded", folded),
    ]


def _starts(bench: Bench, home: Path) -> list[Figure]:
    """From the command to ready. The first daemon finds no snapshot, and leaves one when it stops."""
    fresh = make_home(bench.folder / "fresh", [job_of(number) for number in range(JOBS)])
    bench.tell("starting a daemon on it, in full")
    full = [_ready_s(home)]
    if not snapshot.stored_in(OsDisk(home)) and not bench.quick:
        raise Stuck("the daemon left no snapshot when it stopped")
    kept: list[float] = []
    new: list[float] = []
    for turn in range(bench.some(3, 1)):
        bench.tell(f"starting a daemon on it, from a snapshot, round {turn + 1}")
        kept.append(_ready_s(home))
        new.append(_ready_s(fresh))
    what = f"daemon ready, {bench.events:,} events"
    return [
        figure(f"{what}, in full", "s", full, "a fresh home", new, Target(at_most=5)),
        figure(f"{what}, from a snapshot", "s", kept, "a fresh home", new, Target(at_most=2)),
    ]


def _ready_s(home: Path) -> float:
    began_s = perf_counter()
    with DaemonProcess(home):
        return perf_counter() - began_s


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
