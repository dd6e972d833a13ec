"""The planner: `decide(question) -> Plan`, and the hash that lets anyone ask again.

`decision_hash` is SHA-256 over the digests of every input group of the question and over the whole answer, in canonical
form. The group digests are recorded beside it, so that two plans that differ name what made them differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from policies.admission import Admission
from policies.question import GROUPS, Question, digest
from policies.survey import Survey, survey

Json = Any


@dataclass(frozen=True, slots=True)
class Plan:
    decisions: tuple[dict[str, Json], ...]
    inputs: dict[str, str]
    """Input group -> digest; the groups are `policies.question.GROUPS`."""
    decision_hash: str
    more: bool
    """There was more to decide than one plan holds: ask again at once."""


def decide(question: Question, surveyed: Survey | None = None) -> Plan:
    """The answer. `surveyed` is this question's survey where the caller has it already."""
    found = surveyed or survey(question)
    bound = question.policy.max_decisions_per_plan
    decisions = found.settled[:bound]
    more = found.more or len(found.settled) > bound
    admission = Admission(question)
    token = question.tokens
    if len(found.settled) <= bound:
        for candidate in found.candidates:
            if len(decisions) >= bound:
                more = True
                break
            verdict, rule, reason = admission.verdict(candidate)
            if verdict == "started":
                token += 1
                keys = list(candidate.spec.get("leases", ()))
                decisions.append(candidate.decided(verdict, rule, reason, token=token, leases=keys))
            elif verdict == "blocked" or rule != candidate.rule:
                # One that waits by the same rule as before is no news.
                decisions.append(candidate.decided(verdict, rule, reason))
    inputs = {group: digest(value) for group, value in question.groups().items()}
    assert tuple(inputs) == GROUPS
    return Plan(tuple(decisions), inputs, digest({"inputs": inputs, "answer": decisions}), more)
