"""What this machine can hold models in, and what they will take."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.inference.devices import Devices, policy_model, visible
from daemon.inference.hermes_mini import FOLDER
from daemon.inference.memory import host_memory
from daemon.inference.runtimes import Spec
from policies.engines import Device

LISTED = """\
0, GPU-aaaa-1, 81920, 70000
1, GPU-bbbb-2, 40960, 40000
"""
BIG, SMALL = (81920 << 20, 70000 << 20), (40960 << 20, 40000 << 20)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, [BIG, SMALL]),
        ("1", [SMALL]),
        ("1,0", [SMALL, BIG]),
        ("GPU-bbbb", [SMALL]),
        ("0,7,1", [BIG]),
        ("", []),
        ("MIG-x", []),
    ],
)
def test_gpus_are_numbered_as_an_engine_sees_them(wanted: str | None, found: list[tuple[int, int]]) -> None:
    assert visible(LISTED, wanted) == [Device(f"cuda:{n}", *sizes) for n, sizes in enumerate(found)]


def test_the_host_is_always_there_and_last() -> None:
    devices = Devices()
    devices.ask()
    *_, host = devices.now()
    assert host.name == "cpu"
    assert 0 < host.free <= host.total


def test_of_a_container_s_share_what_was_only_read_is_free(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("8000000\n")
    (tmp_path / "memory.current").write_text("7900000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\nfile 6900000\ninactive_file 6000000\nactive_file 900000\n")
    assert host_memory(tmp_path) == (8_000_000, 6_100_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory(tmp_path)[0] > 8_000_000


def test_what_a_model_takes_is_read_off_its_files(tmp_path: Path) -> None:
    mini = policy_model(
        "mini", Spec(model=str(FOLDER), dtype="float32", rows=4), instances=1, fallback="", room=1 << 40
    )
    assert mini.weights_bytes == 4 * 1_762_720
    assert mini.cache_bytes == 4 * 1024 * 2 * 4 * 5 * 32 * 4  # rows, context, keys and values, layers, heads, width
    halved = policy_model("mini", Spec(model=str(FOLDER), quantization="bnb-8bit"), instances=1, fallback="", room=1)
    assert (halved.weights_bytes, halved.cache_bytes) == (1_762_720, 0)
    (tmp_path / "model.gguf").write_bytes(bytes(1000))
    gguf = policy_model(
        "g", Spec(model=str(tmp_path / "model.gguf"), runtime="llama_cpp"), instances=1, fallback="", room=0
    )
    assert (gguf.weights_bytes, gguf.quantizable) == (1000, False)
    # What is there in place of the weights where git has not fetched them: read as a header's length it is enormous.
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (tmp_path / "config.json").write_bytes(b'{"num_attention_heads": 0}')
    for nothing in (
        Spec(model=str(tmp_path / "gone")), Spec(model="x", runtime="openai", url="http://127.0.0.1:1"),
        Spec(model=str(tmp_path)),
    ):  # fmt: skip
        assert policy_model("x", nothing, instances=1, fallback="", room=1).weights_bytes == 0
