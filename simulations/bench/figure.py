"""One measured figure, and the bare floor or the peer it stands beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

Json = Any

NOISY = 0.5
"""A figure whose rounds lie further apart than this share of their median says little."""


@dataclass(frozen=True, slots=True)
class Figure:
    """`ours` and `theirs` are medians over the rounds. `ratio` is ours by theirs; which way is better is said by
    `target`, the text of the figure to reach ("" if none was set), and by `met`."""

    name: str
    unit: str
    ours: float
    rounds: int
    spread: float
    """(largest - smallest) / median over the rounds, of ours or of theirs, whichever is larger."""
    peer: str = ""
    theirs: float | None = None
    target: str = ""
    met: bool | None = None
    note: str = ""
    """What must be known to read it."""

    @property
    def ratio(self) -> float | None:
        return self.ours / self.theirs if self.theirs else None

    @property
    def noisy(self) -> bool:
        return self.spread > NOISY

    def json(self) -> Json:
        return {**asdict(self), "ratio": self.ratio, "noisy": self.noisy}


@dataclass(frozen=True, slots=True)
class Target:
    """A figure to reach: `at_most` or `at_least`, of the ratio or of ours."""

    at_most: float | None = None
    at_least: float | None = None
    of_ratio: bool = False

    def text(self, unit: str) -> str:
        sign, bound = ("<=", self.at_most) if self.at_most is not None else (">=", self.at_least)
        return f"{sign} {bound:,g}x" if self.of_ratio else f"{sign} {bound:,g} {unit}"

    def met(self, ours: float, ratio: float | None) -> bool | None:
        value = ratio if self.of_ratio else ours
        if value is None:
            return None
        return value <= self.at_most if self.at_most is not None else value >= (self.at_least or 0)


def figure(
    name: str,
    unit: str,
    ours: Sequence[float],
    peer: str = "",
    theirs: Sequence[float] = (),
    target: Target | None = None,
    note: str = "",
) -> Figure:
    """From the rounds as measured. Ours and theirs were taken in turn."""
    own, other = median(ours), median(theirs) if theirs else None
    ratio = own / other if other else None
    return Figure(
        name, unit, own, len(ours), max(_spread(ours), _spread(theirs)), peer, other,
        target.text(unit) if target else "", target.met(own, ratio) if target else None, note,
    )  # fmt: skip


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(percent * len(ordered)) // 100) - 1)]


def _spread(values: Sequence[float]) -> float:
    middle = median(values) if values else 0.0
    return (max(values) - min(values)) / middle if middle else 0.0
