"""The models of a home: content under its SHA-256, and a folder of links for each name.

    models/NAME/...                   what jobs and engines load: links, read-only, and `.hermes.json`, the manifest
    models/.store/blobs/DIGEST        the content, once, however many models have it
    models/.store/incoming/...        what an interrupted `add` left; the next one clears it

Engines that load the same file map the same pages, but only if the file has the dtype that is served; so weights are
converted once, when they are added. A model whose files are not those of its manifest is not loaded.

A folder that somebody put into models/ by hand is a model, too; nothing here touches it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock

Json = Any

MANIFEST = ".hermes.json"
MANIFEST_VERSION = 1
DTYPES = ("keep", "auto", "float32", "bfloat16", "float16")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PARTS = (".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken", ".md")
_CHUNK = 1 << 20
_KINDS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_LOCK_S = 600.0


class StoreError(Exception):
    """What was asked of the store cannot be done: what, and what to do. `unknown`: there is no such model."""

    def __init__(self, words: str, do: str = "", *, unknown: bool = False) -> None:
        super().__init__(words)
        self.do, self.unknown = do, unknown


@dataclass(frozen=True, slots=True)
class File:
    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    name: str
    kind: str
    """folder (Hugging Face, safetensors) or gguf."""
    digest: str
    """What a model is known by in events: `engine.model_digest` of a folder, the SHA-256 of a GGUF file."""
    dtype: str
    """Of most of the weights."""
    parameters: int
    architecture: str
    context: int
    source: str
    source_digest: str
    """Of what it was made from; the model's own where nothing was converted."""
    added: str
    """RFC 3339"""
    pinned: bool
    """Never evicted."""
    files: tuple[File, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def as_json(self) -> Json:
        return {"version": MANIFEST_VERSION, **asdict(self), "files": [asdict(file) for file in self.files]}

    @classmethod
    def of_json(cls, value: Json) -> Manifest:
        """ValueError if it is none."""
        try:
            if value.pop("version") != MANIFEST_VERSION:
                raise ValueError("it was written by another version of Hermes")
            return cls(**{**value, "files": tuple(File(**file) for file in value["files"])})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"it is no manifest: {error!r}") from error


def expected(model: str | Path) -> str:
    """The digest that the store gave the model in this folder or file; "" if it is none of the store's. StoreError if
    its manifest is damaged."""
    path = Path(model)
    folder = path if path.is_dir() else path.parent
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError:
        return ""
    with contextlib.suppress(OSError):
        os.utime(folder / MANIFEST)  # used now: what was used longest ago is evicted first
    try:
        return Manifest.of_json(json.loads(data)).digest
    except ValueError as error:
        raise StoreError(
            f"the manifest {folder / MANIFEST} cannot be read: {error}", "remove the model and add it again"
        ) from error


class Store:
    """The models of one home. Every change holds a lock, and is there wholly or not at all."""

    def __init__(self, models: Path) -> None:
        self.folder = models
        self._store = models / ".store"
        self._blobs, self._incoming = self._store / "blobs", self._store / "incoming"

    def manifests(self) -> list[Manifest]:
        """Of all the store's models, by name. StoreError if one is damaged."""
        found = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for entry in sorted(self.folder.iterdir()):
                if not entry.name.startswith(".") and (entry / MANIFEST).is_file():
                    found.append(self.manifest(entry.name))
        return found

    def manifest(self, name: str) -> Manifest:
        path = self.folder / name / MANIFEST
        try:
            return Manifest.of_json(json.loads(path.read_bytes()))
        except (OSError, ValueError) as error:
            if not path.exists():
                known = ", ".join(each.name for each in self.manifests()) or "none"
                raise StoreError(f"the store has no model {name!r}", f"it has {known}", unknown=True) from None
            raise StoreError(
                f"the manifest {path} cannot be read: {error}", "remove the model and add it again"
            ) from error

    def bytes(self) -> int:
        """On the disk, each content once."""
        with contextlib.suppress(FileNotFoundError):
            return sum(entry.stat().st_size for entry in os.scandir(self._blobs) if entry.is_file())
        return 0

    def add(
        self,
        source: Path,
        name: str,
        *,
        dtype: str = "auto",
        pinned: bool = False,
        bytes_max: int = 0,
        evict: bool = False,
        tell: Callable[[int, int], None] = lambda done, whole: None,
    ) -> tuple[Manifest, list[str]]:
        """Take in the model in the folder or GGUF file `source`. The manifest, and the models that were evicted to make
        room (only with `evict`). `bytes_max`: what the store may hold, 0 for no bound."""
        if not _NAME.fullmatch(name):
            raise StoreError(f"{name!r} is no name for a model", "use letters, digits, dots, dashes and underscores")
        if dtype not in DTYPES:
            raise StoreError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
        files = _files(source)
        wanted = "" if source.is_file() else _wanted_dtype(source, dtype)
        with self._locked():
            if (self.folder / name).exists():
                raise StoreError(f"there is a model {name!r} already", "remove it first, or choose another name")
            size = sum(path.stat().st_size for path in files)
            room = size if not wanted else max(size, sum(_counts(source).values()) * _BYTES[wanted])
            gone = self._make_room(room, bytes_max, evict)
            self._incoming.mkdir(parents=True, exist_ok=True)
            self._blobs.mkdir(exist_ok=True)
            stage = self._incoming / secrets.token_hex(8)
            stage.mkdir()
            try:
                done, kept = 0, []
                for path in files:
                    target = stage / path.name

                    def told(count: int, before: int = done) -> None:
                        tell(min(before + count, size), size)

                    if wanted and path.suffix == ".safetensors":
                        _convert(path, target, wanted, told)
                    elif wanted and path.name == "config.json":
                        _name_dtype(path, target, wanted)
                    else:
                        _copy(path, target, told)
                    done += path.stat().st_size
                    kept.append(self._keep(target))
                manifest = self._manifest(source, name, stage, tuple(kept), bool(wanted), pinned)
                data = json.dumps(manifest.as_json(), indent=2, ensure_ascii=False) + "\n"
                (stage / MANIFEST).write_text(data, encoding="utf-8")
                _sync(stage / MANIFEST)
                _sync(stage)
                stage.rename(self.folder / name)
                _sync(self.folder)
            except BaseException:
                shutil.rmtree(stage, ignore_errors=True)
                self._clear()
                raise
            tell(size, size)
        return manifest, gone

    def remove(self, name: str) -> int:
        """The bytes that came free. Engines that have the model loaded keep it until they end."""
        with self._locked():
            self.manifest(name)
            return self._drop(name)

    def verify(self, name: str) -> list[str]:
        """What is wrong with the model, in words; [] if every byte is that of its manifest."""
        manifest, folder = self.manifest(name), self.folder / name
        faults = []
        for file in manifest.files:
            path = folder / file.path
            try:
                if path.is_symlink() or not path.is_file():
                    faults.append(f"{path} is missing or no file")
                    continue
                if (found := _sha256(path)) != file.sha256:
                    faults.append(f"{path} has changed: its SHA-256 is {found} and should be {file.sha256}")
                if path.stat().st_mode & 0o222:
                    faults.append(f"{path} can be written to (chmod a-w)")
            except OSError as error:
                faults.append(f"{path} cannot be read: {error.strerror}")
        known = {file.path for file in manifest.files} | {MANIFEST}
        faults += [f"{entry} is not of the model" for entry in sorted(folder.iterdir()) if entry.name not in known]
        return faults

    # Inside

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._store.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = filelock.FileLock(self._store / "lock")
        try:
            with lock.acquire(timeout=_LOCK_S):
                # What an interrupted `add` left: content that takes room and that no model has.
                shutil.rmtree(self._incoming, ignore_errors=True)
                with contextlib.suppress(StoreError):
                    self._clear()
                yield
        except filelock.Timeout:
            raise StoreError("somebody else is changing the store of models", "try again when he is done") from None

    def _keep(self, staged: Path) -> File:
        """The staged file becomes a blob; in its place, a link to it."""
        digest = _sha256(staged)
        blob = self._blobs / digest
        os.chmod(staged, 0o444)
        _sync(staged)
        if blob.exists() and _sha256(blob) == digest:
            staged.unlink()
        else:  # new, or damaged: what is whole takes its place
            staged.replace(blob)
            _sync(self._blobs)
        try:
            os.link(blob, staged)
        except OSError:  # a file system without hard links: a copy, then
            shutil.copyfile(blob, staged)
            os.chmod(staged, 0o444)
        return File(staged.name, digest, staged.stat().st_size)

    def _manifest(
        self, source: Path, name: str, stage: Path, files: tuple[File, ...], converted: bool, pinned: bool
    ) -> Manifest:
        added = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if source.is_file():
            about = _gguf_facts(stage / source.name)
            return Manifest(name, "gguf", files[0].sha256, *about, str(source), files[0].sha256, added, pinned, files)
        from daemon.inference.engine import model_digest

        digest = model_digest(stage)
        origin = model_digest(source) if converted else digest
        about = _folder_facts(stage)
        return Manifest(name, "folder", digest, *about, str(source), origin, added, pinned, files)

    def _make_room(self, size: int, bytes_max: int, evict: bool) -> list[str]:
        free = shutil.disk_usage(self._store).free
        if size > free:
            raise StoreError(f"the disk has {_size(free)} free, and the model takes {_size(size)}", "make room there")
        if not bytes_max:
            return []
        if size > bytes_max:
            raise StoreError(
                f"the model takes {_size(size)}, and the store may hold {_size(bytes_max)}",
                "raise models_max in hermesd.yaml",
            )
        old = [each for each in self.manifests() if not each.pinned]
        old.sort(key=lambda each: ((self.folder / each.name / MANIFEST).stat().st_mtime, each.name))
        held, gone = self.bytes(), []
        for each in old:
            if held + size <= bytes_max:
                break
            held -= self._alone(each)
            gone.append(each.name)
        if held + size > bytes_max:
            raise StoreError(
                f"the store holds {_size(self.bytes())} of at most {_size(bytes_max)}, and what is not pinned is not"
                f" enough for {_size(size)} more",
                "remove models, or raise models_max in hermesd.yaml",
            )
        if gone and not evict:
            raise StoreError(
                f"the store holds {_size(self.bytes())} of at most {_size(bytes_max)}: {_size(size)} more do not fit",
                f"with --evict these would go, the longest unused first: {', '.join(gone)}",
            )
        for name in gone:
            self._drop(name)
        return gone

    def _alone(self, manifest: Manifest) -> int:
        """The bytes that no other model has."""
        others = {file.sha256 for each in self.manifests() if each.name != manifest.name for file in each.files}
        return sum(bytes for digest, bytes in {(f.sha256, f.bytes) for f in manifest.files} if digest not in others)

    def _drop(self, name: str) -> int:
        before = self.bytes()
        away = self._incoming / secrets.token_hex(8)
        self._incoming.mkdir(parents=True, exist_ok=True)
        (self.folder / name).rename(away)  # gone at once, wholly; a crash leaves it where the next one clears it
        shutil.rmtree(away)
        self._clear()
        return before - self.bytes()

    def _clear(self) -> None:
        """Delete the blobs that no model has."""
        wanted = {file.sha256 for each in self.manifests() for file in each.files}
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self._blobs):
                if entry.name not in wanted:
                    os.unlink(entry.path)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        if source.suffix != ".gguf":
            raise StoreError(f"{source} is no GGUF file", "give a model's folder, or a file that ends in .gguf")
        with source.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise StoreError(f"{source} is called GGUF and is none", "fetch it again")
        return [source]
    from daemon.inference import engine

    try:
        folder = engine.checked_folder(str(source))
        weights = {file.name for file in engine.weight_files(folder)}
        for name in sorted(weights):
            engine.safetensors_header(folder / name)
    except engine.EngineError as error:
        raise StoreError(str(error).rstrip(".")) from error
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and not path.name.startswith(".")
        and (path.name in weights or (path.suffix in _PARTS and path.suffix != ".safetensors"))
    ]


def _wanted_dtype(folder: Path, asked: str) -> str:
    """What the weights are to be converted to; "" for nothing. Quantized weights stay as they are."""
    config = json.loads((folder / "config.json").read_bytes())
    if asked == "keep" or "quantization_config" in config:
        return ""
    if asked == "auto":
        from daemon.inference import engine

        try:
            asked = engine.dtype_here(folder)
        except engine.EngineError:  # no torch: whoever serves it will convert it, each time
            return ""
    return "" if _main_dtype(folder) == _KINDS[asked] else asked


def _headers(folder: Path) -> list[dict[str, Json]]:
    from daemon.inference import engine

    return [engine.safetensors_header(file) for file in engine.weight_files(folder)]


def _counts(folder: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for header in _headers(folder):
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for extent in tensor["shape"]:
                    size *= extent
                counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + size
    return counts


def _main_dtype(folder: Path) -> str:
    counts = _counts(folder)
    return max(counts, key=lambda kind: counts[kind]) if counts else ""


def _folder_facts(folder: Path) -> tuple[str, int, str, int]:
    """dtype, parameters, architecture, context"""
    config = json.loads((folder / "config.json").read_bytes())
    text = config.get("text_config") or config
    names = {kind: name for name, kind in _KINDS.items()}
    kind = _main_dtype(folder)
    context = text.get("max_position_embeddings") or text.get("n_positions") or 0
    architecture = (config.get("architectures") or [config.get("model_type", "")])[0]
    return names.get(kind, kind), sum(_counts(folder).values()), str(architecture), int(context)


def _gguf_facts(file: Path) -> tuple[str, int, str, int]:
    gguf: Any = importlib.import_module("gguf")
    from daemon.inference.runtimes.llama_cpp import About

    try:
        about = About.of(gguf.GGUFReader(file))
    except Exception as error:  # its reader fails in its own ways on a damaged file
        raise StoreError(f"the GGUF file {file.name} is damaged or cut short: {error}", "fetch it again") from error
    return about.kind, about.parameters, about.architecture, about.context


def _convert(source: Path, target: Path, dtype: str, tell: Callable[[int], None]) -> None:
    """The weights of one file as another dtype, a tensor at a time; tensors of whole numbers stay as they are."""
    torch: Any = importlib.import_module("torch")
    safetensors: Any = importlib.import_module("safetensors")
    kinds = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
    with safetensors.safe_open(str(source), framework="pt") as read:
        names = sorted(read.keys())
        header: dict[str, Json] = {"__metadata__": {**(read.metadata() or {}), "format": "pt"}}
        place, changed = 0, set()
        for name in names:
            view = read.get_slice(name)
            shape, kind = list(view.get_shape()), str(view.get_dtype())
            count = 1
            for extent in shape:
                count *= extent
            tensor_bytes = count * kinds[_KINDS[dtype]] if kind in kinds else None
            if tensor_bytes is None:
                tensor_bytes = read.get_tensor(name).nbytes
            else:
                changed.add(name)
                kind = _KINDS[dtype]
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [place, place + tensor_bytes]}
            place += tensor_bytes
        lead = json.dumps(header, separators=(",", ":")).encode()
        lead += b" " * (-len(lead) % 8)
        done = 0
        with target.open("xb") as file:
            file.write(len(lead).to_bytes(8, "little") + lead)
            for name in names:
                tensor = read.get_tensor(name)
                if name in changed:
                    tensor = tensor.to(getattr(torch, dtype))
                file.write(memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy()))
                done += tensor.nbytes
                tell(done)


def _name_dtype(source: Path, target: Path, dtype: str) -> None:
    config = json.loads(source.read_bytes())
    config.pop("torch_dtype", None)
    config["dtype"] = dtype
    target.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy(source: Path, target: Path, tell: Callable[[int], None]) -> None:
    done = 0
    with source.open("rb") as read, target.open("xb") as write:
        while data := read.read(_CHUNK):
            write.write(data)
            done += len(data)
            tell(done)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 1 << 30 else f"{count / 2**20:.1f} MiB"
