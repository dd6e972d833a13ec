"""Secrets: read when something is done with them, by whoever does it, and nowhere else to be found."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_shell import Foreground, answer, hermesd, make_home

from daemon.order import without_secrets
from daemon.ports import CommandTask, Order
from daemon.secret import SECRET_BYTES_MAX, NoSecret, Secrets

VALUE = "v3ry-s3cret-value"


def keep(home: Path, name: str, value: str = VALUE + "\n", mode: int = 0o600) -> None:
    path = home / "secrets" / name
    path.write_text(value)
    path.chmod(mode)


def home_with(place: Path, *jobs: dict[str, Any]) -> Path:
    home = make_home(place / "home")
    listed = [{"schedule": "manual", "env": {"TOKEN": "Bearer {{ secret.api }}"}, **job} for job in jobs]
    (home / "jobs" / "jobs.json").write_text(json.dumps(listed))
    (home / "jobs" / "task.py").write_text("import os\ndef length(**_):\n    return len(os.environ['TOKEN'])\n")
    return home


def holders(home: Path) -> list[str]:
    """Every file of the home that holds the secret."""
    files = [path for path in home.rglob("*") if path.is_file()]
    return sorted(str(path.relative_to(home)) for path in files if VALUE.encode() in path.read_bytes())


def test_a_run_gets_its_secret_and_nothing_else_in_the_home_ever_holds_it(tmp_path: Path) -> None:
    large = {"LARGE": "x" * 20_000, "TOKEN": "Bearer {{ secret.api }}"}
    size = [sys.executable, "-c", "import os; print(len(os.environ['TOKEN']))"]
    home = home_with(
        tmp_path,
        {"name": "plain", "kind": "command", "argv": size, "notify": {"on": "succeeded", "command": ["true"]}},
        {"name": "large", "kind": "command", "argv": size, "env": large},
        {"name": "called", "kind": "python", "call": "task:length"},
        {"name": "called-large", "kind": "python", "call": "task:length", "kwargs": large | {"TOKEN": "x"}},
        {"name": "steps", "kind": "agent", "steps": [{"name": "a", "kind": "command", "argv": size}]},
        {"name": "lost", "kind": "command", "argv": ["no-such-program"], "env": {"PATH": "/{{ secret.api }}"}},
        {"name": "slow", "kind": "command", "argv": ["sleep", "30"], "grace": "0s"},
    )
    keep(home, "api")
    expected = str(len(f"Bearer {VALUE}"))
    with Foreground(home) as daemon:
        for job in ("plain", "large", "steps"):
            hermesd("start", job, "--wait", "--home", home)
        hermesd("start", "lost", "--wait", "--home", home, code=1)
        for job in ("called", "called-large"):
            run = answer("start", job, "--wait", "--home", home)["run"]
            assert (home / "runs" / run / "1" / "result.json").read_text() == expected
        for job in ("plain", "large"):
            assert hermesd("runs", "logs", job, "--home", home).stdout == f"{expected}\n"
        slow = answer("start", "slow", "--home", home)["run"]
        daemon.kill()
        (home / "secrets" / "api").unlink()
    with Foreground(home):  # It goes on although its secret is gone.
        assert answer("runs", "show", slow, "--home", home)["state"] in ("running", "granted")
        hermesd("cancel", slow, "--home", home)
        keep(home, "api")
        hermesd("jobs", "show", "plain", "--home", home)
        assert list((home / "runs").glob("large*/1/order.json")), "an order too long for the socket went by a file"
    assert holders(home) == ["secrets/api"]


def test_a_secret_that_is_missing_or_open_to_others_blocks_the_slot_and_says_what_to_do(tmp_path: Path) -> None:
    home = home_with(tmp_path, {"name": "a", "kind": "command", "argv": ["true"]})
    with Foreground(home):
        missing = answer("start", "a", "--wait", "--home", home, code=1)
        keep(home, "api", mode=0o640)
        open_to_others = answer("start", "a", "--wait", "--home", home, code=1)
    assert missing["state"] == open_to_others["state"] == "blocked"
    assert f"there is no secret api: write it to {home}/secrets/api" in missing["reason"]
    assert f"others may read {home}/secrets/api (mode 0640): chmod 600" in open_to_others["reason"]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ("a\0b", "holds a NUL character"),
        ("x" * (SECRET_BYTES_MAX + 1), "has more than 8192 bytes: give a program its path"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_what_is_no_secret_is_told_without_a_word_of_it(tmp_path: Path, value: str | bytes, why: str) -> None:
    (tmp_path / "a").write_bytes(value.encode() if isinstance(value, str) else value)
    (tmp_path / "a").chmod(0o600)
    with pytest.raises(NoSecret, match=why):
        Secrets(tmp_path).value("a")


def test_the_line_end_at_the_end_does_not_count_and_others_do(tmp_path: Path) -> None:
    for name, text in {"a": "x", "b": "x\n", "c": "x\r\n", "d": "x\ny\n\n"}.items():
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_bytes(text.encode())
    assert [Secrets(tmp_path).value(name) for name in "abcd"] == ["x", "x", "x", "x\ny\n"]


def test_a_pipe_a_folder_a_link_to_nothing_and_an_open_folder_of_secrets_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    with pytest.raises(NoSecret, match="hermesd init"):
        Secrets(folder).value("a")
    folder.mkdir(0o700)
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "pipe", 0o600)
    (folder / "folder").mkdir(0o700)
    for name in ("link", "pipe", "folder"):
        with pytest.raises(NoSecret, match=name):
            Secrets(folder).value(name)
    folder.chmod(0o750)
    with pytest.raises(NoSecret, match="others can get into the folder of secrets: chmod 700"):
        Secrets(folder).value("link")


def test_what_a_start_complains_of_is_told_without_its_secrets() -> None:
    order = Order("r", 1, 1, "/", CommandTask(("x",), "/"), {"A": f"/{VALUE}"}, {}, frozenset({"A"}))
    assert without_secrets(order, f"not on the PATH (/{VALUE})") == "not on the PATH (***)"
    assert VALUE not in repr(order)
