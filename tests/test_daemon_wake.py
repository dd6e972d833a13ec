"""The waker on the real kernel: descriptors, the timer, signals, changed files. A stuck wait fails by its alarm."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from daemon.wake import CannotWatch, Waker, _KernelTimer, ignored


class Offset:
    """Wall clock minus monotonic clock, as the test would have it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def offset() -> Offset:
    return Offset()


@pytest.fixture(params=["the kernel's timer", "a thread's timer"])
def waker(offset: Offset, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Waker]:
    if request.param == "a thread's timer":  # as where the kernel has none
        monkeypatch.setattr(_KernelTimer, "made", lambda: None)

    def stuck(number: int, frame: object) -> None:
        raise TimeoutError("the waker did not wake")

    earlier = signal.signal(signal.SIGALRM, stuck)
    signal.alarm(20)
    waker = Waker(offset)
    yield waker
    waker.close()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, earlier)


def wait_for(waker: Waker, reason: str) -> set[str]:
    seen: set[str] = set()
    while reason not in seen:
        waker.wait()
        seen |= waker.reasons()
    return seen


def reasons_within(waker: Waker, seconds: float) -> set[str]:
    """What is raised before the timer, which is set to `seconds` from now."""
    waker.set_timer(int((time.time() + seconds) * 1000))
    return wait_for(waker, "timer") - {"timer"}


def test_a_poke_from_another_thread_ends_the_wait(waker: Waker) -> None:
    thread = threading.Thread(target=waker.poke, args=("news",))
    thread.start()
    assert wait_for(waker, "news") == {"news"}
    assert waker.reasons() == set()
    thread.join()


def test_a_flag_raised_before_the_wait_survives_until_it_is_drained(waker: Waker) -> None:
    waker.poke("one")
    waker.poke("two")
    waker.wait()
    waker.wait()  # nobody drained the reasons: it does not block
    assert waker.reasons() == {"one", "two"}


def test_a_hundred_thousand_pokes_do_not_block_on_a_full_pipe(waker: Waker) -> None:
    for _ in range(100_000):
        waker.poke("again")
    assert wait_for(waker, "again") == {"again"}


def test_a_ready_descriptor_calls_back_for_reading_and_for_writing(waker: Waker) -> None:
    ours, theirs = socket.socketpair()
    called = []
    waker.watch(ours.fileno(), lambda: called.append(("read", ours.recv(9))))
    theirs.send(b"hello")
    waker.wait()

    def written() -> None:
        called.append(("write", b""))
        waker.unwatch(ours.fileno(), write=True)

    waker.watch(ours.fileno(), written, write=True)
    waker.wait()
    theirs.send(b"more")
    waker.wait()
    assert called == [("read", b"hello"), ("write", b""), ("read", b"more")]
    waker.unwatch(ours.fileno())
    waker.unwatch(ours.fileno())
    ours.close()
    theirs.close()


def test_a_callback_that_unwatches_its_neighbour_is_obeyed_at_once(waker: Waker) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    called = []

    def first_comes(me: int) -> None:
        called.append(me)
        for ours, _ in pairs:
            waker.unwatch(ours.fileno())

    for number, (ours, theirs) in enumerate(pairs):
        waker.watch(ours.fileno(), lambda number=number: first_comes(number))
        theirs.send(b"x")
    waker.wait()
    assert len(called) == 1
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_the_timer_fires_once_and_never_early(waker: Waker) -> None:
    late_ms = []
    for _ in range(30):
        at_ms = int(time.time() * 1000) + 5
        waker.set_timer(at_ms)
        assert wait_for(waker, "timer") == {"timer"}
        late_ms.append(time.time() * 1000 - at_ms)
    assert min(late_ms) >= 0
    assert reasons_within(waker, 0.05) == set()


def test_the_same_instant_can_be_set_again_after_it_fired(waker: Waker) -> None:
    passed_ms = int(time.time() * 1000) - 1000
    waker.set_timer(passed_ms)
    assert wait_for(waker, "timer") == {"timer"}
    waker.set_timer(passed_ms)
    assert wait_for(waker, "timer") == {"timer"}


def test_a_timer_that_was_taken_back_does_not_fire(waker: Waker) -> None:
    waker.set_timer(int(time.time() * 1000) + 50)
    waker.set_timer(None)
    waker.every(0.15, "housekeeping")
    assert wait_for(waker, "housekeeping") == {"housekeeping"}


def test_the_kernel_is_asked_once_for_each_change_of_the_timer_and_not_when_it_stays(
    waker: Waker, monkeypatch: pytest.MonkeyPatch
) -> None:
    armed: list[int] = []
    monkeypatch.setattr(waker._timer, "arm", armed.append)
    far_ms = int(time.time() * 1000) + 1_000_000
    for at_ms in (far_ms, far_ms, far_ms + 1, far_ms + 1, far_ms):
        waker.set_timer(at_ms)
    assert armed == [far_ms, far_ms + 1, far_ms]


def test_housekeeping_comes_again_and_again(waker: Waker) -> None:
    waker.every(0.02, "housekeeping")
    for _ in range(3):
        assert wait_for(waker, "housekeeping") == {"housekeeping"}


def test_a_jump_of_the_wall_clock_is_a_reason_once(waker: Waker, offset: Offset) -> None:
    offset.seconds -= 86_400
    waker.poke("anything")
    waker.wait()
    waker.wait()
    assert waker.reasons() == {"anything", "clock"}
    offset.seconds += 0.1  # slewing is no jump
    waker.poke("anything")
    waker.wait()
    assert waker.reasons() == {"anything"}


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGTERM, "stop"), (signal.SIGINT, "stop"), (signal.SIGHUP, "reload")]
)
def test_a_signal_is_a_reason(waker: Waker, number: signal.Signals, reason: str) -> None:
    earlier = signal.getsignal(number)
    waker.watch_signals()
    os.kill(os.getpid(), number)
    assert wait_for(waker, reason) == {reason}
    waker.poke("last")
    waker.close()
    assert signal.getsignal(number) is earlier
    waker.__init__()  # type: ignore[misc]  # for the fixture to close


def test_many_writes_to_a_folder_are_one_reason(waker: Waker, tmp_path: Path) -> None:
    waker.watch_folder(tmp_path, "jobs")
    for number in range(50):
        (tmp_path / f"{number}.yaml").write_text("name: x\n")
    assert wait_for(waker, "jobs") == {"jobs"}
    assert reasons_within(waker, 0.25) == set()


@pytest.mark.parametrize("change", ["rename over", "remove", "write in place", "rename away"])
def test_a_change_is_seen_however_it_is_made(waker: Waker, tmp_path: Path, change: str) -> None:
    job = tmp_path / "jobs" / "a.yaml"
    job.parent.mkdir()
    job.write_text("old")
    beside = job.parent / ".a.yaml.new"
    beside.write_text("new")
    waker.watch_folder(job.parent, "jobs")
    {
        "rename over": lambda: beside.replace(job),
        "remove": job.unlink,
        "write in place": lambda: job.write_text("new"),
        "rename away": lambda: job.rename(tmp_path / "a.yaml"),
    }[change]()
    assert wait_for(waker, "jobs") == {"jobs"}


def test_reading_and_editors_temporary_files_wake_nobody(waker: Waker, tmp_path: Path) -> None:
    job = tmp_path / "a.yaml"
    job.write_text("name: x\n")
    waker.watch_folder(tmp_path, "jobs")
    job.read_text()
    os.listdir(tmp_path)
    for name in (".a.yaml.swp", "a.yaml~", ".#a.yaml", "#a.yaml#", "4913", "a.tmp"):
        assert ignored(name)
        (tmp_path / name).write_text("x")
        (tmp_path / name).unlink()
    assert reasons_within(waker, 0.3) == set()


def test_a_folder_that_never_rests_is_told_of_within_about_a_second(waker: Waker, tmp_path: Path) -> None:
    waker.watch_folder(tmp_path, "jobs")
    over, written = threading.Event(), [time.monotonic()]

    def scribble() -> None:
        while not over.wait(0.02):
            (tmp_path / "a.yaml").write_text("x")
            written.append(time.monotonic())

    thread = threading.Thread(target=scribble)
    thread.start()
    started = time.monotonic()
    wait_for(waker, "jobs")
    took_s = time.monotonic() - started
    over.set()
    thread.join()
    if max(later - earlier for earlier, later in pairwise(written)) < 0.05:  # else the machine itself took a rest
        assert took_s > 0.9


def test_a_folder_made_anew_is_watched_anew(waker: Waker, tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    folder.mkdir()
    waker.watch_folder(folder, "jobs")
    folder.rmdir()
    assert wait_for(waker, "jobs") == {"jobs"}
    folder.mkdir()
    waker.watch_folder(folder, "jobs")
    wait_for(waker, "jobs")
    (folder / "a.yaml").write_text("x")
    assert wait_for(waker, "jobs") == {"jobs"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no descriptor of the kind is inherited")
def test_what_tells_of_changes_is_not_handed_down_to_children(waker: Waker, tmp_path: Path) -> None:
    waker.watch_folder(tmp_path, "jobs")
    ours = subprocess.run(["ls", "-l", f"/proc/{os.getpid()}/fd"], capture_output=True, text=True, check=True)
    assert "inotify" in ours.stdout
    theirs = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, check=True, close_fds=False)
    assert "inotify" not in theirs.stdout


def test_a_folder_that_could_not_be_watched_anew_is_watched_when_it_can_be(
    waker: Waker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "jobs"
    folder.mkdir()
    waker.watch_folder(folder, "jobs")
    folder.rename(tmp_path / "earlier")
    folder.mkdir()
    with monkeypatch.context() as limit:
        limit.setattr(waker._observer, "schedule", _no_watches_left)
        with pytest.raises(CannotWatch, match="limit is reached"):
            waker.watch_folder(folder, "jobs")
    waker.watch_folder(folder, "jobs")
    wait_for(waker, "jobs")
    (folder / "a.yaml").write_text("x")
    assert wait_for(waker, "jobs") == {"jobs"}


def _no_watches_left(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "inotify watch limit reached")


def test_a_folder_that_is_not_there_is_refused_by_name(waker: Waker, tmp_path: Path) -> None:
    with pytest.raises(CannotWatch, match="nowhere"):
        waker.watch_folder(tmp_path / "nowhere", "jobs")
