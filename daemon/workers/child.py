"""A warm worker's own loop: claim an attempt, perform it, write down how it ended. Standard library only.

`Worker.serve` is the loop, whatever the work; `main` is the worker of `python` tasks. An engine is another module
with a `main(channel: int) -> None` that makes a `Worker(channel)` and lets it `serve` the engine's own `perform`.
`BOOT` is how the daemon starts either.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import resource
import signal
import socket
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from daemon.workers.claim import Journal, Status, make_folder
from daemon.workers.identity import childless, children, inherit_orphans, marked, start_time
from daemon.workers.output import OUTPUT_BYTES, Output
from daemon.workers.tree import killed_note
from daemon.workers.wire import Lines, Message, line_of, whole

BOOT = """
import importlib, resource, sys
root, module, channel, *limits = sys.argv[1:]
for limit in limits:
    name, value = limit.split("=")
    resource.setrlimit(getattr(resource, name), (int(value), int(value)))
    # Python would keep a compiled module cut off at the limit, for all who import it.
    sys.dont_write_bytecode |= name == "RLIMIT_FSIZE"
sys.path.insert(0, root)
main = importlib.import_module(module).main
sys.path.append(sys.path.pop(0))
del sys.argv[1:]
main(int(channel))
"""
"""Text of `python -P -c BOOT root module channel RLIMIT=value...`. The root is first on the path until we are imported,
whatever else is called like us; then it is last, for a task's own modules go first."""

Perform = Callable[[Message], Any]
"""Performs one attempt: the whole `perform` message in, a JSON value out (it becomes `result.json`; None writes none).
It may print, and it may raise: an exception is status 1 with its traceback in stderr.log, SystemExit is the status it
names."""


class Worker:
    """The worker's side of the wire."""

    def __init__(self, channel: int) -> None:
        os.set_inheritable(channel, False)
        self._socket = socket.socket(fileno=channel)
        self._lines = Lines()
        self._orders: deque[Message] = deque()
        self._pid = os.getpid()
        self._identity = self._pid, start_time(self._pid) or 0
        self._journal: Journal | None = None
        self._unsaid: list[bytes] = []
        self._environ = dict(os.environ)
        self._nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._prints = [_Print(1, "stdout.log"), _Print(2, "stderr.log")]
        inherit_orphans()

    def tell(self, kind: str, **fields: Any) -> None:
        """Send to the daemon. A daemon that is gone is no error: what matters is in the folder."""
        self._unsaid.append(line_of({"type": kind, **fields}))
        self._say()

    def _say(self) -> None:
        if self._unsaid:
            data = b"".join(self._unsaid)
            self._unsaid.clear()
            with contextlib.suppress(OSError):
                self._socket.sendall(data)

    def serve(self, perform: Perform, *, tidy: bool = False, stale: Callable[[], bool] | None = None) -> None:
        """Perform what the daemon sends until it has no more.

        `tidy` kills processes that an attempt leaves behind and ends the worker if it leaves threads; an engine, whose
        runtime has helpers of its own, does without. `stale` is asked before each claim: true ends the worker, and what
        it had not claimed goes to a fresh one.
        """
        self.tell("ready")
        while self._listen():
            if not self._orders:
                continue
            if (stale is not None and stale()) or not self._attempt(self._orders.popleft(), perform, tidy):
                break
        self._say()
        self._tidy_up()

    def _tidy_up(self) -> None:
        for each in self._prints:
            each.close()
        if self._journal is not None:
            self._journal.close()

    def _listen(self) -> bool:
        """Take what has come, waiting if there is nothing to do; False once the daemon has no more to say. Asked before
        every claim: what a dead daemon left unclaimed is the next daemon's."""
        try:
            data = self._socket.recv(65_536, socket.MSG_DONTWAIT if self._orders else 0)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._orders.extend(self._lines.feed(data))
        return bool(data)

    def _attempt(self, order: Message, perform: Perform, tidy: bool) -> bool:
        """False if the worker is not fit for another one."""
        about = {"run": order["run"], "attempt": order["attempt"]}
        folder: str = order["folder"]
        try:
            order = whole(order)
        except (OSError, ValueError) as error:
            self.tell("failed", **about, note=f"it could not begin: its order cannot be read: {error}")
            return True
        if self._journal is None:
            place = order.get("place", "")
            if place:
                with contextlib.suppress(OSError):
                    make_folder(place)
            self._journal = Journal(place, "worker", self._identity)
            if tidy:  # What an engine's helpers print later must not become another attempt's.
                for each in self._prints:
                    each.place = place
        try:
            make_folder(folder)
            if not self._journal.take(folder):
                self.tell("refused", **about)
                return True
        except OSError as error:
            why = f"no claim could be written in {folder}: {error.strerror}"
            self.tell("failed", **about, note=f"it could not begin: {why}; make room on its disk")
            return True
        self.tell("claimed", **about)
        self._restore(order["env"])
        limits = order.get("limits") or {}
        before_ms = _cpu_ms()
        limit_cpu(limits.get("cpu_seconds"))
        for each in self._prints:
            each.begin(folder)
        _renew_streams()
        with marked(folder):
            code, result = _called(perform, order)
        if os.getpid() != self._pid:
            os._exit(code)  # A fork that came back out of the task: not the worker, and not its place to report.
        fit = not (tidy and _threads())  # What threads start has them for parents, and is the daemon's to find.
        notes = _tidied() if tidy else []
        if not fit:
            notes.append("it left threads running, so its worker was ended")
        outputs: dict[str, Any] | None = {}
        if code == 0 and result is not None:
            outputs = {"result.json": {"bytes": len(result), "sha256": sha256(result).hexdigest()}}
            try:
                _publish(f"{folder}/result.json", result)
            except OSError as error:
                code, outputs = 1, {}
                notes.append(f"what it returned could not be written: {error.strerror}")
        _flush()
        os.dup2(self._nowhere, 1)
        os.dup2(self._nowhere, 2)
        silent = [each.end() for each in self._prints]
        if not all(silent):
            outputs = None
            if cut := Output(folder, limits.get("output", OUTPUT_BYTES)).end():
                notes.append(cut)
        self._journal.ended(folder, Status(code, None))
        cpu_ms = _cpu_ms() - before_ms
        ended = {**about, "code": code, "cpu_ms": cpu_ms, "rss_kib": _rss_kib(), "note": "; ".join(notes)}
        ended["outputs"] = outputs
        if not fit:
            ended["last"] = True
        if self._orders:
            self._unsaid.append(line_of({"type": "ended", **ended}))  # Told with the next one's claim.
        else:
            self.tell("ended", **ended)
        if not fit:
            self._say()
            self._tidy_up()
            os._exit(0)
        return True

    def _restore(self, env: Mapping[str, str]) -> None:
        """The environment the worker began with, and what this attempt adds: not what the last task left."""
        wanted = {**self._environ, **env}
        now = dict(os.environ)
        if now != wanted:
            for name in now.keys() - wanted.keys():
                del os.environ[name]
            for name, value in wanted.items():
                if now.get(name) != value:
                    os.environ[name] = value


class _Print:
    """One of the two files that an attempt prints to. To make a file costs ten times what a new name for it does, so
    one that stayed empty serves the next attempt: it is held open, with a name in `place` of its own."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor, self._name = descriptor, name
        self.place = ""
        """"" for a file of its own for each attempt."""
        self._file = -1
        self._inode = self._made = 0
        self._spare = self._path = ""

    def begin(self, folder: str) -> None:
        """Have the descriptor lead to the file in `folder`. OSError if it cannot be made."""
        self._path = f"{folder}/{self._name}"
        if self._lend():
            os.dup2(self._file, self._descriptor)
            return
        self._give_up()
        file = os.open(self._path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        os.dup2(file, self._descriptor)
        os.close(file)

    def end(self) -> bool:
        """Nothing was printed, and the file has left the folder. The descriptor must lead elsewhere by now."""
        if self._file < 0:
            return False
        try:
            status = os.fstat(self._file)
            plain = status.st_nlink == 2 and stat.S_IMODE(status.st_mode) == 0o600
            if plain and not status.st_size and os.lstat(self._path).st_ino == self._inode:
                os.unlink(self._path)
                return True
        except OSError:  # The task has closed it, or taken it away.
            pass
        self._give_up()
        return False

    def _lend(self) -> bool:
        if not self.place:
            return False
        try:
            if self._file < 0:
                self._made += 1
                self._spare = f"{self.place}/{os.getpid()}-{self._made}.{self._name}"
                flags = os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC
                self._file = os.open(self._spare, flags, 0o600)
                self._inode = os.fstat(self._file).st_ino
            os.link(self._spare, self._path)
            return os.fstat(self._file).st_ino == self._inode
        except FileExistsError:  # What the worker printed before its first attempt is there.
            return False
        except OSError:  # No room, or no second names in this file system.
            self.place = ""
            return False

    def _give_up(self) -> None:
        """The file is the attempt's alone."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._spare)
            with contextlib.suppress(OSError):
                if os.fstat(self._file).st_ino == self._inode:  # A task may have closed it, and opened another.
                    os.close(self._file)
            self._file = -1

    close = _give_up


def _called(perform: Perform, order: Message) -> tuple[int, bytes | None]:
    try:
        result = perform(order)
        return 0, None if result is None else json.dumps(result, allow_nan=False, ensure_ascii=False).encode()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF, None
        _put_streams_back()
        print(end.code, file=sys.stderr)
        return 1, None
    except BaseException:
        import traceback

        _put_streams_back()
        traceback.print_exc()
        return 1, None


def _put_streams_back() -> None:
    """The attempt's end is told in its own stderr.log, whatever it has made of the streams."""
    _flush()
    _renew_streams()


def _tidied() -> list[str]:
    """Kill every child, and the orphans that come to us when they die, until there is none."""
    if childless():
        return []
    killed = 0
    while left := children():
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    return [killed_note(killed)] if killed else []


def _threads() -> bool:
    threading = sys.modules.get("threading")
    return threading is not None and threading.active_count() > 1


def _renew_streams() -> None:
    # A task may have closed, emptied or replaced these.
    if sys.stdout is not sys.__stdout__ or not _usable(sys.stdout):
        sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # type: ignore[misc] # noqa: SIM115
    if sys.stderr is not sys.__stderr__ or not _usable(sys.stderr):
        sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", closefd=False)  # type: ignore[misc] # noqa: SIM115


def _usable(stream: Any) -> bool:
    try:
        return not stream.closed
    except (AttributeError, ValueError):
        return False


def _flush() -> None:
    # What a task has put in the place of ours may still hold what it printed, and hand it on to ours.
    streams: tuple[Any, ...] = sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__
    for stream in streams:
        with contextlib.suppress(Exception):
            stream.flush()


def _publish(path: str, data: bytes) -> None:
    # Not under another name first: nobody reads it before the attempt's end is written down.
    try:
        with open(path, "wb") as file:
            file.write(data)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _cpu_ms() -> int:
    own, theirs = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return round((own.ru_utime + own.ru_stime + theirs.ru_utime + theirs.ru_stime) * 1000)


def _rss_kib() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


def limit_cpu(seconds: int | None) -> None:
    """SIGXCPU once this process has spent so many seconds more, and at most another one; None takes the bound off."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = hard if seconds is None else math.ceil(time.process_time()) + seconds
    if resource.getrlimit(resource.RLIMIT_CPU)[0] != soft:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


class PythonTasks:
    """Calls `module:function` with its keyword arguments."""

    def __init__(self) -> None:
        self._roots: tuple[str, ...] = ()
        self._seen: dict[str, int] = {}  # source files under the roots, with the time they had when imported
        self._spoilt = False
        self._modules = 0

    def perform(self, order: Message) -> Any:
        task = order["task"]
        os.chdir(task["cwd"])
        if not self._roots:
            # A worker serves one (cwd, path) all its life, so this is done once.
            self._roots = (*task["path"], task["cwd"])
            sys.path[:0] = self._roots
        name, _, attribute = task["call"].partition(":")
        function: Any = importlib.import_module(name)
        for part in attribute.split("."):
            function = getattr(function, part)
        before = _ProcessState()
        try:
            return function(**task["kwargs"])
        finally:
            self._spoilt = not before.restore()
            self._look()

    def stale(self) -> bool:
        """A source file of the task has changed since it was imported, and the job means the new one; or the last task
        has changed what this process cannot change back."""
        return self._spoilt or any(_changed_ns(path) != when for path, when in self._seen.items())

    def _look(self) -> None:
        if len(sys.modules) == self._modules:
            return
        self._modules = len(sys.modules)
        for module in list(sys.modules.values()):
            path = getattr(module, "__file__", None)
            if path and path not in self._seen and path.startswith(self._roots) and "site-packages" not in path:
                self._seen[path] = _changed_ns(path)


class _ProcessState:
    """What a task's function may change of the process, as it was before. What its modules change when they are
    imported stays, as they do. Looked at before and behind every attempt, so by the functions in C themselves: what
    `signal` wraps around them, to give numbers names, costs five times as much."""

    _RAW: Any = importlib.import_module("_signal")
    _SIGNALS = tuple(
        int(getattr(signal, f"SIG{name}"))
        for name in ("HUP", "INT", "QUIT", "USR1", "USR2", "PIPE", "ALRM", "TERM", "CHLD", "VTALRM", "PROF")
    )
    _TIMERS = signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF
    _LIMITS = tuple(
        getattr(resource, f"RLIMIT_{name}") for name in ("AS", "CORE", "DATA", "FSIZE", "NOFILE", "NPROC", "STACK")
    )

    def __init__(self) -> None:
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._handlers = [*map(self._RAW.getsignal, self._SIGNALS)]
        self._blocked = self._RAW.pthread_sigmask(signal.SIG_BLOCK, ())
        self._fixed = self._unchangeable()

    def restore(self) -> bool:
        """False where something was changed for good."""
        for timer in self._TIMERS:
            signal.setitimer(timer, 0)
        os.umask(self._umask)
        now = map(self._RAW.getsignal, self._SIGNALS)
        for number, before, handler in zip(self._SIGNALS, self._handlers, now, strict=True):
            if before is not None and handler != before:  # None is not Python's.
                signal.signal(number, before)
        self._RAW.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
        return self._unchangeable() == self._fixed

    def _unchangeable(self) -> tuple[int, list[tuple[int, int]]]:
        return os.getpriority(os.PRIO_PROCESS, 0), [resource.getrlimit(limit) for limit in self._LIMITS]


def _changed_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def main(channel: int) -> None:
    tasks = PythonTasks()
    worker = Worker(channel)
    # The names of our rooms are free again for the task's own modules.
    for name in [name for name in sys.modules if name == "daemon" or name.startswith("daemon.")]:
        del sys.modules[name]
    worker.serve(tasks.perform, tidy=True, stale=tasks.stale)
