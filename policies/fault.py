"""What is wrong with something a person wrote: where in it, what, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class BadValue(ValueError):
    """One value cannot be used. `advice` says what to write instead."""

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


@dataclass(frozen=True, slots=True)
class Fault:
    """`path` leads to the value through mapping keys and list positions; () is the whole."""

    path: tuple[str | int, ...]
    message: str
    advice: str = ""

    @property
    def field(self) -> str:
        """`steps[2].argv`"""
        text = ""
        for part in self.path:
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
        return text

    def __str__(self) -> str:
        where = f"{self.field}: " if self.path else ""
        return f"{where}{self.message}" + (f". {self.advice}" if self.advice else "")


def meant(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """Advice for a word that is not among the known ones."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}?" if close else otherwise
