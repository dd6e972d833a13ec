"""The time zone database, as data: the only place that looks a zone up.

Two kinds of milliseconds meet here. An instant (`at_ms`) counts from the epoch in UTC; a wall reading (`wall_ms`)
counts from 1970-01-01T00:00 as if the clock on the wall had never been moved. One instant has one reading; one
reading belongs to one instant, to none (the clock sprang over it) or to two (the clock was set back).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from policies.fault import BadValue, meant

_EPOCH = datetime(1970, 1, 1)
_EPOCH_UTC = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
DAY_MS = 86_400_000

# Files of the database that are no places: `localtime` differs by machine, `right/` counts leap seconds.
_NO_PLACE = re.compile(r"localtime|posixrules|Factory|leapseconds|tzdata.*|(?:posix|right)/.*|.*\.(?:tab|zi|list)")


@lru_cache(maxsize=1024)
def zone_named(name: str) -> ZoneInfo:
    """BadValue if the database has no such place."""
    try:
        if not name.isascii() or _NO_PLACE.fullmatch(name):
            raise ValueError(name)
        return ZoneInfo(name)
    except (ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError, below; OSError: a folder of zones
        raise _unknown(name) from error
    except KeyError as error:
        raise _unknown(name) from error


def _unknown(name: str) -> BadValue:
    places = available_timezones()
    if not places:
        return BadValue("this machine has no time zone database", "Install the Python package tzdata")
    by_lower = {place.lower(): place for place in places}
    exact = by_lower.get(name.lower().replace(" ", "_"))
    general = "Write a name from the IANA database, such as Europe/Paris or UTC"
    return BadValue(
        f"unknown time zone {name!r}", f"Did you mean {exact!r}?" if exact else meant(name, sorted(places), general)
    )


def offset_ms(zone: ZoneInfo, at_ms: int) -> int:
    """How far the wall is ahead of UTC at an instant."""
    offset = (_EPOCH_UTC + at_ms * _MS).astimezone(zone).utcoffset()
    assert offset is not None
    return offset // _MS


def _offset_on_wall_ms(zone: ZoneInfo, wall_ms: int, fold: int) -> int:
    offset = (_EPOCH + wall_ms * _MS).replace(tzinfo=zone, fold=fold).utcoffset()
    assert offset is not None
    return offset // _MS


def instants_ms(zone: ZoneInfo, wall_ms: int) -> tuple[int, ...]:
    """The instants, ascending, at which the wall shows this reading: one, none or two."""
    first = _offset_on_wall_ms(zone, wall_ms, 0)
    second = _offset_on_wall_ms(zone, wall_ms, 1)
    if first == second:
        return (wall_ms - first,)
    return (wall_ms - first, wall_ms - second) if first > second else ()


def change_ms(zone: ZoneInfo, low_ms: int, high_ms: int) -> int:
    """The instant in (low, high] from which the offset is that of `high`; the offsets at the two ends must differ."""
    after = offset_ms(zone, high_ms)
    while high_ms - low_ms > 1:
        middle_ms = (low_ms + high_ms) // 2
        if offset_ms(zone, middle_ms) == after:
            high_ms = middle_ms
        else:
            low_ms = middle_ms
    return high_ms


@lru_cache(maxsize=4096)
def change_on_ms(zone: ZoneInfo, day: int) -> int | None:
    """The instant at which the offset changes on that day of UTC, counted from the epoch; None if it does not. A change
    at midnight belongs to the day that ends."""
    low_ms = day * DAY_MS
    if offset_ms(zone, low_ms) == offset_ms(zone, low_ms + DAY_MS):
        return None
    return change_ms(zone, low_ms, low_ms + DAY_MS)


class Gap(NamedTuple):
    """Readings the wall never showed: from `start_wall_ms` up to, not including, `end_wall_ms`, all at one instant."""

    at_ms: int
    start_wall_ms: int
    end_wall_ms: int


def gap_at(zone: ZoneInfo, wall_ms: int) -> Gap | None:
    """The gap that swallowed this reading, None if the wall showed it."""
    before = _offset_on_wall_ms(zone, wall_ms, 0)
    after = _offset_on_wall_ms(zone, wall_ms, 1)
    if before >= after:
        return None
    at_ms = change_ms(zone, wall_ms - after, wall_ms - before)
    return Gap(at_ms, at_ms + before, at_ms + after)


def first_instant_ms(zone: ZoneInfo, wall_ms: int) -> int:
    """The first instant at which the wall shows this reading; the end of the gap for a reading that it skips."""
    instants = instants_ms(zone, wall_ms)
    if instants:
        return instants[0]
    gap = gap_at(zone, wall_ms)
    assert gap is not None
    return gap.at_ms


def wall_text(wall_ms: int, *, seconds: bool = True) -> str:
    """`2027-03-28T02:30:00`"""
    return (_EPOCH + wall_ms * _MS).isoformat(timespec="seconds" if seconds else "minutes")


def wall_ms_of(moment: datetime) -> int:
    """The reading of a datetime without offset."""
    return (moment - _EPOCH) // _MS


def wall_ms_of_text(text: str) -> int | None:
    """The reading that ISO text names; None if the text carries an offset and so names an instant."""
    moment = datetime.fromisoformat(text)
    return None if moment.tzinfo else wall_ms_of(moment)


def local_text(zone: ZoneInfo, at_ms: int) -> str:
    """`2027-03-28T03:00:00+02:00`; the offset may have seconds in the years before zones were round."""
    return (_EPOCH_UTC + at_ms * _MS).astimezone(zone).isoformat(timespec="milliseconds" if at_ms % 1000 else "seconds")
