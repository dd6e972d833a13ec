"""What the planner is asked: everything seen that may change the answer, as one value.

A question is built from the graph (which the ledger gives back) and the few values a plan event records beside its
answer (the instant, the preflight verdicts), so that any past question can be put again from the ledger alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from policies.agenda import Agenda, fresh
from policies.budget import Entries
from policies.policy import SchedulingPolicy
from policies.schedule import Schedule
from policies.upgrade import saga
from state.graph import Arrivals, Graph, Request, Run, Spending, is_container
from state.spending import accounts

Json = Any

VOLATILE = frozenset(
    {"tick", "boot_ms", "since", "sampled_at", "pid", "process_started", "cpu_ms", "rss_kib", "folder"}
)
"""Fields that may differ between two askings of the same question: times of measuring, durations, process ids,
temporary paths, raw latencies. They are dropped wherever they stand before anything is hashed; nothing else is."""

GROUPS = ("clock", "jobs", "policy", "leases", "history", "resources", "tzdb", "code")


FILES_MAX = 50
"""One question looks at no more of the files that wait for one job."""


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
    active: tuple[str, int, int] | tuple[()]  # of its runs not over: the first, how many, how many wait for another
    due: bool
    fresh: Mapping[str, str]
    consumed: Mapping[str, str]
    paused: Mapping[str, str]
    files: tuple[tuple[str, str, int, int], ...]  # that wait, the first of them: path, stamp, when, seq
    lost: tuple[tuple[str, int, str, int, int, int], ...]  # why, how many, and of the first path, when, seq; until when


class Child(NamedTuple):
    run: str
    step: str
    state: str


class Container(NamedTuple):
    """A run without a process of its own, and its steps so far."""

    run: Run
    children: tuple[Child, ...]
    wanted: tuple[dict[str, Json], ...]
    """Of an upgrade: the steps that begin now. An agent's stand in its spec."""


class Capacity(NamedTuple):
    cpus: int
    memory_bytes: int
    gpu_memory_bytes: int


class Running(NamedTuple):
    """An attempt that has, or is about to have, a process: it takes a place, also in its pools, and what it needs."""

    run: str
    needs: Mapping[str, Json]
    pools: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    wall_ms: int
    jobs: Mapping[str, DueJob]
    waiting: tuple[Run, ...]
    """Those that wait, or are in backoff with the time come; of those that wait for a place only the first that could
    fill the places there are."""
    last: str  # the last of those, if there are more: no run behind it is given a place that one of them may want
    agents: tuple[Container, ...]
    requests: tuple[Request, ...]
    leases: Mapping[str, tuple[str, int, bool]]  # key -> holder, token, foreign
    running: tuple[Running, ...]
    capacity: Capacity
    tokens: int
    spent: Mapping[str, Entries]  # account -> when, run, tokens
    paused: Mapping[str, Json]  # everything: nothing is decided but what people ask for
    staggered_ms: int  # the latest start that has been put off so that not all start at once
    policy: SchedulingPolicy
    tzdb: str
    code: str
    preflight: dict[str, str] = field(default_factory=dict)

    def groups(self) -> dict[str, Json]:
        """The question by input group, as JSON values in an order of their own."""
        return {
            "clock": {"wall_ms": self.wall_ms},
            "jobs": [[j.name, j.revision, j.digest, j.depth, j.removed] for _, j in sorted(self.jobs.items())],
            "policy": _told(self.policy).values,
            "leases": {
                "held": [[key, *held] for key, held in sorted(self.leases.items())],
                "tokens": self.tokens,
                "spent": sorted([account, *entries] for account, entries in self.spent.items()),
            },
            "history": {
                "jobs": [
                    [j.name, j.cursor_ms, j.active, j.due, dict(j.fresh), dict(j.consumed), dict(j.paused)]
                    for _, j in sorted(self.jobs.items())
                ],
                "files": [[j.name, j.files, j.lost] for _, j in sorted(self.jobs.items()) if j.files or j.lost],
                "waiting": sorted(
                    [r.name, r.state, r.rule, r.attempt, r.created_at, r.not_before_ms] for r in self.waiting
                ),
                "last": self.last,
                "agents": sorted(
                    [it.run.name, it.run.state, sorted(map(list, it.children)), *it.wanted] for it in self.agents
                ),
                "requests": sorted(
                    [r.request, r.verb, r.job, r.run, r.at, r.retries, r.overlap, r.slots, r.file]
                    for r in self.requests
                ),
                "paused": dict(self.paused),
                "staggered_ms": self.staggered_ms,
            },
            "resources": {
                "capacity": self.capacity._asdict(),
                "running": sorted([r.run, dict(r.needs), list(r.pools)] for r in self.running),
                "preflight": dict(self.preflight),
            },
            "tzdb": self.tzdb,
            "code": self.code,
        }

    def digests(self) -> dict[str, str]:
        """Input group -> digest. What is the same in one question after another is hashed once."""
        known = {"policy": _told(self.policy).digest, "tzdb": _digest(self.tzdb), "code": _digest(self.code)}
        return {group: known.get(group) or digest(value) for group, value in self.groups().items()}


class _Told(NamedTuple):
    policy: SchedulingPolicy
    values: dict[str, Json]
    digest: str


_POLICIES_KEPT = 16
_told_policies: dict[int, _Told] = {}
"""By the identity of a policy, which is kept with it so that no other one can come to have it. Memory only."""


def _told(policy: SchedulingPolicy) -> _Told:
    known = _told_policies.get(id(policy))
    if known is None:
        if len(_told_policies) >= _POLICIES_KEPT:
            _told_policies.clear()
        values = policy.values()
        known = _told_policies[id(policy)] = _Told(policy, values, digest(values))
    return known


_MARKS = tuple(b'"%b":' % name.encode() for name in sorted(VOLATILE))
"""How a volatile field shows in JSON, and nothing else does: within a text its quotes would be escaped."""


def canonical(value: Json) -> bytes:
    """One byte string per meaning: keys sorted, volatile fields dropped, no white space."""
    try:
        text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:  # Mappings and named tuples.
        pass
    else:
        for mark in _MARKS:
            if mark in text:
                break
        else:
            return text
    return orjson.dumps(_without_volatile(value), option=orjson.OPT_SORT_KEYS)


_PLAIN = frozenset({str, int, float, bool, type(None)})


def _without_volatile(value: Json) -> Json:
    kind = type(value)  # Asked by name first, since asking an abstract class takes longer than the rest.
    if kind in _PLAIN:
        return value
    if kind is list or kind is tuple:
        return [inner if type(inner) in _PLAIN else _without_volatile(inner) for inner in value]
    if kind is dict or isinstance(value, Mapping):
        return {key: _without_volatile(inner) for key, inner in value.items() if key not in VOLATILE}
    if isinstance(value, list | tuple):
        return [_without_volatile(inner) for inner in value]
    return value


def digest(value: Json) -> str:
    """The first 128 bits of SHA-256 over the canonical form, as hex."""
    return hashlib.sha256(canonical(value)).hexdigest()[:32]


@lru_cache(maxsize=64)
def _digest(text: str) -> str:
    return digest(text)


def pools_of(graph: Graph, run: Run, pools: Mapping[str, Json]) -> tuple[str, ...]:
    """The pools in which an attempt takes a place: those named like a tag of its job."""
    above = graph.run(run.parent) if run.parent else run
    return tuple(tag for tag in above.spec.get("tags", ()) if tag in pools) if above is not None and pools else ()


def _spent(
    graph: Graph, specs: Iterable[tuple[str, Mapping[str, Json]]]
) -> dict[str, tuple[tuple[int, str, int], ...]]:
    found = {}
    for job, spec in specs:
        for account in accounts(job, spec, graph.policy.values):
            node = graph.nodes.get(f"spending/{account}")
            if isinstance(node, Spending):
                found[account] = node.entries
    return found


def _lost(known: Arrivals) -> tuple[tuple[str, int, str, int, int, int], ...]:
    found: dict[str, tuple[str, int, str, int, int, int]] = {}
    for path, _, at_ms, seq, why in known.lost:
        _, count, path, first_ms, seq, _ = found.get(why, (why, 0, path, at_ms, seq, at_ms))
        found[why] = (why, count + 1, path, first_ms, seq, max(first_ms, at_ms))
    return tuple(found.values())


def ask(graph: Graph, agenda: Agenda, policy: SchedulingPolicy, wall_ms: int) -> Question:
    """The question as the graph poses it at `wall_ms`. Its cost follows what is due, waiting or running."""
    here, pools = graph.here, policy.pools
    # While everything is paused no slot is decided: on resuming, they are what was missed.
    due = set() if here.paused else set(agenda.due(wall_ms))
    ready = set() if here.paused else set(agenda.ready(wall_ms))
    waiting, agents, running = [], [], []
    staggered_ms = 0
    for run in graph.holding.values():
        spec = run.spec
        if not is_container(spec):
            running.append(Running(run.name, spec.get("needs", {}), pools_of(graph, run, pools)))
            continue
        begins = saga.wanted(graph, run) if spec["kind"] != "agent" else ()
        if begins or (spec["kind"] == "agent" and run.state == "running"):
            children = tuple(
                Child(child.name, child.step, child.state) for name in run.children if (child := graph.run(name))
            )
            agents.append(Container(run, children, begins))
    for run in agenda.queue.stirring.values():
        if run.not_before_ms <= wall_ms:
            waiting.append(run)
        elif run.rule == "stagger":
            staggered_ms = max(staggered_ms, run.not_before_ms)
    # A pause is news to each of them.
    places = len(agenda.queue) if here.paused else policy.max_running - len(running)
    first = agenda.queue.first(graph, places, wall_ms, policy) if len(agenda.queue) and places > 0 else []
    waiting += first
    names = due | ready | {run.job for run in waiting} | {it.run.job for it in agents}
    requests = tuple(r for r in graph.requests.values() if r.verb in ("start", "backfill"))
    names |= {r.job for r in requests}
    names |= {name for name, known in graph.arrivals.items() if known.pending or known.lost}
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
            active=(job.active[0], len(job.active), agenda.queue.buffered(name)) if job.active else (),
            due=name in due,
            fresh=fresh(job, graph) if name in ready else {},
            consumed=job.consumed,
            paused=job.paused,
            files=known.pending[:FILES_MAX] if (known := graph.arrivals.get(name)) is not None else (),
            lost=_lost(known) if known is not None and known.lost else (),
        )
    specs = [(job.name, job.spec) for job in jobs.values()]
    specs += [(request.job, spec) for request in requests for spec in request.specs.values()]
    return Question(
        wall_ms=wall_ms,
        jobs=jobs,
        waiting=tuple(waiting),
        last=first[-1].name if 0 < len(first) < len(agenda.queue) else "",
        agents=tuple(agents),
        requests=requests,
        leases={key: (lease.holder, lease.token, lease.foreign) for key, lease in graph.leases.items()},
        running=tuple(running),
        capacity=Capacity(here.cpus, here.memory_bytes, here.gpu_memory_bytes),
        tokens=here.tokens,
        spent=_spent(graph, specs),
        paused=here.paused,
        staggered_ms=staggered_ms,
        policy=policy,
        tzdb=here.tzdb,
        code=here.code,
    )
