"""What the planner is asked: everything seen that may change the answer, as one value.

A question is built from the graph (which the ledger gives back) and the few values a plan event records beside its
answer (the instant, the preflight verdicts), so that any past question can be put again from the ledger alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from policies.agenda import Agenda, fresh
from policies.policy import SchedulingPolicy
from policies.schedule import Schedule
from state.graph import WITH_PROCESS, Graph, Request, Run

Json = Any

VOLATILE = frozenset(
    {"tick", "boot_ms", "since", "sampled_at", "pid", "process_started", "cpu_ms", "rss_kib", "folder"}
)
"""Fields that may differ between two askings of the same question: times of measuring, durations, process ids,
temporary paths, raw latencies. They are dropped wherever they stand before anything is hashed; nothing else is."""

GROUPS = ("clock", "jobs", "policy", "leases", "history", "resources", "tzdb", "code")


class DueJob(NamedTuple):
    """A job that has something to decide, or has a run that has."""

    name: str
    revision: int
    digest: str
    schedule: Schedule
    spec: dict[str, Json]
    """In canonical form, as recorded."""
    depth: int
    removed: bool
    cursor_ms: int
    active: tuple[tuple[str, str], ...]  # (run, state)
    due: bool
    fresh: Mapping[str, str]
    consumed: Mapping[str, str]


class Child(NamedTuple):
    run: str
    step: str
    state: str


class Capacity(NamedTuple):
    cpus: int
    memory_bytes: int
    gpu_memory_bytes: int


class Running(NamedTuple):
    """An attempt that has, or is about to have, a process: it takes a place and what it needs."""

    run: str
    needs: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Question:
    wall_ms: int
    jobs: Mapping[str, DueJob]
    waiting: tuple[Run, ...]  # waiting, or in backoff with the time come
    agents: tuple[tuple[Run, tuple[Child, ...]], ...]
    requests: tuple[Request, ...]
    leases: Mapping[str, tuple[str, int, bool]]  # key -> holder, token, foreign
    running: tuple[Running, ...]
    capacity: Capacity
    tokens: int
    policy: SchedulingPolicy
    tzdb: str
    code: str
    preflight: dict[str, str] = field(default_factory=dict)

    def groups(self) -> dict[str, Json]:
        """The question by input group, as JSON values in an order of their own."""
        return {
            "clock": {"wall_ms": self.wall_ms},
            "jobs": [[j.name, j.revision, j.digest, j.depth, j.removed] for _, j in sorted(self.jobs.items())],
            "policy": self.policy.model_dump(),
            "leases": {"held": [[key, *held] for key, held in sorted(self.leases.items())], "tokens": self.tokens},
            "history": {
                "jobs": [
                    [j.name, j.cursor_ms, sorted(j.active), j.due, dict(j.fresh), dict(j.consumed)]
                    for _, j in sorted(self.jobs.items())
                ],
                "waiting": sorted(
                    [r.name, r.state, r.rule, r.attempt, r.created_at, r.retry_at_ms] for r in self.waiting
                ),
                "agents": sorted([run.name, run.state, sorted(children)] for run, children in self.agents),
                "requests": sorted([r.request, r.verb, r.job, r.run, r.at] for r in self.requests),
            },
            "resources": {
                "capacity": self.capacity._asdict(),
                "running": sorted([r.run, dict(r.needs)] for r in self.running),
                "preflight": dict(self.preflight),
            },
            "tzdb": self.tzdb,
            "code": self.code,
        }


def canonical(value: Json) -> bytes:
    """One byte string per meaning: keys sorted, volatile fields dropped, no white space."""
    return orjson.dumps(_without_volatile(value), option=orjson.OPT_SORT_KEYS)


def _without_volatile(value: Json) -> Json:
    if isinstance(value, Mapping):
        return {key: _without_volatile(inner) for key, inner in value.items() if key not in VOLATILE}
    if isinstance(value, list | tuple):
        return [_without_volatile(inner) for inner in value]
    return value


def digest(value: Json) -> str:
    """The first 128 bits of SHA-256 over the canonical form, as hex."""
    return hashlib.sha256(canonical(value)).hexdigest()[:32]


def ask(graph: Graph, agenda: Agenda, policy: SchedulingPolicy, wall_ms: int) -> Question:
    """The question as the graph poses it at `wall_ms`. Its cost follows what is due, waiting or running."""
    due = set(agenda.due(wall_ms))
    ready = set(agenda.ready())
    waiting, agents, running = [], [], []
    names = due | ready
    for run in graph.active.values():
        spec = run.spec
        if run.state in WITH_PROCESS and spec.get("kind") != "agent":
            running.append(Running(run.name, spec.get("needs", {})))
        elif run.state == "waiting" or (run.state == "backoff" and run.retry_at_ms <= wall_ms):
            waiting.append(run)
            names.add(run.job)
        elif run.state == "running":
            children = tuple(
                Child(child.name, child.step, child.state) for name in run.children if (child := graph.run(name))
            )
            agents.append((run, children))
            names.add(run.job)
    requests = tuple(r for r in graph.requests.values() if r.verb == "start")
    names |= {r.job for r in requests}
    here = graph.here
    jobs = {}
    for name in sorted(names):
        job = graph.jobs[name]
        jobs[name] = DueJob(
            name=name,
            revision=job.revision,
            digest=job.digest,
            schedule=agenda.schedule(name),
            spec=job.spec,
            depth=agenda.depth(name),
            removed=job.removed,
            cursor_ms=job.cursor_ms,
            active=tuple((run, graph.active[run].state) for run in job.active if run in graph.active),
            due=name in due,
            fresh=fresh(job, graph) if name in ready else {},
            consumed=job.consumed,
        )
    return Question(
        wall_ms=wall_ms,
        jobs=jobs,
        waiting=tuple(waiting),
        agents=tuple(agents),
        requests=requests,
        leases={key: (lease.holder, lease.token, lease.foreign) for key, lease in graph.leases.items()},
        running=tuple(running),
        capacity=Capacity(here.cpus, here.memory_bytes, here.gpu_memory_bytes),
        tokens=here.tokens,
        policy=policy,
        tzdb=here.tzdb,
        code=here.code,
    )
