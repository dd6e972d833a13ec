"""The bench runs, every section of it, and says what it measured in the shape that is promised."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from math import isfinite
from pathlib import Path

import orjson
import pytest
from cli_shell import ROOT

from simulations.bench import stores
from simulations.bench.__main__ import PARTS, SECTIONS, _sections
from simulations.bench.figure import Target, figure, percentile
from simulations.bench.queue import CELERY, DRAMATIQ, RQ, Peer, Queue

FIGURE = {"name", "unit", "ours", "rounds", "spread", "peer", "theirs", "target", "met", "note", "ratio", "noisy"}


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "simulations.bench", *words]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("section", PARTS)
def test_a_part_measures_something_and_cleans_up(section: str, tmp_path: Path) -> None:
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
    # Not that each is above zero: some are differences, and of a quick run.
    assert all(isfinite(one["ours"]) and one["rounds"] >= 1 for one in figures)
    assert {"system", "processor", "cores", "file_system", "python", "load_before"} <= set(report["machine"])
    assert f"bench: {section}: " in done.stderr
    assert list(folder.iterdir()) == []


def test_without_json_people_get_a_table_and_a_file_gets_the_json(tmp_path: Path) -> None:
    done = bench("--quick", "--section", "append", "--json", str(tmp_path / "out.json"), "--folder", str(tmp_path))
    assert "append, one event, p50" in done.stdout
    assert "the figures mean nothing" in done.stdout
    assert "overhead of a record: Beside a line of ts" in done.stdout
    assert "append" in orjson.loads((tmp_path / "out.json").read_bytes())["sections"]


def test_a_section_is_its_parts_each_once() -> None:
    assert _sections("replay,ledger,idle") == ("replay", "append", "producers", "memory", "idle")
    assert _sections(",".join(SECTIONS)) == PARTS


def test_an_unknown_section_is_refused_with_the_known_ones() -> None:
    done = bench("--section", "ledgre")
    assert done.returncode == 2
    assert (
        "no section 'ledgre'; the sections and their parts are ledger (append, producers, replay, memory)"
        in done.stderr
    )


def test_a_peer_that_is_not_installed_is_named_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "_PACKAGES", {stores.LMDB: "no_such_package", stores.SOURCED: "no_such_package"})
    assert stores.told(stores.LMDB) == "lmdb: not installed"
    assert stores.told(stores.SOURCED) == "eventsourcing: not installed"
    assert stores.told(stores.BARE) == stores.BARE
    with ExitStack() as opened:
        assert set(stores.opened(tmp_path / "stores", opened).appends) == {stores.OURS, stores.BARE, stores.SQLITE}


@pytest.mark.parametrize("peer", [RQ, DRAMATIQ, CELERY], ids=lambda peer: peer.name)
def test_a_task_queue_does_the_tasks_it_is_given(peer: Peer, tmp_path: Path) -> None:
    if not peer.installed:
        pytest.skip(f"{peer.name} is not installed")
    with Queue(peer, tmp_path / "queue") as queue, queue.consumer(1, peer.kind("thread")):
        rates = queue.rates("command", 2, 1)
    assert len(rates) == 1
    assert rates[0] > 0


def test_a_figure_is_a_median_held_against_its_target() -> None:
    slow = figure("append", "us", [10, 30, 20], "bare", [10, 10, 10], Target(at_most=1.3, of_ratio=True))
    assert (slow.ours, slow.ratio, slow.met, slow.target, slow.noisy) == (20, 2.0, False, "<= 1.3x", True)
    fast = figure("runs", "runs/s", [1200, 1250, 1300], target=Target(at_least=1000))
    assert (fast.met, fast.ratio, fast.target, fast.noisy) == (True, None, ">= 1,000 runs/s", False)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, p) for p in (50, 99, 100)] == [50, 99, 100]
    assert percentile([7.0], 99) == 7
