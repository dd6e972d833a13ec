"""A real gateway process over a home, and the ways to talk to it."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from cli_shell import ENVIRONMENT, ROOT, hermesd

Json = Any

MINI = "hermes-mini"
START_S = 180.0


class Gateway:
    """`hermesd gateway`, from ready to gone."""

    def __init__(self, home: Path, *words: str, **environment: str) -> None:
        self.home = home
        self.log = home / "gateway.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "daemon.cli", "gateway", "--home", str(home), "--json", *words],
                cwd=ROOT,
                env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"} | environment,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        told, _, _ = select.select([self.process.stdout], [], [], START_S)
        line = self.process.stdout.readline() if told else b""
        assert line, self.log.read_text()
        self.facts: Json = json.loads(line)
        self.token = (home / "gateway.token").read_text().strip()

    def __enter__(self) -> Gateway:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    @property
    def url(self) -> str:
        return str(self.facts["urls"][0])

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def client(self) -> httpx.Client:
        """By the Unix socket."""
        transport = httpx.HTTPTransport(uds=str(self.home / "gateway.sock"))
        return httpx.Client(transport=transport, base_url="http://hermes", timeout=180)

    def get(self, path: str) -> Json:
        with self.client() as client:
            return client.get(path).raise_for_status().json()

    def logged(self, event: str) -> list[Json]:
        lines = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{"))
        return [line for line in lines if line["event"] == event]

    def until(self, holds: Callable[[], object], what: str) -> None:
        """Look again and again until it holds."""
        deadline_s = time.monotonic() + 120
        while not holds():
            assert time.monotonic() < deadline_s, f"{what}\n{self.log.read_text()[-4000:]}"
            time.sleep(0.02)

    def running(self) -> int:
        stats = self.get("/api/v1/runtime/stats")
        return int(stats["pool"]["running"]) + int(stats["pool"]["waiting"])


def make_home(path: Path, settings: str = "") -> Path:
    hermesd("init", "--home", path)
    with (path / "hermesd.yaml").open("a") as file:
        file.write(settings)
    return path


def tiny_chat_model(folder: Path) -> Path:
    """A Llama of random weights whose chat template knows tools."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|end|>", "<|user|>", "<|assistant|>", *alphabet]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    fast.chat_template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}"
        "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}<|assistant|>"
    )
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=2048, eos_token_id=0, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def curl(*words: str) -> str:
    assert shutil.which("curl")
    done = subprocess.run(["curl", "-sS", *words], capture_output=True, text=True, timeout=60, env=_plain(), check=True)
    return done.stdout


def _plain() -> dict[str, str]:
    return {"PATH": os.environ["PATH"]}
