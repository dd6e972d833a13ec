"""What this machine can hold models in, and what a model will take. No model library is needed to know it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from daemon.inference.engine import safetensors_header, weight_files
from daemon.inference.memory import host_memory
from daemon.inference.runtimes import REMOTE, Spec
from policies.engines import Device, Model

Json = Any

_CACHE_SHARE = 4
"""Keys and values take at most this part of a device's memory where the model's spec sets no bound."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1}


class Devices:
    """The machine's. What the GPUs have free is asked of their driver's program, which takes a while: by `ask`, in a
    thread."""

    def __init__(self) -> None:
        self._program = shutil.which("nvidia-smi")
        self._cuda: list[Device] = []

    @property
    def slow(self) -> bool:
        """Whether there is something to `ask`."""
        return self._program is not None

    def ask(self) -> None:
        if self._program is not None:
            self._cuda = _cuda(self._program)

    def now(self) -> list[Device]:
        total, free = host_memory()
        found = [Device("cpu", total, free)]
        if sys.platform == "darwin" and os.uname().machine == "arm64":
            # Unified memory, and what Metal lets a process use of it.
            found.insert(0, Device("mps", total * 3 // 4, min(free, total * 3 // 4)))
        return [*self._cuda, *found]


def _cuda(program: str) -> list[Device]:
    """None where the driver does not answer: what cannot be asked for its room gets no model."""
    query = [program, "--query-gpu=index,uuid,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL)
        return visible(said.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def visible(listed: str, wanted: str | None) -> list[Device]:
    """The devices that the driver's program lists, as an engine numbers them: of those that CUDA_VISIBLE_DEVICES names,
    by number or by the beginning of the UUID, in its order and up to the first that is not there."""
    rows = [[part.strip() for part in line.split(",")] for line in listed.splitlines() if line.strip()]
    if wanted is not None:
        found = []
        for name in filter(None, map(str.strip, wanted.split(","))):
            named = [row for row in rows if name == row[0] or (name.startswith("GPU-") and row[1].startswith(name))]
            if not named:
                break
            found.append(named[0])
        rows = found
    return [Device(f"cuda:{place}", int(row[2]) << 20, int(row[3]) << 20) for place, row in enumerate(rows)]


def policy_model(name: str, spec: Spec, *, instances: int, fallback: str, room: int) -> Model:
    """The model as the pool's decisions see it. `room`: the memory of the largest device. Of a model whose files cannot
    be read nothing is known: loading it will say why."""
    remote = spec.runtime in REMOTE
    weights = cache = 0
    if not remote:
        with contextlib.suppress(Exception):
            weights, cache = _sizes(spec)
    cache = spec.cache_mb << 20 if spec.cache_mb else min(cache, room // _CACHE_SHARE)
    return Model(
        name,
        weights_bytes=weights,
        cache_bytes=cache,
        device=spec.device,
        rows=spec.rows,
        quantization=spec.quantization,
        quantizable=spec.runtime == "transformers",
        instances=instances,
        fallback=fallback,
        remote=remote,
    )


def _sizes(spec: Spec) -> tuple[int, int]:
    """Bytes of the weights as they are served, and of the keys and values of all rows with a full context."""
    path = Path(spec.model)
    if path.is_file():
        return path.stat().st_size, 0
    weights = 0
    share = {"bnb-8bit": 1.0, "bnb-4bit": 0.5}.get(spec.quantization)
    for file in weight_files(path):
        for name, tensor in safetensors_header(file).items():
            if name == "__metadata__":
                continue
            count = 1
            for extent in tensor["shape"]:
                count *= extent
            saved = _BYTES.get(tensor["dtype"], 4)
            weights += int(count * (share if share is not None else _BYTES.get(spec.dtype, saved)))
    config = json.loads((path / "config.json").read_bytes())
    config = config.get("text_config", config)
    heads = config.get("num_attention_heads", config.get("n_head", 1))
    width = config.get("head_dim") or config.get("hidden_size", config.get("n_embd", 0)) // heads
    layers = config.get("num_hidden_layers", config.get("n_layer", 0))
    context = spec.context or config.get("max_position_embeddings", config.get("n_positions", 0))
    per_token = 2 * layers * config.get("num_key_value_heads", heads) * width * _BYTES.get(spec.dtype, 2)
    return weights, per_token * context * spec.rows
