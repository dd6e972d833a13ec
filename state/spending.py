"""What budgets have given out. A start reserves a run and its tokens; the end settles the tokens at what was used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from state.graph import Spending

Json = Any

LONGEST_MS = 86_400_000
"""The longest window of any budget: older entries are forgotten."""


def accounts(job: str, spec: Mapping[str, Json], policy: Mapping[str, Json]) -> list[str]:
    """The accounts that a run of `job` draws on: its own where it has a budget, and those of its tags that the policy
    names as pools."""
    found = [f"job:{job}"] if spec.get("budget") else []
    pools = policy.get("pools")
    return found + [f"tag:{tag}" for tag in spec.get("tags", ()) if tag in pools] if pools else found


def reserved(spending: Spending, at_ms: int, run: str, tokens: int) -> Spending:
    kept = tuple(entry for entry in spending.entries if entry[0] > at_ms - LONGEST_MS)
    return spending._replace(entries=(*kept, (at_ms, run, tokens)))


def returned(spending: Spending, run: str) -> Spending:
    """Without the run's latest entry: what that reserved never began."""
    entries = spending.entries
    place = next((place for place in reversed(range(len(entries))) if entries[place][1] == run), None)
    return spending if place is None else spending._replace(entries=entries[:place] + entries[place + 1 :])


def moved(spending: Spending, by_ms: int) -> Spending:
    """As the clock shows it that was set by so much: what was spent a minute ago stays spent a minute ago."""
    return spending._replace(entries=tuple((at_ms + by_ms, run, tokens) for at_ms, run, tokens in spending.entries))


def settled(spending: Spending, run: str, reserved_tokens: int, used_tokens: int) -> Spending:
    """The run's latest entry, as it turned out."""
    entries = list(spending.entries)
    for place in range(len(entries) - 1, -1, -1):
        at_ms, name, tokens = entries[place]
        if name == run and tokens == reserved_tokens:
            entries[place] = (at_ms, name, used_tokens)
            break
    return spending._replace(entries=tuple(entries))
