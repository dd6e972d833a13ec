"""What a gateway tells of its engines, and what of it is recorded.

A batch is taken as far as it is legal and new; what is refused is named in the answer and never asked for again, so
that one bad event cannot hold up those behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ledger.instant import ms_of
from ledger.record import Draft
from state.engines import told_already
from state.events import VOCABULARY, IllegalEvent, draft
from state.graph import Graph

Json = Any

VERB = "tell"
EVENTS_MAX = 256
"""In one batch."""
TYPES = frozenset(
    type_ for type_ in VOCABULARY if type_.split(".")[0] in ("gateway", "model", "engine", "breaker", "generation")
)
_DEPTH_MAX = 8
_TEXT_MAX = 4096


def events(graph: Graph, args: Mapping[str, Json]) -> tuple[list[Draft], Json]:
    """The events to record, and the answer: how many are recorded, how many were already, which are refused and why.
    `args`: {"events": [{"type", "data"}]}, each with its teller's name, number and instant."""
    told = args.get("events")
    if not isinstance(told, list) or len(told) > EVENTS_MAX:
        return [], {"recorded": 0, "already": 0, "refused": [{"number": 0, "why": f"1 to {EVENTS_MAX} events"}]}
    drafts: list[Draft] = []
    refused: list[Json] = []
    latest: dict[str, int] = {}
    already = 0
    for one in told:
        try:
            by, number = _teller(one)
            if told_already(graph, by, number) or number <= latest.get(by, 0):
                already += 1
                continue
            drafts.append(draft(one["type"], _subject(one["type"], one["data"]), one["data"]))
            latest[by] = number
        except (IllegalEvent, ValueError) as error:
            number = one.get("data", {}).get("number", 0) if isinstance(one, dict) else 0
            refused.append({"number": number if isinstance(number, int) else 0, "why": str(error)[:500]})
    return drafts, {"recorded": len(drafts), "already": already, "refused": refused}


def _teller(one: Json) -> tuple[str, int]:
    """Its name and number; ValueError if it is nothing that a gateway may tell."""
    if not isinstance(one, dict) or not isinstance(one.get("data"), dict) or one.get("type") not in TYPES:
        raise ValueError("an event has a type of gateway, model, engine, breaker or generation, and data")
    data = one["data"]
    by, number, at = data.get("by"), data.get("number"), data.get("at")
    if not isinstance(by, str) or not 0 < len(by) <= 64 or type(number) is not int or not 0 < number < 2**63:
        raise ValueError("an event is told by somebody, and has a number above 0")
    if not isinstance(at, str) or ms_of(at) < 0:
        raise ValueError("an event has an instant")
    _refuse_unwieldy(data, 0)
    return by, number


def _subject(type_: str, data: Mapping[str, Json]) -> str:
    kind = type_.split(".")[0]
    if kind == "gateway":
        return f"gateway/{data['by']}"
    if kind == "engine":
        return f"engine/{data.get('engine', '')}"
    return f"generation/{data.get('request', '')}" if kind == "generation" else f"model/{data.get('model', '')}"


def _refuse_unwieldy(value: Json, depth: int) -> None:
    if depth > _DEPTH_MAX:
        raise ValueError(f"it is nested deeper than {_DEPTH_MAX} levels")
    if isinstance(value, str) and len(value) > _TEXT_MAX:
        raise ValueError(f"a text in it has {len(value)} characters, more than {_TEXT_MAX}")
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _refuse_unwieldy(each, depth + 1)
