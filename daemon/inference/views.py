"""Models and engines as people register and see them, and what of them belongs into the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from daemon.inference.runtimes import Spec

Json = Any


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model as it is registered: what is loaded, and how it is served."""

    name: str
    spec: Spec
    kind: str = "llm"
    """llm | coder | embedding"""
    instances: int = 1
    """So many engines at most, one more when all are full."""
    fallback: str = ""
    """A registered smaller model, to answer in its place when memory does not suffice."""
    parameters: Mapping[str, Json] = field(default_factory=dict)
    """Defaults of its requests, for the gateway."""


@dataclass(frozen=True, slots=True)
class ModelView:
    """One registered model, as people see it."""

    name: str
    spec: Spec
    kind: str
    state: str
    """unloaded | loading | serving | failed | open (the breaker)"""
    why: str
    """Of failed and open."""
    engines: tuple[str, ...]
    waiting: int
    running: int
    facts: Mapping[str, Json]
    """Of the latest engine that loaded it: digest, context, device, dtype, determinism ...; {} before."""
    peak_bytes: int
    """The most memory it was seen to take; 0 before it was loaded."""
    parameters: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class EngineView:
    """One engine process, as people see it."""

    id: str
    model: str
    pid: int
    device: str
    state: str
    """starting | loading | warming | serving | draining"""
    running: int
    served: int
    rss_bytes: int
    device_bytes: int
    idle_ms: int
    facts: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Fact:
    """Something for the ledger: an event of `engine.*`, `breaker.*`, `model.*` or `generation.*`."""

    type: str
    subject: str
    data: Mapping[str, Json]
