"""How quick they are: `HERMES_PACE=1 python -m pytest -s tests/test_simulations_pace.py`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, process_time
from zlib import crc32

import pytest
from lived import FRIDAY, RESOURCES, Life, accepted, policy

from daemon.home import Home
from daemon.loop import SNAPSHOT_EVERY
from daemon.reading import replaying
from daemon.resources import cpus
from daemon.system import OsDisk
from ledger.chain import Head
from ledger.instant import Now
from ledger.reader import read
from ledger.record import Record
from simulations.bench.past import make_past
from simulations.bisection import bisect_in_parts
from simulations.counterfactual import Counterfactual
from simulations.forecast import forecast
from simulations.habits import Fate, Habits
from state import snapshot
from state.graph import Graph
from state.projector import fold

HOUR_MS = 3_600_000

pytestmark = [
    pytest.mark.bench,
    pytest.mark.skipif("HERMES_PACE" not in os.environ, reason="a measurement of minutes, wanted with HERMES_PACE=1"),
]


def test_a_year_of_two_hundred_daily_jobs() -> None:
    zones = ("UTC", "Europe/Paris", "America/New_York")
    jobs = accepted(
        *(
            {
                "name": f"job{n:03d}", "leases": [f"repo:{n % 5}"] if n % 7 == 0 else [],
                "schedule": {"cron": f"{n * 7 % 60} {n * 5 % 24} * * *", "timezone": zones[n % 3]},
            }
            for n in range(200)
        )
    )  # fmt: skip
    began_s = process_time()
    with replaying():
        found = forecast(
            jobs, policy(), RESOURCES, Habits(1), begin_ms=FRIDAY, end_ms=FRIDAY + 365 * 24 * HOUR_MS, seed=1
        )
    took_s = process_time() - began_s
    print(f"\nsimulate: {found.tally.decisions} slots of a year, {took_s:.1f} s of CPU")


def test_a_past_of_many_decisions() -> None:
    jobs = accepted(
        *(
            {
                "name": f"job{n:03d}", "schedule": {"every": "10m", "offset": f"{n * 7 % 10}m"}, "priority": n % 100,
                "leases": [f"repo:{n % 40}"] if n % 3 == 0 else [], "overlap": "buffer_one",
            }
            for n in range(200)
        )
    )  # fmt: skip

    def fate(run: str, attempt: int) -> Fate:
        chance = crc32(run.encode())
        return Fate(20_000 + chance % 90_000, 0 if chance % 9 else 2)

    with replaying():
        life = Life(jobs, policy(max_running=24), fate, late_ms=3)
        life.pass_until(FRIDAY + 24 * HOUR_MS)
        graph = fold(Graph(), read(life.disk, until=life.first_seq))

        def records() -> Iterator[Record]:
            return read(life.disk, after=life.first_seq)

        for places in (24, 20):
            graph = fold(Graph(), read(life.disk, until=life.first_seq))
            begin = Now(FRIDAY * 1_000_000, 1_000_000 * 1_000_000)
            began_s = process_time()
            found = Counterfactual(
                graph, records, Habits(1), policy(max_running=places), None, begin, policy()
            ).compare()
            took_s = process_time() - began_s
            print(
                f"\nwhatif: {found.recorded.decisions} recorded decisions, {found.agreed} agree,"
                f" {found.simulated} simulated, {took_s:.1f} s of CPU"
            )


def test_a_ledger_of_a_million_events(tmp_path: Path) -> None:
    """With the snapshots that the daemon keeps of such a past."""
    Home(tmp_path / "home").make()
    disk, graph = OsDisk(tmp_path / "home"), Graph()
    count = make_past(tmp_path / "home", 1_000_000, 200)
    with replaying():
        for record in read(disk):
            fold(graph, [record])
            if record.seq % SNAPSHOT_EVERY == 0:
                snapshot.write(disk, graph, Head(record.seq, record.hash), "sim")
    for text in (
        'jobs["job-00007"].failures_in_row != 5',
        "runs.failed == 0",
        "leases.count == 0",
        "jobs.failing == 0",
    ):
        began_s = perf_counter()
        found = bisect_in_parts(disk, "sim", text, processes=cpus())
        took_s = perf_counter() - began_s
        assert found.change is None
        print(f"\nbisect: {text}: {count} events, {took_s:.1f} s by {cpus()} processes")
