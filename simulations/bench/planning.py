"""Planning by how much is due and how much exists."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import perf_counter

import yaml

from policies.agenda import Agenda
from policies.decision import decide
from policies.policy import adopt
from policies.question import ask
from simulations.bench.figure import Figure, Target, figure
from simulations.bench.past import START_MS, graph_of, job_of
from simulations.bench.place import Bench

DUE = 100
SIZES = (1_000, 10_000, 100_000)
_POLICY = Path(__file__).resolve().parents[2] / "policies" / "defaults" / "scheduling.yaml"


def measure(bench: Bench) -> list[Figure]:
    """From the graph to the plan with its hash; nothing is recorded and nothing is looked up on the disk."""
    policy = adopt(yaml.safe_load(_POLICY.read_text()), {"max_running": 2 * DUE})
    due, later = {"every": "1m"}, {"cron": "30 4 1 1 *"}
    took_ms: list[list[float]] = [[] for _ in SIZES]
    made = []
    for size in (bench.some(size, 2 * DUE + number) for number, size in enumerate(SIZES)):
        bench.tell(f"making {size:,} jobs of which {DUE} are due")
        graph = graph_of([job_of(number, due if number < DUE else later) for number in range(size)])
        made.append((graph, Agenda.of(graph)))
    for turn in range(bench.rounds):
        bench.tell(f"planning, round {turn + 1} of {bench.rounds}")
        for which, (graph, agenda) in enumerate(made):
            runs_ms = []
            for _ in range(bench.some(5, 1)):
                began_s = perf_counter()
                decided = decide(ask(graph, agenda, policy, START_MS + 60_000)).decisions
                runs_ms.append((perf_counter() - began_s) * 1000)
                assert len(decided) == DUE
            took_ms[which].append(median(runs_ms))
    some, many, most = took_ms
    return [
        figure(f"plan {DUE} due of 10,000 jobs", "ms", many, f"{DUE} due of 1,000 jobs", some, Target(at_most=5)),
        figure(f"plan {DUE} due of 100,000 jobs", "ms", most, f"{DUE} due of 10,000 jobs", many),
    ]
