"""Instants and spans of time as people give them on the command line."""

from __future__ import annotations

from datetime import datetime

from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from ledger.instant import ms_of
from policies.fault import BadValue
from policies.quantity import parse_duration
from policies.zone import first_instant_ms, wall_ms_of, zone_named


def instant_ms(text: str, now_ms: int, zone: str, *, ago: bool) -> int:
    """`now`, a date with or without time or offset (without: as the wall shows it in `zone`), or a duration: so long
    before now, or with `ago` false after it."""
    if text == "now":
        return now_ms
    if not text[:4].isdigit() or "-" not in text:
        try:
            span_ms = parse_duration(text)
        except BadValue as error:
            raise Failure(Exit.BAD_INPUT, f"{text!r} is no instant", do=_FORMS) from error
        return now_ms - span_ms if ago else now_ms + span_ms
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise Failure(Exit.BAD_INPUT, f"{text!r} is no instant: {error}", do=_FORMS) from error
    if not 1970 < moment.year < 9000:
        raise Failure(Exit.BAD_INPUT, f"{text!r} is out of range", do="the years 1971 to 8999 can be given")
    return ms_of(text) if moment.tzinfo else first_instant_ms(zone_named(zone), wall_ms_of(moment))


_FORMS = "write 2026-03-28T00:00:00Z, 2026-03-28 09:00 (local time), 2026-03-28, or a duration such as 90m or 7d"
