"""What a question is about: which runs could start, in which order, and what the slot rules settle before admission.

Slot rules: a slot noticed within `late_after_ms` is on time; older ones are missed and the job's policy decides about
them; while a run of the job is not over, its overlap policy decides about the next; a paused job's slots are skipped.
Files are not slots: each is wanted, whenever it came, and waits its turn instead of being skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ledger.instant import ms_of, text_of
from policies import due
from policies.overlap import ALLOW_ALL, SKIP, Overlap, overlap_of
from policies.quantity import duration_text
from policies.question import Container, DueJob, Question
from policies.queue import BY_HAND, aged, own_priority, rank, takes_turns
from state.graph import OVER, Request, Run

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
    retries: str = ""
    catches_up: bool = False  # it makes up for a missed slot
    file: str = ""
    turn: int = 0  # among those of one job and instant
    tells_spec: bool = False  # its decision says what it is to do, which stands nowhere else

    def order(self) -> tuple[int, int, int, str, int, int, str]:
        """The total order of a plan: dependency depth, priority, risk score, name; then slot and run."""
        depth, priority = rank(self.depth, self.priority)
        return (depth, priority, self.risk_score, self.job, ms_of(self.at), self.turn, self.run)

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
        if self.retries:
            decided["retries"] = self.retries
        if self.file:
            decided["file"] = self.file
        if self.tells_spec:
            decided["spec"] = dict(self.spec)
        return decided | more


@dataclass(slots=True)
class Survey:
    entries: list[tuple[Candidate, dict[str, Json] | None]] = field(default_factory=list)
    """In the order of the plan: a run, and the decision if the slot rules have made it already; None is for admission
    to say.

    New slots of one job stand together and in the order of time, so that a plan cut short has decided the first of them
    and never a later one alone: a decision moves the job's cursor past every slot before it.
    """
    more: bool = False
    """Some job has more old slots than one plan looks at."""
    coming: dict[str, list[str]] = field(default_factory=dict)
    """Job -> its runs that this plan begins or lets wait."""
    buffered: dict[str, int] = field(default_factory=dict)
    """Job -> how many of those wait for an earlier run."""

    def settle(self, candidate: Candidate, verdict: str, rule: str, reason: str, **more: Json) -> None:
        self.entries.append((candidate, candidate.decided(verdict, rule, reason, **more)))
        if verdict in ("buffered", "deferred"):
            self.coming.setdefault(candidate.job, []).append(candidate.run)
        if verdict == "buffered":
            self.buffered[candidate.job] = self.buffered.get(candidate.job, 0) + 1

    def admit(self, candidate: Candidate) -> None:
        self.entries.append((candidate, None))
        if not candidate.parent:
            self.coming.setdefault(candidate.job, []).append(candidate.run)


def survey(question: Question) -> Survey:
    found = Survey()
    for job in question.jobs.values():
        _slots(found, question, job)
        _after(found, question, job)
        _files(found, question, job)
    for request in question.requests:
        if request.verb == "backfill":
            _backfill(found, question, request)
        else:
            _asked(found, question, request)
    for run in question.waiting:
        _again(found, question, run)
    for container in question.agents:
        if container.wanted:
            _begin(found, question, container)
        else:
            _steps(found, question, container.run, {child.step: child.state for child in container.children})
    found.entries.sort(key=lambda entry: entry[0].order())
    _stagger(found, question)
    return found


def run_name(job: str, at_ms: int, slot: str) -> str:
    """A run's name: the job, the instant, and the slot's identity, which tells apart requests of one second."""
    return _named(job, text_of(at_ms // 1000 * 1000), slot)


def _named(job: str, at: str, slot: str) -> str:
    return f"{job}.{at.replace('-', '').replace(':', '')}.{slot}"


def _new(job: DueJob, question: Question, slot: str, at_ms: int, trigger: str, **more: Json) -> Candidate:
    at = text_of(at_ms)
    run = more.pop("run", "") or (run_name(job.name, at_ms, slot) if at_ms % 1000 else _named(job.name, at, slot))
    return Candidate(
        run=run, job=job.name, slot=slot, at=at, trigger=trigger, revision=job.revision, attempt=1,
        spec=job.spec, depth=job.depth, priority=job.spec["priority"], risk_score=0, rule="", **more,
    )  # fmt: skip


def _again(found: Survey, question: Question, run: Run) -> None:
    """A run that waits, or whose next attempt is due. Its priority has risen with the time it has waited."""
    job = question.jobs[run.job]
    since_ms, aging_ms = ms_of(run.created_at), question.policy.aging_ms
    candidate = Candidate(
        run=run.name, job=run.job, slot=run.slot, at=run.at, trigger=run.trigger, revision=run.revision,
        attempt=run.attempt + 1 if run.state == "backoff" else run.attempt,
        spec=run.spec, depth=job.depth, risk_score=0,
        priority=aged(own_priority(run, job.spec), since_ms, question.wall_ms, aging_ms),
        rule="" if run.state == "backoff" else run.rule, parent=run.parent, step=run.step, file=run.file,
    )  # fmt: skip
    # Runs of one job take turns, the earliest first, unless they may run side by side.
    if takes_turns(run, job.spec) and job.active and job.active[0] != run.name:
        return
    pause = _paused(question, job, "start" if run.parent else run.trigger)
    if job.removed and not run.parent and not question.paused:
        began = "before its next attempt" if candidate.attempt > 1 else "before it began"
        found.settle(candidate, "skipped", "removed", f"the job was removed {began}")
    elif pause is None:
        found.admit(candidate)
    elif candidate.rule != "paused":
        found.settle(candidate, "deferred", "paused", pause)


def _paused(question: Question, job: DueJob, trigger: str) -> str | None:
    """Why nothing of this job starts now; None if it may. A paused job still runs what a person starts by hand."""
    if question.paused:
        return _who_paused("everything", question.paused)
    if job.paused and trigger not in BY_HAND:
        return _who_paused("this job", job.paused)
    return None


def _who_paused(what: str, pause: Mapping[str, Json]) -> str:
    why = f": {pause['reason']}" if pause["reason"] else ""
    return f"{pause['actor']} paused {what}{why}"


def _slots(found: Survey, question: Question, job: DueJob) -> None:
    if not job.due:
        return
    policy, spec = question.policy, job.spec
    expires = spec["expires"]
    until_ms = question.wall_ms if expires is None else min(question.wall_ms, ms_of(expires) - 1)
    instants = due.slots(job.schedule, job.cursor_ms, until_ms, policy.max_slots_per_job)
    more = len(instants) == policy.max_slots_per_job
    found.more |= more
    if (pause := _paused(question, job, "schedule")) is not None:
        _settle(found, question, job, instants, "skipped", "paused", pause)
        return
    on_time = [at for at in instants if at >= question.wall_ms - policy.late_after_ms]
    old = instants[: len(instants) - len(on_time)]
    missed = spec["missed"]
    wanted = {"skip": 0, "latest": 1, "all": missed["max"]}[missed["policy"]]
    if missed["policy"] == "latest" and on_time:
        wanted = 0  # The slot of this very moment is the latest.
    if more:
        # The newest slots that this look has found may be among the last ones that are wanted: the next look decides
        # about them, and about any that are on time.
        on_time, caught_up, old = [], [], instants[: len(instants) - min(wanted, len(instants) // 2)]
    else:
        young = [at for at in old if at >= question.wall_ms - missed["window"]]
        caught_up = young[max(0, len(young) - wanted) :] if wanted else []
        old = old[: len(old) - len(caught_up)]
        if len(caught_up) > policy.max_decisions_per_plan:  # More than one plan decides, so that the rest can wait.
            caught_up, on_time, more = caught_up[: policy.max_decisions_per_plan], [], True
            found.more = True
    if old:
        _settle_old(found, question, job, old, kept=bool(on_time or caught_up or more))
    for at_ms in caught_up + on_time:
        slot = due.slot_id(job.name, job.digest, at_ms)
        catches_up = at_ms < question.wall_ms - policy.late_after_ms
        candidate = _new(job, question, slot, at_ms, "schedule", catches_up=catches_up)
        _unless_overlapping(found, question, job, candidate)


def _settle_old(found: Survey, question: Question, job: DueJob, old: list[int], *, kept: bool) -> None:
    late = duration_text((question.wall_ms - old[-1]) // 1000 * 1000)
    missed = job.spec["missed"]
    if missed["policy"] == "skip":
        reason = f"noticed {late} late; this job skips what it missed"
        _settle(found, question, job, old, "missed", "missed.skip", reason)
    elif not kept or (missed["policy"] == "all" and old[-1] < question.wall_ms - missed["window"]):
        reason = f"noticed {late} late, beyond the window of {duration_text(missed['window'])}"
        _settle(found, question, job, old, "missed", "missed.window", reason)
    elif missed["policy"] == "latest":
        _settle(found, question, job, old, "coalesced", "missed.latest", "a later slot of this job stands for it")
    else:
        newest = f"the newest {missed['max']}" if missed["max"] > 1 else "only the newest"
        reason = f"noticed {late} late; of those missed this job runs {newest}"
        _settle(found, question, job, old, "missed", "missed.max", reason)


def _settle(
    found: Survey, question: Question, job: DueJob, instants: list[int], verdict: str, rule: str, reason: str
) -> None:
    """One decision about a range of slots."""
    candidate = _new(job, question, due.slot_id(job.name, job.digest, instants[0]), instants[0], "schedule")
    more: dict[str, Json] = {"until": text_of(instants[-1]), "count": len(instants)} if len(instants) > 1 else {}
    found.settle(candidate, verdict, rule, reason, **more)


def _after(found: Survey, question: Question, job: DueJob) -> None:
    if not job.fresh:
        return
    slot = due.slot_id(job.name, job.digest, question.wall_ms, ",".join(sorted(job.fresh.values())))
    candidate = _new(job, question, slot, question.wall_ms, "after", consumes=job.fresh)
    if (pause := _paused(question, job, "after")) is not None:
        found.settle(candidate, "skipped", "paused", pause)
        return
    _unless_overlapping(found, question, job, candidate)


_LOST = {
    "gone": ("skipped", "the file is there no more, or the job does not wait for it any more"),
    "rewritten": ("coalesced", "the file was written again before its turn: a later arrival stands for it"),
    "removed": ("skipped", "the job was removed, or starts by another schedule now"),
}


def _files(found: Survey, question: Question, job: DueJob) -> None:
    """Files that have arrived. Those of a job that is paused or switched off wait, and so does each behind the one
    before it, unless the overlap policy says otherwise: they wait as files and not as runs, however many there are."""

    def candidate_of(path: str, at_ms: int, seq: int, turn: int = 0) -> Candidate:
        slot = due.slot_id(job.name, job.digest, at_ms, f"{seq} {path}")
        return _new(job, question, slot, at_ms, "on", file=path, turn=turn)

    for why, count, path, at_ms, seq, until_ms in job.lost:
        verdict, reason = _LOST[why]
        more: dict[str, Json] = {"until": text_of(until_ms), "count": count} if count > 1 else {}
        found.settle(candidate_of(path, at_ms, seq), verdict, f"on.{why}", reason, lost=why, **more)
    if not job.files or not job.spec["enabled"] or _paused(question, job, "on") is not None:
        return
    overlap, busy = overlap_of(job.spec["overlap"]), len(found.coming.get(job.name, ()))
    busy += job.active[1] if job.active else 0
    wanted = [candidate_of(path, at_ms, seq, turn) for turn, (path, _, at_ms, seq) in enumerate(job.files)]
    if overlap.replaces:
        for candidate in wanted:
            _unless_overlapping(found, question, job, candidate)
        return
    room = question.policy.max_running if overlap.policy == ALLOW_ALL else 1
    for candidate in wanted[: max(0, room - busy)]:
        found.admit(candidate)


def _asked(found: Survey, question: Question, request: Request) -> None:
    job, at_ms = question.jobs[request.job], ms_of(request.at)
    slot = due.slot_id(job.name, job.digest, at_ms, request.request)
    trigger = "retry" if request.retries else "start"
    candidate = _new(
        job, question, slot, at_ms, trigger, run=request.run, request=request.request, retries=request.retries,
        file=request.file,
    )  # fmt: skip
    if request.specs:
        (revision, spec), *_ = request.specs.items()
        candidate = candidate._replace(revision=int(revision), spec=spec)
    if job.removed:
        found.settle(candidate, "skipped", "removed", "the job was removed before the request could be met")
    elif question.paused:
        found.settle(candidate, "deferred", "paused", _who_paused("everything", question.paused))
    else:
        _unless_overlapping(found, question, job, candidate)


def _backfill(found: Survey, question: Question, request: Request) -> None:
    """Slots of the past, in their order. They stand behind everything else of their job: a live slot is never skipped
    for a backfill that only waits."""
    job = question.jobs[request.job]

    def candidate_of(at_ms: int, revision: int) -> Candidate:
        slot = due.slot_id(job.name, job.digest, at_ms, request.request)
        spec = request.specs[str(revision)]
        candidate = _new(job, question, slot, at_ms, "backfill", request=request.request)
        return candidate._replace(revision=revision, spec=spec, priority=spec["priority"])

    if job.removed:
        for slot in request.slots:
            found.settle(candidate_of(*slot), "skipped", "removed", "the job was removed before its backfill was done")
    elif not question.paused and request.overlap == ALLOW_ALL:
        if found.buffered.get(job.name) or (job.active and job.active[2]):
            return  # A live slot waits for the runs before it: those that are behind it must not be more and more.
        for slot in request.slots[: question.policy.max_running]:
            found.admit(candidate_of(*slot))
    elif not question.paused and not job.active and not found.coming.get(job.name):
        found.admit(candidate_of(*request.slots[0]))


def _unless_overlapping(found: Survey, question: Question, job: DueJob, candidate: Candidate) -> None:
    """The overlap policy, and then the jitter: the last words before admission."""
    overlap = overlap_of(job.spec["overlap"])
    coming = found.coming.get(job.name, [])
    if overlap.policy == ALLOW_ALL or not (job.active or coming):
        _unless_jittered(found, question, job, candidate)
        return
    before = job.active[0] if job.active else coming[0]
    waiting = (job.active[2] if job.active else 0) + found.buffered.get(job.name, 0)
    _overlapping(found, candidate, overlap, before, waiting)


def _overlapping(found: Survey, candidate: Candidate, overlap: Overlap, before: str, waiting: int) -> None:
    if overlap.replaces:
        verb = "is cancelled" if overlap.policy == "cancel_other" else "is killed"
        reason = f"starts once run {before}, which {verb} for it, is over"
        found.settle(candidate, "buffered", f"overlap.{overlap.policy}", reason)
    elif candidate.catches_up and overlap.policy == SKIP:
        # The job asked for every slot it missed: they follow one another.
        found.settle(candidate, "buffered", "overlap.missed", f"makes up for a missed slot, after run {before}")
    elif overlap.policy == SKIP:
        found.settle(candidate, "skipped", "overlap.skip", f"run {before} is not over, and this job does not overlap")
    elif waiting >= overlap.buffer:
        reason = f"run {before} is not over, and as many slots wait already as may: {overlap.buffer}"
        found.settle(candidate, "skipped", "overlap.full", reason)
    else:
        found.settle(candidate, "buffered", f"overlap.{overlap.policy}", f"waits until run {before} is over")


def _unless_jittered(found: Survey, question: Question, job: DueJob, candidate: Candidate) -> None:
    wait_ms = due.jitter_ms(job.spec["jitter"], candidate.slot) if candidate.trigger == "schedule" else 0
    start_ms = ms_of(candidate.at) + wait_ms
    if start_ms > question.wall_ms:
        reason = f"starts {wait_ms / 1000:g} s after its slot, so that not all start at once"
        found.settle(candidate, "deferred", "jitter", reason, not_before=text_of(start_ms))
    else:
        found.admit(candidate)


def _stagger(found: Survey, question: Question) -> None:
    """Runs that make up for missed slots start one after another, in the order of the plan."""
    step_ms = question.policy.stagger_ms
    next_ms = question.staggered_ms + step_ms if question.staggered_ms else question.wall_ms
    for place, (candidate, decided) in enumerate(found.entries):
        if candidate.catches_up and decided is None and step_ms:
            if next_ms > question.wall_ms:
                reason = "makes up for a missed slot; such runs start one after another"
                more = {"not_before": text_of(next_ms)}
                found.entries[place] = (candidate, candidate.decided("deferred", "stagger", reason, **more))
            next_ms += step_ms


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
            found.settle(candidate, "skipped", "steps.upstream", reason)
        elif not question.paused:
            found.admit(candidate)


def _begin(found: Survey, question: Question, container: Container) -> None:
    """The steps that an upgrade, or one repository of it, begins now."""
    parent, job = container.run, question.jobs[container.run.job]
    for spec in () if question.paused else container.wanted:
        found.admit(
            Candidate(
                run=f"{parent.name}.{spec['name']}", job=parent.job, slot=parent.slot, at=parent.at, trigger="step",
                revision=parent.revision, attempt=1, spec=spec, depth=job.depth, priority=job.spec["priority"],
                risk_score=0, rule="", parent=parent.name, step=spec["name"], tells_spec=True,
            )
        )  # fmt: skip
