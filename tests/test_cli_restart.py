"""Daemons that come and go: interrupted, killed, frozen, and found again by the next."""

from __future__ import annotations

import signal
from pathlib import Path

from cli_shell import Foreground, answer, hermesd, make_home

JOBS = """\
- {name: fine, kind: command, argv: [echo], schedule: manual}
- {name: long, kind: command, argv: [sleep, '60'], schedule: manual}
- {name: later, kind: command, argv: [echo], schedule: "0 4 1 1 *"}
"""

AGENT = """\
name: tidy
kind: agent
schedule: manual
leases: [repo:core]
steps: [{name: read, kind: command, argv: [sleep, '60']}, {name: write, kind: command, argv: [echo], after: [read]}]
"""


def test_ctrl_c_leaves_the_runs_alone_and_the_next_daemon_takes_up_what_was_left(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", jobs=JOBS)
    with Foreground(home) as first:
        run = answer("start", "long", "--home", home)["run"]
        while answer("runs", "show", run, "--home", home)["state"] != "running":
            pass
        code, said = first.interrupt()
    assert code == 0
    assert f"1 run goes on ({run})" in said
    down = answer("status", "--home", home, code=4)
    assert (down["daemon"]["up"], down["daemon"]["state"]) == (False, "stopped")
    assert [row["run"] for row in down["runs"]] == [run]
    left = answer("start", "fine", "--home", home)
    assert Path(left["left"]).exists()
    assert "will cancel" in hermesd("cancel", run, "--home", home).stdout
    assert hermesd("next", "later", "-n", "1", "--home", home).returncode == 0
    with Foreground(home):
        hermesd("runs", "logs", run, "-f", "--home", home)
        assert answer("runs", "show", run, "--home", home)["state"] == "cancelled"
        assert len(answer("runs", "list", "--job", "fine", "--home", home)) == 1
        stopped = answer("stop", "--home", home)
        assert stopped["going_on"] == []
    assert not list((home / "inbox").glob("*.json"))


def test_an_agent_whose_lease_was_taken_while_no_daemon_lived_is_stopped_and_says_why(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", jobs=AGENT)
    with Foreground(home) as killed:
        run = answer("start", "tidy", "--home", home)["run"]
        while [step["state"] for step in answer("runs", "show", run, "--home", home)["steps"]] != ["running"]:
            pass
        killed.kill()
    assert "is held by" in hermesd("lease", "acquire", "repo:core", "--home", home, code=75).stderr
    hermesd("lease", "release", "repo:core", "--force", "--home", home)
    hermesd("lease", "acquire", "repo:core", "--home", home)
    (holder,) = (lease["holder"] for lease in answer("lease", "list", "--home", home))
    with Foreground(home):
        hermesd("runs", "logs", run, "-f", "--home", home)
        told = answer("runs", "show", run, "--home", home)
    assert (told["state"], [step["state"] for step in told["steps"]]) == ("failed", ["cancelled"])
    assert told["reason"].startswith(f"was stopped: lease repo:core was taken by {holder} while no daemon ran; ")
    said = hermesd("events", "--type", "run.stopping", "--subject", f"run/{run}", "--home", home).stdout
    assert f"lease, repo:core was taken by {holder}" in said


def test_a_killed_daemon_is_not_taken_for_a_living_one_and_its_socket_is_no_hindrance(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", jobs=JOBS)
    with Foreground(home) as killed:
        killed.kill()
    assert (home / "hermesd.sock").exists()
    told = answer("status", "--home", home, code=4)
    assert told["problems"] == ["no daemon is running"]
    assert told["daemon"]["state"] == "gone"
    assert "daemon     gone without a word" in hermesd("status", "--home", home, code=4).stdout
    rows = {row["what"]: row for row in answer("doctor", "--home", home)["rows"]}
    assert rows["daemon"]["grade"] == "warn"
    with Foreground(home):
        assert answer("status", "--home", home)["ok"] is True


def test_a_daemon_whose_loop_stands_still_is_not_fine(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    with Foreground(home) as frozen:
        frozen.process.send_signal(signal.SIGSTOP)
        try:
            told = answer("status", "--home", home, code=4)  # It does not wait for who is frozen.
        finally:
            frozen.process.send_signal(signal.SIGCONT)
        assert "its loop does not answer" in told["problems"][0]
        assert told["daemon"]["state"] == "silent"
