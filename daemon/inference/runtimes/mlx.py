"""Apple silicon by mlx-lm, where it is installed: one cache of its own for each slot, the rest by `stepped`.

Written against mlx-lm 0.2x's `load` and prompt caches; it has been run on no machine but an Apple one can run it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from daemon.inference import engine
from daemon.inference.engine import EngineError, runtimes
from daemon.inference.runtimes import Impossible, Refused, Spec
from daemon.inference.runtimes.stepped import Stepped

_CHUNK_TOKENS = 512
_CACHE_SHARE = 0.25


def library() -> Any:
    """Impossible where it is not to be had."""
    if sys.platform != "darwin" or platform.machine() != "arm64":
        raise Impossible("mlx runs on Apple silicon only.", "Use runtime: transformers or llama_cpp.")
    try:
        return importlib.import_module("mlx_lm")
    except ImportError as error:
        raise Impossible(f"mlx-lm is not installed: {error}.", "pip install mlx-lm") from error


def load(spec: Spec) -> Stepped:
    mlx = library()
    torch, transformers = runtimes()
    if spec.options:
        raise EngineError(f"the runtime mlx has no option {sorted(spec.options)[0]!r}; it has none.")
    folder, config, tokenizer = engine.opened(spec.model)
    digest = engine.model_digest(folder)
    engine.check_digest(folder, digest, spec.digest)
    machine = Mlx(torch, mlx, folder, config, spec)
    ends = engine.end_tokens(transformers.GenerationConfig.from_model_config(config), tokenizer)
    facts = {
        "path": str(folder),
        "digest": digest,
        "runtime": "mlx",
        "versions": {"mlx-lm": importlib.metadata.version("mlx-lm"), "torch": torch.__version__},
        "architecture": (config.architectures or ["?"])[0],
        "device": "mps",
        "dtype": str(getattr(config, "dtype", None) or "auto").removeprefix("torch."),
        "quantization": "none",
        "parameters": machine.parameters,
        "context": machine.context,
        "rows": spec.rows,
        "threads": 1,
        "determinism": "",
    }
    return Stepped(machine, tokenizer, ends, facts, rows=spec.rows, chunk=_CHUNK_TOKENS, prefix_cache=spec.prefix_cache)


class Mlx:
    """A Machine with a cache of the library's in each slot; rows go through the model one after another."""

    def __init__(self, torch: Any, mlx: Any, folder: Path, config: Any, spec: Spec) -> None:
        self._torch, self._mx = torch, importlib.import_module("mlx.core")
        self._caches: Any = importlib.import_module("mlx_lm.models.cache")
        self._model = mlx.load(str(folder))[0]
        if not self._caches.can_trim_prompt_cache(self._caches.make_prompt_cache(self._model)):
            raise Impossible("the model keeps a state that cannot be taken back.", "Use runtime: llama_cpp.")
        text = config.get_text_config()
        most = getattr(text, "max_position_embeddings", None) or 1 << 20
        self.context = min(spec.context or most, most)
        self.vocabulary: int = text.vocab_size
        heads = text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // heads
        kv_heads = getattr(text, "num_key_value_heads", None) or heads
        self._token_bytes = 4 * text.num_hidden_layers * kv_heads * width
        self._budget = spec.cache_mb << 20 or int(engine.free_bytes(torch, "cpu") * _CACHE_SHARE)
        self._slots: list[Any] = []
        self._length = 0
        tree = importlib.import_module("mlx.utils").tree_flatten(self._model.parameters())
        self.parameters = sum(int(each.size) for _, each in tree)
        self._bytes = sum(int(each.nbytes) for _, each in tree)

    def fits(self, slots: int, length: int) -> bool:
        return bool(slots * length * self._token_bytes <= self._budget)

    def reserve(self, slots: int, length: int) -> None:
        self._length = max(length, self._length)
        while len(self._slots) < slots:
            self._slots.append(self._caches.make_prompt_cache(self._model))

    def forward(self, first: int, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> Any:
        mx = self._mx
        rows = []
        for row, (part, start) in enumerate(zip(tokens, starts, strict=True)):
            cache = self._slots[first + row]
            if over := cache[0].offset - start:
                self._caches.trim_prompt_cache(cache, over)
            scores = self._model(mx.array([list(part)]), cache=cache)[0, -1]
            rows.append(scores.astype(mx.float32))
        return self._torch.tensor(mx.stack(rows).tolist(), dtype=self._torch.float32)

    def copy(self, source: int, target: int, length: int) -> None:
        made = self._caches.make_prompt_cache(self._model)
        for new, old in zip(made, self._slots[source], strict=True):
            new.state = [each + 0 for each in old.state]
        self._caches.trim_prompt_cache(made, made[0].offset - length)
        self._slots[target] = made

    def swap(self, one: int, other: int, length: int) -> None:
        self._slots[one], self._slots[other] = self._slots[other], self._slots[one]

    def embed(self, tokens: Sequence[int]) -> list[float]:
        raise Refused("input", "the runtime mlx makes no vectors; use runtime: transformers")

    def memory_bytes(self) -> int:
        return int(self._bytes + len(self._slots) * self._length * self._token_bytes)

    def close(self) -> None:
        self._model, self._slots = None, []
