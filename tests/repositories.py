"""Real git repositories, made by the test, and what must be true of one whatever was done to it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WHO = {
    "GIT_AUTHOR_NAME": "Ann", "GIT_AUTHOR_EMAIL": "ann@example.org",
    "GIT_COMMITTER_NAME": "Ann", "GIT_COMMITTER_EMAIL": "ann@example.org",
    "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C", "PATH": os.environ["PATH"],
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
}  # fmt: skip


@dataclass(frozen=True)
class Repo:
    path: Path

    def git(self, *words: str, code: int | None = 0, stdin: str | None = None) -> str:
        done = subprocess.run(
            ["git", "-C", str(self.path), *words], env=WHO, capture_output=True, text=True, input=stdin, check=False
        )
        assert code is None or done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout.strip()

    def write(self, name: str, text: str = "") -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text or f"{name}\n")

    def commit(self, **files: str | None) -> str:
        """A commit with these files (None: deleted; __ in a name is a dot); its id."""
        for name, text in files.items():
            path = self.path / name.replace("__", ".")
            if text is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", " ".join(files) or "empty")
        return self.head

    @property
    def head(self) -> str:
        return self.git("rev-parse", "HEAD")

    def at(self, name: str) -> str:
        return self.git("rev-parse", name)

    @property
    def git_dir(self) -> Path:
        return Path(self.git("rev-parse", "--absolute-git-dir"))


def new(path: Path, *, bare: bool = False) -> Repo:
    path.mkdir(parents=True)
    Repo(path).git("init", "--quiet", "--initial-branch=main", *(["--bare"] if bare else []))
    return Repo(path)


@dataclass(frozen=True)
class Pair:
    """A person's repository, the bare one it comes from, and another person's clone, by which upstream moves on."""

    mine: Repo
    remote: Repo
    upstream: Repo

    def ahead(self, **files: str | None) -> str:
        """Upstream has one more commit."""
        commit = self.upstream.commit(**files)
        self.upstream.git("push", "--quiet", "origin", "HEAD:main")
        return commit


def pair(folder: Path, name: str = "lib", **files: str) -> Pair:
    remote = new(folder / f"{name}.git", bare=True)
    upstream = new(folder / f"{name}-upstream")
    upstream.git("remote", "add", "origin", str(remote.path))
    upstream.commit(**(files or {"a__txt": "one\n", "b__txt": "two\n"}))
    upstream.git("push", "--quiet", "origin", "HEAD:main")
    mine = clone(remote, folder / name)
    return Pair(mine, remote, upstream)


def clone(remote: Repo, path: Path, *words: str) -> Repo:
    subprocess.run(["git", "clone", "--quiet", *words, str(remote.path), str(path)], env=WHO, check=True)
    return Repo(path)


def work_of(repo: Repo) -> dict[str, Any]:
    """What belongs to the person: configuration, remotes, hooks, other branches and tags, stashes, work not
    committed."""
    git_dir = Path(repo.git("rev-parse", "--path-format=absolute", "--git-common-dir"))
    uncommitted = repo.git("status", "--porcelain=v1", "-z", "--untracked-files=all").split("\0")
    refs = repo.git("for-each-ref", "--format=%(refname) %(objectname)").splitlines()
    return {
        "config": (git_dir / "config").read_bytes(),
        "hooks": sorted(path.name for path in (git_dir / "hooks").iterdir()) if (git_dir / "hooks").is_dir() else [],
        "refs": [line for line in refs if not line.startswith("refs/heads/main ")],
        "files": {
            line[3:]: content(repo.path / line[3:]) for line in uncommitted if line and line[:2] in ("??", " M", "M ")
        },
        "uncommitted": sorted(uncommitted),
        "fetch_head": (git_dir / "FETCH_HEAD").exists(),
    }  # fmt: skip


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def left_behind(repo: Repo) -> Iterator[str]:
    """Locks, worktrees and other things of ours that lie in the repository."""
    common = Path(repo.git("rev-parse", "--path-format=absolute", "--git-common-dir"))
    for path in common.rglob("*"):
        if path.name.endswith(".lock") or "hermes" in path.name:
            yield str(path)
    yield from (str(path) for path in (common / "worktrees").glob("*"))
    yield from (ref for ref in repo.git("for-each-ref", "--format=%(refname)").splitlines() if "hermes" in ref)


def assert_sound(repo: Repo, person: dict[str, Any] | None = None) -> None:
    """What must hold after everything: fsck is clean, nothing of ours is left, the person's work is as it was."""
    fsck = repo.git("fsck", "--no-dangling", "--no-progress")
    assert not fsck, fsck
    assert not list(left_behind(repo))
    assert person is None or work_of(repo) == person
