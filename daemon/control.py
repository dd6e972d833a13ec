"""The daemon's door for commands: a socket in the home, and the inbox for when nobody is behind it.

One line of JSON each way. Request: {"id", "verb", "args", "actor"}; answer: {"id", "ok": true, "result"} or
{"id", "ok": false, "error": {"code", "message", "advice"}}. A connection may send many requests; each waits for the
answer to the one before. The server never blocks and never waits for a slow or a silent client.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import os
import re
import secrets
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from daemon.ports import Json

if TYPE_CHECKING:  # Who only calls has no use for what the daemon waits with.
    from daemon.wake import Waker

SOCKET = "hermesd.sock"
INBOX = "inbox"
REASON = "request"
REQUEST_BYTES_MAX = 64 * 1024
ANSWER_BYTES_MAX = 16 * 1024 * 1024
CONNECTIONS_MAX = 64

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERB = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_ACTOR_MAX = 128
_SUN_PATH_MAX = 107 if sys.platform.startswith("linux") else 103


class NotRunning(Exception):
    """No daemon listens in this home. The message says how to start one."""


class AlreadyRunning(Exception):
    """Another daemon listens in this home."""


class CallFailed(Exception):
    """The daemon refused the request, or the conversation with it broke."""

    def __init__(self, code: str, message: str, advice: str = "") -> None:
        super().__init__(f"{message} {advice}".rstrip())
        self.code, self.message, self.advice = code, message, advice


@dataclass(frozen=True, slots=True)
class Request:
    """`id` names the request for ever: the same one arriving twice is done once. `actor` is who asks, as user@host."""

    id: str
    verb: str
    args: Mapping[str, Json]
    actor: str

    def line(self) -> bytes:
        return orjson.dumps({"id": self.id, "verb": self.verb, "args": dict(self.args), "actor": self.actor}) + b"\n"


def new_request(verb: str, args: Mapping[str, Json]) -> Request:
    """A request of this process's user. Ids sort by the time they were made."""
    request_id = f"{time.time_ns() // 1000:014x}-{secrets.token_hex(8)}"
    return Request(request_id, verb, args, actor())


def actor() -> str:
    """Who asks, as user@host."""
    return f"{user()}@{socket.gethostname()}"[:_ACTOR_MAX]


def user() -> str:
    """The name of this process's user; in a container there may be none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid{os.geteuid()}"


def parse(line: bytes) -> Request:
    """ValueError says what is wrong with it."""
    if len(line) > REQUEST_BYTES_MAX:
        raise ValueError(f"a request has at most {REQUEST_BYTES_MAX} bytes, this one has {len(line)}")
    value = orjson.loads(line)
    if not isinstance(value, dict) or set(value) != {"id", "verb", "args", "actor"}:
        raise ValueError('a request is a JSON object with exactly "id", "verb", "args" and "actor"')
    for name, pattern in (("id", _ID), ("verb", _VERB)):
        if not isinstance(value[name], str) or not pattern.fullmatch(value[name]):
            raise ValueError(f'"{name}" must be text that matches {pattern.pattern}')
    actor = value["actor"]
    if not isinstance(actor, str) or not 0 < len(actor) <= _ACTOR_MAX or not actor.isprintable():
        raise ValueError(f'"actor" must be printable text of 1 to {_ACTOR_MAX} characters, as in user@host')
    if not isinstance(value["args"], dict):
        raise ValueError('"args" must be a JSON object')
    return Request(value["id"], value["verb"], value["args"], actor)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that waits for its answer; exactly one of `answer` and `fail` is called, once, from the loop's thread.

    Answer what was recorded only after its event is durable. If the client has gone, the answer is dropped.
    """

    request: Request
    answer: Callable[[Json], None]
    fail: Callable[[str, str, str], None]


class ControlServer:
    """Listens in `home` (an existing folder) until `close`. AlreadyRunning if somebody else does."""

    def __init__(self, home: Path, waker: Waker) -> None:
        self._home = home
        self._waker = waker
        self._asked: list[Asked] = []
        self._connections: dict[int, _Connection] = {}
        self._listener = listen(home)
        self._identity = _identity(home / SOCKET)
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        waker.watch(self._listener.fileno(), self._accept)

    def requests(self) -> list[Asked]:
        """What was asked since the last call, in the order of arrival."""
        asked, self._asked = self._asked, []
        return asked

    def housekeep(self) -> None:
        """Drop the clients that have not taken a byte of their answer since the last call."""
        for connection in list(self._connections.values()):
            if connection.stuck():
                connection.close()

    def close(self) -> None:
        for connection in list(self._connections.values()):
            connection.flush_and_close()
        self._waker.unwatch(self._listener.fileno())
        if _identity(self._home / SOCKET) == self._identity:  # never the socket of the daemon that came after us
            (self._home / SOCKET).unlink()
        self._listener.close()
        if self._spare is not None:
            os.close(self._spare)

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            # Out of descriptors: the waiting client would keep the listener ready, and the loop spinning, for ever.
            if self._spare is not None:
                os.close(self._spare)
                self._spare = None
            with contextlib.suppress(OSError):
                self._listener.accept()[0].close()
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            return
        peer.setblocking(False)
        connection = _Connection(peer, self)
        uid = _peer_uid(peer)
        if uid not in (os.geteuid(), 0):
            connection.refuse("forbidden", f"user {uid} may not command this daemon.", "Ask the home's owner.")
        elif len(self._connections) >= CONNECTIONS_MAX and not self._make_room():
            connection.refuse("busy", f"{CONNECTIONS_MAX} commands are being served already.", "Try again shortly.")
        else:
            self._connections[peer.fileno()] = connection
            connection.listen()

    def _make_room(self) -> bool:
        """Hang up on the client that has been silent longest."""
        idle = min((c for c in self._connections.values() if c.idle()), key=lambda c: c.heard_s, default=None)
        if idle is not None:
            idle.close()
        return idle is not None


@dataclass(slots=True, eq=False)
class _Connection:
    peer: socket.socket
    server: ControlServer
    incoming: bytearray = field(default_factory=bytearray)
    outgoing: bytearray = field(default_factory=bytearray)
    waiting: str | None = None  # the id of the request that has no answer yet; nothing is read meanwhile
    heard_s: float = field(default_factory=time.monotonic)
    closing: bool = False
    moved: bool = True  # whether some of the answer was taken since `stuck` was asked

    def listen(self) -> None:
        self.server._waker.watch(self.peer.fileno(), self.read)

    def idle(self) -> bool:
        return self.waiting is None and not self.outgoing

    def stuck(self) -> bool:
        moved, self.moved = self.moved, False
        return bool(self.outgoing) and not moved

    def read(self) -> None:
        if self.waiting is not None:  # It is heard once it has its answer.
            self.server._waker.unwatch(self.peer.fileno(), write=False)
            return
        try:
            data = self.peer.recv(REQUEST_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self.heard_s = time.monotonic()
        self.incoming += data
        self.next_request()

    def next_request(self) -> None:
        while self.waiting is None and not self.closing:
            line, newline, rest = self.incoming.partition(b"\n")
            if not newline and len(line) <= REQUEST_BYTES_MAX:
                self.listen()
                return
            self.incoming = rest
            try:
                request = parse(bytes(line))
            except ValueError as error:
                self.refuse("bad-request", f"this is not a request: {error}.", "Use hermesd of the daemon's version.")
                return
            self.ask(request)

    def ask(self, request: Request) -> None:
        self.waiting = request.id
        self.server._asked.append(
            Asked(
                request,
                lambda result: self.reply(request.id, {"id": request.id, "ok": True, "result": result}),
                lambda code, message, advice: self.reply(request.id, _failure(request.id, code, message, advice)),
            )
        )
        self.server._waker.note(REASON)  # it may have come with the one before: then no descriptor tells of it

    def reply(self, request_id: str, answer: Json) -> None:
        if self.peer.fileno() < 0:
            return
        if self.waiting != request_id:
            raise RuntimeError(f"request {request_id} was answered twice")
        self.waiting = None
        line = orjson.dumps(answer) + b"\n"
        if len(line) > ANSWER_BYTES_MAX:
            text = f"the answer has {len(line)} bytes, more than {ANSWER_BYTES_MAX}."
            line = orjson.dumps(_failure(request_id, "too-large", text, "Ask for less.")) + b"\n"
        self.send(line)
        if self.peer.fileno() >= 0 and not self.outgoing:
            self.next_request()

    def refuse(self, code: str, message: str, advice: str) -> None:
        self.closing = True
        self.server._waker.unwatch(self.peer.fileno())
        self.server._connections.setdefault(self.peer.fileno(), self)
        self.send(orjson.dumps(_failure(None, code, message, advice)) + b"\n")

    def send(self, line: bytes) -> None:
        self.outgoing += line
        self.moved = True
        self.write()

    def write(self) -> None:
        try:
            sent = self.peer.send(self.outgoing)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        del self.outgoing[:sent]
        self.moved = self.moved or sent > 0
        if self.outgoing:
            self.server._waker.watch(self.peer.fileno(), self.written, write=True)
        elif self.closing:
            self.close()

    def written(self) -> None:
        self.server._waker.unwatch(self.peer.fileno(), write=True)
        self.write()
        if self.peer.fileno() >= 0 and not self.outgoing:
            self.next_request()

    def flush_and_close(self) -> None:
        self.closing = True
        if self.outgoing:
            self.write()
        self.close()

    def close(self) -> None:
        fd = self.peer.fileno()
        if fd >= 0:
            self.server._waker.unwatch(fd)
            self.server._connections.pop(fd, None)
            self.peer.close()


def call(home: Path, verb: str, args: Mapping[str, Json], timeout_s: float = 30.0) -> Json:
    """Ask the daemon of `home` and wait for its answer. NotRunning, CallFailed."""
    request = new_request(verb, args)
    line = request.line()
    if len(line) > REQUEST_BYTES_MAX:
        raise CallFailed("too-large", f"a request has at most {REQUEST_BYTES_MAX} bytes, this one has {len(line)}.")
    deadline_s = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        try:
            # While the daemon is behind with accepting, a socket with Python's timeout is refused at once; one that
            # blocks waits its turn, for as long as the kernel is told.
            seconds, part = divmod(timeout_s, 1)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(part * 1e6) + 1))
            with address_of(home) as address:
                peer.connect(address)
            peer.settimeout(max(deadline_s - time.monotonic(), 0.001))
            # Refused at the door: the reason is there to be read.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                peer.sendall(line)
            answer = bytearray()
            while not answer.endswith(b"\n"):
                peer.settimeout(max(deadline_s - time.monotonic(), 0.001))
                data = peer.recv(1 << 16)
                if not data:
                    raise CallFailed(
                        "gone", "the daemon stopped before it answered.", "Whether it acted is in `hermesd events`."
                    )
                answer += data
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            raise NotRunning(
                f"no daemon is running in {home}. Start it with `hermesd run` (or `hermesd service install`), "
                "or name another home with --home."
            ) from error
        except (TimeoutError, BlockingIOError) as error:
            raise CallFailed(
                "timeout", f"no answer from the daemon in {home} within {timeout_s:g} s.", "See `hermesd status`."
            ) from error
        except OSError as error:
            raise CallFailed("socket", f"cannot talk to {home / SOCKET}: {error.strerror or error}.") from error
    value = orjson.loads(answer)
    if value["ok"]:
        return value["result"]
    raise CallFailed(value["error"]["code"], value["error"]["message"], value["error"]["advice"])


def leave(home: Path, request: Request) -> Path:
    """Put the request into the inbox, to be taken up once when the daemon starts. Durable once this returns."""
    inbox = home / INBOX
    target = inbox / f"{request.id}.json"
    temporary = inbox / f".{request.id}.new"
    parse(request.line())  # a request that `take` would reject is refused here, where somebody reads the reason
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        file.write(request.line())
        file.flush()
        os.fsync(fd)
    temporary.replace(target)
    _sync_folder(inbox)
    return target


def take(home: Path) -> list[tuple[Path, Request]]:
    """The requests left in the inbox, oldest first. Each stays there until `done`: record first, then remove, and let
    the request's id in the ledger tell the one that was recorded but not yet removed.

    A file that is no request is moved to `inbox/rejected/`, with the reason beside it.
    """
    found = []
    for path in sorted((home / INBOX).glob("[!.]*")):
        if path.suffix != ".json":
            continue
        try:
            request = parse(_read(path))
            if path.name != f"{request.id}.json":
                raise ValueError(f"the file is named {path.name} but the request's id is {request.id}")
        except FileNotFoundError:  # withdrawn while we looked
            continue
        except (ValueError, OSError) as error:
            rejected = path.parent / "rejected"
            # Where it cannot be set aside (a full disk, something in the way) it stays, and is passed over each time.
            with contextlib.suppress(OSError):
                rejected.mkdir(mode=0o700, exist_ok=True)
                path.replace(rejected / path.name)
                (rejected / f"{path.name}.reason").write_text(f"{error}\n", encoding="utf-8")
        else:
            found.append((path, request))
    return found


def done(path: Path) -> None:
    """Remove a taken request. It may come back after a power cut; its id in the ledger tells that it was done."""
    path.unlink(missing_ok=True)


def _failure(request_id: str | None, code: str, message: str, advice: str) -> Json:
    return {"id": request_id, "ok": False, "error": {"code": code, "message": message, "advice": advice}}


@contextlib.contextmanager
def address_of(home: Path, name: str = SOCKET) -> Iterator[str]:
    """A path to the socket that fits into a socket address, however deep the home is."""
    path = str(home / name)
    if len(os.fsencode(path)) <= _SUN_PATH_MAX:
        yield path
    elif sys.platform.startswith("linux"):
        folder = os.open(home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{folder}/{name}"
        finally:
            os.close(folder)
    else:
        raise OSError(
            errno.ENAMETOOLONG,
            f"the path has {len(os.fsencode(path))} bytes, a socket's may have {_SUN_PATH_MAX} on this system: "
            "move the home to a shorter path",
        )


def listen(home: Path, name: str = SOCKET) -> socket.socket:
    """A listening socket of mode 0600 in the home. AlreadyRunning if somebody listens there."""
    path = home / name
    folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Two daemons that both find a stale socket: the second would remove the one that the first has just made.
        fcntl.flock(folder, fcntl.LOCK_EX)
        with address_of(home, name) as address:
            _remove_stale(path, address)
            earlier = os.umask(0o177)  # the mode is 0600 from birth; a chmod after bind would come too late
            try:
                listener.bind(address)
            finally:
                os.umask(earlier)
        listener.listen(CONNECTIONS_MAX)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(folder)
    return listener


def _remove_stale(path: Path, address: str) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "is in the way of our socket: move it away", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address)
        except ConnectionRefusedError:  # its maker is dead; of any other answer somebody may be the author
            path.unlink()
            return
        except BlockingIOError:  # somebody listens, and is busy
            pass
    what, see = ("a daemon", "hermesd status") if path.name == SOCKET else ("a gateway", "hermesd engines list")
    raise AlreadyRunning(f"{what} listens on {path} already. See `{see}`; stop it before starting another.")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _peer_uid(peer: socket.socket) -> int:
    if sys.platform.startswith("linux"):
        _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(uid)
    # struct xucred of the BSDs and macOS begins with a version and the user; 0 is SOL_LOCAL, 1 LOCAL_PEERCRED.
    _, uid = struct.unpack_from("2I", peer.getsockopt(0, 1, 76))
    return int(uid)


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)  # `open` refuses a folder, and leaves it open.
        raise ValueError("it is not a regular file")
    with open(fd, "rb") as file:
        if status.st_uid not in (os.geteuid(), 0):
            raise ValueError(f"it belongs to user {status.st_uid}, who may not command this daemon")
        return file.read(REQUEST_BYTES_MAX + 1)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
