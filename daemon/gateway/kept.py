"""The texts of answered requests, so that they can be asked again: one file a day in the home's `generations/`, for its
owner alone. No event and no log line holds any of it; a day's file goes when its time is over."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

Json = Any

DAY_BYTES_MAX = 256 << 20
"""Of one day; what comes after is not kept."""


class Kept:
    """`days`: how long; 0 keeps nothing."""

    def __init__(self, folder: Path, days: int) -> None:
        self._folder, self._days = folder, days
        self._day, self._file = "", -1

    @property
    def keeps(self) -> bool:
        return self._days > 0

    def keep(self, answered: Mapping[str, Json]) -> None:
        today = datetime.now(UTC).date()
        if self._day != today.isoformat():
            self.close()
            self._folder.mkdir(mode=0o700, exist_ok=True)
            path = self._folder / f"{today.isoformat()}.jsonl"
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self._day = today.isoformat()
        if os.fstat(self._file).st_size < DAY_BYTES_MAX:
            os.write(self._file, orjson.dumps(dict(answered)) + b"\n")

    def expire(self, today: str) -> None:
        """Remove the days whose time is over."""
        oldest = (datetime.fromisoformat(today).date() - timedelta(days=max(self._days - 1, 0))).isoformat()
        for path in self._folder.glob("????-??-??.jsonl"):
            if path.stem < oldest or not self.keeps:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file, self._day = -1, ""


def kept_in(folder: Path) -> Iterator[dict[str, Json]]:
    """Every kept request, the oldest first. A line that a full disk or a crash cut short is passed over."""
    for path in sorted(folder.glob("????-??-??.jsonl")):
        with path.open("rb") as file:
            for line in file:
                try:
                    value = orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue
                if isinstance(value, dict) and {"id", "spec", "request", "texts"} <= set(value):
                    yield value
