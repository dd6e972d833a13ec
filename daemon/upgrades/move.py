"""A branch and its work tree moved from one commit to another, all of it or nothing, against anybody else's hand.

Three locks make it so. `index.lock` is taken first, so that no commit, checkout or reset of a person comes between; it
says in words whose it is. The branch is locked, and found to be at the commit it is moved from, before a file is
touched (`git update-ref`, prepared and not yet committed). The new index is made in a file of its own and put in place
by a rename.

A move that is killed leaves these locks, and files of either commit. `recover` knows its own lock by what stands in
it, looks at each file that differs between the two commits, and gives the work tree the commit that the branch is at.
A file that holds neither commit's content, nor a beginning of it, is somebody's work and is left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from hashlib import sha1, sha256
from pathlib import Path
from typing import NamedTuple

from daemon.upgrades.git import OUTPUT_BYTES_MAX, Done, Git, Unusable, no_room, said
from daemon.upgrades.probe import Place, Status, some

_COPY = "index.hermesd"
_LINK, _MODULE = "120000", "160000"


class NotMoved(Exception):
    """Nothing has changed; a class of `policies.upgrade.facts.Step.problem`, and words."""

    def __init__(self, problem: str, words: str) -> None:
        super().__init__(words)
        self.problem, self.words = problem, words


class Way(NamedTuple):
    """What is moved: which branch, between which commits, for whom."""

    branch: str
    source: str
    target: str
    mark: str

    @property
    def ref(self) -> str:
        return f"refs/heads/{self.branch}"


def move(git: Git, place: Place, way: Way, *, strict: bool) -> None:
    """NotMoved if it was not. `strict`: not with anything uncommitted; else git refuses only where it is in the way."""
    if place.bare:
        with _Locked(git, place, way) as branch:
            branch.commit()
        return
    if (busy := place.in_progress()) and strict:
        raise NotMoved("dirty", f"a {busy} is in progress")
    with _index_locked(place, way):
        head = git("symbolic-ref", "--quiet", "HEAD").text
        if head != way.ref:
            if strict:
                raise NotMoved("moved", f"HEAD is on {head.removeprefix('refs/heads/') or 'no branch'} now")
            _move_aside(git, place, way)
            return
        copy = _copied(place)
        env = {"GIT_INDEX_FILE": str(copy)}
        git("update-index", "-q", "--refresh", "--ignore-submodules", env=env)
        if strict and (dirty := Status(git, env).dirty):
            raise NotMoved("dirty", f"uncommitted changes: {', '.join(some(dirty, 5))}")
        with _Locked(git, place, way) as branch:
            done = git("read-tree", "-m", "-u", way.source, way.target, env=env)
            if not done.ok:
                give_back(git, place, way, way.source)
                raise NotMoved(_refusal(done), done.words)
            try:
                _sync_files(git.path)
            except OSError as error:
                give_back(git, place, way, way.source)
                raise NotMoved("disk", f"the work tree could not be synced: {error.strerror}") from None
            try:
                branch.commit()
            except NotMoved:
                if git.commit(way.ref) != way.target:
                    give_back(git, place, way, way.source)
                    raise
            copy.replace(place.git_dir / "index")


def _sync_files(path: str) -> None:
    """What git has written into a work tree, which it never syncs, is on the disk before a branch says that it is.
    OSError if the disk says no."""
    if sys.platform != "linux":
        os.sync()
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(descriptor)


def _move_aside(git: Git, place: Place, way: Way) -> None:
    """The branch alone: nobody's work tree is on it."""
    listed = git("worktree", "list", "--porcelain", "-z")
    if f"branch {way.ref}".encode() in listed.out.split(b"\0"):
        raise NotMoved("moved", f"branch {way.branch} is checked out in another work tree")
    with _Locked(git, place, way) as branch:
        branch.commit()


def _refusal(done: Done) -> str:
    if "would be overwritten" in done.err or "would be removed" in done.err or "would lose" in done.err:
        return "obstructed"
    if "not uptodate" in done.err:
        return "dirty"
    return "disk" if no_room(done) else "unknown"


class _Locked:
    """The branch locked at `way.source`; NotMoved if it is not there. `commit` moves it; else the lock is given up."""

    def __init__(self, git: Git, place: Place, way: Way) -> None:
        self._git, self._place, self._way = git, place, way
        self._prepared = False

    def __enter__(self) -> _Locked:
        way = self._way
        message = f"hermes: {way.source[:12]} to {way.target[:12]} ({way.mark})"
        self._process = self._git.converse("update-ref", "-m", message, "--stdin")
        orders = f"start\nupdate {way.ref} {way.target} {way.source}\nprepare\n"
        if not self._say(orders, b"prepare: ok\n"):
            words = self._end()
            at = self._git.commit(way.ref)
            if at is not None and at != way.source:
                raise NotMoved("moved", f"branch {way.branch} is at {at[:12]} now, and not at {way.source[:12]}")
            raise NotMoved("locked" if "lock" in words else "unknown", words or "git update-ref ended")
        self._prepared = True
        return self

    def commit(self) -> None:
        if not self._say("commit\n", b"commit: ok\n"):
            raise NotMoved("unknown", self._end() or "git update-ref could not move the branch")

    def __exit__(self, *error: object) -> None:
        self._end()

    def _say(self, orders: str, until: bytes) -> bool:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(orders.encode())
            stdin.flush()
        except OSError:
            return False
        heard, ends = b"", time.monotonic() + min(60.0, self._git.left_s())
        while not heard.endswith(until):
            ready = select.select([stdout], [], [], max(0.0, ends - time.monotonic()))[0]
            more = os.read(stdout.fileno(), 4096) if ready else b""
            if not more:
                return False
            heard += more
        return True

    def _end(self) -> str:
        """It gives up what it has not committed, and takes its locks away."""
        words = ""
        if self._process.returncode is None:
            try:
                _, err = self._process.communicate(timeout=10)
            except (subprocess.TimeoutExpired, ValueError):
                self._process.terminate()
                _, err = self._process.communicate()
            words = said((err or b"").decode("utf-8", "replace"))
        if self._prepared and self._process.returncode < 0:
            self._prepared = False
            self._free()
        return words

    def _free(self) -> None:
        """A git that is killed leaves the locks that it has taken for us, and by what they hold they are known."""
        ours = {self._place.common / f"{self._way.ref}.lock": self._way.target, self._place.git_dir / "HEAD.lock": ""}
        for lock, holds in ours.items():
            with contextlib.suppress(OSError):
                if lock.read_text().strip() == holds:
                    lock.unlink()


@contextlib.contextmanager
def _index_locked(place: Place, way: Way) -> Iterator[None]:
    lock = place.git_dir / "index.lock"
    about = {"holder": "hermesd", "mark": way.mark, "branch": way.branch, "from": way.source, "to": way.target}
    try:
        descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise NotMoved("locked", f"{lock} is there: somebody works in this repository") from None
    except OSError as error:
        raise NotMoved("disk" if error.errno == 28 else "unknown", f"{lock}: {error.strerror}") from None
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(about) + "\n")
            file.flush()
            os.fsync(file.fileno())
        yield
    except Unusable:
        raise  # It is not known how far it came: the lock stays, and `recover` puts it right.
    except BaseException:
        _unlock(place)
        raise
    _unlock(place)


def _unlock(place: Place) -> None:
    for name in (_COPY, f"{_COPY}.lock", "index.lock"):
        (place.git_dir / name).unlink(missing_ok=True)


def _copied(place: Place) -> Path:
    copy = place.git_dir / _COPY
    (place.git_dir / f"{_COPY}.lock").unlink(missing_ok=True)  # Ours: `index.lock` is held.
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(place.git_dir / "index", copy)
    return copy


def ours(place: Place, mark: str) -> Way | None:
    """The move that a killed step of this run has left half done."""
    try:
        with open(place.git_dir / "index.lock", "rb") as file:
            told = json.loads(file.read(4096))
        found = Way(told["branch"], told["from"], told["to"], told["mark"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if told.get("holder") == "hermesd" and found.mark == mark else None


def recover(git: Git, place: Place, mark: str) -> list[str]:
    """Put away what a killed step of this run has left. Files that are somebody's work by now are named, and left."""
    way = ours(place, mark)
    if way is None:
        return []
    locked_at = (place.git_dir / "index.lock").stat().st_mtime_ns
    ref_lock = place.common / f"{way.ref}.lock"
    with contextlib.suppress(OSError):
        if ref_lock.read_text().strip() in ("", way.source, way.target) and ref_lock.stat().st_mtime_ns >= locked_at:
            ref_lock.unlink()
    head_lock = place.git_dir / "HEAD.lock"
    with contextlib.suppress(OSError):
        if head_lock.stat().st_size == 0 and head_lock.stat().st_mtime_ns >= locked_at:
            head_lock.unlink()
    left: list[str] = []
    at = git.commit(way.ref)
    head = git("symbolic-ref", "--quiet", "HEAD").text
    if at in (way.source, way.target) and head == way.ref:
        left = give_back(git, place, way, at)
    _unlock(place)
    return left


class _Entry(NamedTuple):
    path: bytes
    mode: str  # "000000": it is not in that commit
    oid: str


def give_back(git: Git, place: Place, way: Way, target: str) -> list[str]:
    """Bring the files that differ between the two commits, and the index, to `target`, one of the two. Only while
    `index.lock` is held."""
    other = way.target if target == way.source else way.source
    wanted, before = _differences(git, other, target)
    root = os.fsencode(git.path)
    same = _same(git, root, wanted)
    was = _same(git, root, before)
    restore, remove, theirs = [], [], []
    for want, old in zip(wanted, before, strict=True):
        if _MODULE in (want.mode, old.mode) or want.path in same:
            continue
        path = os.path.join(root, want.path)
        if not _reachable(root, want.path) or (
            want.path not in was and os.path.lexists(path) and not _beginning(git, path, (want, old))
        ):
            theirs.append(want.path)
        elif want.mode == "000000":
            remove.append(want.path)
        else:
            restore.append(want.path)
    for path in remove:
        _remove(root, path)
    theirs += [path for path in restore if os.path.isdir(os.path.join(root, path)) and not _emptied(root, path)]
    copy = _copied(place)
    env = {"GIT_INDEX_FILE": str(copy)}
    done = git("read-tree", "-i", "-m", other, target, env=env)
    if done.ok:
        paths = b"".join(path + b"\0" for path in restore if path not in theirs)
        done = git("checkout-index", "-f", "-q", "-u", "-z", "--stdin", stdin=paths, env=env)
        git("update-index", "-q", "--refresh", "--ignore-submodules", env=env)
        with contextlib.suppress(OSError):  # It is as it was as far as can be; the next look says so.
            _sync_files(git.path)
        copy.replace(place.git_dir / "index")
    if done.code < 0:
        raise Unusable("lost", f"git {done.words}")
    return some(theirs, 5)


def _differences(git: Git, source: str, target: str) -> tuple[list[_Entry], list[_Entry]]:
    """Of each path that differs, what it is in `target` and what in `source`."""
    done = git("diff-tree", "-r", "-z", "--no-renames", "--raw", "--no-abbrev", source, target)
    if not done.ok:
        raise Unusable("corrupt", done.words)
    parts = done.out.split(b"\0")
    wanted, before = [], []
    for about, path in zip(parts[::2], parts[1::2], strict=False):
        old_mode, new_mode, old, new, _ = about.decode().lstrip(":").split(" ")
        wanted.append(_Entry(path, new_mode, new))
        before.append(_Entry(path, old_mode, old))
    return wanted, before


def _reachable(root: bytes, path: bytes) -> bool:
    """No folder on the way is a link that leads elsewhere."""
    here = root
    for part in path.split(b"/")[:-1]:
        here = os.path.join(here, part)
        if os.path.islink(here):
            return False
    return True


def _same(git: Git, root: bytes, entries: Iterable[_Entry]) -> set[bytes]:
    """Of these the paths at which the work tree holds just that."""
    found, files = set(), []
    for entry in entries:
        path = os.path.join(root, entry.path)
        try:
            mode = os.lstat(path).st_mode if _reachable(root, entry.path) else None
        except (FileNotFoundError, NotADirectoryError):
            mode = None
        if mode is None:
            if entry.mode == "000000":
                found.add(entry.path)
        elif entry.mode == _LINK:
            if stat.S_ISLNK(mode) and _blob(os.readlink(path), entry.oid) == entry.oid:
                found.add(entry.path)
        elif stat.S_ISREG(mode) and entry.mode != "000000" and bool(mode & 0o100) == (entry.mode == "100755"):
            files.append(entry)
    asked = b"".join(_quoted(entry.path) + b"\n" for entry in files)
    done = git("hash-object", "--stdin-paths", stdin=asked) if files else None
    for entry, oid in zip(files, done.text.split() if done is not None else (), strict=False):
        if oid == entry.oid:
            found.add(entry.path)
    return found


def _quoted(path: bytes) -> bytes:
    """A name on one line, as git reads it."""
    plain = b"".join(b"\\%03o" % byte if byte < 32 or byte in b'"\\' or byte > 126 else bytes([byte]) for byte in path)
    return b'"' + plain + b'"'


def _blob(content: bytes, like: str) -> str:
    digest = sha1 if len(like) == 40 else sha256
    return digest(b"blob %d\0" % len(content) + content).hexdigest()


def _beginning(git: Git, path: bytes, entries: Iterable[_Entry]) -> bool:
    """What a write that was cut off leaves: the beginning of one of the two contents, or one of them under a mode that
    was not set yet."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode) or os.path.getsize(path) > OUTPUT_BYTES_MAX:
            return False
        with open(path, "rb") as file:
            there = file.read()
    except OSError:
        return False
    for entry in entries:
        if entry.mode not in ("000000", _LINK, _MODULE):
            name = os.fsdecode(entry.path)
            done = git("cat-file", "--filters", f"--path={name}", entry.oid)
            if done.ok and done.out.startswith(there):
                return True
    return False


def _remove(root: bytes, path: bytes) -> None:
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(root, path))
    folder = os.path.dirname(path)
    while folder:
        try:
            os.rmdir(os.path.join(root, folder))
        except OSError:
            return
        folder = os.path.dirname(folder)


def _emptied(root: bytes, path: bytes) -> bool:
    try:
        os.rmdir(os.path.join(root, path))
    except OSError:
        return False
    return True
