"""The digests that generation records carry in place of texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import orjson

from daemon.inference.runtimes import Generation

_PROMPT = ("prompt", "tokens", "messages", "tools")
_NOT_ASKED = ("id", "priority", "so_far")
_ASKED = tuple(each.name for each in fields(Generation) if each.name not in _NOT_ASKED)


def prompt_digest(request: Generation) -> str:
    """Of what the model is to go on from."""
    return _digest({name: getattr(request, name) for name in _PROMPT})


def request_digest(request: Generation) -> str:
    """Of all that decides about the answer: the prompt and every parameter."""
    return _digest({name: getattr(request, name) for name in _ASKED})


def output_digest(texts: Sequence[str]) -> str:
    """Of the texts of all choices, in their order."""
    return _digest(list(texts))


def _digest(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)).hexdigest()
