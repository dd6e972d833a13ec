"""The memory of upgrades: what each probe and each settled cycle adds to what is known of a repository and its remotes.

Facts and counts only; what they mean (rates, health, confidence) is said by `state.intelligence`, by the
parameters of the policy that the latest plan was made with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from state.graph import Graph, RepositoryMemory

Json = Any

RECENT_KEPT = 50
PROBES_KEPT = 32
FILES_KEPT = 200
BAD_KEPT = 20
PROMOTIONS_KEPT = 20
BY_HAND = 1000
"""A commit that a person rolled back counts as one that failed so often: it is not brought back by a plan."""
GOOD = frozenset({"upgraded", "unchanged"})
"""The outcomes after which a repository is at the newest commit, as far as anybody knows."""
PROVING = frozenset({"canary", "verify", "person"})
"""What speaks against a commit when it is named as what failed: not the network, the disk, or a step that was lost."""
_HOUR_MS, _HOURS = 3_600_000, 168
_MONDAY = 72
"""1970 began on a Thursday: so many hours after a Monday."""


def empty(key: str) -> RepositoryMemory:
    return RepositoryMemory(f"memory/{key}", key, "", "", {}, 0, (), 0, "", "", {}, {}, {}, {}, {}, (), {})


def memory(graph: Graph, key: str) -> RepositoryMemory | None:
    return graph.memories.get(key)


def memories(graph: Graph) -> list[RepositoryMemory]:
    """By key."""
    return [graph.memories[key] for key in sorted(graph.memories)]


def planned(
    before: RepositoryMemory | None, row: Mapping[str, Json], choice: Mapping[str, Json], priors: Mapping[str, Json],
    at_ms: int,
) -> RepositoryMemory:  # fmt: skip
    """After `upgrade.planned`: which remote was chosen and why, how risky it is, and what memory is to be read with."""
    known = before or empty(row["key"])
    role, was = row["role"], known.choice.get("role", "")
    told = {
        "role": role, "why": choice.get("why", {}), "at_ms": at_ms, "verdict": row["verdict"], "reason": row["reason"],
        "risk": row["risk"], "new": row["new"] or "",
    }  # fmt: skip
    promotions = known.promotions
    if role and was and role != was:
        promotions = (*promotions, (at_ms, was, role, choice.get("why", {}).get(was, "")))[-PROMOTIONS_KEPT:]
    if not role:  # No remote could be used: the one before it is still the one that others are measured against.
        told["role"] = was
    return known._replace(choice=told, promotions=promotions, priors=dict(priors))


def told(known: RepositoryMemory | None) -> dict[str, Json]:
    """As JSON values, for a planner's question; {} of a repository never seen."""
    return {} if known is None else {name: value for name, value in known._asdict().items() if name != "id"}


def figures(probe: Mapping[str, Json], role: str) -> tuple[int, int, Json]:
    """Ahead, behind and change of what a remote offers. Where it is the probe's candidate, the probe tells them."""
    remote = probe.get("remotes", {}).get(role)
    if remote is None or remote["ref"] == probe["candidate"]:
        return probe["ahead"], probe["behind"], probe["change"]
    return remote["ahead"], remote["behind"], remote["change"]


def hour_of_week(at_ms: int) -> int:
    """0 is Monday from midnight UTC; 167 is Sunday's last hour."""
    return (at_ms // _HOUR_MS + _MONDAY) % _HOURS


def proved(outcome: str, attempted: bool, step: str) -> bool | None:
    """Whether a settled cycle speaks for its commit (True), against it (False), or says nothing about it (None)."""
    if not attempted:
        return None
    if outcome == "upgraded":
        return True
    return False if step in PROVING and outcome in ("rolled_back", "failed", "needs_person") else None


def probed(before: RepositoryMemory | None, probe: Mapping[str, Json], job: str, at_ms: int) -> RepositoryMemory:
    """After `upgrade.probed`. A remote that has another address now begins anew."""
    known = before or empty(probe["key"])
    remotes = {role: known.remotes[role] for role in known.remotes if role in probe.get("remotes", {})}
    for role, remote in sorted(probe.get("remotes", {}).items()):
        old = remotes.get(role)
        probes = old["probes"] if old is not None and old["url"] == remote["url"] else []
        offered, known_before = remote["ref"], old["known"] if probes and old is not None else None
        well = bool(remote["reachable"]) and not remote["failure"]
        remotes[role] = {
            "url": remote["url"],
            "failure": remote["failure"],
            "words": remote["words"],
            # What it offered last; a history that was rewritten is measured by what it was before.
            "known": offered if offered and remote["failure"] != "rewritten-history" else known_before,
            "probes": [*probes, [at_ms, int(well)]][-PROBES_KEPT:],
        }
    return known._replace(path=probe["path"], job=job, remotes=remotes if probe["ok"] else known.remotes)


def settled(
    before: RepositoryMemory | None, data: Mapping[str, Json], files: Iterable[str], at_ms: int, good: str | None = None
) -> RepositoryMemory:
    """After `upgrade.settled`. `files`: what the candidate changes; `good`: the commit it is at, where that is known to
    be a good one although nothing was upgraded."""
    known, outcome = before or empty(data["key"]), data["outcome"]
    proof = proved(outcome, data["attempted"], data["step"])
    broke = proof is False
    row = (
        at_ms, outcome, data["old"] or "", data["new"] or "", data["risk"], data["attempted"], data["step"],
        data["run"], data["reason"],
    )  # fmt: skip
    change: dict[str, Any] = {
        "path": data["path"],
        "job": data["job"],
        "settled": {**known.settled, outcome: known.settled.get(outcome, 0) + 1},
        "recent": (*known.recent, row)[-RECENT_KEPT:],
    }
    if outcome in GOOD:
        change["last_success_ms"] = at_ms
    if outcome == "upgraded":
        change["last_good"] = data["new"] or ""
    elif outcome in ("rolled_back", "unchanged") and (data["old"] or good):
        change["last_good"] = data["old"] or good
    if data["attempted"]:
        change["attempts"] = known.attempts + 1
        change["pre_upgrade"] = data["old"] or known.pre_upgrade
    if proof is not None:
        hour = str(hour_of_week(at_ms))
        tried, failed = known.hours.get(hour, (0, 0))
        change["hours"] = {**known.hours, hour: [tried + 1, failed + broke]}
        change["files"] = _files(known.files, files, broke)
    if broke and data["new"]:
        bad = {commit: times for commit, times in known.bad.items() if commit != data["new"]}
        bad[data["new"]] = known.bad.get(data["new"], 0) + (BY_HAND if data["step"] == "person" else 1)
        change["bad"] = dict(list(bad.items())[-BAD_KEPT:])
    return known._replace(**change)


def _files(before: Mapping[str, list[int]], files: Iterable[str], broke: bool) -> dict[str, list[int]]:
    found = dict(before)
    for path in files:
        tried, failed = found.get(path, (0, 0))
        found[path] = [tried + 1, failed + broke]
    if len(found) > FILES_KEPT:
        worst = sorted(found.items(), key=lambda item: (-item[1][1], -item[1][0], item[0]))[:FILES_KEPT]
        found = dict(worst)
    return dict(sorted(found.items()))
