"""A daemon that is starting is not blind: what changes meanwhile is told of afterwards. Nor is one that goes on."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from daemon.home import Home
from daemon.serve import Daemon


def run_until_stopped(daemon: Daemon) -> None:
    give_up = threading.Timer(30, daemon.waker.poke, ("stop",))
    give_up.start()
    try:
        daemon.run()
    finally:
        give_up.cancel()
        daemon.close()


def test_files_written_while_the_daemon_reads_the_others_are_not_overlooked(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.make()
    daemon = Daemon(home)
    begin, tick = daemon.loop.begin, daemon.loop.tick

    def begin_as_files_change() -> None:
        begin()
        (home.jobs / "late.yaml").write_text("{name: late, kind: command, argv: [echo], schedule: manual}\n")
        (home.policies / "scheduling.yaml").write_text("max_running: 3\n")

    def tick_until_told(reasons: frozenset[str] = frozenset()) -> bool:
        recorded = tick(reasons)
        if "late" in daemon.loop.graph.jobs and daemon.loop.policy.max_running == 3:
            daemon.waker.poke("stop")
        return recorded

    daemon.loop.begin = begin_as_files_change  # type: ignore[method-assign]
    daemon.loop.tick = tick_until_told  # type: ignore[method-assign]
    run_until_stopped(daemon)
    assert list(daemon.loop.graph.jobs) == ["late"]
    assert daemon.loop.policy.max_running == 3


def test_folders_that_are_taken_away_are_made_again_and_what_cannot_be_watched_is_told(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.make()
    daemon = Daemon(home)
    tick, told = daemon.loop.tick, []

    def tick_and_change(reasons: frozenset[str] = frozenset()) -> bool:
        recorded = tick(reasons)
        problem = daemon.loop.problems.get("folders", "")
        if not told:
            for folder in (home.jobs, home.leases, home.policies, home.inbox):
                shutil.rmtree(folder)
            home.jobs.write_text("in the way")
            told.append("taken away")
            daemon.waker.poke("housekeeping")
        elif str(home.jobs) in problem and home.jobs.is_file():
            told.append(problem)
            home.jobs.unlink()
            daemon.waker.poke("housekeeping")
        elif len(told) == 2 and not problem and home.jobs.is_dir():
            told.append("made again")
            (home.jobs / "late.yaml").write_text("{name: late, kind: command, argv: [echo], schedule: manual}\n")
            (home.policies / "scheduling.yaml").write_text("max_running: 3\n")
        elif "late" in daemon.loop.graph.jobs and daemon.loop.policy.max_running == 3:
            daemon.waker.poke("stop")
        return recorded

    daemon.loop.tick = tick_and_change  # type: ignore[method-assign]
    run_until_stopped(daemon)
    assert len(told) == 3, told
    assert list(daemon.loop.graph.jobs) == ["late"]
    assert daemon.loop.policy.max_running == 3
    assert home.leases.is_dir()
    assert home.inbox.is_dir()
