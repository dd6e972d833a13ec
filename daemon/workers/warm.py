"""Warm workers: long-lived processes that perform one attempt after another, and the pool that keeps them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from daemon.ports import Began, CommandTask, Ended, Order, PythonTask, Report, SpawnError
from daemon.workers.child import BOOT
from daemon.workers.claim import Status, claim_never, make_folder, read_claim, read_status, write_status
from daemon.workers.command import launch, line_for, place_of, who
from daemon.workers.exits import Exit
from daemon.workers.folders import sweep
from daemon.workers.identity import start_time
from daemon.workers.output import OUTPUT_BYTES, Output
from daemon.workers.tree import Unwatch, Watch, killed_note, signal_tree
from daemon.workers.wire import BUFFER_BYTES, LINE_BYTES_MAX, Channel, Message, line_of

SENT_AHEAD = BUFFER_BYTES // LINE_BYTES_MAX // 2
"""Orders a worker may have unclaimed: enough that it never waits for us, few enough to fit in the socket's buffer."""

DEATHS_MAX = 3
"""An attempt that so many workers died in front of is not given to another one."""

_LEAVE_MS = 5_000
_LOOK_EVERY_MS = 1_000
_SERVICES_KEPT = 256
_ROOT = str(Path(__file__).resolve().parents[2])

Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One warm worker, as people see it."""

    pid: int
    started: int
    kind: str  # python | inference
    serves: str  # the working folder, or the model's
    state: str  # starting | idle | busy | leaving
    run: str | None
    attempt: int | None
    performed: int
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many workers there may be and how long they stay."""

    workers_max: int = 8
    idle_ms: int = 60_000
    engine_idle_ms: int = 600_000
    attempts_max: int = 10_000  # of one python worker; engines keep their model


@dataclass(slots=True, eq=False)
class _Ticket:
    """An attempt that the pool answers for, until its Ended is reported."""

    order: Order
    service: _Service
    line: bytes
    worker: _Worker | None = None  # None: it waits for a place, or is over and its tree is being killed
    sent: bool = False
    over: bool = False
    deaths: int = 0  # of workers that were about to begin it

    @property
    def key(self) -> Key:
        return self.order.run, self.order.attempt


@dataclass(frozen=True, slots=True, eq=False)
class _Service:
    """What attempts of one job have in common: made once for as many runs as there are."""

    order: Order
    """Any of theirs. It is kept, so that no other task can come to have the identity of its own."""
    kind: str  # python | inference
    serves: str  # the working folder, or the model's
    key: tuple[object, ...]
    """What two orders must share to share a worker."""
    line: bytes
    """The end of an order's line."""
    named: Mapping[str, str]
    """What an attempt adds to the worker's environment, but for its own name."""


@dataclass(slots=True, eq=False)
class _Worker:
    pid: int
    started: int
    exit: Exit
    channel: Channel
    service: _Service
    ready: bool = False
    leaving: bool = False
    claimed: _Ticket | None = None
    queue: deque[_Ticket] = field(default_factory=deque)  # not known to be claimed, in order
    assigned: int = 0
    performed: int = 0
    quiet_since_ms: int | None = None  # idle, or leaving, since
    facts: dict[str, Any] = field(default_factory=dict)
    last: Message | None = None  # how its last attempt ended
    astray: bool = False  # its task wrote to our channel, and it was killed for that

    @property
    def kind(self) -> str:
        return self.service.kind

    @property
    def load(self) -> int:
        return len(self.queue) + (self.claimed is not None)

    @property
    def state(self) -> str:
        if self.leaving:
            return "leaving"
        return "busy" if self.load else "idle" if self.ready else "starting"


class Pool:
    """Hands orders to workers. `report` takes reports; `fell(folder, leader, done)` kills what is left of a tree;
    `adopt(order)` takes up an attempt that a process of an earlier daemon has claimed."""

    def __init__(
        self,
        watch: Watch,
        unwatch: Unwatch,
        *,
        python: str,
        engine: str,
        bounds: Bounds,
        report: Callable[[Report], None],
        fell: Callable[[str | None, int | None, Callable[[int], None]], None],
        adopt: Callable[[Order], None],
    ) -> None:
        self._watch, self._unwatch = watch, unwatch
        self._python, self._modules = python, {"python": "daemon.workers.child", "inference": engine}
        self._bounds, self._report, self._fell, self._adopt = bounds, report, fell, adopt
        self._workers: dict[int, _Worker] = {}  # by pid, the longest unused first
        self._tickets: dict[Key, _Ticket] = {}
        self._waiting: deque[_Ticket] = deque()  # for a place in the pool
        self._services: dict[int, _Service] = {}  # by the identity of a task
        self._held: set[_Worker] | None = None  # those that have orders to be sent; None while they are sent at once
        self._swept = False
        self._now_ms = self._looked_ms = 0  # since boot, when `housekeep` last looked

    def __contains__(self, key: Key) -> bool:
        return key in self._tickets

    @property
    def pids(self) -> set[int]:
        return set(self._workers)

    def views(self) -> list[WorkerView]:
        return [
            WorkerView(
                worker.pid, worker.started, worker.kind, worker.service.serves, worker.state,
                worker.claimed.order.run if worker.claimed else None,
                worker.claimed.order.attempt if worker.claimed else None,
                worker.performed, dict(worker.facts),
            )
            for worker in self._workers.values()
        ]  # fmt: skip

    def start(self, order: Order) -> None:
        """SpawnError if its worker cannot be started, or the order is not JSON."""
        service = self._service(order)
        ticket = _Ticket(order, service, _line(order, service))
        self._tickets[ticket.key] = ticket
        self._waiting.append(ticket)
        try:
            self._dispatch()
        except SpawnError:
            if ticket.worker is not None or self._waiting[0] is not ticket:
                return  # The error is another one's, and is met again when that one's turn comes.
            del self._tickets[ticket.key]
            self._waiting.popleft()
            raise

    def hold(self) -> None:
        """Send no orders until `let_go`: then to each worker all of its own."""
        self._held = set()

    def let_go(self) -> None:
        held, self._held = self._held or (), None
        for worker in held:
            self._top_up(worker)

    def stop(self, key: Key, *, force: bool) -> None:
        ticket = self._tickets[key]
        worker = ticket.worker
        if ticket.over:
            return  # What is left of its tree is being killed.
        if (worker is None or worker.claimed is not ticket) and self._settle(
            ticket, Status(None, signal.SIGTERM), "stopped before it began"
        ):
            if worker is not None:
                self._rest(worker)
        elif worker is not None:
            signal_tree(ticket.order.folder, worker.pid, signal.SIGKILL if force else signal.SIGTERM)

    def next_deadline_ms(self) -> int | None:
        """When `housekeep` has something to do; 0 for at once, None for never."""
        return min(self._deadlines(), default=None)

    def housekeep(self, boot_ms: int) -> None:
        """End workers that were idle for too long, kill those that were told to leave and did not, and bound what is
        printed by those that work."""
        self._now_ms = boot_ms
        if boot_ms - self._looked_ms >= _LOOK_EVERY_MS:
            self._looked_ms = boot_ms
            for worker in self._workers.values():
                if worker.claimed is not None:
                    output_of(worker.claimed.order).look()
        for worker in list(self._workers.values()):
            limit_ms = self._patience_ms(worker)
            if limit_ms is None:
                continue
            if worker.quiet_since_ms is None:
                worker.quiet_since_ms = boot_ms
            elif boot_ms - worker.quiet_since_ms >= limit_ms:
                if worker.leaving:
                    signal_tree(None, worker.pid, signal.SIGKILL)
                else:
                    self._dismiss(worker)

    def close(self) -> None:
        """Let go of every worker: each finishes what it has claimed, leaves the rest, and ends."""
        for worker in self._workers.values():
            self._unwatch(worker.exit.fileno())
            worker.exit.close()
            self._hang_up(worker)
        self._workers.clear()
        self._waiting.clear()
        self._tickets.clear()

    def _service(self, order: Order) -> _Service:
        """SpawnError if the order is not JSON."""
        task = order.task
        known = self._services.get(id(task))
        if known is not None:
            first = known.order
            if first.task is task and first.env is order.env and first.limits is order.limits:
                return known
        if len(self._services) >= _SERVICES_KEPT:
            self._services.clear()
        known = self._services[id(task)] = _service_of(order)
        return known

    def _deadlines(self) -> Iterator[int]:
        for worker in self._workers.values():
            limit_ms = self._patience_ms(worker)
            if limit_ms is not None:
                yield (self._now_ms if worker.quiet_since_ms is None else worker.quiet_since_ms) + limit_ms
            if worker.claimed is not None:
                yield self._looked_ms + _LOOK_EVERY_MS

    def _patience_ms(self, worker: _Worker) -> int | None:
        if worker.leaving:
            return None if worker.claimed else _LEAVE_MS
        if worker.load:
            return None
        return self._bounds.engine_idle_ms if worker.kind == "inference" else self._bounds.idle_ms

    def _dispatch(self) -> None:
        # First come, first served: one that must wait for a place holds up those behind it, so that none starves.
        while self._waiting and self._place(self._waiting[0]):
            self._waiting.popleft()

    def _dispatch_or_settle(self) -> None:
        """Dispatch where nobody can be told of a SpawnError: an attempt that cannot be started is over."""
        while True:
            try:
                return self._dispatch()
            except SpawnError as error:
                self._give_up(self._waiting.popleft(), Status(1, None), str(error))

    def _place(self, ticket: _Ticket) -> bool:
        service, best, least = ticket.service, None, 0
        for worker in self._workers.values():
            if worker.service is service or worker.service.key == service.key:
                load = worker.load
                if (best is None or load < least) and self._accepts(worker):
                    best, least = worker, load
        # An engine holds a whole model: a second one is never worth its memory.
        if (best is None or (least and service.kind == "python")) and self._room():
            best = self._launch(ticket.order, service)
        if best is None:
            return False
        self._assign(best, ticket)
        return True

    def _accepts(self, worker: _Worker) -> bool:
        return not worker.leaving and (worker.kind == "inference" or worker.assigned < self._bounds.attempts_max)

    def _room(self) -> bool:
        """There is a place for one more; if not, the longest idle worker is asked to leave, and its end makes one."""
        if len(self._workers) < self._bounds.workers_max:
            return True
        if not any(worker.leaving for worker in self._workers.values()):
            idle = next((worker for worker in self._workers.values() if not worker.load), None)
            if idle is not None:
                self._dismiss(idle)
        return False

    def _launch(self, order: Order, service: _Service) -> _Worker:
        try:
            channel, theirs = Channel.pair()
        except OSError as error:
            raise SpawnError(
                f"cannot start a worker for run {order.run}: {error.strerror}; "
                "raise the daemon's limit of open files, or let fewer runs go at once"
            ) from error
        limits = [f"{_RLIMITS[name]}={value}" for name, value in order.limits.items() if name in _RLIMITS]
        argv = [self._python, "-P", "-c", BOOT, _ROOT, self._modules[service.kind], "3", *limits]
        # What it prints before its first attempt is that attempt's.
        stdout, stderr = f"{order.folder}/stdout.log", f"{order.folder}/stderr.log"
        try:
            make_folder(order.folder)
            if not self._swept and os.path.isdir(place_of(order.folder)):
                sweep(place_of(order.folder))
            self._swept = True
            pid = launch(self._python, argv, _lasting(order), stdout=stdout, stderr=stderr, channel=theirs)
        except OSError as error:
            channel.close()
            raise SpawnError(f"cannot make {order.folder}: {error.strerror}; make room or check permissions") from error
        except SpawnError:
            channel.close()
            raise
        finally:
            os.close(theirs)
        worker = _Worker(pid, start_time(pid) or 0, Exit(pid), channel, service)
        self._workers[pid] = worker
        self._watch(worker.exit.fileno(), lambda: self._gone(worker))
        self._watch(channel.fileno(), lambda: self._hear(worker))
        return worker

    def _assign(self, worker: _Worker, ticket: _Ticket) -> None:
        self._workers[worker.pid] = self._workers.pop(worker.pid)
        ticket.worker, ticket.sent = worker, False
        worker.queue.append(ticket)
        worker.assigned += 1
        worker.quiet_since_ms = None
        self._top_up(worker)

    def _top_up(self, worker: _Worker) -> None:
        if self._held is not None:
            self._held.add(worker)
            return
        lines = []
        for ticket in islice(worker.queue, SENT_AHEAD):
            if not ticket.sent:
                ticket.sent = True
                lines.append(ticket.line)
        if lines:
            worker.channel.send(b"".join(lines))

    def _dismiss(self, worker: _Worker) -> None:
        worker.leaving, worker.quiet_since_ms = True, None
        worker.channel.say_no_more()

    def _hang_up(self, worker: _Worker) -> None:
        if not worker.channel.closed:
            self._unwatch(worker.channel.fileno())
            worker.channel.close()

    def _hear(self, worker: _Worker) -> None:
        """Take everything the worker has said."""
        try:
            messages = worker.channel.receive()
        except ValueError:  # What it had said before is in the attempts' folders.
            worker.astray = True
            self._hang_up(worker)
            signal_tree(None, worker.pid, signal.SIGKILL)
            return
        for message in messages:
            self._heed(worker, message)
        if worker.channel.ended:
            self._hang_up(worker)
        else:
            worker.channel.send(b"")

    def _heed(self, worker: _Worker, message: Message) -> None:
        kind = message.pop("type", None)
        if kind == "ready":
            worker.ready = True
        elif kind == "facts":
            worker.facts.update(message)
        elif (ticket := self._tickets.get((message.get("run", ""), message.get("attempt", 0)))) is None:
            return  # Settled since it was sent.
        elif kind == "claimed":
            self._claimed(worker, ticket)
        elif kind == "refused":
            self._refused(worker, ticket)
        elif kind == "failed":
            _take_back(ticket)
            del self._tickets[ticket.key]
            self._report(Ended(*ticket.key, 1, None, note=message["note"]))
            self._rest(worker)
        elif kind == "ended":
            self._ended(worker, ticket, message)

    def _claimed(self, worker: _Worker, ticket: _Ticket) -> None:
        _take_back(ticket)
        ticket.worker, worker.claimed = worker, ticket
        self._report(Began(ticket.order.run, ticket.order.attempt, worker.pid, worker.started))
        self._top_up(worker)

    def _refused(self, worker: _Worker, ticket: _Ticket) -> None:
        if ticket.worker is not worker:
            return  # Moved since it was sent.
        _take_back(ticket)
        claim = read_claim(ticket.order.folder)
        mate = self._workers.get(claim.process[0]) if claim and claim.process else None
        if mate is not None:
            ticket.worker, ticket.sent = mate, True  # It was moved, too late; the mate's own words follow.
            mate.queue.appendleft(ticket)
        else:
            del self._tickets[ticket.key]
            self._adopt(ticket.order)
        self._rest(worker)

    def _ended(self, worker: _Worker, ticket: _Ticket, message: Message) -> None:
        if message.get("last"):  # It ends, and its threads with it: what those go on starting is killed then.
            worker.last = message
            return
        worker.claimed = None
        worker.performed += 1
        del self._tickets[ticket.key]
        self._report(Ended(
            ticket.order.run, ticket.order.attempt,
            message["code"], None, message["cpu_ms"], message["rss_kib"], message["note"], message["outputs"],
        ))  # fmt: skip
        self._rest(worker)

    def _rest(self, worker: _Worker) -> None:
        """The worker has one less to do."""
        self._top_up(worker)
        if worker.load or worker.leaving:
            return
        if not self._accepts(worker):
            self._dismiss(worker)
        self._dispatch_or_settle()
        if worker.state == "idle":
            self._relieve(worker)

    def _relieve(self, worker: _Worker) -> None:
        """Take over what waits behind a busy mate. The mate may have claimed it meanwhile; the claim decides."""
        key = worker.service.key
        mates = [mate for mate in self._workers.values() if mate.queue and mate.claimed and mate.service.key == key]
        if mates:
            ticket = max(mates, key=lambda mate: len(mate.queue)).queue[-1]
            _take_back(ticket)
            self._assign(worker, ticket)

    def _gone(self, worker: _Worker) -> None:
        """The worker has ended, as it should or not."""
        if not worker.channel.closed:
            self._hear(worker)
            self._hang_up(worker)
        self._unwatch(worker.exit.fileno())
        worker.exit.close()
        _, status, usage = os.wait4(worker.pid, 0)
        del self._workers[worker.pid]
        code = os.waitstatus_to_exitcode(status)
        end = Status(code or 1, None) if code >= 0 else Status(None, -code)
        words = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        if worker.astray:
            words = "was killed, since something had written to its descriptor 3, which is ours,"
        current, rest = worker.claimed, worker.queue
        if current is None and rest and _claimed_by(rest[0].order, worker.pid):
            current = rest.popleft()  # It did not come to say so.
            self._report(Began(current.order.run, current.order.attempt, worker.pid, worker.started))
        for ticket in rest:
            ticket.worker = None
        if current is not None:
            self._lay(worker, current, end, usage.ru_maxrss, words)
        elif code:
            self._fell(None, worker.pid, lambda _: None)
        if current is None and rest:
            rest[0].deaths += 1
            if not worker.ready or rest[0].deaths >= DEATHS_MAX:
                how = "could not start" if not worker.ready else "died before it began, and so did others before it"
                self._give_up(rest.popleft(), end, f"its worker {how}: {words}; see stderr.log")
        self._waiting.extendleft(reversed(rest))
        self._dispatch_or_settle()

    def _lay(self, worker: _Worker, ticket: _Ticket, end: Status, rss_kib: int, words: str) -> None:
        """Report the end of what the worker was performing when it died, once nothing of the tree is left."""
        order, last = ticket.order, worker.last or {}
        notes = [last["note"]] if last else []
        known = read_status(order.folder)
        if known is None:
            with contextlib.suppress(OSError):
                write_status(order.folder, end)
            notes.append(f"its worker {words} before the task returned")
        code, number = known or end

        def done(killed: int) -> None:
            del self._tickets[ticket.key]
            if killed:
                notes.append(killed_note(killed))
            if cut := output_of(order).end():
                notes.append(cut)
            self._report(Ended(order.run, order.attempt, code, number, last.get("cpu_ms"), rss_kib, "; ".join(notes)))

        ticket.worker, ticket.over = None, True
        self._fell(order.folder, worker.pid, done)

    def _settle(self, ticket: _Ticket, end: Status, note: str) -> bool:
        """End an attempt that never began, by taking its claim; False if a process has it."""
        order = ticket.order
        try:
            make_folder(order.folder)
            if not claim_never(order.folder):
                return False
            write_status(order.folder, end)
        except OSError:
            return False
        _take_back(ticket)
        with contextlib.suppress(ValueError):
            self._waiting.remove(ticket)
        del self._tickets[ticket.key]
        self._report(Ended(order.run, order.attempt, end.code, end.signal, note=note))
        return True

    def _give_up(self, ticket: _Ticket, end: Status, note: str) -> None:
        if self._settle(ticket, end, note):
            return
        del self._tickets[ticket.key]
        if read_claim(ticket.order.folder) is None:  # No room for a claim; it cannot begin either.
            self._report(Ended(*ticket.key, end.code, end.signal, note=note))
        else:
            self._adopt(ticket.order)


def output_of(order: Order) -> Output:
    return Output(order.folder, order.limits.get("output", OUTPUT_BYTES))


_RLIMITS = {"open_files": "RLIMIT_NOFILE", "file_size": "RLIMIT_FSIZE", "memory": "RLIMIT_AS"}


def _service_of(order: Order) -> _Service:
    task = order.task
    assert not isinstance(task, CommandTask)
    lasting = _lasting(order)
    limits = tuple(sorted((name, value) for name, value in order.limits.items() if name in _RLIMITS))
    key: tuple[object, ...]
    if isinstance(task, PythonTask):
        kind, serves = "python", task.cwd
        key = ("python", task.cwd, task.path, frozenset(lasting.items()), limits)
    else:
        kind, serves = "inference", task.model
        key = ("inference", task.model, task.device, task.dtype, task.quantization, limits)
    fields = {name: getattr(task, name) for name in task.__slots__}
    if isinstance(task, PythonTask):
        fields["kwargs"] = dict(task.kwargs)
    message = {"place": place_of(order.folder), "task": fields, "limits": dict(order.limits)}
    try:
        line = line_of(message)
    except (TypeError, ValueError) as error:
        raise SpawnError(f"run {order.run}: its arguments are not JSON: {error}; pass plain JSON values") from error
    named = {name: value for name, value in order.env.items() if name not in lasting}
    return _Service(order, kind, serves, key, line[1:], named)


def _claimed_by(order: Order, pid: int) -> bool:
    claim = read_claim(order.folder)
    return claim is not None and claim.process is not None and claim.process[0] == pid


def _take_back(ticket: _Ticket) -> None:
    if ticket.worker is not None:
        with contextlib.suppress(ValueError):
            ticket.worker.queue.remove(ticket)


def _lasting(order: Order) -> dict[str, str]:
    """The worker's own environment; what names the attempt comes with each order."""
    return {name: value for name, value in order.env.items() if not name.startswith("HERMESD_")}


def _line(order: Order, service: _Service) -> bytes:
    """The order as it is sent: itself, or the path of the file it was put in. SpawnError if the attempt's folder cannot
    be made."""
    return line_for(order, {**service.named, **who(order)}, service.line)
