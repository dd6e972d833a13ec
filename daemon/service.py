"""The daemon as a service of its user: a systemd user unit, or a launchd agent on macOS.

The unit's text is made here and nowhere else. Runs share the daemon's sandbox, so it is as tight as a user's work
allows, no tighter: everything outside the user's own folders and the temporary ones is read-only, and nothing gains
privileges. Both service managers are told to end the daemon alone: runs survive it.
"""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from daemon.control import user

System = Literal["systemd", "launchd"]

UNIT = "hermesd.service"
LABEL = "dev.hermesd"
WATCHDOG_S = 180  # the loop turns at least once a minute, for its housekeeping
START_S = 900  # a start reads what the ledger holds behind its last snapshot; systemd's own 90 s may be too few
EXIT_CONFIGURATION = 78  # sysexits.h; starting again would not help

_UNIT_TEXT = """\
# Written by `hermesd service install`; `systemctl --user edit hermesd` keeps changes of your own beside it.
[Unit]
Description=Hermes, cron for AI work
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
Environment={environment}
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
WatchdogSec={watchdog_s}
TimeoutStartSec={start_s}
Restart=always
RestartSec=5
RestartPreventExitStatus={exit_configuration}
TimeoutStopSec=30
# Only the daemon: its runs go on, and the next daemon takes them up.
KillMode=process
OOMPolicy=continue
UMask=0077

# Runs live in here too. A job that writes elsewhere needs a drop-in with another ReadWritePaths= line; one that calls
# sudo needs NoNewPrivileges=no; where ssh complains of the owner of its configuration, ProtectSystem=no.
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths={home} -%h -/tmp -/var/tmp
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=default.target
"""


class ServiceError(Exception):
    """The service was not changed. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """`active` is the manager's own word ("active", "failed", "loaded", ...), or "unknown" where it cannot be asked."""

    system: System
    path: Path
    installed: bool
    home: Path | None
    active: str
    note: str = ""


def system_here() -> System:
    return "launchd" if sys.platform == "darwin" else "systemd"


def render(system: System, home: Path, command: Sequence[str]) -> tuple[Path, str]:
    """Where the service's file belongs and what stands in it. `command` starts with an absolute path. ServiceError."""
    for word in (str(home), *command):
        if not word.isprintable():
            raise ServiceError(f"{word!r} holds characters that a service file cannot: use a plainer path.")
    if not os.path.isabs(command[0]) or not home.is_absolute():
        raise ServiceError(f"a service needs absolute paths, not {command[0]} and {home}.")
    if system == "launchd":
        return _plist_path(), _plist(home, command)
    if set(command[0]) & set("\"'\\"):
        raise ServiceError(f"systemd starts no program whose path has quotes or backslashes in it: {command[0]}.")
    text = _UNIT_TEXT.format(
        environment=_quoted(f"HERMESD_HOME={home}"),
        command=" ".join([_quoted(command[0]), *(_quoted(word).replace("$", "$$") for word in command[1:])]),
        home=_quoted(str(home)),
        watchdog_s=WATCHDOG_S,
        start_s=START_S,
        exit_configuration=EXIT_CONFIGURATION,
    )
    return _unit_path(), text


def install(home: Path, command: Sequence[str], system: System | None = None) -> list[str]:
    """Write the service's file, and start it now and at every log-in where the manager can be reached. Returns what to
    tell the user. ServiceError: another home's service is there, or the manager refused."""
    system = system or system_here()
    path, text = render(system, home, command)
    there = _home_in(system, path)
    if path.exists() and there != home:
        raise ServiceError(
            f"{path} is the service of {there or 'something else'}. "
            "Remove it first: `hermesd service uninstall`; a user has one such service."
        )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    said = [f"Wrote {path}."]
    refusal = _unreachable(system)
    if refusal:
        return [*said, f"It was not started: {refusal} Until then, `hermesd run` does the same in the foreground."]
    if system == "systemd":
        _manage("systemctl", "--user", "daemon-reload")
        _manage("systemctl", "--user", "enable", UNIT)
        _manage("systemctl", "--user", "restart", UNIT)  # not `enable --now`: an older daemon may run
        said.append("Started; it starts with your log-in. To start it at boot: `loginctl enable-linger`.")
    else:
        subprocess.run(["launchctl", "bootout", _domain(), str(path)], capture_output=True, check=False)
        _manage("launchctl", "bootstrap", _domain(), str(path))
        said.append("Started; it starts with your log-in.")
    return said


def uninstall(system: System | None = None) -> list[str]:
    """Stop the service and remove its file. Runs go on; the home stays. Returns what to tell the user."""
    system = system or system_here()
    path = _unit_path() if system == "systemd" else _plist_path()
    if not path.exists():
        return [f"Nothing to do: there is no {path}."]
    refusal = _unreachable(system)
    if not refusal:
        if system == "systemd":
            _manage("systemctl", "--user", "disable", "--now", UNIT)
        else:
            subprocess.run(["launchctl", "bootout", _domain(), str(path)], capture_output=True, check=False)
    path.unlink()
    if refusal:
        return [f"Removed {path}.", f"If it runs, it was not stopped: {refusal}"]
    if system == "systemd":
        _manage("systemctl", "--user", "daemon-reload")
    return [f"Stopped the service and removed {path}."]


def status(system: System | None = None) -> ServiceStatus:
    system = system or system_here()
    path = _unit_path() if system == "systemd" else _plist_path()
    installed = path.exists()
    home = _home_in(system, path)
    refusal = _unreachable(system)
    if refusal:
        return ServiceStatus(system, path, installed, home, "unknown", refusal)
    if system == "systemd":
        answer = subprocess.run(["systemctl", "--user", "is-active", UNIT], capture_output=True, text=True, check=False)
        return ServiceStatus(system, path, installed, home, answer.stdout.strip() or "unknown")
    asked = subprocess.run(["launchctl", "print", f"{_domain()}/{LABEL}"], capture_output=True, text=True, check=False)
    state = [line.split("=")[1].strip() for line in asked.stdout.splitlines() if line.strip().startswith("state =")]
    return ServiceStatus(system, path, installed, home, state[0] if state else "inactive")


def _unit_path() -> Path:
    configuration = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(configuration) / "systemd" / "user" / UNIT


def _plist_path() -> Path:
    return Path.home() / "Library" / "LaunchAgents" / f"{LABEL}.plist"


def program_in(system: System, path: Path) -> Path | None:
    """The program that an installed file starts; None if it names none."""
    try:
        data = path.read_bytes()
        if system == "launchd":
            return Path(plistlib.loads(data)["ProgramArguments"][0])
    except (FileNotFoundError, plistlib.InvalidFileException, KeyError, IndexError, TypeError, ValueError):
        return None
    start = 'ExecStart="'
    lines = [line for line in data.decode("utf-8", "replace").splitlines() if line.startswith(start)]
    return Path(lines[-1].removeprefix(start).partition('"')[0].replace("%%", "%")) if lines else None


def outdated(home: Path, path: Path) -> bool:
    """Whether an installed systemd unit, the program it starts aside, is not what this version would write. What a user
    has put beside it (a drop-in) is not looked at."""
    program = program_in("systemd", path)
    if program is None:
        return True
    _, text = render("systemd", home, [str(program), "run"])
    found = path.read_text("utf-8", "replace")
    return [_but_program(line) for line in found.splitlines()] != [_but_program(line) for line in text.splitlines()]


def _but_program(line: str) -> str:
    return "ExecStart=" if line.startswith("ExecStart=") else line


def lingers() -> bool:
    """Whether systemd keeps this user's services when the user logs out."""
    return Path("/var/lib/systemd/linger", user()).exists()


def log_path() -> Path:
    """Where launchd puts what the daemon says; under systemd the journal has it."""
    return Path.home() / "Library" / "Logs" / "hermesd.log"


def _quoted(word: str) -> str:
    """One word of a unit file: `%` begins a specifier there, and `\\` an escape."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def _plist(home: Path, command: Sequence[str]) -> str:
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": list(command),
            "EnvironmentVariables": {"HERMESD_HOME": str(home)},
            "RunAtLoad": True,
            "KeepAlive": True,
            "ThrottleInterval": 5,
            "ExitTimeOut": 30,
            "AbandonProcessGroup": True,  # only the daemon is ended: runs go on
            "Umask": 0o077,
            "StandardErrorPath": str(log_path()),
        },
        sort_keys=False,
    ).decode()


def _home_in(system: System, path: Path) -> Path | None:
    """The home that an installed file names; None if there is no file, or it is not one of ours."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if system == "launchd":
        try:
            home = plistlib.loads(data)["EnvironmentVariables"]["HERMESD_HOME"]
        except (plistlib.InvalidFileException, KeyError, TypeError, ValueError):
            return None
        return Path(home)
    start = 'Environment="HERMESD_HOME='
    for line in data.decode("utf-8", "replace").splitlines():
        if line.startswith(start):
            word = line.removeprefix(start).removesuffix('"').replace("%%", "%")
            return Path(word.replace('\\"', '"').replace("\\\\", "\\"))
    return None


def _unreachable(system: System) -> str:
    """Why the service manager cannot be asked; "" if it can."""
    if system == "launchd":
        return "" if shutil.which("launchctl") else "there is no launchctl here."
    if not shutil.which("systemctl"):
        return "there is no systemctl here (a container?)."
    asked = subprocess.run(["systemctl", "--user", "show-environment"], capture_output=True, text=True, check=False)
    if asked.returncode == 0:
        return ""
    return (
        f"no systemd user manager answers here ({asked.stderr.strip()}). "
        "Log in as this user (not by su or sudo), or `loginctl enable-linger`, and install again."
    )


def _domain() -> str:
    return f"gui/{os.getuid()}"


def _manage(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceError(f"`{' '.join(argv)}` failed: {done.stderr.strip() or done.stdout.strip()}.")
