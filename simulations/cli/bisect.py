"""`hermesd bisect`: when something came to be otherwise."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.reading import replaying
from daemon.resources import cpus
from daemon.system import OsDisk
from daemon.version import code_digest
from policies.fault import BadValue
from simulations.bisection import Change, Found, bisect_in_parts
from simulations.bisection import bisect as bisect_below
from simulations.expression import Expression

Json = Any


def bisect(call: Call, text: str, *, start: int, to: int | None, monotone: bool) -> int:
    """0: the event is there. 1: nothing changes between the two."""
    try:
        expression = Expression(text)
    except BadValue as error:
        raise Failure(Exit.BAD_INPUT, str(error), where=f"--assert {text!r}", do=error.advice) from None
    reading = call.reading
    last = reading.last_seq()
    if start > last or (to is not None and to > last):
        raise Failure(Exit.UNKNOWN, f"the ledger ends at record {last}", do="give --from and --to up to there")
    if to is not None and to <= start:
        raise Failure(Exit.BAD_INPUT, f"--to {to} is not behind --from {start}")
    began_s = perf_counter()
    with reading.watched(), replaying():
        if monotone:
            found = bisect_below(reading.disk, code_digest(), expression, after=start, until=to, monotone=True)
        else:
            disk, code = OsDisk(call.home.path), code_digest()
            found = bisect_in_parts(disk, code, text, after=start, until=to, processes=cpus(), told=reading.passed)
    took_s = perf_counter() - began_s
    if call.json:
        show.json(_json(text, found))
    else:
        _print(call, text, start, to or last, found, took_s)
    return Exit.FINE if found.change is not None else Exit.NO


def _print(call: Call, text: str, start: int, to: int, found: Found, took_s: float) -> None:
    rate = f"{show.count(found.records, 'record')} in {took_s:.1f} s"
    if found.change is None:
        print(f"{text} {_holds(found.holds_first)} from record {start} to {to}, all the time ({rate}).")
        return
    change = found.change
    record = change.record
    print(f"{text} {'starts to hold' if change.holds else 'no longer holds'} after record {record.seq} ({rate})")
    moment = show.moment(record.ts, call.zone)
    print(f"  {record.type} of {record.subject}, {moment}")
    show.facts([(f"  {name}", f"{_said(old)} -> {_said(new)}") for name, old, new in _differing(change)])
    print(f"More: `hermesd events --seq {record.seq}`, `hermesd state diff {record.seq - 1} {record.seq}`")


def _holds(holds: bool) -> str:
    return "holds" if holds else "does not hold"


def _said(value: Json) -> str:
    return "None" if value is None else repr(value) if isinstance(value, str) else str(value)


def _differing(change: Change) -> list[tuple[str, Json, Json]]:
    return [(name, change.before[name], new) for name, new in change.after.items() if change.before[name] != new]


def _json(text: str, found: Found) -> Json:
    told: dict[str, Json] = {
        "assert": text, "holds_first": found.holds_first, "folded_behind": found.looked_from, "records": found.records,
    }  # fmt: skip
    if found.change is None:
        return told | {"found": False}
    record = found.change.record
    about = {"seq": record.seq, "ts": record.ts, "type": record.type, "subject": record.subject}
    return told | {
        "found": True,
        "holds": found.change.holds,
        **about,
        "before": found.change.before,
        "after": found.change.after,
    }
