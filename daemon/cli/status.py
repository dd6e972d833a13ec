"""How it stands: `hermesd status`. Fine only if the loop turns and nothing is stuck, never because a process exists."""

from __future__ import annotations

import shutil
from typing import Any

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.control import CallFailed
from daemon.reading import Reading
from daemon.system import SystemClock
from ledger.instant import Now, ms_of, text_of
from policies.reaction import overdue_ms
from state import views
from state.graph import WITH_PROCESS, Run

Json = Any

FRESH_MS = 120_000
"""The loop turns at least once a minute, for its housekeeping; twice that without a turn, and it hangs."""
STUCK_MS = 60_000
"""Longer than anything that ought to happen at once may take."""
DISK_LOW_PERCENT = 5
_FAILED = ("failed", "timed_out", "lost", "blocked")
_LISTED = 5


def status(call: Call) -> int:
    reading = call.reading
    pulse, silence = None, "no daemon is running"
    try:
        pulse = call.pulse()
    except CallFailed as error:
        silence = f"a daemon is there and its loop does not answer: {error.message}"
    now = SystemClock().now()
    report = _report(reading, pulse, silence, now)
    if call.json:
        show.json(report)
    else:
        _print(report, call.zone, now)
    if pulse is None:
        return Exit.NOT_RUNNING
    return Exit.NO if report["problems"] else Exit.FINE


def _report(reading: Reading, pulse: Json, silence: str, now: Now) -> Json:
    graph, here = reading.graph, reading.graph.here
    problems = (_loop_problems(pulse) if pulse is not None else [silence]) + stuck(reading, now, up=pulse is not None)
    integrity = views.control_plane_integrity(graph)
    problems += [
        f"broken invariant: {row['invariant']}: {', '.join(row['evidence'])}"
        for row in integrity["invariants"]
        if not row["holds"]
    ]
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
            "state": "up" if pulse is not None else here.daemon if here.daemon == "stopped" else "gone",
            "up": pulse is not None,
            "pid": pulse["pid"] if pulse else 0,
            "loop_completed_ms_ago": pulse["loop_completed_ms_ago"] if pulse else None,
            "tick": here.tick,
            "epoch": here.epoch,
            "since": here.since,
            "version": here.version,
            "zone": here.zone,
            "workers": pulse["workers"] if pulse else [],
        },
        "ledger": {"seq": reading.head.seq, "hash": reading.head.hash, "bytes": reading.ledger_bytes()},
        "jobs": {
            "known": len(jobs),
            "enabled": sum(1 for job in jobs if job.spec.get("enabled", True)),
            "failing": sorted(job.name for job in jobs if job.failures_in_row),
        },
        "runs": [
            {"run": run.name, "state": run.state, "since": since(run), "reason": run.reason, "attempt": run.attempt}
            for run in sorted(graph.active.values(), key=lambda run: (run.created_at, run.name))
        ],
        "next": [{"job": name, "utc": text_of(at)} for at, name in sorted(upcoming)[:_LISTED]],
        "failures": [
            {"run": run.name, "state": run.state, "ended_at": run.ended_at, "reason": run.reason}
            for run in reversed(bad[-_LISTED:])
        ],
        "rejected": integrity["rejected"],
        "policy_rejected": integrity["policy_rejected"],
        "integrity": integrity["holds"],
        "disk": {"free_bytes": disk.free, "bytes": disk.total},
    }


def _loop_problems(pulse: Json) -> list[str]:
    problems = []
    late_ms = pulse["loop_completed_ms_ago"]
    if late_ms is None:
        problems.append("the loop has not completed a turn yet")
    elif late_ms > FRESH_MS:
        problems.append(f"the loop has not completed a turn for {show.span(late_ms)}")
    if pulse["view_problem"]:
        problems.append(f"the views in state/ cannot be written: {pulse['view_problem']}")
    return problems


def stuck(reading: Reading, now: Now, *, up: bool) -> list[str]:
    """What ought to have happened by now and has not, each in words. With the daemon down, nothing was to happen."""
    if not up:
        return []
    found = []
    graph, latest_ms = reading.graph, now.wall_ms - STUCK_MS
    for _, run in sorted(graph.active.items()):
        age_ms = now.wall_ms - ms_of(since(run))
        overdue = overdue_ms(run)
        if run.state == "granted" and age_ms > STUCK_MS:
            found.append(f"{run.name} was granted {show.span(age_ms)} ago and has not begun")
        elif run.state in WITH_PROCESS and overdue is not None and overdue + STUCK_MS < now.boot_ms:
            found.append(f"{run.name} should have been stopped {show.span(now.boot_ms - overdue)} ago")
        elif run.state == "stopping" and run.forced and now.boot_ms - run.stopping_boot_ms > STUCK_MS:
            found.append(f"{run.name} was killed and its end has not been seen since")
        elif run.state == "backoff" and run.retry_at_ms < latest_ms:
            found.append(f"the next attempt of {run.name} was due {show.span(now.wall_ms - run.retry_at_ms)} ago")
    for name in reading.agenda.due(latest_ms):
        late_ms = now.wall_ms - (reading.agenda.next_of(name) or now.wall_ms)
        found.append(f"a slot of {name} was due {show.span(late_ms)} ago and has no decision")
    for request in graph.requests.values():
        if request.verb == "start" and ms_of(request.at) < latest_ms:
            age = show.span(now.wall_ms - ms_of(request.at))
            found.append(f"{request.actor} asked {age} ago to start {request.job}, and there is no decision")
    return found


def since(run: Run) -> str:
    """When the run entered the state it is in, as far as the graph remembers."""
    if run.state == "backoff":
        return run.ended_at
    return run.started_at or run.created_at


def _print(report: Json, zone: str, now: Now) -> None:
    daemon = report["daemon"]
    pairs: list[tuple[str, object]] = []
    if daemon["up"]:
        age = show.span(now.wall_ms - ms_of(daemon["since"]))
        turn_ms = daemon["loop_completed_ms_ago"]
        turn = "none yet" if turn_ms is None else f"{show.span(turn_ms)} ago"
        who = f"pid {daemon['pid']}, epoch {daemon['epoch']}"
        pairs.append(("daemon", f"up for {age}, {who}; last turn of the loop {turn}"))
    elif daemon["state"] == "gone":
        pairs.append(
            ("daemon", f"up since {show.moment(daemon['since'], zone)} by its last word, but it does not answer")
        )
    else:
        pairs.append(("daemon", f"down since {show.moment(daemon['since'], zone)}" if daemon["since"] else "never ran"))
    jobs, ledger, disk = report["jobs"], report["ledger"], report["disk"]
    pairs += [
        ("home", report["home"]),
        ("ledger", f"{ledger['seq']} records, {show.size(ledger['bytes'])}"),
        ("disk", f"{show.size(disk['free_bytes'])} free of {show.size(disk['bytes'])}"),
        ("integrity", "every invariant holds" if report["integrity"] else "broken, see below"),
        ("jobs", f"{jobs['known']}, {jobs['enabled']} enabled"),
    ]
    if jobs["failing"]:
        pairs.append(("failing", ", ".join(jobs["failing"])))
    show.facts(pairs)
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
            (row["job"], show.moment(row["utc"], zone), show.span(ms_of(row["utc"]) - now.wall_ms))
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


def problem_text(problem: Json) -> str:
    place = f"{problem['file']}:{problem['line']}:{problem['column']}" if problem["line"] else problem["file"]
    field = f"{problem['field']}: " if problem["field"] else ""
    return f"{place}: {field}{problem['message']}" + (f". {problem['advice']}" if problem["advice"] else "")
