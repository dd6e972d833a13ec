"""One call of a verb: the home it is about, who reads the answer, and how it ends.

Standard library only, as in `verb`; and no typer, since the daemon's own process takes part in this.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from daemon.cli.exits import Exit
from daemon.cli.failure import Failure, failure_of

if TYPE_CHECKING:
    from daemon.home import Home
    from daemon.reading import Reading
    from daemon.settings import Settings

_SIGPIPE = 141
_ANSWER_S = 3.0
"""A daemon that is well answers within milliseconds; one that waits for a slow disk, within this."""


class Call:
    """What every verb is given: the home it is about, and who reads the answer."""

    def __init__(self, home: str | None, json: bool) -> None:
        self._home, self.json = home, json

    @property
    def home_given(self) -> bool:
        """Whether the home was named on the command line, so that advice must name it too."""
        return self._home is not None

    @cached_property
    def home(self) -> Home:
        """Nothing of it is looked at yet."""
        from daemon.home import Home

        return Home.find(self._home)

    @cached_property
    def settings(self) -> Settings:
        return self.home.settings()

    @property
    def zone(self) -> str:
        """The zone that people read times in: the home's, else this machine's, else UTC."""
        from daemon.home import HomeError
        from daemon.settings import Settings

        try:
            return self.settings.timezone
        except HomeError:
            with suppress(HomeError):
                return Settings().timezone
            return "UTC"

    @cached_property
    def reading(self) -> Reading:
        """The home as its files tell it. HomeError if there is none."""
        from daemon.cli.show import Progress
        from daemon.reading import Reading

        self.home.check(write=False)
        return Reading(self.home, Progress("reading the ledger"))

    def pulse(self) -> dict[str, Any] | None:
        """How the daemon says it is; None if none runs. CallFailed if one is there and does not answer."""
        from daemon import control

        try:
            answer = control.call(self.home.path, "ping", {}, timeout_s=_ANSWER_S)
        except control.NotRunning:
            return None
        assert isinstance(answer, dict)
        return answer


def exit_code(call: Call, act: Callable[[], int | None]) -> int:
    """Do it, say what went wrong in the words of `failure`, and give the exit status."""
    try:
        code = act() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGPIPE
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return Exit.INTERRUPTED
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            raise
        tell(call, failure)
        return failure.exit


def tell(call: Call, failure: Failure) -> None:
    if call.json:
        from daemon.cli import show

        show.json(failure.json())
    else:
        print(failure.text(), file=sys.stderr)
