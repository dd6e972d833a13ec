"""A home with a past: a real ledger of many events, as a daemon that ran commands would have left it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from orjson import dumps

from daemon.system import OsDisk
from ledger.instant import Now, ms_of, text_of
from ledger.ledger import Bounds, Ledger
from ledger.record import Draft, Record
from ledger.segment import Writer
from policies.due import slot_id
from policies.job import Job, parse_job
from policies.survey import run_name
from state.events import draft
from state.graph import Graph
from state.projector import apply

Json = Any

START_MS = ms_of("2026-03-02T12:00:00Z")
_BATCH = 1500  # whole runs of three events
_DIGEST = "9f86d081884c7d659a2feaa0c55ad015"


def job_of(number: int, schedule: Json = "manual") -> dict[str, Json]:
    """A job file's entry."""
    return {
        "name": f"job-{number:05d}",
        "description": "Looks at the disks and says which of them are filling up.",
        "kind": "command",
        "argv": ["/bin/true"],
        "schedule": schedule,
        "needs": {"cpu": 0},
        "overlap": "allow_all",
    }


def defined(raw: Json) -> Draft:
    spec: Job = parse_job(raw)
    data = {
        "job": spec.name, "revision": 1, "digest": spec.digest(), "spec": spec.canonical(), "source": "jobs.yaml",
    }  # fmt: skip
    return draft("job.defined", f"job/{spec.name}", data)


def graph_of(jobs: list[dict[str, Json]]) -> Graph:
    """A graph in which these jobs have been defined at START_MS."""
    graph = Graph()
    alike: dict[bytes, Json] = {}
    for seq, raw in enumerate(jobs, 1):
        # Those that differ in nothing but the name are parsed once: a hundred thousand would take a minute.
        key = dumps(raw | {"name": ""})
        if key not in alike:
            alike[key] = defined(raw).data
        name, known = raw["name"], alike[key]
        data = {**known, "job": name, "digest": f"{seq:032x}", "spec": {**known["spec"], "name": name}}
        record = Record(
            seq, 1, seq, False, text_of(START_MS), seq, "job.defined", 1, f"job/{name}", None, None, None, data, ""
        )
        graph.merge(apply(graph, record), seq)
    return graph


def make_past(home: Path, events: int, jobs: int, bounds: Bounds | None = None) -> int:
    """Fill the new ledger of `home`, which has so many of our jobs, with at least so many events of runs. Returns how
    many records it holds."""
    writer = Writer("bench", "no boot of this machine", 1, 1, "0")
    ledger = Ledger.open(OsDisk(home), writer, _now(START_MS), bounds=bounds)
    told = [defined(job_of(number)) for number in range(jobs)]
    ledger.append(told, _now(START_MS))
    runs = _runs(jobs)
    for tick in range(-(-events // _BATCH)):
        ledger.append(islice(runs, _BATCH), _now(START_MS + tick * 1000))
    count = ledger.head.seq
    ledger.close()
    return count


def _runs(jobs: int) -> Iterator[Draft]:
    """Runs one after another: each granted, started and finished. The first one is checked; the others are like it."""
    for tick in range(1, 1 << 40):
        name, at_ms = f"job-{tick % jobs:05d}", START_MS + tick * 1000
        slot = slot_id(name, _DIGEST, at_ms)
        run = run_name(name, at_ms, slot)
        decided = {
            "run": run, "job": name, "slot": slot, "at": text_of(at_ms), "trigger": "schedule", "verdict": "started",
            "rule": "admitted", "reason": "due, and there is room", "revision": 1, "attempt": 1, "token": tick,
            "leases": [],
        }  # fmt: skip
        groups = ("clock", "jobs", "policy", "leases", "history", "resources", "tzdb", "code")
        plan = {
            "tick": tick, "wall_ms": at_ms, "boot_ms": tick * 1000, "preflight": {}, "decisions": [decided],
            "inputs": dict.fromkeys(groups, _DIGEST), "decision_hash": _DIGEST,
        }  # fmt: skip
        made = draft if tick == 1 else Draft
        yield made("plan.decided", f"plan/{tick}", plan)
        about = {"run": run, "attempt": 1, "token": tick}
        yield made("run.started", f"run/{run}", {**about, "pid": 4242, "process_started": tick})
        ended = {
            **about, "outcome": "succeeded", "code": 0, "signal": None, "reason": "exit status 0", "retry_at": None,
            "cpu_ms": 3, "rss_kib": 2980, "outputs": {"stdout.log": {"bytes": 120, "sha256": _DIGEST * 2}},
        }  # fmt: skip
        yield made("run.finished", f"run/{run}", ended)


def _now(ms: int) -> Now:
    return Now(ms * 1_000_000, (ms - START_MS + 1000) * 1_000_000)
