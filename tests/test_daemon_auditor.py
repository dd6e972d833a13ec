"""The auditor's process beside the daemon: started now and then, at low priority, and its word is recorded."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from cli_shell import Foreground, answer, make_home

from daemon import auditor
from daemon.auditor import Auditor

JOBS = """\
- {name: report, kind: command, argv: ["true"], schedule: manual}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("auditor") / "home", jobs=JOBS)


def ended(one: Auditor, boot_s: float) -> None:
    """Wait for the process that was started, and look after it."""
    assert one._process is not None
    one._process.wait(timeout=60)
    one.housekeep(boot_s)


def test_it_starts_when_its_time_has_come_and_not_again_before_the_next(home: Path) -> None:
    one = Auditor(home, first_after_s=100, every_s=1000)
    one.housekeep(5)
    one.housekeep(104)
    assert one._process is None
    with Foreground(home):
        one.housekeep(105)
        assert one._process is not None
        ended(one, 106)
        assert one._process is None
        assert one.problem == ""
        told = answer("state", "runtime_consensus_state", "--home", home)
        assert (told["verdict"], told["compared"]["views"]) == ("agrees", 11)
        shown = answer("status", "--home", home)["audit"]
        assert shown["audited_seq"] == told["audited_seq"]
    one.housekeep(1104)
    assert one._process is None


def test_what_it_finds_makes_the_status_bad(home: Path) -> None:
    with Foreground(home):
        view = home / "state" / "jobs.json"
        view.write_bytes(view.read_bytes().replace(b'"report"', b'"deport"'))
        assert auditor_of(home) == 0
        told = answer("status", "--home", home, code=1)
        assert any("state/jobs.json" in problem for problem in told["problems"])


def auditor_of(home: Path) -> int:
    one = Auditor(home, first_after_s=0)
    one.housekeep(0)
    assert one._process is not None
    return one._process.wait(timeout=60)


def test_an_audit_that_told_nothing_is_a_problem(home: Path) -> None:
    one = Auditor(home, first_after_s=0)
    one.housekeep(0)
    ended(one, 1)  # No daemon is there to be told.
    assert "told nothing" in one.problem


def test_closing_ends_it(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o700)
    monkeypatch.setattr(auditor.sys, "executable", str(slow))
    one = Auditor(home, first_after_s=0)
    one.housekeep(0)
    process = one._process
    one.close()
    assert process is not None
    assert process.returncode == -signal.SIGTERM
    one.close()
