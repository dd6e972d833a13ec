"""The scheduling policy: the parameters of every decision. Defaults: `policies/defaults/scheduling.yaml`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from policies.budget import Pool

Json = Any

BEFORE: Mapping[str, Json] = {
    "max_running": 16,
    "late_after_ms": 30_000,
    "max_decisions_per_plan": 200,
    "max_slots_per_job": 10_000,
    "clock_jump_ms": 2_000,
    "memory_percent": 100,
    "aging_ms": 60_000,
    "stagger_ms": 0,
    "retry_jitter_percent": 0,
    "notice_attempts": 8,
    "notice_base_ms": 30_000,
    "notice_max_ms": 43_200_000,
    "notices_at_once": 4,
    "notices_waiting_max": 1_000,
    "pools": {},
}
"""What held before there was a field for it. Not the defaults, which may change; these stay, as the past does."""


class SchedulingPolicy(BaseModel):
    """What each value means is told beside its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_running: int = Field(ge=1, le=10_000)
    late_after_ms: int = Field(ge=0)
    max_decisions_per_plan: int = Field(ge=1, le=400)
    max_slots_per_job: int = Field(ge=1, le=1_000_000)
    clock_jump_ms: int = Field(ge=100)
    memory_percent: int = Field(ge=1, le=100)
    aging_ms: int = Field(ge=1000)
    stagger_ms: int = Field(ge=0)
    retry_jitter_percent: int = Field(ge=0, le=100)
    notice_attempts: int = Field(ge=1, le=100)
    notice_base_ms: int = Field(ge=1000)
    notice_max_ms: int = Field(ge=1000)
    notices_at_once: int = Field(ge=1, le=100)
    notices_waiting_max: int = Field(ge=1, le=100_000)
    pools: dict[str, Pool]

    @classmethod
    def recorded(cls, values: Mapping[str, Json]) -> SchedulingPolicy:
        """The policy that a ledger says was adopted, perhaps by another version: a field it did not have yet has the
        value by which this version does as that one did, and one that is gone says nothing."""
        known = {name: value for name, value in values.items() if name in cls.model_fields}
        return cls.model_validate({**BEFORE, **known})

    def digest(self) -> str:
        return hashlib.sha256(orjson.dumps(self.model_dump(), option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def adopt(defaults: Mapping[str, Json], override: Mapping[str, Json]) -> SchedulingPolicy:
    """The policy in force: `override` over `defaults`. pydantic's ValidationError names the field that is wrong."""
    return SchedulingPolicy.model_validate({**defaults, **override})
