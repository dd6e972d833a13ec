"""The real doors: this machine's disk and clock. The only module that opens them for the rooms below."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ledger.disk import AppendFile, Lock, Locked
from ledger.instant import Now

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # macOS: MONOTONIC counts while the host sleeps
_FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)
_READ_BYTES = 1 << 24
_KEEP_SIZE = 1
_PREALLOCATE = 42  # of macOS; the fcntl module does not name it in every version
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINTR)


def _fallocate_here() -> Callable[[int, int, int, int], int] | None:
    """`os.posix_fallocate` would write NULs into the length of the file; the system call itself need not."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64" if sys.maxsize < 2**32 else "fallocate", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


_fallocate = None if sys.platform == "darwin" else _fallocate_here()


def _sync(descriptor: int) -> None:
    if _FULL_SYNC is not None:  # on macOS fsync stops at the drive's own cache
        fcntl.fcntl(descriptor, _FULL_SYNC)
    else:
        os.fdatasync(descriptor)


class OsAppendFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes) -> int:
        return os.write(self._descriptor, data)

    def sync(self) -> None:
        _sync(self._descriptor)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def reserve(self, size: int) -> None:
        length = size - os.fstat(self._descriptor).st_size
        if length <= 0:
            return
        if sys.platform == "darwin":
            # F_PREALLOCATE from the end of the file (fstore_t: flags, mode, offset, length, allocated); best effort.
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._descriptor, _PREALLOCATE, struct.pack("=Iiqqq", 4, 3, 0, length, 0))
        elif _fallocate is not None and _fallocate(self._descriptor, _KEEP_SIZE, size - length, length):
            number = ctypes.get_errno()
            if number not in _NOT_SUPPORTED:
                raise OSError(number, os.strerror(number))

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class OsLock:
    """Belongs to the open file: it ends with the process, and children started by exec do not inherit it (a bare fork
    would share it)."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class OsDisk:
    """The Disk port over the folder `root`, which must exist. Files are the user's alone (0600, folders 0700)."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(root)

    def read(self, path: str, offset: int = 0, limit: int = -1) -> bytes:
        descriptor = os.open(self._real(path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = []
            while limit:
                part = os.pread(descriptor, _READ_BYTES if limit < 0 else min(limit, _READ_BYTES), offset)
                if not part:
                    break
                parts.append(part)
                offset += len(part)
                limit -= len(part) if limit > 0 else 0
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(descriptor)

    def size(self, path: str) -> int:
        return os.stat(self._real(path)).st_size

    def exists(self, path: str) -> bool:
        return os.path.exists(self._real(path))

    def list(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self._real(folder)))
        except FileNotFoundError:
            return []

    def make_folder(self, folder: str) -> None:
        place = self.root
        for part in folder.split("/"):
            place = os.path.join(place, part)
            with contextlib.suppress(FileExistsError):
                os.mkdir(place, 0o700)
        if not os.path.isdir(place):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), place)

    def append(self, path: str) -> AppendFile:
        return OsAppendFile(os.open(self._real(path), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW))

    def create(self, path: str) -> AppendFile:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return OsAppendFile(os.open(self._real(path), flags, 0o600))

    def replace(self, source: str, target: str) -> None:
        os.replace(self._real(source), self._real(target))

    def sync_folder(self, folder: str) -> None:
        descriptor = os.open(self._real(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, path: str) -> None:
        os.unlink(self._real(path))

    def set_read_only(self, path: str, *, read_only: bool) -> None:
        os.chmod(self._real(path), 0o400 if read_only else 0o600)

    def drop_cache(self, path: str) -> None:
        if not hasattr(os, "posix_fadvise"):
            return
        descriptor = os.open(self._real(path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

    def lock(self, path: str) -> Lock:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._real(path), flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise Locked(f"{self._real(path)} is held by another process") from None
        except BaseException:
            os.close(descriptor)
            raise
        return OsLock(descriptor)

    def free_bytes(self) -> int:
        room = os.statvfs(self.root)
        return room.f_bavail * room.f_frsize

    def file_system(self) -> str:
        """From the mount table; "" on systems without /proc/self/mountinfo."""
        device = os.stat(self.root).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        root = os.path.realpath(self.root)
        kind, longest = "", -1
        try:
            table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        except FileNotFoundError:
            return ""
        for row in table.splitlines():
            front, _, back = row.partition(" - ")
            fields = front.split()
            # The table writes blanks and backslashes as octal escapes.
            place = fields[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
            inside = root == place or root.startswith(place.rstrip("/") + "/")
            # btrfs and overlay give files device numbers that the table does not have, so the path decides and the
            # device only breaks ties between mounts stacked on one place, where the last one wins.
            if inside and (len(place) > longest or (len(place) == longest and fields[2] == number)):
                kind, longest = back.split()[0], len(place)
        return kind

    def _real(self, path: str) -> str:
        return os.path.join(self.root, path) if path else self.root


def without_journal(path: Path, told: Path = Path("/proc/fs/ext4"), devices: Path = Path("/sys/dev/block")) -> bool:
    """Whether the kernel says that this ext file system has no journal. False where it says nothing."""
    device = path.stat().st_dev
    with contextlib.suppress(OSError):
        name = (devices / f"{os.major(device)}:{os.minor(device)}").readlink().name
        options = (told / name / "options").read_text(encoding="ascii", errors="replace").split()
        return not any(option.startswith("data=") for option in options)
    return False


class SystemClock:
    """This machine's clocks. `boot_id` changes with every boot, and `boot_ns` counts from it."""

    def __init__(self) -> None:
        self.boot_id = _boot_id()

    def now(self) -> Now:
        return Now(time.clock_gettime_ns(time.CLOCK_REALTIME), time.clock_gettime_ns(_BOOT_CLOCK))


def _boot_id() -> str:
    if sys.platform == "darwin":
        # Not kern.boottime: that one moves when the wall clock is set.
        answer = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=True, timeout=10
        )
        return answer.stdout.strip().lower()
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
