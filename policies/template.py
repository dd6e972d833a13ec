"""Placeholders in the strings of a job: `{{ run.folder }}`, `{{ line }}`, `{{ steps.NAME.text|file|result }}`.

Only words that begin like one of these are placeholders; any other `{{ ... }}` is the job's own text, since programs
such as docker and git use the same braces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from policies.fault import BadValue

OUTPUTS = ("text", "file", "result")
_PLACEHOLDER = re.compile(r"\{\{\s*((?:run|steps|line)(?![A-Za-z0-9_])[^{}]*?)\s*\}\}")
_STEP = re.compile(r"steps\.([a-z0-9][a-z0-9_-]{0,63})\.(\w+)")


class Reference(NamedTuple):
    """`run.folder` and `line` have no step. `text`: what the step printed; `file`: the path of that; `result`: JSON."""

    name: str
    step: str = ""
    output: str = ""


def reference(inside: str) -> Reference:
    """What stands between the braces. BadValue if it names nothing."""
    if inside in ("run.folder", "line"):
        return Reference(inside)
    match = _STEP.fullmatch(inside)
    if match is None:
        raise BadValue(
            f"unknown placeholder {{{{ {inside} }}}}", "There are run.folder, line and steps.NAME.text|file|result"
        )
    if match[2] not in OUTPUTS:
        raise BadValue(f"a step has no {match[2]!r} in {{{{ {inside} }}}}", f"It has {', '.join(OUTPUTS)}")
    return Reference("steps", match[1], match[2])


def references(value: Any) -> Iterator[Reference]:
    """Every placeholder in a JSON value, in reading order."""
    if isinstance(value, str):
        for match in _PLACEHOLDER.finditer(value):
            yield reference(match[1])
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from references(inner)


def fill(value: Any, lookup: Callable[[Reference], Any]) -> Any:
    """The value with each placeholder replaced. A string that is one placeholder and nothing else becomes the looked-up
    JSON value itself; within longer text only strings and numbers can stand, anything else is BadValue."""
    if isinstance(value, str):
        if "{{" not in value:
            return value
        whole = _PLACEHOLDER.fullmatch(value)
        if whole:
            return lookup(reference(whole[1]))
        return _PLACEHOLDER.sub(lambda match: _text_of(lookup(reference(match[1])), match[0]), value)
    if isinstance(value, dict | Mapping):  # dict by name, since asking an abstract class takes longer than the rest
        return {key: fill(inner, lookup) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [fill(inner, lookup) for inner in value]
    return value


def _text_of(found: Any, placeholder: str) -> str:
    if isinstance(found, str):
        return found
    if isinstance(found, int | float) and not isinstance(found, bool):
        return str(found)
    raise BadValue(
        f"{placeholder} is {type(found).__name__} and cannot stand inside longer text",
        "Let the placeholder be the whole value, or use .text",
    )
