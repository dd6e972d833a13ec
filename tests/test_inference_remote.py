"""The runtimes openai and ollama, against real HTTP servers on loopback."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx")

from remote_servers import OllamaHandler, OpenAIHandler, Server, serving, url

from daemon.inference.chat import tool_calls
from daemon.inference.engine import EngineError
from daemon.inference.runtimes import Done, Failed, Generation, Piece, Refused, Said, Spec, load


@pytest.fixture
def ollama() -> Iterator[Server]:
    with serving(OllamaHandler) as server:
        yield server


@pytest.fixture
def openai(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "key").write_text("secret\n")
    with serving(OpenAIHandler) as server:
        yield server


def reach(server: Server, runtime: str, **settings: Any) -> Any:
    return load(Spec(model="tiny", runtime=runtime, url=url(server), rows=2, **settings))


def run(runtime: Any, *requests: Generation) -> list[Said]:
    for request in requests:
        runtime.submit(request)
    said: list[Said] = []
    deadline = time.monotonic() + 60
    while runtime.busy():
        assert time.monotonic() < deadline
        said += runtime.step()
    return said


def text(said: list[Said], id: str = "a", choice: int = 0) -> str:
    return "".join(one.text for one in said if isinstance(one, Piece) and (one.id, one.choice) == (id, choice))


def test_ollama_generates_chats_and_calls_tools(ollama: Server) -> None:
    runtime = reach(ollama, "ollama")
    assert (runtime.facts["digest"], runtime.facts["versions"]) == ("ab" * 32, {"ollama": "0.99.1"})
    ask = Generation("a", prompt="Say", max_new_tokens=9, temperature=0.5, seed=3, n=2, stop=("x",), top_k=5)
    said = run(runtime, ask, Generation("b", messages=({"role": "user", "content": "hi"},), max_new_tokens=2))
    assert text(said) == text(said, choice=1) == "The disk is full."
    assert text(said, "b") == "The disk"
    done = {(one.id, one.choice): one for one in said if isinstance(one, Done)}
    assert (done["a", 0].finish, done["a", 0].prompt_tokens, done["a", 0].generated_tokens) == ("stop", 7, 5)
    assert done["b", 0].finish == "length"
    asked = [body for path, body in ollama.seen if path == "/api/generate"]
    assert asked[0]["raw"] is True
    assert asked[0]["options"]["num_predict"] == 9
    assert asked[0]["options"]["seed"] != asked[1]["options"]["seed"]
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    called = run(runtime, Generation("c", messages=({"role": "user", "content": "hi"},), tools=(tool,),
                                     max_new_tokens=1, grammar={"json_object": True}))  # fmt: skip
    assert tool_calls(text(called, "c"), ["look"])[1] == [("look", '{"at": "disk"}')]
    assert runtime.embed(["x"]) == [[0.6, 0.8]]


def test_openai_streams_with_every_parameter(openai: Server, tmp_path: Path) -> None:
    runtime = reach(openai, "openai", key_file=str(tmp_path / "key"))
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    turns = ({"role": "user", "content": "hi"},)
    said = run(runtime, Generation("a", messages=turns, max_new_tokens=9, n=2, logprobs=1, tools=(tool,), top_k=7,
                                   repetition_penalty=1.2, grammar={"json_schema": {"type": "object"}}))  # fmt: skip
    content, calls = tool_calls(text(said, choice=1), ["look"])
    assert content == "The disk is full."
    assert calls == [("look", '{"at": "disk"}')]
    first = next(one for one in said if isinstance(one, Piece))
    assert (first.logprob, first.top[0].text) == (-0.5, "The")
    done = [one for one in said if isinstance(one, Done)]
    assert [(one.choice, one.finish, one.prompt_tokens, one.cached_tokens) for one in done] == [
        (0, "stop", 9, 4), (1, "stop", 9, 4),
    ]  # fmt: skip
    body = openai.seen[0][1]
    assert (body["top_k"], body["repetition_penalty"], body["n"], body["logprobs"]) == (7, 1.2, 2, True)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    plain = run(runtime, Generation("b", tokens=(5, 6), max_new_tokens=2))
    assert text(plain, "b") == "The disk"
    assert openai.seen[-1] == ("/v1/completions", openai.seen[-1][1])
    assert openai.seen[-1][1]["prompt"] == [5, 6]
    assert runtime.embed(["x", "y"]) == [[0.0, 1.0], [0.0, 1.0]]


@pytest.mark.parametrize("key", ["", "sk-secret\nsk-secret", "sk-secret\0", "sk-sécret"])
def test_a_key_that_cannot_be_one_is_refused_without_a_word_of_it(openai: Server, tmp_path: Path, key: str) -> None:
    (tmp_path / "bad").write_text(key)
    with pytest.raises(EngineError, match="holds no key") as caught:
        reach(openai, "openai", key_file=str(tmp_path / "bad"))
    assert "cret" not in str(caught.value)


def test_what_a_server_refuses_or_breaks_off_fails_that_request_alone(
    ollama: Server, openai: Server, tmp_path: Path
) -> None:
    runtime = reach(ollama, "ollama")
    said = run(runtime, Generation("a", prompt="unknown"), Generation("b", prompt="broken"),
               Generation("c", prompt="fine", max_new_tokens=9))  # fmt: skip
    failed = {one.id: one for one in said if isinstance(one, Failed)}
    assert (failed["a"].kind, "not found" in failed["a"].words) == ("refused", True)
    assert failed["b"].kind == "lost"
    assert text(said, "c") == "The disk is full."
    other = reach(openai, "openai", key_file=str(tmp_path / "key"))
    (failure,) = run(other, Generation("d", prompt="bad"))
    assert isinstance(failure, Failed)
    assert (failure.kind, failure.parameter) == ("refused", "top_p")


def test_cancelling_closes_the_servers_stream(ollama: Server) -> None:
    runtime = reach(ollama, "ollama")
    runtime.submit(Generation("a", prompt="for ever", max_new_tokens=200_000))
    deadline = time.monotonic() + 60
    while not any(isinstance(one, Piece) for one in runtime.step()):
        assert time.monotonic() < deadline
    runtime.cancel("a")
    assert [type(one) for one in runtime.step()] == [Done]
    assert not runtime.busy()
    assert ollama.broken_pipes.wait(60)


def test_a_server_that_is_not_there_or_lacks_the_model_is_said_at_load(ollama: Server, openai: Server) -> None:
    for runtime in ("openai", "ollama"):
        with pytest.raises(EngineError, match="does not answer"):
            load(Spec(model="tiny", runtime=runtime, url="http://127.0.0.1:1"))
        with pytest.raises(EngineError, match="needs the url"):
            load(Spec(model="tiny", runtime=runtime))
    with pytest.raises(EngineError, match="has no model 'big'; it has tiny:latest"):
        load(Spec(model="big", runtime="ollama", url=url(ollama)))
    with pytest.raises(EngineError, match="has no model 'big'; it has tiny"):
        load(Spec(model="big", runtime="openai", url=url(openai)))
    with pytest.raises(EngineError, match="is not the one that was registered"):
        load(Spec(model="tiny", runtime="ollama", url=url(ollama), digest="00"))


def test_what_a_server_cannot_do_is_refused_before_it_is_asked(ollama: Server) -> None:
    runtime = reach(ollama, "ollama")
    for request, parameter in (
        (Generation("a", prompt="x", logprobs=1), "logprobs"),
        (Generation("a", tokens=(1,)), "tokens"),
        (Generation("a", prompt="x", grammar={"regex": "a"}), "grammar"),
        (Generation("a", prompt="x", so_far=((1,),)), "so_far"),
    ):
        with pytest.raises(Refused) as refused:
            runtime.submit(request)
        assert refused.value.parameter == parameter
    assert not runtime.busy()
