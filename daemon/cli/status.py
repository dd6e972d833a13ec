"""How it stands: `hermesd status`. Fine only if the loop turns and nothing is stuck, never because a process exists."""

from __future__ import annotations

import shutil
from contextlib import suppress
from typing import Any

from daemon import heartbeat
from daemon.cli import health, show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.control import CallFailed
from daemon.reading import Reading
from daemon.system import SystemClock
from ledger.instant import Now, ms_of, text_of
from state import views

Json = Any

DISK_LOW_PERCENT = 5
_FAILED = ("failed", "timed_out", "lost", "blocked")
_LISTED = 5


def status(call: Call) -> int:
    told = report(call)
    if call.json:
        show.json(told)
    else:
        _print(told, call.zone, SystemClock().now())
    if not told["daemon"]["up"]:
        return Exit.NOT_RUNNING
    return Exit.NO if told["problems"] else Exit.FINE


def report(call: Call) -> Json:
    reading = call.reading
    pulse, silence, state = None, "no daemon is running", reading.graph.here.daemon
    try:
        pulse = call.pulse()
    except CallFailed as error:
        silence, state = f"a daemon is there and its loop does not answer: {error.message}", "silent"
    now = SystemClock().now()
    graph, here = reading.graph, reading.graph.here
    loop = _loop(reading, pulse, now)
    # With no daemon, nothing was to happen.
    found = [*health.ledger_gone(reading), *health.stuck(reading, now)] if pulse is not None else []
    for_a_person = [*health.lost(graph), *health.paused_by_itself(graph)]
    old = list(health.stale(graph, health.freshness(graph), now.wall_ms))
    problems = _loop_problems(pulse, loop) if pulse is not None else [silence]
    problems += [finding.what for finding in [*found, *for_a_person, *old]]
    problems += [f"job {name}: {known.problem}" for name, known in sorted(graph.arrivals.items()) if known.problem]
    integrity = views.control_plane_integrity(graph)
    problems += [
        f"broken invariant: {row['invariant']}: {', '.join(row['evidence'])}"
        for row in integrity["invariants"]
        if not row["holds"]
    ]
    audit = views.runtime_consensus_state(graph)
    if audit["verdict"] == "differs":
        first = audit["findings"][0]
        problems.append(f"the audit at record {audit['audited_seq']}: {first['where']}: {first['what']}")
    disk = shutil.disk_usage(reading.home.path)
    if disk.free * 100 < disk.total * DISK_LOW_PERCENT:
        problems.append(f"little room on the disk: {show.size(disk.free)} of {show.size(disk.total)}")
    jobs = [job for job in graph.jobs.values() if not job.removed]
    upcoming = [(at_ms, job.name) for job in jobs if (at_ms := reading.agenda.next_of(job.name)) is not None]
    bad = sorted((run for run in reading.runs() if run.state in _FAILED), key=lambda run: run.ended_at)
    return {
        "ok": pulse is not None and not problems,
        "problems": problems,
        "home": str(reading.home.path),
        "daemon": {
            "state": "up" if pulse is not None else state if state in ("stopped", "silent") else "gone",
            "up": pulse is not None,
            "pid": pulse["pid"] if pulse else 0,
            "loop_completed_ms_ago": loop["completed_ms_ago"],
            "loop_completed_at": loop["completed_at"],
            "loop_late_ms": loop["late_ms"],
            "paused": here.paused,
            "tick": here.tick,
            "epoch": here.epoch,
            "since": here.since,
            "version": here.version,
            "zone": here.zone,
            "workers": pulse["workers"] if pulse else [],
        },
        "audit": audit | {"trusted_seq": pulse["trusted_seq"] if pulse else 0},
        "ledger": {"seq": reading.head.seq, "hash": reading.head.hash, "bytes": reading.ledger_bytes()},
        "jobs": {
            "known": len(jobs),
            "enabled": sum(1 for job in jobs if job.spec.get("enabled", True)),
            "failing": sorted(job.name for job in jobs if job.failures_in_row),
            "paused": [{"job": job.name, **job.paused} for job in health.paused(graph)],
        },
        "stuck": [finding._asdict() for finding in found],
        "waits_for_a_person": [finding._asdict() for finding in for_a_person],
        "stale": [finding._asdict() for finding in old],
        "notices": [
            {
                "notice": one.notice,
                "job": one.job,
                "run": one.run,
                "on": one.on,
                "state": one.state,
                "at": one.at,
                "failed_attempts": one.attempts,
                "error": one.error,
            }
            for one in sorted(graph.notices.values(), key=lambda one: (one.at, one.notice))
        ],
        "runs": [
            {
                "run": run.name,
                "state": run.state,
                "since": health.run_since(run),
                "reason": run.reason,
                "attempt": run.attempt,
            }
            for run in sorted(graph.active.values(), key=lambda run: (run.created_at, run.name))
        ],
        "next": [
            {"job": name, "utc": text_of(at), "overdue_ms": max(0, now.wall_ms - at)}
            for at, name in sorted(upcoming)[:_LISTED]
        ],
        "failures": [
            {"run": run.name, "state": run.state, "ended_at": run.ended_at, "reason": run.reason}
            for run in reversed(bad[-_LISTED:])
        ],
        "rejected": integrity["rejected"],
        "policy_rejected": integrity["policy_rejected"],
        "integrity": integrity["holds"],
        "disk": {"free_bytes": disk.free, "bytes": disk.total},
    }


def _loop(reading: Reading, pulse: Json, now: Now) -> Json:
    """When the loop last completed a turn, and by how much it is late: as the daemon says it, else as its heartbeat
    does. Nothing where there is none, and no age where the machine has been started anew since."""
    completed_ms, ago_ms = None, None
    if pulse is not None:
        ago_ms = pulse["loop_completed_ms_ago"]
        completed_ms = None if ago_ms is None else now.wall_ms - ago_ms
    else:
        with suppress(ValueError):
            beat = heartbeat.read(reading.home.path)
            if beat is not None:
                completed_ms = beat.wall_ms
                ago_ms = beat.age_ms() if beat.boot_id == SystemClock().boot_id else None
    return {
        "completed_at": "" if completed_ms is None else text_of(completed_ms),
        "completed_ms_ago": ago_ms,
        "late_ms": None if ago_ms is None else max(0, ago_ms - heartbeat.TURN_EVERY_MS),
    }


def _loop_problems(pulse: Json, loop: Json) -> list[str]:
    problems = []
    ago_ms = loop["completed_ms_ago"]
    if ago_ms is None:
        problems.append("the loop has not completed a turn yet")
    elif ago_ms > health.LATE_MS:
        problems.append(f"the loop has not completed a turn for {show.span(ago_ms)}")
    if pulse["view_problem"]:
        problems.append(f"the views in state/ cannot be written: {pulse['view_problem']}")
    problems += pulse["problems"]
    return problems


def _print(report: Json, zone: str, now: Now) -> None:
    daemon = report["daemon"]
    pairs: list[tuple[str, object]] = []
    turn_ms = daemon["loop_completed_ms_ago"]
    late = f", {show.span(daemon['loop_late_ms'])} late" if daemon["loop_late_ms"] else ""
    if daemon["up"]:
        age = f" for {show.span(now.wall_ms - ms_of(daemon['since']))}" if daemon["since"] else ""
        who = f"pid {daemon['pid']}, epoch {daemon['epoch']}"
        pairs.append(("daemon", f"up{age}, {who}"))
    elif daemon["state"] == "silent":
        pairs.append(("daemon", f"up since {show.moment(daemon['since'], zone)}, and does not answer"))
    elif daemon["state"] == "gone":
        pairs.append(("daemon", f"gone without a word; it was up since {show.moment(daemon['since'], zone)}"))
    else:
        pairs.append(("daemon", f"down since {show.moment(daemon['since'], zone)}" if daemon["since"] else "never ran"))
    if daemon["loop_completed_at"]:
        ago = f", {show.span(turn_ms)} ago{late}" if turn_ms is not None else ""
        pairs.append(("loop", f"last completed a turn at {show.moment(daemon['loop_completed_at'], zone)}{ago}"))
    elif daemon["up"]:
        pairs.append(("loop", "has not completed a turn yet"))
    if daemon["paused"]:
        how = "draining" if daemon["paused"].get("drain") else "paused"
        pairs.append((how, _pause(daemon["paused"], zone)))
    jobs, ledger, disk = report["jobs"], report["ledger"], report["disk"]
    pairs += [
        ("home", report["home"]),
        ("ledger", f"{ledger['seq']} records, {show.size(ledger['bytes'])}"),
        ("disk", f"{show.size(disk['free_bytes'])} free of {show.size(disk['bytes'])}"),
        ("integrity", "every invariant holds" if report["integrity"] else "broken, see below"),
        ("audit", _audit(report["audit"], zone)),
        ("jobs", f"{jobs['known']}, {jobs['enabled']} enabled"),
    ]
    if jobs["failing"]:
        pairs.append(("failing", ", ".join(jobs["failing"])))
    show.facts(pairs)
    if jobs["paused"]:
        print()
        rows = [(row["job"], show.moment(row["since"], zone), row["actor"], row["reason"]) for row in jobs["paused"]]
        show.table(("PAUSED", "SINCE", "BY", "REASON"), rows)
    if report["runs"]:
        print()
        rows = [
            (row["run"], row["state"], show.span(max(0, now.wall_ms - ms_of(row["since"]))), row["reason"])
            for row in report["runs"]
        ]
        show.table(("RUN", "STATE", "FOR", "REASON"), rows)
    if report["next"]:
        print()
        coming = [
            (row["job"], show.moment(row["utc"], zone), _until(ms_of(row["utc"]) - now.wall_ms))
            for row in report["next"]
        ]
        show.table(("NEXT", "AT", "IN"), coming)
    if report["failures"]:
        print()
        rows = [
            (row["run"], row["state"].replace("_", " "), show.moment(row["ended_at"], zone), row["reason"])
            for row in report["failures"]
        ]
        show.table(("LAST FAILURES", "STATE", "ENDED", "REASON"), rows)
    if report["notices"]:
        print()
        undelivered = [
            (row["job"], row["on"], row["state"].replace("_", " "), show.moment(row["at"], zone), row["error"])
            for row in report["notices"]
        ]
        show.table(("NOT DELIVERED", "ON", "STATE", "OF", "ERROR"), undelivered)
    if report["rejected"] or report["policy_rejected"]:
        print("\nRejected (the last good version is in force):")
        for source in report["rejected"]:
            for problem in source["problems"]:
                print("  " + problem_text(problem))
        if report["policy_rejected"]:
            print("  " + report["policy_rejected"])
    print()
    if report["ok"]:
        print("ok")
    for problem in report["problems"]:
        print(f"not ok: {problem}")
    for finding in report["waits_for_a_person"]:
        print(f"  do: {finding['do']}")


def _audit(audit: Json, zone: str) -> str:
    trusted = audit["trusted_seq"]
    since = audit.get("audited_seq", 0)
    waits = f"; records up to {trusted} were taken on trust at the start" if trusted > since else ""
    if not since:
        return f"none yet, see `hermesd audit`{waits}"
    found = "all agrees" if audit["verdict"] == "agrees" else f"{show.count(audit['findings_in_all'], 'difference')}"
    return f"{found} up to record {since}, {show.moment(audit['at'], zone)}{waits}"


def _until(ms: int) -> str:
    return show.span(ms) if ms >= 0 else f"overdue by {show.span(-ms)}"


def _pause(paused: Json, zone: str) -> str:
    because = f": {paused['reason']}" if paused["reason"] else ""
    return f"since {show.moment(paused['since'], zone)} by {paused['actor']}{because}"


def problem_text(problem: Json) -> str:
    place = f"{problem['file']}:{problem['line']}:{problem['column']}" if problem["line"] else problem["file"]
    field = f"{problem['field']}: " if problem["field"] else ""
    return f"{place}: {field}{problem['message']}" + (f". {problem['advice']}" if problem["advice"] else "")
