"""What an attempt left in its folder: sizes and digests for the ledger, and the files it promised."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

Json = Any

KEPT_BYTES_MAX = 256 << 20
"""A promised file larger than this stays in the run's folder and does not become an artifact."""


class OutputFolder:
    def __init__(self, runs: Path) -> None:
        self._runs = runs

    def measure(self, run: str, attempt: int) -> dict[str, Json]:
        """File name -> size and SHA-256, of those that hold something."""
        folder = f"{self._runs}/{run}/{attempt}"
        found = {}
        for name in ("stdout.log", "stderr.log", "result.json"):
            try:
                if not os.stat(f"{folder}/{name}").st_size:  # Most are empty, and to open one takes ten times as long.
                    continue
                with open(f"{folder}/{name}", "rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    if size:
                        found[name] = {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            except FileNotFoundError:
                continue
            except OSError as error:
                found[name] = {"bytes": 0, "sha256": f"unreadable: {error.strerror}"}
        return found

    def read(self, run: str, attempt: int, name: str) -> bytes | str:
        """A promised file's content, or why there is none. What lies outside the run's folder is not read."""
        folder = (self._runs / run / str(attempt)).resolve()
        path = (folder / name).resolve()
        if not path.is_relative_to(folder):
            return f"{name} leads out of the run's folder and was not kept"
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    return f"{name} is no file and was not kept"
                if status.st_size > KEPT_BYTES_MAX:
                    return f"{name} has {status.st_size} bytes, more than is kept; it stays in {folder}"
                return file.read()
        except FileNotFoundError:
            return f"{name} was promised and not written"
        except OSError as error:
            return f"{name} could not be kept: {error.strerror}"
