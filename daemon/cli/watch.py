"""A dead-man's check that reads only files: `hermesd watch`, for cron or a timer that is not ours.

It asks no socket, since a daemon that hangs may hold its callers too, and says nothing when all is well, so that cron
mails only what is wrong.
"""

from __future__ import annotations

from typing import Any

from daemon import heartbeat
from daemon.cli import health, show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure, failure_of
from daemon.cli.health import Finding
from daemon.reading import Reading
from daemon.system import SystemClock
from ledger.errors import Corrupt
from ledger.instant import text_of
from policies.quantity import parse_duration
from state.projector import Impossible, Unknown

Json = Any

LATE_LEAST_MS = heartbeat.TURN_EVERY_MS * 3 // 2


def watch(call: Call, *, fresh: list[str], late: str) -> int:
    """NOT_RUNNING: no daemon lives, or its loop is late. NO: anything else was found."""
    bounds, late_ms = _bounds(fresh), parse_duration(late)
    if late_ms < LATE_LEAST_MS:
        least = show.span(LATE_LEAST_MS)
        do = f"an idle loop turns once a minute: give {least} or more"
        raise Failure(Exit.BAD_INPUT, f"--late {late} would cry wolf", do=do)
    call.home.check(write=False)
    found = _look(call, bounds, late_ms)
    down = any(finding.kind in ("gone", "late") for finding in found)
    if call.json:
        at = text_of(SystemClock().now().wall_ms)
        show.json({"ok": not found, "at": at, "findings": [finding._asdict() for finding in found]})
    else:
        for finding in found:
            since = f" since {show.moment(finding.since, call.zone)}" if finding.since else ""
            print(f"{finding.kind}{since}: {finding.what}. {finding.do[:1].upper()}{finding.do[1:]}.")
    return Exit.NOT_RUNNING if down else Exit.NO if found else Exit.FINE


def _look(call: Call, bounds: dict[str, int], late_ms: int) -> list[Finding]:
    clock = SystemClock()
    findings: list[Finding] = []
    # The heartbeat is read first: while a large ledger is read, a loop that is well would look later and later.
    beat, readable = None, True
    try:
        beat = heartbeat.read(call.home.path)
    except ValueError as error:
        readable = False
        do = "remove it: the daemon writes it anew within a minute"
        findings.append(Finding("damaged", heartbeat.FILE, str(error), "", do))
    if beat is not None:
        findings += health.loop_findings(beat, clock.boot_id, late_ms, None)
    reading: Reading | None = call.reading
    try:
        here = reading.graph.here if reading is not None else None
    except (Corrupt, Unknown, Impossible) as error:
        failure = failure_of(error)
        assert failure is not None
        where = f" ({failure.where})" if failure.where else ""
        findings.append(Finding("damaged", "ledger", failure.what + where, "", failure.do))
        reading = here = None
    if beat is None and readable:
        findings += health.loop_findings(None, clock.boot_id, late_ms, here)
    if reading is not None:
        findings += _in_the_graph(reading, bounds, clock, up=beat is not None and not findings)
    return findings


def _in_the_graph(reading: Reading, bounds: dict[str, int], clock: SystemClock, *, up: bool) -> list[Finding]:
    graph, now = reading.graph, clock.now()
    found = [*health.ledger_gone(reading), *health.stuck(reading, now)] if up else []
    found += health.stale(graph, health.freshness(graph) | bounds, now.wall_ms)
    return [*found, *health.lost(graph), *health.paused_by_itself(graph)]


def _bounds(fresh: list[str]) -> dict[str, int]:
    bounds = {}
    for text in fresh:
        job, equals, age = text.partition("=")
        if not job or not equals:
            raise Failure(Exit.BAD_INPUT, f"{text!r} is no bound", do="write JOB=AGE, such as --fresh backup=26h")
        bounds[job] = parse_duration(age)
    return bounds
