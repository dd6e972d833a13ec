"""The step loop over Hugging Face models: requests join and leave, and each gets what it asked for."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from tiny_models import tiny_model

from daemon.inference import sampling
from daemon.inference.chat import tool_calls
from daemon.inference.engine import Engine, EngineError
from daemon.inference.hermes_mini import FOLDER
from daemon.inference.runtimes import (
    Done,
    Failed,
    Generation,
    Impossible,
    OutOfMemory,
    Piece,
    Refused,
    Said,
    Spec,
    load,
    matrix,
)
from daemon.inference.runtimes import transformers as transformers_runtime
from daemon.inference.text import Text

PROMPT = tuple((13 * k * k + 5) % 3000 + 6 for k in range(40))


def stepped(folder: Path, **settings: Any) -> Any:
    return load(Spec(**{"model": str(folder), "device": "cpu", "dtype": "float32", "rows": 4, **settings}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def runtime(folder: Path) -> Any:
    return stepped(folder)


@pytest.fixture(scope="module")
def mini() -> Any:
    return stepped(Path(FOLDER))


def run(runtime: Any, *requests: Generation) -> list[Said]:
    for request in requests:
        runtime.submit(request)
    said: list[Said] = []
    while runtime.busy():
        said += runtime.step()
    return said


def text(said: list[Said], id: str = "a", choice: int = 0) -> str:
    return "".join(one.text for one in said if isinstance(one, Piece) and (one.id, one.choice) == (id, choice))


def tokens(said: list[Said], id: str = "a", choice: int = 0) -> list[int]:
    return [one.token for one in said if isinstance(one, Piece) and (one.id, one.choice) == (id, choice)]


def ends(said: list[Said]) -> dict[tuple[str, int], Done]:
    return {(one.id, one.choice): one for one in said if isinstance(one, Done)}


def greedy(folder: Path, prompt: tuple[int, ...], count: int) -> list[int]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    whole = list(prompt)
    for _ in range(count):
        with torch.inference_mode():
            whole.append(int(model(input_ids=torch.tensor([whole])).logits[0, -1].argmax()))
    return whole[len(prompt) :]


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Llama", {}),
        ("Mistral", {"sliding_window": 16}),
        ("Qwen3", {"head_dim": 32}),
        ("Gemma3", {"sliding_window": 16, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}),
    ],
)
def test_a_family_steps_as_the_library_reads_it(tmp_path: Path, family: str, settings: Any) -> None:
    if family == "Gemma3":
        family, settings = "Gemma3Text", {**settings, "query_pre_attn_scalar": 16}
        model = transformers.Gemma3ForCausalLM(
            transformers.Gemma3TextConfig(
                vocab_size=3072, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.15, eos_token_id=1, **settings,
            )
        ).eval()  # fmt: skip
        folder = tiny_model(tmp_path / "model")
        for file in folder.glob("*.safetensors"):
            file.unlink()
        model.save_pretrained(folder)
    else:
        folder = tiny_model(tmp_path / "model", family, **settings)
    said = run(stepped(folder), Generation("a", tokens=PROMPT, max_new_tokens=8, ignore_end=True))
    assert tokens(said) == greedy(folder, PROMPT, 8)


def test_requests_that_join_and_leave_between_steps_get_what_they_get_alone(folder: Path, runtime: Any) -> None:
    asks = [Generation(f"r{k}", tokens=PROMPT[k : 12 + 2 * k], max_new_tokens=3 + 2 * k, ignore_end=True,
                       temperature=0.0 if k % 2 else 1.2, seed=k) for k in range(9)]  # fmt: skip
    alone = {ask.id: tokens(run(stepped_alone(folder), ask), ask.id) for ask in asks}
    said: list[Said] = []
    for ask in asks:
        runtime.submit(ask)
        said += runtime.step()
    while runtime.busy():
        said += runtime.step()
    assert {ask.id: tokens(said, ask.id) for ask in asks} == alone
    assert len(ends(said)) == 9


_alone: list[Any] = []


def stepped_alone(folder: Path) -> Any:
    if not _alone:
        _alone.append(stepped(folder, rows=1, prefix_cache=False))
    return _alone[0]


def test_it_says_what_the_batch_engine_says(mini: Any) -> None:
    lines = ["EXT4-fs (sda1): Remounting filesystem read-only", "sshd[812]: Failed password for root", "link is up"]
    prompts = [f"Triage this log line: {line}" for line in lines]
    asks = [Generation(f"r{k}", messages=({"role": "user", "content": prompt},), max_new_tokens=8)
            for k, prompt in enumerate(prompts)]  # fmt: skip
    said = run(mini, *asks)
    before = Engine.load(str(FOLDER), device="cpu", dtype="float32").generate(prompts, max_new_tokens=8)
    assert [text(said, ask.id) for ask in asks] == [output.text for output in before]
    assert [ends(said)[ask.id, 0].finish for ask in asks] == [output.finish for output in before]
    assert [ends(said)[ask.id, 0].generated_tokens for ask in asks] == [output.generated_tokens for output in before]


def test_pieces_add_up_to_the_decoded_whole_and_stop_before_a_stop_string(runtime: Any) -> None:
    ask = Generation("a", tokens=PROMPT, max_new_tokens=40, temperature=2.0, seed=3, ignore_end=True)
    said = run(runtime, ask)
    whole = runtime._tokenizer.decode(tokens(said), skip_special_tokens=True)
    assert text(said) == whole
    assert "\ufffd" in whole  # halves of characters were among them
    for begin, size in ((3, 2), (11, 5), (0, 1)):
        stop = whole[begin : begin + size]
        cut = run(runtime, Generation.of_json({**ask.as_json(), "stop": ["zzzzzz", stop]}))
        assert text(cut) == whole.partition(stop)[0]
        assert ends(cut)["a", 0].finish == "stop"


def test_log_probabilities_are_the_models_own(folder: Path, runtime: Any) -> None:
    said = run(runtime, Generation("a", tokens=PROMPT, max_new_tokens=3, logprobs=4, temperature=1.5, seed=1,
                                   repetition_penalty=1.3, ignore_end=True))  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    whole = list(PROMPT)
    for piece in [one for one in said if isinstance(one, Piece)]:
        with torch.inference_mode():
            logs = torch.log_softmax(model(input_ids=torch.tensor([whole])).logits[0, -1], dim=-1)
        assert piece.logprob == pytest.approx(float(logs[piece.token]), abs=1e-3)
        assert [top.token for top in piece.top] == logs.topk(4).indices.tolist()
        whole.append(piece.token)


def test_choices_differ_by_their_number_and_a_seed_repeats_them(runtime: Any) -> None:
    ask = Generation("a", tokens=PROMPT, max_new_tokens=6, temperature=1.0, seed=11, n=3, ignore_end=True)
    once, again = run(runtime, ask), run(runtime, ask)
    said = [tokens(once, choice=choice) for choice in range(3)]
    assert said == [tokens(again, choice=choice) for choice in range(3)]
    assert len({tuple(each) for each in said}) == 3


def test_a_cancelled_request_ends_and_the_others_go_on(runtime: Any) -> None:
    for name in ("a", "b", "c"):
        runtime.submit(Generation(name, tokens=PROMPT, max_new_tokens=9, n=2, ignore_end=True))
    runtime.step()
    runtime.cancel("b")
    runtime.cancel("nobody")
    said: list[Said] = []
    while runtime.busy():
        said += runtime.step()
    assert {key[0] for key, done in ends(said).items() if done.finish == "cancelled"} == {"b"}
    assert [done.finish for key, done in ends(said).items() if key[0] != "b"] == ["length"] * 4
    assert tokens(run(runtime, Generation("b", tokens=PROMPT, max_new_tokens=2, ignore_end=True)), "b") != []


def test_the_higher_priority_goes_first_among_those_that_wait(folder: Path) -> None:
    single = stepped(folder, rows=1)
    said = run(single, *(Generation(f"p{p}", tokens=PROMPT, max_new_tokens=2, priority=p, ignore_end=True)
                         for p in (0, 5, -3)))  # fmt: skip
    assert [one.id for one in said if isinstance(one, Done)] == ["p5", "p0", "p-3"]


def test_an_answer_keeps_to_a_schema_and_to_a_pattern(runtime: Any) -> None:
    schema = {"type": "object", "properties": {"level": {"enum": ["low", "high"]}, "count": {"type": "integer",
              "minimum": 1, "maximum": 9}}, "required": ["level", "count"], "additionalProperties": False}  # fmt: skip
    asks = [Generation(f"s{k}", tokens=PROMPT, max_new_tokens=60, temperature=1.5, seed=k,
                       grammar={"json_schema": schema}) for k in range(4)]  # fmt: skip
    said = run(runtime, *asks, Generation("free", tokens=PROMPT, max_new_tokens=5, ignore_end=True))
    for ask in asks:
        value = json.loads(text(said, ask.id))
        assert value["level"] in ("low", "high")
        assert 1 <= value["count"] <= 9
        assert ends(said)[ask.id, 0].finish == "stop"
    letters = run(runtime, Generation("a", tokens=PROMPT, max_new_tokens=20, grammar={"regex": "[a-c]{5}"}))
    assert len(text(letters)) == 5
    deep: Any = {}
    for _ in range(300):
        deep = {"properties": {"a": deep}, "required": ["a"]}
    for wrong in ({"json_schema": {"type": "nonsense"}}, {"regex": "("}, {"xml": "x"}, {"lark": "start: nothing"},
                  {"json_schema": False}, {"json_schema": deep}):  # fmt: skip
        with pytest.raises(Refused) as refused:
            runtime.submit(Generation("b", tokens=PROMPT, grammar=wrong))
        assert refused.value.parameter == "grammar"


def test_an_answer_that_cannot_keep_to_its_grammar_is_refused_whole_and_no_other_is_touched(runtime: Any) -> None:
    endless = {"lark": "start: start start"}
    said = run(runtime, Generation("e", tokens=PROMPT, max_new_tokens=5, n=3, grammar=endless),
               Generation("a", tokens=PROMPT, max_new_tokens=5, ignore_end=True))  # fmt: skip
    refused = [one for one in said if isinstance(one, Failed)]
    assert {(one.id, one.kind, one.parameter) for one in refused} == {("e", "refused", "grammar")}
    assert len(tokens(said)) == 5
    assert len(tokens(run(runtime, Generation("e", tokens=PROMPT, max_new_tokens=5, ignore_end=True)), "e")) == 5


@pytest.mark.parametrize(
    ("asked", "parameter", "words"),
    [
        ({"prompt": ""}, "prompt", "is empty"),
        ({"tokens": [5] * 510}, "prompt", "context of 512"),
        ({"tokens": [99_999]}, "tokens", "no token 99999"),
        ({"prompt": "x", "temperature": -1}, "temperature", "from 0.0"),
        ({"prompt": "x", "top_p": 0}, "top_p", "above 0"),
        ({"prompt": "x", "n": 0}, "n", "from 1"),
        ({"prompt": "x", "seed": 1.5}, "seed", "whole number"),
        ({"prompt": "x", "stop": [""]}, "stop", "not empty"),
        ({"prompt": "x", "tokens": [1]}, "tokens", "exactly one"),
        ({"prompt": "x", "beam": 3}, "beam", "no field"),
        ({"messages": []}, "messages", "is empty"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages", "needs a role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "no text"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}, "tools", "no place"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_the_field_at_fault(
    runtime: Any, asked: Any, parameter: str, words: str
) -> None:
    with pytest.raises(Refused, match=words) as refused:
        runtime.submit(Generation.of_json({"id": "a", "max_new_tokens": 8, **asked}))
    assert refused.value.parameter == parameter
    assert not runtime.busy()


def test_going_on_behind_the_tokens_of_a_lost_engine(runtime: Any) -> None:
    ask = Generation("a", tokens=PROMPT, max_new_tokens=12, temperature=1.0, seed=5, ignore_end=True)
    whole = run(runtime, ask)
    for count in (1, 5, 11):
        rest = run(runtime, Generation.of_json({**ask.as_json(), "so_far": [tokens(whole)[:count]]}))
        assert tokens(rest) == tokens(whole)[count:]
        assert ends(rest)["a", 0].generated_tokens == 12


def test_the_memory_for_keys_bounds_how_many_run_at_once(folder: Path) -> None:
    small = stepped(folder, rows=8)
    small._machine._budget = 4 * 128 * 512  # 512 bytes a token: four requests of 128
    asks = [Generation(f"r{k}", tokens=PROMPT, max_new_tokens=80, ignore_end=True) for k in range(5)]
    for ask in asks:
        small.submit(ask)
    said: list[Said] = []
    most = 0
    while small.busy():
        said += small.step()
        most = max(most, len(small._running))
    assert most == 4
    assert len(ends(said)) == 5
    tiny = stepped(folder, cache_mb=1, context=512)
    tiny._machine._budget = 100_000
    with pytest.raises(Refused, match="no memory for the keys"):
        tiny.submit(Generation("a", tokens=PROMPT, max_new_tokens=400))


def test_no_memory_in_a_step_loses_what_ran_and_nothing_else(folder: Path) -> None:
    one = stepped(folder)
    one.submit(Generation("a", tokens=PROMPT, max_new_tokens=4))
    forward = one._machine.forward

    def full(*_: Any) -> Any:
        return torch.empty(1 << 60)  # torch's own words for it

    one._machine.forward = full
    with pytest.raises(OutOfMemory, match="no memory for the next step"):
        one.step()
    assert not one.busy()
    one._machine.forward = forward
    assert tokens(run(one, Generation("b", tokens=PROMPT, max_new_tokens=3, ignore_end=True)), "b") != []


def test_vectors_of_texts(mini: Any) -> None:
    disk, _, greeting = mini.embed(["the disk is full", "no space left on device: disk", "hello"])
    assert sum(each * each for each in disk) == pytest.approx(1, abs=1e-4)
    assert len(disk) == 160
    assert disk != greeting
    with pytest.raises(Refused, match="text 2 is empty"):
        mini.embed(["x", ""])


@pytest.mark.parametrize("quantization", ["bnb-8bit", "bnb-4bit"])
def test_quantized_weights_on_a_cpu(folder: Path, quantization: str) -> None:
    pytest.importorskip("bitsandbytes")
    small = stepped(folder, quantization=quantization)
    assert small.facts["quantization"] == quantization
    said = run(small, *(Generation(f"r{k}", tokens=PROMPT, max_new_tokens=4, ignore_end=True) for k in range(2)))
    assert len(tokens(said, "r0")) == 4
    assert tokens(said, "r0") == tokens(said, "r1")


def test_a_model_that_keeps_another_kind_of_state_is_not_tried() -> None:
    config = transformers.Qwen3NextConfig(num_hidden_layers=4)
    with pytest.raises(Impossible, match="linear_attention.*cannot hold"):
        transformers_runtime._kinds(config)


def test_a_runtime_that_is_not_there_says_what_to_do(folder: Path) -> None:
    with pytest.raises(Impossible, match="there is no runtime 'onnx'"):
        load(Spec(model=str(folder), runtime="onnx"))
    with pytest.raises(Impossible, match="Apple"):
        load(Spec(model=str(folder), runtime="mlx"))
    with pytest.raises(EngineError, match="is not the one that was registered"):
        stepped(folder, digest="0" * 64)


def test_the_matrix_names_every_runtime_and_why_not(tmp_path: Path) -> None:
    rows = matrix()
    assert {row["runtime"] for row in rows} == {"transformers", "exact", "llama_cpp", "mlx", "openai", "ollama"}
    for row in rows:
        assert row["possible"] or (row["reason"] and row["do"])
    cpu = [row for row in rows if row["device"] == "cpu" and row["possible"]]
    assert {row["runtime"] for row in cpu} >= {"transformers", "exact", "llama_cpp"}


# The parts


def test_a_draw_takes_each_token_as_often_as_its_share() -> None:
    scores = torch.log(torch.tensor([[0.1, 0.0001, 0.5, 0.2, 0.1999]], dtype=torch.float64))
    count = 4000
    drawn = [
        sampling.choose(scores, [sampling.Ask(temperature=1.0, top_p=0.95, at=sampling.uniform(1, 0, k))])[0].token
        for k in range(count)
    ]
    shares = [drawn.count(token) / count for token in range(5)]
    assert shares[1] == 0
    for token, share in ((0, 0.1), (2, 0.5), (3, 0.2), (4, 0.2)):
        assert shares[token] == pytest.approx(share, abs=0.03)
    assert {sampling.choose(scores, [sampling.Ask(temperature=9.0, top_k=2, at=k / 50)])[0].token
            for k in range(50)} == {2, 3}  # fmt: skip
    assert sampling.choose(scores, [sampling.Ask(temperature=1.0, top_p=1e-9, at=0.999999)])[0].token == 2
    assert sampling.choose(scores, [sampling.Ask(temperature=5e-324, at=0.999999)])[0].token == 2


def test_tool_calls_are_found_in_the_forms_of_several_models() -> None:
    call = '{"name": "look", "arguments": {"at": "disk"}}'
    assert tool_calls(f"Let me see.\n<tool_call>\n{call}\n</tool_call>", ["look"]) == (
        "Let me see.", [("look", '{"at": "disk"}')],
    )  # fmt: skip
    two = f"<tool_call>{call}</tool_call><tool_call>{call.replace('disk', 'net')}</tool_call>"
    assert [arguments for _, arguments in tool_calls(two, ["look"])[1]] == ['{"at": "disk"}', '{"at": "net"}']
    assert tool_calls(f"[TOOL_CALLS] [{call}]", ["look"])[1] == [("look", '{"at": "disk"}')]
    assert tool_calls('{"name": "look", "parameters": {"at": 1}}', ["look"])[1] == [("look", '{"at": 1}')]
    for text in (f"<tool_call>{call}</tool_call>", "<tool_call>{broken</tool_call>", "plain words", "{}"):
        assert tool_calls(text, ["other"]) == (text, [])
    began = time.process_time()  # A moment, whatever a model says: 20,000 spaces once took five seconds.
    for text in (f"<tool_call>a{' ' * 100_000}b", f"<tool_call>{'[' * 100_000}",
                 f'<tool_call>{{"name": "look", "arguments": "{"[" * 100_000}"}}'):  # fmt: skip
        assert tool_calls(text, ["look"]) == (text, [])
    assert time.process_time() - began < 5


def test_text_holds_back_half_a_character(mini: Any) -> None:
    tokenizer = mini._tokenizer
    whole = tokenizer("日本語 — ok")["input_ids"]
    shown = Text(tokenizer, ())
    parts = [shown.add(token, last=place == len(whole) - 1) for place, token in enumerate(whole)]
    assert "".join(parts) == tokenizer.decode(whole, skip_special_tokens=True)
    assert not any("\ufffd" in part for part in parts)
    assert Failed("a", "lost", "x").parameter == ""
