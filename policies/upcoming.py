"""What a schedule will do next, as rows that a person or a program reads."""

from __future__ import annotations

import hashlib

from ledger.instant import text_of
from policies import due
from policies.job import Job
from policies.schedule import AtSchedule, CronSchedule, Schedule
from policies.zone import local_text, zone_named


def upcoming(job: Job | Schedule, from_ms: int, n: int, zone: str = "UTC") -> list[dict[str, str]]:
    """The first `n` slots at or after `from_ms`. `zone` is used for the local text where the schedule has no zone.

    `slot` is the identity the daemon gives the slot under this spec; a schedule without a job has the name "".
    `starts` is there only where jitter puts the start off.
    """
    schedule: Schedule
    if isinstance(job, Job):
        name, digest, schedule, expires_ms = job.name, job.digest(), job.when, job.expires_ms
        longest_ms = job.jitter_ms
    else:
        name, digest, schedule, expires_ms = "", _digest(job), job, None
        longest_ms = 0
    place = zone_named(schedule.timezone if isinstance(schedule, CronSchedule | AtSchedule) else zone)
    rows: list[dict[str, str]] = []
    at_ms = due.next_slot(schedule, from_ms - 1)
    while at_ms is not None and len(rows) < n and (expires_ms is None or at_ms < expires_ms):
        row = {
            "slot": due.slot_id(name, digest, at_ms),
            "at": local_text(place, at_ms),
            "utc": text_of(at_ms),
            "note": due.explain_shift(schedule, at_ms),
        }
        if wait_ms := due.jitter_ms(longest_ms, row["slot"]):
            row["starts"] = text_of(at_ms + wait_ms)
        rows.append(row)
        at_ms = due.next_slot(schedule, at_ms)
    return rows


def _digest(schedule: Schedule) -> str:
    return hashlib.sha256(repr(schedule).encode()).hexdigest()[:32]
