"""The dead-man's check: everything it finds, it finds in files."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from cli_shell import Foreground, answer, hermesd, make_home
from story import Story
from told_home import beat, home_of

from daemon import heartbeat
from daemon.workers import identity
from state.events import draft


def lost(story: Story, job: str, request: str = "r1") -> str:
    """A run of the job whose end nobody saw."""
    run = story.start(job, request)
    story.plan()
    story.begin(run)
    story.end(run, "lost", code=None)
    return run


def make_late(home: Path, by_ms: int) -> None:
    """As a loop leaves it that has hung for so long."""
    path = home / heartbeat.FILE
    value = json.loads(path.read_bytes())
    path.write_text(json.dumps(value | {"awake_ms": value["awake_ms"] - by_ms, "wall_ms": value["wall_ms"] - by_ms}))


def kinds(told: dict[str, list[dict[str, str]]]) -> list[tuple[str, str]]:
    return [(finding["kind"], finding["subject"]) for finding in told["findings"]]


def test_when_all_is_well_nothing_is_said(tmp_path: Path) -> None:
    home = home_of(Story(), tmp_path / "home")
    beat(home)
    assert hermesd("watch", "--home", home).stdout == ""


def test_a_daemon_that_is_gone_is_found_by_its_heartbeat(tmp_path: Path) -> None:
    home = home_of(Story(), tmp_path / "home")
    gone = subprocess.Popen(["sleep", "60"])
    started = identity.start_time(gone.pid)
    gone.kill()
    gone.wait()
    beat(home, gone.pid, started)
    said = hermesd("watch", "--home", home, code=4).stdout
    assert said.startswith("gone since ")
    assert f"pid {gone.pid} is gone without a word" in said
    assert "hermesd run" in said


def test_a_loop_that_hangs_is_late_though_its_process_lives(tmp_path: Path) -> None:
    home = home_of(Story(), tmp_path / "home")
    beat(home)
    make_late(home, 150_000)
    said = hermesd("watch", "--home", home, code=4).stdout
    assert re.search(rf"\(pid {os.getpid()}\) has not completed a turn for [2-9]m", said)  # 2m30s and what passed since
    assert f"kill -9 {os.getpid()}" in said
    assert hermesd("watch", "--late", "20m", "--home", home).stdout == ""
    assert "would cry wolf" in hermesd("watch", "--late", "30s", "--home", home, code=2).stderr


def test_the_socket_of_a_daemon_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    with Foreground(home) as frozen:
        while heartbeat.read(home) is None:
            pass
        frozen.process.send_signal(signal.SIGSTOP)
        try:
            hermesd("watch", "--home", home)  # It has not hung for long, and is not waited for.
            make_late(home, 600_000)
            hermesd("watch", "--home", home, code=4)
        finally:
            frozen.process.send_signal(signal.SIGCONT)
    stopped = answer("watch", "--home", home, code=4)
    assert stopped["findings"][0]["what"] == "no daemon runs: it was stopped"
    assert stopped["findings"][0]["since"]


def test_a_job_without_a_success_within_its_bound_is_stale_unless_a_person_switched_it_off(tmp_path: Path) -> None:
    story = Story()
    for name in ("stated", "given", "fine", "unbound"):
        story.define(name, **({"fresh": "26h"} if name == "stated" else {}))
    story.define("off", fresh="1h", enabled=False)
    story.define("expired", "0 4 * * *", fresh="1h", expires="2026-03-03")
    story.define("removed", fresh="1h")
    story.remove("removed")
    run = story.start("given")
    story.plan()
    story.begin(run)
    story.end(run)
    home = home_of(story, tmp_path / "home")
    beat(home)
    words = ("--fresh", "given=7d", "--fresh", "fine=520w", "--fresh", "nobody=1h")
    told = answer("watch", *words, "--home", home, code=1)
    assert kinds(told) == [("stale", "given"), ("unknown", "nobody"), ("stale", "stated")]
    given, _, stated = told["findings"]
    assert given["what"].startswith("job given last succeeded ")
    assert given["since"] == "2026-03-02T12:00:00Z"
    assert stated["what"].startswith("job stated never succeeded, and ought to every 1d2h")


def test_a_lost_run_waits_until_a_person_has_it_done_again(tmp_path: Path) -> None:
    story = Story()
    story.define("backup")
    story.define("other")
    run = lost(story, "backup")
    home = home_of(story, tmp_path / "waiting")
    beat(home)
    told = answer("watch", "--home", home, code=1)
    assert kinds(told) == [("lost", run)]
    assert f"hermesd retry {run}" in told["findings"][0]["do"]
    status = answer("status", "--home", home, code=4)
    assert [finding["subject"] for finding in status["waits_for_a_person"]] == [run]
    assert f"run {run} is lost" in hermesd("status", "--home", home, code=4).stdout
    story.pass_ms(1000)
    again = story.start("backup", "r2")
    assert again != run
    story.plan()
    home = home_of(story, tmp_path / "done again")
    beat(home)
    assert kinds(answer("watch", "--home", home, code=1)) == [("stuck", again)]  # granted, and nobody began it


def test_a_job_that_paused_itself_is_told(tmp_path: Path) -> None:
    story = Story()
    story.define("flaky", stop_after_failures=1)
    run = story.start("flaky")
    story.plan()
    story.begin(run)
    story.end(run, "failed", code=1)
    story.react()
    home = home_of(story, tmp_path / "home")
    beat(home)
    told = answer("watch", "--home", home, code=1)
    assert kinds(told) == [("paused", "flaky")]
    assert "hermesd resume flaky" in told["findings"][0]["do"]
    assert answer("status", "--home", home, code=4)["jobs"]["paused"][0]["job"] == "flaky"


def test_a_slot_that_nobody_decides_is_stuck(tmp_path: Path) -> None:
    story = Story()
    story.define("hourly", "0 * * * *")
    home = home_of(story, tmp_path / "home")
    beat(home)
    told = answer("watch", "--home", home, code=1)
    assert kinds(told) == [("stuck", "hourly")]
    assert told["findings"][0]["since"] == "2026-03-02T13:00:00Z"


@pytest.mark.parametrize("alive", [True, False])
def test_a_damaged_ledger_hides_no_dead_daemon(tmp_path: Path, alive: bool) -> None:
    home = home_of(Story(), tmp_path / "home")
    if alive:
        beat(home)
    segment = max((home / "ledger").glob("0*.jsonl"))
    data = bytearray(segment.read_bytes())
    data[40] ^= 1
    segment.write_bytes(data)
    told = answer("watch", "--home", home, code=1 if alive else 4)
    assert [kind for kind, _ in kinds(told)] == (["damaged"] if alive else ["damaged", "gone"])


def test_the_status_tells_when_a_loop_that_does_not_answer_last_turned(tmp_path: Path) -> None:
    home = home_of(Story(), tmp_path / "home")
    beat(home)
    make_late(home, 300_000)
    daemon = answer("status", "--home", home, code=4)["daemon"]
    assert daemon["loop_completed_ms_ago"] >= 300_000
    assert 240_000 <= daemon["loop_late_ms"] < 300_000
    assert "5m" in hermesd("status", "--home", home, code=4).stdout


def test_the_status_tells_of_what_has_not_been_delivered(tmp_path: Path) -> None:
    story = Story()
    story.define("flaky", notify={"webhook": "http://127.0.0.1:9/hook"})
    run = story.start("flaky")
    story.plan()
    story.begin(run)
    story.end(run, "failed", code=1)
    data = {
        "notice": "n1", "job": "flaky", "run": run, "on": "failed", "channel": 0, "outcome": "failed", "slots": 1,
        "to": {"webhook": "http://127.0.0.1:9/hook"}, "reason": "exit status 1", "at": "2026-03-02T12:00:00Z",
    }  # fmt: skip
    story.record(draft("notice.queued", "notice/n1", data))
    home = home_of(story, tmp_path / "home")
    (told,) = answer("status", "--home", home, code=4)["notices"]
    assert (told["job"], told["run"], told["on"], told["state"]) == ("flaky", run, "failed", "queued")
    assert "NOT DELIVERED" in hermesd("status", "--home", home, code=4).stdout


def test_a_ledger_that_is_removed_under_a_daemon_is_noticed(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    with Foreground(home):
        for path in (home / "ledger").iterdir():
            path.unlink()
        assert "the ledger was removed while the daemon runs" in hermesd("watch", "--home", home, code=1).stdout
        assert "the ledger was removed while the daemon runs" in hermesd("status", "--home", home, code=1).stdout
