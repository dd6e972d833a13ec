"""Errands: small processes of the daemon's own beside the runs, which tell somebody of something or look at what a run
has left. They go through the Spawner as attempts do, under names that no run can have, and take no place of a run.

An errand ends itself in time; one that does not is killed here, so that it cannot keep others from their turn.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping

from daemon.order import Surroundings
from daemon.ports import CommandTask, Ended, Order, Report, Spawner, SpawnError
from daemon.version import ROOT

MARK = "@"
"""What the name of an errand begins with. No job's name does."""
LIMIT_MS = 60_000
OUTPUT_BYTES = 65_536
_UNSTARTED = 125
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from daemon.{module} import main; main()"


def errand(around: Surroundings, name: str, attempt: int, module: str, env: Mapping[str, str]) -> Order:
    """`daemon.<module>.main`, by this very interpreter, in an environment as clean as a run's."""
    argv = (sys.executable, "-P", "-c", _BOOT.format(module=module), str(ROOT))
    folder = str(around.folder(name, attempt))
    whole = {**around.environment, **env, "HERMESD_HOME": str(around.home)}
    return Order(name, attempt, 0, folder, CommandTask(argv, folder), whole, {"output": OUTPUT_BYTES})


class Errands:
    """Those that have begun and whose end has not been recorded, by name; of each one attempt at a time."""

    def __init__(self, spawner: Spawner) -> None:
        self._spawner = spawner
        self._begun: dict[str, tuple[int, int]] = {}  # name -> attempt, since when (CLOCK_BOOTTIME, ms)
        self._unstarted: list[Report] = []

    def __len__(self) -> int:
        return len(self._begun)

    def attempt(self, name: str) -> int:
        """Which attempt of it goes on; 0 if none does."""
        return self._begun[name][0] if name in self._begun else 0

    def names(self) -> list[str]:
        return list(self._begun)

    def begin(self, order: Order, boot_ms: int) -> None:
        self._begun[order.run] = (order.attempt, boot_ms)
        try:
            self._spawner.start(order)
        except SpawnError as error:
            self._unstarted.append(Ended(order.run, order.attempt, _UNSTARTED, note=str(error)))

    def over(self, name: str) -> None:
        """Its end has been recorded."""
        self._begun.pop(name, None)

    def unstarted(self) -> list[Report]:
        """The ends of those that could not begin, since the last call."""
        found, self._unstarted = self._unstarted, []
        return found

    def stop_overdue(self, boot_ms: int) -> None:
        for name, (attempt, since_ms) in self._begun.items():
            if boot_ms - since_ms >= LIMIT_MS:
                self._begun[name] = (attempt, boot_ms)
                self._spawner.stop(name, attempt, force=True)

    def deadlines(self) -> list[int]:
        """When to be called next (CLOCK_BOOTTIME, ms); 0 is at once."""
        return [0 for _ in self._unstarted] + [since_ms + LIMIT_MS for _, since_ms in self._begun.values()]


def end_of(report: Ended) -> str:
    """How an errand ended that said nothing itself, in words."""
    if report.signal == signal.SIGALRM:
        why = "it took too long and was stopped"
    elif report.signal is not None:
        why = f"its process was killed by signal {report.signal}"
    elif report.code is None:
        why = "nobody saw the end of its process"
    else:
        why = f"its process ended with exit status {report.code}"
    return f"{why}; {report.note}" if report.note else why
