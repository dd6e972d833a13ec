"""A fence around the make-believe world: inside it, a real file, process, socket or sleep is an error.

What Python itself reads while it runs is let through: modules being imported, and the time zone database.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_DOORS = (
    "socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "os.remove",
    "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod", "os.chown", "os.utime",
    "os.listdir", "os.scandir", "os.putenv", "shutil.", "tempfile.", "glob.", "time.sleep", "signal.", "fcntl.",
    "mmap.", "webbrowser.", "urllib.", "ftplib.", "http.client.", "ctypes.dlopen",
)  # fmt: skip
_READ = (".py", ".pyc", ".so", ".tab", ".zip", ".pth")
_inside = 0
_importing = ("importlib._bootstrap", "importlib._bootstrap_external", "zoneinfo._common", "zoneinfo._tzpath")


class Outside(BaseException):
    """The code under simulation has reached for the real world. Not an Exception: no code may pass over it."""


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if not _inside or not (event == "open" or event.startswith(_DOORS)) or _python_itself():
        return
    if event == "open" and (str(arguments[0]).endswith(_READ) or "zoneinfo" in str(arguments[0])):
        return
    raise Outside(f"inside the simulation: {event} {arguments[:2]!r}")


def _python_itself() -> bool:
    frame = sys._getframe(1)
    depth = 0
    while frame is not None and depth < 12:
        if frame.f_globals.get("__name__", "").startswith(_importing):
            return True
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]
    return False


@contextmanager
def fenced() -> Iterator[None]:
    """Nothing real is reached in here. The hook stays for good, as hooks do; outside it lets everything pass."""
    global _inside
    if not _hooked:
        _hooked.append(True)
        sys.addaudithook(_audit)
    _inside += 1
    sleep = time.sleep
    setattr(time, "sleep", _never)  # noqa: B010  Python tells its auditors of a sleep only since 3.13.
    try:
        yield
    finally:
        setattr(time, "sleep", sleep)  # noqa: B010
        _inside -= 1


def _never(seconds: float) -> None:
    raise Outside(f"inside the simulation: sleep for {seconds} s")


_hooked: list[bool] = []
