"""The engine: a worker process that loads one Hugging Face causal language model from a folder, offline, and generates.

Whatever the folder, the path is the same: the embedded model is loaded as any other. Weights are read from safetensors
only, never from pickle, and code that a model brings along is never run.

Greedy text does not depend on what else is in the batch as far as the arithmetic allows: rows are padded on the left,
masked, and put beside rows of about their length, but a kernel may round a sum otherwise for another batch, so two
tokens of nearly equal score could change places. Sampled text is drawn from a stream keyed by (seed, index of the
prompt, position), so neither the batch nor the order of work can change a draw.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.inference import through
from daemon.inference.memory import host_memory
from daemon.inference.sampling import COLDEST

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.update(OFFLINE)  # here, before any runtime is imported: they read it once

DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("none", "bnb-8bit", "bnb-4bit")
BATCH_ROWS_MAX = 32
BATCH_TOKENS_MAX = 8192
HEADER_BYTES_MAX = 100_000_000
"""Of a safetensors file, by its format."""
LINE_BYTES_MAX = 65_536
"""A longer line of a log is read up to here."""
TAIL_BYTES_MAX = 64 << 20
"""Of a log no more is read to find its last lines, unless there are very many of them."""

_PLACEHOLDER = re.compile(r"\{\{\s*line\s*\}\}")
_PART_OF_MODEL = (".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken")


class EngineError(Exception):
    """The model or the task cannot be used as it is. The message says what, where and what to do."""


@dataclass(frozen=True, slots=True)
class Output:
    text: str
    prompt_tokens: int
    generated_tokens: int
    finish: str  # stop: the model or a stop string ended it; length: max_new_tokens did


@dataclass(slots=True)
class Timing:
    load_ms: int
    first_token_ms: int | None = None
    generate_ms: int = 0
    generated_tokens: int = 0

    def as_json(self) -> dict[str, Any]:
        speed = self.generated_tokens * 1000 / self.generate_ms if self.generate_ms else None
        return {
            "load_ms": self.load_ms,
            "first_token_ms": self.first_token_ms,
            "generate_ms": self.generate_ms,
            "tokens_per_second": None if speed is None else round(speed, 1),
        }


class Engine:
    """One loaded model. `load` makes it; `facts` is what people may want to know of it."""

    def __init__(self, model: Any, tokenizer: Any, facts: dict[str, Any], load_ms: int) -> None:
        self._model, self._tokenizer = model, tokenizer
        self.facts = facts
        self.timing = Timing(load_ms)
        text = model.config.get_text_config()
        self.context: int | None = getattr(text, "max_position_embeddings", None)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        tokenizer.padding_side = "left"
        self._ends = end_tokens(model.generation_config, tokenizer)
        specials = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._specials = sorted(specials | set(tokenizer.all_special_tokens), key=len, reverse=True)

    @classmethod
    def load(
        cls,
        folder: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantization: str = "none",
        expected: str = "",
        threads: int = 0,
    ) -> Engine:
        """Load and warm up the model in `folder`, whose digest is `expected`, if one is. `threads`: 0 is torch's own
        choice. EngineError if that cannot be done."""
        began = time.monotonic()
        path = checked_folder(folder)
        torch, transformers = runtimes()
        _quieten(torch, transformers)
        if threads:
            torch.set_num_threads(threads)
        chosen = _device(torch, device)
        kind = _dtype(torch, dtype, chosen, path)
        check_room(torch, path, chosen, kind, quantization)
        digest = model_digest(path)
        check_digest(path, digest, expected)
        extra = _quantized(transformers, quantization, chosen, kind)
        only_here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        _, _, tokenizer = opened(folder)
        try:
            model, missing = _load_weights(transformers, path, kind, extra, only_here)
            if not extra:
                model.to(chosen)
        except Exception as error:
            raise EngineError(
                f"the model in {path} cannot be loaded on {chosen} as {_name(kind)}"
                f"{'' if quantization == 'none' else ', ' + quantization}: {_gist(error)}. If its files are"
                " damaged or incomplete, fetch them again; if the device or memory is the matter, choose another"
                " device, dtype or quantization in the job."
            ) from error
        if missing:
            some = ", ".join(sorted(missing)[:3])
            raise EngineError(
                f"the weights in {path} are incomplete or of another model: {len(missing)} tensors that its config.json"
                f" calls for are missing or of another shape ({some}{', ...' if len(missing) > 3 else ''}). Fetch the"
                " model's files again, all from one revision."
            )
        model.eval()
        facts = {
            "path": str(path),
            "digest": digest,
            "runtime": "transformers",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "architecture": type(model).__name__,
            "device": chosen,
            "dtype": _name(kind),
            "quantization": quantization,
            "parameters": model.num_parameters(),
            "threads": torch.get_num_threads(),
        }
        engine = cls(model, tokenizer, facts, 0)
        engine._warm_up()
        engine.timing = Timing(round((time.monotonic() - began) * 1000))
        return engine

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> list[Output]:
        """The answers, in the order of the prompts. EngineError, before anything is generated, if one does not fit."""
        encoded = [self.encode(prompt) for prompt in prompts]
        for index, tokens in enumerate(encoded):
            if self.context is not None and len(tokens) + max_new_tokens > self.context:
                which = "the prompt" if len(prompts) == 1 else f"prompt {index + 1} of {len(prompts)}"
                raise EngineError(
                    f"{which} is too long: {len(tokens)} tokens and {max_new_tokens} new ones are"
                    f" {len(tokens) + max_new_tokens}, but the model in {self.facts['path']} has a context of"
                    f" {self.context}. Shorten it, ask for fewer new tokens, or use a model with a longer context."
                )
        outputs: list[Output | None] = [None] * len(prompts)
        began = time.monotonic()
        for rows in _batches([len(tokens) for tokens in encoded], max_new_tokens):
            answers = self._batch(
                [encoded[row] for row in rows], rows, max_new_tokens, temperature, top_p, top_k, seed, stop
            )
            for row, output in zip(rows, answers, strict=True):
                outputs[row] = output
        self.timing.generate_ms += round((time.monotonic() - began) * 1000)
        done = [output for output in outputs if output is not None]
        self.timing.generated_tokens += sum(output.generated_tokens for output in done)
        return done

    def encode(self, prompt: str) -> list[int]:
        """The prompt as tokens, in the model's chat form where it has one."""
        if self._tokenizer.chat_template:
            turn = [{"role": "user", "content": prompt}]
            text = self._tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            tokens = self._tokenizer(prompt)["input_ids"]
        if not tokens:
            raise EngineError("the prompt is empty: there is nothing to go on from. Give the job a prompt.")
        return list(tokens)

    def about_line(self, prompt: str, line: str, max_new_tokens: int) -> tuple[str, int]:
        """The prompt with the line in it, and how many characters of the line's end had to go to fit the context.

        A line is data: what in it would speak to the model as its chat form does, such as the mark that ends a turn,
        is broken up.
        """
        for special in self._specials:
            line = line.replace(special, special[:1] + " " + special[1:])
        kept = len(line)
        while True:
            text = line[:kept].join(_PLACEHOLDER.split(prompt))
            over = 0 if self.context is None else len(self.encode(text)) + max_new_tokens - self.context
            if over <= 0 or kept == 0:
                return text, len(line) - kept
            kept = max(0, kept - max(over, kept // 8))

    def _warm_up(self) -> None:
        torch = runtimes()[0]

        tokens = torch.tensor([self.encode("warm-up")], device=self._model.device)
        try:
            with torch.inference_mode():
                logits = self._model(input_ids=tokens).logits
        except Exception as error:
            quantization = self.facts["quantization"]
            raise EngineError(
                f"the model in {self.facts['path']} is loaded but does not run on {self.facts['device']} as"
                f" {self.facts['dtype']}{'' if quantization == 'none' else ', ' + quantization}: {_gist(error)}."
                " Choose another dtype, device or quantization (bnb-4bit needs widths that are multiples of 64)."
            ) from error
        if not bool(torch.isfinite(logits).all()):
            raise EngineError(
                f"the model in {self.facts['path']} answers with numbers that are not numbers (NaN or infinite) as"
                f" {self.facts['dtype']}. Try dtype: float32 in the job; if that does not help, its weights are"
                " damaged: fetch them again."
            )

    def _batch(
        self,
        encoded: list[list[int]],
        indices: list[int],
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        top_k: int,
        seed: int,
        stop: Sequence[str],
    ) -> list[Output]:
        torch, transformers = runtimes()

        padded = self._tokenizer.pad({"input_ids": encoded}, return_tensors="pt").to(self._model.device)
        width = padded["input_ids"].shape[1]
        began = time.monotonic()

        def first_token(*_: Any) -> None:
            if self.timing.first_token_ms is None:
                self.timing.first_token_ms = round((time.monotonic() - began) * 1000)

        watch = _Stop(self._tokenizer, width, tuple(stop), first_token)
        draw = [_Draw(indices, width, temperature, top_p, top_k, seed)] if temperature >= COLDEST else []
        with torch.inference_mode():
            whole = self._model.generate(
                input_ids=padded["input_ids"],
                attention_mask=padded["attention_mask"],
                # A model's own generation_config.json may ask for sampling or penalties: the job says what is wanted.
                generation_config=transformers.GenerationConfig(
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    eos_token_id=self._ends or None,
                    pad_token_id=self._tokenizer.pad_token_id,
                ),
                logits_processor=transformers.LogitsProcessorList(draw),
                stopping_criteria=transformers.StoppingCriteriaList([watch]),
            )
        return [self._output(tokens, row[width:].tolist(), stop) for tokens, row in zip(encoded, whole, strict=True)]

    def _output(self, prompt: list[int], new: list[int], stop: Sequence[str]) -> Output:
        finish, ends = "length", [k for k, token in enumerate(new) if token in self._ends]
        count = len(new)
        if ends:
            finish, count = "stop", ends[0] + 1
        text: str = self._tokenizer.decode(new[:count], skip_special_tokens=True)
        places = [place for one in stop if (place := text.find(one)) >= 0]
        if places:
            text, finish = text[: min(places)], "stop"
            if not ends:
                count = _tokens_until(self._tokenizer, new, stop)
        return Output(text, len(prompt), count, finish)


class _Stop:
    """A row is done when its text holds a stop string."""

    def __init__(self, tokenizer: Any, width: int, stop: tuple[str, ...], first_token: Any) -> None:
        self._tokenizer, self._width, self._stop, self._first_token = tokenizer, width, stop, first_token
        self._longest = max((len(one.encode()) for one in stop), default=0)

    def __call__(self, tokens: Any, scores: Any, **_: Any) -> Any:
        torch = runtimes()[0]

        self._first_token()
        done = [False] * tokens.shape[0]
        if self._stop:
            # No token is shorter than a byte, so this many hold any stop string that the newest one completes.
            tail = tokens[:, max(self._width, tokens.shape[1] - self._longest - 1) :]
            texts = self._tokenizer.batch_decode(tail, skip_special_tokens=True)
            done = [any(one in text for one in self._stop) for text in texts]
        return torch.tensor(done, device=tokens.device)


class _Draw:
    """Chooses each row's next token by a number that hangs on the seed, the prompt's index and the place alone."""

    def __init__(self, indices: list[int], width: int, temperature: float, top_p: float, top_k: int, seed: int) -> None:
        self._indices, self._width, self._seed = indices, width, seed
        self._temperature, self._top_p, self._top_k = temperature, top_p, top_k

    def __call__(self, tokens: Any, scores: Any) -> Any:
        torch = runtimes()[0]

        place = tokens.shape[1] - self._width
        chosen = [
            self._choose(row.double().cpu() / self._temperature, uniform(self._seed, index, place))
            for row, index in zip(scores, self._indices, strict=True)
        ]
        only = torch.full_like(scores, float("-inf"))
        only[torch.arange(len(chosen)), torch.tensor(chosen)] = 0.0
        return only

    def _choose(self, scores: Any, at: float) -> int:
        torch = runtimes()[0]

        shares, order = torch.sort(torch.softmax(scores, dim=-1), descending=True, stable=True)
        if self._top_k:
            shares = shares[: self._top_k]
        below = torch.cumsum(shares, dim=-1)
        if self._top_p < 1:
            kept = int((below - shares < self._top_p * below[-1]).sum())
            below = below[: max(kept, 1)]
        return int(order[min(int(torch.searchsorted(below, at * float(below[-1]), right=True)), len(below) - 1)])


def uniform(seed: int, index: int, place: int) -> float:
    """A number in [0, 1) for this draw and no other."""
    return int.from_bytes(hashlib.sha256(f"{seed} {index} {place}".encode()).digest()[:8], "big") / 2**64


def model_digest(folder: Path) -> str:
    """SHA-256 over the names and the contents of the files that make the model."""
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.suffix in _PART_OF_MODEL and not path.name.startswith(".") and path.is_file():
            with path.open("rb") as file:
                whole.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def _as_found(folder: str) -> tuple[tuple[str, int, int, int], ...]:
    """What tells that somebody has put another model, or other files of it, into the folder; () if it is not there."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(_PART_OF_MODEL) and not entry.name.startswith("."):
                status = entry.stat()
                found.append((entry.name, status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(sorted(found))


def last_lines(paths: Sequence[str], count: int) -> tuple[str, list[str]]:
    """The first of `paths` that can be read, and its last `count` lines that hold anything."""
    refused = []
    for path in paths:
        try:
            with open(path, "rb") as file:
                return path, _tail(file, count)
        except OSError as error:
            refused.append(f"{path} ({error.strerror or error})")
    raise EngineError(
        f"none of the files to take lines from can be read: {', '.join(refused)}. Name another file under lines.paths,"
        " or give this user the right to read one (on many systems, the group adm)."
    )


def _tail(file: Any, count: int) -> list[str]:
    """From the end, a block at a time: a log may be longer than memory, and so may a line of it."""
    place, data = file.seek(0, os.SEEK_END), b""
    enough = max(TAIL_BYTES_MAX, count * 4096)
    while True:
        lines = [line for line in data.split(b"\n")[1 if place else 0 :] if line.strip()]
        if place == 0 or len(lines) >= count or len(data) >= enough:
            texts = [line[:LINE_BYTES_MAX].decode("utf-8", "replace").rstrip("\r") for line in lines]
            return texts[-count:]
        step = min(place, max(65_536, len(data)))
        place = file.seek(place - step)
        data = file.read(step) + data


def _batches(lengths: Sequence[int], max_new_tokens: int) -> list[list[int]]:
    """Indices in batches of rows of about one length, the longest first: what does not fit shows at once."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        last = batches[-1] if batches else []
        width = lengths[last[0]] + max_new_tokens if last else 0
        if last and len(last) < BATCH_ROWS_MAX and width * (len(last) + 1) <= BATCH_TOKENS_MAX:
            last.append(row)
        else:
            batches.append([row])
    return batches


def _tokens_until(tokenizer: Any, new: list[int], stop: Sequence[str]) -> int:
    for count in range(1, len(new) + 1):
        text = tokenizer.decode(new[:count], skip_special_tokens=True)
        if any(one in text for one in stop):
            return count
    return len(new)


def end_tokens(generation: Any, tokenizer: Any) -> list[int]:
    ends: list[int] = []
    for value in (getattr(generation, "eos_token_id", None), tokenizer.eos_token_id):
        ends += [value] if isinstance(value, int) else list(value or ())
    return sorted(set(ends))


def runtimes() -> tuple[Any, Any]:
    try:
        torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    except ImportError as error:
        raise EngineError(
            f"this installation cannot run models: {error}. Install Hermes with its `inference` extra"
            " (pip install 'hermesd[inference]')."
        ) from error
    return torch, transformers


def _quieten(torch: Any, transformers: Any) -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says the same thing for every layer
    if "OMP_NUM_THREADS" not in os.environ:
        # Engines and jobs share a small machine: two threads that wait for one core are slower than one.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // 4))


def checked_folder(folder: str) -> Path:
    path = Path(folder)
    if not path.is_dir():
        what = "is a file; give the folder it is in" if path.exists() else "does not exist"
        raise EngineError(
            f"the model folder {path} {what}. Put a Hugging Face model there (config.json, *.safetensors,"
            " tokenizer.json), or name another in the job: `model: hermes-mini` comes with Hermes."
        )
    try:
        names = sorted(entry.name for entry in path.iterdir())
        config = json.loads((path / "config.json").read_bytes())
    except FileNotFoundError:
        hint = (
            "it holds GGUF files, which this runtime does not read"
            if any(n.endswith(".gguf") for n in names)
            else (f"it holds {', '.join(names[:5]) or 'nothing'}")
        )
        raise EngineError(
            f"{path} is no model folder: there is no config.json in it ({hint}). Point the job at the folder that has"
            " config.json, *.safetensors and tokenizer.json."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(f"{path / 'config.json'} cannot be read: {error}. Fetch the model's files again.") from error
    if not isinstance(config, dict):
        raise EngineError(f"{path / 'config.json'} is not a JSON object. Fetch the model's files again.")
    if not any(name.endswith(".safetensors") for name in names):
        pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        why = (
            f"only {pickled[0]}, a pickle, which can run code when it is read and is never loaded"
            if pickled
            else f"only {', '.join(names[:5])}"
        )
        raise EngineError(
            f"there are no *.safetensors weights in {path}: {why}. Get the model's safetensors, or convert it where"
            " you trust it (model.save_pretrained writes them)."
        )
    return path


def opened(folder: str) -> tuple[Path, Any, Any]:
    """The model folder, its configuration and its tokenizer, without the weights. EngineError."""
    path = checked_folder(folder)
    torch, transformers = runtimes()
    _quieten(torch, transformers)
    only_here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(str(path), **only_here)
    except Exception as error:
        raise EngineError(
            f"transformers {transformers.__version__} cannot use {path / 'config.json'}: {_gist(error)}. If the"
            " model brings its own code, it is not run here; a newer transformers may know the model, or fetch its"
            " files again."
        ) from error
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(path), **only_here)
    except Exception as error:
        raise EngineError(
            f"the tokenizer of the model in {path} cannot be read: {_gist(error)}. A model folder needs its"
            " tokenizer.json (or tokenizer.model) and tokenizer_config.json; copy them from where the"
            " model came from."
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return path, config, tokenizer


def tensors(folder: Path) -> Any:
    """A function from a tensor's name to the tensor. EngineError where it is not there and no `missing` is given."""
    safetensors: Any = importlib.import_module("safetensors")
    files = {file: safetensors_header(file) for file in weight_files(folder)}
    where = {name: file for file, header in files.items() for name in header if name != "__metadata__"}
    opened_files = {file: safetensors.safe_open(str(file), framework="pt") for file in files}

    def read(name: str, **missing: Any) -> Any:
        if name in where:
            return opened_files[where[name]].get_tensor(name)
        if missing:
            return missing["missing"]
        raise EngineError(
            f"the weights in {folder} are incomplete or of another model: there is no {name}. Fetch the model's files"
            " again, all from one revision."
        )

    return read


def _device(torch: Any, asked: str) -> str:
    cuda = torch.cuda.is_available()
    mps = getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available()
    if asked == "auto":
        if cuda:
            free = [torch.cuda.mem_get_info(k)[0] for k in range(torch.cuda.device_count())]
            return f"cuda:{free.index(max(free))}"
        return "mps" if mps else "cpu"
    if asked.startswith("cuda"):
        count = torch.cuda.device_count() if cuda else 0
        number = int(asked.partition(":")[2] or 0)
        if number >= count:
            have = f"it has {count}" if count else f"torch {torch.__version__} sees none here"
            raise EngineError(
                f"there is no device {asked}: {have}. Use device: auto or cpu, or install a CUDA build of torch."
            )
        return f"cuda:{number}"
    if asked == "mps" and not mps:
        raise EngineError("there is no device mps: it is Apple's, and torch sees none here. Use device: auto or cpu.")
    if asked not in ("cpu", "mps"):
        raise EngineError(f"device {asked!r} is none of auto, cpu, cuda, cuda:N, mps.")
    return asked


def _dtype(torch: Any, asked: str, device: str, path: Path) -> Any:
    if asked != "auto":
        if asked not in DTYPES:
            raise EngineError(f"dtype {asked!r} is none of auto, {', '.join(DTYPES)}.")
        return getattr(torch, asked)
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device == "mps":
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float16
    config = json.loads((path / "config.json").read_bytes())
    saved = config.get("dtype") or config.get("torch_dtype")
    native = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
    return torch.bfloat16 if saved == "bfloat16" and native else torch.float32


def dtype_here(folder: Path) -> str:
    """The dtype that this machine would serve the model in. EngineError without torch."""
    torch = runtimes()[0]
    return _name(_dtype(torch, "auto", _device(torch, "auto"), folder))


def check_digest(path: Path, digest: str, wanted: str) -> None:
    """EngineError if the model is not the one that was registered, or added to the store."""
    from daemon.inference import store

    try:
        added = store.expected(path)
    except store.StoreError as error:
        raise EngineError(f"{error}: {error.do}.") from error
    for right, did in ((wanted, "registered"), (added, "added to the store of models")):
        if right and right != digest:
            raise EngineError(
                f"the model in {path} is not the one that was {did}: its digest is {digest} and should be {right}."
                " Find out what changed it (`hermesd models verify`), and add or register it anew."
            )


def check_room(torch: Any, path: Path, device: str, kind: Any, quantization: str) -> None:
    """Refuse, with the figures, what would not fit, before it is tried."""
    count = 0
    for file in weight_files(path):
        for name, tensor in safetensors_header(file).items():
            if name != "__metadata__":
                size = 1
                for extent in tensor["shape"]:
                    size *= extent
                count += size
    needed = count * {"none": kind.itemsize, "bnb-8bit": 1, "bnb-4bit": 0.5}[quantization]
    free = free_bytes(torch, device)
    if needed > free:
        raise EngineError(
            f"the model in {path} does not fit: {count / 1e9:.1f} billion parameters as {_name(kind)}"
            f"{'' if quantization == 'none' else ', ' + quantization} need {needed / 2**30:.1f} GiB, and {device} has"
            f" {free / 2**30:.1f} GiB free. Stop something, choose a smaller dtype or quantization: bnb-4bit, or a"
            " smaller model."
        )


def free_bytes(torch: Any, device: str) -> int:
    """What the device has free for one more model or its keys and values."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    return host_memory()[1]


def weight_files(path: Path) -> list[Path]:
    """The files that the runtime will read: some folders hold the same weights a second time under another name."""
    index = path / "model.safetensors.index.json"
    if not index.exists():
        single = path / "model.safetensors"
        return [single] if single.exists() else sorted(path.glob("*.safetensors"))
    try:
        files = [path / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"{index} cannot be read: {_gist(error)}. Fetch the model's files again.") from error
    if absent := [file.name for file in files if not file.is_file()]:
        raise EngineError(
            f"{len(absent)} of the {len(files)} weight files that {index} names are not there ({absent[0]}"
            f"{', ...' if len(absent) > 1 else ''}). Fetch the rest of the model."
        )
    return files


def safetensors_header(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(size - 8, HEADER_BYTES_MAX):
                raise ValueError(f"its header claims {length} bytes of {size}")
            header = json.loads(stream.read(length))
        end = max((tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"), default=0)
        if 8 + length + end != size:
            raise ValueError(f"it should be {8 + length + end} bytes long and is {size}")
        return dict(header)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EngineError(
            f"the weights {file} are damaged or cut short: {error}. Fetch the model's files again."
        ) from error


def _quantized(transformers: Any, quantization: str, device: str, kind: Any) -> dict[str, Any]:
    if quantization == "none":
        return {}
    if quantization not in QUANTIZATIONS:
        raise EngineError(f"quantization {quantization!r} is none of {', '.join(QUANTIZATIONS)}.")
    if device == "mps":
        raise EngineError(
            f"quantization {quantization} is not possible on mps: bitsandbytes is for CUDA and CPU. Use"
            " quantization: none with a smaller model, or device: cpu."
        )
    try:
        importlib.import_module("accelerate")
        importlib.import_module("bitsandbytes")
    except Exception as error:  # bitsandbytes fails in its own ways where its library does not load
        raise EngineError(
            f"quantization {quantization} is not possible here: {_gist(error)}. Install bitsandbytes and"
            " accelerate (the `inference` extra has them), or use quantization: none."
        ) from error
    if quantization == "bnb-8bit":
        config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=kind
        )
    return {"quantization_config": config, "device_map": {"": device}}


def _load_weights(
    transformers: Any, path: Path, kind: Any, extra: dict[str, Any], only_here: dict[str, Any]
) -> tuple[Any, set[str]]:
    """The model, and the tensors it lacks: the runtime would fill them with random numbers and say nothing."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        str(path),
        dtype=kind,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **extra,
        **only_here,
    )
    mismatched = {str(entry[0]) for entry in info.get("mismatched_keys") or ()}
    return model, set(info.get("missing_keys") or ()) | mismatched


def _name(kind: Any) -> str:
    return str(kind).removeprefix("torch.")


def _gist(error: BaseException) -> str:
    text = " ".join(str(error).split())
    short = text.rstrip(".") if len(text) <= 240 else text[:240].rsplit(" ", 1)[0] + " (...)"
    return f"{type(error).__name__}: {short}" if text else type(error).__name__


class InferenceTasks:
    """Performs InferenceTasks: loads the model at the first one and keeps it."""

    def __init__(self, tell: Any) -> None:
        self._tell = tell
        self._key: tuple[object, ...] = ()
        self._engine: Engine | None = None

    def perform(self, order: dict[str, Any]) -> Any:
        """The result of one attempt; its text goes to stdout. Errors end it with a paragraph on stderr and status 1."""
        try:
            return self._performed(order["task"])
        except EngineError as error:
            raise SystemExit(f"hermesd: {error}") from None

    def _performed(self, task: dict[str, Any]) -> dict[str, Any]:
        if self._engine is None and task.get("gateway") and (told := through.generated(task)) is not None:
            print(told["outputs"][0]["text"], flush=True)
            self._tell("facts", state="gateway")
            return told
        engine = self._ready(task)
        engine.timing = Timing(engine.timing.load_ms)
        asked = {name: task[name] for name in ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop")}
        source, lines = last_lines(task["lines"], task["last"]) if task["lines"] else (None, [])
        if source is None:
            prompts = [(str(task["prompt"]), 0)]
        else:
            prompts = [engine.about_line(task["prompt"], line, task["max_new_tokens"]) for line in lines]
        outputs = []
        for index, answer in enumerate(engine.generate([prompt for prompt, _ in prompts], **asked)):
            output: dict[str, Any] = {
                "text": answer.text,
                "prompt_tokens": answer.prompt_tokens,
                "generated_tokens": answer.generated_tokens,
                "finish": answer.finish,
            }
            if source is None:
                print(answer.text)
            else:
                output["line"] = lines[index]
                if prompts[index][1]:
                    output["cut_characters"] = prompts[index][1]
                print(" ".join(answer.text.split()), lines[index], sep="\t")
            outputs.append(output)
        sys.stdout.flush()
        usage = {name: sum(output[name] for output in outputs) for name in ("prompt_tokens", "generated_tokens")}
        result = {"outputs": outputs, "usage": usage, "model": engine.facts, "timing": engine.timing.as_json()}
        return result if source is None else {**result, "source": source}

    def _ready(self, task: dict[str, Any]) -> Engine:
        key = (task["model"], task["device"], task["dtype"], task["quantization"], _as_found(task["model"]))
        if self._engine is None or self._key != key:
            self._engine = None  # the old one goes before the new one comes
            self._tell("facts", state="loading")
            try:
                self._engine = Engine.load(
                    task["model"], device=task["device"], dtype=task["dtype"], quantization=task["quantization"]
                )
            except EngineError:
                self._tell("facts", state="failed")
                raise
            self._key = key
            about = {name: self._engine.facts[name] for name in ("device", "dtype", "digest", "parameters")}
            self._tell("facts", state="ready", load_ms=self._engine.timing.load_ms, **about)
        return self._engine


def main(channel: int) -> None:
    from daemon.workers.child import Worker

    worker = Worker(channel)
    worker.serve(InferenceTasks(worker.tell).perform)
