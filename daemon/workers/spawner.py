"""The Spawner port on a POSIX system: attempts as processes that outlive the daemon and are never started twice."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from daemon.ports import Began, CommandTask, Ended, Order, Report, SpawnError
from daemon.workers.claim import Identity, Status, claim_never, make_folder, read_claim, write_status
from daemon.workers.command import note_of
from daemon.workers.exits import Exit
from daemon.workers.identity import Process, alive, belongs, children, inherit_orphans, process, tree
from daemon.workers.keeper import status_of
from daemon.workers.keeping import Keeping, Key
from daemon.workers.tree import Felling, Unwatch, Watch, group_lives, killed_note, signal_tree
from daemon.workers.warm import Bounds, Pool, WorkerView, output_of

_REAP_EVERY_MS = 10_000
_LOOK_EVERY_MS = 1_000
_ASK_EVERY_MS = 20
_NEVER = "stopped before it began"


@dataclass(slots=True, eq=False)
class _Adopted:
    """An attempt that a process of an earlier daemon performs, or of this one's keeper that died."""

    order: Order
    process: Identity | None
    keeper: Identity | None
    exit: Exit | None = None
    status: Status | None = None
    forced: bool = False  # we sent it SIGKILL
    over: bool = False  # what is left of its tree is being killed

    @property
    def key(self) -> Key:
        return self.order.run, self.order.attempt


class PosixSpawner:
    """Starts, adopts, stops and reaps. `watch(descriptor, callback)` asks the daemon's loop to call back whenever the
    descriptor is readable, until `unwatch(descriptor)`; everything happens in those callbacks and in `collect`, in the
    loop's thread, and nothing waits.

    Commands are started by the keeper, a process of its own that outlives this one; python and inference attempts by
    warm workers. What a process of an earlier daemon performs is adopted: its end is read where the claim says.

    On Linux this process inherits what its own children leave, should they die: their attempts are adopted too, with
    their true ends. Orphans are killed with the attempt whose they are. Dead ones are reaped: other parts of the daemon
    keep children in its own session, or collect them within seconds.
    """

    def __init__(
        self,
        watch: Watch,
        unwatch: Unwatch,
        *,
        python: str = sys.executable,
        engine: str = "daemon.inference.engine",
        bounds: Bounds | None = None,
    ) -> None:
        self._watch, self._unwatch = watch, unwatch
        self._adopted: dict[Key, _Adopted] = {}
        self._unsettled: list[_Adopted] = []  # ended, or not begun: their keeper is about to write it down
        self._reports: list[Report] = []
        self._fellings: dict[int, Felling] = {}
        self._inherits = inherit_orphans()
        self._now_ms = self._reaped_ms = self._looked_ms = 0
        self._felled = 0
        self._unwanted: set[tuple[int, int]] = set()  # dead strangers, (pid, started)
        self._session = os.getsid(0)
        self._keeping = Keeping(watch, unwatch, python=python, report=self._reports.append, adopt=self._adopt)
        self._pool = Pool(
            watch,
            unwatch,
            python=python,
            engine=engine,
            bounds=bounds or Bounds(),
            report=self._reports.append,
            fell=self._fell,
            adopt=self._adopt,
        )
        _close_to_children()

    def start(self, order: Order) -> None:
        if self._knows((order.run, order.attempt)):
            return
        if isinstance(order.task, CommandTask):
            self._keeping.start(order, order.task)
        else:
            self._pool.start(order)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        self._keeping.hold()
        self._pool.hold()
        try:
            yield
        finally:
            self._keeping.let_go()
            self._pool.let_go()

    def recorded(self, run: str, attempt: int) -> None:
        self._keeping.recorded((run, attempt))

    def prepare(self, runs: str) -> None:
        """Have ready what starts commands, so that the first one of attempts in folder `runs` is not late."""
        self._keeping.prepare(f"{runs}/run/1")

    def resume(self, order: Order, pid: int | None, started: int | None, *, begin: bool = True) -> None:
        if self._knows((order.run, order.attempt)):
            return
        if not begin and not pid:
            try:
                make_folder(order.folder)
                if claim_never(order.folder):
                    write_status(order.folder, Status(None, signal.SIGTERM))
            except OSError:  # Without room for a claim nobody else begins it.
                self._reports.append(Ended(order.run, order.attempt, None, signal.SIGTERM, note=_NEVER))
                return
        if read_claim(order.folder) is not None:  # It knows better who performs the attempt.
            self._adopt(order)
            return
        if pid and started:  # Its folder is gone. It has begun once, and must not again.
            adopted = _Adopted(order, (pid, started), None)
            self._adopted[adopted.key] = adopted
            self._settle(adopted)
            return
        try:
            self.start(order)
        except SpawnError as error:
            with contextlib.suppress(OSError):
                make_folder(order.folder)
                claim_never(order.folder)
                write_status(order.folder, Status(1, None))
            self._reports.append(Ended(order.run, order.attempt, 1, note=str(error)))

    def stop(self, run: str, attempt: int, *, force: bool) -> None:
        key = run, attempt
        if key in self._keeping:
            self._keeping.stop(key, force=force)
        elif key in self._pool:
            self._pool.stop(key, force=force)
        elif (found := self._adopted.get(key)) is not None and not found.over:
            found.forced = found.forced or force
            leader = found.process[0] if found.process and found.exit else None
            signal_tree(found.order.folder, leader, signal.SIGKILL if force else signal.SIGTERM)

    def collect(self) -> list[Report]:
        if self._unsettled:
            unsettled, self._unsettled = self._unsettled, []
            for adopted in unsettled:
                self._settle(adopted)
        reports = self._reports.copy()
        self._reports.clear()
        return reports

    def workers(self) -> list[WorkerView]:
        return self._pool.views()

    def next_deadline(self) -> int | None:
        """When `housekeep` next has something to do, in milliseconds since boot: 0 is at once, None never."""
        deadlines = [] if (pool_ms := self._pool.next_deadline_ms()) is None else [pool_ms]
        if self._unsettled:
            deadlines.append(self._now_ms + _ASK_EVERY_MS)
        if any(adopted.keeper is None for adopted in self._adopted.values()):
            deadlines.append(self._looked_ms + _LOOK_EVERY_MS)
        return min(deadlines, default=None)

    def housekeep(self, boot_ms: int) -> None:
        """Let idle workers go, bound what is printed, and reap inherited orphans. Cheap; call it whenever the loop
        turns."""
        self._now_ms = boot_ms
        self._pool.housekeep(boot_ms)
        if boot_ms - self._looked_ms >= _LOOK_EVERY_MS:
            self._looked_ms = boot_ms
            for adopted in self._adopted.values():
                if not adopted.over and (adopted.keeper is None or not alive(*adopted.keeper)):
                    output_of(adopted.order).look()
        if boot_ms - self._reaped_ms >= _REAP_EVERY_MS:
            self._reaped_ms = boot_ms
            self._reap_strangers()

    def close(self) -> None:
        """Stop watching. Commands run on; each worker finishes what it has claimed, leaves the rest, and ends."""
        for adopted in self._adopted.values():
            self._forget_exit(adopted)
        for felling in self._fellings.values():
            felling.close()
        self._adopted.clear()
        self._unsettled.clear()
        self._fellings.clear()
        self._keeping.close()
        self._pool.close()

    def _knows(self, key: Key) -> bool:
        return key in self._adopted or key in self._keeping or key in self._pool

    def _adopt(self, order: Order) -> None:
        """Take up an attempt that is claimed."""
        claim = read_claim(order.folder)
        assert claim is not None
        adopted = _Adopted(order, claim.process, claim.keeper, status=claim.status)
        self._adopted[adopted.key] = adopted
        if claim.never and claim.status is None:
            adopted.status = Status(None, signal.SIGTERM)
        self._settle(adopted)

    def _settle(self, adopted: _Adopted) -> None:
        """Follow the process while it lives; else find out how it ended, as soon as that is known."""
        # Who lives is asked before what is written: what they write last must not be missed.
        kept = adopted.keeper is not None and alive(*adopted.keeper)
        if adopted.process is None and not kept:
            adopted.process = _found(adopted.order.folder)
        found = process(adopted.process[0]) if adopted.process else None
        if found is not None and adopted.process != (found.pid, found.started):
            found = None  # Another one has got its number.
        claim = read_claim(adopted.order.folder)
        if claim is not None:
            adopted.status, adopted.process = claim.status, adopted.process or claim.process
        if adopted.status is None and found is not None:
            if found.alive:
                with contextlib.suppress(ProcessLookupError):
                    self._follow(adopted, found)
                    return
            elif found.parent == os.getpid() and adopted.keeper is not None:
                adopted.status = _inherited(adopted.order, found.pid)
        if adopted.status is None and kept:
            self._unsettled.append(adopted)
        else:
            self._lay(adopted)

    def _follow(self, adopted: _Adopted, found: Process) -> None:
        exit = adopted.exit = Exit(found.pid)

        def ended() -> None:
            self._forget_exit(adopted)
            self._unsettled.append(adopted)

        self._watch(exit.fileno(), ended)
        self._reports.append(Began(*adopted.key, found.pid, found.started))

    def _forget_exit(self, adopted: _Adopted) -> None:
        if adopted.exit is not None:
            self._unwatch(adopted.exit.fileno())
            adopted.exit.close()
            adopted.exit = None

    def _lay(self, adopted: _Adopted) -> None:
        """Report the end once nothing of the tree is left."""
        order = adopted.order
        end, notes = adopted.status, []
        adopted.over = True
        if end is None and adopted.forced:
            end = Status(None, signal.SIGKILL)
        elif end is None:
            end = Status(None, None)
            notes.append("nobody saw how it ended")
        if note := note_of(*end, order.limits):
            notes.append(note)
        claim = read_claim(order.folder)
        if claim is not None and claim.never:
            notes.append(_NEVER)

        def done(killed: int) -> None:
            del self._adopted[adopted.key]
            if killed:
                notes.append(killed_note(killed))
            if cut := output_of(order).end():
                notes.append(cut)
            self._reports.append(Ended(*adopted.key, *end, None, None, "; ".join(notes)))

        # A worker that wrote the end itself has nothing left of the attempt, and may be about another one.
        own = adopted.process if adopted.keeper or adopted.status is None else None
        leader = own[0] if own and group_lives(own[0]) else None
        self._fell(order.folder, leader, done)

    def _fell(self, folder: str | None, leader: int | None, done: Callable[[int], None]) -> None:
        self._felled += 1
        number = self._felled

        def all_dead(killed: int) -> None:
            self._fellings.pop(number, None)
            for stranger in self._strangers():
                if folder and not stranger.alive and belongs(stranger.pid, folder):
                    _reap(stranger.pid)
            done(killed)

        felling = Felling(folder, leader, self._watch, self._unwatch, all_dead)
        if felling.alive:
            self._fellings[number] = felling

    def _reap_strangers(self) -> None:
        """Reap the dead that nobody has wanted since the last time: orphans that we never saw alive."""
        dead = {(stranger.pid, stranger.started) for stranger in self._strangers() if not stranger.alive}
        for pid, _ in dead & self._unwanted:
            _reap(pid)
        self._unwanted = dead - self._unwanted

    def _strangers(self) -> list[Process]:
        """Children that we did not start, in sessions that are not ours."""
        if not self._inherits:
            return []
        known = {adopted.process[0] for adopted in self._adopted.values() if adopted.process}
        known |= self._pool.pids | self._keeping.pids
        found = [process(pid) for pid in children() if pid not in known]
        return [stranger for stranger in found if stranger is not None and stranger.session != self._session]


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _found(folder: str) -> Identity | None:
    """A process of the attempt, its first if that can be told: the claim was cut off before it was named."""
    members = tree(folder)
    return min(members, key=lambda member: member[1], default=None)


def _inherited(order: Order, pid: int) -> Status:
    """How a child ended that came to us when its keeper died."""
    status = status_of(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        write_status(order.folder, status)
    return status


def _close_to_children() -> None:
    """Whoever started this process may have left descriptors open to be inherited; the attempts must not have them."""
    listing = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    for name in os.listdir(listing):
        if name.isdigit() and int(name) > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(int(name), False)
