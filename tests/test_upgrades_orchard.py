"""A fleet of real repositories, each with bare remotes in three roles, dependencies five deep and faults mixed in: one
full cycle by the real daemon, and the table of what became of each.

HERMES_FLEET: how many (15 unless told); `HERMES_FLEET=50 python -m pytest -s tests/test_upgrades_orchard.py` for all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from cli_shell import Foreground, answer, hermesd, make_home
from repositories import Pair, assert_sound, clone, left_behind, pair, work_of

REPOS = int(os.environ.get("HERMES_FLEET", "15"))
DEEP = 5


class Kind(NamedTuple):
    name: str
    prepare: Callable[[Pair, dict[str, Path]], None]
    outcome: str


def _ahead(lib: Pair, remotes: dict[str, Path], text: str = "good, too\n") -> None:
    lib.ahead(state__txt=text)
    for role in ("mirror", "cache"):
        _follow(remotes[role], lib)


def _follow(mirror: Path, lib: Pair) -> None:
    subprocess.run(["git", "-C", str(mirror), "fetch", "-q", str(lib.remote.path), "+main:main"], check=True)


def _good(lib: Pair, remotes: dict[str, Path]) -> None:
    _ahead(lib, remotes)


def _same(lib: Pair, remotes: dict[str, Path]) -> None:
    lib.mine.write("notes.txt")


def _bad(lib: Pair, remotes: dict[str, Path]) -> None:
    _ahead(lib, remotes, "broken\n")


def _worse(lib: Pair, remotes: dict[str, Path]) -> None:
    _ahead(lib, remotes, "worse\n")


def _dirty(lib: Pair, remotes: dict[str, Path]) -> None:
    _ahead(lib, remotes)
    lib.mine.write("b.txt", "mine\n")


def _detached(lib: Pair, remotes: dict[str, Path]) -> None:
    _ahead(lib, remotes)
    lib.mine.git("checkout", "-q", "--detach")


def _without_primary(lib: Pair, remotes: dict[str, Path]) -> None:
    _ahead(lib, remotes)
    remotes["primary"].rename(remotes["primary"].with_suffix(".gone"))


def _without_any(lib: Pair, remotes: dict[str, Path]) -> None:
    for remote in remotes.values():
        remote.rename(remote.with_suffix(".gone"))


def _corrupt_primary(lib: Pair, remotes: dict[str, Path]) -> None:
    _ahead(lib, remotes)
    shutil.rmtree(remotes["primary"] / "objects")
    (remotes["primary"] / "objects").mkdir()


def _diverged(lib: Pair, remotes: dict[str, Path]) -> None:
    _ahead(lib, remotes)
    lib.mine.commit(mine__txt="mine\n")


def _merging(lib: Pair, remotes: dict[str, Path]) -> None:
    _ahead(lib, remotes)
    lib.mine.git("checkout", "-q", "-b", "side")
    lib.mine.commit(b__txt="side\n")
    lib.mine.git("checkout", "-q", "main")
    lib.mine.commit(b__txt="main\n")
    lib.mine.git("merge", "side", code=1)


def _obstructed(lib: Pair, remotes: dict[str, Path]) -> None:
    lib.upstream.write("new.txt")
    _ahead(lib, remotes)
    lib.mine.write("new.txt", "mine\n")


def _gone(lib: Pair, remotes: dict[str, Path]) -> None:
    lib.mine.path.rename(lib.mine.path.with_suffix(".moved"))


KINDS = (
    Kind("behind", _good, "upgraded"),
    Kind("nothing new", _same, "unchanged"),
    Kind("behind", _good, "upgraded"),
    Kind("verify fails", _bad, "rolled_back"),
    Kind("primary gone", _without_primary, "upgraded"),
    Kind("dirty", _dirty, "deferred"),
    Kind("canary fails", _worse, "failed"),
    Kind("primary corrupt", _corrupt_primary, "upgraded"),
    Kind("detached", _detached, "deferred"),
    Kind("behind", _good, "upgraded"),
    Kind("merge in progress", _merging, "needs_person"),
    Kind("diverged", _diverged, "held"),
    Kind("obstructed", _obstructed, "deferred"),
    Kind("moved away", _gone, "needs_person"),
    Kind("no remote left", _without_any, "deferred"),
)


@pytest.mark.timeout(1800)
def test_a_fleet_of_real_repositories(tmp_path: Path) -> None:
    fleet: dict[str, tuple[Kind, Pair, list[str]]] = {}
    entries: list[dict[str, Any]] = []
    for number in range(REPOS):
        # The first six are a chain of healthy ones, so that the depth is lived through and not only planned.
        key, kind = f"r{number:02d}", KINDS[0] if number <= DEEP else KINDS[number % len(KINDS)]
        lib = pair(tmp_path, key, state__txt="good\n", b__txt="two\n")
        remotes = {"primary": lib.remote.path}
        for role in ("mirror", "cache"):
            remotes[role] = clone(lib.remote, tmp_path / f"{key}-{role}.git", "--bare").path
        before = [f"r{number - 1:02d}"] if 0 < number <= DEEP else [f"r{number - 7:02d}"] if number % 4 == 3 else []
        before = [other for other in before if other in fleet]
        kind.prepare(lib, remotes)
        fleet[key] = (kind, lib, before)
        entries.append(
            {
                "key": key, "path": str(lib.mine.path), "remotes": {role: str(path) for role, path in remotes.items()},
                "depends_on": before, "canary": ["grep", "-q", "-v", "worse", "state.txt"],
                "verify": ["grep", "-q", "good", "state.txt"],
            }
        )  # fmt: skip
    env = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    job = {"name": "fleet", "kind": "upgrade", "schedule": "manual", "env": env, "repos": entries}
    home = make_home(tmp_path / "home", fleet=yaml.safe_dump(job))
    there = {key: lib for key, (kind, lib, _) in fleet.items() if kind.prepare is not _gone}
    person = {key: work_of(lib.mine) for key, lib in there.items()}
    old = {key: lib.mine.head for key, lib in there.items()}
    with Foreground(home):
        began = time.monotonic()
        run = answer("upgrade", "run", "--no-wait", "--home", home)["run"]
        while (ended := answer("runs", "show", run, "--home", home))["state"] in ("waiting", "granted", "running"):
            assert time.monotonic() < began + 1500
            time.sleep(0.2)
        took_s = time.monotonic() - began
        rows = {row["key"]: row for row in answer("upgrade", "status", "--home", home)["repos"]}
    print(f"\n{'':4} {'':18} {'expected':13} {'outcome':13} why")
    for key, (kind, _, before) in fleet.items():
        print(f"{key:4} {kind.name:18} {expected(fleet, key):13} {rows[key]['outcome']:13} {rows[key]['reason'][:90]}")
        del before
    print(f"{ended['reason']}\n{len(fleet)} repositories in {took_s:.1f} s")
    for key, lib in there.items():
        outcome = rows[key]["outcome"]
        assert outcome == expected(fleet, key), (key, rows[key])
        assert lib.mine.head == (lib.upstream.head if outcome == "upgraded" else old[key]), key
        if fleet[key][0].prepare is _merging:
            assert not list(left_behind(lib.mine))
            assert work_of(lib.mine) == person[key]
        else:
            assert_sound(lib.mine, person[key])
    assert max(row["depth"] for row in planned(home, run)) == DEEP
    hermesd("replay", "--verify", "--home", home)


def expected(fleet: dict[str, tuple[Kind, Pair, list[str]]], key: str) -> str:
    kind, _, before = fleet[key]
    stuck = [other for other in before if expected(fleet, other) not in ("upgraded", "unchanged")]
    return "deferred" if stuck and kind.outcome in ("upgraded", "rolled_back", "failed") else kind.outcome


def planned(home: Path, run: str) -> list[dict[str, Any]]:
    from daemon.system import OsDisk
    from ledger.reader import read

    found = (one.data for one in read(OsDisk(str(home))) if one.type == "upgrade.planned" and one.data["run"] == run)
    rows: list[dict[str, Any]] = next(found)["repos"]
    return rows
