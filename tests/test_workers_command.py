"""Commands as real processes: how they begin once, end truthfully, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from workers_loop import PATH, ROOT, Loop, command, lives, shell, text, until_file

from daemon.ports import Began, Ended, Order, SpawnError
from daemon.workers import identity
from daemon.workers.claim import Claim, Journal, Status, claim_never, read_claim, read_status, write_status
from daemon.workers.preflight import preflight

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def stubborn(home: Path) -> str:
    """A script that notes its pid in `pids` and ignores SIGTERM."""
    script = home / "stubborn"
    script.write_text(f"trap '' TERM\necho $$ >>{home}/pids\nwhile :; do sleep 1; done\n")
    return f"sh {script}"


def pids_of(home: Path) -> list[int]:
    pids = home / "pids"
    return [int(pid) for pid in pids.read_text().split()] if pids.exists() else []


def keeper_of(order: Order) -> int:
    claim = read_claim(order.folder)
    assert claim is not None
    assert claim.keeper is not None
    return claim.keeper[0]


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_exit_codes_are_those_of_the_command(tmp_path: Path, loop: Loop) -> None:
    orders = [shell(tmp_path, f"exit-{code}", f"exit {code}") for code in (0, 1, 7, 121, 122, 125, 255)]
    for order in orders:
        loop.spawner.start(order)
    assert [end.code for end in loop.ended(*orders)] == [0, 1, 7, 121, 122, 125, 255]
    assert [read_status(order.folder) for order in orders] == [Status(c, None) for c in (0, 1, 7, 121, 122, 125, 255)]
    assert not loop.zombies()


def test_began_names_a_process_and_comes_before_ended(tmp_path: Path, loop: Loop) -> None:
    order = shell(tmp_path, "sleeper", "exec sleep 30")
    loop.spawner.start(order)
    began = loop.began(order)
    assert identity.alive(began.pid, began.started)
    assert not identity.alive(began.pid, began.started + 1)
    loop.spawner.stop("sleeper", 1, force=True)
    (end,) = loop.ended(order)
    assert loop.reports.index(began) < loop.reports.index(end)
    assert not identity.alive(began.pid, began.started)


def test_output_goes_to_files_and_input_comes_from_one(tmp_path: Path, loop: Loop) -> None:
    (tmp_path / "in").write_text("given\n")
    fed = shell(tmp_path, "fed", "cat; echo bad >&2; pwd", stdin=str(tmp_path / "in"))
    unfed = command(tmp_path, "unfed", "cat")
    loop.spawner.start(fed)
    loop.spawner.start(unfed)
    loop.ended(fed, unfed)
    assert text(fed, "stdout.log") == f"given\n{tmp_path}\n"
    assert text(fed, "stderr.log") == "bad\n"
    assert text(unfed, "stdout.log") == ""


def test_a_pipe_as_input_is_refused_and_holds_nobody_up(tmp_path: Path, loop: Loop) -> None:
    os.mkfifo(tmp_path / "pipe")
    order = command(tmp_path, "pipe", "/bin/cat", stdin=str(tmp_path / "pipe"))
    other = command(tmp_path, "other", "/bin/true")
    loop.spawner.start(order)
    loop.spawner.start(other)
    ends = loop.ended(order, other)
    assert [end.code for end in ends] == [126, 0]
    assert "it is a pipe" in text(order, "stderr.log")
    assert "may not be read: check that it is a file" in (preflight(order.task, order.env) or "")


def test_argv_is_never_read_by_a_shell(tmp_path: Path, loop: Loop) -> None:
    words = ("$(touch oops)", "`touch oops`", "; touch oops", "a  b", "*", "-n", "", "'\"\\", "$1 $@", "line\nbreak")
    order = command(tmp_path, "words", sys.executable, "-c", "import sys; print(sys.argv[1:])", *words)
    loop.spawner.start(order)
    loop.ended(order)
    assert text(order, "stdout.log") == f"{list(words)}\n"
    assert not (tmp_path / "oops").exists()


def test_a_program_called_like_a_builtin_is_the_program(tmp_path: Path, loop: Loop) -> None:
    program = tmp_path / "bin" / "exit"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho the program\n")
    program.chmod(0o755)
    plain = command(tmp_path, "plain", "exit", "3", env={"PATH": f"{program.parent}:{PATH}"})
    limited = command(tmp_path, "limited", "exit", "3", env={"PATH": f"{program.parent}:{PATH}"},
                      limits={"open_files": 64})  # fmt: skip
    loop.spawner.start(plain)
    loop.spawner.start(limited)
    assert [end.code for end in loop.ended(plain, limited)] == [0, 0]
    assert text(plain, "stdout.log") == text(limited, "stdout.log") == "the program\n"


def test_the_environment_holds_what_the_order_says_and_no_more(
    tmp_path: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "do-not-leak")
    order = command(tmp_path, "env", "env", env={"GREETING": "a 'b' $c", "memory": "mine", "code": "mine"})
    loop.spawner.start(order)
    loop.ended(order)
    assert dict(line.split("=", 1) for line in text(order, "stdout.log").splitlines()) == {
        "PATH": PATH, "GREETING": "a 'b' $c", "memory": "mine", "code": "mine", "PWD": str(tmp_path),
        "HERMESD_RUN": "env", "HERMESD_ATTEMPT": "1", "HERMESD_FOLDER": order.folder,
    }  # fmt: skip


def test_no_descriptor_and_no_ignored_signal_is_inherited(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)  # As whoever started the daemon may have left one.
    loop = Loop()
    show = "import os; print(sorted(map(int, os.listdir('/proc/self/fd')))); print(open('/proc/self/status').read())"
    order = command(tmp_path, "descriptors", sys.executable, "-c", show)
    loop.spawner.start(order)
    loop.ended(order)
    os.close(read)
    os.close(write)
    loop.close()
    listing, *status = text(order, "stdout.log").splitlines()
    assert listing == "[0, 1, 2, 3]"  # 3 is the listing itself
    (ignored,) = [int(line.split()[1], 16) for line in status if line.startswith("SigIgn")]
    # Python itself, in the command, ignores these two.
    standard = ignored & (1 << 31) - 1
    assert standard == 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    inherited = shell(tmp_path, "signals", "kill -PIPE $$; echo lived")
    loop = Loop()
    loop.spawner.start(inherited)
    assert loop.ended(inherited)[0].signal == signal.SIGPIPE
    loop.close()


def test_a_run_that_cannot_start_says_why(tmp_path: Path, loop: Loop) -> None:
    with pytest.raises(SpawnError, match=r"program 'no-such-program' is not on the PATH"):
        loop.spawner.start(command(tmp_path, "absent", "no-such-program"))
    with pytest.raises(SpawnError, match=r"standard input .*/nowhere: No such file"):
        loop.spawner.start(command(tmp_path, "unfed", "cat", stdin=str(tmp_path / "nowhere")))
    with pytest.raises(SpawnError, match="NUL byte"):
        loop.spawner.start(command(tmp_path, "nul", "echo", "a\0b"))
    with pytest.raises(SpawnError, match="variable 'a-b'"):
        loop.spawner.start(command(tmp_path, "name", "true", env={"a-b": "c"}))
    long = command(tmp_path, "long", "true", *["x" * 100_000] * 100)
    lost = command(tmp_path, "lost-cwd", "true", cwd=str(tmp_path / "gone"))
    absent = command(tmp_path, "absent-path", str(tmp_path / "gone"))
    loop.spawner.start(lost)
    loop.spawner.start(absent)
    loop.spawner.start(long)
    ends = loop.ended(lost, absent, long)
    assert [end.code for end in ends] == [125, 127, 126]
    assert "working directory" in ends[0].note
    assert "too long for this system" in ends[2].note
    assert str(tmp_path / "gone") in text(lost, "stderr.log")


def test_an_argument_that_is_no_text_fails_its_own_run_alone(tmp_path: Path, loop: Loop) -> None:
    beside = shell(tmp_path, "beside", f"read _ <{tmp_path}/go; exit 3")
    os.mkfifo(tmp_path / "go")
    loop.spawner.start(beside)
    keeper = loop.began(beside) and keeper_of(beside)
    half = command(tmp_path, "half", "/bin/echo", "\ud83d")
    loop.spawner.start(half)
    (end,) = loop.ended(half)
    assert (end.code, "surrogates not allowed" in end.note) == (126, True)
    (tmp_path / "go").write_text("\n")
    assert loop.ended(beside)[0].code == 3
    assert lives(keeper)


def test_a_run_that_cannot_be_watched_is_not_left_running(tmp_path: Path, loop: Loop) -> None:
    order = shell(tmp_path, "unwatched", "exec sleep 60")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        # posix_spawn needs no descriptor of ours, the watching does.
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        with pytest.raises(SpawnError, match="limit of open files"):
            loop.spawner.start(order)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert identity.tree(order.folder) == []
    assert not loop.zombies()


def test_a_death_by_signal_is_told_from_an_exit_status_that_looks_like_one(tmp_path: Path, loop: Loop) -> None:
    killed = shell(tmp_path, "killed", "kill -SEGV $$")
    said = shell(tmp_path, "said", "exit 139")
    loop.spawner.start(killed)
    loop.spawner.start(said)
    ends = loop.ended(killed, said)
    assert [(end.code, end.signal) for end in ends] == [(None, signal.SIGSEGV), (139, None)]
    assert ends[1].note == "exit status 139 is its own; a shell ends so after SIGSEGV"
    assert [read_status(order.folder) for order in (killed, said)] == [Status(None, 11), Status(139, None)]


def test_limits_bind_the_command_and_are_named_when_they_end_it(tmp_path: Path, loop: Loop) -> None:
    write = "import os, signal as s; s.signal(s.SIGXFSZ, s.SIG_DFL); os.write(1, b'x' * 2000); os.write(1, b'y')"
    big = command(tmp_path, "big", sys.executable, "-S", "-c", write, limits={"file_size": 1024})
    busy = shell(tmp_path, "busy", "while :; do :; done", limits={"cpu_seconds": 1})  # type: ignore[arg-type]
    few = shell(tmp_path, "few", "ulimit -n; ulimit -v", limits={"open_files": 40, "memory": 1 << 30})  # type: ignore[arg-type]
    for order in (big, busy, few):
        loop.spawner.start(order)
    ends = loop.ended(big, busy, few)
    assert [(end.code, end.signal) for end in ends] == [(None, signal.SIGXFSZ), (None, signal.SIGXCPU), (0, None)]
    assert "file size (1024 bytes)" in ends[0].note
    assert Path(big.folder, "stdout.log").stat().st_size == 1024
    assert "CPU time (1 s)" in ends[1].note
    assert 500 <= (ends[1].cpu_ms or 0) <= 2500
    assert text(few, "stdout.log") == "40\n1048576\n"


def test_sigterm_lets_the_command_end_in_its_own_way(tmp_path: Path, loop: Loop) -> None:
    order = shell(tmp_path, "polite", "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done")
    loop.spawner.start(order)
    until_file(Path(order.folder, "stdout.log"))
    loop.spawner.stop("polite", 1, force=False)
    (end,) = loop.ended(order)
    assert end.code == 3
    assert text(order, "stdout.log") == "ready\nbye\n"


def test_sigterm_reaches_a_stopped_command(tmp_path: Path, loop: Loop) -> None:
    order = shell(tmp_path, "stopped", "trap 'exit 3' TERM; echo stopping; kill -STOP $$; sleep 60 & wait")
    loop.spawner.start(order)
    until_file(Path(order.folder, "stdout.log"))
    loop.spawner.stop("stopped", 1, force=False)
    assert loop.ended(order)[0].code == 3


def test_force_ends_those_that_ignore_sigterm_and_a_grandchild_that_changed_session(tmp_path: Path, loop: Loop) -> None:
    script = stubborn(tmp_path)
    order = shell(tmp_path, "tree", f"trap '' TERM; setsid {script} & env -i setsid {script} & {script}; exit")
    loop.spawner.start(order)
    loop.until(lambda: len(pids_of(tmp_path)) == 3)
    members = pids_of(tmp_path)
    assert len(set(members)) == 3
    loop.spawner.stop("tree", 1, force=False)
    loop.turn(0.1)
    assert all(map(lives, members))
    loop.spawner.stop("tree", 1, force=True)
    (end,) = loop.ended(order)
    assert (end.code, end.signal) == (None, signal.SIGKILL)
    assert not any(map(lives, members))
    assert read_status(order.folder) == Status(None, signal.SIGKILL)


@pytest.mark.parametrize("escape", ["", "setsid "], ids=["in its session", "in a new session"])
def test_a_double_fork_left_behind_at_a_normal_end_is_killed(tmp_path: Path, loop: Loop, escape: str) -> None:
    pids = tmp_path / "pids"
    leave = f"({escape}sh -c 'trap \"\" TERM HUP; echo $$ >{pids}; exec sleep 60' &) ; "
    order = shell(tmp_path, "daemonizer", f"{leave} while ! [ -s {pids} ]; do :; done; exit 4")
    loop.spawner.start(order)
    (end,) = loop.ended(order)
    assert end.code == 4
    assert end.note == "1 left-over process was killed"
    assert not lives(int(pids.read_text()))
    assert not loop.zombies()


def test_an_orphan_of_one_run_is_not_killed_with_another(tmp_path: Path, loop: Loop) -> None:
    pids = tmp_path / "pids"
    first = shell(tmp_path, "first", f"(setsid sh -c 'echo $$ >{pids}; exec sleep 60' &); exec sleep 60")
    loop.spawner.start(first)
    until_file(pids)
    second = shell(tmp_path, "second", "(setsid true &); exit 0")
    loop.spawner.start(second)
    loop.ended(second)
    assert lives(int(pids.read_text()))
    loop.spawner.stop("first", 1, force=True)
    loop.ended(first)
    assert not lives(int(pids.read_text()))
    loop.spawner.housekeep(20_000)
    loop.spawner.housekeep(40_000)
    assert not loop.zombies()


def test_starting_twice_runs_once(tmp_path: Path, loop: Loop) -> None:
    order = shell(tmp_path, "once", "echo began; sleep 0.2")
    loop.spawner.start(order)
    loop.spawner.start(order)
    loop.ended(order)
    loop.spawner.start(order)  # And again when it is over.
    loop.until(lambda: len(loop.ends()) == 2)
    assert text(order, "stdout.log") == "began\n"
    assert [end.code for end in loop.ends()] == [0, 0]


DAEMON = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from workers_loop import Loop, command, python, shell
loop, home = Loop(), Path(sys.argv[1])
"""


def another_daemon(home: Path, text: str) -> subprocess.Popen[str]:
    """A process with a spawner of its own."""
    return subprocess.Popen([sys.executable, "-c", DAEMON + text, str(home)], stdout=subprocess.PIPE, text=True)


def line_from(daemon: subprocess.Popen[str]) -> str:
    assert daemon.stdout is not None
    return daemon.stdout.readline()


def kill_9(daemon: subprocess.Popen[str]) -> None:
    daemon.kill()
    daemon.wait()
    assert daemon.stdout is not None
    daemon.stdout.close()


def test_two_daemons_that_start_the_same_runs_at_once_run_each_once(tmp_path: Path) -> None:
    race = """
orders = [shell(home, f"race-{i}", "echo $HERMESD_RUN >>all; exit 5") for i in range(20)]
print("ready", flush=True); sys.stdin.readline()
for order in orders: loop.spawner.start(order)
print([end.code for end in loop.ended(*orders)], flush=True)
"""
    daemons = [subprocess.Popen([sys.executable, "-c", DAEMON + race, str(tmp_path)], text=True,
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]  # fmt: skip
    for daemon in daemons:
        line_from(daemon)
    for daemon in daemons:
        assert daemon.stdin is not None
        daemon.stdin.write("\n")
        daemon.stdin.flush()
    told = [daemon.communicate()[0].strip() for daemon in daemons]
    assert told == [str([5] * 20)] * 2
    assert sorted((tmp_path / "all").read_text().split()) == sorted(f"race-{i}" for i in range(20))


def test_a_run_survives_its_daemon_and_is_adopted_by_the_next(tmp_path: Path, loop: Loop) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    order = shell(tmp_path, "survivor", f"echo one; read _ <{go}; echo two; exit 6")
    daemon = another_daemon(tmp_path, f"""
order = shell(home, "survivor", "echo one; read _ <{go}; echo two; exit 6")
loop.spawner.start(order); began = loop.began(order)
print(began.pid, began.started, flush=True); loop.turn(60)
""")  # fmt: skip
    pid, started = map(int, line_from(daemon).split())
    until_file(Path(order.folder, "stdout.log"))
    kill_9(daemon)
    assert identity.alive(pid, started)
    loop.spawner.resume(order, pid, started)
    assert loop.began(order) == Began("survivor", 1, pid, started)
    go.write_text("\n")
    (end,) = loop.ended(order)
    assert end == Ended("survivor", 1, 6)
    assert text(order, "stdout.log") == "one\ntwo\n"


def test_a_run_among_hundreds_keeps_its_status_though_no_daemon_saw_its_end(tmp_path: Path, loop: Loop) -> None:
    """It outlives the journal of its keeper that it is claimed in."""
    go, text = tmp_path / "go", f"read _ <{tmp_path}/go; exit 6"
    os.mkfifo(go)
    daemon = another_daemon(tmp_path, f"""
from daemon.workers.claim import JOURNAL_ATTEMPTS_MAX
long = shell(home, "long", {text!r})
loop.spawner.start(long); began = loop.began(long)
short = [command(home, f"short-{{i}}", "/bin/true") for i in range(JOURNAL_ATTEMPTS_MAX)]
for order in short: loop.spawner.start(order)
loop.ended(*short); print(began.pid, began.started, flush=True); loop.turn(60)
""")  # fmt: skip
    pid, started = map(int, line_from(daemon).split())
    kill_9(daemon)
    order = shell(tmp_path, "long", text)
    loop.spawner.resume(order, pid, started)
    go.write_text("\n")
    (end,) = loop.ended(order)
    assert (end.code, end.note) == (6, "")


def test_a_run_that_ended_while_no_daemon_lived_keeps_its_status(tmp_path: Path, loop: Loop) -> None:
    daemon = another_daemon(tmp_path, """
loop.spawner.start(shell(home, "unseen", "read _ <go; exit 9")); print(flush=True); loop.turn(60)
""")  # fmt: skip
    os.mkfifo(tmp_path / "go")
    line_from(daemon)
    order = shell(tmp_path, "unseen", "read _ <go; exit 9")
    kill_9(daemon)
    until_file(Path(order.folder, "claim"))
    (tmp_path / "go").write_text("\n")
    loop.until(lambda: read_status(order.folder) is not None)
    loop.spawner.resume(order, None, None)
    assert loop.ended(order) == [Ended("unseen", 1, 9)]


def test_an_adopted_tree_is_stopped_whole(tmp_path: Path, loop: Loop) -> None:
    script = stubborn(tmp_path)
    daemon = another_daemon(tmp_path, f"""
loop.spawner.start(shell(home, "adopted", "(setsid {script} &); {script}; exit")); print(flush=True); loop.turn(60)
""")  # fmt: skip
    line_from(daemon)
    loop.until(lambda: len(pids_of(tmp_path)) == 2)
    kill_9(daemon)
    order = shell(tmp_path, "adopted", "")
    loop.spawner.resume(order, None, None)
    loop.began(order)
    loop.spawner.stop("adopted", 1, force=True)
    (end,) = loop.ended(order)
    assert (end.code, end.signal) == (None, signal.SIGKILL)
    assert not any(map(lives, pids_of(tmp_path)))


LEFT = "(setsid env -i sh -c 'echo $$ >{0}; exec sleep 60' &); while ! [ -s {0} ]; do :; done; exec sleep 60"


def test_a_run_killed_with_its_daemon_and_its_keeper_is_lost_and_its_tree_is_dead(tmp_path: Path, loop: Loop) -> None:
    pids = tmp_path / "pids"
    daemon = another_daemon(tmp_path, f"""
order = shell(home, "lost", {LEFT.format(pids)!r})
loop.spawner.start(order); print(loop.began(order).pid, flush=True); loop.turn(60)
""")  # fmt: skip
    pid = int(line_from(daemon))
    left = int(until_file(pids))
    kill_9(daemon)
    order = shell(tmp_path, "lost", "")
    for one in (keeper_of(order), pid):
        os.kill(one, signal.SIGKILL)
        loop.until(lambda one=one: not lives(one))  # type: ignore[misc]
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)  # Orphans come to this process, which must not be the one that saw the end.
    loop.spawner.resume(order, pid, None)
    (end,) = loop.ended(order)
    assert (end.code, end.signal) == (None, None)
    assert end.note == "nobody saw how it ended; 1 left-over process was killed"
    assert not lives(left)


def test_a_run_killed_with_its_daemon_is_not_lost(tmp_path: Path, loop: Loop) -> None:
    pids = tmp_path / "pids"
    daemon = another_daemon(tmp_path, f"""
order = shell(home, "killed", {LEFT.format(pids)!r})
loop.spawner.start(order); print(loop.began(order).pid, flush=True); loop.turn(60)
""")  # fmt: skip
    pid = int(line_from(daemon))
    left = int(until_file(pids))
    kill_9(daemon)
    os.kill(pid, signal.SIGKILL)
    order = shell(tmp_path, "killed", "")
    loop.spawner.resume(order, pid, None)
    (end,) = loop.ended(order)
    assert (end.code, end.signal) == (None, signal.SIGKILL)
    assert not lives(left)


def test_a_keeper_that_dies_leaves_the_daemon_to_see_how_its_runs_end(tmp_path: Path, loop: Loop) -> None:
    os.mkfifo(tmp_path / "go")
    orders = [shell(tmp_path, f"kept-{i}", f"read _ <{tmp_path}/go; exit {i}") for i in (3, 4)]
    for order in orders:
        loop.spawner.start(order)
    began = [loop.began(order) for order in orders]
    dead = keeper_of(orders[0])
    os.kill(dead, signal.SIGKILL)
    loop.until(lambda: len(loop.reports) == 4)  # Both are adopted.
    later = shell(tmp_path, "later", "exit 5")
    loop.spawner.start(later)
    assert loop.ended(later)[0].code == 5
    assert keeper_of(later) != dead
    gate = os.open(tmp_path / "go", os.O_RDWR)
    os.write(gate, b"\n\n")
    assert [end.code for end in loop.ended(*orders)] == [3, 4]
    os.close(gate)
    assert [loop.began(order) for order in orders] == began
    assert [read_status(order.folder) for order in orders] == [Status(3, None), Status(4, None)]
    assert not loop.zombies()


def test_a_keeper_that_cannot_start_fails_its_runs_and_says_where_to_look(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such python >&2\nexit 3\n")
    broken.chmod(0o755)
    loop = Loop(python=str(broken))
    orders = [command(tmp_path, f"unkept-{i}", "true") for i in range(2)]
    for order in orders:
        loop.spawner.start(order)
    for end in loop.ended(*orders):
        assert end.code == 1
        assert f"keeper of commands could not start: exit status 3; see {tmp_path}/runs/.workers/keeper.log" in end.note
    assert "no such python" in (tmp_path / "runs/.workers/keeper.log").read_text()
    loop.close()


def test_a_granted_run_that_never_began_begins_on_resume(tmp_path: Path, loop: Loop) -> None:
    order = shell(tmp_path, "late", "exit 3")
    loop.spawner.resume(order, None, None)
    assert loop.ended(order)[0].code == 3


def test_a_granted_run_that_is_being_stopped_never_begins(tmp_path: Path, loop: Loop) -> None:
    order = shell(tmp_path, "unwanted", f"echo x >>{tmp_path}/begun")
    loop.spawner.resume(order, None, None, begin=False)
    assert loop.ended(order) == [Ended("unwanted", 1, None, signal.SIGTERM, note="stopped before it began")]
    loop.spawner.start(order)  # As an earlier daemon's keeper might that has the order still.
    assert loop.ended(order)[-1].note == "stopped before it began"
    assert not (tmp_path / "begun").exists()


def test_a_run_that_is_being_stopped_and_had_begun_unnoted_is_taken_up(tmp_path: Path, loop: Loop) -> None:
    script = stubborn(tmp_path)
    daemon = another_daemon(tmp_path, f"""
loop.spawner.start(shell(home, "unnoted", "{script}; exit")); print(flush=True); loop.turn(60)
""")  # fmt: skip
    line_from(daemon)
    loop.until(lambda: len(pids_of(tmp_path)) == 1)
    kill_9(daemon)
    order = shell(tmp_path, "unnoted", "")
    loop.spawner.resume(order, None, None, begin=False)
    loop.spawner.stop("unnoted", 1, force=True)
    loop.began(order)
    assert loop.ended(order)[0].signal == signal.SIGKILL
    assert not any(map(lives, pids_of(tmp_path)))


def test_another_process_with_the_same_pid_is_not_taken_for_ours(tmp_path: Path, loop: Loop) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        order = command(tmp_path, "reused", "true")
        Path(order.folder).mkdir(parents=True)
        Path(order.folder, "claim").write_text(f"keeper {stranger.pid} 1\nbegan reused/1 {stranger.pid} 1\n")
        worker = command(tmp_path, "reused-worker", "true")
        Path(worker.folder).mkdir(parents=True)
        Path(worker.folder, "claim").write_text(f"worker {stranger.pid} 1\n")
        loop.spawner.resume(order, stranger.pid, identity.start_time(stranger.pid))
        loop.spawner.resume(worker, None, None)
        assert [end.code for end in loop.ended(order, worker)] == [None, None]
        loop.spawner.stop("reused", 1, force=True)
        assert stranger.poll() is None
        stranger.kill()


def test_a_claim_cut_off_by_a_crash_is_lost_unless_its_process_lives(tmp_path: Path, loop: Loop) -> None:
    order = command(tmp_path, "torn", "true")
    Path(order.folder).mkdir(parents=True)
    Path(order.folder, "claim").write_text("keeper 12")
    loop.spawner.resume(order, None, None)
    (end,) = loop.ended(order)
    assert (end.code, end.signal) == (None, None)


def test_an_order_that_cannot_be_read_ends_and_holds_up_no_other(tmp_path: Path, loop: Loop) -> None:
    first, last = command(tmp_path, "first", "true"), command(tmp_path, "last", "true")
    long = command(tmp_path, "long", "true", "x" * 100_000)
    loop.spawner.start(first)
    loop.ended(first)
    keeper = keeper_of(first)
    os.kill(keeper, signal.SIGSTOP)
    try:
        loop.spawner.start(long)
        Path(long.folder, "order.json").write_text("[")
        loop.spawner.start(last)
    finally:
        os.kill(keeper, signal.SIGCONT)
    ends = loop.ended(long, last)
    assert [end.code for end in ends] == [1, 0]
    assert "its order cannot be read" in ends[0].note
    assert keeper_of(last) == keeper


def test_a_claim_that_cannot_be_written_is_no_success(tmp_path: Path, loop: Loop) -> None:
    order = command(tmp_path, "full", "true")
    Path(order.folder).parent.parent.mkdir()
    Path(order.folder).parent.touch()
    loop.spawner.start(order)
    (end,) = loop.ended(order)
    assert (end.code, end.signal) == (1, None)
    assert f"no claim could be written in {order.folder}: Not a directory" in end.note


def test_claims_are_taken_once_and_the_first_end_holds(tmp_path: Path) -> None:
    place, one, two = tmp_path / ".workers", tmp_path / "one" / "1", tmp_path / "two" / "1"
    for folder in (place, one, two):
        folder.mkdir(parents=True)
    for where in (str(place), ""):
        journal = Journal(where, "keeper", (12, 34))
        assert read_claim(str(one)) is None
        assert journal.take(str(one))
        assert not journal.take(str(one))
        assert journal.take(str(two))
        journal.began(str(one), (56, 78))
        assert read_claim(str(one)) == Claim((56, 78), (12, 34), never=False, status=None)
        assert read_claim(str(two)) == Claim(None, (12, 34), never=False, status=None)
        journal.ended(str(one), Status(None, 9))
        write_status(str(one), Status(0, None))
        journal.close()
        write_status(str(two), Status(3, None))
        assert read_status(str(one)) == Status(None, 9)
        assert read_status(str(two)) == Status(3, None)
        with (two / "claim").open("r+") as claim:
            claim.truncate(claim.seek(0, 2) - 1)
        assert read_status(str(two)) is None
        assert not claim_never(str(one))
        for folder in (one, two):
            (folder / "claim").unlink()
    assert not any(place.iterdir())
    assert claim_never(str(one))
    assert read_claim(str(one)) == Claim(None, None, never=True, status=None)


def test_two_hundred_at_once_end_truly_and_leave_nothing(tmp_path: Path, loop: Loop) -> None:
    loop.spawner.start(first := command(tmp_path, "first", "true"))
    loop.ended(first)
    before = set(os.listdir("/proc/self/fd"))
    orders = [shell(tmp_path, f"many-{i}", f"read _ <{tmp_path}/go; exit {i % 100}") for i in range(200)]
    os.mkfifo(tmp_path / "go")
    for order in orders:
        loop.spawner.start(order)
    gate = os.open(tmp_path / "go", os.O_RDWR)
    os.write(gate, b"\n" * 200)
    ends = loop.ended(*orders)
    os.close(gate)
    assert [end.code for end in ends] == [i % 100 for i in range(200)]
    assert len(loop.ends()) == 201
    assert not loop.zombies()
    assert set(os.listdir("/proc/self/fd")) == before


def test_close_leaves_runs_alone(tmp_path: Path) -> None:
    first = Loop()
    order = shell(tmp_path, "left", "exec sleep 60")
    first.spawner.start(order)
    began = first.began(order)
    until_file(Path(order.folder, "claim"))
    first.close()
    assert identity.alive(began.pid, began.started)
    second = Loop()
    second.spawner.resume(order, began.pid, began.started)
    second.began(order)
    second.spawner.stop("left", 1, force=True)
    assert second.ended(order)[0].signal == signal.SIGKILL
    second.close()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(began.pid, 0)
