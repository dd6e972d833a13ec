"""What people and programs are shown: tables, times, spans of time, sizes, JSON, progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from ledger.instant import ms_of
from policies.zone import zone_named

Json = Any

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WIDE = 4096
_SHOW_PROGRESS_AFTER_S = 1.0
_PROGRESS_EVERY_S = 0.1


def json(value: Json) -> None:
    raw(orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")


def raw(data: bytes) -> None:
    """These bytes and no others."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """One line for each row; on a terminal long cells are folded, in a file nothing is cut off."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else _WIDE)
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(str(cell)) for cell in row))
    with console.capture() as captured:
        console.print(shown)
    for line in captured.get().splitlines():
        print(line.rstrip())


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """`name  value`, a line each; a value of several lines stays under its first."""
    told = [(name, str(value)) for name, value in pairs]
    width = max((len(name) for name, _ in told), default=0)
    for name, value in told:
        first, *more = value.splitlines() or [""]
        print(f"{name:<{width}}  {first}".rstrip())
        for line in more:
            print(f"{'':<{width}}  {line}".rstrip())


def path(text: str) -> str:
    """A path in one line, with nothing in it that a terminal would obey."""
    return text if text.isprintable() else ascii(text)


def moment(at: str | int, zone: str) -> str:
    """`2026-11-21 06:40:12 CET`; "" for no instant. `at` is RFC 3339 text or ms since the epoch."""
    if at == "":
        return ""
    at_ms = ms_of(at) if isinstance(at, str) else at
    return (_EPOCH + timedelta(milliseconds=at_ms)).astimezone(zone_named(zone)).strftime("%Y-%m-%d %H:%M:%S %Z")


def span(ms: int) -> str:
    """The two largest units: `3h12m`, `4.2s`, `12ms`."""
    if ms < 0:
        return "-" + span(-ms)
    if ms < 1000:
        return f"{ms}ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f}s"
    seconds = ms // 1000
    for unit, size, lesser, part in (("d", 86_400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size:
            rest = seconds % size // part
            return f"{seconds // size}{unit}" + (f"{rest}{lesser}" if rest else "")
    raise AssertionError(ms)


def count(number: int, noun: str) -> str:
    """`1 run`, `2 runs`"""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def size(count: int) -> str:
    """`3.4 GiB`"""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError(count)


class Progress:
    """How far a long look has come: a line on the terminal, from the second second on, gone when it is done."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._start_s = time.monotonic()
        self._told_s = 0.0

    def __call__(self, done: int, whole: int) -> None:
        now_s = time.monotonic()
        if done >= whole:
            if self._told_s:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._start_s, self._told_s = now_s, 0.0
            return
        if now_s - self._start_s < _SHOW_PROGRESS_AFTER_S or now_s - self._told_s < _PROGRESS_EVERY_S:
            return
        if sys.stderr.isatty():
            self._told_s = now_s
            share = f"{100 * done // whole:3d} % of {size(whole)}"
            age = span(int((now_s - self._start_s) * 1000))
            print(f"\r{self._label}: {share}, {age}\x1b[K", end="", file=sys.stderr, flush=True)
