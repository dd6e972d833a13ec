"""Turns and tools as a model's own chat template has them, and what a model says when it calls a tool."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from daemon.inference.runtimes import Refused

Json = Any

_MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|tool_call|>", "<|/tool_call|>")
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class Chat:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_added_vocab()
        self.tool_marks = frozenset(vocabulary[mark] for mark in _MARKS if mark in vocabulary)
        """Special tokens that must be seen in the text for a tool call to be found in it."""

    def text(self, messages: Sequence[Mapping[str, Json]], tools: Sequence[Mapping[str, Json]] = ()) -> str:
        """Refused where the model has no template, or its template does not take these turns or tools."""
        if not self._tokenizer.chat_template:
            raise Refused("messages", "this model has no chat template: it completes a prompt, and does not chat")
        turns = [_turn(place, message) for place, message in enumerate(messages)]
        if not turns:
            raise Refused("messages", "messages is empty: there is nothing to answer")
        if tools and "tools" not in _source(self._tokenizer.chat_template):
            raise Refused("tools", "this model's chat template has no place for tools")
        try:
            said = self._tokenizer.apply_chat_template(
                turns, tools=list(tools) or None, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # whatever the template, which comes with the model, raises
            raise Refused("messages", f"the model's chat template refuses these messages: {error}") from error
        return str(said)

    def tokens(self, messages: Sequence[Mapping[str, Json]], tools: Sequence[Mapping[str, Json]] = ()) -> list[int]:
        # The template has written what begins a text already.
        return list(self._tokenizer(self.text(messages, tools), add_special_tokens=False)["input_ids"])


def _turn(place: int, message: Mapping[str, Json]) -> dict[str, Json]:
    where = f"messages[{place}]"
    if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
        raise Refused("messages", f"{where} needs a role: one of {', '.join(_ROLES)}")
    turn = dict(message)
    content = turn.get("content")
    if isinstance(content, list | tuple):  # OpenAI's list of parts
        parts = []
        for part in content:
            if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise Refused("messages", f"{where} has a part that is no text: this model reads text only")
            parts.append(part["text"])
        turn["content"] = "".join(parts)
    elif content is None:
        turn["content"] = ""
    elif not isinstance(content, str):
        raise Refused("messages", f"{where}.content is text")
    if turn.get("tool_calls"):
        turn["tool_calls"] = [_called(where, call) for call in turn["tool_calls"]]
    return turn


def _called(where: str, call: Json) -> Json:
    """Templates want the arguments as an object; OpenAI's form has them as text."""
    try:
        function = dict(call["function"])
        if isinstance(function["arguments"], str):
            function["arguments"] = json.loads(function["arguments"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Refused("messages", f"{where}.tool_calls is not in OpenAI's form: {error}") from error
    return {**call, "function": function}


def _source(template: Any) -> str:
    return template if isinstance(template, str) else json.dumps(template)


_TAGGED = re.compile(r"(?:<tool_call>|<\|tool_call\|>)(.*?)(?:</tool_call>|<\|/tool_call\|>|\Z)", re.DOTALL)


def tool_calls(text: str, names: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """What the text says beside its calls, and the calls as (name, arguments in JSON).

    Read are the forms of Hermes and Qwen (<tool_call>{...}</tool_call>), of Mistral ([TOOL_CALLS][...]) and of Llama 3
    (the whole text is {"name", "parameters"}). A call of a function that is none of `names`, or that is not whole, is
    left in the text: nothing is guessed.
    """
    found: list[tuple[str, str]] = []
    if "[TOOL_CALLS]" in text:
        before, _, rest = text.partition("[TOOL_CALLS]")
        calls = [_call(each, names) for each in _values(rest)]
        if calls and all(calls):
            return before.strip(), [call for call in calls if call]
        return text, []
    rest = ""
    end = 0
    for match in _TAGGED.finditer(text):
        calls = [_call(each, names) for each in _values(match[1])]
        if not calls or not all(calls):
            continue
        found += [call for call in calls if call]
        rest += text[end : match.start()]
        end = match.end()
    if found:
        return (rest + text[end:]).strip(), found
    bare = text.strip().removeprefix("<|python_tag|>").strip()
    if bare.startswith("{"):
        calls = [_call(each, names) for each in _values(bare)]
        if calls and all(calls):
            return "", [call for call in calls if call]
    return text, []


def _values(text: str) -> list[Json]:
    """The JSON values that the text consists of; [] if it holds anything else."""
    values: list[Json] = []
    decoder, place = json.JSONDecoder(), 0
    text = text.strip()
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return []
        values += value if isinstance(value, list) else [value]
        while place < len(text) and text[place] in " \r\n\t;,":
            place += 1
    return values


def _call(value: Json, names: Sequence[str]) -> tuple[str, str] | None:
    if not isinstance(value, dict):
        return None
    value = value.get("function", value) if isinstance(value.get("function"), dict) else value
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if name not in names or not isinstance(arguments, dict):
        return None
    return str(name), json.dumps(arguments, ensure_ascii=False)
