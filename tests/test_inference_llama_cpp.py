"""GGUF by llama.cpp: the same numbers as the safetensors they were written from."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("xllamacpp")

import psutil
import torch
from tiny_models import gguf_of, tiny_model

from daemon.inference.engine import EngineError
from daemon.inference.runtimes import Done, Failed, Generation, Piece, Refused, Spec, load

PROMPT = tuple((13 * k * k + 5) % 3000 + 6 for k in range(40))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("gguf") / "model")


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    return gguf_of(folder, folder.parent / "model.gguf")


@pytest.fixture(scope="module")
def runtime(file: Path) -> Any:
    return load(Spec(model=str(file), runtime="llama_cpp", device="cpu", threads=1, rows=4))


def said(runtime: Any, *requests: Generation) -> tuple[dict[Any, list[Piece]], dict[Any, Any]]:
    for request in requests:
        runtime.submit(request)
    pieces: dict[Any, list[Piece]] = {}
    ends: dict[Any, Any] = {}
    deadline = time.monotonic() + 60
    while runtime.busy():
        assert time.monotonic() < deadline
        for one in runtime.step():
            if isinstance(one, Piece):
                pieces.setdefault((one.id, one.choice), []).append(one)
            else:
                ends[one.id, getattr(one, "choice", 0)] = one
    return pieces, ends


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_its_scores_are_those_of_the_safetensors(runtime: Any, folder: Path) -> None:
    import transformers

    pieces, _ = said(runtime, Generation("a", tokens=PROMPT, max_new_tokens=12, logprobs=20, ignore_end=True))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = list(PROMPT)
    for piece in pieces["a", 0]:
        with torch.inference_mode():
            logs = torch.log_softmax(model(input_ids=torch.tensor([tokens])).logits[0, -1], dim=-1)
        assert piece.token == int(logs.argmax())
        for top in piece.top:
            assert top.logprob == pytest.approx(float(logs[top.token]), abs=0.02)
        tokens.append(piece.token)
    assert len(pieces["a", 0]) == 12


def test_a_quantized_file_is_near_it(runtime: Any, folder: Path) -> None:
    small = load(Spec(model=str(gguf_of(folder, folder.parent / "q8.gguf", "Q8_0")), runtime="llama_cpp",
                      device="cpu", threads=1, rows=1))  # fmt: skip
    assert small.facts["quantization"] == "Q8_0"
    ask = Generation("a", tokens=PROMPT, max_new_tokens=1, logprobs=20, ignore_end=True)
    whole, near = ({top.token: top.logprob for top in said(each, ask)[0]["a", 0][0].top} for each in (runtime, small))
    both = whole.keys() & near.keys()
    assert len(both) >= 10
    assert all(near[token] == pytest.approx(whole[token], abs=0.3) for token in both)
    small.close()


def test_requests_share_the_engine_and_each_keeps_its_own_parameters(runtime: Any) -> None:
    asks = [
        Generation(f"r{k}", tokens=PROMPT[: 10 + k], max_new_tokens=6 + k, temperature=1.5, seed=k, n=2,
                   ignore_end=True) for k in range(5)
    ]  # fmt: skip
    together, ends = said(runtime, *asks)
    for ask in asks:
        alone, _ = said(runtime, ask)
        for choice in range(2):
            done = ends[ask.id, choice]
            assert (done.finish, done.generated_tokens) == ("length", ask.max_new_tokens)
            assert len(text(alone[ask.id, choice])) > 0
        assert text(together[ask.id, 0]) != text(together[ask.id, 1])
    again, _ = said(runtime, asks[0])
    once, _ = said(runtime, asks[0])
    assert text(again["r0", 0]) == text(once["r0", 0])


def test_an_answer_stops_before_a_stop_string_and_keeps_to_a_grammar(runtime: Any) -> None:
    schema = {"type": "object", "properties": {"level": {"enum": ["low", "high"]}}, "required": ["level"],
              "additionalProperties": False}  # fmt: skip
    kept, _ = said(runtime, Generation("g", prompt="hello", max_new_tokens=40, grammar={"json_schema": schema}))
    assert json.loads(text(kept["g", 0]))["level"] in ("low", "high")
    letters, _ = said(runtime, Generation("l", prompt="hello", max_new_tokens=40, grammar={"regex": "[ab/]{3}"}))
    assert len(text(letters["l", 0])) == 3
    whole, _ = said(runtime, Generation("w", prompt="hello", max_new_tokens=10, ignore_end=True))
    cut = text(whole["w", 0])[3:6]
    stopped, ends = said(runtime, Generation("s", prompt="hello", max_new_tokens=10, stop=(cut,), ignore_end=True))
    assert text(stopped["s", 0]) == text(whole["w", 0]).partition(cut)[0]
    assert ends["s", 0].finish == "stop"
    with pytest.raises(Refused, match="cannot be kept to"):
        runtime.submit(Generation("b", prompt="x", grammar={"json_schema": {"type": "nonsense"}}))


def test_a_chat_goes_through_the_models_template(runtime: Any) -> None:
    _, ends = said(runtime, Generation("c", messages=({"role": "user", "content": "hello"},), max_new_tokens=3))
    assert ends["c", 0].prompt_tokens >= 3


def test_a_prompt_beyond_the_context_fails_and_a_cancelled_request_ends(runtime: Any) -> None:
    _, ends = said(runtime, Generation("long", tokens=(9,) * 600, max_new_tokens=4))
    assert isinstance(ends["long", 0], Failed)
    assert ends["long", 0].kind == "refused"
    assert "context" in ends["long", 0].words
    runtime.submit(Generation("gone", tokens=PROMPT, max_new_tokens=400, ignore_end=True))
    deadline = time.monotonic() + 60
    while not any(isinstance(one, Piece) for one in runtime.step()):
        assert time.monotonic() < deadline
    runtime.cancel("gone")
    assert [type(one) for one in runtime.step()] == [Done]
    assert not runtime.busy()


def test_vectors_have_length_one(runtime: Any) -> None:
    one, other = runtime.embed(["disk full", "hello"])
    assert sum(each * each for each in one) == pytest.approx(1, abs=1e-4)
    assert one != other


def test_nobody_can_reach_its_server(runtime: Any) -> None:
    listening = [c.laddr for c in psutil.Process().net_connections("all") if c.status == "LISTEN"]
    assert listening == []
    bound = [c.laddr for c in psutil.Process().net_connections("unix") if str(c.laddr).endswith("only.sock")]
    assert not any(os.path.exists(path) for path in bound)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path, file: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(EngineError, match="damaged or cut short"):
        load(Spec(model=str(cut), runtime="llama_cpp", device="cpu"))
    with pytest.raises(EngineError, match="there is no GGUF file"):
        load(Spec(model=str(tmp_path), runtime="llama_cpp", device="cpu"))
    with pytest.raises(EngineError, match="is not the one that was registered"):
        load(Spec(model=str(file), runtime="llama_cpp", device="cpu", digest="0" * 64))
