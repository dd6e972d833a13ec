"""The loop itself says that it lives, to the service manager and in a file: one that hangs goes silent, though its
process and its other threads live on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_shell import ENVIRONMENT, ROOT

from daemon import heartbeat
from daemon.heartbeat import Heart
from daemon.system import SystemClock
from daemon.workers import identity

BOOT_ID = SystemClock().boot_id
INTERVAL_S = 0.2
DAEMON = """
import signal, sys, time
from pathlib import Path
from daemon.home import Home
from daemon.serve import Daemon
home = Home(Path(sys.argv[1]))
home.make()
daemon = Daemon(home)
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(600))  # the thread of the loop, and no other, hangs
daemon.run()
"""


class Manager:
    """A service manager that grants a watchdog of twice the interval, and listens."""

    def __init__(self, home: Path, socket_path: Path) -> None:
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.door.bind(str(socket_path))
        self.door.settimeout(30)
        watchdog = {"NOTIFY_SOCKET": str(socket_path), "WATCHDOG_USEC": str(int(INTERVAL_S * 2_000_000))}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DAEMON, str(home)], cwd=ROOT, env=ENVIRONMENT | watchdog, stderr=subprocess.PIPE
        )

    def hear(self) -> str:
        return self.door.recv(1000).decode()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "home", tmp_path / "notify")
    yield manager
    manager.process.kill()
    manager.process.communicate()
    manager.door.close()


def test_the_loop_says_that_it_is_ready_that_it_lives_and_that_it_stops(manager: Manager, tmp_path: Path) -> None:
    assert [manager.hear() for _ in range(4)] == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]
    beat = heartbeat.read(tmp_path / "home")
    assert beat is not None
    assert beat.pid == manager.process.pid
    assert beat.alive(BOOT_ID)
    manager.process.terminate()
    while (said := manager.hear()) == "WATCHDOG=1":
        pass
    assert said == "STOPPING=1"
    assert manager.process.wait(30) == 0
    assert heartbeat.read(tmp_path / "home") is None


def test_a_loop_that_hangs_feeds_the_watchdog_no_more_though_its_process_lives(manager: Manager) -> None:
    assert [manager.hear() for _ in range(3)] == ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]
    manager.process.send_signal(signal.SIGUSR1)
    manager.door.settimeout(INTERVAL_S * 5)
    in_flight = 0
    with contextlib.suppress(TimeoutError):
        while manager.hear() and in_flight < 5:
            in_flight += 1
    assert in_flight < 5
    assert manager.process.poll() is None


def test_a_busy_loop_writes_no_more_than_an_idle_one(tmp_path: Path) -> None:
    heart = Heart(tmp_path, os.getpid(), identity.start_time(os.getpid()) or 0, BOOT_ID)
    heart.beat()
    data, written = (tmp_path / "heartbeat").read_bytes(), (tmp_path / "heartbeat").stat()
    for _ in range(1000):
        heart.beat()
    assert (tmp_path / "heartbeat").read_bytes() == data
    assert written.st_size == 256
    assert written.st_mode & 0o777 == 0o600


def test_a_heartbeat_names_a_process_and_not_only_a_number(tmp_path: Path) -> None:
    Heart(tmp_path, os.getpid(), (identity.start_time(os.getpid()) or 0) + 1, BOOT_ID).beat()
    beat = heartbeat.read(tmp_path)
    assert beat is not None
    assert not beat.alive(BOOT_ID)
    Heart(tmp_path, os.getpid(), identity.start_time(os.getpid()) or 0, BOOT_ID).beat()
    beat = heartbeat.read(tmp_path)
    assert beat is not None
    assert beat.alive(BOOT_ID)
    assert not beat.alive("another boot")
    assert beat.age_ms() < 60_000


def test_without_room_or_permission_the_work_goes_on(tmp_path: Path) -> None:
    (tmp_path / "heartbeat").mkdir()
    heart = Heart(tmp_path, 1, 1, BOOT_ID)
    heart.beat()
    (tmp_path / "heartbeat").rmdir()
    heart._next_ns = 0
    heart.beat()
    assert heartbeat.read(tmp_path) is not None, "it has gone on, and tells so once it can"


def test_one_that_is_made_and_not_written_yet_is_none(tmp_path: Path) -> None:
    (tmp_path / "heartbeat").touch()
    assert heartbeat.read(tmp_path) is None


def test_a_file_that_is_no_heartbeat_is_told(tmp_path: Path) -> None:
    for text in ("?", "{}", "[1]", '{"pid": 1}'):
        (tmp_path / "heartbeat").write_text(text)
        with pytest.raises(ValueError, match="is no heartbeat"):
            heartbeat.read(tmp_path)
