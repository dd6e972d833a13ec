"""`python -m simulations.ablations`: each safeguard switched off, and how many lives it takes until a watcher sees it.

A safeguard that no life misses is either not needed or not tested. They are switched off from here alone: the code that
ships has no such switch. The table goes into docs/how-hermes-is-tested.md; `CAUGHT_BY` names for each the first seed
that catches it, so that the ordinary tests ask again at little cost.

Exit status 0: each is caught, or is in `ARGUED`. 1: one is not.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from itertools import chain as chained
from typing import Any

from daemon.errand import Errands
from daemon.loop import Loop
from ledger.errors import Full
from ledger.instant import ms_of
from ledger.record import HASHED_TO, hash_of, place, record_of
from policies import due
from simulations.checkers import Violation
from simulations.world import live
from state.graph import WITH_PROCESS

Json = Any
Put = Callable[[Any, str, Any], None]
"""Owner (a module, a class, or a dict), name, what stands there instead."""
SEEDS = 200

# What is replaced, and so has to be looked at by name.
loop_module: Any = import_module("daemon.loop")
chain_module: Any = import_module("ledger.chain")
ledger_module: Any = import_module("ledger.ledger")
reader_module: Any = import_module("ledger.reader")
recovery_module: Any = import_module("ledger.recovery")
segment_module: Any = import_module("ledger.segment")
admission_module: Any = import_module("policies.admission")
agenda_module: Any = import_module("policies.agenda")
decision_module: Any = import_module("policies.decision")
notice_module: Any = import_module("policies.notice")
question_module: Any = import_module("policies.question")
reaction_module: Any = import_module("policies.reaction")
replay_module: Any = import_module("policies.replay")
survey_module: Any = import_module("policies.survey")
disk_module: Any = import_module("simulations.disk")
host_module: Any = import_module("simulations.host")
arrivals_module: Any = import_module("state.arrivals")
projector_module: Any = import_module("state.projector")
snapshot_module: Any = import_module("state.snapshot")

ABLATIONS: dict[str, Callable[[Put], None]] = {}
LONGER = {
    "what a start reads is hashed before anything is changed": 20,
    "a snapshot vouches for its bytes": 20,
    "too many failures in a row pause a job": 20,
    "what makes up for missed slots starts one after another": 20,
}
"""Safeguards that short lives hardly come by, since much has to happen first, and how many steps the lives have that
are looked at for them."""


def without(safeguard: str) -> Callable[[Callable[[Put], None]], Callable[[Put], None]]:
    """Registers how `safeguard` is switched off."""

    def register(how: Callable[[Put], None]) -> Callable[[Put], None]:
        ABLATIONS[safeguard] = how
        return how

    return register


@contextmanager
def switched_off(safeguard: str) -> Iterator[None]:
    """KeyError or AttributeError if what is to be replaced is not there any more."""
    undo: list[tuple[Any, str, Any]] = []

    def put(owner: Any, name: str, value: Any) -> None:
        if isinstance(owner, dict):
            undo.append((owner, name, owner[name]))
            owner[name] = value
        else:
            undo.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)

    try:
        ABLATIONS[safeguard](put)
        yield
    finally:
        for owner, name, value in reversed(undo):
            if isinstance(owner, dict):
                owner[name] = value
            else:
                setattr(owner, name, value)


def caught(safeguard: str, seed: int) -> str:
    """What a life without the safeguard comes to; "" if nobody notices."""
    with switched_off(safeguard):
        try:
            live(seed, steps=LONGER.get(safeguard))
        except Violation as violation:
            return violation.invariant
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:80]
    return ""


# The ledger.


@without("sync a batch before it counts")
def _(put: Put) -> None:
    sync = disk_module._Append.sync

    def lazily(self: Any) -> None:
        if not (self._path.startswith("ledger/0") and self._path.endswith(".jsonl")):
            sync(self)

    put(disk_module._Append, "sync", lazily)


@without("sync a folder when a name in it has changed")
def _(put: Put) -> None:
    put(disk_module.SimDisk, "sync_folder", lambda self, folder: None)


@without("sync a file before it gets its name")
def _(put: Put) -> None:
    sync = disk_module._Append.sync
    put(disk_module._Append, "sync", lambda self: None if self._path.endswith(".new") else sync(self))


@without("a start makes the names durable that it has found")
def _(put: Put) -> None:
    put(recovery_module, "_sync_names", lambda disk, folder: None)


@without("claim an epoch before it is used")
def _(put: Put) -> None:
    put(ledger_module.Ledger, "_begin", lambda self, now: self._open_segment(now))


@without("note outside of the ledger how far it is durable")
def _(put: Put) -> None:
    put(ledger_module.Ledger, "note_head", lambda self, durable=False: None)


@without("after a crash ask the device, not the memory")
def _(put: Put) -> None:
    put(disk_module.SimDisk, "drop_cache", lambda self, path: None)


@without("write again what nothing proves to be on the device")
def _(put: Put) -> None:
    survey = recovery_module.survey
    put(recovery_module, "survey", lambda *it, **more: replace(survey(*it, **more), rewritten=None))


@without("a batch counts once it is whole")
def _(put: Put) -> None:
    put(ledger_module, "place", lambda body, **told: place(body, **{**told, "number": 1, "count": 1}))


@without("keep what is cut")
def _(put: Put) -> None:
    write = recovery_module.write_atomically

    def forgetfully(disk: Any, path: str, data: bytes, *, durable: bool) -> None:
        if "/quarantine/" not in path:
            write(disk, path, data, durable=durable)

    put(recovery_module, "write_atomically", forgetfully)


@without("what is cut is kept durably first")
def _(put: Put) -> None:
    write = recovery_module.write_atomically
    put(recovery_module, "write_atomically", lambda disk, path, data, durable: write(disk, path, data, durable=False))


@without("take nothing more after a failed write")
def _(put: Put) -> None:
    def go_on(self: Any, error: BaseException) -> Full:
        self._staged.clear()
        return Full(str(error))

    put(ledger_module.Ledger, "_poisoned", go_on)


@without("cut back what a full disk took of a batch")
def _(put: Put) -> None:
    def leave(self: Any, error: OSError) -> Full:
        self._staged.clear()
        return Full(str(error))

    put(ledger_module.Ledger, "_cut_back", leave)


@without("one writer at a time")
def _(put: Put) -> None:
    lock = disk_module.SimDisk.lock

    def share(self: Any, path: str) -> Any:
        self._locks.discard(path)
        return lock(self, path)

    put(disk_module.SimDisk, "lock", share)


@without("a record vouches for its bytes and for the one before it")
def _(put: Put) -> None:
    def believe(self: Any, line: bytes) -> Any:
        record = record_of(line, hash_of(line[:HASHED_TO]))
        if self._segment is not None:
            self._begin(record, self._segment)
        self.seq, self.hash, self.batch, self.more = record.seq, record.hash, record.batch, record.more
        return record

    put(chain_module.Chain, "take", believe)


@without("the bytes of a sealed segment are those of its seal")
def _(put: Put) -> None:
    class Same(str):
        __hash__ = str.__hash__

        def __ne__(self, other: object) -> bool:
            return False

    class Believe:
        def __init__(self, data: bytes) -> None: ...
        def hexdigest(self) -> str:
            return Same("")

    put(reader_module, "sha256", Believe)


@without("what a superseded writer begins is no part of the ledger")
def _(put: Put) -> None:
    def all_of_them(names: Any) -> Any:
        there = {segment for segment in map(segment_module.named, names) if segment is not None}
        return sorted(there, key=lambda segment: (segment.number, segment.epoch)), []

    put(segment_module, "_apart", all_of_them)


# The loop.


@without("act only on what is durable")
def _(put: Put) -> None:
    record = Loop._record

    def act_first(self: Loop, now: Any) -> Any:
        self._act(list(self._staged))
        return record(self, now)

    put(Loop, "_record", act_first)


@without("answer only what is durable")
def _(put: Put) -> None:
    take = Loop._take_requests

    def answer(self: Loop, now: Any) -> None:
        take(self, now)
        for asked, said in self._answers:
            asked.answer(said)
        self._answers.clear()

    put(Loop, "_take_requests", answer)


@without("tell only what is durable")
def _(put: Put) -> None:
    record = Loop._record

    def tell_first(self: Loop, now: Any) -> Any:
        self._go_on_errands(now)
        return record(self, now)

    put(Loop, "_record", tell_first)


@without("take up what an earlier daemon left running")
def _(put: Put) -> None:
    put(Loop, "_resume", lambda self, run: None)


@without("signal again what may not have been signalled")
def _(put: Put) -> None:
    act = Loop._act
    put(Loop, "_act", lambda self, told: act(self, [record for record in told if record.type != "run.adopted"]))


@without("keep reports that could not be recorded")
def _(put: Put) -> None:
    record = Loop._record

    def forget(self: Loop, now: Any) -> Any:
        recorded = record(self, now)
        self._reports.clear()
        return recorded

    put(Loop, "_record", forget)


@without("what could not be recorded has not happened")
def _(put: Put) -> None:
    again = Loop._replay
    put(Loop, "_replay", lambda self, *kept: again(self, *kept) if kept else None)


@without("a request is taken once")
def _(put: Put) -> None:
    put(projector_module, "_remember", lambda change, request: None)


@without("wake for all that is due, not for slots alone")
def _(put: Put) -> None:
    put(Loop, "_arm", lambda self, now: self.doors.set_timer(self.agenda.next_ms()))


@without("what waits moves with a clock that is set")
def _(put: Put) -> None:
    def counted(change: Any, data: Any) -> None:
        del data
        here = change.graph.here
        change.put(here._replace(clock_jumps=here.clock_jumps + 1))

    put(projector_module._APPLY, "clock.jumped", counted)


@without("note that the clock has jumped")
def _(put: Put) -> None:
    put(Loop, "_note_jump", lambda self, now: None)


# Leases.


@without("a lease file is there before its run begins")
def _(put: Put) -> None:
    put(host_module.SimLeases, "publish", lambda self, key, holder, token: None)


@without("a lease file goes when its run is over")
def _(put: Put) -> None:
    put(host_module.SimLeases, "withdraw", lambda self, key, token: None)


@without("a start gives lease files back")
def _(put: Put) -> None:
    put(host_module.SimLeases, "sync", lambda self, ours: {})


@without("look again at foreign leases")
def _(put: Put) -> None:
    put(loop_module, "LOOK_AT_LEASES", frozenset())


@without("the planner knows of foreign leases")
def _(put: Put) -> None:
    changes = loop_module.foreign.changes
    put(loop_module.foreign, "changes", lambda *it: [one for one in changes(*it) if one.type != "lease.seen"])


@without("a key has one holder at a time")
def _(put: Put) -> None:
    _admission(put, "_held", _Nobody())


@without("a lease is free when its run is over")
def _(put: Put) -> None:
    put(projector_module._Change, "release", lambda self, run: None)


@without("fencing tokens only rise")
def _(put: Put) -> None:
    for module in (loop_module, replay_module):
        put(module, "ask", lambda *it, ask=module.ask: replace(ask(*it), tokens=0))


@without("a start begins nothing whose lease another holds")
def _(put: Put) -> None:
    sync = host_module.SimLeases.sync

    def unasked(self: Any, ours: Any) -> Any:
        sync(self, ours)
        return {}

    put(host_module.SimLeases, "sync", unasked)


@without("a start stops what goes on by steps and whose lease another holds")
def _(put: Put) -> None:
    put(loop_module.foreign, "deprived", lambda graph, taken: [])


@without("steps wait until the leases of their run are there")
def _(put: Put) -> None:
    put(loop_module.foreign, "may_be_refused", lambda graph, decisions: False)


@without("a late report is fenced")
def _(put: Put) -> None:
    put(loop_module, "accepts", lambda run, attempt: run.state in WITH_PROCESS)


# The planner.


class _Nobody(dict[str, str]):
    def __contains__(self, key: object) -> bool:
        return False


def _admission(put: Put, name: str, value: Any) -> None:
    begin = admission_module.Admission.__init__

    def generous(self: Any, *it: Any, **more: Any) -> None:
        begin(self, *it, **more)
        getattr(self, name)  # It may be called otherwise by now.
        setattr(self, name, value)

    put(admission_module.Admission, "__init__", generous)


@without("no more runs than places")
def _(put: Put) -> None:
    _admission(put, "places", 1 << 30)


@without("no more is given out than there is")
def _(put: Put) -> None:
    _admission(put, "_left", defaultdict(lambda: 1 << 60))


@without("no more is spent than the budget gives")
def _(put: Put) -> None:
    put(admission_module.Admission, "_budget", lambda self, *it: None)


@without("a job does not overlap itself")
def _(put: Put) -> None:
    put(survey_module, "_unless_overlapping", lambda found, question, job, candidate: found.admit(candidate))


@without("a decision moves the cursor")
def _(put: Put) -> None:
    decided = projector_module._decided

    def still(change: Any, entry: Any, record: Any) -> None:
        decided(change, entry, record)
        before = change.graph.jobs[entry["job"]].cursor_ms
        change.put(change.job(entry["job"])._replace(cursor_ms=before))

    put(projector_module, "_decided", still)


@without("an edit that leaves the schedule loses no slot")
def _(put: Put) -> None:
    defined = projector_module._APPLY["job.changed"]

    def anew(change: Any, data: Any) -> None:
        defined(change, data)
        change.put(change.job(data["job"])._replace(cursor_ms=ms_of(change.record.ts)))

    put(projector_module._APPLY, "job.changed", anew)


@without("a plan cut short has decided the first slots of a job")
def _(put: Put) -> None:
    look = decision_module.survey

    def settled_first(question: Any) -> Any:
        found = look(question)
        found.entries.sort(key=lambda entry: entry[1] is None)
        return found

    put(decision_module, "survey", settled_first)


@without("what has begun stands before what waits")
def _(put: Put) -> None:
    put(projector_module, "_in_line", lambda active, name, verdict, change: (*active, name))


@without("what is paused does not start")
def _(put: Put) -> None:
    put(survey_module, "_paused", lambda question, job, trigger: None)


@without("an end is answered once")
def _(put: Put) -> None:
    def ever(job: Any, graph: Any) -> dict[str, str]:
        schedule = job.spec["schedule"]
        found = {name: graph.jobs[name].finished.get(schedule["when"], "") for name in schedule["after"]
                 if name in graph.jobs}  # fmt: skip
        return found if found and all(found.values()) else {}

    put(agenda_module, "fresh", ever)
    put(question_module, "fresh", ever)


@without("a step waits for those before it")
def _(put: Put) -> None:
    steps = survey_module._steps

    def at_once(found: Any, question: Any, parent: Any, states: Any) -> None:
        free = [{**step, "after": []} for step in parent.spec["steps"]]
        steps(found, question, parent._replace(spec={**parent.spec, "steps": free}), states)

    put(survey_module, "_steps", at_once)


@without("what makes up for missed slots starts one after another")
def _(put: Put) -> None:
    put(survey_module, "_stagger", lambda found, question: None)


@without("a retry waits")
def _(put: Put) -> None:
    finished = projector_module._APPLY["run.finished"]

    def at_once(change: Any, data: Any) -> None:
        finished(change, data)
        run = change.run_or_none(data["run"])
        if run is not None and run.not_before_ms:
            change.put(run._replace(not_before_ms=0))

    put(projector_module._APPLY, "run.finished", at_once)


@without("attempts are counted")
def _(put: Put) -> None:
    judge = loop_module.judge
    put(loop_module, "judge", lambda run, *it, **more: judge(run._replace(attempt=1), *it, **more))


@without("a run that takes too long is stopped")
def _(put: Put) -> None:
    overdue_ms = reaction_module.overdue_ms
    for module in (reaction_module, loop_module):
        put(module, "overdue_ms", lambda run: None if run.state == "running" else overdue_ms(run))


@without("what ignores the signal is killed")
def _(put: Put) -> None:
    overdue_ms = reaction_module.overdue_ms
    for module in (reaction_module, loop_module):
        put(module, "overdue_ms", lambda run: None if run.state == "stopping" else overdue_ms(run))


@without("an agent's steps end with it")
def _(put: Put) -> None:
    react = loop_module.react
    put(loop_module, "react",
        lambda *it: [one for one in react(*it) if one.data.get("why") != "parent"])  # fmt: skip


@without("too many failures in a row pause a job")
def _(put: Put) -> None:
    react = loop_module.react

    def patient(graph: Any, *it: Any) -> Any:
        graph.tripped.clear()
        return react(graph, *it)

    put(loop_module, "react", patient)


# Notices.


@without("an attempt to tell ends")
def _(put: Put) -> None:
    put(Errands, "over", lambda self, name: None)


@without("a failure and the wish to tell of it are recorded together")
def _(put: Put) -> None:
    stage, find = Loop._stage, notice_module.due

    def later(self: Loop, event: Any, now: Any) -> Any:
        for one in self.__dict__.pop("late", []):
            stage(self, one, now)
        put(notice_module, "due", lambda *it: self.__dict__.setdefault("late", []).extend(find(*it)) or [])
        return stage(self, event, now)

    put(Loop, "_stage", later)


@without("not more notices wait than may")
def _(put: Put) -> None:
    find = notice_module.due
    many = {"notices_waiting_max": 1 << 30}
    put(notice_module, "due", lambda graph, record, policy: find(graph, record, replace(policy, **many)))


@without("a delivery that hangs is stopped")
def _(put: Put) -> None:
    put(Errands, "stop_overdue", lambda self, boot_ms: None)


# Arrivals.


@without("know which files have arrived")
def _(put: Put) -> None:
    arrived = arrivals_module.arrived
    put(arrivals_module, "arrived", lambda known, *told: arrived(known, *told)._replace(seen=known.seen))


@without("files wait their turn")
def _(put: Put) -> None:
    def like_slots(found: Any, question: Any, job: Any) -> None:
        for path, _, at_ms, seq in job.files:
            slot = due.slot_id(job.name, job.digest, at_ms, f"{seq} {path}")
            candidate = survey_module._new(job, question, slot, at_ms, "on", file=path)
            survey_module._unless_overlapping(found, question, job, candidate)

    put(survey_module, "_files", like_slots)


@without("look for files that nobody told of")
def _(put: Put) -> None:
    put(loop_module, "LOOK_FOR_FILES", frozenset({"files"}))


# Snapshots and workers.


@without("a snapshot vouches for its bytes")
def _(put: Put) -> None:
    def believe(disk: Any, stored: Any, projector: str) -> Any:
        return snapshot_module.decode(disk.read(stored.path), projector)

    put(snapshot_module, "load", believe)


@without("a snapshot counts where the ledger agrees with it")
def _(put: Put) -> None:
    def believe(disk: Any, projector: str, *, until: Any = None, first: Any = None, folder: str = "ledger") -> Any:
        kept = snapshot_module.usable(disk, projector, until=until)
        for graph, head in chained([first] if first is not None else [], kept):
            records = reader_module.read(disk, after=head.seq - 1, until=until, folder=folder)
            return snapshot_module._tail(graph, next(records, None), records, head.seq)
        return snapshot_module._tail(snapshot_module.Graph(), None, reader_module.read(disk, until=until), 0)

    put(snapshot_module, "restore", believe)


@without("a snapshot is of what is proven")
def _(put: Put) -> None:
    keep = Loop._keep_snapshot

    def hastily(self: Loop, every: int) -> None:
        ledger: Any = self.ledger
        note, ledger.note_head = ledger.note_head, lambda **how: None
        try:
            keep(self, every)
        finally:
            ledger.note_head = note

    put(Loop, "_keep_snapshot", hastily)


@without("an attempt is claimed before it begins")
def _(put: Put) -> None:
    start = host_module.SimSpawner.start

    def again(self: Any, order: Any) -> None:
        key = (order.run, order.attempt)
        if key in self._host.living:
            self._host.begun[key] += 1
        start(self, order)

    put(host_module.SimSpawner, "start", again)


@without("what a start reads is hashed before anything is changed")
def _(put: Put) -> None:
    survey = recovery_module.survey

    def trust(*it: Any, trusted_seq: int = 0, **more: Any) -> Any:
        return survey(*it, trusted_seq=1 << 62 if trusted_seq else 0, **more)

    put(recovery_module, "survey", trust)


@without("a run that ends and leaves the graph at once leaves the queue, too")
def _(put: Put) -> None:
    def forget(self: Any, run: Any) -> None:
        for name in (*run.children, run.name):
            self.drop(f"run/{name}")

    put(projector_module._Change, "forget", forget)


@without("a jump that could not be recorded is noticed again")
def _(put: Put) -> None:
    tick = Loop.tick

    def forget(self: Loop, reasons: frozenset[str] = frozenset()) -> bool:
        recorded = tick(self, reasons)
        self._last = self.completed
        return recorded

    put(Loop, "tick", forget)


@without("a clock that was set while no daemon ran is noticed")
def _(put: Put) -> None:
    restore = snapshot_module.restore
    put(snapshot_module, "restore", lambda *it, **more: restore(*it, **more)._replace(before=None))


ARGUED: dict[str, str] = {
    "after a crash ask the device, not the memory": (
        "what may differ between the two is the last batch alone, and that is written again in any case; asked all the "
        "same, so that nobody is told of records that only memory holds"
    ),
    "a snapshot counts where the ledger agrees with it": (
        "needs a ledger that was cut or replaced by hand behind the snapshot, which no fault here does; "
        "tests/test_state_snapshot.py and tests/test_ledger_repair.py do"
    ),
    "a snapshot is of what is proven": (
        "the commit before it has synced, and recovery keeps the hashes of what it writes again; it is the second line "
        "behind the comparison with the ledger"
    ),
}
"""Safeguards that no life misses, and why they are there all the same."""

CAUGHT_BY: dict[str, int] = {
    "sync a batch before it counts": 11,
    "sync a folder when a name in it has changed": 11,
    "sync a file before it gets its name": 11,
    "a start makes the names durable that it has found": 35973,
    "claim an epoch before it is used": 0,
    "note outside of the ledger how far it is durable": 5,
    "write again what nothing proves to be on the device": 130,
    "a batch counts once it is whole": 8,
    "keep what is cut": 4,
    "what is cut is kept durably first": 11,
    "take nothing more after a failed write": 4,
    "cut back what a full disk took of a batch": 14,
    "one writer at a time": 51,
    "a record vouches for its bytes and for the one before it": 88,
    "the bytes of a sealed segment are those of its seal": 0,
    "what a superseded writer begins is no part of the ledger": 119,
    "act only on what is durable": 0,
    "answer only what is durable": 14,
    "tell only what is durable": 8,
    "take up what an earlier daemon left running": 4,
    "signal again what may not have been signalled": 11,
    "keep reports that could not be recorded": 1,
    "what could not be recorded has not happened": 14,
    "a request is taken once": 8,
    "wake for all that is due, not for slots alone": 8,
    "note that the clock has jumped": 3,
    "what waits moves with a clock that is set": 51,
    "a jump that could not be recorded is noticed again": 74,
    "a clock that was set while no daemon ran is noticed": 15,
    "a lease file is there before its run begins": 1,
    "a lease file goes when its run is over": 1,
    "a start gives lease files back": 106,
    "look again at foreign leases": 6,
    "the planner knows of foreign leases": 6,
    "a key has one holder at a time": 0,
    "a lease is free when its run is over": 0,
    "fencing tokens only rise": 0,
    "a start begins nothing whose lease another holds": 641,
    "a start stops what goes on by steps and whose lease another holds": 1847,
    "steps wait until the leases of their run are there": 43174,
    "a late report is fenced": 635,
    "no more runs than places": 5,
    "no more is given out than there is": 58,
    "no more is spent than the budget gives": 20,
    "a job does not overlap itself": 4,
    "a decision moves the cursor": 0,
    "an edit that leaves the schedule loses no slot": 56,
    "what is paused does not start": 7,
    "an end is answered once": 8,
    "a step waits for those before it": 0,
    "what makes up for missed slots starts one after another": 160,
    "a retry waits": 2,
    "attempts are counted": 191,
    "a run that takes too long is stopped": 1,
    "what ignores the signal is killed": 8,
    "an agent's steps end with it": 8,
    "too many failures in a row pause a job": 9,
    "an attempt to tell ends": 8,
    "a failure and the wish to tell of it are recorded together": 8,
    "not more notices wait than may": 31,
    "a delivery that hangs is stopped": 14,
    "know which files have arrived": 4,
    "files wait their turn": 5,
    "look for files that nobody told of": 49,
    "a snapshot vouches for its bytes": 9,
    "an attempt is claimed before it begins": 5,
    "what a start reads is hashed before anything is changed": 48,
    "a run that ends and leaves the graph at once leaves the queue, too": 42,
    "a plan cut short has decided the first slots of a job": 11,
    "what has begun stands before what waits": 151,
}
"""The first seed that catches it. Refreshed by `python -m simulations.ablations --seeds 200 --first`."""


def _row(safeguard: str, seeds: int, only_first: bool) -> tuple[list[int], str]:
    found, by = [], ""
    for seed in sorted({*range(seeds), CAUGHT_BY.get(safeguard, 0)}):
        if why := caught(safeguard, seed):
            found.append(seed)
            by = by or why
            if only_first:
                break
    return found, by


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m simulations.ablations", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--first", action="store_true", help="stop at the first seed that catches a safeguard")
    parser.add_argument("--only", default="", help="a part of the safeguards' names")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    asked = parser.parse_args()
    wanted = [name for name in ABLATIONS if asked.only in name]
    print(f"{len(wanted)} safeguards, seeds 0 to {asked.seeds - 1}\n", flush=True)
    print("| Safeguard switched off | First seed | Caught in | By |\n|---|---|---|---|", flush=True)
    missed = []
    with ProcessPoolExecutor(asked.jobs, initializer=gc.freeze) as pool:
        rows = {name: pool.submit(_row, name, asked.seeds, asked.first) for name in wanted}
        for name, row in rows.items():
            seeds, by = row.result()
            if not seeds:
                missed.append(name)
            share = f"{sum(seed < asked.seeds for seed in seeds)} of {asked.seeds}" if not asked.first else "-"
            print(f"| {name} | {seeds[0] if seeds else 'none'} | {share} | {by or ARGUED.get(name, '?')} |", flush=True)
    print(f"\n{len(wanted) - len(missed)} of {len(wanted)} are caught")
    return 1 if set(missed) - ARGUED.keys() else 0


if __name__ == "__main__":
    sys.exit(main())
