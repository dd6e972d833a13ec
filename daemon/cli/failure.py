"""The one place that turns an error into what a person is told: what is wrong, where, and what to do."""

from __future__ import annotations

import sys
from typing import Any

from daemon.cli.exits import Exit

Json = Any


class Failure(Exception):
    """A verb cannot do what was asked. `where` and `do` may be empty when `what` says it all."""

    def __init__(self, exit: Exit, what: str, *, where: str = "", do: str = "") -> None:
        super().__init__(what)
        self.exit, self.what, self.where, self.do = exit, what, where, do

    def json(self) -> Json:
        error = {"code": self.exit.name.lower().replace("_", "-"), "exit": int(self.exit), "message": self.what}
        return {"error": error | {"where": self.where, "advice": self.do}}

    def text(self) -> str:
        lines = [f"error: {self.what}"]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.do:
            lines.append(f"  do: {self.do}")
        return "\n".join(lines)


_CODES = {
    "unknown-job": Exit.UNKNOWN,
    "unknown-run": Exit.UNKNOWN,
    "unknown-repository": Exit.UNKNOWN,
    "unknown-notice": Exit.UNKNOWN,
    "over": Exit.NO,
    "not-over": Exit.NO,
    "never-upgraded": Exit.NO,
    "step": Exit.BAD_INPUT,
    "empty": Exit.BAD_INPUT,
    "no-file": Exit.BAD_INPUT,
    "no-file-wanted": Exit.BAD_INPUT,
    "bad-file": Exit.BAD_INPUT,
    "bad-overlap": Exit.BAD_INPUT,
    "bad-time": Exit.BAD_INPUT,
    "nothing-to-backfill": Exit.BAD_INPUT,
    "unknown-verb": Exit.BAD_INPUT,
    "bad-request": Exit.BAD_INPUT,
    "too-large": Exit.BAD_INPUT,
    "full": Exit.UNAVAILABLE,
}
"""How a refusal by the daemon ends the command; any other one means that the conversation broke."""


def failure_of(error: BaseException) -> Failure | None:
    """None for what no user can have caused: a bug, which shows its traceback."""
    if isinstance(error, Failure):
        return error
    # Only rooms that are loaded can have raised, so nothing is imported just to name its errors.
    rooms = {name: sys.modules.get(name) for name in _ERRORS}
    for name, errors in _ERRORS.items():
        for kind, exit in errors.items():
            known = getattr(rooms[name], kind, None)
            if known is not None and isinstance(error, known):
                return _described(error, kind, exit)
    if isinstance(error, OSError):
        where = str(error.filename or "")
        return Failure(Exit.IO, error.strerror or str(error), where=where, do=_ADVICE.get(type(error), ""))
    return None


_ERRORS: dict[str, dict[str, Exit]] = {
    "daemon.home": {"HomeError": Exit.CONFIGURATION},
    "daemon.control": {
        "NotRunning": Exit.NOT_RUNNING,
        "AlreadyRunning": Exit.HELD,
        "CallFailed": Exit.NOT_RUNNING,
    },
    "daemon.ports": {"LeasesBusy": Exit.HELD},
    "daemon.wake": {"CannotWatch": Exit.UNAVAILABLE},
    "daemon.service": {"ServiceError": Exit.UNAVAILABLE},
    "ledger.disk": {"Locked": Exit.HELD},
    "ledger.errors": {
        "Corrupt": Exit.NO,
        "NotLocal": Exit.CONFIGURATION,
        "Full": Exit.UNAVAILABLE,
        "Poisoned": Exit.IO,
        "Missing": Exit.UNKNOWN,
        "Refused": Exit.BAD_INPUT,
    },
    "policies.fault": {"BadValue": Exit.BAD_INPUT},
    "state.projector": {"Unknown": Exit.UNAVAILABLE, "Impossible": Exit.NO},
}

_ADVICE = {
    PermissionError: "look at the owner and the mode of the file and of its folder (`ls -ld`)",
    FileNotFoundError: "check the path",
}


def _described(error: Any, kind: str, exit: Exit) -> Failure:
    if kind == "Corrupt":
        good = f"records {error.first_good} to {error.last_good} are good" if error.last_good else "no record is good"
        return Failure(
            exit,
            f"the ledger is damaged: {error.reason}",
            where=f"{error.file} at byte {error.offset}; {good}",
            do=error.advice,
        )
    if kind == "CallFailed":
        return Failure(_CODES.get(error.code, exit), error.message, do=error.advice)
    if kind == "BadValue":
        return Failure(exit, str(error), do=error.advice)
    if kind == "Locked":
        return Failure(exit, str(error), do="see `hermesd status`; `hermesd stop` ends that daemon, its runs go on")
    if kind == "Poisoned":
        return Failure(exit, str(error), do="look at the disk (`dmesg`), then start again; what was durable is safe")
    if kind == "Impossible":
        do = "keep a copy of the home; if `hermesd verify` finds the bytes whole, this is a bug: report it"
        return Failure(exit, str(error), do=do)
    return Failure(exit, str(error))
