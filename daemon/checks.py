"""Runs whose process has ended well and whose files are being held against a schema, by an errand each: a schema may
take for ever, and the loop may not. Until that is known, the run is not over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from daemon.errand import MARK, Errands, end_of, errand
from daemon.order import Surroundings
from daemon.outbox import Files
from daemon.ports import Ended
from ledger.instant import Now

Json = Any

ATTEMPTS = 3
"""A check whose end nobody saw is made again: it does no harm."""


@dataclass(slots=True)
class _Check:
    ended: Ended
    expects: Json
    attempt: int = 1


class Checks:
    def __init__(self, around: Surroundings, errands: Errands, files: Files) -> None:
        self._around, self._errands, self._files = around, errands, files
        self._checks: dict[str, _Check] = {}

    @property
    def runs(self) -> frozenset[str]:
        return frozenset(check.ended.run for check in self._checks.values())

    def wanted(self, ended: Ended, expects: Iterable[Mapping[str, Json]]) -> bool:
        """Whether what an attempt has left has to be looked at by an errand first. Then its end is kept here."""
        if ended.code != 0 or not any(expected.get("json_schema") is not None for expected in expects):
            return False
        self._checks.setdefault(_name(ended), _Check(ended, list(expects)))
        return True

    def begin(self, now: Now) -> None:
        for name, check in self._checks.items():
            if self._errands.attempt(name) < check.attempt:
                folder = str(self._around.folder(check.ended.run, check.ended.attempt))
                env = {"HERMESD_EXPECTS": orjson.dumps(check.expects).decode(), "HERMESD_EXPECTS_IN": folder}
                self._errands.begin(errand(self._around, name, check.attempt, "expectation", env), now.boot_ms)

    def ended(self, report: Ended) -> tuple[Ended, str] | None:
        """How the attempt had ended, and what is not as expected ("" if all is); None if the check is made again, or
        nobody waits for it any more."""
        check = self._checks.get(report.run)
        if check is None or report.attempt != check.attempt:
            return None
        if report.code is None and report.signal is None and check.attempt < ATTEMPTS:
            check.attempt += 1
            return None
        told = self._files.read(report.run, report.attempt, "unmet.txt") if report.code == 0 else ""
        if isinstance(told, bytes):
            return check.ended, told.decode("utf-8", "replace")
        return check.ended, f"what it left could not be held against its schema: {told or end_of(report)}"

    def over(self, run: str, attempt: int) -> str | None:
        """The attempt's end has been recorded. The name under which files were left; None if none were."""
        name = _name(Ended(run, attempt, 0))
        self._errands.over(name)
        return name if self._checks.pop(name, None) is not None else None


def _name(ended: Ended) -> str:
    return f"{MARK}{ended.run}.{ended.attempt}.expected"
