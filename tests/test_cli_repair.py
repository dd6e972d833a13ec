"""`hermesd ledger`: what is archived, proven, cut, restored and taken over, on real files and by the command itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from cli_shell import answer, hermesd

from daemon import heartbeat
from daemon.system import OsDisk, SystemClock
from daemon.workers import identity
from ledger.ledger import Bounds, Ledger
from ledger.reader import read
from ledger.segment import Writer, segments_in
from ledger.verify import verify
from state.events import draft

HOLD = """
import sys, time
from daemon.system import OsDisk
disk = OsDisk(sys.argv[1])
lock = disk.lock("ledger/LOCK")
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Segments of two epochs, with records that any Hermes understands."""
    place = tmp_path / "home"
    hermesd("init", "--home", place)
    clock = SystemClock()
    for session in range(2):
        ledger = Ledger.open(
            OsDisk(place), Writer("box", "boot", 1, 1, "test"), clock.now(), bounds=Bounds(segment_bytes=1_500)
        )
        for number in range(12):
            note = {"request": f"r{session}-{number}", "text": f"note {number}", "actor": "ann@box"}
            ledger.append([draft("note.added", "job/a", note)], clock.now())
        ledger.close()
    return place


def segment_files(home: Path) -> list[Path]:
    return [home / "ledger" / segment.name for segment in segments_in(OsDisk(home).list("ledger"))]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


def test_archived_segments_stay_readable(home: Path) -> None:
    before = hermesd("events", "--json", "--home", home).stdout
    told = answer("ledger", "archive", "--keep", "1", "--home", home)
    assert told["packed_bytes"] < told["bytes"]
    assert all((home / "ledger" / one["name"]).exists() for one in told["archived"])
    assert hermesd("events", "--json", "--home", home).stdout == before
    hermesd("verify", "--home", home)
    hermesd("replay", "--verify", "--home", home)
    assert "Nothing to archive" in hermesd("ledger", "archive", "--keep", "1", "--home", home).stdout


def test_a_proof_is_checked_without_a_home(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "proof.json"
    file.write_text(hermesd("events", "prove", "5", "--home", home).stdout)
    told = answer("events", "prove", "--check", file, "--home", tmp_path / "nowhere")
    assert told["record"]["seq"] == 5
    hermesd("events", "prove", "--check", file, "--root", told["root"])
    assert "rests on the root" in hermesd("events", "prove", "--check", file, "--root", "0" * 64, code=1).stderr
    proof = json.loads(file.read_text())
    file.write_text(json.dumps(proof | {"line": proof["line"].replace("note", "lie!")}))
    assert "it proves nothing" in hermesd("events", "prove", "--check", file, code=1).stderr
    last = list(read(OsDisk(home)))[-1].seq
    assert "being written" in hermesd("events", "prove", str(last), "--home", home, code=3).stderr
    hermesd("events", "prove", "--home", home, code=2)


def test_the_refusal_names_the_commands_and_each_does_what_it_says(home: Path, tmp_path: Path) -> None:
    backup = Path(shutil.copytree(home, tmp_path / "backup"))
    path = segment_files(home)[1]
    damage(path)
    refused = hermesd("run", "--home", home, code=78).stderr
    assert f"ledger/{path.name} at byte" in refused
    last_good = int(refused.split("--at ")[1].split()[0]) - 1
    assert f"records 1 to {last_good} are good" in refused

    told = hermesd("ledger", "restore", backup, "--home", home).stdout
    assert f"put back: ledger/{path.name}" in told
    assert list(read(OsDisk(home)))[-1].type == "ledger.restored"
    assert verify(OsDisk(home)).ok

    damage(path)
    asked = ("ledger", "cut", "--at", str(last_good + 1), "--home", home)
    assert "Nothing was changed" in hermesd(*asked, code=1).stdout
    assert not verify(OsDisk(home)).ok
    hermesd(*asked, "--accept-loss", "--reason", "the disk failed")
    last = list(read(OsDisk(home)))[-1]
    assert (last.type, last.data["last_seq"], last.data["reason"]) == ("ledger.cut", last_good, "the disk failed")
    assert verify(OsDisk(home)).ok
    hermesd("replay", "--verify", "--home", home)


def test_nothing_is_put_back_from_a_backup_that_has_nothing_to_offer(home: Path, tmp_path: Path) -> None:
    assert "nothing was put back" in hermesd("ledger", "restore", tmp_path, "--home", home, code=1).stderr
    hermesd("ledger", "restore", tmp_path / "nowhere", "--home", home, code=2)


def test_a_daemon_that_hangs_is_killed_and_one_that_does_not_is_left_alone(home: Path) -> None:
    hermesd("ledger", "takeover", "--home", home, code=4)
    root = Path(__file__).parent.parent
    child = subprocess.Popen([sys.executable, "-c", HOLD, home], cwd=root, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        hermesd("ledger", "cut", "--at", "5", "--accept-loss", "--home", home, code=75)
        beat = heartbeat.Beat(child.pid, identity.start_time(child.pid) or 0, SystemClock().boot_id, 0, 0)
        (home / heartbeat.FILE).write_bytes(orjson.dumps(beat._replace(awake_ms=heartbeat.awake_ms())._asdict()))
        assert "does not hang" in hermesd("ledger", "takeover", "--home", home, code=75).stderr
        assert child.poll() is None
        stranger = beat._replace(process_started=beat.process_started + 1)
        (home / heartbeat.FILE).write_bytes(orjson.dumps(stranger._asdict()))
        hermesd("ledger", "takeover", "--after", "1ms", "--home", home, code=4)
        assert child.poll() is None
        silent = beat._replace(awake_ms=heartbeat.awake_ms() - 400_000)
        (home / heartbeat.FILE).write_bytes(orjson.dumps(silent._asdict()))
        assert answer("ledger", "takeover", "--home", home)["killed"] == child.pid
        assert child.wait(10) == -9
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    OsDisk(home).lock("ledger/LOCK").release()
