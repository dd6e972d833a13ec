"""Upgrades by the real daemon: one night with every kind of repository, what people are told, and taking it back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_shell import ENVIRONMENT, ROOT, Foreground, answer, hermesd, make_home
from repositories import Pair, assert_sound, left_behind, pair, work_of

from daemon import control
from daemon.system import OsDisk
from ledger.reader import read

GOOD = ["grep", "-q", "good", "state.txt"]


def entry(key: str, repo: Pair, **more: Any) -> dict[str, Any]:
    remotes = {"primary": str(repo.remote.path)}
    return {"key": key, "path": str(repo.mine.path), "remotes": remotes, "verify": GOOD, **more}


def home_with(folder: Path, repos: list[dict[str, Any]], **more: Any) -> Path:
    env = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "FOLDER": str(folder)}
    job = {"name": "up", "kind": "upgrade", "schedule": "manual", "env": env, "repos": repos, **more}
    return make_home(folder / "home", up=yaml.safe_dump(job))


def settled(home: Path, run: str) -> dict[str, Any]:
    told = [record.data for record in read(OsDisk(str(home))) if record.type == "upgrade.settled"]
    mine = [one for one in told if one["run"] == run]
    found = {one["key"]: one for one in mine}
    assert len(mine) == len(found), "each repository is settled once"
    return found


def upgrade(home: Path, *words: str, code: int = 0) -> dict[str, Any]:
    """`hermesd upgrade run` to its end; what became of each repository."""
    return {one["key"]: one for one in answer("upgrade", *words, "--home", home, code=code)["settled"]}


def until(met: Callable[[], Any], what: str, within_s: float = 60.0) -> Any:
    ends = time.monotonic() + within_s
    while not (found := met()):
        assert time.monotonic() < ends, f"not within {within_s} s: {what}"
        time.sleep(0.02)
    return found


def test_a_night_with_every_kind_of_repository(tmp_path: Path) -> None:
    names = ("good", "same", "dirty", "bad", "slow", "forks", "late", "after", "left", "right", "hooks")
    pairs = {name: pair(tmp_path, name, state__txt="good\n") for name in names}
    new = {name: pairs[name].ahead(state__txt=f"good {name}\n") for name in names if name not in ("same", "bad")}
    new["bad"] = pairs["bad"].ahead(state__txt="broken\n")
    pairs["dirty"].mine.write("state.txt", "mine\n")
    pairs["good"].mine.write("notes.txt", "mine\n")
    # While verify runs, somebody commits, and then it fails.
    late = "git -c user.name=Ann -c user.email=a@x commit -qm late --allow-empty; exit 1"
    forks = f"(setsid sleep 600 &) ; echo stray >{pairs['forks'].mine.path}/state.txt; exit 0"
    witness = tmp_path / "witness"
    hook = pairs["hooks"].mine.git_dir / "hooks" / "post-merge"
    hook.write_text(f"#!/bin/sh\ntouch {witness}\n")
    hook.chmod(0o755)
    repos = [
        entry("good", pairs["good"], canary=GOOD),
        entry("same", pairs["same"]),
        entry("dirty", pairs["dirty"]),
        entry("bad", pairs["bad"], verify=["sh", "-c", "cat state.txt; grep -q good state.txt"]),
        entry("slow", pairs["slow"], canary=["sleep", "600"], canary_timeout="1s"),
        entry("forks", pairs["forks"], canary=["sh", "-c", forks]),
        entry("late", pairs["late"], verify=["sh", "-c", late]),
        entry("after", pairs["after"], depends_on=["bad"]),
        entry("left", pairs["left"], depends_on=["right"]),
        entry("right", pairs["right"], depends_on=["left"]),
        entry("hooks", pairs["hooks"]),
        {"key": "gone", "path": str(tmp_path / "nowhere"), "remotes": {"primary": "/nowhere.git"}},
        {"key": "plain", "path": str(tmp_path), "remotes": {"primary": "/nowhere.git"}},
    ]
    home = home_with(tmp_path, repos)
    old = {name: one.mine.head for name, one in pairs.items()}
    person = {name: work_of(one.mine) for name, one in pairs.items()}
    with Foreground(home):
        planned = {one["key"]: one for one in answer("upgrade", "plan", "--home", home, code=1)["repos"]}
        assert {name: one.mine.head for name, one in pairs.items()} == old, "a plan changes nothing"
        assert planned["good"]["verdict"] == "granted"
        ended = upgrade(home, "run", code=1)
        outcomes = {key: one["outcome"] for key, one in ended.items()}
        assert outcomes == {
            "good": "upgraded", "same": "unchanged", "dirty": "deferred", "bad": "rolled_back", "slow": "failed",
            "forks": "deferred", "late": "needs_person", "after": "deferred", "left": "blocked", "right": "blocked",
            "hooks": "upgraded", "gone": "needs_person", "plain": "needs_person",
        }  # fmt: skip
        assert {key: planned[key]["verdict"] for key in ("dirty", "left", "gone")} == {
            key: outcomes[key] for key in ("dirty", "left", "gone")
        }
        late_head = pairs["late"].mine.head
        assert pairs["late"].mine.git("log", "-1", "--format=%s") == "late", "nobody's commit is lost"
        for name in names:
            if name not in ("late", "forks"):
                assert pairs[name].mine.head == (new[name] if outcomes[name] == "upgraded" else old[name]), name
                assert_sound(pairs[name].mine, person[name])
        assert (pairs["forks"].mine.path / "state.txt").read_text() == "stray\n"
        assert not list(left_behind(pairs["forks"].mine))
        assert late_head == pairs["late"].mine.head
        assert not witness.exists(), "hooks are not run by us"
        assert "it depends on bad, which is rolled back" in ended["after"]["reason"]
        assert "right" in ended["left"]["reason"]
        until(lambda: not list(home.glob("leases/*.json")), "the leases are given back")
        assert not list(home.glob("runs/*/*/worktree"))
        told_of(home)

        taken_back = upgrade(home, "rollback", "good")
        assert (taken_back["good"]["outcome"], taken_back.keys()) == ("rolled_back", {"good"})
        assert pairs["good"].mine.head == old["good"]
        again = upgrade(home, "run", code=1)
        assert again["good"]["outcome"] == "held", "what a person took back is not brought again"
    assert_sound(pairs["good"].mine, person["good"])
    hermesd("replay", "--verify", "--home", home)
    assert answer("audit", "--home", home)["ok"]


def told_of(home: Path) -> None:
    """What people are told about that night."""
    shown = hermesd("upgrade", "status", "--home", home).stdout
    assert "rolled back" in shown
    why = answer("upgrade", "why", "bad", "--home", home)
    assert [one["step"] for one in why["steps"]] == ["fetch", "apply", "verify", "rollback", "clean"]
    assert why["planned"]["parts"]
    text = hermesd("upgrade", "why", "bad", "--home", home).stdout
    assert "verify failed: exit status 1" in text
    assert why["decision_hash"] in text
    assert "no upgrade job has a repository" in hermesd("upgrade", "why", "nobody", "--home", home, code=None).stderr
    assert "has not been upgraded" in hermesd("upgrade", "rollback", "same", "--home", home, code=None).stderr


def test_somebody_elses_lease_wins(tmp_path: Path) -> None:
    lib = pair(tmp_path, "lib", state__txt="good\n")
    home, old = home_with(tmp_path, [entry("lib", lib)]), lib.mine.head
    new = lib.ahead(state__txt="good, too\n")
    with Foreground(home):
        token = answer("lease", "acquire", "repo:lib", "--home", home)["token"]
        found = upgrade(home, "run")["lib"]
        assert (found["outcome"], lib.mine.head) == ("deferred", old)
        assert "lease repo:lib is held" in found["reason"]
        hermesd("lease", "release", "repo:lib", "--token", str(token), "--home", home)
        until(lambda: not list(home.glob("leases/*.json")), "it is released")
        assert upgrade(home, "run")["lib"]["outcome"] == "upgraded"
    assert lib.mine.head == new
    assert_sound(lib.mine)


def test_a_run_that_is_cancelled_in_verify_is_taken_back(tmp_path: Path) -> None:
    lib, other = (pair(tmp_path, name, state__txt="good\n") for name in ("lib", "other"))
    waits = ["sh", "-c", 'touch "$FOLDER/verifying"; sleep 600']
    repos = [entry("lib", lib, verify=waits), entry("other", other, depends_on=["lib"])]
    home, old = home_with(tmp_path, repos), lib.mine.head
    for one in (lib, other):
        one.ahead(state__txt="good, too\n")
    with Foreground(home):
        run = answer("upgrade", "run", "--no-wait", "--home", home)["run"]
        until((tmp_path / "verifying").exists, "verify has begun")
        assert lib.mine.head != old
        hermesd("cancel", run, "--home", home)
        until(lambda: answer("runs", "show", run, "--home", home)["state"] == "cancelled", "it is cancelled")
    found = settled(home, run)
    assert {key: one["outcome"] for key, one in found.items()} == {"lib": "rolled_back", "other": "deferred"}
    assert (found["lib"]["step"], lib.mine.head) == ("", old)
    for one in (lib, other):
        assert_sound(one.mine)
    hermesd("replay", "--verify", "--home", home)


def test_a_gate_that_is_closed_changes_nothing(tmp_path: Path) -> None:
    lib = pair(tmp_path, "lib", state__txt="good\n")
    home, old = home_with(tmp_path, [entry("lib", lib)]), lib.mine.head
    lib.ahead(state__txt="good, too\n")
    with Foreground(home):
        hermesd("note", "something happens", "--home", home)
        segment = next(home.glob("ledger/0*"))
        data = bytearray(segment.read_bytes())
        place = data.index(b'"job.defined"') + 40
        data[place] ^= 1
        segment.write_bytes(bytes(data))
        control.call(home, "start", {"job": "up", "reason": ""})

        def settled_line() -> dict[str, Any]:
            lines = [json.loads(line) for line in segment.read_bytes().splitlines() if b'"upgrade.settled"' in line]
            return lines[0]["data"] if lines else {}

        found = until(settled_line, "it is settled")
    assert (found["outcome"], lib.mine.head) == ("blocked", old)
    assert "nothing is changed in this cycle" in found["reason"]
    assert_sound(lib.mine)


def test_nothing_is_run_that_a_hostile_name_asks_for(tmp_path: Path) -> None:
    folder = tmp_path / "a $(touch x) 'q ;\\"
    folder.mkdir()
    lib = pair(folder, "lib", state__txt="good\n")
    branch = "feat/$(id)-{x};'ü"
    lib.mine.git("checkout", "--quiet", "-b", branch)
    lib.upstream.commit(state__txt="good, too\n")
    lib.upstream.git("push", "--quiet", "origin", f"HEAD:refs/heads/{branch}")
    home = home_with(tmp_path, [entry("lib", lib, branch=branch, canary=GOOD)])
    with Foreground(home):
        assert upgrade(home, "run")["lib"]["outcome"] == "upgraded"
    assert lib.mine.git("rev-parse", "HEAD") == lib.upstream.head
    assert_sound(lib.mine)


@pytest.mark.skipif(sys.platform == "darwin", reason="what it costs is read from /proc")
def test_the_daemons_own_process_does_no_git(tmp_path: Path) -> None:
    """Neither does it import the door: workers do."""
    text = "import sys, daemon.serve; print([name for name in sys.modules if name.startswith('daemon.upgrades')])"
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, env=ENVIRONMENT, capture_output=True, check=True)
    assert json.loads(done.stdout) == []
