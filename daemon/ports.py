"""The daemon's own ports: Clock and Spawner. (Disk is the ledger's, in `ledger.disk`.)"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ledger.instant import Now

Json = Any  # A JSON value. Kept apart from Any so that signatures say which is meant.


class Clock(Protocol):
    @property
    def boot_id(self) -> str:
        """Changes with every start of the machine: CLOCK_BOOTTIME of two boots cannot be compared."""

    def now(self) -> Now: ...


@dataclass(frozen=True, slots=True)
class CommandTask:
    """Run a program: argv as given, never through a shell (`shell:` has become ["/bin/sh", "-c", text] before)."""

    argv: tuple[str, ...]
    cwd: str
    stdin: str | None = None  # a path; None is /dev/null


@dataclass(frozen=True, slots=True)
class PythonTask:
    """Call `module:function` with JSON keyword arguments in a warm worker; its JSON return value is the result."""

    call: str
    kwargs: Mapping[str, Json]
    cwd: str
    path: tuple[str, ...] = ()  # put before sys.path


@dataclass(frozen=True, slots=True)
class InferenceTask:
    """Generate with the model in folder `model`: one generation for each line of the first readable of `lines`, or one.

    `prompt` may contain `{{ line }}`. Generation parameters are those of the job model, defaults filled in.
    """

    model: str
    prompt: str
    lines: tuple[str, ...] = ()  # candidate paths; () means a single generation
    last: int = 100  # only the last so many lines
    max_new_tokens: int = 128
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is no bound
    seed: int = 0
    stop: tuple[str, ...] = ()
    device: str = "auto"  # auto | cpu | cuda | cuda:N | mps
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16
    quantization: str = "none"  # none | bnb-8bit | bnb-4bit
    gateway: str = ""  # the socket of the home's gateway, which is asked first where it serves the model


@dataclass(frozen=True, slots=True)
class Order:
    """One attempt of one run, complete: what to do, where its files go, and its whole environment."""

    run: str
    attempt: int
    token: int
    folder: str  # absolute; runs/<run>/<attempt>
    task: CommandTask | PythonTask | InferenceTask
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    limits: Mapping[str, int] = field(
        default_factory=dict
    )  # open_files, file_size (bytes), cpu_seconds, memory (bytes)
    secret: frozenset[str] = frozenset()  # variables of `env` whose values are secrets, to be in no file and no message


@dataclass(frozen=True, slots=True)
class Began:
    """The attempt's process exists (for a warm worker: it has claimed this attempt)."""

    run: str
    attempt: int
    pid: int
    started: int  # start time as `daemon.workers.identity.start_time` gives it: (pid, started) names a process


@dataclass(frozen=True, slots=True)
class Ended:
    """The attempt is over and its whole process tree is known dead.

    `code` is the exit status, None when a signal ended it or nobody saw the end; `signal` the signal, if one did.
    Both None: the end was seen by nobody (the attempt is lost).
    """

    run: str
    attempt: int
    code: int | None
    signal: int | None = None
    cpu_ms: int | None = None
    rss_kib: int | None = None
    note: str = ""  # what people should know: "output truncated", "3 left-over processes were killed"
    outputs: Mapping[str, Json] | None = None  # what it left, as `Outputs.measure` would tell; None where nobody looked


Report = Began | Ended


class LeasesBusy(Exception):
    """Somebody has locked `leases/.guard` for longer than any of us ever needs it."""


class SpawnError(Exception):
    """The attempt could not be started; nothing of it runs. The message says what, where and what to do."""


class Spawner(Protocol):
    def start(self, order: Order) -> None:
        """Begin the attempt, or find that it has begun already: starting the same attempt twice, even from two daemons
        one after the other, runs it once. Reports follow by `collect`. SpawnError if it cannot be started."""

    def together(self) -> AbstractContextManager[None]:
        """What is started within begins, all of it at once, by the end of it: a process is woken once and not for each
        attempt."""

    def resume(self, order: Order, pid: int | None, started: int | None, *, begin: bool = True) -> None:
        """After a restart: take up an attempt that an earlier daemon granted. What became of it follows by `collect`:
        Began if it lives (or if it never began and is begun now), Ended if it is over, or if it never began and without
        `begin` never will."""

    def stop(self, run: str, attempt: int, *, force: bool) -> None:
        """SIGTERM (force: SIGKILL) to the attempt's whole process tree. Its Ended follows by `collect`."""

    def recorded(self, run: str, attempt: int) -> None:
        """The end of this attempt is durable, it left nothing, and no other attempt of its run will come: what was kept
        so that its end could still be told may go."""

    def collect(self) -> list[Report]:
        """What has happened since the last call, in order; never waits."""
