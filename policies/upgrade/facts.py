"""What is known while repositories are upgraded: plain JSON values, as they stand in the ledger.

How they come about, in one cycle of a run of `kind: upgrade`:

- Each repository is looked at by a run of its own, `probe-KEY`; what it found is `upgrade.probed` (`Probe`). Beside
  them one run reads the ledger again, `integrity`; what it found is `upgrade.checked` (`Integrity`).
- When all of those are over, `plan_upgrade(question: Question) -> Answer` decides, once; the answer is
  `upgrade.planned`. It names every repository of the job exactly once.
- A repository whose verdict is `granted` gets a run `repo-KEY`, which holds the lease `repo:KEY`, and in it the steps
  that `policies.upgrade.saga` asks for, one after another. What a git step found is `upgrade.stepped` (`Step`).
- Each repository ends in one `upgrade.settled` (`Settled`), whether it was granted or not.

Everything here is a JSON value: what is absent is None or empty, never left out, unless NotRequired says so.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

Json = Any

ROLES = ("primary", "origin", "mirror", "cache", "fallback")
"""The order in which remotes of equal health are preferred."""

Failure = Literal[
    "", "auth", "dns", "refused", "timeout", "tls", "not-found", "rate-limited", "corrupt", "rewritten-history",
    "unknown",
]  # fmt: skip
"""Why a remote could not be used; "" if it could."""

Outcome = Literal[
    "upgraded",  # it is at the new commit, and verify succeeded there
    "unchanged",  # there was nothing to do
    "held",  # it could be upgraded, and the plan advises against it (risk, strategy, a rewritten history)
    "deferred",  # not now: dirty, a foreign lease, a prerequisite that was not upgraded, too little room
    "blocked",  # the integrity gate, or a dependency cycle
    "rolled_back",  # it was at the new commit, verify failed, and it is back at the old one
    "failed",  # it is at the old commit: fetch, canary or apply did not succeed
    "needs_person",  # it cannot be decided here: a merge is in progress, no repository, moved on after a bad upgrade
]  # fmt: skip
Verdict = Literal["granted", "unchanged", "held", "deferred", "blocked", "needs_person"]
Recommendation = Literal["upgrade", "hold", "repair", "skip"]

Problem = TypedDict("Problem", {"class": str, "words": str})
"""Why a repository cannot be looked at. The classes: missing (no such path), not-a-repository, not-yours (another
owner's, which git refuses), permission, corrupt, timeout, lost (the probe's process), unknown."""


class Change(TypedDict):
    """From the branch to the candidate."""

    commits: int
    files: list[str]  # at most 200 and 16 KiB, sorted
    files_count: int
    insertions: int
    deletions: int
    bytes: int  # what the changed files hold at the candidate, together
    submodules: bool  # it moves a submodule, which is not followed


class Remote(TypedDict):
    url: str  # without credentials
    reachable: bool
    latency_ms: int  # volatile
    ref: str | None  # the commit that it offers for the branch, or by the strategy's tag
    tag: str  # with strategy tag:GLOB: the tag; else ""
    contains_base: bool | None  # whether its history contains the merge base of the branch; None: not known
    ahead: int  # commits that only the branch has; 0 where the objects are not here
    behind: int  # commits that only `ref` has
    change: Change | None  # of `ref`, where that is not the probe's `candidate`, of which `Probe.change` tells
    failure: Failure
    words: str  # what git said, in one line, without credentials


class Probe(TypedDict):
    """One repository, as it was found. With ok False only key, path and problem say something."""

    key: str
    path: str
    ok: bool
    problem: Problem | None
    head: str | None  # commit
    branch: str  # that HEAD is on; "" if it is on none
    wanted: str  # the branch that is kept up to date: that of the job, or the one HEAD was on
    base: str | None  # the commit `wanted` is at: what an upgrade starts from
    detached: bool
    unborn: bool
    bare: bool
    dirty: list[str]  # changed files that git knows, at most 50, sorted
    dirty_count: int
    untracked_count: int
    obstructing: list[str]  # untracked files that the candidate would overwrite, at most 50, sorted
    stashes: int
    in_progress: Literal["", "merge", "rebase", "cherry-pick", "bisect", "revert", "am"]
    fsck_ok: bool
    fsck_words: str
    submodules: int
    lfs: bool
    shallow: bool
    locks: list[str]  # *.lock files that git would stumble over, by name
    upgrades_left: list[str]  # what an earlier upgrade has left: worktrees, by name
    role: str  # the remote that the figures below are about: the first by `ROLES` that offers a commit; "" if none
    candidate: str | None
    ahead: int  # commits that only the branch has
    behind: int  # commits that only the candidate has
    change: Change | None  # None if there is no candidate, or its objects could not be had
    objects_bytes: int  # what the object store takes
    disk_free_bytes: int  # volatile; of the file system that the repository is on
    remotes: dict[str, Remote]  # by role


class DecisionAgain(TypedDict):
    seq: int
    hash: str
    again: str  # the hash that a replay of the ledger gives


class Integrity(TypedDict):
    """What an independent reading of the whole ledger found, in a process of its own."""

    ok: bool  # it could be read, and nothing below is wrong
    words: str  # why not
    seq: int  # up to which record
    hash: str
    records: int
    segments: int
    compared: dict[str, int]  # views and snapshots that were compared byte for byte
    findings: list[dict[str, str]]  # the first 20: where, what
    findings_in_all: int
    decisions: list[DecisionAgain]  # the last 20
    decisions_compared: int
    decisions_differing: int
    leases: list[dict[str, Json]]  # the lease files: key, holder, token, foreign, expired
    home_free_bytes: int  # volatile


class LeaseNow(TypedDict):
    holder: str
    token: int
    foreign: bool
    holder_alive: bool  # of ours: whether its run is not over


class Question(TypedDict):
    """What `plan_upgrade` is asked. Built by `policies.upgrade.saga.question_of(graph, run, wall_ms, policy)`."""

    run: str
    job: str
    wall_ms: int
    spec: dict[str, Json]  # the job's, in canonical form
    probes: dict[str, Probe]  # one for each repository of the spec
    integrity: Integrity
    leases: dict[str, LeaseNow]  # all that the graph knows, by key
    memory: dict[str, dict[str, Json]]  # by repository: what `state.upgrades` remembers of it; {} of one never seen
    resources: dict[str, int]  # cpus, memory_bytes, memory_free_bytes, disk_bytes, disk_free_bytes, running
    policy: dict[str, Json]  # the values of policies/defaults/upgrades.yaml with what the home overrides
    code: str


class Planned(TypedDict):
    """The verdict about one repository. With verdict granted, `role`, `old` and `new` are what is carried out."""

    key: str
    verdict: Verdict
    reason: str  # plain words: shown as they are
    recommendation: Recommendation
    depth: int
    risk: float  # 0..1, four digits: the estimated probability that it would have to be rolled back
    parts: dict[str, float]  # named, adding up to what the risk was made from
    strategy: str
    role: str  # the chosen remote, "" if none
    old: str | None
    new: str | None
    lane: int  # -1 unless granted
    details: NotRequired[dict[str, Json]]


class Invariant(TypedDict):
    name: str
    ok: bool
    evidence: str


class Answer(TypedDict):
    repos: list[Planned]  # every repository of the job once, in the total order of the plan
    gate: list[Invariant]  # one that is not ok blocks everything: then no verdict is granted
    federation: dict[str, Json]  # by repository: what was chosen, and of each remote why or why not
    coordination: dict[str, Json]  # lanes, budgets, pressure
    topology: dict[str, Json]  # digest, cycles, nodes, edges
    inputs: dict[str, str]  # input group -> digest
    decision_hash: str


StepName = Literal["fetch", "canary", "apply", "verify", "rollback", "inspect", "clean"]


class Step(TypedDict):
    """What a git step found when it was done. `at` is told by every one of them, so that what comes next follows from
    where the repository really is and not from what a step was meant to do."""

    step: StepName
    ok: bool
    problem: str  # "" or a class: a Failure, or dirty, moved, locked, conflict, disk, lease, gone, obstructed, unknown
    words: str
    branch: str
    at: Literal["old", "new", "elsewhere", "unknown"]  # where the branch is
    commit: str | None  # the commit that is
    clean: bool  # the work tree holds what the branch says, as far as git knows
    worktree: bool  # the throw-away worktree is there; its HEAD keeps the candidate's objects, so there are no refs
    candidate: NotRequired[str]  # of fetch: the commit to go to; with strategy rebase it is made here


class Settled(TypedDict):
    """`upgrade.settled`, as the projector and the memory get it."""

    run: str  # the run of kind upgrade
    job: str
    key: str
    path: str
    outcome: Outcome
    reason: str
    old: str | None
    new: str | None
    risk: float | None  # as it was estimated; None where no plan was made
    attempted: bool  # it was granted and its steps began: for these the estimate can be held against what happened
    step: str  # the step that failed, which says whether it speaks against the commit (canary, verify); "" if none did
    role: str  # the remote that was used
    url: str


def unseen(key: str, path: str, branch: str, kind: str, words: str) -> Probe:
    """The facts of a repository that could not be looked at."""
    return {
        "key": key, "path": path, "ok": False, "problem": {"class": kind, "words": words}, "head": None, "branch": "",
        "wanted": branch, "base": None, "detached": False, "unborn": False, "bare": False, "dirty": [],
        "dirty_count": 0, "untracked_count": 0, "obstructing": [], "stashes": 0, "in_progress": "", "fsck_ok": False,
        "fsck_words": "", "submodules": 0, "lfs": False, "shallow": False, "locks": [], "upgrades_left": [],
        "role": "", "candidate": None, "ahead": 0, "behind": 0, "change": None, "objects_bytes": 0,
        "disk_free_bytes": 0, "remotes": {},
    }  # fmt: skip


def unread(words: str) -> Integrity:
    """The facts where the ledger could not be read again."""
    return {
        "ok": False, "words": words, "seq": 0, "hash": "", "records": 0, "segments": 0, "compared": {}, "findings": [],
        "findings_in_all": 0, "decisions": [], "decisions_compared": 0, "decisions_differing": 0, "leases": [],
        "home_free_bytes": 0,
    }  # fmt: skip
