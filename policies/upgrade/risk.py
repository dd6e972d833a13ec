"""The risk of an upgrade: the estimated probability that it fails or has to be taken back, with its named parts.

The parts count as independent causes, each with a weight told in `policies/defaults/upgrades.yaml`:
`1 - (1 - base) * product of (1 - weight * part)`. A part that grows never lowers the risk.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from policies.upgrade.facts import Change
from policies.upgrade.policy import PARTS, Risk, UpgradePolicy
from state import intelligence

Json = Any

LINES_PER_FILE = 20
"""A changed file counts as so many changed lines, whatever it holds: a binary one has none."""
DIGITS = 4


class Estimate(NamedTuple):
    risk: float
    """0..1, four digits: what the parts say, corrected by the policy's calibration."""
    raw: float
    """Without the correction."""
    parts: dict[str, float]
    """Each part's own probability of spoiling the upgrade: its value times its weight."""
    worst_file: str


def estimate(
    change: Change, memory: Mapping[str, Json], health: float, wall_ms: int, policy: UpgradePolicy
) -> Estimate:
    """`memory` as `state.upgrades.told` gives it; `health` of the remote that is used."""
    risk = policy.risk
    lines = change["insertions"] + change["deletions"] + LINES_PER_FILE * change["files_count"]
    worst, file = intelligence.fragile(memory, change["files"])
    days = intelligence.stale_days(memory, wall_ms)
    values = {
        "change_size": lines / (lines + risk.change_half),
        "fragile_files": worst,
        "rollback_rate": intelligence.rollback_rate(memory, policy.priors),
        "staleness": days / (days + risk.stale_half_days),
        "remote_health": 1 - health,
        "risky_hour": intelligence.risky_hour(memory, wall_ms),
    }
    weights = vars(risk.weights)
    parts = {name: round(weights[name] * values[name], DIGITS) for name in PARTS}
    raw = combined(risk.base, parts)
    return Estimate(calibrated(raw, risk), raw, parts, file)


def combined(base: float, parts: Mapping[str, float]) -> float:
    spared = 1 - base
    for name in PARTS:
        spared *= 1 - parts[name]
    return round(1 - spared, DIGITS)


def calibrated(raw: float, risk: Risk) -> float:
    """The policy's correction: straight lines between its pairs, from 0 to 0 and from 1 to 1 beyond them."""
    if not risk.calibration:
        return raw
    return bent(raw, risk.calibration)


def bent(raw: float, pairs: tuple[tuple[float, float], ...]) -> float:
    points = ((0.0, 0.0), *pairs, (1.0, 1.0))
    for (low, below), (high, above) in pairwise(points):
        if low <= raw <= high:
            return round(above if high == low else below + (above - below) * (raw - low) / (high - low), DIGITS)
    return raw


def words(parts: Mapping[str, float], count: int = 2) -> str:
    """The parts that weigh most, in words."""
    most = sorted(parts.items(), key=lambda item: (-item[1], item[0]))[:count]
    told = [f"{name.replace('_', ' ')} {value:.2f}" for name, value in most if value >= 0.005]
    return ", ".join(told) or "nothing in particular"
