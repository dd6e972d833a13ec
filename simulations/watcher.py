"""A slow and separate telling of the slot rules, to hold `policies.due` against.

It shares nothing with it: it reads the five fields itself, and it finds slots by watching a wall clock, one minute of
UTC after another. All it knows of a zone is what the wall shows at an instant. It never asks which instant belongs to
a reading, never compares offsets, and knows no cronsim.

The rules, from the design's page on scheduling:
- A repeating expression (its minute or hour takes every value) is due at each minute whose reading matches.
- Any other is due the first time the wall shows a matching reading. Readings that the wall springs over are due at the
  moment it lands, all together once; but a spring of more than three hours makes nothing up.
- Sunday is 0 and 7. Day of month and day of week are or-ed when neither begins with a star, and-ed otherwise.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)
_DAY = timedelta(days=1)
_SHOWN_MAX = 20_000
_MONTHS = {name: number for number, name in enumerate(calendar.month_abbr) if name}
_DAYS = {"Sun": 0, "Mon": 1, "Tue": 2, "Wed": 3, "Thu": 4, "Fri": 5, "Sat": 6}
_NAMED = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


def _number(word: str, names: dict[str, int]) -> int:
    return names[word.capitalize()] if word.capitalize() in names else int(word)


def _values(field: str, low: int, high: int, names: dict[str, int] | None = None) -> set[int]:
    found: set[int] = set()
    for term in field.split(","):
        span, _, step = term.partition("/")
        if span == "*":
            first, last = low, high
        elif "-" in span:
            first, last = (_number(word, names or {}) for word in span.split("-"))
        else:
            first = _number(span, names or {})
            last = high if step else first
        found.update(range(first, last + 1, int(step or 1)))
    return found


class Expression:
    def __init__(self, text: str) -> None:
        self.text = text
        self.minute, self.hour, self.day, self.month, self.weekday = _NAMED.get(text, text).split()
        self.minutes = _values(self.minute, 0, 59)
        self.hours = _values(self.hour, 0, 23)
        self.months = _values(self.month, 1, 12, _MONTHS)
        self.repeats = (
            self.minute.startswith("*") or self.hour.startswith("*") or len(self.minutes) == 60 or len(self.hours) == 24
        )
        self._dates: dict[tuple[int, int, int], bool] = {}

    def matches_date(self, wall: datetime) -> bool:
        date = (wall.year, wall.month, wall.day)
        if date not in self._dates:
            self._dates[date] = wall.month in self.months and self._date_matches(*date)
        return self._dates[date]

    def _date_matches(self, year: int, month: int, day: int) -> bool:
        in_month = any(self._is_day(term, year, month, day) for term in self.day.split(","))
        in_week = any(self._is_weekday(term, year, month, day) for term in self.weekday.split(","))
        if self.day.startswith("*") or self.weekday.startswith("*"):
            return in_month and in_week
        return in_month or in_week

    def _is_day(self, term: str, year: int, month: int, day: int) -> bool:
        last = max(date for date in calendar.Calendar().itermonthdays(year, month))
        if term == "L":
            return day == last
        if term == "LW":
            return day == max(d for d in range(1, last + 1) if calendar.weekday(year, month, d) < 5)
        return day in _values(term, 1, 31)

    def _is_weekday(self, term: str, year: int, month: int, day: int) -> bool:
        weekday = (calendar.weekday(year, month, day) + 1) % 7
        last = max(date for date in calendar.Calendar().itermonthdays(year, month))
        if term.endswith("L"):
            return weekday == int(term[:-1]) % 7 and day + 7 > last
        if "#" in term:
            name, _, nth = term.partition("#")
            return weekday == _number(name, _DAYS) % 7 and (day - 1) // 7 + 1 == int(nth)
        return weekday in {value % 7 for value in _values(term, 0, 7, _DAYS)}


def slots(text: str, zone: str, after: datetime, until: datetime) -> list[datetime]:
    """Instants with after < t <= until, as datetimes in UTC."""
    return watch([text], zone, after, until)[text]


def watch(texts: Iterable[str], zone: str, after: datetime, until: datetime) -> dict[str, list[datetime]]:
    """The slots of several expressions, from one watch of the wall of their zone."""
    expressions = [Expression(text) for text in dict.fromkeys(texts)]
    place = ZoneInfo(zone)
    found: dict[str, list[datetime]] = {expression.text: [] for expression in expressions}
    by_time: dict[tuple[int, int], list[Expression]] = {}
    for expression in expressions:
        for hour in expression.hours:
            for minute in expression.minutes:
                by_time.setdefault((hour, minute), []).append(expression)

    def matching(reading: datetime) -> list[Expression]:
        return [one for one in by_time.get((reading.hour, reading.minute), ()) if one.matches_date(reading)]

    # Watching begins two days early, so that it is known which readings the wall has shown already.
    moment = after.astimezone(UTC).replace(second=0, microsecond=0) - 2 * _DAY
    shown: set[datetime] = set()
    wall = _reading(moment, place)
    while moment < until:
        if moment.minute == 0 and not any(one.matches_date(wall + _DAY * n) for one in expressions for n in _NEAR):
            moment += _DAY  # No slot is near; this only saves the reader's time.
            wall = _reading(moment, place)
            continue
        moment += MINUTE
        earlier, wall = wall, _reading(moment, place)
        due = matching(wall)
        if wall in shown:
            due = [one for one in due if one.repeats]
        sprung = wall - earlier - MINUTE
        if timedelta(0) < sprung <= timedelta(hours=3):
            skipped = [earlier + MINUTE * step for step in range(1, sprung // MINUTE + 1)]
            made_up = [one for reading in skipped for one in matching(reading) if not one.repeats]
            due = list(dict.fromkeys(due + made_up))
        shown.add(wall)
        if len(shown) > _SHOWN_MAX:  # No wall goes back by more than a day.
            shown = {reading for reading in shown if reading > wall - 3 * _DAY}
        if due and after < moment <= until:
            for one in due:
                found[one.text].append(moment)
    return found


_NEAR = range(-2, 4)


def _reading(moment: datetime, place: ZoneInfo) -> datetime:
    return moment.astimezone(place).replace(tzinfo=None, fold=0)
