"""What the daemon and a process that performs attempts say to each other: one JSON object a line, over a socketpair,
UTF-8, no pickle. Standard library only.

The process is a warm worker (`daemon.workers.child` on its side, `daemon.workers.warm` on the daemon's; an engine only
gives `Worker.serve` its `perform`), or the keeper of commands (`daemon.workers.keeper` and `daemon.workers.keeping`).

From the daemon:

    {"type": "perform", "run", "attempt", "folder", ...}
        Perform one attempt. For a worker: `place`, the folder for its own files ("" for none); `task`, the fields of
        the PythonTask or the InferenceTask of `daemon.ports` by their own names; `env`, what this attempt adds to the
        worker's environment (HERMESD_RUN, HERMESD_ATTEMPT, HERMESD_FOLDER); `limits`, which may hold `cpu_seconds`,
        counted from here, and `output`. For the keeper: `argv`, `cwd`, `stdin`, `env` (all of it) and `limits`; perhaps
        `spare`, a folder that `Journal.move` can use, and that is the keeper's from here on.
    {"type": "perform", "run", "attempt", "folder", "file", "env"}
        The same, too long for a line: the whole message is in the file at path `file`, but for the variables that hold
        secrets: they stand in `env` here.

Orders may be sent ahead. A worker performs one at a time, in the order received; the keeper begins each at once. The
end of the stream means that the daemon wants no more, or is dead: what is claimed is finished, the rest stays unclaimed
for whoever comes, and then the process exits.

To the daemon:

    {"type": "ready"}
        It is up. A process that ends before this could not start.
    {"type": "refused", "run", "attempt"}
        Somebody else has the claim; it does nothing with this attempt.
    {"type": "failed", "run", "attempt", "note"}
        No claim could be written, and nothing was begun.

of a worker:

    {"type": "claimed", "run", "attempt"}
        The claim is its own: from here on nobody else performs this attempt.
    {"type": "ended", "run", "attempt", "code", "cpu_ms", "rss_kib", "note", "outputs"}
        Over; result, status and output are in the folder. `rss_kib` is the worker's peak so far. `outputs`, if it
        printed nothing: what `Outputs.measure` would tell; else null. With `last`, it ends now.
    {"type": "facts", ...}
        What people may want to know of this worker (state, device, load_ms); merged into its view.

of the keeper:

    {"type": "began", "run", "attempt", "pid", "started"}
        The claim is its own, and the command's process runs.
    {"type": "ended", "run", "attempt", "code", "signal", "cpu_ms", "rss_kib", "note", "bare"}
        Over; status and output are in the folder, and what the command left behind is dead. Without "began", it could
        not begin. `bare`: it left nothing, and its folder can be another's once the end is recorded.

Files in the attempt's folder: `claim` (see `daemon.workers.claim`), `stdout.log` and `stderr.log` (only if something
was printed), `result.json` (a worker's, only with status 0).
"""

from __future__ import annotations

import fcntl
import json
import socket
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]

LINE_BYTES_MAX = 16_384
"""Longest order sent on the socket; a longer one goes by file."""
BUFFER_BYTES = 16 * LINE_BYTES_MAX
"""What a socket holds unread. Orders sent ahead must fit in, for the daemon never waits for anybody to read."""


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode  # `dumps` would make it anew for each line


def line_of(message: Message) -> bytes:
    """The message as one line. TypeError or ValueError if it is not JSON."""
    return _encode(message).encode() + b"\n"


def whole(order: Message) -> Message:
    """An order that went by file, as that says it; its environment came both ways. OSError or ValueError if it cannot
    be read."""
    if "file" not in order:
        return order
    with open(order["file"], "rb") as file:
        found: Message = json.load(file)
    found["env"] |= order["env"]
    return found


def _quickly() -> Callable[[bytes], Any]:
    """Reads JSON in a fifth of the time. Only the daemon, which has the package for it, asks for it."""
    from orjson import JSONDecodeError, loads

    def read(line: bytes) -> Any:
        try:
            return loads(line)
        except JSONDecodeError:  # It takes no half characters, which the name of a file may hold.
            return json.loads(line)

    return read


class Lines:
    """Bytes as they come from the stream, given back as whole messages."""

    def __init__(self, read: Callable[[bytes], Any] = json.loads, longest: int | None = None) -> None:
        self._rest, self._read, self._longest = b"", read, longest

    def feed(self, data: bytes) -> list[Message]:
        """Messages that `data` completes. ValueError if a line is not a JSON object, or grows past `longest`."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        if self._longest is not None and len(self._rest) > self._longest:
            raise ValueError(f"a line of more than {self._longest} bytes on the worker's line")
        messages: list[Message] = []
        for line in whole:
            message = self._read(line)
            if not isinstance(message, dict):
                raise ValueError(f"expected a JSON object on the worker's line, got {line[:80]!r}")
            messages.append(message)
        return messages


class Channel:
    """The daemon's end. It never waits: what does not fit in the buffer is kept until the next `send`."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._lines = Lines(_quickly(), BUFFER_BYTES)
        self._unsent = b""
        self.ended = False
        """The other side has no more to say."""

    @classmethod
    def pair(cls) -> tuple[Channel, int]:
        """Our end, and the descriptor to give away, which is the caller's to close. OSError if there are too many."""
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            ours.setblocking(False)
            # Above 3, or giving it away as 3 would be giving it to itself.
            return cls(ours), fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD_CLOEXEC, 10)

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes) -> None:
        """Send this after what is still unsent. That nobody listens any more is no error: its end is seen soon."""
        self._unsent += data
        if self._unsent:
            try:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            except BlockingIOError:
                pass
            except OSError:
                self._unsent = b""

    def receive(self) -> list[Message]:
        """Everything that was said."""
        messages: list[Message] = []
        while not self.ended:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.ended = True
                break
            messages += self._lines.feed(data)
            if len(data) < 1 << 16:
                break
        return messages

    def say_no_more(self) -> None:
        """Tell the other side that this was all."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        self._socket.close()
