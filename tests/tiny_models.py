"""Small checkpoints with random weights, as Hugging Face writes them: real files for the real path."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from daemon.inference.hermes_mini import FOLDER
from simulations.bench.checkpoint import gguf_of

__all__ = ["gguf_of", "tiny_model"]


def tiny_model(folder: Path, family: str = "Llama", *, dtype: str = "float32", seed: int = 7, **config: Any) -> Path:
    """A model of two layers in `folder`, with hermes-mini's tokenizer. Its weights are large enough for answers that
    depend on everything before them."""
    import torch
    import transformers

    fields: dict[str, Any] = {
        "vocab_size": 3072, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "tie_word_embeddings": False, "initializer_range": 0.15, "pad_token_id": 0, "eos_token_id": 1,
        "bos_token_id": None,
    }  # fmt: skip
    settings = getattr(transformers, f"{family}Config")(**{**fields, **config})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(settings).eval()
    if getattr(settings, "attention_bias", False) or family == "Qwen2":
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FOLDER / name, folder)
    return folder
