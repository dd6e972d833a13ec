"""A job's spec as the graph holds it: parts that say the same in many jobs, mostly defaults, are held once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

Json = Any

_PARTS_MAX = 4096
_PART_LETTERS_MAX = 256
_SPECS_MAX = 256
_parts: dict[str, Json] = {}
_specs: dict[bytes, dict[str, Json]] = {}
"""Memory only: what a spec says does not depend on it. Nothing of a graph is ever changed in place."""


def shared(spec: Mapping[str, Json]) -> dict[str, Json]:
    """An equal spec, with its small parts shared; the very one, if it has come before, as in a past folded again."""
    text = orjson.dumps(spec)
    known = _specs.get(text)
    if known is None:
        known = {name: _shared(part) for name, part in spec.items()}
        if len(_specs) == _SPECS_MAX:
            _specs.clear()
        _specs[text] = known
    return known


def _shared(part: Json) -> Json:
    if part is None or isinstance(part, bool | int):
        return part
    text = orjson.dumps(part).decode()  # As text, since orjson's bytes keep the whole buffer they were written in.
    if len(text) > _PART_LETTERS_MAX:
        return part
    known = _parts.get(text)
    if known is None and len(_parts) < _PARTS_MAX:
        _parts[text] = known = part
    return part if known is None else known
