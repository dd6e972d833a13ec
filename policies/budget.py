"""How much may be spent in how long: runs and tokens, in windows that end now.

A budget is a lease on an amount: the start of an attempt reserves a run and the tokens its job says it needs, its end
settles the tokens at what was really used (`state.spending`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from policies.quantity import BOUND
from state.shape import Within

Json = Any

WINDOWS_MS = {"minute": 60_000, "hour": 3_600_000, "day": 86_400_000}
Amount = Annotated[int | None, Within(1, BOUND)]


@dataclass(frozen=True)
class Pool:
    """What the jobs with one tag share: as `policies.job.Budget`, and places. The pool has the tag's name."""

    runs_per_minute: Amount = None
    runs_per_hour: Amount = None
    runs_per_day: Amount = None
    tokens_per_minute: Amount = None
    tokens_per_hour: Amount = None
    tokens_per_day: Amount = None
    places: Amount = None
    """How many of their attempts run at once."""


class Short(NamedTuple):
    rule: str
    reason: str
    never: bool
    """No wait would help: one attempt asks for more than the whole budget."""
    not_before_ms: int


Entries = Sequence[tuple[int, str, int]]


def limits(budget: Mapping[str, Json]) -> Iterator[tuple[str, str, int, int]]:
    """Field, what it counts, window in ms, amount."""
    for field, amount in budget.items():
        what, _, window = field.partition("_per_")
        if amount is not None and window:
            yield field, what, WINDOWS_MS[window], amount


def short(account: str, budget: Mapping[str, Json], entries: Entries, wall_ms: int, tokens: int) -> Short | None:
    """Why another attempt that asks for `tokens` does not fit in now; None if it does."""
    for field, what, window_ms, amount in limits(budget):
        asked = tokens if what == "tokens" else 1
        if not asked:
            continue
        rule, name = f"budget.{field}", account.partition(":")[2]
        if asked > amount:
            reason = f"needs {asked} token{'s' if asked > 1 else ''}, and {field} of {name} is {amount}"
            return Short(rule, reason, never=True, not_before_ms=0)
        inside = [entry for entry in entries if entry[0] > wall_ms - window_ms]
        spent = sum(entry[2] if what == "tokens" else 1 for entry in inside)
        if spent + asked <= amount:
            continue
        over = spent + asked - amount
        for at_ms, _, used in inside:  # In the order of time: the oldest leave the window first.
            over -= used if what == "tokens" else 1
            if over <= 0:
                reason = f"{field} of {name} is {amount}, and {spent} {'is' if spent == 1 else 'are'} spent"
                return Short(rule, reason, never=False, not_before_ms=at_ms + window_ms)
    return None
