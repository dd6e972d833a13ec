"""The command line, `hermesd`: the grammar of its verbs in `grammar`, what they do in the file of their noun."""

from __future__ import annotations


def main() -> None:
    import io
    import sys

    from daemon.cli.grammar import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A terminal or a file of another charset is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="hermesd")
