"""The command line, `hermesd`: the grammar of its verbs in `grammar`, what they do in the file of their noun."""

from __future__ import annotations


def main() -> None:
    from daemon.cli.grammar import app

    app(prog_name="hermesd")
