"""The past at a shell: searched by index, shown as of a record or an instant, compared, audited; without a daemon."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cli_shell import answer, hermesd

from daemon.home import Home
from daemon.system import OsDisk
from daemon.version import code_digest
from ledger.chain import Head
from ledger.instant import Now, ms_of
from ledger.ledger import Bounds, Ledger
from ledger.reader import read
from ledger.record import Record
from ledger.segment import Writer, segments_in
from simulations.bench.past import START_MS, _runs, defined, job_of
from state import snapshot, views
from state.events import draft
from state.graph import Graph
from state.projector import fold

RUNS = 80


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty runs, one a minute, in several sealed segments, with their views and a snapshot in the middle."""
    path = tmp_path_factory.mktemp("past") / "home"
    Home(path).make()
    disk, writer = OsDisk(path), Writer("box", "boot", 1, 1, "0")
    ledger = Ledger.open(disk, writer, _minute(0), bounds=Bounds(segment_bytes=30_000))
    ledger.append([defined(job_of(number)) for number in range(3)], _minute(0))
    story = _runs(3)
    for minute in range(1, RUNS + 1):
        ledger.append([next(story) for _ in range(3)], _minute(minute))
    ledger.append([draft("note.added", "notes", {"request": "n", "text": "the end", "actor": "me"})], _minute(RUNS))
    ledger.close()
    records = list(read(disk))
    half = len(records) // 2
    snapshot.write(disk, fold(Graph(), records[:half]), Head(half, records[half - 1].hash), code_digest())
    views.publish(disk, fold(Graph(), records), Head(records[-1].seq, records[-1].hash))
    return path


def _minute(number: int) -> Now:
    return Now((START_MS + number * 60_000) * 1_000_000, (1000 + number * 60_000) * 1_000_000)


@pytest.fixture(scope="module")
def past(home: Path) -> list[Record]:
    assert len(segments_in(OsDisk(home).list("ledger"))) > 3
    return list(read(OsDisk(home)))


def seqs(home: Path, *words: str) -> list[int]:
    told = hermesd("events", "--json", "--home", home, *words).stdout
    return [json.loads(line)["seq"] for line in told.splitlines()]


def test_events_are_found_by_type_subject_time_and_seq(home: Path, past: list[Record]) -> None:
    run = next(r.subject for r in past if r.type == "run.started")
    finished = [r.seq for r in past if r.type == "run.finished"]
    assert seqs(home, "--type", "run.finished") == finished
    assert seqs(home, "--type", "run.*", "--subject", run) == [r.seq for r in past if r.subject == run]
    since, until = "2026-03-02T12:10:00Z", "2026-03-02T12:20:00Z"
    between = [r.seq for r in past if ms_of(since) <= ms_of(r.ts) <= ms_of(until)]
    assert seqs(home, "--since", since, "--until", until) == between
    assert seqs(home, "--seq", "17") == [17]
    assert seqs(home, "--seq", "17-19", "--type", "*") == [17, 18, 19]
    assert seqs(home, "--seq", "240-")[0] == 240
    assert seqs(home, "-n", "3") == [r.seq for r in past][-3:]
    assert seqs(home, "--type", "run.finished", "-n", "2") == finished[-2:]
    assert (home / "ledger").joinpath(segments_in(OsDisk(home).list("ledger"))[0].stem + ".idx").exists()
    hermesd("verify", "--home", home)  # The index is no stranger in the ledger's folder.
    hermesd("events", "--seq", "x", "--home", home, code=2)


def test_events_as_json_are_the_ledgers_own_bytes(home: Path) -> None:
    told = hermesd("events", "--json", "--home", home).stdout
    files = [f"{s.stem}.jsonl" for s in segments_in(OsDisk(home).list("ledger"))]
    assert told == "".join((home / "ledger" / name).read_text() for name in files)


def test_events_follow_the_structured_json_of_cloudevents_1_0(home: Path, past: list[Record]) -> None:
    told = hermesd("events", "--format", "cloudevents", "--home", home).stdout
    events = [json.loads(line) for line in told.splitlines()]
    assert len(events) == len(past)
    assert len({(event["source"], event["id"]) for event in events}) == len(past)
    for event, record in zip(events, past, strict=True):
        _conforms(event)
        assert (event["subject"], event["data"]) == (record.subject, record.data)
        assert event["type"] == f"dev.hermesd.{record.type}"


def _conforms(event: dict[str, Any]) -> None:
    """CloudEvents 1.0.2: the required attributes, the types of all, and how extensions may be named."""
    assert event["specversion"] == "1.0"
    for name in ("id", "source", "type", "subject"):
        assert isinstance(event[name], str)
        assert event[name]
    assert re.fullmatch(r"urn:hermesd:ledger:[0-9a-f]+", event["source"])
    moment = datetime.fromisoformat(event["time"])
    assert moment.tzinfo is not None
    assert event["datacontenttype"] == "application/json"
    for name, value in event.items():
        assert re.fullmatch(r"[a-z0-9]{1,20}", name), name
        if name == "data":
            continue
        assert isinstance(value, (str, int, bool)), name
        assert not isinstance(value, int) or -(2**31) <= value < 2**31, name
        assert not isinstance(value, str) or not re.search(r"[\x00-\x1f\x7f-\x9f]", value), name


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_view_is_shown_as_of_a_record_whatever_snapshot_is_near(home: Path, past: list[Record], share: float) -> None:
    seq = int(len(past) * share)
    head = Head(seq, past[seq - 1].hash)
    expected = views.render(fold(Graph(), past[:seq]), head)["runs.json"]
    assert hermesd("state", "runs", "--at", str(seq), "--home", home).stdout.encode() == expected


def test_a_view_is_shown_as_of_an_instant(home: Path, past: list[Record]) -> None:
    last = [r for r in past if ms_of(r.ts) <= START_MS + 30 * 60_000][-1]
    told = answer("state", "runs", "--at", "2026-03-02T12:30:30Z", "--home", home)
    assert told["head"] == {"seq": last.seq, "hash": last.hash}
    assert answer("state", "jobs", "--at", "2020-01-01", "--home", home)["jobs"] == []
    hermesd("state", "runs", "--at", str(len(past) + 1), "--home", home, code=3)
    hermesd("state", "runs", "--at", "noon-ish", "--home", home, code=2)


def test_two_states_are_compared(home: Path, past: list[Record]) -> None:
    started = next(r for r in past if r.type == "run.started")
    words = ("state", "diff", str(started.seq - 1), str(started.seq), "--home", home)
    told = answer(*words)
    assert (told["came"], told["went"], list(told["changed"])) == ({}, {}, [started.subject])
    assert told["changed"][started.subject]["state"] == ["granted", "running"]
    assert f"~ {started.subject}" in hermesd(*words).stdout
    assert "Nothing differs." in hermesd("state", "diff", "9", "9", "--home", home).stdout


def test_an_audit_without_a_daemon_says_what_differs_and_that_it_is_not_recorded(home: Path) -> None:
    started = answer("audit", "--home", home)
    assert (started["ok"], started["recorded"]) == (True, False)
    assert started["compared"]["snapshots"] == 1
    rotten = next((home / "snapshots").iterdir())
    whole = rotten.read_bytes()
    rotten.write_bytes(whole + b" ")
    told = answer("audit", "--home", home, code=1)
    assert [finding["where"] for finding in told["findings"]] == [f"snapshots/{rotten.name}"]
    rotten.write_bytes(whole)
