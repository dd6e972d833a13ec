"""Who may start now: places, needs, pools, budgets and leases, taken in the order of the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from policies.budget import Entries, short
from policies.quantity import size_text
from policies.question import Question
from policies.queue import PRIORITY_MOST
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
        # One that has waited for long gets what becomes free of all it wants, though it cannot start yet: others could
        # take turns at a part of it for ever. Steps take theirs all the same: it may be their run that it waits for.
        self._kept: dict[str, tuple[int, str]] = {}
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
        if has_process and self.places <= 0:
            return Verdict("deferred", "places", _taken(self._question.policy.max_running))
        keys = candidate.spec.get("leases", ())
        wait = self._wait(candidate, amounts if has_process else _NOTHING, tags if has_process else (), keys)
        if wait is not None:
            return wait
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

    def _wait(
        self, candidate: Candidate, amounts: Mapping[str, int], tags: Sequence[str], keys: Sequence[str]
    ) -> Verdict | None:
        """What is not free of what it wants; None if all is."""
        wait = None
        for tag in tags:
            kept, behind = self._kept_from(candidate, f"pool.{tag}")
            if self._pools[tag] - kept <= 0:
                taken = _taken(self._question.policy.pools[tag].places, f" of pool {tag}")
                reason = taken if self._pools[tag] <= 0 else f"a place of pool {tag} {behind}"
                wait = Verdict("deferred", f"pool.{tag}", reason)
                break
        for name, amount in amounts.items() if wait is None else ():
            kept, behind = self._kept_from(candidate, f"needs.{name}")
            if amount > self._left[name] - kept:
                kept_for = f", which {behind}" if amount <= self._left[name] else ""
                wait = Verdict("deferred", f"needs.{name}", f"waits for {_shown(name, amount)} of {name}{kept_for}")
                break
        for key in keys if wait is None else ():
            kept, behind = self._kept_from(candidate, f"lease:{key}")
            if key in self._held or kept:
                held = f"is held by {self._held[key]}" if key in self._held else behind
                wait = Verdict("deferred", f"lease:{key}", f"lease {key} {held}")
                break
        if wait is not None and candidate.priority > PRIORITY_MOST and not candidate.parent:
            self._keep(candidate, amounts, tags, keys)
        return wait

    def _kept_from(self, candidate: Candidate, what: str) -> tuple[int, str]:
        if candidate.parent or what not in self._kept:
            return 0, ""
        amount, run = self._kept[what]
        return amount, f"is kept for {run}, which has waited for long"

    def _keep(self, candidate: Candidate, amounts: Mapping[str, int], tags: Sequence[str], keys: Sequence[str]) -> None:
        leases = self._question.leases
        if any(key in leases and leases[key][2] for key in keys):
            return  # Nobody knows when another program gives it back.
        wanted = {f"needs.{name}": amount for name, amount in amounts.items()}
        wanted |= {f"pool.{tag}": 1 for tag in tags} | {f"lease:{key}": 1 for key in keys}
        for what, amount in wanted.items():
            before, first = self._kept.get(what, (0, candidate.run))
            self._kept[what] = (before + amount, first)

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


def _taken(places: int | None, of: str = "") -> str:
    return f"the only place{of} is taken" if places == 1 else f"all {places} places{of} are taken"


def _shown(name: str, amount: int) -> str:
    return f"{amount / 1000:g}" if name == "cpu" else size_text(amount)
