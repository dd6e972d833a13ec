"""What the daemon costs while nothing is due, and what its command costs to ask for help."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from simulations.bench.daemon import DaemonProcess, make_home
from simulations.bench.figure import Figure, Target, figure
from simulations.bench.past import job_of
from simulations.bench.place import Bench

_MB = 1_000_000
_ROOT = Path(__file__).resolve().parents[2]


def measure(bench: Bench) -> list[Figure]:
    jobs, watch_s = bench.some(1000, 20), bench.some(61, 1)
    home = make_home(
        bench.folder / "idle", [job_of(number, {"cron": f"{number % 60} 4 29 2 *"}) for number in range(jobs)]
    )
    # A whole minute: the daemon keeps house once in one.
    with DaemonProcess(home) as daemon:
        pause = threading.Event()
        pause.wait(bench.some(2, 0))
        bench.tell(f"doing nothing for {watch_s} s with {jobs} jobs")
        before_s = daemon.cpu_s()
        pause.wait(watch_s)
        used_s = (daemon.cpu_s() - before_s) * 60 / watch_s
        resident, proportional = daemon.resident_bytes()
        threads = daemon.threads()
    found = [figure("idle, resident", "MB", [resident / _MB], target=Target(at_most=45))]
    if proportional is not None:
        found.append(figure("idle, proportional share", "MB", [proportional / _MB]))
    bench.tell("hermesd --help")
    return [
        *found,
        figure("idle, CPU in a minute", "s", [used_s], target=Target(at_most=0.05)),
        figure("idle, threads", "threads", [threads]),
        figure("hermesd --help, CPU", "ms", [_help_ms() for _ in range(bench.rounds)], "python -c pass",
               [_cpu_ms(["-c", "pass"]) for _ in range(bench.rounds)], Target(at_most=150)),
    ]  # fmt: skip


def _help_ms() -> float:
    return _cpu_ms(["-m", "daemon.cli", "--help"])


def _cpu_ms(arguments: list[str]) -> float:
    process = subprocess.Popen([sys.executable, *arguments], cwd=_ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return (usage.ru_utime + usage.ru_stime) * 1000
