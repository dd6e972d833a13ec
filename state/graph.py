"""The graph: what there is (nodes), how it hangs together (edges), and how one event changes it (a patch).

Nodes are immutable values; a patch puts whole nodes and drops others; edges are read off the nodes, so that an edge can
never disagree with them. `Graph` is the fold of all patches, with a few indexes over the nodes that are alive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from ledger.chain import Head

Json = Any

OVER = frozenset({"succeeded", "failed", "timed_out", "cancelled", "lost", "skipped", "missed", "coalesced", "blocked"})
"""The states a run never leaves."""

WITH_PROCESS = frozenset({"granted", "running", "stopping"})
"""The states in which an attempt may have a process, and holds its leases."""


class Job(NamedTuple):
    """A job file's entry: its accepted spec, and how far its schedule has been accounted for."""

    id: str
    name: str
    revision: int
    digest: str
    spec: dict[str, Json]
    source: str
    defined_seq: int
    cursor_ms: int
    """Every slot up to and including this instant has its decision."""
    consumed: dict[str, str]
    """For `after`: dependency -> its latest run that has been answered."""
    finished: dict[str, str]
    """success, failure, any -> the latest run that ended so."""
    active: tuple[str, ...]
    """Runs not over, in the order they came; steps are counted with their parent, not here."""
    kept: tuple[str, ...]
    """Runs that are over and still in the graph, oldest first."""
    last_outcome: str
    last_success_at: str
    failures_in_row: int
    removed: bool


class Run(NamedTuple):
    """One slot's fate, or one step of an agent's run. Its attempts follow one another; `attempt` is the latest."""

    id: str
    name: str
    job: str
    slot: str
    at: str
    trigger: str
    state: str
    reason: str
    rule: str
    revision: int
    spec: dict[str, Json]
    """The spec it began with (of a step: the step's own part); emptied when the run is over."""
    parent: str
    step: str
    attempt: int
    token: int
    leases: tuple[str, ...]
    decided_seq: int
    created_at: str
    started_at: str
    started_boot_ms: int
    stopping_boot_ms: int
    stopping_why: str
    forced: bool
    ended_at: str
    pid: int
    process_started: int
    code: int | None
    signal: int | None
    retry_at_ms: int
    """In backoff: when the next attempt is due; else 0."""
    cpu_ms: int | None
    rss_kib: int | None
    outputs: dict[str, Json]
    artifacts: dict[str, str]
    until: str
    slots: int
    """How many slots it stands for: more than one where a range of old ones was decided alike, up to `until`."""
    children: tuple[str, ...]


class Request(NamedTuple):
    """A person's wish that has been recorded and not yet been answered by a decision."""

    id: str
    request: str
    verb: str
    job: str
    run: str
    at: str
    actor: str
    reason: str


class Lease(NamedTuple):
    id: str
    key: str
    holder: str
    token: int
    foreign: bool
    since: str
    expires_boot_ms: int
    """0: it has no end of its own (a grant of ours lasts as long as its run)."""
    note: str


class Decision(NamedTuple):
    id: str
    seq: int
    tick: int
    at: str
    hash: str
    inputs: dict[str, str]
    verdicts: dict[str, int]


class Rejection(NamedTuple):
    id: str
    source: str
    problems: tuple[dict[str, Json], ...]


class Policy(NamedTuple):
    id: str
    digest: str
    values: dict[str, Json]
    rejected: str


class Node(NamedTuple):
    """The machine and the daemon on it."""

    id: str
    host: str
    boot_id: str
    epoch: int
    daemon: str  # running | stopped
    pid: int
    process_started: int
    since: str
    version: str
    code: str
    python: str
    zone: str
    tzdb: str
    tick: int
    tokens: int
    """The latest fencing token given out; tokens only rise."""
    cpus: int
    memory_bytes: int
    memory_free_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    gpu_memory_bytes: int
    sampled_at: str
    recoveries: int
    clock_jumps: int
    counts: dict[str, int]
    """Runs by how they ended, since the ledger began."""


class Seen(NamedTuple):
    """Ids of requests that have been taken, newest last, so that one left twice counts once."""

    id: str
    requests: tuple[str, ...]


AnyNode: TypeAlias = Job | Run | Request | Lease | Decision | Rejection | Policy | Node | Seen

HERE = "node/here"
POLICY = "policy/scheduling"
SEEN = "requests"

NOTHING_KNOWN = Node(HERE, "", "", 0, "stopped", 0, 0, "", "", "", "", "UTC", "", 0, 0, 0, 0, 0, 0, 0, 0, "", 0, 0, {})


class Edge(NamedTuple):
    source: str
    kind: str
    target: str


def edges_of(node: AnyNode) -> Iterator[Edge]:
    """The edges that start at `node`: of, runs-on, holds, depends-on, caused-by."""
    match node:
        case Job(spec=spec):
            for dependency in spec.get("schedule", {}).get("after", ()) if spec else ():
                yield Edge(node.id, "depends-on", f"job/{dependency}")
        case Run():
            yield Edge(node.id, "of", f"run/{node.parent}" if node.parent else f"job/{node.job}")
            if node.decided_seq:
                yield Edge(node.id, "caused-by", f"decision/{node.decided_seq}")
            if node.state in WITH_PROCESS:
                yield Edge(node.id, "runs-on", HERE)
        case Lease():
            if not node.foreign:
                yield Edge(f"run/{node.holder}", "holds", node.id)
        case Request():
            yield Edge(node.id, "of", f"run/{node.run}" if node.verb == "cancel" else f"job/{node.job}")
        case _:
            return


class GraphPatch(NamedTuple):
    """What one event changes: nodes put in whole, and the ids of those that leave."""

    put: tuple[AnyNode, ...] = ()
    drop: tuple[str, ...] = ()


@dataclass(slots=True)
class Graph:
    """The fold of all patches. Only `merge` changes it."""

    nodes: dict[str, AnyNode] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)  # by name, removed ones included
    active: dict[str, Run] = field(default_factory=dict)  # runs that are not over, by name
    leases: dict[str, Lease] = field(default_factory=dict)  # by key
    requests: dict[str, Request] = field(default_factory=dict)  # unanswered, by request id
    decisions: list[str] = field(default_factory=list)  # ids of the decisions still in the graph, oldest first
    seq: int = 0

    @property
    def here(self) -> Node:
        node = self.nodes.get(HERE, NOTHING_KNOWN)
        assert isinstance(node, Node)
        return node

    @property
    def policy(self) -> Policy:
        node = self.nodes.get(POLICY) or Policy(POLICY, "", {}, "")
        assert isinstance(node, Policy)
        return node

    @property
    def seen(self) -> Seen:
        node = self.nodes.get(SEEN) or Seen(SEEN, ())
        assert isinstance(node, Seen)
        return node

    def run(self, name: str) -> Run | None:
        node = self.nodes.get(f"run/{name}")
        return node if isinstance(node, Run) else None

    def merge(self, patch: GraphPatch, seq: int) -> None:
        """Fold one event's patch in. The indexes follow the nodes."""
        for node in patch.put:
            self.nodes[node.id] = node
            if isinstance(node, Run):
                if node.state in OVER:
                    self.active.pop(node.name, None)
                else:
                    self.active[node.name] = node
            elif isinstance(node, Job):
                self.jobs[node.name] = node
            elif isinstance(node, Lease):
                self.leases[node.key] = node
            elif isinstance(node, Request):
                self.requests[node.request] = node
            elif isinstance(node, Decision):
                self.decisions.append(node.id)
        for name in patch.drop:
            gone = self.nodes.pop(name, None)
            if isinstance(gone, Run):
                self.active.pop(gone.name, None)
            elif isinstance(gone, Lease):
                self.leases.pop(gone.key, None)
            elif isinstance(gone, Request):
                self.requests.pop(gone.request, None)
            elif isinstance(gone, Decision):
                self.decisions.remove(gone.id)
        self.seq = seq


@dataclass(frozen=True, slots=True)
class GraphSnapshot:
    """The graph at one ledger position, as plain values in a stated order."""

    head: Head
    nodes: tuple[AnyNode, ...]
    edges: tuple[Edge, ...]


def snapshot(graph: Graph, head: Head) -> GraphSnapshot:
    nodes = tuple(graph.nodes[name] for name in sorted(graph.nodes))
    edges = tuple(sorted({edge for node in nodes for edge in edges_of(node)}))
    return GraphSnapshot(head, nodes, edges)
