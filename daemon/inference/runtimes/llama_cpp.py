"""GGUF models by llama.cpp, in this process (the wheel `xllamacpp`).

Its server thread batches what runs at once; every choice of every request is a call of its own, in a thread that puts
what it is told into the queue that `step` empties.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.inference.engine import EngineError, check_digest
from daemon.inference.grammar import written
from daemon.inference.memory import host_memory
from daemon.inference.runtimes import Done, Failed, Generation, Impossible, Json, Piece, Refused, Said, Spec, Top

_WAIT_S = 0.05
_CACHE_SHARE = 4
_SOCKET_PATH_MAX = 90
"""A socket's whole path may have 107 bytes on Linux, 103 on macOS."""
_DEVICES = ("auto", "cpu", "cuda", "mps")


def load(spec: Spec) -> LlamaCpp:
    try:
        library: Any = importlib.import_module("xllamacpp")
        gguf: Any = importlib.import_module("gguf")
    except ImportError as error:
        raise Impossible(f"llama.cpp is not installed: {error}.", "Install the `inference` extra of Hermes.") from error
    file = Path(spec.model)
    if not file.is_file():
        raise EngineError(
            f"there is no GGUF file {file}. The runtime llama_cpp takes one file, such as model-Q4_K_M.gguf."
        )
    if spec.options:
        raise EngineError(f"the runtime llama_cpp has no option {sorted(spec.options)[0]!r}; it has none.")
    if spec.quantization != "none" or spec.dtype != "auto":
        raise EngineError("a GGUF file has its own quantization: dtype is auto and quantization is none.")
    if spec.device.partition(":")[0] not in _DEVICES:
        raise EngineError(f"device {spec.device!r} is none of auto, cpu, cuda, cuda:N, mps.")
    try:
        about = About.of(gguf.GGUFReader(file))
    except Exception as error:  # its reader fails in its own ways on a damaged file
        raise EngineError(f"the GGUF file {file} is damaged or cut short: {error}. Fetch it again.") from error
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    check_digest(file, digest, spec.digest)
    free = host_memory()[1]
    if file.stat().st_size > free:
        raise EngineError(
            f"the model {file} does not fit: it has {file.stat().st_size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB"
            " are free. Stop something, or take a smaller quantization of it."
        )
    return LlamaCpp(library, spec, file, about, digest)


@dataclass(frozen=True, slots=True)
class About:
    architecture: str
    context: int
    token_bytes: int
    """Of keys and values of one token, in float16."""
    parameters: int
    kind: str
    chats: bool

    @classmethod
    def of(cls, reader: Any) -> About:
        def value(name: str, default: Any = None) -> Any:
            field = reader.get_field(name)
            return default if field is None else field.contents()

        arch = value("general.architecture")
        heads = value(f"{arch}.attention.head_count", 1)
        kv_heads = value(f"{arch}.attention.head_count_kv", heads)
        if isinstance(kv_heads, list):
            kv_heads = max(kv_heads)
        if isinstance(heads, list):
            heads = max(heads)
        width = value(f"{arch}.attention.key_length", value(f"{arch}.embedding_length", 0) // max(heads, 1))
        kinds: dict[str, int] = {}
        for tensor in reader.tensors:
            kinds[tensor.tensor_type.name] = kinds.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
        return cls(
            architecture=str(arch),
            context=int(value(f"{arch}.context_length", 2048)),
            token_bytes=int(4 * value(f"{arch}.block_count", 1) * kv_heads * width),
            parameters=sum(kinds.values()),
            kind=max(kinds, key=lambda name: kinds[name]),
            chats=bool(value("tokenizer.chat_template")),
        )


@dataclass(slots=True, eq=False)
class _Run:
    request: Generation
    choice: int
    order: int
    body: dict[str, Json]
    chat: bool
    generated: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    """Set: it is to say no more."""


class LlamaCpp:
    """A Runtime over llama.cpp's own server."""

    def __init__(self, library: Any, spec: Spec, file: Path, about: About, digest: str) -> None:
        self._about, self._rows = about, spec.rows
        context = min(spec.context or about.context, about.context)
        budget = spec.cache_mb << 20 or host_memory()[1] // _CACHE_SHARE
        cells = min(context * spec.rows, max(budget // max(about.token_bytes, 1), 1))
        context = min(context, cells)
        threads = spec.threads or int(os.environ.get("OMP_NUM_THREADS", 0)) or max(1, (os.cpu_count() or 1) // 4)
        self._folder = tempfile.mkdtemp(prefix="hermes-")  # mode 0700
        if len(self._folder) > _SOCKET_PATH_MAX:
            os.rmdir(self._folder)
            self._folder = tempfile.mkdtemp(prefix="hermes-", dir="/dev/shm" if os.path.isdir("/dev/shm") else "/tmp")
        wanted = library.CommonParams()
        wanted.model.path = str(file)
        wanted.n_ctx, wanted.n_parallel, wanted.kv_unified = cells, spec.rows, True
        wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = threads
        wanted.n_gpu_layers = 0 if spec.device == "cpu" else -1
        if ":" in spec.device:
            wanted.main_gpu = int(spec.device.partition(":")[2])
        wanted.warmup, wanted.verbosity, wanted.offline = False, -1, True
        wanted.cache_ram_mib, wanted.cache_prompt = 0, spec.prefix_cache
        wanted.force_pure_content_parser = True
        wanted.embedding, wanted.pooling_type = True, library.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        # Its server always listens. Here it does so on a socket in a folder of ours, which is gone at once.
        wanted.hostnames = [str(Path(self._folder, "only.sock"))]
        try:
            self._server = library.Server(wanted)
        except Exception as error:
            raise EngineError(
                f"llama.cpp cannot load {file}: {error}. If the file is whole, its architecture ({about.architecture})"
                " may be newer than this xllamacpp."
            ) from error
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
        # A first answer. It must also be there before `close`: a server that is told to end before it has begun to turn
        # waits for itself for ever.
        first = self._server.handle_completions({"prompt": [0], "n_predict": 1})
        if "error" in first:
            raise EngineError(
                f"the model {file} is loaded but does not answer: {first['error'].get('message', first)}."
            )
        self._file_bytes, self._cells = file.stat().st_size, cells
        self._waiting: list[_Run] = []
        self._running: set[_Run] = set()
        self._said: queue.Queue[tuple[_Run, Json]] = queue.Queue()
        self._order = 0
        self._now: list[Said] = []
        self.facts: dict[str, Json] = {
            "path": str(file),
            "digest": digest,
            "runtime": "llama_cpp",
            "versions": {"xllamacpp": importlib.metadata.version("xllamacpp")},
            "architecture": about.architecture,
            "device": "cpu" if spec.device in ("auto", "cpu") else spec.device,
            "dtype": about.kind,
            "quantization": about.kind,
            "parameters": about.parameters,
            "context": context,
            "rows": spec.rows,
            "threads": threads,
            "determinism": "",
        }

    def submit(self, request: Generation) -> None:
        request.check()
        body = self._body(request)
        for choice in range(request.n):
            # A stream of its own for each choice; llama.cpp takes the largest number to mean "any".
            seed = hashlib.sha256(f"{request.seed} {choice}".encode()).digest()
            seeded = {**body, "seed": int.from_bytes(seed[:4], "big") % 0xFFFFFFFE}
            self._order += 1
            self._waiting.append(_Run(request, choice, self._order, seeded, request.messages is not None))
        self._waiting.sort(key=lambda run: (-run.request.priority, run.order))

    def cancel(self, id: str) -> None:
        for run in [*self._waiting, *self._running]:
            if run.request.id == id:
                self._now.append(Done(id, run.choice, "cancelled", 0, run.generated))
                self._leave(run)

    def busy(self) -> bool:
        return bool(self._waiting or self._running or self._now)

    def step(self) -> list[Said]:
        while self._waiting and len(self._running) < self._rows:
            run = self._waiting.pop(0)
            self._running.add(run)
            threading.Thread(target=self._ask, args=(run,), daemon=True).start()
        said, self._now = self._now, []
        until = time.monotonic() + _WAIT_S
        while self._running:
            left = 0.0 if said else until - time.monotonic()
            try:
                run, chunk = self._said.get(timeout=left) if left > 0 else self._said.get_nowait()
            except queue.Empty:
                break
            if run in self._running:
                said += self._heard(run, chunk)
        return said

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        answer = self._server.handle_embeddings({"input": list(texts), "encoding_format": "float"})
        if "error" in answer:
            raise Refused("input", str(answer["error"].get("message", answer["error"])))
        return [[float(each) for each in row["embedding"]] for row in answer["data"]]

    def tokenize(self, request: Generation) -> list[int]:
        if request.tokens is not None:
            return list(request.tokens)
        raise Refused("prompt", "the runtime llama_cpp does not tell the tokens of a text")

    def memory_bytes(self) -> int:
        return self._file_bytes + self._cells * self._about.token_bytes

    def close(self) -> None:
        for run in [*self._waiting, *self._running]:
            self._leave(run)
        self._server = None

    def _body(self, request: Generation) -> dict[str, Json]:
        body: dict[str, Json] = {
            "stream": True, "stream_options": {"include_usage": True},
            "n_predict": request.max_new_tokens, "max_tokens": request.max_new_tokens,
            "samplers": ["penalties", "temperature", "top_k", "top_p"] if request.temperature else ["penalties"],
            "temperature": request.temperature, "top_p": request.top_p, "top_k": request.top_k,
            "repeat_penalty": request.repetition_penalty, "repeat_last_n": self.facts["context"],
            "stop": list(request.stop), "ignore_eos": request.ignore_end, "cache_prompt": True,
        }  # fmt: skip
        if request.temperature == 0:
            body["samplers"], body["top_k"] = ["penalties", "top_k"], 1
        if request.logprobs is not None:
            body |= {"n_probs": max(request.logprobs, 1), "logprobs": True, "top_logprobs": max(request.logprobs, 1)}
        if request.grammar is not None:
            body["grammar"] = "%llguidance {}\n" + _lark(request.grammar)
        if request.so_far:
            raise Refused("so_far", "the runtime llama_cpp cannot go on with an answer that another engine began")
        if request.messages is not None:
            if not self._about.chats:
                raise Refused("messages", "this model has no chat template: it completes a prompt, and does not chat")
            body["messages"] = [dict(message) for message in request.messages]
            if request.tools:
                body["tools"] = [dict(tool) for tool in request.tools]
        else:
            body["prompt"] = list(request.tokens) if request.tokens is not None else request.prompt
            if not body["prompt"]:
                raise Refused("prompt", "the prompt is empty: there is nothing to go on from")
        return body

    def _ask(self, run: _Run) -> None:
        def told(chunk: Json) -> bool:
            self._said.put((run, chunk))
            return run.over.is_set()

        server = self._server
        try:
            ask = server.handle_chat_completions if run.chat else server.handle_completions
            ask(run.body, told)
        except Exception as error:
            self._said.put((run, {"error": {"type": "server_error", "message": str(error)}}))
        self._said.put((run, None))

    def _heard(self, run: _Run, chunk: Json) -> list[Said]:
        id = run.request.id
        if chunk is None:  # the call is over and did not say so
            chunk = {"error": {"type": "server_error", "message": "llama.cpp ended the answer without a reason"}}
        if "error" in chunk:
            error = chunk["error"]
            refused = error.get("type") in ("exceed_context_size_error", "invalid_request_error")
            for other in [each for each in [*self._waiting, *self._running] if each.request.id == id]:
                self._leave(other)
            where = ("messages" if run.chat else "prompt") if refused else ""
            return [Failed(id, "refused" if refused else "internal", str(error.get("message", error)), where)]
        said: list[Said] = []
        for part in chunk.get("choices", ()):
            text = part.get("text") or (part.get("delta") or {}).get("content") or ""
            logs = (part.get("logprobs") or {}).get("content") or []
            if logs:
                said += [self._piece(run, text if place == 0 else "", log) for place, log in enumerate(logs)]
            elif text:
                said.append(Piece(id, run.choice, -1, text))
            if part.get("finish_reason"):
                run.body["finish"] = part["finish_reason"]
        run.generated += len(said)
        usage = chunk.get("usage")
        if "finish" in run.body and usage is not None:
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            finish = "length" if run.body["finish"] == "length" else "stop"
            counts = (usage["prompt_tokens"], usage["completion_tokens"], cached)
            said.append(Done(id, run.choice, finish, *counts))
            self._leave(run)
        return said

    def _piece(self, run: _Run, text: str, log: Json) -> Piece:
        top = [Top(each["id"], each["token"], each["logprob"]) for each in log.get("top_logprobs", ())]
        top = top[: run.request.logprobs or 0]
        return Piece(run.request.id, run.choice, log["id"], text, log["logprob"], tuple(top), log["token"])

    def _leave(self, run: _Run) -> None:
        run.over.set()
        self._running.discard(run)
        if run in self._waiting:
            self._waiting.remove(run)


def _lark(grammar: Json) -> str:
    """The grammar as llama.cpp takes it, which is the same library's."""
    import json

    written(grammar)  # refuses what cannot be kept to
    kind, rule = next(iter(grammar.items()))
    if kind == "regex":
        return "start: /" + str(rule).replace("/", "\\/") + "/"
    if kind == "lark":
        return str(rule)
    schema = {"type": "object"} if kind == "json_object" else rule
    spaced = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    schema = {**schema, "x-guidance": spaced} if isinstance(schema, dict) else schema
    return "start: %json " + json.dumps(schema)
