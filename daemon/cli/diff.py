"""Two decisions held against each other: which inputs were seen differently, what in them, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.reading import Reading
from ledger.record import Record
from policies.policy import SchedulingPolicy
from policies.question import GROUPS, ask, canonical, digest
from policies.replay import Past

Json = Any

_HASH_LEAST = 4
_SHOWN = 60
# What stands in the rows of a question's lists, behind the name that each row begins with.
_COLUMNS: Mapping[str, Sequence[str]] = {
    "jobs": ("revision", "digest", "depth", "removed"),
    "leases.held": ("holder", "token", "foreign"),
    "history.jobs": ("accounted_until_ms", "active", "due", "fresh", "consumed", "paused"),
    "history.waiting": ("state", "rule", "attempt", "created_at", "not_before_ms"),
    "history.agents": ("state", "steps"),
    "history.requests": ("verb", "job", "run", "at", "retries", "overlap", "slots", "file"),
    "history.files": ("waiting", "lost"),
    "resources.running": ("needs", "pools"),
}


class Difference(NamedTuple):
    path: str
    first: Json
    """ABSENT where only the second has it."""
    second: Json


ABSENT = "(absent)"


def diff(call: Call, first: str, second: str) -> None:
    reading = call.reading
    plans = [_resolve(reading, what) for what in (first, second)]
    asked = _questions(reading, {plan.seq for plan in plans})
    one, two = plans
    recorded = [plan.data["inputs"] for plan in plans]
    differing = [group for group in GROUPS if recorded[0].get(group) != recorded[1].get(group)]
    values = {group: list(differences(asked[one.seq][group], asked[two.seq][group], group)) for group in differing}
    # Of a plan that another version of the planner made, the question is put together as this version would.
    reread = [
        plan.seq for plan in plans if any(digest(asked[plan.seq][g]) != plan.data["inputs"].get(g) for g in differing)
    ]
    decisions = list(_decisions(one, two))
    told = {
        "first": _head(one),
        "second": _head(two),
        "same_hash": one.data["decision_hash"] == two.data["decision_hash"],
        "same_inputs": [group for group in GROUPS if group not in differing],
        "differing_inputs": {group: [change._asdict() for change in values[group]] for group in differing},
        "put_together_by_other_code": reread,
        "decisions": [change._asdict() for change in decisions],
    }
    if call.json:
        show.json(told)
    else:
        _print(call, told, values, decisions)


def _head(plan: Record) -> Json:
    data = plan.data
    return {"seq": plan.seq, "tick": data["tick"], "at": plan.ts, "decision_hash": data["decision_hash"]}


def _resolve(reading: Reading, what: str) -> Record:
    """A plan by the seq of its record, `tick:N`, its tick, or the beginning of its decision hash; the first that fits,
    in this order."""
    by_tick = by_seq = None
    by_hash: list[Record] = []
    number = int(what) if what.isdecimal() else None
    tick = int(what[5:]) if what.startswith("tick:") and what[5:].isdecimal() else number
    for record in reading.records():
        if record.type != "plan.decided":
            continue
        if record.seq == number:
            by_seq = record
        if record.data["tick"] == tick:
            by_tick = record
        if len(what) >= _HASH_LEAST and record.data["decision_hash"].startswith(what):
            by_hash.append(record)
    if by_seq is not None or by_tick is not None:
        found = by_seq or by_tick
        assert found is not None
        return found
    if len(by_hash) == 1:
        return by_hash[0]
    if by_hash:
        seqs = ", ".join(str(record.seq) for record in by_hash[:3]) + (", ..." if len(by_hash) > 3 else "")
        raise Failure(Exit.BAD_INPUT, f"{len(by_hash)} decisions begin with {what!r}", do=f"name the record: {seqs}")
    do = "give a record, tick:N, or the beginning of a decision hash; see `hermesd events --type plan.decided`"
    raise Failure(Exit.UNKNOWN, f"no decision is {what!r}", do=do)


def _questions(reading: Reading, seqs: set[int]) -> dict[int, dict[str, Json]]:
    """The question each plan answered, put together from the records before it: group -> value, as it is hashed."""
    past, asked = Past(), {}
    for record in reading.records(until=max(seqs)):
        if record.seq in seqs:
            policy = SchedulingPolicy.recorded(past.graph.policy.values)
            question = ask(past.graph, past.agenda, policy, record.data["wall_ms"])
            question.preflight.update(record.data["preflight"])
            asked[record.seq] = orjson.loads(canonical(question.groups()))
        past.fold(record)
    return asked


def differences(first: Json, second: Json, path: str) -> Iterator[Difference]:
    """Where two values differ, as deep down as they can be told apart. Rows that begin with a name go by the name."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in sorted(first.keys() | second.keys()):
            yield from differences(first.get(key, ABSENT), second.get(key, ABSENT), f"{path}.{key}")
    elif _has_named_rows(first) and _has_named_rows(second):
        columns = _COLUMNS.get(path, ())
        yield from differences(_by_name(first, columns), _by_name(second, columns), path)
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for index, (one, two) in enumerate(zip(first, second, strict=True)):
            yield from differences(one, two, f"{path}[{index}]")
    elif first != second:
        yield Difference(path, first, second)


def _has_named_rows(value: Json) -> bool:
    if not isinstance(value, list) or not all(isinstance(r, list) and r and isinstance(r[0], str) for r in value):
        return False
    return len({row[0] for row in value}) == len(value)


def _by_name(rows: list[list[Json]], columns: Sequence[str]) -> dict[str, Json]:
    named = {}
    for name, *rest in rows:
        named[name] = dict(zip(columns, rest, strict=True)) if len(columns) == len(rest) else rest
    return named


def _decisions(one: Record, two: Record) -> Iterator[Difference]:
    """Runs that the two plans decided otherwise, or that only one of them decided about."""
    decided = [{row["run"]: row for row in plan.data["decisions"]} for plan in (one, two)]
    for run in sorted(decided[0].keys() | decided[1].keys()):
        first, second = decided[0].get(run, ABSENT), decided[1].get(run, ABSENT)
        if ABSENT in (first, second):
            yield Difference(run, first, second)
        else:
            yield from differences(first, second, run)


def _print(call: Call, told: Json, values: Mapping[str, list[Difference]], decisions: list[Difference]) -> None:
    zone = call.zone
    show.facts(
        [
            (
                name,
                f"record {head['seq']}, tick {head['tick']}, {show.moment(head['at'], zone)}, {head['decision_hash']}",
            )
            for name, head in (("first", told["first"]), ("second", told["second"]))
        ]
    )
    if told["same_hash"]:
        print("\nThe same question and the same answer.")
        return
    print(f"\ninputs that agree: {', '.join(told['same_inputs']) or 'none'}")
    for group, changes in values.items():
        print(f"{group} differs" + (":" if changes else ", in nothing that the ledger gives back"))
        for change in changes:
            path = change.path.removeprefix(f"{group}.")
            print(f"  {path}: {_short(change.first)} -> {_short(change.second)}")
    for seq in told["put_together_by_other_code"]:
        print(
            f"Record {seq} was decided by another version of the planner: its inputs are shown as this one sees them."
        )
    print("\ndecisions" + (":" if decisions else ": the same"))
    for change in decisions:
        print(f"  {change.path}: {_decided(change.first)} -> {_decided(change.second)}")


def _decided(value: Json) -> str:
    if isinstance(value, dict) and "verdict" in value:
        return f"{value['verdict']} by {value['rule']}: {value['reason']}"
    return "not decided about" if value == ABSENT else _short(value)


def _short(value: Json) -> str:
    if value == ABSENT:
        return ABSENT
    text = orjson.dumps(value).decode()
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
