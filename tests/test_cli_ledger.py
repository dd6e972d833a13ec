"""A home after its daemon has gone: looked over, damaged by hand, rebuilt, forged."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cli_shell import Foreground, answer, hermesd, make_home

from daemon.system import OsDisk
from ledger.instant import Now
from ledger.reader import read
from ledger.record import GENESIS, Draft, decode, encode
from ledger.verify import verify

JOBS = """\
- name: report
  kind: command
  shell: echo all well > report.md
  outputs: [report.md]
  schedule: manual
"""


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = make_home(tmp_path_factory.mktemp("cli") / "past", jobs=JOBS)
    with Foreground(home):
        hermesd("start", "report", "--wait", "--home", home)
    return home


@pytest.fixture
def home(past: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(past, tmp_path / "home"))


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x01
    path.write_bytes(data)


def _last_segment(home: Path) -> Path:
    return max((home / "ledger").glob("0*.jsonl"))


def test_a_whole_ledger_verifies_and_replays(past: Path) -> None:
    assert hermesd("verify", "--artifacts", "--home", past).stdout.endswith("ok\n")
    told = hermesd("replay", "--verify", "--home", past).stdout
    assert "every decision hash follows from its recorded inputs" in told


def test_one_flipped_byte_is_named_by_segment_and_offset_and_nothing_is_written_over_it(home: Path) -> None:
    segment = _last_segment(home)
    lines = segment.read_bytes().splitlines(keepends=True)
    offset = sum(map(len, lines[:3]))
    _flip(segment, offset + 40)
    damaged = segment.read_bytes()
    place = {"file": f"ledger/{segment.name}", "offset": offset}
    told = answer("verify", "--home", home, code=1)
    assert told["ok"] is False
    assert place.items() <= told["damages"][0].items()
    for words, code in ((("replay", "--verify"), 1), (("run",), 78), (("status",), 1)):
        refused = hermesd(*words, "--home", home, code=code).stderr
        assert f"ledger/{segment.name} at byte {offset}; records 1 to " in refused
        assert "from a backup" in refused
    assert segment.read_bytes() == damaged


def test_a_missing_or_changed_artifact_is_found_when_asked_for(home: Path) -> None:
    (artifact,) = (path for path in (home / "artifacts").rglob("*") if path.is_file())
    _flip(artifact, 0)
    hermesd("verify", "--home", home)
    damage = answer("verify", "--artifacts", "--home", home, code=1)["damages"][0]
    assert damage["file"].endswith(artifact.name)
    artifact.unlink()
    damage = answer("verify", "--artifacts", "--home", home, code=1)["damages"][0]
    assert "is missing; record" in damage["reason"]


def test_a_deleted_state_folder_comes_back_byte_for_byte(home: Path) -> None:
    before = {path.name: path.read_bytes() for path in (home / "state").iterdir()}
    assert len(before) == 11
    shutil.rmtree(home / "state")
    assert {f"{view}.json" for view in answer("state", "rebuild", "--home", home)["changed"]} == before.keys()
    assert {path.name: path.read_bytes() for path in (home / "state").iterdir()} == before
    assert "every byte was so already" in hermesd("state", "rebuild", "--home", home).stdout


def test_the_state_as_of_an_older_record_is_shown(past: Path) -> None:
    finished = json.loads(hermesd("events", "--type", "run.finished", "--json", "--home", past).stdout)["seq"]
    runs = [
        json.loads(hermesd("state", "runs", "--at", str(seq), "--home", past).stdout)["runs"][0]["state"]
        for seq in (finished - 2, finished)
    ]
    assert runs == ["running", "succeeded"]


def test_a_decision_that_does_not_follow_from_its_inputs_is_found_though_the_chain_is_whole(home: Path) -> None:
    _forge(home, lambda data: data["decisions"][0].update(reason="because I say so"))
    assert verify(OsDisk(home)).damages[0].file == "ledger/EPOCH"  # All that betrays it is that the mark is missing.
    told = answer("replay", "--verify", "--home", home, code=1)
    assert told["differing_inputs"] == []
    assert told["only_recorded"][0]["reason"] == "because I say so"
    assert told["only_again"][0]["reason"] != "because I say so"
    assert told["hash"] == told["recorded_hash"]  # The hash is that of the true decisions: it was left as it was.


def test_the_input_that_differs_is_named(home: Path) -> None:
    _forge(home, lambda data: data["inputs"].update(leases="0" * 32))
    told = hermesd("replay", "--verify", "--home", home, code=1).stdout
    assert "inputs that differ  leases\n" in told
    assert "the decisions are the same" in told


def _forge(home: Path, change: Callable[[Any], None]) -> None:
    """Rewrite the ledger with one plan changed, the chain made whole again, and the marks that would tell removed."""
    lines, previous = [], GENESIS
    records = list(read(OsDisk(home)))
    counts = Counter(record.batch for record in records)
    for record in records:
        if record.type == "plan.decided":
            change(record.data)
        draft = Draft(record.type, record.subject, record.data, record.id, record.cause, record.corr, record.tv)
        now = Now(int(datetime.fromisoformat(record.ts).timestamp() * 1_000_000) * 1000, record.mt)
        line = encode(
            draft,
            now,
            seq=record.seq,
            epoch=record.epoch,
            number=record.seq - record.batch + 1,
            count=counts[record.batch],
            previous=previous,
        )
        previous = decode(line).hash
        lines.append(line)
    _last_segment(home).write_bytes(b"".join(lines))
    for mark in ("HEAD", "EPOCH"):
        (home / "ledger" / mark).unlink()
