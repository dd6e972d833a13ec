"""Planning by how much is due and how much exists, and how late a run starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
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

        took_ms[size] = [_seconds(plan) * 1000 for _ in range(bench.some(4 * bench.rounds, 1))]
    small, large = sizes
    return [
        figure(f"plan {_DUE} due of {large} jobs", "ms", took_ms[large], f"{_DUE} due of {small} jobs", took_ms[small],
               Target(at_most=5)),
    ]  # fmt: skip


def _lateness(bench: Bench) -> list[Figure]:
    """A slot every 125 ms; the command itself says when it runs, by its own clock."""
    slots, parts = bench.some(64, 4), 8
    jobs = [
        job_of(number, {"every": "1s", "offset": f"{number * 1000 // parts}ms"})
        | {"argv": ["/bin/date", "+%s.%N"], "keep": {"runs": 1000}}
        for number in range(parts)
    ]
    home = make_home(bench.folder / "lateness", jobs)
    bench.tell(f"how late {slots} runs start")
    with DaemonProcess(home):
        records = Watched(home).until_finished(slots)
    at_ms = {
        decided["run"]: ms_of(decided["at"])
        for record in records
        if record.type == "plan.decided"
        for decided in record.data["decisions"]
    }
    decided_ms = [
        _ms(record.ts) - ms_of(decided["at"])
        for record in records
        if record.type == "plan.decided"
        for decided in record.data["decisions"]
    ]
    began_ms = []
    for record in records:
        if record.type == "run.finished":
            said = (home / "runs" / record.data["run"] / "1" / "stdout.log").read_text()
            began_ms.append(float(said) * 1000 - at_ms[record.data["run"]])
    target = Target(at_most=10)
    return [
        figure("plan behind the slot, p50", "ms", [percentile(decided_ms, 50)]),
        figure("plan behind the slot, p99", "ms", [percentile(decided_ms, 99)]),
        figure("command behind the slot, p50", "ms", [percentile(began_ms, 50)]),
        figure("command behind the slot, p99", "ms", [percentile(began_ms, 99)], target=target),
    ]


def _ms(ts: str) -> float:
    """Of a record's `ts`, which has microseconds."""
    return ms_of(ts[:23] + "Z") + int(ts[23:26]) / 1000


def _seconds(work: Callable[[], object]) -> float:
    began_s = perf_counter()
    work()
    return perf_counter() - began_s
