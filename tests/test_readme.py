"""The README's words are true: its examples run, its commands and files exist, its first job is sound."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from daemon.cli.grammar import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    return [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]


def verbs_of(command: Any) -> dict[str, Any]:
    """The commands of a group; none of a verb."""
    found: dict[str, Any] = getattr(command, "commands", {})
    return found


@pytest.fixture
def person(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who follows the README."""
    (tmp_path / "bin").mkdir()
    hermesd = tmp_path / "bin" / "hermesd"
    hermesd.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m daemon.cli "$@"\n')
    hermesd.chmod(0o700)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return {"HOME": str(tmp_path), "PATH": path, "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}


def test_who_follows_it_word_for_word_gets_what_it_says(person: dict[str, str]) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed here")
    home = Path(person["HOME"]) / ".hermesd"
    first, *rest = blocks("console checked")
    assert len(rest) == 4
    run_all(first, person)
    [job] = blocks("yaml")
    assert len(job.splitlines()) == 5
    (home / "jobs" / "disk-report.yaml").write_text(job)
    for blocks_now in (rest, []):  # The second daemon begins another segment: the first is sealed then.
        daemon = subprocess.Popen(["hermesd", "run"], env=person, stdout=subprocess.PIPE, text=True)
        try:
            assert daemon.stdout is not None
            assert "ready" in daemon.stdout.readline()
            for block in blocks_now:
                run_all(block, person)
        finally:
            daemon.terminate()
            daemon.communicate(timeout=30)
    for block in rest[-2:]:  # Every read works with the daemon down.
        run_all(block, person)


def run_all(block: str, environment: dict[str, str]) -> None:
    here = environment["HOME"]
    for command in commands(block):
        if command.startswith("cd "):
            here = os.path.join(environment["HOME"], command.removeprefix("cd ~/"))
            continue
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], cwd=here, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert done.stdout.strip(), f"{command} says nothing"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_it_names_exists_with_its_options(page: Path) -> None:
    unknown = []
    for text in re.findall(r"hermesd((?: +[^\s`|#]+)+)", PAGES[page]):
        words = text.split()
        command: Any = typer.main.get_command(app)
        valued: set[str] = set()  # The options that take a value, which is no verb.
        for word, before in zip(words, ["", *words], strict=False):
            below = verbs_of(command)
            if below and before not in valued and re.fullmatch(r"[a-z]+", word):
                if word not in below:
                    unknown.append(f"hermesd {' '.join(words)}")
                    break
                command = below[word]
            elif word == "--":
                break
            elif re.fullmatch(r"--?[a-z-]+", word):
                known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
                valued = {o for p in command.params if not getattr(p, "is_flag", True) for o in p.opts}
                if word not in known:
                    unknown.append(f"hermesd {' '.join(words)}: {word}")
    assert unknown == []


def test_every_verb_is_in_its_table() -> None:
    table = README.partition("## Commands")[2].partition("\n## ")[0]
    for name, command in verbs_of(typer.main.get_command(app)).items():
        assert f"hermesd {name}" in table, f"{name} is missing"
        for below in verbs_of(command):
            assert re.search(rf"hermesd {name} .*`?{below}`", table), f"{name} {below} is missing"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_target_and_file_it_names_exists(page: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"make (demo|test|check|bench|[a-z]+)\b(?=`|  )", PAGES[page])) <= set(targets)
    for link in re.findall(r"\]\(([^)#:]+)\)", PAGES[page]):
        assert (page.parent / link).exists(), link
    for named in re.findall(r"`((?:ledger|examples|docs|daemon|policies|state|tests)/[\w./-]+)`", PAGES[page]):
        in_the_home = {"ledger/HEAD", "ledger/EPOCH", "ledger/quarantine/"}
        assert named in in_the_home or (ROOT / named).exists(), named


def test_it_is_short_enough_to_be_read() -> None:
    assert len(README.splitlines()) <= 210
