"""The upgrade planner: `plan_upgrade(question) -> answer`, and the hash that lets anyone ask again.

Of each repository of the job it says one verdict and why; the order is total: dependency depth, recommendation,
priority, risk, key. Nothing is decided here that the question does not hold, and the order in which the question tells
things changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from policies.upgrade import coordination, federation, risk, topology
from policies.upgrade.facts import Answer, Planned, Probe, Question, Recommendation, Verdict
from policies.upgrade.federation import Choice
from policies.upgrade.gate import broken, gate, need_bytes
from policies.upgrade.policy import UpgradePolicy
from policies.upgrade.topology import digest
from state.upgrades import BY_HAND, figures

Json = Any

VOLATILE = frozenset({"latency_ms", "disk_free_bytes", "home_free_bytes", "words", "fsck_words"})
"""Fields of the facts that may differ between two askings of the same question: raw latencies, bytes free at the
moment, and what git printed. They are dropped before anything is hashed, where facts have them and nowhere else: a
repository may be called as it likes. What follows from them (whether there is room) stands in the answer, which is
hashed."""

GROUPS = ("clock", "spec", "probes", "memory", "leases", "resources", "integrity", "policy", "code")

_RANK: dict[Recommendation, int] = {"upgrade": 0, "repair": 1, "hold": 2, "skip": 3}
_SHOWN = 5


class _Finding(NamedTuple):
    """What is said of a repository on its own, before others are looked at."""

    verdict: Verdict
    recommendation: Recommendation
    reason: str
    new: str | None = None
    estimate: risk.Estimate | None = None


def plan_upgrade(question: Question) -> Answer:
    """Every repository of the job once, in the order of the plan."""
    policy = UpgradePolicy.of(question["policy"])
    answer: Answer = _decide(question, policy)
    inputs = {group: digest(value) for group, value in groups(question).items()}
    first = digest({"inputs": inputs, "answer": answer})
    second = digest({"inputs": inputs, "answer": _decide(_otherwise_told(question), policy)})
    layers = _layers(question)
    granted = [row for row in answer["repos"] if row["verdict"] == "granted"]
    answer["gate"] = gate(question, granted, layers.cycles, (first, second), answer["coordination"]["lanes"], policy)
    if problem := broken(answer["gate"]):
        for row in granted:
            row |= {"verdict": "blocked", "reason": f"nothing is changed in this cycle: {problem}"[:400], "lane": -1}
    answer["topology"] = _topology(question, answer["repos"], layers)
    answer["inputs"] = inputs
    answer["decision_hash"] = hash_of(answer)
    return answer


def hash_of(answer: Mapping[str, Json]) -> str:
    """The decision hash of an answer: over the digests of all inputs, and all that was answered."""
    told = {name: value for name, value in answer.items() if name not in ("inputs", "decision_hash")}
    return digest({"inputs": answer["inputs"], "answer": told})


def groups(question: Question) -> dict[str, Json]:
    """The question by input group, without what is volatile."""
    spec = question["spec"]
    found: dict[str, Json] = {
        "clock": {"wall_ms": question["wall_ms"]},
        "spec": {
            "job": question["job"], "run": question["run"],
            "spec": {**spec, "repos": sorted(spec["repos"], key=lambda repo: str(repo["key"]))},
        },
        "probes": {key: _steady(probe) for key, probe in question["probes"].items()},
        "memory": {
            key: {**known, "remotes": {role: _without(remote) for role, remote in known.get("remotes", {}).items()}}
            for key, known in question["memory"].items()
        },
        "leases": question["leases"],
        "resources": question["resources"],
        "integrity": _without(question["integrity"]),
        "policy": question["policy"],
        "code": question["code"],
    }  # fmt: skip
    assert tuple(found) == GROUPS
    return found


def _otherwise_told(question: Question) -> Question:
    """The same question with everything in another order: the answer must be the same to the last digit."""
    spec = question["spec"]
    return {
        **question,
        "spec": {**spec, "repos": spec["repos"][::-1]},
        "probes": dict(reversed(question["probes"].items())),
        "memory": dict(reversed(question["memory"].items())),
        "leases": dict(reversed(question["leases"].items())),
    }


def _without(told: Mapping[str, Json]) -> dict[str, Json]:
    found = dict(told)
    for name in VOLATILE:
        found.pop(name, None)
    return found


def _steady(probe: Probe) -> dict[str, Json]:
    found = _without(probe)
    found["remotes"] = {role: _without(remote) for role, remote in probe["remotes"].items()}
    found["problem"] = probe["problem"] and _without(probe["problem"])
    return found


def _layers(question: Question) -> topology.Layers:
    return topology.layers({repo["key"]: repo["depends_on"] for repo in question["spec"]["repos"]})


def _decide(question: Question, policy: UpgradePolicy) -> Any:
    spec, wall_ms = question["spec"], question["wall_ms"]
    layers = _layers(question)
    pressure = coordination.pressure(question["resources"], spec["parallel"], policy)
    choices: dict[str, Choice] = {}
    found: dict[str, _Finding] = {}
    repos = {repo["key"]: repo for repo in spec["repos"]}
    for key, repo in sorted(repos.items()):
        probe, memory = question["probes"][key], question["memory"].get(key, {})
        choices[key] = federation.choose(probe, memory, wall_ms, policy)
        found[key] = _alone(repo, probe, memory, choices[key], wall_ms, policy)
    for key, path in layers.cycles.items():
        reason = f"its dependencies go in a circle: {' -> '.join(path)}"
        found[key] = found[key]._replace(verdict="blocked", reason=reason)

    def place(key: str) -> tuple[int, int, int, float, str]:
        one = found[key]
        estimated = one.estimate.risk if one.estimate else 0.0
        return (layers.depth[key], _RANK[one.recommendation], -repos[key]["priority"], estimated, key)

    order = sorted(repos, key=place)
    for key in order:  # Each comes behind what it depends on, whose verdict therefore stands.
        if found[key].verdict != "granted":
            continue
        if reason := _not_now(question, repos[key], choices[key].role, found, pressure, policy):
            found[key] = found[key]._replace(verdict="deferred", reason=reason)
    granted = [key for key in order if found[key].verdict == "granted"]
    hosts = [(key, topology.endpoint(choices[key].url)) for key in granted]
    lanes = coordination.lanes(hosts, max(1, pressure.lanes), policy.uses_per_remote_host)
    return {
        "repos": [_row(repos[key], question["probes"][key], found[key], choices[key], layers, lanes) for key in order],
        "gate": [],
        "federation": {key: choice.told() for key, choice in choices.items()},
        "coordination": {
            "lanes": pressure.lanes, "pressure": pressure.reason, "parallel": spec["parallel"],
            "hosts": {host: sum(other == host for _, other in hosts) for host in sorted({host for _, host in hosts})},
            "uses_per_remote_host": policy.uses_per_remote_host,
        },
        "topology": {},
    }  # fmt: skip


def _not_now(
    question: Question, repo: Mapping[str, Json], role: str, found: Mapping[str, _Finding],
    pressure: coordination.Pressure, policy: UpgradePolicy,
) -> str:  # fmt: skip
    """Why a repository that could be upgraded waits for another cycle; "" if it need not."""
    for other in repo["depends_on"]:
        before = found[other]
        if before.verdict not in ("granted", "unchanged"):
            return f"it depends on {other}, which is {before.verdict.replace('_', ' ')}"
    if problem := coordination.lease_problem(repo["key"], question["leases"], question["run"]):
        return problem
    if not pressure.lanes:
        return pressure.reason
    probe = question["probes"][repo["key"]]
    need, kept = need_bytes(probe, role), policy.disk_reserve_bytes
    if probe["disk_free_bytes"] < need + kept:
        return f"there is no room on its disk for {need >> 20} MiB with {kept >> 20} MiB left free"
    return ""


def _row(
    repo: Mapping[str, Json], probe: Probe, found: _Finding, choice: Choice, layers: topology.Layers,
    lanes: Mapping[str, int],
) -> Planned:  # fmt: skip
    estimate = found.estimate
    details: dict[str, Json] = {} if estimate is None else {"raw_risk": estimate.raw, "worst_file": estimate.worst_file}
    return {
        "key": repo["key"],
        "verdict": found.verdict,
        "reason": found.reason,
        "recommendation": found.recommendation,
        "depth": layers.depth[repo["key"]],
        "risk": estimate.risk if estimate else 0.0,
        "parts": estimate.parts if estimate else {},
        "strategy": repo["strategy"],
        "role": choice.role,
        "old": probe["base"] if probe["ok"] else None,
        "new": found.new,
        "lane": lanes.get(repo["key"], -1),
        "details": details,
    }


def _topology(question: Question, rows: list[Planned], layers: topology.Layers) -> dict[str, Json]:
    cycles: dict[tuple[str, ...], list[str]] = {}
    for _, path in sorted(layers.cycles.items()):
        cycles.setdefault(tuple(sorted(set(path))), path)
    digest = topology.digest_of(question["spec"]["repos"], {row["key"]: row for row in rows})
    return {"digest": digest, "cycles": [path for _, path in sorted(cycles.items())]}


_PROBLEMS = {
    "missing": "there is nothing at its path",
    "not-a-repository": "there is no git repository at its path",
    "not-yours": "it belongs to another user, and git refuses it",
    "permission": "it may not be read",
    "corrupt": "git cannot read it: it is damaged",
    "timeout": "it could not be looked at in time",
    "lost": "nobody saw how the look at it ended",
}
_PASSING = ("timeout", "lost", "unknown")


def _alone(
    repo: Mapping[str, Json], probe: Probe, memory: Mapping[str, Json], choice: Choice, wall_ms: int,
    policy: UpgradePolicy,
) -> _Finding:  # fmt: skip
    """A repository looked at by itself: its own state, then its remotes, then the change."""
    return (
        _unfit(probe)
        or _without_remote(repo, probe, choice)
        or _nothing_new(probe, memory, choice)
        or _change(repo, probe, memory, choice, wall_ms, policy)
    )


def _unfit(probe: Probe) -> _Finding | None:
    """What keeps Hermes off the repository: only a person, or time, puts it right."""
    if not probe["ok"]:
        kind = (probe["problem"] or {"class": "unknown"})["class"]
        told = _PROBLEMS.get(kind, "it could not be looked at")
        return _Finding("deferred" if kind in _PASSING else "needs_person", "repair", told)
    if not probe["fsck_ok"]:
        return _Finding("needs_person", "repair", "git fsck finds it damaged")
    if probe["bare"]:
        return _Finding("needs_person", "repair", "it is bare: there is no work tree to upgrade")
    if probe["in_progress"]:
        return _Finding("needs_person", "hold", f"a {probe['in_progress']} is in progress")
    if probe["unborn"] or probe["base"] is None:
        return _Finding("needs_person", "hold", f"its branch {probe['wanted']} has no commit")
    if probe["locks"]:
        return _Finding("deferred", "hold", f"git is at work in it, or left {_list(probe['locks'])}")
    if probe["detached"]:
        return _Finding("deferred", "hold", f"its HEAD is on no branch, and not on {probe['wanted']}")
    if probe["branch"] != probe["wanted"]:
        return _Finding("deferred", "hold", f"it is on branch {probe['branch']}, not on {probe['wanted']}")
    if probe["dirty_count"]:
        told = _list(probe["dirty"], probe["dirty_count"])
        return _Finding("deferred", "hold", f"it holds work that is not committed: {told}")
    return None


def _without_remote(repo: Mapping[str, Json], probe: Probe, choice: Choice) -> _Finding | None:
    if choice.role:
        return None
    kinds = set(choice.failures.values())
    told = ", ".join(f"{role} ({problem})" for role, problem in choice.failures.items())
    if kinds == {"no-branch"} and repo["strategy"].startswith("tag:"):
        return _Finding("unchanged", "skip", f"no tag matches {repo['strategy'][4:]}")
    if "rewritten-history" in kinds:
        return _Finding("held", "hold", f"the history of its remote was rewritten; a person decides: {told}")
    repair = kinds & {"auth", "not-found", "tls", "corrupt", "no-branch"}
    return _Finding("deferred", "repair" if repair else "skip", f"none of its remotes can be used: {told}")


def _nothing_new(probe: Probe, memory: Mapping[str, Json], choice: Choice) -> _Finding | None:
    """There is nothing to go to, or it cannot be told what going there would mean."""
    if choice.ref == probe["base"]:
        if reason := _unproven(memory, str(choice.ref)):
            return _Finding("needs_person", "repair", reason)
        return _Finding("unchanged", "skip", f"it is at the newest commit of {choice.role}")
    ahead, behind, change = figures(probe, choice.role)
    if change is None and (behind or not ahead):
        return _Finding("deferred", "hold", f"what {choice.role} has new could not be fetched to be looked at")
    if not behind:
        return _Finding("unchanged", "skip", f"it has all that {choice.role} has, and {_counted(ahead, 'commit')} more")
    return None


def _unproven(memory: Mapping[str, Json], commit: str) -> str:
    """Why a commit that a repository is at speaks against itself: the last attempt brought it there, it failed its
    proof, and it could not be rolled back."""
    for _, outcome, _, new, _, attempted, _, _, _ in reversed(memory.get("recent", ())):
        if attempted:
            left = outcome == "needs_person" and new == commit
            return f"it is still at {commit[:12]}, which failed its proof and was not rolled back" if left else ""
    return ""


def _change(
    repo: Mapping[str, Json], probe: Probe, memory: Mapping[str, Json], choice: Choice, wall_ms: int,
    policy: UpgradePolicy,
) -> _Finding:  # fmt: skip
    ahead, behind, change = figures(probe, choice.role)
    new = str(choice.ref)
    estimate = risk.estimate(change, memory, choice.health, wall_ms, policy)

    def hold(reason: str, verdict: Verdict = "held") -> _Finding:
        return _Finding(verdict, "hold", reason, new, estimate)

    if ahead and repo["strategy"] != "rebase":
        told = f"{ahead} commits are only here and {behind} only at {choice.role}"
        return hold(f"{told}; strategy {repo['strategy']} does not bring them together")
    if probe["obstructing"] and new == probe["candidate"]:
        return hold(f"files that git does not know lie where new ones come: {_list(probe['obstructing'])}", "deferred")
    if change["submodules"]:
        return hold("the change moves a submodule, which is not followed")
    tries = memory.get("bad", {}).get(new, 0)
    if tries >= BY_HAND:
        return hold(f"commit {new[:12]} was rolled back by a person; the next commit is tried")
    if tries >= policy.tries_per_commit:
        return hold(f"commit {new[:12]} failed its proof here {tries} times; the next commit is tried again")
    if estimate.risk >= policy.risk.hold_at:
        told = f"risk {estimate.risk:.2f} is {policy.risk.hold_at:g} or more"
        return hold(f"{told} ({risk.words(estimate.parts)}); a person decides")
    told = f"{_counted(behind, 'commit')} and {_counted(change['files_count'], 'file')} from {choice.role}"
    return _Finding("granted", "upgrade", f"{told}, risk {estimate.risk:.2f}", new, estimate)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _list(names: list[str], count: int | None = None) -> str:
    more = (len(names) if count is None else count) - _SHOWN
    shown = ", ".join(name if len(name) <= 60 else f"{name[:57]}..." for name in names[:_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown
