"""Causal language models on a CPU, bit for bit: the same request gives the same bytes, whatever else is in the batch,
with any number of threads, read in any parts, from the prefix cache or not, after a crash or not.

That is so by construction. Floating-point addition depends on its order, and the order depends on shapes, threads and
processors; so here nothing that is rounded is ever summed:

- Every sum (products of matrices, squares for a norm, shares of attention) is over integers that stay below 2**53 in
  double precision, or below 2**31 in the integer kernel, and so is exact in any order.
- What turns numbers into such integers is a scale of one row alone, from its largest magnitude, which no order changes.
- Everything else is one correctly rounded operation on one number at a time (IEEE 754 names +, -, x, / and the square
  root). exp is a polynomial of such steps, since a library's may round differently at the end of a vector.

Weights have 8 or 16 bits and a scale for each output, activations 8 or 16 bits and a scale for each row. 16 bits are
two limbs of 8, multiplied by the same integer kernel: of activations, the limbs lie in one batch and cost little where
reading weights is what takes the time.

    recipe      weights  activations   for
    w8a8        8        8             speed
    w8a16       8        16            the default: no error from outliers among the activations
    w16a16      16       16            closer to the float reference than bfloat16 is, at two bytes a weight
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from daemon.inference import engine
from daemon.inference.engine import EngineError, runtimes
from daemon.inference.runtimes import Impossible, Spec
from daemon.inference.runtimes.stepped import Stepped

RECIPES = {"w8a8": (1, 1), "w8a16": (1, 2), "w16a16": (2, 2)}
"""Limbs of weights and of activations."""
FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
VERSION = 1
"""Of the arithmetic: another one gives other bytes."""
CHUNK_TOKENS = 256
_CACHE_SHARE = 0.25
_GROW_TOKENS = 128
_WIDTH_MAX = 16_384
"""Of a layer: the sums stay exact up to here."""
_CONTEXT_MAX = 1 << 17
_TOP = (127, 32_512)
"""The largest magnitude that one limb, and two, are scaled to; two leave room to round to."""


def load(spec: Spec) -> Stepped:
    torch, transformers = runtimes()
    if spec.device not in ("auto", "cpu"):
        raise Impossible(f"the runtime exact runs on a CPU, not on {spec.device}.", "Use device: cpu.")
    if spec.quantization != "none":
        raise EngineError("the runtime exact has its own integers: quantization is none; choose options.recipe.")
    options = dict(spec.options)
    recipe = options.pop("recipe", "w8a16")
    if recipe not in RECIPES:
        raise EngineError(f"recipe {recipe!r} is none of {', '.join(RECIPES)}.")
    if options:
        raise EngineError(f"the runtime exact has no option {sorted(options)[0]!r}; it has recipe.")
    if spec.threads:
        torch.set_num_threads(spec.threads)
    folder, config, tokenizer = engine.opened(spec.model)
    digest = engine.model_digest(folder)
    engine.check_digest(folder, digest, spec.digest)
    engine.check_room(torch, folder, "cpu", torch.bfloat16 if RECIPES[recipe][0] == 2 else torch.int8, "none")
    machine = Exact(torch, folder, config, recipe, spec)
    ends = engine.end_tokens(transformers.GenerationConfig.from_model_config(config), tokenizer)
    facts = {
        "path": str(folder),
        "digest": digest,
        "runtime": "exact",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "exact": str(VERSION)},
        "architecture": config.architectures[0],
        "device": "cpu",
        "dtype": recipe,
        "quantization": "none",
        "parameters": machine.parameters,
        "context": machine.context,
        "rows": spec.rows,
        "threads": torch.get_num_threads(),
        "kernel": machine.kernel,
        "determinism": f"exact/{VERSION} {recipe}",
    }
    return Stepped(
        machine, tokenizer, ends, facts, rows=spec.rows, chunk=CHUNK_TOKENS, prefix_cache=spec.prefix_cache,
        out_of_memory=lambda error: isinstance(error, MemoryError) or "can't allocate memory" in str(error),
    )  # fmt: skip


class Exact:
    """A Machine in integers."""

    def __init__(self, torch: Any, folder: Any, config: Any, recipe: str, spec: Spec) -> None:
        self._torch = torch
        family = (config.architectures or ["?"])[0]
        if family not in FAMILIES:
            raise Impossible(f"the runtime exact knows {', '.join(FAMILIES)}, not {family}.", "Use another runtime.")
        if config.hidden_act != "silu":
            raise Impossible(f"the runtime exact knows the activation silu, not {config.hidden_act}.", "Use another.")
        limbs_w, limbs_a = RECIPES[recipe]
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._width = getattr(config, "head_dim", None) or config.hidden_size // self._heads
        if max(config.hidden_size, config.intermediate_size, self._heads * self._width) > _WIDTH_MAX:
            raise Impossible(f"a layer is wider than {_WIDTH_MAX}: its sums might not be exact.", "Use another.")
        self.context = min(spec.context or _CONTEXT_MAX, config.max_position_embeddings, _CONTEXT_MAX)
        self.vocabulary = config.vocab_size
        self._eps = config.rms_norm_eps
        self._windows = _windows(config)
        self._rope = _Rope(torch, config, self._width)
        self.kernel, multiply = _kernel(torch)
        read = engine.tensors(folder)

        def linear(*names: str) -> _Linear:
            weights = torch.cat([read(f"{name}.weight").float() for name in names])
            biases = [read(f"{name}.bias", missing=None) for name in names]
            if any(bias is None for bias in biases) != all(bias is None for bias in biases):
                raise EngineError(f"of {', '.join(names)} in {folder} some have a bias and some have none.")
            bias = None if biases[0] is None else torch.cat([one.float() for one in biases])
            return _Linear(torch, multiply, weights, bias, limbs_w, limbs_a)

        def norm(name: str) -> Any:
            weight = read(f"{name}.weight", missing=None)
            return None if weight is None else weight.float()

        with torch.inference_mode():
            self._layers = []
            for place in range(config.num_hidden_layers):
                at = f"model.layers.{place}"
                self._layers.append(
                    _Layer(
                        norm_in=norm(f"{at}.input_layernorm"),
                        qkv=linear(*(f"{at}.self_attn.{one}_proj" for one in "qkv")),
                        q_norm=norm(f"{at}.self_attn.q_norm"),
                        k_norm=norm(f"{at}.self_attn.k_norm"),
                        out=linear(f"{at}.self_attn.o_proj"),
                        norm_mid=norm(f"{at}.post_attention_layernorm"),
                        gate_up=linear(f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"),
                        down=linear(f"{at}.mlp.down_proj"),
                    )
                )
            self._embed = read("model.embed_tokens.weight")
            self._norm = norm("model.norm")
            tied = config.tie_word_embeddings or read("lm_head.weight", missing=None) is None
            self._head = linear("model.embed_tokens" if tied else "lm_head")
        self.parameters = sum(each.count for layer in self._layers for each in layer.linears()) + self._embed.numel()
        self._bytes = sum(each.bytes for layer in self._layers for each in layer.linears()) + self._head.bytes
        self._slots = self._length = 0
        self._held: list[list[Any]] = [[] for _ in self._layers]  # of each layer: keys, their scales, values, theirs
        self._budget = spec.cache_mb << 20 or int(engine.free_bytes(torch, "cpu") * _CACHE_SHARE)

    def fits(self, slots: int, length: int) -> bool:
        return bool(slots * min(_rounded(length), self.context) * self._token_bytes() <= self._budget)

    def reserve(self, slots: int, length: int) -> None:
        torch, length = self._torch, min(_rounded(length), self.context)
        if slots <= self._slots and length <= self._length:
            return
        was, self._slots, self._length = self._slots, max(slots, self._slots), max(length, self._length)
        with torch.inference_mode():
            for held in self._held:
                grown = []
                for place in range(4):
                    shape = (self._slots, self._kv_heads, self._length, *((self._width,) if place % 2 == 0 else ()))
                    new = torch.zeros(shape, dtype=torch.float32 if place % 2 else torch.int16)
                    if was:
                        new[:was, :, : held[place].shape[2]] = held[place]
                    grown.append(new)
                held[:] = grown

    def forward(self, first: int, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> Any:
        with self._torch.inference_mode():
            states = self._states(first, tokens, starts)
            return self._head(states.view(len(tokens), len(tokens[0]), -1)[:, -1].contiguous())

    def copy(self, source: int, target: int, length: int) -> None:
        with self._torch.inference_mode():
            for held in self._held:
                for each in held:
                    each[target, :, :length] = each[source, :, :length]

    def swap(self, one: int, other: int, length: int) -> None:
        with self._torch.inference_mode():
            for held in self._held:
                for each in held:
                    kept = each[one, :, :length].clone()
                    each[one, :, :length] = each[other, :, :length]
                    each[other, :, :length] = kept

    def embed(self, tokens: Sequence[int]) -> list[float]:
        """The mean of the last layer's states, at length 1; in whole numbers, as every sum here."""
        torch = self._torch
        kept, self._held = self._held, [[] for _ in self._layers]
        sizes, self._slots, self._length = (self._slots, self._length), 0, 0
        try:
            self.reserve(1, len(tokens))
            with torch.inference_mode():
                states = self._states(0, [tokens], [0])
                up, _ = _powers(torch, states.abs().amax(), 30)
                total = states.double().mul(up.double()).round().sum(dim=0)
        finally:
            self._held, (self._slots, self._length) = kept, sizes
        numbers = total.tolist()
        size = math.sqrt(sum(int(each) ** 2 for each in numbers)) or 1.0
        return [each / size for each in numbers]

    def memory_bytes(self) -> int:
        return int(self._bytes + self._slots * self._length * self._token_bytes())

    def close(self) -> None:
        self._layers, self._held = [], []

    def _token_bytes(self) -> int:
        return int(len(self._layers) * self._kv_heads * 2 * (2 * self._width + 4))

    def _states(self, first: int, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> Any:
        """The last layer's states, float32 [rows x tokens, hidden]."""
        torch = self._torch
        rows, count = len(tokens), len(tokens[0])
        positions = torch.tensor(starts)[:, None] + torch.arange(count)
        until = max(starts) + count
        cos, sin = (each[:, None] for each in self._rope.at(positions))
        places = torch.arange(until)
        seen = places[None, None, :] <= positions[:, :, None]
        hidden = self._embed[torch.tensor(tokens).view(-1)].float()
        for layer, held, window in zip(self._layers, self._held, self._windows, strict=True):
            shown = seen if window is None else seen & (places > positions[:, :, None] - window)
            x = _norm(torch, hidden, layer.norm_in, self._eps)
            q, k, v = self._split(layer.qkv(x), rows, count)
            if layer.q_norm is not None:
                q, k = _norm(torch, q, layer.q_norm, self._eps), _norm(torch, k, layer.k_norm, self._eps)
            q, k = _turned(torch, q, cos, sin), _turned(torch, k, cos, sin)
            self._keep(held, first, positions, k, v)
            mixed = self._attention(q, [each[first : first + rows, :, :until] for each in held], shown)
            hidden = hidden + layer.out(mixed.transpose(1, 2).reshape(rows * count, -1))
            x = _norm(torch, hidden, layer.norm_mid, self._eps)
            gate, up = layer.gate_up(x).chunk(2, dim=-1)
            hidden = hidden + layer.down(_silu(torch, gate) * up)
        return _norm(torch, hidden, self._norm, self._eps)

    def _split(self, joined: Any, rows: int, count: int) -> list[Any]:
        """float32 [rows, heads, tokens, width] of queries, keys and values."""
        sizes = [heads * self._width for heads in (self._heads, self._kv_heads, self._kv_heads)]
        return [
            each.reshape(rows, count, -1, self._width).transpose(1, 2).contiguous()
            for each in joined.split(sizes, dim=-1)
        ]

    def _keep(self, held: list[Any], first: int, positions: Any, k: Any, v: Any) -> None:
        torch = self._torch
        for place, states in ((0, k), (2, v)):
            up, down = _powers(torch, states.abs().amax(dim=-1), 14)
            whole = states.mul(up[..., None]).round_().clamp_(-32_767, 32_767).to(torch.int16)
            for row in range(len(positions)):
                where = slice(int(positions[row, 0]), int(positions[row, -1]) + 1)
                held[place][first + row, :, where] = whole[row]
                held[place + 1][first + row, :, where] = down[row]

    def _attention(self, q: Any, held: Sequence[Any], shown: Any) -> Any:
        """float32 [rows, heads, tokens, width]. Whole numbers of 15 bits times others of 20, in double precision."""
        torch = self._torch
        k, k_down, v, v_down = held
        rows, _, count, width = q.shape
        q_up, q_down = _powers(torch, q.abs().amax(dim=-1, keepdim=True), 19)
        q = q.mul(q_up).round_().double()
        share = (rows, self._kv_heads, -1)  # queries that share a head of keys, one below the other
        scores = torch.matmul(q.view(*share, width), k.double().transpose(-1, -2))
        scores.mul_(q_down.double().mul_(width**-0.5).view(*share, 1)).mul_(k_down.double()[:, :, None])
        scores = scores.view(rows, self._heads, count, -1)
        hidden = ~shown[:, None]
        scores.masked_fill_(hidden, -math.inf)
        scores.sub_(scores.amax(dim=-1, keepdim=True))
        shares = _exp(torch, scores.float()).masked_fill_(hidden, 0.0)
        total = shares.double().mul_(2.0**30).round_().sum(dim=-1, keepdim=True)
        weights = shares.view(*share, shares.shape[-1]) * v_down[:, :, None]
        up, down = _powers(torch, weights.amax(dim=-1, keepdim=True), 19)
        mixed = torch.matmul(weights.mul_(up).round_().double(), v.double())
        mixed.mul_(down.double()).mul_(2.0**30).div_(total.view(*share, 1))
        return mixed.float().view(rows, self._heads, count, width)


class _Layer:
    def __init__(self, **parts: Any) -> None:
        self.norm_in, self.norm_mid = parts["norm_in"], parts["norm_mid"]
        self.q_norm, self.k_norm = parts["q_norm"], parts["k_norm"]
        self.qkv: _Linear = parts["qkv"]
        self.out: _Linear = parts["out"]
        self.gate_up: _Linear = parts["gate_up"]
        self.down: _Linear = parts["down"]

    def linears(self) -> Sequence[_Linear]:
        return self.qkv, self.out, self.gate_up, self.down


class _Linear:
    """x W' + b, with W as integers and a scale for each output."""

    def __init__(self, torch: Any, multiply: Any, weight: Any, bias: Any, limbs_w: int, limbs_a: int) -> None:
        self._torch, self._bias, self._limbs_a = torch, bias, limbs_a
        self.count = weight.numel()
        self.bytes = weight.numel() * limbs_w
        scale = weight.abs().amax(dim=-1, keepdim=True).clamp_min(1e-30).div(_TOP[limbs_w - 1])
        whole = weight.div_(scale).round_()
        self._scale = scale.view(-1)
        self._packed = [multiply(limb.to(torch.int8)) for limb in _limbs(torch, whole, limbs_w)]

    def __call__(self, x: Any) -> Any:
        """float32 [rows, in] -> float32 [rows, out]. Each row by itself, whatever the others are."""
        torch, rows = self._torch, x.shape[0]
        scale = x.abs().amax(dim=-1, keepdim=True).clamp_min(1e-30).div(_TOP[self._limbs_a - 1])
        limbs = torch.cat(_limbs(torch, x.div(scale).round_(), self._limbs_a))
        # One limb after another, the most significant first: of weights outside, of activations in the rows.
        total: Any = None
        for product in (packed(limbs) for packed in self._packed):
            parts = product.split(rows)
            value = parts[0]
            for part in parts[1:]:
                value = value.mul(256.0).add_(part)
            total = value if total is None else total.mul(256.0).add_(value)
        total = total.mul(scale).mul_(self._scale)
        return total if self._bias is None else total.add_(self._bias)


def _limbs(torch: Any, whole: Any, count: int) -> list[Any]:
    """Whole numbers as digits to the base 256, from -128 to 127."""
    if count == 1:
        return [whole]
    high = whole.add(128.0).mul_(1 / 256).floor_()
    return [high, whole.sub(high.mul(256.0))]


def _kernel(torch: Any) -> tuple[str, Callable[[Any], Any]]:
    """What multiplies int8 exactly here, the quickest first: its name, and from weights [out, in] a function of float32
    activations [rows, in] that hold whole numbers from -128 to 127. All give the same numbers."""

    def integer(weight: Any) -> Callable[[Any], Any]:
        # Two columns of zero weights hold the ends of the range: so that the kernel, which chooses the scale of the
        # activations itself, chooses 1.
        padded = torch.cat([weight, torch.zeros(len(weight), 2, dtype=torch.int8)], dim=1)
        with warnings.catch_warnings(action="ignore"):  # that this type of tensor will go; then the next kernel serves
            quantized = torch._make_per_tensor_quantized_tensor(padded, 1.0, 0)
        packed = torch.ops.quantized.linear_prepack(quantized, None)
        ends = torch.tensor([[-128.0, 127.0]])

        def product(x: Any) -> Any:
            return torch.ops.quantized.linear_dynamic(torch.cat([x, ends.expand(len(x), 2)], dim=1), packed)

        return product

    def double(weight: Any) -> Callable[[Any], Any]:
        return lambda x: torch.matmul(x.double(), weight.double().t()).float()

    for name, kernel in (("int8", integer), ("float64", double)):
        try:
            if all(_is_exact(torch, kernel, *shape) for shape in ((1, 64, 96), (3, 770, 65), (40, 4096, 130))):
                return name, kernel
        except (RuntimeError, AttributeError):  # the operator is old and may go one day
            continue
    raise Impossible("no kernel here multiplies integers exactly.", "Report it, with the output of `hermesd doctor`.")


def _is_exact(torch: Any, kernel: Any, rows: int, inner: int, outer: int) -> bool:
    """Also where it is hardest: neighbours of the largest magnitude, which kernels without wide sums cut off."""
    place = torch.arange(max(rows, outer) * inner)
    mixed = place.mul(2_654_435_761).remainder(255).sub(127)
    x = mixed[: rows * inner].view(rows, inner).clone()
    w = mixed.flip(0)[: outer * inner].view(outer, inner).clone()
    x[0], w[0], w[1], w[2] = 127, 127, -127, -128
    x[-1, ::2] = -128
    wanted = torch.matmul(x.double(), w.double().t()).float()
    return bool(torch.equal(kernel(w.to(torch.int8))(x.float()), wanted))


def _powers(torch: Any, largest: Any, bits: int) -> tuple[Any, Any]:
    """Powers of two, and their inverses, that bring magnitudes up to `largest` (float32, not negative) below
    2**(bits + 1)."""
    field = largest.contiguous().view(torch.int32).bitwise_right_shift(23).clamp_(bits + 1, 230)
    up = (254 + bits - field).bitwise_left_shift_(23).view(torch.float32)
    return up, (field - bits).bitwise_left_shift_(23).view(torch.float32)


def _norm(torch: Any, x: Any, weight: Any, eps: float) -> Any:
    """x / sqrt(mean(x**2) + eps) * weight over the last dimension."""
    up, down = _powers(torch, x.abs().amax(dim=-1, keepdim=True), 18)
    whole = x.mul(up).round_().double()
    mean = whole.mul_(whole).sum(dim=-1, keepdim=True).mul_(down.double().square_()).div_(x.shape[-1])
    return x.mul(mean.add_(eps).sqrt_().reciprocal_().float()).mul_(weight)


_EXP = [math.log(2) ** k / math.factorial(k) for k in range(8)]


def _exp(torch: Any, x: Any) -> Any:
    """e**x for x <= 0 (float32), in steps that round one number at a time."""
    y = x.mul(1 / math.log(2)).clamp_(-126.0, 0.0)
    whole = y.round()
    y.sub_(whole)
    value = torch.full_like(y, _EXP[7])
    for factor in reversed(_EXP[:7]):
        value.mul_(y).add_(factor)
    return value.mul_(whole.to(torch.int32).add_(127).bitwise_left_shift_(23).view(torch.float32))


def _silu(torch: Any, x: Any) -> Any:
    """x / (1 + e**-x)"""
    small = _exp(torch, x.abs().neg_())
    return x.mul(torch.where(x >= 0, 1.0, small).div_(small.add(1.0)))


def _turned(torch: Any, x: Any, cos: Any, sin: Any) -> Any:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first.mul(cos).sub_(second.mul(sin)), second.mul(cos).add_(first.mul(sin))], dim=-1)


class _Rope:
    """Sines and cosines of the positions' angles, made once for each position, so that no batch can change them."""

    def __init__(self, torch: Any, config: Any, width: int) -> None:
        self._torch = torch
        rope: dict[str, Any] = dict(getattr(config, "rope_parameters", None) or {})
        kind = rope.get("rope_type", "default")
        theta: Any = rope.get("rope_theta") or getattr(config, "rope_theta", 10_000.0)
        steps = [float(theta) ** (-2.0 * k / width) for k in range(width // 2)]
        if kind == "linear":
            steps = [step / rope["factor"] for step in steps]
        elif kind == "llama3":
            steps = [_llama3(step, rope) for step in steps]
        elif kind != "default":
            raise Impossible(f"the runtime exact knows no positions of the kind {kind}.", "Use another runtime.")
        self._steps = torch.tensor(steps, dtype=torch.float32).double()
        self._cos = self._sin = torch.empty(0, width // 2)

    def at(self, positions: Any) -> tuple[Any, Any]:
        torch = self._torch
        most = int(positions.max()) + 1
        if most > len(self._cos):
            angles = torch.arange(_rounded(most), dtype=torch.float64)[:, None] * self._steps
            self._cos, self._sin = (each.float() for each in _cos_sin(torch, angles))
        return self._cos[positions], self._sin[positions]


def _llama3(step: float, rope: dict[str, Any]) -> float:
    wave, old = 2 * math.pi / step, rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    if wave < old / high:
        return step
    if wave > old / low:
        return float(step / factor)
    smooth = (old / wave - low) / (high - low)
    return float((1 - smooth) * step / factor + smooth * step)


def _cos_sin(torch: Any, angles: Any) -> tuple[Any, Any]:
    """In double precision, in steps that round one number at a time; off by less than float32 can tell."""
    turn = angles.mul(2 / math.pi).round_()
    # pi/2 in two parts, the first with so few bits that its multiples are exact.
    rest = angles.sub(turn.mul(1.5707963267341256)).sub_(turn.mul(6.077100506506192e-11))
    square = rest.mul(rest)
    cos, sin = (torch.zeros_like(rest) for _ in range(2))
    for k in range(8, -1, -1):
        cos.mul_(square).add_((-1) ** k / math.factorial(2 * k))
        sin.mul_(square).add_((-1) ** k / math.factorial(2 * k + 1))
    sin.mul_(rest)
    quarter = turn.long().remainder(4)
    odd = quarter % 2 == 1
    real, imaginary = torch.where(odd, sin, cos), torch.where(odd, cos, sin)
    real = torch.where((quarter == 1) | (quarter == 2), real.neg(), real)
    return real, torch.where(quarter >= 2, imaginary.neg(), imaginary)


def _windows(config: Any) -> list[int | None]:
    """How far back each layer looks; None: to the beginning."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _rounded(length: int) -> int:
    return -(-length // _GROW_TOKENS) * _GROW_TOKENS
