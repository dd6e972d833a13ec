"""Asking a model the same again, and what the comparison of the bytes says.

Same bytes are promised only within one class: same weights, runtime, versions, device, number format and threads, on a
runtime that promises it. Elsewhere a comparison is made as well, and is not called a verification.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from daemon.inference.digests import output_digest
from daemon.inference.engine import Engine, EngineError
from daemon.inference.runtimes import REMOTE, Done, Failed, Generation, Impossible, Piece, Refused, Runtime, Spec, load

Json = Any

_CLASS = ("digest", "runtime", "versions", "device", "dtype", "quantization", "threads")


class CannotRerun(Exception):
    """It cannot be asked again here. The message says why."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`verified`: same bytes, and they had to be. `differs`: they had to be, and are not. `unpromised`: nobody promised
    it, and `same` says how it came out."""

    verdict: str
    same: bool
    why: str
    """Of unpromised: why not."""
    recorded_sha256: str
    now_sha256: str
    at: str = ""
    """The first place where they differ."""

    def as_json(self) -> Json:
        return {
            "verdict": self.verdict,
            "same": self.same,
            "why": self.why,
            "recorded_sha256": self.recorded_sha256,
            "now_sha256": self.now_sha256,
            "at": self.at,
        }


class Again:
    """Models, loaded for asking again: one at a time, kept while the next question is for the same."""

    def __init__(self) -> None:
        self._spec: Spec | None = None
        self._runtime: Runtime | None = None

    def generation(self, kept: Mapping[str, Json]) -> Verdict:
        """A request that the gateway kept. CannotRerun."""
        spec = Spec.of_json(kept["spec"])
        facts = kept.get("facts", {})
        # What was chosen by itself then, or fallen back to, is asked for by name now.
        known = {"model": "path", **{name: name for name in ("device", "dtype", "quantization", "threads")}}
        spec = replace(spec, **{name: facts[fact] for name, fact in known.items() if facts.get(fact)})
        request = Generation.of_json({**kept["request"], "so_far": ()})
        if spec.runtime in REMOTE:
            raise CannotRerun(f"it was answered by another server ({spec.url}), whose engine is not ours to repeat.")
        try:
            runtime = self._ready(spec)
            now = _answered(runtime, request)
        except (Impossible, EngineError, Refused) as error:
            raise CannotRerun(str(error)) from error
        why = _unpromised(facts, runtime.facts)
        if not why and not facts.get("determinism"):
            why = f"runtime {facts.get('runtime')} promises no same bytes: others in the batch may change them"
        return _compared(kept["texts"], now, why)

    def run(self, task: Mapping[str, Json], result: Mapping[str, Json]) -> Verdict:
        """A run of `kind: inference`, by its task and its result.json. CannotRerun."""
        try:
            facts, outputs = result["model"], result["outputs"]
            recorded = [str(output["text"]) for output in outputs]
            lines = [output.get("line") for output in outputs]
        except (KeyError, TypeError):
            raise CannotRerun("its result is not that of an inference run.") from None
        asked = {name: task[name] for name in ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop")}
        if "gateway" in result:
            return self._through_gateway(task["prompt"], asked, facts, recorded)
        self.close()
        try:
            engine = Engine.load(
                task["model"],
                device=facts["device"],
                dtype=facts["dtype"],
                quantization=facts["quantization"],
                threads=facts.get("threads", 0),
            )
            prompts = [
                task["prompt"] if line is None else engine.about_line(task["prompt"], line, task["max_new_tokens"])[0]
                for line in lines
            ]
            now = [answer.text for answer in engine.generate(prompts, **asked)]
        except EngineError as error:
            raise CannotRerun(str(error)) from error
        why = _unpromised(facts, engine.facts)
        if not why and facts["device"] != "cpu":
            why = f"on {facts['device']} the order of a sum is not fixed"
        return _compared(recorded, now, why)

    def _through_gateway(
        self, prompt: str, asked: Mapping[str, Json], facts: Mapping[str, Json], recorded: Sequence[str]
    ) -> Verdict:
        """A run that one of the gateway's engines answered: in the model's chat form, where it has one."""
        kept = {"spec": {"model": facts["path"], "runtime": facts["runtime"]}, "facts": facts, "texts": recorded}
        request = {**asked, "id": "rerun", "messages": [{"role": "user", "content": prompt}]}
        try:
            return self.generation(kept | {"request": request})
        except CannotRerun as error:
            if not isinstance(error.__cause__, Refused) or error.__cause__.parameter != "messages":
                raise
        del request["messages"]
        return self.generation(kept | {"request": request | {"prompt": prompt}})

    def close(self) -> None:
        if self._runtime is not None:
            self._runtime.close()
        self._spec = self._runtime = None

    def _ready(self, spec: Spec) -> Runtime:
        if self._runtime is None or self._spec != spec:
            self.close()
            self._runtime, self._spec = load(spec), spec
        return self._runtime


def _answered(runtime: Runtime, request: Generation) -> list[str]:
    texts = ["" for _ in range(request.n)]
    runtime.submit(request)
    left = request.n
    while left:
        for said in runtime.step():
            if isinstance(said, Piece):
                texts[said.choice] += said.text
            elif isinstance(said, Done):
                left -= 1
            elif isinstance(said, Failed):
                raise CannotRerun(f"the model failed this time: {said.words}")
    return texts


def _unpromised(then: Mapping[str, Json], now: Mapping[str, Json]) -> str:
    """What is not as it was; "" if all that decides about the bytes is."""
    for name in (*_CLASS, "determinism"):
        if then.get(name) != now.get(name):
            was, is_ = (_short(facts.get(name)) for facts in (then, now))
            return f"{name} was {was} and is {is_} now"
    return ""


def _short(value: Json) -> str:
    text = ", ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, Mapping) else str(value)
    return text[:60] or "unknown"


def _compared(recorded: Sequence[str], now: Sequence[str], why: str) -> Verdict:
    same = list(recorded) == list(now)
    verdict = "unpromised" if why else "verified" if same else "differs"
    return Verdict(
        verdict, same, why, output_digest(recorded), output_digest(now), "" if same else _place(recorded, now)
    )


def _place(recorded: Sequence[str], now: Sequence[str]) -> str:
    for number, (was, is_) in enumerate(zip(recorded, now, strict=False)):
        if was != is_:
            common = next(
                (k for k, (a, b) in enumerate(zip(was, is_, strict=False)) if a != b), min(len(was), len(is_))
            )
            return f"answer {number + 1} of {len(recorded)}, from character {common + 1} on"
    return f"{len(recorded)} answers then, {len(now)} now"


def drawn(id: str, share: float) -> bool:
    """Whether a sample of this share holds the one of this id: the same ids for the same share, always."""
    number = int.from_bytes(hashlib.sha256(f"audit:{id}".encode()).digest()[:8], "big")
    return number < share * 2**64
