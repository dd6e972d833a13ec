"""Any OpenAI-compatible server: vLLM, llama-server, LM Studio, another Hermes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from daemon.inference.engine import EngineError
from daemon.inference.runtimes import Generation, Json, Refused, Said, Spec, Top
from daemon.inference.runtimes.remote import Call, Remote, Turned

_SEED = (1 << 63) - 1
"""What a seed may have, in OpenAI's reference; all choices are drawn by the server, from one seed."""


def load(spec: Spec) -> OpenAI:
    return OpenAI(spec)


class OpenAI(Remote):
    runtime = "openai"

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self._url = self._url.removesuffix("/v1") + "/v1"
        try:
            listed = [str(each["id"]) for each in self.get("/models")["data"]]
        except Turned as turned:
            raise EngineError(f"{turned.words}. Is it an OpenAI-compatible server, and is it up?") from turned
        except (KeyError, TypeError) as error:
            raise EngineError(f"{self._url}/models is not answered as OpenAI's is: {error!r}.") from error
        if self.model not in listed:
            have = ", ".join(listed[:5]) or "none"
            raise EngineError(f"the server {self._url} has no model {self.model!r}; it has {have}.")

    def calls(self, request: Generation) -> Iterator[tuple[str, tuple[int, ...], dict[str, Json]]]:
        body: dict[str, Json] = {
            "model": self.model, "stream": True, "stream_options": {"include_usage": True},
            "max_tokens": request.max_new_tokens, "temperature": request.temperature, "top_p": request.top_p,
            "n": request.n, "seed": request.seed & _SEED,
        }  # fmt: skip
        if request.n == 1:
            del body["n"]
        if request.stop:
            body["stop"] = list(request.stop)
        # Not OpenAI's own, but vLLM's, llama-server's and ours; said only when asked for.
        if request.top_k:
            body["top_k"] = request.top_k
        if request.repetition_penalty != 1:
            body["repetition_penalty"] = request.repetition_penalty
        if request.ignore_end:
            body["ignore_eos"] = True
        if request.grammar is not None:
            body["response_format"] = _format(request.grammar)
        if request.messages is not None:
            body["messages"] = [dict(message) for message in request.messages]
            if request.tools:
                body["tools"] = [dict(tool) for tool in request.tools]
            if request.logprobs is not None:
                body |= {"logprobs": True, "top_logprobs": request.logprobs}
            yield "/chat/completions", tuple(range(request.n)), body
        else:
            body["prompt"] = request.prompt if request.tokens is None else list(request.tokens)
            if request.logprobs is not None:
                body["logprobs"] = request.logprobs
            yield "/completions", tuple(range(request.n)), body

    def lines(self, line: str) -> Json:
        if not line.startswith("data:"):
            return None
        data = line.removeprefix("data:").strip()
        return {"end": True} if data == "[DONE]" else json.loads(data)

    def heard(self, call: Call, message: Json) -> list[Said]:
        if "error" in message:
            raise ValueError(message["error"])
        said: list[Said] = []
        for part in message.get("choices", ()):
            choice = part["index"]
            delta = part.get("delta") or {}
            text = part.get("text") or delta.get("content") or ""
            for each in delta.get("tool_calls") or ():
                function = each.get("function") or {}
                kept = call.tools.setdefault(choice, {}).setdefault(each.get("index", 0), {"name": "", "arguments": ""})
                kept["name"] += function.get("name") or ""
                kept["arguments"] += function.get("arguments") or ""
            logs = _logs(part.get("logprobs"))
            for place, (own, logprob, top) in enumerate(logs):
                shown = text if place == 0 else ""
                said.append(self.piece(call, choice, shown, logprob=logprob, top=top, said=own))
            if text and not logs:
                said.append(self.piece(call, choice, text))
            if part.get("finish_reason"):
                call.finish[choice] = "length" if part["finish_reason"] == "length" else "stop"
                if call.tools.get(choice):  # in the form that `chat.tool_calls` reads
                    said.append(self.piece(call, choice, _told(call.tools.pop(choice))))
        usage = message.get("usage")
        if usage and len(call.choices) == 1:
            call.generated[call.choices[0]] = usage["completion_tokens"]
        if usage:
            call.body["usage"] = usage
        if message.get("end"):
            usage = call.body.get("usage") or {}
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            said += [
                self.done(call, choice, usage.get("prompt_tokens", 0), call.generated.get(choice, 0), cached)
                for choice in sorted(call.open)
            ]
        return said

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        try:
            answer = self.post("/embeddings", {"model": self.model, "input": list(texts), "encoding_format": "float"})
            return [self.unit(row["embedding"]) for row in sorted(answer["data"], key=lambda row: row["index"])]
        except Turned as turned:
            raise Refused("input", turned.words) from turned


def _format(grammar: Json) -> Json:
    kind, rule = next(iter(grammar.items()))
    if kind == "json_object":
        return {"type": "json_object"}
    if kind == "json_schema":
        return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": rule}}
    raise Refused("grammar", f"an OpenAI-compatible server takes a JSON schema, not a grammar of the kind {kind}")


def _logs(told: Json) -> list[tuple[str, float | None, tuple[Top, ...]]]:
    if not told:
        return []
    if "content" in told:  # of chats
        return [
            (each["token"], each["logprob"],
             tuple(Top(-1, top["token"], top["logprob"]) for top in each.get("top_logprobs") or ()))
            for each in told["content"] or ()
        ]  # fmt: skip
    tops = told.get("top_logprobs") or [None] * len(told["tokens"])
    return [
        (token, logprob, tuple(Top(-1, text, score) for text, score in (top or {}).items()))
        for token, logprob, top in zip(told["tokens"], told["token_logprobs"], tops, strict=True)
    ]


def _told(calls: dict[int, dict[str, str]]) -> str:
    made = []
    for place in sorted(calls):
        arguments = calls[place]["arguments"] or "{}"
        made.append(f'<tool_call>{{"name": {json.dumps(calls[place]["name"])}, "arguments": {arguments}}}</tool_call>')
    return "".join(made)
