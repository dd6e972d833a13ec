"""Where stories with real engines take place: one event loop and one fork server for all of a test process."""

from __future__ import annotations

import asyncio
import atexit
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.inference.forkserver import POSSIBLE, ForkServer
from daemon.inference.handle import environment_of
from daemon.inference.hermes_mini import FOLDER

DEADLINE_S = 120.0
PROMPT = "Triage this log line: link down"
SAID = "warning network"
"""What hermes-mini says to it."""


class Place:
    """Lives until the process of the tests ends."""

    runner: asyncio.Runner | None = None
    server: ForkServer | None = None


@pytest.fixture(scope="module", autouse=True)
def place() -> Iterator[None]:
    """For a module of stories: `from engine_place import place`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        if Place.runner is None:
            Place.runner = asyncio.Runner()
            atexit.register(_leave)
        if POSSIBLE and (Place.server is None or not Place.server.alive):
            folder = Path(tempfile.mkdtemp(prefix="hermes-forkserver-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            # As for users, who set no number of threads: those that libraries start must not keep it from forking.
            environment = {name: it for name, it in environment_of(folder).items() if name != "OMP_NUM_THREADS"}
            Place.server = ForkServer(folder, environment)
            Place.runner.run(Place.server.start())
        yield


def _leave() -> None:
    async def end() -> None:
        if Place.server is not None:
            Place.server.close()

    if Place.runner is not None:
        Place.runner.run(end())
        Place.runner.close()


def run(story: Coroutine[Any, Any, None]) -> None:
    assert Place.runner is not None
    Place.runner.run(asyncio.wait_for(story, 2 * DEADLINE_S))


async def until(true: Callable[[], object], what: str) -> None:
    ends = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < ends, f"in vain: {what}"
        await asyncio.sleep(0.01)


def descriptors() -> int:
    """Of this process; 0 where the system does not tell."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def wide(folder: Path, dtype: str = "F32", inner: int = 64) -> Path:
    """A checkpoint of zeros whose keys and values take 256 KiB a token; `inner` makes its weights larger."""
    shutil.copytree(FOLDER, folder)
    config = json.loads((folder / "config.json").read_text())
    hidden, width, vocabulary = 64, 32_768, config["vocab_size"]
    config |= {
        "hidden_size": hidden, "num_hidden_layers": 1, "num_attention_heads": 64, "head_dim": width // 64,
        "num_key_value_heads": 64, "intermediate_size": inner, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": [vocabulary, hidden], "lm_head.weight": [vocabulary, hidden],
        "model.norm.weight": [hidden], f"{layer}input_layernorm.weight": [hidden],
        f"{layer}post_attention_layernorm.weight": [hidden], f"{layer}self_attn.q_proj.weight": [width, hidden],
        f"{layer}self_attn.k_proj.weight": [width, hidden], f"{layer}self_attn.v_proj.weight": [width, hidden],
        f"{layer}self_attn.o_proj.weight": [hidden, width], f"{layer}mlp.gate_proj.weight": [inner, hidden],
        f"{layer}mlp.up_proj.weight": [inner, hidden], f"{layer}mlp.down_proj.weight": [hidden, inner],
    }  # fmt: skip
    header, at = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape) * {"F32": 4, "BF16": 2}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return folder
