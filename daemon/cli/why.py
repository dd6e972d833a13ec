"""Why: one decision with its rule, its inputs and their digests, and what came of it, from the ledger alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import orjson

from daemon.cli import show
from daemon.cli import slot as slots
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.cli.jobs import in_force, unknown, zone_in_force
from daemon.cli.runs import told
from daemon.reading import Reading
from daemon.system import SystemClock
from ledger.index import Wanted
from ledger.instant import ms_of, text_of
from ledger.record import Record
from policies import due
from policies.agenda import Agenda
from policies.policy import SchedulingPolicy
from policies.question import GROUPS, ask
from policies.replay import Past, decide_again
from policies.schedule import schedule_of
from state.mention import RANGE

Json = Any

RULES = {
    "admitted": "due, everything it needs is free: it starts",
    "preflight": "what it needs is not there or not usable, seen before anything was started",
    "places": "no more than `max_running` attempts run at once (policies/scheduling.yaml)",
    "pool": "the jobs with one tag share the places of its pool (`pools` in policies/scheduling.yaml)",
    "needs": "what it `needs` is reserved before it starts, and never promised twice",
    "budget": "so many runs or tokens within a minute, an hour or a day: reserved at the start, settled at the end",
    "lease": "one holder per lease key; an unexpired lease of somebody else wins",
    "paused": "while a job or everything is paused nothing of it starts by itself; its slots are skipped",
    "jitter": "`jitter`: a slot starts up to so much later, by a share that its identity gives",
    "stagger": "runs that make up for missed slots start one after another (`stagger_ms`), never as a storm",
    "removed": "a job that is gone starts nothing",
    "overlap.skip": "`overlap: skip`: while one run of the job is not over, its other slots are skipped",
    "overlap.full": "`overlap`: as many slots wait behind the run that is not over as may",
    "overlap.buffer_one": "`overlap: buffer_one`: one slot waits for the end of the run before it",
    "overlap.buffer_all": "`overlap: buffer_all`: slots wait, in their order, for the end of the run before them",
    "overlap.cancel_other": "`overlap: cancel_other`: a new slot stops the run before it, and starts once that is over",
    "overlap.terminate_other": "`overlap: terminate_other`: a new slot kills the run before it, and starts then",
    "overlap.missed": "`missed`: a slot that is made up for waits for the end of the run before it",
    "missed.skip": "`missed: {policy: skip}`: slots noticed late are not made up for",
    "missed.latest": "`missed: {policy: latest}`: of the slots noticed late only the latest is run",
    "missed.max": "`missed: {policy: all, max}`: of the slots noticed late only the newest so many are run",
    "missed.window": "`missed: {window}`: slots older than the window are not made up for",
    "on.gone": "a file that is gone before its turn needs no run",
    "on.rewritten": "a file that is written again before its turn is worked on once, as it is then",
    "on.removed": "files that waited for a job that is gone, or starts otherwise now, need no run",
    "steps.upstream": "a step starts only if all the steps it is `after` have succeeded",
    "outcome": "the end of its attempt decided",
}
_TRIGGERS = {
    "schedule": "its schedule",
    "start": "a person's `hermesd start`",
    "retry": "a person's `hermesd retry`",
    "backfill": "a person's `hermesd backfill`",
    "after": "the end of the jobs it is after",
    "on": "files that came",
    "step": "the run it is a step of",
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
    now_ms = SystemClock().now().wall_ms
    if "@" in what:
        found, slot_asked = _at(call, reading, what, now_ms)
    else:
        found, slot_asked = _resolve(call, reading, what, now_ms), None
    if not isinstance(found, _Found):
        if call.json:
            show.json(found)
        else:
            _print_undecided(call, found)
        return
    about = Wanted(subject=lambda it: it == f"run/{found.run}")
    events = [record for record, _ in reading.search(about) if _tells_of(record, found.run)]
    story = _story(call, found, events)
    story["asked_about"] = slot_asked
    story["decision"] |= _asked_again(reading, found.decided[-1][0])
    if call.json:
        show.json(story)
    else:
        _print(call, story)


def _at(call: Call, reading: Reading, what: str, now_ms: int) -> tuple[_Found | Json, Json]:
    """`JOB@TIME`: the decision about that slot, else what there is to say of it; and which slot was meant."""
    name, _, text = what.partition("@")
    job = reading.graph.jobs.get(name)
    if job is None:
        files = in_force(call, reading)
        if name in files:
            raise _no_decision(name, known=True)
        raise unknown(call, name, dict.fromkeys([*reading.graph.jobs, *files]))
    zone = slots.zone_of(job, zone_in_force(call, reading))
    instants = slots.instants_of(text, zone)
    for instant in instants:
        found = _decided_at(reading, name, instant.at_ms)
        if found is not None:
            shift = due.explain_shift(schedule_of(job.spec["schedule"]), instant.at_ms)
            return found, {"utc": text_of(instant.at_ms), "zone": zone, "note": instant.note or shift}
    told = slots.undecided(reading, name, instants[0].at_ms, now_ms, zone, call.pulse() is not None)
    return told | {"note": instants[0].note or told["note"]}, None


def _decided_at(reading: Reading, job: str, at_ms: int) -> _Found | None:
    """The run of a job's slot at an instant: one of its own, or that of the range of old slots that holds it. A
    backfill's only if the schedule's own slot has none."""
    runs: dict[str, _Found] = {}
    by_schedule = by_hand = ""
    specs: dict[int, Json] = {}
    for record, _ in reading.search(Wanted(subject=lambda it: it == f"job/{job}")):
        data = record.data
        if record.type in ("job.defined", "job.changed") and data["job"] == job:
            specs[data["revision"]] = data["spec"]
        for decided in data["decisions"] if record.type == "plan.decided" else ():
            if decided["job"] != job or decided["trigger"] not in ("schedule", "backfill") or decided.get("parent"):
                continue
            runs.setdefault(decided["run"], _Found(decided["run"])).decided.append((record, decided))
            first_ms, last_ms = ms_of(decided["at"]), ms_of(decided.get("until", decided["at"]))
            if not first_ms <= at_ms <= last_ms:
                continue
            schedule = schedule_of(specs[decided["revision"]]["schedule"])
            if at_ms == first_ms or due.next_slot(schedule, at_ms - 1) == at_ms:
                if decided["trigger"] == "schedule":
                    by_schedule = decided["run"]
                else:
                    by_hand = decided["run"]
    return runs.get(by_schedule or by_hand)


def _resolve(call: Call, reading: Reading, what: str, now_ms: int) -> _Found | Json:
    """By a run's name, a slot's identity, or enough of the beginning of either; or a job's name: its latest run."""
    runs: dict[str, _Found] = {}
    latest = ""
    beginnings = (f"run/{what}", f"slot/{what}")
    about = Wanted(type=_is_plan, subject=lambda it: it.startswith(beginnings) or it == f"job/{what}")
    for record, _ in reading.search(about):
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
    if what in in_force(call, reading):
        raise _no_decision(what, known=True)
    slot = slots.of_id(reading, what, now_ms)
    if slot is None:
        raise _no_decision(what, known=False)
    name, at_ms = slot
    decided = _decided_at(reading, name, at_ms)
    if decided is not None:  # Under the spec that followed the one by which it is called so.
        return decided
    zone = slots.zone_of(reading.graph.jobs[name], zone_in_force(call, reading))
    return slots.undecided(reading, name, at_ms, now_ms, zone, call.pulse() is not None)


def _no_decision(what: str, *, known: bool) -> Failure:
    return Failure(
        Exit.UNKNOWN,
        f"job {what!r} has no decision yet" if known else f"no decision is about {what!r}",
        do=f"see `hermesd next {what}`" if known else "give a run, a slot, JOB@TIME or a job; see `hermesd runs list`",
    )


def _in_a_range(reading: Reading, slot: str) -> _Found | None:
    """Old slots that were decided alike are one decision, which names the first of them only."""
    specs: dict[tuple[str, int], tuple[str, Json]] = {}
    defined = Wanted(type=lambda it: it in ("job.defined", "job.changed"))
    ranges = Wanted(type=_is_plan, subject=lambda it: it == RANGE)
    for record, _ in chain(reading.search(defined), reading.search(ranges)):
        data = record.data
        if record.type in ("job.defined", "job.changed"):
            specs[data["job"], data["revision"]] = (data["digest"], data["spec"])
        for decided in data["decisions"] if record.type == "plan.decided" else ():
            if "until" not in decided:
                continue
            digest, spec = specs[decided["job"], decided["revision"]]
            schedule = schedule_of(spec["schedule"])
            first_ms, last_ms = ms_of(decided["at"]), ms_of(decided["until"])
            for at_ms in due.slots(schedule, first_ms - 1, last_ms, _RANGES_LOOKED_INTO):
                if due.slot_id(decided["job"], digest, at_ms).startswith(slot):
                    return _Found(decided["run"], [(record, decided)])
    return None


def _is_plan(type_: str) -> bool:
    return type_ == "plan.decided"


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
        "retries": decided.get("retries", ""),
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
            "not_before": decided.get("not_before", ""),
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
    graph = reading.graph_at(record.seq - 1)
    past = Past(graph, Agenda.of(graph))
    policy = SchedulingPolicy.recorded(past.graph.policy.values)
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
        *_asked_pairs(story["asked_about"], zone),
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
    if decision["not_before"]:
        pairs.append(("not before", show.moment(decision["not_before"], zone)))
    if story["retries"]:
        pairs.append(("does again", story["retries"]))
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
        redacted = call.reading.graph.redacted(digest)
        gone = f", {told(redacted, zone)}" if redacted else ""
        pairs.append(("kept", f"{name}, artifact {digest}{gone}"))
    show.facts(pairs)


def _asked_pairs(asked: Json, zone: str) -> list[tuple[str, object]]:
    if asked is None:
        return []
    note = f"; {asked['note']}" if asked["note"] else ""
    return [("asked about", f"{show.moment(asked['utc'], asked['zone'])}{note}")]


def _print_undecided(call: Call, told: Json) -> None:
    pairs: list[tuple[str, object]] = [("job", told["job"]), ("asked about", told["local"])]
    if told["slot"]:
        pairs.append(("slot", told["slot"]))
    if told["note"]:
        pairs.append(("the clock", told["note"]))
    pairs.append(("decision", f"none ({told['state'].replace('_', ' ')}): {told['because']}"))
    for name in ("previous", "next"):
        if told[name]:
            pairs.append((f"{name} slot", show.moment(told[name], call.zone)))
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
