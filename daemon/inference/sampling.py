"""Which token comes next: by scores, a request's parameters, and a number that (seed, choice, position) alone decide.

There is no generator whose state could leak from one request into another, so neither the batch, nor the order of work,
nor an engine that was lost and another that went on can change a draw. Every rule here looks at one row alone, and at
values and not at the order in which a sort left equal ones, so equal scores give equal draws on any device.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COLDEST = 1e-30
"""Scores divided by less could be more than a number holds: below, the most likely token is taken."""
_ENOUGH = 1024
"""So many of the most likely tokens nearly always hold top_p of the probability; sorting them all costs more."""


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1) for this draw and no other."""
    return int.from_bytes(hashlib.sha256(f"{seed} {choice} {position}".encode()).digest()[:8], "big") / 2**64


@dataclass(slots=True)
class Ask:
    """What one row of scores is asked."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    at: float = 0.0
    """Of `uniform`; unused when greedy."""
    penalty: float = 1.0
    seen: Sequence[int] = ()
    """Tokens that the repetition penalty counts against."""
    allowed: Any = None
    """bool [vocabulary], or None: what the grammar lets come next."""
    logprobs: int | None = None


@dataclass(slots=True)
class Chosen:
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def choose(scores: Any, asks: Sequence[Ask]) -> list[Chosen]:
    """A token for each row of `scores` (float [rows, vocabulary], on any device)."""
    torch = importlib.import_module("torch")
    told = {
        row: _logprobs(torch, scores[row], ask.logprobs) for row, ask in enumerate(asks) if ask.logprobs is not None
    }
    if any(ask.penalty != 1 or ask.allowed is not None for ask in asks):
        scores = scores.clone()
        for row, ask in enumerate(asks):
            if ask.penalty != 1 and ask.seen:
                at = torch.tensor(sorted(set(ask.seen)), device=scores.device)
                some = scores[row, at]
                scores[row, at] = torch.where(some > 0, some / ask.penalty, some * ask.penalty)
            if ask.allowed is not None:
                scores[row].masked_fill_(~ask.allowed.to(scores.device), float("-inf"))
    # One transfer for all greedy rows; the first of equal scores wins.
    tokens: list[int] = scores.argmax(dim=-1).tolist()
    chosen = []
    for row, ask in enumerate(asks):
        token = tokens[row] if ask.temperature < COLDEST else _draw(torch, scores[row], ask)
        one = Chosen(token)
        if row in told:
            logs, top = told[row]
            one.logprob, one.top = float(logs[token]), top
        chosen.append(one)
    return chosen


def _draw(torch: Any, scores: Any, ask: Ask) -> int:
    exact = torch.float32 if scores.device.type == "mps" else torch.float64
    scores = scores.to(exact) / ask.temperature
    if 0 < ask.top_k < scores.numel():
        least = torch.topk(scores, ask.top_k).values[-1]
        scores = scores.masked_fill(scores < least, float("-inf"))
    shares = torch.softmax(scores, dim=-1)
    if ask.top_p < 1:
        least = _least_share(torch, shares, ask.top_p)
        shares = shares.masked_fill(shares < least, 0.0)
    # In the vocabulary's order, which no tie can change.
    below = torch.cumsum(shares, dim=-1)
    place = int(torch.searchsorted(below, ask.at * below[-1:], right=True))
    if place >= below.numel() or float(shares[place]) == 0.0:  # `at` so near to 1 that rounding went past the last
        place = int(torch.nonzero(shares)[-1])
    return place


def _least_share(torch: Any, shares: Any, top_p: float) -> Any:
    """The share of the last token that is needed for the most likely ones to hold top_p together."""
    for count in (_ENOUGH, shares.numel()):
        if count < shares.numel():
            ordered = torch.topk(shares, count).values
        else:
            ordered = torch.sort(shares, descending=True).values
        below = torch.cumsum(ordered, dim=-1)
        place = int((below < top_p).sum())
        if place < ordered.numel():
            return ordered[place]
    return ordered[-1]


def _logprobs(torch: Any, scores: Any, count: int) -> tuple[Any, tuple[tuple[int, float], ...]]:
    logs = torch.log_softmax(scores.float(), dim=-1).cpu()
    if not count:
        return logs, ()
    values, tokens = torch.topk(logs, min(count, logs.numel()))
    pairs = sorted(zip(tokens.tolist(), values.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
    return logs, tuple(pairs)
