"""The runtime exact: the same bits alone and in a batch, with any threads, in any parts, on any instruction set."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from tiny_models import tiny_model

from daemon.inference.engine import EngineError
from daemon.inference.hermes_mini import FOLDER
from daemon.inference.runtimes import Done, Generation, Impossible, Piece, Spec, load
from daemon.inference.runtimes.stepped import Stepped

TEXTS = [[(31 * row + 17 * place * place + 5) % 3000 + 6 for place in range(9 + 7 * row)] for row in range(16)]
NEW = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("exact") / "model")


def exact(folder: Path, **settings: Any) -> Any:
    return load(Spec(model=str(folder), runtime="exact", device="cpu", **settings))


@pytest.fixture(scope="module")
def runtime(folder: Path) -> Any:
    return exact(folder)


def scores_of(machine: Any, rows: list[int], part: int = 1000) -> dict[int, list[bytes]]:
    """The scores behind each text, and behind NEW greedy tokens after it, with these texts in one batch."""
    machine.reserve(len(rows), 256)
    found: dict[int, list[bytes]] = {row: [] for row in rows}
    last, starts = [], []
    for slot, row in enumerate(rows):
        text = TEXTS[row]
        for begin in range(0, len(text), part):
            scores = machine.forward(slot, [text[begin : begin + part]], [begin])
        found[row].append(scores[0].numpy().tobytes())
        last.append([int(scores[0].argmax())])
        starts.append(len(text))
    for step in range(NEW):
        scores = machine.forward(0, last, [start + step for start in starts])
        for slot, row in enumerate(rows):
            found[row].append(scores[slot].numpy().tobytes())
            last[slot] = [int(scores[slot].argmax())]
    return found


def digest(scores: dict[int, list[bytes]]) -> str:
    return hashlib.sha256(b"".join(b"".join(scores[row]) for row in sorted(scores))).hexdigest()


@pytest.fixture(scope="module")
def alone(runtime: Any) -> dict[int, list[bytes]]:
    return {row: scores_of(runtime._machine, [row])[row] for row in range(16)}


@pytest.mark.parametrize("count", range(1, 17))
def test_scores_are_the_same_bits_in_every_batch(runtime: Any, alone: dict[int, list[bytes]], count: int) -> None:
    rows = [(5 * count + 3 * place) % 16 for place in range(count)] if count < 16 else list(range(16))
    rows = list(dict.fromkeys(rows))
    assert scores_of(runtime._machine, rows) == {row: alone[row] for row in rows}


@pytest.mark.parametrize("part", [1, 2, 7, 64])
def test_a_prompt_read_in_parts_gives_the_same_bits(runtime: Any, alone: Any, part: int) -> None:
    rows = [0, 6, 13]
    assert scores_of(runtime._machine, rows, part) == {row: alone[row] for row in rows}


def test_the_number_of_threads_changes_no_bit(runtime: Any, alone: Any) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert scores_of(runtime._machine, list(range(16))) == alone
    finally:
        torch.set_num_threads(before)


def test_another_instruction_set_changes_no_bit(folder: Path, alone: Any) -> None:
    """As far as one machine can show it: with the code for processors without the wide vectors of this one."""
    capability = "default"
    program = (
        "import sys, test_inference_exact as t; from pathlib import Path;"
        "r = t.exact(Path(sys.argv[1])); m = r._machine;"
        "print(t.torch.backends.cpu.get_cpu_capability(), t.digest(t.scores_of(m, [0, 3, 9, 15])))"
    )
    environment = {
        **os.environ,
        "ATEN_CPU_CAPABILITY": capability,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)]),
    }
    said = subprocess.run(
        [sys.executable, "-c", program, str(folder)], env=environment, capture_output=True, text=True, check=True
    )
    name, found = said.stdout.split()[-2:]
    assert name.lower() == capability
    assert found == digest({row: alone[row] for row in (0, 3, 9, 15)})


@pytest.mark.parametrize("recipe", ["w8a8", "w8a16", "w16a16"])
def test_the_plain_kernel_gives_the_same_bits_as_the_quick_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    quick = exact(folder, options={"recipe": recipe})
    assert quick.facts["kernel"] == "int8"
    wanted = scores_of(quick._machine, [2, 11])
    monkeypatch.setattr(torch.ops.quantized, "linear_prepack", _gone, raising=False)
    plain = exact(folder, options={"recipe": recipe})
    assert plain.facts["kernel"] == "float64"
    assert scores_of(plain._machine, [2, 11]) == wanted


def _gone(*_: Any) -> Any:
    raise RuntimeError("no such operator")


def answers(runtime: Stepped, requests: list[Generation]) -> dict[tuple[str, int], list[tuple[int, float | None]]]:
    for request in requests:
        runtime.submit(request)
    said: dict[tuple[str, int], list[tuple[int, float | None]]] = {}
    while runtime.busy():
        for one in runtime.step():
            if isinstance(one, Piece):
                said.setdefault((one.id, one.choice), []).append((one.token, one.logprob))
    return said


def requests() -> list[Generation]:
    head = tuple(range(40, 70))
    return [
        Generation(id=f"r{row}", tokens=(*head, *TEXTS[row][: row + 3]), max_new_tokens=8 + row % 3, seed=row,
                   temperature=0.0 if row % 2 else 1.3, top_p=0.9, logprobs=0, ignore_end=True, n=1 + row % 2)
        for row in range(8)
    ]  # fmt: skip


def test_answers_are_the_same_with_and_without_the_prefix_cache_and_after_a_resume(folder: Path, runtime: Any) -> None:
    wanted: dict[Any, Any] = {}
    for request in requests():
        wanted |= answers(exact_without_cache(folder), [request])
    together = answers(runtime, requests())
    assert runtime.prefix_hits > 100
    assert together == wanted
    # An engine was lost after three tokens; another one, which knows nothing, goes on.
    resumed = []
    for request in requests():
        so_far = tuple(tuple(token for token, _ in wanted[request.id, c][:3]) for c in range(request.n))
        resumed.append(Generation.of_json({**request.as_json(), "so_far": so_far}))
    rest = answers(exact_without_cache(folder), resumed)
    assert rest == {key: tokens[3:] for key, tokens in wanted.items()}


_without: dict[Path, Any] = {}


def exact_without_cache(folder: Path) -> Any:
    if folder not in _without:
        _without[folder] = exact(folder, prefix_cache=False, rows=4)
    return _without[folder]


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 4.0,
                                       "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                       "original_max_position_embeddings": 64}}),
        ("Mistral", {"sliding_window": 16}),
        ("Qwen2", {"tie_word_embeddings": True}),
        ("Qwen3", {"head_dim": 32}),
    ],
)  # fmt: skip
def test_it_reads_a_family_as_the_library_does(tmp_path: Path, family: str, settings: Any) -> None:
    import transformers

    folder = tiny_model(tmp_path / "model", family, **settings)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        whole = model(input_ids=torch.tensor([TEXTS[9]])).logits[0, -1]
    machine = exact(folder, options={"recipe": "w16a16"})._machine
    machine.reserve(1, 128)
    assert apart(machine.forward(0, [TEXTS[9]], [0])[0], whole) < 1e-3


def apart(one: Any, other: Any) -> float:
    return float((one - other).norm() / other.norm())


def test_how_near_each_recipe_comes_to_float32_on_the_model_in_the_package() -> None:
    import transformers

    prompts = [f"Triage this log line: {line}" for line in (
        "EXT4-fs (sda1): Remounting filesystem read-only", "sshd[812]: Failed password for root from 203.0.113.9",
        "usb 1-1: new high-speed USB device", "systemd[1]: Failed to start nginx.service", "Out of memory: Killed java",
    )]  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    figures: dict[str, tuple[float, float]] = {}
    for recipe in ("w8a8", "w8a16", "w16a16"):
        runtime = exact(Path(FOLDER), options={"recipe": recipe})
        runtime._machine.reserve(1, 256)
        off, same = [], []
        for prompt in prompts:
            tokens = runtime.chat.tokens([{"role": "user", "content": prompt}])
            with torch.inference_mode():
                whole = model(input_ids=torch.tensor([tokens])).logits[0, -1]
            mine = runtime._machine.forward(0, [tokens], [0])[0]
            off.append(apart(mine, whole))
            same.append(int(mine.argmax()) == int(whole.argmax()))
        figures[recipe] = (sum(off) / len(off), sum(same) / len(same))
    print(figures)
    assert figures["w16a16"][0] < 0.001
    assert figures["w8a16"][0] < 0.03
    assert figures["w8a8"][0] < 0.06
    assert all(agree == 1 for _, agree in figures.values())


def test_what_it_cannot_do_is_said(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(Impossible, match="not GPT2LMHeadModel"):
        exact(tiny_gpt2(tmp_path / "gpt2"))
    with pytest.raises(Impossible, match="runs on a CPU"):
        load(Spec(model=str(folder), runtime="exact", device="cuda"))
    with pytest.raises(EngineError, match="recipe 'w4a4' is none of"):
        exact(folder, options={"recipe": "w4a4"})
    with pytest.raises(EngineError, match="is not the one that was registered"):
        exact(folder, digest="0" * 64)


def tiny_gpt2(folder: Path) -> Path:
    import shutil

    import transformers

    settings = transformers.GPT2Config(vocab_size=3072, n_positions=64, n_embd=32, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(settings).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FOLDER / name, folder)
    return folder


def test_every_choice_ends_with_one_done(runtime: Any) -> None:
    runtime.submit(Generation(id="x", tokens=tuple(TEXTS[3]), max_new_tokens=3, n=3, temperature=1.0, ignore_end=True))
    done = []
    while runtime.busy():
        done += [one for one in runtime.step() if isinstance(one, Done)]
    assert sorted((one.choice, one.finish, one.generated_tokens) for one in done) == [
        (choice, "length", 3) for choice in range(3)
    ]
