"""When something is due: an index over the graph's jobs, so that a look costs what is due and not what exists.

It is derived from the graph alone and follows its patches; throwing it away and following the whole graph again gives
the same answers.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from ledger.instant import ms_of
from policies import due
from policies.dependency import depths
from policies.queue import Queue
from policies.schedule import AfterSchedule, Files, OnSchedule, Schedule, schedule_of
from state.graph import AnyNode, Graph, Job, Run

NEVER_MS = 1 << 62


class Agenda:
    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []
        self._next_ms: dict[str, int] = {}
        self._basis: dict[str, tuple[str, int, bool]] = {}
        self._schedules: dict[str, tuple[str, Schedule]] = {}
        self._dependents: dict[str, set[str]] = {}
        self._dependencies: dict[str, tuple[str, ...]] = {}
        self._depths: dict[str, int] | None = None
        self._ready: set[str] = set()
        self._until_ms: dict[str, int] = {}  # of those with dependencies
        self._files: dict[str, tuple[Files, int]] = {}
        self.queue = Queue(self.depth)
        """The runs that wait."""

    @classmethod
    def of(cls, graph: Graph) -> Agenda:
        agenda = cls()
        agenda.follow(graph.jobs.values(), graph)
        agenda.follow(graph.active.values(), graph)
        return agenda

    def follow(self, nodes: Iterable[AnyNode], graph: Graph) -> None:
        """Take up what a patch has put into `graph`."""
        for node in nodes:
            if type(node) is Run:
                self.queue.follow_run(node, graph)
                continue
            if type(node) is not Job:
                continue
            basis, known = (node.digest, node.cursor_ms, node.removed), self._basis.get(node.name)
            if known != basis:
                self._basis[node.name] = basis
                self._file(node)
                if known is None or known[::2] != basis[::2]:
                    self.queue.depths_changed()
            self.queue.follow_job(node)
            if node.name in self._dependencies:
                self._weigh(node.name, graph)
            for dependent in self._dependents.get(node.name, ()):
                self._weigh(dependent, graph)

    def _file(self, job: Job) -> None:
        known = self._schedules.get(job.name)
        if known is None or known[0] != job.digest:
            # Of the spec only the schedule is kept parsed: a whole parsed job takes as much room as a hundred slots.
            known = self._schedules[job.name] = (job.digest, schedule_of(job.spec["schedule"]))
        schedule = known[1]
        before = self._dependencies.pop(job.name, ())
        for dependency in before:
            self._dependents[dependency].discard(job.name)
        self._ready.discard(job.name)
        live = job.spec["enabled"] and not job.removed
        until_ms = ms_of(job.spec["expires"]) if job.spec["expires"] else NEVER_MS
        if live and isinstance(schedule, AfterSchedule):
            self._dependencies[job.name], self._until_ms[job.name] = schedule.after, until_ms
            for dependency in schedule.after:
                self._dependents.setdefault(dependency, set()).add(job.name)
        if self._dependencies.get(job.name, ()) != before:
            self._depths = None
        self._files.pop(job.name, None)
        if live and isinstance(schedule, OnSchedule):
            self._files[job.name] = (schedule.on, until_ms)
        upcoming = due.next_slot(schedule, job.cursor_ms) if live else None
        if upcoming is not None and job.spec["expires"] is not None and upcoming >= ms_of(job.spec["expires"]):
            upcoming = None
        self._next_ms[job.name] = NEVER_MS if upcoming is None else upcoming
        if upcoming is not None:
            heapq.heappush(self._heap, (upcoming, job.name))

    def _weigh(self, name: str, graph: Graph) -> None:
        job = graph.jobs.get(name)
        if job is not None and fresh(job, graph):
            self._ready.add(name)
        else:
            self._ready.discard(name)

    def _prune(self) -> None:
        # The heap keeps stale entries until they come up: a job whose next slot has moved is there twice.
        while self._heap and self._next_ms.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)

    def next_ms(self) -> int | None:
        """The earliest slot of any job that has no decision yet."""
        self._prune()
        return self._heap[0][0] if self._heap else None

    def next_of(self, name: str) -> int | None:
        """The first slot of this job that has no decision yet; None if it has no more, or gets none for now."""
        upcoming = self._next_ms.get(name, NEVER_MS)
        return None if upcoming == NEVER_MS else upcoming

    def due(self, now_ms: int) -> list[str]:
        """Names of jobs with a slot at or before `now_ms`, sorted."""
        self._prune()
        names, back = set(), []
        while self._heap and self._heap[0][0] <= now_ms:
            entry = heapq.heappop(self._heap)
            if self._next_ms.get(entry[1]) == entry[0] and entry[1] not in names:
                names.add(entry[1])
                back.append(entry)
        for entry in back:  # Looking does not decide: they stay due until their decision moves the cursor.
            heapq.heappush(self._heap, entry)
        return sorted(names)

    def schedule(self, name: str) -> Schedule:
        """The schedule of a job of the graph, parsed once per revision."""
        return self._schedules[name][1]

    def depth(self, name: str) -> int:
        """How many jobs stand, one after another, before this one."""
        if name not in self._dependencies:
            return 0
        if self._depths is None:
            waited_for = {other: () for others in self._dependencies.values() for other in others}
            self._depths = depths({**waited_for, **self._dependencies})
        return self._depth(name, (), self._depths)

    def _depth(self, name: str, above: tuple[str, ...], known: dict[str, int]) -> int:
        if name in known:
            return known[name]
        # Jobs loaded together have no cycle; one that keeps its last good version may close one with others' new ones.
        before = [other for other in self._dependencies.get(name, ()) if other not in above]
        return max((1 + self._depth(other, (*above, name), known) for other in before), default=0)

    def ready(self, now_ms: int) -> list[str]:
        """Names of `after` jobs all of whose dependencies have a run they have not answered, sorted."""
        return sorted(name for name in self._ready if now_ms < self._until_ms[name])

    def files(self, now_ms: int) -> dict[str, Files]:
        """The files that jobs wait for at `now_ms`, by the name of the job."""
        return {name: files for name, (files, until_ms) in self._files.items() if now_ms < until_ms}


def fresh(job: Job, graph: Graph) -> dict[str, str]:
    """Dependency -> its run that `job` would answer now; empty unless every dependency has one."""
    schedule = job.spec["schedule"]
    found: dict[str, str] = {}
    for dependency in schedule["after"]:
        other = graph.jobs.get(dependency)
        run = other.finished.get(schedule["when"], "") if other else ""
        if not run or job.consumed.get(dependency, "") == run:
            return {}
        found[dependency] = run
    return found
