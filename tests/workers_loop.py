"""A loop as small as can be around a real PosixSpawner, and small verbs for attempts."""

from __future__ import annotations

import os
import selectors
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from daemon.ports import Began, CommandTask, Ended, Order, PythonTask, Report
from daemon.workers.spawner import PosixSpawner
from daemon.workers.warm import Bounds

PATH = f"{Path(sys.executable).parent}:/usr/bin:/bin"
ROOT = Path(__file__).parent.parent


class Loop:
    def __init__(
        self, bounds: Bounds | None = None, engine: str = "daemon.inference.engine", python: str = sys.executable
    ) -> None:
        self.selector = selectors.DefaultSelector()
        self.reports: list[Report] = []
        self._children = _children()
        self.spawner = PosixSpawner(self._watch, self._unwatch, bounds=bounds, engine=engine, python=python)

    def _watch(self, descriptor: int, callback: Callable[[], None]) -> None:
        self.selector.register(descriptor, selectors.EVENT_READ, callback)

    def _unwatch(self, descriptor: int) -> None:
        self.selector.unregister(descriptor)

    def turn(self, wait_s: float = 1.0) -> None:
        for key, _ in self.selector.select(wait_s):
            key.data()
        self.reports += self.spawner.collect()

    def until(self, met: Callable[[], bool], within_s: float = 20.0) -> None:
        deadline = time.monotonic() + within_s
        self.turn(0)
        while not met():
            assert time.monotonic() < deadline, f"not within {within_s} s; reports so far: {self.reports}"
            self.turn(0.2)

    def ended(self, *orders: Order) -> list[Ended]:
        """Wait for the ends of these attempts, in this order."""
        keys = [(order.run, order.attempt) for order in orders]
        self.until(lambda: set(keys) <= {(end.run, end.attempt) for end in self.ends()})
        found = {(end.run, end.attempt): end for end in self.ends()}
        return [found[key] for key in keys]

    def ends(self) -> list[Ended]:
        return [report for report in self.reports if isinstance(report, Ended)]

    def began(self, order: Order) -> Began:
        """Wait for the attempt's beginning; the last one told holds."""

        def told() -> list[Began]:
            return [report for report in self.reports if isinstance(report, Began) and report.run == order.run]

        self.until(lambda: bool(told()))
        return told()[-1]

    def zombies(self) -> list[int]:
        """Children since this loop began that are dead and unreaped."""
        return [pid for pid in _children() - self._children if not lives(pid)]

    def close(self) -> None:
        self.spawner.close()
        assert not self.selector.get_map(), "a descriptor is still watched after close"
        self.selector.close()


def command(home: Path, run: str, *argv: str, env: Mapping[str, str] | None = None, stdin: str | None = None,
            limits: Mapping[str, int] | None = None, cwd: str | None = None) -> Order:  # fmt: skip
    folder = str(home / "runs" / run / "1")
    task = CommandTask(argv, cwd or str(home), stdin)
    return Order(run, 1, 1, folder, task, {"PATH": PATH, **(env or {})}, limits or {})


def shell(home: Path, run: str, text: str, **more: str) -> Order:
    return command(home, run, "/bin/sh", "-c", text, **more)  # type: ignore[arg-type]


def python(home: Path, run: str, call: str, limits: Mapping[str, int] | None = None, **kwargs: object) -> Order:
    folder = str(home / "runs" / run / "1")
    return Order(run, 1, 1, folder, PythonTask(call, kwargs, str(home)), {"PATH": PATH}, limits or {})


def text(order: Order, name: str) -> str:
    """What the attempt wrote there; what was never written to may be gone."""
    path = Path(order.folder) / name
    return path.read_text() if path.exists() else ""


def lives(pid: int) -> bool:
    """A zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _children() -> set[int]:
    own = os.getpid()
    return set(map(int, Path(f"/proc/{own}/task/{own}/children").read_text().split()))


def until_file(path: Path, within_s: float = 10.0) -> str:
    """Wait for another process to write a whole line, which is its way to say that it has got there."""
    deadline = time.monotonic() + within_s
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline, f"{path} was not written"
        os.sched_yield()
    return path.read_text()
