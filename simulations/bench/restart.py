"""What a restart makes of runs that ended badly while the daemon did: is it noticed at once, and is the truth told?"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from dataclasses import dataclass
from time import monotonic
from typing import Any

import psutil

from ledger.record import Record
from simulations.bench.daemon import DaemonProcess, Stuck, Watched, make_home, starts_of
from simulations.bench.figure import Figure, Target, figure
from simulations.bench.past import job_of
from simulations.bench.place import Bench
from simulations.bench.queue import HUEY, Queue

Json = Any


@dataclass(frozen=True, slots=True)
class Case:
    """`kill`: what is killed before the daemon is: the command, or also the process that keeps its exit status."""

    name: str
    shell: str
    kill: tuple[str, ...]
    outcome: str
    code: int | None
    signal: int | None


CASES = (
    Case("command killed", "sleep 600", ("command",), "failed", None, signal.SIGKILL),
    Case("worker tree killed", "sleep 600", ("keeper", "command"), "lost", None, None),
    Case("ends while no daemon is there", "sleep 0.3; exit 3", (), "failed", 3, None),
)


def measure(bench: Bench) -> list[Figure]:
    ticks: list[float] = []
    took_ms: list[float] = []
    true: list[list[float]] = []
    for turn in range(bench.some(3, 1)):
        found = [_case(bench, turn, number, case) for number, case in enumerate(CASES)]
        ticks.append(max(tick for tick, _, _ in found))
        took_ms.append(max(ms for _, ms, _ in found))
        true.append([float(is_true) for _, _, is_true in found])
    ends = [
        figure(f"{case.name}: {case.outcome}", "of 1", truths, target=Target(at_least=1))
        for case, truths in zip(CASES, zip(*true, strict=True), strict=True)
    ]
    theirs = [_huey(bench)] if HUEY.installed else []
    tree = [truths[1] for truths in true]
    return [
        *ends,
        figure("noticed: worker tree and daemon killed", "of 1", tree, HUEY.told("1 process"), theirs, note=(
            "huey takes a task off its queue before it runs it; one that is killed with its consumer is gone.")),
        figure("... ticks of the next daemon", "ticks", ticks, target=Target(at_most=1)),
        figure("... from its first record", "ms", took_ms),
    ]  # fmt: skip


def _case(bench: Bench, turn: int, number: int, case: Case) -> tuple[int, float, bool]:
    """Ticks and milliseconds from the next daemon's first record to the one that tells, and whether that is true."""
    bench.tell(f"{case.name}, then the daemon killed, round {turn + 1}")
    job = job_of(0) | {"shell": case.shell}
    del job["argv"]
    home = make_home(bench.folder / f"killed-{turn}-{number}", [job])
    watched = Watched(home)
    with DaemonProcess(home) as first:
        first.ask(starts_of([job], 1))
        begun = next(record for record in watched.until("run.started") if record.type == "run.started")
        command = psutil.Process(begun.data["pid"])
        keeper = command.parent()
        first.freeze()  # or it might hear of the one before it dies of the other
        try:
            for which in case.kill:
                _kill_tree(keeper if which == "keeper" and keeper is not None else command)
        finally:
            first.kill()
    if not case.kill:
        threading.Event().wait(0.6)
    with DaemonProcess(home):
        records = watched.until("run.finished")
    started = next(record for record in records if record.type == "daemon.started")
    ended = next(record for record in records if record.type == "run.finished")
    batches = {record.batch for record in records if started.batch < record.batch <= ended.batch}
    return len(batches), (ended.mt - started.mt) / 1e6, _is_true(ended, case)


def _kill_tree(process: psutil.Process) -> None:
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(ProcessLookupError):  # one may end with the other
            os.kill(one.pid, signal.SIGKILL)


def _is_true(ended: Record, case: Case) -> bool:
    said = ended.data
    return (said["outcome"], said["code"], said["signal"]) == (case.outcome, case.code, case.signal)


def _huey(bench: Bench) -> float:
    """1 if a task killed with its consumer is begun again by the next one, or said to have failed."""
    bench.tell("huey's consumer killed with its task")
    queue = Queue(HUEY, bench.folder / "huey-killed")
    with queue, queue.consumer(1, "process"):
        queue.call("import bench_app; bench_app.ask('long')")
        give_up_s = monotonic() + 30
        while not queue.begun():
            if monotonic() > give_up_s:
                raise Stuck("huey did not begin its task within 30 s")
            threading.Event().wait(0.01)
    with queue, queue.consumer(1, "process"):
        threading.Event().wait(bench.some(5, 1))
        results = int(queue.call("import bench_app; print(bench_app.huey.result_count())"))
    return 1.0 if results or queue.begun() > 1 else 0.0
