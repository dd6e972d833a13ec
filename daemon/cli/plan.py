"""What would be decided now: the planner asked, and nothing recorded or done."""

from __future__ import annotations

from typing import Any

from daemon import jobfiles
from daemon.cli import health, show
from daemon.cli.call import Call
from daemon.cli.jobs import zone_in_force
from daemon.order import Unfillable, task_to_check
from daemon.policyfile import scheduling_policy
from daemon.reading import Reading
from daemon.serve import surroundings
from daemon.system import SystemClock
from daemon.workers.preflight import preflight
from policies import adoption
from policies.decision import decide
from policies.question import ask
from policies.survey import Candidate
from state.graph import is_container

Json = Any


def plan(call: Call) -> None:
    reading = call.reading
    now = SystemClock().now()
    policy, policy_problem = scheduling_policy(call.home).read()
    around = surroundings(call.home, call.settings.in_force())

    def check(one: Candidate) -> str:
        if is_container(one.spec):
            return ""  # Its steps are checked one by one, when they could start.
        try:
            task, env = task_to_check(around, reading.graph, one.run, one.attempt, one.spec, one.parent, one.file)
        except Unfillable as error:
            return str(error)
        return preflight(task, env) or ""

    question = ask(reading.graph, reading.agenda, policy, now.wall_ms)
    answer = decide(question, check=check)
    pending = _pending(call, reading)
    if policy_problem:
        pending.append(f"the policy override is not legal and not in force: {policy_problem}")
    elif reading.graph.policy.digest not in ("", policy.digest()):
        pending.append("the policy has changed since a daemon adopted it; this plan follows the new one")
    up = call.pulse() is not None
    if call.json:
        show.json(
            {
                "daemon_up": up,
                "head": reading.head._asdict(),
                "wall_ms": now.wall_ms,
                "preflight": question.preflight,
                "decisions": list(answer.decisions),
                "inputs": answer.inputs,
                "decision_hash": answer.decision_hash,
                "more": answer.more,
                "pending": pending,
            }
        )
        return
    if answer.decisions:
        show.table(
            ("RUN", "VERDICT", "RULE", "REASON"),
            [(one["run"], one["verdict"], one["rule"], _reason(one, call.zone)) for one in answer.decisions],
        )
        print(f"\ndecision hash {answer.decision_hash}, on record {reading.head.seq}; nothing was done")
        if answer.more:
            print("There is more to decide than one plan holds: the rest would follow at once.")
    else:
        print(f"Nothing is to be decided now (record {reading.head.seq}, {show.moment(now.wall_ms, call.zone)}).")
    for text in pending:
        print(f"pending: {text}")
    if not up:
        print("No daemon is running: this is what one would decide if it started now with the graph as it stands.")


def _reason(decided: Json, zone: str) -> str:
    slots = f" ({decided['count']} slots, up to {show.moment(decided['until'], zone)})" if "until" in decided else ""
    wait = f"; not before {show.moment(decided['not_before'], zone)}" if "not_before" in decided else ""
    return f"{decided['reason']}{slots}{wait}"


def _pending(call: Call, reading: Reading) -> list[str]:
    """What the job files say that no daemon has taken up, wishes that wait in the inbox, and who has paused what."""
    jobs, problems = jobfiles.accepted(jobfiles.load(call.home.jobs, zone_in_force(call, reading)), call.home.jobs)
    told = [f"{event.type} {event.subject}" for event in adoption.changes(reading.graph, jobs, problems)]
    waiting = [name for name in reading.disk.list("inbox") if name.endswith(".json") and not name.startswith(".")]
    if waiting:
        told.append(f"{show.count(len(waiting), 'request')} in the inbox")
    everything = reading.graph.here.paused
    if everything:
        told.append(f"everything is paused by {everything['actor']}: until that ends no slot is decided")
    for job in health.paused(reading.graph):
        told.append(f"job {job.name} is paused by {job.paused['actor']}: its slots are skipped")
    return told
