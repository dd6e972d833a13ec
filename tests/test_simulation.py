"""Make-believe lives of the real loop: every invariant holds, and the watchers can see when one does not."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

import daemon.loop as loop_module
from ledger.instant import text_of
from ledger.reader import read
from policies.job import parse_job
from simulations import ablations, shrink, workload
from simulations.__main__ import main
from simulations.checkers import Violation
from simulations.disk import PowerCut, SimDisk
from simulations.faults import FAULTS, POINTS
from simulations.fence import Outside, fenced
from simulations.oracle_sqlite import Tables
from simulations.shrink import Life
from simulations.world import START_MS, World, drawn, live

ROOT = Path(__file__).resolve().parent.parent
SEEDS = int(os.environ.get("HERMES_SIMULATION_SEEDS", "2000"))
_SHARE = 50


@pytest.mark.parametrize("first", range(0, SEEDS, _SHARE))
def test_lives_with_whatever_faults_their_seeds_draw(first: int) -> None:
    for lived in shrink.live_all(Life.of(seed) for seed in range(first, first + _SHARE)):
        assert not lived.invariant, lived.told


@pytest.mark.parametrize("fault", FAULTS)
def test_lives_with_one_class_of_faults(fault: str) -> None:
    struck = not FAULTS[fault].one_in
    for seed in range(20):
        world = live(seed, faults=frozenset({fault}))
        struck |= any(strike.startswith(f"{fault}@") for strike in world.luck.struck)
        if struck and seed >= 2:
            return
    pytest.fail("it has never struck")


@pytest.mark.parametrize("name", shrink.kept())
def test_lives_that_once_showed_a_bug(name: str) -> None:
    life, safeguard = shrink.kept()[name]

    lived = shrink.live(life)

    assert not lived.invariant, lived.told
    if safeguard:  # Else a change of the workload would leave lives here that show nothing any more.
        with ablations.switched_off(safeguard):
            assert shrink.live(life).invariant, "look for another seed with --shrink, and keep that one"


def test_a_job_put_together_from_parts_is_the_job_that_its_file_says() -> None:
    for seed in range(100):
        names = workload.names(seed)
        jobs = [workload.job(seed, name, names[:place], START_MS) for place, name in enumerate(names)]
        for raw in [*jobs, workload.job_on_files(seed, 0)]:
            told = {**raw, "notify": workload.wishes(seed, raw["name"])}
            job = parse_job(told)
            assert workload.accepted(told) == (job.digest(), job.canonical(), f"{raw['name']}.yaml")


@pytest.mark.parametrize("point", POINTS)
def test_the_places_where_a_crash_hurts_are_come_by(point: str) -> None:
    """A pattern that matches nothing would never strike, and nobody would notice."""

    class Dying(World):
        def _pass_step(self) -> None:
            if self.step == 3:
                pattern = POINTS[point].operation
                if pattern.startswith("act "):
                    self.host.deadly_at = (pattern.removeprefix("act "), 1)
                else:
                    self.disk.cut_power_at(pattern, after=POINTS[point].after)
            super()._pass_step()

    for seed in range(40):
        world = Dying(seed, frozenset({"kill", "workers", "foreign"}), 40)
        world.live()
        if not world.host.deadly_at and world.lives > 1:
            return
    pytest.fail("no life has come there")


def test_a_seed_decides_everything() -> None:
    said = {
        _hash_under(sys.executable, {"PYTHONHASHSEED": seed}) for seed in ("0", "1", "77")
    } | {live(11).trace_hash()}  # fmt: skip
    assert len(said) == 1


@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_a_seed_decides_everything_on_every_python(version: str) -> None:
    found = shutil.which(f"python{version}")
    needed = "import simulations.world"
    if found is None or subprocess.run([found, "-c", needed], capture_output=True, check=False, cwd=ROOT).returncode:
        pytest.skip(f"there is no Python {version} here with what Hermes needs")
    assert _hash_under(found, {}) == live(11).trace_hash()


def _hash_under(python: str, environment: dict[str, str]) -> str:
    program = "from simulations.world import live; print(live(11).trace_hash())"
    return subprocess.run(
        [python, "-c", program],
        capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, **environment},
    ).stdout.strip()  # fmt: skip


def test_leaving_one_thing_out_changes_nothing_else() -> None:
    whole = World(4, drawn(4))
    whole.live()
    names = whole.luck.struck
    left_out = names[-1]

    without = World(4, drawn(4), without=frozenset({left_out}))
    without.live()

    before = [name for name in names if name.partition("@")[0] != left_out.partition("@")[0]]
    assert left_out not in without.luck.struck
    assert [name for name in without.luck.struck if name in before] == [name for name in before if "@-" not in name]


@pytest.mark.parametrize("seed", [1, 4, 20])
def test_how_deliveries_end_changes_nothing_of_how_runs_end(seed: int) -> None:
    class Alone(World):
        """Nobody asks for anything, so that the two lives differ in their deliveries alone."""

        calm_at = ""

        def _something_happens(self, chance: Random) -> frozenset[str]:
            del chance
            return frozenset()

        def _calm_down(self) -> None:
            self.calm_at = text_of(self.clock.wall_ns // 1_000_000)
            super()._calm_down()

    worlds = []
    for bad_lines in (True, False):
        world = Alone(seed, frozenset({"notices"}), 80)
        world.host.bad_lines = bad_lines
        world.live()
        assert world.host.told
        worlds.append(world)
    until = min(world.calm_at for world in worlds)  # Deliveries that are tried again take steps of a life.
    ends = [
        [
            [record.data[name] for name in ("run", "attempt", "outcome", "reason")]
            for record in read(world.disk)
            if record.type == "run.finished" and record.ts < until
        ]
        for world in worlds
    ]
    assert ends[0] == ends[1] != []


@pytest.mark.parametrize("safeguard", ablations.ABLATIONS)
def test_without_a_safeguard_some_life_fails(safeguard: str) -> None:
    if safeguard in ablations.ARGUED:
        pytest.skip(ablations.ARGUED[safeguard])
    known = ablations.CAUGHT_BY[safeguard]
    assert any(ablations.caught(safeguard, seed) for seed in (known, *range(ablations.SEEDS)))


def test_a_safeguard_is_back_where_it_was() -> None:
    before = loop_module.accepts
    with ablations.switched_off("a late report is fenced"):
        assert loop_module.accepts is not before
    assert loop_module.accepts is before


@pytest.mark.parametrize(
    "reach",
    [
        lambda: open(ROOT / "Makefile").close(),
        lambda: time.sleep(0),
        lambda: socket.socket().close(),
        lambda: os.listdir("."),
        lambda: subprocess.run(["true"], check=False),
    ],
)
def test_nothing_real_is_reached_from_inside(reach: Callable[[], object]) -> None:
    with fenced(), pytest.raises(Outside):
        reach()
    reach()


def test_the_tables_see_two_holders_of_one_key() -> None:
    world = live(2, faults=frozenset())
    records = list(read(world.disk))
    bounds = {"places": 4, "cpus": 4_000, "notices": 8, "late_after_ms": 30_000}
    clean = Tables()
    clean.feed(records)
    assert clean.broken_rules(**bounds) == []

    planted = Tables()
    planted.feed(records)
    planted.database.execute("insert into holds values ('gpu', 'one', 1, 1, null), ('gpu', 'two', 2, 5, null)")

    assert [rule for rule, _ in planted.broken_rules(**bounds)] == ["a key has one holder at a time"]


def test_a_cut_at_a_point_comes_at_the_operation_it_names() -> None:
    disk = SimDisk(1)
    disk.make_folder("ledger")
    disk.cut_power_at(r"create ledger/b", after=True)
    disk.create("ledger/a")
    with pytest.raises(PowerCut):
        disk.create("ledger/b")
    disk.kill()
    assert disk.exists("ledger/b")


def test_a_failing_life_is_shrunk_to_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrink, "CORPUS", tmp_path)
    broken = "no more runs a minute than the budget gives"
    with ablations.switched_off("no more is spent than the budget gives"):
        lives = (Life.of(seed, 20, frozenset({"derived", "slow", "again"})) for seed in range(ablations.SEEDS))
        small, lived = shrink.shrink(next(life for life in lives if shrink.live(life).invariant == broken))
        assert lived.invariant == broken
        assert small.command() in lived.told
    shrink.keep(small, lived)

    assert (small.faults, small.steps < 20, "people@" in "".join(small.without)) == ((), True, True)
    assert list(shrink.kept().values()) == [(small, "")]
    assert not shrink.live(small).invariant


def test_a_campaign_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "campaign")
    assert main(["--seeds", "4", "--steps", "3", "--jobs", "1", "--resume", folder]) == 0
    assert main(["--seeds", "6", "--steps", "3", "--jobs", "1", "--resume", folder]) == 0

    said = capsys.readouterr().out
    assert "seeds 0 to 5, 4 of them lived before" in said
    assert "6 lives of 3 steps" in said


def test_a_violation_says_how_to_see_it_again() -> None:
    with ablations.switched_off("attempts are counted"), pytest.raises(Violation) as caught:
        live(ablations.CAUGHT_BY["attempts are counted"])
    told = str(caught.value)
    assert told.startswith("seed ")
    assert "again: python -m simulations --seeds 1 --first-seed" in told
