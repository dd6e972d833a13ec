"""The whole process tree of one attempt: signalled, and killed until nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from functools import partial

from daemon.workers.exits import Exit
from daemon.workers.identity import belongs, children, kin, process, start_time, tree

Watch = Callable[[int, Callable[[], None]], None]
Unwatch = Callable[[int], None]

_ROUNDS_MAX = 5
_QUIET_LOOKS = 2
_SWEEPS_MAX = 100


def killed_note(killed: int) -> str:
    return f"{killed} left-over {'processes were' if killed > 1 else 'process was'} killed"


def group_lives(leader: int) -> bool:
    """The process group has members. While it does, its number cannot be given to anybody else."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def signal_tree(folder: str | None, leader: int | None, number: int) -> set[int]:
    """Signal every process of the attempt; returns their pids. SIGKILL is repeated for what was forked meanwhile, as
    far as that goes: `Felling` makes sure of it once the main process has ended."""
    signalled: set[int] = set()
    for _ in range(_ROUNDS_MAX if number == signal.SIGKILL else 1):
        # The leader first: it must not take the others' deaths for the command's own end.
        members = sorted(tree(folder, leader), key=lambda member: member[0] != leader)
        for pid, started in members:
            signalled.add(pid)
            _send(pid, started, number)
            if number == signal.SIGTERM:
                _send(pid, started, signal.SIGCONT)  # A stopped process hears SIGTERM only once it goes on.
        if not members:
            break
    return signalled


class Felling:
    """Kills what is left of a tree; calls `done(killed)` once all of it is known dead, at once if nothing is left.

    One look that finds nobody alive proves nothing: a process may fork and end while the process table is read. It is
    then still there, dead, if it is for us to reap; and if not, the next look finds its child.
    """

    def __init__(
        self, folder: str | None, leader: int | None, watch: Watch, unwatch: Unwatch, done: Callable[[int], None]
    ) -> None:
        self._folder, self._leader, self._watch, self._unwatch, self._done = folder, leader, watch, unwatch, done
        self._dying: dict[int, Exit] = {}
        self._killed: set[int] = set()
        self._over = False
        self._round()

    @property
    def alive(self) -> bool:
        """Something of the tree is not known dead yet."""
        return not self._over

    def close(self) -> None:
        """Stop watching; `done` is not called any more."""
        for exit in self._dying.values():
            self._unwatch(exit.fileno())
            exit.close()
        self._dying.clear()

    def _round(self) -> None:
        quiet = 0
        while quiet < _QUIET_LOOKS and not self._dying:
            quiet = 0 if self._kill() else quiet + 1
        if not self._dying:
            self._over = True
            self._done(len(self._killed))

    def _kill(self) -> bool:
        """Look once, and kill. False if there was nobody."""
        found = self._sweep()
        if self._leader is not None and not group_lives(self._leader):
            self._leader = None
        for member in kin(self._folder, self._leader):
            if not member.alive:
                with contextlib.suppress(ChildProcessError):
                    found = bool(os.waitpid(member.pid, os.WNOHANG)[0]) or found
            elif (exit := _send(member.pid, member.started, signal.SIGKILL, keep=True)) is not None:
                self._killed.add(member.pid)
                self._dying[member.pid] = exit
                self._watch(exit.fileno(), partial(self._died, member.pid))
        if self._leader is not None and self._dying:
            # All of a group at once: what is forked while we go through the table does not get away.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._leader, signal.SIGKILL)
        return found or bool(self._dying)

    def _sweep(self) -> bool:
        """Kill the orphans that came to us. They may replace themselves faster than the process table can be read."""
        found = False
        for _ in range(_SWEEPS_MAX if self._folder else 0):
            orphans = [pid for pid in children() if pid not in self._dying and belongs(pid, self._folder or "")]
            if not orphans:
                break
            found = True
            for pid in orphans:
                known = process(pid)
                if known is not None and known.alive:
                    self._killed.add(pid)
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)  # It is not reaped, so the number is its own.
                    os.waitpid(pid, os.WNOHANG)
        return found

    def _died(self, pid: int) -> None:
        exit = self._dying.pop(pid)
        self._unwatch(exit.fileno())
        exit.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # An orphan that we inherited.
        if not self._dying:
            self._round()  # What they forked before they died.


def _send(pid: int, started: int, number: int, *, keep: bool = False) -> Exit | None:
    """Signal that very process. With `keep`, its exit to watch, unless it is gone."""
    try:
        exit = Exit(pid)
    except ProcessLookupError:
        return None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if start_time(pid) == started:
            exit.send(number)
            if keep:
                return exit
    exit.close()
    return None
