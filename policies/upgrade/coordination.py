"""Who may be upgraded beside whom: leases, prerequisites, lanes, budgets of remotes, and the pressure on this machine.

A lane is a row of repositories that are upgraded one after another. Those whose remotes are on one host stand in no
more lanes than the host may be used at once, so that a plan whose lanes are obeyed keeps the budget. Repositories
stand in the lanes in the order of the plan, in which each comes behind what it depends on: lanes that wait for
prerequisites cannot wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from policies.upgrade.facts import LeaseNow
from policies.upgrade.policy import UpgradePolicy


class Pressure(NamedTuple):
    lanes: int
    """How many lanes there are; 0: nothing is upgraded now."""
    reason: str
    """Why fewer than the job allows; "" if it is as many."""


def pressure(resources: Mapping[str, int], parallel: int, policy: UpgradePolicy) -> Pressure:
    """`resources`: cpus, running (attempts of other jobs), memory_bytes, memory_free_bytes; 0 is not known."""
    memory, free = resources["memory_bytes"], resources["memory_free_bytes"]
    percent = 100 * free // memory if memory else 100
    if percent < policy.memory_critical_percent:
        return Pressure(0, f"{percent} % of memory is free, less than {policy.memory_critical_percent} %")
    if percent < policy.memory_low_percent:
        return Pressure(1, f"{percent} % of memory is free, less than {policy.memory_low_percent} %: one at a time")
    cpus, running = resources["cpus"], resources["running"]
    if cpus and running > policy.busy_per_cpu * cpus:
        lanes = max(1, parallel // 2)
        return Pressure(lanes, f"{running} attempts run on {cpus} processors: {lanes} of {parallel} at a time")
    return Pressure(parallel, "")


def lease_problem(key: str, leases: Mapping[str, LeaseNow], run: str) -> str:
    """Who holds the repository; "" if nobody else does."""
    lease = leases.get(f"repo:{key}")
    if lease is None or lease["holder"] == run or lease["holder"].startswith(f"{run}."):
        return ""
    return f"lease repo:{key} is held by {lease['holder']}"


def lanes(order: Iterable[tuple[str, str]], count: int, uses_per_host: int) -> dict[str, int]:
    """Repository -> its lane. `order`: repository and the host of its remote, in the order of the plan.

    Each goes to the shortest lane that its host's budget allows, of equal ones to the first.
    """
    loads = [0] * count
    of_host: dict[str, set[int]] = {}
    found = {}
    for key, host in order:
        used = of_host.setdefault(host, set())
        allowed = used if len(used) >= uses_per_host else range(count)
        lane = min(allowed, key=lambda lane: (loads[lane], lane))
        used.add(lane)
        loads[lane] += 1
        found[key] = lane
    return found
