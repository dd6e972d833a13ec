"""What a question is about: which runs could start, in which order, and what the slot rules settle before admission.

Slot rules: a slot noticed within `late_after_ms` is on time; older ones are missed and the job's policy decides about
them; a job that may not overlap starts nothing while a run of its own is not over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ledger.instant import ms_of, text_of
from policies import due
from policies.question import DueJob, Question
from state.graph import OVER, Run

Json = Any


class Candidate(NamedTuple):
    """A run, or the next attempt of one, that starts now if it is admitted."""

    run: str
    job: str
    slot: str
    at: str
    trigger: str
    revision: int
    attempt: int
    spec: Mapping[str, Json]  # of a step: the step's own part
    depth: int
    priority: int
    risk_score: int
    rule: str  # the rule it waits by so far; "" if it is new
    parent: str = ""
    step: str = ""
    request: str = ""
    consumes: Mapping[str, str] | None = None

    def order(self) -> tuple[int, int, int, str, int, str]:
        """The total order of a plan: dependency depth, priority, risk score, name; then slot and run."""
        return (self.depth, -self.priority, self.risk_score, self.job, ms_of(self.at), self.run)

    def decided(self, verdict: str, rule: str, reason: str, **more: Json) -> dict[str, Json]:
        decided: dict[str, Json] = {
            "run": self.run,
            "job": self.job,
            "slot": self.slot,
            "at": self.at,
            "trigger": self.trigger,
            "verdict": verdict,
            "rule": rule,
            "reason": reason,
            "revision": self.revision,
            "attempt": self.attempt,
        }
        if self.parent:
            decided |= {"parent": self.parent, "step": self.step}
        if self.request:
            decided["request"] = self.request
        if self.consumes:
            decided["consumes"] = dict(self.consumes)
        return decided | more


@dataclass(slots=True)
class Survey:
    entries: list[tuple[Candidate, dict[str, Json] | None]] = field(default_factory=list)
    """In the order of the plan: a run, and the decision if the slot rules have made it already (skipped, missed,
    coalesced); None is for admission to say.

    New slots of one job stand together and in the order of time, so that a plan cut short has decided the first of them
    and never a later one alone: a decision moves the job's cursor past every slot before it.
    """
    more: bool = False
    """Some job has more old slots than one plan looks at."""


def survey(question: Question) -> Survey:
    found = Survey()
    for job in question.jobs.values():
        _slots(found, question, job)
        _after(found, question, job)
    for request in question.requests:
        job = question.jobs[request.job]
        at_ms = ms_of(request.at)
        slot = due.slot_id(job.name, job.digest, at_ms, request.request)
        candidate = _new(job, question, slot, at_ms, "start", run=request.run, request=request.request)
        if job.removed:
            reason = "the job was removed before the request could be met"
            found.entries.append((candidate, candidate.decided("skipped", "removed", reason)))
        else:
            _unless_overlapping(found, job, candidate)
    for run in question.waiting:
        found.entries.append((_again(run, question), None))
    for parent, children in question.agents:
        _steps(found, question, parent, {child.step: child.state for child in children})
    found.entries.sort(key=lambda entry: entry[0].order())
    return found


def run_name(job: str, at_ms: int, slot: str) -> str:
    """A run's name: the job, the instant, and the slot's identity, which tells apart requests of one second."""
    stamp = text_of(at_ms // 1000 * 1000).replace("-", "").replace(":", "")
    return f"{job}.{stamp}.{slot}"


def _new(job: DueJob, question: Question, slot: str, at_ms: int, trigger: str, **more: Json) -> Candidate:
    run = more.pop("run", "") or run_name(job.name, at_ms, slot)
    return Candidate(
        run=run, job=job.name, slot=slot, at=text_of(at_ms), trigger=trigger, revision=job.revision, attempt=1,
        spec=job.spec, depth=job.depth, priority=job.spec["priority"], risk_score=0, rule="", **more,
    )  # fmt: skip


def _again(run: Run, question: Question) -> Candidate:
    """A run that waits, or whose next attempt is due. Its priority has risen with the time it has waited."""
    job = question.jobs[run.job]
    waited_ms = max(0, question.wall_ms - ms_of(run.created_at))
    own: int = run.spec["priority"] if "priority" in run.spec else job.spec["priority"]
    priority = own + waited_ms // question.policy.aging_ms
    return Candidate(
        run=run.name, job=run.job, slot=run.slot, at=run.at, trigger=run.trigger, revision=run.revision,
        attempt=run.attempt + 1 if run.state == "backoff" else run.attempt,
        spec=run.spec, depth=job.depth, priority=priority, risk_score=0,
        rule="" if run.state == "backoff" else run.rule, parent=run.parent, step=run.step,
    )  # fmt: skip


def _slots(found: Survey, question: Question, job: DueJob) -> None:
    if not job.due:
        return
    policy, spec = question.policy, job.spec
    expires = spec["expires"]
    until_ms = question.wall_ms if expires is None else min(question.wall_ms, ms_of(expires) - 1)
    instants = due.slots(job.schedule, job.cursor_ms, until_ms, policy.max_slots_per_job)
    on_time = [at for at in instants if at >= question.wall_ms - policy.late_after_ms]
    old = instants[: len(instants) - len(on_time)]
    if len(instants) == policy.max_slots_per_job:  # There may be more: only what is certainly old is settled now.
        found.more = True
        on_time = []
    caught_up: list[int] = []
    latest = spec["missed"]["policy"] == "latest" and not found.more and not on_time
    if latest and old and old[-1] >= question.wall_ms - spec["missed"]["window"]:
        caught_up = [old.pop()]
    if old:
        _settle_old(found, question, job, old, kept=bool(on_time or caught_up))
    for at_ms in caught_up + on_time:
        slot = due.slot_id(job.name, job.digest, at_ms)
        _unless_overlapping(found, job, _new(job, question, slot, at_ms, "schedule"))


def _settle_old(found: Survey, question: Question, job: DueJob, old: list[int], *, kept: bool) -> None:
    first_ms, last_ms = old[0], old[-1]
    candidate = _new(job, question, due.slot_id(job.name, job.digest, first_ms), first_ms, "schedule")
    late_s = (question.wall_ms - last_ms) // 1000
    if job.spec["missed"]["policy"] == "skip":
        verdict, rule, reason = "missed", "missed.skip", f"noticed {late_s} s late; this job skips what it missed"
    elif kept:
        verdict, rule, reason = "coalesced", "missed.latest", "a later slot of this job stands for it"
    else:
        window_s = job.spec["missed"]["window"] // 1000
        verdict, rule = "missed", "missed.window"
        reason = f"noticed {late_s} s late, beyond the window of {window_s} s"
    more: dict[str, Json] = {"until": text_of(last_ms), "count": len(old)} if len(old) > 1 else {}
    found.entries.append((candidate, candidate.decided(verdict, rule, reason, **more)))


def _after(found: Survey, question: Question, job: DueJob) -> None:
    if not job.fresh:
        return
    slot = due.slot_id(job.name, job.digest, question.wall_ms, ",".join(sorted(job.fresh.values())))
    candidate = _new(job, question, slot, question.wall_ms, "after", consumes=job.fresh)
    _unless_overlapping(found, job, candidate)


def _unless_overlapping(found: Survey, job: DueJob, candidate: Candidate) -> None:
    if job.spec["overlap"] != "allow_all":
        starting = [other.run for other, decided in found.entries if decided is None and other.job == job.name]
        earlier = [run for run, _ in job.active] + starting
        if earlier:
            reason = f"run {earlier[0]} is not over, and this job does not overlap"
            found.entries.append((candidate, candidate.decided("skipped", "overlap.skip", reason)))
            return
    found.entries.append((candidate, None))


def _steps(found: Survey, question: Question, parent: Run, states: Mapping[str, str]) -> None:
    """Steps of an agent's run whose predecessors are all over: to start, or to be skipped after a failure."""
    job = question.jobs[parent.job]
    for step in parent.spec["steps"]:
        name = step["name"]
        before = {upstream: states.get(upstream, "") for upstream in step["after"]}
        if name in states or not all(state in OVER for state in before.values()):
            continue
        candidate = Candidate(
            run=f"{parent.name}.{name}", job=parent.job, slot=parent.slot, at=parent.at, trigger="step",
            revision=parent.revision, attempt=1, spec=step, depth=job.depth, priority=job.spec["priority"],
            risk_score=0, rule="", parent=parent.name, step=name,
        )  # fmt: skip
        failed = sorted(upstream for upstream, state in before.items() if state != "succeeded")
        if failed:
            reason = f"step {failed[0]} {before[failed[0]].replace('_', ' ')}"
            found.entries.append((candidate, candidate.decided("skipped", "steps.upstream", reason)))
        else:
            found.entries.append((candidate, None))
