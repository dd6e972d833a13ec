"""The service files, checked by the programs that read them, and sd_notify on real sockets."""

from __future__ import annotations

import os
import plistlib
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from daemon import notify, service
from daemon.service import ServiceError


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user of their own, whom no service manager knows."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def program_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    program = folder / "hermesd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine")
@pytest.mark.parametrize("name", ["plain", "with spaces", "per%cent", "quo'te", "dol$lar", "Ünicode"])
def test_systemd_accepts_the_unit(tmp_path: Path, name: str) -> None:
    program = program_in(tmp_path / name.replace("'", ""))
    home = tmp_path / f"home {name}"
    home.mkdir()
    path, text = service.render("systemd", home, [str(program), "run", "--note", f'{name} "x" \\ y'])
    unit = tmp_path / path.name
    unit.write_text(text)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(unit)],
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_unit_keeps_runs_alive_and_gives_them_no_privileges(tmp_path: Path) -> None:
    _, text = service.render("systemd", tmp_path / "a home", ["/usr/bin/hermesd", "run"])
    lines = text.splitlines()
    for line in (
        "KillMode=process", "Restart=always", "Type=notify", "WatchdogSec=180", "NoNewPrivileges=yes",
        "ProtectSystem=strict", f'Environment="HERMESD_HOME={tmp_path}/a home"',
        f'ReadWritePaths="{tmp_path}/a home" -%h -/tmp -/var/tmp', 'ExecStart="/usr/bin/hermesd" "run"',
    ):  # fmt: skip
        assert line in lines


def test_the_launchd_agent_says_the_same(user: Path) -> None:
    path, text = service.render("launchd", user / "a home", ["/usr/local/bin/hermesd", "run"])
    agent = plistlib.loads(text.encode())
    assert path == user / "Library/LaunchAgents/dev.hermesd.plist"
    assert agent["Label"] == "dev.hermesd"
    assert agent["ProgramArguments"] == ["/usr/local/bin/hermesd", "run"]
    assert agent["EnvironmentVariables"] == {"HERMESD_HOME": str(user / "a home")}
    assert agent["KeepAlive"]
    assert agent["AbandonProcessGroup"]


@pytest.mark.parametrize(
    ("home", "program"), [("relative", "/bin/x"), ("/a\nb", "/bin/x"), ("/a", "hermesd"), ("/a", '/b"in/x')]
)
def test_what_no_service_file_can_say_is_refused(home: str, program: str) -> None:
    with pytest.raises(ServiceError):
        service.render("systemd", Path(home), [program])


def test_installing_without_a_service_manager_writes_the_file_and_says_why_it_does_not_run(user: Path) -> None:
    home = user / 'my %home "x" \\ y'
    said = service.install(home, ["/usr/bin/hermesd", "run"], "systemd")
    unit = user / ".config/systemd/user/hermesd.service"
    assert said[0] == f"Wrote {unit}."
    assert "not started" in said[1]
    assert "hermesd run" in said[1]
    status = service.status("systemd")
    assert (status.path, status.installed, status.home, status.active) == (unit, True, home, "unknown")
    assert status.note
    assert service.install(home, ["/usr/bin/hermesd", "run"], "systemd") == said
    assert service.uninstall("systemd")[0] == f"Removed {unit}."
    assert not unit.exists()
    assert "Nothing to do" in service.uninstall("systemd")[0]
    assert not service.status("systemd").installed


def test_another_homes_service_is_not_replaced(user: Path) -> None:
    service.install(user / "first", ["/usr/bin/hermesd", "run"], "systemd")
    with pytest.raises(ServiceError, match=r"first.*uninstall"):
        service.install(user / "second", ["/usr/bin/hermesd", "run"], "systemd")
    unit = user / ".config/systemd/user/hermesd.service"
    unit.write_text("[Service]\nExecStart=/mine\n")
    with pytest.raises(ServiceError, match="something else"):
        service.install(user / "first", ["/usr/bin/hermesd", "run"], "systemd")
    assert "/mine" in unit.read_text()


def test_the_manager_is_told_in_its_own_words(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemctl = user / "systemctl"
    systemctl.write_text(f'#!/bin/sh\necho "$@" >> {user}/said\n[ "$2" = is-active ] && echo active\nexit 0\n')
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{user}:{os.environ['PATH']}")
    service.install(user / "home", ["/usr/bin/hermesd", "run"], "systemd")
    assert service.status("systemd").active == "active"
    service.uninstall("systemd")
    said = [line for line in (user / "said").read_text().splitlines() if "show-environment" not in line]
    assert said == [
        "--user daemon-reload", "--user enable hermesd.service", "--user restart hermesd.service",
        "--user is-active hermesd.service", "--user disable --now hermesd.service", "--user daemon-reload",
    ]  # fmt: skip


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_hears_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    address = f"@hermesd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0", 1) if abstract else address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert notify.tell("READY=1", "STATUS=3 runs")
        assert manager.recv(100) == b"READY=1\nSTATUS=3 runs"


def test_without_a_service_manager_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.tell("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify.tell("READY=1")


def test_the_watchdog_is_fed_twice_as_often_as_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "180000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert notify.watchdog_interval_s() == 90
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert notify.watchdog_interval_s() is None
    monkeypatch.delenv("WATCHDOG_PID")
    for nonsense in ("", "x", "0"):
        monkeypatch.setenv("WATCHDOG_USEC", nonsense)
        assert notify.watchdog_interval_s() is None
