"""Pictures of a forecast: a row for each job, time from left to right; as SVG, and as text for a terminal.

A short span shows each run as a bar; a long one is cut into columns whose shade says how much of them the job ran. Red
is where a run failed, orange where a slot was not run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from policies.zone import local_text, zone_named
from simulations.tally import JobTally, Tally

_DAY_MS = 86_400_000
_BARS_MAX_MS = 3 * _DAY_MS
_COLUMNS = 120
_ROW, _LEFT, _TOP, _WIDE = 16, 200, 46, 1000
_GOOD, _BAD, _LACK, _PALE = "#3b7dd8", "#d64541", "#f0a030", "#e8edf3"
_SHADES = " .:-=+*#%@"
_BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(slots=True)
class Cell:
    """One job in one column of time."""

    run_ms: int = 0
    runs: int = 0
    bad: bool = False
    lacks: bool = False


def cells(tally: Tally, job: JobTally, columns: int) -> list[Cell]:
    begin_ms, span_ms = tally.begin_ms, max(1, tally.end_ms - tally.begin_ms)
    row = [Cell() for _ in range(columns)]

    def place(at_ms: int) -> int:
        return min(columns - 1, max(0, (at_ms - begin_ms) * columns // span_ms))

    for bar in job.bars:
        first, last = place(bar.begin_ms), place(bar.end_ms)
        row[first].runs += 1
        row[last].bad |= not bar.good
        for column in range(first, last + 1):
            left_ms = begin_ms + column * span_ms // columns
            right_ms = begin_ms + (column + 1) * span_ms // columns
            row[column].run_ms += max(0, min(bar.end_ms, right_ms) - max(bar.begin_ms, left_ms))
    for at_ms in job.lacks:
        row[place(at_ms)].lacks = True
    return row


def text(tally: Tally, width: int, *, ascii_only: bool = False) -> Iterator[str]:
    """A line for each job, in at most `width` letters: the fuller the letter, the more of that time the job ran. `!` is
    where a run failed, `x` where a slot was not run and nothing else was either."""
    names = max((len(name) for name in tally.jobs), default=0)
    names = min(names, max(8, width // 3))
    columns = max(10, width - names - 2)
    shades = _SHADES if ascii_only else _BLOCKS
    for name, job in sorted(tally.jobs.items()):
        row = cells(tally, job, columns)
        line = "".join(_letter(cell, tally, columns, shades) for cell in row)
        yield f"{name[:names]:<{names}}  {line}".rstrip()
    yield f"{'all':<{names}}  {_load(tally, columns, shades)}".rstrip()


def _letter(cell: Cell, tally: Tally, columns: int, shades: str) -> str:
    if cell.bad:
        return "!"
    if cell.lacks and not cell.runs:
        return "x"
    if not cell.runs and not cell.run_ms:
        return " "
    part = cell.run_ms * columns / max(1, tally.end_ms - tally.begin_ms)
    return shades[max(1, min(len(shades) - 1, round(part * (len(shades) - 1))))]


def _load(tally: Tally, columns: int, shades: str) -> str:
    """How many runs there were at once at most, against the most there ever were."""
    most = max((one.most_runs for one in tally.usage), default=0)
    line = ""
    for column in range(columns):
        one = tally.usage[column * len(tally.usage) // columns]
        line += shades[-(-one.most_runs * (len(shades) - 1) // most)] if most else " "
    return line


def ticks(tally: Tally, zone: str, count: int = 8) -> list[tuple[int, str]]:
    """Instants along the axis, each with its label, on whole days where there are enough."""
    span_ms = tally.end_ms - tally.begin_ms
    long = span_ms > 2 * _DAY_MS
    found = []
    for number in range(count + 1):
        at_ms = tally.begin_ms + span_ms * number // count
        local = local_text(zone_named(zone), at_ms)
        found.append((at_ms, local[:10] if long else local[5:16].replace("T", " ")))
    return found


def svg(tally: Tally, zone: str, title: str) -> str:
    """A picture that stands alone: no script, no font, nothing fetched."""
    names = sorted(tally.jobs)
    height = _TOP + _ROW * (len(names) + 5) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDE + 20}" height="{height}" '
        f'viewBox="0 0 {_LEFT + _WIDE + 20} {height}" font-family="sans-serif" font-size="11">',
        f"<title>{escape(title)}</title>",
        f'<rect width="100%" height="100%" fill="white"/><text x="8" y="18" font-size="14">{escape(title)}</text>',
    ]
    bottom = _TOP + _ROW * len(names)
    for at_ms, label in ticks(tally, zone):
        x = _x(tally, at_ms)
        parts.append(f'<line x1="{x}" y1="{_TOP - 6}" x2="{x}" y2="{bottom}" stroke="{_PALE}"/>')
        parts.append(f'<text x="{x}" y="{_TOP - 10}" text-anchor="middle" fill="#556">{escape(label)}</text>')
    for number, name in enumerate(names):
        y = _TOP + _ROW * number
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(_short(name))}</text>')
        parts += _bars(tally, name, y) if tally.end_ms - tally.begin_ms <= _BARS_MAX_MS else _shaded(tally, name, y)
    parts += _load_picture(tally, bottom + 14)
    parts.append("</svg>\n")
    return "\n".join(parts)


def _short(name: str) -> str:
    return name if len(name) <= 30 else name[:29] + "…"


def _x(tally: Tally, at_ms: int) -> float:
    part = (at_ms - tally.begin_ms) / max(1, tally.end_ms - tally.begin_ms)
    return round(_LEFT + _WIDE * min(1.0, max(0.0, part)), 1)


def _rectangle(x: float, y: float, wide: float, color: str, opacity: float = 1.0) -> str:
    faint = f' fill-opacity="{opacity:.2g}"' if opacity < 1 else ""
    return f'<rect x="{x:g}" y="{y:g}" width="{max(1.0, wide):.4g}" height="{_ROW - 4}" fill="{color}"{faint}/>'


def _bars(tally: Tally, name: str, y: int) -> Iterator[str]:
    job = tally.jobs[name]
    for bar in job.bars:
        x = _x(tally, bar.begin_ms)
        yield _rectangle(x, y + 2, _x(tally, bar.end_ms) - x, _GOOD if bar.good else _BAD)
    for at_ms in job.lacks:
        yield _rectangle(_x(tally, at_ms), y + 2, 2, _LACK)


def _shaded(tally: Tally, name: str, y: int) -> Iterator[str]:
    """Neighbours that look alike are one rectangle: most jobs do the same every day."""
    row = cells(tally, tally.jobs[name], _COLUMNS)
    column_ms = (tally.end_ms - tally.begin_ms) / _COLUMNS
    looks = [_look(cell, column_ms) for cell in row] + [("", 0.0)]
    start = 0
    for column in range(1, len(looks)):
        if looks[column] != looks[start]:
            color, opacity = looks[start]
            if color:
                left = _LEFT + _WIDE * start / _COLUMNS
                yield _rectangle(round(left, 1), y + 2, _WIDE * (column - start) / _COLUMNS, color, opacity)
            start = column


def _look(cell: Cell, column_ms: float) -> tuple[str, float]:
    if cell.bad:
        return _BAD, 1.0
    if cell.lacks:
        return _LACK, 1.0
    if not cell.runs and not cell.run_ms:
        return "", 0.0
    return _GOOD, round(min(1.0, 0.25 + 0.75 * cell.run_ms / column_ms), 1)


def _load_picture(tally: Tally, y: int) -> Iterator[str]:
    """Below the jobs: how many runs at once."""
    most = max((one.most_runs for one in tally.usage), default=0) or 1
    tall = 3 * _ROW
    yield f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">runs at once, at most {most}</text>'
    wide = _WIDE / len(tally.usage)
    for number, one in enumerate(tally.usage):
        high = tall * one.most_runs / most
        if high:
            x = _LEFT + wide * number
            yield f'<rect x="{x:.1f}" y="{y + tall - high:.1f}" width="{wide:.2f}" height="{high:.1f}" fill="#8aa6c8"/>'
