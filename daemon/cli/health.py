"""What is wrong with a home that runs: a late loop, slots and runs that are stuck, successes that have grown old, runs
that wait for a person. Found from files alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from daemon.cli import show
from daemon.heartbeat import Beat
from daemon.reading import Reading
from ledger.instant import Now, ms_of, text_of
from ledger.reader import FOLDER
from ledger.segment import segments_in
from policies.reaction import overdue_ms
from state.graph import WITH_PROCESS, Graph, Job, Node, Run

Json = Any

STUCK_MS = 60_000
"""Longer than anything that ought to happen at once may take."""
LATE_MS = 120_000
"""The loop turns at least once a minute, for its housekeeping; twice that without a turn, and it hangs."""

Kind = Literal["gone", "late", "damaged", "stuck", "stale", "lost", "paused", "unknown"]


class Finding(NamedTuple):
    kind: Kind
    subject: str
    """A job, a run, a lease; "" if it is about the daemon."""
    what: str
    since: str
    """RFC 3339; "" if nobody knows."""
    do: str


def loop_findings(beat: Beat | None, boot_id: str, late_ms: int, here: Node | None) -> Iterator[Finding]:
    """Whether a daemon lives and its loop turns, by its heartbeat. `here`: what the ledger says of it, if it can be
    read."""
    start = "start it: `hermesd run`, or `hermesd service install` for good"
    if beat is None:
        if here is None:
            yield Finding("gone", "", "no daemon runs: there is no heartbeat", "", start)
        elif not here.since:
            yield Finding("gone", "", "no daemon has ever run here", "", start)
        elif here.daemon == "stopped":
            yield Finding("gone", "", "no daemon runs: it was stopped", here.since, start)
        else:
            yield Finding("gone", "", "no daemon runs: there is no heartbeat of the last one", here.since, start)
    elif not beat.alive(boot_id):
        rebooted = ", and the machine has been started anew" if beat.boot_id != boot_id else ""
        what = f"no daemon runs: pid {beat.pid} is gone without a word{rebooted}"
        yield Finding("gone", "", what, text_of(beat.wall_ms), start)
    elif beat.age_ms() > late_ms:
        what = f"the loop of the daemon (pid {beat.pid}) has not completed a turn for {show.span(beat.age_ms())}"
        do = f"see `hermesd status`; if it hangs, `kill -9 {beat.pid}` and start it again: runs go on, nothing is lost"
        yield Finding("late", "", what, text_of(beat.wall_ms), do)


def ledger_gone(reading: Reading) -> Iterator[Finding]:
    """Of a daemon that lives: whether it writes into files that nobody will find."""
    if not segments_in(reading.disk.list(FOLDER)):
        what = "the ledger was removed while the daemon runs: nothing that it records now is kept"
        yield Finding("damaged", "ledger", what, "", "`hermesd stop`, then put a backup in its place")


def stuck(reading: Reading, now: Now) -> Iterator[Finding]:
    """What a daemon that lives ought to have done by now and has not."""
    graph, latest_ms = reading.graph, now.wall_ms - STUCK_MS
    see = "see `hermesd status` and the daemon's log"
    for name, run in sorted(graph.active.items()):
        age_ms = now.wall_ms - ms_of(run_since(run))
        overdue = overdue_ms(run)
        if run.state == "granted" and age_ms > STUCK_MS:
            what = f"{name} was granted {show.span(age_ms)} ago and has not begun"
            yield Finding("stuck", name, what, run_since(run), see)
        elif run.state in WITH_PROCESS and overdue is not None and overdue + STUCK_MS < now.boot_ms:
            late_ms = now.boot_ms - overdue
            what = f"{name} should have been stopped {show.span(late_ms)} ago"
            yield Finding("stuck", name, what, text_of(now.wall_ms - late_ms), see)
        elif run.state == "stopping" and run.forced and now.boot_ms - run.stopping_boot_ms > STUCK_MS:
            since_ms = now.wall_ms - (now.boot_ms - run.stopping_boot_ms)
            what = f"{name} was killed and its end has not been seen since"
            do = f"a process that no kill ends waits for the disk or a device: `ps -p {run.pid} -o stat,wchan`"
            yield Finding("stuck", name, what, text_of(since_ms), do)
        elif run.state == "backoff" and run.not_before_ms < latest_ms and not graph.here.paused:
            what = f"the next attempt of {name} was due {show.span(now.wall_ms - run.not_before_ms)} ago"
            yield Finding("stuck", name, what, text_of(run.not_before_ms), see)
    if graph.here.paused:
        return  # Nothing is decided while everything is paused; that is told by itself.
    for name in reading.agenda.due(latest_ms):
        at_ms = reading.agenda.next_of(name) or now.wall_ms
        what = f"a slot of {name} was due {show.span(now.wall_ms - at_ms)} ago and has no decision"
        yield Finding("stuck", name, what, text_of(at_ms), see)
    for request in graph.requests.values():
        if request.verb == "start" and ms_of(request.at) < latest_ms:
            age = show.span(now.wall_ms - ms_of(request.at))
            what = f"{request.actor} asked {age} ago to start {request.job}, and there is no decision"
            yield Finding("stuck", request.job, what, request.at, see)


def lost(graph: Graph) -> Iterator[Finding]:
    """Lost runs that wait for a person: nobody has started their job again since, and it has not succeeded since."""
    runs = [node for node in graph.nodes.values() if isinstance(node, Run) and node.state == "lost"]
    for run in sorted(runs, key=lambda run: (run.ended_at, run.name)):
        job = graph.jobs.get(run.job)
        if job is not None and job.last_success_at > run.ended_at:
            continue
        if any(_made_up_for(run, other) for other in graph.nodes.values() if isinstance(other, Run)):
            continue
        do = f"look at what it did (`hermesd runs show {run.name}`); `hermesd retry {run.name}` does it again"
        yield Finding("lost", run.name, f"run {run.name} is lost: {run.reason}", run.ended_at, do)


def _made_up_for(run: Run, other: Run) -> bool:
    asked = other.trigger in ("start", "retry") and other.job == run.job and not other.parent
    return other.retries in (run.name, run.parent or run.name) or (asked and other.created_at > run.ended_at)


def stale(graph: Graph, bounds: Mapping[str, int], wall_ms: int) -> Iterator[Finding]:
    """Jobs with no success within their bound (ms). Of one that has never succeeded, the time counts from its first
    definition. A job that a person has switched off, removed or let expire owes nobody a success."""
    for name, bound_ms in sorted(bounds.items()):
        job = graph.jobs.get(name)
        if job is None or job.removed:
            do = f"correct --fresh {name}=..., or bring the job back"
            yield Finding("unknown", name, f"there is no job {name}, so it cannot have succeeded", "", do)
            continue
        expires = job.spec.get("expires")
        if not job.spec.get("enabled", True) or (expires and ms_of(expires) <= wall_ms):
            continue
        since_ms = ms_of(job.last_success_at) if job.last_success_at else job.revisions[0][1]
        if wall_ms - since_ms > bound_ms:
            last = f"last succeeded {show.span(wall_ms - since_ms)} ago" if job.last_success_at else "never succeeded"
            paused = f"; it is paused by {job.paused['actor']}" if job.paused else ""
            what = f"job {name} {last}, and ought to every {show.span(bound_ms)}{paused}"
            yield Finding("stale", name, what, text_of(since_ms), f"see `hermesd why {name}`")


def freshness(graph: Graph) -> dict[str, int]:
    """The bounds that jobs state for themselves (`fresh: 26h`)."""
    return {job.name: job.spec["fresh"] for job in graph.jobs.values() if not job.removed and job.spec.get("fresh")}


def paused_by_itself(graph: Graph) -> Iterator[Finding]:
    """Jobs that were paused after too many failures: nobody wanted that, and nobody may have noticed."""
    for job in paused(graph):
        if job.paused["actor"] == "hermesd":
            what = f"job {job.name} was paused: {job.paused['reason']}"
            yield Finding("paused", job.name, what, job.paused["since"], f"mend it, then `hermesd resume {job.name}`")


def paused(graph: Graph) -> list[Job]:
    return [job for _, job in sorted(graph.jobs.items()) if job.paused and not job.removed]


def run_since(run: Run) -> str:
    """When the run entered the state it is in, as far as the graph remembers."""
    if run.state == "backoff":
        return run.ended_at
    return run.started_at or run.created_at
