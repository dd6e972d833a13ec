"""The memory of this host, or of the container that we are in."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil


def host_memory(group: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """All the memory there is, and what is free of it; of a container, of its share."""
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    with contextlib.suppress(OSError, ValueError):
        most = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        # Files that were read count as well, until somebody needs the room: a model, whose digest was taken.
        words = (group / "memory.stat").read_text(encoding="ascii").split()
        used -= int(dict(zip(words[::2], words[1::2], strict=False)).get("inactive_file", 0))
        if most != "max":
            total, free = min(total, int(most)), min(free, max(0, int(most) - used))
    return total, free
