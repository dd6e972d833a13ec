"""From tokens to text that may be shown, one token at a time.

The pieces of a choice add up to what `tokenizer.decode` says of all its tokens, cut before the first stop string. What
could still change, half a character or the beginning of a stop string, is held back until it cannot.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

_HALF = "\ufffd"  # what a decoder says of bytes that are no character yet


class Text:
    def __init__(self, tokenizer: Any, stop: Sequence[str], keep: Collection[int] = ()) -> None:
        """`keep`: special tokens whose text is shown all the same, such as the marks of tool calls."""
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        special = set(tokenizer.all_special_ids)
        special |= {place for place, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._hidden = special - set(keep)
        self._tokens: list[int] = []
        self._from = self._read = 0
        self._text = ""
        self._shown = 0
        self.stopped = False

    def add(self, token: int, *, last: bool = False) -> str:
        """What may be shown now; with `last`, all that is left. Sets `stopped` when a stop string is complete."""
        if token not in self._hidden:
            self._tokens.append(token)
            self._grow(last)
        elif last:
            self._grow(last)
        places = [place for stop in self._stop if (place := self._text.find(stop, self._shown)) >= 0]
        if places:
            self._text, self.stopped = self._text[: min(places)], True
        until = len(self._text)
        if not (last or self.stopped):
            until -= self._pending()
        piece, self._shown = self._text[self._shown : until], max(self._shown, until)
        return piece

    def one(self, token: int) -> str:
        """The token's own text."""
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

    def _grow(self, last: bool) -> None:
        # A token's text depends on those before it (spaces, halves of characters), but not on those long before.
        before = self._decode(self._tokens[self._from : self._read])
        now = self._decode(self._tokens[self._from :])
        if last or (len(now) > len(before) and not now.endswith(_HALF)):
            self._text += now[len(before) :]
            self._from, self._read = self._read, len(self._tokens)

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False)) if tokens else ""

    def _pending(self) -> int:
        """How much of the end may be the beginning of a stop string."""
        most = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._text)), most, -1):
                if self._text.endswith(stop[:length]):
                    most = length
                    break
        return most
