"""Whether the wall clock was set: it and CLOCK_BOOTTIME then disagree about how much time has passed."""

from __future__ import annotations

from ledger.instant import Now, text_of
from ledger.record import Draft
from policies.policy import SchedulingPolicy
from state.events import draft


def jumped(before: Now | None, now: Now, policy: SchedulingPolicy) -> Draft | None:
    """The event for a jump between two readings of the clocks of one boot; None for one too small to matter, or where
    there is no earlier reading."""
    if before is None:
        return None
    jump_ms = (now.wall_ms - before.wall_ms) - (now.boot_ms - before.boot_ms)
    if abs(jump_ms) <= policy.clock_jump_ms:
        return None
    return draft("clock.jumped", "node/here", {"jump_ms": jump_ms, "wall": text_of(now.wall_ms)})
