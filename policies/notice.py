"""Whom to tell of what has just happened, and when to try again if that cannot be done.

`due` is asked of every event just before it takes effect, and what it says is recorded together with it: a crash cannot
come between a failure and the wish to tell of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from ledger.instant import text_of
from ledger.record import Draft, Record
from policies.outcome import share
from policies.policy import SchedulingPolicy
from state.events import draft
from state.graph import Graph, Notice
from state.projector import FAILURES

Json = Any

GROWTH = 4
"""Each wait is so many times the one before."""


class _Fact(NamedTuple):
    """What somebody may want to be told of. `on` are the words for it, the one that says most first."""

    job: str
    run: str
    on: tuple[str, ...]
    outcome: str
    reason: str
    at: str
    slots: int = 1


def due(graph: Graph, record: Record, policy: SchedulingPolicy) -> list[Draft]:
    """The events for the notices that follow from `record`, which is about to change `graph`."""
    found = _FACTS.get(record.type)
    if found is None:
        return []
    drafts: list[Draft] = []
    waiting = sum(1 for notice in graph.notices.values() if notice.state == "queued") if graph.notices else 0
    for fact in found(graph, record):
        for channel, wish in enumerate(graph.jobs[fact.job].spec.get("notify", ())):
            on = next((word for word in fact.on if word in wish["on"]), None)
            if on is None:
                continue
            to = {way: wish[way] for way in ("webhook", "command") if wish.get(way) is not None}
            name = _name(graph, record, fact, on, channel)
            data = {
                "notice": name, "job": fact.job, "run": fact.run, "on": on, "channel": channel, "to": to,
                "outcome": fact.outcome, "reason": fact.reason, "at": fact.at, "slots": fact.slots,
            }  # fmt: skip
            drafts.append(draft("notice.queued", f"notice/{name}", data))
            waiting += 1
            if waiting > policy.notices_waiting_max:
                why = f"{policy.notices_waiting_max} others wait to be delivered, and no more may"
                drafts.append(failed(name, 0, why, None))
    return drafts


def failed(notice: str, attempt: int, error: str, retry_at_ms: int | None) -> Draft:
    retry_at = None if retry_at_ms is None else text_of(retry_at_ms)
    data = {"notice": notice, "attempt": attempt, "error": error, "retry_at": retry_at}
    return draft("notice.failed", f"notice/{notice}", data)


def retry_at_ms(notice: Notice, attempt: int, policy: SchedulingPolicy, wall_ms: int) -> int | None:
    """When the attempt after `attempt`, which has failed, is made; None if there is none."""
    if notice.attempts + 1 >= policy.notice_attempts:
        return None
    wait_ms: int = min(policy.notice_max_ms, policy.notice_base_ms * GROWTH ** min(notice.attempts, 30))
    return wall_ms + wait_ms + share(notice.notice, attempt) * wait_ms * policy.retry_jitter_percent // (100 << 32)


def _name(graph: Graph, record: Record, fact: _Fact, on: str, channel: int) -> str:
    """No other notice of any Hermes is called so: the receiver knows by it what it has already."""
    told = "\n".join((graph.here.host, record.ts, str(record.seq), fact.run, str(channel)))
    return f"{fact.job}.{on}.{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def _finished(graph: Graph, record: Record) -> Iterator[_Fact]:
    data = record.data
    run = graph.run(data["run"])
    if run is None or run.parent or data["retry_at"] is not None:
        return  # A step's end is told with its agent's.
    outcome, reason = data["outcome"], data["reason"]
    on: tuple[str, ...] = ("failed",) if outcome in FAILURES else (outcome,)
    since = graph.jobs[run.job].failing_since
    if outcome == "succeeded" and since:
        on, reason = ("recovered", *on), f"{reason}; it had failed since {since}"
    yield _Fact(run.job, run.name, on, outcome, reason, record.ts)


def _decided(graph: Graph, record: Record) -> Iterator[_Fact]:
    for decided in record.data["decisions"]:
        verdict = decided["verdict"]
        if verdict in ("blocked", "missed", "skipped") and "parent" not in decided:
            on = "failed" if verdict == "blocked" else verdict
            reason, slots = decided["reason"], decided.get("count", 1)
            yield _Fact(decided["job"], decided["run"], (on,), verdict, reason, decided["at"], slots)


def _paused(graph: Graph, record: Record) -> Iterator[_Fact]:
    data = record.data
    if data["actor"] == "hermesd":
        yield _Fact(graph.jobs[data["job"]].name, "", ("paused",), "paused", data["reason"], record.ts)


_FACTS = {"run.finished": _finished, "plan.decided": _decided, "job.paused": _paused}
