"""Hugging Face causal language models on CUDA, MPS or a CPU, by the step loop of `stepped`.

The library's own forward pass is used, with a cache of ours under it. Whether a model runs right that way is not taken
on trust: at load a text is read in parts and compared with the model's own reading of it in one go.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

from daemon.inference.engine import Engine, EngineError, free_bytes, runtimes
from daemon.inference.runtimes import Impossible, Spec
from daemon.inference.runtimes.stepped import Stepped

CHUNK_TOKENS = {"cpu": 256, "mps": 512, "cuda": 2048}
"""Of prompts, read in one step."""
_CACHE_SHARE = 0.25
_KINDS = {"full_attention", "sliding_attention"}
_GROW_TOKENS = 128


def load(spec: Spec) -> Stepped:
    torch, transformers = runtimes()
    if spec.threads:
        torch.set_num_threads(spec.threads)
    if unknown := sorted(spec.options):
        raise EngineError(f"the runtime transformers has no option {unknown[0]!r}; it has none.")
    engine = Engine.load(
        spec.model, device=spec.device, dtype=spec.dtype, quantization=spec.quantization, expected=spec.digest
    )
    machine = HuggingFace(torch, engine._model, spec)
    machine.check(transformers)
    device = str(engine.facts["device"]).partition(":")[0]
    facts = {
        **engine.facts,
        "context": machine.context,
        "rows": spec.rows,
        "threads": torch.get_num_threads(),
        "determinism": "",
    }
    return Stepped(
        machine,
        engine._tokenizer,
        engine._ends,
        facts,
        rows=spec.rows,
        chunk=CHUNK_TOKENS[device],
        prefix_cache=spec.prefix_cache,
        out_of_memory=lambda error: out_of_memory(torch, error),
    )


def out_of_memory(torch: Any, error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in words or "out of memory" in words)


class HuggingFace:
    """A Machine over a model of the library's."""

    def __init__(self, torch: Any, model: Any, spec: Spec) -> None:
        self._torch, self._model = torch, model
        self._config = model.config.get_text_config()
        self._device = model.device
        self._slots = _slots(torch, self._config.num_hidden_layers)
        self._keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.vocabulary: int = model.get_output_embeddings().weight.shape[0]
        self._weights = sum(each.numel() * each.element_size() for each in model.parameters())
        most = getattr(self._config, "max_position_embeddings", None) or 1 << 20
        self.context = min(spec.context or most, most)
        self._budget = spec.cache_mb << 20
        plain = model.dtype == torch.float32 and spec.quantization == "none"
        self._near = 1e-3 if plain else 0.1  # what is rounded more depends more on what it is batched with
        self._masks = _kinds(self._config)

    def check(self, transformers: Any) -> None:
        """Read a text in parts, beside another one. Impossible if that is not what the model says of it in one go."""
        torch = self._torch
        size = min(24, self.context - 1)
        text = [(7 * place + 3) % self.vocabulary for place in range(size)]
        try:
            with torch.inference_mode():
                whole = self._model(input_ids=torch.tensor([text], device=self._device)).logits[0].float()
            half = size // 2
            self.reserve(2, size)
            self.forward(0, [text[:half]], [0])
            self.forward(1, [text[: half - 3]], [0])
            self.forward(1, [text[half - 3 : half - 1]], [half - 3])
            for place in range(half, size - 1):
                stepped = self.forward(0, [[text[place]], [text[place - 1]]], [place, place - 1]).float()
                worst = max(_apart(stepped[0], whole[place]), _apart(stepped[1], whole[place - 1]))
                if not worst < self._near:
                    raise ValueError(f"its scores are off by {worst:.3f} of their size")
        except Exception as error:
            if out_of_memory(torch, error):
                raise
            raise Impossible(
                f"{type(self._model).__name__} does not run in the step loop of this runtime: {error}.",
                "Use it as GGUF with runtime: llama_cpp, or another model.",
            ) from error
        if not self._budget:
            self._budget = int(free_bytes(torch, str(self._device)) * _CACHE_SHARE)

    def fits(self, slots: int, length: int) -> bool:
        return bool(self._slots.bytes_for(slots, min(_rounded(length), self.context)) <= self._budget)

    def reserve(self, slots: int, length: int) -> None:
        with self._torch.inference_mode():
            self._slots.reserve(slots, min(_rounded(length), self.context))

    def forward(self, first: int, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> Any:
        torch, count = self._torch, len(tokens[0])
        with torch.inference_mode():
            ids = torch.tensor(tokens, device=self._device)
            begins = torch.tensor(starts, device=self._device)
            positions = begins[:, None] + torch.arange(count, device=self._device)
            until = max(starts) + count
            self._slots.look(first, starts, begins, count, until)
            extra = {"logits_to_keep": 1} if self._keep else {}
            logits = self._model(
                input_ids=ids,
                position_ids=positions,
                attention_mask=self._mask(positions, until),
                past_key_values=self._slots.cache,
                use_cache=True,
                **extra,
            ).logits
            return logits[:, -1]

    def copy(self, source: int, target: int, length: int) -> None:
        with self._torch.inference_mode():
            self._slots.copy(source, target, length)

    def swap(self, one: int, other: int, length: int) -> None:
        with self._torch.inference_mode():
            self._slots.swap(one, other, length)

    def embed(self, tokens: Sequence[int]) -> list[float]:
        """The mean of the last layer's states, at length 1."""
        torch = self._torch
        with torch.inference_mode():
            ids = torch.tensor([tokens], device=self._device)
            states = self._model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0].float()
            return [float(each) for each in torch.nn.functional.normalize(states.mean(dim=0), dim=0).cpu()]

    def memory_bytes(self) -> int:
        return int(self._weights + self._slots.bytes_now())

    def close(self) -> None:
        self._model = self._slots = None

    def _mask(self, positions: Any, until: int) -> Any:
        torch = self._torch
        if len(positions) == 1 and positions.shape[1] == until and self._masks == {"full_attention"}:
            return None  # a prompt from its beginning: plainly causal
        places = torch.arange(until, device=self._device)
        seen = places[None, None, :] <= positions[:, :, None]
        made = {"full_attention": seen}
        if "sliding_attention" in self._masks:
            made["sliding_attention"] = seen & (places > positions[:, :, None] - self._config.sliding_window)
        if self._config._attn_implementation == "eager":
            least = torch.finfo(self._model.dtype).min
            made = {
                kind: torch.zeros(mask.shape, dtype=self._model.dtype, device=self._device).masked_fill(~mask, least)
                for kind, mask in made.items()
            }
        made = {kind: mask[:, None] for kind, mask in made.items()}
        return made if len(self._masks) > 1 else made[next(iter(self._masks))]


def _kinds(config: Any) -> set[str]:
    """The kinds of attention that the model's layers have."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        kinds = {"sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"}
    if not kinds <= _KINDS:
        raise Impossible(
            f"the model has layers of the kind {', '.join(sorted(kinds - _KINDS))}, which keep a state that this"
            " runtime's slots cannot hold.",
            "Use it as GGUF with runtime: llama_cpp, or another model.",
        )
    return kinds


def _apart(one: Any, other: Any) -> float:
    return float((one - other).norm() / other.norm().clamp_min(1e-9))


def _rounded(length: int) -> int:
    return -(-length // _GROW_TOKENS) * _GROW_TOKENS


def _slots(torch: Any, layers: int) -> Any:
    """The library's Cache over slots of ours. Made here, since its base class comes with the library."""
    base: Any = importlib.import_module("transformers.cache_utils")

    class Layer(base.CacheLayerMixin):  # type: ignore[misc]
        is_sliding = False

        def __init__(self, view: Any) -> None:
            super().__init__()
            self.view = view

        def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
            view = self.view
            # Zeros, not what lies in memory: what is masked counts nothing, but not a number times nothing is none.
            for name, states in (("keys", key_states), ("values", value_states)):
                shape = (view.slots, states.shape[1], view.length, states.shape[3])
                setattr(self, name, torch.zeros(shape, dtype=states.dtype, device=states.device))
            self.is_initialized = True

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> Any:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            view, shown = self.view, []
            for held, states in ((self.keys, key_states), (self.values, value_states)):
                if states.shape[0] == 1:
                    held[view.first, :, view.starts[0] : view.starts[0] + view.count] = states[0]
                elif view.count == 1:
                    held[view.rows, :, view.begins] = states[:, :, 0]
                else:
                    raise ValueError("a batch takes one token a row")
                shown.append(held[view.first : view.first + states.shape[0], :, : view.until])
            return tuple(shown)

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return self.view.until, 0

        def get_seq_length(self) -> int:
            return int(self.view.until - self.view.count)

        def get_max_length(self) -> int:
            return -1

    class Slots:
        def __init__(self) -> None:
            self.slots = self.length = 0
            self.first = self.count = self.until = 0
            self.starts: Sequence[int] = ()
            self.begins = self.rows = None
            self.cache = base.Cache(layers=[Layer(self) for _ in range(layers)])

        def look(self, first: int, starts: Sequence[int], begins: Any, count: int, until: int) -> None:
            self.first, self.starts, self.begins, self.count, self.until = first, starts, begins, count, until
            self.rows = torch.arange(first, first + len(starts), device=begins.device)

        def reserve(self, slots: int, length: int) -> None:
            if slots <= self.slots and length <= self.length:
                return
            self.slots, self.length = max(slots, self.slots), max(length, self.length)
            for layer in self._made():
                for name in ("keys", "values"):
                    held = getattr(layer, name)
                    shape = (self.slots, held.shape[1], self.length, held.shape[3])
                    grown = torch.zeros(shape, dtype=held.dtype, device=held.device)
                    grown[: held.shape[0], :, : held.shape[2]] = held
                    setattr(layer, name, grown)

        def copy(self, source: int, target: int, length: int) -> None:
            for layer in self._made():
                for held in (layer.keys, layer.values):
                    held[target, :, :length] = held[source, :, :length]

        def swap(self, one: int, other: int, length: int) -> None:
            for layer in self._made():
                for held in (layer.keys, layer.values):
                    kept = held[one, :, :length].clone()
                    held[one, :, :length] = held[other, :, :length]
                    held[other, :, :length] = kept

        def bytes_for(self, slots: int, length: int) -> int:
            each = sum(
                held.shape[1] * held.shape[3] * held.element_size()
                for layer in self._made()
                for held in (layer.keys, layer.values)
            )
            return int(slots * length * each)

        def bytes_now(self) -> int:
            return self.bytes_for(self.slots, self.length)

        def _made(self) -> list[Any]:
            return [layer for layer in self.cache.layers if layer.is_initialized]

    return Slots()
