"""What an engine process runs: one model, loaded by one of several runtimes, behind one interface.

A runtime is single-threaded and stepped. Whoever drives it says

    runtime = load(Spec(model="/models/tiny"))
    runtime.submit(Generation(id="r1", prompt="Once"))
    while runtime.busy():
        for said in runtime.step():      # Piece, Done or Failed; about one token for each running request
            ...

Requests join and leave between steps. What is generated for a request is the sum of its Pieces' texts, per choice; text
that may be the beginning of a stop string or of a longer character is held back and comes with a later Piece, at the
latest with the last one. Each choice ends with one Done or the whole request with one Failed.

Nothing here imports a model library; `load` does, in the engine process.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

Json = Any

RUNTIMES = ("transformers", "exact", "llama_cpp", "mlx", "openai", "ollama")
REMOTE = ("openai", "ollama")
"""Runtimes that ask another server over HTTP; their engine process keeps its network."""


class Impossible(Exception):
    """This runtime cannot be had here: why, and what to install or choose instead."""

    def __init__(self, reason: str, do: str) -> None:
        super().__init__(f"{reason} {do}" if do else reason)
        self.reason, self.do = reason, do


class Refused(Exception):
    """A request that cannot be done as it is asked: `parameter` is the field at fault, the message says why."""

    def __init__(self, parameter: str, words: str) -> None:
        super().__init__(words)
        self.parameter, self.words = parameter, words


class OutOfMemory(Exception):
    """The device or the host had no room for a step. Every request that was running is lost; the runtime may go on."""


class LostServer(Exception):
    """The server behind a remote runtime cannot be reached or broke off."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One model as it is to be served."""

    model: str
    """A Hugging Face folder or a GGUF file; of a remote runtime, the model's name there."""
    runtime: str = "transformers"
    device: str = "auto"  # auto | cpu | cuda | cuda:N | mps
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16
    quantization: str = "none"  # none | bnb-8bit | bnb-4bit
    context: int = 0
    """Tokens that prompt and answer may have together; 0: what the model was made for."""
    rows: int = 16
    """Choices that are generated at once; more wait inside the runtime."""
    cache_mb: int = 0
    """Bound of the memory for keys and values, in MiB; 0: rows x context, as far as a quarter of the free memory."""
    threads: int = 0
    """0: OMP_NUM_THREADS, else a quarter of the cores."""
    prefix_cache: bool = True
    """Whether the beginning of an earlier prompt may be used again."""
    digest: str = ""
    """What the weights must hash to (`model_digest`, or SHA-256 of the GGUF file); "" trusts what is there."""
    url: str = ""
    """Of a remote runtime: where the server is, such as http://127.0.0.1:11434."""
    key_file: str = ""
    """Of a remote runtime: a file that holds the bearer token."""
    options: Mapping[str, Json] = field(default_factory=dict)
    """What only this runtime knows; an unknown name is refused."""

    def as_json(self) -> dict[str, Json]:
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"options": dict(self.options)}

    @classmethod
    def of_json(cls, value: Mapping[str, Json]) -> Spec:
        unknown = sorted(set(value) - {each.name for each in fields(cls)})
        if unknown:
            raise Refused(unknown[0], f"a model has no setting {unknown[0]!r}")
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Generation:
    """One request. Exactly one of `prompt`, `tokens` and `messages` is given."""

    id: str
    prompt: str | None = None
    """Plain text, completed as it stands."""
    tokens: tuple[int, ...] | None = None
    messages: tuple[Mapping[str, Json], ...] | None = None
    """Turns {role, content, ...}, put through the model's chat template."""
    tools: tuple[Mapping[str, Json], ...] = ()
    """Functions in OpenAI's form, for the chat template."""
    max_new_tokens: int = 128
    temperature: float = 0.0
    """0: greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    n: int = 1
    """Choices."""
    logprobs: int | None = None
    """None: none; 0: of the chosen token; k: also the k most likely ones."""
    grammar: Mapping[str, Json] | None = None
    """{"json_schema": {...}}, {"json_object": true}, {"regex": "..."} or {"lark": "..."}."""
    so_far: tuple[tuple[int, ...], ...] = ()
    """Tokens of each choice that were generated before an engine was lost: work goes on behind them, and only what is
    new is told."""
    priority: int = 0
    """The higher goes first, among those that wait inside the runtime."""
    ignore_end: bool = False
    """Go on past the model's end token, to max_new_tokens: for measuring."""

    def as_json(self) -> dict[str, Json]:
        told = ((name, getattr(self, name)) for name in _DEFAULTS)
        return {name: value for name, value in told if value != _DEFAULTS[name]}

    @classmethod
    def of_json(cls, value: Mapping[str, Json]) -> Generation:
        """Refused for an unknown field or a value of a wrong kind or out of its range."""
        unknown = sorted(set(value) - {each.name for each in fields(cls)})
        if unknown:
            raise Refused(unknown[0], f"a request has no field {unknown[0]!r}")
        made = dict(value)
        for name in ("tokens", "messages", "tools", "stop"):
            if made.get(name) is not None:
                if not isinstance(made[name], list | tuple):
                    raise Refused(name, f"{name} is a list")
                made[name] = tuple(made[name])
        if "so_far" in made:
            made["so_far"] = tuple(tuple(tokens) for tokens in made["so_far"])
        request = cls(**made)
        request.check()
        return request

    def check(self) -> None:
        """Refused if a value is of a wrong kind or out of its range, whatever the model."""
        given = [name for name in ("prompt", "tokens", "messages") if getattr(self, name) is not None]
        if len(given) != 1:
            raise Refused(given[1] if given else "prompt", "exactly one of prompt, tokens and messages is given")
        for name, least, most in _WHOLE:
            number = getattr(self, name)
            if name == "logprobs" and number is None:
                continue
            if type(number) is not int or not least <= number <= most:
                raise Refused(name, f"{name} is a whole number from {least} to {most}, not {number!r}")
        for name, low, high in _REAL:
            number = getattr(self, name)
            if type(number) not in (int, float) or not low <= number <= high:
                raise Refused(name, f"{name} is a number from {low} to {high}, not {number!r}")
        if self.top_p == 0:
            raise Refused("top_p", "top_p is above 0; for the most likely token alone, temperature is 0")
        if any(not isinstance(one, str) or not one for one in self.stop):
            raise Refused("stop", "a stop string is text and not empty")
        if len(self.stop) > STOPS_MAX:
            raise Refused("stop", f"there are at most {STOPS_MAX} stop strings")
        if self.tokens is not None and any(type(token) is not int or token < 0 for token in self.tokens):
            raise Refused("tokens", "tokens are whole numbers from 0 on")
        if self.prompt is not None and not isinstance(self.prompt, str):
            raise Refused("prompt", "the prompt is text")
        if self.so_far and len(self.so_far) != self.n:
            raise Refused("so_far", f"so_far names the tokens of {self.n} choices, not of {len(self.so_far)}")


STOPS_MAX = 16
_WHOLE = (
    ("max_new_tokens", 1, 10_000_000), ("top_k", 0, 10_000_000), ("seed", -(2**63), 2**64 - 1), ("n", 1, 128),
    ("logprobs", 0, 20), ("priority", -1000, 1000),
)  # fmt: skip
_REAL = (("temperature", 0.0, 100.0), ("top_p", 0.0, 1.0), ("repetition_penalty", 0.01, 100.0))
_DEFAULTS = {each.name: each.default for each in fields(Generation)}


@dataclass(frozen=True, slots=True)
class Top:
    token: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Piece:
    """One more token of one choice."""

    id: str
    choice: int
    token: int
    """-1 where the runtime does not tell."""
    text: str
    """What may be shown now; the token's own text is not always there yet."""
    logprob: float | None = None
    """Natural, of the token under the model's own distribution at temperature 1, before penalties and grammar."""
    top: tuple[Top, ...] = ()
    said: str = ""
    """The token's own text; only with logprobs."""


@dataclass(frozen=True, slots=True)
class Done:
    """One choice is complete."""

    id: str
    choice: int
    finish: str
    """stop: the model or a stop string ended it; length: max_new_tokens did; cancelled."""
    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int = 0
    """Of the prompt, those whose keys and values were still there."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The whole request is over. The runtime goes on with the others."""

    id: str
    kind: str
    """refused | memory | lost | internal"""
    words: str
    parameter: str = ""


Said = Piece | Done | Failed


class Runtime(Protocol):
    """One loaded model. Not to be shared between threads."""

    facts: dict[str, Json]
    """path, digest, runtime, versions, architecture, device, dtype, quantization, parameters, context, threads,
    determinism (class: same class, model and request give the same bytes; "" where nothing is promised)."""

    def submit(self, request: Generation) -> None:
        """Take a request on. Refused if it cannot be done: nothing of it is kept then."""

    def cancel(self, id: str) -> None:
        """Let go of a request; its choices end with Done(finish="cancelled") in the next step. Unknown ids are fine."""

    def step(self) -> list[Said]:
        """Go on with every running request by about one token. [] when there is nothing to do."""

    def busy(self) -> bool: ...

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector of length 1 for each text. Refused where the model cannot."""

    def tokenize(self, request: Generation) -> list[int]:
        """The prompt of the request as tokens. Refused where the runtime cannot."""

    def memory_bytes(self) -> int:
        """Held on the device now: weights, keys and values."""

    def close(self) -> None: ...


def load(spec: Spec) -> Runtime:
    """Load the model. Impossible where the runtime is not to be had here, `daemon.inference.engine.EngineError` where
    the model cannot be used, OutOfMemory where it did not fit after all."""
    if spec.runtime not in RUNTIMES:
        raise Impossible(f"there is no runtime {spec.runtime!r}.", f"Use one of {', '.join(RUNTIMES)}.")
    module: Any = importlib.import_module(f"daemon.inference.runtimes.{spec.runtime}")
    runtime: Runtime = module.load(spec)
    return runtime


def matrix() -> list[dict[str, Json]]:
    """What this machine can do (`daemon.inference.matrix`). Imports model libraries."""
    module: Any = importlib.import_module("daemon.inference.matrix")
    rows: list[dict[str, Json]] = module.matrix()
    return rows
