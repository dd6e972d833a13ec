"""Placeholders in the strings of a job: `{{ run.folder }}`, `{{ file.path|name }}`, `{{ line }}`,
`{{ steps.NAME.text|file|result }}`, `{{ secret.NAME }}`.

Only words that begin like one of these are placeholders; any other `{{ ... }}` is the job's own text, since programs
such as docker and git use the same braces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from policies.fault import BadValue

OUTPUTS = ("text", "file", "result")
_PLACEHOLDER = re.compile(r"\{\{\s*((?:run|steps|line|file(?=\.)|secret(?=\.))(?![A-Za-z0-9_])[^{}]*?)\s*\}\}")
_STEP = re.compile(r"steps\.([a-z0-9][a-z0-9_-]{0,63})\.(\w+)")
_SECRET = re.compile(r"secret\.([A-Za-z0-9_][A-Za-z0-9_.-]{0,63})")


class Reference(NamedTuple):
    """Only `steps` has a step, and of its outputs `text`: what it printed; `file`: the path of that; `result`: JSON.
    Only `secret` has a secret, the name of one."""

    name: str
    step: str = ""
    output: str = ""
    secret: str = ""


def reference(inside: str) -> Reference:
    """What stands between the braces. BadValue if it names nothing."""
    if inside in ("run.folder", "file.path", "file.name", "line"):
        return Reference(inside)
    if secret := _SECRET.fullmatch(inside):
        return Reference("secret", secret=secret[1])
    match = _STEP.fullmatch(inside)
    if match is None:
        raise BadValue(
            f"unknown placeholder {{{{ {inside} }}}}",
            "There are run.folder, file.path|name, line, steps.NAME.text|file|result and secret.NAME",
        )
    if match[2] not in OUTPUTS:
        raise BadValue(f"a step has no {match[2]!r} in {{{{ {inside} }}}}", f"It has {', '.join(OUTPUTS)}")
    return Reference("steps", match[1], match[2])


def references(value: Any) -> Iterator[Reference]:
    """Every placeholder in a JSON value, in reading order."""
    for _, inside in places(value):
        yield reference(inside)


def places(value: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Where in a JSON value placeholders stand, and what is between their braces, in reading order."""
    return _places(value, ()) if _may_hold(value) else iter(())


def _places(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        if "{{" in value:
            yield from ((path, match[1]) for match in _PLACEHOLDER.finditer(value))
    elif value is None or isinstance(value, bool | int | float):
        return
    elif isinstance(value, dict | Mapping):
        for key, inner in value.items():
            yield from _places(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _places(inner, (*path, index))


_NEITHER = frozenset({int, bool, float, type(None)})


def _may_hold(value: Any) -> bool:
    """Whether braces stand anywhere in it. Most jobs have none, and are asked before each start."""
    kind = type(value)
    if kind is str:
        return "{{" in value
    if kind is dict:
        value = value.values()
    elif kind is not list and kind is not tuple:
        return kind not in _NEITHER  # A mapping of another type, or a text: who looks properly will see.
    for inner in value:
        kind = type(inner)
        if "{{" in inner if kind is str else kind not in _NEITHER and _may_hold(inner):
            return True
    return False


def fill(value: Any, lookup: Callable[[Reference], Any]) -> Any:
    """The value with each placeholder replaced. A string that is one placeholder and nothing else becomes the looked-up
    JSON value itself; within longer text only strings and numbers can stand, anything else is BadValue."""
    return _fill(value, lookup) if _may_hold(value) else value


def _fill(value: Any, lookup: Callable[[Reference], Any]) -> Any:
    if isinstance(value, str):
        if "{{" not in value:
            return value
        whole = _PLACEHOLDER.fullmatch(value)
        if whole:
            return lookup(reference(whole[1]))
        return _PLACEHOLDER.sub(lambda match: _text_of(lookup(reference(match[1])), match[0]), value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict | Mapping):  # dict by name, since asking an abstract class takes longer than the rest
        return {key: _fill(inner, lookup) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_fill(inner, lookup) for inner in value]
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
