"""Memory while a long past is read, and while it is folded: it must not grow with the number of events."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from simulations.bench.daemon import Stuck, make_home
from simulations.bench.figure import Figure, Target, figure
from simulations.bench.past import job_of, make_past
from simulations.bench.place import Bench

JOBS = 100
_ROOT = Path(__file__).resolve().parents[2]
_MB = 1_000_000


def measure(bench: Bench) -> list[Figure]:
    """How much the process grows over the second half. By then everything that is kept has its full size."""
    home = make_home(bench.folder / "long", [job_of(number) for number in range(JOBS)])
    bench.tell(f"making a ledger of {bench.events} events")
    make_past(home, bench.events, JOBS)
    found = []
    for what in ("read", "fold"):
        bench.tell(f"memory while {bench.events} events are replayed ({what})")
        done = subprocess.run(
            [sys.executable, "-c", _SAMPLES, str(home), what, str(max(1, bench.events // 40))],
            cwd=_ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Stuck(f"replaying {home} failed: {done.stderr}")
        resident = [int(word) for word in done.stdout.split()]
        middle = len(resident) // 2
        grown = (max(resident[middle:]) - max(resident[:middle])) / _MB
        name = "replay, verified" if what == "read" else "replay, folded"
        found += [
            figure(f"{name}: peak resident", "MB", [max(resident) / _MB]),
            figure(f"{name}: growth", "MB", [max(0.0, grown)], target=Target(at_most=5), note=(
                f"The peak of the second half of {bench.events:,} events above that of the first ({grown:+.1f} MB). "
                "With `--events 10000000`, of ten million.")),
        ]  # fmt: skip
    return found


_SAMPLES = """
import sys
from itertools import islice
import psutil
from daemon.reading import replaying
from daemon.system import OsDisk
from ledger.reader import read
from state.graph import Graph
from state.projector import fold
home, what, every = sys.argv[1], sys.argv[2], int(sys.argv[3])
process, graph, records = psutil.Process(), Graph(), read(OsDisk(home))
with replaying():
    while True:
        if what == "fold":
            before = graph.seq
            fold(graph, islice(records, every))
            count = graph.seq - before
        else:
            count = sum(1 for _ in islice(records, every))
        if not count:
            break
        print(process.memory_info().rss)
"""
