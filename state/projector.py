"""What each event does to the graph: one exhaustive function, `apply(graph, record) -> GraphPatch`.

Pure: no clock, no chance; the same records give the same graph, on any machine. An event that cannot happen in the
graph as it stands is an error that names it, because either the ledger or this function is then wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ledger.instant import ms_of
from ledger.record import Record
from state.events import VOCABULARY
from state.graph import (
    HERE,
    OVER,
    POLICY,
    SEEN,
    AnyNode,
    Decision,
    Graph,
    GraphPatch,
    Job,
    Lease,
    Node,
    Policy,
    Rejection,
    Request,
    Run,
    Seen,
)

Json = Any

DECISIONS_KEPT = 100
REQUESTS_REMEMBERED = 1000
RUNS_KEPT_UNTOLD = 50


class Impossible(Exception):
    """An event that cannot follow the ones before it."""

    def __init__(self, record: Record, why: str) -> None:
        super().__init__(f"event {record.seq} ({record.type}) cannot happen here: {why}")


class _Change:
    """A patch in the making: reads see what it has put so far, over the graph."""

    def __init__(self, graph: Graph, record: Record) -> None:
        self.graph = graph
        self.record = record
        self._put: dict[str, AnyNode] = {}
        self._drop: list[str] = []

    def put(self, node: AnyNode) -> None:
        self._put[node.id] = node

    def drop(self, name: str) -> None:
        self._put.pop(name, None)
        self._drop.append(name)

    def patch(self) -> GraphPatch:
        return GraphPatch(tuple(self._put.values()), tuple(self._drop))

    def here(self) -> Node:
        node = self._put.get(HERE) or self.graph.here
        assert isinstance(node, Node)
        return node

    def job(self, name: str) -> Job:
        node = self._put.get(f"job/{name}") or self.graph.jobs.get(name)
        if not isinstance(node, Job):
            raise Impossible(self.record, f"job {name!r} was never defined")
        return node

    def run_or_none(self, name: str) -> Run | None:
        node = self._put.get(f"run/{name}") or self.graph.nodes.get(f"run/{name}")
        return node if isinstance(node, Run) else None

    def run(self, name: str) -> Run:
        node = self.run_or_none(name)
        if node is None:
            raise Impossible(self.record, f"there is no run {name!r}")
        return node

    def release(self, run: Run) -> None:
        """The leases a run held are free again."""
        for key in run.leases:
            lease = self._put.get(f"lease/{key}") or self.graph.nodes.get(f"lease/{key}")
            if isinstance(lease, Lease) and lease.holder == run.name and not lease.foreign:
                self.drop(lease.id)

    def over(self, run: Run) -> None:
        """A run has reached a state it never leaves: account for it with its job, and forget the oldest of them."""
        self.put(run._replace(spec={}))
        self.release(run)
        here = self.here()
        counts = dict(here.counts)
        counts[run.state] = counts.get(run.state, 0) + run.slots
        self.put(here._replace(counts=counts))
        if run.parent:
            return
        job = self.job(run.job)
        kept = (*job.kept, run.name)
        bound = job.spec.get("keep", {}).get("runs", RUNS_KEPT_UNTOLD)
        while len(kept) > bound:
            oldest = self.run_or_none(kept[0])
            kept = kept[1:]
            if oldest is not None:
                for child in oldest.children:
                    self.drop(f"run/{child}")
                self.drop(oldest.id)
        change: dict[str, Any] = {"active": tuple(r for r in job.active if r != run.name), "kept": kept}
        if run.started_at:  # It ran: the slot rules look at such runs only.
            won = run.state == "succeeded"
            change["last_outcome"] = run.state
            change["finished"] = {**job.finished, "success" if won else "failure": run.name, "any": run.name}
            if won:
                change["last_success_at"] = run.ended_at
                change["failures_in_row"] = 0
            elif run.state != "cancelled":
                change["failures_in_row"] = job.failures_in_row + 1
        self.put(job._replace(**change))


def _segment_open(change: _Change, data: Any) -> None:
    del change, data  # It names the writer; `daemon.started` says the same to the graph.


def _ledger_recovered(change: _Change, data: Any) -> None:
    del data
    here = change.graph.here
    change.put(here._replace(recoveries=here.recoveries + 1))


def _daemon_started(change: _Change, data: Any) -> None:
    here = change.graph.here
    change.put(
        here._replace(
            host=data["host"],
            boot_id=data["boot_id"],
            epoch=change.record.epoch,
            daemon="running",
            pid=data["pid"],
            process_started=data["process_started"],
            since=change.record.ts,
            version=data["version"],
            code=data["code"],
            python=data["python"],
            zone=data["zone"],
            tzdb=data["tzdb"],
        )
    )


def _daemon_stopped(change: _Change, data: Any) -> None:
    del data
    change.put(change.graph.here._replace(daemon="stopped", pid=0, process_started=0, since=change.record.ts))


def _clock_jumped(change: _Change, data: Any) -> None:
    del data
    here = change.graph.here
    change.put(here._replace(clock_jumps=here.clock_jumps + 1))


def _job_defined(change: _Change, data: Any) -> None:
    record, name, jobs = change.record, data["job"], change.graph.jobs
    now_ms = ms_of(record.ts)
    old = jobs.get(name)
    schedule = data["spec"].get("schedule", {})
    # What its dependencies did before it existed was never meant for it.
    consumed = {
        dependency: jobs[dependency].finished.get(schedule["when"], "")
        for dependency in schedule.get("after", ())
        if dependency in jobs
    }
    if old is None:
        change.put(
            Job(
                id=f"job/{name}", name=name, revision=data["revision"], digest=data["digest"], spec=data["spec"],
                source=data["source"], defined_seq=record.seq, cursor_ms=now_ms, consumed=consumed, finished={},
                active=(), kept=(), last_outcome="", last_success_at="", failures_in_row=0, removed=False,
            )
        )  # fmt: skip
        return
    if data["revision"] != old.revision + 1:
        raise Impossible(record, f"revision {data['revision']} of job {name!r} follows {old.revision}")
    # A new schedule is answerable from now on: its slots of the past were never promised. The same schedule goes on
    # where it was, so that an edit of something else loses no slot.
    same = not old.removed and old.spec.get("schedule") == data["spec"].get("schedule")
    change.put(
        old._replace(
            revision=data["revision"], digest=data["digest"], spec=data["spec"], source=data["source"],
            defined_seq=record.seq, cursor_ms=old.cursor_ms if same else max(old.cursor_ms, now_ms),
            consumed=old.consumed if same else consumed, removed=False,
        )
    )  # fmt: skip


def _job_removed(change: _Change, data: Any) -> None:
    change.put(change.job(data["job"])._replace(removed=True))


def _job_rejected(change: _Change, data: Any) -> None:
    source = data["source"]
    change.put(Rejection(f"rejection/{source}", source, tuple(data["problems"])))


def _job_cleared(change: _Change, data: Any) -> None:
    change.drop(f"rejection/{data['source']}")


def _policy_adopted(change: _Change, data: Any) -> None:
    change.put(Policy(POLICY, data["digest"], data["policy"], ""))


def _policy_rejected(change: _Change, data: Any) -> None:
    change.put(change.graph.policy._replace(rejected=data["message"]))


def _resources_sampled(change: _Change, data: Any) -> None:
    change.put(change.graph.here._replace(**data, sampled_at=change.record.ts))


def _lease_seen(change: _Change, data: Any) -> None:
    key = data["key"]
    change.put(
        Lease(f"lease/{key}", key, data["holder"], 0, True, change.record.ts, data["expires_boot_ms"], data["note"])
    )


def _lease_released(change: _Change, data: Any) -> None:
    lease = change.graph.leases.get(data["key"])
    if lease is not None and lease.foreign:
        change.drop(lease.id)


def _lease_refused(change: _Change, data: Any) -> None:
    run = change.run(data["run"])
    reason = f"lease {data['key']} was taken by {data['holder']} first"
    change.release(run)
    change.put(run._replace(state="waiting", reason=reason, rule="lease", leases=()))


def _plan_decided(change: _Change, data: Any) -> None:
    record, graph = change.record, change.graph
    verdicts: dict[str, int] = {}
    tokens = graph.here.tokens
    for decided in data["decisions"]:
        verdict = decided["verdict"]
        verdicts[verdict] = verdicts.get(verdict, 0) + 1
        _decided(change, decided, record)
        tokens = max(tokens, decided.get("token", 0))
    change.put(change.here()._replace(tick=data["tick"], tokens=tokens))
    change.put(
        Decision(
            f"decision/{record.seq}",
            record.seq,
            data["tick"],
            record.ts,
            data["decision_hash"],
            data["inputs"],
            verdicts,
        )
    )
    if len(graph.decisions) >= DECISIONS_KEPT:
        change.drop(graph.decisions[0])


def _decided(change: _Change, decided: Any, record: Record) -> None:
    job = change.job(decided["job"])
    name, verdict = decided["run"], decided["verdict"]
    run = change.run_or_none(name)
    if run is None:
        run = _new_run(change, decided, job, record)
    elif run.state in OVER:
        raise Impossible(record, f"run {name!r} is over ({run.state})")
    if decided["trigger"] == "schedule":
        cursor = max(job.cursor_ms, ms_of(decided.get("until", decided["at"])))
        job = job._replace(cursor_ms=cursor)
    if "consumes" in decided:
        job = job._replace(consumed={**job.consumed, **decided["consumes"]})
    if "request" in decided:
        change.drop(f"request/{decided['request']}")
    if not run.parent and name not in job.active:
        job = job._replace(active=(*job.active, name))
    change.put(job)
    state = {"started": "granted", "deferred": "waiting"}.get(verdict, verdict)
    run = run._replace(
        state=state, reason=decided["reason"], rule=decided["rule"], attempt=decided["attempt"], decided_seq=record.seq
    )
    if verdict == "started":
        keys = tuple(decided["leases"])
        run = run._replace(token=decided["token"], leases=keys, retry_at_ms=0, pid=0, process_started=0)
        if run.spec.get("kind") == "agent":  # It has no process of its own: its steps have.
            run = run._replace(state="running", started_at=record.ts, started_boot_ms=record.mt // 1_000_000)
        for key in keys:
            change.put(Lease(f"lease/{key}", key, name, decided["token"], False, record.ts, 0, ""))
    change.put(run)
    if state in OVER:
        change.over(run._replace(ended_at=record.ts))


def _new_run(change: _Change, decided: Any, job: Job, record: Record) -> Run:
    spec, parent = job.spec, decided.get("parent", "")
    if parent:
        above = change.run(parent)
        step = next(step for step in above.spec["steps"] if step["name"] == decided["step"])
        # What the job says of every attempt holds for its steps, which are what an agent's attempts consist of.
        spec = {**step, "retry": above.spec["retry"], "grace": above.spec["grace"]}
        change.put(above._replace(children=(*above.children, decided["run"])))
    return Run(
        id=f"run/{decided['run']}", name=decided["run"], job=decided["job"], slot=decided["slot"], at=decided["at"],
        trigger=decided["trigger"], state="waiting", reason="", rule="", revision=decided["revision"], spec=spec,
        parent=parent, step=decided.get("step", ""), attempt=0, token=0, leases=(), decided_seq=0, created_at=record.ts,
        started_at="", started_boot_ms=0, stopping_boot_ms=0, stopping_why="", forced=False, ended_at="", pid=0,
        process_started=0, code=None, signal=None, retry_at_ms=0, cpu_ms=None, rss_kib=None, outputs={}, artifacts={},
        until=decided.get("until", ""), slots=decided.get("count", 1), children=(),
    )  # fmt: skip


def _run_started(change: _Change, data: Any) -> None:
    run, record = change.run(data["run"]), change.record
    if run.token != data["token"]:
        raise Impossible(record, f"run {run.name!r} holds token {run.token}, not {data['token']}")
    # A run that was already being stopped when it was found goes on being stopped.
    state = "stopping" if run.state == "stopping" else "running"
    started: dict[str, Any] = {} if record.type == "run.adopted" and run.started_at else {
        "started_at": run.started_at or record.ts, "started_boot_ms": record.mt // 1_000_000,
    }  # fmt: skip
    change.put(run._replace(state=state, pid=data["pid"], process_started=data["process_started"], **started))


def _run_stopping(change: _Change, data: Any) -> None:
    run, boot_ms = change.run(data["run"]), change.record.mt // 1_000_000
    change.put(
        run._replace(
            state="stopping",
            stopping_boot_ms=boot_ms,
            stopping_why=run.stopping_why or data["why"],
            forced=data["force"],
        )
    )


def _run_finished(change: _Change, data: Any) -> None:
    run, record = change.run(data["run"]), change.record
    if run.state in OVER:
        raise Impossible(record, f"run {run.name!r} is over ({run.state})")
    if run.token != data["token"]:
        raise Impossible(record, f"run {run.name!r} holds token {run.token}, not {data['token']}: fence it")
    retry_at = data["retry_at"]
    ended = run._replace(
        state="backoff" if retry_at else data["outcome"], reason=data["reason"], rule="outcome", ended_at=record.ts,
        code=data["code"], signal=data["signal"], retry_at_ms=ms_of(retry_at) if retry_at else 0, cpu_ms=data["cpu_ms"],
        rss_kib=data["rss_kib"], outputs=data["outputs"], pid=0, process_started=0, stopping_boot_ms=0,
        stopping_why="", forced=False,
        # An attempt that could not even be spawned has had its chance; one cancelled while it waited has not.
        started_at=run.started_at or ("" if data["outcome"] == "cancelled" else record.ts),
    )  # fmt: skip
    if retry_at:
        change.release(run)
        change.put(ended._replace(leases=()))
    else:
        change.over(ended)
    for request in change.graph.requests.values():
        if request.verb == "cancel" and request.run == run.name and not retry_at:
            change.drop(request.id)


def _run_fenced(change: _Change, data: Any) -> None:
    change.run(data["run"])  # A fenced report changes nothing; it must only be about a run that was.


def _requested(change: _Change, verb: str, data: Any, job: str) -> None:
    request, record = data["request"], change.record
    change.put(Request(f"request/{request}", request, verb, job, data["run"], record.ts, data["actor"], data["reason"]))
    _remember(change, request)


def _start_requested(change: _Change, data: Any) -> None:
    _requested(change, "start", data, data["job"])


def _cancel_requested(change: _Change, data: Any) -> None:
    _requested(change, "cancel", data, change.run(data["run"]).job)


def _artifact_stored(change: _Change, data: Any) -> None:
    run = change.run_or_none(data["run"])
    if run is not None:
        change.put(run._replace(artifacts={**run.artifacts, data["name"]: data["digest"]}))


def _note_added(change: _Change, data: Any) -> None:
    _remember(change, data["request"])


def _remember(change: _Change, request: str) -> None:
    seen = (*change.graph.seen.requests, request)[-REQUESTS_REMEMBERED:]
    change.put(Seen(SEEN, seen))


_APPLY: dict[str, Callable[[_Change, Any], None]] = {
    "segment.open": _segment_open,
    "ledger.recovered": _ledger_recovered,
    "daemon.started": _daemon_started,
    "daemon.stopped": _daemon_stopped,
    "clock.jumped": _clock_jumped,
    "job.defined": _job_defined,
    "job.changed": _job_defined,
    "job.removed": _job_removed,
    "job.rejected": _job_rejected,
    "job.cleared": _job_cleared,
    "policy.adopted": _policy_adopted,
    "policy.rejected": _policy_rejected,
    "resources.sampled": _resources_sampled,
    "lease.seen": _lease_seen,
    "lease.released": _lease_released,
    "lease.refused": _lease_refused,
    "plan.decided": _plan_decided,
    "run.started": _run_started,
    "run.adopted": _run_started,
    "run.stopping": _run_stopping,
    "run.finished": _run_finished,
    "run.fenced": _run_fenced,
    "start.requested": _start_requested,
    "cancel.requested": _cancel_requested,
    "artifact.stored": _artifact_stored,
    "note.added": _note_added,
}
assert _APPLY.keys() == VOCABULARY.keys(), "every event of the vocabulary has its effect, and no other"


class Unknown(Exception):
    """A core event type this version does not know: the ledger was written by a newer Hermes."""

    def __init__(self, record: Record) -> None:
        super().__init__(
            f"event {record.seq} has type {record.type!r} (version {record.tv}), which this Hermes does not"
            " know; read this home with the version that wrote it, or a newer one"
        )


def apply(graph: Graph, record: Record) -> GraphPatch:
    """What `record` changes in `graph`. The graph is not touched; `Graph.merge` folds the patch in."""
    act = _APPLY.get(record.type)
    if act is None or record.tv != 1:
        if record.type.startswith("x-"):
            return GraphPatch()
        raise Unknown(record)
    change = _Change(graph, record)
    act(change, record.data)
    return change.patch()


def fold(graph: Graph, records: Iterable[Record]) -> Graph:
    """Move `graph` by each of `records`, in order."""
    for record in records:
        graph.merge(apply(graph, record), record.seq)
    return graph
