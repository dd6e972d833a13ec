"""Disk and memory of this machine: printed for people, returned as JSON."""

import os
import platform
import time
from typing import Any

import psutil


def gather() -> dict[str, Any]:
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    facts = {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "cpus": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "up_hours": round((time.time() - psutil.boot_time()) / 3600, 1),
        "memory": {"bytes": memory.total, "free_bytes": memory.available, "used_percent": memory.percent},
        "swap": {"bytes": swap.total, "free_bytes": swap.free, "used_percent": swap.percent},
        "disks": _disks(),
    }
    print(text_of(facts))
    return facts


def text_of(facts: dict[str, Any]) -> str:
    lines = [
        f"{facts['host']}: {facts['system']}, {facts['cpus']} CPUs, load {facts['load'][0]}, up {facts['up_hours']} h",
        _row("memory", facts["memory"]),
        _row("swap", facts["swap"]) if facts["swap"]["bytes"] else "no swap",
    ]
    return "\n".join(lines + [_row(disk["mount"], disk) for disk in facts["disks"]])


def _disks() -> list[dict[str, Any]]:
    """Each file system once, the fullest first."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for mount in ["/", os.path.expanduser("~"), *(part.mountpoint for part in psutil.disk_partitions())]:
        try:
            usage = psutil.disk_usage(mount)
        except OSError:
            continue  # Not for this user to see.
        if usage.total:
            disk = {"mount": mount, "bytes": usage.total, "free_bytes": usage.free, "used_percent": usage.percent}
            found.setdefault((usage.total, usage.free), disk)
    return sorted(found.values(), key=lambda disk: (-disk["used_percent"], disk["mount"]))[:10]


def _row(name: str, share: dict[str, Any]) -> str:
    free, whole = share["free_bytes"] / 2**30, share["bytes"] / 2**30
    return f"{name}: {free:.1f} of {whole:.1f} GiB free ({share['used_percent']:.0f} % used)"
