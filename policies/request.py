"""What people may ask of a running daemon, and whether it can be done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ledger.instant import ms_of, text_of
from ledger.record import Draft
from policies import due
from policies.backfill import Impossible, backfill
from policies.survey import run_name
from state import upgrades
from state.events import AuditFinished, IllegalEvent, draft
from state.graph import OVER, Graph, Job, Run

Json = Any
Answer = tuple[Draft | None, Json]


class Declined(Exception):
    """A request that cannot be granted: what is wrong, and what to do."""

    def __init__(self, code: str, message: str, advice: str) -> None:
        super().__init__(message)
        self.code, self.message, self.advice = code, message, advice


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and what it is asked of."""

    graph: Graph
    request: str
    args: Mapping[str, Json]
    actor: str
    wall_ms: int
    spec_at: Callable[[int], Mapping[str, Json]]
    """The spec that the event with this seq defined."""

    @property
    def reason(self) -> str:
        return str(self.args.get("reason", ""))

    @property
    def by(self) -> dict[str, str]:
        return {"request": self.request, "actor": self.actor, "reason": self.reason}

    def job(self) -> Job:
        name = str(self.args.get("job", ""))
        job = self.graph.jobs.get(name)
        if job is None or job.removed:
            known = ", ".join(sorted(n for n, j in self.graph.jobs.items() if not j.removed)) or "none"
            raise Declined("unknown-job", f"there is no job {name!r}", f"the jobs are: {known}")
        return job

    def run(self) -> Run:
        name = str(self.args.get("run", ""))
        run = self.graph.run(name)
        if run is None:
            raise Declined("unknown-run", f"there is no run {name!r}", "`hermesd runs list` shows the runs")
        return run


def accept(
    graph: Graph,
    verb: str,
    request: str,
    args: Mapping[str, Json],
    actor: str,
    wall_ms: int,
    spec_at: Callable[[int], Mapping[str, Json]],
) -> Answer:
    """The event that records the request, and the answer to give once it is durable. No event: it was taken before, or
    things are so already.

    Declined says why not; nothing is recorded then.
    """
    if request in graph.taken:
        return None, {"request": request, "already": True}
    answer = _VERBS.get(verb)
    if answer is None:
        raise Declined("unknown-verb", f"{verb!r} is nothing that can be asked", f"the verbs are {', '.join(_VERBS)}")
    return answer(Asked(graph, request, args, actor, wall_ms, spec_at))


def _start(asked: Asked, retries: str = "") -> Answer:
    job, file = asked.job(), str(asked.args.get("file", ""))
    if "on" in job.spec["schedule"] and not file:
        raise Declined(
            "no-file", f"files start job {job.name!r}, so its run needs one", f"hermesd start {job.name} --file PATH"
        )
    if file and "on" not in job.spec["schedule"] and not retries:
        raise Declined("no-file-wanted", f"job {job.name!r} is not started by files", "leave --file out")
    if file and not file.startswith("/"):
        raise Declined("bad-file", f"{file!r} is no whole path", "give one that begins with /")
    run = run_name(job.name, asked.wall_ms, due.slot_id(job.name, job.digest, asked.wall_ms, asked.request))
    data = {**asked.by, "job": job.name, "run": run} | ({"retries": retries} if retries else {})
    data |= {"file": file} if file else {}
    data |= _undo(asked, job) if asked.args.get("undo") else {}
    return draft("start.requested", job.id, data, id=asked.request), {"run": run, "request": asked.request}


def _undo(asked: Asked, job: Job) -> dict[str, Json]:
    """The spec of a start that only takes the last upgrade of one repository back."""
    key = str(asked.args["undo"])
    keys = [str(repo["key"]) for repo in job.spec.get("repos", ())]
    if key not in keys:
        raise Declined("unknown-repository", f"job {job.name!r} has no repository {key!r}", f"it has {', '.join(keys)}")
    memory = upgrades.memory(asked.graph, key)
    upgraded = [row for row in (memory.recent if memory is not None else ()) if row[1] == "upgraded"]
    if not upgraded:
        raise Declined("never-upgraded", f"{key} has not been upgraded by Hermes", "there is nothing to take back")
    _, _, old, new, *_ = upgraded[-1]
    return {"specs": {str(job.revision): {**job.spec, "undo": {"key": key, "old": old, "new": new}}}}


def _retry(asked: Asked) -> Answer:
    run = asked.run()
    if run.parent:
        raise Declined("step", f"{run.name} is a step of {run.parent}", f"retry the whole: hermesd retry {run.parent}")
    if run.state not in OVER:
        raise Declined("not-over", f"run {run.name} is not over: {run.state}", f"hermesd cancel {run.name} ends it")
    args = {**asked.args, "job": run.job, "file": run.file}
    return _start(replace(asked, args=args), retries=run.name)


def _cancel(asked: Asked) -> Answer:
    backfill_asked = asked.graph.requests.get(str(asked.args.get("run", "")))
    if backfill_asked is not None and backfill_asked.verb == "backfill":
        data = {"request": backfill_asked.request, "actor": asked.actor, "reason": asked.reason}
        event = draft("backfill.cancelled", f"job/{backfill_asked.job}", data, id=asked.request)
        return event, {"request": asked.request, "slots": len(backfill_asked.slots)}
    run = asked.run()
    if run.state in OVER:
        raise Declined("over", f"run {run.name} is over: {run.state}", "there is nothing to cancel")
    event = draft("cancel.requested", run.id, {**asked.by, "run": run.name}, id=asked.request)
    return event, {"run": run.name, "request": asked.request}


def _pause(asked: Asked) -> Answer:
    if asked.args.get("job"):
        job = asked.job()
        if job.paused:
            return None, {"request": asked.request, "job": job.name, "already": True}
        event = draft("job.paused", job.id, {**asked.by, "job": job.name}, id=asked.request)
        return event, {"request": asked.request, "job": job.name}
    return _pause_all(asked, drain=False)


def _drain(asked: Asked) -> Answer:
    return _pause_all(asked, drain=True)


def _pause_all(asked: Asked, *, drain: bool) -> Answer:
    if asked.graph.here.paused and asked.graph.here.paused["drain"] == drain:
        return None, {"request": asked.request, "already": True}
    event = draft("daemon.paused", "daemon", {**asked.by, "drain": drain}, id=asked.request)
    return event, {"request": asked.request, "running": len(asked.graph.active)}


def _resume(asked: Asked) -> Answer:
    if asked.args.get("job"):
        job = asked.job()
        if not job.paused:
            return None, {"request": asked.request, "job": job.name, "already": True}
        event = draft("job.resumed", job.id, {**asked.by, "job": job.name}, id=asked.request)
        return event, {"request": asked.request, "job": job.name}
    if not asked.graph.here.paused:
        return None, {"request": asked.request, "already": True}
    return draft("daemon.resumed", "daemon", asked.by, id=asked.request), {"request": asked.request}


def _backfill(asked: Asked) -> Answer:
    """`from` and `to` are instants as text; slots lie in between, the first included."""
    job, args = asked.job(), asked.args
    overlap = args.get("overlap", "buffer_all")
    if overlap not in ("buffer_all", "allow_all"):
        raise Declined("bad-overlap", f"a backfill cannot have overlap {overlap!r}", "use buffer_all or allow_all")
    try:
        from_ms, until_ms = ms_of(str(args["from"])), min(ms_of(str(args["to"])), asked.wall_ms)
    except (KeyError, ValueError):
        raise Declined("bad-time", "a backfill has from and to", "give both, as 2026-11-21T00:00:00Z") from None
    try:
        found = backfill(job, asked.spec_at, from_ms, until_ms, current_spec=bool(args.get("current_spec")))
    except Impossible as error:
        raise Declined("nothing-to-backfill", error.message, error.advice) from None
    slots = [{"at": text_of(at_ms), "revision": revision} for at_ms, revision in found.slots]
    answer = {"request": asked.request, "job": job.name, "slots": slots}
    if args.get("dry_run"):
        return None, answer
    specs = {str(revision): spec for revision, spec in found.specs.items()}
    data = {**asked.by, "job": job.name, "slots": slots, "specs": specs, "overlap": overlap}
    return draft("backfill.requested", job.id, data, id=asked.request), answer


def _redact(asked: Asked) -> Answer:
    """`elsewhere`: those of the run's digests that runs named which the graph has forgotten. Whoever asks has looked
    through the whole ledger for them, and for the run's own, `digests`, if the graph has forgotten the run, too."""
    name = str(asked.args.get("run", ""))
    if not asked.reason.strip():
        raise Declined("empty", "a redaction has a reason", "say why, with --reason; it is recorded")
    run = asked.graph.run(name)
    if run is not None and run.parent:
        raise Declined("step", f"{name} is a step of {run.parent}", f"redact the whole: hermesd redact {run.parent}")
    if run is not None and run.state not in OVER:
        raise Declined("not-over", f"run {name} is not over: {run.state}", f"hermesd cancel {name} ends it")
    told, elsewhere = asked.args.get("digests", ()), asked.args.get("elsewhere", ())
    if run is None and not told and not asked.args.get("known"):
        raise Declined("unknown-run", f"there is no run {name!r}", "`hermesd runs list` shows the runs")
    steps = asked.graph.below(run) if run is not None else []
    own = {name, *(step.name for step in steps), *(str(step) for step in asked.args.get("runs", ()))}
    digests = {str(digest) for digest in told}
    digests |= {digest for it in (run, *steps) if it is not None for digest in it.artifacts.values()}
    others = (
        node
        for node in asked.graph.nodes.values()
        if isinstance(node, Run) and node.artifacts and node.name not in own and not asked.graph.redacted(node.name)
    )
    named = {digest for other in others for digest in other.artifacts.values()} | {str(it) for it in elsewhere}
    gone, shared = sorted(digests - named), sorted(digests & named)
    data = {**asked.by, "run": name, "runs": sorted(own), "digests": gone, "shared": shared}
    answer = {"request": asked.request, "run": name, "digests": gone, "shared": shared}
    return draft("artifact.redacted", f"run/{name}", data, id=asked.request), answer


def _audit(asked: Asked) -> Answer:
    """What an auditor found. It has read the whole ledger, so that the loop need not."""
    told = {name: value for name, value in asked.args.items() if name in AuditFinished.__annotations__}
    data = {**told, "request": asked.request, "actor": asked.actor}
    try:
        event = draft("audit.finished", "ledger", data, id=asked.request)
    except IllegalEvent as error:
        raise Declined("bad-request", str(error), "run `hermesd audit` of the daemon's version") from None
    return event, {"request": asked.request}


def _renotify(asked: Asked) -> Answer:
    name = str(asked.args.get("notice", ""))
    notice = asked.graph.notices.get(name)
    if notice is None:
        given_up = ", ".join(n.notice for n in asked.graph.notices.values() if n.state == "given_up") or "none"
        what = f"there is no notice {name!r} that was not delivered"
        raise Declined("unknown-notice", what, f"given up are: {given_up}")
    if notice.state == "queued":
        return None, {"request": asked.request, "notice": name, "already": True}
    event = draft("notice.requeued", notice.id, {**asked.by, "notice": name}, id=asked.request)
    return event, {"request": asked.request, "notice": name}


def _note(asked: Asked) -> Answer:
    text = str(asked.args.get("text", ""))
    if not text.strip():
        raise Declined("empty", "a note has some text", "say what should be remembered")
    data = {"request": asked.request, "text": text[:10_000], "actor": asked.actor}
    return draft("note.added", "notes", data, id=asked.request), {"request": asked.request}


_VERBS: dict[str, Callable[[Asked], Answer]] = {
    "start": _start,
    "retry": _retry,
    "cancel": _cancel,
    "pause": _pause,
    "drain": _drain,
    "resume": _resume,
    "backfill": _backfill,
    "redact": _redact,
    "audit": _audit,
    "renotify": _renotify,
    "note": _note,
}
