"""A home on the real disk with the past that a story has told."""

from __future__ import annotations

import os
from pathlib import Path

from story import Story

from daemon.heartbeat import Heart
from daemon.home import Home
from daemon.system import SystemClock
from daemon.workers import identity


def home_of(story: Story, path: Path) -> Path:
    home = Home(path)
    home.make()
    for name, data in story.disk.files().items():
        target = path / name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.write_bytes(data)
    return path


def beat(home: Path, pid: int = 0, started: int | None = None) -> None:
    """A heartbeat of this moment, by default of this very process."""
    pid = pid or os.getpid()
    Heart(home, pid, started or identity.start_time(pid) or 0, SystemClock().boot_id).beat()
