"""Durations and sizes as people write them: `1h30m` is milliseconds, `2GiB` is bytes."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from policies.fault import BadValue

UNIT_MS = {"w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
UNIT_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
UNIT_BYTES |= {"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BOUND = 2**53  # every JSON reader keeps integers up to here
LONGEST_MS = 1000 * 365 * 86_400_000  # so long after any instant there still is a date

DURATION_PATTERN = r"(?:\d+(?:\.\d+)?(?:ms|w|d|h|m|s)\s*)+"
_DURATION = re.compile(DURATION_PATTERN, re.ASCII)
_DURATION_TERM = re.compile(r"(\d+(?:\.\d+)?)(ms|w|d|h|m|s)", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", re.ASCII)


@lru_cache(maxsize=1024)
def parse_duration(text: str) -> int:
    """Milliseconds. Units w d h m s ms, largest first, each at most once: `1h30m`, `500ms`, `1.5h`, `0`."""
    stripped = text.strip()
    if stripped == "0":
        return 0
    if len(stripped) > 60 or not _DURATION.fullmatch(stripped):
        raise BadValue(f"{text[:60]!r} is not a duration", "Write a number with a unit, such as 90s, 10m, 1h30m or 2d")
    total, order = Fraction(0), list(UNIT_MS)
    last = -1
    for number, unit in _DURATION_TERM.findall(stripped):
        if order.index(unit) <= last:
            raise BadValue(f"{text!r} has its units out of order", "Write the largest first, each once: 1h30m")
        last = order.index(unit)
        total += Fraction(number) * UNIT_MS[unit]
    if total.denominator != 1:
        raise BadValue(f"{text!r} is finer than a millisecond", "Milliseconds are the smallest unit")
    if total > LONGEST_MS:
        raise BadValue(f"{text!r} is longer than a thousand years", f"The longest is {LONGEST_MS // 86_400_000}d")
    return int(total)


def parse_size(text: str) -> int:
    """Bytes. `2GiB` is 2 * 2**30, `2GB` is 2 * 10**9, a bare number is bytes."""
    match = _SIZE.fullmatch(text.strip()) if len(text) <= 60 else None
    if match is None:
        raise BadValue(f"{text[:60]!r} is not a size", "Write a number with a unit, such as 512MiB or 2GiB")
    number, unit = match[1], match[2] or "B"
    if unit not in UNIT_BYTES:
        raise BadValue(f"{text!r} has the unknown unit {unit!r}", f"Use one of {', '.join(UNIT_BYTES)}")
    total = Fraction(number) * UNIT_BYTES[unit]
    if total.denominator != 1:
        raise BadValue(f"{text!r} is not a whole number of bytes", "Write a smaller unit")
    if total > BOUND:
        raise BadValue(f"{text!r} is larger than this program can count", f"The most is {BOUND} bytes")
    return int(total)


def size_text(size_bytes: int) -> str:
    """About as much, in the unit that suits: 3758096384 -> `3.5 GiB`."""
    unit = next((unit for unit in ("TiB", "GiB", "MiB", "KiB") if size_bytes >= UNIT_BYTES[unit]), "B")
    amount = size_bytes / UNIT_BYTES[unit]
    return f"{amount:.0f} {unit}" if amount >= 100 else f"{amount:.3g} {unit}"


def duration_text(ms: int) -> str:
    """The shortest way to write a duration: 5400000 -> `1h30m`."""
    text = ""
    for unit, size in UNIT_MS.items():
        if count := ms // size:
            text += f"{count}{unit}"
            ms -= count * size
    return text or "0s"
