"""What an attempt prints: two files, bounded, in its folder. Standard library only.

The attempt writes to the files itself: no process stands between that could die and take output with it, or be slow
and hold a writer up. A file that has grown past its bound loses its middle instead: while the attempt runs, by a hole
in the file, which gives the room back and disturbs no writer; at its end, for good, with a mark. Until somebody looks,
a file is as long as the attempt could make it: disk rate times `LOOK_EVERY_S`.

Most attempts print nothing to one file or both, and to make a file costs ten times what a new name for it does. So a
file that stayed empty goes to the next attempt; a file that is not there means that nothing was printed. An attempt
that left nothing at all leaves its folder, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import sys
from collections.abc import Iterator

OUTPUT_BYTES = 64 << 20
"""What is kept of each file, unless the job says otherwise."""
LOOK_EVERY_S = 0.5
NAMES = ("stdout.log", "stderr.log")
_BARE = {"claim", *NAMES}

_SPARES_MAX = 64
_MARK_BYTES = 256  # room for the mark, so that a cut never makes a file longer
_COPY_BYTES = 1 << 20
_PAGE_BYTES = 1 << 16  # holes are made of whole blocks, of any file system


class Spares:
    """Empty files for the next attempts, in folder `place`; none without one."""

    def __init__(self, place: str) -> None:
        self._place = place if hasattr(fcntl, "F_SETLEASE") else ""
        self._paths: list[str] = []
        self._made = 0

    def lend(self, path: str) -> None:
        """Put a spare file there, if there is one."""
        if self._paths:
            spare = self._paths.pop()
            with contextlib.suppress(OSError):
                os.link(spare, path)  # Not a rename: what is there already stays.
            with contextlib.suppress(OSError):
                os.unlink(spare)

    def take(self, path: str, descriptor: int, status: os.stat_result) -> None:
        """Take an empty file away, if nobody can write to it any more."""
        if not self._place or len(self._paths) >= _SPARES_MAX or not _alone(descriptor, status):
            return
        self._made += 1
        spare = f"{self._place}/{os.getpid()}-{self._made}.spare"
        with contextlib.suppress(OSError):
            os.rename(path, spare)
            self._paths.append(spare)

    def close(self) -> None:
        for path in self._paths:
            with contextlib.suppress(OSError):
                os.unlink(path)
        self._paths.clear()


class Output:
    """The output of one attempt: what is kept of each file is `limit` bytes, the first half and the last."""

    def __init__(self, folder: str, limit: int) -> None:
        self._folder, self._limit = folder, limit

    def look(self) -> None:
        """Give back the room of what will not be kept."""
        for name in NAMES:
            with contextlib.suppress(OSError):
                if os.stat(f"{self._folder}/{name}").st_size > self._limit + _PAGE_BYTES:
                    self._lighten(name)

    def untouched(self) -> bool:
        """Both files are there, nothing was printed to them and nobody can any more, and there is nothing else in the
        folders of the attempt and of its run: both may be another's."""
        run, _, attempt = self._folder.rpartition("/")
        try:
            for name in NAMES:
                with _opened(f"{self._folder}/{name}") as descriptor:
                    status = os.fstat(descriptor)
                    if status.st_size or not stat.S_ISREG(status.st_mode) or not _alone(descriptor, status):
                        return False
            return (
                set(os.listdir(self._folder)) == _BARE
                and os.listdir(run) == [attempt]
                and all(_private(os.lstat(place), 0o700) for place in (self._folder, run))
            )
        except OSError:
            return False

    def end(self, spares: Spares | None = None) -> str:
        """Cut what is too long, now that nobody writes any more. Returns what people should know of it."""
        notes = []
        for name in NAMES:
            try:
                lost = self._end(name, spares)
            except FileNotFoundError:
                continue
            except OSError as error:
                notes.append(f"{name} could not be looked at: {error.strerror}")
                continue
            if lost:
                notes.append(f"{name} was cut to its limit of {self._limit} bytes: {lost} more bytes were not kept")
        return "; ".join(notes)

    def _lighten(self, name: str) -> None:
        head = self._limit // 2
        with _opened(f"{self._folder}/{name}") as descriptor:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return
            start = -(-head // _PAGE_BYTES) * _PAGE_BYTES
            end = (status.st_size - (self._limit - head)) // _PAGE_BYTES * _PAGE_BYTES
            if end > start and not _make_hole(descriptor, start, end - start):
                # Writers append, so they go on after the mark.
                os.ftruncate(descriptor, head)
                os.pwrite(descriptor, _mark(status.st_size - head), head)

    def _end(self, name: str, spares: Spares | None) -> int:
        """Bytes that were not kept."""
        path = f"{self._folder}/{name}"
        with _opened(path) as descriptor:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return 0
            size, head = status.st_size, self._limit // 2
            if not size and spares is not None:
                spares.take(path, descriptor, status)
            if size <= self._limit + _MARK_BYTES:
                return 0
            tail = self._limit - head
            mark = _mark(size - self._limit)
            os.pwrite(descriptor, mark, head)
            for done in range(0, tail, _COPY_BYTES):
                step = min(_COPY_BYTES, tail - done)
                os.pwrite(descriptor, os.pread(descriptor, step, size - tail + done), head + len(mark) + done)
            os.ftruncate(descriptor, head + len(mark) + tail)
            return size - self._limit


def _private(status: os.stat_result, mode: int) -> bool:
    return stat.S_IMODE(status.st_mode) == mode and status.st_uid == os.geteuid()


def _alone(descriptor: int, status: os.stat_result) -> bool:
    """Nobody else can write to the file: it has no other name, and no other process has it open, which is what the
    kernel grants a lease for. The lease ends with `descriptor`; until then SIGIO, which it sends if somebody opens the
    file, must be ignored."""
    if not hasattr(fcntl, "F_SETLEASE") or status.st_nlink != 1 or not _private(status, 0o600):
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return False
    return True


def _mark(lost: int) -> bytes:
    return b"\n[hermes: output cut here: %d more bytes were not kept]\n" % lost


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    # Not blocking: the attempt may have put a pipe in its place.
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _make_hole(descriptor: int, start: int, count: int) -> bool:
    """False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    import ctypes

    keep_size, punch_hole = 1, 2
    fallocate = ctypes.CDLL(None).fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)
    return bool(fallocate(descriptor, keep_size | punch_hole, start, count) == 0)
