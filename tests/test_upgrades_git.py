"""The git door on real repositories: what it finds, what it changes, and all that it leaves alone."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import random
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_shell import ROOT
from repositories import Pair, Repo, assert_sound, clone, left_behind, new, pair, work_of
from test_ledger_syscalls import strace_works

from daemon.upgrades import git as git_module
from daemon.upgrades import move as move_module
from daemon.upgrades import steps
from policies.upgrade.facts import Probe, Step
from state.shape import shape_of


@pytest.fixture(autouse=True)
def nobodys_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def lib(tmp_path: Path) -> Pair:
    return pair(tmp_path)


def probe(repo: Repo, remotes: dict[str, Any], **more: Any) -> dict[str, Any]:
    told = {
        "key": "lib", "branch": "main", "strategy": "fast-forward", "known": {}, "timeout_s": 60.0,
        "remote_timeout_s": 20.0, "runs": str(repo.path.parent / "runs"), **more,
    }  # fmt: skip
    found = steps.probe(path=str(repo.path), remotes={role: str(url) for role, url in remotes.items()}, **told)
    assert shape_of(Probe, closed=True)(found) is None
    return found


def told(lib: Pair, new_commit: str, **more: Any) -> dict[str, Any]:
    folder = lib.mine.path.parent
    return {
        "path": str(lib.mine.path), "branch": "main", "old": lib.mine.head, "new": new_commit, "mark": "r",
        "worktree": str(folder / "runs" / "r" / "1" / "worktree"), "timeout_s": 60.0,
        "address": str(lib.remote.path), **more,
    }  # fmt: skip


def step(name: str, work: dict[str, Any]) -> dict[str, Any]:
    found = getattr(steps, name)(**work)
    assert shape_of(Step, closed=True)(found) is None
    return found


# What is found.


def test_a_repository_that_is_behind(lib: Pair) -> None:
    person = work_of(lib.mine)
    ahead = lib.ahead(a__txt="changed\n", new__txt="new\n")
    found = probe(lib.mine, {"primary": lib.remote.path})
    assert (found["ok"], found["base"], found["candidate"], found["behind"]) == (True, lib.mine.head, ahead, 1)
    assert found["change"]["files"] == ["a.txt", "new.txt"]
    assert (found["change"]["insertions"], found["change"]["deletions"], found["change"]["bytes"]) == (2, 1, 12)
    assert found["remotes"]["primary"]["contains_base"]
    assert_sound(lib.mine, person)


def _dirty(lib: Pair) -> None:
    lib.mine.write("a.txt", "mine\n")
    lib.mine.write("notes.txt")


def _detached(lib: Pair) -> None:
    lib.mine.git("checkout", "--quiet", "--detach")


def _unborn(lib: Pair) -> None:
    lib.mine.git("checkout", "--quiet", "--orphan", "fresh")


def _merging(lib: Pair) -> None:
    lib.mine.git("checkout", "--quiet", "-b", "side")
    lib.mine.commit(a__txt="side\n")
    lib.mine.git("checkout", "--quiet", "main")
    lib.mine.commit(a__txt="main\n")
    lib.mine.git("merge", "side", code=1)


def _rebasing(lib: Pair) -> None:
    _merging(lib)
    lib.mine.git("merge", "--abort")
    lib.mine.git("rebase", "side", code=1)


def _picking(lib: Pair) -> None:
    _merging(lib)
    lib.mine.git("merge", "--abort")
    lib.mine.git("cherry-pick", "side", code=1)


def _bisecting(lib: Pair) -> None:
    lib.mine.git("bisect", "start")


def _stashed(lib: Pair) -> None:
    lib.mine.write("a.txt", "mine\n")
    lib.mine.git("stash")


def _locked(lib: Pair) -> None:
    (lib.mine.git_dir / "index.lock").touch()


def _elsewhere(lib: Pair) -> None:
    lib.mine.git("checkout", "--quiet", "-b", "feature")


@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        (_dirty, {"dirty": ["a.txt"], "dirty_count": 1, "untracked_count": 1}),
        (_detached, {"detached": True, "branch": ""}),
        (_unborn, {"unborn": True, "head": None, "branch": "fresh"}),
        (_merging, {"in_progress": "merge"}),
        (_rebasing, {"in_progress": "rebase", "detached": True}),
        (_picking, {"in_progress": "cherry-pick"}),
        (_bisecting, {"in_progress": "bisect"}),
        (_stashed, {"stashes": 1, "dirty_count": 0}),
        (_locked, {"locks": ["index.lock"]}),
        (_elsewhere, {"branch": "feature", "wanted": "main"}),
    ],
)
def test_what_a_person_is_in_the_middle_of(
    lib: Pair, situation: Callable[[Pair], None], expected: dict[str, Any]
) -> None:
    situation(lib)
    lib.ahead(b__txt="theirs\n")
    before = work_of(lib.mine) if situation is not _unborn else None
    found = probe(lib.mine, {"primary": lib.remote.path})
    assert {name: found[name] for name in expected} == expected
    assert before is None or work_of(lib.mine) == before


def test_a_path_that_is_no_repository_says_what_it_is(lib: Pair, tmp_path: Path) -> None:
    inside = Repo(lib.mine.path / "deep")
    inside.path.mkdir()
    empty, file = Repo(tmp_path / "empty"), Repo(tmp_path / "file")
    empty.path.mkdir()
    file.path.write_text("x")
    kinds = {
        repo.path.name: probe(repo, {"primary": lib.remote.path})["problem"]["class"]
        for repo in (inside, empty, file, Repo(tmp_path / "gone"), Repo(lib.mine.path / ".git"))
    }
    assert kinds == {
        "deep": "not-a-repository", "empty": "not-a-repository", "file": "not-a-repository", "gone": "missing",
        ".git": "not-a-repository",
    }  # fmt: skip


def test_a_bare_and_a_shallow_repository(lib: Pair, tmp_path: Path) -> None:
    lib.upstream.commit(a__txt="2\n")
    lib.ahead(a__txt="3\n")
    shallow = clone(Repo(Path(f"{lib.remote.path}")), tmp_path / "shallow", "--no-local", "--depth=1")
    ahead = lib.ahead(a__txt="4\n")
    found = probe(shallow, {"primary": f"file://{lib.remote.path}"})
    assert (found["shallow"], found["candidate"], found["behind"]) == (True, ahead, 1)
    assert_sound(shallow)
    assert probe(lib.remote, {"primary": lib.upstream.path})["bare"]


def test_submodules_are_counted_and_never_entered(lib: Pair, tmp_path: Path) -> None:
    other = pair(tmp_path, "other")
    words = ("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other.remote.path), "sub")
    lib.upstream.git(*words)
    ahead = lib.ahead()
    found = probe(lib.mine, {"primary": lib.remote.path})
    assert (found["change"]["submodules"], found["submodules"]) == (True, 0)
    work = told(lib, ahead)
    assert [step(name, work)["at"] for name in ("fetch", "apply", "clean")] == ["old", "new", "new"]
    assert probe(lib.mine, {"primary": lib.remote.path})["submodules"] == 1
    assert not list((lib.mine.path / "sub").iterdir())
    assert_sound(lib.mine)


def test_damage_is_found(lib: Pair) -> None:
    blob = lib.mine.at("HEAD:a.txt")
    loose = lib.mine.git_dir / "objects" / blob[:2] / blob[2:]
    if not loose.exists():  # git clone of a folder links or copies packs
        lib.mine.git("unpack-objects", code=None)
    loose.unlink(missing_ok=True)
    found = probe(lib.mine, {"primary": lib.remote.path})
    assert not found["fsck_ok"]
    assert "missing" in found["fsck_words"]


def test_what_a_fetch_that_was_cut_off_has_left_is_no_damage(lib: Pair) -> None:
    lib.mine.git("mktree", "--missing", stdin=f"100644 blob {'1' * 40}\tgone.txt\n")
    assert lib.mine.git("fsck", "--connectivity-only", code=None)
    assert probe(lib.mine, {"primary": lib.remote.path})["fsck_ok"]


def test_a_git_that_is_killed_has_said_nothing(lib: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    work = told(lib, lib.ahead(a__txt="theirs\n"))
    step("fetch", work)
    run = git_module.run
    for victim in ("fsck", "status", "rev-list", "merge-base", "rev-parse"):

        def killed(argv: Any, *given: Any, victim: str = victim) -> git_module.Done:
            return git_module.Done(-9, b"", "") if victim in argv else run(argv, *given)

        monkeypatch.setattr(git_module, "run", killed)
        found = probe(lib.mine, {"primary": lib.remote.path})
        assert not found["ok"] or victim == "merge-base"
        assert found["ok"] or found["problem"]["class"] in ("lost", "unknown")
        for name in ("apply", "inspect", "rollback"):
            assert step(name, work)["at"] in ("unknown", "old", "new")
        monkeypatch.setattr(git_module, "run", run)
        assert step("inspect", work)["clean"]
        assert step("rollback", work)["at"] == "old"
    step("clean", work)
    assert_sound(lib.mine)


# Remotes.


def test_why_a_remote_cannot_be_used(lib: Pair, tmp_path: Path) -> None:
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    nothing = new(tmp_path / "nothing.git", bare=True)
    found = probe(
        lib.mine,
        {
            "primary": f"http://127.0.0.1:{port}/lib.git", "origin": tmp_path / "gone.git", "mirror": nothing.path,
            "cache": "http://nowhere.invalid/lib.git", "fallback": lib.remote.path,
        },
    )  # fmt: skip
    failures = {role: remote["failure"] for role, remote in found["remotes"].items()}
    assert failures == {
        "primary": "refused", "origin": "not-found", "mirror": "not-found", "cache": "dns", "fallback": "",
    }  # fmt: skip
    assert (found["role"], found["candidate"]) == ("fallback", lib.mine.head)
    assert_sound(lib.mine)


@pytest.mark.parametrize(
    ("words", "failure"),
    [
        ("fatal: Authentication failed for 'https://example.org/x.git/'", "auth"),
        ("git@example.org: Permission denied (publickey).", "auth"),
        ("fatal: could not read Username for 'https://x': terminal prompts disabled", "auth"),
        ("fatal: unable to access 'https://x/': server certificate verification failed. CAfile: none", "tls"),
        ("Host key verification failed.\nfatal: Could not read from remote repository.", "tls"),
        ("fatal: unable to access 'https://x/': The requested URL returned error: 429", "rate-limited"),
        ("fatal: unable to access 'https://x/': The requested URL returned error: 403", "auth"),
        ("fatal: repository 'https://x/' not found", "not-found"),
        ("fatal: unable to access 'https://x/': Could not resolve host: x", "dns"),
        ("ssh: connect to host x port 22: Connection refused", "refused"),
        ("fatal: unable to access 'https://x/': Operation too slow. Less than 1000 bytes/sec", "timeout"),
        ("error: inflate: data stream error (incorrect header check)", "corrupt"),
        ("fatal: the cat has eaten it", "unknown"),
    ],
)
def test_what_git_says_is_classified(words: str, failure: str) -> None:
    assert git_module.failure_of(git_module.Done(128, b"", words)) == failure


class Server(threading.Thread):
    """A remote that answers every connection in one way."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.answer = answer
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/lib.git"
        self.start()

    def run(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            self.answer(peer)


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[socket.socket], None]], Server]]:
    servers: list[Server] = []

    def start(answer: Callable[[socket.socket], None]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.listener.close()


def test_a_remote_that_hangs_is_given_up_in_time(lib: Pair, serve: Callable[..., Server]) -> None:
    kept: list[socket.socket] = []
    server = serve(kept.append)
    began = time.monotonic()
    found = probe(lib.mine, {"primary": server.url, "mirror": lib.remote.path}, remote_timeout_s=1.0)
    assert time.monotonic() - began < 20
    assert found["remotes"]["primary"]["failure"] == "timeout"
    assert found["role"] == "mirror"
    assert_sound(lib.mine)


@pytest.mark.parametrize(
    ("status", "failure"), [("401 Unauthorized\r\nWWW-Authenticate: Basic realm=x", "auth"), ("429 No", "rate-limited")]
)
def test_a_remote_that_asks_for_a_password_gets_none(
    lib: Pair, serve: Callable[..., Server], status: str, failure: str
) -> None:
    def answer(peer: socket.socket) -> None:
        peer.recv(65536)
        peer.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        peer.close()

    found = probe(lib.mine, {"primary": serve(answer).url.replace("//", "//someone@")})
    remote = found["remotes"]["primary"]
    assert remote["failure"] == failure
    assert "someone" not in str(remote)


def test_a_remote_that_is_no_git_server_at_all(lib: Pair, serve: Callable[..., Server]) -> None:
    def answer(peer: socket.socket) -> None:
        peer.recv(65536)
        peer.sendall(b"\x16\x03garbage\r\n\r\n")
        peer.close()

    server = serve(answer)
    found = probe(lib.mine, {"primary": server.url, "mirror": server.url.replace("http:", "https:")})
    assert found["remotes"]["primary"]["failure"]
    assert found["remotes"]["mirror"]["failure"] == "tls"


def test_a_remote_whose_certificate_nobody_has_signed_is_not_believed(lib: Pair, serve: Callable[..., Server]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(__file__).parent / "data" / "untrusted.pem")
    said: list[bytes] = []

    def answer(peer: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(peer, server_side=True) as safe:
            said.append(safe.recv(65536))

    found = probe(lib.mine, {"primary": serve(answer).url.replace("http:", "https:"), "mirror": lib.remote.path})
    remote = found["remotes"]["primary"]
    assert remote["failure"] == "tls"
    assert "certificate" in remote["words"]
    assert not any(said)
    assert found["role"] == "mirror"


def test_a_rewritten_history_is_told_from_a_step_ahead(lib: Pair) -> None:
    first = lib.mine.head
    second = lib.ahead(a__txt="2\n")
    lib.mine.git("pull", "--quiet", "--ff-only")
    lib.upstream.git("reset", "--quiet", "--hard", first)
    third = lib.upstream.commit(a__txt="other\n")
    lib.upstream.git("push", "--quiet", "--force", "origin", "HEAD:main")
    found = probe(lib.mine, {"primary": lib.remote.path}, known={"primary": second})
    assert found["remotes"]["primary"]["failure"] == "rewritten-history"
    assert (found["role"], found["candidate"]) == ("", None)
    work = told(lib, second)
    assert step("fetch", work)["problem"] == "rewritten-history"
    lib.mine.git("reset", "--quiet", "--hard", third, code=None)
    step("clean", work)
    assert_sound(lib.mine)


def test_a_remote_that_promises_what_it_has_not(lib: Pair) -> None:
    (lib.remote.path / "refs" / "heads" / "main").write_text("1" * 40 + "\n")
    (lib.remote.path / "packed-refs").unlink(missing_ok=True)
    found = probe(lib.mine, {"primary": lib.remote.path})
    assert found["remotes"]["primary"]["failure"]
    assert_sound(lib.mine)


def test_a_mirror_that_lags_does_not_contain_the_branch(lib: Pair, tmp_path: Path) -> None:
    mirror = clone(lib.remote, tmp_path / "mirror.git", "--mirror")
    lib.ahead(a__txt="2\n")
    lib.mine.git("pull", "--quiet", "--ff-only")
    found = probe(lib.mine, {"primary": lib.remote.path, "mirror": mirror.path})
    assert found["remotes"]["primary"]["contains_base"]
    assert not found["remotes"]["mirror"]["contains_base"]


def test_the_newest_tag_that_fits(lib: Pair) -> None:
    for number in ("v1.9", "v1.10", "v2.0"):
        lib.upstream.commit(a__txt=number)
        lib.upstream.git("tag", "--annotate", "-m", number, number)
    lib.upstream.git("push", "--quiet", "origin", "--tags")
    found = probe(lib.mine, {"primary": lib.remote.path}, strategy="tag:v1.*")
    assert found["remotes"]["primary"]["tag"] == "v1.10"
    assert found["candidate"] == lib.upstream.at("v1.10^{}")
    work = told(lib, found["candidate"], strategy="tag:v1.*")
    assert [step(name, work)["at"] for name in ("fetch", "apply", "clean")] == ["old", "new", "new"]
    assert not lib.mine.git("tag")
    assert_sound(lib.mine)


class Folder(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize("name", ["v9:refs/heads/feature", "v9:refs/heads/new", "v*"])
def test_a_tag_whose_name_is_an_order_to_git_writes_no_ref(lib: Pair, name: str) -> None:
    lib.mine.git("branch", "feature")
    before = lib.mine.git("for-each-ref")
    lib.upstream.commit(a__txt="theirs\n")
    lib.upstream.git("tag", "v9")
    lib.upstream.git("push", "--quiet", "origin", "v9")
    lib.remote.git("update-server-info")
    with (lib.remote.path / "info" / "refs").open("a") as refs:  # What any server may say of itself.
        refs.write(f"{lib.upstream.head}\trefs/tags/{name}\n")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Folder, directory=str(lib.remote.path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with server:
        told = {"failure": "refused"}
        while told["failure"] == "refused":  # On a machine that is very busy a connection may be reset.
            found = probe(lib.mine, {"primary": f"http://127.0.0.1:{server.server_port}/"}, strategy="tag:v*")
            told = found["remotes"]["primary"]
        server.shutdown()
    assert lib.mine.git("for-each-ref") == before
    assert told["failure"] == "corrupt", (told["failure"], told["words"])


def test_an_address_cannot_make_git_run_a_program(lib: Pair, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    for address in (f"ext::sh -c touch% {witness}", f"--upload-pack=touch {witness}", "-oProxyCommand=x:y"):
        assert probe(lib.mine, {"primary": address})["remotes"]["primary"]["failure"]
    lib.mine.git("config", "core.fsmonitor", f"touch {witness}")
    lib.mine.git("config", "core.pager", f"touch {witness}")
    lib.mine.git("config", "remote.origin.uploadpack", f"touch {witness}; git-upload-pack")
    assert probe(lib.mine, {"primary": "origin"})["ok"]
    assert not witness.exists()


# What is changed.


def test_there_and_back_again(lib: Pair) -> None:
    lib.mine.write("notes.txt")
    lib.mine.git("branch", "feature")
    lib.mine.write("a.txt", "stashed\n")
    lib.mine.git("stash")
    person, old = work_of(lib.mine), lib.mine.head
    ahead = lib.ahead(a__txt="changed\n", b__txt=None, **{"deep/c__txt": "c\n"})
    work = told(lib, ahead)
    fetched = step("fetch", work | {"checkout": True})
    assert (fetched["at"], fetched["worktree"]) == ("old", True)
    assert (Path(work["worktree"]) / "deep" / "c.txt").read_text() == "c\n"
    for name, at in (("apply", "new"), ("apply", "new"), ("rollback", "old"), ("rollback", "old"), ("apply", "new")):
        found = step(name, work)
        assert (found["ok"], found["at"], found["clean"]) == (True, at, True), found
        assert lib.mine.head == (ahead if at == "new" else old)
        assert (lib.mine.path / "b.txt").exists() == (at == "old")
        assert (lib.mine.path / "deep").exists() == (at == "new")
    assert not step("clean", work)["worktree"]
    assert_sound(lib.mine, person)


def test_a_power_cut_finds_objects_files_and_branch_on_the_disk_in_this_order(lib: Pair, tmp_path: Path) -> None:
    """Git syncs neither single objects nor branches nor files of its own accord, and would leave them empty."""
    if why := strace_works():
        pytest.skip(why)
    ahead = lib.ahead(a__txt="changed\n")
    work, calls = told(lib, ahead), []
    for name in ("fetch", "apply"):
        program = f"import json, sys; from daemon.upgrades import steps; steps.{name}(**json.loads(sys.argv[1]))"
        trace = tmp_path / f"{name}.trace"
        subprocess.run(
            ["strace", "-f", "-y", "-o", trace, "-e", "trace=syncfs,fsync,rename,link", sys.executable, "-c", program,
             json.dumps(work)], cwd=ROOT, check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        calls += trace.read_text().splitlines()

    def nth(pattern: str) -> int:
        found = [place for place, call in enumerate(calls) if re.search(pattern, call)]
        assert found, pattern
        return found[0]

    objects = [place for place, call in enumerate(calls) if re.search(r"fsync\(\d+<[^>]*/objects/", call)]
    branch, named = nth(r"fsync\(\d+<[^>]*/refs/heads/main\.lock>"), nth(r'rename\(".*refs/heads/main\.lock"')
    assert len(objects) >= 3, "a commit, a tree and a file"
    assert max(objects) < nth(r"syncfs\(") < named
    assert branch < named


def test_hooks_are_not_run_unless_allowed(lib: Pair, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    for name in ("post-checkout", "post-merge", "reference-transaction", "pre-rebase", "post-index-change"):
        hook = lib.mine.git_dir / "hooks" / name
        hook.write_text(f"#!/bin/sh\necho {name} >>'{witness}'\n")
        hook.chmod(0o755)
    work = told(lib, lib.ahead(a__txt="changed\n"))
    for name in ("fetch", "apply", "rollback", "clean"):
        assert step(name, work)["ok"]
    assert not witness.exists()
    assert step("apply", work | {"hooks": True})["ok"]
    assert "post-merge" in witness.read_text()


def test_uncommitted_work_is_never_touched(lib: Pair) -> None:
    work = told(lib, lib.ahead(a__txt="theirs\n", new__txt="theirs\n"))
    step("fetch", work)
    lib.mine.write("b.txt", "mine\n")
    person = work_of(lib.mine)
    found = step("apply", work)
    assert (found["problem"], found["at"]) == ("dirty", "old")
    assert "b.txt" in found["words"]
    assert work_of(lib.mine) == person
    lib.mine.git("checkout", "b.txt")
    lib.mine.write("new.txt", "mine\n")
    found = step("apply", work)
    assert (found["problem"], found["at"]) == ("obstructed", "old")
    assert (lib.mine.path / "new.txt").read_text() == "mine\n"
    step("clean", work)
    assert_sound(lib.mine)


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_work_that_a_person_has_hidden_from_git_is_not_touched_either(lib: Pair, flag: str) -> None:
    work = told(lib, lib.ahead(a__txt="theirs\n"))
    step("fetch", work)
    lib.mine.git("update-index", flag, "a.txt")
    lib.mine.write("a.txt", "mine\n")
    assert step("apply", work)["at"] == "old"
    assert (lib.mine.path / "a.txt").read_text() == "mine\n"
    step("clean", work)
    assert_sound(lib.mine)


def test_a_commit_in_the_middle_makes_it_fail_and_not_vanish(lib: Pair) -> None:
    work = told(lib, lib.ahead(a__txt="theirs\n"))
    step("fetch", work)
    mine = lib.mine.commit(b__txt="mine\n")
    found = step("apply", work)
    assert (found["problem"], found["at"], found["commit"]) == ("moved", "elsewhere", mine)
    step("clean", work)
    assert lib.mine.head == mine
    assert_sound(lib.mine)


def test_a_rollback_that_meets_a_new_commit_leaves_it(lib: Pair) -> None:
    work = told(lib, lib.ahead(a__txt="theirs\n"))
    step("fetch", work), step("apply", work)
    mine = lib.mine.commit(b__txt="mine\n")
    found = step("rollback", work)
    assert (found["ok"], found["at"], found["problem"]) == (False, "elsewhere", "moved")
    step("clean", work)
    assert lib.mine.head == mine
    assert_sound(lib.mine)


def test_a_rollback_whose_git_is_killed_is_made_once_more(lib: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    work = told(lib, lib.ahead(a__txt="theirs\n"))
    step("fetch", work), step("apply", work)
    commit, killed = move_module._Locked.commit, []

    def dying(locked: move_module._Locked) -> None:
        if not killed:
            killed.append(locked._process.pid)
            locked._process.kill()
            locked._process.wait()
        commit(locked)

    monkeypatch.setattr(move_module._Locked, "commit", dying)
    found = step("rollback", work)
    assert (found["ok"], found["at"], found["clean"], len(killed)) == (True, "old", True, 1)
    killed.clear()
    found = step("apply", work)  # which is not tried again, and leaves nothing that would keep a person out
    assert (found["ok"], found["at"], found["clean"]) == (False, "old", True)
    lib.mine.git("commit", "--allow-empty", "-m", "mine")
    step("clean", work)
    assert_sound(lib.mine)


def test_a_rollback_keeps_work_that_is_not_in_its_way(lib: Pair) -> None:
    work = told(lib, lib.ahead(a__txt="theirs\n"))
    step("fetch", work), step("apply", work)
    lib.mine.write("b.txt", "mine\n")
    found = step("rollback", work)
    assert (found["ok"], found["at"]) == (True, "old")
    assert (lib.mine.path / "b.txt").read_text() == "mine\n"
    assert (lib.mine.path / "a.txt").read_text() == "one\n"
    lib.mine.git("checkout", "--", "b.txt")
    step("apply", work)
    lib.mine.write("a.txt", "mine, too\n")
    found = step("rollback", work)
    assert (found["problem"], found["at"]) == ("dirty", "new")
    assert (lib.mine.path / "a.txt").read_text() == "mine, too\n"
    step("clean", work)
    assert_sound(lib.mine)


def test_somebody_elses_lock_is_theirs(lib: Pair) -> None:
    work = told(lib, lib.ahead(a__txt="theirs\n"))
    step("fetch", work)
    lock = lib.mine.git_dir / "index.lock"
    of_another_run = {"holder": "hermesd", "mark": "other", "branch": "main", "from": work["old"], "to": work["new"]}
    for content in ("", json.dumps(of_another_run)):
        lock.write_text(content)
        for name in ("apply", "inspect", "clean"):
            step(name, work)
            assert lock.read_text() == content
    lock.unlink()
    ref = lib.mine.git_dir / "refs" / "heads" / "main.lock"
    ref.touch()
    assert step("apply", work)["problem"] == "locked"
    assert ref.exists()
    ref.unlink()
    assert_sound(lib.mine)


def test_without_its_lease_nothing_is_changed(lib: Pair, tmp_path: Path) -> None:
    work = told(lib, lib.ahead(a__txt="theirs\n"))
    step("fetch", work)
    file = tmp_path / "lease.json"
    lease = {"key": "repo:lib", "file": str(file), "holder": "r", "token": 7}
    for content in (
        "",
        '{"holder": "r", "token": 8, "foreign": false}',
        '{"holder": "x", "token": 7, "foreign": true}',
    ):
        file.write_text(content)
        assert step("apply", work | {"lease": lease})["problem"] == "lease"
    file.write_text('{"holder": "r", "token": 7, "foreign": false}')
    assert step("apply", work | {"lease": lease})["at"] == "new"


def test_a_branch_that_is_not_checked_out_is_moved_back_alone(lib: Pair) -> None:
    work = told(lib, lib.ahead(a__txt="theirs\n"))
    step("fetch", work), step("apply", work)
    lib.mine.git("checkout", "--quiet", "-b", "feature")
    found = step("rollback", work)
    assert (found["ok"], found["at"]) == (True, "old")
    assert (lib.mine.path / "a.txt").read_text() == "theirs\n"
    step("clean", work)
    assert_sound(lib.mine)


def test_own_commits_are_put_on_top(lib: Pair) -> None:
    mine = lib.mine.commit(mine__txt="mine\n")
    ahead = lib.ahead(a__txt="theirs\n")
    work = told(lib, ahead, strategy="rebase")
    found = step("fetch", work)
    assert lib.mine.head == mine
    assert lib.mine.at(f"{found['candidate']}^") == ahead
    moved = work | {"new": found["candidate"]}
    assert step("apply", moved)["at"] == "new"
    assert lib.mine.git("log", "-1", "--format=%an %cn") == "Ann Ann"
    step("clean", moved)
    assert_sound(lib.mine)


def test_a_signed_commit_has_its_committer_also_where_signatures_are_shown(lib: Pair) -> None:
    lib.mine.commit(mine__txt="mine\n")
    plain = lib.mine.git("cat-file", "commit", "HEAD")
    signature = "gpgsig -----BEGIN SSH SIGNATURE-----\n U1NI\n -----END SSH SIGNATURE-----"
    signed = plain.replace("\n\n", f"\n{signature}\n\n", 1) + "\n"
    commit = lib.mine.git("hash-object", "-t", "commit", "-w", "--stdin", stdin=signed)
    lib.mine.git("reset", "--quiet", "--hard", commit)
    lib.mine.git("config", "log.showSignature", "true")
    work = told(lib, lib.ahead(a__txt="theirs\n"), strategy="rebase")
    candidate = step("fetch", work)["candidate"]
    lib.mine.git("config", "--unset", "log.showSignature")
    assert lib.mine.git("log", "-1", "--format=%an %cn %ce", candidate) == "Ann Ann ann@example.org"
    step("clean", work)


def test_a_rebase_that_conflicts_changes_nothing(lib: Pair) -> None:
    mine = lib.mine.commit(a__txt="mine\n")
    work = told(lib, lib.ahead(a__txt="theirs\n"), strategy="rebase")
    found = step("fetch", work)
    assert (found["problem"], found["at"]) == ("conflict", "old")
    step("clean", work)
    assert lib.mine.head == mine
    assert_sound(lib.mine)


HOSTILE = (
    "-rf", "--force", "a b", "tab\there", "new\nline", 'quo"te', "back\\slash", "$(touch x)", "*", "ünï", "{{ file }}",
    "\x1b[2Jclear",
)  # fmt: skip


def test_hostile_names_of_files_and_branches(tmp_path: Path) -> None:
    lib = pair(tmp_path)
    branch = "feat/$(id)-{{x}};'ü"
    lib.mine.git("checkout", "--quiet", "-b", branch)
    for name in HOSTILE:
        (lib.upstream.path / name).write_text(f"{name}\n")
    ahead = lib.upstream.commit()
    lib.upstream.git("push", "--quiet", "origin", f"HEAD:refs/heads/{branch}")
    found = probe(lib.mine, {"primary": lib.remote.path}, branch=branch)
    assert (found["behind"], found["change"]["files_count"]) == (1, len(HOSTILE))
    assert all(name.isprintable() for name in found["change"]["files"])
    work = told(lib, ahead, branch=branch)
    assert [step(name, work)["at"] for name in ("fetch", "apply")] == ["old", "new"]
    assert {path.name for path in lib.mine.path.iterdir()} >= set(HOSTILE)
    assert step("rollback", work)["at"] == "old"
    assert not {path.name for path in lib.mine.path.iterdir()} & set(HOSTILE)
    step("clean", work)
    assert_sound(lib.mine)


def test_a_huge_change_fits_in_an_event(lib: Pair) -> None:
    for number in range(600):
        lib.upstream.write(f"{'d' * 100}/{'e' * 100}/{number}.txt")
    ahead = lib.ahead()
    found = probe(lib.mine, {"primary": lib.remote.path})
    assert found["change"]["files_count"] == 600
    assert len(str(found)) < 40_000
    work = told(lib, ahead)
    assert [step(name, work)["at"] for name in ("fetch", "apply", "rollback", "clean")] == ["old", "new", "old", "old"]
    assert_sound(lib.mine)


def test_a_huge_file_comes_and_goes(lib: Pair) -> None:
    size = 16 << 20
    with (lib.upstream.path / "huge.bin").open("wb") as file:
        file.truncate(size)
    ahead = lib.ahead()
    assert probe(lib.mine, {"primary": lib.remote.path})["change"]["bytes"] == size
    work = told(lib, ahead)
    for name, at in (("fetch", "old"), ("apply", "new"), ("rollback", "old"), ("clean", "old")):
        assert step(name, work)["at"] == at
        assert (lib.mine.path / "huge.bin").exists() == (at == "new")
    assert_sound(lib.mine)


def test_a_disk_that_is_full_while_fetching(lib: Pair) -> None:
    (lib.upstream.path / "big").write_bytes(random.Random(1).randbytes(3_000_000))
    work = told(lib, lib.ahead())
    found = _in_a_process("fetch", work, limit=1_000_000)
    assert not found["ok"]
    assert (found["problem"], found["at"]) == ("disk", "old")
    step("clean", work)
    assert_sound(lib.mine)
    assert [step(name, work)["at"] for name in ("fetch", "apply", "clean")] == ["old", "new", "new"]
    assert_sound(lib.mine)


def test_a_disk_that_is_full_while_the_files_are_written(lib: Pair) -> None:
    """Half of the files are there when the disk is full: they are given back, and the branch was never moved."""
    for number in range(20):
        lib.upstream.write(f"few{number:02d}.txt", "x" * 50)
    lib.upstream.write("many.txt", "many\n" * 400_000)
    work = told(lib, lib.ahead(a__txt="changed\n"))
    assert step("fetch", work)["ok"]
    found = _in_a_process("apply", work, limit=200_000)
    assert (found["ok"], found["at"], found["clean"]) == (False, "old", True), found
    step("clean", work)
    assert not list(lib.mine.path.glob("few*"))
    assert_sound(lib.mine)


def _in_a_process(name: str, work: dict[str, Any], *, limit: int) -> dict[str, Any]:
    """The step in a process that may write no file larger than `limit`."""
    text = "import json, sys; from daemon.upgrades import steps; print(json.dumps(getattr(steps, sys.argv[1])(**json.loads(sys.argv[2]))))"  # noqa: E501

    def bound() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", text, name, json.dumps(work)], capture_output=True, text=True, preexec_fn=bound,
        cwd=Path(__file__).parent.parent, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_canary_that_locks_itself_out_is_cleaned_up_all_the_same(lib: Pair) -> None:
    work = told(lib, lib.ahead(a__txt="theirs\n"))
    step("fetch", work | {"checkout": True})
    worktree = Path(work["worktree"])
    (worktree / "locked" / "deep").mkdir(parents=True)
    (worktree / "locked" / "deep" / "file").touch()
    (worktree / "out").symlink_to(lib.mine.path)
    (worktree / "locked").chmod(0)
    assert not step("clean", work)["worktree"]
    assert (lib.mine.path / "a.txt").exists()
    assert_sound(lib.mine)


AS_NOBODY = """
import os, sys
from daemon.upgrades.steps import _delete  # Nobody may read these files.
if os.geteuid() == 0:  # It may enter every folder.
    os.setgid(65534); os.setuid(65534)
top = sys.argv[1] + "/mine"
for folder in ("", "/a", "/a/locked", "/a/locked/deep", "/a/locked/deep/locked"):
    os.mkdir(top + folder)
    open(top + folder + "/file", "w").close()
os.symlink(sys.argv[1], top + "/a/out")
os.chmod(top + "/a/locked/deep/locked", 0o000)
os.chmod(top + "/a/locked/deep", 0o500)
os.chmod(top + "/a/locked", 0o000)
os.chmod(top + "/a", 0o300)
_delete(top)
_delete(top)
print(os.listdir(sys.argv[1]))
"""


def test_locked_folders_in_locked_folders_are_deleted_by_one_who_is_not_root(outside: Path) -> None:
    outside.chmod(0o777)
    (outside / "other").touch()
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(outside)], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert (done.stdout, done.stderr) == ("['other']\n", "")


def test_a_repository_that_borrows_objects_names_no_program_to_run(lib: Pair, tmp_path: Path) -> None:
    lender = new(tmp_path / "lender")
    (lib.mine.git_dir / "objects" / "info" / "alternates").write_text(f"{lender.git_dir / 'objects'}\n")
    lib.mine.git("config", "core.alternateRefsCommand", f"touch '{tmp_path}/ran';:")
    work = told(lib, lib.ahead(a__txt="theirs\n"))
    assert [step(name, work)["at"] for name in ("fetch", "apply", "clean")] == ["old", "new", "new"]
    assert not (tmp_path / "ran").exists()


def test_a_remote_in_the_repositorys_own_configuration_shows_nothing_of_its_password(lib: Pair) -> None:
    lib.mine.git("remote", "add", "kept", "https://me:hunter2@hunter3@127.0.0.1:1/x.git")
    remote = probe(lib.mine, {"origin": "kept"})["remotes"]["origin"]
    assert remote["url"] == "https://127.0.0.1:1/x.git"
    assert "hunter" not in json.dumps(remote)


def test_a_repository_that_is_gone_leaves_nothing_of_ours(lib: Pair) -> None:
    work = told(lib, lib.ahead(a__txt="theirs\n"))
    step("fetch", work)
    lib.mine.path.rename(lib.mine.path.parent / "moved")
    assert step("apply", work)["problem"] == "gone"
    assert step("rollback", work)["at"] == "unknown"
    assert not step("clean", work)["worktree"]


# Killed.


def kill_session(leader: int) -> None:
    """As the daemon does it: until nothing is left, the leader last where it is this very process."""
    looks = 0  # What the leader starts while it is killed is there at the second look.
    while looks < 2:
        members = [p.pid for p in psutil.process_iter() if p.pid != leader and _session(p.pid) == leader]
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if leader != os.getpid():
            os.kill(leader, signal.SIGKILL)
        looks = 0 if members else looks + 1
        time.sleep(0.005)
    if leader == os.getpid():
        os.kill(leader, signal.SIGKILL)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid) if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else 0
    except (ProcessLookupError, psutil.Error):
        return 0


class Dying:
    """A forked process performs a step and is killed, with all its gits, before the `count`th thing that it does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = -1
        for owner, name in (
            (git_module.Git, "__call__"), (git_module.Git, "converse"), (move_module._Locked, "_say"),
            (Path, "replace"), (Path, "unlink"), (os, "fsync"), (os, "unlink"),
        ):  # fmt: skip
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **more: Any) -> Any:
            if self.count == 0:
                kill_session(os.getpid())
            self.count -= 1
            return function(*given, **more)

        return counted

    def perform(self, name: str, work: dict[str, Any], count: int) -> bool:
        """Whether it came to its end."""
        child = os.fork()
        if not child:
            os.setsid()
            self.count = count
            getattr(steps, name)(**work)
            os._exit(0)
        return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("name", ["apply", "rollback"])
def test_a_move_that_is_killed_anywhere_is_seen_through(lib: Pair, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lib.mine.write("notes.txt")
    ahead = lib.ahead(a__txt="changed\n", b__txt=None, **{"deep/c__txt": "c\n"})
    work, person = told(lib, ahead), work_of(lib.mine)
    step("fetch", work)
    dying, seen = Dying(monkeypatch), set()
    for count in range(0, 200, 1 if name == "apply" else 3):
        if name == "rollback":
            assert step("apply", work)["at"] == "new"
        whole = dying.perform(name, work, count)
        found = step("inspect", work)
        seen.add(found["at"])
        assert (found["ok"], found["clean"]) == (True, True), (count, found)
        assert found["at"] in ("old", "new")
        assert not [left for left in left_behind(lib.mine) if "worktrees" not in left], count
        assert step("rollback", work)["at"] == "old"
        if whole:
            break
    assert whole
    assert seen == {"old", "new"}, "it was killed before the branch was moved, and after"
    step("clean", work)
    assert_sound(lib.mine, person)


def test_a_move_that_is_killed_while_git_writes_the_files(lib: Pair) -> None:
    for number in range(400):
        lib.upstream.write(f"d{number % 7}/f{number}.txt", f"{number}\n" * 2000)
    work, chance = told(lib, lib.ahead(a__txt="changed\n", b__txt=None)), random.Random(7)
    step("fetch", work)
    for _ in range(6):
        child = os.fork()
        if not child:
            os.setsid()
            steps.apply(**work)
            os._exit(0)
        time.sleep(0.02 + chance.random() * 0.12)
        kill_session(child)
        os.waitpid(child, 0)
        found = step("inspect", work)
        assert (found["ok"], found["clean"]) == (True, True), found
        assert step("rollback", work)["at"] == "old"
    assert step("apply", work)["at"] == "new"
    step("clean", work)
    assert_sound(lib.mine)


def test_what_somebody_writes_into_a_killed_moves_files_is_left(lib: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    work = told(lib, lib.ahead(a__txt="changed\n", new__txt="new\n"))
    step("fetch", work)
    dying = Dying(monkeypatch)
    for count in range(5, 200):
        dying.perform("apply", work, count)
        if (lib.mine.path / "new.txt").exists():
            break
        step("inspect", work)
    assert lib.mine.head == work["old"], "it was killed before the branch was moved"
    lib.mine.write("new.txt", "mine, now\n")
    found = step("inspect", work)
    assert (found["problem"], found["at"]) == ("dirty", "old")
    assert "new.txt" in found["words"]
    assert (lib.mine.path / "new.txt").read_text() == "mine, now\n"
    assert (lib.mine.path / "a.txt").read_text() == "one\n"
    step("clean", work)
    assert_sound(lib.mine)
