"""The doctor finds what would go wrong before it does: each test makes one thing wrong."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_shell import Foreground, answer, make_home
from story import Story
from told_home import home_of

from daemon import service
from daemon.system import without_journal


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return home_of(Story(), tmp_path / "home")


def rows(home: Path, code: int = 0, **environment: str) -> dict[str, Any]:
    return {row["what"]: row for row in answer("doctor", "--home", home, code=code, **environment)["rows"]}


def test_a_sound_home_has_nothing_to_fear(home: Path) -> None:
    found = rows(home)
    for what in ("ledger", "file times", "lock", "room", "inbox", "runs", "settings"):
        assert found[what]["grade"] == "ok", found[what]
    assert found["file system"]["grade"] == ("warn" if without_journal(home) else "ok")
    assert found["ledger"]["found"].startswith("3 records")
    assert "quarantine" not in found


def test_a_damaged_ledger_is_named_by_its_place(home: Path) -> None:
    segment = max((home / "ledger").glob("0*.jsonl"))
    data = bytearray(segment.read_bytes())
    data[40] ^= 1
    segment.write_bytes(data)
    row = rows(home, code=1)["ledger"]
    assert row["grade"] == "fail"
    assert f"ledger/{segment.name} at byte 0" in row["advice"]


def test_a_socket_that_others_may_speak_to(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    with Foreground(home):
        found = rows(home)
        assert (found["daemon"]["grade"], found["wall clock"]["grade"]) == ("ok", "ok")
        (home / "hermesd.sock").chmod(0o666)
        row = rows(home, code=1)["daemon"]
    assert row["grade"] == "fail"
    assert "mode 0666" in row["found"]
    assert "chmod 600" in row["advice"]


def test_a_socket_left_behind_is_told_from_a_file_in_its_place(home: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        folder = os.getcwd()
        os.chdir(home)
        try:
            left.bind("hermesd.sock")
        finally:
            os.chdir(folder)
    (home / "hermesd.sock").chmod(0o600)
    assert "left its socket behind" in rows(home)["daemon"]["found"]
    (home / "hermesd.sock").unlink()
    (home / "hermesd.sock").touch()
    assert "is no socket" in rows(home, code=1)["daemon"]["found"]


def test_requests_that_were_rejected_and_bytes_that_were_cut_are_not_forgotten(home: Path) -> None:
    rejected = home / "inbox" / "rejected"
    rejected.mkdir()
    (rejected / "x.json").touch()
    (home / "inbox" / "y.json").touch()
    quarantine = home / "ledger" / "quarantine"
    quarantine.mkdir(exist_ok=True)
    (quarantine / "torn").write_text("torn")
    found = rows(home)
    assert (found["inbox"]["grade"], found["inbox"]["found"]) == ("warn", "1 request rejected")
    assert found["quarantine"]["grade"] == "ok"
    old_s = time.time() - 60 * 86_400
    os.utime(quarantine / "torn", (old_s, old_s))
    row = rows(home)["quarantine"]
    assert row["grade"] == "warn"
    assert "oldest 60d" in row["found"]


def test_a_policy_file_that_nobody_reads(home: Path) -> None:
    assert "policy files" not in rows(home)
    (home / "policies" / "shedulling.yaml").write_text("max_running: 3\n")
    assert rows(home)["policy files"]["found"] == "nobody reads shedulling.yaml"
    (home / "policies" / "shedulling.yaml").unlink()


def test_secrets_that_others_may_read(home: Path) -> None:
    secrets = home / "secrets"
    secrets.mkdir(mode=0o700, exist_ok=True)
    (secrets / "slack").write_text("x")
    (secrets / "slack").chmod(0o600)
    assert rows(home)["secrets"]["found"] == "1 secret, for nobody else to read"
    (secrets / "slack").chmod(0o644)
    assert rows(home, code=1)["secrets"]["found"] == "others may read slack"


@pytest.mark.skipif(sys.platform == "darwin", reason="the unit is systemd's")
def test_a_service_whose_program_is_gone_or_whose_file_is_old(home: Path, tmp_path: Path) -> None:
    program = tmp_path / "hermesd"
    program.touch(mode=0o700)
    # Without a service manager on the path nothing on this machine is started.
    around = {"PATH": str(tmp_path / "empty"), "XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}
    unit, text = tmp_path / "systemd" / "user" / "hermesd.service", ""
    _, text = service.render("systemd", home, [str(program), "run"])
    unit.parent.mkdir(parents=True)
    unit.write_text(text)
    found = rows(home, **around)
    assert found["service"]["grade"] == "ok"
    assert "service file" not in found
    unit.write_text(text.replace("WatchdogSec=180\n", ""))
    assert rows(home, **around)["service file"]["grade"] == "warn"
    program.unlink()
    row = rows(home, code=1, **around)["service"]
    assert (row["grade"], row["found"]) == ("fail", f"{program} is not there any more")
    other = make_home(tmp_path / "other")
    assert rows(other, **around)["service"]["found"] == f"{unit} is for {home}"


def test_a_file_system_without_a_journal_is_known_by_its_options(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / f"{os.major(device)}:{os.minor(device)}").symlink_to("../../block/sda/sda1")
    told = tmp_path / "ext4" / "sda1" / "options"

    def found() -> bool:
        return without_journal(tmp_path, tmp_path / "ext4", tmp_path / "devices")

    assert not found()  # It may be of another kind.
    told.parent.mkdir(parents=True)
    told.write_text("rw\nerrors=continue\ncommit=5\n")
    assert found()
    told.write_text("rw\nerrors=continue\ndata=ordered\ncommit=5\n")
    assert not found()
