"""The upgrade policy: the parameters of every upgrade plan. Defaults: `policies/defaults/upgrades.yaml`, only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from policies.fault import BadValue
from state.intelligence import Priors

Json = Any
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

PARTS = ("change_size", "fragile_files", "remote_health", "risky_hour", "rollback_rate", "staleness")
"""The named parts of a risk."""


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Weights(_Closed):
    change_size: Share
    fragile_files: Share
    rollback_rate: Share
    staleness: Share
    remote_health: Share
    risky_hour: Share


class Risk(_Closed):
    base: Share
    weights: Weights
    change_half: int = Field(ge=1)
    stale_half_days: int = Field(ge=1)
    prior_rate: Share
    prior_attempts: int = Field(ge=1, le=1000)
    hold_at: Share
    calibration: tuple[Annotated[tuple[Share, Share], Field(strict=False)], ...] = Field(max_length=50, strict=False)

    @model_validator(mode="after")
    def _rising(self) -> Self:
        for (low, below), (high, above) in pairwise(self.calibration):
            if low >= high or below > above:
                raise BadValue(
                    f"calibration goes from [{low:g}, {below:g}] to [{high:g}, {above:g}]",
                    "Sort the pairs by their first number; the second must never fall",
                )
        return self


class UpgradePolicy(_Closed):
    """What each value means is told beside its default."""

    risk: Risk
    tries_per_commit: int = Field(ge=1, le=1000)
    healthy_probes: int = Field(ge=1, le=1000)
    health_half_life_ms: int = Field(ge=60_000)
    uses_per_remote_host: int = Field(ge=1, le=1000)
    busy_per_cpu: float = Field(gt=0)
    memory_low_percent: int = Field(ge=0, le=100)
    memory_critical_percent: int = Field(ge=0, le=100)
    disk_reserve_bytes: int = Field(ge=0)

    @cached_property
    def priors(self) -> Priors:
        return Priors.of(self.values())

    def values(self) -> dict[str, Json]:
        """JSON values; `UpgradePolicy.model_validate` makes the same policy of them."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        return hashlib.sha256(orjson.dumps(self.values(), option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def adopt(defaults: Mapping[str, Json], override: Mapping[str, Json]) -> UpgradePolicy:
    """The policy in force: `override` over `defaults`, also inside `risk` and its weights. pydantic's ValidationError
    names the field that is wrong."""
    return UpgradePolicy.model_validate(_over(defaults, override))


def _over(below: Mapping[str, Json], above: Mapping[str, Json]) -> dict[str, Json]:
    found = dict(below)
    for name, value in above.items():
        old = found.get(name)
        found[name] = _over(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return found
