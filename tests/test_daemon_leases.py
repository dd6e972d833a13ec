"""File leases between real processes, and their rules on a clock that the test moves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import leases
from daemon.leases import EXIT_HELD, EXIT_LOST, Held, LeaseFolder, Me, file_name
from daemon.ports import LeasesBusy
from daemon.system import SystemClock
from daemon.workers import identity
from ledger.instant import Now
from policies.foreign import SeenLease

KEY = "repo:core-lib"
ROOT = Path(__file__).parent.parent


class HandClock:
    def __init__(self) -> None:
        self.boot_id = "this boot"
        self.ms = 1_000_000

    def now(self) -> Now:
        return Now(1_800_000_000_000_000_000 + self.ms * 1_000_000, self.ms * 1_000_000)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def daemon(tmp_path: Path, clock: HandClock) -> LeaseFolder:
    return LeaseFolder(tmp_path, clock, Me.here(epoch=3))


@pytest.fixture
def person(tmp_path: Path, clock: HandClock) -> LeaseFolder:
    return LeaseFolder(tmp_path, clock, Me.here())


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A living process that somebody else's lease can hang on."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield child
    child.kill()
    child.communicate()


def keys(held: list[Held] | list[SeenLease]) -> list[str]:
    return [one.key for one in held]


def held_by(folder: LeaseFolder, process: subprocess.Popen[bytes], ttl_ms: int = 30_000) -> int:
    token = folder.acquire(KEY, "them", ttl_ms, mine=False)
    assert isinstance(token, int)
    assert folder.renew(KEY, token, ttl_ms, (process.pid, identity.start_time(process.pid)))
    return token


def test_a_grant_is_published_seen_by_others_and_withdrawn(daemon: LeaseFolder, person: LeaseFolder) -> None:
    assert daemon.publish(KEY, "run-1", 7) is None
    assert daemon.seen() == []
    refused = person.acquire(KEY, "me", 1000)
    assert isinstance(refused, Held)
    assert (refused.holder, refused.token, refused.foreign) == ("run-1", 7, False)
    daemon.withdraw(KEY, 6)  # an older grant's end does not end this one
    assert keys(person.held()) == [KEY]
    daemon.withdraw(KEY, 7)
    assert isinstance(person.acquire(KEY, "me", 1000), int)


def test_an_unexpired_foreign_lease_wins_over_a_grant(daemon: LeaseFolder, person: LeaseFolder) -> None:
    token = person.acquire(KEY, "a person", 30_000)
    assert isinstance(token, int)
    assert keys(daemon.seen()) == [KEY]
    assert daemon.publish(KEY, "run-1", 7) == "a person"
    daemon.withdraw(KEY, token)  # a foreign lease is not the daemon's to withdraw
    assert keys(daemon.seen()) == [KEY]
    assert not person.release(KEY, token + 1)
    assert person.release(KEY, token)
    assert daemon.publish(KEY, "run-1", 7) is None


def test_a_lease_by_deadline_alone_ends_with_it(daemon: LeaseFolder, person: LeaseFolder, clock: HandClock) -> None:
    token = person.acquire(KEY, "a person", 30_000, mine=False)
    assert isinstance(token, int)
    assert daemon.seen()[0].expires_boot_ms == clock.ms + 30_000
    clock.ms += 29_999
    assert keys(daemon.seen()) == [KEY]
    assert person.renew(KEY, token, 30_000)
    clock.ms += 29_999
    assert keys(daemon.seen()) == [KEY]
    clock.ms += 1
    assert daemon.seen() == []
    assert daemon.publish(KEY, "run-1", 7) is None
    assert not person.renew(KEY, token, 30_000)


def test_a_holder_known_to_live_gets_time_to_renew_after_the_machine_slept(
    daemon: LeaseFolder, person: LeaseFolder, clock: HandClock, sleeper: subprocess.Popen[bytes]
) -> None:
    token = held_by(person, sleeper)
    clock.ms += 3_600_000
    assert keys(daemon.seen()) == [KEY]
    assert daemon.publish(KEY, "run-1", 7) is not None
    assert person.renew(KEY, token, 30_000)
    clock.ms += 30_000  # this time it does not renew
    assert daemon.seen()[0].expires_boot_ms == clock.ms + 30_000
    clock.ms += 30_000
    assert daemon.seen() == []


def test_a_dead_holder_holds_nothing(
    daemon: LeaseFolder, person: LeaseFolder, sleeper: subprocess.Popen[bytes]
) -> None:
    held_by(person, sleeper)
    assert keys(daemon.seen()) == [KEY]
    sleeper.kill()
    sleeper.wait()
    assert daemon.seen() == []


def test_another_process_with_the_holders_pid_is_not_the_holder(daemon: LeaseFolder, person: LeaseFolder) -> None:
    token = person.acquire(KEY, "gone", 30_000)
    assert isinstance(token, int)
    started = identity.start_time(os.getpid())
    assert started is not None
    assert person.renew(KEY, token, 30_000, (os.getpid(), started - 1))
    assert daemon.seen() == []


def test_a_pid_from_another_process_table_proves_nothing(daemon: LeaseFolder, person: LeaseFolder) -> None:
    token = person.acquire(KEY, "in a container", 30_000)
    assert isinstance(token, int)
    person.renew(KEY, token, 30_000, (4_000_000, 1))
    assert daemon.seen() == []
    edit(daemon, lambda lease: lease.update(pid_namespace=1))
    assert keys(daemon.seen()) == [KEY]


def test_after_a_reboot_no_lease_is_left(daemon: LeaseFolder, person: LeaseFolder, clock: HandClock) -> None:
    person.acquire(KEY, "a person", 30_000)
    daemon.publish("gpu:0", "run-1", 7)
    clock.boot_id = "the next boot"
    clock.ms = 5
    assert daemon.held() == []


def test_the_daemons_own_lease_outlives_the_daemon_and_any_time(
    tmp_path: Path, person: LeaseFolder, clock: HandClock, sleeper: subprocess.Popen[bytes]
) -> None:
    dead = LeaseFolder(tmp_path, clock, Me(sleeper.pid, identity.start_time(sleeper.pid), 3))
    dead.publish(KEY, "run-1", 7)
    sleeper.kill()
    sleeper.wait()
    clock.ms += 10_000_000
    assert isinstance(person.acquire(KEY, "me", 1000), Held)
    assert not person.release(KEY, 7)
    assert person.release(KEY, force=True)
    assert isinstance(person.acquire(KEY, "me", 1000), int)


def test_files_are_rebuilt_from_what_the_ledger_says(
    daemon: LeaseFolder, person: LeaseFolder, tmp_path: Path, clock: HandClock
) -> None:
    earlier = LeaseFolder(tmp_path, clock, Me(1, 1, 2))
    earlier.publish("over", "run-0", 1)
    earlier.publish("still-ours", "run-1", 2)
    person.acquire("theirs", "a person", 30_000)
    person.acquire("contested", "a person", 30_000)
    taken = daemon.sync({"still-ours": ("run-1", 2), "lost-file": ("run-2", 3), "contested": ("run-3", 4)})
    assert taken == {"contested": "a person"}
    assert [(one.key, one.token if not one.foreign else 0) for one in daemon.held()] == [
        ("contested", 0), ("lost-file", 3), ("still-ours", 2), ("theirs", 0),
    ]  # fmt: skip
    assert json.loads((tmp_path / "still-ours.json").read_text())["epoch"] == 3


def test_files_that_are_right_are_not_written_again(daemon: LeaseFolder, tmp_path: Path, clock: HandClock) -> None:
    daemon.publish(KEY, "run-1", 7)
    before = (tmp_path / file_name(KEY)).stat()
    clock.ms += 5000
    daemon.sync({KEY: ("run-1", 7)})
    assert (tmp_path / file_name(KEY)).stat() == before


def edit(folder: LeaseFolder, change: object) -> None:
    path = folder.path / file_name(KEY)
    lease = json.loads(path.read_text())
    change(lease)  # type: ignore[operator]
    path.write_text(json.dumps(lease))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"key": "repo:core-lib"}', b"\xff\xfe", None],
    ids=["empty", "half", "a list", "fields missing", "not UTF-8", "a folder"],
)
def test_a_file_broken_by_hand_holds_its_key_and_is_named(
    daemon: LeaseFolder, person: LeaseFolder, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / file_name(KEY)
    path.mkdir() if content is None else path.write_bytes(content)
    (seen,) = daemon.seen()
    assert (seen.key, seen.holder) == (KEY, leases.UNKNOWN)
    assert str(path) in seen.note
    assert "remove it" in seen.note
    assert daemon.publish(KEY, "run-1", 7) == leases.UNKNOWN
    assert isinstance(person.acquire(KEY, "me", 1000), Held)
    daemon.sync({KEY: ("run-1", 7)})
    assert path.is_dir() if content is None else path.read_bytes() == content


@pytest.mark.parametrize(
    "change",
    [
        lambda lease: lease.update(token="7"),
        lambda lease: lease.update(token=True),
        lambda lease: lease.update(boot_ms=None),
        lambda lease: lease.update(key="other"),
        lambda lease: lease.update(extra=1),
    ],
)
def test_a_value_of_the_wrong_kind_breaks_the_file(daemon: LeaseFolder, person: LeaseFolder, change: object) -> None:
    person.acquire(KEY, "a person", 30_000)
    daemon.seen()
    edit(daemon, change)
    assert [(one.key, one.holder) for one in daemon.seen()] == [(KEY, leases.UNKNOWN)]
    assert person.release(KEY, force=True)
    assert daemon.seen() == []


def test_what_is_no_file_holds_its_key_and_keeps_nobody_waiting(daemon: LeaseFolder, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gpu.json")
    (tmp_path / "repo.json").mkdir()
    assert [(held.key, "is no file" in held.note) for held in daemon.held()] == [("gpu", True), ("repo", True)]


def test_of_a_holder_as_much_is_told_as_a_record_and_a_terminal_can_take(person: LeaseFolder, tmp_path: Path) -> None:
    person.acquire("loud", "\x1b[2J" + "x" * 5000 + "\n", 60_000)
    person.acquire("vast", "x" * 1_000_000, 60_000)
    loud, vast = person.held()
    assert loud.holder == " [2J" + "x" * 252
    assert (vast.key, vast.holder) == ("vast", leases.UNKNOWN)
    assert "more than 16384 bytes" in vast.note


def test_a_folder_that_was_removed_holds_nothing_and_is_made_again(tmp_path: Path, clock: HandClock) -> None:
    folder = LeaseFolder(tmp_path / "leases", clock, Me.here(epoch=3))
    folder.path.mkdir()
    folder.publish(KEY, "run", 1)
    shutil.rmtree(folder.path)
    assert folder.held() == []
    folder.withdraw(KEY, 1)
    assert folder.publish(KEY, "run", 2) is None
    assert keys(folder.held()) == [KEY]
    assert folder.path.stat().st_mode & 0o077 == 0


def test_every_key_has_a_file_name_of_its_own_that_a_folder_takes(daemon: LeaseFolder, tmp_path: Path) -> None:
    names = ["a", ".", "..", ".guard", "a/b", "a:b", "@", "x" * 120, ":" * 120, ":" * 119 + "/", "/etc/passwd", "-"]
    for number, key in enumerate(names):
        assert daemon.publish(key, "run", number + 1) is None
    assert keys(daemon.held()) == sorted(names)
    assert all(path.parent == tmp_path for path in tmp_path.rglob("*"))
    for key in ("", "a b", "a" * 121, "é", "a\n", "a%2F"):
        with pytest.raises(ValueError, match="no lease key"):
            daemon.publish(key, "run", 1)


def test_a_guard_that_is_never_let_go_is_an_error_with_advice(
    daemon: LeaseFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_GUARD_WAIT_S", 0.05)
    second = LeaseFolder(tmp_path, SystemClock(), Me.here())
    with daemon._guard(), pytest.raises(LeasesBusy, match=r"\.guard has been locked"):
        second.publish(KEY, "run", 1)


EXEC = """
import sys
from pathlib import Path
from daemon.leases import LeaseFolder, Me, lease_exec
from daemon.system import SystemClock
folder = LeaseFolder(Path(sys.argv[1]), SystemClock(), Me.here())
wait_s = None if sys.argv[2] == "wait" else 0
sys.exit(lease_exec(folder, sys.argv[3], sys.argv[4:], float(__import__("os").environ.get("TTL", "30")), wait_s))
"""


def lease_exec(path: Path, how: str, *argv: str, ttl_s: str = "30") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", EXEC, str(path), how, KEY, *argv],
        cwd=ROOT, env=os.environ | {"TTL": ttl_s}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def real(tmp_path: Path) -> LeaseFolder:
    return LeaseFolder(tmp_path, SystemClock(), Me.here())


def running(*, when_told_to_stop: str = "os._exit(143)") -> list[str]:
    """A command that says when it runs, and ends when it reads a line or is told to. Bare reads and writes: a signal
    handler may not use a stream that it has interrupted."""
    return [
        sys.executable, "-c",
        "import os, signal\n"
        f"signal.signal(signal.SIGTERM, lambda *_: ({when_told_to_stop}))\n"
        "os.write(1, b'running\\n'); os.read(0, 1)",
    ]  # fmt: skip


def test_a_command_runs_under_the_lease_and_its_exit_status_is_true(real: LeaseFolder, tmp_path: Path) -> None:
    child = lease_exec(tmp_path, "refuse", *running(), ttl_s="1")
    assert child.stdout is not None
    assert child.stdout.readline() == "running\n"
    assert keys(real.seen()) == [KEY]
    refused = lease_exec(tmp_path, "refuse", "true")
    _, said = refused.communicate(timeout=20)
    assert refused.returncode == EXIT_HELD
    assert f"(pid {child.pid})" in said
    child.communicate("\n", timeout=20)
    assert child.returncode == 0
    assert real.held() == []
    for argv, code in ((["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -9 $$"], 137), (["/nowhere/x"], 127)):
        child = lease_exec(tmp_path, "refuse", *argv)
        child.communicate(timeout=20)
        assert child.returncode == code
        assert real.held() == []


GRAB = """
import os, sys
from pathlib import Path
from daemon.leases import Held, LeaseFolder, Me
from daemon.system import SystemClock
folder = LeaseFolder(Path(sys.argv[1]), SystemClock(), Me.here())
inside = sys.argv[1] + "/inside"
print("ready", flush=True)
input()
for turn in range(100):
    while isinstance(token := folder.acquire(sys.argv[2], "me", 30000), Held):
        pass
    os.mkdir(inside)  # fails where another one is inside
    os.rmdir(inside)
    assert folder.release(sys.argv[2], token)
"""


def test_a_password_on_the_command_line_is_not_told_to_those_who_look(real: LeaseFolder, tmp_path: Path) -> None:
    child = lease_exec(tmp_path, "refuse", *running(), "--password", "hunter2", "https://me:hunter2@host/x")
    assert child.stdout is not None
    assert child.stdout.readline() == "running\n"
    (held,) = real.held()
    assert "--password ***" in held.holder
    assert "hunter2" not in held.holder
    child.communicate("\n", timeout=30)


def test_two_never_hold_the_same_key(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", GRAB, str(tmp_path), KEY]
    pipe = subprocess.PIPE
    grabbers = [subprocess.Popen(argv, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(3)]
    for grabber in grabbers:
        assert grabber.stdout is not None
        assert grabber.stdout.readline() == "ready\n"
    for grabber in grabbers:
        assert grabber.stdin is not None
        grabber.stdin.write("\n")
        grabber.stdin.flush()
    said = [grabber.communicate(timeout=60)[1] for grabber in grabbers]
    assert [grabber.returncode for grabber in grabbers] == [0, 0, 0], said


def test_those_who_wait_get_the_key_one_after_the_other(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    program = f"mkdir {inside} && echo $$ >> {tmp_path / 'turns'} && rmdir {inside}"
    contenders = [lease_exec(tmp_path, "wait", "sh", "-c", program) for _ in range(3)]
    for contender in contenders:
        assert contender.communicate(timeout=60)[0] == ""
    assert [contender.returncode for contender in contenders] == [0] * 3
    assert len((tmp_path / "turns").read_text().split()) == 3


def test_signals_reach_the_command_and_the_lease_ends_with_it(real: LeaseFolder, tmp_path: Path) -> None:
    child = lease_exec(tmp_path, "refuse", *running(when_told_to_stop="os._exit(3)"))
    assert child.stdout is not None
    assert child.stdout.readline() == "running\n"
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=20) == 3
    child.communicate()
    assert real.held() == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_when_the_holder_is_killed_its_command_is_ended_before_the_key_is_free(
    real: LeaseFolder, tmp_path: Path
) -> None:
    slow = "os.write(1, b'ending\\n'), os.read(0, 1), os._exit(0)"
    child = lease_exec(tmp_path, "refuse", *running(when_told_to_stop=slow))
    assert child.stdout is not None
    assert child.stdout.readline() == "running\n"
    while json.loads((tmp_path / file_name(KEY)).read_text())["pid"] == child.pid:
        pass  # the lease passes to the command as soon as it runs
    child.kill()
    child.wait()
    assert child.stdout.readline() == "ending\n"
    assert keys(real.seen()) == [KEY]  # the command still works
    child.communicate("\n", timeout=20)  # returns when the command has closed its output
    waiting = lease_exec(tmp_path, "wait", "true")
    waiting.communicate(timeout=20)
    assert waiting.returncode == 0


def test_a_command_whose_lease_was_taken_away_is_ended(real: LeaseFolder, tmp_path: Path) -> None:
    child = lease_exec(tmp_path, "refuse", *running(), ttl_s="1")
    assert child.stdout is not None
    assert child.stdout.readline() == "running\n"
    assert real.release(KEY, force=True)
    assert isinstance(real.acquire(KEY, "another", 60_000), int)
    assert child.wait(timeout=20) == EXIT_LOST
    _, said = child.communicate()
    assert "taken away" in said
    assert keys(real.seen()) == [KEY]  # the new holder's, untouched
