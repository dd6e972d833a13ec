"""The scheduling policy: the parameters of every decision. Defaults: `policies/defaults/scheduling.yaml`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated, Any

import orjson

from policies.budget import Pool
from policies.quantity import BOUND, LONGEST_MS
from state.shape import Within, shape_of

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


class IllegalPolicy(ValueError):
    """A value of a policy that cannot be: its field, and what is wrong with it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)


@dataclass(frozen=True)
class SchedulingPolicy:
    """What each value means is told beside its default."""

    max_running: Annotated[int, Within(1, 10_000)]
    late_after_ms: Annotated[int, Within(0, BOUND)]
    max_decisions_per_plan: Annotated[int, Within(1, 400)]
    max_slots_per_job: Annotated[int, Within(1, 1_000_000)]
    clock_jump_ms: Annotated[int, Within(100, BOUND)]
    memory_percent: Annotated[int, Within(1, 100)]
    aging_ms: Annotated[int, Within(1000, BOUND)]
    stagger_ms: Annotated[int, Within(0, LONGEST_MS)]
    retry_jitter_percent: Annotated[int, Within(0, 100)]
    notice_attempts: Annotated[int, Within(1, 100)]
    notice_base_ms: Annotated[int, Within(1000, LONGEST_MS)]
    notice_max_ms: Annotated[int, Within(1000, LONGEST_MS)]
    notices_at_once: Annotated[int, Within(1, 100)]
    notices_waiting_max: Annotated[int, Within(1, 100_000)]
    pools: dict[str, Pool]

    @classmethod
    def recorded(cls, values: Mapping[str, Json]) -> SchedulingPolicy:
        """The policy that a ledger says was adopted, perhaps by another version: a field it did not have yet has the
        value by which this version does as that one did, and one that is gone says nothing."""
        return adopt(BEFORE, {name: value for name, value in values.items() if name in BEFORE})

    def values(self) -> dict[str, Json]:
        """JSON values; `adopt` makes the same policy of them."""
        told = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**told, "pools": {tag: asdict(pool) for tag, pool in self.pools.items()}}

    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(orjson.dumps(self.values(), option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def adopt(defaults: Mapping[str, Json], override: Mapping[str, Json]) -> SchedulingPolicy:
    """The policy in force: `override` over `defaults`. IllegalPolicy names the field that is wrong."""
    values = {**defaults, **override}
    legal(SchedulingPolicy, values)
    return SchedulingPolicy(**{**values, "pools": {tag: Pool(**pool) for tag, pool in values["pools"].items()}})


def legal(kind: type, values: Mapping[str, Json]) -> None:
    """IllegalPolicy unless these can be the values of a policy of this kind."""
    if (wrong := shape_of(kind, closed=True)(values)) is not None:
        raise IllegalPolicy(".".join(map(str, wrong.path)), wrong.message)
