"""What a hostile or careless job does to the machine, as real processes: it is bounded, ended, and told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_workers_command import DAEMON, another_daemon, keeper_of, kill_9, line_from, pids_of
from workers_loop import PATH, Loop, command, lives, python, shell, text, until_file

from daemon.ports import Order
from daemon.workers import identity
from daemon.workers.claim import Status, read_status
from daemon.workers.output import Output, Spares
from daemon.workers.preflight import preflight

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

MIB = 1 << 20


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def script(home: Path, run: str, code: str, **more: object) -> Order:
    return command(home, run, sys.executable, "-S", "-c", code, **more)  # type: ignore[arg-type]


def disk_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_output_past_its_bound_loses_its_middle_and_says_so(tmp_path: Path, loop: Loop) -> None:
    write = "import os\nfor i in range(3000): os.write(1, b'%07d\\n' % i * 128)\nprint('the end', flush=True)"
    order = script(tmp_path, "loud", write, limits={"output": MIB})
    loop.spawner.start(order)
    (end,) = loop.ended(order)
    printed = text(order, "stdout.log")
    lost = 3000 * 1024 + 8 - MIB
    assert (end.code, end.note) == (
        0,
        f"stdout.log was cut to its limit of {MIB} bytes: {lost} more bytes were not kept",
    )
    assert f"\n[hermes: output cut here: {lost} more bytes were not kept]\n" in printed
    assert printed.startswith("0000000\n")
    assert printed.endswith("0002999\nthe end\n")
    assert "\0" not in printed
    assert len(printed) <= MIB + 256


def test_gigabytes_do_not_fill_the_disk_while_their_writer_runs_on(tmp_path: Path, loop: Loop) -> None:
    os.mkfifo(tmp_path / "go")
    write = f"import os\nfor _ in range(256): os.write(1, b'x' * {MIB})\nopen('go').read(); print('done', flush=True)"
    order = script(tmp_path, "flood", write, limits={"output": MIB})
    loop.spawner.start(order)
    log = Path(order.folder, "stdout.log")
    loop.until(lambda: log.exists() and log.stat().st_size == 256 * MIB and disk_bytes(log) < 2 * MIB)
    (tmp_path / "go").write_text("")
    (end,) = loop.ended(order)
    assert end.code == 0
    assert text(order, "stdout.log").endswith("xxx\ndone\n") or text(order, "stdout.log").endswith("xdone\n")
    assert log.stat().st_size < 2 * MIB


def test_what_a_python_task_prints_is_bounded_too(tmp_path: Path, loop: Loop) -> None:
    (tmp_path / "flood.py").write_text(
        f"import os\ndef say():\n    for _ in range(64): os.write(1, b'x' * {MIB})\n    open('go').read()\n"
    )
    os.mkfifo(tmp_path / "go")
    order = python(tmp_path, "flood", "flood:say", limits={"output": MIB})
    loop.spawner.start(order)
    log = Path(order.folder, "stdout.log")
    loop.until(lambda: log.exists() and log.stat().st_size == 64 * MIB)
    assert loop.spawner.next_deadline() is not None
    loop.spawner.housekeep(1_000_000)
    assert disk_bytes(log) < 2 * MIB
    (tmp_path / "go").write_text("")
    (end,) = loop.ended(order)
    assert f"{63 * MIB} more bytes were not kept" in end.note
    assert log.stat().st_size < 2 * MIB


def test_where_no_holes_can_be_made_output_is_cut_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.workers.output._make_hole", lambda *_: False)
    log = tmp_path / "stdout.log"
    log.write_bytes(b"a" * MIB)
    with log.open("ab", buffering=0) as writer:
        output = Output(str(tmp_path), 1000)
        output.look()
        writer.write(b"the last words\n")
        assert output.end() == ""
    assert (
        log.read_bytes()
        == b"a" * 500
        + b"\n[hermes: output cut here: %d more bytes were not kept]\n" % (MIB - 500)
        + b"the last words\n"
    )


def test_an_empty_file_goes_to_the_next_attempt_only_if_nobody_holds_it(tmp_path: Path) -> None:
    spares = Spares(str(tmp_path))
    log, later = tmp_path / "stdout.log", tmp_path / "later"
    log.touch(0o600)
    with log.open("ab"):
        Output(str(tmp_path), MIB).end(spares)
        assert log.exists()
    Output(str(tmp_path), MIB).end(spares)
    assert not log.exists()
    later.write_text("mine")
    spares.lend(str(later))
    assert later.read_text() == "mine"
    log.touch(0o600)
    Output(str(tmp_path), MIB).end(spares)
    spares.lend(str(log))
    assert log.read_text() == ""
    assert log.stat().st_nlink == 1


ESCAPE = """
import os, sys, time
if os.fork(): time.sleep(0.05); os._exit({code})
os.setsid()
if os.fork(): os._exit(0)
if os.fork():
    os.execve(sys.executable, [sys.executable, "-S", "-c", {forever!r}], {{}})
os.execve(sys.executable, [sys.executable, "-S", "-c", {forever!r}], {{}})
"""
FOREVER = "import os, signal, time; signal.signal(15, 1); open('pids', 'a').write(f'{os.getpid()}\\n'); time.sleep(600)"


def test_a_double_fork_without_parent_session_or_environment_is_ended_with_a_successful_run(
    tmp_path: Path, loop: Loop
) -> None:
    wait = "while [ $(cat pids | wc -l) -lt 2 ]; do :; done; exit 0"
    escape = ESCAPE.format(code=0, forever=FOREVER)
    order = shell(tmp_path, "escape", f'touch pids; {sys.executable} -S -c "$ESCAPE"; {wait}', env={"ESCAPE": escape})  # type: ignore[arg-type]
    loop.spawner.start(order)
    (end,) = loop.ended(order)
    assert (end.code, end.note) == (0, "2 left-over processes were killed")
    assert len(pids_of(tmp_path)) == 2
    assert not any(map(lives, pids_of(tmp_path)))
    assert not loop.zombies()


def test_such_a_process_is_found_by_the_next_daemon_too(tmp_path: Path, loop: Loop) -> None:
    escape = ESCAPE.format(code=0, forever=FOREVER)
    text_ = f'touch pids; {sys.executable} -S -c "$ESCAPE"; exec sleep 600'
    daemon = another_daemon(tmp_path, f"""
order = shell(home, "escape", {text_!r}, env={{"ESCAPE": {escape!r}}})
loop.spawner.start(order); print(loop.began(order).pid, flush=True); loop.turn(60)
""")  # fmt: skip
    line_from(daemon)
    loop.until(lambda: len(pids_of(tmp_path)) == 2)
    kill_9(daemon)
    order = shell(tmp_path, "escape", "")
    loop.spawner.resume(order, None, None)
    loop.began(order)
    loop.spawner.stop("escape", 1, force=True)
    (end,) = loop.ended(order)
    assert (end.code, end.signal) == (None, signal.SIGKILL)
    assert not any(map(lives, pids_of(tmp_path)))


def test_a_gentle_fork_bomb_is_ended_whole(tmp_path: Path, loop: Loop) -> None:
    bomb = (
        "import os, time\nopen('pids', 'a').write(f'{os.getpid()}\\n')\n"
        "for _ in range(20):\n  if os.fork() == 0:\n    os.setsid()\n    if os.fork(): os._exit(0)\n"
        "    open('pids', 'a').write(f'{os.getpid()}\\n')\n    while True:\n      time.sleep(0.1)\n"
        "      if os.fork(): os._exit(0)\n"
        "time.sleep(600)"
    )
    order = script(tmp_path, "bomb", bomb)
    loop.spawner.start(order)
    loop.until(lambda: len(pids_of(tmp_path)) == 21)
    loop.spawner.stop("bomb", 1, force=True)
    (end,) = loop.ended(order)
    assert end.signal == signal.SIGKILL
    assert identity.tree(order.folder) == []


def test_a_command_that_closes_its_output_or_changes_its_group_is_an_ordinary_one(tmp_path: Path, loop: Loop) -> None:
    closes = script(tmp_path, "closes", "import os; os.close(0); os.close(1); os.close(2); os._exit(7)")
    leads = script(tmp_path, "group", f"""
import os, time
if os.fork() == 0:
    os.setpgid(0, 0); exec({FOREVER!r})
while not os.path.exists('pids') or not open('pids').read(): pass
os._exit(8)
""")  # fmt: skip
    for order in (closes, leads):
        loop.spawner.start(order)
    ends = loop.ended(closes, leads)
    assert [(end.code, end.note) for end in ends] == [(7, ""), (8, "1 left-over process was killed")]
    assert not any(map(lives, pids_of(tmp_path)))


def test_a_command_that_stops_itself_is_ended_by_force(tmp_path: Path, loop: Loop) -> None:
    order = shell(tmp_path, "stops", "trap '' TERM; echo stopping; kill -STOP $$; echo on; kill -STOP $$; echo no")
    loop.spawner.start(order)
    until_file(Path(order.folder, "stdout.log"))
    loop.spawner.stop("stops", 1, force=False)
    loop.until(lambda: text(order, "stdout.log").endswith("on\n"))
    loop.spawner.stop("stops", 1, force=True)
    assert loop.ended(order)[0].signal == signal.SIGKILL
    assert text(order, "stdout.log") == "stopping\non\n"


def test_a_working_folder_that_vanishes_is_told_or_does_not_matter(tmp_path: Path, loop: Loop) -> None:
    (tmp_path / "cwd").mkdir()
    os.mkfifo(tmp_path / "go")
    runs = shell(tmp_path, "runs", "read _ <../go; exit 0", cwd=str(tmp_path / "cwd"))
    loop.spawner.start(runs)
    gate = os.open(tmp_path / "go", os.O_WRONLY)
    (tmp_path / "cwd").rmdir()
    late = shell(tmp_path, "late", "exit 0", cwd=str(tmp_path / "cwd"))
    assert "does not exist" in str(preflight(late.task, {"PATH": PATH}))
    loop.spawner.start(late)
    os.write(gate, b"\n")
    os.close(gate)
    ends = loop.ended(runs, late)
    assert [end.code for end in ends] == [0, 125]
    assert f"working directory {tmp_path}/cwd: No such file or directory" in ends[1].note


def test_a_script_without_an_interpreter_s_name_is_run_by_the_shell(tmp_path: Path, loop: Loop) -> None:
    (tmp_path / "bare").write_text("echo ran $1\nexit 6\n")
    (tmp_path / "bare").chmod(0o755)
    order = command(tmp_path, "bare", "./bare", "well")
    loop.spawner.start(order)
    assert loop.ended(order)[0].code == 6
    assert text(order, "stdout.log") == "ran well\n"


# Inside namespaces of its own, where anybody may mount a file system of 2 MiB on a folder.
FULL = """
import subprocess
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(home)], check=True)
filling = shell(home, "filling", "yes >big; echo $?; exit 9")
loop.spawner.start(filling)
begins = shell(home, "begins", "exit 0")
first = loop.ended(filling)[0]
while True:
    try: open(home / "rest", "ab", buffering=0).write(b"x")
    except OSError: break
for i in range(600):
    try: (home / f"file-{i}").mkdir()
    except OSError: break
loop.spawner.start(begins)
second = loop.ended(begins)[0]
(home / "big").unlink()
third = shell(home, "third", "exit 3")
loop.spawner.start(third)
print([(end.code, end.note) for end in (first, second, loop.ended(third)[0])])
"""


def test_a_disk_filled_by_a_command_is_told_and_its_end_is_true(tmp_path: Path) -> None:
    inside = [sys.executable, "-c", DAEMON + FULL, str(tmp_path)]
    namespaces = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*namespaces, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system gives no namespaces")
    done = subprocess.run([*namespaces, *inside], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (filling, begins, third) = eval(done.stdout)
    assert filling == (9, "")
    assert third == (3, "")
    assert begins == (0, "") or "No space left on device; make room on its disk" in begins[1]


def test_nothing_of_the_daemon_reaches_a_command_or_what_the_keeper_starts_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SECRET_TOKEN", "HERMESD_HOME", "HERMESD_SECRET", "PYTHONPATH", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(name, "do-not-leak")
    secret = os.open(tmp_path / "secret", os.O_CREAT | os.O_RDWR)
    os.set_inheritable(secret, True)
    loop = Loop()
    late = os.open(tmp_path / "late", os.O_CREAT | os.O_RDWR)  # Opened as the daemon opens its own.
    show = "ls -l /proc/self/fd; env; grep -i locks /proc/self/limits; cat /proc/$PPID/environ"
    orders = [shell(tmp_path, f"look-{i}", show) for i in range(2)]
    for order in orders:
        loop.spawner.start(order)
        loop.ended(order)
        seen = text(order, "stdout.log")
        assert "do-not-leak" not in seen
        assert "secret" not in seen
        assert str(tmp_path / "late") not in seen
        assert "socket:" not in seen
    os.close(secret)
    os.close(late)
    loop.close()


def test_what_ends_the_whole_service_does_not_keep_a_command_s_end_from_being_seen(tmp_path: Path, loop: Loop) -> None:
    order = shell(tmp_path, "polite", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done")
    loop.spawner.start(order)
    began = loop.began(order)
    until_file(Path(order.folder, "stdout.log"))
    for pid in (keeper_of(order), began.pid):
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGIO, signal.SIGTERM):
            if pid != began.pid or number == signal.SIGTERM:
                os.kill(pid, number)
    assert loop.ended(order)[0].code == 3
    assert lives(keeper_of(order))


def test_each_attempt_leads_a_session_and_a_group_of_its_own(tmp_path: Path, loop: Loop) -> None:
    order = shell(tmp_path, "leads", "exec sleep 600")
    loop.spawner.start(order)
    began = loop.began(order)
    found = identity.process(began.pid)
    assert found is not None
    assert (found.group, found.session) == (began.pid, began.pid)
    loop.spawner.stop("leads", 1, force=True)
    loop.ended(order)
    assert read_status(order.folder) == Status(None, signal.SIGKILL)
