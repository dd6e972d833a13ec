"""File leases: how Hermes and everything beside it on this machine keep out of each other's way.

`leases/<quoted key>.json` says who holds a key, and `leases/.guard` is locked for as long as a file is looked at and
replaced, so two programs never both find a key free. What this home's daemon granted is a fact in its ledger; its files
here (`foreign: false`) only tell others, and are rebuilt from the ledger. All other files are foreign.

A foreign lease is over when its deadline has passed on CLOCK_BOOTTIME, when the machine was started anew since, or when
its process is known dead. A deadline passes unseen while the machine sleeps or stalls: a holder that is known to live
is given one more time to live, counted from when we noticed, in which to renew. A lease of the daemon has no
deadline, and the daemon's death does not end it: runs survive their daemon. It ends by the daemon's hand, by a reboot,
or by a person's `lease release --force`. A file that cannot be read holds its key until a person has looked at it.

A lease names a claim; it fences nobody. Who writes to something that checks tokens must bring the token along.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import secrets
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from urllib.parse import quote, unquote

import filelock
import orjson

from daemon.ports import Clock, Json, LeasesBusy
from daemon.workers import identity
from ledger.instant import Now, text_of
from policies.foreign import SeenLease

KEY = re.compile(r"[A-Za-z0-9._:/@-]{1,120}")
UNKNOWN = "unknown"
EXIT_LOST = 74  # the lease was taken away while the command ran
EXIT_HELD = 75  # somebody else holds the key
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127

_GUARD_WAIT_S = 5.0
_LOOK_AGAIN_S = 0.2
_MARK_TRUSTED_NS = 2_000_000_000  # a younger file may change once more and keep its time of change
_NAME_MAX = 200
_LEASE_BYTES_MAX = 16 << 10
_HOLDER_MAX = 256
_TYPES: dict[str, tuple[type, ...]] = {
    "key": (str,), "holder": (str,), "token": (int,), "acquired": (str,), "expires": (str, type(None)),
    "boot_id": (str,), "boot_ms": (int, type(None)), "ttl_ms": (int, type(None)), "pid": (int, type(None)),
    "started": (int, type(None)), "pid_namespace": (int, type(None)), "foreign": (bool,), "epoch": (int,),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Held:
    """A key that somebody holds. `until_boot_ms`: when to look again, None if only a change can end it.

    `note` is for people: what is wrong with the file, and what to do about it.
    """

    key: str
    holder: str
    token: int
    acquired: str
    until_boot_ms: int | None
    foreign: bool
    file: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Me:
    """The process that takes leases; `epoch` is the ledger's, 0 for everybody but the daemon."""

    pid: int
    started: int | None
    epoch: int = 0

    @classmethod
    def here(cls, epoch: int = 0) -> Me:
        return cls(os.getpid(), identity.start_time(os.getpid()), epoch)


@dataclass(frozen=True, slots=True)
class _Lease:
    """A lease file's content. `acquired` and `expires` are for people; `boot_id` and `boot_ms` decide."""

    key: str
    holder: str
    token: int
    acquired: str
    expires: str | None
    boot_id: str
    boot_ms: int | None
    ttl_ms: int | None
    pid: int | None
    started: int | None
    pid_namespace: int | None
    foreign: bool
    epoch: int


@dataclass(frozen=True, slots=True)
class _Broken:
    key: str
    file: str
    problem: str

    @property
    def held(self) -> Held:
        note = f"{self.file} {self.problem}. Repair the file, or remove it once nobody works under this key."
        return Held(self.key, UNKNOWN, 0, "", None, True, self.file, note)


class LeaseFolder:
    """The lease files in `path` (an existing folder), as the process `me` sees and writes them. OSError as it comes."""

    def __init__(self, path: Path, clock: Clock, me: Me) -> None:
        self.path = path
        self._clock = clock
        self._me = me
        self._lock = filelock.FileLock(path / ".guard", timeout=_GUARD_WAIT_S, mode=0o600, poll_interval=0.005)
        self._known: dict[str, tuple[tuple[int, int, int], _Lease | _Broken]] = {}
        self._overdue: dict[str, tuple[int, int, int]] = {}  # key -> token, deadline, when we noticed

    def seen(self) -> list[SeenLease]:
        """The keys that are not ours to grant, sorted."""
        return [
            SeenLease(held.key, held.holder, held.until_boot_ms or 0, held.note)
            for held in self.held() if held.foreign
        ]  # fmt: skip

    def held(self) -> list[Held]:
        """Every key that somebody holds, the daemon of this home included, sorted."""
        now = self._clock.now()
        names = sorted(self._names())
        for name in self._known.keys() - set(names):
            del self._known[name]
        found = [self._held(lease, now) for name in names if (lease := self._read(name)) is not None]
        return sorted((held for held in found if held is not None), key=lambda held: held.key)

    def publish(self, key: str, holder: str, token: int) -> str | None:
        """Tell others that this daemon granted the key. None, or who holds it: then nothing was written."""
        with self._guard():
            return self._publish(key, holder, token)

    def withdraw(self, key: str, token: int) -> None:
        """The daemon's grant is over. What is not that grant is left alone."""
        with self._guard():
            lease = self._read(file_name(key))
            if isinstance(lease, _Lease) and not lease.foreign and lease.token == token:
                self._remove(key)

    def sync(self, ours: Mapping[str, tuple[str, int]]) -> dict[str, str]:
        """Make the daemon's files say exactly `ours` (key -> holder, token). Files of others are left alone; returned
        are the keys of ours that they hold, with who does."""
        with self._guard():
            for name in self._names():
                lease = self._read(name)
                if isinstance(lease, _Lease) and not lease.foreign and lease.key not in ours:
                    self._remove(lease.key)
            others = {key: self._publish(key, holder, token) for key, (holder, token) in sorted(ours.items())}
        return {key: other for key, other in others.items() if other is not None}

    def acquire(self, key: str, holder: str, ttl_ms: int, *, mine: bool = True) -> int | Held:
        """Take the key for somebody beside the daemon: the token, or who holds it.

        With `mine` it is over when this process ends (or the one that `renew` names); without, by its deadline alone.
        """
        with self._guard():
            lease = self._read(file_name(key))
            held = self._held(lease, self._clock.now()) if lease is not None else None
            if held is not None:
                return held
            token = secrets.randbits(52) + 1
            self._write(self._foreign(key, holder, token, ttl_ms, (self._me.pid, self._me.started) if mine else None))
            return token

    def renew(self, key: str, token: int, ttl_ms: int, process: tuple[int, int | None] | None = None) -> bool:
        """Move the deadline; the death of `process` (pid, start time) will end the lease. False: the lease is lost."""
        with self._guard():
            lease = self._read(file_name(key))
            if not isinstance(lease, _Lease) or not lease.foreign or lease.token != token:
                return False
            if process is None and lease.pid is not None:
                process = (lease.pid, lease.started)
            self._write(self._foreign(key, lease.holder, token, ttl_ms, process, lease.acquired))
            return True

    def release(self, key: str, token: int | None = None, *, force: bool = False) -> bool:
        """Give up a foreign lease: with its token, or with `force` whatever there is, broken files and the daemon's own
        included. False: there was no such lease."""
        with self._guard():
            lease = self._read(file_name(key))
            theirs = isinstance(lease, _Lease) and lease.foreign and lease.token == token
            if lease is None or not (theirs or force):
                return False
            self._remove(key)
            return True

    def _names(self) -> list[str]:
        """Of the lease files. Where the folder was removed there are none; whoever writes one makes it again."""
        with contextlib.suppress(FileNotFoundError):
            return [name for name in os.listdir(self.path) if name.endswith(".json") and not name.startswith(".")]
        return []

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        self.path.mkdir(mode=0o700, exist_ok=True)
        try:
            with self._lock:
                yield
        except filelock.Timeout as error:
            raise LeasesBusy(
                f"{self.path / '.guard'} has been locked by another program for {_GUARD_WAIT_S:g} s. "
                "Find it with `fuser` or `lsof` and end it; do not remove the file."
            ) from error

    def _publish(self, key: str, holder: str, token: int) -> str | None:
        now = self._clock.now()
        lease = self._read(file_name(key))
        held = self._held(lease, now) if lease is not None else None
        if held is not None and held.foreign:
            return held.holder
        me = self._me
        ours = _Lease(
            key, holder, token, text_of(now.wall_ms), None, self._clock.boot_id, None, None,
            me.pid, me.started, _pid_namespace(), False, me.epoch,
        )  # fmt: skip
        if not isinstance(lease, _Lease) or _same(lease) != _same(ours):
            self._write(ours)
        return None

    def _foreign(
        self,
        key: str,
        holder: str,
        token: int,
        ttl_ms: int,
        process: tuple[int, int | None] | None,
        acquired: str | None = None,
    ) -> _Lease:
        now = self._clock.now()
        pid, started = process if process is not None else (None, None)
        return _Lease(
            key, holder, token, acquired or text_of(now.wall_ms), text_of(now.wall_ms + ttl_ms), self._clock.boot_id,
            now.boot_ms + ttl_ms, ttl_ms, pid, started, _pid_namespace(), True, self._me.epoch,
        )  # fmt: skip

    def _held(self, lease: _Lease | _Broken, now: Now) -> Held | None:
        """None if the lease is over."""
        if isinstance(lease, _Broken):
            return lease.held
        until_ms = self._until_ms(lease, now.boot_ms)
        if until_ms is not None and until_ms <= now.boot_ms:
            return None
        file = str(self.path / file_name(lease.key))
        # Anybody may have written it, and it is shown on terminals.
        holder, acquired = (_printable(text)[:_HOLDER_MAX] for text in (lease.holder, lease.acquired))
        return Held(lease.key, holder, lease.token, acquired, until_ms, lease.foreign, file)

    def _until_ms(self, lease: _Lease, now_ms: int) -> int | None:
        """0: it is over. None: time does not end it."""
        if lease.boot_id != self._clock.boot_id:
            return 0
        if not lease.foreign:
            return None
        lives = None  # nobody knows: no process was named, or it is not in the process table that we see
        if lease.pid is not None and lease.started is not None and lease.pid_namespace == _pid_namespace():
            lives = identity.alive(lease.pid, lease.started)
            if not lives:
                return 0
        deadline_ms = lease.boot_ms
        assert deadline_ms is not None
        assert lease.ttl_ms is not None
        if lives and deadline_ms <= now_ms:
            if self._overdue.get(lease.key, ())[:2] != (lease.token, deadline_ms):
                self._overdue[lease.key] = (lease.token, deadline_ms, now_ms)
            return self._overdue[lease.key][2] + lease.ttl_ms
        return deadline_ms

    def _read(self, name: str) -> _Lease | _Broken | None:
        path = self.path / name
        try:
            status = path.stat()
            mark = (status.st_ino, status.st_mtime_ns, status.st_size)
            known = self._known.get(name)
            if known is not None and known[0] == mark:
                return known[1]
            if not stat.S_ISREG(status.st_mode):  # Reading a FIFO would wait for somebody to write.
                return _Broken(unquote(name.removesuffix(".json")), str(path), "is no file")
            with path.open("rb") as file:
                data = file.read(_LEASE_BYTES_MAX + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            return _Broken(unquote(name.removesuffix(".json")), str(path), f"cannot be read ({error.strerror})")
        try:
            lease: _Lease | _Broken = _parse(data, name)
        except ValueError as error:
            lease = _Broken(unquote(name.removesuffix(".json")), str(path), f"is no lease: {error}")
        if time.time_ns() - status.st_mtime_ns > _MARK_TRUSTED_NS:
            self._known[name] = (mark, lease)
        return lease

    def _write(self, lease: _Lease) -> None:
        # Nothing is synced: a power cut changes the boot id, and with it every lease is over.
        name = file_name(lease.key)
        temporary = self.path / f".{name}.new"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(orjson.dumps(asdict(lease), option=orjson.OPT_INDENT_2) + b"\n")
        temporary.replace(self.path / name)

    def _remove(self, key: str) -> None:
        (self.path / file_name(key)).unlink(missing_ok=True)


def file_name(key: str) -> str:
    """ValueError if it is no key."""
    if not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no lease key: 1 to 120 of letters, digits and . _ : / @ -")
    name = quote(key, safe="")
    if name.startswith("."):
        name = "%2E" + name[1:]  # names with a dot in front are nobody's leases
    if len(name) > _NAME_MAX:
        name = name[: _NAME_MAX - 33] + "~" + hashlib.sha256(key.encode()).hexdigest()[:32]
    return name + ".json"


def lease_exec(folder: LeaseFolder, key: str, argv: Sequence[str], ttl_s: float, wait_s: float | None) -> int:
    """Hold the key while the command runs; returns its exit status, 128 + n if signal n ended it, or an EXIT_ above.

    `wait_s`: how long to wait for the key, None for ever. Belongs to a main thread: it takes the signals and hands them
    on. The command is asked to end (SIGTERM) when the lease is lost, and on Linux also when this process is killed.
    """
    from daemon.masking import Mask  # The daemon, which does without it, reads this file too.

    ttl_ms = max(int(ttl_s * 1000), 1000)
    give_up_s = None if wait_s is None else time.monotonic() + wait_s
    # The daemon records whom it sees, for ever: a password on a command line is not to be among it.
    holder = f"{Mask().text(' '.join(argv))[:200]} (pid {os.getpid()})"
    told = False
    while isinstance(token := folder.acquire(key, holder, ttl_ms), Held):
        if give_up_s is not None and time.monotonic() >= give_up_s:
            _say(f"{key} is held by {token.holder} since {token.acquired or 'an unknown time'}. {token.note}")
            return EXIT_HELD
        if not told:
            _say(f"waiting for {key}, held by {token.holder}. {token.note}")
            told = True
        time.sleep(_LOOK_AGAIN_S)
    try:
        return _run(folder, key, token, argv, ttl_ms)
    finally:
        folder.release(key, token)


def _run(folder: LeaseFolder, key: str, token: int, argv: Sequence[str], ttl_ms: int) -> int:
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if number in (signal.SIGINT, signal.SIGQUIT) and _in_foreground():
            return  # typed at the terminal, which has told the command itself
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    # Before the command exists: a signal between its start and ours would end us, and leave it alone.
    earlier = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        child = subprocess.Popen(argv, preexec_fn=_ask_to_die_with_parent())
        for number in early:
            child.send_signal(number)
        return _hold(folder, key, token, child, ttl_ms)
    except FileNotFoundError as error:
        _say(f"{argv[0]}: {error.strerror}")
        return EXIT_NOT_FOUND
    except OSError as error:
        _say(f"{argv[0]}: {error.strerror}")
        return EXIT_NOT_EXECUTABLE
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _hold(folder: LeaseFolder, key: str, token: int, child: subprocess.Popen[bytes], ttl_ms: int) -> int:
    """Renew the lease until the command has ended."""
    over = threading.Event()
    lost = threading.Event()

    def renew() -> None:
        # From here on it is the command's life that the lease hangs on, not ours.
        process: tuple[int, int | None] | None = (child.pid, identity.start_time(child.pid))
        pause_s = 0.0
        while not over.wait(pause_s):
            pause_s = ttl_ms / 3000
            try:
                if folder.renew(key, token, ttl_ms, process):
                    process = None
                    continue
            except (OSError, LeasesBusy) as error:
                _say(f"cannot renew the lease of {key}, trying again: {error}")
                pause_s = ttl_ms / 30_000
                continue
            _say(f"the lease of {key} was taken away; ending the command")
            lost.set()
            child.terminate()
            return

    renewer = threading.Thread(target=renew, name="lease", daemon=True)
    renewer.start()
    try:
        code = child.wait()
    finally:
        over.set()
        renewer.join()
    if lost.is_set():
        return EXIT_LOST
    return code if code >= 0 else 128 - code


_FORWARDED = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _ask_to_die_with_parent() -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)  # before the fork: little may be done after it

    def ask() -> None:
        pr_set_pdeathsig = 1
        libc.prctl(pr_set_pdeathsig, int(signal.SIGTERM))

    return ask


def _parse(data: bytes, name: str) -> _Lease:
    if len(data) > _LEASE_BYTES_MAX:  # What is seen of it is recorded, and a record holds only so much.
        raise ValueError(f"it has more than {_LEASE_BYTES_MAX} bytes")
    try:
        value: Json = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"broken JSON ({error})") from None
    if not isinstance(value, dict) or value.keys() != _TYPES.keys():
        raise ValueError(f"it must be an object with exactly the fields {', '.join(_TYPES)}")
    for field, types in _TYPES.items():
        if type(value[field]) not in types:
            raise ValueError(f"the field {field} has a value of the wrong kind")
    lease = _Lease(**value)
    if lease.foreign and (lease.boot_ms is None or lease.ttl_ms is None):
        raise ValueError("a foreign lease needs boot_ms and ttl_ms")
    if not KEY.fullmatch(lease.key) or file_name(lease.key) != name:
        raise ValueError(f"its name is not that of the key it is about, {lease.key!r}")
    return lease


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _same(lease: _Lease) -> tuple[object, ...]:
    """Without the time of writing: a file that still says the right thing is not written again."""
    return (lease.holder, lease.token, lease.boot_id, lease.pid, lease.started, lease.foreign, lease.epoch)


def _pid_namespace() -> int | None:
    """Where pids mean the same: a container beside us has numbers of its own. None where there is one table for all."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None


def _say(text: str) -> None:
    print(f"hermesd: {text.rstrip()}", file=sys.stderr, flush=True)
