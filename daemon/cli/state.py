"""The views in `state/`: listed, shown, shown as of a record, and rebuilt from the ledger."""

from __future__ import annotations

from typing import Any

import orjson

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.cli.instant import instant_ms
from daemon.reading import Reading
from daemon.system import SystemClock
from ledger.chain import Head
from policies.fault import meant
from state import views
from state.graph import AnyNode, Graph

Json = Any

_SHOWN = 100


def state(call: Call, words: list[str], at: str) -> int:
    if words == ["rebuild"]:
        if at:
            raise Failure(Exit.BAD_INPUT, "state/ is never as of an older record", do="leave --at out, or name a view")
        return _rebuild(call)
    if words[:1] == ["diff"]:
        return _diff(call, words[1:])
    if words[:1] == ["show"]:
        words = words[1:]
    if len(words) > 1:
        raise Failure(Exit.BAD_INPUT, f"{' '.join(words)!r} is too much", do="name one view, or say `state rebuild`")
    if words or at:
        return _show(call, words[0] if words else "", at)
    return _list(call)


def _show(call: Call, name: str, at: str) -> int:
    """From the ledger, not from the file: nobody can have edited that."""
    name = name.removesuffix(".jsonl").removesuffix(".json")
    if name and name not in views.known():
        do = meant(name, views.known(), f"the views are {', '.join(views.known())}")
        raise Failure(Exit.UNKNOWN, f"there is no view {name!r}", do=do)
    files = views.render(*_as_of(call, at))
    if name and views.file_of(name) not in files:
        raise Failure(Exit.UNKNOWN, f"there is nothing yet that view {name!r} could show", do="")
    if name:
        show.raw(files[views.file_of(name)])
    else:
        show.json({_name(file): _told(file, data) for file, data in files.items()})
    return Exit.FINE


def _name(file: str) -> str:
    return file.removesuffix(".jsonl").removesuffix(".json")


def _told(file: str, data: bytes) -> Json:
    return [orjson.loads(line) for line in data.splitlines()] if file.endswith(".jsonl") else orjson.loads(data)


def _as_of(call: Call, at: str) -> tuple[Graph, Head]:
    """The graph as of a record, or of the last one written at or before an instant; "" is now."""
    reading = call.reading
    if not at:
        return reading.graph, reading.head
    if at.isdecimal():
        seq = int(at)
    else:
        seq = reading.seq_at(instant_ms(at, SystemClock().now().wall_ms, call.zone, ago=True))
    graph = reading.graph_at(seq)
    if reading.head_read.seq < seq:
        raise Failure(Exit.UNKNOWN, f"the ledger ends with record {reading.head_read.seq}; there is no {seq} yet")
    return graph, reading.head_read


def _diff(call: Call, words: list[str]) -> int:
    """What there is at two records (or instants): nodes that came, nodes that went, fields that changed."""
    if len(words) != 2:
        raise Failure(Exit.BAD_INPUT, "two records are compared", do="write `hermesd state diff 120 180`")
    (one, before), (other, after) = (_as_of(call, word) for word in words)
    came = {name: _plain(node) for name, node in sorted(other.nodes.items()) if name not in one.nodes}
    went = {name: _plain(node) for name, node in sorted(one.nodes.items()) if name not in other.nodes}
    changed = {
        name: {
            field: [_json(old), _json(new)]
            for field, old, new in zip(node._fields, node, other.nodes[name], strict=True)
            if old != new
        }
        for name, node in sorted(one.nodes.items())
        if name in other.nodes and node != other.nodes[name]
    }
    if call.json:
        show.json({"from": before._asdict(), "to": after._asdict(), "came": came, "went": went, "changed": changed})
        return Exit.FINE
    print(f"From record {before.seq} to {after.seq}:")
    for name in came:
        print(f"+ {name}")
    for name in went:
        print(f"- {name}")
    for name, fields in changed.items():
        print(f"~ {name}")
        for field, (old, new) in fields.items():
            print(f"    {field}: {_short(old)} -> {_short(new)}")
    if not came and not went and not changed:
        print("Nothing differs.")
    return Exit.FINE


def _plain(node: AnyNode) -> Json:
    return {field: _json(value) for field, value in node._asdict().items()}


def _json(value: Json) -> Json:
    return orjson.loads(orjson.dumps(value))


def _short(value: Json) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


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
            head = views.head_in(found)
            seq = head.seq if head is not None else 0
        old = "behind" if seq < reading.head.seq else "different"
        state = "missing" if not found else "current" if found == data else old
        rows.append({"view": _name(file), "bytes": len(found), "seq": seq, "state": state})
    return rows


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
        show.json({"head": reading.head._asdict(), "views": [row["view"] for row in before], "changed": changed})
    else:
        what = f"{', '.join(changed)} had been otherwise" if changed else "every byte was so already"
        print(f"Wrote {show.count(len(before), 'view')} from record {reading.head.seq}: {what}.")
    return Exit.FINE
