"""`make bench`, or `python -m simulations.bench`: how fast Hermes is, beside bare floors and peers in the same run.

Figures are medians over the rounds, ours and theirs taken in turn. The rounds of a figure marked ~ lie far apart: the
machine was busy with something else, or the disk was. Exit status 0 whatever the figures are; 1 if something did not
work.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from simulations.bench.daemon import Stuck
from simulations.bench.figure import NOISY, Figure
from simulations.bench.place import Bench, machine, real_disk

Json = Any

SECTIONS = {
    "ledger": ("append", "producers", "replay", "memory"),
    "scheduling": ("planning", "lateness", "spawn", "python", "restart", "idle"),
    "inference": ("inference",),
    "gateway": ("gateway",),
    "engines": ("engines",),
    "upgrade": ("upgrades",),
}
PARTS = tuple(part for parts in SECTIONS.values() for part in parts)
"""Each is a module beside this one."""
ROUNDS = 5
EVENTS = 1_000_000
_WIDTH = 140


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    parent = real_disk(options.folder)
    facts = machine(parent)
    folder = Path(tempfile.mkdtemp(prefix="hermes-bench-", dir=parent))
    measured: dict[str, list[Figure]] = {}
    seconds: dict[str, float] = {}
    rounds = 1 if options.quick else options.rounds
    events = 3000 if options.quick else options.events
    try:
        for name in options.section:
            began_s = perf_counter()
            (folder / name).mkdir()
            part = importlib.import_module(f"simulations.bench.{name}")
            measured[name] = part.measure(Bench(folder / name, rounds, events, options.quick, _teller(name)))
            # Its folder stays to the end: for seconds, ext4 steps over each file deleted before it makes a new one.
            seconds[name] = round(perf_counter() - began_s, 1)
    except Stuck as stuck:
        print(f"\nbench: {stuck}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    facts["load_after"] = round(os.getloadavg()[0], 2)
    report = report_of(facts, rounds, options.quick, measured, seconds)
    if options.json:
        data = orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n"
        if options.json == "-":
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            Path(options.json).write_bytes(data)
    if options.json != "-":
        _print(report, measured)
    return 0


def report_of(
    facts: Json, rounds: int, quick: bool, measured: dict[str, list[Figure]], seconds: dict[str, float]
) -> Json:
    """What `--json` writes."""
    noisy = [figure.noisy for figures in measured.values() for figure in figures]
    return {
        "bench": 1,
        "quick": quick,
        "rounds": rounds,
        "machine": facts,
        "noisy": facts["load_before"] > facts["cores"] / 2 or sum(noisy) > len(noisy) / 4,
        "sections": {
            name: {"seconds": seconds[name], "figures": [f.json() for f in figures]}
            for name, figures in measured.items()
        },
    }


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--section",
        type=_sections,
        default=PARTS,
        metavar="A,B",
        help="of the sections and their parts, which are " + _known(),
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON; - is standard output")
    parser.add_argument("--rounds", type=_positive, default=ROUNDS, metavar="N", help=f"default {ROUNDS}")
    parser.add_argument(
        "--events", type=_positive, default=EVENTS, metavar="N", help=f"of the past that is replayed, default {EVENTS}"
    )
    parser.add_argument("--folder", metavar="DIR", help="measure on the disk that holds DIR")
    parser.add_argument("--quick", action="store_true", help="only whether everything runs; the figures mean nothing")
    return parser.parse_args(arguments)


def _sections(text: str) -> tuple[str, ...]:
    parts: list[str] = []
    for name in text.split(","):
        if name not in SECTIONS and name not in PARTS:
            raise argparse.ArgumentTypeError(
                f"there is no section {name!r}; the sections and their parts are {_known()}"
            )
        parts += SECTIONS.get(name, (name,))
    return tuple(dict.fromkeys(parts))


def _known() -> str:
    return "; ".join(f"{section} ({', '.join(parts)})" for section, parts in SECTIONS.items())


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _teller(section: str) -> Callable[[str], None]:
    def tell(what: str) -> None:
        print(f"bench: {section}: {what}", file=sys.stderr, flush=True)

    return tell


def _print(report: Json, measured: dict[str, list[Figure]]) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    for name, value in report["machine"].items():
        told = f"{value / 1e9:.1f} GB" if name == "memory_bytes" else value
        console.print(f"{name.removesuffix('_bytes').replace('_', ' '):>14}  {told}", highlight=False)
    table = Table("", "Hermes", "unit", "beside", "", "ratio", "to reach", "", box=None, pad_edge=False)
    for column in (1, 4, 5):
        table.columns[column].justify = "right"
    for name, figures in measured.items():
        table.add_row()
        table.add_row(f"[bold]{name}[/bold]")
        for f in figures:
            theirs = "" if f.theirs is None else _number(f.theirs)
            ratio = "" if f.ratio is None else f"{f.ratio:.2f}"
            met = {True: "yes", False: "no", None: ""}[f.met] if not f.noisy or f.met is None else "?"
            table.add_row(
                f.name + (" ~" if f.noisy else ""), _number(f.ours), f.unit, f.peer, theirs, ratio, f.target, met
            )
    console.print(table)
    console.print()
    for note in dict.fromkeys(f"{f.name}: {f.note}" for figures in measured.values() for f in figures if f.note):
        console.print(note, highlight=False)
    console.print(f"Medians of {report['rounds']} rounds, ours and theirs in turn.", highlight=False)
    if report["quick"]:
        console.print("This was a quick run: the figures mean nothing.")
    elif report["noisy"]:
        facts = report["machine"]
        load = f"load {facts['load_before']} before, {facts['load_after']} after, on {facts['cores']} cores"
        console.print(f"The machine was not quiet ({load}): compare ratios, not figures.", highlight=False)
    if any(f.noisy for figures in measured.values() for f in figures):
        console.print(f"~ its rounds lie further apart than {NOISY:.0%} of their median.", highlight=False)


def _number(value: float) -> str:
    if value and abs(value) < 0.1:
        return f"{value:.4f}"
    return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
