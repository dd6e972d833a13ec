"""The ledger's writer as an actor: any thread hands over drafts, one thread writes them, and a future is the answer.

Group commit is natural: whatever has come in while the last batch was being made durable is the next one, so a sync is
shared by as many as wait for it, and nobody waits for company. There is never more than one batch that is written and
not answered.

The modes, by the name they are asked for with:
- `strict`: answered when durable.
- `group:MS`: the same, but a batch waits up to so many milliseconds for company. Fewer syncs, later answers.
- `relaxed:MS`: answered when the record has its place, durable at most so many milliseconds later. A crash loses what
  was answered in between, and a full disk does (`Counts.dropped`). Only for events that gate nothing (`UNGATED`); any
  other is refused, as is one that comes with a condition.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from time import monotonic_ns
from types import TracebackType

from daemon.ports import Clock
from ledger.errors import Full, Poisoned, Refused
from ledger.ledger import Ledger
from ledger.record import Draft, Record, compose

Records = list[Record]

BOUND = 1024
"""So many requests wait at most, and are one batch at most."""
UNGATED = frozenset({"resources.sampled"})
"""The events that nothing is started, stopped, granted, deleted or answered on. Types of others (`x-`) are, too."""
_MS = 1_000_000


class Busy(Exception):
    """As many requests wait as may, and none was written in time. This one was not taken: ask again later."""


@dataclass(frozen=True, slots=True)
class Mode:
    name: str
    """strict, group or relaxed."""
    wait_ms: int = 0

    @classmethod
    def of(cls, text: str) -> Mode:
        """ValueError if it is none of them."""
        name, _, wait = text.partition(":")
        if text == "strict":
            return cls(name)
        if name in ("group", "relaxed") and wait.isdecimal() and int(wait):
            return cls(name, int(wait))
        raise ValueError(f"{text!r} is no mode: write strict, group:MS or relaxed:MS, for example group:2")


@dataclass(frozen=True, slots=True)
class Counts:
    """Of requests, unless the name says otherwise."""

    taken: int = 0
    answered: int = 0
    failed: int = 0
    """Refused, in conflict, without room or poisoned."""
    cancelled: int = 0
    busy: int = 0
    """Not taken, because too many waited."""
    full: int = 0
    """Batches that the disk had no room for."""
    dropped: int = 0
    """Records that had been answered, relaxed, and that the disk had no room for or failed to keep."""
    commits: int = 0
    records: int = 0
    """Durable."""
    most_waiting: int = 0


class Latencies:
    """From the question to the answer, in buckets that are a fifth wider from one to the next."""

    BOUNDS_US = tuple(2 ** (step / 4) for step in range(4 * 26))
    """The upper bounds; the last is half a minute and more."""

    def __init__(self, counts: Sequence[int] = ()) -> None:
        self.counts = list(counts) or [0] * len(self.BOUNDS_US)

    def note(self, took_ns: int) -> None:
        self.counts[min(bisect_left(self.BOUNDS_US, took_ns / 1000), len(self.BOUNDS_US) - 1)] += 1

    @property
    def total(self) -> int:
        return sum(self.counts)

    def percentile_us(self, percent: float) -> float:
        """The bound that so many percent of the answers did not exceed; 0 before the first one."""
        wanted, seen = percent * self.total / 100, 0
        for bound_us, count in zip(self.BOUNDS_US, self.counts, strict=True):
            seen += count
            if count and seen >= wanted:
                return bound_us
        return 0.0


@dataclass(slots=True, eq=False)
class _Request:
    drafts: list[Draft]
    once: bool
    expect: Mapping[str, int] | None
    answer: Future[Records]
    asked_ns: int


class Recorder:
    """Nobody else may touch the ledger until `close` has returned; its readers may read its files."""

    def __init__(self, ledger: Ledger, clock: Clock, *, mode: str = "strict", bound: int = BOUND) -> None:
        if bound < 1:
            raise ValueError(f"{bound} requests that may wait: at least one must")
        self.mode, self.bound = Mode.of(mode), bound
        self._ledger, self._clock = ledger, clock
        self._lock = threading.Lock()
        self._work, self._room = threading.Condition(self._lock), threading.Condition(self._lock)
        self._waiting: deque[_Request] = deque()
        self._unanswered: list[_Request] = []
        self._staged = 0
        self._staged_ns = 0
        self._closed = False
        self._broken: Poisoned | None = None
        self._counts = asdict(Counts())
        self._latencies = Latencies()
        self._thread = threading.Thread(target=self._run, name="recorder")
        self._thread.start()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def durable_seq(self) -> int:
        """Everything up to here survives a power cut."""
        return self._ledger.durable_seq

    @property
    def counts(self) -> Counts:
        with self._lock:
            return Counts(**self._counts)

    @property
    def latencies(self) -> Latencies:
        with self._lock:
            return Latencies(self._latencies.counts)

    def append(
        self,
        drafts: Iterable[Draft],
        *,
        once: bool = False,
        expect: Mapping[str, int] | None = None,
        within_s: float | None = None,
    ) -> Future[Records]:
        """Ask for these to be recorded, all or none of them, in one batch. The drafts' data must not change any more.

        The future gives the records, or raises what `Ledger.append` would; `once` and `expect` are as there. As long
        as it waits it can be cancelled, and is then not written; later `cancel` says False. In a relaxed mode the
        records have no hash yet.

        If too many wait, this does too: for ever, or `within_s` seconds, then Busy; never when called by the writer's
        own thread (from a future's callback). Refused in a relaxed mode for events that may not be. Poisoned once the
        ledger is, ValueError after `close`.
        """
        request = _Request(list(drafts), once, expect, Future(), monotonic_ns())
        if self.mode.name == "relaxed":
            _refuse_gates(request)
        if threading.current_thread() is self._thread:
            within_s = 0.0
        with self._lock:
            taken = self._room.wait_for(lambda: self._stopped or len(self._waiting) < self.bound, within_s)
            if self._broken is not None:
                raise Poisoned(str(self._broken))
            if self._closed:
                raise ValueError("the recorder is closed; it records nothing any more")
            if not taken:
                self._count(busy=1)
                raise Busy(f"{len(self._waiting)} requests wait to be recorded, as many as may; ask again later")
            self._waiting.append(request)
            self._count(taken=1)
            self._counts["most_waiting"] = max(self._counts["most_waiting"], len(self._waiting))
            if len(self._waiting) in (1, self.bound):
                self._work.notify()
        return request.answer

    def close(self) -> None:
        """Record what waits, and end the thread. The ledger stays open: it is the caller's."""
        with self._lock:
            self._closed = True
            self._work.notify()
            self._room.notify_all()
        self._thread.join()

    @property
    def _stopped(self) -> bool:
        return self._closed or self._broken is not None

    def _run(self) -> None:
        try:
            while self._take():
                self._write(self._unanswered)
                if self._staged and (self._stopped or monotonic_ns() >= self._due_ns(self._staged_ns)):
                    self._commit_staged()
        except BaseException as error:  # whatever it was: nobody may wait for an answer that never comes
            self._break(error)

    def _take(self) -> bool:
        """The next batch becomes the unanswered one. It may be empty, when what is staged must be committed; False
        when there will be none."""
        with self._lock:
            while not self._waiting:
                if self._staged:
                    left_ns = self._due_ns(self._staged_ns) - monotonic_ns()
                    if left_ns <= 0 or self._closed:
                        self._unanswered = []
                        return True
                    self._work.wait(left_ns / 1e9)
                elif self._closed:
                    return False
                else:
                    self._work.wait()
            if self.mode.name == "group":
                due_ns = self._due_ns(self._waiting[0].asked_ns)
                while not self._closed and len(self._waiting) < self.bound and (left := due_ns - monotonic_ns()) > 0:
                    self._work.wait(left / 1e9)
            found = list(self._waiting)
            self._waiting.clear()
            self._room.notify_all()
            self._unanswered = [request for request in found if request.answer.set_running_or_notify_cancel()]
            self._count(cancelled=len(found) - len(self._unanswered))
        return True

    def _due_ns(self, since_ns: int) -> int:
        return since_ns + self.mode.wait_ms * _MS

    def _write(self, requests: list[_Request]) -> None:
        """Record and answer them, in order. Neighbours of one kind share a batch; an expectation has one of its own,
        since it is about what all others have left."""
        if self.mode.name == "relaxed":
            for request in requests:
                self._stage(request)
            return
        at = 0
        while at < len(requests):
            end = at + 1
            if requests[at].expect is None:
                while end < len(requests) and requests[end].expect is None and requests[end].once == requests[at].once:
                    end += 1
            self._append(requests[at:end])
            at = end

    def _append(self, requests: list[_Request]) -> None:
        first, now = requests[0], self._clock.now()
        commits, head_seq = self._ledger.commits, self._ledger.head.seq
        drafts = [draft for request in requests for draft in request.drafts]
        try:
            records = self._ledger.append(drafts, now, once=first.once, expect=first.expect)
        except Poisoned:
            raise
        except Exception as error:
            if isinstance(error, Full):
                self._tally(full=1)
            elif len(requests) > 1:  # One of them cannot be recorded, and must not take the others with it.
                for request in requests:
                    self._append([request])
                return
            self._fail(requests, error)
            return
        self._tally(commits=self._ledger.commits - commits, records=self._ledger.head.seq - head_seq)
        answers, at = [], 0
        for request in requests:
            answers.append(records[at : at + len(request.drafts)])
            at += len(request.drafts)
        self._answer(requests, answers)

    def _stage(self, request: _Request) -> None:
        now = self._clock.now()
        try:
            for draft in request.drafts[1:]:  # One that is refused must leave none of its companions behind.
                compose(draft, now)
            records = [self._ledger.stage(draft, now) for draft in request.drafts]
        except Poisoned:
            raise
        except Exception as error:
            self._fail([request], error)
            return
        self._staged_ns = self._staged_ns if self._staged else monotonic_ns()
        self._staged += len(records)
        self._answer([request], [records])
        if self._staged >= self.bound:
            self._commit_staged()

    def _commit_staged(self) -> None:
        commits = self._ledger.commits
        try:
            self._ledger.commit()
        except Full:
            self._tally(full=1, dropped=self._staged)
        else:
            self._tally(commits=self._ledger.commits - commits, records=self._staged)
        self._staged = 0

    def _answer(self, requests: list[_Request], answers: list[Records]) -> None:
        with self._lock:
            self._count(answered=len(requests))
            for request in requests:
                self._latencies.note(monotonic_ns() - request.asked_ns)
        for request, records in zip(requests, answers, strict=True):
            request.answer.set_result(records)

    def _fail(self, requests: list[_Request], error: Exception) -> None:
        self._tally(failed=len(requests))
        for request in requests:
            request.answer.set_exception(error)

    def _break(self, error: BaseException) -> None:
        """Nothing is recorded any more: say so to all who wait, and to all who will ask."""
        text = str(error) if isinstance(error, Poisoned) else f"the recorder has ended: {error!r}; restart"
        with self._lock:
            self._broken = Poisoned(text)
            self._broken.__cause__ = error
            waiting = [request for request in self._waiting if request.answer.set_running_or_notify_cancel()]
            self._waiting.clear()
            self._room.notify_all()
            self._count(dropped=self._staged)
        self._fail([*(request for request in self._unanswered if not request.answer.done()), *waiting], self._broken)

    def _tally(self, **more: int) -> None:
        with self._lock:
            self._count(**more)

    def _count(self, **more: int) -> None:
        for name, count in more.items():
            self._counts[name] += count


def _refuse_gates(request: _Request) -> None:
    if request.once or request.expect:
        raise Refused("a condition is answered only when it is durable; ask a strict recorder")
    for draft in request.drafts:
        if draft.type not in UNGATED and not draft.type.startswith("x-"):
            raise Refused(
                f"{draft.type!r} may gate an effect, and a relaxed recorder answers before it is durable; "
                "ask a strict one"
            )
