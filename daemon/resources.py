"""What this machine offers to runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import psutil

Json = Any


def sample(home: Path) -> dict[str, Json]:
    """The data of `resources.sampled`: whole amounts as they are, free ones rounded down to a sixteenth of the whole,
    so that only a change that can matter is news."""
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(home)
    return {
        "cpus": cpus(),
        "memory_bytes": memory.total,
        "memory_free_bytes": _coarse(memory.available, memory.total),
        "disk_bytes": disk.total,
        "disk_free_bytes": _coarse(disk.free, disk.total),
        "gpu_memory_bytes": _gpu_memory_bytes(memory.total),
    }


def _coarse(free: int, whole: int) -> int:
    step = max(1, whole // 16)
    return free // step * step


def cpus() -> int:
    """The processors this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _gpu_memory_bytes(memory_bytes: int) -> int:
    """All devices together; asked once, since devices do not come and go. 0 where none is found."""
    if sys.platform == "darwin" and os.uname().machine == "arm64":
        return memory_bytes * 3 // 4  # Unified memory: what Metal lets a process use of it.
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        asked = subprocess.run(
            [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return sum(int(line) for line in asked.stdout.split()) << 20
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0  # A driver that does not answer offers nothing that a run could be promised.
