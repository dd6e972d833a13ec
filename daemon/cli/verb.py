"""A verb of the command line: the options every verb has.

Only typer and the standard library are imported here, so that `hermesd --help` stays quick; everything a verb needs is
imported when it is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from daemon.cli.call import Call, exit_code

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


def group(parent: typer.Typer, name: str, help: str, *, alone: bool = False) -> typer.Typer:
    """Verbs that share a word. `alone`: the word is a verb, too, which `verb(app, "")` gives."""
    app = typer.Typer(help=help, no_args_is_help=not alone, rich_markup_mode=None, pretty_exceptions_enable=False)
    if not alone:
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
        name="hermesd",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )

    @app.callback()
    def _(
        context: typer.Context, home: HomeOption = None, json: JsonOption = False, version: VersionOption = False
    ) -> None:
        _common(context, home, json)

    return app


def verb(app: typer.Typer, name: str, **settings: Any) -> Callable[[Act], Act]:
    """Make a function `(call, options...) -> exit code or None` a verb of `app`. Its docstring is the help. Without a
    name it is what the word of the group does where no verb follows."""

    def register(act: Act) -> Act:
        _, *options = inspect.signature(act, eval_str=True).parameters.values()

        def run(context: typer.Context, home: str | None, json: bool, **values: Any) -> None:
            call = _remember(context, home, json)
            if context.invoked_subcommand is not None:
                return
            code = exit_code(call, lambda: act(call, **values))
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
        if name:
            app.command(name, **settings)(run)
        else:
            app.callback(invoke_without_command=True, **settings)(run)
        return act

    return register
