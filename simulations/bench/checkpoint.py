"""Checkpoints with random weights, as quick and as large as real ones: as Hugging Face has them, and as GGUF."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

from daemon.inference.hermes_mini import FOLDER


def llama_of(folder: Path, *, hidden: int, layers: int, heads: int, kv_heads: int, dtype: str) -> Path:
    """A Llama with hermes-mini's tokenizer."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32_000, hidden_size=hidden, intermediate_size=hidden * 8 // 3 // 64 * 64, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=2048, eos_token_id=1,
        pad_token_id=0, bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(before)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FOLDER / name, folder)
    return folder


def gguf_of(folder: Path, file: Path, kind: str = "F32") -> Path:
    """The Llama checkpoint in `folder` as GGUF: the same numbers, in the order that llama.cpp wants them."""
    gguf: Any = importlib.import_module("gguf")
    numpy: Any = importlib.import_module("numpy")
    torch: Any = importlib.import_module("torch")
    safetensors: Any = importlib.import_module("safetensors")

    config = json.loads((folder / "config.json").read_text())
    rope = config.get("rope_parameters") or config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("rope_theta", 10_000.0))
    writer.add_vocab_size(config["vocab_size"])
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    words += [f"<unused{place}>" for place in range(len(words), config["vocab_size"])]
    special = {token["id"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if k in special else gguf.TokenType.NORMAL for k in range(len(words))]
    )
    writer.add_token_merges(
        [" ".join(pair) if isinstance(pair, list) else pair for pair in tokenizer["model"]["merges"]]
    )
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    template = json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template")
    if template:
        writer.add_chat_template(template)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    with safetensors.safe_open(folder / "model.safetensors", "pt") as read:
        for name in read.keys():  # noqa: SIM118
            stem = name.removesuffix(".weight")
            layer = ""
            if stem.startswith("model.layers."):
                _, _, number, stem = stem.split(".", 3)
                layer = f"blk.{number}."
            tensor = read.get_tensor(name)
            data = tensor.to(torch.float32).numpy()
            if names[stem] in heads:  # its rotation turns neighbours, the library's turns halves
                count = heads[names[stem]]
                data = data.reshape(count, 2, data.shape[0] // count // 2, data.shape[1]).swapaxes(1, 2)
                data = data.reshape(-1, data.shape[-1])
            wanted = getattr(gguf.GGMLQuantizationType, kind if data.ndim == 2 else "F32")
            made = gguf.quants.quantize(numpy.ascontiguousarray(data), wanted)
            writer.add_tensor(f"{layer}{names[stem]}.weight", made, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
