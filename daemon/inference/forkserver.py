"""A process that has imported the model libraries, once, and makes engine processes by forking.

Nearly all of a load is importing: five seconds of a processor where reading the weights takes a fraction of one. A fork
begins with the imports done and shares their memory. The server has one thread, and does nothing but fork, wait and
tell; where it cannot be had (another system, a library that starts threads) and for engines on a GPU, whose driver a
fork may not use, engines are started afresh. It dies with the pool, and its engines with it.

To the server, one JSON object a packet: {"token", "folder", "env", "memory_max"}, with the engine's channel beside it.
To the pool: {"ready": bool}, {"token", "pid"} (-1: it could not), {"ended": pid, "status": as waitpid gives it}.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from daemon.ports import SpawnError
from daemon.workers.child import BOOT
from daemon.workers.command import launch
from daemon.workers.exits import Exit

POSSIBLE = sys.platform == "linux"
RUNTIMES = ("transformers", "exact")
"""Those whose imports are worth it."""

_ROOT = str(Path(__file__).resolve().parents[2])
_PRELOADED = (
    "torch", "daemon.inference.process", "daemon.inference.runtimes.transformers", "daemon.inference.runtimes.exact",
    "transformers.models.llama.modeling_llama",
)  # fmt: skip
_LAZY = ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM", "GenerationConfig")
_PACKET = 1 << 16
_READY_S = 300.0

Json = Any


class ForkServer:
    """The pool's side. SpawnError from `start` and `fork`."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self._socket: socket.socket | None = None
        self._exit: Exit | None = None
        self._children: dict[int, Callable[[int], None]] = {}
        self._early: dict[int, int] = {}  # ended before `fork` had said who they are
        self._forks: dict[str, asyncio.Future[int]] = {}
        self._ready: asyncio.Future[bool] | None = None
        self._number = 0
        self.pid = 0

    @property
    def alive(self) -> bool:
        return self._socket is not None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel = os.dup(theirs.fileno())
        theirs.close()
        argv = [sys.executable, "-P", "-c", BOOT, _ROOT, "daemon.inference.forkserver", "3"]
        log = str(self._folder / "forkserver.log")
        try:
            self.pid = launch(sys.executable, argv, self._environment, stdout=log, stderr=log, channel=channel)
        except SpawnError:
            ours.close()
            raise
        finally:
            os.close(channel)
        ours.setblocking(False)
        self._socket, self._ready, self._exit = ours, loop.create_future(), Exit(self.pid)
        loop.add_reader(ours.fileno(), self._heard)
        self._send({"parent": os.getpid()})
        try:
            fit = await asyncio.wait_for(self._ready, _READY_S)
        except TimeoutError:
            fit = False
        if not fit:
            self.close()
            raise SpawnError(f"no fork server can be had here; what it printed is in {log}")

    async def fork(
        self, folder: Path, channel: int, environment: Mapping[str, str], memory_max: int, ended: Callable[[int], None]
    ) -> int:
        """The pid of a new engine process in `folder`; `ended(status)` follows once, when it is gone."""
        if self._socket is None:
            raise SpawnError("the fork server is gone")
        self._number += 1
        token = str(self._number)
        told = self._forks[token] = asyncio.get_running_loop().create_future()
        order = {"token": token, "folder": str(folder), "env": dict(environment), "memory_max": memory_max}
        self._send(order, channel)
        pid: int = await told
        if pid < 0:
            raise SpawnError("the fork server cannot fork: too many processes, or too little memory")
        self._children[pid] = ended
        if pid in self._early:
            asyncio.get_running_loop().call_soon(self._over, pid, self._early.pop(pid))
        return pid

    def close(self) -> None:
        """Its engines are to have ended; what is left ends with it."""
        if self._socket is None or self._exit is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()
        self._socket = None
        with contextlib.suppress(ProcessLookupError):
            self._exit.send(signal.SIGKILL)
        self._exit.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        for told in self._forks.values():
            if not told.done():
                told.set_exception(SpawnError("the fork server is gone"))
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(False)
        for pid in list(self._children):
            self._over(pid, signal.SIGKILL)

    def _send(self, message: Json, *channels: int) -> None:
        assert self._socket is not None
        try:
            socket.send_fds(self._socket, [json.dumps(message).encode()], list(channels))
        except OSError as error:
            raise SpawnError(f"the fork server does not listen: {error.strerror or error}") from error

    def _heard(self) -> None:
        while self._socket is not None:
            try:
                data = self._socket.recv(_PACKET)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            self._heed(json.loads(data))

    def _heed(self, message: Json) -> None:
        if "ready" in message:
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(message["ready"])
        elif "token" in message:
            told = self._forks.pop(message["token"])
            if not told.done():
                told.set_result(message["pid"])
        elif message["ended"] in self._children:
            self._over(message["ended"], message["status"])
        else:
            self._early[message["ended"]] = message["status"]

    def _over(self, pid: int, status: int) -> None:
        self._children.pop(pid)(status)


def main(channel: int) -> None:
    """The server's process."""
    from daemon.inference.process import tie_to

    os.set_inheritable(channel, False)
    wire = socket.socket(fileno=channel)
    tie_to(json.loads(wire.recv(_PACKET))["parent"])
    # The algebra that numpy brings starts a thread for each core as it is imported, and no model uses it.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        for name in _PRELOADED:
            importlib.import_module(name)
        transformers = importlib.import_module("transformers")
        for name in _LAZY:
            getattr(transformers, name)
        if not (fit := (threads := len(os.listdir("/proc/self/task"))) == 1):
            print(f"{threads} threads run once the libraries are imported, and a fork has one alone", file=sys.stderr)
    except Exception:
        traceback.print_exc()
        fit = False
    wire.send(json.dumps({"ready": fit}).encode())
    if fit:
        gc.collect()
        gc.freeze()  # What was imported stays shared: no collection touches it.
        _serve(wire)
    os._exit(0)


def _serve(wire: socket.socket) -> None:
    woken, wakes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([wire.fileno(), woken], [], [])
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)
            _bury(wire)
        if wire.fileno() not in ready:
            continue
        data, channels, _, _ = socket.recv_fds(wire, _PACKET, 1)
        if not data:
            return
        order = json.loads(data)
        try:
            pid = os.fork()
        except OSError as error:  # No room for one more; the others go on.
            print(f"cannot fork: {error.strerror}", file=sys.stderr)
            pid = -1
        if pid == 0:
            _become(order, channels[0], [wire.fileno(), woken, wakes])
        for each in channels:
            os.close(each)
        wire.send(json.dumps({"token": order["token"], "pid": pid}).encode())


def _bury(wire: socket.socket) -> None:
    """Tell of those that have ended, and end what they have left."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:
            return
        if found is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(found.si_pid, signal.SIGKILL)  # Its number is its own until it is reaped.
        status = os.waitpid(found.si_pid, 0)[1]
        wire.send(json.dumps({"ended": found.si_pid, "status": status}).encode())


def _become(order: Json, channel: int, others: list[int]) -> None:
    """The engine, in its fork; never returns."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for each in others:
            os.close(each)
        log = os.open(f"{order['folder']}/engine.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        os.environ.clear()
        os.environ.update(order["env"])
        if order["memory_max"]:
            resource.setrlimit(resource.RLIMIT_DATA, (order["memory_max"], order["memory_max"]))
        importlib.import_module("daemon.inference.process").main(channel)
    except BaseException:
        traceback.print_exc()
    os._exit(70)
