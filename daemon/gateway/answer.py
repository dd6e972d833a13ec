"""One request at the pool: asked, measured, and what is said of it afterwards. The desk is where all of them meet."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from daemon.gateway import log
from daemon.gateway.kept import Kept
from daemon.gateway.metrics import Metrics
from daemon.gateway.refusal import refusal_of
from daemon.gateway.stream import Streams
from daemon.inference.digests import output_digest
from daemon.inference.pool import EnginePool
from daemon.inference.runtimes import Done, Generation, Piece
from daemon.inference.views import ModelView

Json = Any

NEW_TOKENS = 512
"""Where the caller names no bound and the model's context is not known."""


def new_id() -> str:
    """Sorts by the time it was made."""
    return f"{time.time_ns() // 1000:014x}{secrets.token_hex(6)}"


@dataclass(slots=True)
class Choice:
    text: list[str] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    """Only where logprobs were asked for."""
    done: Done | None = None


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: for the log, and for fairness between callers."""

    request_id: str
    trace_id: str
    client: str
    keep: bool = True
    """Whether the text may be kept, as far as the caller is asked."""


class Desk:
    """What every route needs."""

    def __init__(self, pool: EnginePool, streams: Streams, kept: Kept) -> None:
        self.pool, self.streams, self.kept = pool, streams, kept
        self.metrics = Metrics(pool.models, pool.engines, pool.stats, lambda: len(streams))

    def model(self, name: str) -> ModelView:
        """UnknownModel, with the names there are."""
        return self.pool.model(name)

    async def fitted(self, model: str, request: Generation) -> Generation:
        """The request, allowed to fill what the prompt leaves of the model's context."""
        tokens = await self.pool.tokenize(model, replace(request, max_new_tokens=1))
        context = self.pool.facts(model).get("context") or 0
        room = context - len(tokens) if context else NEW_TOKENS
        return replace(request, max_new_tokens=max(1, room))

    def answer(self, model: str, request: Generation, asker: Asker, priority: int = 0) -> Answer:
        return Answer(self, model, request, asker, priority)


class Answer:
    """What the pool says to one request. `said` is walked once; `choices` fill up meanwhile."""

    def __init__(self, desk: Desk, model: str, request: Generation, asker: Asker, priority: int) -> None:
        self.desk, self.model, self.request, self.asker, self.priority = desk, model, request, asker, priority
        self.created = int(time.time())
        self.choices = [Choice() for _ in range(request.n)]
        self._began_s = time.monotonic()
        self._first_s: float | None = None

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def prompt_tokens(self) -> int:
        return next((choice.done.prompt_tokens for choice in self.choices if choice.done), 0)

    @property
    def cached_tokens(self) -> int:
        return next((choice.done.cached_tokens for choice in self.choices if choice.done), 0)

    @property
    def generated_tokens(self) -> int:
        return sum(choice.done.generated_tokens for choice in self.choices if choice.done)

    @property
    def took_s(self) -> float:
        return time.monotonic() - self._began_s

    def usage(self) -> Json:
        prompt, generated = self.prompt_tokens, self.generated_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    async def said(self) -> AsyncGenerator[Piece | Done, None]:
        """The pool's words as they come. Its errors pass through; closing this lets go of the request."""
        pool, metrics = self.desk.pool, self.desk.metrics
        between = metrics.between_tokens_s.labels(self.model)
        keep_pieces, last_s = self.request.logprobs is not None, 0.0
        why = "cancelled"
        source = pool.generate(self.model, self.request, priority=self.priority, client=self.asker.client)
        try:
            async for one in source:
                choice = self.choices[one.choice]
                if isinstance(one, Piece):
                    now_s = time.monotonic()
                    if self._first_s is None:
                        self._first_s = now_s
                        metrics.first_token_s.labels(self.model).observe(now_s - self._began_s)
                    elif len(self.choices) == 1:
                        between.observe(now_s - last_s)
                    last_s = now_s
                    choice.text.append(one.text)
                    if keep_pieces:
                        choice.pieces.append(one)
                else:
                    choice.done = one
                yield one
            why = ""
        except Exception as error:
            refusal = refusal_of(error)
            why = (refusal.code or str(refusal.status)) if refusal else "internal"
            raise
        finally:
            # A cancelled caller must still be able to let go of the engine.
            with contextlib.suppress(Exception):
                await source.aclose()
            self._finished(why)

    async def whole(self) -> None:
        """Walk to the end."""
        async with contextlib.aclosing(self.said()) as said:
            async for _ in said:
                pass

    def _finished(self, why: str) -> None:
        metrics, took_s = self.desk.metrics, self.took_s
        finish = None
        if why:
            metrics.failed.labels(self.model, why).inc()
        else:
            metrics.whole_s.labels(self.model).observe(took_s)
            for choice in self.choices:
                finish = choice.done.finish if choice.done else "length"
                metrics.success.labels(self.model, finish).inc()
            self._keep()
        metrics.prompt_tokens.labels(self.model).inc(self.prompt_tokens)
        metrics.generated_tokens.labels(self.model).inc(self.generated_tokens)
        first_s = self._first_s - self._began_s if self._first_s is not None else None
        decode_s = took_s - (first_s or 0)
        log.say(
            "generation",
            "info" if not why or why == "cancelled" else "warning",
            trace_id=self.asker.trace_id,
            request_id=self.asker.request_id,
            generation=self.id,
            model=self.model,
            outcome=why or "finished",
            finish=finish,
            prompt_tokens=self.prompt_tokens,
            generated_tokens=self.generated_tokens,
            first_token_ms=None if first_s is None else round(first_s * 1000, 1),
            took_ms=round(took_s * 1000, 1),
            tokens_per_s=round(self.generated_tokens / decode_s, 1) if decode_s > 0 else None,
        )

    def _keep(self) -> None:
        if not self.desk.kept.keeps or not self.asker.keep:
            return
        try:
            self._keep_text()
        except OSError as error:  # a full disk takes no answer from anybody
            log.say("not kept", "warning", generation=self.id, why=error.strerror)

    def _keep_text(self) -> None:
        view = self.desk.model(self.model)
        texts = ["".join(choice.text) for choice in self.choices]
        self.desk.kept.keep(
            {
                "id": self.id,
                "model": self.model,
                "spec": view.spec.as_json(),
                "facts": dict(view.facts),
                "request": self.request.as_json(),
                "texts": texts,
                "finish": [choice.done.finish if choice.done else "" for choice in self.choices],
                "output_sha256": output_digest(texts),
            }
        )


async def together(answers: Sequence[Answer]) -> None:
    """All of them, side by side. The first error lets go of the others."""
    if len(answers) == 1:
        await answers[0].whole()
        return
    try:
        async with asyncio.TaskGroup() as group:
            for answer in answers:
                group.create_task(answer.whole())
    except* Exception as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
