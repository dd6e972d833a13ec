"""A make-believe machine around the daemon: its clocks, its processes, its lease files. It outlives the daemon.

Processes claim their attempt once, as the real ones do by their claim file; they run on when the daemon is killed and
leave an exit status behind; a power cut ends them without one. A process may ignore SIGTERM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from daemon.errand import MARK
from daemon.ports import Began, Ended, Order, Report, SpawnError
from ledger.instant import Now
from policies.arrival import Look
from policies.foreign import SeenLease
from policies.schedule import Files
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


class Work(Protocol):
    """What a process does to the world beside its exit status."""

    def done(self) -> int:
        """It has come to its end. The exit status."""

    def cut(self) -> None:
        """It was killed before."""


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
    tells: str = ""
    """A delivery's notice, where the receiver gets it when the process ends."""
    unheard: bool = False
    """Nobody sees how it ends."""
    echo_ms: int = 0
    """Its end is reported again so long after the first time; 0: it is not."""
    work: Work | None = None
    """None once it has had its effect, or will have none."""


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
    files: dict[str, str] = field(default_factory=dict)
    """Where people drop files: path -> stamp."""
    name: str = ""
    """Decides, with a run's name and attempt, what becomes of it."""
    odd_workers: bool = False
    """Some never end, some end unseen, some are reported again and again, and process ids come back."""
    bad_lines: bool = False
    """Deliveries fail, hang, or are made and nobody hears of it."""
    told: dict[str, int] = field(default_factory=dict)
    """Notice -> how often the receiver got it."""
    deadly_in: int | None = None
    """After so many more of the daemon's acts it is killed in the middle of one."""
    deadly_at: tuple[str, int] | None = None
    """It is killed in the middle of an act that begins so: of the first, the second, ..."""
    living: dict[Key, Process] = field(default_factory=dict)
    next_pid: int = 1000
    trace: list[str] = field(default_factory=list)

    def act(self, what: str) -> None:
        self.trace.append(f"{self.clock.boot_ns // 1_000_000} {what}")
        if self.deadly_at is not None and what.startswith(self.deadly_at[0]):
            self.deadly_at = (self.deadly_at[0], self.deadly_at[1] - 1)
            if self.deadly_at[1] <= 0:
                self.deadly_at = None
                raise PowerCut
        if self.deadly_in is not None:
            self.deadly_in -= 1
            if self.deadly_in <= 0:
                self.deadly_in = None
                raise PowerCut

    def alive(self) -> list[Process]:
        return list(self.living.values())

    def begin(self, process: Process) -> None:
        self.begun[process.key] = self.begun.get(process.key, 0) + 1
        self.processes[process.key] = self.living[process.key] = process

    def end(self, process: Process, ended: Ended) -> None:
        work, process.work = process.work, None
        if work is not None:
            work.cut()
        process.ended = ended
        self.living.pop(process.key, None)

    def pass_time(self) -> None:
        """End the processes whose time has come."""
        boot_ms = self.clock.boot_ns // 1_000_000
        for process in self.alive():
            if process.ends_at_ms <= boot_ms:
                if process.tells:
                    self.told[process.tells] = self.told.get(process.tells, 0) + 1
                work, process.work = process.work, None
                status = process.code if work is None else work.done()
                code = None if process.unheard else status
                self.end(process, Ended(*process.key, code, None, cpu_ms=1, rss_kib=100))

    def lose_power(self) -> None:
        """Every process dies unseen; of those that had ended, the status file is there or not."""
        for process in self.processes.values():
            if process.ended is None or self.chance.random() < 0.3:
                self.end(process, Ended(*process.key, None))
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
        self._echoes: list[tuple[int, Report]] = []
        self.orders: list[Order] = []
        self.check_order: Callable[[Order], None] = lambda order: None

    def start(self, order: Order) -> None:
        host = self._host
        self.check_order(order)
        host.act(f"start {order.run} {order.attempt}")
        key = (order.run, order.attempt)
        if key not in host.processes:
            host.begin(self._delivery(order) if order.run.startswith(MARK) else self.process_of(order))
        self._mine[key] = False
        host.act(f"started {order.run}")

    def process_of(self, order: Order) -> Process:
        """What an attempt will be like: its name decides. SpawnError if it cannot begin."""
        host, chance = self._host, Random(f"{self._host.name}/{order.run}/{order.attempt}")
        if chance.random() < 0.02:
            raise SpawnError("there is no such program")
        span_ms = int(chance.choice((20, 200, 2_000, 30_000, 400_000)) * (0.5 + chance.random()))
        code, stubborn = 0 if chance.random() < 0.7 else 3, chance.random() < 0.3
        unheard, echo_ms = False, 0
        host.next_pid += 1
        if host.odd_workers:
            hangs = chance.random() < 0.3
            span_ms = 1 << 40 if hangs else span_ms
            code, stubborn = 0 if chance.random() < 0.5 else 3, chance.random() < (0.8 if hangs else 0.3)
            unheard = chance.random() < 0.1
            echo_ms = chance.choice((0, 1, 3_000, 3_000, 5_000, 300_000))
            host.next_pid = 1000 + host.next_pid % 5
        boot_ms = host.clock.boot_ns // 1_000_000
        return Process(
            (order.run, order.attempt), order.run.split(".")[0], host.next_pid, boot_ms, boot_ms + span_ms, code,
            stubborn, (), unheard=unheard, echo_ms=echo_ms,
        )  # fmt: skip

    def _delivery(self, order: Order) -> Process:
        """Its luck is its own, so that what becomes of deliveries changes nothing of the runs'."""
        host, chance = self._host, Random(f"{order.run}/{order.attempt}")
        fate = chance.choice(("made", "made", "refused", "hangs", "unheard")) if host.bad_lines else "made"
        span_ms = 1 << 40 if fate == "hangs" else chance.randint(5, 900)
        boot_ms = host.clock.boot_ns // 1_000_000
        return Process(
            (order.run, order.attempt), "", 7, boot_ms, boot_ms + span_ms, 1 if fate == "refused" else 0, False, (),
            tells=order.env["HERMESD_NOTICE"] if fate in ("made", "unheard") else "", unheard=fate == "unheard",
        )  # fmt: skip

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()

    def recorded(self, run: str, attempt: int) -> None:
        """Its processes leave no files."""

    def resume(self, order: Order, pid: int | None, started: int | None, *, begin: bool = True) -> None:
        key = (order.run, order.attempt)
        if begin or pid or key in self._host.processes:
            self.start(order)
            return
        over = Ended(*key, None, 15, note="stopped before it began")
        self._host.processes[key] = Process(key, "", 0, 0, 0, 0, False, (), ended=over)
        self._mine[key] = True

    def stop(self, run: str, attempt: int, *, force: bool) -> None:
        process = self._host.processes.get((run, attempt))
        self._host.act(f"{'kill' if force else 'stop'} {run} {attempt}")
        if process is not None and process.ended is None and (force or not process.stubborn):
            self._host.end(process, Ended(run, attempt, None, 9 if force else 15))

    def has_news(self) -> bool:
        """Whether a process has begun that was not reported yet: the real one wakes the loop for it."""
        return not all(self._mine.values())

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
                if process.echo_ms:
                    self._echo(process, process.ended)
        return reports + self._due_echoes()

    def _echo(self, process: Process, ended: Ended) -> None:
        """A zombie: it goes on reporting after its end, and says then that all went well."""
        at_ms = self._host.clock.boot_ns // 1_000_000 + process.echo_ms
        self._echoes += [
            (at_ms, Began(*process.key, process.pid, process.started)),
            (at_ms + process.echo_ms, Ended(ended.run, ended.attempt, 0)),
        ]

    def _due_echoes(self) -> list[Report]:
        boot_ms = self._host.clock.boot_ns // 1_000_000
        due = [report for at_ms, report in self._echoes if at_ms <= boot_ms]
        self._echoes = [echo for echo in self._echoes if echo[0] > boot_ms]
        return due


class SimArrivals:
    """One daemon's view of the files that are dropped. What it looks for is all that lies in a folder."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._wanted: Mapping[str, Files] = {}

    def look(self, wanted: Mapping[str, Files]) -> None:
        self._host.act(f"look {' '.join(sorted(wanted))}")
        self._wanted = dict(wanted)

    def found(self) -> list[Look]:
        wanted, self._wanted = self._wanted, {}
        found = []
        for job, files in sorted(wanted.items()):
            folder = files.path.removesuffix("*")
            there = {path: stamp for path, stamp in self._host.files.items() if path.startswith(folder)}
            found.append(Look(job, files, self._host.clock.now(), there, (), ""))
        return found


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

    def sync(self, ours: Mapping[str, tuple[str, int]]) -> dict[str, str]:
        taken = {lease.key: lease.holder for lease in self.seen() if lease.key in ours}
        self._host.lease_files = {key: lease for key, lease in ours.items() if key not in taken}
        return taken
