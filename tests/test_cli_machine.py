"""What stands beside the daemon: lease keys taken at a shell, the doctor, the service."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from cli_shell import answer, hermesd, make_home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(
        tmp_path_factory.mktemp("cli") / "home", report="{name: r, kind: command, argv: [echo], schedule: manual}"
    )


def test_a_key_taken_by_hand_is_listed_refused_to_others_and_given_back(home: Path) -> None:
    token = answer("lease", "acquire", "repo:core", "--home", home)["token"]
    assert [one["key"] for one in answer("lease", "list", "--home", home)] == ["repo:core"]
    assert "repo:core is held by" in hermesd("lease", "acquire", "repo:core", "--home", home, code=75).stderr
    held = hermesd("lease", "exec", "repo:core", "--wait", "0", "--home", home, "--", "echo", "never", code=75)
    assert held.stdout == ""
    hermesd("lease", "release", "repo:core", "--token", str(token + 1), "--home", home, code=75)
    hermesd("lease", "release", "repo:core", "--token", str(token), "--home", home)
    hermesd("lease", "exec", "repo:core", "--home", home, "--", "sh", "-c", "exit 7", code=7)
    assert "No key is held." in hermesd("lease", "list", "--home", home).stdout


def test_the_doctor_names_a_home_others_can_get_into(home: Path, tmp_path: Path) -> None:
    rows = {row["what"]: row for row in answer("doctor", "--home", home)["rows"]}
    assert rows["lock"]["grade"] == rows["home"]["grade"] == rows["package names"]["grade"] == "ok"
    assert rows["job files"]["found"] == "1 job sound"
    assert not [name for name in os.listdir(home) if name.startswith(".doctor")]
    open_home = make_home(tmp_path / "home")
    open_home.chmod(0o755)
    told = answer("doctor", "--home", open_home, code=1)
    assert "chmod 700" in next(row["advice"] for row in told["rows"] if row["what"] == "home")


def test_the_doctor_names_another_distribution_with_a_room_of_ours(home: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "someones_daemon-1.0.dist-info"
    foreign.mkdir()
    (foreign / "METADATA").write_text("Metadata-Version: 2.1\nName: someones-daemon\nVersion: 1.0\n")
    (foreign / "top_level.txt").write_text("daemon\n")
    (foreign / "RECORD").write_text("daemon/__init__.py,,\n")
    rows = answer("doctor", "--home", home, code=1, PYTHONPATH=str(tmp_path))["rows"]
    row = next(row for row in rows if row["what"] == "package names")
    assert (row["grade"], row["found"]) == ("fail", "daemon by someones-daemon")
    assert "environment of its own" in row["advice"]


def test_a_service_is_written_for_this_very_home_and_removed_again(home: Path, tmp_path: Path) -> None:
    # Without a service manager on the path nothing on this machine is started.
    around = {"PATH": str(tmp_path / "empty"), "XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}
    if sys.platform == "darwin":
        pytest.skip("the file's place is that of systemd")
    hermesd("service", "install", "--home", home, **around)
    unit = (tmp_path / "systemd" / "user" / "hermesd.service").read_text()
    assert f'Environment="HERMESD_HOME={home}"' in unit
    assert answer("service", "status", "--home", home, **around)["installed"] is True
    other = make_home(tmp_path / "other")
    refused = hermesd("service", "install", "--home", other, code=69, **around)
    assert f"is the service of {home}" in refused.stderr
    hermesd("service", "uninstall", "--home", home, **around)
    assert not list((tmp_path / "systemd" / "user").iterdir())
