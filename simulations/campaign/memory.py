"""A disk that is a dictionary: no faults and no crashes, so that a case costs little. And the same as a `Path`."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from types import SimpleNamespace

from ledger.disk import AppendFile, Lock


class Memory:
    """The Disk port over `files`, path to content. A folder is there when something is in it."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def read(self, path: str, offset: int = 0, limit: int = -1) -> bytes:
        data = self._data(path)
        if limit >= 0:
            return data[offset : offset + limit]
        return data[offset:] if offset else data

    def size(self, path: str) -> int:
        return len(self._data(path))

    def exists(self, path: str) -> bool:
        return path in self.files

    def list(self, folder: str) -> list[str]:
        inside = folder + "/"
        return sorted({path[len(inside) :].partition("/")[0] for path in self.files if path.startswith(inside)})

    def make_folder(self, folder: str) -> None:
        pass

    def append(self, path: str) -> AppendFile:
        self._data(path)
        return _Append(self, path)

    def create(self, path: str) -> AppendFile:
        if path in self.files:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self.files[path] = b""
        return _Append(self, path)

    def replace(self, source: str, target: str) -> None:
        self.files[target] = self.files.pop(source)

    def sync_folder(self, folder: str) -> None:
        pass

    def remove(self, path: str) -> None:
        del self.files[path]

    def set_read_only(self, path: str, *, read_only: bool) -> None:
        pass

    def drop_cache(self, path: str) -> None:
        pass

    def lock(self, path: str) -> Lock:
        self.files.setdefault(path, b"")
        return _Lock()

    def free_bytes(self) -> int:
        return 1 << 40

    def file_system(self) -> str:
        return "memory"

    def _data(self, path: str) -> bytes:
        try:
            return self.files[path]
        except KeyError:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None


class _Append:
    def __init__(self, disk: Memory, path: str) -> None:
        self._disk, self._path = disk, path

    def write(self, data: bytes) -> int:
        self._disk.files[self._path] += data
        return len(data)

    def sync(self) -> None:
        pass

    def truncate(self, size: int) -> None:
        self._disk.files[self._path] = self._disk.files[self._path][:size]

    def reserve(self, size: int) -> None:
        pass

    def close(self) -> None:
        pass


class _Lock:
    def release(self) -> None:
        pass


class MemoryPath:
    """As much of `pathlib.Path` as the stand-alone verifier uses."""

    def __init__(self, files: dict[str, bytes], path: str = "") -> None:
        self._files, self._path = files, path

    def __truediv__(self, name: str) -> MemoryPath:
        return MemoryPath(self._files, f"{self._path}/{name}" if self._path else name)

    def __str__(self) -> str:
        return self._path

    @property
    def name(self) -> str:
        return self._path.rpartition("/")[2]

    def is_file(self) -> bool:
        return self._path in self._files

    def is_dir(self) -> bool:
        return any(path.startswith(f"{self._path}/") for path in self._files)

    def read_bytes(self) -> bytes:
        try:
            return self._files[self._path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._path) from None

    def stat(self) -> SimpleNamespace:
        return SimpleNamespace(st_size=len(self.read_bytes()))

    def glob(self, pattern: str) -> Iterator[MemoryPath]:
        assert pattern == "*"
        inside = f"{self._path}/"
        names = {path[len(inside) :].partition("/")[0] for path in self._files if path.startswith(inside)}
        return (self / name for name in sorted(names))
