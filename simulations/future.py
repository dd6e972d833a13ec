"""What would be decided, and what would come of it, from a graph onward: the planner, the projector and the rules of
the daemon that ships, with the time of a make-believe machine.

It is the loop without its doors: no bytes of a ledger, no hash, no process. Look, plan, record and act are done here
by the same functions in the same order; that they give the same decisions as the loop itself is a test
(tests/test_simulations_future.py holds one against the other). It looks only when something has changed, because a look
at what has not changed decides nothing.

What it assumes: a start takes no time; a process that is told to stop ends at once; programs, models and secrets are
all there; nobody starts, cancels or pauses anything; no file arrives; nobody else holds a lease. An upgrade of
repositories is one run that takes as long as it took before: what git would say is `simulations.fleet`'s.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from ledger.instant import Now, text_of
from ledger.record import Draft, Record
from policies.agenda import NEVER_MS, Agenda
from policies.decision import choose
from policies.outcome import accepts, judge
from policies.policy import SchedulingPolicy
from policies.question import ask
from policies.reaction import finished, overdue_ms, react
from policies.survey import survey
from simulations.habits import Fate
from state.graph import WITH_PROCESS, Graph, Run
from state.projector import apply

Json = Any

ROUNDS_MAX = 10_000


class Witness(Protocol):
    """Who is told of what happens."""

    def decided(self, decision: Mapping[str, Json], wall_ms: int) -> None: ...
    def ended(self, run: Run, event: Mapping[str, Json], wall_ms: int) -> None: ...


class Endless(Exception):
    """The looks at one instant never come to an end: a bug of ours."""


class Future:
    def __init__(
        self,
        graph: Graph,
        policy: SchedulingPolicy,
        fate_of: Callable[[Run, int], Fate],
        witness: Witness,
        now: Now,
    ) -> None:
        """`fate_of`: what becomes of a run's attempt that begins at an instant (ms of the wall)."""
        self.graph, self.policy = graph, policy
        self.agenda = Agenda.of(graph)
        self._fate_of, self._witness = fate_of, witness
        self.wall_ms, self.boot_ms = now.wall_ms, now.boot_ms
        self._ends: list[tuple[int, int, str, int, Fate]] = []
        self._given = 0
        self._told: list[tuple[str, int, Fate]] = []
        self._stamp_ms, self._stamp = -1, ""
        self.preflight: Mapping[str, str] = {}
        """Run -> why it cannot start here."""
        self.records = 0

    # Time.

    def move_to(self, wall_ms: int) -> None:
        """Let time pass, without a look."""
        self.boot_ms += wall_ms - self.wall_ms
        self.wall_ms = wall_ms

    def next_ms(self) -> int:
        """When something is due, or ends; NEVER_MS if nothing ever is."""
        graph, wall_ms = self.graph, self.wall_ms
        found = NEVER_MS if self._ends == [] else self._ends[0][0]
        if not graph.here.paused and (at := self.agenda.next_ms()) is not None:
            found = min(found, at)
        for run in self.agenda.queue.stirring.values():
            if run.not_before_ms > wall_ms:
                found = min(found, run.not_before_ms)
        for run in graph.holding.values():
            if (at := overdue_ms(run)) is not None:
                found = min(found, wall_ms + max(0, at - self.boot_ms))
        return max(found, wall_ms)

    def pass_until(self, until_ms: int) -> None:
        """Live on through everything that happens before an instant."""
        while (next_ms := self.next_ms()) < until_ms:
            self.move_to(next_ms)
            self.look()
        self.move_to(max(until_ms, self.wall_ms))

    def delay_ends(self, by_ms: int) -> None:
        """Processes stood still so long."""
        self._ends = [(at + by_ms, *rest) for at, *rest in self._ends]  # type: ignore[misc]

    def lose_power(self) -> None:
        """Every process dies unseen."""
        self._told += [(run, attempt, Fate(0, None)) for _, _, run, attempt, _ in sorted(self._ends)]
        self._ends.clear()

    # What happens.

    def record(self, type_: str, subject: str, data: Mapping[str, Json], *, tv: int = 1) -> Record:
        """Fold an event into the graph, as if it had been recorded now."""
        if self.wall_ms != self._stamp_ms:
            self._stamp_ms, self._stamp = self.wall_ms, text_of(self.wall_ms)
        seq = self.graph.seq + 1
        self.records += 1
        record = Record(
            seq, 1, seq, False, self._stamp, self.boot_ms * 1_000_000, type_, tv, subject, None, None, None,
            data if type(data) is dict else dict(data), "",
        )  # fmt: skip
        self.fold(record)
        return record

    def fold(self, record: Record) -> None:
        """Take a recorded event as it is. It says what time it is to the caller, not here."""
        patch = apply(self.graph, record)
        self.graph.merge(patch, record.seq)
        self.agenda.follow(patch.put, self.graph)

    def take(self, draft: Draft) -> None:
        self.record(draft.type, draft.subject, draft.data)

    def runs_already(self, run: Run, ends_ms: int, fate: Fate) -> None:
        """A process that is under way, and when it will end."""
        self._push(run, ends_ms, fate)

    def look(self) -> None:
        """Everything that follows at this instant."""
        for _ in range(ROUNDS_MAX):
            self._take_ends()
            now = Now(self.wall_ms * 1_000_000, self.boot_ms * 1_000_000)
            stirred = False
            while follows := react(self.graph, now):
                stirred = True
                for event in follows:
                    self._react(event)
            started, goes_on = self._plan()
            for name, attempt in started:
                self.start(name, attempt)
            # What has begun is news, as its report is to the loop: who was refused may be so for another reason now.
            heard = bool(started) and self._anything_to_ask()
            if not (heard or goes_on or stirred or self._told or self._anything_over()):
                return
        raise Endless(f"{ROUNDS_MAX} looks in a row at {text_of(self.wall_ms)} had news")

    def _anything_over(self) -> bool:
        return bool(self._ends) and self._ends[0][0] <= self.wall_ms

    def _take_ends(self) -> None:
        while self._anything_over():
            _, _, run, attempt, fate = heapq.heappop(self._ends)
            self._told.append((run, attempt, fate))
        told, self._told = self._told, []
        for name, attempt, fate in told:
            run_now = self.graph.run(name)
            if run_now is not None and accepts(run_now, attempt):
                self._finish(run_now, fate)

    def _finish(self, run: Run, fate: Fate) -> None:
        expects = run.spec.get("expects") if fate.code == 0 else ()
        unmet = fate.unmet if expects else ""
        used: dict[str, Json] = {"expected": {"met": not unmet, "why": unmet}} if expects else {}
        if fate.tokens is not None and (run.spec.get("kind") == "inference" or run.tokens):
            used["tokens"] = fate.tokens
        verdict = judge(
            run, self.wall_ms, code=fate.code, signal_number=fate.signal, unstarted=fate.unstarted, unmet=unmet,
            jitter_percent=self.policy.retry_jitter_percent,
        )  # fmt: skip
        retry_at = None if verdict.retry_at_ms is None else text_of(verdict.retry_at_ms)
        event = finished(
            run, verdict.outcome, verdict.reason, code=fate.code, signal=fate.signal, retry_at=retry_at, **used
        )
        self._end(run, event)

    def _end(self, run: Run, event: Draft) -> None:
        self.take(event)
        self._witness.ended(run, event.data, self.wall_ms)

    def _react(self, event: Draft) -> None:
        """A run that is told to stop does so at once; the other reactions are facts already."""
        if event.type == "run.finished":
            run = self.graph.run(event.data["run"])
            assert run is not None
            self._end(run, event)
            return
        self.take(event)
        if event.type == "run.stopping":
            name, attempt = event.data["run"], event.data["attempt"]
            left = [entry for entry in self._ends if (entry[2], entry[3]) != (name, attempt)]
            if len(left) < len(self._ends):
                heapq.heapify(left)
                self._ends = left
                self._told.append((name, attempt, Fate(0, None, 15)))

    def _plan(self) -> tuple[list[tuple[str, int]], bool]:
        """Ask the planner until it has no more to say. What it has started, and whether something may follow from it
        at once: not from runs with a process of their own that start or wait, as the loop has it."""
        started: list[tuple[str, int]] = []
        goes_on = False
        more = self._anything_to_ask()
        while more:
            question = ask(self.graph, self.agenda, self.policy, self.wall_ms)
            if any(container.wanted for container in question.agents):  # An upgrade is one run here, with one end.
                agents = tuple(container for container in question.agents if not container.wanted)
                question = replace(question, agents=agents)
            if self.preflight:
                question.preflight.update(self.preflight)
            decisions, more, _ = choose(question, survey(question))
            if not decisions:
                break
            started += self.follow(decisions)
            goes_on = goes_on or bool(self.graph.contested) or any(self._stirs(decided) for decided in decisions)
        return started, goes_on

    def _stirs(self, decided: Mapping[str, Json]) -> bool:
        run = self.graph.holding.get(decided["run"])
        return decided["verdict"] != "deferred" and (run is None or run.spec.get("kind") == "agent")

    def follow(self, decisions: list[dict[str, Json]]) -> list[tuple[str, int]]:
        """Record a plan; the attempts that it starts."""
        tick = self.graph.here.tick + 1
        data = {
            "tick": tick, "wall_ms": self.wall_ms, "boot_ms": self.boot_ms, "preflight": {}, "decisions": decisions,
            "inputs": {}, "decision_hash": "",
        }  # fmt: skip
        self.record("plan.decided", f"plan/{tick}", data)
        for decided in decisions:
            self._witness.decided(decided, self.wall_ms)
        return [(decided["run"], decided["attempt"]) for decided in decisions if decided["verdict"] == "started"]

    def _anything_to_ask(self) -> bool:
        """Whether the question would be about anything: a slot, a request, a file, a run that waits, an agent's."""
        graph, agenda, wall_ms = self.graph, self.agenda, self.wall_ms
        if graph.requests or graph.arrivals:
            return True
        if not graph.here.paused and (
            agenda.ready(wall_ms) or ((at := agenda.next_ms()) is not None and at <= wall_ms)
        ):
            return True
        if len(agenda.queue) or any(run.not_before_ms <= wall_ms for run in agenda.queue.stirring.values()):
            return True
        return any(run.spec.get("kind") == "agent" for run in graph.holding.values())

    def start(self, name: str, attempt: int) -> None:
        """Begin a granted attempt; not if it has been taken back meanwhile."""
        run = self.graph.run(name)
        if run is None or run.attempt != attempt or run.state not in WITH_PROCESS or run.spec.get("kind") == "agent":
            return
        fate = self._fate_of(run, self.wall_ms)
        if fate.unstarted:
            self._told.append((name, attempt, fate))
            return
        about = {"run": name, "attempt": attempt, "token": run.token, "pid": 1, "process_started": 1}
        self.record("run.started", run.id, about)
        self._push(run, self.wall_ms + fate.ms, fate)

    def _push(self, run: Run, ends_ms: int, fate: Fate) -> None:
        self._given += 1
        heapq.heappush(self._ends, (ends_ms, self._given, run.name, run.attempt, fate))
