"""The planner: `decide(question) -> Plan`, and the hash that lets anyone ask again.

`decision_hash` is SHA-256 over the digests of every input group of the question and over the whole answer, in canonical
form. The group digests are recorded beside it, so that two plans that differ name what made them differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from ledger.instant import text_of
from policies.admission import Admission
from policies.question import GROUPS, Question, digest
from policies.survey import Candidate, Survey, survey

Json = Any


FILES_BYTES_MAX = 100_000
"""What the names of files may take up in one plan, which has to fit in a line of the ledger."""


@dataclass(frozen=True, slots=True)
class Plan:
    decisions: tuple[dict[str, Json], ...]
    inputs: dict[str, str]
    """Input group -> digest; the groups are `policies.question.GROUPS`."""
    decision_hash: str
    more: bool
    """There was more to decide than one plan holds: ask again at once."""


NOTHING = Plan((), {}, "", more=False)


def decide(
    question: Question, found: Survey | None = None, check: Callable[[Candidate], str] = lambda candidate: ""
) -> Plan:
    """The answer. NOTHING if there is none to record: then nothing was hashed, since an idle look must cost little.

    `found` is this question's survey where the caller has it already. `check` is asked, once for each run that would
    start and that the question says nothing of, why it cannot start here ("" if it can); what it says becomes part of
    the question, and the answer is made anew.
    """
    found = found or survey(question)
    checked: set[str] = set(question.preflight)
    while True:
        decisions, more, starting = choose(question, found)
        unchecked = [candidate for candidate in starting if candidate.run not in checked]
        problems = {candidate.run: problem for candidate in unchecked if (problem := check(candidate))}
        checked |= {candidate.run for candidate in unchecked}
        question.preflight.update(problems)
        if not problems:
            break
    if not decisions:
        return NOTHING
    inputs = question.digests()
    assert tuple(inputs) == GROUPS
    return Plan(tuple(decisions), inputs, digest({"inputs": inputs, "answer": decisions}), more)


def choose(question: Question, found: Survey) -> tuple[list[dict[str, Json]], bool, list[Candidate]]:
    """The decisions, whether there are more than one plan holds, and the candidates that start."""
    bound, room_bytes = question.policy.max_decisions_per_plan, FILES_BYTES_MAX
    admission, token = Admission(question), question.tokens
    decisions: list[dict[str, Json]] = []
    starting: list[Candidate] = []
    for candidate, settled in found.entries:
        if len(decisions) >= bound or room_bytes < 0:
            return decisions, True, starting
        decided = settled
        if settled is None:
            verdict, rule, reason, not_before_ms = admission.verdict(candidate)
            if verdict == "blocked" and candidate.trigger == "on":
                verdict = "deferred"  # A file is not used up by what a person has yet to put right: it waits for that.
            if verdict == "started":
                token += 1
                keys = list(candidate.spec.get("leases", ()))
                decided = candidate.decided(verdict, rule, reason, token=token, leases=keys)
                starting.append(candidate)
            elif not_before_ms:
                decided = candidate.decided(verdict, rule, reason, not_before=text_of(not_before_ms))
            elif verdict == "blocked" or rule != candidate.rule:
                # One that waits by the same rule as before is no news.
                decided = candidate.decided(verdict, rule, reason)
        if decided is not None:
            decisions.append(decided)
            room_bytes -= len(orjson.dumps(candidate.file))
            if candidate.tells_spec:
                room_bytes -= len(orjson.dumps(candidate.spec))
        if candidate.run == question.last and admission.places > 0 and settled is None:
            return decisions, True, starting  # The others that wait for a place come before what follows.
    return decisions, found.more, starting
