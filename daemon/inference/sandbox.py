"""Hermetic mode: what an engine process shuts itself in with. Behind it, it reaches no network and writes nowhere but
into its scratch folder.

Two steps, since Landlock and namespaces hold for the thread that asks and those it starts from then on, and model
libraries start threads as they are imported:

- `begin`, before those imports: no new privileges, a network namespace with nothing in it, and Landlock (writing
  beneath the scratch folder and to devices only, no TCP);
- `enter`, when the model is loaded: a seccomp filter for all threads, by which no more sockets are made (the engine's
  own wire is open already), and, for kernels that have none of this, a guard in Python that stops at least our code.

Both say what holds. Signals to other processes of the same user are not limited.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import socket
import struct
import sys
import tempfile
from collections.abc import Sequence

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000

_LANDLOCK = {"create": 444, "add": 445, "restrict": 446}
_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_WRITES = sum(1 << bit for bit in range(4, 13)) | _WRITE_FILE  # make, remove and link of every kind
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_TCP = 0b11  # bind and connect
_SCOPES = 0b01  # abstract unix sockets

# (architecture as seccomp names it, the numbers of socket, socketpair, connect, bind, and io_uring_setup, which makes
# sockets without the call that is named so)
_SYSCALLS = {
    "x86_64": (0xC000003E, (41, 53, 42, 49, 425)),
    "aarch64": (0xC00000B7, (198, 199, 203, 200, 425)),
}


_FOLDERS = (
    "TMPDIR", "XDG_CACHE_HOME", "CUDA_CACHE_PATH", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "NUMBA_CACHE_DIR",
)  # fmt: skip


class Guarded(PermissionError):
    """The engine is hermetic: it has no network."""


_begun: list[str] | None = None


def begin(scratch: str) -> list[str]:
    """Shut this process in, for good; it must have one thread. Gives what holds, some of "no-new-privileges",
    "network-namespace", "landlock", "landlock-tcp". What libraries keep for later goes into the scratch folder."""
    global _begun
    os.environ |= dict.fromkeys(_FOLDERS, scratch)
    tempfile.tempdir = scratch
    held = []
    if sys.platform == "linux" and len(os.listdir("/proc/self/task")) == 1:
        libc = ctypes.CDLL(None, use_errno=True)
        if _alone(libc):
            held.append("network-namespace")
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
            held += ["no-new-privileges", *_landlock(libc, [scratch, *_devices()])]
    _begun = held
    return held


def enter(scratch: str) -> list[str]:
    """The second step, and the first if that was not taken: what holds by now, with "seccomp" and "socket-guard"."""
    held = list(begin(scratch) if _begun is None else _begun)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and _seccomp(libc):
            held.append("seccomp")
    _guard()
    return [*held, "socket-guard"]


def _devices() -> list[str]:
    """What is written to and keeps nothing, and the accelerators."""
    found = ["/dev/null", "/dev/zero", "/dev/shm", "/dev/dri", "/dev/kfd", "/proc/self"]
    return found + sorted(f"/dev/{name}" for name in os.listdir("/dev") if name.startswith("nvidia"))


def _alone(libc: ctypes.CDLL) -> bool:
    """A network namespace with nothing in it; for who is not root, in a user namespace where he is still himself."""
    if libc.unshare(_CLONE_NEWNET) == 0:
        return True
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with contextlib.suppress(OSError), open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    return True


def _landlock(libc: ctypes.CDLL, writable: Sequence[str]) -> list[str]:
    abi = libc.syscall(_LANDLOCK["create"], None, 0, 1)
    if abi < 1:
        return []
    files = _WRITES
    if abi >= 2:
        files |= _REFER
    if abi >= 3:
        files |= _TRUNCATE
    attributes = struct.pack("QQQ", files, _TCP if abi >= 4 else 0, _SCOPES if abi >= 6 else 0)
    attributes = attributes[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    rules = libc.syscall(_LANDLOCK["create"], attributes, len(attributes), 0)
    if rules < 0:
        return []
    try:
        for path in writable:
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                allowed = files if os.path.isdir(path) else files & (_WRITE_FILE | _TRUNCATE)
                rule = struct.pack("=Qi", allowed, fd)
                if libc.syscall(_LANDLOCK["add"], rules, _RULE_PATH_BENEATH, rule, 0):
                    return []
            finally:
                os.close(fd)
        if libc.syscall(_LANDLOCK["restrict"], rules, 0):
            return []
    finally:
        os.close(rules)
    return ["landlock", "landlock-tcp"] if abi >= 4 else ["landlock"]


def _seccomp(libc: ctypes.CDLL) -> bool:
    """Every thread of the process is told that it may make no socket and connect none."""
    known = _SYSCALLS.get(platform.machine())
    if known is None:
        return False
    architecture, numbers = known

    def step(code: int, yes: int, no: int, value: int) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    load, equal, answer = 0x20, 0x15, 0x06
    count = len(numbers)
    refuse, allow, kill = 0x00050000 | errno.EACCES, 0x7FFF0000, 0x80000000
    program = [step(load, 0, 0, 4), step(equal, 1, 0, architecture), step(answer, 0, 0, kill), step(load, 0, 0, 0)]
    if platform.machine() == "x86_64":  # the same calls under their 32-bit pointers' numbers
        program += [step(0x35, 0, 1, 0x40000000), step(answer, 0, 0, refuse)]
    program += [step(equal, count - place, 0, number) for place, number in enumerate(numbers)]
    program += [step(answer, 0, 0, allow), step(answer, 0, 0, refuse)]
    code = ctypes.create_string_buffer(b"".join(program))
    frame = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    number = 317 if platform.machine() == "x86_64" else 277
    return bool(libc.syscall(number, 1, 1, frame) == 0)  # SECCOMP_SET_MODE_FILTER, for all threads


def _guard() -> None:
    """For kernels that have none of the others: our own code, and what it imports, makes no sockets."""

    class Shut(socket.socket):
        def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
            if fileno is None:
                raise Guarded(errno.EACCES, "the engine is hermetic: it has no network")
            super().__init__(family, type, proto, fileno)

    socket.socket = Shut  # type: ignore[misc]
