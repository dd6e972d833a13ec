"""Whether a JSON value has the shape that a TypedDict or a dataclass gives it: the check at the ledger's door, and of
what a policy may say.

Strict, as JSON is: true is no number, a number is no text, and of numbers only a whole one stands for a fraction. It is
plain Python, since every event passes here, in a daemon that is to stay small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from math import isfinite
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NotRequired,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

Json = Any


class Misfit(NamedTuple):
    path: tuple[str | int, ...]
    message: str

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.path))}: {self.message}"

    def below(self, part: str | int) -> Misfit:
        return Misfit((part, *self.path), self.message)


Check = Callable[[Json], Misfit | None]


class Within(NamedTuple):
    """Beside a number's kind, in Annotated: its bounds, which are themselves within, unless it is to be `above` the
    least."""

    least: float
    most: float | None = None
    above: bool = False


@cache
def shape_of(kind: Any, *, closed: bool) -> Check:
    """The check for a TypedDict or a dataclass, or for anything that may stand in one. `closed`: fields it does not
    name are wrong, in it and in all below it."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return _anything
    if is_typeddict(kind) or is_dataclass(kind):
        return _fields(kind, closed)
    if origin is Annotated:
        return _within(shape_of(inner[0], closed=closed), *inner[1:])
    if origin is Literal:
        return _one_of(inner)
    if origin in (Union, UnionType):
        return _either(tuple(shape_of(one, closed=closed) for one in inner))
    if origin is list:
        return _each(shape_of(inner[0], closed=closed))
    if origin is tuple and inner[-1] is ...:
        return _each(shape_of(inner[0], closed=closed))
    if origin is tuple:
        return _row(tuple(shape_of(one, closed=closed) for one in inner))
    if origin is dict and inner[0] is str:
        return _by_name(shape_of(inner[1], closed=closed))
    return _PLAIN[kind]


def _anything(value: Json) -> None:
    return None


def _plain(word: str, *types: type) -> Check:
    wrong = Misfit((), f"{word} belongs here")
    exact = types[0]

    def check(value: Json) -> Misfit | None:
        if type(value) is exact:
            return None
        return None if isinstance(value, types) and not isinstance(value, bool) else wrong

    return check


_PLAIN: Mapping[Any, Check] = {
    str: _plain("text", str),
    int: _plain("a whole number", int),
    float: _plain("a number", float, int),
    bool: lambda value: None if isinstance(value, bool) else Misfit((), "true or false belongs here"),
    NoneType: lambda value: None if value is None else Misfit((), "nothing belongs here"),
}


def _one_of(words: tuple[Json, ...]) -> Check:
    known = frozenset(words)
    wrong = Misfit((), f"one of {', '.join(map(repr, words))} belongs here")
    return lambda value: None if isinstance(value, str) and value in known else wrong


def _either(checks: tuple[Check, ...]) -> Check:
    def check(value: Json) -> Misfit | None:
        found = None
        for one in checks:
            found = one(value)
            if found is None:
                return None
        return found

    return check


def _each(item: Check) -> Check:
    wrong = Misfit((), "a list belongs here")

    def check(value: Json) -> Misfit | None:
        if not isinstance(value, list | tuple):
            return wrong
        if item is not _anything:
            for place, one in enumerate(value):
                if (found := item(one)) is not None:
                    return found.below(place)
        return None

    return check


def _row(items: tuple[Check, ...]) -> Check:
    each, wrong = _each(_anything), Misfit((), f"a list of {len(items)} belongs here")

    def check(value: Json) -> Misfit | None:
        if each(value) is not None or len(value) != len(items):
            return wrong
        found = ((place, items[place](one)) for place, one in enumerate(value))
        return next((misfit.below(place) for place, misfit in found if misfit is not None), None)

    return check


def _within(number: Check, bounds: Within) -> Check:
    least, most, above = bounds
    at_most = f" and at most {most:.16g}" if most is not None else ""
    words = f"{'more than' if above else 'at least'} {least:.16g}{at_most}"

    def check(value: Json) -> Misfit | None:
        if (found := number(value)) is not None or value is None:
            return found
        low = value <= least if above else value < least
        if low or (most is not None and value > most) or not isfinite(value):
            return Misfit((), f"it must be {words}")
        return None

    return check


def _by_name(item: Check) -> Check:
    wrong, unnamed = Misfit((), "a mapping belongs here"), Misfit((), "its names must be texts")

    def check(value: Json) -> Misfit | None:
        if type(value) is not dict and not isinstance(value, Mapping):
            return wrong
        for name, one in value.items():
            if not isinstance(name, str):
                return unnamed
            if (found := item(one)) is not None:
                return found.below(name)
        return None

    return check


def _fields(kind: type, closed: bool) -> Check:
    hints = get_type_hints(kind, include_extras=True)
    optional = {name for name, hint in hints.items() if get_origin(hint) is NotRequired}
    if is_dataclass(kind):
        optional = {one.name for one in fields(kind) if one.default is not MISSING}
    needed = hints.keys() - optional
    checks: dict[str, tuple[frozenset[Any], Check]] = {}
    for name, hint in hints.items():
        inner = get_args(hint)[0] if get_origin(hint) is NotRequired else hint
        either = get_args(inner) if get_origin(inner) in (Union, UnionType) else (inner,)
        checks[name] = (frozenset(either) & _PLAIN.keys(), shape_of(inner, closed=closed))
    wrong = Misfit((), "a mapping belongs here")

    def check(value: Json) -> Misfit | None:
        if type(value) is not dict and not isinstance(value, Mapping):
            return wrong
        there = 0
        for name, one in value.items():
            known = checks.get(name)
            if known is None:
                if closed:
                    return Misfit((name,), "there is no such field")
                continue
            there += name in needed
            plain, fits = known
            if type(one) not in plain and (found := fits(one)) is not None:  # most are plain, and as they are to be
                return found.below(name)
        if there != len(needed):
            return Misfit((min(needed - value.keys()),), "the field is missing")
        return None

    return check
