"""kill -9 of the real daemon at every recorded step of upgrades, and in some cycles of all its workers as well.

After each cycle every repository is at its old commit, or at the new one with verify passed there; nothing of ours is
left in it, and the person's work is as it was.

HERMES_UPGRADE_KILLS: how many (6 unless told). HERMES_KILL_SEED: the one a failure printed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from cli_shell import ENVIRONMENT, ROOT, answer, hermesd, make_home
from repositories import Pair, assert_sound, pair, work_of

from daemon.system import OsDisk
from ledger.reader import read
from ledger.record import Record

KILLS = int(os.environ.get("HERMES_UPGRADE_KILLS", "6"))
SEED = int(os.environ.get("HERMES_KILL_SEED", "0")) or time.time_ns() % 1_000_000_000
KINDS = ("good", "good", "bad", "worse")
"""What upstream's next commit is like: fine, found out by verify, found out by canary already."""
PATIENCE_S = 600


def job(repos: dict[str, Pair]) -> str:
    return yaml.safe_dump(
        {
            "name": "up", "kind": "upgrade", "schedule": "manual", "parallel": 4,
            "env": {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"},
            "repos": [
                {
                    "key": key, "path": str(repo.mine.path), "remotes": {"primary": str(repo.remote.path)},
                    "canary": ["grep", "-q", "-v", "worse", "state.txt"], "verify": ["grep", "-q", "good", "state.txt"],
                    "depends_on": ["one"] if key == "three" else [],
                }
                for key, repo in repos.items()
            ],
        }
    )  # fmt: skip


class Daemon:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-m", "daemon.cli", "--home", str(home), "run"],
            cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert self.process.stdout is not None
        if b"is ready" not in (line := self.process.stdout.readline()):
            said, _ = self.process.communicate(timeout=60)
            left = [(one.pid, one.cmdline()) for one in of_home(home)]
            raise AssertionError(f"the daemon did not start: {(line + said).decode()}\nstill there: {left}")

    def kill(self, *, workers: bool) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        while workers and (left := of_home(self.home)):
            for process in left:
                try:
                    process.kill()
                    process.wait(10)
                except psutil.Error:
                    continue


def of_home(home: Path) -> list[psutil.Process]:
    """The processes that work for this home: each bears its path in the environment, and so does what it starts."""
    found = []
    for process in psutil.process_iter():
        try:
            named = process.environ().get("HERMESD_HOME") == str(home) or str(home) in " ".join(process.cmdline())
            if named and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def records(home: Path, after: int) -> list[Record]:
    return list(read(OsDisk(str(home)), after=after))


def what(record: Record) -> str:
    """The step that a record is about, for the tally of where the daemon was killed."""
    if record.type == "plan.decided":
        steps = [one.get("step", "the run").split("-")[0] for one in record.data["decisions"]]
        return f"{'+'.join(sorted(set(steps)))} decided"
    run = record.data.get("by") or record.data.get("run", "")
    step = str(run).rpartition(".")[2].split("-")[0] if record.type.startswith(("run.", "upgrade.")) else ""
    return f"{step if step.isalpha() else ''} {record.type}".strip()


@pytest.mark.timeout(max(300, KILLS * 60))
def test_whatever_is_killed_no_repository_is_broken(tmp_path: Path) -> None:
    print(f"HERMES_KILL_SEED={SEED}")
    chance, killed_at, outcomes = random.Random(SEED), Counter[str](), Counter[str]()
    repos = {name: pair(tmp_path, name, state__txt="good\n", b__txt="two\n") for name in ("one", "two", "three")}
    home = make_home(tmp_path / "home", up=job(repos))
    for repo in repos.values():
        repo.mine.write("notes.txt", "mine\n")
    kills, cycle = 0, 0
    while kills < KILLS:
        cycle += 1
        told = {name: chance.choice(KINDS) for name in repos}
        new = {name: repos[name].ahead(state__txt=f"{kind} {cycle}\n") for name, kind in told.items()}
        old = {name: repo.mine.head for name, repo in repos.items()}
        person = {name: work_of(repo.mine) for name, repo in repos.items()}
        daemon = Daemon(home)
        run = answer("start", "up", "--home", home)["run"]
        seen, over = 0, False
        ends = time.monotonic() + PATIENCE_S
        while not over:
            assert time.monotonic() < ends, f"run {run} does not come to its end"
            wait_for = chance.randint(1, 12) if kills < KILLS else 1 << 30
            fresh: list[Record] = []
            while len(fresh) < wait_for and not over:
                assert time.monotonic() < ends, f"run {run} does not come to its end"
                more = records(home, seen)
                seen = more[-1].seq if more else seen
                mine = [one for one in more if one.type.startswith(("run.", "upgrade.", "plan."))]
                fresh += mine
                over = any(one.type == "run.finished" and one.data["run"] == run for one in mine)
                if not more:
                    time.sleep(0.004)
            if not over:
                kills += 1
                killed_at[what(fresh[-1])] += 1
                daemon.kill(workers=chance.random() < 0.35)
                daemon = Daemon(home)
        while list(home.glob("leases/*.json")):  # They go once the end is durable.
            assert time.monotonic() < ends, "a lease was left"
            time.sleep(0.01)
        daemon.kill(workers=True)
        for name, settled in settled_in(home, run).items():
            outcome, repo = settled["outcome"], repos[name]
            outcomes[outcome] += 1
            assert repo.mine.head == (new[name] if outcome == "upgraded" else old[name]), (name, settled)
            assert outcome != "upgraded" or told[name] == "good", settled
            assert_sound(repo.mine, person[name])
            assert (repo.mine.path / "state.txt").read_text() == repo.mine.git("show", "HEAD:state.txt") + "\n"
        assert not list(home.glob("runs/*/*/worktree"))
        print(f"{kills} kills in {cycle} cycles; {dict(outcomes.most_common())}", flush=True)
    hermesd("replay", "--verify", "--home", home)
    for place, count in killed_at.most_common():
        print(f"{count:6} {place}")


def settled_in(home: Path, run: str) -> dict[str, Any]:
    told = [one.data for one in records(home, 0) if one.type == "upgrade.settled" and one.data["run"] == run]
    found = {one["key"]: one for one in told}
    assert len(told) == len(found) == 3, "each repository is settled once"
    return found


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q", "-s", "-n", "0"]))
