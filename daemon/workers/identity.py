"""Which process is which: a pid alone names nobody, (pid, start time) does.

Standard library only: workers import this.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
import zlib
from collections.abc import Iterator
from typing import NamedTuple

_PROC = sys.platform == "linux"
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_WALL = 0x40000000  # also children that tell their end by no signal
_RLIMIT_LOCKS = 10  # bounds nothing since Linux 2.4.25, and is inherited like the others


class Process(NamedTuple):
    """One line of the process table. `started` as `start_time` gives it; a zombie is not `alive`."""

    pid: int
    parent: int
    group: int
    session: int
    started: int
    alive: bool


def process(pid: int) -> Process | None:
    """None if there is no such process."""
    if not _PROC:
        return _process_elsewhere(pid)
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(descriptor, 1024)
    except ProcessLookupError:
        return None
    finally:
        os.close(descriptor)
    # The program's name, in parentheses, may itself hold spaces and parentheses.
    fields = text[text.rindex(b")") + 2 :].split(maxsplit=20)
    alive = fields[0] not in (b"Z", b"X")
    return Process(pid, int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]), alive)


def start_time(pid: int) -> int | None:
    """When the process started: clock ticks since boot on Linux, milliseconds since 1970 elsewhere. None if it is gone;
    a zombie still has one."""
    found = process(pid)
    return found.started if found else None


def boot_ns() -> int:
    """The clock that `start_time` is read from on Linux; 0 elsewhere."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) if sys.platform == "linux" else 0


def tick_between(before_ns: int, after_ns: int) -> int | None:
    """The `start_time` of a process that was started between two readings of `boot_ns`; None if they are not of one
    tick. To ask the system takes as long as a dozen of other calls."""
    tick = before_ns // _TICK_NS
    return tick if _PROC and tick == after_ns // _TICK_NS else None


def alive(pid: int, started: int) -> bool:
    """That very process lives: neither a zombie nor another one that got its pid."""
    found = process(pid)
    return found is not None and found.alive and found.started == started


def folder_of(pid: int) -> str:
    """The attempt folder its environment names, "" if none or not ours to read. It marks a tree better than the run:
    another home may have a run of the same name."""
    if not _PROC:
        import psutil

        try:
            return str(psutil.Process(pid).environ().get("HERMESD_FOLDER", ""))
        except psutil.Error:
            return ""
    for entry in _read(f"/proc/{pid}/environ").split(b"\0"):
        if entry.startswith(b"HERMESD_FOLDER="):
            return os.fsdecode(entry[15:])
    return ""


def mark_of(folder: str) -> int:
    """The number that marks the processes of the attempt in `folder`, see `marked`."""
    name = os.fsencode(folder)
    return 1 << 62 | zlib.crc32(name) << 30 | zlib.adler32(name) >> 2


@contextlib.contextmanager
def marked(folder: str) -> Iterator[None]:
    """What this process starts meanwhile, and all that comes of it, is known for the attempt's: by a resource limit
    that limits nothing, and is lost neither with the environment nor the session nor the parent. Nothing but on Linux.
    """
    if not _PROC:
        yield
        return
    hard = resource.getrlimit(_RLIMIT_LOCKS)[1]
    with contextlib.suppress(ValueError):  # Where somebody has set a hard limit there, there is no mark.
        resource.setrlimit(_RLIMIT_LOCKS, (mark_of(folder), hard))
    try:
        yield
    finally:
        resource.setrlimit(_RLIMIT_LOCKS, (hard, hard))


def belongs(pid: int, folder: str) -> bool:
    """The process bears the mark of the attempt in `folder`, or its environment names it."""
    return folder_of(pid) == folder or (_PROC and _bears(pid, mark_of(folder)))


def _bears(pid: int, mark: int) -> bool:
    _, _, rest = _read(f"/proc/{pid}/limits").partition(b"Max file locks")
    return rest.split(maxsplit=1)[:1] == [b"%d" % mark]


def processes() -> Iterator[Process]:
    """Every process of this user, zombies included."""
    if not _PROC:
        import psutil

        for pid in psutil.pids():
            if (found := _process_elsewhere(pid)) is not None:
                yield found
        return
    user = os.geteuid()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            if os.stat(f"/proc/{name}").st_uid != user:
                continue
        except FileNotFoundError:
            continue
        if (found := process(int(name))) is not None:
            yield found


def tree(folder: str | None, leader: int | None = None) -> list[tuple[int, int]]:
    """Living processes of the attempt in `folder`, as (pid, started); see `kin`."""
    return [(found.pid, found.started) for found in kin(folder, leader) if found.alive]


def kin(folder: str | None, leader: int | None = None) -> list[Process]:
    """Processes of the attempt in `folder`, also those dead and not reaped, whatever session or parent they have by
    now: those that bear its mark or whose environment names it, those in `leader`'s session or group, and the
    descendants of all these.

    Give `leader` only while its number cannot be somebody else's: while it is alive or unreaped, or its group is not
    empty. Without `folder` only the leader's are meant. This process itself is never among them.
    """
    table = {found.pid: found for found in processes()}
    table.pop(os.getpid(), None)
    members = {
        pid
        for pid, found in table.items()
        if leader in (pid, found.session, found.group) or (folder and belongs(pid, folder))
    }
    grew = True
    while grew:
        grown = {pid for pid, found in table.items() if found.parent in members} - members
        members |= grown
        grew = bool(grown)
    return [table[pid] for pid in sorted(members)]


def inherit_orphans() -> bool:
    """From now on, descendants whose parent dies become children of this process instead of init's (Linux). False
    where the system cannot."""
    if not _PROC:
        return False
    import ctypes

    pr_set_child_subreaper = 36
    return bool(ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0) == 0)


def children() -> list[int]:
    """Pids of this process's children, inherited orphans and zombies included."""
    pid = os.getpid()
    if not _PROC:
        import psutil

        return [child.pid for child in psutil.Process(pid).children()]
    return [int(word) for word in _read(f"/proc/{pid}/task/{pid}/children").split()]


def childless() -> bool:
    """This process certainly has no children, no zombies either. False where the system does not tell at once."""
    if not _PROC:
        return False
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | _WALL)
    except ChildProcessError:
        return True
    return False


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def _process_elsewhere(pid: int) -> Process | None:
    import psutil

    try:
        found = psutil.Process(pid)
        if found.uids().effective != os.geteuid():
            return None
        started = round(found.create_time() * 1000)
        return Process(
            pid, found.ppid() or 0, os.getpgid(pid), os.getsid(pid), started, found.status() != psutil.STATUS_ZOMBIE
        )
    except (psutil.Error, OSError):
        return None
