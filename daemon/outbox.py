"""The outbox: what is to be told is in the ledger; this starts the attempts to deliver it, and says how they ended.

Delivery is at least once. An attempt begins only once its notice is durable, and its end counts only once it is;
between them the process may have delivered, and nobody may know. The notice's name goes along for the
receiver to tell by.
"""

from __future__ import annotations

from typing import Any, Protocol

import orjson

from daemon.errand import MARK, Errands, end_of, errand
from daemon.order import Surroundings
from daemon.ports import Ended, Order
from ledger.instant import Now
from ledger.record import Draft
from policies import notice as policy_of_notices
from policies.policy import SchedulingPolicy
from state.events import draft
from state.graph import Graph, Notice

Json = Any

ERROR_CHARACTERS_MAX = 300
TEXT_CHARACTERS_MAX = 1500  # Discord refuses more than 2000.


class Files(Protocol):
    def read(self, run: str, attempt: int, name: str) -> bytes | str: ...


class Outbox:
    def __init__(self, around: Surroundings, errands: Errands, files: Files) -> None:
        self._around, self._errands, self._files = around, errands, files

    def deliver(self, graph: Graph, policy: SchedulingPolicy, now: Now) -> None:
        """Start what is due, the longest due first, and no more at once than the policy says."""
        if graph.notices:
            places = policy.notices_at_once - self._going_on(graph)
            for notice in self._due(graph, now)[: max(0, places)]:
                self._errands.begin(order_of(self._around, graph, notice), now.boot_ms)

    def ended(self, report: Ended, graph: Graph, policy: SchedulingPolicy, now: Now) -> Draft | None:
        """The event for the end of an attempt; None if nobody waits for it any more."""
        notice = graph.notices.get(report.run.removeprefix(MARK))
        if notice is None or notice.state != "queued" or report.attempt != notice.last_attempt + 1:
            return None
        if report.code == 0:
            data = {"notice": notice.notice, "attempt": report.attempt}
            return draft("notice.delivered", notice.id, data)
        told = self._files.read(report.run, report.attempt, "why.txt")
        error = told.decode("utf-8", "replace") if isinstance(told, bytes) else end_of(report)
        error = "".join(character if character.isprintable() else " " for character in error)[:ERROR_CHARACTERS_MAX]
        retry_at_ms = policy_of_notices.retry_at_ms(notice, report.attempt, policy, now.wall_ms)
        return policy_of_notices.failed(notice.notice, report.attempt, error, retry_at_ms)

    def instants(self, graph: Graph, now: Now) -> list[int]:
        """When something is due next (wall clock, ms)."""
        queued = (notice.not_before_ms for notice in graph.notices.values() if notice.state == "queued")
        return [at_ms for at_ms in queued if at_ms > now.wall_ms]

    def _going_on(self, graph: Graph) -> int:
        going = 0
        for name in self._errands.names():
            notice = graph.notices.get(name.removeprefix(MARK))
            going += notice is not None
        return going

    def _due(self, graph: Graph, now: Now) -> list[Notice]:
        found = [
            notice
            for notice in graph.notices.values()
            if notice.state == "queued"
            and notice.not_before_ms <= now.wall_ms
            and self._errands.attempt(MARK + notice.notice) <= notice.last_attempt
        ]
        return sorted(found, key=lambda notice: (notice.not_before_ms, notice.queued_seq))


def order_of(around: Surroundings, graph: Graph, notice: Notice) -> Order:
    body = body_of(graph, notice)
    env = {
        "HERMESD_NOTICE": notice.notice,
        "HERMESD_NOTICE_JOB": notice.job,
        "HERMESD_NOTICE_ON": notice.on,
        "HERMESD_NOTICE_TEXT": body["text"],
        "HERMESD_NOTICE_JSON": orjson.dumps(body).decode(),
        "HERMESD_NOTICE_TO": orjson.dumps(notice.to).decode(),
    }
    return errand(around, MARK + notice.notice, notice.last_attempt + 1, "delivery", env)


def body_of(graph: Graph, notice: Notice) -> dict[str, Json]:
    """What the receiver is told: nothing of the environment, and nothing of what the run has printed."""
    host = graph.here.host
    what = {"paused": "was paused", "missed": "missed its slot", "skipped": "skipped its slot"}.get(
        notice.on, notice.on if notice.outcome == "cancelled" else notice.outcome.replace("_", " ")
    )
    if notice.on == "recovered":
        what = "has recovered"
    if notice.slots > 1:
        what = f"{notice.on} {notice.slots} slots"
    text = "".join(c if c.isprintable() else " " for c in f"{notice.job} {what} on {host}: {notice.reason}")
    text = text[:TEXT_CHARACTERS_MAX]
    return {
        "text": text,
        "content": text,  # Where Slack and those like it look for `text`, Discord looks for this.
        "notice": notice.notice,
        "job": notice.job,
        "run": notice.run,
        "on": notice.on,
        "outcome": notice.outcome,
        "reason": notice.reason[:TEXT_CHARACTERS_MAX],
        "at": notice.at,
        "slots": notice.slots,
        "host": host,
    }
