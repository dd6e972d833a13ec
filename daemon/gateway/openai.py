"""The OpenAI-compatible routes: models, chat and plain completions, embeddings."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
import secrets
import struct
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import jsonschema
import orjson

from daemon.gateway import log
from daemon.gateway.answer import Answer, Choice, Desk, new_id, together
from daemon.gateway.call import Call, Events, Response, json
from daemon.gateway.refusal import Refusal, refusal_of
from daemon.gateway.shapes import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    GenerateRequest,
    JsonObject,
    JsonSchema,
    NamedTool,
    Sampling,
)
from daemon.gateway.stream import Stream
from daemon.inference.chat import tool_calls
from daemon.inference.runtimes import Generation, Piece

Json = Any

DONE = b"[DONE]"


async def models(desk: Desk, call: Call) -> Response:
    return json({"object": "list", "data": [_card(view.name) for view in desk.pool.models()]})


async def model(desk: Desk, call: Call) -> Response:
    return json(_card(desk.model(call.path["model"]).name))


def _card(name: str) -> Json:
    return {"id": name, "object": "model", "created": 0, "owned_by": "hermes"}


async def chat(desk: Desk, call: Call) -> Response:
    asked: ChatRequest = call.body
    model = desk.model(asked.model)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise Refusal(400, "top_logprobs goes with logprobs: true.", code="invalid_value", parameter="top_logprobs")
    most = asked.max_completion_tokens or asked.max_tokens
    grammar, forced = _grammar(asked)
    request = Generation(
        id=new_id(),
        messages=tuple(message.model_dump(exclude_none=True) for message in asked.messages),
        tools=tuple(_tool(tool) for tool in asked.tools or ()) if asked.tool_choice != "none" else (),
        max_new_tokens=most or 1,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        grammar=grammar,
        **_asked_of(asked, model.parameters),
    )
    if most is None:
        request = await call.while_there(desk.fitted(asked.model, request))
    answer = desk.answer(asked.model, request, call.asker, asked.priority or 0)
    parse = _tool_parser(asked, forced)
    if asked.stream:
        chunks = _ChatChunks(answer, desk, parse, _wants_usage(asked))
        return await _streamed(desk, call, [answer], chunks, request)
    await call.while_there(together([answer]))
    choices = []
    for index, choice in enumerate(answer.choices):
        text, calls = parse("".join(choice.text)) if parse else ("".join(choice.text), [])
        message: dict[str, Json] = {"role": "assistant", "content": text if text or not calls else None}
        message["refusal"] = None
        if calls:
            message["tool_calls"] = calls
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": _chat_logprobs(choice.pieces) if asked.logprobs else None,
                "finish_reason": "tool_calls" if calls else _finish(choice),
            }
        )
    return json(
        {
            "id": f"chatcmpl-{answer.id}",
            "object": "chat.completion",
            "created": answer.created,
            "model": asked.model,
            "system_fingerprint": _fingerprint(desk, asked.model),
            "choices": choices,
            "usage": answer.usage(),
        },
        hermes_seed=str(request.seed),
    )


async def completions(desk: Desk, call: Call) -> Response:
    asked: CompletionRequest = call.body
    common = _asked_of(asked, desk.model(asked.model).parameters) | {"logprobs": asked.logprobs}
    prompts = _prompts(asked.prompt)
    requests = [Generation(id=new_id(), max_new_tokens=asked.max_tokens or 1, **prompt, **common) for prompt in prompts]
    if asked.max_tokens is None:
        requests = [await call.while_there(desk.fitted(asked.model, request)) for request in requests]
    answers = [desk.answer(asked.model, request, call.asker, asked.priority or 0) for request in requests]
    if asked.stream:
        chunks = _TextChunks(answers, desk, _wants_usage(asked))
        return await _streamed(desk, call, answers, chunks, requests[0])
    await call.while_there(together(answers))
    each = asked.n or 1
    choices = [
        {
            "index": number * each + index,
            "text": "".join(choice.text),
            "logprobs": _text_logprobs(choice.pieces) if asked.logprobs is not None else None,
            "finish_reason": _finish(choice),
        }
        for number, answer in enumerate(answers)
        for index, choice in enumerate(answer.choices)
    ]
    return json(
        {
            "id": f"cmpl-{answers[0].id}",
            "object": "text_completion",
            "created": answers[0].created,
            "model": asked.model,
            "system_fingerprint": _fingerprint(desk, asked.model),
            "choices": choices,
            "usage": _sum(answers),
        },
        hermes_seed=str(requests[0].seed),
    )


async def embeddings(desk: Desk, call: Call) -> Response:
    asked: EmbeddingRequest = call.body
    desk.model(asked.model)
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    vectors = await call.while_there(desk.pool.embed(asked.model, texts, client=call.asker.client))
    as_base64 = asked.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if as_base64 else vector}
        for index, vector in enumerate(vectors)
    ]
    prompts = [Generation(id=new_id(), prompt=text, max_new_tokens=1) for text in texts]
    counts = await call.while_there(
        asyncio.gather(*(desk.pool.tokenize(asked.model, prompt) for prompt in prompts if prompt.prompt))
    )
    tokens = sum(map(len, counts))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json({"object": "list", "data": data, "model": asked.model, "usage": usage})


async def stream_again(desk: Desk, call: Call) -> Response:
    """Go on reading a stream that was cut off."""
    call.streams()
    if call.last_event_id is None:
        stream, last = desk.streams.behind(call.path["stream"], 0)
    else:
        stream, last = desk.streams.again(call.last_event_id, call.path["stream"])
    return Events(stream, last)


def resumed(desk: Desk, call: Call) -> Response | None:
    """For a client that sends its request again with the last event it has."""
    if call.last_event_id is None:
        return None
    call.streams()
    stream, last = desk.streams.again(call.last_event_id)
    return Events(stream, last)


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def sampling(asked: Sampling | GenerateRequest, defaults: Mapping[str, Json]) -> dict[str, Json]:
    """The request's own values, the model's where it says nothing, else those that change nothing."""

    def value(name: str, neutral: float) -> float:
        given = getattr(asked, name)
        if name not in asked.model_fields_set or given is None:
            given = defaults.get(name, given)
        return neutral if given is None else given

    return {
        "temperature": float(value("temperature", 1)),
        "top_p": float(value("top_p", 1)),
        "top_k": int(value("top_k", 0)),
        "repetition_penalty": float(value("repetition_penalty", 1)),
    }


def _asked_of(asked: Sampling, defaults: Mapping[str, Json]) -> dict[str, Json]:
    stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    return sampling(asked, defaults) | {
        "seed": secrets.randbits(48) if asked.seed is None else asked.seed,
        "stop": stop,
        "n": asked.n or 1,
        "ignore_end": bool(asked.ignore_eos),
    }


def _prompts(prompt: Json) -> list[dict[str, Json]]:
    if isinstance(prompt, str):
        return [{"prompt": prompt}]
    if isinstance(prompt[0], int):
        return [{"tokens": tuple(prompt)}]
    return [{"prompt": one} if isinstance(one, str) else {"tokens": tuple(one)} for one in prompt]


def _tool(tool: Any) -> Json:
    return tool.model_dump(exclude_none=True)


def _grammar(asked: ChatRequest) -> tuple[Json, bool]:
    """What the answer must look like, and whether it must be the call of a tool."""
    tools = asked.tools or []
    choice = asked.tool_choice
    if choice == "required" or isinstance(choice, NamedTool):
        wanted = tools if choice == "required" else [t for t in tools if t.function.name == choice.function.name]
        if not wanted:
            raise Refusal(
                400, "tool_choice asks for a tool that is not among tools.", code="invalid_value",
                parameter="tool_choice",
            )  # fmt: skip
        if asked.response_format is not None and asked.response_format.type != "text":
            raise Refusal(
                400, "response_format and a forced tool_choice exclude each other.", code="invalid_value",
                parameter="response_format",
            )  # fmt: skip
        forms = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.function.name},
                    "arguments": _valid_schema(tool.function.parameters or {"type": "object"}, "tools"),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in wanted
        ]
        return {"json_schema": forms[0] if len(forms) == 1 else {"anyOf": forms}}, True
    match asked.response_format:
        case JsonObject():
            return {"json_object": True}, False
        case JsonSchema(json_schema=named):
            return {"json_schema": _valid_schema(named.schema_, "response_format")}, False
    return None, False


def _valid_schema(schema: Json, parameter: str) -> Json:
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except (jsonschema.SchemaError, RecursionError) as error:
        words = error.message if isinstance(error, jsonschema.SchemaError) else "it is nested too deeply"
        raise Refusal(
            400, f"this is no JSON Schema: {words[:300]}.", code="invalid_json_schema", parameter=parameter
        ) from None
    return schema


Parse = Callable[[str], tuple[str, list[Json]]]
"""A whole answer as its text and the tool calls in it."""


def _tool_parser(asked: ChatRequest, forced: bool) -> Parse | None:
    if forced:
        return _forced_call
    if not asked.tools or asked.tool_choice == "none":
        return None
    names = [tool.function.name for tool in asked.tools]

    def parse(text: str) -> tuple[str, list[Json]]:
        rest, calls = tool_calls(text, names)
        return rest, [_called(name, arguments) for name, arguments in calls]

    return parse


def _forced_call(text: str) -> tuple[str, list[Json]]:
    try:
        value = orjson.loads(text)
        return "", [_called(value["name"], orjson.dumps(value["arguments"]).decode())]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return text, []  # cut off by max_tokens in the middle


def _called(name: str, arguments: str) -> Json:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


_CALL_MARKS = ("<tool_call>", "<|tool_call|>", "[TOOL_CALLS]", "<|python_tag|>")


def _plain_part(text: str) -> int:
    """How many characters of the text so far cannot belong to the call of a tool."""
    if text.lstrip()[:1] in ("", "{"):
        return 0
    for place, character in enumerate(text):
        if character in "<[":
            rest = text[place:]
            if any(rest.startswith(mark) or mark.startswith(rest) for mark in _CALL_MARKS):
                return place
    return len(text)


def _finish(choice: Choice) -> str:
    return "stop" if choice.done is not None and choice.done.finish == "stop" else "length"


def _wants_usage(asked: Sampling) -> bool:
    return bool(asked.stream_options and asked.stream_options.include_usage)


def _fingerprint(desk: Desk, model: str) -> str:
    """Changes with whatever may change the bytes of an answer."""
    facts = desk.pool.facts(model)
    what = [facts.get(name) for name in ("digest", "runtime", "versions", "device", "dtype", "quantization")]
    return "fp_" + hashlib.sha256(orjson.dumps([*what, facts.get("determinism")], default=str)).hexdigest()[:12]


def _sum(answers: Sequence[Answer]) -> Json:
    prompt = sum(answer.prompt_tokens for answer in answers)
    generated = sum(answer.generated_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(answer.cached_tokens for answer in answers)},
    }


def _bytes(text: str) -> list[int]:
    return list(text.encode())


def _chat_logprobs(pieces: Sequence[Piece]) -> Json:
    return {
        "content": [
            {
                "token": piece.said,
                "logprob": piece.logprob or 0.0,
                "bytes": _bytes(piece.said),
                "top_logprobs": [
                    {"token": top.text, "logprob": top.logprob, "bytes": _bytes(top.text)} for top in piece.top
                ],
            }
            for piece in pieces
        ],
        "refusal": None,
    }


def _text_logprobs(pieces: Sequence[Piece], offset: int = 0) -> Json:
    offsets = list(itertools.accumulate((len(piece.said) for piece in pieces), initial=offset))[:-1]
    tops = [{top.text: top.logprob for top in piece.top} for piece in pieces]
    return {
        "tokens": [piece.said for piece in pieces],
        "token_logprobs": [piece.logprob or 0.0 for piece in pieces],
        "top_logprobs": tops if any(tops) else None,
        "text_offset": offsets,
    }


class _ChatChunks:
    """The pool's words as chunks of a chat completion."""

    def __init__(self, answer: Answer, desk: Desk, parse: Parse | None, usage: bool) -> None:
        self._answer, self._parse, self._usage = answer, parse, usage
        self._head = _head(f"chatcmpl-{answer.id}", "chat.completion.chunk", answer, desk)
        self._logprobs = answer.request.logprobs is not None
        self._held = ["" for _ in answer.choices]

    def opening(self) -> list[bytes]:
        return [
            self._chunk(index, {"role": "assistant", "content": ""}, None, None)
            for index in range(len(self._answer.choices))
        ]

    def piece(self, answer: Answer, one: Piece) -> bytes | None:
        text = one.text
        if self._parse is not None:  # what may be a call is told when it is whole
            held = self._held[one.choice] + text
            plain = 0 if self._parse is _forced_call else _plain_part(held)
            text, self._held[one.choice] = held[:plain], held[plain:]
        logprobs = _chat_logprobs([one]) if self._logprobs else None
        if not text and logprobs is None:
            return None
        return self._chunk(one.choice, {"content": text}, logprobs, None)

    def ended(self, answer: Answer, index: int) -> list[bytes]:
        chunks, finish = [], _finish(answer.choices[index])
        if self._parse is not None:
            text, calls = self._parse(self._held[index])
            if text:
                chunks.append(self._chunk(index, {"content": text}, None, None))
            if calls:
                finish = "tool_calls"
                numbered = [{"index": number} | one for number, one in enumerate(calls)]
                chunks.append(self._chunk(index, {"tool_calls": numbered}, None, None))
        return [*chunks, self._chunk(index, {}, None, finish)]

    def closing(self) -> list[bytes]:
        return [self._head + b'[],"usage":' + orjson.dumps(self._answer.usage()) + b"}"] if self._usage else []

    def _chunk(self, index: int, delta: Json, logprobs: Json, finish: str | None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._head + b"[" + orjson.dumps(choice) + (b'],"usage":null}' if self._usage else b"]}")


class _TextChunks:
    """The same for plain completions, of several prompts at once."""

    def __init__(self, answers: Sequence[Answer], desk: Desk, usage: bool) -> None:
        self._answers, self._usage = answers, usage
        self._head = _head(f"cmpl-{answers[0].id}", "text_completion", answers[0], desk)
        self._first = {answer.id: number * len(answer.choices) for number, answer in enumerate(answers)}
        self._said: dict[int, int] = {}
        self._logprobs = answers[0].request.logprobs is not None

    def opening(self) -> list[bytes]:
        return []

    def piece(self, answer: Answer, one: Piece) -> bytes | None:
        index = self._first[answer.id] + one.choice
        logprobs = None
        if self._logprobs:
            logprobs = _text_logprobs([one], self._said.get(index, 0))
            self._said[index] = self._said.get(index, 0) + len(one.said)
        elif not one.text:
            return None
        return self._chunk(index, one.text, logprobs, None)

    def ended(self, answer: Answer, index: int) -> list[bytes]:
        return [self._chunk(self._first[answer.id] + index, "", None, _finish(answer.choices[index]))]

    def closing(self) -> list[bytes]:
        return [self._head + b'[],"usage":' + orjson.dumps(_sum(self._answers)) + b"}"] if self._usage else []

    def _chunk(self, index: int, text: str, logprobs: Json, finish: str | None) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return self._head + b"[" + orjson.dumps(choice) + (b'],"usage":null}' if self._usage else b"]}")


Chunks = _ChatChunks | _TextChunks


def _head(id: str, kind: str, answer: Answer, desk: Desk) -> bytes:
    """The same for every chunk, up to the choices."""
    head = {"id": id, "object": kind, "created": answer.created, "model": answer.model}
    head["system_fingerprint"] = _fingerprint(desk, answer.model)
    return orjson.dumps(head)[:-1] + b',"choices":'


async def _streamed(desk: Desk, call: Call, answers: Sequence[Answer], chunks: Chunks, request: Generation) -> Response:
    stream = Stream(answers[0].id, _events(answers, chunks, call))
    return await streamed(desk, call, stream, hermes_seed=str(request.seed))


async def streamed(desk: Desk, call: Call, stream: Stream, **headers: str) -> Response:
    """What goes wrong before the first token still is an HTTP status; what comes later, an event."""
    call.streams()
    stream.start()
    try:
        await call.while_there(stream.opened())
    except BaseException:
        await stream.close()
        raise
    desk.streams.add(stream)
    return Events(stream, 0, **headers)


Word = tuple[Answer, Any]


async def _events(answers: Sequence[Answer], chunks: Chunks, call: Call) -> AsyncGenerator[bytes, None]:
    begun = False
    async with contextlib.aclosing(merged(answers)) as said:
        try:
            async for answer, one in said:
                if not begun:
                    begun = True
                    for chunk in chunks.opening():
                        yield chunk
                if isinstance(one, Piece):
                    chunk_or_none = chunks.piece(answer, one)
                    if chunk_or_none is not None:
                        yield chunk_or_none
                else:
                    for chunk in chunks.ended(answer, one.choice):
                        yield chunk
            for chunk in chunks.closing():
                yield chunk
            yield DONE
        except Exception as error:
            if not begun:
                raise
            yield broken_off(error, call)


def broken_off(error: Exception, call: Call) -> bytes:
    """The event that ends a stream in the middle."""
    refusal = refusal_of(error)
    if refusal is None:
        log.say("bug", "error", trace_id=call.asker.trace_id, request_id=call.asker.request_id, error=log.where(error))
        refusal = Refusal(500, "the gateway failed; its log has the request id.", kind="server_error", code="internal")
    return orjson.dumps(refusal.json(call.asker.request_id))


async def merged(answers: Sequence[Answer]) -> AsyncGenerator[Word, None]:
    """What several answers say, as it comes. The first error ends all."""
    if len(answers) == 1:
        async with contextlib.aclosing(answers[0].said()) as said:
            async for one in said:
                yield answers[0], one
        return
    words: asyncio.Queue[Word | Exception | None] = asyncio.Queue(len(answers) * 4)

    async def hear(answer: Answer) -> None:
        try:
            async with contextlib.aclosing(answer.said()) as said:
                async for one in said:
                    await words.put((answer, one))
            await words.put(None)
        except Exception as error:
            await words.put(error)

    tasks = [asyncio.create_task(hear(answer)) for answer in answers]
    try:
        left = len(tasks)
        while left:
            word = await words.get()
            if word is None:
                left -= 1
            elif isinstance(word, Exception):
                raise word
            else:
                yield word
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
