"""The upgrade policy: the parameters of every upgrade plan. Defaults: `policies/defaults/upgrades.yaml`, only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any

import orjson

from policies.policy import IllegalPolicy, legal
from policies.quantity import BOUND
from state.intelligence import Priors
from state.shape import Within

Json = Any
Share = Annotated[float, Within(0, 1)]

PARTS = ("change_size", "fragile_files", "remote_health", "risky_hour", "rollback_rate", "staleness")
"""The named parts of a risk."""


CALIBRATION_MAX = 50


@dataclass(frozen=True)
class Weights:
    change_size: Share
    fragile_files: Share
    rollback_rate: Share
    staleness: Share
    remote_health: Share
    risky_hour: Share


@dataclass(frozen=True)
class Risk:
    base: Share
    weights: Weights
    change_half: Annotated[int, Within(1, BOUND)]
    stale_half_days: Annotated[int, Within(1, BOUND)]
    prior_rate: Share
    prior_attempts: Annotated[int, Within(1, 1000)]
    hold_at: Share
    calibration: tuple[tuple[Share, Share], ...]


@dataclass(frozen=True)
class UpgradePolicy:
    """What each value means is told beside its default."""

    risk: Risk
    tries_per_commit: Annotated[int, Within(1, 1000)]
    healthy_probes: Annotated[int, Within(1, 1000)]
    health_half_life_ms: Annotated[int, Within(60_000, BOUND)]
    uses_per_remote_host: Annotated[int, Within(1, 1000)]
    busy_per_cpu: Annotated[float, Within(0, above=True)]
    memory_low_percent: Annotated[int, Within(0, 100)]
    memory_critical_percent: Annotated[int, Within(0, 100)]
    disk_reserve_bytes: Annotated[int, Within(0, BOUND)]

    @classmethod
    def of(cls, values: Mapping[str, Json]) -> UpgradePolicy:
        """IllegalPolicy names the field that is wrong."""
        legal(cls, values)
        risk = values["risk"]
        pairs = tuple((float(low), float(high)) for low, high in risk["calibration"])
        if len(pairs) > CALIBRATION_MAX:
            raise IllegalPolicy("risk.calibration", f"it has {len(pairs)} pairs, and {CALIBRATION_MAX} at most")
        for (low, below), (high, above) in pairwise(pairs):
            if low >= high or below > above:
                what = f"calibration goes from [{low:g}, {below:g}] to [{high:g}, {above:g}]"
                advice = "sort the pairs by their first number; the second must never fall"
                raise IllegalPolicy("risk", f"{what}: {advice}")
        return cls(**{**values, "risk": Risk(**{**risk, "weights": Weights(**risk["weights"]), "calibration": pairs})})

    @cached_property
    def priors(self) -> Priors:
        return Priors.of(self.values())

    def values(self) -> dict[str, Json]:
        """JSON values; `UpgradePolicy.of` makes the same policy of them."""
        values = asdict(self)
        values["risk"]["calibration"] = [list(pair) for pair in self.risk.calibration]
        return values

    def digest(self) -> str:
        return hashlib.sha256(orjson.dumps(self.values(), option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def adopt(defaults: Mapping[str, Json], override: Mapping[str, Json]) -> UpgradePolicy:
    """The policy in force: `override` over `defaults`, also inside `risk` and its weights. IllegalPolicy names the
    field that is wrong."""
    return UpgradePolicy.of(_over(defaults, override))


def _over(below: Mapping[str, Json], above: Mapping[str, Json]) -> dict[str, Json]:
    found = dict(below)
    for name, value in above.items():
        old = found.get(name)
        found[name] = _over(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return found
