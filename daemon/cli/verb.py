"""A verb of the command line: the options every verb has, its errors and its exit status.

Only typer and the standard library are imported here, so that `hermesd --help` stays quick; everything a verb needs is
imported when it is called.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from daemon.cli.exits import Exit
from daemon.cli.failure import Failure, failure_of

if TYPE_CHECKING:
    from daemon.home import Home, Settings
    from daemon.reading import Reading

Act = TypeVar("Act", bound=Callable[..., "int | None"])


def _say_version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        print(f"hermesd {importlib.metadata.version('hermesd')}")
        raise typer.Exit


HomeOption = Annotated[
    str | None, typer.Option("--home", metavar="DIR", help="The home [default: $HERMESD_HOME or ~/.hermesd].")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer for programs: JSON on standard output.")]
VersionOption = Annotated[
    bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which Hermes this is.")
]
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
        """The zone that people read times in: the home's, else this machine's."""
        from daemon.home import HomeError, Settings

        try:
            return self.settings.timezone
        except HomeError:
            return Settings().timezone

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


def group(parent: typer.Typer, name: str, help: str) -> typer.Typer:
    app = typer.Typer(help=help, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback()(_common)
    parent.add_typer(app, name=name)
    return app


def _common(context: typer.Context, home: HomeOption = None, json: JsonOption = False) -> None:
    _remember(context, home, json)


def _remember(context: typer.Context, home: str | None, json: bool) -> Call:
    """The options as given before, between and behind the words of the verb; the last one wins."""
    earlier = context.obj if isinstance(context.obj, Call) else Call(None, False)
    call = context.obj = Call(home if home is not None else earlier._home, json or earlier.json)
    return call


def root(**settings: Any) -> typer.Typer:
    app = typer.Typer(
        name="hermesd", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, **settings
    )

    @app.callback()
    def _(
        context: typer.Context, home: HomeOption = None, json: JsonOption = False, version: VersionOption = False
    ) -> None:
        _common(context, home, json)

    return app


def verb(app: typer.Typer, name: str, **settings: Any) -> Callable[[Act], Act]:
    """Make a function `(call, options...) -> exit code or None` a verb of `app`. Its docstring is the help."""

    def register(act: Act) -> Act:
        _, *options = inspect.signature(act, eval_str=True).parameters.values()

        def run(context: typer.Context, home: str | None, json: bool, **values: Any) -> None:
            call = _remember(context, home, json)
            code = _exit_code(call, lambda: act(call, **values))
            if code:
                raise typer.Exit(int(code))

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter("context", keyword, annotation=typer.Context),
            *(option.replace(kind=keyword) for option in options),
            inspect.Parameter("home", keyword, annotation=HomeOption, default=None),
            inspect.Parameter("json", keyword, annotation=JsonOption, default=False),
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__name__, run.__doc__ = act.__name__, act.__doc__
        app.command(name, **settings)(run)
        return act

    return register


def _exit_code(call: Call, act: Callable[[], int | None]) -> int:
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
