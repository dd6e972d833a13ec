"""The door to the files that jobs wait for: folders watched, and looked through by a thread of its own.

A look reads whole folders, because a change that nobody told of (a network share, a full queue of the kernel's) must
not lose a file. It may take long, or for ever where a server is gone: the loop never waits for it.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import translate
from pathlib import Path
from typing import NamedTuple, Protocol

from daemon.ports import Clock
from daemon.system import OsDisk
from daemon.wake import CannotWatch, ignored
from ledger.record import is_text
from policies.arrival import FILES_MAX, Look
from policies.schedule import Files
from state.arrivals import stamp

CHANGED, LOOKED = "files", "looked"
"""Reasons to wake the loop: something has changed where we watch; a look has come to its end."""

DEEP_FOLDERS_MAX = 1000
"""A tree of more folders than this is looked at once a minute and not watched: that would take up the kernel's watches,
and the loop's time."""
_REST = 4  # after a look, the thread rests so many times as long as that took,
_REST_LONGEST_S = 10.0  # but no longer than this
_TELL_AFTER_S = 0.2
_NO_ANSWER_S = 60.0
_TOLD_MAX = 3
_CHANGING_INODES = frozenset({"vfat", "msdos", "exfat", "cifs", "smb3", "9p"})
"""File systems that may number a file anew each time they look at it; so does whatever is behind FUSE."""


class Watching(Protocol):
    """What is needed of `daemon.wake.Waker`."""

    def poke(self, reason: str) -> None: ...
    def watch_folder(self, path: Path, reason: str, *, folders: bool = False, deep: bool = False) -> None: ...
    def unwatch_folder(self, path: Path, reason: str) -> None: ...


class Found(NamedTuple):
    files: dict[str, str]
    unread: tuple[str, ...]
    problem: str
    nearest: str
    """The folder to watch: the last one that the pattern names in full, or the nearest above it that is there."""
    deep: bool
    """Whether what lies in folders below it matters, too, and can be watched."""


class Lookout:
    """`look` and `found` belong to the loop's thread and never wait."""

    def __init__(self, user_home: Path, clock: Clock, waker: Watching) -> None:
        self._user_home, self._clock, self._waker = user_home, clock, waker
        self._watched: dict[str, bool] = {}
        self._nearest: dict[str, tuple[str, bool]] = {}
        self._lock = threading.Condition()
        self._wanted: dict[str, Files] = {}
        self._asked = self._closed = False
        self._found: dict[str, tuple[Look, Found]] = {}
        self._left: dict[str, Files] = {}
        self._since_s = 0.0
        self._thread: threading.Thread | None = None

    def look(self, wanted: Mapping[str, Files]) -> None:
        """Look for these, by job, and for no others any more. `found` has the answer once the reason "looked" is
        raised. A look that goes on is followed by another one."""
        for job in self._nearest.keys() - wanted.keys():
            del self._nearest[job]
        self._unwatch()
        with self._lock:
            self._wanted, self._asked = dict(wanted), bool(wanted)
            self._lock.notify()
        if wanted and self._thread is None:
            # A thread that hangs in a look must not keep the process from ending.
            self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)
            self._thread.start()

    def found(self) -> list[Look]:
        """The looks that have ended since the last call, at most one for each job."""
        with self._lock:
            # One for a pattern that is not wanted any more must not have its folder watched again.
            ended = {job: one for job, one in self._found.items() if self._wanted.get(job) == one[0].wanted}
            self._found = {}
            overdue = {}
            if self._left and time.monotonic() - self._since_s > _NO_ANSWER_S:
                overdue = self._left
        looks = []
        for job, (look, found) in ended.items():
            problem = self._watch(job, found)
            looks.append(look._replace(problem="; ".join(filter(None, (look.problem, problem)))))
        for job, files in overdue.items():
            problem = f"the look for {files.path} does not come to an end; is a network drive away?"
            looks.append(Look(job, files, self._clock.now(), {}, ("/",), problem))
        return looks

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify()
        if self._thread is not None:
            self._thread.join(1.0)

    def _watch(self, job: str, found: Found) -> str:
        """Watch where this job's files are to come. Why that is not possible; "" if it is."""
        self._nearest[job] = (found.nearest, found.deep)
        deep = any(deep for nearest, deep in self._nearest.values() if nearest == found.nearest)
        new = self._watched.get(found.nearest) != deep
        if new and found.nearest in self._watched:
            self._waker.unwatch_folder(Path(found.nearest), CHANGED)
        try:
            self._waker.watch_folder(Path(found.nearest), CHANGED, folders=True, deep=deep)
        except CannotWatch as error:
            self._watched.pop(found.nearest, None)
            return f"{error} Until then it is looked at once a minute"
        self._watched[found.nearest] = deep
        self._unwatch()
        if new:
            self._waker.poke(CHANGED)  # What changed between the look and the watch nobody was told of.
        return ""

    def _unwatch(self) -> None:
        needed = {nearest for nearest, _ in self._nearest.values()}
        for folder in self._watched.keys() - needed:
            del self._watched[folder]
            self._waker.unwatch_folder(Path(folder), CHANGED)

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._asked or self._closed)
                if self._closed:
                    return
                self._asked, self._left = False, dict(self._wanted)
                begun_s = told_s = self._since_s = time.monotonic()
            while self._left and not self._closed:
                job, files = next(iter(self._left.items()))
                at = self._clock.now()
                found = search(self._user_home, files)
                now_s = time.monotonic()
                with self._lock:
                    self._found[job] = (Look(job, files, at, found.files, found.unread, found.problem), found)
                    del self._left[job]
                    self._since_s = now_s
                if not self._left or now_s - told_s > _TELL_AFTER_S:
                    told_s = now_s
                    self._waker.poke(LOOKED)
            rest_s = min((time.monotonic() - begun_s) * _REST, _REST_LONGEST_S)
            with self._lock:
                self._lock.wait_for(lambda: self._closed, rest_s)


def search(user_home: Path, wanted: Files) -> Found:
    """Every regular file that the pattern matches; links are not followed below the folder it names in full."""
    parts = wanted.parts
    head = "/" if wanted.path.startswith("/") else str(user_home)
    named = parts[1 : wanted.fixed] if parts[0] == "~" else parts[: wanted.fixed]
    base = os.path.join(head, *named)
    rest = parts[max(wanted.fixed, 1 if parts[0] == "~" else 0) :]
    walk = _Walk(base, rest)
    walk.all()
    nearest = base
    while not os.path.isdir(nearest):
        nearest = os.path.dirname(nearest)
    deep = nearest == base and len(rest) > 1 and walk.folders <= DEEP_FOLDERS_MAX
    problems = walk.problems[:_TOLD_MAX]
    if len(walk.problems) > _TOLD_MAX:
        problems.append(f"and {len(walk.problems) - _TOLD_MAX} more")
    # The kernel is asked to watch the folder itself, not a link to it.
    return Found(walk.files, tuple(walk.unread), "; ".join(problems), os.path.realpath(nearest), deep)


class _Walk:
    """One pass over the folders that a pattern can match in: each is read once, however many ways lead to it."""

    def __init__(self, base: str, parts: Sequence[str]) -> None:
        self._base, self._last = base, len(parts) - 1
        self._parts = [None if part == "**" else _matcher(part) for part in parts]
        self._temporary = ignored(parts[-1])
        self.files: dict[str, str] = {}
        self.unread: list[str] = []
        self.problems: list[str] = []
        self.folders = 0

    def all(self) -> None:
        self._inodes = _keeps_inodes(self._base)
        ahead = [(self._base, frozenset({0}))]
        while ahead and len(self.files) <= FILES_MAX:
            folder, places = ahead.pop()
            self.folders += 1
            try:
                ahead += self._folder(folder, self._with_none_between(places))
            except (FileNotFoundError, NotADirectoryError):
                if folder == self._base:
                    self.unread.append(folder)
                    self.problems.append(f"there is no folder {shown(folder)}: the job waits for it")
            except OSError as error:
                self.unread.append(folder)
                self.problems.append(f"cannot read {shown(folder)}: {error.strerror}")
        if len(self.files) > FILES_MAX:
            self.unread.append("/")
            self.problems.append(
                f"more than {FILES_MAX} files match in {shown(self._base)}: the rest waits until some of them are gone"
            )

    def _with_none_between(self, places: frozenset[int]) -> frozenset[int]:
        """`**` stands for no folder, too."""
        while more := {place + 1 for place in places if self._parts[place] is None} - places:
            places |= more
        return places

    def _folder(self, folder: str, places: frozenset[int]) -> Iterator[tuple[str, frozenset[int]]]:
        below: list[tuple[str, frozenset[int]]] = []
        last = self._parts[self._last] if self._last in places else None
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if entry.is_dir(follow_symlinks=False):
                    deeper = frozenset(self._deeper(name, places))
                    if deeper:
                        below.append((entry.path, deeper))
                elif last is not None and last(name) and (self._temporary or not ignored(name)):
                    self._file(entry)
                    if len(self.files) > FILES_MAX:
                        break
        return iter(below)

    def _deeper(self, name: str, places: frozenset[int]) -> Iterator[int]:
        for place in places - {self._last}:
            matches = self._parts[place]
            if matches is None:
                if not name.startswith("."):
                    yield place
            elif matches(name):
                yield place + 1

    def _file(self, entry: os.DirEntry[str]) -> None:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return
        except OSError as error:
            self.unread.append(entry.path)
            self.problems.append(f"cannot look at {shown(entry.path)}: {error.strerror}")
            return
        if not stat.S_ISREG(status.st_mode):
            return
        if not is_text(entry.path):
            self.problems.append(f"the name of {shown(entry.path)} is no UTF-8 text: it is passed over")
            return
        inode = status.st_ino & (1 << 63) - 1 if self._inodes else 0
        self.files[entry.path] = stamp(status.st_size, status.st_mtime_ns, inode)


def _matcher(part: str) -> Callable[[str], object]:
    match = re.compile(translate(part)).match
    if part.startswith("."):
        return match
    return lambda name: not name.startswith(".") and match(name)


def _keeps_inodes(folder: str) -> bool:
    try:
        kind = OsDisk(folder).file_system()
    except OSError:
        return True
    return kind not in _CHANGING_INODES and not kind.startswith("fuse")


def shown(path: str) -> str:
    """A path in one line of printable text."""
    return path if path.isprintable() else ascii(path)
