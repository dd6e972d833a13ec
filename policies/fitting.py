"""Which well-known open models fit a device, and as what. Figures are those of the models' own configurations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CONTEXT_TOKENS = 8192
"""What room is left for, of keys and values."""
_SHARE_PERCENT = 90
"""Of a device's memory, that a model may take."""
_OVERHEAD_BYTES = 600 << 20
"""An engine process beside its weights: the interpreter, torch, buffers."""
_SLOW_BYTES = 8 << 30
"""A CPU reads all weights for each token: above this much that is a few tokens a second on most."""


@dataclass(frozen=True, slots=True)
class Known:
    name: str
    parameters: int
    layers: int
    kv_heads: int
    head_width: int
    good_for: str


@dataclass(frozen=True, slots=True)
class Place:
    device: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Advice:
    device: str
    model: str
    runtime: str
    form: str
    needs_bytes: int
    note: str


KNOWN = (
    Known("google/gemma-3-270m-it", 268_000_000, 18, 1, 256, "short classifications"),
    Known("Qwen/Qwen3-0.6B", 596_000_000, 28, 8, 128, "routing, extraction"),
    Known("google/gemma-3-1b-it", 1_000_000_000, 26, 1, 256, "short texts"),
    Known("meta-llama/Llama-3.2-1B-Instruct", 1_236_000_000, 16, 8, 64, "short texts"),
    Known("Qwen/Qwen3-1.7B", 1_721_000_000, 28, 8, 128, "extraction, summaries"),
    Known("meta-llama/Llama-3.2-3B-Instruct", 3_213_000_000, 28, 8, 128, "summaries, tools"),
    Known("Qwen/Qwen3-4B", 4_022_000_000, 36, 8, 128, "reasoning, tools"),
    Known("google/gemma-3-4b-it", 4_300_000_000, 34, 4, 256, "texts in many languages"),
    Known("codellama/CodeLlama-7b-Instruct-hf", 6_739_000_000, 32, 32, 128, "code"),
    Known("Qwen/Qwen2.5-Coder-7B-Instruct", 7_616_000_000, 28, 4, 128, "code"),
    Known("meta-llama/Llama-3.1-8B-Instruct", 8_030_000_000, 32, 8, 128, "all-round"),
    Known("Qwen/Qwen3-8B", 8_191_000_000, 36, 8, 128, "reasoning, tools"),
    Known("google/gemma-3-12b-it", 12_187_000_000, 48, 8, 256, "texts in many languages"),
    Known("Qwen/Qwen3-14B", 14_768_000_000, 40, 8, 128, "reasoning, tools"),
    Known("google/gemma-3-27b-it", 27_432_000_000, 62, 16, 128, "texts in many languages"),
    Known("Qwen/Qwen3-32B", 32_762_000_000, 64, 8, 128, "reasoning, tools"),
    Known("meta-llama/Llama-3.3-70B-Instruct", 70_554_000_000, 80, 8, 128, "all-round"),
)

# (runtime, form, thousandths of a byte for each parameter), the best first
_FORMS = {
    "cuda": (("transformers", "bfloat16", 2000), ("transformers", "bnb-8bit", 1060), ("transformers", "bnb-4bit", 620)),
    "mps": (("transformers", "bfloat16", 2000), ("llama_cpp", "GGUF Q8_0", 1063), ("llama_cpp", "GGUF Q4_K_M", 610)),
    "cpu": (("llama_cpp", "GGUF Q8_0", 1063), ("llama_cpp", "GGUF Q4_K_M", 610)),
}


def recommend(places: Sequence[Place], count: int = 4) -> list[Advice]:
    """For each device the `count` largest models that fit it, each in its best form that fits; the largest first."""
    advice = []
    for place in places:
        fitting = [found for model in KNOWN if (found := _fit(place, model)) is not None]
        order = {model.name: model.parameters for model in KNOWN}
        fitting.sort(key=lambda each: (-order[each.model], each.model))
        advice += fitting[:count]
    return advice


def _fit(place: Place, model: Known) -> Advice | None:
    room = place.memory_bytes * _SHARE_PERCENT // 100
    cache = 4 * model.layers * model.kv_heads * model.head_width * CONTEXT_TOKENS
    kind = place.device.partition(":")[0]
    for runtime, form, thousandths in _FORMS.get(kind, ()):
        weights = model.parameters * thousandths // 1000
        if weights + cache + _OVERHEAD_BYTES <= room:
            note = model.good_for
            if kind == "cpu" and weights > _SLOW_BYTES:
                note += "; slow on a CPU"
            return Advice(place.device, model.name, runtime, form, weights + cache + _OVERHEAD_BYTES, note)
    return None
