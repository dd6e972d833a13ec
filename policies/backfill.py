"""Slots of the past, to be run after all: which they are, and the spec that was in force at each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ledger.instant import text_of
from policies import due
from policies.schedule import AfterSchedule, ManualSchedule, OnSchedule, schedule_of
from state.graph import Job

Json = Any

SLOTS_MAX = 1000
"""What one request may ask for: its event has to fit in a line of the ledger."""


class Impossible(Exception):
    """There is nothing to backfill: what is wrong, and what to do."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.message, self.advice = message, advice


class Backfill(NamedTuple):
    slots: list[tuple[int, int]]
    """Instant (ms) and revision, ascending."""
    specs: dict[int, Mapping[str, Json]]


def backfill(
    job: Job, spec_at: Callable[[int], Mapping[str, Json]], from_ms: int, until_ms: int, *, current_spec: bool
) -> Backfill:
    """The job's slots with from <= t < until. `spec_at` gives the spec that the event with this seq defined.

    With `current_spec` all of them, also those from before the job was defined, are slots of the spec of today.
    """
    if from_ms >= until_ms:
        raise Impossible("the end of the backfill is not after its beginning", "give --from and --to in this order")
    stretches = _stretches(job, from_ms, until_ms, current_spec=current_spec)
    if not stretches:
        first = text_of(job.revisions[0][1])
        raise Impossible(
            f"job {job.name!r} had no spec then: it was first defined at {first}",
            "--current-spec uses the spec of today for all of it",
        )
    found = Backfill([], {})
    for revision, seq, start_ms, end_ms in stretches:
        spec = job.spec if revision == job.revision else spec_at(seq)
        schedule = schedule_of(spec["schedule"])
        if isinstance(schedule, AfterSchedule | OnSchedule | ManualSchedule):
            continue
        instants = due.slots(schedule, start_ms - 1, end_ms - 1, SLOTS_MAX + 1 - len(found.slots))
        found.slots.extend((at_ms, revision) for at_ms in instants)
        if instants:
            found.specs[revision] = spec
    if len(found.slots) > SLOTS_MAX:
        raise Impossible(
            f"there are more than {SLOTS_MAX} slots in this time", "backfill it in several parts, one after the other"
        )
    if not found.slots:
        raise Impossible(f"job {job.name!r} had no slots in this time", f"`hermesd next {job.name}` shows its slots")
    return found


def _stretches(job: Job, from_ms: int, until_ms: int, *, current_spec: bool) -> list[tuple[int, int, int, int]]:
    """Revision, seq, and the time it was in force within the bounds."""
    latest = job.revisions[-1]
    if current_spec:
        return [(latest[0], latest[3], from_ms, until_ms)]
    found = []
    for place, (revision, since_ms, _, seq) in enumerate(job.revisions):
        end_ms = job.revisions[place + 1][1] if place + 1 < len(job.revisions) else until_ms
        start_ms, end_ms = max(from_ms, since_ms), min(until_ms, end_ms)
        if start_ms < end_ms:
            found.append((revision, seq, start_ms, end_ms))
    return found
