"""Repositories looked at and planned, beside a plain loop of `git fetch --dry-run` and beside gita; and a plan of very
many of them.

Ours does more for each: it asks the remote, runs `git fsck --connectivity-only`, counts, classifies; the ledger is read
again, and all of it is one recorded decision. Nothing has changed upstream, as in most nights.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import yaml

from policies.job import parse_job
from policies.upgrade import saga
from policies.upgrade.facts import Probe, unread, unseen
from policies.upgrade.plan import plan_upgrade
from policies.upgrade.policy import adopt
from simulations.bench.daemon import DaemonProcess, Watched, make_home, starts_of
from simulations.bench.figure import Figure, Target, figure
from simulations.bench.place import Bench
from state.graph import Graph

Json = Any

REPOS, MANY = 50, 10_000
WALL_MS = 1_800_000_000_000
_POLICY = Path(__file__).resolve().parents[2] / "policies" / "defaults" / "upgrades.yaml"
_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "b", "GIT_AUTHOR_EMAIL": "b@x",
    "GIT_COMMITTER_NAME": "b", "GIT_COMMITTER_EMAIL": "b@x", "LC_ALL": "C",
}  # fmt: skip


def measure(bench: Bench) -> list[Figure]:
    count = bench.some(REPOS, 4)
    bench.tell(f"making {count} repositories")
    paths = [_repository(bench.folder, number) for number in range(count)]
    ours, plain, gita = [], [], []
    gather = _gita(bench.folder, paths)
    with DaemonProcess(make_home(bench.folder / "home", [_job(paths)], {})) as daemon:
        watched = Watched(bench.folder / "home")
        for turn in range(-1, bench.rounds):  # The first one starts the workers.
            bench.tell(f"{count} repositories, round {turn + 1} of {bench.rounds}")
            began_s = perf_counter()
            daemon.ask(starts_of([{"name": "upgrades"}], 1))
            watched.until_finished(count + 2)  # A probe of each, the reading of the ledger, and the whole.
            middle_s = perf_counter()
            for path in paths:
                _git(path, "fetch", "--dry-run", "--quiet")
            plain_s = perf_counter()
            if gather is not None:
                gather()
            if turn >= 0:
                ours.append(middle_s - began_s)
                plain.append(plain_s - middle_s)
                gita.append(perf_counter() - plain_s)
    name = f"look at {count} repositories, and plan"
    return [
        figure(name, "s", ours, "git fetch --dry-run, one by one", plain),
        figure(name, "s", ours, "gita fetch" if gather else "gita: not installed", gita if gather else ()),
        _planning(bench),
    ]


def _git(path: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(path), *words], check=True, env=os.environ | _ENVIRONMENT, capture_output=True)


def _repository(folder: Path, number: int) -> Path:
    """A clone with a bare remote, a few commits and a hundred files; nothing new upstream."""
    path, remote = folder / f"r{number}", folder / f"r{number}.git"
    if number:
        shutil.copytree(folder / "r0", path, symlinks=True)
        shutil.copytree(folder / "r0.git", remote, symlinks=True)
        _git(path, "remote", "set-url", "origin", str(remote))
        return path
    path.mkdir()
    _git(path, "init", "--quiet", "--initial-branch=main")
    for turn in range(5):
        for file in range(100):
            (path / f"file{file}.txt").write_text(f"{file} {turn}\n" * 20)
        _git(path, "add", "--all")
        _git(path, "commit", "--quiet", "-m", str(turn))
    subprocess.run(["git", "clone", "--quiet", "--bare", str(path), str(remote)], check=True)
    _git(path, "remote", "add", "origin", str(remote))
    _git(path, "fetch", "--quiet")
    _git(path, "branch", "--quiet", "--set-upstream-to=origin/main")
    return path


def _job(paths: list[Path]) -> Json:
    repos = [{"key": path.name, "path": str(path), "remotes": {"primary": f"{path}.git"}} for path in paths]
    return {"name": "upgrades", "kind": "upgrade", "schedule": "manual", "parallel": 8, "repos": repos}


def _gita(folder: Path, paths: list[Path]) -> Any:
    """`gita fetch` over all of them; None where it is not installed."""
    gita = shutil.which("gita", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if gita is None:
        return None
    env = os.environ | _ENVIRONMENT | {"XDG_CONFIG_HOME": str(folder / "gita")}
    subprocess.run([gita, "add", *map(str, paths)], check=True, env=env, capture_output=True)
    return lambda: subprocess.run([gita, "fetch"], check=True, env=env, capture_output=True)


def _planning(bench: Bench) -> Figure:
    """The plan of very many repositories, of which half have something new, as a pure function."""
    count = bench.some(MANY, 100)
    bench.tell(f"planning {count:,} repositories")
    policy = adopt(yaml.safe_load(_POLICY.read_text()), {}).values()
    one = parse_job(_job([Path("/srv/r0")])).canonical()
    repos = [{**one["repos"][0], "key": f"r{n}", "path": f"/srv/r{n}", "depends_on": [f"r{n - 1}"] if n % 6 else []}
             for n in range(count)]  # fmt: skip
    probes = {repo["key"]: _probe(repo["key"], repo["path"], new=number % 2) for number, repo in enumerate(repos)}
    integrity = unread("") | {"ok": True, "records": 1, "segments": 1, "home_free_bytes": 1 << 40}
    spec = {**one, "repos": repos}
    took_s = []
    for _ in range(min(3, bench.rounds)):
        question = saga.question(Graph(), "run", "upgrades", spec, probes, integrity, WALL_MS, policy, "bench")
        began_s = process_time()
        answer = plan_upgrade(question)
        took_s.append(process_time() - began_s)
        assert len(answer["repos"]) == count
    return figure(f"plan {count:,} repositories", "s of CPU", took_s, target=Target(at_most=1))


def _probe(key: str, path: str, *, new: int) -> Probe:
    base, ref = "a" * 40, "b" * 40 if new else "a" * 40
    remote = {
        "url": f"{path}.git", "reachable": True, "latency_ms": 5, "ref": ref, "tag": "", "contains_base": True,
        "ahead": 0, "behind": new, "change": None, "failure": "", "words": "",
    }  # fmt: skip
    change = {
        "commits": 1, "files": ["a.txt"], "files_count": 1, "insertions": 3, "deletions": 1, "bytes": 100,
        "submodules": False,
    }  # fmt: skip
    found: Any = unseen(key, path, "main", "", "") | {
        "ok": True, "problem": None, "head": base, "branch": "main", "base": base, "fsck_ok": True, "role": "primary",
        "candidate": ref, "behind": new, "change": change if new else None, "disk_free_bytes": 1 << 40,
        "remotes": {"primary": remote},
    }  # fmt: skip
    result: Probe = found
    return result
