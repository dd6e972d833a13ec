"""A step loop over slots of keys and values: requests join and leave between steps, none waits for another's end.

The machine underneath (the model and its slots) only answers "what are the scores behind these tokens"; everything a
request can ask for is done here, so every machine has all of it: sampling, stop strings, log-probabilities, several
choices, grammars, priorities, cancelling, and going on where a lost engine stopped.

Running choices are in slots 0, 1, 2, ... without a gap, so that a batch is a plain view of the slots. Behind them
comes the one that is being filled, and then what ended choices left: a prompt that begins as one of those did starts
from a copy of it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from daemon.inference import sampling
from daemon.inference.chat import Chat
from daemon.inference.runtimes import Done, Failed, Generation, Json, OutOfMemory, Piece, Refused, Said, Top
from daemon.inference.text import Text

SHARED_LEAST = 8
"""A shorter common beginning is not worth a copy."""


class Machine(Protocol):
    """A model and its slots of keys and values. Slots are numbered from 0; a slot holds those of a sequence's first
    tokens."""

    context: int
    vocabulary: int

    def fits(self, slots: int, length: int) -> bool:
        """Whether there is memory for so many slots of this length."""

    def reserve(self, slots: int, length: int) -> None:
        """Make room for so many slots of this length; what is in them stays."""

    def forward(self, first: int, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> Any:
        """Put tokens[k], all of one count, behind the starts[k] tokens in slot first + k, and give the scores behind
        the last one of each: float [rows, vocabulary]."""

    def copy(self, source: int, target: int, length: int) -> None: ...

    def swap(self, one: int, other: int, length: int) -> None: ...

    def embed(self, tokens: Sequence[int]) -> list[float]: ...

    def memory_bytes(self) -> int: ...

    def close(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Choice:
    request: Generation
    choice: int
    prompt: list[int]
    text: Text
    matcher: Any
    order: int
    tokens: list[int] = field(default_factory=list)
    """Generated, those of a lost engine included."""
    cached: int = 0

    @property
    def whole(self) -> list[int]:
        return self.prompt + self.tokens

    @property
    def length_max(self) -> int:
        return len(self.prompt) + self.request.max_new_tokens


class Stepped:
    """A Runtime over a Machine."""

    def __init__(
        self,
        machine: Machine,
        tokenizer: Any,
        ends: Sequence[int],
        facts: dict[str, Json],
        *,
        rows: int,
        chunk: int,
        prefix_cache: bool = True,
        out_of_memory: Callable[[BaseException], bool] = lambda error: isinstance(error, MemoryError),
    ) -> None:
        self.facts = facts
        self.chat = Chat(tokenizer)
        self._machine, self._tokenizer, self._ends = machine, tokenizer, frozenset(ends)
        self._rows, self._chunk, self._prefix_cache = rows, chunk, prefix_cache
        self._is_memory = out_of_memory
        self._waiting: list[_Choice] = []
        self._running: list[_Choice] = []
        self._filling: _Choice | None = None
        self._held: list[list[int]] = []
        """The tokens in each slot."""
        self._used: list[float] = []
        """When each slot was last left; the oldest is overwritten first."""
        self._cancelled: set[str] = set()
        self._order = itertools.count()
        self._grammars: Any = None
        self.prefix_hits = self.prefix_queries = 0
        """Tokens of prompts that were still there, and that were asked for."""

    # What a driver calls

    def submit(self, request: Generation) -> None:
        request.check()
        prompt = self.tokenize(request)
        if not prompt:
            raise Refused("prompt", "the prompt is empty: there is nothing to go on from")
        if (worst := max(prompt)) >= self._machine.vocabulary:
            raise Refused("tokens", f"there is no token {worst}: the model has {self._machine.vocabulary}")
        length = len(prompt) + request.max_new_tokens
        if length > self._machine.context:
            raise Refused(
                "messages" if request.messages is not None else "prompt",
                f"the prompt is too long: {len(prompt)} tokens and {request.max_new_tokens} new ones are {length}, but"
                f" the model has a context of {self._machine.context}. Shorten it, ask for fewer new tokens, or use a"
                " model with a longer context",
            )
        if not self._machine.fits(1, length):
            raise Refused(
                "max_new_tokens",
                f"there is no memory for the keys and values of {length} tokens. Ask for fewer new tokens, or give the"
                " model a larger cache_mb",
            )
        keep = self.chat.tool_marks if request.tools else ()
        choices = []
        for choice in range(request.n):
            matcher = self._matcher(request)
            one = _Choice(request, choice, prompt, Text(self._tokenizer, request.stop, keep), matcher, 0)
            for token in request.so_far[choice] if request.so_far else ():
                one.tokens.append(token)
                one.text.add(token)
                if matcher is not None:
                    matcher.accept(token)
            if len(one.tokens) >= request.max_new_tokens or (one.tokens and one.tokens[-1] in self._ends):
                raise Refused("so_far", f"choice {choice} is complete already: there is nothing to go on with")
            choices.append(one)
        for one in choices:
            one.order = next(self._order)
            self._waiting.append(one)
        self._waiting.sort(key=lambda one: (-one.request.priority, one.order))

    def cancel(self, id: str) -> None:
        if any(one.request.id == id for one in self._every()):
            self._cancelled.add(id)

    def busy(self) -> bool:
        return bool(self._waiting or self._running or self._filling)

    def step(self) -> list[Said]:
        try:
            return self._step()
        except Exception as error:
            if not self._is_memory(error):
                raise
            self._waiting, self._running, self._filling = [], [], None
            self._held, self._used = [], []
            raise OutOfMemory(f"no memory for the next step: {' '.join(str(error).split())[:200]}") from error

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        vectors = []
        for place, text in enumerate(texts):
            tokens = list(self._tokenizer(text)["input_ids"])
            if not tokens:
                raise Refused("input", f"text {place + 1} is empty")
            if len(tokens) > self._machine.context:
                raise Refused(
                    "input",
                    f"text {place + 1} has {len(tokens)} tokens, and the model a context of {self._machine.context}",
                )
            vectors.append(self._machine.embed(tokens))
        return vectors

    def tokenize(self, request: Generation) -> list[int]:
        if request.tokens is not None:
            return list(request.tokens)
        if request.messages is not None:
            return self.chat.tokens(request.messages, request.tools)
        return list(self._tokenizer(request.prompt)["input_ids"])

    def memory_bytes(self) -> int:
        return self._machine.memory_bytes()

    def close(self) -> None:
        self._machine.close()

    # One step

    def _every(self) -> list[_Choice]:
        return [*self._waiting, *self._running, *([self._filling] if self._filling else [])]

    def _step(self) -> list[Said]:
        said: list[Said] = []
        if self._cancelled:
            said += self._let_go()
        if self._running:
            said += self._decode()
        said += self._fill()
        return said

    def _decode(self) -> list[Said]:
        starts = [len(self._held[slot]) for slot in range(len(self._running))]
        last = [[one.tokens[-1]] for one in self._running]
        self._machine.reserve(len(self._held), max(starts) + 1)
        scores = self._machine.forward(0, last, starts)
        for slot, one in enumerate(self._running):
            self._held[slot].append(one.tokens[-1])
        said: list[Said] = []
        over = []
        chosen = sampling.choose(scores, [self._ask(one) for one in self._running])
        for slot, (one, token) in enumerate(zip(self._running, chosen, strict=True)):
            told, ended = self._take(one, token)
            said += told
            if ended:
                over.append(slot)
        for slot in reversed(over):
            self._leave(slot)
        return said

    def _fill(self) -> list[Said]:
        """Read prompts, at most a chunk of tokens in one step, so that those who run are not kept waiting."""
        said: list[Said] = []
        budget = self._chunk
        while budget > 0:
            if self._filling is None:
                self._filling = self._admit()
                if self._filling is None:
                    break
            one, slot = self._filling, len(self._running)
            whole, done = one.whole, len(self._held[slot])
            part = whole[done : done + budget]
            self._machine.reserve(len(self._held), done + len(part))
            scores = self._machine.forward(slot, [part], [done])
            self._held[slot] += part
            budget -= len(part)
            if len(self._held[slot]) == len(whole):
                self._filling = None
                self._running.append(one)
                told, ended = self._take(one, sampling.choose(scores, [self._ask(one)])[0])
                said += told
                if ended:
                    self._leave(slot)
        return said

    def _admit(self) -> _Choice | None:
        """The next that waits, with a slot made ready for it behind the running ones."""
        if not self._waiting or len(self._running) >= self._rows:
            return None
        one = self._waiting[0]
        longest = max([one.length_max, *(other.length_max for other in self._running)])
        slots = len(self._running) + 1
        if not self._machine.fits(slots, longest):
            if not self._running:
                self._forget(0)
            return None if self._running else self._start(self._waiting.pop(0))
        while len(self._held) > slots and not self._machine.fits(len(self._held), longest):
            self._forget(len(self._held) - 1)
        return self._start(self._waiting.pop(0))

    def _start(self, one: _Choice) -> _Choice:
        slot, whole = len(self._running), one.whole
        best, shared = -1, 0
        if self._prefix_cache:
            for place, held in enumerate(self._held):
                common = min(_common(held, whole), len(whole) - 1)
                if common > shared:
                    best, shared = place, common
        self.prefix_queries += len(whole)
        if shared < SHARED_LEAST:
            best, shared = -1, 0
        if len(self._held) <= slot:
            self._open()
        if best < 0:
            if slot < len(self._held) - 1 or self._held[slot]:
                self._make_way(slot)
        elif best < slot:  # a running one's, which stays where it is
            self._make_way(slot)
            self._machine.copy(best, slot, shared)
        elif best > slot:
            self._swap(slot, best)
        self._held[slot] = whole[:shared] if best >= 0 else []
        one.cached = min(shared, len(one.prompt))
        self.prefix_hits += shared
        return one

    def _make_way(self, slot: int) -> None:
        """What an ended choice left in `slot` goes to an empty slot, a new one, or in place of the oldest."""
        if not self._held[slot] or not self._prefix_cache:
            return
        behind = range(slot + 1, len(self._held))
        target = next((place for place in behind if not self._held[place]), None)
        longest = max(len(held) for held in self._held)
        if target is None and len(self._held) < self._rows and self._machine.fits(len(self._held) + 1, longest):
            target = self._open()
        if target is None:
            target = min(behind, key=lambda place: self._used[place], default=None)
            if target is None or self._used[target] > self._used[slot]:
                return
        self._machine.copy(slot, target, len(self._held[slot]))
        self._held[target], self._used[target] = self._held[slot], self._used[slot]

    def _open(self) -> int:
        self._held.append([])
        self._used.append(0.0)
        self._machine.reserve(len(self._held), 1)
        return len(self._held) - 1

    def _forget(self, slot: int) -> None:
        del self._held[slot:], self._used[slot:]

    def _leave(self, slot: int) -> None:
        """The choice in `slot` is over; the last running one takes its place, and what it left stays behind them."""
        last = len(self._running) - 1
        self._used[slot] = time.monotonic()
        if slot != last:
            self._swap(slot, last)
            self._running[slot] = self._running[last]
        self._running.pop()
        if self._filling is not None:
            self._swap(last, last + 1)

    def _swap(self, one: int, other: int) -> None:
        self._machine.swap(one, other, max(len(self._held[one]), len(self._held[other])))
        held, used = self._held, self._used
        held[one], held[other] = held[other], held[one]
        used[one], used[other] = used[other], used[one]

    # One token

    def _ask(self, one: _Choice) -> sampling.Ask:
        request = one.request
        return sampling.Ask(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            at=sampling.uniform(request.seed, one.choice, len(one.tokens)) if request.temperature else 0.0,
            penalty=request.repetition_penalty,
            seen=one.whole if request.repetition_penalty != 1 else (),
            allowed=None if one.matcher is None else one.matcher.allowed(),
            logprobs=request.logprobs,
        )

    def _take(self, one: _Choice, chosen: sampling.Chosen) -> tuple[list[Said], bool]:
        request, token = one.request, chosen.token
        one.tokens.append(token)
        finish = ""
        if token in self._ends and not request.ignore_end:
            finish = "stop"
        elif len(one.tokens) >= request.max_new_tokens:
            finish = "length"
        if one.matcher is not None:
            if not finish:
                one.matcher.accept(token)
            if lost := one.matcher.lost():
                if any(other.request.id == request.id for other in self._every() if other is not one):
                    self._cancelled.add(request.id)
                return [Failed(request.id, "refused", f"no answer keeps to the grammar: {lost}", "grammar")], True
            if not finish and one.matcher.over():
                finish = "stop"
        shown = one.text.add(token, last=bool(finish))
        if one.text.stopped:
            finish = "stop"
        piece = Piece(request.id, one.choice, token, shown)
        if request.logprobs is not None:
            top = tuple(Top(each, one.text.one(each), score) for each, score in chosen.top)
            piece = Piece(request.id, one.choice, token, shown, chosen.logprob, top, one.text.one(token))
        if not finish:
            return [piece], False
        return [piece, self._done(one, finish)], True

    def _done(self, one: _Choice, finish: str) -> Done:
        return Done(one.request.id, one.choice, finish, len(one.prompt), len(one.tokens), one.cached)

    def _let_go(self) -> list[Said]:
        gone, self._cancelled = self._cancelled, set()
        said: list[Said] = [self._done(one, "cancelled") for one in self._waiting if one.request.id in gone]
        self._waiting = [one for one in self._waiting if one.request.id not in gone]
        if self._filling is not None and self._filling.request.id in gone:
            said.append(self._done(self._filling, "cancelled"))
            self._filling = None
        for slot in reversed(range(len(self._running))):
            if self._running[slot].request.id in gone:
                said.append(self._done(self._running[slot], "cancelled"))
                self._leave(slot)
        return said

    def _matcher(self, request: Generation) -> Any:
        if request.grammar is None:
            return None
        from daemon.inference.grammar import Grammars

        if self._grammars is None:
            self._grammars = Grammars(self._tokenizer, self._machine.vocabulary, self._ends)
        return self._grammars.matcher(request.grammar)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count
