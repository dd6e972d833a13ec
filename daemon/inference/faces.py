"""The engines from plain Python, without a daemon and without asyncio.

    manager = PortableMultiInstanceManager()
    manager.initialize("hermes-mini", num_instances=2, cache_dir="models")
    text = manager.generate(0, "Triage this log line: link down", temperature=0)
    manager.shutdown()

    with LLMClient(backend="ollama", model_name="llama3.2") as client:
        text = client.generate("Say hello.", max_tokens=32)

Both are thin faces over an `EnginePool` in a thread. The models' processes end with `shutdown`, or with this process.
Nothing is fetched: a model is a folder (or a GGUF file) that is there.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import secrets
import tempfile
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from daemon.inference.failures import BadRequest
from daemon.inference.hermes_mini import FOLDER as HERMES_MINI
from daemon.inference.pool import EnginePool
from daemon.inference.runtimes import REMOTE, RUNTIMES, Generation, Piece, Spec
from daemon.inference.views import ModelSpec

T = TypeVar("T")

BACKENDS = {"portable_hf": "transformers", **{name: name for name in RUNTIMES}}
OLLAMA = "http://127.0.0.1:11434"


class _Engines:
    """A pool in a thread of its own."""

    def __init__(self, *models: ModelSpec, hermetic: bool = False) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hermes-engines-")
        self._loop = asyncio.new_event_loop()
        # Not to be waited for at the end of the program: its engines end with the process.
        self._thread = threading.Thread(target=self._loop.run_forever, name="hermes-engines", daemon=True)
        self._thread.start()
        self._pool = EnginePool(Path(self._folder.name), hermetic=hermetic)
        self._plain: set[str] = set()
        try:
            self.run(self._begin(models))
        except BaseException:
            self.close()
            raise

    async def _begin(self, models: Sequence[ModelSpec]) -> None:
        await self._pool.start()
        for model in models:
            self._pool.register(model)
        await asyncio.gather(*(self._pool.load(model.name) for model in models))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.begin(work).result()

    def begin(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def text(self, model: str, prompt: str, **how: Any) -> str:
        """The answer to the prompt, put through the model's chat form where it has one."""
        if model not in self._plain:
            try:
                return await self._text(model, messages=({"role": "user", "content": prompt},), **how)
            except BadRequest as bad:
                if bad.parameter != "messages":
                    raise
                self._plain.add(model)
        return await self._text(model, prompt=prompt, **how)

    async def _text(self, model: str, **fields: Any) -> str:
        request = Generation(id=secrets.token_hex(8), **fields)
        return "".join([one.text async for one in self._pool.generate(model, request) if isinstance(one, Piece)])

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self.run(self._pool.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._folder.cleanup()


class PortableMultiInstanceManager:
    """Several engines of one model, each with its number."""

    def __init__(self) -> None:
        self._engines: _Engines | None = None
        self._count = 0

    def initialize(
        self,
        model_name: str,
        num_instances: int,
        cache_dir: str | os.PathLike[str],
        device_map: str = "auto",
        use_bnb: bool = False,
    ) -> None:
        """Load the model so many times. `model_name` is hermes-mini, a path, or a folder's name in `cache_dir`; with
        `use_bnb` the weights are held in 4 bits. ValueError for what cannot be; LoadFailed and DoesNotFit
        (daemon.inference.failures) say why it was not."""
        if num_instances < 1:
            raise ValueError(f"num_instances is {num_instances}: there must be one at least")
        if self._engines is not None:
            raise ValueError("it is initialized already: shut it down first")
        spec = Spec(
            model=str(find_model(model_name, cache_dir)),
            device=device_map,
            quantization="bnb-4bit" if use_bnb else "none",
        )
        self._engines = _Engines(*(ModelSpec(str(number), spec) for number in range(num_instances)))
        self._count = num_instances

    def generate(
        self,
        instance_id: int,
        prompt: str,
        max_new_tokens: int = 512,
        temperature: float = 0.7,
        top_p: float = 0.9,
        stop: Sequence[str] | None = None,
    ) -> str:
        """The answer of one instance. Temperature 0 is greedy; else every call draws anew."""
        engines = self._running()
        if not 0 <= instance_id < self._count:
            raise ValueError(f"there is no instance {instance_id}: they are 0 to {self._count - 1}")
        how = _how(max_new_tokens, temperature, top_p, stop)
        return engines.run(engines.text(str(instance_id), prompt, **how))

    def generate_batch(self, prompts: Sequence[str]) -> list[str]:
        """The answers, in the order of the prompts, which the instances share among them."""
        engines = self._running()
        begun = [
            engines.begin(engines.text(str(number % self._count), prompt, **_how(512, 0.7, 0.9, None)))
            for number, prompt in enumerate(prompts)
        ]
        concurrent.futures.wait(begun)
        return [answer.result() for answer in begun]

    def shutdown(self) -> None:
        """End every instance. Doing it twice is no error."""
        engines, self._engines, self._count = self._engines, None, 0
        if engines is not None:
            engines.close()

    def _running(self) -> _Engines:
        if self._engines is None:
            raise ValueError("it is not initialized, or was shut down")
        return self._engines

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


class LLMClient:
    """One model behind one call, whatever runs it."""

    def __init__(
        self,
        backend: str = "",
        *,
        model_name: str = "hermes-mini",
        cache_dir: str | os.PathLike[str] = "models",
        device: str = "auto",
        url: str = "",
        key_file: str = "",
        temperature: float = 0.7,
    ) -> None:
        """`backend`: portable_hf, exact, llama_cpp, mlx, openai or ollama; "" is what HERMES_BACKEND says, else
        portable_hf. `url` is the server's, of openai and ollama. The model is loaded at the first call."""
        backend = backend or os.environ.get("HERMES_BACKEND", "") or "portable_hf"
        if backend not in BACKENDS:
            raise ValueError(f"there is no backend {backend!r}: they are {', '.join(BACKENDS)}")
        self.backend, self._temperature = backend, temperature
        runtime = BACKENDS[backend]
        if runtime in REMOTE:
            url = url or (OLLAMA if runtime == "ollama" else "")
            if not url:
                raise ValueError(f"backend {backend!r} needs the url of its server")
            self._spec = Spec(model=model_name, runtime=runtime, url=url, key_file=key_file)
        else:
            self._spec = Spec(model=str(find_model(model_name, cache_dir)), runtime=runtime, device=device)
        self._hermetic = os.environ.get("HERMES_HERMETIC") == "1"
        self._engines: _Engines | None = None
        self._lock = threading.Lock()

    def generate(self, prompt: str, max_tokens: int = 512) -> str:
        """The answer. The errors of the pool (daemon.inference.failures) say why there is none."""
        with self._lock:
            if self._engines is None:
                self._engines = _Engines(ModelSpec("model", self._spec), hermetic=self._hermetic)
            engines = self._engines
        return engines.run(engines.text("model", prompt, **_how(max_tokens, self._temperature, 1.0, None)))

    def close(self) -> None:
        with self._lock:
            engines, self._engines = self._engines, None
        if engines is not None:
            engines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find_model(name: str, cache_dir: str | os.PathLike[str]) -> Path:
    """The folder or GGUF file of a model: itself a path, or a name in `cache_dir`, also as the Hugging Face cache names
    them. ValueError if there is none."""
    if name == "hermes-mini":
        return HERMES_MINI
    cache = Path(cache_dir).expanduser()
    for path in (Path(name).expanduser(), cache / name):
        if path.is_dir() or path.is_file():
            return path.resolve()
    snapshots = cache / f"models--{name.replace('/', '--')}" / "snapshots"
    if snapshots.is_dir():
        newest = max(snapshots.iterdir(), key=lambda path: path.stat().st_mtime, default=None)
        if newest is not None:
            return newest.resolve()
    raise ValueError(f"there is no model {name!r}: it is no path, and not in {cache}. Put its folder there.")


def _how(max_new_tokens: int, temperature: float, top_p: float, stop: Sequence[str] | None) -> dict[str, Any]:
    return {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "stop": (stop,) if isinstance(stop, str) else tuple(stop or ()),
        "seed": secrets.randbits(48),
    }
