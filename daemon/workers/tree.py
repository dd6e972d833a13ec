"""The whole process tree of one attempt: signalled, and killed until nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from functools import partial

from daemon.workers.exits import Exit
from daemon.workers.identity import start_time, tree

Watch = Callable[[int, Callable[[], None]], None]
Unwatch = Callable[[int], None]

_ROUNDS_MAX = 5


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
    """Kills what is left of a tree; calls `done(killed)` once all of it is known dead, at once if nothing is left."""

    def __init__(
        self, folder: str | None, leader: int | None, watch: Watch, unwatch: Unwatch, done: Callable[[int], None]
    ) -> None:
        self._folder, self._leader, self._watch, self._unwatch, self._done = folder, leader, watch, unwatch, done
        self._dying: dict[int, Exit] = {}
        self._killed = 0
        self._round()

    @property
    def alive(self) -> bool:
        """Something of the tree is not known dead yet."""
        return bool(self._dying)

    def close(self) -> None:
        """Stop watching; `done` is not called any more."""
        for exit in self._dying.values():
            self._unwatch(exit.fileno())
            exit.close()
        self._dying.clear()

    def _round(self) -> None:
        if self._leader is not None and not group_lives(self._leader):
            self._leader = None
        for pid, started in tree(self._folder, self._leader):
            exit = _send(pid, started, signal.SIGKILL, keep=True)
            if exit is not None:
                self._killed += 1
                self._dying[pid] = exit
                self._watch(exit.fileno(), partial(self._died, pid))
        if not self._dying:
            self._done(self._killed)

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
