"""Inference runs asked again: the same bytes, or the reason why that cannot be said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_shell import Foreground, hermesd, make_home

from daemon.cli import rerun as verb
from daemon.cli.call import Call
from daemon.cli.failure import Failure
from daemon.inference import rerun as rerun_module
from daemon.inference.hermes_mini import FOLDER
from daemon.inference.rerun import Again
from daemon.inference.runtimes import Generation

Json = Any

JOB = """\
name: sort
schedule: manual
kind: inference
model: copy
prompt: "triage: {{ line }}"
lines: {paths: [%s], last: 5}
max_new_tokens: 8
seed: 4
temperature: 0.7
"""
PLAIN = "name: plain\nschedule: manual\nkind: command\nargv: ['true']\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rerun")
    log = folder / "some.log"
    log.write_text("".join(f"sshd[{n}]: Failed password for root from 10.0.0.{n} port 22 ssh2\n" for n in range(5)))
    home = make_home(folder / "home", sort=JOB % log, plain=PLAIN)
    shutil.copytree(FOLDER, home / "models" / "copy")
    with Foreground(home):
        hermesd("start", "sort", "--wait", "--home", home, OMP_NUM_THREADS="1")
        hermesd("start", "plain", "--wait", "--home", home)
        log.unlink()  # What it was asked about is in its result.
    return home


def rerun(home: Path, capfd: pytest.CaptureFixture[str], name: str = "sort") -> tuple[int, Json]:
    capfd.readouterr()
    code = verb.rerun(Call(str(home), True), name, verify=True)
    return code, json.loads(capfd.readouterr().out)


def test_a_run_gives_the_same_bytes_again(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, said = rerun(home, capfd)
    assert (code, said["verdict"]) == (0, "verified"), said


def test_a_run_whose_result_was_changed_differs(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (path,) = home.glob("runs/sort*/1/result.json")
    whole = path.read_text()
    result = json.loads(whole)
    result["outputs"][2]["text"] += "!"
    path.write_text(json.dumps(result))
    code, said = rerun(home, capfd)
    assert (code, said["verdict"]) == (1, "differs")
    assert said["at"].startswith("answer 3 of 5")
    path.write_text(whole)


def test_with_other_weights_nothing_is_verified(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = home / "models" / "copy" / "config.json"
    whole = config.read_text()
    config.write_text(whole.replace("{", '{"note": 1,', 1))
    code, said = rerun(home, capfd)
    assert (code, said["verdict"]) == (69, "unpromised")
    assert said["why"].startswith("digest was")
    config.write_text(whole)


def test_what_cannot_be_asked_again_is_told(home: Path) -> None:
    with pytest.raises(Failure, match="no inference run"):
        verb.rerun(Call(str(home), False), "plain", verify=True)
    with pytest.raises(Failure, match="no run"):
        verb.rerun(Call(str(home), False), "nothing", verify=True)


def test_a_run_that_the_gateway_answered_is_asked_as_the_gateway_was() -> None:
    task = {"prompt": "triage: link down", "max_new_tokens": 6, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0,
            "stop": ()}  # fmt: skip
    again = Again()
    facts: Json = {"path": str(FOLDER), "runtime": "exact"}
    first = again.run(task, {"gateway": {}, "model": facts, "outputs": [{"text": ""}]})
    facts = again._runtime.facts if again._runtime else {}
    texts = [{"text": "".join(answered(again, task))}]
    verdict = again.run(task, {"gateway": {}, "model": facts, "outputs": texts})
    again.close()
    assert (first.verdict, verdict.verdict) == ("unpromised", "verified")


def answered(again: Again, task: Json) -> list[str]:
    turns = ({"role": "user", "content": task["prompt"]},)
    request = Generation(id="x", messages=turns, max_new_tokens=task["max_new_tokens"])
    assert again._runtime is not None
    return rerun_module._answered(again._runtime, request)
