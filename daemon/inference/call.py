"""One request at the pool: what was asked, what was told of it, and what is to be remembered."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from daemon.inference.digests import output_digest, prompt_digest, request_digest
from daemon.inference.failures import PoolError
from daemon.inference.runtimes import Done, Generation, Piece

Json = Any


class Served(Protocol):
    """The engine that works on it."""

    id: str
    facts: dict[str, Json]


@dataclass(slots=True, eq=False)
class Call:
    """Somebody waits for this."""

    id: str
    kind: Literal["generate", "embed", "tokenize", "load"]
    model: str
    asked_s: float
    request: Generation | None = None
    texts: Sequence[str] = ()
    said: deque[Piece | Done] = field(default_factory=deque)
    result: Json = None
    over: bool = False
    error: PoolError | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    engine: Served | None = None
    given_s: float = 0.0
    first_s: float = 0.0
    tokens: dict[int, list[int]] = field(default_factory=dict)
    output: dict[int, list[str]] = field(default_factory=dict)
    finished: dict[int, Done] = field(default_factory=dict)
    again: set[int] = field(default_factory=set)
    """Choices of which another engine is about to tell a token again."""

    @property
    def asked_as(self) -> str:
        """The id that whoever asked gave it."""
        return self.request.id if self.request is not None else self.id

    @property
    def told(self) -> int:
        return sum(map(len, self.tokens.values()))

    def end(self, error: PoolError | None = None) -> None:
        if not self.over:
            self.over, self.error = True, error
            self.ready.set()

    def can_go_on(self) -> bool:
        """Whether another engine of the same kind can go on where this one was: every token is known, and no choice of
        several is complete."""
        if self.request is None or (self.finished and self.request.n > 1):
            return False
        return all(token >= 0 for tokens in self.tokens.values() for token in tokens)

    def record(self, outcome: str) -> dict[str, Json] | None:
        """What is to be remembered of a generation: figures and digests, no text. None of what is none, or was never
        begun."""
        if self.kind != "generate" or self.request is None or self.engine is None:
            return None
        request, facts, now = self.request, self.engine.facts, time.monotonic()
        finished = [self.finished[choice] for choice in sorted(self.finished)]
        generated = sum(map(len, self.tokens.values()))
        texts = ["".join(self.output.get(choice, ())) for choice in range(request.n)]
        took_s = now - self.given_s
        rate = generated / took_s if took_s > 0 else 0.0
        names = "max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "n"
        return {
            "request": request.id,
            "model": self.model,
            "engine": self.engine.id,
            "outcome": outcome,
            "digest": str(facts.get("digest", "")),
            "runtime": str(facts.get("runtime", "")),
            "versions": plain(facts.get("versions", {})),
            "device": str(facts.get("device", "")),
            "dtype": str(facts.get("dtype", "")),
            "quantization": str(facts.get("quantization", "")),
            "determinism": str(facts.get("determinism", "")),
            "parameters": {name: getattr(request, name) for name in names},
            "seed": request.seed,
            "prompt_sha256": prompt_digest(request),
            "request_sha256": request_digest(request),
            "output_sha256": output_digest(texts),
            "finish": [done.finish for done in finished],
            "prompt_tokens": max((done.prompt_tokens for done in finished), default=0),
            "cached_tokens": max((done.cached_tokens for done in finished), default=0),
            "generated_tokens": generated,
            "queued_ms": round((self.given_s - self.asked_s) * 1000),
            "first_token_ms": round((self.first_s - self.given_s) * 1000) if self.first_s else None,
            "took_ms": round(took_s * 1000),
            "tokens_per_second": round(rate, 1),
        }


def plain(facts: Mapping[str, Json]) -> dict[str, Json]:
    """What JSON can say of them."""
    return {
        str(name): plain(value) if isinstance(value, Mapping)
        else value if isinstance(value, str | int | float | bool)
        else str(value)
        for name, value in facts.items()
    }  # fmt: skip
