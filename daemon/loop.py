"""The loop: look -> plan -> record -> act -> view.

`tick` is all of it. It decides nothing: what follows from the facts is said by `policies`, and what is done is read off
the records that have just become durable. Every door it uses comes in from outside, so the same loop runs in the
simulated world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from daemon.order import Surroundings, Unfillable, order_of, task_to_check
from daemon.ports import Began, Clock, CommandTask, Ended, InferenceTask, PythonTask, Report, Spawner, SpawnError
from ledger.artifacts import Artifacts
from ledger.disk import Disk
from ledger.errors import Full
from ledger.instant import Now, ms_of, text_of
from ledger.ledger import Ledger
from ledger.reader import read
from ledger.record import Draft, Record
from ledger.segment import Writer
from policies import adoption, foreign
from policies.agenda import Agenda
from policies.decision import decide
from policies.outcome import accepts, judge
from policies.policy import SchedulingPolicy
from policies.question import ask
from policies.reaction import finished, overdue_ms, react
from policies.request import Declined, accept
from policies.survey import Candidate
from state import views
from state.events import draft
from state.graph import WITH_PROCESS, Graph, Run
from state.projector import apply

Json = Any

VIEW_EVERY_MS = 250
VIEW_SHARE = 20
"""Views of a large graph are published less often: they take at most one part in so many of the loop's time."""
RETRY_WHEN_FULL_MS = 5_000
LOOK_AT_LEASES = frozenset({"leases", "timer", "start", "clock", "housekeeping"})
"""Reasons to read the lease files again. The last two, because a holder that is killed changes no file."""


class Request(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def verb(self) -> str: ...
    @property
    def args(self) -> Mapping[str, Json]: ...
    @property
    def actor(self) -> str: ...


class Asked(Protocol):
    """A request that waits for its answer."""

    @property
    def request(self) -> Request: ...
    @property
    def answer(self) -> Callable[[Json], None]: ...
    @property
    def fail(self) -> Callable[[str, str, str], None]: ...


class Leases(Protocol):
    """The lease files beside the ledger."""

    def seen(self) -> Iterable[foreign.SeenLease]: ...
    def publish(self, key: str, holder: str, token: int) -> str | None:
        """Write our lease file; the holder's name if an unexpired foreign one is there."""

    def withdraw(self, key: str, token: int) -> None: ...
    def sync(self, ours: Mapping[str, tuple[str, int]]) -> None: ...


class Outputs(Protocol):
    """What an attempt has left in its folder."""

    def measure(self, run: str, attempt: int) -> dict[str, Json]: ...
    def read(self, run: str, attempt: int, name: str) -> bytes | str:
        """A promised file's content, or why there is none."""


@dataclass(frozen=True, slots=True)
class Doors:
    """Everything the loop reaches the world by."""

    clock: Clock
    disk: Disk
    spawner: Spawner
    leases: Leases
    outputs: Outputs
    requests: Callable[[], Sequence[Asked]]
    jobs: Callable[[], tuple[Mapping[str, adoption.Accepted], list[adoption.Problem]]]
    """What the job files say, as last read."""
    policy: Callable[[], tuple[SchedulingPolicy, str]]
    """The policy in force and what is wrong with the override ("" if nothing; then it is the last good one)."""
    resources: Callable[[], dict[str, Json]]
    preflight: Callable[[CommandTask | PythonTask | InferenceTask, Mapping[str, str]], str | None]
    set_timer: Callable[[int | None], None]
    worker_deadline: Callable[[], int | None]
    """When the spawner wants to be called next (CLOCK_BOOTTIME, ms)."""


class Loop:
    def __init__(self, doors: Doors, around: Surroundings, writer: Writer, started: Mapping[str, Json]) -> None:
        """`started` is the data of `daemon.started`."""
        self.doors, self.around = doors, around
        self._writer, self._started = writer, started
        self._artifacts = Artifacts(doors.disk)
        self.graph = Graph()
        self.agenda = Agenda()
        self.policy, self._policy_problem = doors.policy()
        self._reports: list[Report] = []
        self._unstarted: list[tuple[str, int, str]] = []
        self._refused: list[tuple[str, int, int, str, str]] = []
        self._answers: list[tuple[Asked, Json]] = []
        self._staged: list[Record] = []
        self._published: dict[str, int] = {}
        self._last: Now | None = None
        self._view_dirty = False
        self._view_at_ms = 0
        self._full_until_ms = 0
        self._again: frozenset[str] = frozenset({"start"})
        self.view_problem = ""
        self.completed: Now | None = None

    def begin(self) -> None:
        """Take the ledger, replay it, take up what earlier daemons left running. The ledger's errors come through."""
        now = self.doors.clock.now()
        self.ledger = Ledger.open(self.doors.disk, self._writer, now)
        self._replay()
        self._stage(draft("daemon.started", "daemon", dict(self._started)), now)
        self._stage(draft("resources.sampled", "node/here", self.doors.resources()), now)
        self._adopt_policy(now)
        self._adopt_jobs(now)
        self._staged.clear()
        self.ledger.commit()
        self._view_dirty = True
        ours = {key: (lease.holder, lease.token) for key, lease in self.graph.leases.items() if not lease.foreign}
        self.doors.leases.sync(ours)
        self._published = {key: token for key, (_, token) in ours.items()}
        for run in list(self.graph.active.values()):
            if run.state in WITH_PROCESS and run.spec.get("kind") != "agent":
                self._resume(run)

    def tick(self, reasons: frozenset[str] = frozenset()) -> bool:
        """look -> plan -> record -> act -> view. True if something was recorded: there may be more to do at once."""
        now = self.doors.clock.now()
        reasons, self._again = reasons | self._again, frozenset()
        self._look(now, reasons)
        self._plan(now)
        recorded = self._record(now)
        self._act(recorded)
        self._view(now)
        self._arm(now)
        self._last = self.completed = now
        return bool(recorded)

    def end(self, reason: str) -> None:
        """Say goodbye in the ledger, publish the last views, and leave the workers running."""
        now = self.doors.clock.now()
        try:
            self._stage(draft("daemon.stopped", "daemon", {"reason": reason}), now)
            self.ledger.commit()
            views.publish(self.doors.disk, self.graph, self.ledger.head)
        except Full:
            pass  # No room to say goodbye; the ledger is whole without it, and the next start says what it finds.
        self.ledger.close()

    def _replay(self) -> None:
        self.graph, self.agenda = Graph(), Agenda()
        last = None
        for record in read(self.doors.disk):
            patch = apply(self.graph, record)
            self.graph.merge(patch, record.seq)
            last = record
        self.agenda = Agenda.of(self.graph)
        if self._last is None and last is not None and self.graph.here.boot_id == self.doors.clock.boot_id:
            self._last = Now(ms_of(last.ts) * 1_000_000, last.mt)

    def _stage(self, event: Draft, now: Now) -> Record:
        record = self.ledger.stage(event, now)
        patch = apply(self.graph, record)
        self.graph.merge(patch, record.seq)
        self.agenda.follow(patch.put, self.graph)
        self._staged.append(record)
        return record

    def _look(self, now: Now, reasons: frozenset[str]) -> None:
        """Stage what has happened, and what follows from it at once."""
        self._note_jump(now)
        if "policies" in reasons:
            self.policy, self._policy_problem = self.doors.policy()
            self._adopt_policy(now)
        if "jobs" in reasons:
            self._adopt_jobs(now)
        for name, attempt, token, key, holder in self._refused:
            data = {"run": name, "attempt": attempt, "token": token, "key": key, "holder": holder}
            self._stage(draft("lease.refused", f"run/{name}", data), now)
        if self._refused or reasons & LOOK_AT_LEASES:
            for event in foreign.changes(self.graph, self.doors.leases.seen(), now.boot_ms):
                self._stage(event, now)
        if "housekeeping" in reasons and self.graph.active:
            self._sample(now)
        self._take_reports(now)
        self._take_requests(now)
        while follows := react(self.graph, now):
            for event in follows:
                self._stage(event, now)

    def _plan(self, now: Now) -> None:
        """Ask the planner, and stage its answer if it has one."""
        more = True
        while more:
            question = ask(self.graph, self.agenda, self.policy, now.wall_ms)
            plan = decide(question, check=self._preflight)
            if not plan.decisions:
                return
            more = plan.more
            data = {
                "tick": self.graph.here.tick + 1,
                "wall_ms": now.wall_ms,
                "boot_ms": now.boot_ms,
                "preflight": question.preflight,
                "decisions": list(plan.decisions),
                "inputs": plan.inputs,
                "decision_hash": plan.decision_hash,
            }
            self._stage(draft("plan.decided", f"plan/{data['tick']}", data), now)

    def _preflight(self, candidate: Candidate) -> str:
        if candidate.spec.get("kind") == "agent":
            return ""  # Its steps are checked one by one, when they could start.
        try:
            task, env = task_to_check(
                self.around, self.graph, candidate.run, candidate.attempt, candidate.spec, candidate.parent
            )
        except Unfillable as error:
            return str(error)
        return self.doors.preflight(task, env) or ""

    def _record(self, now: Now) -> list[Record]:
        """Make what is staged durable. Without room on the disk nothing of it has happened, and it is tried again."""
        try:
            self.ledger.commit()
        except Full:
            self._staged.clear()
            self._full_until_ms = now.boot_ms + RETRY_WHEN_FULL_MS
            self._replay()
            for asked, _ in self._answers:
                asked.fail("full", "there is no room on the disk to record this", "free some space and ask again")
            self._answers.clear()
            self._again = frozenset({"jobs", "policies", "leases"})
            return []
        self._full_until_ms = 0
        self._reports.clear()
        self._unstarted.clear()
        self._refused.clear()
        recorded, self._staged = self._staged, []
        return recorded

    def _act(self, recorded: list[Record]) -> None:
        """Carry out what is durable, and nothing else."""
        for record in recorded:
            if record.type == "plan.decided":
                for decided in record.data["decisions"]:
                    if decided["verdict"] == "started":
                        self._start(decided["run"], decided["attempt"])
            elif record.type == "run.stopping":
                run = self.graph.run(record.data["run"])
                if run is not None and run.state == "stopping" and run.spec.get("kind") != "agent":
                    self.doors.spawner.stop(run.name, run.attempt, force=record.data["force"])
            elif record.type == "run.adopted":
                run = self.graph.run(record.data["run"])
                if run is not None and run.state == "stopping":  # The signal may have been ordered and not sent.
                    self.doors.spawner.stop(run.name, run.attempt, force=run.forced)
        for key, token in list(self._published.items()):
            lease = self.graph.leases.get(key)
            if lease is None or lease.token != token:
                self.doors.leases.withdraw(key, token)
                del self._published[key]
        for asked, answer in self._answers:
            asked.answer(answer)
        self._answers.clear()
        self._view_dirty = self._view_dirty or bool(recorded)

    def _view(self, now: Now) -> None:
        """Publish the views, coalesced."""
        if self._view_dirty and now.boot_ms >= self._view_at_ms:
            try:
                views.publish(self.doors.disk, self.graph, self.ledger.head)
                self.ledger.note_head()
            except (Full, OSError) as error:
                self.view_problem = str(error)
            else:
                self.view_problem, self._view_dirty = "", False
            ended_ms = self.doors.clock.now().boot_ms
            self._view_at_ms = ended_ms + max(VIEW_EVERY_MS, VIEW_SHARE * (ended_ms - now.boot_ms))

    def _arm(self, now: Now) -> None:
        """Set the one timer to the next instant at which something is due."""
        wall = [at for at in (self.agenda.next_ms(),) if at is not None]
        boot = [at for at in (self.doors.worker_deadline(),) if at is not None]
        for run in self.graph.active.values():
            if run.state == "backoff":
                wall.append(run.retry_at_ms)
            elif (at := overdue_ms(run)) is not None:
                boot.append(at)
        boot += [lease.expires_boot_ms for lease in self.graph.leases.values() if lease.expires_boot_ms]
        if self._view_dirty:
            boot.append(self._view_at_ms)
        if self._full_until_ms:
            wall, boot = [], [self._full_until_ms]
        wall += [now.wall_ms + max(0, at - now.boot_ms) for at in boot]
        self.doors.set_timer(min(wall) if wall else None)

    def _note_jump(self, now: Now) -> None:
        if self._last is None:
            return
        jump_ms = (now.wall_ms - self._last.wall_ms) - (now.boot_ms - self._last.boot_ms)
        if abs(jump_ms) > self.policy.clock_jump_ms:
            self._stage(draft("clock.jumped", "node/here", {"jump_ms": jump_ms, "wall": text_of(now.wall_ms)}), now)

    def _adopt_policy(self, now: Now) -> None:
        if self.graph.policy.digest != self.policy.digest():
            data = {"digest": self.policy.digest(), "policy": self.policy.model_dump()}
            self._stage(draft("policy.adopted", "policy/scheduling", data), now)
        if self._policy_problem and self.graph.policy.rejected != self._policy_problem:
            data = {"source": "policies/scheduling.yaml", "message": self._policy_problem}
            self._stage(draft("policy.rejected", "policy/scheduling", data), now)

    def _adopt_jobs(self, now: Now) -> None:
        for event in adoption.changes(self.graph, *self.doors.jobs()):
            self._stage(event, now)

    def _sample(self, now: Now) -> None:
        sample, here = self.doors.resources(), self.graph.here
        if any(getattr(here, name) != value for name, value in sample.items()):
            self._stage(draft("resources.sampled", "node/here", sample), now)

    def _take_reports(self, now: Now) -> None:
        self._reports += self.doors.spawner.collect()
        for name, attempt, why in self._unstarted:
            self._finish(name, Ended(name, attempt, None), now, unstarted=why)
        for report in self._reports:
            run = self.graph.run(report.run)
            if run is None:
                continue  # Its run has left the graph by the keep rule: the ledger has its end already.
            if not accepts(run, report.attempt):
                data = {
                    "run": run.name,
                    "attempt": report.attempt,
                    "latest_attempt": run.attempt,
                    "report": repr(report),
                }
                self._stage(draft("run.fenced", run.id, data), now)
            elif isinstance(report, Began):
                data = {"run": run.name, "attempt": run.attempt, "token": run.token}
                data |= {"pid": report.pid, "process_started": report.started}
                self._stage(draft("run.adopted" if run.pid else "run.started", run.id, data), now)
            else:
                self._finish(run.name, report, now)

    def _finish(self, name: str, report: Ended, now: Now, *, unstarted: str = "") -> None:
        run = self.graph.run(name)
        if run is None or run.state not in WITH_PROCESS:
            return
        notes = [report.note] if report.note else []
        if report.code == 0:
            notes += self._keep_outputs(run, now)
        verdict = judge(
            run, now.wall_ms, code=report.code, signal_number=report.signal, note="; ".join(notes), unstarted=unstarted
        )
        event = finished(
            run,
            verdict.outcome,
            verdict.reason,
            code=report.code,
            signal=report.signal,
            retry_at=None if verdict.retry_at_ms is None else text_of(verdict.retry_at_ms),
            cpu_ms=report.cpu_ms,
            rss_kib=report.rss_kib,
            outputs={} if unstarted else self.doors.outputs.measure(run.name, run.attempt),
        )
        self._stage(event, now)

    def _keep_outputs(self, run: Run, now: Now) -> list[str]:
        """The promised files become artifacts, durable before the event that names them. What is missing is said."""
        missing = []
        for name in run.spec.get("outputs", ()):
            content = self.doors.outputs.read(run.name, run.attempt, name)
            if isinstance(content, str):
                missing.append(content)
                continue
            data = {"run": run.name, "name": name, "digest": self._artifacts.put(content), "bytes": len(content)}
            self._stage(draft("artifact.stored", run.id, data), now)
        return missing

    def _take_requests(self, now: Now) -> None:
        for asked in self.doors.requests():
            request = asked.request
            try:
                event, answer = accept(self.graph, request.verb, request.id, request.args, request.actor, now.wall_ms)
            except Declined as declined:
                asked.fail(declined.code, declined.message, declined.advice)
                continue
            if event is not None:
                self._stage(event, now)
            self._answers.append((asked, answer))

    def _start(self, name: str, attempt: int) -> None:
        run = self.graph.run(name)
        if run is None or run.attempt != attempt or run.state not in ("granted", "running"):
            return
        for key in run.leases:
            holder = self.doors.leases.publish(key, run.name, run.token)
            if holder is not None:
                self._refused.append((name, attempt, run.token, key, holder))
                return
            self._published[key] = run.token
        if run.spec.get("kind") == "agent":
            return
        try:
            self.doors.spawner.start(order_of(self.around, self.graph, run))
        except (SpawnError, Unfillable) as error:
            self._unstarted.append((name, attempt, str(error)))

    def _resume(self, run: Run) -> None:
        try:
            order = order_of(self.around, self.graph, run)
            self.doors.spawner.resume(order, run.pid or None, run.process_started or None)
        except (SpawnError, Unfillable) as error:
            self._unstarted.append((run.name, run.attempt, str(error)))
