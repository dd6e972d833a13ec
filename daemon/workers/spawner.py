"""The Spawner port on a POSIX system: attempts as processes that outlive the daemon and are never started twice."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from daemon.ports import Began, CommandTask, Ended, Order, Report, SpawnError
from daemon.workers.claim import Claim, Status, read_claim, read_status, take_claim, write_status
from daemon.workers.command import CLAIM_FAILED, CLAIM_LOST, note_of, start_command
from daemon.workers.exits import Exit
from daemon.workers.identity import (
    Process,
    children,
    command_line,
    folder_of,
    inherit_orphans,
    named,
    process,
    start_time,
)
from daemon.workers.tree import Felling, Unwatch, Watch, group_lives, signal_tree
from daemon.workers.warm import Bounds, Key, Pool, WorkerView, killed_note

_REAP_EVERY_MS = 10_000


@dataclass(slots=True, eq=False)
class _Attempt:
    """One attempt's main process: a command's wrapper, or whatever an earlier daemon left running."""

    order: Order
    pid: int
    started: int
    exit: Exit | None
    ours: bool  # our child, whose exit status we collect
    forced: bool = False  # we sent it SIGKILL
    tree: set[int] = field(default_factory=set)  # pids that we signalled
    over: bool = False  # it has ended; what is left of its tree is being killed

    @property
    def key(self) -> Key:
        return self.order.run, self.order.attempt


class PosixSpawner:
    """Starts, adopts, stops and reaps. `watch(descriptor, callback)` asks the daemon's loop to call back whenever the
    descriptor is readable, until `unwatch(descriptor)`; everything happens in those callbacks and in `collect`, in the
    loop's thread, and nothing waits.

    Began may come twice for a command: with the pid of a wrapper that then finds the attempt claimed, and with the pid
    of the one that claimed it. The last one holds.

    On Linux this process inherits the orphans of its attempts, so that a process which changed its session and lost its
    parent is still found. An orphan is killed with its attempt only if its environment or session tells whose it is.
    Dead ones are reaped: other parts of the daemon keep children in its own session, or collect them within seconds.
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
        self._attempts: dict[Key, _Attempt] = {}
        self._reports: list[Report] = []
        self._exited: list[_Attempt] = []
        self._fellings: dict[int, Felling] = {}
        self._orphans: dict[int, str] = {}  # pid: the folder of the attempt it belongs to, "" if unknown
        self._inherits = inherit_orphans()
        self._reaped_ms = 0
        self._felled = 0
        self._unwanted: set[tuple[int, int]] = set()  # dead strangers, (pid, started)
        self._session = os.getsid(0)
        self._pool = Pool(
            watch,
            unwatch,
            python=python,
            engine=engine,
            bounds=bounds or Bounds(),
            report=self._reports.append,
            fell=self._fell,
            adopt=lambda order: self.resume(order, None, None),
        )
        _close_to_children()

    def start(self, order: Order) -> None:
        key = order.run, order.attempt
        if key in self._attempts or key in self._pool:
            return
        if not isinstance(order.task, CommandTask):
            self._pool.start(order)
            return
        pid = start_command(order, order.task)
        # Unreaped, so its number and its start time are still its own, however short it lived.
        try:
            exit = Exit(pid)
        except OSError as error:
            # Looking for its tree would need descriptors; this young, it is all in its group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise SpawnError(
                f"cannot watch run {order.run}, so it was killed: {error.strerror}; "
                "raise the daemon's limit of open files, or let fewer runs go at once"
            ) from error
        self._follow(order, pid, start_time(pid) or 0, exit, ours=True)

    def resume(self, order: Order, pid: int | None, started: int | None) -> None:
        key = order.run, order.attempt
        if key in self._attempts or key in self._pool:
            return
        claim = read_claim(order.folder)
        if claim is None:
            try:
                self.start(order)
            except SpawnError as error:
                with contextlib.suppress(OSError):
                    take_claim(order.folder, "never")
                    write_status(order.folder, Status(1, None))
                self._reports.append(Ended(*key, 1, note=str(error)))
            return
        living = _living(claim, order)
        if living is not None and (pid != living[0] or started in (None, living[1])):
            with contextlib.suppress(ProcessLookupError):
                self._follow(order, *living, Exit(living[0]), ours=False)
                return
        attempt = _Attempt(order, 0, 0, None, ours=False)
        self._attempts[key] = attempt
        self._adopted_over(attempt)

    def stop(self, run: str, attempt: int, *, force: bool) -> None:
        key = run, attempt
        if key in self._pool:
            self._pool.stop(key, force=force)
        elif (found := self._attempts.get(key)) is not None and not found.over:
            found.forced = found.forced or force
            found.tree |= signal_tree(found.order.folder, found.pid, signal.SIGKILL if force else signal.SIGTERM)

    def collect(self) -> list[Report]:
        if self._exited:
            exited, self._exited = self._exited, []
            ends = []
            for attempt in exited:
                if attempt.ours:
                    _, status, usage = os.wait4(attempt.pid, 0)
                    ends.append((attempt, os.waitstatus_to_exitcode(status), usage))
            self._find_orphans()
            for attempt, code, usage in ends:
                self._own_over(attempt, code, usage)
            for attempt in exited:
                if not attempt.ours:
                    self._adopted_over(attempt)
        reports = self._reports.copy()
        self._reports.clear()
        return reports

    def workers(self) -> list[WorkerView]:
        return self._pool.views()

    def next_deadline(self) -> int | None:
        """When `housekeep` next has something to do, in milliseconds since boot: 0 is at once, None never."""
        return self._pool.next_deadline_ms()

    def housekeep(self, boot_ms: int) -> None:
        """Let idle workers go and reap inherited orphans. Cheap; call it whenever the loop turns."""
        self._pool.housekeep(boot_ms)
        if boot_ms - self._reaped_ms >= _REAP_EVERY_MS:
            self._reaped_ms = boot_ms
            self._find_orphans()
            self._reap_strangers()

    def close(self) -> None:
        """Stop watching. Commands run on; each worker finishes what it has claimed, leaves the rest, and ends."""
        for attempt in self._attempts.values():
            if attempt.exit is not None:
                self._unwatch(attempt.exit.fileno())
                attempt.exit.close()
        for felling in self._fellings.values():
            felling.close()
        self._attempts.clear()
        self._exited.clear()
        self._fellings.clear()
        self._pool.close()

    def _follow(self, order: Order, pid: int, started: int, exit: Exit, *, ours: bool) -> None:
        attempt = _Attempt(order, pid, started, exit, ours)
        self._attempts[attempt.key] = attempt

        def ended() -> None:
            self._unwatch(exit.fileno())
            exit.close()
            attempt.exit, attempt.over = None, True
            self._exited.append(attempt)

        self._watch(exit.fileno(), ended)
        self._reports.append(Began(order.run, order.attempt, pid, started))

    def _own_over(self, attempt: _Attempt, code: int, usage: resource.struct_rusage) -> None:
        order = attempt.order
        note = "" if code < 0 else note_of(code, order.limits)
        if code in (CLAIM_LOST, CLAIM_FAILED):
            claim = read_claim(order.folder)
            if claim is None or (claim.torn and code == CLAIM_FAILED):
                # Only a full disk or a folder that was taken away can keep a claim from being written.
                note = f"it could not begin: no claim could be written in {order.folder}; make room on its disk"
            elif claim.pid != attempt.pid:
                del self._attempts[attempt.key]
                self.resume(order, None, None)
                return
        end = Status(code, None) if code >= 0 else Status(None, -code)
        if code < 0:
            # The wrapper could not write it down, and the daemon may die before it is in the ledger.
            with contextlib.suppress(OSError):
                write_status(order.folder, end)
        cpu_ms = round((usage.ru_utime + usage.ru_stime) * 1000)
        rss_kib: int | None = _peak_kib(usage)
        # Linux counts what a process was before its exec: a peak that is not above our own says nothing of the command.
        if rss_kib is not None and rss_kib <= _peak_kib(resource.getrusage(resource.RUSAGE_SELF)):
            rss_kib = None
        if group_lives(attempt.pid):
            self._lay(attempt, attempt.pid, end, cpu_ms, rss_kib, note)
        elif order.folder in self._orphans.values():
            self._lay(attempt, None, end, cpu_ms, rss_kib, note)
        else:
            del self._attempts[attempt.key]
            self._reports.append(Ended(order.run, order.attempt, *end, cpu_ms, rss_kib, note))

    def _adopted_over(self, attempt: _Attempt) -> None:
        attempt.over = True
        order = attempt.order
        claim, end = read_claim(order.folder), read_status(order.folder)
        note = ""
        if end is not None:
            note = "" if end.code is None else note_of(end.code, order.limits)
        elif attempt.forced:
            end = Status(None, signal.SIGKILL)
        elif claim is not None and claim.pid is None and not claim.torn:
            end, note = Status(None, signal.SIGTERM), "stopped before it began"
        else:
            end, note = Status(None, None), "nobody saw how it ended"
        leader = attempt.pid if attempt.pid and group_lives(attempt.pid) else None
        self._lay(attempt, leader, end, None, None, note)

    def _lay(
        self, attempt: _Attempt, leader: int | None, end: Status, cpu_ms: int | None, rss_kib: int | None, note: str
    ) -> None:
        """Report the end once nothing of the tree is left."""

        def done(killed: int) -> None:
            self._find_orphans()  # Those that died just now may be ours to reap.
            del self._attempts[attempt.key]
            notes = [note] if note else []
            if killed:
                notes.append(killed_note(killed))
            self._reports.append(Ended(*attempt.key, *end, cpu_ms, rss_kib, "; ".join(notes)))

        self._fell(attempt.order.folder, leader, done)

    def _fell(self, folder: str | None, leader: int | None, done: Callable[[int], None]) -> None:
        self._felled += 1
        number = self._felled

        def all_dead(killed: int) -> None:
            self._fellings.pop(number, None)
            done(killed)

        felling = Felling(folder, leader, self._watch, self._unwatch, all_dead)
        if felling.alive:
            self._fellings[number] = felling

    def _find_orphans(self) -> None:
        """Note whose the orphans are that we inherited, and reap those that have died since."""
        found: dict[int, str] = {}
        for orphan in self._strangers():
            folder = self._orphans.get(orphan.pid, "")
            if orphan.alive:
                found[orphan.pid] = folder or folder_of(orphan.pid) or self._folder_of_session(orphan.session)
            elif folder or self._folder_of_session(orphan.session) or self._signalled(orphan.pid):
                _reap(orphan.pid)
        self._orphans = found

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
        known = {attempt.pid for attempt in self._attempts.values() if attempt.ours} | self._pool.pids
        found = [process(pid) for pid in children() if pid not in known]
        return [stranger for stranger in found if stranger is not None and stranger.session != self._session]

    def _signalled(self, pid: int) -> bool:
        return any(pid in attempt.tree for attempt in self._attempts.values())

    def _folder_of_session(self, session: int) -> str:
        for attempt in self._attempts.values():
            if attempt.pid == session:
                return attempt.order.folder
        return ""


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _living(claim: Claim, order: Order) -> tuple[int, int] | None:
    """The process that holds the claim, if it lives and is the one that took it: its pid may be another's by now."""
    if claim.torn:
        return named(order.folder)
    found = process(claim.pid) if claim.pid else None
    if found is None or not found.alive:
        return None
    if claim.started is None:
        return (found.pid, found.started) if order.folder in command_line(found.pid) else None
    return (found.pid, found.started) if found.started == claim.started else None


def _close_to_children() -> None:
    """Whoever started this process may have left descriptors open to be inherited; the attempts must not have them."""
    listing = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    for name in os.listdir(listing):
        if name.isdigit() and int(name) > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(int(name), False)


def _peak_kib(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss // 1024 if sys.platform == "darwin" else usage.ru_maxrss
