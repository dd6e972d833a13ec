"""A make-believe machine around the daemon: its clocks, its processes, its lease files. It outlives the daemon.

Processes claim their attempt once, as the real ones do by their claim file; they run on when the daemon is killed and
leave an exit status behind; a power cut ends them without one. A process may ignore SIGTERM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from daemon.ports import Began, Ended, Order, Report, SpawnError
from ledger.instant import Now
from policies.foreign import SeenLease
from simulations.disk import PowerCut

Key = tuple[str, int]


class SimClock:
    """Wall time and CLOCK_BOOTTIME, moved by the world alone. Every reading takes a little time, as reading does."""

    def __init__(self, wall_ms: int) -> None:
        self.wall_ns = wall_ms * 1_000_000
        self.boot_ns = 1_000_000_000
        self.boots = 1
        self.lived_ns = 0

    @property
    def boot_id(self) -> str:
        return f"boot-{self.boots}"

    def now(self) -> Now:
        self.advance_ns(1_000)
        return Now(self.wall_ns, self.boot_ns)

    def advance_ns(self, ns: int) -> None:
        self.wall_ns += ns
        self.boot_ns += ns
        self.lived_ns += ns


@dataclass(slots=True)
class Process:
    key: Key
    job: str
    pid: int
    started: int
    ends_at_ms: int  # CLOCK_BOOTTIME
    code: int
    stubborn: bool
    leases: tuple[str, ...]
    ended: Ended | None = None


@dataclass(slots=True)
class Host:
    """Everything of the machine that a killed daemon leaves as it is."""

    clock: SimClock
    chance: Random
    processes: dict[Key, Process] = field(default_factory=dict)
    begun: dict[Key, int] = field(default_factory=dict)
    """How often each attempt has really begun: never more than once."""
    foreign: dict[str, SeenLease] = field(default_factory=dict)
    lease_files: dict[str, tuple[str, int]] = field(default_factory=dict)
    deadly_in: int | None = None
    """After so many more of the daemon's acts it is killed in the middle of one."""
    next_pid: int = 1000
    trace: list[str] = field(default_factory=list)

    def act(self, what: str) -> None:
        self.trace.append(f"{self.clock.boot_ns // 1_000_000} {what}")
        if self.deadly_in is not None:
            self.deadly_in -= 1
            if self.deadly_in <= 0:
                self.deadly_in = None
                raise PowerCut

    def alive(self) -> list[Process]:
        return [process for process in self.processes.values() if process.ended is None]

    def pass_time(self) -> None:
        """End the processes whose time has come."""
        boot_ms = self.clock.boot_ns // 1_000_000
        for process in self.alive():
            if process.ends_at_ms <= boot_ms:
                process.ended = Ended(*process.key, process.code, None, cpu_ms=1, rss_kib=100)

    def lose_power(self) -> None:
        """Every process dies unseen; of those that had ended, the status file is there or not."""
        for process in self.processes.values():
            if process.ended is None or self.chance.random() < 0.3:
                process.ended = Ended(*process.key, None)
        self.clock.boots += 1
        self.clock.boot_ns = 1_000_000_000
        self.lease_files.clear()
        self.foreign.clear()

    def next_end_ms(self) -> int | None:
        return min((process.ends_at_ms for process in self.alive()), default=None)


class SimSpawner:
    """One daemon's Spawner over the host's processes."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._mine: dict[Key, bool] = {}  # key -> its Began has been reported
        self.orders: list[Order] = []
        self.check_order: Callable[[Order], None] = lambda order: None

    def start(self, order: Order) -> None:
        host = self._host
        self.check_order(order)
        host.act(f"start {order.run} {order.attempt}")
        key = (order.run, order.attempt)
        if key not in host.processes:
            chance = Random(f"{order.run}/{order.attempt}/{host.chance.random()}")
            if chance.random() < 0.02:
                raise SpawnError("there is no such program")
            host.begun[key] = host.begun.get(key, 0) + 1
            host.next_pid += 1
            span_ms = int(chance.choice((20, 200, 2_000, 30_000, 400_000)) * (0.5 + chance.random()))
            boot_ms = host.clock.boot_ns // 1_000_000
            host.processes[key] = Process(
                key, order.run.split(".")[0], host.next_pid, boot_ms, boot_ms + span_ms,
                0 if chance.random() < 0.8 else 3, chance.random() < 0.2, (),
            )  # fmt: skip
        self._mine[key] = False
        host.act(f"started {order.run}")

    def resume(self, order: Order, pid: int | None, started: int | None) -> None:
        del pid, started
        self.start(order)

    def stop(self, run: str, attempt: int, *, force: bool) -> None:
        process = self._host.processes.get((run, attempt))
        self._host.act(f"stop {run} {attempt} {force}")
        if process is not None and process.ended is None and (force or not process.stubborn):
            process.ended = Ended(run, attempt, None, 9 if force else 15)

    def collect(self) -> list[Report]:
        reports: list[Report] = []
        for key, told in list(self._mine.items()):
            process = self._host.processes[key]
            if not told:
                reports.append(Began(*key, process.pid, process.started))
                self._mine[key] = True
            if process.ended is not None:
                reports.append(process.ended)
                del self._mine[key]
        return reports


class SimLeases:
    """One daemon's view of the lease files."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def seen(self) -> list[SeenLease]:
        boot_ms = self._host.clock.boot_ns // 1_000_000
        return [lease for _, lease in sorted(self._host.foreign.items()) if lease.expires_boot_ms > boot_ms]

    def publish(self, key: str, holder: str, token: int) -> str | None:
        self._host.act(f"lease {key} {holder}")
        for lease in self.seen():
            if lease.key == key:
                return lease.holder
        self._host.lease_files[key] = (holder, token)
        return None

    def withdraw(self, key: str, token: int) -> None:
        self._host.act(f"withdraw {key}")
        if self._host.lease_files.get(key, ("", 0))[1] == token:
            del self._host.lease_files[key]

    def sync(self, ours: Mapping[str, tuple[str, int]]) -> None:
        self._host.lease_files = dict(ours)
