"""What one repository is, and what its remotes offer.

Nothing that a person sees of it changes. Where a remote advertises a commit that is not here, its objects are fetched
into the object store and no ref is made for them: without them nobody could say how large the change is, whether it
is a fast-forward, or whether the remote's history has been rewritten. Objects that nothing names are git's own to
throw away after a while.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from daemon.upgrades.git import Done, Git, Unusable, address_of, failure_of, said, without_credentials
from policies.upgrade.facts import ROLES, unseen

Json = Any

NAMES_MAX = 50
FILES_MAX = 200
NAMES_BYTES_MAX = 16 << 10
LOOKED_FOR_MAX = 20_000
"""So many files that the candidate adds are looked for among the untracked ones."""
_IN_PROGRESS = (
    ("rebase-merge", "rebase"),
    ("rebase-apply/applying", "am"),
    ("rebase-apply", "rebase"),
    ("MERGE_HEAD", "merge"),
    ("CHERRY_PICK_HEAD", "cherry-pick"),
    ("REVERT_HEAD", "revert"),
    ("BISECT_LOG", "bisect"),
)
_OID = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_REF = re.compile(r"refs/[^\0-\x20\x7f~^:?*\[\\]+(\^\{\})?")
"""What a ref can be called. Git takes a remote's word for it, and a colon would have `git fetch` write one of ours."""


class Place:
    """Where a repository's parts lie."""

    def __init__(self, git: Git) -> None:
        path = git.path
        if not os.path.lexists(path):
            raise Unusable("missing", f"there is nothing at {path}")
        if not os.path.isdir(path):
            raise Unusable("not-a-repository", f"{path} is no folder")
        asked = ("--git-dir", "--git-common-dir", "--is-bare-repository", "--is-shallow-repository")
        done = git("rev-parse", "--path-format=absolute", *asked, "--is-inside-work-tree")
        if not done.ok:
            raise Unusable(_kind(done), done.words or f"{path} is no git repository")
        git_dir, common, bare, shallow, inside = done.out.decode("utf-8", "surrogateescape").splitlines()
        self.git_dir, self.common = Path(git_dir), Path(common)
        self.bare, self.shallow = bare == "true", shallow == "true"
        if not self.bare and inside != "true":
            raise Unusable("not-a-repository", f"{path} is inside the .git folder of a repository")

    def in_progress(self) -> str:
        return next((name for file, name in _IN_PROGRESS if os.path.lexists(self.git_dir / file)), "")

    def locks(self, branch: str) -> list[str]:
        """Lock files that git would stumble over."""
        found = []
        for folder, names in (
            (self.git_dir, ("index.lock", "HEAD.lock")),
            (self.common, ("packed-refs.lock", "config.lock", "shallow.lock", f"refs/heads/{branch}.lock")),
        ):
            found += [name for name in names if os.path.lexists(folder / name)]
        return sorted(found)

    def left(self, runs: str) -> list[Path]:
        """Entries of throw-away worktrees that were made under the folder `runs` and are still registered."""
        return sorted(entry for entry in _entries(self.common / "worktrees") if _is_ours(entry, runs))


def _entries(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink()]
    except OSError:
        return []


def _is_ours(entry: Path, runs: str) -> bool:
    try:
        where = (entry / "gitdir").read_bytes().decode("utf-8", "surrogateescape").strip()
    except OSError:
        return False
    return bool(runs) and os.path.realpath(where).startswith(os.path.realpath(runs) + "/")


def _kind(done: Done) -> str:
    if done.code < 0:
        return "timeout" if done.timed_out else "lost"
    for kind, pattern in (
        ("not-yours", "dubious ownership"),
        ("not-a-repository", "not a git repository|must be run in a work tree"),
        ("permission", "Permission denied"),
        ("corrupt", "corrupt|bad config|unable to read|invalid gitfile|bad signature|not a valid"),
    ):
        if re.search(pattern, done.err):
            return kind
    return "unknown"


def shown(name: bytes) -> str:
    """A file's name as it can be shown: what is no text, or would do something to a terminal, is replaced."""
    text = name.decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def some(names: Iterable[bytes], count: int) -> list[str]:
    """The first of these names, within what one event may hold."""
    found: list[str] = []
    room = NAMES_BYTES_MAX
    for name in sorted(names):
        text = shown(name)
        room -= len(text.encode()) + 3
        if len(found) == count or room < 0:
            break
        found.append(text)
    return found


class Status:
    """`git status`, read."""

    def __init__(self, git: Git, env: Mapping[str, str] | None = None) -> None:
        words = ("--porcelain=v2", "--branch", "--show-stash", "-z", "--untracked-files=normal")
        done = git("status", *words, "--ignore-submodules=dirty", env=env)
        if not done.ok:
            raise Unusable(_kind(done), done.words)
        self.head: str | None = None
        self.branch = ""
        self.detached = False
        self.stashes = 0
        self.dirty: list[bytes] = []
        self.untracked: list[bytes] = []
        lines = iter(done.out.split(b"\0"))
        for line in lines:
            kind, _, rest = line.partition(b" ")
            if kind == b"#":
                self._header(rest.decode("utf-8", "replace"))
            elif kind in (b"1", b"u"):
                self.dirty.append(rest.split(b" ", 7 if kind == b"1" else 9)[-1])
            elif kind == b"2":
                self.dirty.append(rest.split(b" ", 8)[-1])
                next(lines, b"")
            elif kind == b"?":
                self.untracked.append(rest)

    def _header(self, line: str) -> None:
        name, _, value = line.partition(" ")
        if name == "branch.oid":
            self.head = None if value == "(initial)" else value
        elif name == "branch.head":
            self.detached = value == "(detached)"
            self.branch = "" if self.detached else value
        elif name == "stash":
            self.stashes = int(value)


def probe(
    key: str, path: str, branch: str, remotes: Mapping[str, str], strategy: str, known: Mapping[str, str], runs: str,
    timeout_s: float, remote_timeout_s: float,
) -> dict[str, Json]:  # fmt: skip
    """`policies.upgrade.facts.Probe`. `known`: role -> the commit it offered when it was last looked at."""
    git = Git(path, time.monotonic() + timeout_s)
    try:
        return _probe(git, key, branch, remotes, strategy, known, runs, remote_timeout_s)
    except Unusable as error:
        return nothing(key, path, branch, error.kind, error.words)


def nothing(key: str, path: str, branch: str, kind: str, words: str) -> dict[str, Json]:
    """Of a repository that could not be looked at."""
    return dict(unseen(key, path, branch, kind, words))


def _probe(
    git: Git, key: str, wanted: str, remotes: Mapping[str, str], strategy: str, known: Mapping[str, str], runs: str,
    remote_timeout_s: float,
) -> dict[str, Json]:  # fmt: skip
    place = Place(git)
    if not git("check-ref-format", f"refs/heads/{wanted}").ok:
        raise Unusable("unknown", f"{wanted!r} is no name of a branch")
    with ThreadPoolExecutor(max(4, len(remotes) + 2)) as pool:
        asked = {
            role: pool.submit(offer, git, remotes[role], wanted, strategy, remote_timeout_s)
            for role in ROLES
            if role in remotes
        }
        checked = pool.submit(git, "fsck", "--connectivity-only", "--no-progress", "--no-dangling")
        counted = pool.submit(git, "count-objects", "-v")
        status = _bare_status(git) if place.bare else Status(git)
        offers = {role: one.result() for role, one in asked.items()}
        fsck, counts = checked.result(), counted.result()
    if fsck.code < 0:
        raise Unusable("timeout" if fsck.timed_out else "lost", f"git fsck: {fsck.words}")
    # A fetch that was cut off, by whomever, leaves parts of commits that nothing names: those are no damage.
    sound = fsck.ok or (status.head is not None and git.says("rev-list", "--objects", "--quiet", "--all", "HEAD"))
    base = status.head if status.branch == wanted else git.commit(f"refs/heads/{wanted}")
    found = nothing(key, git.path, wanted, "", "") | {
        "ok": True, "problem": None, "head": status.head, "branch": status.branch, "base": base,
        "detached": status.detached, "unborn": status.head is None, "bare": place.bare,
        "dirty": some(status.dirty, NAMES_MAX), "dirty_count": len(status.dirty),
        "untracked_count": len(status.untracked), "stashes": status.stashes, "in_progress": place.in_progress(),
        "fsck_ok": sound, "fsck_words": "" if fsck.ok else said(fsck.err) or said(fsck.text),
        "submodules": _submodules(git), "lfs": _lfs(git.path, place.common), "shallow": place.shallow,
        "locks": place.locks(wanted), "upgrades_left": [entry.name for entry in place.left(runs)],
        "objects_bytes": _objects_bytes(counts), "disk_free_bytes": shutil.disk_usage(place.common).free,
    }  # fmt: skip
    _weigh(git, offers, base, known, remotes, wanted, strategy)
    first = next((role for role in ROLES if role in offers and offers[role]["ref"] and not offers[role]["failure"]), "")
    candidate = offers[first]["ref"] if first else None
    for role, remote in offers.items():
        if role != first and remote["ref"] == candidate:
            remote["change"] = None
    found |= {"role": first, "candidate": candidate, "remotes": offers}
    if first:
        change = offers[first]["change"]
        found |= {"ahead": offers[first]["ahead"], "behind": offers[first]["behind"], "change": change}
        offers[first]["change"] = None
        if change is not None and not place.bare:
            found["obstructing"] = _obstructing(git, base, candidate)
    return found


def _bare_status(git: Git) -> Status:
    status = Status.__new__(Status)
    done = git("symbolic-ref", "--quiet", "HEAD")
    status.branch = done.text.removeprefix("refs/heads/") if done.ok else ""
    status.detached, status.head = not done.ok, git.commit("HEAD")
    status.stashes, status.dirty, status.untracked = 0, [], []
    return status


def offer(git: Git, address: str, wanted: str, strategy: str, timeout_s: float) -> dict[str, Json]:
    """What a remote says it has: `policies.upgrade.facts.Remote`, as far as its own word goes."""
    url = address_of(git, address)
    found: dict[str, Json] = {
        "url": without_credentials(url), "reachable": False, "latency_ms": 0, "ref": None, "tag": "",
        "contains_base": None, "ahead": 0, "behind": 0, "change": None, "failure": "", "words": "",
    }  # fmt: skip
    if not url:
        return found | {"failure": "not-found", "words": f"the repository has no remote called {address}"}
    began = time.monotonic()
    what: tuple[str, ...]
    if strategy.startswith("tag:"):
        what = ("--tags", "--sort=-version:refname", "--", url, f"refs/tags/{strategy[4:]}")
    else:
        what = ("--", url, f"refs/heads/{wanted}")
    done = git("ls-remote", "--quiet", *what, within_s=timeout_s)
    found["latency_ms"] = round((time.monotonic() - began) * 1000)
    if not done.ok:
        return found | {"failure": failure_of(done), "words": done.words}
    found["reachable"] = True
    refs: dict[str, str] = {}
    for line in done.out.decode("utf-8", "replace").splitlines():
        oid, _, name = line.partition("\t")
        if not _OID.fullmatch(oid) or not _REF.fullmatch(name):
            return found | {"failure": "corrupt", "words": "it answered something that is no list of refs"}
        refs[name] = oid
    if strategy.startswith("tag:"):
        # A pattern is matched from the end of a name, so that nested ones come along: those are meant by no one.
        names = [name for name in refs if not name.endswith("^{}")]
        if names:
            tag = names[0]
            return found | {"ref": refs.get(f"{tag}^{{}}", refs[tag]), "tag": tag.removeprefix("refs/tags/")}
        return found | {"failure": "not-found", "words": f"it has no tag that fits {strategy[4:]}"}
    ref = refs.get(f"refs/heads/{wanted}")
    if ref is None:
        return found | {"failure": "not-found", "words": f"it has no branch {wanted}"}
    return found | {"ref": ref}


FETCH = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--no-auto-maintenance")


def fetch(git: Git, url: str, remote: Mapping[str, Json], wanted: str, within_s: float | None = None) -> Done:
    """Fetch the objects that a remote offers; no ref changes."""
    ref = f"refs/tags/{remote['tag']}" if remote["tag"] else f"refs/heads/{wanted}"
    return git(*FETCH, "--", url, ref, within_s=within_s)


def _weigh(
    git: Git, offers: dict[str, dict[str, Json]], base: str | None, known: Mapping[str, str],
    remotes: Mapping[str, str], wanted: str, strategy: str,
) -> None:  # fmt: skip
    """Where each remote's history stands to the branch, as far as its objects are, or can be had."""
    weighed: dict[str, Mapping[str, Json]] = {}
    reference = ""
    for role, remote in offers.items():
        ref = remote["ref"]
        if ref is None:
            continue
        if ref != base and not git.has(ref):
            done = fetch(git, address_of(git, remotes[role]), remote, wanted)
            if not done.ok:
                remote |= {"failure": failure_of(done), "words": done.words}
                continue
            if not git.has(ref):
                words = f"it advertised {ref[:12]} and did not deliver it"
                remote |= {"failure": "corrupt", "words": words}
                continue
        before = known.get(role)
        moved = bool(before) and before != ref and not strategy.startswith("tag:")
        gone = moved and git.commit(str(before)) and not git.contains(ref, str(before))
        if gone and (base is None or not git.contains(ref, base)):
            words = f"its history does not contain {str(before)[:12]}, which it offered before"
            remote |= {"failure": "rewritten-history", "words": words, "contains_base": False}
            continue
        if base is None:
            continue
        if not reference:
            fork = git("merge-base", base, ref) if ref != base else None
            reference = fork.text if fork is not None and fork.ok else base
        remote["contains_base"] = ref == reference or git.contains(ref, reference)
        if ref not in weighed:
            weighed[ref] = _standing(git, base, ref)
        remote |= weighed[ref]


def _standing(git: Git, base: str, ref: str) -> dict[str, Json]:
    if base == ref:
        return {"ahead": 0, "behind": 0, "change": None}
    counts = git("rev-list", "--left-right", "--count", f"{base}...{ref}").text.split()
    if len(counts) != 2:
        return {"ahead": 0, "behind": 0, "change": None}
    ahead, behind = map(int, counts)
    return {"ahead": ahead, "behind": behind, "change": _change(git, base, ref, behind) if behind else None}


def _change(git: Git, base: str, ref: str, commits: int) -> dict[str, Json] | None:
    raw = git("diff-tree", "-r", "-z", "--no-renames", "--raw", "--no-abbrev", base, ref)
    counted = git("diff-tree", "-r", "-z", "--no-renames", "--numstat", "--no-ext-diff", "--no-textconv", base, ref)
    if not raw.ok or not counted.ok:
        return None
    parts = raw.out.split(b"\0")
    files, blobs, submodules = [], [], False
    for about, name in zip(parts[::2], parts[1::2], strict=False):
        old_mode, new_mode, _, new, _ = about.lstrip(b":").split(b" ")
        files.append(name)
        submodules |= b"160000" in (old_mode, new_mode)
        if new_mode not in (b"000000", b"160000"):
            blobs.append(new)
    insertions = deletions = 0
    for line in counted.out.split(b"\0"):
        added, _, rest = line.partition(b"\t")
        removed = rest.partition(b"\t")[0]
        insertions += int(added) if added.isdigit() else 0
        deletions += int(removed) if removed.isdigit() else 0
    sizes = git("cat-file", "--batch-check=%(objectsize)", stdin=b"\n".join(blobs) + b"\n") if blobs else None
    size = sum(int(line) for line in sizes.out.split() if line.isdigit()) if sizes else 0
    return {
        "commits": commits, "files": some(files, FILES_MAX), "files_count": len(files), "insertions": insertions,
        "deletions": deletions, "bytes": size, "submodules": submodules,
    }  # fmt: skip


def _obstructing(git: Git, base: str | None, ref: str | None) -> list[str]:
    """Files that the candidate adds and that are there, untracked or ignored: git would refuse to overwrite them."""
    if base is None or ref is None:
        return []
    done = git("diff-tree", "-r", "-z", "--no-renames", "--name-only", "--diff-filter=A", base, ref)
    root = os.fsencode(git.path)
    names = [name for name in done.out.split(b"\0")[:LOOKED_FOR_MAX] if name]
    return some((name for name in names if os.path.lexists(os.path.join(root, name))), NAMES_MAX)


def _submodules(git: Git) -> int:
    if not os.path.isfile(os.path.join(git.path, ".gitmodules")):
        return 0
    done = git("config", "--file", ".gitmodules", "--get-regexp", "--name-only", r"^submodule\..*\.path$")
    return len(done.out.splitlines())


def _lfs(path: str, common: Path) -> bool:
    for file in (os.path.join(path, ".gitattributes"), common / "info" / "attributes"):
        try:
            with open(file, "rb") as found:
                if b"filter=lfs" in found.read(1 << 16):
                    return True
        except OSError:
            continue
    return False


def _objects_bytes(done: Done) -> int:
    told = dict(line.split(": ", 1) for line in done.text.splitlines() if ": " in line)
    return sum(int(told[name]) for name in ("size", "size-pack") if told.get(name, "").isdigit()) << 10
