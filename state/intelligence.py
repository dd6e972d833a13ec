"""What the memory of upgrades means: rates with a prior, health that forgets, and how many observations stand behind.

Sums, products and quotients only, so that every machine gives the same digits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from state.upgrades import hour_of_week, proved

Json = Any

AGE = 0.9
"""Each attempt counts so much of the one after it."""
DAY_MS = 86_400_000
FILE_PRIOR = 2
"""As many attempts without failure are believed of every file."""
HOUR_PRIOR = 4
"""An hour of the week is believed to be like all others until it has seen more attempts than so many."""
SURE = 10
"""With so many attempts confidence is one half."""


class Priors(NamedTuple):
    """What is believed before anything is seen, and how it is forgotten: the part of the upgrade policy that memory is
    read with."""

    rate: float
    """The share of attempts that fail or are taken back."""
    attempts: int
    """How many attempts that belief is worth."""
    healthy_probes: int
    """So many in a row end a remote's probation."""
    half_life_ms: int
    """What a remote did counts half after this time."""

    @classmethod
    def of(cls, policy: Mapping[str, Json]) -> Priors:
        risk = policy["risk"]
        return cls(risk["prior_rate"], risk["prior_attempts"], policy["healthy_probes"], policy["health_half_life_ms"])


class Standing(NamedTuple):
    """How a remote is doing, as of an instant."""

    health: float
    """0..1, four digits; 1 where nothing is known."""
    probes: int
    streak: int
    """Healthy probes in a row, up to the latest."""
    demoted: bool
    """It failed, and has not been healthy for long enough since."""
    failure: str


UNKNOWN = Standing(1.0, 0, 0, False, "")


def faded(amount: float, age_ms: int, half_life_ms: int) -> float:
    """Half of it for each half-life that has passed; straight lines in between."""
    whole, rest = divmod(max(0, age_ms), half_life_ms)
    return 0.0 if whole > 60 else amount * (1 - rest / half_life_ms / 2) / (1 << whole)


def standing(remote: Mapping[str, Json] | None, wall_ms: int, priors: Priors) -> Standing:
    if remote is None or not remote["probes"]:
        return UNKNOWN
    well = ill = 0.0
    streak, failed = 0, False
    for at_ms, healthy in remote["probes"]:
        weight = faded(1.0, wall_ms - at_ms, priors.half_life_ms)
        well, ill = (well + weight, ill) if healthy else (well, ill + weight)
        streak, failed = (streak + 1, failed) if healthy else (0, True)
    demoted = failed and streak < priors.healthy_probes
    return Standing(round((well + 1) / (well + ill + 1), 4), len(remote["probes"]), streak, demoted, remote["failure"])


def proofs(memory: Mapping[str, Json]) -> list[tuple[int, bool, float | None]]:
    """The remembered attempts that spoke for or against their commit, oldest first: when, for, the risk estimated."""
    found = []
    for at_ms, outcome, _, _, risk, attempted, step, _, _ in memory.get("recent", ()):
        proof = proved(outcome, attempted, step)
        if proof is not None:
            found.append((at_ms, proof, risk))
    return found


def rollback_rate(memory: Mapping[str, Json], priors: Priors) -> float:
    """The share of attempts that failed or were taken back; the prior where there are none."""
    if not memory.get("recent"):
        return priors.rate
    failed, tried, weight = priors.rate * priors.attempts, float(priors.attempts), 1.0
    for _, good, _ in reversed(proofs(memory)):
        failed, tried = failed + weight * (not good), tried + weight
        weight *= AGE
    return failed / tried


def fragile(memory: Mapping[str, Json], files: Iterable[str]) -> tuple[float, str]:
    """Of the changed files the one that most often stood in a failed attempt: that share, and its path."""
    known = memory.get("files", {})
    worst, name = 0.0, ""
    for path in files if known else ():
        tried, failed = known.get(path, (0, 0))
        share = failed / (tried + FILE_PRIOR)
        if share > worst or (failed and share == worst and path < name):
            worst, name = share, path
    return worst, name


def risky_hour(memory: Mapping[str, Json], wall_ms: int) -> float:
    """By how much attempts at this hour of the week failed more often than attempts in general, against the most that
    could be."""
    hours = memory.get("hours")
    if not hours:
        return 0.0
    tried, failed = sum(hour[0] for hour in hours.values()), sum(hour[1] for hour in hours.values())
    if not failed:
        return 0.0
    here_tried, here_failed = hours.get(str(hour_of_week(wall_ms)), (0, 0))
    general = failed / tried
    here = (here_failed + HOUR_PRIOR * general) / (here_tried + HOUR_PRIOR)
    return max(0.0, here - general) / (1 - general) if general < 1 else 0.0


def stale_days(memory: Mapping[str, Json], wall_ms: int) -> float:
    """Days since it was last known to be at the newest commit; 0 where that was never seen: nothing is known then."""
    last_ms = memory.get("last_success_ms", 0)
    return max(0, wall_ms - last_ms) / DAY_MS if last_ms else 0.0


def stability(memory: Mapping[str, Json]) -> float:
    """0..1: of the remembered cycles the share that ended well, recent ones counting more. What waited for a person or
    for room counts neither way. 1 where nothing is known."""
    good = all_ = 0.0
    weight = 1.0
    for row in reversed(memory.get("recent", ())):
        if row[1] in ("upgraded", "unchanged", "rolled_back", "failed"):
            good, all_ = good + weight * (row[1] in ("upgraded", "unchanged")), all_ + weight
            weight *= AGE
    return round((good + 1) / (all_ + 1), 4)


def confidence(memory: Mapping[str, Json]) -> float:
    """0..1: how much the rates rest on attempts that were seen here rather than on the prior."""
    seen = len(proofs(memory))
    return round(seen / (seen + SURE), 4)


def by_hour(memory: Mapping[str, Json], priors: Priors) -> dict[str, float]:
    """Of each hour of the week in which there was an attempt: the probability that one fails, shrunk to the rate of
    all."""
    hours = memory.get("hours", {})
    general = rollback_rate(memory, priors)
    return {
        hour: round((failed + HOUR_PRIOR * general) / (tried + HOUR_PRIOR), 4)
        for hour, (tried, failed) in sorted(hours.items(), key=lambda item: int(item[0]))
    }
