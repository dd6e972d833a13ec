"""The same checkpoint by every runtime, and by transformers itself, at 1 and at 8 streams.

Each contender is a process of its own with one thread; random weights are as quick as real ones. Tokens per second of
the processor are what a busy machine changes least. Every stream asks for a prompt of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from daemon.inference.engine import OFFLINE
from simulations.bench.daemon import Stuck
from simulations.bench.figure import Figure, figure
from simulations.bench.place import Bench

Json = Any

STREAMS = (1, 8)
REFERENCE = "transformers generate, one by one"
CONTENDERS = (
    REFERENCE,
    "transformers generate, padded batch",
    "transformers continuous batching",
    "runtime transformers",
    "runtime exact w8a16",
    "runtime exact w8a8",
    "runtime llama_cpp bf16",
    "runtime llama_cpp q8_0",
)
_ON_CUDA = (*CONTENDERS[:4], "runtime transformers bnb-8bit", "runtime transformers bnb-4bit")
_ANSWER_S = 1800.0
_PROMPT, _NEW = 128, 32


def measure(bench: Bench) -> list[Figure]:
    # Where the driver's program is not, torch need not be asked.
    cuda = shutil.which("nvidia-smi") is not None and bool(_asked({"do": "ask"})["cuda"])
    shape = {"hidden": 768, "layers": 12, "heads": 12, "kv_heads": 4, "dtype": "bfloat16"}
    if cuda:
        shape = {"hidden": 2048, "layers": 22, "heads": 32, "kv_heads": 8, "dtype": "bfloat16"}  # 1.1 billion
    if bench.quick:
        shape = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "dtype": "bfloat16"}
    bench.tell(f"a checkpoint of {shape['layers']} layers of {shape['hidden']}")
    order = {"folder": str(bench.folder), "shape": shape, "cuda": cuda, "rounds": bench.rounds, "quick": bench.quick}
    told: dict[str, Json] = {}
    names = _ON_CUDA if cuda else CONTENDERS
    for name in (REFERENCE, names[3]) if bench.quick else names:
        bench.tell(name)
        told[name] = _asked({**order, "do": "measure", "name": name, "make": name == REFERENCE})
    figures = []
    where = "a GPU" if cuda else "one thread"
    for streams in STREAMS:
        beside = told[REFERENCE][str(streams)]
        for kind, unit in (("wall", "tokens/s"), ("cpu", "tokens/CPU-s")):
            for name, each in told.items():
                if name == REFERENCE or (cuda and kind == "cpu"):
                    continue
                ours = each[str(streams)][kind]
                label = f"{streams} stream{'s' if streams > 1 else ''}, {name}"
                figures.append(figure(label, unit, ours, REFERENCE, beside[kind]))
    for name, each in told.items():
        if name != REFERENCE:
            ours, theirs = each["1"]["first_ms"], told[REFERENCE]["1"]["first_ms"]
            figures.append(figure(f"first token, {name}", "ms", ours, REFERENCE, theirs,
                                  note=f"{_PROMPT} tokens of prompt, {_NEW} new ones, on {where}."))  # fmt: skip
    if Path("/proc/self/smaps_rollup").exists() and not cuda and not bench.quick:
        bench.tell("memory of one more engine of the same model")
        figures += _memory(order)
    return figures


def _memory(order: Json) -> list[Figure]:
    found = []
    for name in ("runtime transformers", "runtime llama_cpp q8_0"):
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(_holding({**order, "do": "hold", "name": name})) for _ in range(2)]
            both = sum(_pss(process.pid) for process in held)
            with held[1].stdin or contextlib.nullcontext():
                pass
            held[1].wait(60)
            alone = _pss(held[0].pid)
        found.append(figure(f"one more engine, {name}", "MB", [(both - alone) / 1e6], "the first one", [alone / 1e6]))
    return found


def _pss(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:"))


@contextlib.contextmanager
def _holding(order: Json) -> Any:
    process = _start(order)
    try:
        _answer(process, order)
        yield process
    finally:
        if process.stdin is not None and not process.stdin.closed:
            process.stdin.close()
        process.wait(60)


def _start(order: Json) -> subprocess.Popen[str]:
    environment = {**os.environ, **OFFLINE, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "simulations.bench.inference"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if "-v" not in sys.argv else None,
        text=True,
        env=environment,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(order) + "\n")
    process.stdin.flush()
    return process


def _asked(order: Json) -> Json:
    process = _start(order)
    try:
        return _answer(process, order)
    finally:
        process.kill()
        process.communicate()


def _answer(process: subprocess.Popen[str], order: Json) -> Json:
    assert process.stdout is not None
    line = _line(process.stdout)
    if not line:
        process.kill()
        words = (process.communicate()[1] or "").strip()[-2000:]
        raise Stuck(f"{order.get('name', order['do'])} gave no answer: {words}")
    return json.loads(line)


def _line(stream: IO[str]) -> str:
    """The next line that is JSON: libraries print, too."""
    for line in stream:
        if line.startswith(("{", "[")):
            return line
    return ""


# In the contender's process


def _worker() -> None:
    order = json.loads(sys.stdin.readline())
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(1)
    answer: Json
    if order["do"] == "ask":
        answer = {"cuda": torch.cuda.is_available()}
    else:
        if order.get("make"):
            _make(order)
        contender = _contender(order)
        if order["do"] == "hold":
            contender(1)
            print("{}", file=out, flush=True)
            sys.stdin.read()
            os._exit(0)
        answer = _measured(order, contender)
    print(json.dumps(answer), file=out, flush=True)
    os._exit(0)


def _make(order: Json) -> None:
    """What all contenders load."""
    from simulations.bench.checkpoint import gguf_of, llama_of

    folder = Path(order["folder"])
    model = llama_of(folder / "model", **order["shape"])
    if not order["cuda"] and not order["quick"]:
        for kind in ("BF16", "Q8_0"):
            gguf_of(model, folder / f"{kind}.gguf", kind)


def _measured(order: Json, contender: Any) -> Json:
    told = {}
    contender(1)  # to warm up
    for streams in STREAMS:
        wall, cpu, first = [], [], []
        for _ in range(order["rounds"]):
            before, began = _cpu_s(), time.perf_counter()
            first_s = contender(streams)
            took, used = time.perf_counter() - began, _cpu_s() - before
            tokens = streams * _NEW
            wall.append(tokens / took)
            cpu.append(tokens / max(used, 1e-9))
            first.append(first_s * 1000)
        told[streams] = {"wall": wall, "cpu": cpu, "first_ms": first}
    return told


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


_asked_before = 0


def _prompts(streams: int) -> list[list[int]]:
    """New ones each time, so that nobody has seen their beginning."""
    global _asked_before
    _asked_before += 1
    return [
        [(7919 * (row + 100 * _asked_before) + 31 * place * place + 7) % 2900 + 10 for place in range(_PROMPT)]
        for row in range(streams)
    ]


def _contender(order: Json) -> Any:
    """A function from the number of streams to the seconds until the first token."""
    name, folder = order["name"], Path(order["folder"])
    if name.startswith("runtime"):
        return _runtime(name, folder, order["cuda"])
    transformers: Any = importlib.import_module("transformers")
    torch: Any = importlib.import_module("torch")
    device = "cuda" if order["cuda"] else "cpu"
    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder / "model"), dtype=torch.bfloat16).to(device)
    model.eval()
    settings = transformers.GenerationConfig(
        max_new_tokens=_NEW, min_new_tokens=_NEW, do_sample=False, pad_token_id=0, eos_token_id=1
    )
    if name == "transformers continuous batching":
        return _continuous(transformers, model, settings)

    def generate(streams: int) -> float:
        prompts, began, first = _prompts(streams), time.perf_counter(), []

        def seen(*_: Any) -> Any:
            first.append(time.perf_counter() - began)
            return torch.zeros(len(batch), dtype=torch.bool, device=device)

        batches = [prompts] if name.endswith("padded batch") else [[prompt] for prompt in prompts]
        for batch in batches:
            ids = torch.tensor(batch, device=device)
            with torch.inference_mode():
                model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=settings,
                    stopping_criteria=transformers.StoppingCriteriaList([seen]),
                )
        return first[0]

    return generate


def _continuous(transformers: Any, model: Any, settings: Any) -> Any:
    # Its own bounds would take most of the memory that is free.
    bounds = transformers.ContinuousBatchingConfig(
        num_blocks=16, max_batch_tokens=2048, max_requests_per_batch=max(STREAMS)
    )
    settings.eos_token_id = -1  # it knows no least length
    settings.min_new_tokens = None
    manager = model.init_continuous_batching(generation_config=settings, continuous_batching_config=bounds)
    manager.start()

    def generate(streams: int) -> float:
        began, first = time.perf_counter(), 0.0
        for prompt in _prompts(streams):
            manager.add_request(prompt, max_new_tokens=_NEW, streaming=True, eos_token_id=-1)
        over = 0
        while over < streams:
            result = manager.get_result(timeout=_ANSWER_S)
            if result is None:
                raise RuntimeError("continuous batching ended without an answer")
            first = first or time.perf_counter() - began
            if result.is_finished():
                if len(result.generated_tokens) != _NEW:
                    raise RuntimeError(f"it generated {len(result.generated_tokens)} tokens: {result.error}")
                over += 1
        return first

    return generate


def _runtime(name: str, folder: Path, cuda: bool) -> Any:
    from daemon.inference.runtimes import Generation, Piece, Spec, load

    _, runtime, *more = name.split()
    spec: dict[str, Any] = {"model": str(folder / "model"), "runtime": runtime, "device": "cuda" if cuda else "cpu"}
    spec |= {"rows": max(STREAMS), "threads": 1, "context": _PROMPT + _NEW}
    if runtime == "transformers":
        spec |= {"dtype": "bfloat16", "quantization": more[0] if more else "none"}
    elif runtime == "exact":
        spec["options"] = {"recipe": more[0]}
    else:
        spec["model"] = str(folder / f"{more[0].upper()}.gguf")
    engine = load(Spec(**spec))

    def generate(streams: int) -> float:
        began, first, count = time.perf_counter(), 0.0, 0
        for row, prompt in enumerate(_prompts(streams)):
            engine.submit(Generation(f"r{row}", tokens=tuple(prompt), max_new_tokens=_NEW, ignore_end=True))
        while engine.busy():
            pieces = [each for each in engine.step() if isinstance(each, Piece)]
            if pieces and not count:
                first = time.perf_counter() - began
            count += len(pieces)
        # A token that is half a character has no piece of its own at llama.cpp's.
        if not count or (runtime != "llama_cpp" and count != streams * _NEW):
            raise RuntimeError(f"{name} told {count} pieces for {streams * _NEW} tokens")
        return first

    return generate


if __name__ == "__main__":
    _worker()
