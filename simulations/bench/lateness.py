"""How late a run starts, beside a program that only sleeps until the same instant and spawns the same command."""

from __future__ import annotations

import os
from pathlib import Path
from time import sleep, time

from ledger.instant import ms_of
from simulations.bench.daemon import DaemonProcess, Watched, make_home
from simulations.bench.figure import Figure, Target, figure, percentile
from simulations.bench.past import job_of
from simulations.bench.place import Bench

_PERIOD_MS = 125
_SAYS_WHEN = ["/bin/date", "+%s.%N"]


def measure(bench: Bench) -> list[Figure]:
    """A slot every 125 ms; the command itself says when it runs, by its own clock."""
    slots, parts = bench.some(104, 4), 1000 // _PERIOD_MS
    jobs = [
        job_of(number, {"every": "1s", "offset": f"{number * _PERIOD_MS}ms"})
        | {"argv": _SAYS_WHEN, "keep": {"runs": 1000}}
        for number in range(parts)
    ]
    home = make_home(bench.folder / "lateness", jobs)
    bench.tell(f"how late {slots} commands start after a sleep")
    bare_ms = _bare_lateness_ms(bench.folder, slots // 2)
    bench.tell(f"how late {slots} runs start")
    with DaemonProcess(home):
        ready_ms = time() * 1000  # What was due before is late by the time that a start takes.
        records = Watched(home).until_finished(slots + parts)
    slot_ms, decided_ms, began_ms = {}, [], []
    for record in records:
        if record.type == "plan.decided":
            for decided in record.data["decisions"]:
                if (at_ms := ms_of(decided["at"])) > ready_ms:
                    slot_ms[decided["run"]] = at_ms
                    decided_ms.append(_ms(record.ts) - at_ms)
        elif record.type == "run.finished" and record.data["run"] in slot_ms:
            said = (home / "runs" / record.data["run"] / "1" / "stdout.log").read_text()
            began_ms.append(float(said) * 1000 - slot_ms[record.data["run"]])
    slept = "sleep + posix_spawn"
    return [
        figure("plan behind its slot, p50", "ms", [percentile(decided_ms, 50)]),
        figure("plan behind its slot, p99", "ms", [percentile(decided_ms, 99)]),
        figure("command behind its slot, p50", "ms", [percentile(began_ms, 50)], slept, [percentile(bare_ms, 50)]),
        figure("command behind its slot, p99", "ms", [percentile(began_ms, 99)], slept, [percentile(bare_ms, 99)],
               Target(at_most=10)),
    ]  # fmt: skip


def _bare_lateness_ms(folder: Path, slots: int) -> list[float]:
    """The same command on the same grid, with nothing between the clock and posix_spawn."""
    late_ms = []
    for number in range(slots):
        output = folder / f"said-{number}"
        slot_ms = (int(time() * 1000) // _PERIOD_MS + 1) * _PERIOD_MS
        sleep(slot_ms / 1000 - time())
        into = [(os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT, 0o600)]
        os.waitpid(os.posix_spawn(_SAYS_WHEN[0], _SAYS_WHEN, {}, file_actions=into), 0)
        late_ms.append(float(output.read_text()) * 1000 - slot_ms)
    return late_ms


def _ms(ts: str) -> float:
    """Of a record's `ts`, which has microseconds."""
    return ms_of(ts[:23] + "Z") + int(ts[23:26]) / 1000
