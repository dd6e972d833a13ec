"""The last step of morning-report.yaml: what the others found, as one page of Markdown."""

from __future__ import annotations

import platform
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

SEVERITIES = ("critical", "error", "warning", "info", "debug")
CATEGORIES = ("disk", "network", "auth", "memory", "package", "service", "kernel", "application")
WORST = 12
LINE_CHARACTERS = 140


class Line(NamedTuple):
    severity: str
    category: str
    log: str
    text: str

    def rank(self) -> int:
        return SEVERITIES.index(self.severity) if self.severity in SEVERITIES else len(SEVERITIES)

    def kind(self) -> Line:
        """The same for lines that differ in numbers only."""
        return self._replace(text=re.sub(r"[0-9]+", "0", self.text))


def write(folder: str, facts: str, triaged: dict[str, dict[str, Any]], collected: dict[str, str]) -> dict[str, Any]:
    """`triaged` and `collected` are by log: what the model's step returned, and the file of what was collected."""
    lines = [_line(log, output) for log, result in triaged.items() for output in result["outputs"]]
    report = "\n".join([*_head(), *_counts(lines), *_worst(lines), *_machine(facts), *_sources(triaged, collected)])
    (Path(folder) / "report.md").write_text(report, encoding="utf-8")
    print(report)
    return {"lines": len(lines), "severities": dict(Counter(line.severity for line in lines))}


def _line(log: str, output: dict[str, Any]) -> Line:
    severity, category = (*output["text"].split(), "unclear", "unclear")[:2]
    return Line(severity, category, log, output["line"])


def _head() -> list[str]:
    return [f"# Morning report of {_cell(platform.node())}", "", time.strftime("%A, %d %B %Y, %H:%M %Z").strip(), ""]


def _worst(lines: list[Line]) -> list[str]:
    """The newest line of each kind, with how many there are of it."""
    kinds: dict[Line, list[Line]] = {}
    for line in sorted(lines, key=Line.rank):
        if line.rank() <= SEVERITIES.index("warning"):
            kinds.setdefault(line.kind(), []).append(line)
    if not kinds:
        return ["## Worst lines", "", "Nothing worse than info.", ""]
    rows = [
        f"| {line.severity} | {line.category} | {line.log} | {len(alike)} | {_cell(line.text)} |"
        for alike in list(kinds.values())[:WORST]
        for line in alike[-1:]
    ]
    head = ["## Worst lines, the newest of each kind", "", "| severity | category | log | lines | newest |"]
    return [*head, "|---|---|---|---:|---|", *rows, ""]


def _counts(lines: list[Line]) -> list[str]:
    counts = Counter((line.severity, line.category) for line in lines)
    columns = [name for name in (*CATEGORIES, "unclear") if any(category == name for _, category in counts)]
    rows = []
    for severity in (*SEVERITIES, "unclear"):
        row = [counts[severity, category] for category in columns]
        if any(row):
            rows.append(f"| {severity} | " + " | ".join(str(count or "") for count in [*row, sum(row)]) + " |")
    head = ["| | " + " | ".join([*columns, "all"]) + " |", "|---|" + "---:|" * (len(columns) + 1)]
    return [f"## {len(lines)} lines by severity and category", "", *head, *rows, ""]


def _machine(facts: str) -> list[str]:
    return ["## The machine", "", *(f"- {_cell(line)}" for line in facts.splitlines()), ""]


def _sources(triaged: dict[str, dict[str, Any]], collected: dict[str, str]) -> list[str]:
    rows = []
    for log, output in collected.items():
        # A collector says on standard error where its lines are from.
        source = (Path(output).parent / "stderr.log").read_text(errors="replace").strip()
        rows.append(f"- {log}: {len(triaged[log]['outputs'])} lines, from {_cell(source)}")
    model = next(iter(triaged.values()))["model"]
    note = f"Judged by hermes-mini ({model['parameters']} parameters, {model['device']}): quick, and sometimes wrong."
    return ["## Where this is from", "", *rows, "", note, ""]


def _cell(text: str) -> str:
    """A log's text as text: nothing in it is Markdown, or ends the table's cell."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    if len(shown) > LINE_CHARACTERS:
        shown = shown[: LINE_CHARACTERS - 3] + "..."
    return "".join(f"\\{character}" if character in "\\|`*_<>[]#" else character for character in shown)
