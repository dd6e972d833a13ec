"""Python runs in warm workers, of slots and asked for one by one, beside task queues: the same function, each task
durable before it is acknowledged, as many processes as we keep; huey also with one, since SQLite's writers wait for
each other."""

from __future__ import annotations

from time import perf_counter

from simulations.bench.daemon import WEEKLY, DaemonProcess, Watched, make_home, slots_of, starts_of
from simulations.bench.figure import Figure, figure
from simulations.bench.past import job_of
from simulations.bench.place import Bench
from simulations.bench.queue import HUEY, beside, row

JOBS = 32
WORKERS = 8
"""As many as the daemon keeps at most."""
_TASK = "def nothing():\n    return 1\n"


def measure(bench: Bench) -> list[Figure]:
    count = bench.some(500, 8)
    jobs = [
        job_of(number, WEEKLY) | {"kind": "python", "call": "bench_task:nothing", "keep": {"runs": 100}}
        for number in range(JOBS)
    ]
    for job in jobs:
        del job["argv"]
    home = make_home(bench.folder / "python", jobs, {"max_running": 4 * WORKERS})
    (home / "jobs" / "bench_task.py").write_text(_TASK)
    ours: list[float] = []
    asked: list[float] = []
    with DaemonProcess(home) as daemon:
        watched = Watched(home)
        for turn in range(-1, bench.rounds):  # The first one starts the workers.
            bench.tell(f"{count} python runs, round {turn + 1} of {bench.rounds}")
            for rates, requests in ((ours, slots_of(jobs, count, turn)), (asked, starts_of(jobs, count))):
                began_s = perf_counter()
                daemon.ask(requests)
                watched.wait(count)
                if turn >= 0:
                    rates.append(count / (perf_counter() - began_s))
    name = "warm python runs"
    return [
        *beside(bench, name, ours, "nothing", count, WORKERS, "process"),
        row(bench, HUEY, name, ours, "nothing", count, 1, "process"),
        figure("... asked for one by one", "runs/s", asked),
    ]
