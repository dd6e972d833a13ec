"""When a schedule is due: instants in milliseconds of UTC, in ascending order.

Cron times are readings of the wall clock, and twice a year, or when a country thinks again, that clock jumps:
- A named time of day (`30 2 * * *`) is due exactly once a day. If the wall skips it, it is due at the end of the gap;
  if the wall shows it twice, the first time counts.
- A repeating time (`*/15 * * * *`, `0 * * * *`) is due whenever the wall shows it: in a doubled hour twice, in a
  skipped one not at all, so that no elapsed hour is left out.
- A jump of more than three hours is a new calendar, not daylight saving (Samoa left out 2011-12-30): dates that never
  were have no slots.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from zoneinfo import ZoneInfo

from ledger.instant import ms_of
from policies import cron
from policies.schedule import (
    AfterSchedule,
    AtSchedule,
    CronSchedule,
    EverySchedule,
    ManualSchedule,
    OnSchedule,
    Schedule,
)
from policies.zone import (
    DAY_MS,
    change_on_ms,
    first_instant_ms,
    gap_at,
    instants_ms,
    offset_ms,
    wall_ms_of_text,
    wall_text,
    zone_named,
)

_HORIZON_MS = cron.HORIZON_DAYS * DAY_MS
_LAST_MS = 250_000_000_000_000  # in the year 9892; what lies behind is out of reach of datetime


def slots(schedule: Schedule, after_ms: int, until_ms: int, limit: int) -> list[int]:
    """All instants with after < t <= until, at most the first `limit` of them."""
    found: list[int] = []
    at_ms = next_slot(schedule, after_ms)
    while at_ms is not None and at_ms <= until_ms and len(found) < limit:
        found.append(at_ms)
        at_ms = next_slot(schedule, at_ms)
    return found


def next_slot(schedule: Schedule, after_ms: int) -> int | None:
    """The first instant after `after_ms`; None if there is none, or, of a cron expression, none within 50 years."""
    if isinstance(schedule, CronSchedule):
        return _next_cron(schedule.cron, schedule.timezone, after_ms)
    if isinstance(schedule, EverySchedule):
        turns = (after_ms - schedule.offset_ms) // schedule.every_ms + 1
        at_ms = turns * schedule.every_ms + schedule.offset_ms
        return at_ms if at_ms < _LAST_MS else None
    if isinstance(schedule, AtSchedule):
        at_ms = _at_ms(schedule)
        return at_ms if at_ms > after_ms else None
    if isinstance(schedule, AfterSchedule | OnSchedule | ManualSchedule):
        return None
    raise TypeError(f"{schedule!r} is no schedule")


@lru_cache(maxsize=2048)  # The agenda, the planner and the agenda again ask the same about each slot.
def _next_cron(text: str, zone_name: str, after_ms: int) -> int | None:
    expression, zone = cron.compiled(text), zone_named(zone_name)
    return (_next_shown if expression.repeats else _next_named)(expression, zone, after_ms)


def slot_id(job: str, revision_digest: str, at_ms: int, salt: str = "") -> str:
    """The name of one scheduled firing: 12 hex digits over the job, the spec in force and the instant. `salt` tells
    apart what shares all three, such as two requests in one millisecond."""
    told = json.dumps(salt) if salt else '""'  # Of the others no character is written otherwise in JSON.
    text = f'["{job}","{revision_digest}",{at_ms},{told}]'
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:12]


def jitter_ms(longest_ms: int, slot: str) -> int:
    """By how much this slot's start is put off: anything up to `longest_ms`, always the same for the same slot."""
    return int(slot, 16) % (longest_ms + 1) if longest_ms else 0


def explain_shift(schedule: Schedule, at_ms: int) -> str:
    """What the wall clock did to the slot at this instant, in words; "" for an ordinary slot."""
    if isinstance(schedule, AtSchedule) and wall_ms_of_text(schedule.at) is None:
        return ""
    if not isinstance(schedule, CronSchedule | AtSchedule):
        return ""
    zone = zone_named(schedule.timezone)
    offset, before = offset_ms(zone, at_ms), offset_ms(zone, at_ms - 1)
    wall_ms = at_ms + offset
    expression = cron.compiled(schedule.cron) if isinstance(schedule, CronSchedule) else None
    named = expression is None or not expression.repeats
    if named and before < offset <= before + cron.LONGEST_SHIFT_MS:
        start_ms = at_ms + before
        if expression is not None:
            skipped = expression.wall_readings_ms(start_ms, wall_ms)
        else:
            wanted_ms = wall_ms_of_text(schedule.at) if isinstance(schedule, AtSchedule) else None
            skipped = [wanted_ms] if wanted_ms is not None and start_ms <= wanted_ms < wall_ms else []
        if skipped:
            times = ", ".join(_time(reading) for reading in skipped[:3]) + (", ..." if len(skipped) > 3 else "")
            do = "does" if len(skipped) == 1 else "do"
            return (
                f"shifted: {times} {do} not exist on {wall_text(start_ms)[:10]} in {schedule.timezone}, "
                f"where the clock goes from {_time(start_ms)} to {_time(wall_ms)}"
            )
    shown = instants_ms(zone, wall_ms)
    if len(shown) == 2:
        which = "first" if at_ms == shown[0] else "second"
        return f"doubled hour: {_time(wall_ms)} comes twice on {wall_text(wall_ms)[:10]} in {schedule.timezone}; " + (
            "the first time counts" if named else f"this is the {which} time"
        )
    return ""


def _time(wall_ms: int) -> str:
    return wall_text(wall_ms)[11:16]


def _at_ms(schedule: AtSchedule) -> int:
    wall_ms = wall_ms_of_text(schedule.at)
    if wall_ms is None:
        return ms_of(schedule.at)
    return first_instant_ms(zone_named(schedule.timezone), wall_ms)


def _next_named(expression: cron.Cron, zone: ZoneInfo, after_ms: int) -> int | None:
    """Instants ascend with the readings they stand for, so the first that lies after `after_ms` is the next."""
    if after_ms >= _LAST_MS:
        return None
    reading = expression.next_wall_ms(after_ms + offset_ms(zone, after_ms) + 1)
    while reading is not None:
        shown = instants_ms(zone, reading)
        if shown:
            if shown[0] > after_ms:
                return shown[0]
            reading = expression.next_wall_ms(reading + 1)
            continue
        gap = gap_at(zone, reading)
        assert gap is not None
        if gap.end_wall_ms - gap.start_wall_ms <= cron.LONGEST_SHIFT_MS and gap.at_ms > after_ms:
            return gap.at_ms
        reading = expression.next_wall_ms(gap.end_wall_ms)
    return None


def _next_shown(expression: cron.Cron, zone: ZoneInfo, after_ms: int) -> int | None:
    """Walks through stretches of one to two days with one offset; within one, the wall is plain arithmetic."""
    from_ms = after_ms + 1
    horizon_ms = min(after_ms + _HORIZON_MS, _LAST_MS)
    while from_ms < horizon_ms:
        offset, day = offset_ms(zone, from_ms), from_ms // DAY_MS
        end_ms = change_on_ms(zone, day)
        if end_ms is None or end_ms <= from_ms:
            end_ms = change_on_ms(zone, day + 1)
        jumps = end_ms is not None
        if end_ms is None:
            end_ms = (day + 2) * DAY_MS
        reading = expression.next_wall_ms(from_ms + offset)
        if reading is None:
            return None
        if reading - offset < end_ms:
            return reading - offset
        # No clock goes back by more than a day, so after a day without a jump the wall never again shows a reading from
        # before `from_ms`: nothing matches until `reading`, which no offset moves by more than two days.
        from_ms = end_ms if jumps else max(end_ms, reading - offset - 2 * DAY_MS)
    return None
