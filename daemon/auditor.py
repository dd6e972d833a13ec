"""The auditor's process: reads everything again at the lowest priority, tells the daemon what it found, and compresses
the old sealed segments if all of it was sound.

`python -m daemon.auditor HOME` is the process; `Auditor` starts it, now and then, from the daemon's housekeeping.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from daemon import control
from daemon.home import Home
from daemon.reading import replaying
from daemon.system import OsDisk
from daemon.version import ROOT, code_digest
from ledger.archive import archive
from ledger.disk import Locked
from ledger.index import index_of
from ledger.manifest import seals_in
from ledger.reader import FOLDER
from ledger.segment import segments_in
from state.audit import audit
from state.mention import mentions

FIRST_AFTER_S = 900.0
"""After the daemon's start, which may have taken sealed segments on trust."""
EVERY_S = 24 * 3600.0
_NICE = 19


class Auditor:
    """At most one process at a time. Its findings come back as a request to the daemon."""

    def __init__(self, home: Path, *, first_after_s: float = FIRST_AFTER_S, every_s: float = EVERY_S) -> None:
        self._home, self._every_s = home, every_s
        self._after_s = first_after_s
        self._since_s: float | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.problem = ""
        """Why the last one told nothing; "" if it did, or is on its way."""

    def housekeep(self, boot_s: float) -> None:
        """Look after the process, and start one if it is time."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            self._process = None
            self.problem = f"the last audit ended with {code} and told nothing; see `hermesd audit`" if code else ""
        if self._since_s is None:
            self._since_s = boot_s
        if boot_s - self._since_s >= self._after_s:
            self._since_s, self._after_s = boot_s, self._every_s
            self._start()

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "daemon.auditor", str(self._home)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # In the daemon's own session: a child in another one would be taken for an orphan of a run.
        except OSError as error:
            self.problem = f"no audit can be started: {error}"

    def close(self) -> None:
        """End the process, if there is one: the next daemon starts its own."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


def _yield_to_others() -> None:
    os.nice(_NICE)
    with contextlib.suppress(ImportError, AttributeError, OSError):  # where the system knows no classes of reading
        import psutil

        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


def main(home: Path) -> int:
    _yield_to_others()
    disk = OsDisk(Home(home).path)
    with replaying():
        found = audit(disk, code_digest())
    if found.ok:  # Whoever searches next finds the index made.
        seals = seals_in(disk, FOLDER)
        for segment in segments_in(disk.list(FOLDER)):
            if segment.number in seals:
                index_of(disk, segment, seals[segment.number], mentions)
        with contextlib.suppress(Locked):  # Somebody is at it by hand.
            archive(disk)
    try:
        control.call(home, "audit", found.told())
    except (control.NotRunning, control.CallFailed):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
