"""What an attempt left in its folder: sizes and digests for the ledger, and the files it promised."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import orjson

from daemon.errand import MARK
from daemon.expectation import unmet
from daemon.workers.output import NAMES

Json = Any

KEPT_BYTES_MAX = 256 << 20
"""A promised file larger than this stays in the run's folder and does not become an artifact."""
RESULT_BYTES_MAX = 16 << 20
MEASURED_BYTES_MAX = 1 << 30
"""A larger file is not read for its digest, which would keep the loop from all else."""


class OutputFolder:
    def __init__(self, runs: Path) -> None:
        self._runs = runs

    def measure(self, run: str, attempt: int) -> dict[str, Json]:
        """File name -> size and SHA-256, of those that hold something."""
        folder = f"{self._runs}/{run}/{attempt}"
        found = {}
        for name in (*NAMES, "result.json"):
            try:
                if not os.stat(f"{folder}/{name}").st_size:  # Most are empty, and to open one takes ten times as long.
                    continue
                with _opened(f"{folder}/{name}") as file:
                    size = os.fstat(file.fileno()).st_size
                    if size > MEASURED_BYTES_MAX:
                        found[name] = {"bytes": size, "sha256": f"unread: more than {MEASURED_BYTES_MAX} bytes"}
                    elif size:
                        found[name] = {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            except FileNotFoundError:
                continue
            except OSError as error:
                found[name] = {"bytes": 0, "sha256": f"unreadable: {error.strerror}"}
        return found

    def unmet(self, run: str, attempt: int, expects: Sequence[Mapping[str, Json]]) -> str:
        """What is expected of a success and is not there; "" if all is."""
        return unmet(self._runs / run / str(attempt), expects)

    def tokens(self, run: str, attempt: int) -> int | None:
        """What its result says: `usage.tokens`, or the prompt's and the generated ones together; None if nothing."""
        result = self.result(run, attempt)
        usage = result.get("usage") if isinstance(result, dict) else None
        if not isinstance(usage, dict):
            return None
        counts = [usage["tokens"]] if "tokens" in usage else [usage.get("prompt_tokens"), usage.get("generated_tokens")]
        whole = [count for count in counts if type(count) is int and 0 <= count < 1 << 53]
        return sum(whole) if len(whole) == len(counts) else None

    def result(self, run: str, attempt: int) -> Json:
        """What it returned; None if there is nothing, or it cannot be read."""
        try:
            with _opened(self._runs / run / str(attempt) / "result.json") as file:
                return orjson.loads(file.read(RESULT_BYTES_MAX) or b"")
        except (OSError, orjson.JSONDecodeError):
            return None

    def forget(self, run: str) -> None:
        """Delete what all attempts of a run have left. What cannot be deleted stays: `hermesd doctor` tells of it."""
        if run and "/" not in run and not run.startswith("."):
            shutil.rmtree(self._runs / run, ignore_errors=True)

    def errands(self) -> list[str]:
        """The names under which errands have left something."""
        return sorted(name for name in os.listdir(self._runs) if name.startswith(MARK)) if self._runs.is_dir() else []

    def read(self, run: str, attempt: int, name: str) -> bytes | str:
        """A promised file's content, or why there is none. What lies outside the run's folder is not read."""
        # Not Path.resolve: links that lead round in a circle are an error there, and one of another kind.
        folder = Path(os.path.realpath(self._runs / run / str(attempt)))
        path = Path(os.path.realpath(folder / name))
        if not path.is_relative_to(folder):
            return f"{name} leads out of the run's folder and was not kept"
        try:
            with _opened(path) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    return f"{name} is no file and was not kept"
                if status.st_size > KEPT_BYTES_MAX:
                    return f"{name} has {status.st_size} bytes, more than is kept; it stays in {folder}"
                return file.read()
        except FileNotFoundError:
            # What an attempt prints is kept only if it printed something.
            return b"" if name in NAMES else f"{name} was promised and not written"
        except OSError as error:
            return f"{name} could not be kept: {error.strerror}"


def _opened(path: str | Path) -> BufferedReader:
    """A run may leave anything in its folder: a FIFO would keep the daemon waiting for somebody to write into it."""
    return open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))
