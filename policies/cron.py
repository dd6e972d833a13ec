"""A cron expression: five fields with Debian cron's meaning, read by cronsim, matched against readings of the wall.

Zones and the jumps of their clocks are no matter of this file; `policies.due` brings the two together.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache

from cronsim import CronSim, CronSimError

from policies.fault import BadValue, meant

NAMED = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
HORIZON_DAYS = 18_628  # 51 years: 29 February on a given day of the week is at most 40 years away
MINUTE_MS = 60_000
LONGEST_SHIFT_MS = 3 * 3_600_000  # Debian: a longer jump is a new calendar, not daylight saving; nothing is made up for
_DAY_MS = 86_400_000
_DAY_ZERO = date(1970, 1, 1).toordinal()
_LAST_DAY = date.max.toordinal() - _DAY_ZERO - 7
_FIELDS = ("minute", "hour", "day of month", "month", "day of week")
_BOUNDS = ("0-59", "0-23", "1-31 or L", "1-12 or JAN-DEC", "0-7 or SUN-SAT, 5L, 1#2")


@dataclass(frozen=True, slots=True)
class Cron:
    """`times` are minutes after midnight, ascending. `repeats`: the minute or the hour takes every value there is (`*`,
    `*/15`), so the job follows the wall minute by minute; otherwise it has named times of day, each due once a day."""

    text: str
    times: tuple[int, ...]
    months: frozenset[int]
    repeats: bool
    days: CronSim

    def next_wall_ms(self, wall_ms: int) -> int | None:
        """The first matching reading at or after `wall_ms`; None if there is none within the horizon."""
        day, rest_ms = divmod(wall_ms, _DAY_MS)
        index = bisect_left(self.times, -(-rest_ms // MINUTE_MS))
        if index < len(self.times) and self.matches_day(day):
            return day * _DAY_MS + self.times[index] * MINUTE_MS
        end = min(day + HORIZON_DAYS, _LAST_DAY)
        day += 1
        while day < end:
            moment = date.fromordinal(_DAY_ZERO + day)
            if moment.month not in self.months:
                following = date(moment.year + moment.month // 12, moment.month % 12 + 1, 1)
                day = following.toordinal() - _DAY_ZERO
            elif self.days.match_day(moment):
                return day * _DAY_MS + self.times[0] * MINUTE_MS
            else:
                day += 1
        return None

    def matches_day(self, day: int) -> bool:
        """`day` counts from 1970-01-01."""
        moment = date.fromordinal(_DAY_ZERO + day)
        return moment.month in self.months and self.days.match_day(moment)

    def wall_readings_ms(self, start_ms: int, end_ms: int) -> list[int]:
        """Matching readings from start up to, not including, end."""
        found = []
        reading = self.next_wall_ms(start_ms)
        while reading is not None and reading < end_ms:
            found.append(reading)
            reading = self.next_wall_ms(reading + 1)
        return found


@lru_cache(maxsize=4096)
def compiled(text: str) -> Cron:
    """BadValue, with the reason, for an expression that cannot be read or can never match."""
    words = text.split()
    if len(words) == 1 and words[0].startswith("@"):
        if words[0].lower() not in NAMED:
            otherwise = f"Use one of {', '.join(NAMED)}"
            if words[0].lower() == "@reboot":
                otherwise = "There is no slot at a restart; give the job a time, or make it manual"
            raise BadValue(f"unknown cron name {words[0]!r}", meant(words[0], NAMED, otherwise))
        words = NAMED[words[0].lower()].split()
    if len(words) != 5:
        advice = "Write minute, hour, day of month, month, day of week"
        if len(words) == 6:
            advice = "Cron has no seconds here; use `every: 10s` for intervals shorter than a minute"
        raise BadValue(f"a cron expression has five fields, {text[:200]!r} has {len(words)}", advice)
    if len(text) > 1000:
        raise BadValue(f"a cron expression of {len(text)} characters", "Keep it below 1000")
    days = _read(words, text)
    times = tuple(sorted(hour * 60 + minute for hour in days.hours for minute in days.minutes))
    repeats = words[0][0] == "*" or words[1][0] == "*" or len(days.hours) == 24 or len(days.minutes) == 60
    cron = Cron(text, times, frozenset(days.months), repeats, days)
    if cron.next_wall_ms((date(2000, 1, 1).toordinal() - _DAY_ZERO) * _DAY_MS) is None:
        raise BadValue(f"{text!r} never comes: no date matches it in 50 years", "Check the days against the months")
    return cron


def _read(words: list[str], text: str) -> CronSim:
    start = datetime(2000, 1, 1)
    try:
        return CronSim(" ".join(words), start)
    except (CronSimError, ValueError, AssertionError) as error:
        for index, word in enumerate(words):
            alone = ["*"] * 5
            alone[index] = word
            try:
                CronSim(" ".join(alone), start)
            except (CronSimError, ValueError, AssertionError):
                raise BadValue(
                    f"{word[:60]!r} is no {_FIELDS[index]} in {text[:200]!r}", f"It takes {_BOUNDS[index]}"
                ) from error
        raise BadValue(
            f"{text!r} never comes: day {words[2]} does not exist in month {words[3]}",
            "Choose a day that the month has; L is the last day of any month",
        ) from error
