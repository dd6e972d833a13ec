"""`hermesd upgrade`: what would be done, doing it, what became of it and why, and taking it back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from daemon import jobfiles
from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.cli.jobs import in_force, rejections
from daemon.cli.runs import ask, follow, say
from daemon.reading import Reading
from ledger.index import Wanted
from ledger.record import Record
from policies.fault import meant
from policies.upgrade import saga
from policies.upgrade.facts import Answer, Integrity
from policies.upgrade.plan import plan_upgrade
from state import intelligence, upgrades
from state.graph import Graph, RepositoryMemory

Json = Any
BAD = frozenset(saga.BAD)


def plan(call: Call, job: str) -> int:
    """Probe every repository from here, and ask the planner; the daemon is not needed."""
    from daemon.policyfile import upgrade_policy
    from daemon.serve import environment
    from daemon.system import SystemClock
    from daemon.upgrades import steps
    from daemon.version import code_digest

    reading = call.reading
    name, spec = _job(call, reading, job)
    if not reading.head.seq:
        raise Failure(
            Exit.UNKNOWN, "nothing is upgraded before there is a ledger", do="start the daemon: `hermesd run`"
        )
    os.environ.update(environment(call.settings.in_force()) | {key: str(text) for key, text in spec["env"].items()})
    policy, problem = upgrade_policy(call.home).read()
    if problem:
        raise Failure(Exit.BAD_INPUT, problem)

    def look(wanted: Mapping[str, Json]) -> Json:
        args = dict(wanted["args"])
        args["path"] = str(Path(args["path"]).expanduser())
        return steps.probe(**args, runs=str(call.home.runs))

    with ThreadPoolExecutor(spec["parallel"]) as pool:
        checked = pool.submit(steps.integrity, home=str(call.home.path))
        wanted = {repo["key"]: saga.probe_of(reading.graph, spec, repo) for repo in spec["repos"]}
        probes = dict(zip(wanted, pool.map(look, wanted.values()), strict=True))
        integrity = cast(Integrity, checked.result())
    wall_ms = SystemClock().now().wall_ms
    question = saga.question(reading.graph, "", name, spec, probes, integrity, wall_ms, policy.values(), code_digest())
    answer = plan_upgrade(question)
    if call.json:
        show.json({"job": name, **answer, "probes": probes})
    else:
        _show_plan(answer)
    return Exit.NO if any(row["verdict"] in BAD for row in answer["repos"]) else Exit.FINE


def _show_plan(answer: Answer) -> None:
    show.table(
        ("REPOSITORY", "VERDICT", "RISK", "FROM", "TO", "REMOTE", "WHY"),
        [
            (row["key"], _words(row["verdict"]), f"{row['risk']:.2f}" if row["new"] else "-", _short(row["old"]),
             _short(row["new"]), row["role"] or "-", row["reason"])
            for row in answer["repos"]
        ],
    )  # fmt: skip
    for one in answer["gate"]:
        if not one["ok"]:
            print(f"The gate is closed: {one['name'].replace('_', ' ')}: {one['evidence']}")
    granted = sum(row["verdict"] == "granted" for row in answer["repos"])
    print(f"{granted} of {len(answer['repos'])} would be upgraded. Decision {answer['decision_hash']}.")


def run(call: Call, job: str, *, wait: bool, reason: str) -> int:
    reading = call.reading
    name, _ = _job(call, reading, job)
    return _asked(call, reading, {"job": name, "reason": reason}, wait=wait)


def rollback(call: Call, key: str, *, wait: bool, reason: str) -> int:
    reading = call.reading
    name = _job_of(call, reading, key)
    return _asked(call, reading, {"job": name, "reason": reason, "undo": key}, wait=wait)


def _asked(call: Call, reading: Reading, args: Json, *, wait: bool) -> int:
    after = reading.head.seq
    answer = ask(call, "start", args, leave=not wait)
    if "left" in answer:
        say(call, answer, f"No daemon is running: the next one will do it ({answer['left']}).")
        return Exit.FINE
    if not wait:
        say(call, answer, f"Asked for run {answer['run']}. `hermesd upgrade status` says how far it is.")
        return Exit.FINE
    ended = follow(call, answer["run"], after)
    settled = [
        record.data for record in reading.records(after=after)
        if record.type == "upgrade.settled" and record.data["run"] == answer["run"]
    ]  # fmt: skip
    if call.json:
        show.json({**ended, "settled": settled})
    else:
        _show_settled(settled)
        print(f"{ended['run']} {_words(ended['state'])}: {ended['reason']}")
    return Exit.FINE if ended["state"] == "succeeded" else Exit.NO


def _show_settled(settled: list[Json]) -> None:
    if settled:
        show.table(
            ("REPOSITORY", "OUTCOME", "FROM", "TO", "WHY"),
            [
                (it["key"], _words(it["outcome"]), _short(it["old"]), _short(it["new"]), it["reason"])
                for it in sorted(settled, key=lambda it: str(it["key"]))
            ],
        )


def status(call: Call, job: str) -> int:
    reading = call.reading
    name, spec = _job(call, reading, job)
    graph, rows = reading.graph, []
    upgrade = next((one for one in graph.upgrades.values() if one.job == name), None)
    going_on = upgrade is not None and upgrade.run in graph.active
    for repo in spec["repos"]:
        memory = upgrades.memory(graph, repo["key"])
        last = memory.recent[-1] if memory is not None and memory.recent else (0, "", "", "", 0.0, False, "", "", "")
        row = {
            "key": repo["key"],
            "path": repo["path"],
            "at_ms": last[0],
            "outcome": last[1],
            "reason": last[8],
            "last_good": memory.last_good if memory is not None else "",
            "settled": memory.settled if memory is not None else {},
            "stability": _stability(memory),
            "step": "",
        }
        if going_on and upgrade is not None and repo["key"] not in upgrade.settled:
            row["step"] = _step_now(graph, upgrade.run, repo["key"])
        rows.append(row)
    if call.json:
        show.json({"job": name, "run": upgrade.run if upgrade is not None else "", "going_on": going_on, "repos": rows})
        return Exit.FINE
    show.table(
        ("REPOSITORY", "LAST", "WHEN", "GOOD AT", "UPGRADED", "STABILITY", "WHY"),
        [
            (row["key"], row["step"] or _words(row["outcome"]) or "-",
             show.moment(row["at_ms"], call.zone) if row["at_ms"] else "-", _short(row["last_good"]),
             row["settled"].get("upgraded", 0), row["stability"], row["reason"])
            for row in rows
        ],
    )  # fmt: skip
    if upgrade is not None and going_on:
        print(f"Run {upgrade.run} is going on.")
    return Exit.FINE


def _stability(memory: RepositoryMemory | None) -> str:
    if memory is None or not memory.attempts or not memory.priors:
        return "-"
    return f"{intelligence.stability(upgrades.told(memory)):.2f}"


def _step_now(graph: Graph, run: str, key: str) -> str:
    for name in (f"{run}.{saga.REPO}{key}", f"{run}.{saga.PROBE}{key}"):
        found = graph.run(name)
        if found is not None:
            last = graph.run(found.children[-1]) if found.children else found
            return (last.step if last is not None and last is not found else found.step.split("-")[0]) + "..."
    return "waits"


def why(call: Call, key: str) -> int:
    """From the ledger: the latest run in which this repository was settled, or is being decided about."""
    reading = call.reading
    searched = reading.search(Wanted(subject=lambda it: it == f"repository/{key}"))
    found = [record for record, _ in searched if record.subject == f"repository/{key}"]
    if not found:
        _job_of(call, reading, key)
        raise Failure(Exit.UNKNOWN, f"nothing has been decided about {key} yet", do="`hermesd upgrade plan` looks now")
    run_name = found[-1].data["run"]
    mine = [record for record in found if record.data["run"] == run_name]
    steps = f"run/{run_name}.repo-{key}."

    def of_run(subject: str) -> bool:
        return subject == f"run/{run_name}" or subject.startswith(steps)

    about = [record for record, _ in reading.search(Wanted(subject=of_run)) if of_run(record.subject)]
    planned = next((record for record in about if record.type == "upgrade.planned"), None)
    row = next((row for row in planned.data["repos"] if row["key"] == key), None) if planned else None
    story = {
        "key": key, "run": run_name, "planned": row, "gate": planned.data["gate"] if planned else [],
        "decision_hash": planned.data["decision_hash"] if planned else "",
        "federation": planned.data["federation"].get(key) if planned else None,
        "probe": next((it.data["facts"] for it in mine if it.type == "upgrade.probed"), None),
        "steps": [step for it in sorted(mine + about, key=lambda it: it.seq) if (step := _step(it, steps))],
        "settled": next((it.data for it in mine if it.type == "upgrade.settled"), None),
    }  # fmt: skip
    if call.json:
        show.json(story)
    else:
        _show_story(call, story)
    return Exit.FINE


def _step(record: Record, runs: str) -> Json | None:
    """A step of git's tells what it found; canary and verify are the user's commands, and end as any run does."""
    if record.type == "upgrade.stepped":
        facts: Json = record.data["facts"]
        return {"ts": record.ts, "how": f"at the {facts['at']} commit" if facts["ok"] else "", **facts}
    step = record.subject.removeprefix(runs).partition("-")[0]
    if record.type != "run.finished" or step not in ("canary", "verify"):
        return None
    outcome, reason = record.data["outcome"], record.data["reason"]
    ok = outcome == "succeeded"
    how = "passed" if ok else ""
    return {"ts": record.ts, "step": step, "ok": ok, "how": how, "problem": "" if ok else outcome, "words": reason}


def _show_story(call: Call, story: Json) -> None:
    settled, row = story["settled"], story["planned"]
    print(f"{story['key']} in run {story['run']}")
    pairs: list[tuple[str, object]] = []
    if settled:
        pairs.append(("outcome", f"{_words(settled['outcome'])}: {settled['reason']}"))
        pairs.append(("from", settled["old"] or "-"))
        pairs.append(("to", settled["new"] or "-"))
        if settled["url"]:
            pairs.append(("remote", f"{settled['role']}: {settled['url']}"))
    if row:
        pairs.append(("plan", f"{_words(row['verdict'])}: {row['reason']}"))
        parts = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in row["parts"].items() if value)
        pairs.append(("risk", f"{row['risk']:.2f}" + (f" from {parts}" if parts else "")))
        pairs.append(("decision", story["decision_hash"]))
    pairs += [("gate", f"closed: {one['name']}: {one['evidence']}") for one in story["gate"] if not one["ok"]]
    for role, remote in (story["probe"] or {}).get("remotes", {}).items():
        well = remote["ref"][:12] if remote["ref"] else "-"
        pairs.append((role, f"{remote['failure']}: {remote['words']}" if remote["failure"] else f"offers {well}"))
    for step in story["steps"]:
        how = step["how"] or f"{step['problem']}: {step['words']}"
        pairs.append((step["step"], f"{how}  ({show.moment(step['ts'], call.zone)})"))
    show.facts(pairs)


def _jobs(call: Call, reading: Reading) -> dict[str, Json]:
    return {name: job.canonical() for name, job in in_force(call, reading).items() if job.kind == "upgrade"}


def _job(call: Call, reading: Reading, job: str) -> tuple[str, Json]:
    jobs = _jobs(call, reading)
    if job and job not in jobs:
        raise Failure(Exit.UNKNOWN, f"there is no upgrade job {job!r}", do=meant(job, sorted(jobs), _names(jobs)))
    if not job and len(jobs) != 1:
        what = "which job is meant?" if jobs else "no job upgrades repositories"
        rejected = "" if jobs else rejections(jobfiles.load(call.home.jobs, call.settings.timezone).problems)
        raise Failure(Exit.UNKNOWN, what, do=_names(jobs) + rejected)
    name = job or next(iter(jobs))
    return name, jobs[name]


def _job_of(call: Call, reading: Reading, key: str) -> str:
    jobs = _jobs(call, reading)
    fitting = [name for name, spec in jobs.items() if any(repo["key"] == key for repo in spec["repos"])]
    if not fitting:
        keys = sorted(repo["key"] for spec in jobs.values() for repo in spec["repos"])
        do = meant(key, keys, f"they are {', '.join(keys)}" if keys else "write a job of `kind: upgrade`")
        raise Failure(Exit.UNKNOWN, f"no upgrade job has a repository {key!r}", do=do)
    memory = upgrades.memory(reading.graph, key)
    return memory.job if memory is not None and memory.job in fitting else fitting[0]


def _names(jobs: Mapping[str, Json]) -> str:
    return f"the upgrade jobs are: {', '.join(jobs)}" if jobs else "write one of `kind: upgrade`: docs/upgrades.md"


def _short(commit: str | None) -> str:
    return commit[:12] if commit else "-"


def _words(text: str) -> str:
    return text.replace("_", " ")
