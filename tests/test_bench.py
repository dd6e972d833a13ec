"""The bench runs, every section of it, and says what it measured in the shape that is promised."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from cli_shell import ROOT

from simulations.bench.__main__ import SECTIONS
from simulations.bench.figure import Target, figure, percentile

FIGURE = {"name", "unit", "ours", "rounds", "spread", "peer", "theirs", "target", "met", "ratio", "noisy"}


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "simulations.bench", *words]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_measures_something_and_cleans_up(section: str, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = bench("--quick", "--section", section, "--json", "-", "--folder", str(folder))
    assert done.returncode == 0, done.stderr
    report = orjson.loads(done.stdout)
    assert (report["bench"], report["quick"], report["rounds"]) == (1, True, 1)
    assert list(report["sections"]) == [section]
    figures = report["sections"][section]["figures"]
    assert figures
    assert all(set(one) == FIGURE for one in figures)
    assert all(one["ours"] >= 0 and one["rounds"] >= 1 for one in figures)
    assert {"system", "processor", "cores", "file_system", "python", "load_before"} <= set(report["machine"])
    assert f"bench: {section}: " in done.stderr
    assert list(folder.iterdir()) == []


def test_without_json_people_get_a_table_and_a_file_gets_the_json(tmp_path: Path) -> None:
    done = bench("--quick", "--section", "ledger", "--json", str(tmp_path / "out.json"), "--folder", str(tmp_path))
    assert "append, one event, p50" in done.stdout
    assert "the figures mean nothing" in done.stdout
    assert "ledger" in orjson.loads((tmp_path / "out.json").read_bytes())["sections"]


def test_an_unknown_section_is_refused_with_the_known_ones() -> None:
    done = bench("--section", "ledgre")
    assert done.returncode == 2
    assert "no section 'ledgre'; the sections are ledger, replay" in done.stderr


def test_a_figure_is_a_median_held_against_its_target() -> None:
    slow = figure("append", "us", [10, 30, 20], "bare", [10, 10, 10], Target(at_most=1.3, of_ratio=True))
    assert (slow.ours, slow.ratio, slow.met, slow.target, slow.noisy) == (20, 2.0, False, "<= 1.3x", True)
    fast = figure("runs", "runs/s", [1200, 1250, 1300], target=Target(at_least=1000))
    assert (fast.met, fast.ratio, fast.target, fast.noisy) == (True, None, ">= 1,000 runs/s", False)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, p) for p in (50, 99, 100)] == [50, 99, 100]
    assert percentile([7.0], 99) == 7
