"""The real daemon as a process of its own, and what the system says of it."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Any

import psutil
import yaml

from daemon.control import address_of, new_request
from daemon.home import Home
from daemon.system import OsDisk
from ledger.errors import Corrupt
from ledger.reader import Tail
from ledger.record import Record

Json = Any

WEEKLY = {"every": "7d"}
_WEEK = timedelta(days=7)
_CONNECTIONS = 32


class Stuck(Exception):
    """The daemon did not do in time what is measured."""


def make_home(folder: Path, jobs: list[dict[str, Json]], policy: Mapping[str, int] | None = None) -> Path:
    """A home with these jobs in one file, and this override of the scheduling policy."""
    home = Home(folder)
    home.make()
    (home.jobs / "jobs.yaml").write_text(yaml.safe_dump(jobs))
    if policy:
        (home.policies / "scheduling.yaml").write_text(yaml.safe_dump(dict(policy)))
    return folder


class DaemonProcess:
    """`hermesd run`, from ready to stopped."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._log = open(home / "bench.log", "wb")  # noqa: SIM115  # closed in `__exit__`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "daemon.cli", "--home", str(home), "run"],
            cwd=Path(__file__).resolve().parents[2], stdout=subprocess.PIPE, stderr=self._log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self.pid = self._process.pid

    def __enter__(self) -> DaemonProcess:
        assert self._process.stdout is not None
        if b"is ready" not in self._process.stdout.readline():
            self.__exit__(None, None, None)
            raise Stuck(f"the daemon in {self.home} did not start: {(self.home / 'bench.log').read_text()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def kill(self) -> None:
        """SIGKILL; nothing of it runs once this returns."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """It notices nothing any more."""
        self._process.send_signal(signal.SIGSTOP)

    def ask(self, lines: Sequence[bytes]) -> None:
        """Make these requests, over several connections at once; returns when the last one is answered, which is when
        it is durable."""
        requests, count = iter(lines), len(lines)
        selector = selectors.DefaultSelector()
        asked = answered = 0
        for _ in range(min(_CONNECTIONS, count)):
            peer = socket.socket(socket.AF_UNIX)
            with address_of(self.home) as address:
                peer.connect(address)
            peer.sendall(next(requests))
            selector.register(peer, selectors.EVENT_READ)
            asked += 1
        while answered < count:
            ready = selector.select(60)
            if not ready:
                raise Stuck(f"the daemon in {self.home} does not answer: {(self.home / 'bench.log').read_text()}")
            for key, _ in ready:
                found = key.fileobj
                assert isinstance(found, socket.socket)
                if b'"ok":true' not in found.recv(65_536):
                    raise Stuck(f"the daemon in {self.home} refuses a request")
                answered += 1
                if asked < count:
                    found.sendall(next(requests))
                    asked += 1
        for key in list(selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        selector.close()

    def cpu_s(self) -> float:
        """CPU time of the process itself, without its children. In nanoseconds on Linux, in ticks elsewhere."""
        with suppress(OSError):
            tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
            return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
        used = psutil.Process(self.pid).cpu_times()
        return float(used.user + used.system)

    def threads(self) -> int:
        return int(psutil.Process(self.pid).num_threads())

    def resident_bytes(self) -> tuple[int, int | None]:
        """Resident, and its proportional share of it where the system tells."""
        resident = int(psutil.Process(self.pid).memory_info().rss)
        with suppress(OSError):
            for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    return resident, int(line.split()[1]) * 1024
        return resident, None


def starts_of(jobs: list[dict[str, Json]], count: int) -> list[bytes]:
    """Requests for so many runs of these jobs in turn, one for each. They can be made once."""
    return [new_request("start", {"job": job["name"]}).line() for job in islice(cycle(jobs), count)]


def slots_of(jobs: list[dict[str, Json]], count: int, turn: int) -> list[bytes]:
    """Requests for the runs of so many slots of these jobs, whose schedule is `WEEKLY`: one for each job. Each turn has
    slots of its own."""
    requests, left, each = [], count, -(-count // len(jobs))
    for job in jobs:
        slots = min(each, left)
        left -= slots
        first = datetime.fromtimestamp(0, UTC) + _WEEK * (600 + turn * each)
        bounds = {"from": first.isoformat(), "to": (first + _WEEK * slots).isoformat()}
        args = {"job": job["name"], **bounds, "current_spec": True, "overlap": "allow_all"}
        requests += [new_request("backfill", args).line()] if slots else []
    return requests


class Watched:
    """The ledger of a home, followed while its daemon writes it."""

    def __init__(self, home: Path) -> None:
        self._tail = Tail(OsDisk(home))
        self._folder = home / "ledger"
        self._counted = "", 0

    def until(self, type_: str, within_s: float = 30) -> list[Record]:
        """The records up to the next poll that has one of this type."""
        found: list[Record] = []
        give_up_s = monotonic() + within_s
        while not any(record.type == type_ for record in found):
            if monotonic() > give_up_s:
                raise Stuck(f"no {type_} within {within_s:g} s")
            with suppress(Corrupt):
                found += self._tail.poll()
            selectors.DefaultSelector().select(0.005)
        return found

    def until_finished(self, count: int, within_s: float = 120) -> list[Record]:
        """The records up to the one with which so many runs have ended."""
        self.wait(count, within_s)
        return self.records()

    def wait(self, count: int, within_s: float = 120) -> None:
        """Return once so many more runs have ended. They are only counted: to read and prove every record meanwhile
        would take processor time from what is measured."""
        ended, give_up_s = 0, monotonic() + within_s
        while (ended := ended + self._ends()) < count:
            if monotonic() > give_up_s:
                raise Stuck(f"only {ended} of {count} runs ended within {within_s:g} s")
            sleep(0.005)

    def records(self) -> list[Record]:
        """Those that came since they were last asked for."""
        while True:
            with suppress(Corrupt):
                return self._tail.poll()

    def _ends(self) -> int:
        """How many runs have ended since the last call, by the bare bytes of whole lines."""
        ends, (last, begin) = 0, self._counted
        for name in sorted(name for name in os.listdir(self._folder) if name.endswith(".jsonl") and name >= last):
            if name != last or (self._folder / name).stat().st_size != begin:
                with open(self._folder / name, "rb") as file:
                    begin = file.seek(begin if name == last else 0)
                    lines = file.read()
                end = lines.rfind(b"\n") + 1
                ends += lines.count(b'"type":"run.finished"', 0, end)
                self._counted = name, begin + end
        return ends


def spawned_at_once(argv: list[str], count: int, concurrency: int) -> Iterator[int]:
    """posix_spawn with so many alive at any time; the pid of each one that has ended."""
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    begun = running = 0
    while begun < count or running:
        while begun < count and running < concurrency:
            os.posix_spawn(argv[0], argv, {"PATH": "/usr/bin:/bin"}, file_actions=null)
            begun += 1
            running += 1
        pid, _ = os.wait()
        running -= 1
        yield pid
