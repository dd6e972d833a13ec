"""What each event does to the graph: one exhaustive function, `apply(graph, record) -> GraphPatch`.

Pure: no clock, no chance; the same records give the same graph, on any machine. An event that cannot happen in the
graph as it stands is an error that names it, because either the ledger or this function is then wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ledger.instant import ms_of
from ledger.record import Record
from state import arrivals, engines, upgrades
from state.events import VERSIONS, VOCABULARY
from state.graph import (
    AUDIT,
    HERE,
    OVER,
    POLICY,
    SEEN,
    AnyNode,
    Arrivals,
    Audit,
    Decision,
    Graph,
    GraphPatch,
    Job,
    Lease,
    Node,
    Notice,
    Policy,
    Redacted,
    Rejection,
    Request,
    Run,
    Seen,
    Spending,
    Upgrade,
    is_container,
)
from state.intelligence import Priors
from state.spec import shared
from state.spending import accounts, moved, reserved, returned, settled
from state.upcast import OTHERS, current
from state.upcast import Unknown as Unknown

Json = Any

DECISIONS_KEPT = 100
REQUESTS_REMEMBERED = 1000
RUNS_KEPT_UNTOLD = 50
REVISIONS_REMEMBERED = 1000
GIVEN_UP_KEPT = 20
FAILURES = frozenset({"failed", "timed_out", "lost", "blocked"})


class Impossible(Exception):
    """An event that cannot follow the ones before it."""

    def __init__(self, record: Record, why: str) -> None:
        super().__init__(f"event {record.seq} ({record.type}) cannot happen here: {why}")


class _Change:
    """A patch in the making: reads see what it has put so far, over the graph."""

    __slots__ = ("_drop", "_put", "graph", "record")

    def __init__(self, graph: Graph, record: Record) -> None:
        self.graph = graph
        self.record = record
        self._put: dict[str, AnyNode] = {}
        self._drop: list[str] = []

    def put(self, node: AnyNode) -> None:
        self._put[node[0]] = node

    def drop(self, name: str) -> None:
        self._put.pop(name, None)
        self._drop.append(name)

    def patch(self) -> GraphPatch:
        return GraphPatch(tuple(self._put.values()), tuple(self._drop))

    def here(self) -> Node:
        node = self._put.get(HERE)
        return node if isinstance(node, Node) else self.graph.here

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

    def request(self, name: str) -> Request | None:
        node = self._put.get(f"request/{name}") or self.graph.nodes.get(f"request/{name}")
        return node if isinstance(node, Request) else None

    def arrivals(self, job: str) -> Arrivals:
        node = self._put.get(f"arrivals/{job}") or self.graph.nodes.get(f"arrivals/{job}")
        return node if isinstance(node, Arrivals) else arrivals.none_yet(job)

    def forget_files(self, job: str) -> None:
        """Files do not start this job any more. What waits for a decision still gets one."""
        left = arrivals.unwanted(self.arrivals(job))
        if left.lost:
            self.put(left)
        elif left.id in self.graph.nodes:
            self.drop(left.id)

    def spending(self, account: str) -> Spending:
        node = self._put.get(f"spending/{account}") or self.graph.nodes.get(f"spending/{account}")
        return node if isinstance(node, Spending) else Spending(f"spending/{account}", account, ())

    def notice(self, name: str) -> Notice:
        node = self._put.get(f"notice/{name}") or self.graph.notices.get(name)
        if not isinstance(node, Notice):
            raise Impossible(self.record, f"there is no notice {name!r}")
        return node

    def told(self, run: str, notice: str, state: str) -> None:
        """What has become of a notice about a run, which may have left the graph."""
        node = self.run_or_none(run)
        if node is not None:
            self.put(node._replace(notices={**node.notices, notice: state}))

    def release(self, run: Run) -> None:
        """The leases a run held are free again."""
        for key in run.leases:
            lease = self._put.get(f"lease/{key}") or self.graph.nodes.get(f"lease/{key}")
            if isinstance(lease, Lease) and lease.holder == run.name and not lease.foreign:
                self.drop(lease.id)

    def forget(self, run: Run) -> None:
        """A run leaves the graph with its steps."""
        for child in self.graph.below(run):
            self.drop(child.id)
        if run.name in self.graph.upgrades:
            self.drop(f"upgrade/{run.name}")
        # If it has ended just now, its end stays in the patch: who follows patches must hear that it waits no more.
        self._drop.append(run.id)

    def over(self, run: Run) -> None:
        """A run has reached a state it never leaves: account for it with its job, and forget the oldest of them."""
        self.put(run._replace(spec={}) if run.spec else run)
        self.release(run)
        here = self.here()
        counts = dict(here.counts)
        counts[run.state] = counts.get(run.state, 0) + run.slots
        self.put(here._replace(counts=counts))
        if run.parent:
            return
        job = self.job(run.job)
        ends = "kept" if run.started_at else "unrun"
        kept: tuple[str, ...] = (*getattr(job, ends), run.name)
        bound = job.spec.get("keep", {}).get("runs", RUNS_KEPT_UNTOLD)
        while len(kept) > bound:
            oldest = self.run_or_none(kept[0])
            kept = kept[1:]
            if oldest is not None:
                self.forget(oldest)
        active = () if job.active == (run.name,) else tuple([r for r in job.active if r != run.name])
        change: dict[str, Any] = {"active": active, ends: kept}
        for request in self.graph.requests.values():
            if request.verb == "cancel" and request.run == run.name:
                self.drop(request.id)
        if run.started_at:  # It ran: the slot rules look at such runs only.
            won = run.state == "succeeded"
            change["last_outcome"] = run.state
            how = {"success": run.name} if won else {"failure": run.name} if run.state in FAILURES else {}
            change["finished"] = {**job.finished, **how, "any": run.name}
            if won:
                change["last_success_at"] = run.ended_at
                change["failures_in_row"] = 0
                change["failing_since"] = ""
            elif run.state != "cancelled":
                change["failures_in_row"] = job.failures_in_row + 1
        if run.state in FAILURES:
            change["failing_since"] = job.failing_since or run.ended_at
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
    """What waits for time to pass, a retry or a budget, waits no longer and no shorter because the clock was set."""
    graph, jump_ms = change.graph, data["jump_ms"]
    for run in graph.active.values():
        if run.not_before_ms:
            change.put(run._replace(not_before_ms=run.not_before_ms + jump_ms))
    for notice in graph.notices.values():
        if notice.not_before_ms:
            change.put(notice._replace(not_before_ms=notice.not_before_ms + jump_ms))
    for node in graph.nodes.values():
        if isinstance(node, Spending):
            change.put(moved(node, jump_ms))
    change.put(graph.here._replace(clock_jumps=graph.here.clock_jumps + 1))


def _job_defined(change: _Change, data: Any) -> None:
    record, name, jobs = change.record, data["job"], change.graph.jobs
    now_ms = ms_of(record.ts)
    old = jobs.get(name)
    spec = shared(data["spec"])
    schedule = spec.get("schedule", {})
    # What its dependencies did before it existed was never meant for it.
    consumed = {
        dependency: jobs[dependency].finished.get(schedule["when"], "")
        for dependency in schedule.get("after", ())
        if dependency in jobs
    }
    if old is None:
        change.put(
            Job(
                id=f"job/{name}", name=name, revision=data["revision"], digest=data["digest"], spec=spec,
                source=data["source"], defined_seq=record.seq, cursor_ms=now_ms, consumed=consumed, finished={},
                active=(), kept=(), last_outcome="", last_success_at="", failures_in_row=0, removed=False,
                failing_since="", paused={}, revisions=((data["revision"], now_ms, data["digest"], record.seq),),
            )
        )  # fmt: skip
        return
    if data["revision"] != old.revision + 1:
        raise Impossible(record, f"revision {data['revision']} of job {name!r} follows {old.revision}")
    if "on" not in schedule:
        change.forget_files(name)
    # A new schedule is answerable from now on: its slots of the past were never promised, nor were those of a job that
    # was switched off. The same schedule goes on where it was, so that an edit of something else loses no slot.
    same = not old.removed and old.spec.get("enabled", True) and old.spec.get("schedule") == schedule
    change.put(
        old._replace(
            revision=data["revision"], digest=data["digest"], spec=spec, source=data["source"],
            defined_seq=record.seq, cursor_ms=old.cursor_ms if same else max(old.cursor_ms, now_ms),
            consumed=old.consumed if same else consumed, removed=False,
            revisions=(*old.revisions, (data["revision"], now_ms, data["digest"], record.seq))[-REVISIONS_REMEMBERED:],
        )
    )  # fmt: skip


def _job_removed(change: _Change, data: Any) -> None:
    change.put(change.job(data["job"])._replace(removed=True))
    change.forget_files(data["job"])


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
    for account in accounts(run.job, run.spec, change.graph.policy.values) if not run.parent else ():
        change.put(returned(change.spending(account), run.name))
    change.put(run._replace(state="waiting", reason=reason, rule="lease", leases=()))


def _plan_decided(change: _Change, data: Any) -> None:
    record, graph = change.record, change.graph
    verdicts: dict[str, int] = {}
    tokens = graph.here.tokens
    for decided in data["decisions"]:
        verdict = decided["verdict"]
        verdicts[verdict] = verdicts.get(verdict, 0) + 1
        _decided(change, decided, record)
        if (token := decided.get("token", 0)) > tokens:
            tokens = token
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


_STATES = {"started": "granted", "deferred": "waiting", "buffered": "waiting"}
"""Verdict -> the run's state, where it is not called the same."""


def _in_line(active: tuple[str, ...], name: str, verdict: str, change: _Change) -> tuple[str, ...]:
    """What has begun stands before what waits, whatever their order in the plan: who waits for its turn waits for the
    first."""
    if verdict != "started":
        return (*active, name)
    waiting = [other for other in active if change.run(other).state == "waiting"]
    return (*(other for other in active if other not in waiting), name, *waiting)


def _decided(change: _Change, decided: Any, record: Record) -> None:
    job = change.job(decided["job"])
    name, verdict = decided["run"], decided["verdict"]
    run = change.run_or_none(name)
    if run is None:
        run = _new_run(change, decided, job, record)
        if decided["trigger"] == "on":
            _file_answered(change, decided, job)
    elif run.state in OVER:
        raise Impossible(record, f"run {name!r} is over ({run.state})")
    of_job: dict[str, Any] = {}
    if decided["trigger"] == "schedule":
        settled_ms = ms_of(decided.get("until") or decided["at"])
        if settled_ms > job.cursor_ms:
            of_job["cursor_ms"] = settled_ms
    if "consumes" in decided:
        of_job["consumed"] = {**job.consumed, **decided["consumes"]}
    if "request" in decided:
        _answered(change, decided)
    if not run.parent and name not in job.active:
        of_job["active"] = _in_line(job.active, name, verdict, change)
    change.put(job._replace(**of_job) if of_job else job)
    state = _STATES.get(verdict, verdict)
    not_before = decided.get("not_before")
    of_run: dict[str, Any] = {
        "state": state, "reason": decided["reason"], "rule": decided["rule"], "attempt": decided["attempt"],
        "decided_seq": record.seq, "not_before_ms": ms_of(not_before) if not_before else 0,
    }  # fmt: skip
    if verdict == "started":
        spec, token = run.spec, decided["token"]
        keys = tuple(decided["leases"])
        tokens: int = spec.get("needs", {}).get("tokens", 0)
        of_run.update(token=token, leases=keys, pid=0, process_started=0, tokens=tokens)
        for account in accounts(run.job, spec, change.graph.policy.values) if not run.parent else ():
            change.put(reserved(change.spending(account), ms_of(record.ts), name, tokens))
        if is_container(spec):  # It has no process of its own: its steps have.
            of_run.update(state="running", started_at=record.ts, started_boot_ms=record.mt // 1_000_000)
        if spec.get("kind") == "upgrade":
            _begin_upgrade(change, run)
        for key in keys:
            change.put(Lease(f"lease/{key}", key, name, token, False, record.ts, 0, ""))
    if state in OVER:
        change.over(run._replace(**of_run, ended_at=record.ts))
    else:
        change.put(run._replace(**of_run))


def _file_answered(change: _Change, decided: Any, job: Job) -> None:
    file, lost = decided["file"], decided.get("lost", "")
    known, count = arrivals.answered(change.arrivals(job.name), file, lost)
    if count != decided.get("count", 1):
        raise Impossible(change.record, f"{count} files of job {job.name!r} wait for this decision about {file!r}")
    if known.pending or known.lost or known.seen or known.problem:
        change.put(known)
    else:
        change.drop(known.id)


def _answered(change: _Change, decided: Any) -> None:
    """A request has its decision. Of a backfill only this slot has."""
    request = change.request(decided["request"])
    if request is not None and request.slots:
        settled_ms = ms_of(decided.get("until", decided["at"]))
        slots = tuple(slot for slot in request.slots if slot[0] > settled_ms)
        if slots:
            change.put(request._replace(slots=slots))
            return
    change.drop(f"request/{decided['request']}")


def _new_run(change: _Change, decided: Any, job: Job, record: Record) -> Run:
    spec, parent = job.spec, decided.get("parent", "")
    request = change.request(decided["request"]) if "request" in decided else None
    if request is not None and request.specs:
        spec = request.specs[str(decided["revision"])]
    if parent:
        above = change.run(parent)
        if above.state in OVER:
            raise Impossible(record, f"run {parent!r} is over ({above.state})")
        if "spec" in decided:
            spec = decided["spec"]
        else:
            step = next(step for step in above.spec["steps"] if step["name"] == decided["step"])
            # What the job says of every attempt holds for its steps, which are what an agent's attempts consist of.
            spec = {**step, "retry": above.spec["retry"], "grace": above.spec["grace"]}
        change.put(above._replace(children=(*above.children, decided["run"])))
    return _NEW._replace(
        id=f"run/{decided['run']}", name=decided["run"], job=job.name, slot=decided["slot"], at=decided["at"],
        trigger=decided["trigger"], revision=decided["revision"], spec=spec, parent=parent,
        step=decided.get("step", ""), created_at=record.ts, until=decided.get("until", ""),
        slots=decided.get("count", 1), retries=decided.get("retries", ""), file=decided.get("file", ""),
    )  # fmt: skip


_NEW = Run(
    id="", name="", job="", slot="", at="", trigger="", state="waiting", reason="", rule="", revision=0, spec={},
    parent="", step="", attempt=0, token=0, leases=(), decided_seq=0, created_at="", started_at="", started_boot_ms=0,
    stopping_boot_ms=0, stopping_why="", forced=False, ended_at="", pid=0, process_started=0, code=None, signal=None,
    not_before_ms=0, cpu_ms=None, rss_kib=None, outputs={}, artifacts={}, until="", slots=1, children=(), tokens=0,
    retries="", expected={}, notices={},
)  # fmt: skip
"""What every run has before it has a name. Its empty parts are shared by all, since nothing of a node ever changes."""


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
    reason = run.reason
    if "key" in data:
        reason = f"lease {data['key']} was taken by {data['holder']} while no daemon ran"
    change.put(
        run._replace(
            state="stopping",
            stopping_boot_ms=boot_ms,
            stopping_why=run.stopping_why or data["why"],
            forced=data["force"],
            reason=reason,
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
        spec=run.spec if retry_at else {},
        state="backoff" if retry_at else data["outcome"], reason=data["reason"], rule="outcome", ended_at=record.ts,
        code=data["code"], signal=data["signal"], not_before_ms=ms_of(retry_at) if retry_at else 0,
        cpu_ms=data["cpu_ms"], rss_kib=data["rss_kib"], outputs=data["outputs"], pid=0, process_started=0,
        stopping_boot_ms=0,
        stopping_why="", forced=False,
        # An attempt that could not even be spawned has had its chance; one cancelled while it waited has not.
        started_at=run.started_at or ("" if data["outcome"] == "cancelled" else record.ts),
        tokens=data.get("tokens", run.tokens), expected=data.get("expected", {}),
    )  # fmt: skip
    if ended.tokens != run.tokens:
        for account in accounts(run.job, run.spec, change.graph.policy.values) if not run.parent else ():
            change.put(settled(change.spending(account), run.name, run.tokens, ended.tokens))
    if retry_at:
        change.release(run)
        change.put(ended._replace(leases=()))
    else:
        change.over(ended)


def _run_fenced(change: _Change, data: Any) -> None:
    change.run(data["run"])  # A fenced report changes nothing; it must only be about a run that was.


def _runs_forgotten(change: _Change, data: Any) -> None:
    for name in data["runs"]:
        run = change.run(name)
        if run.state not in OVER or run.parent:
            raise Impossible(change.record, f"run {name!r} is {run.state}" + (", a step" if run.parent else ""))
        job, ends = change.job(run.job), "kept" if run.started_at else "unrun"
        left: dict[str, Any] = {ends: tuple(kept for kept in getattr(job, ends) if kept != name)}
        change.put(job._replace(**left))
        change.forget(run)


def _requested(change: _Change, verb: str, data: Any, job: str, **more: Any) -> None:
    request, record = data["request"], change.record
    run = data.get("run", "")
    node = Request(f"request/{request}", request, verb, job, run, record.ts, data["actor"], data["reason"], **more)
    change.put(node)
    _remember(change, request)


def _start_requested(change: _Change, data: Any) -> None:
    more = {"retries": data.get("retries", ""), "file": data.get("file", ""), "specs": data.get("specs", {})}
    _requested(change, "start", data, data["job"], **more)


def _backfill_requested(change: _Change, data: Any) -> None:
    slots = tuple((ms_of(slot["at"]), slot["revision"]) for slot in data["slots"])
    _requested(
        change, "backfill", data, change.job(data["job"]).name, slots=slots, specs=data["specs"],
        overlap=data["overlap"],
    )  # fmt: skip


def _backfill_cancelled(change: _Change, data: Any) -> None:
    change.drop(f"request/{data['request']}")


def _job_paused(change: _Change, data: Any) -> None:
    change.put(change.job(data["job"])._replace(paused=_pause(change, data)))


def _job_resumed(change: _Change, data: Any) -> None:
    _pause(change, data)
    change.put(change.job(data["job"])._replace(paused={}, failures_in_row=0))


def _daemon_paused(change: _Change, data: Any) -> None:
    change.put(change.graph.here._replace(paused=_pause(change, data) | {"drain": data["drain"]}))


def _daemon_resumed(change: _Change, data: Any) -> None:
    _pause(change, data)
    change.put(change.graph.here._replace(paused={}))


def _pause(change: _Change, data: Any) -> dict[str, Any]:
    if "request" in data:
        _remember(change, data["request"])
    return {"actor": data["actor"], "reason": data["reason"], "since": change.record.ts}


def _files_arrived(change: _Change, data: Any) -> None:
    record, job = change.record, change.job(data["job"])
    change.put(arrivals.arrived(change.arrivals(job.name), data["files"], ms_of(record.ts), record.seq))


def _files_gone(change: _Change, data: Any) -> None:
    change.put(arrivals.gone(change.arrivals(change.job(data["job"]).name), data["paths"]))


def _files_hidden(change: _Change, data: Any) -> None:
    change.put(change.arrivals(change.job(data["job"]).name)._replace(problem=data["problem"]))


def _cancel_requested(change: _Change, data: Any) -> None:
    _requested(change, "cancel", data, change.run(data["run"]).job)


def _artifact_stored(change: _Change, data: Any) -> None:
    if f"redacted/{data['digest']}" in change.graph.nodes:  # The same content has come again, and is there again.
        change.drop(f"redacted/{data['digest']}")
    run = change.run_or_none(data["run"])
    if run is not None:
        change.put(run._replace(artifacts={**run.artifacts, data["name"]: data["digest"]}))


def _artifact_redacted(change: _Change, data: Any) -> None:
    record = change.record
    for run in data["runs"]:
        change.put(Redacted(f"redacted/{run}", run, "", record.ts, data["actor"], data["reason"]))
    for digest in data["digests"]:
        change.put(Redacted(f"redacted/{digest}", data["run"], digest, record.ts, data["actor"], data["reason"]))
    _remember(change, data["request"])


def _audit_finished(change: _Change, data: Any) -> None:
    change.put(
        Audit(
            AUDIT, data["seq"], data["hash"], change.record.ts, data["actor"], data["ok"], data["records"],
            data["segments"], data["foreign"], data["compared"], tuple(data["findings"]), data["findings_in_all"],
        )
    )  # fmt: skip
    _remember(change, data["request"])


def _notice_queued(change: _Change, data: Any) -> None:
    name, record = data["notice"], change.record
    if name in change.graph.notices:
        raise Impossible(record, f"notice {name!r} is queued already")
    change.put(
        Notice(
            id=f"notice/{name}", notice=name, job=data["job"], run=data["run"], on=data["on"], to=data["to"],
            outcome=data["outcome"], reason=data["reason"], at=data["at"], slots=data["slots"], state="queued",
            queued_seq=record.seq, attempts=0, last_attempt=0, not_before_ms=0, error="", ended_at="",
        )
    )  # fmt: skip
    change.told(data["run"], name, "queued")


def _notice_delivered(change: _Change, data: Any) -> None:
    notice = change.notice(data["notice"])
    change.drop(notice.id)
    change.told(notice.run, notice.notice, "delivered")


def _notice_failed(change: _Change, data: Any) -> None:
    notice, retry_at = change.notice(data["notice"]), data["retry_at"]
    failed = notice._replace(
        attempts=notice.attempts + 1, last_attempt=data["attempt"], error=data["error"],
        not_before_ms=ms_of(retry_at) if retry_at else 0,
    )  # fmt: skip
    if retry_at:
        change.put(failed)
        return
    change.put(failed._replace(state="given_up", ended_at=change.record.ts))
    change.told(notice.run, notice.notice, "given_up")
    given_up = [other for other in change.graph.notices.values() if other.state == "given_up"]
    for other in sorted(given_up, key=lambda other: (other.ended_at, other.notice))[: 1 - GIVEN_UP_KEPT]:
        change.drop(other.id)


def _notice_requeued(change: _Change, data: Any) -> None:
    notice = change.notice(data["notice"])
    change.put(notice._replace(state="queued", attempts=0, not_before_ms=0, ended_at=""))
    change.told(notice.run, notice.notice, "queued")
    _remember(change, data["request"])


def _begin_upgrade(change: _Change, run: Run) -> None:
    """Of each job the latest upgrade stands in the graph with all it found; of earlier ones the memory tells."""
    for other in change.graph.upgrades.values():
        if other.job == run.job and other.run not in change.graph.active:
            change.drop(other.id)
    change.put(Upgrade(f"upgrade/{run.name}", run.name, run.job, {}, {}, {}, 0, {}, {}))


def _of_upgrade(change: _Change, data: Any) -> Upgrade:
    name = data["run"]
    node = change.graph.upgrades.get(name)
    if node is None or name not in change.graph.active:
        raise Impossible(change.record, f"no upgrade {name!r} is going on")
    return node


def _upgrade_probed(change: _Change, data: Any) -> None:
    upgrade, key = _of_upgrade(change, data), data["key"]
    if key in upgrade.probes or upgrade.plan:
        raise Impossible(change.record, f"repository {key!r} was probed already, or it is decided without")
    change.put(upgrade._replace(probes={**upgrade.probes, key: data["facts"]}))
    before = upgrades.memory(change.graph, key)
    change.put(upgrades.probed(before, data["facts"], data["job"], ms_of(change.record.ts)))


def _upgrade_checked(change: _Change, data: Any) -> None:
    change.put(_of_upgrade(change, data)._replace(integrity=data["facts"]))


def _upgrade_planned(change: _Change, data: Any) -> None:
    upgrade = _of_upgrade(change, data)
    if upgrade.plan:
        raise Impossible(change.record, f"upgrade {upgrade.run!r} has its plan")
    change.put(upgrade._replace(plan=data, planned_seq=change.record.seq))
    priors, at_ms = Priors.of(data["policy"])._asdict(), ms_of(change.record.ts)
    for row in data["repos"]:
        known, choice = upgrades.memory(change.graph, row["key"]), data["federation"].get(row["key"], {})
        change.put(upgrades.planned(known, row, choice, priors, at_ms))


def _upgrade_stepped(change: _Change, data: Any) -> None:
    upgrade = _of_upgrade(change, data)
    change.put(upgrade._replace(steps={**upgrade.steps, data["by"]: data["facts"]}))


def _upgrade_settled(change: _Change, data: Any) -> None:
    upgrade, key = _of_upgrade(change, data), data["key"]
    if key in upgrade.settled:
        raise Impossible(change.record, f"repository {key!r} is settled: {upgrade.settled[key]['outcome']}")
    change.put(upgrade._replace(settled={**upgrade.settled, key: data}))
    probe = upgrade.probes.get(key) or {}
    files = (upgrades.figures(probe, data["role"])[2] or {}).get("files", ()) if probe else ()
    good = probe.get("base") if data["outcome"] == "unchanged" else None
    change.put(upgrades.settled(upgrades.memory(change.graph, key), data, files, ms_of(change.record.ts), good))


def _gateway_told(change: _Change, data: Any) -> None:
    if engines.told_already(change.graph, data["by"], data["number"]):
        raise Impossible(change.record, f"gateway {data['by']!r} has told number {data['number']} already")
    followed = engines.follow(change.graph, change.record.type, data)
    for node in followed.put:
        change.put(node)
    for name in followed.drop:
        change.drop(name)


def _note_added(change: _Change, data: Any) -> None:
    _remember(change, data["request"])


def _remember(change: _Change, request: str) -> None:
    # Not `(*earlier, request)`, which would take ten times as long.
    change.put(Seen(SEEN, change.graph.seen.requests[1 - REQUESTS_REMEMBERED :] + (request,)))  # noqa: RUF005


_APPLY: dict[str, Callable[[_Change, Any], None]] = {
    "segment.open": _segment_open,
    "ledger.recovered": _ledger_recovered,
    "ledger.cut": _ledger_recovered,
    "ledger.restored": _ledger_recovered,
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
    "runs.forgotten": _runs_forgotten,
    "job.paused": _job_paused,
    "job.resumed": _job_resumed,
    "daemon.paused": _daemon_paused,
    "daemon.resumed": _daemon_resumed,
    "backfill.requested": _backfill_requested,
    "backfill.cancelled": _backfill_cancelled,
    "start.requested": _start_requested,
    "cancel.requested": _cancel_requested,
    "files.arrived": _files_arrived,
    "files.gone": _files_gone,
    "files.hidden": _files_hidden,
    "artifact.stored": _artifact_stored,
    "artifact.redacted": _artifact_redacted,
    "audit.finished": _audit_finished,
    "gateway.started": _gateway_told,
    "gateway.stopped": _gateway_told,
    "model.registered": _gateway_told,
    "model.forgotten": _gateway_told,
    "engine.spawned": _gateway_told,
    "engine.loaded": _gateway_told,
    "engine.warmed": _gateway_told,
    "engine.draining": _gateway_told,
    "engine.ended": _gateway_told,
    "engine.fell": _gateway_told,
    "breaker.opened": _gateway_told,
    "breaker.closed": _gateway_told,
    "generation.finished": _gateway_told,
    "note.added": _note_added,
    "notice.queued": _notice_queued,
    "notice.delivered": _notice_delivered,
    "notice.failed": _notice_failed,
    "notice.requeued": _notice_requeued,
    "upgrade.probed": _upgrade_probed,
    "upgrade.checked": _upgrade_checked,
    "upgrade.planned": _upgrade_planned,
    "upgrade.stepped": _upgrade_stepped,
    "upgrade.settled": _upgrade_settled,
}
assert _APPLY.keys() == VOCABULARY.keys(), "every event of the vocabulary has its effect, and no other"


def apply(graph: Graph, record: Record) -> GraphPatch:
    """What `record` changes in `graph`. The graph is not touched; `Graph.merge` folds the patch in."""
    act = _APPLY.get(record.type)
    if act is None:
        if record.type.startswith(OTHERS):
            return GraphPatch()
        raise Unknown(record)
    if record.tv != VERSIONS.get(record.type, 1):
        record = current(record)
    change = _Change(graph, record)
    act(change, record.data)
    return change.patch()


def fold(graph: Graph, records: Iterable[Record]) -> Graph:
    """Move `graph` by each of `records`, in order: `apply` and `Graph.merge`, without a patch between them."""
    find, take = _APPLY.get, graph.take
    for record in records:
        type_ = record.type
        act = find(type_)
        if act is None or record.tv != 1 or type_ in VERSIONS:
            graph.merge(apply(graph, record), record.seq)
            continue
        change = _Change(graph, record)
        act(change, record.data)
        take(change._put.values(), change._drop, record.seq)
    return graph
