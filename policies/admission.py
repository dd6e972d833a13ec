"""Who may start now: places, needs and leases, taken in the order of the plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from policies.question import Question
from policies.survey import Candidate

Json = Any


def milli_cpus(needs: Mapping[str, Json]) -> int:
    return round(float(needs.get("cpu", 0)) * 1000)


class Admission:
    """The room that is left while a plan is made. Each grant takes from it."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._held = {key: holder for key, (holder, _, _) in question.leases.items()}
        self._places = question.policy.max_running - len(question.running)
        capacity = question.capacity
        self._whole = {
            "cpu": capacity.cpus * 1000,
            "memory": capacity.memory_bytes * question.policy.memory_percent // 100,
            "gpu_memory": capacity.gpu_memory_bytes,
        }
        self._left = dict(self._whole)
        for running in question.running:
            self._take(running.needs)

    def _take(self, needs: Mapping[str, Json]) -> None:
        for name, amount in _amounts(needs).items():
            self._left[name] -= amount

    def verdict(self, candidate: Candidate) -> tuple[str, str, str]:
        """started, deferred or blocked, with the rule and the reason; "started" has taken its share."""
        problem = self._question.preflight.get(candidate.run, "")
        if problem:
            return "blocked", "preflight", problem
        needs, whole = candidate.spec.get("needs", {}), self._whole
        amounts = _amounts(needs)
        for name, amount in amounts.items():
            if amount > whole[name]:
                has = _shown(name, whole[name])
                return "blocked", f"needs.{name}", f"needs {_shown(name, amount)} of {name}; this machine gives {has}"
        if candidate.spec.get("kind") != "agent":
            if self._places <= 0:
                return "deferred", "places", f"all {self._question.policy.max_running} places are taken"
            for name, amount in amounts.items():
                if amount > self._left[name]:
                    return "deferred", f"needs.{name}", f"waits for {_shown(name, amount)} of {name}"
        keys = candidate.spec.get("leases", ())
        for key in keys:
            if key in self._held:
                return "deferred", f"lease:{key}", f"lease {key} is held by {self._held[key]}"
        for key in keys:
            self._held[key] = candidate.run
        if candidate.spec.get("kind") != "agent":
            self._places -= 1
            self._take(needs)
        return "started", "admitted", "due, and there is room"


def _amounts(needs: Mapping[str, Json]) -> dict[str, int]:
    amounts = {"cpu": milli_cpus(needs), "memory": needs.get("memory") or 0, "gpu_memory": needs.get("gpu_memory") or 0}
    return {name: amount for name, amount in amounts.items() if amount}


def _shown(name: str, amount: int) -> str:
    return f"{amount / 1000:g}" if name == "cpu" else f"{amount / (1 << 30):.3g} GiB"
