"""The store of models: checked, converted once, shared, read-only, and gone wholly or not at all."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from cli_shell import answer, hermesd, make_home
from tiny_models import gguf_of, tiny_model

from daemon.inference import store as store_module
from daemon.inference.engine import Engine, EngineError
from daemon.inference.hermes_mini import FOLDER
from daemon.inference.runtimes import Spec, load
from daemon.inference.store import MANIFEST, Store, StoreError, expected
from daemon.order import models_of
from policies import fitting


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "models").mkdir()
    return Store(tmp_path / "models")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("store") / "tiny")


def fails(act: Any, words: str) -> StoreError:
    with pytest.raises(StoreError, match=words) as failed:
        act()
    return failed.value


def test_a_model_is_taken_in_read_only_and_loads_by_its_name(store: Store, folder: Path) -> None:
    manifest, gone = store.add(folder, "tiny", dtype="keep")
    assert gone == []
    assert (manifest.kind, manifest.dtype, manifest.architecture) == ("folder", "float32", "LlamaForCausalLM")
    assert manifest.digest == manifest.source_digest
    assert store.verify("tiny") == []
    for file in manifest.files:
        assert os.stat(store.folder / "tiny" / file.path).st_mode & 0o777 == 0o444
    models = models_of(store.folder.parent, {}, Path("/"))
    assert set(models) == {"hermes-mini", "tiny"}
    assert Engine.load(str(models["tiny"]), device="cpu").facts["digest"] == manifest.digest


def test_weights_are_converted_once_and_say_the_same(store: Store, folder: Path) -> None:
    manifest, _ = store.add(folder, "small", dtype="bfloat16")
    assert manifest.dtype == "bfloat16"
    assert manifest.digest != manifest.source_digest
    runtime: Any = load(Spec(model=str(store.folder / "small"), device="cpu", dtype="bfloat16"))
    whole: Any = load(Spec(model=str(folder), device="cpu", dtype="bfloat16"))
    text = list(range(20, 50))
    for each in (runtime, whole):
        each._machine.reserve(1, 64)
    assert torch.equal(runtime._machine.forward(0, [text], [0]), whole._machine.forward(0, [text], [0]))
    assert json.loads((store.folder / "small" / "config.json").read_text())["dtype"] == "bfloat16"


def test_two_names_for_the_same_content_take_its_room_once(store: Store, folder: Path) -> None:
    store.add(folder, "one", dtype="keep")
    size = store.bytes()
    store.add(folder, "two", dtype="keep")
    assert store.bytes() == size
    weights = [store.folder / name / "model.safetensors" for name in ("one", "two")]
    assert os.path.samefile(*weights)
    store.remove("one")
    assert (store.verify("two"), store.bytes()) == ([], size)
    assert store.remove("two") == size
    assert store.bytes() == 0


def test_what_has_changed_is_found_and_not_loaded(store: Store, folder: Path) -> None:
    store.add(folder, "tiny", dtype="keep")
    weights = store.folder / "tiny" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-9] ^= 1
    os.chmod(weights, 0o644)
    weights.write_bytes(data)
    (store.folder / "tiny" / "extra.json").write_text("{}")
    faults = " ".join(store.verify("tiny"))
    assert "model.safetensors has changed" in faults
    assert "can be written to" in faults
    assert "extra.json is not of the model" in faults
    for runtime in ("transformers", "exact"):
        with pytest.raises(EngineError, match="not the one that was added to the store"):
            load(Spec(model=str(store.folder / "tiny"), runtime=runtime, device="cpu"))
    store.remove("tiny")
    manifest, _ = store.add(folder, "tiny", dtype="keep")  # a damaged blob is not what the new one is made of
    assert store.verify("tiny") == []
    assert expected(store.folder / "tiny") == manifest.digest


def test_a_gguf_file_is_a_model(store: Store, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    file = gguf_of(folder, tmp_path / "tiny-f32.gguf")
    manifest, _ = store.add(file, "gguf")
    assert (manifest.kind, manifest.dtype, manifest.context) == ("gguf", "F32", 512)
    place = models_of(store.folder.parent, {}, Path("/"))["gguf"]
    assert place == store.folder / "gguf" / "tiny-f32.gguf"
    pytest.importorskip("xllamacpp")
    runtime = load(Spec(model=str(place), runtime="llama_cpp", device="cpu", rows=1))
    assert runtime.facts["digest"] == manifest.digest
    runtime.close()
    (tmp_path / "no.gguf").write_bytes(b"nothing")
    fails(lambda: store.add(tmp_path / "no.gguf", "no"), "called GGUF and is none")


def test_a_bound_evicts_what_was_unused_the_longest_and_only_when_told(store: Store, tmp_path: Path) -> None:
    folders = [tiny_model(tmp_path / f"m{k}", seed=k, num_hidden_layers=1) for k in range(4)]
    size = sum(path.stat().st_size for path in folders[0].iterdir())
    bound = int(2.9 * size)
    for name, folder, pinned in (("a", folders[0], True), ("b", folders[1], False)):
        store.add(folder, name, dtype="keep", pinned=pinned, bytes_max=bound)
    os.utime(store.folder / "b" / MANIFEST, (1, 1))
    refused = fails(lambda: store.add(folders[2], "c", dtype="keep", bytes_max=bound), "more do not fit")
    assert refused.do.endswith("first: b")
    assert [each.name for each in store.manifests()] == ["a", "b"]
    _, gone = store.add(folders[2], "c", dtype="keep", bytes_max=bound, evict=True)
    assert gone == ["b"]
    assert [each.name for each in store.manifests()] == ["a", "c"]
    assert store.bytes() <= bound
    fails(lambda: store.add(folders[3], "d", dtype="keep", bytes_max=size // 2, evict=True), "the store may hold")
    store.remove("c")
    store.add(folders[3], "d", dtype="keep", pinned=True, bytes_max=bound)
    fails(lambda: store.add(folders[2], "c", dtype="keep", bytes_max=bound, evict=True), "not pinned is not enough")


def test_an_interrupted_add_leaves_no_model_and_no_waste(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any, **__: Any) -> Any:
        raise Killed

    monkeypatch.setattr(Store, "_manifest", killed)
    with pytest.raises(Killed):
        store.add(folder, "tiny", dtype="keep")
    assert (store.manifests(), store.bytes()) == ([], 0)
    # A kill leaves what no handler could clear: the next change does.
    monkeypatch.undo()
    left = store._incoming / "left"
    left.mkdir(parents=True)
    shutil.copy(folder / "model.safetensors", left)
    (store._blobs / ("0" * 64)).write_bytes(b"x" * (1 << 24))  # Kept already, and no manifest written yet.
    manifest, _ = store.add(folder, "tiny", dtype="keep", bytes_max=1 << 23)
    assert list(store._incoming.iterdir()) == []
    assert store.bytes() == manifest.bytes


def test_adds_at_the_same_time_take_turns(store: Store, folder: Path) -> None:
    errors: list[BaseException] = []

    def add(name: str) -> None:
        try:
            Store(store.folder).add(folder, name, dtype="keep")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=add, args=(f"m{k % 3}",)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(errors) == 3
    assert all("already" in str(error) for error in errors)
    assert [store.verify(f"m{k}") for k in range(3)] == [[], [], []]


def test_what_is_no_model_is_refused(store: Store, tmp_path: Path, folder: Path) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    fails(lambda: store.add(pickled, "p"), "a pickle")
    cut = shutil.copytree(folder, tmp_path / "cut")
    with (cut / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    fails(lambda: store.add(cut, "c"), "damaged or cut short")
    fails(lambda: store.add(tmp_path / "nowhere", "n"), "does not exist")
    fails(lambda: store.add(folder, "../up"), "no name for a model")
    fails(lambda: store.add(folder, "x", dtype="int3"), "none of keep")
    assert fails(lambda: store.manifest("none"), "has no model").unknown
    assert store_module.expected(folder) == ""
    assert store.bytes() == 0


def test_the_verbs(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    said = hermesd("models", "add", FOLDER, "--name", "mini", "--dtype", "keep", "--home", home).stdout
    assert "Added mini: 1.76M parameters" in said
    listed = answer("models", "list", "--home", home)
    assert [each["name"] for each in listed["store"]] == ["mini"]
    assert "hermes-mini" in listed["others"]
    assert answer("models", "show", "mini", "--home", home)["source_digest"] == listed["store"][0]["digest"]
    assert "mini: whole" in hermesd("models", "verify", "--home", home).stdout
    again = hermesd("models", "add", FOLDER, "--name", "mini", "--home", home, code=2)
    assert "already" in again.stderr
    config = home / "models" / "mini" / "config.json"
    os.chmod(config, 0o644)
    config.write_text("{}")
    assert "DAMAGED" in hermesd("models", "verify", "mini", "--home", home, code=1).stdout
    assert "came free" in hermesd("models", "remove", "mini", "--home", home).stdout
    hermesd("models", "show", "mini", "--home", home, code=3)
    advice = answer("models", "recommend", "--home", home)
    assert all(each["needs_bytes"] > 0 for each in advice["advice"])
    (home / "hermesd.yaml").write_text("models_max: 1MB\n")
    assert "may hold" in hermesd("models", "add", FOLDER, "--dtype", "keep", "--home", home, code=2).stderr
    (home / "hermesd.yaml").write_text("models_max: lots\n")
    assert "models_max" in hermesd("models", "add", FOLDER, "--dtype", "keep", "--home", home, code=78).stderr


def test_what_fits_is_the_largest_in_its_best_form() -> None:
    places = [fitting.Place("cuda:0", 24 << 30), fitting.Place("cpu", 8 << 30), fitting.Place("mps", 2 << 30)]
    advice = fitting.recommend(places, count=3)
    by_device: dict[str, list[fitting.Advice]] = {}
    for each in advice:
        by_device.setdefault(each.device, []).append(each)
    for place in places:
        for each in by_device[place.device]:
            assert each.needs_bytes <= place.memory_bytes * 9 // 10
    assert by_device["cuda:0"][0].form == "bnb-4bit"
    assert {each.form for each in by_device["cpu"]} <= {"GGUF Q8_0", "GGUF Q4_K_M"}
    assert fitting.recommend([fitting.Place("cpu", 1 << 20)]) == []
