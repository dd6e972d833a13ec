"""What preflight finds wrong before anything is started, and what it leaves alone."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from daemon.ports import CommandTask, InferenceTask, PythonTask
from daemon.workers.preflight import preflight

ENV = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text("print('hello')\n")
    (tmp_path / "tool").write_text("#!/bin/sh\n")
    (tmp_path / "tool").chmod(0o755)
    return tmp_path


def command(folder: Path, *argv: str, stdin: str | None = None) -> str | None:
    return preflight(CommandTask(argv, str(folder), stdin), ENV)


@pytest.mark.parametrize(
    "argv",
    [
        ["true"], ["/bin/sh", "-c", "no such thing"], ["./tool"], ["python3", "script.py"],
        ["python3", "-W", "ignore", "-u", "script.py", "absent"], ["python3", "-m", "http.server"],
        ["python3", "-uc", "pass"], ["python3"], ["python3", "-"], ["sh", "-e", "--", "script.py"],
        ["bash", "-lc", "true"], ["sh", "-s", "word"], ["bash", "-o", "pipefail", "script.py"], ["env", "absent"],
        ["bash", "--login", "absent"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_command_that_can_start_is_left_alone(folder: Path, argv: list[str]) -> None:
    assert command(folder, *argv) is None


def test_the_program_must_be_there_and_executable(folder: Path) -> None:
    assert "'no-such-program' is not on the PATH" in str(command(folder, "no-such-program"))
    assert f"{folder}/absent does not exist" in str(command(folder, "./absent"))
    assert f"{folder}/script.py is not executable: chmod +x" in str(command(folder, "./script.py"))
    assert "is not a file" in str(command(folder, str(folder)))
    assert "`argv` is empty" in str(command(folder))
    assert "'' is not on the PATH" in str(command(folder, ""))


def test_the_program_s_own_interpreter_must_be_there(folder: Path) -> None:
    (folder / "tool").write_text("#!/opt/no/such/python\n")
    assert "/opt/no/such/python, which does not exist" in str(command(folder, "./tool"))
    (folder / "tool").write_bytes(b"#!/bin/sh\r\ntrue\r\n")
    assert "DOS line ends" in str(command(folder, "./tool"))


def test_an_interpreter_s_script_must_be_a_file_in_the_working_folder(folder: Path) -> None:
    assert f"script {folder}/absent.py for python3 does not exist" in str(command(folder, "python3", "absent.py"))
    assert f"script {folder}/absent for sh" in str(command(folder, "sh", "-e", "absent"))
    assert "absent.pl" not in str(command(folder, "perl", "-ne", "absent.pl"))
    (folder / "package").mkdir()
    assert "is a folder" in str(command(folder, "python3", "package"))
    (folder / "package" / "__main__.py").touch()
    assert command(folder, "python3", "package") is None


def test_the_working_folder_and_the_input_must_be_there(folder: Path) -> None:
    assert f"working folder {folder}/gone does not exist" in str(command(folder / "gone", "true"))
    assert "is not a folder" in str(command(folder / "script.py", "true"))
    assert f"standard input {folder}/gone does not exist" in str(command(folder, "true", stdin="gone"))
    assert "may not be read" in str(command(folder, "true", stdin=str(folder)))
    assert command(folder, "true", stdin="script.py") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_what_this_user_may_not_read_is_named(folder: Path) -> None:
    (folder / "script.py").chmod(0)
    assert "may not be read" in str(command(folder, "python3", "script.py"))
    assert "may not be read" in str(command(folder, "true", stdin="script.py"))


def test_a_python_call_names_a_module_that_can_be_found_and_is_not_imported(folder: Path) -> None:
    (folder / "mine.py").write_text("raise SystemError('imported')\n")
    (folder / "elsewhere").mkdir()

    def call(text: str, *path: str) -> str | None:
        return preflight(PythonTask(text, {}, str(folder / "elsewhere"), path), ENV)

    assert call("mine:main", str(folder)) is None
    assert call("json:dumps") is None
    assert call("sys:exit") is None
    assert call("os.path:join") is None
    assert f"module 'mine' of call 'mine:main' is not in {folder}/elsewhere" in str(call("mine:main"))
    for wrong in ("mine", "mine:", ":main", "mine main:x", "mine:a b"):
        assert "module:function" in str(call(wrong, str(folder)))
    (folder / "elsewhere" / "later.py").touch()
    assert call("later:main") is None


def test_a_model_folder_must_be_whole_and_its_lines_readable(folder: Path) -> None:
    model = folder / "model"

    def generate(*lines: str) -> str:
        return str(preflight(InferenceTask(str(model), "hello", lines), ENV))

    assert f"model folder {model} does not exist" in generate()
    model.mkdir()
    assert "no config.json" in generate()
    (model / "config.json").write_text("{}")
    assert "no *.safetensors" in generate()
    (model / "model-1.safetensors").touch()
    assert "no tokenizer" in generate()
    (model / "tokenizer.json").touch()
    assert generate() == "None"
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    assert "lacks model-2.safetensors" in generate()
    index.write_text("{")
    assert "cannot be read" in generate()
    index.unlink()
    assert "none of `lines` can be read (/nowhere, /no/where)" in generate("/nowhere", "/no/where")
    assert generate("/nowhere", str(folder / "script.py")) == "None"
