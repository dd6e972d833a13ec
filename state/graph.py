"""The graph: what there is (nodes), how it hangs together (edges), and how one event changes it (a patch).

Nodes are immutable values; a patch puts whole nodes and drops others; edges are read off the nodes, so that an edge can
never disagree with them. `Graph` is the fold of all patches, with a few indexes over the nodes that are alive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, get_args

from ledger.chain import Head

Json = Any

OVER = frozenset({"succeeded", "failed", "timed_out", "cancelled", "lost", "skipped", "missed", "coalesced", "blocked"})
"""The states a run never leaves."""

WITH_PROCESS = frozenset({"granted", "running", "stopping"})
"""The states in which an attempt may have a process, and holds its leases."""

CONTAINERS = frozenset({"agent", "upgrade", "repository"})
"""The kinds of run that have no process of their own: their steps have."""

REPLACING = ("cancel_other", "terminate_other")
"""The overlap policies by which a later run of a job ends those before it."""


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
    """Runs that had begun, are over and still in the graph, oldest first."""
    last_outcome: str
    last_success_at: str
    failures_in_row: int
    removed: bool
    failing_since: str
    """When it first failed after its last success; "" while it is well."""
    paused: dict[str, str]
    """actor, reason, since; empty while it is not paused."""
    revisions: tuple[tuple[int, int, str, int], ...]
    """Every spec it has had: revision, since when (ms), digest, and the seq of the event that holds it."""
    unrun: tuple[str, ...] = ()
    """As `kept`, those that never began: however many slots are skipped, they push no run out."""


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
    not_before_ms: int
    """Waiting or in backoff: the instant before which its next attempt does not start; else 0."""
    cpu_ms: int | None
    rss_kib: int | None
    outputs: dict[str, Json]
    artifacts: dict[str, str]
    until: str
    slots: int
    """How many slots it stands for: more than one where a range of old ones was decided alike, up to `until`."""
    children: tuple[str, ...]
    tokens: int
    """Reserved while it lives, then what it used."""
    retries: str
    """The run that a person wanted done again by this one."""
    expected: dict[str, Json]
    """met, why; empty where nothing was expected, or the process did not end well."""
    notices: dict[str, str]
    """What was to be told about it: notice -> queued, delivered or given_up."""
    file: str = ""
    """The file whose arrival it answers."""


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
    retries: str = ""
    slots: tuple[tuple[int, int], ...] = ()
    """Of a backfill: instant (ms) and revision of each slot that has no decision yet."""
    specs: dict[str, Json] = {}  # noqa: RUF012  never changed, like all of a node
    overlap: str = ""
    file: str = ""


class Arrivals(NamedTuple):
    """The files that an `on` job was told of and that are still there, and which of them wait for a decision."""

    id: str
    job: str
    seen: dict[str, str]
    """Path -> stamp: size, mtime and inode, by which a file that was written again is told from the one before."""
    pending: tuple[tuple[str, str, int, int], ...]
    """Path, stamp, when it arrived (ms), and the seq of the event that says so; the longest here comes first."""
    lost: tuple[tuple[str, str, int, int, str], ...]
    """Those that need a decision and no run any more, and why: gone, rewritten, removed."""
    problem: str
    """Why not all of the job's files can be seen; "" if they can."""


class Spending(NamedTuple):
    """What a budget has given out: runs and tokens, reserved at an attempt's start and settled at its end."""

    id: str
    account: str
    """job:NAME or tag:NAME."""
    entries: tuple[tuple[int, str, int], ...]
    """When (ms), the run, its tokens; those of the last day."""


class Notice(NamedTuple):
    """Something that somebody is to be told of and has not been: waiting for its next attempt, or given up."""

    id: str
    notice: str
    job: str
    run: str
    on: str
    to: dict[str, Json]
    outcome: str
    reason: str
    at: str
    slots: int
    state: str  # queued | given_up
    queued_seq: int
    attempts: int
    """Those that have failed so far."""
    last_attempt: int
    """Numbers go on where a notice that was given up is tried again."""
    not_before_ms: int
    error: str
    ended_at: str


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
    paused: dict[str, Json]
    """actor, reason, since, drain; empty while runs may start."""


class Seen(NamedTuple):
    """Ids of requests that have been taken, newest last, so that one left twice counts once."""

    id: str
    requests: tuple[str, ...]


class Upgrade(NamedTuple):
    """One run of kind upgrade: what its repositories were found to be, what was decided, how far each has come."""

    id: str
    run: str
    job: str
    probes: dict[str, Json]
    """By repository."""
    integrity: dict[str, Json]
    plan: dict[str, Json]
    """The data of `upgrade.planned`; empty until then."""
    planned_seq: int
    steps: dict[str, Json]
    """Step's run -> what it found."""
    settled: dict[str, Json]
    """By repository: the data of `upgrade.settled`."""


class Gateway(NamedTuple):
    """A process that has engines, and has told of them."""

    id: str
    gateway: str
    number: int
    """Of the latest event it told; they rise."""
    state: str  # running | stopped
    pid: int
    process_started: int
    since: str


class Engine(NamedTuple):
    """An engine process of a gateway, while it lives."""

    id: str
    engine: str
    gateway: str
    model: str
    state: str  # loading | warming | serving | draining
    device: str
    runtime: str
    rung: str
    """How it runs the model: as asked, or as the ladder that out-of-memory climbs says."""
    pid: int
    spawned_at: str
    serving_at: str
    facts: dict[str, Json]


class ServedModel(NamedTuple):
    """A model that gateways serve, and what that has been like."""

    id: str
    model: str
    kind: str
    runtime: str
    path: str
    since: str
    facts: dict[str, Json]
    """Of the latest engine that loaded it."""
    loads: int
    outcomes: dict[str, int]
    """Of its generations: outcome -> how many."""
    tokens: int
    last_at: str
    breaker: dict[str, Json]
    """at, open_ms, failures, words; empty while it is closed."""
    rung: dict[str, Json]
    """at, rung, instead, words; empty while it runs as asked."""
    ended: dict[str, Json]
    """How its latest engine ended: at, why, words, engine."""


class Redacted(NamedTuple):
    """Content that was deleted by a person's wish: an artifact, or with no digest what a run had printed and left."""

    id: str
    run: str
    digest: str
    at: str
    actor: str
    reason: str


class Audit(NamedTuple):
    """The latest audit: up to where everything was read again, and what did not agree."""

    id: str
    seq: int
    hash: str
    at: str
    actor: str
    ok: bool
    records: int
    segments: int
    foreign: int
    compared: dict[str, int]
    findings: tuple[dict[str, Json], ...]
    findings_in_all: int


class RepositoryMemory(NamedTuple):
    """What upgrades of one repository have been like, whichever job asked for them. Counts are of settled cycles."""

    id: str
    key: str
    path: str
    job: str
    """The job that upgraded it last."""
    settled: dict[str, int]
    """Outcome -> how often."""
    attempts: int
    """How often its steps began."""
    recent: tuple[tuple[Json, ...], ...]
    """Oldest first: when (ms), outcome, old commit, new commit, risk as it was estimated, attempted, the step that
    failed, run, reason."""
    last_success_ms: int
    """When it was last upgraded, or found to be at the newest commit; 0: never."""
    last_good: str
    """The commit it was last known to be good at: verified, or come back to; "" if none is known."""
    pre_upgrade: str
    """The commit before the last attempt."""
    hours: dict[str, list[int]]
    """Hour of the week in UTC (0 is Monday from midnight) -> attempts that proved something, and those that failed."""
    files: dict[str, list[int]]
    """Path -> attempts that changed it, and those of them that failed; the ones most often in a failure."""
    bad: dict[str, int]
    """Commit -> how often canary or verify failed there; of the last few."""
    remotes: dict[str, Json]
    """Role -> url; ref, failure and words of the latest probe; and probes: when (ms) and whether it was well, oldest
    first."""
    choice: dict[str, Json]
    """Of the latest plan: role (of the remote), why, at_ms, verdict, reason, risk, new."""
    promotions: tuple[tuple[Json, ...], ...]
    """Oldest first: when (ms), the remote that was chosen before, the one since then, why."""
    priors: dict[str, float]
    """What the latest plan's policy says of how this is to be read: `state.intelligence.Priors`."""


AnyNode: TypeAlias = (
    Job
    | Run
    | Request
    | Lease
    | Decision
    | Rejection
    | Policy
    | Node
    | Seen
    | Spending
    | Redacted
    | Audit
    | Arrivals
    | Notice
    | RepositoryMemory
    | Upgrade
    | Gateway
    | Engine
    | ServedModel
)


def is_container(spec: Mapping[str, Json]) -> bool:
    return spec.get("kind") in CONTAINERS


def _quicken(kind: type) -> None:
    """`_replace`, at a quarter of its price: a replay makes hundreds of thousands of these wide tuples in a second."""
    places = {name: place for place, name in enumerate(kind._fields)}  # type: ignore[attr-defined]
    make = tuple.__new__

    def replace(self: tuple[Any, ...], /, **fields: Any) -> Any:
        values = list(self)
        for name, value in fields.items():
            values[places[name]] = value
        return make(kind, values)

    kind._replace = replace  # type: ignore[attr-defined]


for _kind in get_args(AnyNode):
    _quicken(_kind)

HERE = "node/here"
POLICY = "policy/scheduling"
SEEN = "requests"
AUDIT = "audit/latest"

NOTHING_KNOWN = Node(
    HERE, "", "", 0, "stopped", 0, 0, "", "", "", "", "UTC", "", 0, 0, 0, 0, 0, 0, 0, 0, "", 0, 0, {}, {}
)


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
        case Arrivals():
            yield Edge(node.id, "of", f"job/{node.job}")
        case Notice():
            yield Edge(node.id, "of", f"run/{node.run}" if node.run else f"job/{node.job}")
        case Upgrade():
            yield Edge(node.id, "of", f"run/{node.run}")
        case Engine():
            yield Edge(node.id, "of", f"gateway/{node.gateway}")
            yield Edge(node.id, "uses", f"model/{node.model}")
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
    holding: dict[str, Run] = field(default_factory=dict)  # those of them that hold a grant, by name
    leases: dict[str, Lease] = field(default_factory=dict)  # by key
    requests: dict[str, Request] = field(default_factory=dict)  # unanswered, by request id
    arrivals: dict[str, Arrivals] = field(default_factory=dict)  # by job
    notices: dict[str, Notice] = field(default_factory=dict)  # not delivered, by name
    upgrades: dict[str, Upgrade] = field(default_factory=dict)  # of each job the latest, by run
    memories: dict[str, RepositoryMemory] = field(default_factory=dict)  # of upgrades, by repository
    gateways: dict[str, Gateway] = field(default_factory=dict)  # by name, the oldest first
    engines: dict[str, Engine] = field(default_factory=dict)  # by name
    models: dict[str, ServedModel] = field(default_factory=dict)  # by name
    decisions: list[str] = field(default_factory=list)  # ids of the decisions still in the graph, oldest first
    tripped: set[str] = field(default_factory=set)  # jobs with as many failures in a row as their spec stands
    taken: set[str] = field(default_factory=set)  # the requests that `seen` remembers
    contested: set[str] = field(default_factory=set)  # jobs with several runs of which a later one ends the earlier
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

    @property
    def audit(self) -> Audit | None:
        node = self.nodes.get(AUDIT)
        return node if isinstance(node, Audit) else None

    def redacted(self, name: str) -> Redacted | None:
        """The redaction of an artifact by its digest, or of a run by its name; None while the content may be there."""
        node = self.nodes.get(f"redacted/{name}")
        return node if isinstance(node, Redacted) else None

    def run(self, name: str) -> Run | None:
        node = self.nodes.get(f"run/{name}")
        return node if isinstance(node, Run) else None

    def below(self, run: Run) -> list[Run]:
        """The steps of a run, and theirs, in the order they came."""
        found = []
        for name in run.children:
            if (child := self.run(name)) is not None:
                found += [child, *self.below(child)]
        return found

    def merge(self, patch: GraphPatch, seq: int) -> None:
        """Fold one event's patch in."""
        self.take(patch.put, patch.drop, seq)

    def take(self, put: Iterable[AnyNode], drop: Iterable[str], seq: int) -> None:
        """Put nodes in, then drop those named. The indexes follow the nodes."""
        nodes = self.nodes
        for node in put:
            if type(node) is Seen:
                self._see(node)
            nodes[node[0]] = node
            if isinstance(node, Run):
                self._file(node)
            elif type(node) is Node or type(node) is Seen:
                continue
            elif isinstance(node, Job):
                self.jobs[node.name] = node
                if len(node.active) > 1 and node.spec.get("overlap") in REPLACING:
                    self.contested.add(node.name)
                elif self.contested:
                    self.contested.discard(node.name)
                if node.failures_in_row:
                    bound = node.spec.get("stop_after_failures")
                    tripped = bound and node.failures_in_row >= bound and not node.paused and not node.removed
                    (self.tripped.add if tripped else self.tripped.discard)(node.name)
                elif self.tripped:
                    self.tripped.discard(node.name)
            elif isinstance(node, Lease):
                self.leases[node.key] = node
            elif isinstance(node, Request):
                self.requests[node.request] = node
            elif isinstance(node, Notice):
                self.notices[node.notice] = node
            elif isinstance(node, Arrivals):
                self.arrivals[node.job] = node
            elif isinstance(node, Decision):
                self.decisions.append(node.id)
            elif isinstance(node, Upgrade):
                self.upgrades[node.run] = node
            elif isinstance(node, RepositoryMemory):
                self.memories[node.key] = node
            elif isinstance(node, ServedModel):
                self.models[node.model] = node
            elif isinstance(node, Engine):
                self.engines[node.engine] = node
            elif isinstance(node, Gateway):
                self.gateways[node.gateway] = node
        for name in drop:
            gone = self.nodes.pop(name, None)
            if isinstance(gone, Run):
                self.active.pop(gone.name, None)
                self.holding.pop(gone.name, None)
            elif isinstance(gone, Lease):
                self.leases.pop(gone.key, None)
            elif isinstance(gone, Request):
                self.requests.pop(gone.request, None)
            elif isinstance(gone, Notice):
                self.notices.pop(gone.notice, None)
            elif isinstance(gone, Arrivals):
                self.arrivals.pop(gone.job, None)
            elif isinstance(gone, Decision):
                self.decisions.remove(gone.id)
            elif isinstance(gone, Upgrade):
                self.upgrades.pop(gone.run, None)
            elif isinstance(gone, ServedModel):
                self.models.pop(gone.model, None)
            elif isinstance(gone, Engine):
                self.engines.pop(gone.engine, None)
            elif isinstance(gone, Gateway):
                self.gateways.pop(gone.gateway, None)
        self.seq = seq

    def _see(self, node: Seen) -> None:
        before, now = self.seen.requests, node.requests
        if before and len(now) > 1 and now[-2] == before[-1]:  # One more, as always but for a snapshot.
            self.taken.add(now[-1])
            if len(now) == len(before) and before[0] != now[0]:
                self.taken.discard(before[0])
        else:
            self.taken = set(now)

    def _file(self, run: Run) -> None:
        name, state = run.name, run.state
        if state in OVER:
            self.active.pop(name, None)
            self.holding.pop(name, None)
            return
        self.active[name] = run
        if state in WITH_PROCESS:
            self.holding[name] = run
        elif name in self.holding:
            del self.holding[name]


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
