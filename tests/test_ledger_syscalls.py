"""Each system call the writer makes fails in each way, in a real process on real files: nothing acknowledged is lost,
and nothing fails in silence."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from ledger_process import append, opened

from daemon.system import OsDisk
from ledger.reader import read
from ledger.verify import verify

PROGRAM = Path(__file__).with_name("ledger_process.py")
ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EMFILE", "EINTR")
CALLS = {
    "write": ("write", "pwrite64"),
    "fdatasync": ("fdatasync",),
    "fsync": ("fsync",),
    "rename": ("rename", "renameat", "renameat2"),
    "openat": ("openat",),
    "ftruncate": ("ftruncate",),
    "fallocate": ("fallocate",),
    "unlink": ("unlink", "unlinkat"),
    "flock": ("flock",),
}
TRACED = ",".join(f"?{name}" for names in CALLS.values() for name in names)
NO_ROOM = ("ENOSPC", "EDQUOT")


class Call(NamedTuple):
    """The n-th of its name in the process, and what it was about."""

    name: str
    number: int
    text: str


def strace_works() -> str:
    """Why there is no strace to inject faults with; "" if there is."""
    if sys.platform != "linux" or shutil.which("strace") is None:
        return "strace is not here"
    tried = subprocess.run(
        ["strace", "-o", os.devnull, "-e", "inject=getppid:error=EIO", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"strace may not trace here: {tried.stderr.strip()}" if tried.returncode else ""


@pytest.fixture(scope="module")
def strace() -> None:
    if why := strace_works():
        pytest.skip(why)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose writer was killed in the middle of a batch: opening it has something to cut and to remove."""
    home = tmp_path_factory.mktemp("template")
    disk = OsDisk(home)
    disk.make_folder("ledger")
    ledger = opened(home)
    append(ledger, 1)
    ledger.note_head(durable=True)
    path = f"ledger/{ledger.segment.name}"
    ledger._lock.release()  # killed: nothing is closed
    with (home / path).open("ab") as file:
        file.write(b'{"seq":4,"n":1,"ep":1,"ts":"2026-')
    (home / "ledger" / ".HEAD.new").write_bytes(b"half")
    return home


def run(template: Path, folder: Path, *options: str) -> tuple[Path, subprocess.CompletedProcess[str], str]:
    """The home after it, how it ended, and what was traced."""
    home = folder / "home"
    shutil.copytree(template, home)
    log = folder / "trace"
    command = [
        "strace",
        "-y",
        "-o",
        str(log),
        "-e",
        f"trace={TRACED}",
        *options,
        sys.executable,
        str(PROGRAM),
        str(home),
    ]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(PROGRAM.parent.parent)}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    return home, ended, log.read_text(errors="replace")


@pytest.fixture(scope="module")
def calls(strace: None, template: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """Those that the process makes about the ledger, in a life without faults."""
    home, ended, log = run(template, tmp_path_factory.mktemp("dry"))
    assert ended.stdout.splitlines()[-1] == "done", ended
    held(home, ended.stdout)
    counts: dict[str, int] = {}
    found = []
    for line in log.splitlines():
        name = line.partition("(")[0]
        counts[name] = counts.get(name, 0) + 1
        if f"{home}/ledger" in line:
            found.append(Call(name, counts[name], line))
    return found


def held(home: Path, said: str) -> None:
    """Open it again: everything acknowledged is there, and the whole is sound."""
    acknowledged = dict(re.findall(r"ack (\d+) ([\w-]+)", said))
    ledger = opened(home)
    append(ledger, 99)
    ledger.close()
    disk = OsDisk(home)
    found = {str(record.seq): record.hash for record in read(disk)}
    assert acknowledged.items() <= found.items()
    assert verify(disk).ok, verify(disk).damages


def chosen(calls: list[Call], names: tuple[str, ...]) -> list[Call]:
    """The first of these, one from the middle, the last, and one that writes a batch."""
    mine = [call for call in calls if call.name in names]
    batches = [call for call in mine if re.search(r"/\d[\w-]+\.jsonl>", call.text)]
    return sorted({mine[0], mine[len(mine) // 2], mine[-1], *batches[2:3]}) if mine else []


@pytest.mark.parametrize("error", [*ERRORS, "delay"])
@pytest.mark.parametrize("kind", CALLS)
def test_a_system_call_that_fails_loses_nothing_and_does_not_fail_in_silence(
    kind: str, error: str, calls: list[Call], template: Path, tmp_path: Path
) -> None:
    places = chosen(calls, CALLS[kind])
    assert places, f"the writer makes no {kind} here"
    for index, call in enumerate(places[-1:] if error == "delay" else places):
        fault = "delay_enter=30000" if error == "delay" else f"error={error}"
        inject = f"inject={call.name}:{fault}:when={call.number}"
        for again in range(
            4
        ):  # A busy machine may make a call more, or in another order, than in the life without faults.
            folder = tmp_path / f"{index}-{again}"
            folder.mkdir()
            home, ended, log = run(template, folder, "-e", inject)
            hit = [line for line in log.splitlines() if "(INJECTED)" in line or "(DELAYED)" in line]
            if len(hit) == 1 and f"{home}/ledger" in hit[0]:
                break
        else:
            pytest.fail(f"another call was hit than the one that was meant: {hit}")
        assert ended.stderr == "", ended.stderr
        outcomes = [line for line in ended.stdout.splitlines() if not line.startswith("ack ")]
        documented(call, error, outcomes, ended)
        held(home, ended.stdout)


def documented(call: Call, error: str, outcomes: list[str], ended: subprocess.CompletedProcess[str]) -> None:
    place = (call.text, error, outcomes)
    if error == "delay" or (error == "EINTR" and call.name not in ("rename", "unlink")):
        assert outcomes == ["done"], place  # the interpreter, or the door, makes the call again
        return
    assert (ended.returncode == 74) == (outcomes[-1] == "Poisoned"), place
    if "Full" in outcomes:
        assert error in NO_ROOM, place
    if outcomes == ["done"]:
        # Where a failure is no failure: room asked for ahead, and what is done again at the next start.
        assert error in NO_ROOM or "EPOCH" not in call.text, place
        assert call.name in ("fallocate", "ftruncate", "write", "openat", "rename", "fdatasync", "fsync"), place
    if call.name in ("fdatasync", "write") and error not in NO_ROOM and ".jsonl>" in call.text:
        assert outcomes[-1] in ("Poisoned", "OSError"), place
    if call.name == "flock":
        assert outcomes == ["OSError"], place


def test_every_kind_of_call_is_made_by_the_writer(calls: list[Call]) -> None:
    assert {call.name for call in calls} >= {names[0] for names in CALLS.values()}
