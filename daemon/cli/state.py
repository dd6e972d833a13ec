"""The views in `state/`: listed, shown, shown as of a record, and rebuilt from the ledger."""

from __future__ import annotations

from typing import Any

import orjson

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.reading import Reading
from policies.fault import meant
from state import views

Json = Any


def state(call: Call, words: list[str], at: int | None) -> int:
    if words == ["rebuild"]:
        if at is not None:
            raise Failure(Exit.BAD_INPUT, "state/ is never as of an older record", do="leave --at out, or name a view")
        return _rebuild(call)
    if words[:1] == ["show"]:
        words = words[1:]
    if len(words) > 1:
        raise Failure(Exit.BAD_INPUT, f"{' '.join(words)!r} is too much", do="name one view, or say `state rebuild`")
    if words or at is not None:
        return _show(call, words[0] if words else "", at)
    return _list(call)


def _show(call: Call, name: str, at: int | None) -> int:
    """From the ledger, not from the file: nobody can have edited that."""
    name = name.removesuffix(".json")
    if name and name not in views.VIEWS:
        do = meant(name, views.VIEWS, f"the views are {', '.join(views.VIEWS)}")
        raise Failure(Exit.UNKNOWN, f"there is no view {name!r}", do=do)
    reading = call.reading
    graph = reading.graph if at is None else reading.graph_at(at)
    if at is not None and graph.seq < at:
        raise Failure(Exit.UNKNOWN, f"the ledger ends with record {graph.seq}; there is no {at} yet")
    files = views.render(graph, reading.head_read)
    if name:
        show.raw(files[f"{name}.json"])
    else:
        show.json({file.removesuffix(".json"): orjson.loads(data) for file, data in files.items()})
    return Exit.FINE


def _list(call: Call) -> int:
    """Each view's file against what the ledger says."""
    reading = call.reading
    rows = _compared(reading)
    if call.json:
        show.json({"head": reading.head._asdict(), "views": rows})
    else:
        print(f"The ledger's head is record {reading.head.seq} {reading.head.hash}.\n")
        show.table(("VIEW", "BYTES", "RECORD", "STATE"), [(r["view"], r["bytes"], r["seq"], r["state"]) for r in rows])
        if any(row["state"] in ("missing", "different") for row in rows):
            print("\n`hermesd state rebuild` writes them anew; a running daemon does so with its next event.")
    return Exit.FINE


def _compared(reading: Reading) -> list[Json]:
    rows = []
    for file, data in views.render(reading.graph, reading.head).items():
        path = f"{views.FOLDER}/{file}"
        seq, found = 0, b""
        if reading.disk.exists(path):
            found = reading.disk.read(path)
            seq = _seq_in(found)
        old = "behind" if seq < reading.head.seq else "different"
        state = "missing" if not found else "current" if found == data else old
        rows.append({"view": file.removesuffix(".json"), "bytes": len(found), "seq": seq, "state": state})
    return rows


def _seq_in(data: bytes) -> int:
    """The record a view's file says it was made from; 0 if it says none."""
    try:
        return int(orjson.loads(data)["head"]["seq"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return 0


def _rebuild(call: Call) -> int:
    call.home.check(write=True)
    reading = call.reading
    before = _compared(reading)
    pulse = call.pulse()
    if pulse is not None and pulse["ledger_seq"] != reading.head.seq:
        raise Failure(
            Exit.HELD,
            f"the daemon (pid {pulse['pid']}) is writing the views: it is at record {pulse['ledger_seq']} already",
            where=str(call.home.state),
            do="nothing: it writes them all with its next event. Or stop it (`hermesd stop`) and rebuild then",
        )
    views.publish(reading.disk, reading.graph, reading.head)
    changed = [row["view"] for row in before if row["state"] != "current"]
    if call.json:
        show.json({"head": reading.head._asdict(), "views": sorted(views.VIEWS), "changed": changed})
    else:
        what = f"{', '.join(changed)} had been otherwise" if changed else "every byte was so already"
        print(f"Wrote {show.count(len(views.VIEWS), 'view')} from record {reading.head.seq}: {what}.")
    return Exit.FINE
