"""The keeper: the process that starts commands, lives on without the daemon, and keeps how they end. Standard library
only.

It waits for its own children, so it knows exit statuses from signals; orphans of its commands come to it, so that a
process which left its session and lost its parent is still found; and it bounds what commands print. A command is one
process, with no wrapper around it.

It says and is told what `daemon.workers.wire` tells. Should it die, its children come to the daemon, which then sees
how they end; only if both die at once is the end of a command seen by nobody.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import selectors
import signal
import socket
import stat
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any

from daemon.workers.claim import Journal, Status, make_folder
from daemon.workers.identity import (
    belongs,
    boot_ns,
    children,
    inherit_orphans,
    marked,
    start_time,
    tick_between,
)
from daemon.workers.output import LOOK_EVERY_S, NAMES, OUTPUT_BYTES, Output, Spares
from daemon.workers.tree import Felling, group_lives, killed_note
from daemon.workers.wire import Lines, Message, line_of, whole

NO_CWD = 125
NOT_EXECUTED = 126
NOT_FOUND = 127
"""The exit statuses of a command that could not begin, as a shell would give them."""

_LIMITED = """
[ -z "$1" ] || ulimit -n "$1" || exit 125
[ -z "$2" ] || ulimit -f "$2" || exit 125
[ -z "$3" ] || { ulimit -S -t "$3" && ulimit -H -t "$(($3 + 5))"; } || exit 125
[ -z "$4" ] || ulimit -v "$4" || exit 125
shift 4
exec "$@"
"""
"""Positions: open files, file size (512-byte blocks), CPU seconds, memory (KiB), argv. The command's path holds a
slash, or it might be taken for a shell builtin."""

_LIMITS = {"open_files": 1, "file_size": 512, "cpu_seconds": 1, "memory": 1024}
DEFAULTED = [
    number
    for name in ("HUP", "INT", "QUIT", "PIPE", "ALRM", "TERM", "CHLD", "USR1", "USR2", "XFSZ", "XCPU", "TSTP", "IO")
    if (number := getattr(signal, f"SIG{name}", None)) is not None
]
_LOG = os.O_WRONLY | os.O_CREAT | os.O_APPEND


@dataclass(slots=True, eq=False)
class _Kept:
    """A command that runs, or whose tree is being killed."""

    about: bytes
    """Which one, as a message says it."""
    folder: str
    output: Output
    since_s: float


class Keeper:
    def __init__(self, channel: int, place: str) -> None:
        os.set_inheritable(channel, False)
        self._socket = socket.socket(fileno=channel)
        self._lines = Lines()
        self._orders: deque[Message] = deque()
        self._said: list[bytes] = []
        self._kept: dict[int, _Kept] = {}
        self._fellings: list[Felling] = []
        self._listening = True
        self._look_s = 0.0
        self._peak_kib = 0
        pid = os.getpid()
        self._journal = Journal(place, "keeper", (pid, start_time(pid) or 0))
        self._spares = Spares(place)
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel, selectors.EVENT_READ, self._listen)
        # What ends the daemon's whole service must not keep the commands' ends from being seen.
        # SIGIO comes of somebody who opens a file for which we hold a lease, for the moment that we do.
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGIO):
            signal.signal(number, signal.SIG_IGN)
        self._ended, wake = os.pipe()
        os.set_blocking(self._ended, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(self._ended, selectors.EVENT_READ, lambda: os.read(self._ended, 4096))
        inherit_orphans()

    def serve(self) -> None:
        """Until the daemon has no more to say and every command is over."""
        self._said.append(line_of({"type": "ready"}))
        while self._listening or self._kept or self._fellings:
            self._speak()
            for key, _ in self._selector.select(self._patience_s()):
                key.data()
            self._reap()
            if self._orders:
                while self._orders:
                    self._begin(self._orders.popleft())
                os.chdir("/")  # Not to keep a folder, or a whole disk, in use.
            self._look()
            self._fellings = [felling for felling in self._fellings if felling.alive]
        self._speak()
        self._spares.close()
        self._journal.close()

    def _tell(self, kind: str, about: bytes, **fields: Any) -> None:
        more = b"," + line_of(fields)[1:-2] if fields else b""
        self._said.append(b'{"type":"%b",%b%b}\n' % (kind.encode(), about, more))

    def _speak(self) -> None:
        if self._said:
            data, self._said = b"".join(self._said), []
            with contextlib.suppress(OSError):  # A daemon that is gone finds it all in the folders.
                self._socket.sendall(data)

    def _listen(self) -> None:
        try:
            data = self._socket.recv(1 << 18)
        except OSError:
            data = b""
        if data:
            self._orders.extend(self._lines.feed(data))
        else:
            # What a dead daemon left unclaimed is the next daemon's.
            self._listening = False
            self._orders.clear()
            self._selector.unregister(self._socket)

    def _begin(self, order: Message) -> None:
        about = line_of({"run": order["run"], "attempt": order["attempt"]})[1:-2]
        folder: str = order["folder"]
        spare: str = order.get("spare", "")
        try:
            order = whole(order)
        except (OSError, ValueError) as error:
            self._tell("failed", about, note=f"it could not begin: its order cannot be read: {error}")
            return
        try:
            if not (spare and self._journal.move(spare, folder)):
                make_folder(folder)
                if not self._journal.take(folder):
                    self._tell("refused", about)
                    return
                for name in NAMES:
                    self._spares.lend(f"{folder}/{name}")
        except OSError as error:
            why = f"no claim could be written in {folder}: {error.strerror}"
            self._tell("failed", about, note=f"it could not begin: {why}; make room on its disk")
            return
        output = Output(folder, order["limits"].get("output", OUTPUT_BYTES))
        before_ns = boot_ns()
        try:
            pid = _started(order)
        except _Unstartable as error:
            self._journal.ended(folder, Status(error.code, None))
            self._tell("ended", about, code=error.code, signal=None, cpu_ms=0, rss_kib=None, note=str(error),
                       bare=False)  # fmt: skip
            return
        started = tick_between(before_ns, boot_ns()) or start_time(pid) or 0
        self._journal.began(folder, (pid, started))
        self._kept[pid] = _Kept(about, folder, output, monotonic())
        self._said.append(b'{"type":"began",%b,"pid":%d,"started":%d}\n' % (about, pid, started))

    def _reap(self) -> None:
        """Take what has ended: commands, and orphans that came to us."""
        over = []
        while (found := _ended_child()) is not None:
            pid, status, usage = found
            kept = self._kept.pop(pid, None)
            if kept is not None:
                # Written before it is reaped: if this process dies between, the daemon inherits the status.
                self._journal.ended(kept.folder, status)
            if usage is None:
                usage = os.wait4(pid, 0)[2]
            if kept is not None:
                over.append((pid, kept, status, usage))
        if over:
            orphans = [child for child in children() if child not in self._kept]
            for pid, kept, status, usage in over:
                left = group_lives(pid) or any(belongs(orphan, kept.folder) for orphan in orphans)
                self._over(pid, kept, status, usage, left=left)

    def _over(self, pid: int, kept: _Kept, status: Status, usage: resource.struct_rusage, *, left: bool) -> None:
        """Tell the end of a command, once what it has left behind is dead."""
        cpu_ms = round((usage.ru_utime + usage.ru_stime) * 1000)
        rss_kib: int | None = peak_kib(usage)
        # Linux counts what a process was before its exec: a peak that is not above our own says nothing of the command.
        if rss_kib is not None and rss_kib > self._peak_kib:
            self._peak_kib = peak_kib(resource.getrusage(resource.RUSAGE_SELF))
        if rss_kib is not None and rss_kib <= self._peak_kib:
            rss_kib = None

        def done(killed: int) -> None:
            notes = [killed_note(killed)] if killed else []
            bare = not left and kept.output.untouched()
            if not bare and (cut := kept.output.end(self._spares)):
                notes.append(cut)
            code, number = status
            self._tell("ended", kept.about, code=code, signal=number, cpu_ms=cpu_ms, rss_kib=rss_kib,
                       note="; ".join(notes), bare=bare)  # fmt: skip

        if not left:
            done(0)
            return
        felling = Felling(kept.folder, pid, self._watch, self._unwatch, done)
        if felling.alive:
            self._fellings.append(felling)

    def _watch(self, descriptor: int, callback: Any) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, callback)

    def _unwatch(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)

    def _patience_s(self) -> float | None:
        return max(0.0, self._look_s - monotonic()) if self._kept else None

    def _look(self) -> None:
        """Now and then, at what has been printed by commands that run for long."""
        if not self._kept or (now_s := monotonic()) < self._look_s:
            return
        self._look_s = now_s + LOOK_EVERY_S
        for kept in self._kept.values():
            if now_s - kept.since_s >= LOOK_EVERY_S / 2:
                kept.output.look()


class _Unstartable(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class _NoInput(OSError):
    """What was to be the command's standard input cannot be."""


def _started(order: Message) -> int:
    """Start the command: in a session of its own, with its output appended to its files, no descriptor of ours, and
    signals as a login shell would leave them."""
    folder, cwd, stdin = order["folder"], order["cwd"], order["stdin"]
    argv: list[str] = order["argv"]
    try:
        os.chdir(cwd)
    except OSError as error:
        raise _said(folder, NO_CWD, f"working directory {cwd}: {error.strerror}") from None
    limits = [order["limits"].get(name) for name in _LIMITS]
    if any(limit is not None for limit in limits):
        units = _LIMITS.values()
        words = ["" if n is None else str(-(-n // unit)) for n, unit in zip(limits, units, strict=True)]
        argv = ["/bin/sh", "-c", _LIMITED, "hermesd-run", *words, *argv]
    actions: list[Any] = [
        (os.POSIX_SPAWN_OPEN, 1, f"{folder}/stdout.log", _LOG, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, f"{folder}/stderr.log", _LOG, 0o600),
    ]
    try:
        with _input(stdin) as descriptor, marked(folder):
            actions.append((os.POSIX_SPAWN_DUP2, descriptor, 0))
            try:
                return _spawned(argv, order["env"], actions)
            except OSError as error:
                if error.errno != errno.ENOEXEC:  # A script that names no interpreter is one.
                    raise
                return _spawned(["/bin/sh", *argv], order["env"], actions)
    except OSError as error:
        if isinstance(error, _NoInput):
            why = f"standard input {stdin}: {error.strerror}"
        elif error.errno == errno.E2BIG:
            why = "argv and environment together are too long for this system; pass the data in a file"
        elif isinstance(error, (FileNotFoundError, PermissionError, NotADirectoryError)):
            why = f"{argv[0]}: {error.strerror}"
        else:
            why = f"{argv[0]}: {error.strerror}; check the limits on processes, memory and disk"
        code = NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTED
        raise _said(folder, code, why) from None
    except ValueError as error:  # What is no text of this system is one command's trouble, and not ours.
        raise _said(folder, NOT_EXECUTED, f"{argv[0]}: {error}") from None


@contextlib.contextmanager
def _input(path: str) -> Iterator[int]:
    """Opened here, and without waiting: the opening of a pipe would hold up this process, and with it every command."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise _NoInput(error.errno, error.strerror) from None
    try:
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            raise _NoInput(errno.EINVAL, "it is a pipe, to which perhaps nobody ever writes; name a file")
        os.set_blocking(descriptor, True)
        yield descriptor
    finally:
        os.close(descriptor)


def _spawned(argv: list[str], env: dict[str, str], actions: list[Any]) -> int:
    return os.posix_spawn(argv[0], argv, env, file_actions=actions, setsid=True, setsigmask=[], setsigdef=DEFAULTED)


def _said(folder: str, code: int, why: str) -> _Unstartable:
    """As the command's own error: in its stderr.log."""
    with contextlib.suppress(OSError), open(f"{folder}/stderr.log", "a", encoding="utf-8", errors="replace") as file:
        file.write(f"hermesd: {why}\n")
    return _Unstartable(code, f"it could not begin: {why}")


def _ended_child() -> tuple[int, Status, resource.struct_rusage | None] | None:
    """A child that has ended, and how. Not reaped yet, where the system lets us look first; else its usage is given."""
    try:
        if hasattr(os, "waitid"):
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None:
                return None
            exited = found.si_code == os.CLD_EXITED
            status = Status(found.si_status, None) if exited else Status(None, found.si_status)
            return found.si_pid, status, None
        pid, code, usage = os.wait4(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status_of(code), usage) if pid else None


def status_of(wait_status: int) -> Status:
    """From what `wait` says."""
    code = os.waitstatus_to_exitcode(wait_status)
    return Status(code, None) if code >= 0 else Status(None, -code)


def peak_kib(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss // 1024 if sys.platform == "darwin" else usage.ru_maxrss


def main(channel: int) -> None:
    Keeper(channel, sys.argv[1]).serve()
