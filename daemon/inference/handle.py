"""An engine process as the pool sees it: started, spoken to, watched, killed, reaped. Nothing here waits or decides."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from daemon.inference.forkserver import ForkServer
from daemon.inference.runtimes import Generation, Spec
from daemon.ports import SpawnError
from daemon.workers.child import BOOT
from daemon.workers.command import launch
from daemon.workers.exits import Exit
from daemon.workers.wire import BUFFER_BYTES, Lines, Message, line_of

_ROOT = str(Path(__file__).resolve().parents[2])
_PASSED = (
    "PATH", "LANG", "LC_ALL", "TZ", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip
"""What an engine gets of our environment; no secret is among it."""
_LINGER_S = 2.0
"""How long what a dead engine had said may still be on its way."""


class Handle(asyncio.Protocol):
    """One engine process. `heard(message)` for each of its words, then `ended(code, signal)` once, when all its words
    are heard and it is reaped."""

    def __init__(
        self, folder: Path, heard: Callable[[Message], None], ended: Callable[[int | None, int | None], None]
    ) -> None:
        self.folder, self._heard, self._ended = folder, heard, ended
        self.pid = 0
        self.oom_kills = 0
        self._lines = Lines(_read)
        self._transport: asyncio.Transport | None = None
        self._exit: Exit | None = None
        self._silent = False
        self._status: int | None = None
        self._server: ForkServer | None = None
        self._unsaid: list[Message] = []

    async def start(
        self, spec: Spec, *, hermetic: bool, beat_ms: int, memory_max: int = 0, server: ForkServer | None = None
    ) -> None:
        """Start the process, by the fork server if there is one, and tell it what to load. SpawnError if there can be
        none."""
        scratch = self.folder / "scratch"
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            scratch.mkdir(mode=0o700, parents=True)
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise SpawnError(
                f"cannot prepare an engine in {self.folder}: {error.strerror or error}; make room, or raise the limit"
                " of open files"
            ) from error
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        channel = os.dup(theirs.fileno())  # Above 3, or giving it away as 3 would be giving it to itself.
        theirs.close()
        loop = asyncio.get_running_loop()
        self.oom_kills = oom_kills()
        try:
            if server is not None:
                environment = environment_of(scratch)
                self.pid = await server.fork(self.folder, channel, environment, memory_max, self._reaped)
                self._server = server
                with contextlib.suppress(ProcessLookupError):  # Over already: the server tells.
                    self._exit = Exit(self.pid)
            else:
                self._launch(channel, scratch, memory_max)
        except (SpawnError, OSError):
            ours.close()
            raise
        finally:
            os.close(channel)
        first = {
            "op": "load", "spec": spec.as_json(), "scratch": str(scratch), "beat_ms": beat_ms, "hermetic": hermetic,
            "parent": os.getpid() if server is None else server.pid,
        }  # fmt: skip
        self._unsaid.insert(0, first)
        await loop.create_connection(lambda: self, sock=ours)

    def _launch(self, channel: int, scratch: Path, memory_max: int) -> None:
        limits = [f"{name}={memory_max}" for name in ("RLIMIT_DATA",) if memory_max and hasattr(resource, name)]
        argv = [sys.executable, "-P", "-c", BOOT, _ROOT, "daemon.inference.process", "3", *limits]
        log = str(self.folder / "engine.log")
        self.pid = launch(sys.executable, argv, environment_of(scratch), stdout=log, stderr=log, channel=channel)
        self._exit = Exit(self.pid)
        asyncio.get_running_loop().add_reader(self._exit.fileno(), self._exited)

    def submit(self, request: Generation) -> None:
        self.tell({"op": "submit", "request": request.as_json()})

    def cancel(self, id: str) -> None:
        self.tell({"op": "cancel", "id": id})

    def tell(self, message: Message) -> None:
        """To one that is gone it is said in vain; its end is heard soon."""
        if self._transport is None:
            self._unsaid.append(message)
        elif not self._transport.is_closing():
            self._transport.write(_written(message))

    def stop(self) -> None:
        """It is to end by itself: there is no more to say to it."""
        if self._transport is not None:
            self._transport.close()
        else:
            self.kill()

    def kill(self) -> None:
        """It, and whatever it started."""
        if self._status is not None or not self.pid:
            return
        with contextlib.suppress(ProcessLookupError):
            if self._server is None:
                os.killpg(self.pid, signal.SIGKILL)
            elif self._exit is not None:
                self._exit.send(signal.SIGKILL)  # The server ends the rest before it reaps.

    def forget(self) -> None:
        """Delete its folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        for message in self._unsaid:
            transport.write(_written(message))
        self._unsaid.clear()

    def data_received(self, data: bytes) -> None:
        for message in self._lines.feed(data):
            self._heard(message)

    def connection_lost(self, error: Exception | None) -> None:
        self._silent = True
        self._end()

    def _exited(self) -> None:
        assert self._exit is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._exit.fileno())
        self._exit.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it may have started
        try:
            self._reaped(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:
            self._reaped(0)

    def _reaped(self, status: int) -> None:
        self._status = status
        if self._server is not None and self._exit is not None:
            self._exit.close()
            self._exit = None
        # What it said last may still be unread: its stream ends behind that.
        if self._transport is not None:
            asyncio.get_running_loop().call_later(_LINGER_S, self._transport.close)
        self._end()

    def _end(self) -> None:
        if self._status is None or not self._silent:
            return
        status, self._silent = self._status, False
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        self._ended(code, os.WTERMSIG(status) if os.WIFSIGNALED(status) else None)


def _written(message: Message) -> bytes:
    """As `line_of` writes it, and quicker where it can be: not text that is no Unicode."""
    try:
        return orjson.dumps(message) + b"\n"
    except orjson.JSONEncodeError:
        return line_of(message)


def _read(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return json.loads(line)


def environment_of(scratch: Path) -> dict[str, str]:
    """The clean environment of an engine."""
    own: Mapping[str, Any] = {name: os.environ[name] for name in _PASSED if name in os.environ}
    # The devices are numbered as their driver's program numbers them.
    own = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **own}
    # Whatever a library caches, it caches here, and nothing comes from a cache of the user's.
    return {"PATH": os.defpath, "LANG": "C.UTF-8", **own, "HOME": str(scratch), "TMPDIR": str(scratch)}


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory; 0 where it does not say."""
    for path, word in (("/proc/vmstat", "oom_kill "), ("/sys/fs/cgroup/memory.events", "oom_kill ")):
        try:
            with open(path, encoding="ascii") as file:
                for line in file:
                    if line.startswith(word):
                        return int(line.split()[1])
        except (OSError, ValueError):
            continue
    return 0
