"""A make-believe disk: the Disk port in memory, which forgets what was not synced.

What it does. A file has what the cache shows and what the device holds. `write` and `truncate` change the cache; `sync`
brings the dirty part of the cache to the device. A folder likewise shows names and holds names; `create`, `replace`,
`remove` and `make_folder` change what it shows, `sync_folder` makes the device hold it.

What a crash does (`crash`). Of each file's dirty part the device gets nothing, a prefix, all of it, NULs, or any of
its 512-byte sectors with NULs for the others; after an unsynced truncation the old bytes may be back, whole or behind
a prefix of the new ones. Each name not synced is there or is not, each by its own chance, so a rename may have happened
by half: two names, or only the old target. A file whose folder is lost is lost. Locks are released, open files dead.

What a failing device does. `fail` makes the n-th operation raise an errno. A `sync` that fails marks the dirty part
clean without having written it, as Linux does: the next `sync` succeeds and proves nothing, the cache still shows the
bytes, and `drop_cache` shows what the device holds. A full disk (`capacity_bytes`) takes what fits, a short write, and
then raises ENOSPC. `short_writes` makes any write take only a part.

What it does not do: bit rot (change bytes with `corrupt`), a device that lies about a sync, two processes at once.
"""

from __future__ import annotations

import errno
import os
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from ledger.disk import AppendFile, Lock, Locked

_SECTOR_BYTES = 512


class PowerCut(BaseException):
    """Nothing works from here on, until `SimDisk.crash` or `kill`. Not an Exception: no code may survive it."""


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


@dataclass(slots=True, eq=False)
class _File:
    cache: bytearray = field(default_factory=bytearray)
    device: bytearray = field(default_factory=bytearray)
    dirty_from: int | None = None
    """From here on the cache has not been brought to the device; None when it all was (or was thought to be)."""
    reserved: int = 0
    """How long it may grow without taking more room."""
    read_only: bool = False

    def dirty(self, offset: int) -> None:
        self.dirty_from = offset if self.dirty_from is None else min(self.dirty_from, offset)

    def sync(self) -> None:
        start = self.dirty_from
        if start is not None:
            if len(self.device) < start:  # a failed sync left a hole
                self.device.extend(bytes(start - len(self.device)))
            self.device[start:] = self.cache[start:]
        self.dirty_from = None

    def drop_cache(self) -> None:
        kept = len(self.cache) if self.dirty_from is None else self.dirty_from
        self.cache[:kept] = self._clean(kept)

    def crash(self, chance: Random) -> None:
        if self.dirty_from is not None:
            self.device = bytearray(self._after_crash(self.dirty_from, chance))
        self.cache, self.dirty_from = bytearray(self.device), None

    def _clean(self, size: int) -> bytes:
        """What the device has of the first `size` bytes: where a failed sync left a hole, NULs."""
        return bytes(self.device[:size]).ljust(size, b"\0")

    def _after_crash(self, start: int, chance: Random) -> bytes:
        clean, dirty = self._clean(start), bytes(self.cache[start:])
        cut = chance.randint(0, len(dirty))
        kind = chance.choice(("none", "prefix", "all", "nuls", "sectors", "mixed"))
        if kind == "none":
            return bytes(self.device)
        if kind == "prefix":
            return clean + dirty[:cut]
        if kind == "nuls":
            return clean + dirty[:cut].ljust(len(dirty), b"\0")
        if kind == "sectors":
            kept = bytearray(dirty)
            position = 0
            while position < len(kept):
                after = min(len(kept), (start + position) // _SECTOR_BYTES * _SECTOR_BYTES + _SECTOR_BYTES - start)
                if chance.random() < 0.5:
                    kept[position:after] = bytes(after - position)
                position = after
            return clean + bytes(kept)
        if kind == "mixed" and len(self.device) > start:
            return clean + dirty[:cut] + self.device[start + cut :]
        return clean + dirty


class SimDisk:
    """One seed decides everything that chance decides."""

    def __init__(self, seed: int, *, capacity_bytes: int | None = None, short_writes: bool = False) -> None:
        self.capacity_bytes = capacity_bytes
        self.short_writes = short_writes
        self.heeds_advice = True
        """Whether `drop_cache` does what it is asked for. The real system may or may not: it takes it as advice."""
        self.kind = "sim"
        """What `file_system` answers."""
        self.operations = 0
        """Operations so far that change something or may fail; `fail` and `cut_power` count by it."""
        self.trace: deque[str] = deque(maxlen=1000)
        self._chance = Random(seed)
        # A value is a file, or None for a folder. The root is always there.
        self._shown: dict[str, _File | None] = {}
        self._held: dict[str, _File | None] = {}
        self._locks: set[str] = set()
        self._faults: dict[int, int] = {}
        self._sticky: int | None = None
        self._fail_point: tuple[re.Pattern[str], int] | None = None
        self._cut_at: tuple[int, bool] | None = None
        self._point: tuple[re.Pattern[str], bool, int] | None = None
        self._changed: dict[str, set[str]] = {}
        """By folder, the names that may not be held as they are shown."""
        self.synced: Callable[[], None] = lambda: None
        """Called in each sync, before it takes effect: a device that takes its time moves the clock here."""
        self._life = 0
        self._dead = False

    def fail(self, operation: int, number: int, *, sticky: bool = False) -> None:
        """The `operation`-th operation (the first is 1) raises errno `number`; with `sticky`, so does each after it."""
        self._faults[operation] = number
        if sticky:
            self._faults[-operation] = number

    def fail_at(self, point: str, number: int) -> None:
        """The next operation whose "verb path" matches the pattern `point` raises errno `number`."""
        self._fail_point = (re.compile(point), number)

    def heal(self) -> None:
        """No operation fails any more."""
        self._faults.clear()
        self._fail_point = None
        self._sticky = None

    def cut_power(self, operation: int, *, after: bool = False) -> None:
        """PowerCut at the `operation`-th operation, before it took effect or after."""
        self._cut_at = (operation, after)

    def cut_power_at(self, point: str, *, after: bool, times: int = 1) -> None:
        """PowerCut at the `times`-th operation whose "verb path" matches the pattern `point`."""
        self._point = (re.compile(point), after, times)

    def crash(self) -> None:
        """The power goes and comes back: see the module's head."""
        self.kill()
        names = {
            name: (self._shown if self._chance.random() < 0.5 else self._held)
            for name in sorted({*self._shown, *self._held})
        }
        after: dict[str, _File | None] = {}
        for name, source in names.items():
            folder = name.rpartition("/")[0]
            if name in source and (not folder or folder in after):
                after[name] = source[name]
        for file in {id(file): file for file in after.values() if file is not None}.values():
            file.crash(self._chance)
        self._shown, self._held = after, dict(after)
        self._changed.clear()

    def spare(self) -> None:
        """No cut is planned any more."""
        self._cut_at = self._point = None

    def kill(self) -> None:
        """The process that uses the disk is killed, the machine goes on: locks and open files go, no byte does."""
        self._cut_at, self._point, self._dead = None, None, False
        self._life += 1
        self._locks.clear()

    def corrupt(self, path: str, data: bytes) -> None:
        """Put `data` in the file's place, in the cache and on the device: rot, or a person with an editor."""
        self._held[path] = self._shown[path] = _File(bytearray(data), bytearray(data))

    def lose(self, paths: Iterable[str]) -> None:
        """The files are gone, in the cache and on the device: a person with a broom."""
        for path in paths:
            self._shown.pop(path, None)
            self._held.pop(path, None)

    def break_locks(self) -> None:
        """Nobody holds a lock any more, and who did does not know: as on a network file system that was cut off."""
        self._locks.clear()

    def files(self) -> dict[str, bytes]:
        """Every file and what the cache shows of it."""
        return {path: bytes(file.cache) for path, file in sorted(self._shown.items()) if file is not None}

    def read(self, path: str, offset: int = 0, limit: int = -1) -> bytes:
        self._alive()
        cache = self._file(path).cache
        return bytes(cache[offset:] if limit < 0 else cache[offset : offset + limit])

    def size(self, path: str) -> int:
        self._alive()
        return len(self._file(path).cache)

    def exists(self, path: str) -> bool:
        self._alive()
        return not path or path in self._shown

    def list(self, folder: str) -> list[str]:
        self._alive()
        inside = folder + "/" if folder else ""
        return sorted(n[len(inside) :] for n in self._shown if n.startswith(inside) and "/" not in n[len(inside) :])

    def make_folder(self, folder: str) -> None:
        parts = folder.split("/")
        for end in range(1, len(parts) + 1):
            place = "/".join(parts[:end])
            if place not in self._shown:
                self._before("make_folder", place)
                self._shown[place] = None
                self._change(place)
                self._after()
            elif self._shown[place] is not None:
                raise _error(errno.ENOTDIR, place)

    def append(self, path: str) -> AppendFile:
        self._alive()
        if self._file(path).read_only:
            raise _error(errno.EACCES, path)
        return _Append(self, path, self._file(path))

    def create(self, path: str) -> AppendFile:
        self._before("create", path)
        self._need_folder(path)
        if path in self._shown:
            raise _error(errno.EEXIST, path)
        file = self._shown[path] = _File()
        self._change(path)
        self._after()
        return _Append(self, path, file)

    def replace(self, source: str, target: str) -> None:
        self._before("replace", f"{source} {target}")
        self._need_folder(target)
        self._shown[target] = self._file(source)
        del self._shown[source]
        self._change(source)
        self._change(target)
        self._after()

    def sync_folder(self, folder: str) -> None:
        self._before("sync_folder", folder)
        if folder and self._shown.get(folder, _File()) is not None:
            raise _error(errno.ENOENT, folder)
        for name in self._changed.pop(folder, ()):
            if name in self._shown:
                self._held[name] = self._shown[name]
            else:
                self._held.pop(name, None)
        self._after()

    def remove(self, path: str) -> None:
        self._before("remove", path)
        self._file(path)
        del self._shown[path]
        self._change(path)
        self._after()

    def set_read_only(self, path: str, *, read_only: bool) -> None:
        self._before("set_read_only", path)
        self._file(path).read_only = read_only
        self._after()

    def drop_cache(self, path: str) -> None:
        self._alive()
        file = self._file(path)
        if self.heeds_advice:
            file.drop_cache()

    def lock(self, path: str) -> Lock:
        self._before("lock", path)
        if path in self._locks:
            raise Locked(f"{path} is held by another process")
        self._need_folder(path)
        self._shown.setdefault(path, _File())
        self._change(path)
        self._locks.add(path)
        self._after()
        return _Lock(self, path)

    def free_bytes(self) -> int:
        self._alive()
        if self.capacity_bytes is None:
            return 1 << 40
        return max(0, self.capacity_bytes - self.used_bytes())

    def used_bytes(self) -> int:
        """What the files take, with what is reserved for them."""
        return sum(max(len(file.cache), file.reserved) for file in self._shown.values() if file is not None)

    def file_system(self) -> str:
        return self.kind

    def _file(self, path: str) -> _File:
        file = self._shown.get(path)
        if file is None:
            raise _error(errno.EISDIR if path in self._shown else errno.ENOENT, path)
        return file

    def _need_folder(self, path: str) -> None:
        folder = path.rpartition("/")[0]
        if folder and (folder not in self._shown or self._shown[folder] is not None):
            raise _error(errno.ENOENT, path)

    def _change(self, name: str) -> None:
        self._changed.setdefault(name.rpartition("/")[0], set()).add(name)

    def _alive(self) -> None:
        if self._dead:
            raise PowerCut

    def _pass_point(self, operation: str) -> None:
        assert self._point is not None
        pattern, after, times = self._point
        if pattern.match(operation):
            self._point = (pattern, after, times - 1) if times > 1 else None
            if times == 1:
                self._cut_at = (self.operations, after)

    def _before(self, verb: str, path: str) -> None:
        """One operation begins. A fault may hit it here, in its place, or in `_after`, once it has taken effect."""
        self._alive()
        self.operations += 1
        self.trace.append(f"{verb} {path}")
        if self._point is not None:
            self._pass_point(f"{verb} {path}")
        if self._cut_at is not None and self._cut_at == (self.operations, False):
            self._dead = True
            raise PowerCut
        if not self._faults and self._fail_point is None and self._sticky is None:
            return
        number = self._faults.get(self.operations, self._sticky)
        if self._fail_point is not None and self._fail_point[0].match(f"{verb} {path}"):
            number, self._fail_point = self._fail_point[1], None
        if -self.operations in self._faults:
            self._sticky = number
        if number is not None:
            raise _error(number, path)

    def _after(self) -> None:
        if self._cut_at is not None and self._cut_at == (self.operations, True):
            self._dead = True
            raise PowerCut


class _Append:
    def __init__(self, disk: SimDisk, path: str, file: _File) -> None:
        self._disk, self._path, self._file, self._life = disk, path, file, disk._life

    def write(self, data: bytes) -> int:
        self._open()
        self._disk._before("write", self._path)
        room = self._disk.free_bytes() + max(0, self._file.reserved - len(self._file.cache))
        if data and not room:
            raise _error(errno.ENOSPC, self._path)
        count = min(len(data), room)
        if self._disk.short_writes and count > 1 and self._disk._chance.random() < 0.3:
            count = self._disk._chance.randint(1, count)
        self._file.dirty(len(self._file.cache))
        self._file.cache += data[:count]
        self._disk._after()
        return count

    def sync(self) -> None:
        self._open()
        try:
            self._disk._before("sync", self._path)
            self._disk.synced()
            self._file.sync()
            self._disk._after()
        except OSError:
            self._file.dirty_from = None
            raise

    def truncate(self, size: int) -> None:
        self._open()
        self._disk._before("truncate", self._path)
        self._file.dirty(min(size, len(self._file.cache)))
        del self._file.cache[size:]
        self._file.cache.extend(bytes(size - len(self._file.cache)))
        self._file.reserved = 0
        self._disk._after()

    def reserve(self, size: int) -> None:
        self._open()
        self._disk._before("reserve", self._path)
        if size - max(len(self._file.cache), self._file.reserved) > self._disk.free_bytes():
            raise _error(errno.ENOSPC, self._path)
        self._file.reserved = max(size, self._file.reserved)
        self._disk._after()

    def close(self) -> None:
        self._life = -1

    def _open(self) -> None:
        self._disk._alive()
        if self._life != self._disk._life:
            raise _error(errno.EBADF, self._path)


class _Lock:
    def __init__(self, disk: SimDisk, path: str) -> None:
        self._disk, self._path, self._life = disk, path, disk._life

    def release(self) -> None:
        if self._life == self._disk._life:
            self._disk._locks.discard(self._path)
