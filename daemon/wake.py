"""The one place where the daemon waits: for descriptors, the one timer, signals, changed files, and the clock itself.

Everything that may wake the loop ends as a byte in one pipe or as a ready descriptor; nothing here polls. Reasons are
short words ("timer", "stop", "jobs"); the loop drains them with `reasons()` and looks at the world itself, so a reason
too many costs one look and a reason lost is impossible: it stays raised until it is drained.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import selectors
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from watchdog.events import (
    EVENT_TYPE_DELETED,
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import ObservedWatch

CLOCK = "clock"
TIMER = "timer"
SIGNALS = {signal.SIGTERM: "stop", signal.SIGINT: "stop", signal.SIGHUP: "reload"}

_NEVER = datetime(9999, 1, 1, tzinfo=UTC)
_NEVER_MS = int(_NEVER.timestamp() * 1000)
_QUIET_S = 0.1  # a folder is told of when nothing has changed in it for so long,
_QUIET_LONGEST_S = 1.0  # or when it has been changing for so long
_CLOCK_STEP_S = 0.5  # a smaller step of the wall clock is slewing
_CLOCK_LOOK_S = 60.0  # where the kernel does not tell of a clock that was set
_FOLDERS: list[type[FileSystemEvent]] = [DirCreatedEvent, DirMovedEvent]
_CHANGES: list[type[FileSystemEvent]] = [  # reading a file is none of these, so it wakes nobody, not even a thread
    FileCreatedEvent, FileModifiedEvent, FileClosedEvent, FileMovedEvent, FileDeletedEvent, DirDeletedEvent,
]  # fmt: skip


class CannotWatch(Exception):
    """The system refuses to tell of changes in a folder. The message names the folder and what to do."""


def ignored(name: str) -> bool:
    """Whether a file of this name is an editor's, or our own, temporary file: nothing anybody meant us to read."""
    return name.startswith((".", "#")) or name.endswith(("~", ".swp", ".swx", ".tmp", ".bak")) or name == "4913"


class Waker:
    """Single-threaded: all but `poke` belongs to the thread that waits."""

    def __init__(self, wall_minus_monotonic_s: Callable[[], float] = lambda: time.time() - time.monotonic()) -> None:
        self._offset_now = wall_minus_monotonic_s
        self._offset_s = wall_minus_monotonic_s()
        self._reasons: deque[str] = deque()  # no lock: a signal handler may interrupt `poke` inside `poke`
        self._selector = selectors.DefaultSelector()
        self._poked, self._poker = os.pipe()
        os.set_blocking(self._poked, False)
        os.set_blocking(self._poker, False)
        self.watch(self._poked, self._drain)
        self._deadline_ms: int | None = None
        self._intervals: list[_Interval] = []
        self._stirred: deque[_Folder] = deque()
        self._restless: list[_Folder] = []
        self._observer: Any = None
        self._folders: dict[tuple[str, str], tuple[_Folder, ObservedWatch, tuple[int, int]]] = {}
        self._signals: dict[int, Any] = {}
        self._wakeup_fd = -1
        self._timer: _KernelTimer | _ThreadTimer
        if (clock := _KernelTimer.made()) is not None:
            self._timer = clock
            self.watch(clock.fd, lambda: self._clock_told(clock))
        else:
            self._timer = _ThreadTimer(self._timer_fired)

    def watch(self, fd: int, on_ready: Callable[[], None], *, write: bool = False) -> None:
        """Call `on_ready` from `wait` whenever `fd` can be read (`write`: written); replaces an earlier callback."""
        event = selectors.EVENT_WRITE if write else selectors.EVENT_READ
        key = self._selector.get_map().get(fd)
        if key is None:
            self._selector.register(fd, event, {event: on_ready})
        else:
            key.data[event] = on_ready
            if not key.events & event:
                self._selector.modify(fd, key.events | event, key.data)

    def unwatch(self, fd: int, *, write: bool | None = None) -> None:
        """Forget `fd`, or only its reading (`write=False`) or writing (`write=True`). No error if it is not watched.

        Call it before `fd` is closed: the number may name another file right after.
        """
        key = self._selector.get_map().get(fd)
        if key is None:
            return
        gone = {None: key.events, True: selectors.EVENT_WRITE, False: selectors.EVENT_READ}[write]
        left = key.events & ~gone
        if left:
            key.data.pop(gone, None)
            self._selector.modify(fd, left, key.data)
        else:
            self._selector.unregister(fd)

    def wait(self) -> None:
        """Block until a descriptor is ready or a reason is raised, and run the callbacks of what is ready."""
        called = False
        while True:
            for key, events in self._selector.select(0.0 if self._reasons else self._patience_s()):
                for event in (selectors.EVENT_READ, selectors.EVENT_WRITE):
                    # A callback may have taken away what was ready when `select` returned, or given its number to
                    # another.
                    known = self._selector.get_map().get(key.fd) if events & event else None
                    if known is not None and known.data is key.data and event in known.data:
                        known.data[event]()
                        called = called or key.fd != self._poked
            self._look_at_clock()
            self._look_at_intervals()
            self._look_at_folders()
            if called or self._reasons:
                return

    def poke(self, reason: str) -> None:
        """Raise `reason` and end the wait. Safe from any thread and from a signal handler."""
        self._reasons.append(reason)
        self._write()

    def note(self, reason: str) -> None:
        """Raise `reason` from the thread that waits: its next wait ends at once, and costs no byte in the pipe."""
        self._reasons.append(reason)

    def reasons(self) -> set[str]:
        """The reasons raised since the last call."""
        found = set()
        with contextlib.suppress(IndexError):
            while True:
                found.add(self._reasons.popleft())
        return found

    def set_timer(self, wall_ms: int | None) -> None:
        """Raise "timer" once at this instant (at once if it has passed; None: never), replacing the earlier one."""
        if wall_ms != self._deadline_ms:
            self._deadline_ms = wall_ms
            self._timer.arm(_NEVER_MS if wall_ms is None else min(wall_ms, _NEVER_MS))

    def every(self, seconds: float, reason: str) -> None:
        """Raise `reason` again and again, `seconds` apart. What a sleeping host missed is not made up for."""
        self._intervals.append(_Interval(reason, seconds, time.monotonic() + seconds))

    def watch_signals(self) -> None:
        """SIGTERM and SIGINT raise "stop", SIGHUP raises "reload", until `close`. Only in the main thread."""
        # The C handler writes to the pipe at once; without it a signal just before `select` would sleep until the next.
        self._wakeup_fd = signal.set_wakeup_fd(self._poker, warn_on_full_buffer=False)
        for number in SIGNALS:
            self._signals[number] = signal.signal(number, self._on_signal)

    def watch_folder(self, path: Path, reason: str, *, folders: bool = False, deep: bool = False) -> None:
        """Raise `reason` when a file in `path` was written, renamed, added or removed, and then nothing for 100 ms.
        With `folders` also when a folder was; `deep`: in all folders below, too.

        Calling it again is cheap, and takes up a folder that was removed and made anew. CannotWatch if it cannot be.
        """
        name, key = str(path), (str(path), reason)
        try:
            status = path.stat()
            identity = (status.st_dev, status.st_ino)
            known = self._folders.get(key)
            if known is not None and known[2] == identity and not known[0].gone:
                return
            if self._observer is None:
                self._observer = Observer()
                self._observer.start()
            if known is not None:
                with contextlib.suppress(KeyError):  # taken away by an earlier call, which then could not watch anew
                    self._observer.unschedule(known[1])
            folder = known[0] if known is not None else _Folder(self, reason, name)
            folder.gone = False
            # The observer takes two watches of one place for one if they ask for the same events; two reasons must not.
            wanted = [*_CHANGES, *_FOLDERS] if folders or deep else _CHANGES
            watch = self._observer.schedule(folder, name, recursive=deep, event_filter=wanted)
            _keep_from_children()
        except OSError as error:
            raise CannotWatch(
                f"cannot watch {path} for changes: {error.strerror or error}. If the folder exists and is readable, a "
                "limit is reached: raise fs.inotify.max_user_instances and fs.inotify.max_user_watches."
            ) from error
        self._folders[key] = (folder, watch, identity)
        if known is not None:
            self.poke(reason)

    def unwatch_folder(self, path: Path, reason: str) -> None:
        """Forget a watched folder. No error if it is not watched."""
        known = self._folders.pop((str(path), reason), None)
        if known is not None:
            known[0].forgotten = True
            with contextlib.suppress(KeyError):  # the observer drops the watch of a folder that is gone by itself
                self._observer.unschedule(known[1])

    def close(self) -> None:
        """Stop the threads, give the signals back, close the descriptors. Watched descriptors stay the caller's."""
        if self._signals:
            signal.set_wakeup_fd(self._wakeup_fd)
            for number, earlier in self._signals.items():
                signal.signal(number, earlier)
            self._signals.clear()
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
        self._timer.close()
        self._selector.close()
        for fd in (self._poked, self._poker):
            os.close(fd)

    def stirred(self, folder: _Folder) -> None:
        """Something has changed there. Safe from any thread; raises no reason yet."""
        self._stirred.append(folder)
        self._write()

    def _patience_s(self) -> float | None:
        """How long there is nothing to do here unless something happens."""
        # Counted on the clock that `select` waits on: it does not jump, and stands still while the host sleeps.
        until_s = [interval.next_s for interval in self._intervals]
        until_s += [folder.quiet_at_s() for folder in self._restless]
        waits_s = [max(0.0, at_s - time.monotonic()) for at_s in until_s]
        if not self._timer.tells_of_jumps:
            waits_s.append(_CLOCK_LOOK_S)
        return min(waits_s, default=None)

    def _look_at_intervals(self) -> None:
        now_s = time.monotonic()
        for interval in self._intervals:
            if interval.next_s <= now_s:
                interval.next_s = now_s + interval.seconds
                self.note(interval.reason)

    def _look_at_folders(self) -> None:
        while self._stirred:
            self._restless.append(self._stirred.popleft())
        now_s = time.monotonic()
        for folder in [folder for folder in self._restless if folder.quiet_at_s() <= now_s]:
            self._restless.remove(folder)
            folder.tell()

    def _write(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well as one more byte would
            os.write(self._poker, b"\0")

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._poked, 4096)) == 4096:
                pass

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.poke(SIGNALS[signal.Signals(number)])

    def _timer_fired(self) -> None:
        self._deadline_ms = None  # before the poke: the loop may set the same instant again
        self.poke(TIMER)

    def _clock_told(self, clock: _KernelTimer) -> None:
        try:
            clock.read()
        except BlockingIOError:
            return
        except OSError:  # ECANCELED: the clock was set, or the host woke from sleep.
            clock.arm(_NEVER_MS if self._deadline_ms is None else min(self._deadline_ms, _NEVER_MS))
        else:
            self._deadline_ms = None
            clock.arm(_NEVER_MS)
            self.note(TIMER)

    def _look_at_clock(self) -> None:
        offset_s = self._offset_now()
        if abs(offset_s - self._offset_s) >= _CLOCK_STEP_S:
            self._offset_s = offset_s
            self._timer.recount()
            self.note(CLOCK)


def _keep_from_children() -> None:
    """watchdog's descriptor is one that children inherit: a run could take from it what we are to be told, and keep it
    for as long as it lives, of the 128 that a user may have."""
    if not sys.platform.startswith("linux"):
        return
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own is closed by now
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:inotify":
                os.set_inheritable(int(name), False)


@dataclass(slots=True)
class _Interval:
    reason: str
    seconds: float
    next_s: float
    """On the monotonic clock."""


class _Folder(FileSystemEventHandler):
    """One watched folder: many changes, one reason. `on_any_event` runs in watchdog's thread, the rest in ours."""

    def __init__(self, waker: Waker, reason: str, name: str) -> None:
        self._waker = waker
        self._reason = reason
        self._name = name
        self._lock = threading.Lock()
        self._first_s = 0.0
        self._last_s = 0.0
        self._pending = False
        self.gone = False  # removed, and with it the watch, though a new folder may get the same inode
        self.forgotten = False

    def on_any_event(self, event: FileSystemEvent) -> None:
        deleted = event.event_type == EVENT_TYPE_DELETED and event.is_directory
        self.gone = self.gone or (deleted and os.fsdecode(event.src_path) == self._name)
        names = [os.path.basename(os.fsdecode(path)) for path in (event.src_path, event.dest_path) if path]
        if all(ignored(name) for name in names):
            return
        with self._lock:
            self._last_s = time.monotonic()
            if self._pending:
                return
            self._pending = True
            self._first_s = self._last_s
        self._waker.stirred(self)

    def quiet_at_s(self) -> float:
        """When it can be told of, on the monotonic clock, unless it changes once more until then."""
        with self._lock:
            return min(self._last_s + _QUIET_S, self._first_s + _QUIET_LONGEST_S)

    def tell(self) -> None:
        with self._lock:
            self._pending = False
        if not self.forgotten:
            self._waker.note(self._reason)


class _KernelTimer:
    """A descriptor that becomes readable at an instant of the wall clock, and when that clock is set or the host wakes
    from sleep: then reading it is an error."""

    tells_of_jumps = True

    def __init__(self, fd: int, libc: ctypes.CDLL) -> None:
        self.fd = fd
        self._libc = libc
        self._spec = (ctypes.c_long * 4)()  # struct itimerspec: interval, value; seconds, nanoseconds

    @classmethod
    def made(cls) -> _KernelTimer | None:
        """None where the system has none."""
        if not sys.platform.startswith("linux"):
            return None
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            return None
        timer = cls(int(fd), libc)
        if not timer.arm(_NEVER_MS):
            os.close(fd)
            return None
        return timer

    def arm(self, wall_ms: int) -> bool:
        absolute, cancel_on_set = 1, 2
        self._spec[2], self._spec[3] = divmod(max(wall_ms, 1) * 1_000_000, 1_000_000_000)  # 0 would disarm it
        # The call answers ECANCELED when the clock was set since the last one, and arms the timer all the same.
        failed = self._libc.timerfd_settime(self.fd, absolute | cancel_on_set, self._spec, None) != 0
        return not failed or ctypes.get_errno() == errno.ECANCELED

    def read(self) -> None:
        os.read(self.fd, 8)

    def recount(self) -> None:
        """The kernel has the instant, and not how long it is until then."""

    def close(self) -> None:
        os.close(self.fd)


class _ThreadTimer:
    """The same where the kernel has no such descriptor: a thread of APScheduler's. Imported only there: it brings
    asyncio and ssl along, a fifth of all that an idle daemon holds."""

    tells_of_jumps = False

    def __init__(self, fired: Callable[[], None]) -> None:
        from apscheduler.executors.debug import DebugExecutor
        from apscheduler.schedulers.background import BackgroundScheduler
        from apscheduler.triggers.date import DateTrigger

        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": DebugExecutor()},
            job_defaults={"misfire_grace_time": None, "coalesce": True},
        )
        self._scheduler.start()
        self._fired, self._at = fired, DateTrigger

    def arm(self, wall_ms: int) -> None:
        at = _NEVER if wall_ms >= _NEVER_MS else datetime.fromtimestamp(wall_ms / 1000, UTC)
        self._scheduler.add_job(self._fired, self._at(at), id=TIMER, replace_existing=True)

    def recount(self) -> None:
        """Its thread counts the wait on a clock that stands still in sleep and does not see the wall clock jump."""
        self._scheduler.wakeup()

    def close(self) -> None:
        self._scheduler.remove_all_jobs()  # One that is due just now would end its thread with a traceback.
        self._scheduler.shutdown()
