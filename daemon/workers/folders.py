"""Folders of runs that left nothing, for the next ones. To make a folder costs many times what moving one does, and the
more so where others were deleted a moment ago."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys

from daemon.workers.command import place_of

_SPARES_MAX = 64


class SpareFolders:
    """Those of this process. A spare has left its run's name before anybody is told of it: nobody who deletes what a
    run left, by its name, can meet it where it is another's."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._made = 0

    def take(self, folder: str) -> None:
        """The attempt's folder, and with it that of its run."""
        if len(self._paths) >= _SPARES_MAX:
            return
        self._made += 1
        spare = f"{place_of(folder)}/{os.getpid()}-{self._made}.folder"
        with contextlib.suppress(OSError):
            os.rename(folder.rpartition("/")[0], spare)
            self._paths.append(spare)

    def lend(self) -> str:
        """One of them, "" if there is none. It is the borrower's."""
        return self._paths.pop() if self._paths else ""


def sweep(place: str) -> None:
    """Remove what processes that are gone have left: their journals live on by the claims."""
    if sys.platform != "linux":
        return
    for number, name in enumerate(os.listdir(place)):
        pid = name.partition("-")[0]
        if not pid.isdigit() or os.path.exists(f"/proc/{pid}"):
            continue
        path = f"{place}/{name}"
        with contextlib.suppress(OSError):
            if os.path.isdir(path):
                # Out of the way first: a keeper that lives on may be about to use it.
                swept = f"{place}/{os.getpid()}-swept-{number}"
                os.rename(path, swept)
                shutil.rmtree(swept, ignore_errors=True)
            else:
                os.unlink(path)
