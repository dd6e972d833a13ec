"""How runs have gone: how long each job's attempts took, how they ended, what they used. Learned from a ledger.

What a run of the future will do is drawn from the attempts of its own job, by a seed, so that the same seed draws the
same. A job without a past is assumed to take a minute and to succeed; whoever shows the result says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any, NamedTuple

from ledger.instant import ms_of
from ledger.record import Record
from state.graph import WITH_PROCESS, Run

Json = Any

SAMPLES_MAX = 200
"""The latest attempts of a job, or of a step, that are drawn from."""
ASSUMED_MS = 60_000
NEVER_MS = 1 << 50
"""Of an attempt that was stopped: it would have gone on, nobody knows for how long."""


class Fate(NamedTuple):
    """What becomes of one attempt if it is left alone."""

    ms: int
    code: int | None = 0
    signal: int | None = None
    unmet: str = ""
    unstarted: str = ""
    tokens: int | None = None
    source: str = "assumed"  # recorded | learned | assumed


class Attempt(NamedTuple):
    """One attempt that a ledger has the end of."""

    run: str
    job: str
    step: str
    attempt: int
    began_ms: int
    ended_ms: int
    outcome: str
    final: bool
    fate: Fate


class Attempts:
    """Follows records, and tells of each attempt when it ends."""

    def __init__(self) -> None:
        self._runs: dict[str, tuple[str, str]] = {}
        self._began: dict[str, tuple[int, int]] = {}  # wall ms, boot ms
        self._boot = ""
        self._upgrades: set[str] = set()

    def know(self, run: Run) -> None:
        """A run that is not over where the records begin."""
        self._runs[run.name] = (run.job, run.step)
        if run.started_at and run.state in WITH_PROCESS:
            self._began[run.name] = (ms_of(run.started_at), -1)

    def follow(self, record: Record) -> Attempt | None:
        kind, data = record.type, record.data
        if kind == "plan.decided":
            for decided in data["decisions"]:
                if decided["verdict"] == "started":
                    self._runs[decided["run"]] = (decided["job"], decided.get("step", ""))
                    if decided["job"] in self._upgrades and "parent" not in decided:  # It has no process that starts.
                        self._began[decided["run"]] = (ms_of(record.ts), record.mt // 1_000_000)
        elif kind in ("job.defined", "job.changed") and data["spec"].get("kind") == "upgrade":
            self._upgrades.add(data["job"])
        elif kind == "run.started":
            self._began[data["run"]] = (ms_of(record.ts), record.mt // 1_000_000)
        elif kind == "run.finished":
            return self._ended(record)
        elif kind == "daemon.started" and data["boot_id"] != self._boot:
            # The clock that measures began anew; what ran is over.
            self._boot = data["boot_id"]
            self._began = {run: (wall_ms, -1) for run, (wall_ms, _) in self._began.items()}
        return None

    def _ended(self, record: Record) -> Attempt | None:
        data = record.data
        run = data["run"]
        final = data["retry_at"] is None
        known = self._runs.pop(run, None) if final else self._runs.get(run)
        began = self._began.pop(run, None)
        if known is None:
            return None  # It began before the first record that was looked at, or never did.
        ended_ms = ms_of(record.ts)
        if began is None:
            began_ms, took_ms = ended_ms, 0
        else:
            began_ms = began[0]
            took_ms = record.mt // 1_000_000 - began[1] if began[1] >= 0 else ended_ms - began_ms
        if known[0] in self._upgrades and data["code"] is None and data["outcome"] in ("succeeded", "failed"):
            data = {**data, "code": int(data["outcome"] == "failed")}  # As if it had been a process.
        return Attempt(
            run,
            *known,
            data["attempt"],
            began_ms,
            ended_ms,
            data["outcome"],
            final,
            _fate(data, max(0, took_ms), began),
        )


def _fate(data: Json, took_ms: int, began: object) -> Fate:
    outcome, tokens = data["outcome"], data.get("tokens")
    if outcome in ("timed_out", "cancelled"):
        return Fate(NEVER_MS, None, None, "", "", tokens, "learned")
    if outcome == "lost":
        return Fate(took_ms, None, None, "", "", tokens, "learned")
    if outcome == "failed" and began is None and data["code"] is None and data["signal"] is None:
        return Fate(0, None, None, "", data["reason"], tokens, "learned")
    unmet = data.get("expected", {}).get("why", "") if outcome == "failed" else ""
    return Fate(took_ms, data["code"], data["signal"], unmet, "", tokens, "learned")


class Habits:
    """The latest attempts of each job and step."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._samples: dict[tuple[str, str], deque[Fate]] = {}
        self.unknown: set[str] = set()
        """Jobs for which something had to be assumed."""

    def learn(self, records: Iterable[Record]) -> Iterator[Attempt]:
        """Follow records; each attempt is given on."""
        attempts = Attempts()
        for record in records:
            if (ended := attempts.follow(record)) is not None:
                self.note(ended)
                yield ended

    def note(self, ended: Attempt) -> None:
        # Of one that was cancelled, or that nobody saw the end of, there is nothing to learn about the next.
        if ended.outcome not in ("cancelled", "lost"):
            key = (ended.job, ended.step)
            self._samples.setdefault(key, deque(maxlen=SAMPLES_MAX)).append(ended.fate)

    def known(self, job: str, step: str = "") -> int:
        """From how many attempts is drawn."""
        return len(self._samples.get((job, step), ()))

    def typical_ms(self, job: str, step: str = "") -> int | None:
        """The median; None without a past."""
        samples = sorted(fate.ms for fate in self._samples.get((job, step), ()))
        return samples[len(samples) // 2] if samples else None

    def draw(self, job: str, step: str, run: str, attempt: int, timeout_ms: int | None) -> Fate:
        """What this attempt will come to: the same for the same seed, in whatever order is asked."""
        samples = self._samples.get((job, step))
        if not samples:
            self.unknown.add(job)
            return Fate(min(ASSUMED_MS, timeout_ms // 2) if timeout_ms else ASSUMED_MS)
        text = f"{self._seed}/{run}/{attempt}"
        return samples[int.from_bytes(sha256(text.encode()).digest()[:8], "big") % len(samples)]
