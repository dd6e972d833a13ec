"""The steps of one repository's upgrade, as a worker performs them: JSON in, `policies.upgrade.facts` out.

Each may be done again after it was killed at any point, and each ends by telling where the repository really is.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.upgrades import probe as looking
from daemon.upgrades.git import Done, Git, Unusable, address_of, failure_of, no_room
from daemon.upgrades.move import NotMoved, Way, move, recover
from daemon.upgrades.probe import Place, Status

Json = Any

REMOTE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Work:
    """What a step is told."""

    path: str
    branch: str
    old: str
    new: str
    worktree: str
    mark: str  # the run of this repository: whose leftovers are ours
    timeout_s: float
    address: str = ""
    strategy: str = "fast-forward"
    checkout: bool = False  # the worktree is to hold files
    hooks: bool = False
    lease: dict[str, Json] | None = None  # file, holder, token

    def git(self) -> Git:
        return Git(self.path, time.monotonic() + self.timeout_s, hooks=self.hooks)


class Failed(Exception):
    def __init__(self, problem: str, words: str) -> None:
        super().__init__(words)
        self.problem, self.words = problem, words


def integrity(**told: Json) -> dict[str, Json]:
    from daemon.upgrades.integrity import integrity  # It needs what the other steps do without.

    return integrity(**told)


def probe(**told: Json) -> dict[str, Json]:
    return looking.probe(**told)


def fetch(**told: Json) -> dict[str, Json]:
    """Have the candidate's objects, and a throw-away worktree whose HEAD keeps them."""
    return _step("fetch", Work(**told), _fetch)


def apply(**told: Json) -> dict[str, Json]:
    """Move the branch and its clean work tree from the old commit to the new one."""
    return _step("apply", Work(**told), _apply)


def rollback(**told: Json) -> dict[str, Json]:
    """Move them back, if nobody has moved the branch since."""
    return _step("rollback", Work(**told), _rollback)


def inspect(**told: Json) -> dict[str, Json]:
    """Put away what a killed step has left half done, and tell where the repository is."""
    return _step("inspect", Work(**told), _inspect)


def clean(**told: Json) -> dict[str, Json]:
    """Take the throw-away worktree away, also where the repository is gone."""
    work = Work(**told)
    found = _step("clean", work, _clean)
    if os.path.lexists(work.worktree):
        _delete(work.worktree)
    return found | {"worktree": os.path.lexists(work.worktree)}


def _step(name: str, work: Work, perform: Callable[[Work, Git, Place], dict[str, Json] | None]) -> dict[str, Json]:
    git = work.git()
    found: dict[str, Json] = {"step": name, "ok": True, "problem": "", "words": "", "branch": work.branch}
    more: dict[str, Json] = {}
    try:
        place = Place(git)
        try:
            more = perform(work, git, place) or {}
        except (Failed, NotMoved) as error:
            found |= {"ok": False, "problem": error.problem, "words": error.words}
        new = more.get("candidate", work.new)
        return found | _standing(work, new, place) | more
    except Unusable as error:
        problem = "gone" if error.kind in ("missing", "not-a-repository") else "unknown"
        nowhere = {"at": "unknown", "commit": None, "clean": False, "worktree": os.path.lexists(work.worktree)}
        return found | {"ok": False, "problem": problem, "words": error.words} | nowhere


def _standing(work: Work, new: str, place: Place) -> dict[str, Json]:
    # With time of its own: a step that has used up all it had still tells where the repository is.
    git = Git(work.path, time.monotonic() + REMOTE_TIMEOUT_S)
    commit = git.commit(f"refs/heads/{work.branch}")
    at = "old" if commit == work.old else "new" if commit == new else "elsewhere"
    clean = True
    if not place.bare:
        status = Status(git)
        clean = not status.dirty and status.branch == work.branch
    return {"at": at, "commit": commit, "clean": clean, "worktree": os.path.lexists(work.worktree)}


def _fetch(work: Work, git: Git, place: Place) -> dict[str, Json]:
    offered = looking.offer(git, work.address, work.branch, work.strategy, REMOTE_TIMEOUT_S)
    if offered["failure"]:
        raise Failed(offered["failure"], offered["words"])
    if not (git.has(offered["ref"]) and git.has(work.new)):
        done = looking.fetch(git, address_of(git, work.address), offered, work.branch)
        _check(done, failure_of(done))
    if not git.has(work.new):
        raise Failed("corrupt", f"the remote did not deliver all of {work.new[:12]}")
    if not git.contains(offered["ref"], work.new):
        raise Failed("rewritten-history", f"the remote's history does not contain {work.new[:12]} any more")
    _unregister(work, place)
    with contextlib.suppress(FileNotFoundError):
        _delete(work.worktree)
    os.makedirs(os.path.dirname(work.worktree), mode=0o700, exist_ok=True)
    rebased = work.strategy == "rebase"
    start = work.old if rebased else work.new
    bare = Git(work.path, time.monotonic() + git.left_s())
    files = () if work.checkout or rebased else ("--no-checkout",)
    done = bare("worktree", "add", "--quiet", "--force", "--detach", *files, "--", work.worktree, start)
    _check(done, "unknown")
    return {"candidate": _rebased(work, bare)} if rebased else {}


def _check(done: Done, problem: str) -> None:
    if not done.ok:
        raise Failed("timeout" if done.timed_out else "disk" if no_room(done) else problem, done.words)


def _rebased(work: Work, git: Git) -> str:
    """The branch's own commits, on top of what the remote offers. Whoever committed last is the one who does it."""
    told = git("log", "-1", "--format=%cn%x00%ce", work.old).text.split("\0")
    env = {"GIT_COMMITTER_NAME": told[0], "GIT_COMMITTER_EMAIL": told[-1]} if len(told) == 2 and told[0] else {}
    done = git("rebase", "--quiet", "--no-autosquash", work.new, at=work.worktree, env=env)
    if not done.ok:
        git("rebase", "--abort", at=work.worktree)
        conflict = "CONFLICT" in done.text or "could not apply" in done.err
        _check(done, "conflict" if conflict else "unknown")
    head = git("rev-parse", "HEAD", at=work.worktree)
    _check(head, "unknown")
    return head.text


def _apply(work: Work, git: Git, place: Place) -> None:
    _leased(work)
    if left := recover(git, place, work.mark):
        raise Failed("dirty", f"somebody has changed {', '.join(left)} meanwhile")
    if git.commit(f"refs/heads/{work.branch}") != work.new:
        move(git, place, Way(work.branch, work.old, work.new, work.mark), strict=True)
        if work.hooks:
            git("hook", "run", "--ignore-missing", "post-merge", "--", "0")


def _rollback(work: Work, git: Git, place: Place) -> None:
    _leased(work)
    if left := recover(git, place, work.mark):
        raise Failed("dirty", f"somebody has changed {', '.join(left)} meanwhile")
    if git.commit(f"refs/heads/{work.branch}") != work.old:
        way = Way(work.branch, work.new, work.old, work.mark)
        try:
            move(git, place, way, strict=False)
        except NotMoved as error:
            if error.problem != "unknown":
                raise
            # A git that was killed, say for its memory, says nothing of the repository, and what did not work stays.
            move(git, place, way, strict=False)


def _inspect(work: Work, git: Git, place: Place) -> None:
    if left := recover(git, place, work.mark):
        raise Failed("dirty", f"somebody has changed {', '.join(left)} meanwhile")


def _clean(work: Work, git: Git, place: Place) -> None:
    left = recover(git, place, work.mark)
    _unregister(work, place)
    with contextlib.suppress(FileNotFoundError):
        _delete(work.worktree)
    if os.path.lexists(work.worktree):
        raise Failed("unknown", f"{work.worktree} could not be deleted")
    if left:
        raise Failed("dirty", f"somebody has changed {', '.join(left)} meanwhile")


def _unregister(work: Work, place: Place) -> None:
    """Git's own note of the worktree, by hand: `git worktree remove` refuses one that is half made."""
    for entry in place.left(os.path.dirname(work.worktree)):
        _delete(str(entry))
    with contextlib.suppress(OSError):
        (place.common / "worktrees").rmdir()


def _delete(path: str) -> None:
    """A folder and all in it, also where whoever made it has locked himself out. Links are not followed."""
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
        return

    opened: set[str] = set()

    def open_up(function: Callable[[str], object], name: str, error: object) -> None:
        del error
        for folder in (os.path.dirname(name), name):
            with contextlib.suppress(OSError):
                if stat.S_ISDIR(os.lstat(folder).st_mode):
                    os.chmod(folder, 0o700)
        if function in (os.unlink, os.rmdir):
            with contextlib.suppress(OSError):
                function(name)
        elif name not in opened:  # A folder that could not be read, and now can be; if not, not for ever.
            opened.add(name)
            shutil.rmtree(name, onerror=open_up)

    shutil.rmtree(path, onerror=open_up)
    if os.path.lexists(path):
        shutil.rmtree(path, ignore_errors=True)


def _leased(work: Work) -> None:
    """Nothing is changed but under the lease of this very run: a late worker of an earlier one changes nothing."""
    lease = work.lease
    if lease is None:
        return
    try:
        told = json.loads(Path(lease["file"]).read_bytes())
        held = (told["holder"], told["token"], told["foreign"]) == (lease["holder"], lease["token"], False)
    except (OSError, ValueError, KeyError, TypeError):
        held = False
    if not held:
        raise Failed("lease", f"the lease {lease['key']} is not held by this run any more")
