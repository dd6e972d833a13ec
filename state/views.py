"""The views in `state/*.json`: what people and programs read of the graph.

Each is a pure function of the graph, stamped with the ledger head it was made from; the same head gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from ledger.chain import Head
from ledger.disk import Disk, write_atomically
from ledger.instant import text_of
from state import upgrade_views
from state.graph import (
    OVER,
    WITH_PROCESS,
    Decision,
    Graph,
    Lease,
    Rejection,
    Run,
    Spending,
    is_container,
    snapshot,
)

Json = Any

FOLDER = "state"
NOTICES_SHOWN = 100
_LAID_OUT = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
RUNS_SHOWN = 1000
"""`runs.json` shows every run that is not over and so many of those that are; the ledger has them all."""


def _job_rows(graph: Graph) -> list[Json]:
    rows = []
    for _, job in sorted(graph.jobs.items()):
        if job.removed and not job.active:
            continue
        rows.append(
            {
                "job": job.name,
                "kind": job.spec["kind"],
                "schedule": job.spec["schedule"],
                "enabled": job.spec.get("enabled", True),
                "removed": job.removed,
                "priority": job.spec.get("priority"),
                "revision": job.revision,
                "digest": job.digest,
                "source": job.source,
                "accounted_until": text_of(job.cursor_ms),
                "active": list(job.active),
                "last_run": job.kept[-1] if job.kept else "",
                "last_outcome": job.last_outcome,
                "last_success_at": job.last_success_at,
                "failures_in_row": job.failures_in_row,
                "failing_since": job.failing_since,
                "paused": job.paused,
            }
            | _files(graph, job.name)
        )
    return rows


def _files(graph: Graph, job: str) -> dict[str, Json]:
    known = graph.arrivals.get(job)
    if known is None:
        return {}
    return {"files": {"there": len(known.seen), "waiting": len(known.pending), "problem": known.problem}}


def _run_row(run: Run) -> dict[str, Json]:
    row: dict[str, Json] = {
        "run": run.name,
        "job": run.job,
        "slot": run.slot,
        "at": run.at,
        "trigger": run.trigger,
        "state": run.state,
        "reason": run.reason,
        "rule": run.rule,
        "attempt": run.attempt,
        "revision": run.revision,
        "decided_seq": run.decided_seq,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
    }
    if run.state in WITH_PROCESS:
        row |= {"pid": run.pid, "process_started": run.process_started, "token": run.token, "leases": list(run.leases)}
    if run.state in OVER:
        row |= {"code": run.code, "signal": run.signal, "cpu_ms": run.cpu_ms, "rss_kib": run.rss_kib}
    if run.state == "backoff":
        row["retry_at"] = text_of(run.not_before_ms)
    elif run.not_before_ms and run.state == "waiting":
        row["not_before"] = text_of(run.not_before_ms)
    if run.file:
        row["file"] = run.file
    if run.retries:
        row["retries"] = run.retries
    if run.tokens:
        row["tokens"] = run.tokens
    if run.parent:
        row |= {"parent": run.parent, "step": run.step}
    if run.outputs:
        row["outputs"] = run.outputs
    if run.artifacts:
        row["artifacts"] = run.artifacts
    if run.expected:
        row["expected"] = run.expected
    if run.notices:
        row["notices"] = run.notices
    if run.slots > 1:
        row |= {"until": run.until, "slots": run.slots}
    return row


def _all_runs(graph: Graph) -> list[Run]:
    runs = [node for node in graph.nodes.values() if isinstance(node, Run)]
    return sorted(runs, key=_newest, reverse=True)


def _newest(run: Run) -> tuple[str, str]:
    return (run.created_at, run.name)


def jobs(graph: Graph) -> Json:
    return {"jobs": _job_rows(graph), "rejected": _rejections(graph)}


def runs(graph: Graph) -> Json:
    found = _all_runs(graph)
    ended = [run for run in found if run.state in OVER][:RUNS_SHOWN]
    shown = sorted([*graph.active.values(), *ended], key=_newest, reverse=True)
    return {"runs": [_run_row(run) for run in shown], "ended_not_shown": len(found) - len(shown)}


def coordination_leases(graph: Graph) -> Json:
    return {
        "leases": [
            {
                "key": lease.key,
                "holder": lease.holder,
                "token": lease.token,
                "foreign": lease.foreign,
                "since": lease.since,
                "note": lease.note,
            }
            for _, lease in sorted(graph.leases.items())
        ]
    }


def agent_coordination_state(graph: Graph) -> Json:
    agents = []
    for run in _all_runs(graph):
        if run.children:
            steps = [child for name in run.children if (child := graph.run(name)) is not None]
            agents.append(
                {
                    "run": run.name,
                    "job": run.job,
                    "state": run.state,
                    "reason": run.reason,
                    "steps": [
                        {"step": s.step, "run": s.name, "state": s.state, "reason": s.reason, "attempt": s.attempt}
                        for s in steps
                    ],
                }
            )
    waiting = [
        {"run": run.name, "job": run.job, "rule": run.rule, "reason": run.reason, "since": run.created_at}
        for _, run in sorted(graph.active.items())
        if run.state in ("waiting", "backoff")
    ]
    return {"agents": agents, "waiting": waiting}


def global_orchestration_plan(graph: Graph) -> Json:
    decisions = []
    for name in reversed(graph.decisions):
        node = graph.nodes[name]
        assert isinstance(node, Decision)
        decisions.append(
            {
                "seq": node.seq,
                "tick": node.tick,
                "at": node.at,
                "decision_hash": node.hash,
                "inputs": node.inputs,
                "verdicts": node.verdicts,
            }
        )
    active = [
        {"run": run.name, "state": run.state, "rule": run.rule, "decided_seq": run.decided_seq}
        for _, run in sorted(graph.active.items())
    ]
    return {"policy": graph.policy.digest, "active": active, "decisions": decisions}


def _reserved(graph: Graph) -> dict[str, Json]:
    total = {"cpu": 0.0, "memory_bytes": 0, "gpu_memory_bytes": 0, "places": 0}
    for run in graph.active.values():
        if run.state in WITH_PROCESS and not is_container(run.spec):
            needs = run.spec.get("needs", {})
            total["cpu"] += needs.get("cpu", 0)
            total["memory_bytes"] += needs.get("memory", 0)
            total["gpu_memory_bytes"] += needs.get("gpu_memory", 0)
            total["places"] += 1
    return total


def runtime_resource_state(graph: Graph) -> Json:
    here = graph.here
    return {
        "capacity": {
            "cpu": here.cpus,
            "memory_bytes": here.memory_bytes,
            "gpu_memory_bytes": here.gpu_memory_bytes,
            "places": graph.policy.values.get("max_running", 0),
        },
        "reserved": _reserved(graph),
        "spent": [
            {"account": node.account, "runs": len(node.entries), "tokens": sum(entry[2] for entry in node.entries)}
            for node in sorted(
                (node for node in graph.nodes.values() if isinstance(node, Spending)), key=lambda node: node.account
            )
        ],
    }


def runtime_resource_telemetry(graph: Graph) -> Json:
    here = graph.here
    return {
        "sampled_at": here.sampled_at,
        "memory_free_bytes": here.memory_free_bytes,
        "disk_bytes": here.disk_bytes,
        "disk_free_bytes": here.disk_free_bytes,
        "runs": [
            {"run": run.name, "attempt": run.attempt, "cpu_ms": run.cpu_ms, "rss_kib": run.rss_kib}
            for run in _all_runs(graph)
            if run.cpu_ms is not None
        ],
    }


def runtime_topology_graph(graph: Graph) -> Json:
    shot = snapshot(graph, Head(0, ""))
    return {
        "nodes": [
            {"id": node.id, "kind": type(node).__name__.lower()}
            | ({"state": node.state} if isinstance(node, Run) else {})
            for node in shot.nodes
        ],
        "edges": [[edge.source, edge.kind, edge.target] for edge in shot.edges],
    }


def _rejections(graph: Graph) -> list[Json]:
    found = [node for node in graph.nodes.values() if isinstance(node, Rejection)]
    return [
        {"source": node.source, "problems": list(node.problems)} for node in sorted(found, key=lambda node: node.source)
    ]


def _invariants(graph: Graph) -> list[tuple[str, list[str]]]:
    """Each named invariant with what speaks against it; nothing when it holds."""
    holding = [run for run in graph.active.values() if run.state in WITH_PROCESS]
    return [
        (
            "a granted reservation has a matching active lease",
            [
                f"{run.name}: {key}"
                for run in holding
                for key in run.leases
                if not (isinstance(lease := graph.leases.get(key), Lease) and lease.holder == run.name)
            ],
        ),
        (
            "an active lease of ours belongs to a run that holds it",
            [
                lease.key
                for lease in graph.leases.values()
                if not lease.foreign and not any(r.name == lease.holder and lease.key in r.leases for r in holding)
            ],
        ),
        (
            "fencing tokens are unique among the runs that hold one",
            [run.name for run in holding if sum(1 for other in holding if other.token == run.token) > 1],
        ),
        (
            "a job that does not overlap has at most one run that has begun and is not over",
            [
                job.name
                for job in graph.jobs.values()
                if len(job.active) > 1
                and job.spec.get("overlap") != "allow_all"
                and sum(
                    1
                    for name in job.active
                    if (run := graph.active.get(name)) is not None
                    and run.state != "waiting"
                    and run.trigger != "backfill"
                    and run.spec.get("overlap") != "allow_all"  # As it was when the run began.
                )
                > 1
            ],
        ),
        (
            "a run that is not over belongs to a job that lists it",
            [
                run.name
                for run in graph.active.values()
                if not run.parent and run.name not in graph.jobs[run.job].active
            ],
        ),
    ]


def control_plane_integrity(graph: Graph) -> Json:
    invariants = [
        {"invariant": name, "holds": not against, "evidence": sorted(against)} for name, against in _invariants(graph)
    ]
    return {
        "holds": all(row["holds"] for row in invariants),
        "invariants": invariants,
        "recoveries": graph.here.recoveries,
        "clock_jumps": graph.here.clock_jumps,
        "policy_rejected": graph.policy.rejected,
        "rejected": _rejections(graph),
    }


def notices(graph: Graph) -> Json:
    """What somebody is still to be told, and what was given up, each by the instant it is about."""
    found = sorted(graph.notices.values(), key=lambda notice: (notice.at, notice.notice))
    rows = [
        {
            "notice": notice.notice,
            "job": notice.job,
            "run": notice.run,
            "on": notice.on,
            "by": "webhook" if "webhook" in notice.to else "command",
            "state": notice.state,
            "at": notice.at,
            "attempts": notice.attempts,
            "next_at": text_of(notice.not_before_ms) if notice.not_before_ms else "",
            "ended_at": notice.ended_at,
            "error": notice.error,
        }
        for notice in found
    ]
    waiting = [row for row in rows if row["state"] == "queued"]
    given_up = [row for row in rows if row["state"] == "given_up"]
    return {"waiting": waiting[:NOTICES_SHOWN], "waiting_in_all": len(waiting), "given_up": given_up}


def live_runtime_control_plane(graph: Graph) -> Json:
    here = graph.here
    states: dict[str, int] = {}
    for run in graph.active.values():
        states[run.state] = states.get(run.state, 0) + 1
    return {
        "daemon": {
            "state": here.daemon,
            "since": here.since,
            "pid": here.pid,
            "process_started": here.process_started,
            "epoch": here.epoch,
            "host": here.host,
            "boot_id": here.boot_id,
            "version": here.version,
            "python": here.python,
            "zone": here.zone,
            "tzdb": here.tzdb,
            "code": here.code,
        },
        "tick": here.tick,
        "paused": here.paused,
        "jobs": sum(1 for job in graph.jobs.values() if not job.removed),
        "active": states,
        "ended": here.counts,
        "leases": len(graph.leases),
        "rejected": len(_rejections(graph)),
        "notices": notices(graph),
    }


def runtime_consensus_state(graph: Graph) -> Json:
    """Whether everything that is derived agrees with the ledger, as of the latest audit."""
    audit = graph.audit
    if audit is None:
        return {"verdict": "never audited"}
    return {
        "verdict": "agrees" if audit.ok else "differs",
        "audited_seq": audit.seq,
        "audited_hash": audit.hash,
        "at": audit.at,
        "actor": audit.actor,
        "records": audit.records,
        "segments": audit.segments,
        "foreign": audit.foreign,
        "compared": audit.compared,
        "findings": list(audit.findings),
        "findings_in_all": audit.findings_in_all,
    }


def engines(graph: Graph) -> Json:
    """What the gateway's engines are, and what serving each model has been like."""
    gateway = next((each for each in graph.gateways.values() if each.state == "running"), None)
    return {
        "gateway": {} if gateway is None else gateway._asdict(),
        "engines": [engine._asdict() for _, engine in sorted(graph.engines.items())],
        "models": [model._asdict() for _, model in sorted(graph.models.items())],
    }


VIEWS: Mapping[str, Callable[[Graph], Json]] = {
    view.__name__: view
    for view in (
        jobs,
        runs,
        coordination_leases,
        agent_coordination_state,
        global_orchestration_plan,
        runtime_resource_state,
        runtime_resource_telemetry,
        runtime_topology_graph,
        runtime_consensus_state,
        control_plane_integrity,
        live_runtime_control_plane,
    )
}


SOMETIMES: Mapping[str, tuple[Callable[[Graph], bool], Callable[[Graph], Json]]] = {
    "engines": (lambda graph: bool(graph.gateways), engines),
    **{name: (upgrade_views.wanted, view) for name, view in upgrade_views.VIEWS.items()},
}
"""Views with no file until there has been something to show in them: when that is, and the view."""


def known() -> list[str]:
    """The names of all views there may be."""
    return sorted({*VIEWS, *SOMETIMES, upgrade_views.HISTORY})


def file_of(name: str) -> str:
    """The file of a view, in `state/`."""
    return f"{name}.jsonl" if name == upgrade_views.HISTORY else f"{name}.json"


def head_in(data: bytes) -> Head | None:
    """The record that a view was made from, as its bytes tell it; None if they do not. A history's first line does."""
    try:
        told = orjson.loads(data if data.startswith(b"{\n") else data.partition(b"\n")[0])["head"]
        return Head(int(told["seq"]), str(told["hash"]))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None


def render(graph: Graph, head: Head) -> dict[str, bytes]:
    """File name -> bytes, for every view that there is something to show in."""
    return dict(_rendered(graph, head))


def _rendered(graph: Graph, head: Head) -> Iterator[tuple[str, bytes]]:
    """One after another, since those of a large graph take up more than the graph."""
    made = {**VIEWS, **{name: view for name, (there, view) in SOMETIMES.items() if there(graph)}}
    stamp, upgrades = {"seq": head.seq, "hash": head.hash}, upgrade_views.wanted(graph)
    for name, view in made.items():
        told = {"view": name, "head": stamp, **view(graph)}
        if upgrades and name in upgrade_views.ADDED:
            field, more = upgrade_views.ADDED[name]
            told[field] = more(graph)
        yield file_of(name), orjson.dumps(told, option=_LAID_OUT)
    if upgrades:
        lines = [{"view": upgrade_views.HISTORY, "head": stamp}, *upgrade_views.history(graph)]
        told_lines = (orjson.dumps(line, option=orjson.OPT_SORT_KEYS) + b"\n" for line in lines)
        yield file_of(upgrade_views.HISTORY), b"".join(told_lines)


def publish(disk: Disk, graph: Graph, head: Head) -> None:
    """Write every view; a reader sees whole files only. Not made durable: replay gives them back."""
    disk.make_folder(FOLDER)
    for name, data in _rendered(graph, head):
        write_atomically(disk, f"{FOLDER}/{name}", data, durable=False)
