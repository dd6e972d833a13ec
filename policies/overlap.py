"""What becomes of a slot while an earlier run of its job is not over. Temporal's six policies, buffers bounded."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from policies.fault import BadValue, meant
from state.graph import REPLACING

SKIP, BUFFER_ONE, BUFFER_ALL = "skip", "buffer_one", "buffer_all"
CANCEL_OTHER, TERMINATE_OTHER, ALLOW_ALL = "cancel_other", "terminate_other", "allow_all"
POLICIES = (SKIP, BUFFER_ONE, BUFFER_ALL, CANCEL_OTHER, TERMINATE_OTHER, ALLOW_ALL)

BUFFERED_UNTOLD = 100
BUFFERED_MAX = 1000


class Overlap(NamedTuple):
    policy: str
    buffer: int
    """How many slots may wait behind the run that is not over; those beyond are skipped, with that reason."""

    @property
    def replaces(self) -> bool:
        """Whether a new slot ends the runs before it."""
        return self.policy in REPLACING


@cache
def overlap_of(text: str) -> Overlap:
    """`skip`, `buffer_all(<=20)`, ... BadValue says what is wrong with it."""
    match = re.fullmatch(r"\s*([a-z_]+)\s*(?:\(\s*<=\s*(\d{1,9})\s*\))?\s*", text)
    if match is None or match[1] not in POLICIES:
        known = f"There are {', '.join(POLICIES)}; a bound is written buffer_all(<=20)"
        raise BadValue(f"{text!r} is no overlap policy", meant(match[1], POLICIES, known) if match else known)
    policy, bound = match[1], match[2]
    if bound is not None and (policy != BUFFER_ALL or not 1 <= int(bound) <= BUFFERED_MAX):
        raise BadValue(
            f"{text!r} has a bound that cannot be used", f"Only buffer_all has one, from 1 to {BUFFERED_MAX}"
        )
    if policy == BUFFER_ALL:
        return Overlap(policy, int(bound or BUFFERED_UNTOLD))
    return Overlap(policy, 1 if policy == BUFFER_ONE else 0)


def canonical(text: str) -> str:
    """The one way to write it."""
    overlap = overlap_of(text)
    return f"{overlap.policy}(<={overlap.buffer})" if overlap.policy == BUFFER_ALL else overlap.policy
