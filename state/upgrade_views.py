"""The views of repository upgrades. They are written only where there have been any.

What forgets with time (the health of a remote) is told as of the last probe, so that the same records give the same
bytes at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ledger.instant import text_of
from state import intelligence
from state.graph import OVER, Graph, RepositoryMemory, Upgrade
from state.intelligence import Priors
from state.upgrades import memories, proved, told

Json = Any

HISTORY_SHOWN = 1000
"""`auto_safe_upgrade_state_history.jsonl` shows so many of the latest settled cycles; the ledger has them all."""
_ROWS_SHOWN = 20


def wanted(graph: Graph) -> bool:
    """Whether there have been upgrades: else none of these views is written."""
    return bool(graph.upgrades or graph.memories)


def _latest(graph: Graph) -> list[Upgrade]:
    """Of each job the latest upgrade, by job."""
    return sorted(graph.upgrades.values(), key=lambda upgrade: (upgrade.job, upgrade.run))


def _counts(words: Iterator[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in words:
        found[word] = found.get(word, 0) + 1
    return found


def _instant(at_ms: int) -> str:
    return text_of(at_ms) if at_ms else ""


def _phase(graph: Graph, upgrade: Upgrade) -> str:
    run = graph.run(upgrade.run)
    if run is None or run.state in OVER:
        return "over"
    if not upgrade.plan:
        return "probing"
    return "executing" if len(upgrade.settled) < len(upgrade.plan["repos"]) else "finishing"


def _gate(upgrade: Upgrade) -> Json:
    return {"holds": all(one["ok"] for one in upgrade.plan["gate"]), "invariants": upgrade.plan["gate"]}


def auto_safe_upgrade_summary(graph: Graph) -> Json:
    """How the latest upgrade of each job stands, in numbers."""
    rows = []
    for upgrade in _latest(graph):
        run, plan = graph.run(upgrade.run), upgrade.plan
        rows.append(
            {
                "job": upgrade.job,
                "run": upgrade.run,
                "phase": _phase(graph, upgrade),
                "started_at": run.started_at if run is not None else "",
                "ended_at": run.ended_at if run is not None else "",
                "probed": len(upgrade.probes),
                "planned_seq": upgrade.planned_seq,
                "decision_hash": plan.get("decision_hash", ""),
                "gate_holds": _gate(upgrade)["holds"] if plan else None,
                "verdicts": _counts(row["verdict"] for row in plan.get("repos", ())),
                "outcomes": _counts(data["outcome"] for data in upgrade.settled.values()),
            }
        )
    known = memories(graph)
    totals: dict[str, int] = {}
    for memory in known:
        for outcome, times in memory.settled.items():
            totals[outcome] = totals.get(outcome, 0) + times
    return {"upgrades": rows, "repositories": len(known), "settled_in_all": totals}


def auto_safe_upgrade_state(graph: Graph) -> Json:
    """Each repository of the latest upgrade of each job: what was found, decided, done, and what came of it."""
    return {"repositories": [row for upgrade in _latest(graph) for row in _repositories(graph, upgrade)]}


def _repositories(graph: Graph, upgrade: Upgrade) -> Iterator[Json]:
    planned = {row["key"]: row for row in upgrade.plan.get("repos", ())}
    order = [*planned, *sorted(upgrade.probes.keys() - planned.keys())]
    run = graph.run(upgrade.run)
    steps: dict[str, str] = {}  # repository -> the last step that it has begun
    for name in run.children if run is not None else ():
        child = graph.run(name)
        last = graph.run(child.children[-1]) if child is not None and child.children else None
        if child is not None and last is not None:
            steps[child.step.removeprefix("repo-")] = last.step
    for key in order:
        probe, row, settled = upgrade.probes.get(key), planned.get(key), upgrade.settled.get(key)
        yield {
            "job": upgrade.job,
            "run": upgrade.run,
            "repository": key,
            "path": probe["path"] if probe else "",
            "branch": probe["branch"] if probe else "",
            "commit": (probe["base"] or "") if probe else "",
            "dirty": probe["dirty_count"] if probe and probe["ok"] else 0,
            "verdict": row["verdict"] if row else "",
            "recommendation": row["recommendation"] if row else "",
            "reason": settled["reason"] if settled else row["reason"] if row else "",
            "risk": row["risk"] if row else None,
            "parts": row["parts"] if row else {},
            "depth": row["depth"] if row else None,
            "lane": row["lane"] if row else None,
            "strategy": row["strategy"] if row else "",
            "remote": row["role"] if row else "",
            "old": (row["old"] or "") if row else "",
            "new": (row["new"] or "") if row else "",
            "last_step": steps.get(key, ""),
            "outcome": settled["outcome"] if settled else "",
        }


def history(graph: Graph) -> list[Json]:
    """The latest settled cycles, oldest first."""
    cycles = [(row[0], row[7], memory.key, row) for memory in memories(graph) for row in memory.recent]
    rows = []
    for at_ms, run, key, row in sorted(cycles)[-HISTORY_SHOWN:]:
        _, outcome, old, new, risk, attempted, step, _, reason = row
        rows.append(
            {
                "at": text_of(at_ms), "repository": key, "run": run, "outcome": outcome, "old": old, "new": new,
                "risk": risk, "attempted": attempted, "failed_step": step, "reason": reason,
            }
        )  # fmt: skip
    return rows


def _priors(memory: RepositoryMemory) -> Priors | None:
    """None until there was a plan, which says how memory is to be read."""
    return Priors(**memory.priors) if memory.priors else None  # type: ignore[arg-type]


def _remotes(memory: RepositoryMemory) -> Iterator[tuple[str, Json, Json]]:
    """Role, what is remembered, and how it stands."""
    priors = _priors(memory)
    for role, remote in sorted(memory.remotes.items()):
        at_ms = remote["probes"][-1][0] if remote["probes"] else 0
        how = intelligence.standing(remote, at_ms, priors) if priors else None
        yield role, remote, {
            "health": how.health if how else None,
            "on_probation": how.demoted if how else None,
            "healthy_in_row": how.streak if how else None,
            "probes": len(remote["probes"]),
            "last_probe_at": _instant(at_ms),
        }  # fmt: skip


def remote_health(graph: Graph) -> Json:
    """How each remote of each repository is doing, as of its last probe."""
    return {
        "remotes": [
            {"repository": memory.key, "role": role, "url": remote["url"], **how}
            | {"failure": remote["failure"], "words": remote["words"]}
            for memory in memories(graph)
            for role, remote, how in _remotes(memory)
        ]
    }


def runtime_intelligence(graph: Graph) -> Json:
    """What upgrades have taught of each repository: rates, and how many observations stand behind them."""
    rows = []
    for memory in memories(graph):
        known, priors = told(memory), _priors(memory)
        rows.append(
            {
                "repository": memory.key,
                "stability": intelligence.stability(known),
                "rollback_rate": round(intelligence.rollback_rate(known, priors), 4) if priors else None,
                "failure_by_hour_of_week": intelligence.by_hour(known, priors) if priors else {},
                "confidence": intelligence.confidence(known),
                "observations": {
                    "cycles": sum(memory.settled.values()),
                    "attempts": memory.attempts,
                    "proofs_remembered": len(intelligence.proofs(known)),
                },
                "outcomes": memory.settled,
                "fragile_files": _fragile(memory),
                "last_success_at": _instant(memory.last_success_ms),
            }
        )
    return {"repositories": rows}


def _fragile(memory: RepositoryMemory) -> list[Json]:
    """The files that most often stood in a failed attempt."""
    failed = [(path, counts) for path, counts in memory.files.items() if counts[1]]
    worst = sorted(failed, key=lambda item: (-item[1][1] / item[1][0], item[0]))[:_ROWS_SHOWN]
    return [{"file": path, "attempts": counts[0], "failed": counts[1]} for path, counts in worst]


def rollback_intelligence(graph: Graph) -> Json:
    """Of each repository what it could go back to, how often it had to, and how likely it is the next time."""
    rows = []
    for memory in memories(graph):
        known, priors = told(memory), _priors(memory)
        attempts = [row for row in memory.recent if row[5]]
        last = attempts[-1] if attempts else ()
        at_new = bool(last) and last[1] == "upgraded"
        rows.append(
            {
                "repository": memory.key,
                "path": memory.path,
                "last_known_good": memory.last_good,
                "pre_upgrade": memory.pre_upgrade,
                "restore": {
                    "possible": bool(at_new and last[2]),
                    "from": last[3] if at_new else "",
                    "to": last[2] if at_new else "",
                    "command": f"hermesd upgrade rollback {memory.key}" if at_new else "",
                },
                "history": [
                    {"at": text_of(row[0]), "outcome": row[1], "old": row[2], "new": row[3], "failed_step": row[6]}
                    for row in attempts[-_ROWS_SHOWN:]
                ],
                "rolled_back": sum(proved(row[1], row[5], row[6]) is False for row in memory.recent),
                "failed_commits": memory.bad,
                "next_rollback_probability": round(intelligence.rollback_rate(known, priors), 4) if priors else None,
                "planned_risk": memory.choice.get("risk"),
            }
        )
    return {"repositories": rows}


def remote_federation_state(graph: Graph) -> Json:
    """Which remote each repository is upgraded from, why, and when that changed. git's configuration is not touched."""
    return {
        "repositories": [
            {
                "repository": memory.key,
                "remote": memory.choice.get("role", ""),
                "chosen_at": _instant(memory.choice.get("at_ms", 0)),
                "why": memory.choice.get("why", {}),
                "promotions": [
                    {"at": text_of(at_ms), "from": before, "to": after, "why": why}
                    for at_ms, before, after, why in memory.promotions
                ],
                "healthy_probes_to_return": memory.priors.get("healthy_probes"),
            }
            for memory in memories(graph)
        ]
    }


def federation_topology_state(graph: Graph) -> Json:
    """Repositories, what they depend on, and the remotes they know, of each job's latest plan."""
    rows = []
    for upgrade in _latest(graph):
        plan = upgrade.plan
        if not plan:
            continue
        nodes, edges = [], []
        for row in plan["repos"]:
            key = row["key"]
            nodes.append({"id": f"repository/{key}", "kind": "repository", "verdict": row["verdict"]})
            for role, remote in sorted(upgrade.probes.get(key, {}).get("remotes", {}).items()):
                nodes.append({"id": f"remote/{key}/{role}", "kind": "remote", "url": remote["url"]})
                kind = "fetches-from" if role == row["role"] else "knows"
                edges.append([f"repository/{key}", kind, f"remote/{key}/{role}"])
        rows.append(
            {"job": upgrade.job, "run": upgrade.run, **plan["topology"], "coordination": plan["coordination"]}
            | {"nodes": nodes, "edges": edges}
        )
    return {"topologies": rows}


def plans(graph: Graph) -> Json:
    """For `global_orchestration_plan`: the latest upgrade plan of each job, in its order."""
    return [
        {
            "job": upgrade.job,
            "run": upgrade.run,
            "seq": upgrade.planned_seq,
            "decision_hash": upgrade.plan["decision_hash"],
            "inputs": upgrade.plan["inputs"],
            "order": [
                {name: row[name] for name in ("key", "verdict", "reason", "depth", "risk", "lane")}
                for row in upgrade.plan["repos"]
            ],
        }
        for upgrade in _latest(graph)
        if upgrade.plan
    ]


def gates(graph: Graph) -> Json:
    """For `control_plane_integrity`: the integrity gate of each job's latest plan."""
    return [{"job": u.job, "run": u.run, "seq": u.planned_seq, **_gate(u)} for u in _latest(graph) if u.plan]


def decisions_again(graph: Graph) -> Json:
    """For `runtime_consensus_state`: recent decisions, and what a replay in a process of its own made of them."""
    found: dict[int, Json] = {}
    for upgrade in _latest(graph):
        for one in upgrade.integrity.get("decisions", ()):
            found[one["seq"]] = {**one, "agrees": one["hash"] == one["again"]}
    return [found[seq] for seq in sorted(found)]


def coordination(graph: Graph) -> Json:
    """For `agent_coordination_state`: lanes and pressure of each job's latest plan."""
    return [{"job": u.job, "run": u.run, **u.plan["coordination"]} for u in _latest(graph) if u.plan]


VIEWS: Mapping[str, Callable[[Graph], Json]] = {
    view.__name__: view
    for view in (
        auto_safe_upgrade_summary,
        auto_safe_upgrade_state,
        remote_health,
        runtime_intelligence,
        rollback_intelligence,
        remote_federation_state,
        federation_topology_state,
    )
}
HISTORY = "auto_safe_upgrade_state_history"

ADDED: Mapping[str, tuple[str, Callable[[Graph], Json]]] = {
    "global_orchestration_plan": ("upgrades", plans),
    "control_plane_integrity": ("gates", gates),
    "runtime_consensus_state": ("decisions", decisions_again),
    "agent_coordination_state": ("upgrades", coordination),
    "live_runtime_control_plane": ("upgrades", lambda graph: auto_safe_upgrade_summary(graph)["upgrades"]),
}
"""What views that are always there tell besides, where there have been upgrades."""
