"""Answers that keep to a grammar: JSON of a schema, a regular expression, or a context-free grammar (by llguidance)."""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from daemon.inference.runtimes import Refused

Json = Any
KINDS = ("json_schema", "json_object", "regex", "lark")
_NO_FREE_SPACE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""A model that may always say one more space says it for ever."""


def written(grammar: Mapping[str, Json]) -> str:
    """The grammar as llguidance reads it. Refused if it is none that can be kept to."""
    llguidance: Any = importlib.import_module("llguidance")
    if len(grammar) != 1 or next(iter(grammar)) not in KINDS:
        raise Refused("grammar", f"a grammar is one of {', '.join(KINDS)}")
    kind, rule = next(iter(grammar.items()))
    matcher = llguidance.LLMatcher
    if kind == "json_object":
        kind, rule = "json_schema", {"type": "object"}
    if kind == "json_schema":
        if not isinstance(rule, Mapping):
            raise Refused("grammar", "a JSON schema is an object")
    elif not isinstance(rule, str):
        raise Refused("grammar", f"a grammar of the kind {kind} is text")
    try:
        if kind == "json_schema":
            made = matcher.grammar_from_json_schema(json.dumps(rule), defaults=_NO_FREE_SPACE)
        else:
            made = matcher.grammar_from_regex(rule) if kind == "regex" else matcher.grammar_from_lark(rule)
        wrong, words = matcher.validate_grammar_with_warnings(made)
    except (ValueError, RecursionError) as error:  # nested too deeply
        wrong, words = True, [str(error)]
    if wrong:
        raise Refused("grammar", f"the {kind.replace('_', ' ')} cannot be kept to: {'; '.join(words)}")
    return str(made)


class Grammars:
    """Makes matchers for one tokenizer. The first one takes a moment."""

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Collection[int]) -> None:
        self._lib: Any = importlib.import_module("llguidance")
        bridge: Any = importlib.import_module("llguidance.hf")
        try:
            self._tokenizer = bridge.from_tokenizer(
                tokenizer, n_vocab=max(vocabulary, len(tokenizer)), eos_token=sorted(ends) or None
            )
        except (TypeError, ValueError) as error:
            raise Refused("grammar", f"this model's tokenizer cannot be kept to a grammar: {error}") from error
        self._vocabulary = vocabulary

    def matcher(self, grammar: Mapping[str, Json]) -> Matcher:
        made = self._lib.LLMatcher(self._tokenizer, written(grammar))
        if made.is_error():
            raise Refused("grammar", f"the grammar cannot be kept to: {made.get_error()}")
        return Matcher(made, self._vocabulary)


class Matcher:
    """How far one answer has come in its grammar."""

    def __init__(self, made: Any, vocabulary: int) -> None:
        self._made, self._vocabulary = made, vocabulary
        self._torch: Any = importlib.import_module("torch")

    def allowed(self) -> Any:
        """bool [vocabulary]: what may come next."""
        bits = bytearray(self._made.compute_bitmask())
        torch = self._torch
        mask = torch.frombuffer(bits, dtype=torch.uint8)[:, None].bitwise_right_shift(torch.arange(8)).bitwise_and(1)
        return mask.view(-1)[: self._vocabulary].bool()

    def accept(self, token: int) -> None:
        self._made.consume_token(token)

    def lost(self) -> str:
        """Why the answer can no more be kept to the grammar; "" while it can."""
        return str(self._made.get_error()).partition("\n")[0] if self._made.is_error() else ""

    def over(self) -> bool:
        """Nothing but the end can follow."""
        return bool(self._made.is_stopped())
