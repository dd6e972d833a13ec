"""What comes next in an upgrade: which steps begin, when the plan is due, what each repository came to.

    integrity, probe-A, probe-B, ...  ->  plan  ->  repo-A: fetch, canary, apply, verify, [rollback,] clean

All of it is read off the graph: a step that has ended is never followed by what it was meant to do, but by where the
repository was found to be. One that was lost is followed by `inspect`. So it makes no difference when the daemon, or a
step, is killed: the same graph gives the same next step, and a repository ends at its old commit, or at the new one
with `verify` passed there.

Once a repository is being changed it is seen through: a run that is stopped starts nothing new, and brings what it has
begun to such an end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

from ledger.record import Draft
from policies.upgrade.facts import Integrity, LeaseNow, Probe, Question, Step, unread, unseen
from policies.upgrade.plan import plan_upgrade
from state import upgrades
from state.events import draft
from state.graph import OVER, Graph, Run, Upgrade
from state.shape import shape_of

Json = Any

INTEGRITY = "integrity"
PROBE = "probe-"
REPO = "repo-"
REMOTE_TIMEOUT_MS = 60_000
INTEGRITY_TIMEOUT_MS = 1_800_000
STEP_TIMEOUT_MS = 300_000
"""Of a step that only touches the repository itself."""
SPARE_MS = 30_000
"""So much longer than its own bound a git step may take before it is stopped from outside."""
TRIES = 3
"""So often a step is begun again that is needed and did not succeed."""
LOST_MAX = 20
"""So often one that is needed and was lost: only a machine that keeps dying gets there."""

WELL = frozenset({"upgraded", "unchanged"})
"""Outcomes after which what depends on a repository may go on."""
BAD = ("needs_person", "rolled_back", "failed", "blocked")
"""Outcomes that make the whole run a failure, the worst first."""
_ONCE: dict[str, Json] = {
    "attempts": 1, "backoff": "fixed", "base": 0, "max": 0, "on": [], "idempotent": False,
}  # fmt: skip


class Past(NamedTuple):
    """A step that is over."""

    step: str
    state: str
    reason: str
    facts: Step | None
    """None of a command, and of a git step that told nothing."""

    @property
    def proved_wrong(self) -> bool:
        """It came to an end of its own, and that was no success."""
        return self.state in ("failed", "timed_out")


class Do(NamedTuple):
    step: str


class End(NamedTuple):
    outcome: str
    reason: str
    step: str = ""
    """The one that failed."""


# What a container wants to begin.


def wanted(graph: Graph, run: Run) -> tuple[dict[str, Json], ...]:
    """The steps that the container `run` would begin now, each with all it is to do."""
    if run.spec["kind"] == "repository":
        if run.state not in ("running", "stopping"):
            return ()
        next_ = next_step(run.spec, past(graph, run), stopping=run.state == "stopping") if _idle(graph, run) else None
        return (_step(graph, run, next_.step),) if isinstance(next_, Do) else ()
    upgrade = graph.upgrades.get(run.name)
    if run.state != "running" or upgrade is None:
        return ()
    if undo := run.spec.get("undo"):
        return () if run.children else (_undo(run.spec, undo),)
    return tuple(_repositories(graph, run, upgrade) if upgrade.plan else _looks(graph, run))


def _idle(graph: Graph, run: Run) -> bool:
    return all(child is None or child.state in OVER for child in map(graph.run, run.children))


def _begun(graph: Graph, run: Run) -> dict[str, str]:
    """Step -> its state."""
    return {child.step: child.state for name in run.children if (child := graph.run(name)) is not None}


def _looks(graph: Graph, run: Run) -> Iterable[dict[str, Json]]:
    spec, begun = run.spec, _begun(graph, run)
    room = spec["parallel"] - sum(state not in OVER for step, state in begun.items() if step != INTEGRITY)
    if INTEGRITY not in begun:
        yield _git(INTEGRITY, "integrity", INTEGRITY_TIMEOUT_MS, {})
    for repo in spec["repos"]:
        if room > 0 and PROBE + repo["key"] not in begun:
            room -= 1
            yield probe_of(graph, spec, repo)


def probe_of(graph: Graph, spec: Mapping[str, Json], repo: Mapping[str, Json]) -> dict[str, Json]:
    known = upgrades.told(upgrades.memory(graph, repo["key"]))
    offered = {role: remote.get("known") for role, remote in known.get("remotes", {}).items()}
    args = {
        "key": repo["key"], "path": repo["path"], "branch": repo["branch"], "remotes": repo["remotes"],
        "strategy": repo["strategy"], "known": {role: ref for role, ref in offered.items() if ref},
        "timeout_s": spec["probe_timeout"] / 1000,
        "remote_timeout_s": min(spec["probe_timeout"], REMOTE_TIMEOUT_MS) / 1000,
    }  # fmt: skip
    return _git(PROBE + repo["key"], "probe", spec["probe_timeout"], args)


def _git(name: str, verb: str, timeout_ms: int, args: dict[str, Json], *, shielded: bool = False) -> dict[str, Json]:
    return {
        "name": name, "kind": "git", "verb": verb, "args": args, "timeout": timeout_ms + SPARE_MS, "grace": 10_000,
        "retry": _ONCE, "shielded": shielded,
    }  # fmt: skip


def _repositories(graph: Graph, run: Run, upgrade: Upgrade) -> Iterable[dict[str, Json]]:
    """Of each lane the first repository that is not settled, if its turn has come."""
    begun, busy = _begun(graph, run), set()
    repos = {repo["key"]: repo for repo in run.spec["repos"]}
    for row in upgrade.plan["repos"]:
        key = row["key"]
        if row["verdict"] != "granted" or key in upgrade.settled or row["lane"] in busy:
            continue
        busy.add(row["lane"])
        repo = repos[key]
        if REPO + key not in begun and all(other in upgrade.settled for other in repo["depends_on"]):
            yield _repository(run.spec, repo, row)


def _repository(spec: Mapping[str, Json], repo: Mapping[str, Json], row: Mapping[str, Json]) -> dict[str, Json]:
    told = ("path", "branch", "canary", "verify", "canary_timeout", "verify_timeout", "strategy", "hooks")
    return {
        "name": REPO + repo["key"], "kind": "repository", "key": repo["key"], "leases": [f"repo:{repo['key']}"],
        **{name: repo[name] for name in told}, "old": row["old"], "new": row["new"], "role": row["role"],
        "address": repo["remotes"][row["role"]], "fetch_timeout": spec["fetch_timeout"], "undo": False,
        **{name: spec[name] for name in ("env", "limits", "tags", "grace")}, "step_needs": spec["needs"],
        "timeout": None, "retry": _ONCE,
    }  # fmt: skip


def _undo(spec: Mapping[str, Json], undo: Mapping[str, Json]) -> dict[str, Json]:
    repo = next(repo for repo in spec["repos"] if repo["key"] == undo["key"])
    role = next(iter(repo["remotes"]))
    row = {"old": undo["old"], "new": undo["new"], "role": role}
    return {**_repository(spec, repo, row), "undo": True}


def _step(graph: Graph, run: Run, step: str) -> dict[str, Json]:
    """A step of one repository, by a name of its own: what is done again has a number."""
    spec = run.spec
    before = [child.step for name in run.children if (child := graph.run(name)) is not None]
    count = sum(_base(name) == step for name in before)
    name = step if not count else f"{step}-{count + 1}"
    if step in ("canary", "verify"):
        return {
            "name": name, "kind": "command", "argv": spec[step], "shell": None, "stdin": None,
            "timeout": spec[f"{step}_timeout"], "grace": spec["grace"], "retry": _ONCE, "needs": spec["step_needs"],
            "place": "worktree" if step == "canary" else "repository",
        }  # fmt: skip
    timeout_ms = spec["fetch_timeout"] if step == "fetch" else STEP_TIMEOUT_MS
    candidate = next((one.facts["candidate"] for one in past(graph, run) if one.facts and "candidate" in one.facts), "")
    args: dict[str, Json] = {
        "path": spec["path"], "branch": spec["branch"], "old": spec["old"], "new": candidate or spec["new"],
        "timeout_s": timeout_ms / 1000,
    }  # fmt: skip
    if step == "fetch":
        args |= {name: spec[name] for name in ("address", "strategy")} | {"checkout": bool(spec["canary"])}
    if step == "apply":
        args["hooks"] = spec["hooks"]
    # What changes the repository is not cut short by a wish: it is quick, and has a bound of its own.
    return _git(name, step, timeout_ms, args, shielded=step != "fetch")


def _base(step: str) -> str:
    return step.split("-")[0]


# What comes after what.


def past(graph: Graph, run: Run) -> list[Past]:
    upgrade = graph.upgrades.get(run.parent)
    facts = upgrade.steps if upgrade is not None else {}
    children = [child for name in run.children if (child := graph.run(name)) is not None]
    return [Past(_base(child.step), child.state, child.reason, _told(facts.get(child.name))) for child in children]


def _told(facts: Step | None) -> Step | None:
    """A step that could not find out where the repository is has told nothing, unless that it is gone."""
    return None if facts is None or (facts["at"] == "unknown" and facts["problem"] != "gone") else facts


def next_step(spec: Mapping[str, Json], done: Sequence[Past], *, stopping: bool) -> Do | End:
    """The next step of one repository, all of whose steps so far are over; or what it came to."""
    came_to = _after([one for one in done if one.step != "clean"], spec, stopping=stopping)
    if isinstance(came_to, Do):
        return came_to
    cleans = [one for one in done if one.step == "clean"]
    if not any(one.step == "fetch" for one in done) or (cleans and cleans[-1].facts and cleans[-1].facts["ok"]):
        return came_to
    if sum(one.facts is not None for one in cleans) < TRIES and len(cleans) < LOST_MAX:
        return Do("clean")
    why = cleans[-1].facts["words"] if cleans[-1].facts else cleans[-1].reason
    return came_to._replace(reason=f"{came_to.reason}; what it used could not be cleaned up: {why}")


def _after(done: Sequence[Past], spec: Mapping[str, Json], *, stopping: bool) -> Do | End:
    if not done:
        if spec["undo"]:
            return Do("rollback")
        return End("deferred", "the run was stopped before its turn came") if stopping else Do("fetch")
    last = done[-1]
    match last.step:
        case "fetch":
            return _after_fetch(last, spec, stopping=stopping)
        case "canary":
            return _after_canary(last, stopping=stopping)
        case "apply" if last.facts is not None:
            return _after_apply(last, last.facts, done, spec, stopping=stopping)
        case "verify":
            return End("upgraded", _verified(spec)) if last.state == "succeeded" else Do("rollback")
        case "rollback" if last.facts is not None:
            return _after_rollback(last.facts, done, spec)
        case "inspect" if last.facts is not None:
            return _after_inspect(last.facts, done, spec, stopping=stopping)
    if sum(one.step == "inspect" and one.facts is None for one in done) >= LOST_MAX:
        return End("needs_person", f"it could not be found out where the repository is: {last.reason}")
    return Do("inspect")


def _after_fetch(last: Past, spec: Mapping[str, Json], *, stopping: bool) -> Do | End:
    facts = last.facts
    if facts is None:
        return Do("inspect")
    if not facts["ok"]:
        outcome = {"conflict": "needs_person", "gone": "needs_person", "rewritten-history": "held", "disk": "deferred"}
        return End(outcome.get(facts["problem"], "failed"), f"fetch: {facts['words']}", "fetch")
    if stopping:
        return End("deferred", "the run was stopped before anything of it was changed")
    if facts["at"] != "old":
        return End("deferred", "somebody has moved the branch since it was looked at")
    return Do("canary" if spec["canary"] else "apply")


def _after_canary(last: Past, *, stopping: bool) -> Do | End:
    if last.state != "succeeded":
        if last.proved_wrong:
            return End("failed", f"the canary {last.state.replace('_', ' ')}: {last.reason}", "canary")
        outcome = "failed" if last.state == "blocked" else "deferred"
        return End(outcome, f"the canary did not come to its end: {last.reason}")
    return End("deferred", "the run was stopped before anything of it was changed") if stopping else Do("apply")


def _after_apply(
    last: Past, facts: Step, done: Sequence[Past], spec: Mapping[str, Json], *, stopping: bool
) -> Do | End:
    if facts["at"] == "new":
        return _at_new(done, spec, stopping=stopping)
    if facts["problem"] == "gone":
        return End("needs_person", facts["words"], "apply")
    if facts["problem"] in ("dirty", "locked", "moved", "obstructed", "disk", "lease") or facts["at"] == "elsewhere":
        return End("deferred", facts["words"] or "somebody has moved the branch meanwhile", "apply")
    return End("failed", facts["words"] or last.reason, "apply")


def _at_new(done: Sequence[Past], spec: Mapping[str, Json], *, stopping: bool) -> Do | End:
    """It is at the new commit by our hand, and nothing has been said against that yet."""
    if not spec["verify"]:
        return End("upgraded", _verified(spec))
    return Do("rollback") if stopping or any(one.step == "verify" for one in done) else Do("verify")


def _verified(spec: Mapping[str, Json]) -> str:
    proofs = [name for name in ("canary", "verify") if spec[name]]
    return f"{' and '.join(proofs)} succeeded" if proofs else "the job has it proved by nothing"


def _after_rollback(facts: Step, done: Sequence[Past], spec: Mapping[str, Json]) -> Do | End:
    why, step = _blamed(done, spec)
    if facts["at"] == "old":
        return End("rolled_back", why, step)
    if facts["at"] == "new" and facts["problem"] == "locked" and sum(one.step == "rollback" for one in done) < TRIES:
        return Do("rollback")
    told = "somebody has moved the branch since" if facts["at"] == "elsewhere" else facts["words"]
    return End("needs_person", f"{why}; it was not rolled back: {told}", step)


def _blamed(done: Sequence[Past], spec: Mapping[str, Json]) -> tuple[str, str]:
    """Why it is rolled back, and the step that speaks against the commit."""
    if spec["undo"]:
        return "a person asked for it", "person"
    verify = next((one for one in reversed(done) if one.step == "verify"), None)
    if verify is None:
        return "the run was stopped before verify began", ""
    if verify.proved_wrong:
        return f"verify {verify.state.replace('_', ' ')}: {verify.reason}", "verify"
    return f"verify did not come to its end: {verify.reason}", ""


def _after_inspect(facts: Step, done: Sequence[Past], spec: Mapping[str, Json], *, stopping: bool) -> Do | End:
    """A step was lost: it goes on from where the repository is."""
    steps = {one.step for one in done}
    lost = next(one for one in reversed(done) if one.step != "inspect")
    told = f"{lost.step} was lost ({lost.reason})"
    tried = sum(one.step == "rollback" for one in done)
    if facts["at"] == "unknown":
        return End("needs_person", f"{told}, and {facts['words']}")
    if facts["at"] == "elsewhere":
        outcome = "needs_person" if "apply" in steps or spec["undo"] else "deferred"
        return End(outcome, f"{told}, and somebody has moved the branch since")
    if facts["at"] == "old":
        if "rollback" in steps:
            why, step = _blamed(done, spec)
            return End("rolled_back", why, step)
        left = f"; {facts['words']}" if facts["words"] else "" if facts["clean"] else "; its work tree has changes"
        return End("failed", f"{told}; the repository is as it was{left}")
    if "rollback" in steps:
        why, step = _blamed(done, spec)
        if tried < LOST_MAX:
            return Do("rollback")
        return End("needs_person", f"{why}; it was not rolled back: {told}", step)
    if "apply" not in steps:
        return End("unchanged", "somebody else has brought it there meanwhile")
    return _at_new(done, spec, stopping=stopping)


# The plan.


def told(graph: Graph, run: Run, result: Json, reason: str) -> Draft | None:
    """The event that tells what the git step `run`, which has just ended, found. `result`: what it left, None if that
    could not be read. None: there is nothing to tell, and what comes next is to look."""
    above = graph.run(run.parent)
    if above is None or above.state in OVER:
        return None
    verb, args = run.spec["verb"], run.spec["args"]
    top = above.name if verb in ("probe", "integrity") else above.parent
    about: dict[str, Json] = {"run": top, "job": run.job, "by": run.name}
    if verb == "integrity":
        facts: Json = result if _holds(result, Integrity) else unread(reason)
        return draft("upgrade.checked", f"run/{top}", {**about, "facts": facts})
    if verb == "probe":
        key, path, branch = args["key"], args["path"], args["branch"]
        facts = result if _holds(result, Probe) else unseen(key, path, branch, "lost", reason)
        return draft("upgrade.probed", f"repository/{key}", {**about, "key": key, "facts": facts})
    if not _holds(result, Step):
        return None
    key = above.spec["key"]
    return draft("upgrade.stepped", f"repository/{key}", {**about, "key": key, "facts": result})


def _holds(result: Json, shape: type) -> bool:
    """Whether it has every field, each of its kind: what is planned on it need not look again."""
    return shape_of(shape, closed=False)(result) is None


def planned(graph: Graph, wall_ms: int, policy_now: Callable[[], Mapping[str, Json]]) -> list[Draft]:
    """The plan of each upgrade whose repositories have all been looked at."""
    found = []
    for upgrade in graph.upgrades.values():
        run = graph.active.get(upgrade.run)
        if run is None or run.state != "running" or upgrade.plan or run.spec.get("undo"):
            continue
        begun = _begun(graph, run)
        steps = [INTEGRITY, *(PROBE + repo["key"] for repo in run.spec["repos"])]
        if all(begun.get(step) in OVER for step in steps):
            policy = policy_now()
            answer = plan_upgrade(question_of(graph, run, wall_ms, policy))
            data = {"run": run.name, "job": run.job, "wall_ms": wall_ms, "policy": dict(policy), **answer}
            found.append(draft("upgrade.planned", run.id, data))
    return found


def question_of(graph: Graph, run: Run, wall_ms: int, policy: Mapping[str, Json]) -> Question:
    """What `plan_upgrade` is asked about `run`, as the graph tells it."""
    upgrade, spec, here = graph.upgrades[run.name], run.spec, graph.here
    integrity = upgrade.integrity or unread("the ledger was not read again")
    return question(
        graph, run.name, run.job, spec, upgrade.probes, cast(Integrity, integrity), wall_ms, policy, here.code
    )


def question(
    graph: Graph, run: str, job: str, spec: Mapping[str, Json], probes: Mapping[str, Json], integrity: Integrity,
    wall_ms: int, policy: Mapping[str, Json], code: str,
) -> Question:  # fmt: skip
    here = graph.here
    leases: dict[str, LeaseNow] = {
        key: {
            "holder": lease.holder, "token": lease.token, "foreign": lease.foreign,
            "holder_alive": lease.foreign or lease.holder in graph.active,
        }
        for key, lease in graph.leases.items()
    }  # fmt: skip
    return {
        "run": run,
        "job": job,
        "wall_ms": wall_ms,
        "spec": dict(spec),
        "probes": {
            repo["key"]: probes.get(repo["key"])
            or unseen(repo["key"], repo["path"], repo["branch"], "lost", "it was not looked at")
            for repo in spec["repos"]
        },
        "integrity": integrity,
        "leases": leases,
        "memory": {repo["key"]: upgrades.told(upgrades.memory(graph, repo["key"])) for repo in spec["repos"]},
        "resources": {
            "cpus": here.cpus, "memory_bytes": here.memory_bytes, "memory_free_bytes": here.memory_free_bytes,
            "disk_bytes": here.disk_bytes, "disk_free_bytes": here.disk_free_bytes,
            "running": sum(1 for other in graph.holding.values() if other.pid),
        },
        "policy": dict(policy),
        "code": code,
    }  # fmt: skip


# What each repository came to, and the run.


class Conclusion(NamedTuple):
    outcome: Literal["succeeded", "failed", "cancelled"]
    reason: str


def conclusions(graph: Graph, run: Run) -> tuple[list[Draft], Conclusion | None]:
    """Of a container: the repositories that are settled by now, and what it came to if that is all."""
    if run.spec["kind"] == "repository":
        return _of_repository(graph, run)
    upgrade = graph.upgrades.get(run.name)
    if upgrade is None or run.state not in ("running", "stopping"):
        return [], None
    rows = {row["key"]: row for row in upgrade.plan.get("repos", ())}
    stopped, begun = run.state == "stopping", _begun(graph, run)
    undo = run.spec.get("undo")
    found: list[Draft] = []
    keys = [undo["key"]] if undo else [repo["key"] for repo in run.spec["repos"]]
    for key in keys:
        if key in upgrade.settled:
            continue
        if (state := begun.get(REPO + key)) is None:
            end = _unattempted(graph, run, upgrade, key, rows.get(key), stopped=stopped and _idle(graph, run))
        else:  # It came to its end before its first step.
            end = End("deferred" if state == "cancelled" else "failed", "it could not begin") if state in OVER else None
        if end is not None:
            found.append(_settled(run, upgrade, key, rows.get(key, {}), end, attempted=False))
    if found or any(key not in upgrade.settled for key in keys) or not _idle(graph, run):
        return found, None
    outcomes = [upgrade.settled[key]["outcome"] for key in keys]
    told = ", ".join(f"{outcomes.count(name)} {name.replace('_', ' ')}" for name in dict.fromkeys(sorted(outcomes)))
    worst = next((name for name in BAD if name in outcomes), "")
    if not worst or (undo and worst == "rolled_back"):
        return [], Conclusion("succeeded", told)
    first = next(key for key in keys if upgrade.settled[key]["outcome"] == worst)
    return [], Conclusion("failed", f"{told}; {first}: {upgrade.settled[first]['reason']}"[:1000])


def _unattempted(
    graph: Graph, run: Run, upgrade: Upgrade, key: str, row: Mapping[str, Json] | None, *, stopped: bool
) -> End | None:
    """What a repository came to that has not been granted, or whose turn does not come any more."""
    if row is not None and row["verdict"] != "granted":
        return End(row["verdict"], row["reason"])
    if stopped:
        return End("deferred", "the run was stopped before its turn came")
    if row is None:
        return None
    repo = next(repo for repo in run.spec["repos"] if repo["key"] == key)
    for other in repo["depends_on"]:
        outcome = upgrade.settled.get(other, {}).get("outcome")
        if outcome is not None and outcome not in WELL:
            return End("deferred", f"it depends on {other}, which is {outcome.replace('_', ' ')}")
    return None


def _of_repository(graph: Graph, run: Run) -> tuple[list[Draft], Conclusion | None]:
    top, upgrade = graph.run(run.parent), graph.upgrades.get(run.parent)
    if top is None or upgrade is None:
        return [], Conclusion("failed", "the upgrade it belongs to is gone")
    key = run.spec["key"]
    row: Mapping[str, Json] = next((row for row in upgrade.plan.get("repos", ()) if row["key"] == key), {})
    attempted = bool(run.children)
    if run.state == "waiting" and run.rule.startswith("lease"):
        end: Do | End = End("deferred", run.reason)
    elif run.state in ("running", "stopping") and _idle(graph, run):
        end = next_step(run.spec, past(graph, run), stopping=run.state == "stopping")
    else:
        return [], None
    if isinstance(end, Do):
        return [], None
    won = end.outcome in WELL or (run.spec["undo"] and end.outcome == "rolled_back")
    outcome: Literal["succeeded", "failed", "cancelled"] = "succeeded" if won else "failed"
    if end.outcome in ("deferred", "held"):
        outcome = "cancelled"
    conclusion = Conclusion(outcome, f"{end.outcome.replace('_', ' ')}: {end.reason}"[:1000])
    if key in upgrade.settled:
        return [], conclusion
    return [_settled(top, upgrade, key, row, end, attempted=attempted, spec=run.spec)], conclusion


def _settled(
    run: Run, upgrade: Upgrade, key: str, row: Mapping[str, Json], end: End, *, attempted: bool,
    spec: Mapping[str, Json] | None = None,
) -> Draft:  # fmt: skip
    probe = upgrade.probes.get(key) or {}
    repo = next(repo for repo in run.spec["repos"] if repo["key"] == key)
    role = (spec or row).get("role", "")
    mine = [facts for name, facts in upgrade.steps.items() if name.startswith(f"{run.name}.{REPO}{key}.")]
    candidate = next((facts["candidate"] for facts in mine if facts.get("candidate")), None)
    data = {
        "run": run.name, "job": run.job, "key": key, "path": repo["path"], "outcome": end.outcome,
        "reason": end.reason[:1000], "old": (spec or row).get("old"), "new": candidate or (spec or row).get("new"),
        "risk": row.get("risk"), "attempted": attempted, "step": end.step, "role": role,
        "url": probe.get("remotes", {}).get(role, {}).get("url", ""),
    }  # fmt: skip
    return draft("upgrade.settled", f"repository/{key}", data)
