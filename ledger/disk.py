"""The Disk port: the few file operations the ledger, the views and the artifact store need.

Paths are relative to the home, with forward slashes. The real one is `daemon.system.OsDisk`; the make-believe one,
which forgets what was not synced, is `simulations.disk.SimDisk`. Errors are OSError with a real errno.
"""

from __future__ import annotations

from typing import Protocol


class Locked(Exception):
    """Another living process holds the lock."""


class Lock(Protocol):
    def release(self) -> None: ...


class AppendFile(Protocol):
    """A file open for appending. Bytes are durable once `sync` has returned, not before."""

    def write(self, data: bytes) -> int:
        """Append; returns how many bytes were taken, which may be fewer than given (a short write is real)."""

    def sync(self) -> None:
        """fdatasync: everything written so far is durable once this returns. After an error nothing is known."""

    def truncate(self, size: int) -> None:
        """Cut back to `size` bytes, and give back the room reserved behind them."""

    def reserve(self, size: int) -> None:
        """Have room kept for the file to grow to `size` bytes; its length and content stay. ENOSPC if there is not so
        much; no error where the system cannot."""

    def close(self) -> None: ...


class Disk(Protocol):
    def read(self, path: str, offset: int = 0, limit: int = -1) -> bytes:
        """Bytes from `offset`, at most `limit` (-1: to the end). FileNotFoundError if there is no such file."""

    def size(self, path: str) -> int:
        """Length in bytes. FileNotFoundError if there is no such file."""

    def exists(self, path: str) -> bool: ...

    def list(self, folder: str) -> list[str]:
        """Names in the folder, sorted; empty if there is no such folder."""

    def make_folder(self, folder: str) -> None:
        """With its parents; no error if it exists. Mode 0700."""

    def append(self, path: str) -> AppendFile:
        """Open an existing file for appending."""

    def create(self, path: str) -> AppendFile:
        """Create; FileExistsError if the name is taken. Its name is durable only after `sync_folder`. Mode 0600."""

    def replace(self, source: str, target: str) -> None:
        """Atomic rename over `target`; durable only after `sync_folder`."""

    def sync_folder(self, folder: str) -> None:
        """Names made, renamed or removed in `folder` are durable once this returns."""

    def remove(self, path: str) -> None: ...

    def set_read_only(self, path: str, *, read_only: bool) -> None:
        """Take away or give back the owner's right to write to the file. Who has it open may go on writing."""

    def drop_cache(self, path: str) -> None:
        """Ask that the next read comes from the device, not from memory. A no-op where the system has no such call."""

    def lock(self, path: str) -> Lock:
        """Take the file's exclusive lock for as long as this process lives, without waiting. Locked if it is held."""

    def free_bytes(self) -> int:
        """Room left on the home's file system for this user."""

    def file_system(self) -> str:
        """The kind of file system the home lies on, in system words (`ext4`, `nfs4`, `fuse.sshfs`); "" if unknown."""


def temporary_of(path: str) -> str:
    """Under what name `path` is written before it is published."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.new" if folder else f".{name}.new"


def write_atomically(disk: Disk, path: str, data: bytes, *, durable: bool) -> None:
    """Publish `data` under `path`: a reader sees the old bytes or the new ones, never a part.

    With `durable`, the new bytes survive a power cut once this returns; without, they only survive the process.
    """
    folder, temporary = path.rpartition("/")[0], temporary_of(path)
    if disk.exists(temporary):
        disk.remove(temporary)
    file = disk.create(temporary)
    try:
        view = memoryview(data)
        while view:
            view = view[file.write(bytes(view)) :]
        if durable:
            file.sync()
    finally:
        file.close()
    disk.replace(temporary, path)
    if durable:
        disk.sync_folder(folder)
