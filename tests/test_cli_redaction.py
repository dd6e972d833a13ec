"""Content deleted by a person's wish: gone from the disk, the chain whole, and whoever looks is told who and why."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_shell import Foreground, answer, hermesd, make_home

JOBS = """\
- name: odd
  kind: command
  shell: echo secret > found.md; echo the secret is out
  outputs: [found.md]
  schedule: manual
- name: twin
  kind: command
  shell: echo secret > found.md
  outputs: [found.md]
  schedule: manual
- name: other
  kind: command
  shell: echo harmless > found.md
  outputs: [found.md]
  schedule: manual
- name: slow
  kind: command
  argv: [sleep, "60"]
  schedule: manual
"""


def files(home: Path) -> list[Path]:
    return [path for folder in ("runs", "artifacts") for path in (home / folder).rglob("*") if path.is_file()]


def holding(home: Path, text: bytes) -> list[str]:
    return [path.name for path in files(home) if text in path.read_bytes()]


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = make_home(tmp_path_factory.mktemp("redaction") / "past", jobs=JOBS)
    with Foreground(home):
        for job in ("odd", "other"):
            hermesd("start", job, "--wait", "--home", home)
    return home


def test_an_output_that_there_is_no_place_for_is_told_of_and_ends_no_daemon(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", jobs=JOBS)
    (home / "artifacts").mkdir(exist_ok=True)
    for number in range(256):
        (home / "artifacts" / f"{number:02x}").touch()  # where a folder is to be
    with Foreground(home):
        said = hermesd("start", "odd", "--wait", "--home", home).stdout
        assert "found.md could not be kept, and stays in the run's folder: Not a directory" in said
    assert sorted(holding(home, b"secret")) == ["found.md", "stdout.log"]


@pytest.fixture
def home(past: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(past, tmp_path / "home"))


@pytest.fixture
def daemon(home: Path) -> Iterator[Foreground]:
    with Foreground(home) as process:
        yield process


def test_a_redacted_run_is_gone_from_the_disk_and_its_past_is_whole(home: Path, daemon: Foreground) -> None:
    run = answer("runs", "list", "--job", "odd", "--home", home)[0]
    assert sorted(holding(home, b"secret")) != []
    told = answer("redact", "odd", "--reason", "it names a customer", "--home", home)
    assert (told["run"], told["digests"], told["shared"]) == (run["run"], [run["artifacts"]["found.md"]], [])
    assert holding(home, b"secret") == []
    assert holding(home, b"harmless") != []
    assert "ok" in hermesd("verify", "--artifacts", "--home", home).stdout
    hermesd("replay", "--verify", "--home", home)
    said = hermesd("runs", "logs", run["run"], "--home", home, code=3).stderr
    assert "was redacted by " in said
    assert "it names a customer" in said
    for words in (("runs", "show", run["run"]), ("why", run["run"])):
        assert "redacted by " in hermesd(*words, "--home", home).stdout
    event = hermesd("events", "--type", "artifact.redacted", "--home", home).stdout
    assert "it names a customer" in event


def test_what_another_run_has_too_stays_and_is_named(home: Path, daemon: Foreground) -> None:
    hermesd("start", "twin", "--wait", "--home", home)
    told = answer("redact", "odd", "--reason", "tidy", "--home", home)
    assert (told["digests"], len(told["shared"])) == ([], 1)
    assert told["shared"][0] in holding(home, b"secret")
    again = answer("redact", "twin", "--reason", "tidy", "--home", home)
    assert (again["digests"], again["shared"]) == (told["shared"], [])
    assert holding(home, b"secret") == []


def test_content_that_comes_again_after_its_redaction_is_kept_and_whole(home: Path, daemon: Foreground) -> None:
    told = answer("redact", "odd", "--reason", "tidy", "--home", home)
    hermesd("start", "odd", "--wait", "--home", home)
    daemon.interrupt()
    with Foreground(home):
        assert told["digests"][0] in holding(home, b"secret")
        assert "ok" in hermesd("verify", "--artifacts", "--home", home).stdout


def test_with_the_daemon_down_the_wish_waits_and_is_met_once(home: Path) -> None:
    left = answer("redact", "odd", "--reason", "tidy", "--home", home)["left"]
    assert Path(left).exists()
    assert holding(home, b"secret") != []
    with Foreground(home):
        assert holding(home, b"secret") == []
        assert not Path(left).exists()


def test_a_deletion_cut_short_is_taken_up_by_the_next_start(home: Path, daemon: Foreground) -> None:
    run = answer("runs", "list", "--job", "odd", "--home", home)[0]
    digest = run["artifacts"]["found.md"]
    artifact, log = home / "artifacts" / digest[:2] / digest, home / "runs" / run["run"] / "1" / "stdout.log"
    content, printed = artifact.read_bytes(), log.read_bytes()
    hermesd("redact", "odd", "--reason", "tidy", "--home", home)
    daemon.interrupt()
    log.parent.mkdir(parents=True)
    log.write_bytes(printed)
    artifact.write_bytes(content)
    with Foreground(home):
        assert holding(home, b"secret") == []


def test_what_cannot_be_redacted_is_refused_with_the_reason(home: Path, daemon: Foreground) -> None:
    hermesd("redact", "odd", "--home", home, code=2)
    hermesd("redact", "nobody", "--reason", "x", "--home", home, code=3)
    run = answer("start", "slow", "--home", home)["run"]
    assert "is not over" in hermesd("redact", run, "--reason", "x", "--home", home, code=1).stderr
    hermesd("cancel", run, "--home", home)
