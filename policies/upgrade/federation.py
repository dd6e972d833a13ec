"""Which remote a repository is upgraded from: the first by role of those that are well, then of those on probation.

A remote that failed is on probation until it has been healthy for `healthy_probes` probes in a row: meanwhile any other
that can be used goes before it, so that one that comes and goes does not take the choice with it. One whose history
does not contain the commit that the branch comes from is never chosen. The choice holds for one fetch; git's own
configuration of remotes stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from policies.upgrade.facts import ROLES, Probe, Remote
from policies.upgrade.policy import UpgradePolicy
from state.intelligence import Standing, standing

Json = Any


class Choice(NamedTuple):
    role: str
    """"" if none can be used."""
    ref: str | None
    url: str
    health: float
    why: dict[str, str]
    """Of each remote, in order of role, why it was or was not chosen."""
    failures: dict[str, str]
    """Of those that cannot be used, by role: the class of what is wrong."""

    def told(self) -> dict[str, Json]:
        return {"role": self.role, "health": self.health, "why": self.why}


def rank(role: str, demoted: bool) -> tuple[bool, int]:
    return (demoted, ROLES.index(role))


def unusable(remote: Remote) -> str:
    """Why nothing can be fetched from it; "" if something can."""
    if remote["failure"] == "not-found" and remote["reachable"]:
        return "no-branch"
    if remote["failure"]:
        return remote["failure"]
    if not remote["reachable"]:
        return "unknown"
    if remote["ref"] is None:
        return "no-branch"
    return "" if remote["contains_base"] else "rewritten-history" if remote["contains_base"] is False else "unproven"


_WORDS = {
    "auth": "it wants a password or key that git does not have",
    "dns": "its name is not known",
    "refused": "it refuses the connection",
    "timeout": "it did not answer in time",
    "tls": "its certificate is not trusted",
    "not-found": "there is no repository",
    "rate-limited": "it has had too many requests",
    "corrupt": "what it sends is damaged",
    "rewritten-history": "its history was rewritten: it does not contain the commit that this branch comes from",
    "no-branch": "it does not offer the branch, or no tag that is wanted",
    "unproven": "whether its history contains the commit that this branch comes from could not be told",
    "unknown": "it could not be used",
}


def words(failure: str) -> str:
    return _WORDS.get(failure, failure)


def choose(probe: Probe, memory: Mapping[str, Json], wall_ms: int, policy: UpgradePolicy) -> Choice:
    """`memory` holds the probe's own observation already: it is recorded before anything is planned."""
    known, priors = memory.get("remotes", {}), policy.priors
    standings: dict[str, Standing] = {}
    failures: dict[str, str] = {}
    best = ""
    for role in ROLES:
        remote = probe["remotes"].get(role)
        if remote is None:
            continue
        standings[role] = how = standing(known.get(role), wall_ms, priors)
        if problem := unusable(remote):
            failures[role] = problem
        elif not best or rank(role, how.demoted) < rank(best, standings[best].demoted):
            best = role
    why = {role: _why(role, best, how, failures, policy) for role, how in standings.items()}
    if not best:
        return Choice("", None, "", 0.0, why, failures)
    chosen = probe["remotes"][best]
    return Choice(best, chosen["ref"], chosen["url"], standings[best].health, why, failures)


def _why(role: str, best: str, how: Standing, failures: Mapping[str, str], policy: UpgradePolicy) -> str:
    if role in failures:
        return f"{failures[role]}: {words(failures[role])}"
    probation = f"on probation, healthy {how.streak} of {policy.healthy_probes} times in a row" if how.demoted else ""
    if role == best:
        return f"chosen, although {probation}: no other can be used" if probation else "chosen"
    return probation or f"well, and {best} comes before it"
