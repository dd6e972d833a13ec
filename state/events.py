"""The closed vocabulary: every event Hermes can record, and what each one says.

An event is complete and legal from birth: `draft` checks its data here before the ledger sees it, so that replay may
trust the shape of whatever the hash chain vouches for. Instants are RFC 3339 UTC text; durations and sizes carry their
unit in the name. Types beginning with `x-` belong to others: they are kept in the ledger and change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from ledger.record import Draft

Json = Any

RunOutcome = Literal["succeeded", "failed", "timed_out", "cancelled", "lost"]
Verdict = Literal["started", "deferred", "skipped", "missed", "coalesced", "blocked"]
Trigger = Literal["schedule", "start", "after", "step"]


class _Closed(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]


class SegmentOpen(TypedDict):
    """Written by the ledger itself as the first line of every segment; `ledger/FORMAT.md` tells its fields."""


class LedgerRecovered(TypedDict):
    """Written by the ledger itself after it had to cut or quarantine something."""


class DaemonStarted(_Closed):
    version: str
    code: str  # digest of the planner's source: which code decided
    python: str
    host: str
    boot_id: str
    pid: int
    process_started: int
    zone: str
    tzdb: str  # version of the time zone database


class DaemonStopped(_Closed):
    reason: str


class ClockJumped(_Closed):
    """The wall clock moved against CLOCK_BOOTTIME; positive is forward. A sleeping host is no jump."""

    jump_ms: int
    wall: str


class JobDefined(_Closed):
    job: str
    revision: int
    digest: str
    spec: dict[str, Json]
    source: str


class JobRemoved(_Closed):
    job: str
    source: str


class Problem(_Closed):
    file: str
    line: int
    column: int
    field: str
    message: str
    advice: str


class JobRejected(_Closed):
    """All that is wrong with one job file, replacing what was said before. The last good version keeps running."""

    source: str
    problems: list[Problem]


class JobCleared(_Closed):
    """A file that was rejected has no problem any more, or is gone."""

    source: str


class PolicyAdopted(_Closed):
    digest: str
    policy: dict[str, Json]


class PolicyRejected(_Closed):
    """A policy override that could not be read or is not legal; the last good policy stays in force."""

    source: str
    message: str


class ResourcesSampled(_Closed):
    """What this machine offers, rounded so that noise is no news: free memory and disk to steps of a sixteenth."""

    cpus: int
    memory_bytes: int
    memory_free_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    gpu_memory_bytes: int  # of all devices together; 0 where none was found


class LeaseSeen(_Closed):
    """Somebody else holds a key: a person at a shell, an editor, a second Hermes."""

    key: str
    holder: str
    expires_boot_ms: int  # 0: only a change of the file ends it
    note: str


class LeaseReleased(_Closed):
    """A foreign lease is gone."""

    key: str
    holder: str
    why: Literal["released", "expired"]


class LeaseRefused(_Closed):
    """A grant of ours met a foreign lease taken after we had looked: the grant is void and the run waits again."""

    run: str
    attempt: int
    token: int
    key: str
    holder: str


class Decided(_Closed):
    """One decision about one run. A range of old slots decided alike is one decision with `until` and `count`."""

    run: str
    job: str
    slot: str
    at: str
    trigger: Trigger
    verdict: Verdict
    rule: str
    reason: str
    revision: int
    attempt: int
    until: NotRequired[str]
    count: NotRequired[int]
    parent: NotRequired[str]
    step: NotRequired[str]
    request: NotRequired[str]
    consumes: NotRequired[dict[str, str]]  # dependency -> the run of it that this one answers
    token: NotRequired[int]  # with verdict "started": the grant
    leases: NotRequired[list[str]]


class PlanDecided(_Closed):
    tick: int
    wall_ms: int
    boot_ms: int
    preflight: dict[str, str]  # run -> why it cannot start here; those not named can
    decisions: list[Decided]
    inputs: dict[str, str]  # input group -> digest
    decision_hash: str


class RunStarted(_Closed):
    run: str
    attempt: int
    token: int
    pid: int
    process_started: int


class RunAdopted(RunStarted):
    """A daemon that started later has found the attempt alive and watches it again."""


class RunStopping(_Closed):
    """Ordered before the signal is sent."""

    run: str
    attempt: int
    why: Literal["timeout", "cancel", "parent"]
    actor: str
    force: bool


class Output(_Closed):
    bytes: int
    sha256: str


class RunFinished(_Closed):
    run: str
    attempt: int
    token: int
    outcome: RunOutcome
    code: int | None
    signal: int | None
    reason: str
    retry_at: str | None  # set when the policy grants another attempt; the run is not over then
    cpu_ms: int | None
    rss_kib: int | None
    outputs: dict[str, Output]


class RunFenced(_Closed):
    """A late report about an attempt that is over, or is not the latest: kept, never accepted."""

    run: str
    attempt: int
    latest_attempt: int
    report: str


class StartRequested(_Closed):
    request: str
    job: str
    run: str
    actor: str
    reason: str


class CancelRequested(_Closed):
    request: str
    run: str
    actor: str
    reason: str


class ArtifactStored(_Closed):
    run: str
    name: str
    digest: str
    bytes: int


class NoteAdded(_Closed):
    request: str
    text: str
    actor: str


VOCABULARY: Mapping[str, type] = {
    "segment.open": SegmentOpen,
    "ledger.recovered": LedgerRecovered,
    "daemon.started": DaemonStarted,
    "daemon.stopped": DaemonStopped,
    "clock.jumped": ClockJumped,
    "job.defined": JobDefined,
    "job.changed": JobDefined,
    "job.removed": JobRemoved,
    "job.rejected": JobRejected,
    "job.cleared": JobCleared,
    "policy.adopted": PolicyAdopted,
    "policy.rejected": PolicyRejected,
    "resources.sampled": ResourcesSampled,
    "lease.seen": LeaseSeen,
    "lease.released": LeaseReleased,
    "lease.refused": LeaseRefused,
    "plan.decided": PlanDecided,
    "run.started": RunStarted,
    "run.adopted": RunAdopted,
    "run.stopping": RunStopping,
    "run.finished": RunFinished,
    "run.fenced": RunFenced,
    "start.requested": StartRequested,
    "cancel.requested": CancelRequested,
    "artifact.stored": ArtifactStored,
    "note.added": NoteAdded,
}

BY_THE_LEDGER = frozenset({"segment.open", "ledger.recovered"})


class IllegalEvent(Exception):
    """An event outside the vocabulary, or one that does not say what its type must say: a bug of ours."""


@cache
def _adapter(type_: str) -> TypeAdapter[Any]:
    return TypeAdapter(VOCABULARY[type_])


def draft(
    type_: str,
    subject: str,
    data: Mapping[str, Json],
    *,
    id: str | None = None,
    cause: int | None = None,
    corr: str | None = None,
) -> Draft:
    """A legal event, ready for the ledger. IllegalEvent names the type and the first field that is wrong."""
    if type_ not in VOCABULARY or type_ in BY_THE_LEDGER:
        raise IllegalEvent(f"{type_!r} is no event type that may be drafted")
    try:
        _adapter(type_).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise IllegalEvent(f"{type_}: {where}: {first['msg']}") from None
    return Draft(type=type_, subject=subject, data=data, id=id, cause=cause, corr=corr)
