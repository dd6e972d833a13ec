"""The closed vocabulary: every event Hermes can record, and what each one says.

An event is complete and legal from birth: `draft` checks its data here before the ledger sees it, so that replay may
trust the shape of whatever the hash chain vouches for. Instants are RFC 3339 UTC text; durations and sizes carry their
unit in the name. Types beginning with `x-` belong to others: they are kept in the ledger and change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

from ledger.record import Draft
from state.shape import shape_of

Json = Any

RunOutcome = Literal["succeeded", "failed", "timed_out", "cancelled", "lost"]
Verdict = Literal["started", "deferred", "buffered", "skipped", "missed", "coalesced", "blocked"]
Trigger = Literal["schedule", "start", "after", "on", "step", "retry", "backfill"]


class SegmentOpen(TypedDict):
    """Written by the ledger itself as the first line of every segment; `ledger/FORMAT.md` tells its fields."""


class LedgerRecovered(TypedDict):
    """Written by the ledger itself after it had to cut or quarantine something."""


class LedgerCut(TypedDict):
    """A person gave up the records behind `last_seq`."""

    last_seq: int
    last_hash: str
    last_lost: int  # the highest seq that could still be read behind it; 0 if none could
    cuts: list[Json]  # as in `ledger.recovered`
    found: list[Json]
    actor: str
    reason: str


class LedgerRestored(TypedDict):
    """A person put files of the ledger back from a copy."""

    files: list[Json]  # each with file, bytes, sha256
    cuts: list[Json]  # what was in their place
    found: list[Json]
    actor: str


class DaemonStarted(TypedDict):
    version: str
    code: str  # digest of the planner's source: which code decided
    python: str
    host: str
    boot_id: str
    pid: int
    process_started: int
    zone: str
    tzdb: str  # version of the time zone database


class DaemonStopped(TypedDict):
    reason: str


class ClockJumped(TypedDict):
    """The wall clock moved against CLOCK_BOOTTIME; positive is forward. A sleeping host is no jump."""

    jump_ms: int
    wall: str


class JobDefined(TypedDict):
    job: str
    revision: int
    digest: str
    spec: dict[str, Json]
    source: str


class JobRemoved(TypedDict):
    job: str
    source: str


class Problem(TypedDict):
    file: str
    line: int
    column: int
    field: str
    message: str
    advice: str


class JobRejected(TypedDict):
    """All that is wrong with one job file, replacing what was said before. The last good version keeps running."""

    source: str
    problems: list[Problem]


class JobCleared(TypedDict):
    """A file that was rejected has no problem any more, or is gone."""

    source: str


class PolicyAdopted(TypedDict):
    digest: str
    policy: dict[str, Json]


class PolicyRejected(TypedDict):
    """A policy override that could not be read or is not legal; the last good policy stays in force."""

    source: str
    message: str


class ResourcesSampled(TypedDict):
    """What this machine offers, rounded so that noise is no news: free memory and disk to steps of a sixteenth."""

    cpus: int
    memory_bytes: int
    memory_free_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    gpu_memory_bytes: int  # of all devices together; 0 where none was found


class LeaseSeen(TypedDict):
    """Somebody else holds a key: a person at a shell, an editor, a second Hermes."""

    key: str
    holder: str
    expires_boot_ms: int  # 0: only a change of the file ends it
    note: str


class LeaseReleased(TypedDict):
    """A foreign lease is gone."""

    key: str
    holder: str
    why: Literal["released", "expired"]


class LeaseRefused(TypedDict):
    """A grant of ours met a foreign lease taken after we had looked: the grant is void and the run waits again."""

    run: str
    attempt: int
    token: int
    key: str
    holder: str


class Decided(TypedDict):
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
    retries: NotRequired[str]  # with trigger "retry": the run that is over and is done again
    not_before: NotRequired[str]  # with verdict "deferred": the instant before which it will not start
    token: NotRequired[int]  # with verdict "started": the grant
    leases: NotRequired[list[str]]
    file: NotRequired[str]  # the file it is about, of a range the first
    lost: NotRequired[Literal["gone", "rewritten", "removed"]]  # of files that no run is needed for any more: why
    spec: NotRequired[dict[str, Json]]  # of a step of an upgrade: what it is to do


class PlanDecided(TypedDict):
    tick: int
    wall_ms: int
    boot_ms: int
    preflight: dict[str, str]  # run -> why it cannot start here; those not named can
    decisions: list[Decided]
    inputs: dict[str, str]  # input group -> digest
    decision_hash: str


class RunStarted(TypedDict):
    run: str
    attempt: int
    token: int
    pid: int
    process_started: int


class RunAdopted(RunStarted):
    """A daemon that started later has found the attempt alive and watches it again."""


class RunStopping(TypedDict):
    """Ordered before the signal is sent."""

    run: str
    attempt: int
    why: Literal["timeout", "cancel", "parent", "overlap", "lease"]
    actor: str
    force: bool
    key: NotRequired[str]  # with why "lease": the one that another took while no daemon ran
    holder: NotRequired[str]  # and who has it


class Output(TypedDict):
    bytes: int
    sha256: str


class RunFinished(TypedDict):
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
    tokens: NotRequired[int]  # what it really used, where the worker could say
    expected: NotRequired[Expected]  # where the job expects something and the process ended well


class Expected(TypedDict):
    """Whether what the job expects of a success was there; told apart from how the process ended."""

    met: bool
    why: str


class RunFenced(TypedDict):
    """A late report about an attempt that is over, or is not the latest: kept, never accepted."""

    run: str
    attempt: int
    latest_attempt: int
    report: str


class RunsForgotten(TypedDict):
    """Ended runs that leave the graph, and their folders the disk, because the job keeps none so old."""

    runs: list[str]


class StartRequested(TypedDict):
    request: str
    job: str
    run: str
    actor: str
    reason: str
    retries: NotRequired[str]  # a run that is over, to be done again
    file: NotRequired[str]  # of a job that files start: the one it is about
    specs: NotRequired[dict[str, dict[str, Json]]]  # revision -> spec, where this start is to do less than the job says


class BackfillSlot(TypedDict):
    at: str
    revision: int


class BackfillRequested(TypedDict):
    """Slots of the past, to be run now, each under the spec in force at its instant unless the person chose otherwise.
    The specs stand here, so that a decision can be made again from this event."""

    request: str
    job: str
    actor: str
    reason: str
    slots: list[BackfillSlot]
    specs: dict[str, dict[str, Json]]  # revision -> spec
    overlap: Literal["buffer_all", "allow_all"]


class BackfillCancelled(TypedDict):
    """The slots of a backfill that no decision has been made about are given up."""

    request: str
    actor: str
    reason: str


class Paused(TypedDict):
    """By a person, or by `hermesd` itself after too many failures."""

    actor: str
    reason: str
    request: NotRequired[str]


class JobPaused(Paused):
    job: str


class DaemonPaused(Paused):
    """Nothing starts any more, as if the daemon were down; what runs goes on. A drain is the same, on the way to a
    stop."""

    drain: bool


class ArrivedFile(TypedDict):
    path: str
    size_bytes: int
    mtime_ns: int
    inode: int  # 0 where the file system gives a file another number each time


class FilesArrived(TypedDict):
    """Files that a job waits for are there, whole, and each is to be answered by one decision. A path that had arrived
    before and is not gone has been written again."""

    job: str
    files: list[ArrivedFile]


class FilesGone(TypedDict):
    """Files that had arrived are there no more, or the job does not wait for them any more: should such a path come
    again, it is a new arrival."""

    job: str
    paths: list[str]


class FilesHidden(TypedDict):
    """What keeps a job from seeing all the files it waits for, replacing what was said before; empty when nothing
    does any more."""

    job: str
    problem: str


class CancelRequested(TypedDict):
    request: str
    run: str
    actor: str
    reason: str


class ArtifactStored(TypedDict):
    run: str
    name: str
    digest: str
    bytes: int


class ArtifactRedacted(TypedDict):
    """The content that a run left is deleted, by a person's wish: its folder, its steps' folders, and these artifacts.
    The chain keeps their digests, and that there was something."""

    request: str
    run: str
    runs: list[str]  # itself and its steps
    digests: list[str]
    shared: list[str]  # digests of its artifacts that other runs name, too: those stay
    actor: str
    reason: str


class Finding(TypedDict):
    where: str
    what: str


class AuditFinished(TypedDict):
    """Everything was read again up to `seq`: the bytes, the seals, and whether what is derived is what follows."""

    request: str
    actor: str
    seq: int
    hash: str
    ok: bool
    records: int
    segments: int
    foreign: int  # records of types of others: kept, and without an effect
    compared: dict[str, int]  # what -> how many of it were compared, byte for byte
    findings: list[Finding]  # the first of them
    findings_in_all: int


NoticeOn = Literal["failed", "succeeded", "recovered", "missed", "skipped", "cancelled", "paused"]


class NoticeQueued(TypedDict):
    """Somebody is to be told of something; recorded with it. From now on it is tried until it is delivered or given
    up, under one name, so that whoever gets it twice can see that it is one."""

    notice: str
    job: str
    run: str  # "" where it is about the job
    on: NoticeOn
    channel: int  # its place in the job's `notify`
    to: dict[str, Json]  # {"webhook": address} or {"command": argv}, as the job said; secrets are named and not held
    outcome: str
    reason: str
    at: str  # when it happened
    slots: int  # how many it is about


class NoticeDelivered(TypedDict):
    notice: str
    attempt: int


class NoticeFailed(TypedDict):
    notice: str
    attempt: int
    error: str
    retry_at: str | None  # None: it is given up


class NoticeRequeued(TypedDict):
    """A person wants a notice that was given up to be tried again."""

    request: str
    notice: str
    actor: str
    reason: str


class UpgradeProbed(TypedDict):
    """What one repository was found to be, before anything of it changes; `policies.upgrade.facts` tells its fields."""

    run: str  # of kind upgrade
    job: str
    key: str
    by: str  # the run that looked
    facts: dict[str, Json]


class UpgradeChecked(TypedDict):
    """What an independent reading of the whole ledger found, for the integrity gate."""

    run: str
    job: str
    by: str
    facts: dict[str, Json]


class UpgradePlanned(TypedDict):
    """What is to become of every repository of the job: decided once, from what was probed and is remembered."""

    run: str
    job: str
    wall_ms: int
    policy: dict[str, Json]
    repos: list[Json]  # in the order of the plan, each repository once
    gate: list[Json]
    federation: dict[str, Json]
    coordination: dict[str, Json]
    topology: dict[str, Json]
    inputs: dict[str, str]  # input group -> digest
    decision_hash: str


class UpgradeStepped(TypedDict):
    """Where a repository is after a step, as git says."""

    run: str
    job: str
    key: str
    by: str
    facts: dict[str, Json]


class UpgradeSettled(TypedDict):
    """What became of one repository in one run: said once, whether or not anything was tried."""

    run: str
    job: str
    key: str
    path: str
    outcome: Literal["upgraded", "unchanged", "held", "deferred", "blocked", "rolled_back", "failed", "needs_person"]
    reason: str
    old: str | None  # the commit it was at
    new: str | None  # the commit it was to come to
    risk: float | None  # as it was estimated
    attempted: bool  # its steps began
    step: str  # the one that failed; "" if none did
    role: str  # the remote
    url: str


class _Told(TypedDict):
    """What a gateway tells of its engines. It may come late, after the daemon was away, and twice: `number` rises."""

    by: str  # the gateway's name
    number: int
    at: str  # when it happened


class GatewayStarted(_Told):
    version: str
    pid: int
    process_started: int


class GatewayStopped(_Told):
    why: str


class ModelRegistered(_Told):
    """A model is known to the gateway; that an engine has loaded it is said by `engine.loaded`."""

    model: str
    kind: str
    runtime: str
    path: str


class ModelForgotten(_Told):
    model: str


class EngineSpawned(_Told):
    engine: str
    model: str
    device: str
    runtime: str
    rung: str  # how the model is run: "as asked", or a rung of the ladder that out-of-memory climbs
    rows: int
    needed_bytes: int
    free_bytes: int


class EngineLoaded(_Told):
    engine: str
    model: str
    pid: int
    took_ms: int
    facts: dict[str, Json]


class EngineWarmed(_Told):
    """It serves from now on."""

    engine: str
    model: str
    took_ms: int


class EngineDraining(_Told):
    engine: str
    model: str
    why: str


class EngineEnded(_Told):
    engine: str
    model: str
    why: str  # idle, evicted, recycled, ...; crashed, killed, hung, out-of-memory, load-failed
    code: int | None
    signal: int | None
    words: str
    served: int
    requeued: int  # requests that wait for another engine now
    lost: int


class EngineFell(_Told):
    """Out of memory: its model is run otherwise from now on."""

    engine: str
    model: str
    rung: str
    rows: int
    quantization: str
    device: str
    instead: str  # the smaller model that answers, or ""
    words: str


class BreakerOpened(_Told):
    model: str
    failures: int
    open_ms: int
    words: str


class BreakerClosed(_Told):
    model: str


class GenerationFinished(_Told):
    """One request to a model: all that is needed to tell whether another run gave the same, and no text."""

    request: str
    model: str
    engine: str
    outcome: Literal["answered", "cancelled", "lost", "refused"]
    digest: str  # of the model
    runtime: str
    versions: dict[str, Json]
    device: str
    dtype: str
    quantization: str
    determinism: str  # within one class the same request gives the same bytes; "": nothing is promised
    parameters: dict[str, Json]
    seed: int
    prompt_sha256: str
    request_sha256: str
    output_sha256: str
    finish: list[str]
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    queued_ms: int
    first_token_ms: int | None
    took_ms: int
    tokens_per_second: float


class NoteAdded(TypedDict):
    request: str
    text: str
    actor: str


VOCABULARY: Mapping[str, type] = {
    "segment.open": SegmentOpen,
    "ledger.recovered": LedgerRecovered,
    "ledger.cut": LedgerCut,
    "ledger.restored": LedgerRestored,
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
    "runs.forgotten": RunsForgotten,
    "job.paused": JobPaused,
    "job.resumed": JobPaused,
    "daemon.paused": DaemonPaused,
    "daemon.resumed": Paused,
    "backfill.requested": BackfillRequested,
    "backfill.cancelled": BackfillCancelled,
    "start.requested": StartRequested,
    "cancel.requested": CancelRequested,
    "files.arrived": FilesArrived,
    "files.gone": FilesGone,
    "files.hidden": FilesHidden,
    "artifact.stored": ArtifactStored,
    "artifact.redacted": ArtifactRedacted,
    "audit.finished": AuditFinished,
    "gateway.started": GatewayStarted,
    "gateway.stopped": GatewayStopped,
    "model.registered": ModelRegistered,
    "model.forgotten": ModelForgotten,
    "engine.spawned": EngineSpawned,
    "engine.loaded": EngineLoaded,
    "engine.warmed": EngineWarmed,
    "engine.draining": EngineDraining,
    "engine.ended": EngineEnded,
    "engine.fell": EngineFell,
    "breaker.opened": BreakerOpened,
    "breaker.closed": BreakerClosed,
    "generation.finished": GenerationFinished,
    "note.added": NoteAdded,
    "notice.queued": NoticeQueued,
    "notice.delivered": NoticeDelivered,
    "notice.failed": NoticeFailed,
    "notice.requeued": NoticeRequeued,
    "upgrade.probed": UpgradeProbed,
    "upgrade.checked": UpgradeChecked,
    "upgrade.planned": UpgradePlanned,
    "upgrade.stepped": UpgradeStepped,
    "upgrade.settled": UpgradeSettled,
}

VERSIONS: Mapping[str, int] = {}
"""The version that a type is written in now, where it is no longer 1. Older ones are read through `state.upcast`."""

BY_THE_LEDGER = frozenset({"segment.open", "ledger.recovered"})


class IllegalEvent(Exception):
    """An event outside the vocabulary, or one that does not say what its type must say: a bug of ours."""


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
    if (wrong := shape_of(VOCABULARY[type_], closed=True)(data)) is not None:
        raise IllegalEvent(f"{type_}: {wrong}")
    return Draft(type=type_, subject=subject, data=data, id=id, cause=cause, corr=corr, tv=VERSIONS.get(type_, 1))
