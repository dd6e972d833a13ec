"""The daemon as a service of its user, from a shell."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from daemon import service
from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit


def install(call: Call) -> None:
    call.home.check(write=True)
    call.home.settings()  # What is wrong with them is told here, and not by a service that does not start.
    _say(call, service.install(call.home.path, [*command(), "run"]))


def uninstall(call: Call) -> None:
    _say(call, service.uninstall())


def status(call: Call) -> int:
    found = service.status()
    if call.json:
        show.json(
            {
                "system": found.system,
                "path": str(found.path),
                "installed": found.installed,
                "home": str(found.home) if found.home else None,
                "active": found.active,
                "note": found.note,
            }
        )
    else:
        show.facts(
            [
                ("service", f"{found.system}, {found.path}" + ("" if found.installed else " (not installed)")),
                ("home", found.home or "-"),
                ("active", found.active + (f": {found.note}" if found.note else "")),
            ]
        )
    return Exit.FINE if found.installed and found.active in ("active", "running", "unknown") else Exit.NO


def command() -> list[str]:
    """How this very installation is called, by absolute path."""
    called = shutil.which(sys.argv[0]) if os.path.basename(sys.argv[0]) == "hermesd" else None
    beside = Path(sys.executable).parent / "hermesd"
    if called is not None:
        return [os.path.abspath(called)]
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "daemon.cli"]


def _say(call: Call, lines: list[str]) -> None:
    if call.json:
        show.json({"said": lines})
    else:
        print("\n".join(lines))
