"""Which models the gateway can serve: what is told of them in the settings, and what lies in the home."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daemon.gateway.settings import GatewaySettings, ServedModel
from daemon.inference.runtimes import REMOTE, Spec
from daemon.inference.views import ModelSpec
from daemon.order import models_of
from policies.fault import meant

Json = Any


class Catalogue:
    def __init__(self, home: Path, named: Mapping[str, str], settings: GatewaySettings, *, cuda: bool) -> None:
        """`named`: the aliases of hermesd.yaml. `cuda`: whether this machine has such a device."""
        self._settings = settings
        self._cuda = cuda
        self._folders = models_of(home, named, Path.home())
        if settings.cache_dir:
            cache = home / Path(settings.cache_dir).expanduser()
            if cache.is_dir():
                found = {entry.name: entry for entry in sorted(cache.iterdir()) if entry.is_dir() or _gguf(entry)}
                self._folders = found | self._folders

    def specs(self) -> list[ModelSpec]:
        """Everything that can be asked for by name, those of `gateway.models` first."""
        served = dict(self._settings.models)
        for name in self._folders:
            served.setdefault(name, ServedModel())
        if self._settings.model_name and self._settings.model_name not in served:
            served[self._settings.model_name] = ServedModel()
        return [self._spec(name, model) for name, model in served.items()]

    def place(self, model: str, runtime: str) -> str:
        """The folder or file that a name or a path leads to; of a remote runtime the name is the other server's."""
        if runtime in REMOTE:
            return model
        return str(self._folders.get(model) or Path(model).expanduser())

    def check(self, spec: Spec) -> None:
        """ValueError if there is nothing to load."""
        if spec.runtime in REMOTE:
            if not spec.url:
                raise ValueError(f"runtime {spec.runtime} needs parameters.url, where the other server is.")
            return
        try:
            mode = Path(spec.model).stat().st_mode
        except (OSError, ValueError):
            advice = meant(Path(spec.model).name, self._folders, f"Names are {', '.join(sorted(self._folders)[:20])}.")
            raise ValueError(f"there is no model at {spec.model[:300]}. {advice}") from None
        if not stat.S_ISDIR(mode) and not spec.model.endswith(".gguf"):
            raise ValueError(f"{spec.model} is neither a model's folder nor a GGUF file.")

    def _spec(self, name: str, served: ServedModel) -> ModelSpec:
        settings = self._settings
        place = self.place(served.model or name, served.backend or settings.backend)
        runtime = served.backend or ("llama_cpp" if place.endswith(".gguf") else settings.backend)
        quantization = served.quantization
        if quantization is None:
            on_cuda = (self._cuda and served.device in ("auto",)) or served.device.startswith("cuda")
            wanted = settings.use_bnb_on_cuda and on_cuda and runtime == "transformers"
            quantization = "bnb-4bit" if wanted else "none"
        spec = Spec(
            model=place,
            runtime=runtime,
            device=served.device,
            dtype=served.dtype,
            quantization=quantization,
            context=served.context,
            rows=served.max_parallel or settings.max_parallel,
            cache_mb=served.cache_mb,
            threads=served.threads,
            digest=served.digest,
            url=served.url,
            key_file=served.key_file,
        )
        instances = served.num_instances or settings.num_instances
        return ModelSpec(name, spec, kind=served.type, instances=instances, fallback=served.fallback)


def _gguf(path: Path) -> bool:
    return path.suffix == ".gguf" and path.is_file()


def has_cuda() -> bool:
    """Whether an NVIDIA device is there: asked of the system, since torch must not be loaded here."""
    return Path("/dev/nvidiactl").exists()
