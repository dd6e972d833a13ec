"""A daemon that is starting is not blind: what changes meanwhile is told of afterwards."""

from __future__ import annotations

import threading
from pathlib import Path

from daemon.home import Home
from daemon.serve import Daemon


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
    give_up = threading.Timer(20, daemon.waker.poke, ("stop",))
    give_up.start()
    try:
        daemon.run()
    finally:
        give_up.cancel()
        daemon.close()
    assert list(daemon.loop.graph.jobs) == ["late"]
    assert daemon.loop.policy.max_running == 3
