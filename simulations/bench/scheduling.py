"""Planning by how much is due and how much exists, and how late a run starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, sleep, time
from typing import Any

import yaml

from ledger.instant import ms_of
from policies.agenda import Agenda
from policies.decision import decide
from policies.policy import adopt
from policies.question import ask
from simulations.bench.daemon import DaemonProcess, Watched, make_home
from simulations.bench.figure import Figure, Target, figure, percentile
from simulations.bench.past import START_MS, graph_of, job_of
from simulations.bench.place import Bench

Json = Any

_DUE = 100
_PERIOD_MS = 125
_SAYS_WHEN = ["/bin/date", "+%s.%N"]
_POLICY = Path(__file__).resolve().parents[2] / "policies" / "defaults" / "scheduling.yaml"


def measure(bench: Bench) -> list[Figure]:
    return [*_planning(bench), *_lateness(bench)]


def _planning(bench: Bench) -> list[Figure]:
    """From the graph to the plan with its hash; nothing is recorded and nothing is looked up on the disk."""
    policy = adopt(yaml.safe_load(_POLICY.read_text()), {"max_running": 2 * _DUE})
    took_ms: dict[int, list[float]] = {}
    sizes = (bench.some(1_000, 200), bench.some(10_000, 400))
    for size in sizes:
        bench.tell(f"planning with {size} jobs of which {_DUE} are due")
        due, later = {"every": "1m"}, {"cron": "30 4 1 1 *"}
        graph = graph_of([job_of(number, due if number < _DUE else later) for number in range(size)])
        agenda = Agenda.of(graph)

        def plan(graph: Any = graph, agenda: Agenda = agenda) -> None:
            decided = decide(ask(graph, agenda, policy, START_MS + 60_000)).decisions
            assert len(decided) == _DUE

        took_ms[size] = [median(_seconds(plan) * 1000 for _ in range(bench.some(5, 1))) for _ in range(bench.rounds)]
    small, large = sizes
    return [
        figure(f"plan {_DUE} due of {large} jobs", "ms", took_ms[large], f"{_DUE} due of {small} jobs", took_ms[small],
               Target(at_most=5)),
    ]  # fmt: skip


def _lateness(bench: Bench) -> list[Figure]:
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


def _seconds(work: Callable[[], object]) -> float:
    began_s = perf_counter()
    work()
    return perf_counter() - began_s
