"""Why: one decision with its rule, its inputs and their digests, and what came of it, from the ledger alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.cli.jobs import in_force
from daemon.reading import Reading
from ledger.instant import ms_of
from ledger.record import Record
from policies import due
from policies.job import parse_job
from policies.policy import SchedulingPolicy
from policies.question import GROUPS, ask
from policies.replay import Past, decide_again

Json = Any

RULES = {
    "admitted": "due, everything it needs is free: it starts",
    "preflight": "what it needs is not there or not usable, seen before anything was started",
    "places": "no more than `max_running` attempts run at once (policies/scheduling.yaml)",
    "needs": "what it `needs` is reserved before it starts, and never promised twice",
    "lease": "one holder per lease key; an unexpired lease of somebody else wins",
    "overlap.skip": "`overlap: skip`: while one run of the job is not over, its other slots are skipped",
    "missed.skip": "`missed: {policy: skip}`: slots noticed late are not made up for",
    "missed.latest": "`missed: {policy: latest}`: of the slots noticed late only the latest is run",
    "missed.window": "`missed: {window}`: slots older than the window are not made up for",
    "steps.upstream": "a step starts only if all the steps it is `after` have succeeded",
    "outcome": "the end of its attempt decided",
}
_TRIGGERS = {
    "schedule": "its schedule",
    "start": "a person's `hermesd start`",
    "after": "the end of the jobs it is after",
    "step": "its agent's run",
}
_SHOWN = 70
_OF_THE_END = ("outcome", "reason", "code", "signal", "retry_at", "token", "outputs")
_RANGES_LOOKED_INTO = 100_000


@dataclass(slots=True)
class _Found:
    """A run as decisions tell of it: each with the record of its plan, oldest first."""

    run: str
    decided: list[tuple[Record, Json]] = field(default_factory=list)


def why(call: Call, what: str) -> None:
    reading = call.reading
    found = _resolve(call, reading, what)
    events = [record for record in reading.records() if _tells_of(record, found.run)]
    story = _story(call, found, events)
    story["decision"] |= _asked_again(reading, found.decided[-1][0])
    if call.json:
        show.json(story)
    else:
        _print(call, story)


def _resolve(call: Call, reading: Reading, what: str) -> _Found:
    """By a run's name, a slot's identity, or enough of the beginning of either; or a job's name: its latest run."""
    runs: dict[str, _Found] = {}
    latest = ""
    for record in reading.records():
        if record.type != "plan.decided":
            continue
        for decided in record.data["decisions"]:
            name = decided["run"]
            is_of_job = decided["job"] == what and "parent" not in decided
            if is_of_job or name.startswith(what) or decided["slot"].startswith(what):
                runs.setdefault(name, _Found(name)).decided.append((record, decided))
                latest = name if is_of_job else latest
    if what in runs:
        return runs[what]
    if latest:
        return runs[latest]
    # The steps of an agent share its slot and the beginning of its name.
    whole = [run for run in runs.values() if not run.decided[0][1].get("parent")] or list(runs.values())
    if len(whole) == 1:
        return whole[0]
    if whole:
        names = ", ".join(run.run for run in whole[-3:]) + (", ..." if len(whole) > 3 else "")
        raise Failure(Exit.BAD_INPUT, f"{len(whole)} runs begin with {what!r}", do=f"write more of the name: {names}")
    in_range = _in_a_range(reading, what)
    if in_range is not None:
        return in_range
    known = what in in_force(call, reading)
    raise Failure(
        Exit.UNKNOWN,
        f"job {what!r} has no decision yet" if known else f"no decision is about {what!r}",
        do=f"see `hermesd next {what}`" if known else "give a run, a slot or a job; see `hermesd runs list`",
    )


def _in_a_range(reading: Reading, slot: str) -> _Found | None:
    """Old slots that were decided alike are one decision, which names the first of them only."""
    specs: dict[tuple[str, int], tuple[str, Json]] = {}
    for record in reading.records():
        data = record.data
        if record.type in ("job.defined", "job.changed"):
            specs[data["job"], data["revision"]] = (data["digest"], data["spec"])
        for decided in data["decisions"] if record.type == "plan.decided" else ():
            if "until" not in decided:
                continue
            digest, spec = specs[decided["job"], decided["revision"]]
            schedule = parse_job(spec).schedule
            first_ms, last_ms = ms_of(decided["at"]), ms_of(decided["until"])
            for at_ms in due.slots(schedule, first_ms - 1, last_ms, _RANGES_LOOKED_INTO):
                if due.slot_id(decided["job"], digest, at_ms).startswith(slot):
                    return _Found(decided["run"], [(record, decided)])
    return None


def _tells_of(record: Record, run: str) -> bool:
    return bool(record.data.get("run") == run)


def _story(call: Call, found: _Found, events: list[Record]) -> Json:
    record, decided = found.decided[-1]
    data = record.data
    finished = [event for event in events if event.type == "run.finished"]
    last = finished[-1].data if finished else None
    attempts = [_attempt(call, found.run, number, events) for number in _attempts(events)]
    return {
        "run": found.run,
        "job": decided["job"],
        "slot": decided["slot"],
        "at": decided["at"],
        "until": decided.get("until", ""),
        "slots": decided.get("count", 1),
        "trigger": decided["trigger"],
        "parent": decided.get("parent", ""),
        "revision": decided["revision"],
        "decision": {
            "verdict": decided["verdict"],
            "rule": decided["rule"],
            "rule_in_words": RULES.get(_family(decided["rule"]), ""),
            "reason": decided["reason"],
            "seq": record.seq,
            "tick": data["tick"],
            "decided_at": record.ts,
            "decision_hash": data["decision_hash"],
            "inputs": data["inputs"],
            "token": decided.get("token"),
            "leases": decided.get("leases", []),
        },
        "earlier": [
            {"seq": r.seq, "decided_at": r.ts, "verdict": d["verdict"], "rule": d["rule"], "reason": d["reason"]}
            for r, d in found.decided[:-1]
        ],
        "attempts": attempts,
        "requests": [
            {"seq": e.seq, "type": e.type, "actor": e.data["actor"], "reason": e.data["reason"]}
            for e in events
            if e.type in ("start.requested", "cancel.requested")
        ],
        "outcome": last["outcome"] if last and last["retry_at"] is None else "",
        "reason": last["reason"] if last else decided["reason"],
        "artifacts": {e.data["name"]: e.data["digest"] for e in events if e.type == "artifact.stored"},
    }


def _asked_again(reading: Reading, record: Record) -> Json:
    """The question of the plan, put together from the records before it, and whether the answer is the recorded one."""
    past = Past()
    for earlier in reading.records(until=record.seq - 1):
        past.fold(earlier)
    policy = SchedulingPolicy.model_validate(past.graph.policy.values)
    question = ask(past.graph, past.agenda, policy, record.data["wall_ms"])
    question.preflight.update(record.data["preflight"])
    return {"question": question.groups(), "asked_again": decide_again(past, record).agrees}


def _family(rule: str) -> str:
    """`lease:repo` and `needs.memory` are one rule each, whatever it was about."""
    return rule if rule in RULES else rule.partition(":")[0].partition(".")[0]


def _attempts(events: list[Record]) -> list[int]:
    return sorted({event.data["attempt"] for event in events if "attempt" in event.data})


def _attempt(call: Call, run: str, number: int, events: list[Record]) -> Json:
    told: Json = {"attempt": number, "began_at": "", "ended_at": "", "pid": 0, "token": None, "outcome": ""}
    for event in events:
        data = event.data
        if data.get("attempt") != number:
            continue
        if event.type in ("run.started", "run.adopted"):
            told |= {"began_at": told["began_at"] or event.ts, "pid": data["pid"], "token": data["token"]}
            if event.type == "run.adopted":
                told["adopted_at"] = event.ts
        elif event.type == "run.stopping":
            told["stopped_for"] = data["why"]
        elif event.type == "run.finished":
            told |= {name: data[name] for name in _OF_THE_END}
            told["ended_at"] = event.ts
        elif event.type == "run.fenced":
            told["fenced"] = data["report"]
    told["folder"] = str(call.home.runs / run / str(number))
    return told


def _print(call: Call, story: Json) -> None:
    zone, decision = call.zone, story["decision"]
    again = (
        "and the same again when asked again" if decision["asked_again"] else "which the same inputs DO NOT give again"
    )
    slots = f" and {story['slots'] - 1} more, up to {show.moment(story['until'], zone)}" if story["slots"] > 1 else ""
    pairs: list[tuple[str, object]] = [
        ("run", story["run"]),
        ("slot", f"{story['slot']} at {show.moment(story['at'], zone)}{slots}"),
        ("asked by", _TRIGGERS.get(story["trigger"], story["trigger"])),
        ("decision", f"{decision['verdict']}: {decision['reason']}"),
        ("rule", f"{decision['rule']}: {decision['rule_in_words']}".removesuffix(": ")),
        ("decided", f"{show.moment(decision['decided_at'], zone)}, tick {decision['tick']}, record {decision['seq']}"),
        ("hash", f"{decision['decision_hash']}, {again}"),
        (
            "inputs",
            "\n".join(f"{group:<9}  {decision['inputs'][group]}  {_short(decision, group)}" for group in GROUPS),
        ),
    ]
    if decision["token"] is not None:
        leases = ", ".join(decision["leases"])
        pairs.append(("granted", f"token {decision['token']}" + (f", leases {leases}" if leases else "")))
    for request in story["requests"]:
        because = f": {request['reason']}" if request["reason"] else ""
        pairs.append((request["type"].partition(".")[0], f"asked for by {request['actor']}{because}"))
    for one in story["earlier"]:
        text = f"{show.moment(one['decided_at'], zone)}: {one['verdict']} by {one['rule']}: {one['reason']}"
        pairs.append(("before that", text))
    for attempt in story["attempts"]:
        pairs.append((f"attempt {attempt['attempt']}", "\n".join(_attempt_lines(attempt, zone))))
    if story["outcome"]:
        pairs.append(("outcome", f"{story['outcome'].replace('_', ' ')}: {story['reason']}"))
    for name, digest in story["artifacts"].items():
        pairs.append(("kept", f"{name}, artifact {digest}"))
    show.facts(pairs)


def _short(decision: Json, group: str) -> str:
    """The beginning of what was seen; `--json` gives all of it."""
    text = orjson.dumps(decision["question"][group]).decode()
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _attempt_lines(attempt: Json, zone: str) -> list[str]:
    lines = []
    if attempt["began_at"]:
        adopted = f", taken up again {show.moment(attempt['adopted_at'], zone)}" if "adopted_at" in attempt else ""
        lines.append(f"began {show.moment(attempt['began_at'], zone)}, pid {attempt['pid']}{adopted}")
    if "stopped_for" in attempt:
        lines.append(f"was stopped: {attempt['stopped_for']}")
    if attempt["ended_at"]:
        outcome = attempt["outcome"].replace("_", " ")
        lines.append(f"ended {show.moment(attempt['ended_at'], zone)}: {outcome}: {attempt['reason']}")
        if attempt.get("retry_at"):
            lines.append(f"the next attempt is due {show.moment(attempt['retry_at'], zone)}")
    for name, output in attempt.get("outputs", {}).items():
        lines.append(f"output {attempt['folder']}/{name}, {show.size(output['bytes'])}")
    if "fenced" in attempt:
        lines.append(f"a late report was fenced: {attempt['fenced']}")
    return lines or ["has not begun"]
