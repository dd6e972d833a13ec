"""Python runs in warm workers, beside huey with SQLite: the same function, each task durable before it is acknowledged,
as many processes as we keep, and also one, since SQLite's writers wait for each other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from time import perf_counter

from simulations.bench.daemon import DaemonProcess, Stuck, Watched, make_home
from simulations.bench.figure import Figure, Target, figure
from simulations.bench.past import job_of
from simulations.bench.place import Bench

JOBS = 32
WORKERS = 8
"""As many as the daemon keeps at most."""
_TASK = "def nothing():\n    return 1\n"
_HUEY = """\
from huey import SqliteHuey

huey = SqliteHuey("bench", filename="{file}", fsync=True)

@huey.task()
def nothing():
    return 1
"""


def measure(bench: Bench) -> list[Figure]:
    count = bench.some(500, 8)
    jobs = [
        job_of(number) | {"kind": "python", "call": "bench_task:nothing", "keep": {"runs": 100}}
        for number in range(JOBS)
    ]
    for job in jobs:
        del job["argv"]
    home = make_home(bench.folder / "python", jobs, {"max_running": 4 * WORKERS})
    (home / "jobs" / "bench_task.py").write_text(_TASK)
    ours: list[float] = []
    with DaemonProcess(home) as daemon:
        watched = Watched(home)
        for turn in range(-1, bench.rounds):  # The first one starts the workers.
            bench.tell(f"{count} python runs, round {turn + 1} of {bench.rounds}")
            began_s = perf_counter()
            daemon.start_many(jobs, count)
            watched.until_finished(count)
            if turn >= 0:
                ours.append(count / (perf_counter() - began_s))
    target = Target(at_least=3000)
    if not find_spec("huey"):
        return [figure("warm python runs", "runs/s", ours, target=target)]
    found = []
    for workers, words in ((WORKERS, f"{WORKERS} processes"), (1, "1 process")):
        theirs = _huey(bench, count, workers)
        found.append(figure("warm python runs", "runs/s", ours, f"huey on SQLite, {words}", theirs, target))
    return found


def _huey(bench: Bench, count: int, workers: int) -> list[float]:
    """Tasks per second, from the first one enqueued to the last result stored, by the real consumer."""
    folder = bench.folder / f"huey-{workers}"
    folder.mkdir()
    (folder / "bench_huey.py").write_text(_HUEY.format(file=folder / "queue.db"))
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    consumer = [
        sys.executable, "-m", "huey.bin.huey_consumer", "bench_huey.huey", "-w", str(workers), "-k", "process", "-q",
    ]  # fmt: skip
    client = [sys.executable, "-c", _CLIENT, str(count), str(bench.rounds)]
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(
            consumer, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        ) as running,
    ):
        try:
            bench.tell(f"{count} tasks of huey in {workers} processes, {bench.rounds} rounds")
            done = subprocess.run(
                client, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
            )
        finally:
            os.killpg(running.pid, signal.SIGKILL)
    if done.returncode:
        raise Stuck(f"huey did not do its tasks: {done.stderr}\n{(folder / 'log').read_text()}")
    return [float(word) for word in done.stdout.split()]


_CLIENT = """
import sys, time
from bench_huey import huey, nothing
count, rounds = map(int, sys.argv[1:])
for turn in range(-1, rounds):
    began = time.perf_counter()
    for _ in range(count):
        nothing()
    while huey.result_count() < count:
        time.sleep(0.005)
    if turn >= 0:
        print(count / (time.perf_counter() - began))
    huey.storage.flush_results()
"""
