"""Ollama by its own protocol, so that `backend: ollama` is a one-line way back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from daemon.inference.engine import EngineError
from daemon.inference.runtimes import Generation, Json, Refused, Said, Spec
from daemon.inference.runtimes.remote import Call, Remote, Turned, seeded


def load(spec: Spec) -> Ollama:
    return Ollama(spec)


class Ollama(Remote):
    runtime = "ollama"

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self._context = spec.context
        try:
            listed = {str(each["name"]): each for each in self.get("/api/tags")["models"]}
            version = str(self.get("/api/version")["version"])
        except Turned as turned:
            raise EngineError(f"{turned.words}. Is it Ollama, and is it up (`ollama serve`)?") from turned
        except (KeyError, TypeError) as error:
            raise EngineError(f"{self._url} does not answer as Ollama does: {error!r}.") from error
        found = listed.get(self.model) or listed.get(f"{self.model}:latest")
        if found is None:
            have = ", ".join(sorted(listed)[:5]) or "none"
            raise EngineError(f"Ollama at {self._url} has no model {self.model!r}; it has {have}. `ollama pull` it.")
        details = found.get("details") or {}
        self.facts |= {
            "digest": str(found.get("digest", "")),
            "versions": {"ollama": version},
            "architecture": str(details.get("family", "")),
            "quantization": str(details.get("quantization_level", "")),
        }
        if spec.digest and spec.digest != self.facts["digest"]:
            raise EngineError(
                f"the model {self.model} of Ollama at {self._url} is not the one that was registered: its digest is"
                f" {self.facts['digest']} and should be {spec.digest}."
            )

    def calls(self, request: Generation) -> Iterator[tuple[str, tuple[int, ...], dict[str, Json]]]:
        if request.logprobs is not None:
            raise Refused("logprobs", "the runtime ollama tells no log-probabilities")
        if request.tokens is not None:
            raise Refused("tokens", "the runtime ollama takes text, not tokens")
        if request.ignore_end:
            raise Refused("ignore_end", "the runtime ollama always ends where the model does")
        for choice in range(request.n):
            options: dict[str, Json] = {
                "num_predict": request.max_new_tokens, "temperature": request.temperature, "top_p": request.top_p,
                "top_k": request.top_k, "min_p": 0.0, "repeat_penalty": request.repetition_penalty,
                "seed": seeded(request, choice, 31), "stop": list(request.stop),
            }  # fmt: skip
            if self._context:
                options["num_ctx"] = self._context
            body: dict[str, Json] = {"model": self.model, "stream": True, "options": options}
            if request.grammar is not None:
                body["format"] = _format(request.grammar)
            if request.messages is not None:
                body["messages"] = [dict(message) for message in request.messages]
                if request.tools:
                    body["tools"] = [dict(tool) for tool in request.tools]
                yield "/api/chat", (choice,), body
            else:
                yield "/api/generate", (choice,), {**body, "prompt": request.prompt, "raw": True}

    def lines(self, line: str) -> Json:
        return json.loads(line) if line.strip() else None

    def heard(self, call: Call, message: Json) -> list[Said]:
        if "error" in message:
            raise ValueError(message["error"])
        said: list[Said] = []
        (choice,) = call.choices
        turn = message.get("message") or {}
        text = message.get("response") or turn.get("content") or ""
        for each in turn.get("tool_calls") or ():
            called = {"name": each["function"]["name"], "arguments": each["function"].get("arguments") or {}}
            text += f"<tool_call>{json.dumps(called)}</tool_call>"  # in the form that `chat.tool_calls` reads
        if text:
            said.append(self.piece(call, choice, text))
        if message.get("done"):
            call.finish[choice] = "length" if message.get("done_reason") == "length" else "stop"
            counts = message.get("prompt_eval_count", 0), message.get("eval_count", call.generated.get(choice, 0))
            said.append(self.done(call, choice, *counts))
        return said

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        try:
            answer = self.post("/api/embed", {"model": self.model, "input": list(texts)})
            return [self.unit(vector) for vector in answer["embeddings"]]
        except Turned as turned:
            raise Refused("input", turned.words) from turned


def _format(grammar: Json) -> Json:
    kind, rule = next(iter(grammar.items()))
    if kind == "json_object":
        return "json"
    if kind == "json_schema":
        return rule
    raise Refused("grammar", f"Ollama takes a JSON schema, not a grammar of the kind {kind}")
