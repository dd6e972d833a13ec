"""Command runs, of slots and asked for one by one: each granted, started, watched and recorded, beside processes that
are merely spawned, and beside peers that are given the same process to run."""

from __future__ import annotations

import resource
import subprocess
import sys
from time import perf_counter
from typing import Any

from ledger.record import Record
from simulations.bench.daemon import (
    WEEKLY,
    DaemonProcess,
    Stuck,
    Watched,
    make_home,
    slots_of,
    spawned_at_once,
    starts_of,
)
from simulations.bench.figure import Figure, Target, figure
from simulations.bench.past import job_of
from simulations.bench.place import Bench
from simulations.bench.queue import beside

Json = Any

CONCURRENCY = 16
JOBS = 32
_KEEPS_STATUS = '"$@"; echo $? >"$0"'


def measure(bench: Bench) -> list[Figure]:
    count = bench.some(500, 8)
    wrapped = ["/bin/sh", "-c", _KEEPS_STATUS, str(bench.folder / "status"), "/bin/true"]
    jobs = [job_of(number, WEEKLY) | {"keep": {"runs": 100}} for number in range(JOBS)]
    home = make_home(bench.folder / "commands", jobs, {"max_running": CONCURRENCY})
    rates: list[list[float]] = [[], [], [], []]
    cpu_ms: list[list[float]] = [[], []]
    syncs: list[float] = []
    with DaemonProcess(home) as daemon:
        watched = Watched(home)
        first = bench.some(20, 2)
        _runs(daemon, watched, starts_of(jobs, first), first)
        for turn in range(bench.rounds):
            bench.tell(f"{count} command runs, round {turn + 1} of {bench.rounds}")
            spawned = _spawned(["/bin/true"], count)
            rates[1].append(spawned[0])
            cpu_ms[1].append(spawned[1])
            rates[2].append(_spawned(wrapped, count)[0])
            before_s = daemon.cpu_s()
            rate, records = _runs(daemon, watched, slots_of(jobs, count, turn), count)
            cpu_ms[0].append((daemon.cpu_s() - before_s) * 1000 / count)
            rates[0].append(rate)
            syncs.append(len({record.batch for record in records}) / count)
            rates[3].append(_runs(daemon, watched, starts_of(jobs, count), count)[0])
    above_ms = [ours - theirs for ours, theirs in zip(*cpu_ms, strict=True)]
    at_once = f"posix_spawn, {CONCURRENCY} at once"
    name, scheduler = "durable command runs", _apscheduler(bench, count)
    return [
        figure(name, "runs/s", rates[0], at_once, rates[1], Target(at_least=0.5, of_ratio=True)),
        figure(name, "runs/s", rates[0], "the same in sh, status kept", rates[2]),
        figure("... asked for one by one", "runs/s", rates[3], at_once, rates[1]),
        *beside(bench, name, rates[0], "command", count, CONCURRENCY, "thread"),
        figure(name, "runs/s", rates[0], "APScheduler, in memory", scheduler, note=(
            "APScheduler is no peer in keeping what it did: its jobs are in memory, and nothing is left of them.")),
        figure("daemon's CPU for a run", "ms", cpu_ms[0], at_once, cpu_ms[1]),
        figure("... above posix_spawn", "ms", above_ms, target=Target(at_most=1.2)),
        figure("syncs for a run", "fdatasync", syncs, target=Target(at_most=3)),
    ]  # fmt: skip


def _runs(daemon: DaemonProcess, watched: Watched, requests: list[bytes], count: int) -> tuple[float, list[Record]]:
    """Runs per second from the first request to the last durable end; the records of it."""
    began_s = perf_counter()
    daemon.ask(requests)
    watched.wait(count)
    return count / (perf_counter() - began_s), watched.records()


def _spawned(argv: list[str], count: int) -> tuple[float, float]:
    """Spawned and reaped per second, and our own CPU time for each, in ms."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    began_s = perf_counter()
    for _ in spawned_at_once(argv, count, CONCURRENCY):
        pass
    took_s = perf_counter() - began_s
    after = resource.getrusage(resource.RUSAGE_SELF)
    used_s = after.ru_utime + after.ru_stime - own.ru_utime - own.ru_stime
    return count / took_s, used_s * 1000 / count


def _apscheduler(bench: Bench, count: int) -> list[float]:
    """Jobs per second, from the first one added to the last one executed, as many threads as we have runs at once."""
    bench.tell(f"{count} jobs of APScheduler, {bench.rounds} rounds")
    argv = [sys.executable, "-c", _SCHEDULER, str(count), str(bench.rounds), str(CONCURRENCY)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise Stuck(f"APScheduler did not do its jobs: {done.stderr}")
    return [float(word) for word in done.stdout.split()]


_SCHEDULER = """
import subprocess, sys, threading, time
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, EVENT_JOB_MISSED
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
count, rounds, threads = map(int, sys.argv[1:])
null = subprocess.DEVNULL
scheduler = BackgroundScheduler(executors={"default": ThreadPoolExecutor(threads)})
ended = threading.Semaphore(0)
scheduler.add_listener(lambda event: ended.release(), EVENT_JOB_EXECUTED | EVENT_JOB_ERROR | EVENT_JOB_MISSED)
scheduler.start()
for turn in range(-1, rounds):
    began = time.perf_counter()
    for _ in range(count):
        scheduler.add_job(subprocess.run, args=[["/bin/true"]], kwargs=dict(stdin=null, stdout=null, stderr=null),
                          misfire_grace_time=None)
    for _ in range(count):
        ended.acquire()
    if turn >= 0:
        print(count / (time.perf_counter() - began))
scheduler.shutdown()
"""
