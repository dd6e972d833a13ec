"""Which runtime, device and quantization this machine can do, and why not; from what it answers, not from its name.

Model libraries are imported here: ask in a process of its own (`python -m daemon.inference.matrix` prints it as JSON).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from typing import Any

Json = Any


def matrix() -> list[dict[str, Json]]:
    """{runtime, device, quantization, dtypes, possible, reason, do, version} for each combination."""
    rows: list[dict[str, Json]] = []

    def row(runtime: str, device: str, quantization: str, reason: str = "", do: str = "", **more: Json) -> None:
        told = {"dtypes": [], "version": "", **more}
        rows.append({"runtime": runtime, "device": device, "quantization": quantization, "possible": not reason,
                     "reason": reason, "do": do, **told})  # fmt: skip

    torch, why = _module("torch")
    _, why_library = _module("transformers")
    missing = why or why_library
    extra = "pip install 'hermesd[inference]'"
    for device in _devices(torch):
        name, reason, do, dtypes = device
        if missing:
            reason, do = missing, extra
        row("transformers", name, "none", reason, do, dtypes=dtypes, version=_version("transformers"))
        for quantization in ("bnb-8bit", "bnb-4bit"):
            why_not, remedy = (reason, do) if reason else _bitsandbytes(torch, name, quantization)
            row("transformers", name, quantization, why_not, remedy, version=_version("bitsandbytes"))
    kernel = "" if missing else _kernel(torch)
    row("exact", "cpu", "w8a8, w8a16, w16a16", missing, extra if missing else "", version="1", kernel=kernel)
    llama, why_llama = _module("xllamacpp")
    for name in ("cpu", "cuda", "mps"):
        reason, do = (why_llama, extra) if why_llama else _llama(llama, name)
        row("llama_cpp", name, "GGUF", reason, do, version=_version("xllamacpp"))
    from daemon.inference.runtimes import Impossible, mlx

    try:
        mlx.library()
        row("mlx", "mps", "MLX", version=_version("mlx-lm"))
    except Impossible as impossible:
        row("mlx", "mps", "MLX", impossible.reason, impossible.do)
    _, why_http = _module("httpx")
    for runtime in ("openai", "ollama"):
        row(runtime, "remote", "the server's", why_http, extra if why_http else "", version=_version("httpx"))
    return rows


def _module(name: str) -> tuple[Any, str]:
    try:
        return importlib.import_module(name), ""
    except Exception as error:  # libraries fail in their own ways where their shared objects do not load
        return None, f"{name} cannot be imported: {' '.join(str(error).split())[:200]}."


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _devices(torch: Any) -> list[tuple[str, str, str, list[str]]]:
    """(device, reason why not, what to do, dtypes)"""
    if torch is None:
        return [(name, "torch is not installed.", "pip install 'hermesd[inference]'", []) for name in ("cpu", "cuda")]
    native = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
    found = [("cpu", "", "", ["float32", "bfloat16" if native else "bfloat16 (slow)"])]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            half = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
            found.append((f"cuda:{number}", "", "", ["float32", half]))
    else:
        built = "is a CPU build" if torch.version.cuda is None else "sees no CUDA device"
        found.append(("cuda", f"torch {torch.__version__} {built}.", "Install a CUDA build of torch and a driver.", []))
    metal = getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available()
    reason = "" if metal else "it is Apple's, and torch sees none here."
    found.append(("mps", reason, "" if metal else "Use cpu or cuda.", ["float32", "bfloat16"] if metal else []))
    return found


def _bitsandbytes(torch: Any, device: str, quantization: str) -> tuple[str, str]:
    """Tried on a small layer: what a version claims and what runs are two things."""
    if device == "mps":
        return "bitsandbytes does not run there.", "Use a smaller model, GGUF (llama_cpp) or mlx."
    library, why = _module("bitsandbytes")
    if library is None:
        return why, "pip install 'hermesd[inference]', or use GGUF (llama_cpp)."
    try:
        with torch.inference_mode():
            if quantization == "bnb-8bit":
                layer = library.nn.Linear8bitLt(64, 64, has_fp16_weights=False)
            else:
                layer = library.nn.Linear4bit(64, 64, quant_type="nf4", compress_statistics=True)
            dtype = torch.float32 if device == "cpu" else torch.float16
            layer.to(device)(torch.ones(2, 64, dtype=dtype, device=device))
    except Exception as error:
        return f"bitsandbytes fails: {' '.join(str(error).split())[:200]}.", "Use GGUF (llama_cpp)."
    return "", ""


def _kernel(torch: Any) -> str:
    from daemon.inference.runtimes import exact

    return exact._kernel(torch)[0]


def _llama(library: Any, device: str) -> tuple[str, str]:
    if device == "cpu":
        return "", ""
    names = " ".join(str(each) for each in library.get_device_info()).lower()
    wanted = {"cuda": "cuda", "mps": "metal"}[device]
    if wanted in names:
        return "", ""
    return f"this xllamacpp has no {wanted} device.", "Install a build of xllamacpp for it, or use cpu."


if __name__ == "__main__":
    json.dump(matrix(), sys.stdout)
