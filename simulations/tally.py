"""What a stretch of simulated time came to: for each job, for what they share, and over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ledger.instant import ms_of
from policies.admission import milli_cpus
from state.graph import Run

Json = Any

BY_DESIGN = frozenset({"jitter", "stagger", "overlap.missed"})
"""Waits that the job or the policy asked for."""


class Wait(NamedTuple):
    ms: int
    at_ms: int
    rule: str
    reason: str


NO_WAIT = Wait(0, 0, "", "")


class Bar(NamedTuple):
    """A run's time on the machine, for pictures."""

    begin_ms: int
    end_ms: int
    good: bool


@dataclass(slots=True)
class JobTally:
    slots: int = 0
    """Everything that was to run: slots, and what followed other jobs."""
    started: int = 0
    not_run: Counter[str] = field(default_factory=Counter)
    """Verdict and rule, as "skipped overlap.skip" -> slots that were not run for it."""
    waits_ms: list[int] = field(default_factory=list)
    longest: Wait = NO_WAIT
    waited_by: Counter[str] = field(default_factory=Counter)
    """Rule -> ms waited."""
    outcomes: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    busy_ms: int = 0
    tokens: int = 0
    bars: list[Bar] = field(default_factory=list)
    lacks: list[int] = field(default_factory=list)
    """Slots that were not run (ms), for pictures; of a range its first."""

    def percentile_ms(self, percent: int) -> int:
        if not self.waits_ms:
            return 0
        return sorted(self.waits_ms)[min(len(self.waits_ms) - 1, len(self.waits_ms) * percent // 100)]

    def count(self, verdict: str) -> int:
        return sum(count for name, count in self.not_run.items() if name.split(" ")[0] == verdict)


class Collision(NamedTuple):
    rule: str
    waits: str
    """The job that waited."""
    holds: str
    """The job that had what it waited for; "" where many did."""


class _Open(NamedTuple):
    since_ms: int
    rule: str
    reason: str
    collisions: tuple[Collision, ...]


class _Busy(NamedTuple):
    job: str
    begin_ms: int
    milli_cpus: int
    memory_bytes: int
    leases: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(slots=True)
class Stretch:
    """One part of the time, all parts being equally long."""

    begin_ms: int
    run_ms: int = 0
    """The time of all runs together."""
    cpu_ms: int = 0
    memory_byte_ms: int = 0
    most_runs: int = 0
    tokens: int = 0


class Tally:
    """The witness of a `Future`."""

    def __init__(
        self, specs: Mapping[str, Mapping[str, Json]], begin_ms: int, end_ms: int, stretches: int = 96
    ) -> None:
        self.specs, self.begin_ms, self.end_ms = specs, begin_ms, end_ms
        self.jobs = {name: JobTally() for name in specs}
        self.collisions: Counter[Collision] = Counter()
        self.collision_ms: Counter[Collision] = Counter()
        self.decisions = 0
        self._stretch_ms = max(1, -(-(end_ms - begin_ms) // stretches))
        self.usage = [Stretch(at) for at in range(begin_ms, max(end_ms, begin_ms + 1), self._stretch_ms)]
        self._open: dict[str, _Open] = {}
        self._busy: dict[str, _Busy] = {}
        self._holder: dict[str, str] = {}

    def _of(self, job: str) -> JobTally:
        if job not in self.jobs:
            self.jobs[job] = JobTally()
        return self.jobs[job]

    def decided(self, decision: Mapping[str, Json], wall_ms: int) -> None:
        self.decisions += 1
        job, run, verdict = decision["job"], decision["run"], decision["verdict"]
        tally = self._of(job)
        step, opened = "parent" in decision, self._open.pop(run, None)
        if not step and opened is None and decision["attempt"] == 1:
            tally.slots += decision.get("count", 1)
        if verdict == "started":
            self._started(tally, decision, opened, wall_ms)
        elif verdict in ("deferred", "buffered"):
            since_ms = opened.since_ms if opened is not None else wall_ms
            rule, reason = decision["rule"], decision["reason"]
            self._open[run] = _Open(since_ms, rule, reason, self._collisions(job, rule))
            for collision in self._open[run].collisions:
                self.collisions[collision] += 1
        elif not step:
            tally.not_run[f"{verdict} {decision['rule']}"] += decision.get("count", 1)
            tally.lacks.append(ms_of(decision["at"]))

    def _started(self, tally: JobTally, decision: Mapping[str, Json], opened: _Open | None, wall_ms: int) -> None:
        job, step = decision["job"], decision.get("step", "")
        tally.attempts += 1
        spec = self.specs.get(job, {})
        if not step and decision["attempt"] == 1:
            tally.started += 1
            wait_ms = max(0, wall_ms - ms_of(decision["at"]))
            tally.waits_ms.append(wait_ms)
            rule, reason = (opened.rule, opened.reason) if opened is not None else ("", "noticed late")
            if wait_ms > tally.longest.ms:
                tally.longest = Wait(wait_ms, ms_of(decision["at"]), rule, reason)
        if opened is not None:
            tally.waited_by[opened.rule] += wall_ms - opened.since_ms
            for collision in opened.collisions:
                self.collision_ms[collision] += wall_ms - opened.since_ms
        for key in decision["leases"]:
            self._holder[key] = job
        body = next((one for one in spec.get("steps", ()) if one["name"] == step), {}) if step else spec
        if body.get("kind") == "agent":
            return
        needs, tags = body.get("needs", {}), tuple(spec.get("tags", ()))
        self._busy[decision["run"]] = _Busy(
            job, wall_ms, milli_cpus(needs), needs.get("memory") or 0, tuple(decision["leases"]), tags
        )
        place = self._place(wall_ms)
        self.usage[place].most_runs = max(self.usage[place].most_runs, len(self._busy))

    def _collisions(self, job: str, rule: str) -> tuple[Collision, ...]:
        """Who has what this job waits for."""
        kind, _, name = rule.partition(":" if rule.startswith("lease:") else ".")
        if kind == "lease":
            return (Collision(rule, job, self._holder.get(name, "")),)
        if kind == "pool":
            holders = {busy.job for busy in self._busy.values() if name in busy.tags}
            return tuple(Collision(rule, job, holder) for holder in sorted(holders))
        if kind == "needs":
            holders = {b.job for b in self._busy.values() if (b.milli_cpus if name == "cpu" else b.memory_bytes)}
            return tuple(Collision(rule, job, holder) for holder in sorted(holders))
        return (Collision(rule, job, ""),) if kind in ("places", "budget") else ()

    def ended(self, run: Run, event: Mapping[str, Json], wall_ms: int) -> None:
        tally = self._of(run.job)
        final = event["retry_at"] is None
        self._open.pop(run.name, None)
        for key in run.leases:
            self._holder.pop(key, None)
        if final and not run.parent:
            tally.outcomes[event["outcome"]] += 1
        busy = self._busy.pop(run.name, None)
        tokens = event.get("tokens", 0)
        if run.spec.get("kind") != "agent":
            tally.tokens += tokens
        if busy is None:
            return
        tally.busy_ms += wall_ms - busy.begin_ms
        tally.bars.append(Bar(busy.begin_ms, wall_ms, event["outcome"] == "succeeded"))
        self._use(busy, wall_ms)
        self.usage[self._place(wall_ms)].tokens += tokens

    def _use(self, busy: _Busy, end_ms: int) -> None:
        for place in range(self._place(busy.begin_ms), self._place(end_ms) + 1):
            one = self.usage[place]
            inside_ms = min(end_ms, one.begin_ms + self._stretch_ms) - max(busy.begin_ms, one.begin_ms)
            if inside_ms > 0:
                one.run_ms += inside_ms
                one.cpu_ms += inside_ms * busy.milli_cpus // 1000
                one.memory_byte_ms += inside_ms * busy.memory_bytes

    def _place(self, at_ms: int) -> int:
        return min(len(self.usage) - 1, max(0, (at_ms - self.begin_ms) // self._stretch_ms))

    def finish(self, wall_ms: int) -> None:
        """The time is over; what runs or waits has done so until now."""
        for busy in self._busy.values():
            self.jobs[busy.job].busy_ms += wall_ms - busy.begin_ms
            self.jobs[busy.job].bars.append(Bar(busy.begin_ms, wall_ms, good=True))
            self._use(busy, wall_ms)

    @property
    def stretch_ms(self) -> int:
        return self._stretch_ms

    @property
    def unfinished(self) -> int:
        """How many attempts are under way at the end."""
        return len(self._busy)

    @property
    def waiting(self) -> int:
        """How many runs wait at the end."""
        return len(self._open)

    def waits_at_end(self, wall_ms: int) -> dict[str, tuple[int, str]]:
        """Job -> how long the run that waits longest has waited when the time is over, and by which rule."""
        found: dict[str, tuple[int, str]] = {}
        for run, opened in self._open.items():
            job = max((name for name in self.jobs if run.startswith(f"{name}.")), key=len, default="")
            found[job] = max(found.get(job, (0, "")), (wall_ms - opened.since_ms, opened.rule))
        return found
