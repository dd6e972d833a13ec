"""An engine in hermetic mode opens no socket and writes nowhere but into its scratch folder: real ones, real kernel."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

PROBE = """
import ctypes, json, os, socket, sys, threading
from pathlib import Path
scratch, outside, port, home, load = sys.argv[1:6]
load = load == "load"
ours, theirs = socket.socketpair()          # the wire, open before
from daemon.inference import sandbox
began = sandbox.begin(scratch)
if load:
    from daemon.inference.hermes_mini import FOLDER
    from daemon.inference.runtimes import Generation, Piece, Spec
    from daemon.inference.runtimes import load as load_model
    runtime = load_model(Spec(model=str(FOLDER), device="cpu"))
going, done = threading.Event(), threading.Event()
late = {}
def another():                               # a thread from before the door was shut
    going.wait()
    late["socket"] = ctypes.CDLL(None).socket(2, 1, 0)
    try:
        open(os.path.join(outside, "thread"), "w")
    except OSError as error:
        late["file"] = error.errno
    done.set()
threading.Thread(target=another, daemon=True).start()
held = sandbox.enter(scratch)
said = {"held": held}
going.set(); done.wait(20); said["late"] = late
def tried(name, act):
    try:
        act(); said[name] = "done"
    except OSError as error:
        said[name] = type(error).__name__
libc = ctypes.CDLL(None, use_errno=True)
tried("tcp", lambda: socket.create_connection(("127.0.0.1", int(port)), timeout=5))
said["raw"] = [libc.socket(family, kind, 0) for family, kind in ((2, 1), (2, 2), (10, 1), (1, 1))]
tried("outside", lambda: open(os.path.join(outside, "file"), "w"))
tried("append", lambda: open(os.path.join(outside, "kept"), "a").write("more"))
tried("truncate", lambda: os.truncate(os.path.join(outside, "kept"), 0))
tried("remove", lambda: os.remove(os.path.join(outside, "kept")))
tried("rename", lambda: os.rename(os.path.join(scratch), os.path.join(outside, "moved")))
tried("home", lambda: open(os.path.join(home, "file"), "w"))
tried("inside", lambda: open(os.path.join(scratch, "file"), "w").write("fine"))
tried("read", lambda: open(os.path.join(outside, "kept")).read())
child = os.fork()
if child == 0:                               # a child is no way out
    try:
        open(os.path.join(outside, "child"), "w"); os._exit(0)
    except OSError:
        os._exit(7)
said["child"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
ours.sendall(b"still here"); said["wire"] = theirs.recv(100).decode()
if load:
    runtime.submit(Generation(id="a", messages=({"role": "user", "content": "Triage this log line: disk full"},)))
    text = ""
    while runtime.busy():
        text += "".join(each.text for each in runtime.step() if isinstance(each, Piece))
    said["text"] = text
print(json.dumps(said))
"""


def shut_in(tmp_path: Path, *, load: bool, before: str = "") -> dict[str, Any]:
    scratch, outside = tmp_path / "scratch", tmp_path / "outside"
    scratch.mkdir()
    outside.mkdir()
    (outside / "kept").write_text("kept")
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept(), daemon=True).start()
        command = [sys.executable, "-c", before + PROBE, scratch, outside, server.getsockname()[1], tmp_path,
                   "load" if load else "bare"]  # fmt: skip
        said = subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parent.parent,
        )
    assert said.returncode == 0, said.stderr
    assert (outside / "kept").read_text() == "kept"
    assert sorted(path.name for path in outside.iterdir()) == ["kept"]
    return dict(json.loads(said.stdout.splitlines()[-1]))


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")
@pytest.mark.parametrize("load", [False, True])
def test_no_socket_and_no_write_outside_the_scratch_folder(tmp_path: Path, load: bool) -> None:
    if load:
        pytest.importorskip("torch")
    said = shut_in(tmp_path, load=load)
    if "landlock" not in said["held"] or "seccomp" not in said["held"]:
        pytest.skip(f"this kernel gives only {said['held']}")
    assert said["tcp"] == "Guarded"
    assert said["raw"] == [-1, -1, -1, -1]
    assert said["late"]["socket"] == -1
    refused = ("outside", "append", "truncate", "remove", "rename", "home")
    assert {name: said[name] for name in refused} == dict.fromkeys(refused, "PermissionError")
    assert said["child"] == 7
    assert (said["inside"], said["read"], said["wire"]) == ("done", "done", "still here")
    if load:
        assert said["text"]


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")
def test_where_the_kernel_gives_nothing_our_own_code_is_still_guarded(tmp_path: Path) -> None:
    program = (
        "import socket, sys; from daemon.inference import sandbox;"
        "sandbox._landlock = lambda *a: []; sandbox._seccomp = lambda *a: False; sandbox._alone = lambda *a: False;"
        "print(sandbox.enter(sys.argv[1]));\n"
        "try: socket.socket()\n"
        "except PermissionError as error: print(error)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert said.stdout.splitlines()[0] == "['no-new-privileges', 'socket-guard']"
    assert "hermetic" in said.stdout
