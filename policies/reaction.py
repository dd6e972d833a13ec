"""What follows at once from the facts, by rule and without a choice: timeouts, cancellations, an agent's end.

Each reaction is an event that orders an effect or states a consequence; the loop records them with the facts they
follow from, and asks again until nothing more follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ledger.instant import Now
from ledger.record import Draft
from policies.outcome import judge
from policies.overlap import TERMINATE_OTHER, overlap_of
from policies.upgrade import saga
from state.events import draft
from state.graph import OVER, WITH_PROCESS, Graph, Job, Run, is_container

Json = Any


def react(graph: Graph, now: Now, silent: frozenset[str] = frozenset()) -> list[Draft]:
    """Events that follow from `graph` at `now`. Empty when nothing does. `silent`: runs whose process has ended, while
    what it left is still being looked at; no time runs out for them."""
    follows: list[Draft] = [_pause(graph.jobs[name]) for name in sorted(graph.tripped)]
    cancelled = {r.run: r.actor for r in graph.requests.values() if r.verb == "cancel"}
    for run in _concerned(graph, cancelled):
        parent = graph.run(run.parent) if run.parent else None
        if run.name in cancelled and run.state != "stopping":
            follows.append(_stop(run, "cancel", cancelled[run.name]))
        elif parent is not None and parent.state == "stopping" and run.state != "stopping" and not shielded(run):
            follows.append(_stop(run, "parent", "hermesd"))
        elif not run.parent and run.state != "stopping" and (by := _replaced(graph, run)):
            follows.append(_stop(run, "overlap", "hermesd", force=by == TERMINATE_OTHER))
        elif run.name not in silent and overdue_ms(run) is not None and now.boot_ms >= overdue_ms(run):  # type: ignore[operator]
            why = "timeout" if run.state == "running" else run.stopping_why
            follows.append(stopping(run, why, "hermesd", force=run.state == "stopping"))
        elif is_container(run.spec):
            follows += _of_container(graph, run, now)
    return follows


def shielded(run: Run) -> bool:
    """It is seen through, and the sooner it is over the better."""
    return bool(run.spec.get("shielded"))


def _of_container(graph: Graph, run: Run, now: Now) -> list[Draft]:
    if run.spec["kind"] == "agent":
        ended = _agent_end(graph, run, now) if run.state in ("running", "stopping") else None
        return [] if ended is None else [ended]
    settled, conclusion = saga.conclusions(graph, run)
    if conclusion is None:
        return settled
    if not run.stopping_why:
        return [*settled, finished(run, conclusion.outcome, conclusion.reason)]
    verdict = judge(run, now.wall_ms, code=None, signal_number=None)
    return [*settled, finished(run, verdict.outcome, f"{verdict.reason}; {conclusion.reason}")]


def _concerned(graph: Graph, cancelled: Mapping[str, str]) -> list[Run]:
    """The runs to which something may happen without a report: of those that wait only the few that others end."""
    holding, names = graph.holding, set(cancelled)
    for upgrade in graph.upgrades:
        if (above := graph.active.get(upgrade)) is not None:
            names.update(name for name in above.children if name in graph.active)
    for parent in holding.values():
        if parent.children and parent.state == "stopping":
            names.update(parent.children)
    for job in graph.contested:
        names.update(graph.jobs[job].active)
    if names <= holding.keys():
        return list(holding.values())
    return [run for name, run in graph.active.items() if name in names or name in holding]


def overdue_ms(run: Run) -> int | None:
    """The CLOCK_BOOTTIME instant at which `run` must be stopped, or stopped harder; None if it has no such instant."""
    if run.state == "running" and run.started_boot_ms:
        timeout: int | None = run.spec.get("timeout")
        return run.started_boot_ms + timeout if timeout else None
    if run.state == "stopping" and not run.forced and not is_container(run.spec):
        grace: int = run.spec["grace"]
        return run.stopping_boot_ms + grace
    return None


def stopping(run: Run, why: str, actor: str, *, force: bool = False, **more: Json) -> Draft:
    """`run.stopping`: the order to signal whatever process the run has."""
    data = {"run": run.name, "attempt": run.attempt, "why": why, "actor": actor, "force": force}
    return draft("run.stopping", run.id, data | more)


def _stop(run: Run, why: str, actor: str, *, force: bool = False) -> Draft:
    if run.state in WITH_PROCESS:
        return stopping(run, why, actor, force=force)
    # It waits, or waits for its next attempt: there is nothing to signal.
    because = {"parent": "its agent's run was stopped", "overlap": "a later slot of its job took its place"}
    when = "before its next attempt" if run.state == "backoff" or run.attempt > 1 else "before it began"
    return finished(run, "cancelled", f"was cancelled {when}: {because.get(why, f'{actor} asked for it')}")


def _replaced(graph: Graph, run: Run) -> str:
    """The overlap policy by which a later run of the job takes the place of this one; "" if none does."""
    job = graph.jobs[run.job]
    if not job.active or job.active[-1] == run.name:
        return ""
    overlap = overlap_of(job.spec["overlap"])
    if not overlap.replaces or run.name not in job.active:
        return ""
    later = (graph.active[name] for name in job.active[job.active.index(run.name) + 1 :])
    # A backfill, which has an overlap policy of its own, ends nothing.
    replaced = any(other.rule != "paused" and other.trigger != "backfill" for other in later)
    return overlap.policy if replaced else ""


def _pause(job: Job) -> Draft:
    failed = f"{job.failures_in_row} runs in a row have" if job.failures_in_row > 1 else "a run has"
    reason = f"{failed} failed, and the job says stop_after_failures"
    return draft("job.paused", job.id, {"job": job.name, "actor": "hermesd", "reason": reason})


def finished(run: Run, outcome: str, reason: str, **more: Json) -> Draft:
    """`run.finished`, with nothing observed unless `more` says so."""
    data: dict[str, Json] = {
        "run": run.name,
        "attempt": run.attempt,
        "token": run.token,
        "outcome": outcome,
        "code": None,
        "signal": None,
        "reason": reason,
        "retry_at": None,
        "cpu_ms": None,
        "rss_kib": None,
        "outputs": {},
    }
    return draft("run.finished", run.id, data | more)


def _agent_end(graph: Graph, run: Run, now: Now) -> Draft | None:
    children = [child for name in run.children if (child := graph.run(name)) is not None]
    if any(child.state not in OVER for child in children):
        return None
    if run.state == "stopping":
        verdict = judge(run, now.wall_ms, code=None, signal_number=None)
        return finished(run, verdict.outcome, verdict.reason)
    if len(children) < len(run.spec["steps"]):
        return None
    bad = [child for child in children if child.state != "succeeded"]
    tokens = sum(child.tokens for child in children)
    used = {"tokens": tokens} if tokens else {}
    if not bad:
        steps = f"all {len(children)} steps" if len(children) > 1 else "its only step"
        return finished(run, "succeeded", f"{steps} succeeded", **used)
    first = next((child for child in bad if child.state != "skipped"), bad[0])
    return finished(run, "failed", f"step {first.step} {first.state.replace('_', ' ')}: {first.reason}", **used)
