"""`hermesd models`: the store of models, and what this machine can run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.inference.store import Manifest, Store, StoreError

Json = Any

_MATRIX_S = 300.0


def add(call: Call, source: Path, *, name: str, dtype: str, pin: bool, evict: bool) -> None:
    from policies.quantity import parse_size

    call.home.check(write=True)
    source = source.expanduser().absolute()
    name = name or (source.stem if source.suffix == ".gguf" else source.name)
    bound = call.settings.models_max
    try:
        manifest, gone = Store(call.home.models).add(
            source,
            name,
            dtype=dtype,
            pinned=pin,
            bytes_max=parse_size(bound) if bound else 0,
            evict=evict,
            tell=show.Progress(f"adding {name}"),
        )
    except StoreError as error:
        raise _failure(error) from error
    if call.json:
        show.json({**manifest.as_json(), "evicted": gone})
        return
    for each in gone:
        print(f"Evicted {each}.")
    changed = "" if manifest.source_digest == manifest.digest else f", converted to {manifest.dtype}"
    print(f"Added {name}: {_parameters(manifest.parameters)} parameters, {show.size(manifest.bytes)}{changed}.")
    print(f"Jobs name it `model: {name}`.")


def listing(call: Call) -> None:
    call.home.check(write=False)
    try:
        manifests = Store(call.home.models).manifests()
    except StoreError as error:
        raise _failure(error) from error
    managed = {manifest.name: manifest for manifest in manifests}
    others = {name: path for name, path in _named(call).items() if name not in managed}
    if call.json:
        show.json({"store": [each.as_json() for each in manifests], "others": {n: str(p) for n, p in others.items()}})
        return
    rows = [
        (each.name, each.kind, each.architecture, _parameters(each.parameters), each.dtype, show.size(each.bytes),
         each.digest[:12], "pinned" if each.pinned else "")
        for each in manifests
    ]  # fmt: skip
    rows += [(name, "", "", "", "", "", "", show.path(str(path))) for name, path in sorted(others.items())]
    show.table(("NAME", "KIND", "ARCHITECTURE", "PARAMETERS", "DTYPE", "SIZE", "DIGEST", ""), rows)


def one(call: Call, name: str) -> None:
    call.home.check(write=False)
    manifest = _manifest(call, name)
    if call.json:
        show.json(manifest.as_json())
        return
    show.facts(
        [
            ("name", manifest.name),
            ("folder", show.path(str(call.home.models / name))),
            ("kind", manifest.kind),
            ("digest", manifest.digest),
            ("architecture", manifest.architecture),
            ("parameters", _parameters(manifest.parameters)),
            ("dtype", manifest.dtype),
            ("context", manifest.context or "unknown"),
            ("size", show.size(manifest.bytes)),
            ("from", show.path(manifest.source)),
            ("its digest", manifest.source_digest),
            ("added", show.moment(manifest.added.replace("Z", ".000Z"), call.zone)),
            ("pinned", "yes" if manifest.pinned else "no"),
            ("files", "\n".join(f"{f.sha256[:12]}  {show.size(f.bytes):>9}  {f.path}" for f in manifest.files)),
        ]
    )  # fmt: skip


def remove(call: Call, name: str) -> None:
    call.home.check(write=True)
    try:
        freed = Store(call.home.models).remove(name)
    except StoreError as error:
        raise _failure_of(call, name, error) from error
    if call.json:
        show.json({"removed": name, "freed_bytes": freed})
    else:
        print(f"Removed {name}: {show.size(freed)} came free.")


def verify(call: Call, name: str) -> int:
    call.home.check(write=False)
    store = Store(call.home.models)
    try:
        manifests = [store.manifest(name)] if name else store.manifests()
        faults = {manifest.name: store.verify(manifest.name) for manifest in manifests}
    except StoreError as error:
        raise _failure_of(call, name, error) from error
    bad = {each: words for each, words in faults.items() if words}
    if call.json:
        show.json({"verified": sorted(faults), "faults": bad})
    else:
        for each, words in faults.items():
            print(f"{each}: {'whole' if not words else 'DAMAGED'}")
            for word in words:
                print(f"  {show.path(word)}")
        if not faults:
            print("The store has no models.")
        if bad:
            print("Remove what is damaged and add it again: `hermesd models remove NAME`, `hermesd models add PATH`.")
    return Exit.NO if bad else Exit.FINE


def matrix(call: Call) -> None:
    # In a process of its own: what is asked imports the model libraries.
    environment = {**os.environ, "CUDA_MODULE_LOADING": "LAZY"}
    try:
        said = subprocess.run(
            [sys.executable, "-m", "daemon.inference.matrix"],
            capture_output=True,
            timeout=_MATRIX_S,
            check=True,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        rows = json.loads(said.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise Failure(Exit.UNAVAILABLE, f"this machine cannot be asked: {error}") from error
    if call.json:
        show.json(rows)
        return
    show.table(
        ("RUNTIME", "DEVICE", "QUANTIZATION", "HERE", "WITH", "WHY NOT, AND WHAT TO DO"),
        [
            (row["runtime"], row["device"], row["quantization"], "yes" if row["possible"] else "no",
             " ".join(filter(None, [row["version"], ", ".join(row["dtypes"]), row.get("kernel", "")])),
             f"{row['reason']} {row['do']}".strip())
            for row in rows
        ],
    )  # fmt: skip


def recommend(call: Call) -> None:
    from daemon.inference.devices import Devices
    from policies import fitting

    devices = Devices()
    devices.ask()
    places = [fitting.Place(each.name, each.total) for each in devices.now()]
    advice = fitting.recommend(places)
    if call.json:
        show.json({
            "devices": [{"device": place.device, "memory_bytes": place.memory_bytes} for place in places],
            "advice": [
                {"device": a.device, "model": a.model, "runtime": a.runtime, "form": a.form,
                 "needs_bytes": a.needs_bytes, "note": a.note} for a in advice
            ],
        })  # fmt: skip
        return
    for place in places:
        print(f"{place.device}: {show.size(place.memory_bytes)}")
    print()
    show.table(
        ("DEVICE", "MODEL", "RUNTIME", "AS", "NEEDS", "GOOD FOR"),
        [(a.device, a.model, a.runtime, a.form, show.size(a.needs_bytes), a.note) for a in advice],
    )
    print(
        f"\nThe largest that fit, with room for {fitting.CONTEXT_TOKENS} tokens. Hermes fetches nothing: get the files,"
    )
    print("then `hermesd models add FOLDER`.")


def _manifest(call: Call, name: str) -> Manifest:
    try:
        return Store(call.home.models).manifest(name)
    except StoreError as error:
        raise _failure_of(call, name, error) from error


def _named(call: Call) -> dict[str, Path]:
    from daemon.order import models_of

    named = {name: str(path) for name, path in call.settings.models.items()}
    return models_of(call.home.path, named, Path.home())


def _failure(error: StoreError) -> Failure:
    return Failure(Exit.UNKNOWN if error.unknown else Exit.BAD_INPUT, str(error), do=error.do)


def _failure_of(call: Call, name: str, error: StoreError) -> Failure:
    """Of one model: `list` also names those that are not kept here."""
    failure = _failure(error)
    if error.unknown and name and (path := _named(call).get(name)) is not None:
        failure.where = show.path(str(path))
        failure.do = f"jobs can use {name} where it lies; `hermesd models add` would take it into the store"
    return failure


def _parameters(count: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)
