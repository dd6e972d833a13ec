"""Words to the service manager (sd_notify): ready, still alive, stopping. Silent where there is none to hear them."""

from __future__ import annotations

import os
import socket


def tell(*words: str) -> bool:
    """Send for example "READY=1", "STATUS=3 runs". False if nobody listens; never an error, never a wait."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return False
    if address.startswith("@"):  # Linux's abstract sockets: no file, a NUL byte in front
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.setblocking(False)
        try:
            door.sendto("\n".join(words).encode(), address)
        except OSError:  # a manager that is gone or busy is no reason to stop the work
            return False
    return True


def watchdog_interval_s() -> float | None:
    """How often "WATCHDOG=1" must be sent at the latest: half of what the manager grants. None if it watches nobody."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        granted_us = int(os.environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return granted_us / 2_000_000 if granted_us > 0 else None
