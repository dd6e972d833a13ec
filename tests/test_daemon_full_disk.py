"""A real file system filled to the last byte under a running daemon: nothing recorded is lost, and it goes on after."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Runs inside namespaces of its own, where anybody may mount a file system of 4 MiB on a folder.
INSIDE = """
import atexit, json, os, signal, subprocess, sys, time
from pathlib import Path
place = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", place], check=True)
home = place / "home"
def hermesd(*words, ok=True):
    done = subprocess.run([sys.executable, "-m", "daemon.cli", "--home", home, *words], capture_output=True, text=True)
    assert done.returncode == 0 or not ok, (words, done.stderr)
    return done
def up():
    daemon = subprocess.Popen([sys.executable, "-m", "daemon.cli", "--home", home, "run"], stdout=subprocess.PIPE)
    assert b"ready" in daemon.stdout.readline()
    return daemon
def wait(done, what):
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.05)
hermesd("init")
(home / "jobs" / "a.yaml").write_text("name: a\\nkind: command\\nschedule: manual\\nargv: [echo, hello]\\n")
daemon = up()
atexit.register(daemon.kill)
before = json.loads(hermesd("start", "a", "--wait", "--json").stdout)
filler = os.open(place / "filler", os.O_WRONLY | os.O_CREAT)
for size in (4096, 1):
    try:
        while os.write(filler, b"x" * size):
            pass
    except OSError:
        pass
os.close(filler)
def refused():
    return "no room on the disk" in hermesd("start", "a", ok=False).stderr
wait(refused, "a full disk is told")
told = hermesd("start", "a", ok=False)
reads = hermesd("runs", "list", "--json", "-n", "1000")
assert daemon.poll() is None, "the daemon lives through it"
os.unlink(place / "filler")
wait(lambda: hermesd("start", "a", "--wait", ok=False).returncode == 0, "it goes on when there is room")
verified = hermesd("verify"); replayed = hermesd("replay", "--verify")
daemon.send_signal(signal.SIGTERM); daemon.wait(30)
print(json.dumps({"before": before, "refused": told.stderr, "exit": told.returncode, "runs": json.loads(reads.stdout)}))
"""


def test_a_full_disk_refuses_politely_keeps_what_was_recorded_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs unshare (util-linux) to mount a small file system of its own")
    words = [unshare, "--mount", *(["--user", "--map-root-user"] if os.geteuid() else []), sys.executable]
    probe = subprocess.run(
        [*words[:-1], "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True, text=True
    )
    if probe.returncode:
        pytest.skip(f"this machine lets nobody mount a file system of their own: {probe.stderr.strip()}")
    done = subprocess.run([*words, "-c", INSIDE, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["exit"] == 69
    assert "free some space" in told["refused"]
    assert told["before"]["state"] == "succeeded", told
    assert told["before"]["run"] in {run["run"] for run in told["runs"]}
