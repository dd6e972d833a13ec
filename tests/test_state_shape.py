"""The check at the ledger's door: what fits, and the first thing that does not, by its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest

from state.shape import Within, shape_of


class Inner(TypedDict):
    word: Literal["one", "two"]


class Outer(TypedDict):
    name: str
    count: int
    share: float
    sure: bool
    maybe: int | None
    rows: list[Inner]
    by_name: dict[str, list[int]]
    anything: Any
    seldom: NotRequired[str]


@dataclass(frozen=True)
class Rule:
    percent: Annotated[int, Within(0, 100)]
    rate: Annotated[float, Within(0, above=True)]
    pairs: tuple[tuple[int, int], ...] = ()
    most: Annotated[int | None, Within(1)] = None


GOOD: dict[str, Any] = {
    "name": "a", "count": 1, "share": 1, "sure": True, "maybe": None, "rows": [{"word": "one"}],
    "by_name": {"x": [1]}, "anything": object(),
}  # fmt: skip
RULE: dict[str, Any] = {"percent": 5, "rate": 0.5}


def said(kind: type, value: Any, *, closed: bool = True) -> str:
    return str(shape_of(kind, closed=closed)(value) or "fits")


def test_what_fits_fits() -> None:
    assert said(Outer, GOOD) == "fits"
    assert said(Outer, {**GOOD, "seldom": "x", "maybe": 3, "rows": [], "share": 0.5}) == "fits"
    assert said(Rule, {**RULE, "pairs": [[1, 2], (3, 4)], "most": 7}) == "fits"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": 1}, "name: text belongs here"),
        ({"count": True}, "count: a whole number belongs here"),
        ({"count": 1.0}, "count: a whole number belongs here"),
        ({"count": "1"}, "count: a whole number belongs here"),
        ({"share": True}, "share: a number belongs here"),
        ({"sure": 1}, "sure: true or false belongs here"),
        ({"maybe": "x"}, "maybe: nothing belongs here"),
        ({"rows": {}}, "rows: a list belongs here"),
        ({"rows": [{"word": "one"}, {"word": "three"}]}, "rows.1.word: one of 'one', 'two' belongs here"),
        ({"rows": [{"word": "one", "more": 1}]}, "rows.0.more: there is no such field"),
        ({"rows": [{}]}, "rows.0.word: the field is missing"),
        ({"by_name": {"x": ["y"]}}, "by_name.x.0: a whole number belongs here"),
        ({"by_name": {1: []}}, "by_name: its names must be texts"),
        ({"seldom": None}, "seldom: text belongs here"),
        ({"colour": "red"}, "colour: there is no such field"),
    ],
)
def test_the_first_thing_that_does_not_fit_is_told_with_its_place(change: dict[str, Any], words: str) -> None:
    assert said(Outer, {**GOOD, **change}) == words


def test_every_field_must_be_there_but_those_that_need_not() -> None:
    for name in GOOD:
        less = {other: value for other, value in GOOD.items() if other != name}
        assert said(Outer, less) == f"{name}: the field is missing"
    assert said(Outer, []) == ": a mapping belongs here"


def test_an_open_shape_lets_more_fields_pass_and_nothing_else() -> None:
    assert said(Outer, {**GOOD, "colour": "red", "rows": [{"word": "one", "more": 1}]}, closed=False) == "fits"
    assert said(Outer, {"colour": "red"}, closed=False) == "anything: the field is missing"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"percent": 101}, "percent: it must be at least 0 and at most 100"),
        ({"percent": -1}, "percent: it must be at least 0 and at most 100"),
        ({"rate": 0}, "rate: it must be more than 0"),
        ({"rate": float("nan")}, "rate: it must be more than 0"),
        ({"rate": float("inf")}, "rate: it must be more than 0"),
        ({"pairs": [[1, 2, 3]]}, "pairs.0: a list of 2 belongs here"),
        ({"pairs": [[1, "2"]]}, "pairs.0.1: a whole number belongs here"),
        ({"most": 0}, "most: it must be at least 1"),
    ],
)
def test_bounds_hold(change: dict[str, Any], words: str) -> None:
    assert said(Rule, {**RULE, **change}) == words
