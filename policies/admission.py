"""Who may start now: places, needs, pools, budgets and leases, taken in the order of the plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from policies.budget import Entries, short
from policies.question import Question
from policies.survey import Candidate
from state.graph import is_container

Json = Any
UNBOUNDED = 1 << 62


def milli_cpus(needs: Mapping[str, Json]) -> int:
    return round(float(needs.get("cpu", 0)) * 1000)


class Verdict(NamedTuple):
    verdict: str
    rule: str
    reason: str
    not_before_ms: int = 0


class Admission:
    """The room that is left while a plan is made. Each grant takes from it."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._held = {key: holder for key, (holder, _, _) in question.leases.items()}
        self.places = question.policy.max_running - len(question.running)
        capacity = question.capacity
        self._whole = {
            "cpu": capacity.cpus * 1000,
            "memory": capacity.memory_bytes * question.policy.memory_percent // 100,
            "gpu_memory": capacity.gpu_memory_bytes,
        }
        self._left = dict(self._whole)
        self._pools = {
            name: pool.places if pool.places is not None else UNBOUNDED for name, pool in question.policy.pools.items()
        }
        self._spent: dict[str, Entries] = dict(question.spent)
        for running in question.running:
            self._take(running.needs)
            for tag in running.pools:
                self._pools[tag] -= 1

    def _take(self, needs: Mapping[str, Json]) -> None:
        for name, amount in _amounts(needs).items():
            self._left[name] -= amount

    def verdict(self, candidate: Candidate) -> Verdict:
        """started, deferred or blocked, with the rule and the reason; "started" has taken its share."""
        if self.places <= 0 and candidate.rule == "places":
            return Verdict("deferred", "places", "")  # As before, which is no news: thousands may wait so.
        problem = self._question.preflight.get(candidate.run, "")
        if problem:
            return Verdict("blocked", "preflight", problem)
        needs, whole = candidate.spec.get("needs", {}), self._whole
        amounts, tags = _amounts(needs), self._tags(candidate)
        for name, amount in amounts.items():
            if amount > whole[name]:
                has = _shown(name, whole[name])
                reason = f"needs {_shown(name, amount)} of {name}; this machine gives {has}"
                return Verdict("blocked", f"needs.{name}", reason)
        has_process = not is_container(candidate.spec)
        if has_process:
            if self.places <= 0:
                return Verdict("deferred", "places", f"all {self._question.policy.max_running} places are taken")
            for tag in tags:
                if self._pools[tag] <= 0:
                    places = self._question.policy.pools[tag].places
                    return Verdict("deferred", f"pool.{tag}", f"all {places} places of pool {tag} are taken")
            for name, amount in amounts.items():
                if amount > self._left[name]:
                    return Verdict("deferred", f"needs.{name}", f"waits for {_shown(name, amount)} of {name}")
        keys = candidate.spec.get("leases", ())
        for key in keys:
            if key in self._held:
                return Verdict("deferred", f"lease:{key}", f"lease {key} is held by {self._held[key]}")
        if not candidate.parent and (over := self._budget(candidate, tags)) is not None:
            return over
        for key in keys:
            self._held[key] = candidate.run
        if has_process:
            self.places -= 1
            self._take(needs)
            for tag in tags:
                self._pools[tag] -= 1
        return Verdict("started", "admitted", "due, and there is room")

    def _tags(self, candidate: Candidate) -> tuple[str, ...]:
        """The pools it draws on. A step's are its job's."""
        if not self._pools:
            return ()
        spec = self._question.jobs[candidate.job].spec if candidate.parent else candidate.spec
        return tuple(tag for tag in spec.get("tags", ()) if tag in self._pools)

    def _budget(self, candidate: Candidate, tags: tuple[str, ...]) -> Verdict | None:
        """Why a budget does not let it start; None if all do, and then its share has been reserved in each."""
        question, tokens = self._question, candidate.spec.get("needs", {}).get("tokens", 0)
        budgets = {f"tag:{tag}": vars(question.policy.pools[tag]) for tag in tags}
        if budget := candidate.spec.get("budget"):
            budgets[f"job:{candidate.job}"] = budget
        for account, budget in budgets.items():
            found = short(account, budget, self._spent.get(account, ()), question.wall_ms, tokens)
            if found is not None:
                verdict = "blocked" if found.never else "deferred"
                return Verdict(verdict, found.rule, found.reason, found.not_before_ms)
        for account in budgets:
            self._spent[account] = (*self._spent.get(account, ()), (question.wall_ms, candidate.run, tokens))
        return None


_NOTHING: dict[str, int] = {}


def _amounts(needs: Mapping[str, Json]) -> dict[str, int]:
    if not any(needs.values()):  # As with most.
        return _NOTHING
    amounts = {"cpu": milli_cpus(needs), "memory": needs.get("memory") or 0, "gpu_memory": needs.get("gpu_memory") or 0}
    return {name: amount for name, amount in amounts.items() if amount}


def _shown(name: str, amount: int) -> str:
    return f"{amount / 1000:g}" if name == "cpu" else f"{amount / (1 << 30):.3g} GiB"
