"""The recorded past decided again under another policy, or with other job files.

As long as each plan comes out as it was recorded, the record is followed event by event. From the first plan that does
not, what happens is simulated: the same requests, files, foreign leases, pauses and outages come at the same instants;
a run that was recorded takes as long and ends as it did; any other is drawn from the attempts of its job. What the
record tells and what was simulated are then compared, slot by slot.

What it cannot know is told with the result (`LIMITS`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ledger.instant import Now, ms_of
from ledger.record import Record
from policies.adoption import Accepted, changes
from policies.decision import choose
from policies.policy import SchedulingPolicy
from policies.question import ask
from policies.survey import survey
from simulations.future import Future
from simulations.habits import Attempt, Attempts, Fate, Habits
from state.events import BY_THE_LEDGER, draft
from state.graph import OVER, WITH_PROCESS, Graph, Run
from state.projector import Impossible

Json = Any
Key = tuple[Any, ...]
"""What a run is about, in both worlds: its name holds the digest of the job's spec, and the instant of a look."""

MOVED_MS = 1000
"""A start that differs by less is the same: a look comes some milliseconds late."""

LIMITS = (
    "A run that starts at another time is taken to last as long and end as it did: what it would have met then, nobody"
    " knows.",
    "A run that never was is drawn from its job's other attempts, by the seed.",
    "An attempt that was stopped (timeout, cancel) would have gone on for an unknown time: it goes on until it is"
    " stopped again.",
    "What a look before the start found wrong with a program or a file is not carried over to another time.",
    "People would have asked for other things, and files might have come otherwise: both come as recorded, as far as"
    " they still have an object.",
    "When a killed daemon died is not recorded: it is taken to have looked last when it recorded last.",
)


@dataclass(slots=True)
class Told:
    """What became of one slot, request or file."""

    job: str
    at_ms: int
    verdict: str = ""
    """The last word: started, skipped, missed, ...; "waiting" if there is none yet."""
    rule: str = ""
    started_ms: int | None = None
    outcome: str = ""
    count: int = 1

    @property
    def wait_ms(self) -> int | None:
        return None if self.started_ms is None else max(0, self.started_ms - self.at_ms)


class Chronicle:
    """Decisions and ends, by what they are about. The same for the record and for what is simulated."""

    def __init__(self, agents: Iterable[str] = (), upgrades: Iterable[str] = ()) -> None:
        """`agents`: jobs whose runs have no process of their own. `upgrades`: jobs whose runs are told as one, without
        their steps, since nobody knows what git would have said at another time."""
        self.agents, self.upgrades = set(agents), set(upgrades)
        self.told: dict[Key, Told] = {}
        self.order: list[Key] = []
        self.decisions = 0
        self.busy_ms = 0
        self.most_runs = 0
        self._keys: dict[str, Key] = {}
        self._seen: Counter[Key] = Counter()
        self._busy: dict[str, int] = {}

    def key_of(self, run: str) -> Key | None:
        return self._keys.get(run)

    def decided(self, decision: Mapping[str, Json], wall_ms: int) -> None:
        self.decisions += 1
        if "parent" in decision and decision["job"] in self.upgrades:
            return
        run, verdict = decision["run"], decision["verdict"]
        key = self._keys.get(run) or self._key(decision)
        self._keys[run] = key
        told = self.told.get(key)
        if told is None:
            told = self.told[key] = Told(decision["job"], ms_of(decision["at"]), count=decision.get("count", 1))
        if told.started_ms is None:
            told.verdict = "waiting" if verdict in ("deferred", "buffered") else verdict
            told.rule = decision["rule"] if verdict != "started" else told.rule
        if verdict == "started":
            if told.started_ms is None:
                told.started_ms = wall_ms
                self.order.append(key)
            if "parent" in decision or decision["job"] not in self.agents:
                self._busy[run] = wall_ms
            self.most_runs = max(self.most_runs, len(self._busy))

    def _key(self, decision: Mapping[str, Json]) -> Key:
        trigger, job = decision["trigger"], decision["job"]
        if trigger == "step":
            return (*(self._keys.get(decision["parent"]) or (job, decision["parent"])), decision["step"])
        if trigger == "schedule":
            return (job, trigger, decision["at"])
        if trigger == "after":
            first = min(decision.get("consumes", {}).items(), default=("", ""))
            about: Key = self._keys.get(first[1]) or first
        elif trigger == "on":
            about = (decision["file"],)
        elif trigger == "backfill":
            about = (decision.get("request", ""), decision["at"])
        else:
            about = (decision.get("request", ""),)
        key: Key = (job, trigger, *about)
        self._seen[key] += 1
        return (*key, self._seen[key]) if self._seen[key] > 1 else key

    def ended(self, run: Run, event: Mapping[str, Json], wall_ms: int) -> None:
        self.end(run.name, event["outcome"], event["retry_at"] is None, wall_ms)

    def end(self, run: str, outcome: str, final: bool, wall_ms: int) -> None:
        began_ms = self._busy.pop(run, None)
        if began_ms is not None:
            self.busy_ms += wall_ms - began_ms
        key = self._keys.get(run)
        if key is not None and final and key in self.told:
            told = self.told[key]
            told.outcome = outcome
            if told.started_ms is None:
                told.verdict, told.rule = outcome, "outcome"


class Divergence(NamedTuple):
    """The first plan that comes out otherwise."""

    seq: int
    """The recorded plan it is held against, or the record before which there would have been one."""
    at_ms: int
    only_recorded: tuple[Json, ...]
    only_again: tuple[Json, ...]
    by_planner: bool = False
    """Under the recorded policy, too, it comes out otherwise today: another version of the planner decided it."""


@dataclass(slots=True)
class Comparison:
    recorded: Chronicle
    again: Chronicle
    divergence: Divergence | None
    begin_ms: int
    end_ms: int
    agreed: int
    """Decisions that came out as recorded before the first that did not."""
    simulated: int
    drawn: Counter[str] = field(default_factory=Counter)
    """How often an attempt's course came from: recorded, learned, assumed."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Recorded events that no longer had an object."""


@dataclass(slots=True)
class _Course:
    """What the record knows in advance."""

    fates: dict[tuple[Key, int], Fate]
    began: dict[tuple[str, int], Attempt]
    outages: list[tuple[int, int]]
    last_ms: int


class Counterfactual:
    """`records`: gives the records behind the one that the graph stands at, each time it is called."""

    def __init__(
        self,
        graph: Graph,
        records: Callable[[], Iterator[Record]],
        habits: Habits,
        policy: SchedulingPolicy | None,
        jobs: Mapping[str, Accepted] | None,
        begin: Now,
        default_policy: SchedulingPolicy,
    ) -> None:
        """`default_policy`: in force until the record names one."""
        self._records, self._habits = records, habits
        self._policy, self._jobs = policy, jobs
        specs = [(name, job.spec) for name, job in graph.jobs.items()]
        specs += [(name, job.spec) for name, job in (jobs or {}).items()]
        agents = [name for name, spec in specs if spec.get("kind") == "agent"]
        upgrades = [name for name, spec in specs if spec.get("kind") == "upgrade"]
        self._recorded, self._again = Chronicle(agents, upgrades), Chronicle(agents, upgrades)
        self._names: dict[Key, str] = {}
        self._drawn: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._course = self._look_ahead(graph)
        self._recorded_policy = rules_of(graph.policy.values)
        rules = policy or self._recorded_policy or default_policy
        self._future = Future(graph, rules, self._fate_of, self._again, begin)
        self._begin_ms = begin.wall_ms

    def compare(self) -> Comparison:
        divergence, simulated = self._change(), 0
        future, course = self._future, self._course
        agreed = 0
        if divergence is not None:
            self._take_over(future.wall_ms)
        for record in self._records():
            if divergence is None:
                divergence = self._follow(record)
                if divergence is None:
                    continue
                agreed = self._again.decisions
                self._take_over(future.wall_ms)
                self._go_apart()
                continue
            self._replay(record)
        if divergence is not None:
            future.pass_until(course.last_ms + 1)
            simulated = self._again.decisions - agreed
        else:
            agreed = self._again.decisions
        return Comparison(
            self._recorded, self._again, divergence, self._begin_ms, course.last_ms, agreed, simulated, self._drawn,
            self._left_out,
        )  # fmt: skip

    def _look_ahead(self, graph: Graph) -> _Course:
        """Read the record once: how it went, and how long everything took."""
        course = _Course({}, {}, [], 0)
        attempts, chronicle = Attempts(), self._recorded
        for run in graph.active.values():
            attempts.know(run)
        stopped_ms: int | None = None
        looked_ms = 0
        for record in self._records():
            wall_ms = ms_of(record.ts)
            if record.type == "plan.decided":
                for decided in record.data["decisions"]:
                    chronicle.decided(decided, record.data["wall_ms"])
            elif record.type == "run.finished":
                data = record.data
                chronicle.end(data["run"], data["outcome"], data["retry_at"] is None, wall_ms)
            elif record.type in ("job.defined", "job.changed") and record.data["spec"].get("kind") == "agent":
                chronicle.agents.add(record.data["job"])
                self._again.agents.add(record.data["job"])
            elif record.type in ("job.defined", "job.changed") and record.data["spec"].get("kind") == "upgrade":
                chronicle.upgrades.add(record.data["job"])
                self._again.upgrades.add(record.data["job"])
            elif record.type == "daemon.stopped":
                stopped_ms = wall_ms
            elif record.type == "daemon.started":
                down_ms = stopped_ms if stopped_ms is not None else looked_ms
                if down_ms:
                    course.outages.append((down_ms, wall_ms))
                stopped_ms = None
            ended = attempts.follow(record)
            if ended is not None:
                self._habits.note(ended)
                course.began[ended.run, ended.attempt] = ended
                if (key := chronicle.key_of(ended.run)) is not None and ended.outcome != "cancelled":
                    course.fates[key, ended.attempt] = ended.fate._replace(source="recorded")
            course.last_ms = max(course.last_ms, wall_ms)
            if record.type not in BY_THE_LEDGER:  # Those it writes when the next daemon opens it.
                looked_ms = wall_ms
        return course

    def _change(self) -> Divergence | None:
        """Put the other policy and jobs in force. Other jobs make another world at once; another policy may."""
        future = self._future
        if self._policy is not None:
            data = {"digest": self._policy.digest(), "policy": self._policy.values()}
            future.take(draft("policy.adopted", "policy/scheduling", data))
        if self._jobs is not None:
            edits = changes(future.graph, self._jobs, [])
            for event in edits:
                future.take(event)
            if edits:
                what = tuple({"run": event.subject, "verdict": event.type, "rule": "", "reason": ""} for event in edits)
                return Divergence(0, future.wall_ms, (), what)
        return None

    # While it is as it was.

    def _follow(self, record: Record) -> Divergence | None:
        future, data = self._future, record.data
        future.wall_ms, future.boot_ms = ms_of(record.ts), record.mt // 1_000_000
        self._otherwise: list[dict[str, Json]] = []
        if record.type == "plan.decided":
            question = ask(future.graph, future.agenda, future.policy, data["wall_ms"])
            question.preflight.update(data["preflight"])
            again, _, _ = choose(question, survey(question))
            if again != data["decisions"]:
                future.wall_ms = data["wall_ms"]
                self._otherwise = again
                return self._divergence(record, again)
            for decided in again:
                self._again.decided(decided, data["wall_ms"])
        elif record.type == "run.finished":
            self._again.end(data["run"], data["outcome"], data["retry_at"] is None, future.wall_ms)
        elif record.type == "policy.adopted":
            self._recorded_policy = rules_of(data["policy"])
            if self._policy is None and self._recorded_policy is not None:
                future.policy = self._recorded_policy
        if not self._replaced(record):
            future.fold(record)
        return None

    def _divergence(self, record: Record, again: list[dict[str, Json]]) -> Divergence:
        future, recorded = self._future, record.data["decisions"]
        by_planner = False
        if self._recorded_policy is not None:
            question = ask(future.graph, future.agenda, self._recorded_policy, record.data["wall_ms"])
            question.preflight.update(record.data["preflight"])
            by_planner = choose(question, survey(question))[0] != recorded
        return Divergence(
            record.seq, record.data["wall_ms"], tuple(one for one in recorded if one not in again),
            tuple(one for one in again if one not in recorded), by_planner,
        )  # fmt: skip

    def _replaced(self, record: Record) -> bool:
        """Whether what it says is another thing in this world."""
        kind = record.type
        return (self._policy is not None and kind.startswith("policy.")) or (
            self._jobs is not None and kind in ("job.defined", "job.changed", "job.removed")
        )

    # From then on.

    def _take_over(self, wall_ms: int) -> None:
        """Give every process that is under way its end."""
        future = self._future
        for run in list(future.graph.active.values()):
            if run.state not in WITH_PROCESS or run.spec.get("kind") == "agent":
                continue
            ended = self._course.began.get((run.name, run.attempt))
            if ended is not None and ended.outcome not in ("timed_out", "cancelled"):
                future.runs_already(run, max(ended.ended_ms, wall_ms), ended.fate)
                self._drawn["recorded"] += 1
            else:
                fate = self._fate_of(run, wall_ms)
                future.runs_already(run, wall_ms + fate.ms, fate)

    def _go_apart(self) -> None:
        """Follow the first plan that is another one."""
        future = self._future
        if self._otherwise:
            for name, attempt in future.follow(self._otherwise):
                future.start(name, attempt)
        future.look()

    def _fate_of(self, run: Run, wall_ms: int) -> Fate:
        del wall_ms
        key = self._again.key_of(run.name)
        fate = self._course.fates.get((key, run.attempt)) if key is not None else None
        if fate is None:
            fate = self._habits.draw(run.job, run.step, run.name, run.attempt, run.spec.get("timeout"))
        self._drawn[fate.source] += 1
        return fate

    def _replay(self, record: Record) -> None:
        """What comes from outside comes as it came; all else follows."""
        kind, future = record.type, self._future
        at_ms = ms_of(record.ts)
        if kind == "daemon.started":
            self._restart(record, at_ms)
            return
        if kind not in _FROM_OUTSIDE or self._replaced(record):
            return
        if at_ms > future.wall_ms:
            self._live_until(at_ms)
        if kind == "job.paused" and record.data["actor"] == "hermesd":
            return  # It follows from failures, or does not.
        data = self._translated(record)
        if data is None:
            self._left_out[kind] += 1
            return
        try:
            future.record(kind, record.subject, data, tv=record.tv)
        except Impossible:
            self._left_out[kind] += 1
            return
        if kind == "policy.adopted":
            future.policy = rules_of(data["policy"]) or future.policy
        future.look()

    def _live_until(self, at_ms: int) -> None:
        """Live on, except while no daemon did."""
        outages = self._course.outages
        place = bisect_left(outages, (self._future.wall_ms, 0))
        if place < len(outages) and outages[place][0] < at_ms:
            at_ms = min(at_ms, outages[place][0])
        self._future.pass_until(at_ms)

    def _restart(self, record: Record, at_ms: int) -> None:
        future = self._future
        self._live_until(at_ms)
        rebooted = record.data["boot_id"] != future.graph.here.boot_id
        if rebooted:
            future.lose_power()
        future.move_to(max(at_ms, future.wall_ms))
        if rebooted:
            future.boot_ms = record.mt // 1_000_000
        future.record(record.type, record.subject, record.data, tv=record.tv)
        future.look()

    def _translated(self, record: Record) -> Mapping[str, Json] | None:
        """Its data with the names that things have in this world; None if what it is about is not there."""
        data, graph = record.data, self._future.graph
        if "job" in data and (data["job"] not in graph.jobs or graph.jobs[data["job"]].removed):
            return None if record.type not in _OF_JOBS else data
        if record.type != "cancel.requested":
            return data
        run = graph.run(data["run"]) or self._same(data["run"])
        return None if run is None or run.state in OVER else {**data, "run": run.name}

    def _same(self, name: str) -> Run | None:
        """The run that here is about the same."""
        key = self._recorded.key_of(name)
        for run in self._future.graph.active.values():
            if key is not None and self._again.key_of(run.name) == key:
                return run
        return None


def rules_of(values: Mapping[str, Json]) -> SchedulingPolicy | None:
    """The policy that a record names; None if there is none yet."""
    return SchedulingPolicy.recorded(values) if values else None


_OF_JOBS = ("job.defined", "job.changed", "job.removed")
_FROM_OUTSIDE = frozenset(
    {
        "job.defined", "job.changed", "job.removed", "job.paused", "job.resumed", "daemon.paused", "daemon.resumed",
        "policy.adopted", "resources.sampled", "lease.seen", "lease.released", "start.requested", "cancel.requested",
        "backfill.requested", "backfill.cancelled", "files.arrived", "files.gone", "files.hidden",
    }
)  # fmt: skip


class Difference(NamedTuple):
    """One slot, request or file that went otherwise."""

    key: Key
    kind: str
    """verdict: another end. rule: the same for another reason. time: it starts at another time. new, gone: it is only
    in one of the two."""
    recorded: Told | None
    again: Told | None


def differences(found: Comparison) -> Iterator[Difference]:
    """In the order of time."""
    recorded, again = found.recorded.told, found.again.told
    keys = sorted({*recorded, *again}, key=lambda key: ((recorded.get(key) or again[key]).at_ms, str(key)))
    for key in keys:
        before, after = recorded.get(key), again.get(key)
        if before is None or after is None:
            kind = "new" if before is None else "gone"
        elif before.verdict != after.verdict:
            kind = "verdict"
        elif before.started_ms is not None and abs(before.started_ms - (after.started_ms or 0)) > MOVED_MS:
            kind = "time"
        elif before.rule != after.rule:
            kind = "rule"
        else:
            continue
        yield Difference(key, kind, before, after)


def reordered(found: Comparison) -> int:
    """How many of the runs that started in both stand elsewhere in the order of starts: all but the longest part whose
    order is the same."""
    place = {key: number for number, key in enumerate(found.recorded.order)}
    ends: list[int] = []
    common = 0
    for key in found.again.order:
        if (number := place.get(key)) is None:
            continue
        common += 1
        at = bisect_left(ends, number)
        ends[at : at + 1] = [number]
    return common - len(ends)


def waits_ms(told: Iterable[Told]) -> list[int]:
    return sorted(wait for one in told if (wait := one.wait_ms) is not None)
