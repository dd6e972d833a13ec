"""What people may ask of a running daemon, and whether it can be done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ledger.record import Draft
from policies import due
from policies.survey import run_name
from state.events import draft
from state.graph import OVER, Graph

Json = Any


class Declined(Exception):
    """A request that cannot be granted: what is wrong, and what to do."""

    def __init__(self, code: str, message: str, advice: str) -> None:
        super().__init__(message)
        self.code, self.message, self.advice = code, message, advice


def accept(
    graph: Graph, verb: str, request: str, args: Mapping[str, Json], actor: str, wall_ms: int
) -> tuple[Draft | None, Json]:
    """The event that records the request, and the answer to give once it is durable. No event: it was taken before.

    Declined says why not; nothing is recorded then.
    """
    reason = str(args.get("reason", ""))
    if request in graph.seen.requests:
        return None, {"request": request, "already": True}
    if verb == "start":
        name = str(args.get("job", ""))
        job = graph.jobs.get(name)
        if job is None or job.removed:
            known = ", ".join(sorted(n for n, j in graph.jobs.items() if not j.removed)) or "none"
            raise Declined("unknown-job", f"there is no job {name!r}", f"the jobs are: {known}")
        run = run_name(name, wall_ms, due.slot_id(name, job.digest, wall_ms, request))
        data = {"request": request, "job": name, "run": run, "actor": actor, "reason": reason}
        return draft("start.requested", f"job/{name}", data, id=request), {"run": run, "request": request}
    if verb == "cancel":
        name = str(args.get("run", ""))
        node = graph.run(name)
        if node is None:
            raise Declined("unknown-run", f"there is no run {name!r}", "`hermesd runs list` shows the runs")
        if node.state in OVER:
            raise Declined("over", f"run {name} is over: {node.state}", "there is nothing to cancel")
        data = {"request": request, "run": name, "actor": actor, "reason": reason}
        return draft("cancel.requested", f"run/{name}", data, id=request), {"run": name, "request": request}
    if verb == "note":
        text = str(args.get("text", ""))
        if not text.strip():
            raise Declined("empty", "a note has some text", "say what should be remembered")
        data = {"request": request, "text": text[:10_000], "actor": actor}
        return draft("note.added", "notes", data, id=request), {"request": request}
    raise Declined("unknown-verb", f"{verb!r} is nothing that can be asked", "the verbs are start, cancel and note")
