"""The runs that wait, filed by what a look has to do with them, so that it costs what may start and not what waits.

It is derived from the graph alone. A long queue waits for places: while there is none its answer stays the same, and of
`n` free places only the first can make use, up to the `n`th that nothing but a place could be denied.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable

from ledger.instant import ms_of
from policies.overlap import ALLOW_ALL, overlap_of
from policies.policy import SchedulingPolicy
from state.graph import Graph, Job, Run

BY_HAND = ("start", "retry", "backfill")
"""What a person starts, and a pause of the job does not hold."""

PRIORITY_MOST = 100
"""No job may have a higher one. A run that has come to more by waiting has waited for long."""

_Entry = tuple[str, int, str]  # job, instant, run: the last of what orders a plan
_Line = tuple[int, int, int]  # depth, own priority, since when: in a line nobody ever overtakes


class Queue:
    def __init__(self, depth: Callable[[str], int]) -> None:
        self._depth = depth
        self._waiting: dict[str, dict[str, Run]] = {}  # by job, by name
        self._lines: dict[_Line, list[_Entry]] = {}
        self._filed: dict[str, tuple[_Line, _Entry]] = {}
        self._buffered: dict[str, int] = {}  # by job
        self._jobs: dict[str, tuple[str, str, bool, bool]] = {}
        self._astray = False
        self.stirring: dict[str, Run] = {}
        """Those that each look has to consider, whether or not their time has come."""

    def __len__(self) -> int:
        """How many wait for a place."""
        return len(self._filed)

    def follow_run(self, run: Run, graph: Graph) -> None:
        waiting = self._waiting.get(run.job)
        before = waiting.pop(run.name, None) if waiting is not None else None
        if before is not None and _is_buffered(before):
            self._buffered[run.job] -= 1
        if run.state == "waiting" or run.state == "backoff":
            self._waiting.setdefault(run.job, {})[run.name] = run
            if _is_buffered(run):
                self._buffered[run.job] = self._buffered.get(run.job, 0) + 1
            self._file(run, graph.jobs[run.job])
        elif before is not None:
            self._leave(run.name)
            if not waiting:
                del self._waiting[run.job], self._jobs[run.job]
                self._buffered.pop(run.job, None)

    def follow_job(self, job: Job) -> None:
        waiting = self._waiting.get(job.name)
        if waiting is None:
            return
        basis, known = _basis(job), self._jobs.get(job.name)
        if basis == known:
            return
        self._jobs[job.name] = basis
        if known is not None and known[1:] == basis[1:]:
            for name in (known[0], basis[0]):  # Who was the first may not be it any more, and still wait.
                if (run := waiting.get(name)) is not None:
                    self._file(run, job)
            return
        for run in list(waiting.values()):
            self._file(run, job)

    def depths_changed(self) -> None:
        """Some job stands elsewhere in the order now: the lines are made anew when they are next asked for."""
        self._astray = True

    def buffered(self, job: str) -> int:
        """How many runs of a job wait for one before them."""
        return self._buffered.get(job, 0)

    def first(self, graph: Graph, places: int, wall_ms: int, policy: SchedulingPolicy) -> list[Run]:
        """The first of those that wait for a place, in the order of a plan made at `wall_ms`: enough to fill so many
        places, if what they would run is there."""
        if self._astray:
            self._astray = False
            for _, (_, _, name) in list(self._filed.values()):
                run = graph.active[name]
                self._file(run, graph.jobs[run.job])
        heads = []
        for line, entries in self._lines.items():
            depth, priority, since_ms = line
            heads.append((rank(depth, aged(priority, since_ms, wall_ms, policy.aging_ms)), entries[0], 0, entries))
        heapq.heapify(heads)
        found: list[Run] = []
        while heads and places > 0:
            order, entry, place, entries = heads[0]
            run = graph.active[entry[2]]
            found.append(run)
            places -= _wants_only_a_place(run, graph.jobs[run.job], policy)
            if place + 1 < len(entries):
                heapq.heapreplace(heads, (order, entries[place + 1], place + 1, entries))
            else:
                heapq.heappop(heads)
        return found

    def _file(self, run: Run, job: Job) -> None:
        name = run.name
        self._leave(name)
        if job.name not in self._jobs:
            self._jobs[job.name] = _basis(job)
        if takes_turns(run, job.spec) and job.active and job.active[0] != name:
            return  # Nothing becomes of it before the one that goes first is over.
        held = not run.parent and (job.removed or (job.paused and run.trigger not in BY_HAND))
        if run.rule != "places" or run.state != "waiting" or run.not_before_ms or held:
            self.stirring[name] = run
            return
        line = (self._depth(job.name), own_priority(run, job.spec), ms_of(run.created_at))
        entry = (run.job, ms_of(run.at), name)
        insort(self._lines.setdefault(line, []), entry)
        self._filed[name] = (line, entry)

    def _leave(self, name: str) -> None:
        self.stirring.pop(name, None)
        filed = self._filed.pop(name, None)
        if filed is not None:
            line, entry = filed
            entries = self._lines[line]
            del entries[bisect_left(entries, entry)]
            if not entries:
                del self._lines[line]


def aged(priority: int, since_ms: int, wall_ms: int, aging_ms: int) -> int:
    """A priority as it has risen with the time waited."""
    return priority + max(0, wall_ms - since_ms) // aging_ms


def rank(depth: int, priority: int) -> tuple[int, int]:
    """What comes first in the order of a plan. One that has waited for long is not kept back by where its job stands
    among those that wait for each other: or it would starve behind jobs that never pause."""
    return (0 if priority > PRIORITY_MOST else depth, -priority)


def own_priority(run: Run, job_spec: dict[str, object]) -> int:
    priority = run.spec["priority"] if "priority" in run.spec else job_spec["priority"]
    assert isinstance(priority, int)
    return priority


def takes_turns(run: Run, job_spec: dict[str, object]) -> bool:
    """Whether it starts only once it is the earliest of its job's runs that are not over."""
    overlap = job_spec["overlap"]
    assert isinstance(overlap, str)
    return not run.parent and run.trigger != "backfill" and overlap_of(overlap).policy != ALLOW_ALL


def _wants_only_a_place(run: Run, job: Job, policy: SchedulingPolicy) -> bool:
    spec = run.spec
    pooled = policy.pools and any(tag in policy.pools for tag in (job.spec if run.parent else spec).get("tags", ()))
    return not (spec.get("leases") or any(spec.get("needs", {}).values()) or spec.get("budget") or pooled)


def _is_buffered(run: Run) -> bool:
    return run.state == "waiting" and run.rule.startswith("overlap.")


def _basis(job: Job) -> tuple[str, str, bool, bool]:
    return (job.active[0] if job.active else "", job.digest, bool(job.paused), job.removed)
