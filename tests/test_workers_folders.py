"""The folder of a run that left nothing is the next one's, and no run ever shares one with another."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lived import FRIDAY, Life, any_fate, any_jobs, policy
from workers_loop import Loop, lives, shell, text, until_file

from daemon.ports import Ended, Order
from daemon.workers.claim import Journal, Status, claim_never, make_folder, read_claim, read_status
from daemon.workers.folders import SpareFolders, sweep
from daemon.workers.identity import boot_ns, start_time, tick_between

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="leases on files are Linux's")


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def over(loop: Loop, order: Order) -> Ended:
    """Its end, as durable."""
    (end,) = loop.ended(order)
    if end.outputs == {}:
        loop.spawner.recorded(order.run, order.attempt)
    return end


def done(loop: Loop, order: Order) -> Ended:
    loop.spawner.start(order)
    return over(loop, order)


def inode(order: Order) -> int:
    return Path(order.folder).stat().st_ino


def test_a_run_that_left_nothing_leaves_its_folder_to_the_next(tmp_path: Path, loop: Loop) -> None:
    first, second, third = (shell(tmp_path, f"run-{n}", f"exit {n}") for n in (1, 2, 3))
    loop.spawner.start(first)
    (end,) = loop.ended(first)
    assert (end.code, end.outputs, read_status(first.folder)) == (1, {}, Status(1, None))  # As long as it is not told.
    mine = inode(first)
    loop.spawner.recorded("run-1", 1)
    assert not Path(first.folder).parent.exists()
    loop.spawner.start(second)
    assert loop.ended(second)[0].code == 2
    assert inode(second) == mine
    assert read_status(second.folder) == Status(2, None)
    assert done(loop, third).code == 3  # The second one's end is not recorded: its folder is its own.
    assert read_status(second.folder) == Status(2, None)


def test_what_is_printed_in_a_folder_that_was_another_s_is_all_there_is(tmp_path: Path, loop: Loop) -> None:
    silent = [shell(tmp_path, f"silent-{n}", "exit 0") for n in range(2)]
    for order in silent:
        done(loop, order)
    said = shell(tmp_path, "said", "echo out; echo err >&2; pwd; touch here", cwd="")
    said = Order(said.run, 1, 1, said.folder, type(said.task)(said.task.argv, said.folder), said.env)  # type: ignore
    end = done(loop, said)
    assert end.outputs is None
    assert (text(said, "stdout.log"), text(said, "stderr.log")) == (f"out\n{said.folder}\n", "err\n")
    assert sorted(os.listdir(said.folder)) == ["claim", "here", "stderr.log", "stdout.log"]


@pytest.mark.parametrize(
    "leaves",
    [
        "echo x",
        "echo x >&2",
        "touch $HERMESD_FOLDER/file",
        "touch $HERMESD_FOLDER/../file",
        "mkdir $HERMESD_FOLDER/../2",
        "chmod 755 $HERMESD_FOLDER",
        "chmod 644 $HERMESD_FOLDER/stderr.log",
        "rm $HERMESD_FOLDER/stdout.log",
        "ln $HERMESD_FOLDER/stdout.log {home}/elsewhere",
        "ln -sf {home}/elsewhere $HERMESD_FOLDER/stdout.log",
    ],
)
def test_a_run_that_left_anything_keeps_its_folder(tmp_path: Path, loop: Loop, leaves: str) -> None:
    order = shell(tmp_path, "leaves", leaves.format(home=tmp_path))
    end = done(loop, order)
    assert (end.code, end.outputs) == (0, None)
    loop.spawner.recorded("leaves", 1)  # Nor by mistake.
    assert read_status(order.folder) == Status(0, None)


def test_a_folder_whose_files_somebody_holds_open_stays(tmp_path: Path, loop: Loop) -> None:
    order = shell(tmp_path, "held", "echo >go; read _ <back")
    os.mkfifo(tmp_path / "go")
    os.mkfifo(tmp_path / "back")
    loop.spawner.start(order)
    (tmp_path / "go").read_text()
    with open(f"{order.folder}/stdout.log", "a"):
        (tmp_path / "back").write_text("\n")
        assert loop.ended(order)[0].outputs is None


def test_a_moved_folder_is_claimed_by_whoever_moved_it(tmp_path: Path) -> None:
    (tmp_path / ".workers").mkdir()
    old, mine = (Journal(str(tmp_path / ".workers"), "keeper", (pid, 5)) for pid in (11, 22))
    for n in range(3):
        folder = str(tmp_path / f"old-{n}" / "1")
        make_folder(folder)
        assert old.take(folder)
        old.ended(folder, Status(n, None))
    spares = SpareFolders()
    for n in range(3):
        spares.take(str(tmp_path / f"old-{n}" / "1"))
    folder = str(tmp_path / "new" / "1")
    assert mine.move(spares.lend(), folder)
    claim = read_claim(folder)
    assert claim is not None
    assert (claim.keeper, claim.status, claim.never) == ((22, 5), None, False)
    mine.ended(folder, Status(0, None))
    assert read_status(folder) == Status(0, None)

    spare = spares.lend()
    assert not mine.move(spare, folder)  # It is claimed already.
    assert read_status(folder) == Status(0, None)
    assert not mine.move(spare, str(tmp_path / "new" / "2"))
    assert not mine.move(f"{spare}-gone", str(tmp_path / "other" / "1"))
    never = str(tmp_path / "never" / "1")
    make_folder(never)
    assert claim_never(never)
    assert not mine.move(spare, never)
    claim = read_claim(never)
    assert claim is not None
    assert claim.never
    assert mine.move(spare, str(tmp_path / "other" / "1"))
    assert spares.lend() != ""
    assert spares.lend() == ""


def test_the_next_daemon_finds_an_end_in_a_folder_that_was_moved(tmp_path: Path, loop: Loop) -> None:
    done(loop, shell(tmp_path, "silent", "exit 0"))
    order = shell(tmp_path, "running", f"echo >{tmp_path}/began; read _ <{tmp_path}/go; exit 9")
    os.mkfifo(tmp_path / "go")
    loop.spawner.start(order)
    began = loop.began(order)
    until_file(tmp_path / "began")
    loop.spawner.close()
    again = Loop()
    try:
        again.spawner.resume(order, began.pid, began.started)
        assert again.began(order).pid == began.pid
        (tmp_path / "go").write_text("\n")
        assert again.ended(order)[0].code == 9
        assert read_status(order.folder) == Status(9, None)
    finally:
        again.close()


def test_spares_of_a_process_that_is_gone_are_swept(tmp_path: Path) -> None:
    pid = os.spawnv(os.P_NOWAIT, "/bin/true", ["true"])
    os.waitpid(pid, 0)
    make_folder(str(tmp_path / f"{pid}-1.folder" / "1"))
    make_folder(str(tmp_path / f"{os.getpid()}-1.folder" / "1"))
    (tmp_path / f"{pid}-1.journal").touch()
    sweep(str(tmp_path))
    assert os.listdir(tmp_path) == [f"{os.getpid()}-1.folder"]


def test_orders_given_together_begin_when_all_are_given(tmp_path: Path, loop: Loop) -> None:
    orders = [shell(tmp_path, f"run-{n}", f"exit {n}") for n in range(5)]
    with loop.spawner.together():
        for order in orders:
            loop.spawner.start(order)
        loop.spawner.stop("run-4", 1, force=False)
    ends = loop.ended(*orders)
    assert [end.code for end in ends] == [0, 1, 2, 3, None]
    assert ends[4].signal == signal.SIGTERM
    assert not any(lives(loop.began(order).pid) for order in orders[:4])


def test_the_start_of_a_process_is_told_by_the_clock_as_by_the_system() -> None:
    told = 0
    for _ in range(40):
        before_ns = boot_ns()
        pid = os.posix_spawn("/bin/true", ["true"], {})
        tick = tick_between(before_ns, boot_ns())
        assert tick in (None, start_time(pid))
        told += tick is not None
        os.waitpid(pid, 0)
    assert tick_between(9_999_999, 10_000_001) is None
    assert told


def test_a_run_that_has_begun_does_not_begin_again_where_its_folder_is_gone(tmp_path: Path, loop: Loop) -> None:
    order = shell(tmp_path, "gone", f"echo x >>{tmp_path}/begun; read _ <{tmp_path}/go; exit 3")
    os.mkfifo(tmp_path / "go")
    loop.spawner.start(order)
    began = loop.began(order)
    until_file(tmp_path / "begun")
    loop.spawner.close()
    shutil.rmtree(Path(order.folder).parent)
    again = Loop()
    try:
        again.spawner.resume(order, began.pid, began.started)
        assert again.began(order).pid == began.pid
        (tmp_path / "go").write_text("\n")
        (end,) = again.ended(order)
        assert (end.code, end.signal, end.note) == (None, None, "nobody saw how it ended")
        again.spawner.resume(shell(tmp_path, "other", f"echo x >>{tmp_path}/begun"), began.pid, began.started)
        again.until(lambda: len(again.ends()) == 2)
        assert (tmp_path / "begun").read_text() == "x\n"
    finally:
        again.close()


class _Told(Life):
    """A life that notes whose folders may go, and when."""

    def begin(self) -> None:
        self.over: dict[tuple[str, int], int] = {}
        """With the last record that was durable by then."""
        self.begun: list[tuple[str, int]] = []
        super().begin()

    def start(self, order: Order) -> None:
        assert order.run not in {run for run, _ in self.over}, "its folder was taken for over"
        self.begun.append((order.run, order.attempt))
        super().start(order)

    def measure(self, run: str, attempt: int) -> dict[str, Any]:
        return {"result.json": {"bytes": 1, "sha256": "x"}} if run.startswith("job3") else {}

    def recorded(self, run: str, attempt: int) -> None:
        self.over[run, attempt] = self.loop.ledger.durable_seq


def test_a_folder_may_go_when_the_run_is_durably_over_and_left_nothing_and_nobody_is_told_of_it() -> None:
    life = _Told(any_jobs(4, 8), policy(max_running=3), any_fate(4))
    life.pass_until(FRIDAY + 3 * 3_600_000)
    life.end()
    records = life.records()
    ends = {(it.data["run"], it.data["attempt"]): it for it in records if it.type == "run.finished"}
    decided = [d for it in records if it.type == "plan.decided" for d in it.data["decisions"]]
    steps = {d["run"] for d in decided if d.get("parent")}
    assert all(ends[key].seq <= durable_seq for key, durable_seq in life.over.items())
    assert all(ends[key].data["outputs"] == {} for key in life.over)
    assert steps & {run for run, _ in life.begun}
    assert not steps & {run for run, _ in life.over}
    assert any(attempt > 1 for _, attempt in life.over)
    assert not any(run.startswith("job3") for run, _ in life.over)
