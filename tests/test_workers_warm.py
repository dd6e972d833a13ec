"""Warm workers as real processes: python tasks, one after another in one process, each claimed, kept and told truly."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from test_workers_command import another_daemon, kill_9, line_from
from workers_loop import PATH, Loop, lives, python, text

from daemon.ports import Began, Ended, InferenceTask, Order, PythonTask, SpawnError
from daemon.workers.claim import Claim, Status, read_claim, read_status
from daemon.workers.warm import Bounds
from daemon.workers.wire import Lines, line_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

TASKS = """
import io, os, signal, subprocess, sys, threading

def add(a, b=0): return {"sum": a + b, "pid": os.getpid()}
def nothing(): pass
def say(out="", err=""): print(out); print(err, file=sys.stderr)
def fail(): raise LookupError("no such thing")
def leave(status): sys.exit(status)
def vanish(status): os._exit(status)
def crash(): os.kill(os.getpid(), signal.SIGSEGV)
def strange(): return object()
def endless(): return float("inf")
def environment(): return dict(os.environ)
def descriptors(): return sorted(int(name) for name in os.listdir("/proc/self/fd"))
def spoil(): os.environ["SPOILT"] = "1"; os.chdir("/"); sys.stdout.close(); sys.stderr = None
def silence(): os.close(1); os.dup2(os.open("mine", os.O_WRONLY | os.O_CREAT), 2)
def replace(name):
    path = os.environ["HERMESD_FOLDER"] + "/stdout.log"
    os.rename(path, path + ".old"); open(path, "w").write(name)
def open_up(): os.chmod(os.environ["HERMESD_FOLDER"] + "/stdout.log", 0o666)
def where(): return [os.getcwd(), os.environ.get("SPOILT"), sys.argv[1:]]
def big(data): return len(data)
def wait(gate):
    with open(gate) as file: return file.readline().strip()
def stubborn(pids):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    shell = f"trap '' TERM; echo $$ >>{pids}; while :; do sleep 1; done"
    subprocess.Popen(["sh", "-c", shell]); subprocess.run(["setsid", "sh", "-c", shell])
def litter(pids):
    leave = f"(setsid sh -c 'echo $$ >{pids}; exec sleep 60' &)"
    subprocess.run(["sh", "-c", f"{leave}; while ! [ -s {pids} ]; do :; done"])
    subprocess.Popen(["sleep", "60"])
def thread(): threading.Thread(target=threading.Event().wait).start(); return os.getpid()
def busy_thread(pids):
    # Each is in a session of its own, and followed by the next one.
    start = ["setsid", "sh", "-c", f"echo $$ >>{pids}; exec sleep 60"]
    threading.Thread(target=lambda: [subprocess.run(start) for _ in iter(int, 1)], daemon=True).start()
    while not os.path.exists(pids): pass
def mislay(): print("of the first"); sys.stdout = io.StringIO()
def take(): sys.stdout.detach()
def hide(): sys.stderr = io.StringIO(); raise LookupError("no such thing")
def change():
    os.umask(0); signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.setitimer(signal.ITIMER_REAL, 3600)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
def ways():
    os.umask(umask := os.umask(0))
    return [umask, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, signal.getitimer(signal.ITIMER_REAL)[0],
            list(signal.pthread_sigmask(signal.SIG_BLOCK, ()))]
def nicer(): os.nice(1); return os.getpid()
def astray(gate):
    os.write(3, b"what no worker says\\n")
    with open(gate) as file: file.read()
def fork():
    pid = os.fork()
    return os.waitpid(pid, 0)[0] == pid if pid else "child"
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(Bounds(workers_max=1))
    yield loop
    loop.close()


def result(order: Order) -> object:
    return json.loads(text(order, "result.json"))


def perform(loop: Loop, *orders: Order) -> list[Ended]:
    for order in orders:
        loop.spawner.start(order)
    return loop.ended(*orders)


def test_a_function_is_called_and_its_value_kept(home: Path, loop: Loop) -> None:
    order = python(home, "add", "tasks:add", a=2, b=3)
    (end,) = perform(loop, order)
    began = loop.began(order)
    assert (end.code, end.signal) == (0, None)
    assert result(order) == {"sum": 5, "pid": began.pid}
    claim = Claim((began.pid, began.started), None, never=False, status=Status(0, None))
    assert read_claim(order.folder) == claim
    assert (end.cpu_ms or 0) < 1000
    assert (end.rss_kib or 0) > 1000


def test_one_process_performs_many_in_order(home: Path, loop: Loop) -> None:
    orders = [python(home, f"many-{i:02}", "tasks:add", a=i) for i in range(50)]
    perform(loop, *orders)
    assert len({json.loads(text(order, "result.json"))["pid"] for order in orders}) == 1
    assert [end.run for end in loop.ends()] == [order.run for order in orders]
    assert loop.spawner.workers()[0].performed == 50
    assert loop.spawner.workers()[0].state == "idle"


def test_each_attempt_has_its_own_output_and_what_one_spoils_the_next_does_not_see(home: Path, loop: Loop) -> None:
    orders = [
        python(home, "a", "tasks:say", out="a out", err="a err"),
        python(home, "b", "tasks:spoil"),
        python(home, "c", "tasks:say", out="c out", err="c err"),
        python(home, "d", "tasks:where"),
    ]
    ends = perform(loop, *orders)
    assert [end.code for end in ends] == [0, 0, 0, 0]
    assert text(orders[0], "stdout.log") == "a out\n"
    assert text(orders[2], "stdout.log") == "c out\n"
    assert text(orders[2], "stderr.log") == "c err\n"
    assert result(orders[3]) == [str(home), None, []]
    assert not (home / "runs/a/1/result.json").exists()


def test_what_is_not_printed_makes_no_file_and_what_is_printed_stands_where_it_belongs(home: Path, loop: Loop) -> None:
    calls = {
        "first": ("tasks:nothing", {}), "out-1": ("tasks:say", {"out": "1"}), "silent-1": ("tasks:nothing", {}),
        "lost": ("tasks:silence", {}), "silent-2": ("tasks:add", {"a": 2}),
        "both": ("tasks:say", {"out": "2", "err": "e"}),
        "own": ("tasks:replace", {"name": "mine"}), "silent-3": ("tasks:nothing", {}), "open": ("tasks:open_up", {}),
        "silent-4": ("tasks:nothing", {}), "last": ("tasks:say", {"out": "3"}),
    }  # fmt: skip
    orders = {name: python(home, name, call, **given) for name, (call, given) in calls.items()}
    ends = dict(zip(orders, perform(loop, *orders.values()), strict=True))
    assert {end.code for end in ends.values()} == {0}
    said = {name: text(order, "stdout.log") for name, order in orders.items()}
    assert said == dict.fromkeys(orders, "") | {"out-1": "1\n", "both": "2\n", "own": "mine", "last": "3\n"}
    assert {name for name, order in orders.items() if text(order, "stderr.log").strip()} == {"both"}
    for name in ("silent-1", "silent-2", "silent-3", "silent-4"):
        left = set(os.listdir(orders[name].folder)) - {"result.json"}
        assert left == {"claim"}, name
    assert ends["silent-1"].outputs == {}
    sum_ = (Path(orders["silent-2"].folder) / "result.json").read_bytes()
    assert ends["silent-2"].outputs == {"result.json": {"bytes": len(sum_), "sha256": sha256(sum_).hexdigest()}}
    assert ends["own"].outputs is None
    loop.spawner.close()
    loop.until(lambda: not os.listdir(home / "runs" / ".workers"))


def test_failures_are_failures_with_their_reason(home: Path, loop: Loop) -> None:
    cases = {
        "tasks:fail": (1, "LookupError: no such thing"),
        "tasks:strange": (1, "not JSON serializable"),
        "tasks:endless": (1, "not JSON compliant"),
        "tasks:absent": (1, "no attribute 'absent'"),
        "no_such_module:f": (1, "No module named 'no_such_module'"),
    }
    for number, (call, (code, reason)) in enumerate(cases.items()):
        order = python(home, f"failure-{number}", call)
        (end,) = perform(loop, order)
        assert end.code == code
        assert reason in text(order, "stderr.log")
        assert not Path(order.folder, "result.json").exists()
    left = [python(home, f"left-{status}", "tasks:leave", status=status) for status in (0, 7, "why", None)]
    assert [end.code for end in perform(loop, *left)] == [0, 7, 1, 0]
    assert text(left[2], "stderr.log") == "why\n"
    with pytest.raises(SpawnError, match="not JSON"):
        loop.spawner.start(python(home, "not-json", "tasks:add", a=object()))


def test_a_worker_sees_the_order_s_environment_and_no_descriptor_of_ours(
    home: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "do-not-leak")
    env = python(home, "env", "tasks:environment")
    descriptors = python(home, "descriptors", "tasks:descriptors")
    perform(loop, env, descriptors)
    seen = result(env)
    assert isinstance(seen, dict)
    seen.pop("LC_CTYPE", None)  # Python's own, in a C locale.
    assert seen == {"PATH": PATH, "HERMESD_RUN": "env", "HERMESD_ATTEMPT": "1", "HERMESD_FOLDER": env.folder}
    assert result(descriptors) == [*range(9)]  # the channel, /dev/null, the journal, two files to print to, the listing


def test_a_big_argument_goes_by_file(home: Path, loop: Loop) -> None:
    orders = [python(home, f"big-{i}", "tasks:big", data="x" * 3_000_000) for i in range(6)]
    perform(loop, *orders)
    assert [result(order) for order in orders] == [3_000_000] * 6


@pytest.mark.parametrize(
    ("call", "kwargs", "code", "number"),
    [("tasks:crash", {}, None, signal.SIGSEGV), ("tasks:vanish", {"status": 9}, 9, None),
     ("tasks:vanish", {"status": 0}, 1, None)],
    ids=["a crash", "an exit", "an exit with 0"],
)  # fmt: skip
def test_a_worker_that_dies_ends_its_attempt_and_a_fresh_one_takes_the_rest(
    home: Path, loop: Loop, call: str, kwargs: dict[str, Any], code: int | None, number: int | None
) -> None:
    first, bad, *rest = (
        python(home, "first", "tasks:add", a=1), python(home, "bad", call, **kwargs),
        *(python(home, f"rest-{i}", "tasks:add", a=i) for i in range(10)),
    )  # fmt: skip
    ends = perform(loop, first, bad, *rest)
    assert (ends[1].code, ends[1].signal) == (code, number)
    assert "before the task returned" in ends[1].note
    assert read_status(bad.folder) == Status(code, number)
    assert [end.code for end in ends[2:]] == [0] * 10
    pids = {json.loads(text(order, "result.json"))["pid"] for order in rest}
    assert len(pids) == 1
    assert loop.began(bad).pid not in pids
    assert not loop.zombies()


def test_what_a_task_leaves_behind_is_killed_before_its_end_is_told(home: Path, loop: Loop) -> None:
    order = python(home, "litter", "tasks:litter", pids=str(home / "pids"))
    (end,) = perform(loop, order)
    assert (end.code, end.note) == (0, "2 left-over processes were killed")
    assert not lives(int((home / "pids").read_text()))
    pid = loop.began(order).pid
    assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""
    assert perform(loop, python(home, "next", "tasks:nothing"))[0].note == ""


def test_a_task_that_leaves_a_thread_ends_its_worker(home: Path, loop: Loop) -> None:
    first, second = python(home, "thread", "tasks:thread"), python(home, "after", "tasks:add", a=1)
    ends = perform(loop, first, second)
    assert [end.code for end in ends] == [0, 0]
    assert "threads" in ends[0].note
    assert loop.began(first).pid != loop.began(second).pid


def test_what_a_thread_goes_on_starting_is_killed_before_the_end_is_told(home: Path, loop: Loop) -> None:
    pids = home / "pids"
    order = python(home, "busy", "tasks:busy_thread", pids=str(pids))
    (end,) = perform(loop, order)
    assert (end.code, end.signal) == (0, None)
    assert "threads" in end.note
    assert "killed" in end.note
    assert [pid for pid in pids.read_text().split() if lives(int(pid))] == []


def test_what_a_task_prints_is_its_own_whatever_it_makes_of_the_streams(home: Path, loop: Loop) -> None:
    calls = {"first": "mislay", "second": "take", "third": "say", "fourth": "hide", "fifth": "say"}
    orders = [python(home, run, f"tasks:{call}") for run, call in calls.items()]
    assert [end.code for end in perform(loop, *orders)] == [0, 0, 0, 1, 0]
    assert [text(order, "stdout.log").strip() for order in orders] == ["of the first", "", "", "", ""]
    assert "LookupError: no such thing" in text(orders[3], "stderr.log")
    assert len({loop.began(order).pid for order in orders}) == 1


def test_what_a_task_changes_of_its_process_is_put_right_for_the_next(home: Path, loop: Loop) -> None:
    before, change, after = (python(home, call, f"tasks:{call}") for call in ("ways", "change", "add"))
    again = python(home, "again", "tasks:ways")
    perform(loop, before, change, again)
    assert result(again) == result(before)
    nicer, after = python(home, "nicer", "tasks:nicer"), python(home, "after", "tasks:nicer")
    perform(loop, nicer, after)
    assert result(nicer) != result(after)  # What cannot be put right ends the worker.


def test_what_is_written_into_our_channel_ends_the_task_and_not_the_daemon(home: Path, loop: Loop) -> None:
    os.mkfifo(home / "gate")
    orders = [python(home, "astray", "tasks:astray", gate=str(home / "gate")), python(home, "next", "tasks:nothing")]
    ends = perform(loop, *orders)
    assert [(end.code, end.signal) for end in ends] == [(None, signal.SIGKILL), (0, None)]
    assert "descriptor 3" in ends[0].note
    with pytest.raises(ValueError, match="more than"):
        Lines(longest=100).feed(b"x" * 101)


def test_a_result_that_finds_no_room_is_no_success_and_no_compiled_module_is_cut_off(home: Path, loop: Loop) -> None:
    (home / "long.py").write_text(f"def big(): return 'x' * 9000\n# {'x' * 5000}\nTEXT = '{'x' * 5000}'\n")
    order = python(home, "big", "long:big", limits={"file_size": 4096})
    (end,) = perform(loop, order)
    assert (end.code, end.signal) == (1, None)
    assert "what it returned could not be written: File too large" in end.note
    assert not Path(order.folder, "result.json").exists()
    assert not (home / "__pycache__").exists()


def test_a_fork_that_comes_back_out_of_the_task_reports_nothing(home: Path, loop: Loop) -> None:
    orders = [python(home, "fork", "tasks:fork"), python(home, "after", "tasks:add", a=1)]
    assert [end.code for end in perform(loop, *orders)] == [0, 0]
    assert result(orders[0]) is True
    assert len(loop.ends()) == 2


def test_stop_ends_a_running_task_s_whole_tree_and_spares_those_behind_it(home: Path, loop: Loop) -> None:
    pids = home / "pids"
    order = python(home, "stubborn", "tasks:stubborn", pids=str(pids))
    behind = python(home, "behind", "tasks:add", a=1)
    loop.spawner.start(order)
    loop.spawner.start(behind)
    loop.until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    loop.spawner.stop("stubborn", 1, force=False)
    loop.turn(0.1)
    assert not loop.ends()
    loop.spawner.stop("stubborn", 1, force=True)
    ends = loop.ended(order, behind)
    assert [(end.code, end.signal) for end in ends] == [(None, signal.SIGKILL), (0, None)]
    assert not any(lives(int(pid)) for pid in pids.read_text().split())


def test_stop_of_a_queued_task_drops_it_and_it_never_runs(home: Path, loop: Loop) -> None:
    gate = home / "gate"
    os.mkfifo(gate)
    running = python(home, "running", "tasks:wait", gate=str(gate))
    queued = [python(home, f"queued-{i}", "tasks:add", a=i) for i in range(8)]
    for order in (running, *queued):
        loop.spawner.start(order)
    loop.began(running)
    loop.spawner.stop("queued-0", 1, force=False)  # Sent to the worker already.
    loop.spawner.stop("queued-7", 1, force=True)  # Not sent yet.
    assert [end.signal for end in loop.ended(queued[0], queued[7])] == [signal.SIGTERM, signal.SIGTERM]
    gate.write_text("open\n")
    assert [end.code for end in loop.ended(running, *queued[1:7])] == [0] * 7
    loop.turn(0)
    assert len(loop.ends()) == 9
    assert not Path(queued[0].folder, "result.json").exists()
    again = Loop()
    again.spawner.resume(queued[0], None, None)
    assert again.ended(queued[0])[0].signal == signal.SIGTERM
    again.close()


def test_what_waits_behind_a_long_task_is_taken_over_by_an_idle_worker(home: Path) -> None:
    loop = Loop(Bounds(workers_max=2))
    gates = [home / "gate-0", home / "gate-1"]
    for gate in gates:
        os.mkfifo(gate)
    long = [python(home, f"long-{i}", "tasks:wait", gate=str(gate)) for i, gate in enumerate(gates)]
    short = [python(home, f"short-{i}", "tasks:add", a=i) for i in range(9)]
    for order in (*long, *short):
        loop.spawner.start(order)
    for order in long:
        loop.began(order)
    gates[1].write_text("open\n")
    assert [end.code for end in loop.ended(*short)] == [0] * 9
    gates[0].write_text("open\n")
    loop.ended(*long)
    assert len(loop.ends()) == len([report for report in loop.reports if isinstance(report, Began)]) == 11
    loop.close()


def test_another_working_folder_or_environment_is_another_worker_and_an_idle_one_makes_room(
    home: Path, loop: Loop
) -> None:
    plain = python(home, "plain", "tasks:add", a=1)
    other = Order("other", 1, 1, str(home / "runs/other/1"), plain.task, {"PATH": PATH, "COLOUR": "blue"})
    ends = perform(loop, plain, other)
    assert [end.code for end in ends] == [0, 0]
    assert loop.began(plain).pid != loop.began(other).pid
    assert len(loop.spawner.workers()) == 1
    assert not lives(loop.began(plain).pid)


def test_an_order_that_no_worker_survives_ends_and_holds_up_no_other(home: Path, loop: Loop) -> None:
    os.mkfifo(home / "gate")
    first = python(home, "first", "tasks:wait", gate=str(home / "gate"))
    gone, spoilt = (python(home, run, "tasks:big", data="x" * 100_000) for run in ("gone", "spoilt"))
    last = python(home, "last", "tasks:nothing")
    loop.spawner.start(first)
    loop.began(first)
    for order in (gone, spoilt, last):
        loop.spawner.start(order)
    shutil.rmtree(gone.folder)
    Path(spoilt.folder, "order.json").write_text("[]")
    (home / "gate").write_text("\n")
    ends = loop.ended(first, gone, spoilt, last)
    assert [end.code for end in ends] == [0, 1, 1, 0]
    assert "its order cannot be read" in ends[1].note
    assert "died before it began" in ends[2].note
    assert not Path(gone.folder, "claim").exists()


def test_an_edited_module_is_what_the_next_run_means(home: Path, loop: Loop) -> None:
    module = home / "edited.py"
    module.write_text("def version(): return 1\n")
    perform(loop, first := python(home, "first", "edited:version"))
    module.write_text("def version(): return 'two'\n")
    perform(loop, second := python(home, "second", "edited:version"))
    assert [result(first), result(second)] == [1, "two"]


def test_our_names_do_not_hide_the_task_s_own_modules(home: Path, loop: Loop) -> None:
    (home / "daemon.py").write_text("def f(): return 'mine'\n")
    (home / "wire.py").write_text("def f(): return 'mine too'\n")
    orders = [python(home, "daemon", "daemon:f"), python(home, "wire", "wire:f")]
    perform(loop, *orders)
    assert [result(order) for order in orders] == ["mine", "mine too"]


def test_an_idle_worker_leaves_after_its_time(home: Path) -> None:
    loop = Loop(Bounds(idle_ms=1_000))
    assert loop.spawner.next_deadline() is None
    perform(loop, order := python(home, "only", "tasks:add", a=1))
    assert loop.spawner.next_deadline() is not None
    loop.spawner.housekeep(50_000)
    assert loop.spawner.next_deadline() == 51_000
    loop.spawner.housekeep(50_999)
    assert loop.spawner.workers()[0].state == "idle"
    loop.spawner.housekeep(51_000)
    assert loop.spawner.workers()[0].state == "leaving"
    loop.until(lambda: not loop.spawner.workers())
    assert not lives(loop.began(order).pid)
    assert not loop.zombies()
    loop.close()


def test_a_worker_is_replaced_after_its_share(home: Path) -> None:
    loop = Loop(Bounds(workers_max=1, attempts_max=3))
    orders = [python(home, f"share-{i}", "tasks:add", a=i) for i in range(7)]
    assert [end.code for end in perform(loop, *orders)] == [0] * 7
    assert [list(map(loop.began, orders)).count(loop.began(order)) for order in orders] == [1] * 7
    assert len({loop.began(order).pid for order in orders}) == 3
    loop.close()


def test_a_worker_that_cannot_start_fails_its_runs_and_says_where_to_look(home: Path, loop: Loop) -> None:
    (home / "json.py").write_text("raise RuntimeError('not your json')\n")
    orders = [python(home, f"shadowed-{i}", "tasks:add", a=1) for i in range(3)]
    orders = [Order(o.run, 1, 1, o.folder, o.task, {"PATH": PATH, "PYTHONPATH": str(home)}) for o in orders]
    for end, order in zip(perform(loop, *orders), orders, strict=True):
        assert end.code == 1
        assert "could not start" in end.note
        assert "not your json" in text(order, "stderr.log")


def test_limits_bind_a_worker_s_task(home: Path, loop: Loop) -> None:
    (home / "busy.py").write_text("import resource\ndef spin():\n    while True: pass\n"
                                  "def files(): return resource.getrlimit(resource.RLIMIT_NOFILE)[0]\n")  # fmt: skip
    spin = python(home, "spin", "busy:spin", limits={"cpu_seconds": 1})
    files = python(home, "files", "busy:files", limits={"open_files": 50})
    ends = perform(loop, files, spin)
    assert result(files) == 50
    assert ends[1].signal == signal.SIGXCPU


def test_a_limit_of_cpu_time_counts_from_the_attempt_on(home: Path, loop: Loop) -> None:
    (home / "busy.py").write_text(
        "import time\ndef spin(until, more):\n    while time.process_time() % 1 < until: pass\n"
        "    end = time.process_time() + more\n    while time.process_time() < end: pass\n"
    )
    first = python(home, "first", "busy:spin", until=0.9, more=0)
    second = python(home, "second", "busy:spin", limits={"cpu_seconds": 1}, until=0, more=0.5)
    assert [end.code for end in perform(loop, first, second)] == [0, 0]
    assert loop.began(first).pid == loop.began(second).pid


SURVIVOR = """
from daemon.workers.warm import Bounds
loop = Loop(Bounds(workers_max=1))
orders = [python(home, f"task-{i}", "tasks:wait", gate=str(home / f"gate-{i}")) for i in range(3)]
for order in orders: loop.spawner.start(order)
began = loop.began(orders[0]); print(began.pid, began.started, flush=True); loop.turn(60)
"""


def test_a_worker_finishes_what_it_claimed_after_its_daemon_was_killed(home: Path, loop: Loop) -> None:
    gates = [home / f"gate-{i}" for i in range(3)]
    for gate in gates:
        os.mkfifo(gate)
    daemon = another_daemon(home, SURVIVOR)
    pid, started = map(int, line_from(daemon).split())
    kill_9(daemon)
    orders = [python(home, f"task-{i}", "tasks:wait", gate=str(home / f"gate-{i}")) for i in range(3)]
    loop.spawner.resume(orders[0], pid, started)
    assert loop.began(orders[0]) == Began("task-0", 1, pid, started)
    gates[0].write_text("open\n")
    (end,) = loop.ended(orders[0])
    assert end.code == 0
    assert result(orders[0]) == "open"
    assert not lives(pid)
    for order in orders[1:]:
        assert not Path(order.folder, "claim").exists()
        loop.spawner.resume(order, None, None)
    loop.began(orders[1])
    gates[1].write_text("again\n")
    loop.began(orders[2])
    gates[2].write_text("again\n")
    assert [end.code for end in loop.ended(*orders[1:])] == [0, 0]
    assert loop.began(orders[1]).pid != pid


def test_a_worker_killed_with_its_daemon_is_lost(home: Path, loop: Loop) -> None:
    os.mkfifo(home / "gate-0")
    daemon = another_daemon(home, SURVIVOR)
    pid, started = map(int, line_from(daemon).split())
    kill_9(daemon)
    os.kill(pid, signal.SIGKILL)
    loop.until(lambda: not lives(pid))
    order = python(home, "task-0", "tasks:wait", gate=str(home / "gate-0"))
    loop.spawner.resume(order, pid, started)
    (end,) = loop.ended(order)
    assert (end.code, end.signal) == (None, None)


ENGINE = """
import os
from daemon.workers.child import Worker
def main(channel):
    worker = Worker(channel)
    def perform(order):
        worker.tell("facts", loaded=order["task"]["model"])
        print(order["task"]["prompt"], flush=True)
        return {"pid": os.getpid(), "lines": order["task"]["lines"]}
    worker.serve(perform)
"""


def test_an_engine_is_kept_for_its_model_and_there_is_one(home: Path) -> None:
    (home / "make_believe_engine.py").write_text(textwrap.dedent(ENGINE))
    loop = Loop(Bounds(workers_max=3), engine="make_believe_engine")
    env = {"PATH": PATH, "PYTHONPATH": str(home)}

    def generate(run: str, model: str) -> Order:
        return Order(run, 1, 1, str(home / "runs" / run / "1"), InferenceTask(model, run, ("a", "b")), env)

    orders = [generate(f"{model}-{i}", model) for i in range(4) for model in ("small", "large")]
    assert [end.code for end in perform(loop, *orders)] == [0] * 8
    assert len({loop.began(order).pid for order in orders}) == 2
    assert result(orders[0]) == {"pid": loop.began(orders[0]).pid, "lines": ["a", "b"]}
    assert text(orders[0], "stdout.log") == "small-0\n"
    assert {(view.kind, view.serves, view.facts["loaded"]) for view in loop.spawner.workers()} == {
        ("inference", "small", "small"), ("inference", "large", "large")
    }  # fmt: skip
    loop.close()


def test_messages_come_whole_however_the_stream_is_cut(tmp_path: Path) -> None:
    messages: list[dict[str, Any]] = [{"type": "facts", "text": "é\n"}, {"type": "ended", "code": 0}]
    stream = b"".join(map(line_of, messages))
    for size in (1, 2, 7, 1000):
        lines = Lines()
        found = [m for i in range(0, len(stream), size) for m in lines.feed(stream[i : i + size])]
        assert found == messages
    with pytest.raises(ValueError, match="JSON object"):
        Lines().feed(b"[]\n")


def test_the_working_folder_of_another_task_is_not_on_the_path(home: Path, loop: Loop) -> None:
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    task = PythonTask("tasks:add", {"a": 1}, str(elsewhere))
    lost = Order("lost", 1, 1, str(home / "runs/lost/1"), task, {"PATH": PATH})
    found = Order("found", 1, 1, str(home / "runs/found/1"),
                  PythonTask("tasks:add", {"a": 1}, str(elsewhere), (str(home),)), {"PATH": PATH})  # fmt: skip
    perform(loop, python(home, "here", "tasks:add", a=1))
    assert [end.code for end in perform(loop, lost, found)] == [1, 0]
    assert read_status(lost.folder) == Status(1, None)
