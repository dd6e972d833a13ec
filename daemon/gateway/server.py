"""The gateway as a process: sockets, uvicorn, the pool behind them, from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import secrets
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from daemon.control import listen
from daemon.gateway import log
from daemon.gateway.answer import Desk
from daemon.gateway.app import LOCAL, Application
from daemon.gateway.call import WRITES, Writes
from daemon.gateway.kept import Kept
from daemon.gateway.models import Catalogue, has_cuda
from daemon.gateway.refusal import Refusal
from daemon.gateway.runtime import Runtime
from daemon.gateway.settings import GatewaySettings
from daemon.gateway.stream import Streams
from daemon.home import Home, HomeError
from daemon.inference.failures import PoolError
from daemon.inference.pool import EnginePool
from daemon.inference.spool import Spool
from daemon.inference.views import Fact
from daemon.workers import identity

Json = Any

SOCKET = "gateway.sock"
TOKEN = "gateway.token"
FACTS = "gateway.json"

HEAD_S = 10.0
"""A connection has so long to bring a request's head; then it is closed."""
HEAD_BYTES_MAX = 64 << 10
CONNECTIONS_MAX = 4096
DRAIN_S = 10.0
"""On stopping, answers in progress have so long."""
EXPIRE_EVERY_S = 3600.0
"""So often it is looked whether kept texts are to go."""


class Connection(HttpToolsProtocol):
    """uvicorn's connection, which waits for ever for a request's head, however long, and takes any number of clients;
    this one does not. Over the Unix socket nobody is asked for a token: its mode has let in its owner alone."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        sock, writes = transport.get_extra_info("socket"), Writes(transport)
        local = sock is not None and sock.family == socket.AF_UNIX
        self.app_state = {**self.app_state, LOCAL: local, WRITES: writes}
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        super().connection_made(cast(asyncio.Transport, writes))
        # One event of a stream must not wait for the acknowledgement of the one before.
        if sock is not None and sock.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > CONNECTIONS_MAX:
            transport.write(_FULL)
            transport.close()
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._idle:
            self._await_head()
            data = _without_upgrade(data)
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._have_head()
        elif self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self.send_400_response("The head of this request is too long.")

    def on_response_complete(self) -> None:
        before = self.cycle
        super().on_response_complete()
        if self.cycle is not before:
            self._have_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._have_head()
        super().connection_lost(exc)

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = asyncio.get_running_loop().call_later(HEAD_S, self._too_late)

    def _have_head(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_late(self) -> None:
        self._head_timer = None
        if self._idle:
            self.transport.abort()


_UPGRADE = re.compile(rb"(\r\n)upgrade(?=[ \t]*:)", re.IGNORECASE)


def _without_upgrade(data: bytes) -> bytes:
    """The wish to speak another protocol is passed over, as it may be. httptools would take the request's body for the
    beginning of that protocol; Java's client wishes for HTTP/2 by itself."""
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[:end]
    return _UPGRADE.sub(rb"\1x-grade", head) + data[len(head) :] if _UPGRADE.search(head) else data


_FULL_BODY = orjson.dumps(
    Refusal(503, "too many connections.", kind="service_unavailable", code="connections").json("none")
)
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n" % len(_FULL_BODY)
) + _FULL_BODY


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would end the process by the same signal when all is served, before the engines are let go."""
        yield

    def asked_to_stop(self) -> None:
        """Once: let answers end. Twice: do not."""
        self.force_exit = self.should_exit
        self.should_exit = True


class Gateway:
    """One home's gateway, in the event loop of its process."""

    def __init__(self, home: Home, settings: GatewaySettings) -> None:
        self.home, self.settings = home, settings
        self.urls: list[str] = []
        self._server: _Server | None = None

    def stop(self) -> None:
        """Let answers in progress end, then come back from `run`. A second time: do not wait for them."""
        if self._server is not None:
            self._server.asked_to_stop()

    def make_pool(self, folder: Path, record: Callable[[Fact], None]) -> EnginePool:
        limits = self.settings.engines.limits()
        return EnginePool(folder, limits, record=record, hermetic=self.settings.hermetic)

    async def run(self, ready: Callable[[Gateway], None]) -> None:
        """Serve until SIGTERM or SIGINT. AlreadyRunning, HomeError, OSError."""
        home, settings = self.home, self.settings
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        enough = 2 * CONNECTIONS_MAX if most == resource.RLIM_INFINITY else min(most, 2 * CONNECTIONS_MAX)
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, most))
        sockets = [listen(home.path, SOCKET)]
        try:
            token = token_of(home.path)
            if settings.listens is not None:
                sockets.append(_tcp(*settings.listens))
                host, port = sockets[-1].getsockname()[:2]
                self.urls.append(f"http://{f'[{host}]' if ':' in host else host}:{port}")
            named = {name: str(path) for name, path in home.settings().models.items()}
            catalogue = Catalogue(home.path, named, settings, cuda=has_cuda())
            folder = home.path / "engines"
            spool = Spool(home.path, folder)
            pool = self.make_pool(folder, spool.take)
            kept = Kept(home.path / "generations", settings.keep_days)
            streams = Streams(settings.resume_s)
            desk = Desk(pool, streams, kept)
            expiring = asyncio.create_task(_expire(kept))
            await spool.start()
            await pool.start()
            try:
                for spec in catalogue.specs():
                    pool.register(spec)
                await self._serve(Application(desk, Runtime(catalogue), token), desk, sockets, ready)
            finally:
                expiring.cancel()
                await streams.close()
                await pool.close()
                await spool.close("asked to stop")
                kept.close()
        finally:
            for each in sockets:
                each.close()

    async def _serve(
        self, app: Application, desk: Desk, sockets: list[socket.socket], ready: Callable[[Gateway], None]
    ) -> None:
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(DRAIN_S),
        )
        server = self._server = _Server(config)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self.stop)
        path = self.home.path / SOCKET
        own = path.lstat().st_ino
        preload: asyncio.Task[None] | None = None

        async def look_up() -> None:
            while not server.started:
                await asyncio.sleep(0.005)
            self._tell_facts()
            ready(self)

        telling = asyncio.create_task(look_up())
        if self.settings.model_name:
            preload = asyncio.create_task(_preload(desk, self.settings.model_name))
        try:
            await server.serve(sockets=sockets)
        finally:
            for task in (telling, preload):
                if task is not None:
                    task.cancel()
            with contextlib.suppress(OSError):
                if path.lstat().st_ino == own:  # never the socket of who came after us
                    path.unlink()
                    (self.home.path / FACTS).unlink(missing_ok=True)

    def _tell_facts(self) -> None:
        """Who we are, for the daemon to find us again."""
        pid = os.getpid()
        facts = {"pid": pid, "start": identity.start_time(pid), "socket": SOCKET, "urls": self.urls}
        target, new = self.home.path / FACTS, self.home.path / f".{FACTS}.new"
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(orjson.dumps(facts) + b"\n")
        new.replace(target)


async def _expire(kept: Kept) -> None:
    """Texts go when their time is over, also where nobody asks for anything any more, or none are kept from now on."""
    while True:
        try:
            kept.expire(datetime.now(UTC).date().isoformat())
        except OSError as error:
            log.say("kept texts not removed", "warning", why=error.strerror)
        await asyncio.sleep(EXPIRE_EVERY_S)


async def _preload(desk: Desk, name: str) -> None:
    began_s = time.monotonic()
    try:
        await desk.pool.load(name)
        log.say("preloaded", model=name, took_ms=round((time.monotonic() - began_s) * 1000))
    except PoolError as error:
        log.say("not preloaded", "warning", model=name, why=str(error)[:500])


def token_of(home: Path) -> str:
    """The token of gateway.token, made if it is not there. HomeError if others may read it."""
    path = home / TOKEN
    with contextlib.suppress(FileExistsError):
        new = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(new, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as opened:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
            raise HomeError(f"others may read {path}: delete it (a new one is made), or chmod 600 '{path}'.")
        token = opened.read(1024).decode("ascii", "replace").strip()
    if len(token) < 16:
        raise HomeError(f"{path} holds no token: delete it, and a new one is made.")
    return token


def _tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        words = f"cannot listen on {host}:{port}: {error.strerror}. Choose another port in gateway.tcp."
        raise HomeError(words) from error
    return listener
