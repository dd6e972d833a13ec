"""The engines from plain Python, without a daemon."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from daemon.inference.faces import LLMClient, PortableMultiInstanceManager, find_model
from daemon.inference.failures import BadRequest, LoadFailed
from daemon.inference.hermes_mini import FOLDER

PROMPT = "Triage this log line: link down"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("HERMES_BACKEND", raising=False)


def test_several_instances_answer_each_and_together(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "tiny")
    before = psutil.Process().children(recursive=True)
    with PortableMultiInstanceManager() as manager:
        with pytest.raises(ValueError, match="not initialized"):
            manager.generate(0, PROMPT)
        manager.initialize("tiny", 2, cache_dir=str(tmp_path), device_map="cpu")
        for number in (0, 1):
            assert manager.generate(number, PROMPT, max_new_tokens=8, temperature=0) == "warning network"
        assert manager.generate(0, PROMPT, temperature=0, stop=[" net"]) == "warning"
        assert len(manager.generate_batch([PROMPT] * 5)) == 5
        with pytest.raises(ValueError, match="0 to 1"):
            manager.generate(2, PROMPT)
        with pytest.raises(BadRequest, match="1024"):
            manager.generate(0, "word " * 3000, temperature=0)
        children = [child for child in psutil.Process().children(recursive=True) if child not in before]
        assert len(children) >= 2
        manager.shutdown()
        assert not any(child.is_running() for child in children)


def test_a_client_names_its_backend_and_says_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="portable_hf, transformers, exact"):
        LLMClient("magic")
    with pytest.raises(ValueError, match="url"):
        LLMClient("openai", model_name="gpt")
    with pytest.raises(ValueError, match="no path, and not in"):
        LLMClient(model_name="nowhere", cache_dir=tmp_path)
    monkeypatch.setenv("HERMES_BACKEND", "ollama")
    assert LLMClient().backend == "ollama"
    (tmp_path / "empty").mkdir()
    with (
        LLMClient("portable_hf", model_name="empty", cache_dir=tmp_path) as client,
        pytest.raises(LoadFailed, match="config.json"),
    ):
        client.generate(PROMPT)


def test_models_are_found_where_the_hugging_face_cache_has_them(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--tiny" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    assert find_model("org/tiny", tmp_path) == folder
    assert find_model(str(folder), "elsewhere") == folder
    assert find_model("hermes-mini", tmp_path) == FOLDER
