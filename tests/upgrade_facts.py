"""What a probe may have found, as values: a clean repository one commit behind its remote, and whatever is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import yaml

from ledger.instant import ms_of
from policies.upgrade.facts import Question
from policies.upgrade.policy import UpgradePolicy, adopt

Json = Any
DEFAULTS = yaml.safe_load((Path(__file__).parent.parent / "policies" / "defaults" / "upgrades.yaml").read_text())
NIGHT = ms_of("2026-03-02T03:30:00Z")
OLD, NEW, OTHER = "a" * 40, "b" * 40, "c" * 40


def policy(**override: Json) -> UpgradePolicy:
    return adopt(DEFAULTS, override)


def repo(key: str, **more: Json) -> dict[str, Json]:
    return {
        "key": key, "path": f"/src/{key}", "branch": "main", "remotes": {"primary": f"git@one.example:{key}.git"},
        "depends_on": [], "canary": ["true"], "verify": ["true"], "canary_timeout": 1, "verify_timeout": 1,
        "strategy": "fast-forward", "priority": 50, "hooks": False,
    } | more  # fmt: skip


def remote(**more: Json) -> dict[str, Json]:
    return {
        "url": "git@one.example:x.git", "reachable": True, "latency_ms": 7, "ref": NEW, "tag": "",
        "contains_base": True, "ahead": 0, "behind": 0, "change": None, "failure": "", "words": "",
    } | more  # fmt: skip


def failed(failure: str, **more: Json) -> dict[str, Json]:
    return remote(reachable=False, ref=None, contains_base=None, failure=failure, words="git said so") | more


def change(**more: Json) -> dict[str, Json]:
    return {
        "commits": 1, "files": ["a.c"], "files_count": 1, "insertions": 10, "deletions": 2, "bytes": 4096,
        "submodules": False,
    } | more  # fmt: skip


def probe(key: str, **more: Json) -> dict[str, Json]:
    return {
        "key": key, "path": f"/src/{key}", "ok": True, "problem": None, "head": OLD, "branch": "main", "wanted": "main",
        "base": OLD, "detached": False, "unborn": False, "bare": False, "dirty": [], "dirty_count": 0,
        "untracked_count": 0, "obstructing": [], "stashes": 0, "in_progress": "", "fsck_ok": True, "fsck_words": "",
        "submodules": 0, "lfs": False, "shallow": False, "locks": [], "upgrades_left": [], "role": "primary",
        "candidate": NEW, "ahead": 0, "behind": 1, "change": change(), "objects_bytes": 1 << 20,
        "disk_free_bytes": 1 << 40, "remotes": {"primary": remote()},
    } | more  # fmt: skip


def integrity(**more: Json) -> dict[str, Json]:
    return {
        "ok": True, "words": "", "seq": 9, "hash": "d" * 64, "records": 9, "segments": 1, "compared": {"views": 12},
        "findings": [], "findings_in_all": 0, "decisions": [], "decisions_compared": 3, "decisions_differing": 0,
        "leases": [], "home_free_bytes": 1 << 40,
    } | more  # fmt: skip


def question(repos: list[dict[str, Json]], probes: dict[str, dict[str, Json]] | None = None, **more: Json) -> Question:
    spec = {"name": "nightly", "kind": "upgrade", "parallel": 4, "repos": repos}
    return cast(Question, {
        "run": "nightly.1", "job": "nightly", "wall_ms": NIGHT, "spec": spec,
        "probes": {one["key"]: (probes or {}).get(one["key"]) or probe(one["key"]) for one in repos},
        "integrity": integrity(), "leases": {}, "memory": {},
        "resources": {"cpus": 4, "running": 1, "memory_bytes": 8 << 30, "memory_free_bytes": 4 << 30,
                      "disk_bytes": 1 << 40, "disk_free_bytes": 1 << 39},
        "policy": policy().values(), "code": "c0de",
    } | more)  # fmt: skip
