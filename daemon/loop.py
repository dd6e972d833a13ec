"""The loop: look -> plan -> record -> act -> view.

`tick` is all of it. It decides nothing: what follows from the facts is said by `policies`, and what is done is read off
the records that have just become durable. Every door it uses comes in from outside, so the same loop runs in the
simulated world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from daemon.checks import Checks
from daemon.errand import MARK, Errands
from daemon.order import Surroundings, Task, Unfillable, order_of, order_to_watch, task_to_check, without_secrets
from daemon.outbox import Outbox
from daemon.ports import (
    Began,
    Clock,
    CommandTask,
    Ended,
    InferenceTask,
    LeasesBusy,
    PythonTask,
    Report,
    Spawner,
    SpawnError,
)
from ledger.artifacts import Artifacts
from ledger.disk import Disk
from ledger.errors import Full
from ledger.instant import Now, ms_of, text_of
from ledger.ledger import Bounds, Ledger
from ledger.reader import read
from ledger.record import Draft, Record
from ledger.segment import Writer
from policies import adoption, foreign, notice, retention, told
from policies.agenda import Agenda
from policies.arrival import Look, Unsettled, news
from policies.clock import jumped
from policies.decision import decide
from policies.outcome import accepts, judge
from policies.policy import SchedulingPolicy
from policies.question import ask
from policies.reaction import finished, overdue_ms, react
from policies.request import Declined, accept
from policies.schedule import Files
from policies.survey import Candidate
from policies.upgrade import saga
from state import snapshot, views
from state.events import draft
from state.graph import OVER, WITH_PROCESS, Graph, Redacted, Run, is_container
from state.projector import apply

Json = Any

VIEW_EVERY_MS = 250
VIEW_SHARE = 40
"""Views of a large graph are published less often: they take at most one part in so many of the loop's time."""
RETRY_WHEN_FULL_MS = 5_000
CHECKED_MS = 100
"""What could start so short a time ago is not looked at again: a queue of one job's runs would ask for nothing else."""
CHECKED_KEPT = 1000
UNMET_CHARACTERS_MAX = 1000
TAKEN_UP_AT_ONCE = 100
"""A first start records so many jobs at a time: all at once would leave its memory full of holes."""
SNAPSHOT_EVERY = 20_000
"""A start replays at most about so many events behind the newest snapshot: less than a second."""
SNAPSHOT_AT_STOP = 1_000
"""A stop keeps a snapshot if so many events have passed since the last one; below, replay is as quick."""
LOOK_AT_LEASES = frozenset({"leases", "timer", "start", "clock", "housekeeping"})
"""Reasons to read the lease files again. The last two, because a holder that is killed changes no file."""


LOOK_FOR_FILES = frozenset({"files", "jobs", "start", "clock", "housekeeping"})
"""Reasons to look for files that jobs wait for. The last, because not every file system tells of its changes."""


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
    def sync(self, ours: Mapping[str, tuple[str, int]]) -> Mapping[str, str]:
        """Make our lease files just these (key -> run, token); the keys that others hold, and who."""


class Arrivals(Protocol):
    """The files that jobs wait for."""

    def look(self, wanted: Mapping[str, Files]) -> None:
        """Look for these, by job, and for no others any more. What was found follows by `found`."""

    def found(self) -> Sequence[Look]:
        """The looks that have ended since the last call; never waits."""


class Outputs(Protocol):
    """What an attempt has left in its folder."""

    def measure(self, run: str, attempt: int) -> dict[str, Json]: ...
    def read(self, run: str, attempt: int, name: str) -> bytes | str:
        """A promised file's content, or why there is none."""

    def unmet(self, run: str, attempt: int, expects: Sequence[Mapping[str, Json]]) -> str:
        """What is expected of a success and is not there; "" if all is."""

    def tokens(self, run: str, attempt: int) -> int | None:
        """How many tokens it says it has used."""

    def result(self, run: str, attempt: int) -> Json:
        """What it returned; None if that cannot be read."""

    def forget(self, run: str) -> None:
        """Delete what all attempts of a run have left."""

    def errands(self) -> list[str]:
        """The names under which errands have left something."""


@dataclass(frozen=True, slots=True)
class Doors:
    """Everything the loop reaches the world by."""

    clock: Clock
    disk: Disk
    spawner: Spawner
    leases: Leases
    outputs: Outputs
    arrivals: Arrivals
    requests: Callable[[], Sequence[Asked]]
    jobs: Callable[[], tuple[Mapping[str, adoption.Accepted | adoption.Unread], list[adoption.Problem]]]
    """What the job files say, as last read."""
    policy: Callable[[], tuple[SchedulingPolicy, str]]
    """The policy in force and what is wrong with the override ("" if nothing; then it is the last good one)."""
    resources: Callable[[], dict[str, Json]]
    preflight: Callable[[CommandTask | PythonTask | InferenceTask, Mapping[str, str]], str | None]
    set_timer: Callable[[int | None], None]
    worker_deadline: Callable[[], int | None]
    """When the spawner wants to be called next (CLOCK_BOOTTIME, ms)."""
    bounds: Bounds | None = None
    """Of the ledger's segments; None for the ledger's own."""
    upgrades: Callable[[], Mapping[str, Json]] = dict
    """The values of the upgrade policy in force."""
    anywhere: bool = False
    """Whether the home may lie on a network or FUSE file system."""


class Loop:
    def __init__(self, doors: Doors, around: Surroundings, writer: Writer, started: Mapping[str, Json]) -> None:
        """`started` is the data of `daemon.started`."""
        self.doors, self.around = doors, around
        self._writer, self._started = writer, started
        self._artifacts = Artifacts(doors.disk)
        self.graph = Graph()
        self.agenda = Agenda()
        self.policy, self._policy_problem = doors.policy()
        self._errands = Errands(doors.spawner)
        self._outbox = Outbox(around, self._errands, doors.outputs)
        self._checks = Checks(around, self._errands, doors.outputs)
        self._reports: list[Report] = []
        self._unstarted: list[tuple[str, int, str]] = []
        self._refused: list[tuple[str, int, int, str, str]] = []
        self._answers: list[tuple[Asked, Json]] = []
        self._looks: dict[str, Look] = {}
        self._unsettled: dict[str, Unsettled] = {}
        self._settles: dict[str, int | None] = {}
        self._staged: list[Record] = []
        self._forgotten: list[str] = []
        self._published: dict[str, int] = {}
        self._checked: dict[int, tuple[Task, int]] = {}
        self._last: Now | None = None
        self._view_dirty = False
        self._view_at_ms = 0
        self._full_until_ms = 0
        self._again: frozenset[str] = frozenset({"start"})
        self.view_problem = ""
        self.problems: dict[str, str] = {}
        """What does not go well and stops nothing, for `hermesd status`."""
        self.trusted_seq = 0
        """The record up to which sealed segments were not read at the start, because a snapshot stands for them; that
        their bytes are whole is the auditor's word."""
        self.snapshot_seq = 0
        """The record that the newest snapshot stands at; 0 while there is none."""
        self.snapshot_every, self.snapshot_at_stop = SNAPSHOT_EVERY, SNAPSHOT_AT_STOP
        self.milestones = snapshot.MILESTONES
        self.completed: Now | None = None

    def begin(self) -> None:
        """Take the ledger, replay it, take up what earlier daemons left running. The ledger's errors come through."""
        now = self.doors.clock.now()
        kept = next(snapshot.usable(self.doors.disk, self._started["code"]), None)
        self.ledger = Ledger.open(
            self.doors.disk,
            self._writer,
            now,
            anywhere=self.doors.anywhere,
            bounds=self.doors.bounds,
            # What is read below is hashed before anything is changed: who refuses to start has changed nothing.
            trusted_seq=kept.head.seq - 1 if kept is not None else 0,
        )
        self._replay(kept)
        self.trusted_seq = self.snapshot_seq
        self._stage(draft("daemon.started", "daemon", dict(self._started)), now)
        self._note_jump(now)
        self._stage(draft("resources.sampled", "node/here", self.doors.resources()), now)
        self._adopt_policy(now)
        for number, event in enumerate(adoption.changes(self.graph, *self.doors.jobs()), 1):
            self._stage(event, now)
            if number % TAKEN_UP_AT_ONCE == 0:
                self.ledger.commit()
                self._staged.clear()
        self.ledger.commit()
        self._staged.clear()
        self._last = now
        self._view_dirty = True
        redacted = [node for node in self.graph.nodes.values() if isinstance(node, Redacted)]
        self._redact([n.run for n in redacted if not n.digest], [n.digest for n in redacted if n.digest])
        for name in retention.left_over(self.graph, self.doors.outputs.errands()):
            self.doors.outputs.forget(name)
        ours = {key: (lease.holder, lease.token) for key, lease in self.graph.leases.items() if not lease.foreign}
        taken = self.doors.leases.sync(ours)
        self._published = {key: token for key, (_, token) in ours.items() if key not in taken}
        if stops := foreign.deprived(self.graph, taken):
            # Before anything is taken up: a step that has not begun is not to begin now.
            for event in stops:
                self._stage(event, now)
            self.ledger.commit()
            self._staged.clear()
        refused = foreign.refused(self.graph, taken)
        for run in list(self.graph.active.values()):
            if (key := refused.get(run.name)) is not None:
                self._refused.append((run.name, run.attempt, run.token, key, taken[key]))
            elif run.state in WITH_PROCESS and not is_container(run.spec):
                self._resume(run)

    def tick(self, reasons: frozenset[str] = frozenset()) -> bool:
        """look -> plan -> record -> act -> view. True if there may be more to do at once."""
        now = self.doors.clock.now()
        reasons, self._again = reasons | self._again, frozenset()
        self._look(now, reasons)
        self._plan(now)
        recorded = self._record(now)
        self._act(recorded)
        self._go_on_errands(now)
        self._view(now)
        if "housekeeping" in reasons:
            self._keep_snapshot(self.snapshot_every)
        self._arm(now)
        self.completed = now
        if not self._full_until_ms:  # Else a jump of the clock that could not be recorded would be forgotten.
            self._last = now
        return self._goes_on(recorded)

    def _goes_on(self, recorded: list[Record]) -> bool:
        """Whether something may follow from what was recorded that this look has not seen: from what could not begin,
        and from a plan that did more than let runs with a process of their own start or wait."""
        if self._unstarted or self._refused or self._looks:
            return bool(recorded)
        for record in recorded:
            if record.type == "plan.decided":
                if self.graph.contested:
                    return True
                for decided in record.data["decisions"]:
                    run = self.graph.holding.get(decided["run"])
                    waits = decided["verdict"] == "deferred"
                    if not waits and (run is None or is_container(run.spec)):
                        return True
        return False

    def end(self, reason: str) -> None:
        """Say goodbye in the ledger, publish the last views, and leave the workers running."""
        now = self.doors.clock.now()
        try:
            self._note_jump(now)
            self._stage(draft("daemon.stopped", "daemon", {"reason": reason}), now)
            self.ledger.commit()
            views.publish(self.doors.disk, self.graph, self.ledger.head)
            self._keep_snapshot(self.snapshot_at_stop)
        except (Full, OSError):
            pass  # No room to say goodbye; the ledger is whole without it, and the next start says what it finds.
        self.ledger.close()

    def _replay(self, kept: snapshot.Snapshot | None = None) -> None:
        restored = snapshot.restore(self.doors.disk, self._started["code"], first=kept)
        self.graph, self.snapshot_seq = restored.graph, restored.snapshot_seq
        self.agenda = Agenda.of(self.graph)
        # The last records are of this very opening; whether the clock was set meanwhile, the one before them tells.
        before = restored.before
        if self._last is None and before is not None and self.graph.here.boot_id == self.doors.clock.boot_id:
            self._last = Now(ms_of(before.ts) * 1_000_000, before.mt)

    def _stage(self, event: Draft, now: Now) -> Record:
        record = self.ledger.stage(event, now)
        patch = apply(self.graph, record)
        notices = notice.due(self.graph, record, self.policy)
        self.graph.merge(patch, record.seq)
        self.agenda.follow(patch.put, self.graph)
        self._staged.append(record)
        for name in patch.drop:
            kind, _, rest = name.partition("/")
            if kind in ("run", "notice"):
                self._forgotten.append(rest if kind == "run" else MARK + rest)
        for event in notices:
            self._stage(event, now)
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
        if "housekeeping" in reasons:
            if self.graph.active:
                self._sample(now)
            while (forgotten := retention.forgotten(self.graph, now.wall_ms)) is not None:
                self._stage(forgotten, now)
        self._look_for_files(now, reasons)
        self._take_reports(now)
        self._take_requests(now)
        self._react(now)

    def _react(self, now: Now) -> None:
        while follows := react(self.graph, now, self._checks.runs):
            for event in follows:
                self._stage(event, now)

    def _plan(self, now: Now) -> None:
        """Ask the planners, and stage their answers if they have any."""
        for event in saga.planned(self.graph, now.wall_ms, self.doors.upgrades) if self.graph.upgrades else ():
            self._stage(event, now)
            self._react(now)
        more = True
        while more:
            question = ask(self.graph, self.agenda, self.policy, now.wall_ms)
            plan = decide(question, check=self._preflight)
            if not plan.decisions:
                return
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
            more = plan.more and not foreign.may_be_refused(self.graph, plan.decisions)

    def _preflight(self, candidate: Candidate) -> str:
        if is_container(candidate.spec):
            return ""  # Its steps are checked one by one, when they could start.
        try:
            task, env = task_to_check(
                self.around,
                self.graph,
                candidate.run,
                candidate.attempt,
                candidate.spec,
                candidate.parent,
                candidate.file,
            )
        except Unfillable as error:
            return str(error)
        boot_ms = self.doors.clock.now().boot_ms
        known = self._checked.get(id(task))
        if known is not None and known[0] is task and boot_ms < known[1] + CHECKED_MS:
            return ""
        problem = self.doors.preflight(task, env) or ""
        if not problem:
            if len(self._checked) >= CHECKED_KEPT:
                self._checked.clear()
            self._checked[id(task)] = (task, boot_ms)
        return problem

    def _record(self, now: Now) -> list[Record]:
        """Make what is staged durable. Without room on the disk nothing of it has happened, and it is tried again."""
        try:
            self.ledger.commit()
        except Full:
            self._staged.clear()
            self._forgotten.clear()
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
        with self.doors.spawner.together():
            for record in recorded:
                self._carry_out(record)
        self._withdraw()
        for name in self._forgotten:
            self.doors.outputs.forget(name)
        self._forgotten.clear()
        for asked, answer in self._answers:
            asked.answer(answer)
        self._answers.clear()
        self._view_dirty = self._view_dirty or bool(recorded)

    def _withdraw(self) -> None:
        """Give back the files of leases that are over. One that cannot be given back now is asked for again."""
        self.problems.pop("leases", None)
        for key, token in list(self._published.items()):
            lease = self.graph.leases.get(key)
            if lease is None or lease.token != token:
                try:
                    self.doors.leases.withdraw(key, token)
                except (OSError, LeasesBusy) as error:
                    self.problems["leases"] = f"lease {key} is free, and its file says otherwise: {error}"
                    return
                del self._published[key]

    def _carry_out(self, record: Record) -> None:
        if record.type == "plan.decided":
            for decided in record.data["decisions"]:
                if decided["verdict"] == "started":
                    self._start(decided["run"], decided["attempt"])
        elif record.type == "run.stopping":
            run = self.graph.run(record.data["run"])
            if run is not None and run.state == "stopping" and not is_container(run.spec):
                self.doors.spawner.stop(run.name, run.attempt, force=record.data["force"])
        elif record.type == "run.adopted":
            run = self.graph.run(record.data["run"])
            if run is not None and run.state == "stopping":  # The signal may have been ordered and not sent.
                self.doors.spawner.stop(run.name, run.attempt, force=run.forced)
        elif record.type == "run.finished":
            name, attempt = record.data["run"], record.data["attempt"]
            if (left := self._checks.over(name, attempt)) is not None:
                self._forgotten.append(left)
            run = self.graph.run(name)
            # A step's folder is named to the steps behind it.
            if run is not None and run.state in OVER and not run.parent and not record.data["outputs"]:
                self.doors.spawner.recorded(name, attempt)
        elif record.type in ("notice.delivered", "notice.failed"):
            self._errands.over(MARK + record.data["notice"])
        elif record.type == "artifact.redacted":
            self._redact(record.data["runs"], record.data["digests"])

    def _go_on_errands(self, now: Now) -> None:
        """Tell those who are to be told, and look at what runs have left. Not while nothing can be recorded."""
        if not self._full_until_ms:
            self._outbox.deliver(self.graph, self.policy, now)
            self._checks.begin(now)
        self._errands.stop_overdue(now.boot_ms)

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

    def _keep_snapshot(self, every: int) -> None:
        """Keep the graph as of the head, if so many events have passed. Only between commits: nothing may be staged."""
        if self.ledger.head.seq - self.snapshot_seq < every or self._full_until_ms:
            return
        try:
            # Proven first: what a crash leaves unproven at the end may come to stand there under another hash.
            self.ledger.note_head(durable=True)
            disk, code, head = self.doors.disk, self._started["code"], self.ledger.head
            stored = snapshot.write(disk, self.graph, head, code, milestones=self.milestones)
        except (Full, OSError) as error:
            self.problems["snapshot"] = f"no snapshot can be kept, so that the next start will take longer: {error}"
        else:
            self.snapshot_seq = stored.seq
            self.problems.pop("snapshot", None)

    def _arm(self, now: Now) -> None:
        """Set the one timer to the next instant at which something is due."""
        wall = [at for at in (self.agenda.next_ms(),) if at is not None and not self.graph.here.paused]
        boot = [at for at in (self.doors.worker_deadline(),) if at is not None]
        wall += self._outbox.instants(self.graph, now)
        boot += self._errands.deadlines()
        checked, wall_ms = self._checks.runs, now.wall_ms
        wall += [r.not_before_ms for r in self.agenda.queue.stirring.values() if r.not_before_ms > wall_ms]
        for run in self.graph.holding.values():
            if (at := overdue_ms(run)) is not None and run.name not in checked:
                boot.append(at)
        boot += [at for at in self._settles.values() if at is not None]
        boot += [lease.expires_boot_ms for lease in self.graph.leases.values() if lease.expires_boot_ms]
        if self._view_dirty:
            boot.append(self._view_at_ms)
        if self._full_until_ms:
            wall, boot = [], [self._full_until_ms]
        wall += [now.wall_ms + max(0, at - now.boot_ms) for at in boot]
        self.doors.set_timer(min(wall) if wall else None)

    def _note_jump(self, now: Now) -> None:
        if (jump := jumped(self._last, now, self.policy)) is not None:
            self._stage(jump, now)

    def _adopt_policy(self, now: Now) -> None:
        known = self.graph.policy
        # Also where the last good one stands again: what was rejected is so no more.
        if known.digest != self.policy.digest() or (known.rejected and not self._policy_problem):
            data = {"digest": self.policy.digest(), "policy": self.policy.values()}
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

    def _look_for_files(self, now: Now, reasons: frozenset[str]) -> None:
        wanted = self.agenda.files(now.wall_ms)
        settled = any(at is not None and at <= now.boot_ms for at in self._settles.values())
        if (wanted or self._settles) and (settled or reasons & LOOK_FOR_FILES):
            self.doors.arrivals.look(wanted)
            self._settles = dict.fromkeys(wanted)
            self._unsettled = {job: self._unsettled.get(job, {}) for job in wanted}
        self._looks |= {look.job: look for look in self.doors.arrivals.found()}
        for job, look in sorted(self._looks.items()):
            if wanted.get(job) != look.wanted:  # It waits for others by now.
                del self._looks[job]
                continue
            found = news(self.graph, look, self._unsettled.get(job, {}))
            for event in found.events:
                self._stage(event, now)
            self._unsettled[job], self._settles[job] = found.unsettled, found.settles_boot_ms
            if not found.more:
                del self._looks[job]

    def _take_reports(self, now: Now) -> None:
        self._reports += self._errands.unstarted() + self.doors.spawner.collect()
        for name, attempt, why in self._unstarted:
            self._finish(name, Ended(name, attempt, None), now, unstarted=why)
        for report in self._reports:
            if report.run.startswith(MARK):
                self._errand_over(report, now)
                continue
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
            elif not self._checks.wanted(report, run.spec.get("expects", ())):
                self._finish(run.name, report, now)

    def _errand_over(self, report: Report, now: Now) -> None:
        if isinstance(report, Began):
            return
        if (known := self._checks.ended(report)) is not None:
            ended, unmet = known
            run = self.graph.run(ended.run)
            if run is not None and accepts(run, ended.attempt):
                self._finish(ended.run, ended, now, unmet=unmet)
        elif (event := self._outbox.ended(report, self.graph, self.policy, now)) is not None:
            self._stage(event, now)

    def _finish(self, name: str, report: Ended, now: Now, *, unstarted: str = "", unmet: str | None = None) -> None:
        """`unmet`: what is not as expected, where that has been looked at already."""
        run = self.graph.run(name)
        if run is None or run.state not in WITH_PROCESS:
            return
        notes = [report.note] if report.note else []
        outputs = self.doors.outputs
        expects = run.spec.get("expects") if report.code == 0 else ()
        if report.code == 0:
            notes += self._keep_outputs(run, now)
        if unmet is None:
            unmet = outputs.unmet(run.name, run.attempt, expects) if expects else ""
        unmet = unmet[:UNMET_CHARACTERS_MAX]
        used: dict[str, Json] = {"expected": {"met": not unmet, "why": unmet}} if expects else {}
        if run.spec.get("kind") == "inference" or run.tokens:
            tokens = None if unstarted else outputs.tokens(run.name, run.attempt)
            used |= {} if tokens is None else {"tokens": tokens}
        verdict = judge(
            run,
            now.wall_ms,
            code=report.code,
            signal_number=report.signal,
            note="; ".join(notes),
            unstarted=unstarted,
            unmet=unmet,
            jitter_percent=self.policy.retry_jitter_percent,
        )
        left: Mapping[str, Json] | None = {} if unstarted else report.outputs
        if left is None:
            left = outputs.measure(run.name, run.attempt)
        event = finished(
            run,
            verdict.outcome,
            verdict.reason,
            code=report.code,
            signal=report.signal,
            retry_at=None if verdict.retry_at_ms is None else text_of(verdict.retry_at_ms),
            cpu_ms=report.cpu_ms,
            rss_kib=report.rss_kib,
            outputs=left,
            **used,
        )
        if run.spec.get("kind") == "git":
            result = outputs.result(run.name, run.attempt) if report.code == 0 else None
            if (told := saga.told(self.graph, run, result, verdict.reason)) is not None:
                self._stage(told, now)
        self._stage(event, now)

    def _keep_outputs(self, run: Run, now: Now) -> list[str]:
        """The promised files become artifacts, durable before the event that names them. What is missing is said."""
        missing = []
        for name in run.spec.get("outputs", ()):
            content = self.doors.outputs.read(run.name, run.attempt, name)
            if isinstance(content, str):
                missing.append(content)
                continue
            try:
                digest = self._artifacts.put(content)
            except OSError as error:
                missing.append(f"{name} could not be kept, and stays in the run's folder: {error.strerror or error}")
                continue
            data = {"run": run.name, "name": name, "digest": digest, "bytes": len(content)}
            self._stage(draft("artifact.stored", run.id, data), now)
        return missing

    def _take_requests(self, now: Now) -> None:
        for asked in self.doors.requests():
            request = asked.request
            if request.verb == told.VERB:
                facts, answer = told.events(self.graph, request.args)
                for fact in facts:
                    self._stage(fact, now)
                self._answers.append((asked, answer))
                continue
            try:
                event, answer = accept(
                    self.graph, request.verb, request.id, request.args, request.actor, now.wall_ms, self._spec_at
                )
            except Declined as declined:
                asked.fail(declined.code, declined.message, declined.advice)
                continue
            if event is not None:
                self._stage(event, now)
            self._answers.append((asked, answer))

    def _spec_at(self, seq: int) -> Mapping[str, Json]:
        """The spec that an event of the past defined."""
        spec: Mapping[str, Json] = next(read(self.doors.disk, after=seq - 1)).data["spec"]
        return spec

    def _redact(self, runs: Iterable[str], digests: Iterable[str]) -> None:
        """Delete what was redacted. Doing it again changes nothing, so every start does."""
        for run in runs:
            self.doors.outputs.forget(run)
        try:
            for digest in digests:
                if self.graph.redacted(digest) is not None:
                    self._artifacts.remove(digest)
            self.problems.pop("redaction", None)
        except OSError as error:
            self.problems["redaction"] = (
                f"not all that was redacted could be deleted; the next start tries again: {error}"
            )

    def _start(self, name: str, attempt: int) -> None:
        run = self.graph.run(name)
        if run is None or run.attempt != attempt or run.state not in ("granted", "running"):
            return
        for key in run.leases:
            try:
                holder = self.doors.leases.publish(key, run.name, run.token)
            except (OSError, LeasesBusy) as error:
                self._unstarted.append((name, attempt, f"its lease {key} could not be written: {error}"))
                return
            if holder is not None:
                self._refused.append((name, attempt, run.token, key, holder))
                return
            self._published[key] = run.token
        if is_container(run.spec):
            return
        try:
            order = order_of(self.around, self.graph, run)
        except Unfillable as error:
            self._unstarted.append((name, attempt, str(error)))
            return
        try:
            self.doors.spawner.start(order)
        except SpawnError as error:
            self._unstarted.append((name, attempt, without_secrets(order, str(error))))

    def _resume(self, run: Run) -> None:
        try:
            order = order_of(self.around, self.graph, run)
        except Unfillable as error:
            if not run.pid:
                self._unstarted.append((run.name, run.attempt, str(error)))
                return
            order = order_to_watch(self.around, run, str(error))
        stopping = run.state == "stopping"
        try:
            self.doors.spawner.resume(order, run.pid or None, run.process_started or None, begin=not stopping)
        except SpawnError as error:
            self._unstarted.append((run.name, run.attempt, without_secrets(order, str(error))))
            return
        if stopping and not run.pid:  # It may have begun unnoted. Then it reports a start, which brings no signal.
            self.doors.spawner.stop(run.name, run.attempt, force=run.forced)
