"""`hermesd demo` for real, with the real model; what it claims is looked up again here, by other means."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from daemon import jobfiles
from daemon.cli import demo
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.workers import identity
from daemon.workers.claim import Status, read_status
from policies import due
from policies.job import parse_job

ROOT = Path(__file__).resolve().parent.parent
JOBS = {"machine-facts", "triage-log", "morning-report"}


def hermesd(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "daemon.cli", *words], cwd=ROOT, capture_output=True, text=True, **more
    )


class Played:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.done = hermesd("demo", "--home", str(home), "--json", timeout=280)
        assert self.done.returncode == 0, self.done.stderr
        self.said = json.loads(self.done.stdout)
        segments = sorted((home / "ledger").glob("0*.jsonl"))
        self.events = [json.loads(line) for segment in segments for line in segment.read_text().splitlines()]

    def of(self, type: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == type]

    def decided(self) -> list[dict[str, Any]]:
        return [decided for event in self.of("plan.decided") for decided in event["data"]["decisions"]]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return Played(tmp_path_factory.mktemp("demo") / "home")


def test_the_first_daemon_was_killed_and_the_second_said_goodbye(played: Played) -> None:
    life = [event["type"] for event in played.events if event["type"] in ("daemon.started", "daemon.stopped")]
    assert life == ["daemon.started", "daemon.started", "daemon.stopped"]
    first, second = played.of("daemon.started")
    assert first["data"]["pid"] == played.said["killed"]["pid"] != second["data"]["pid"]
    assert second["ep"] > first["ep"]


def test_a_run_of_the_model_lived_on_and_was_taken_up(played: Played) -> None:
    second = played.of("daemon.started")[1]["seq"]
    running = played.said["killed"]["running"]
    assert any("triage" in run for run in running)
    for run in running:
        after = [e["type"] for e in played.events if e["seq"] > second and e["data"].get("run") == run]
        before = [e["type"] for e in played.events if e["seq"] < second and e["data"].get("run") == run]
        assert "run.started" in before
        assert "run.finished" not in before
        assert after[0] in ("run.adopted", "run.finished", "artifact.stored")
        assert after.count("run.finished") == 1


def test_every_slot_was_due_by_its_schedule_and_started_once_and_ended_once(played: Played) -> None:
    slots = [d for d in played.decided() if d["trigger"] == "schedule"]
    assert {d["job"] for d in slots} == JOBS
    assert {d["verdict"] for d in slots} <= {"started", "deferred"}
    started = Counter(d["slot"] for d in slots if d["verdict"] == "started")
    assert set(started.values()) == {1}
    ends = Counter(event["data"]["run"] for event in played.of("run.finished"))
    assert set(ends.values()) == {1}
    assert {d["run"] for d in played.decided()} == set(ends)
    assert {event["data"]["outcome"] for event in played.of("run.finished")} == {"succeeded"}
    last = {event["data"]["job"]: event for event in played.of("job.defined") + played.of("job.changed")}
    for decided in slots:
        spec = parse_job(last[decided["job"]]["data"]["spec"])
        at_ms = round(datetime.fromisoformat(decided["at"]).timestamp() * 1000)
        assert due.next_slot(spec.when, at_ms - 1) == at_ms
    claims = [path.parent for path in (played.home / "runs").glob("*/*/claim")]
    agents = {d["run"] for d in played.decided() if d["job"] == "morning-report" and d["trigger"] == "schedule"}
    assert sorted(folder.parent.name for folder in claims) == sorted(set(ends) - agents)
    assert {read_status(str(folder)) for folder in claims} == {Status(0, None)}


def test_the_report_is_an_artifact_that_holds_the_tables_and_the_facts(played: Played) -> None:
    [stored] = played.of("artifact.stored")
    digest = stored["data"]["digest"]
    content = (played.home / "artifacts" / digest[:2] / digest).read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest
    report = content.decode()
    assert played.said["report"] == report
    assert report.startswith("# Morning report of ")
    assert "| severity | category | log | lines | newest |" in report or "Nothing worse than info." in report
    assert " lines by severity and category" in report
    assert "GiB free" in report
    judged = json.loads(next((played.home / "runs").glob("*.report/1/result.json")).read_text())
    assert judged["lines"] > 0
    assert set(judged["severities"]) <= {"debug", "info", "warning", "error", "critical"}


def test_the_home_passes_every_check_again(played: Played) -> None:
    home = str(played.home)
    alone = [sys.executable, str(ROOT / "ledger" / "standalone.py"), home]
    assert subprocess.run(alone, capture_output=True).returncode == 0
    assert hermesd("verify", "--home", home).returncode == 0
    replayed = json.loads(hermesd("replay", "--verify", "--json", "--home", home).stdout)
    assert replayed["plans_verified"] == len(played.of("plan.decided")) == played.said["plans"]
    before = {path.name: path.read_bytes() for path in (played.home / "state").iterdir()}
    assert sorted(before) == played.said["views"]
    hermesd("state", "rebuild", "--home", home, check=True)
    assert {path.name: path.read_bytes() for path in (played.home / "state").iterdir()} == before


def test_no_process_is_left(played: Played) -> None:
    started = [event["data"] for event in played.of("run.started") + played.of("run.adopted")]
    assert [data for data in started if identity.alive(data["pid"], data["process_started"])] == []
    runs = f"{played.home}/runs/"
    assert [p for p in identity.processes() if p.alive and identity.folder_of(p.pid).startswith(runs)] == []


def test_what_it_tells_people_is_plain_lines_without_a_terminal(played: Played) -> None:
    assert "\x1b" not in played.done.stderr
    assert "kill -9" in played.done.stderr
    assert "decision_hash" in played.done.stderr


@pytest.fixture
def in_the_middle(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A demo whose daemon has just been killed, and the processes that were still at work then."""
    command = [sys.executable, "-m", "daemon.cli", "demo"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    demo = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert demo.stdout is not None
    alive: list[int] = []
    for line in demo.stdout:
        if "still at work without it" in line:
            alive.append(int(line.split()[-1]))
        elif alive:
            break
    assert alive
    yield demo, alive
    demo.kill()
    demo.communicate()
    assert [pid for pid in alive if (found := identity.process(pid)) is not None and found.alive] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_with_the_daemon_dead_and_a_run_alive_leaves_nothing(
    in_the_middle: tuple[subprocess.Popen[str], list[int]], tmp_path: Path, number: signal.Signals
) -> None:
    demo, _ = in_the_middle
    demo.send_signal(number)
    assert demo.wait(60) == Exit.INTERRUPTED
    assert list(tmp_path.glob("*")) == []


def test_a_run_that_is_really_lost_is_no_success_and_its_home_is_kept(
    in_the_middle: tuple[subprocess.Popen[str], list[int]], tmp_path: Path
) -> None:
    demo, alive = in_the_middle
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    said, _ = demo.communicate(timeout=200)
    assert demo.returncode == Exit.NO
    [home] = tmp_path.glob("hermes-demo-*")
    error = said[said.index("error: ") :]
    assert "lost" in error  # Which of its runs were alive differs from one demo to the next.
    assert str(home) in error
    assert hermesd("verify", "--home", str(home)).returncode == 0


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = hermesd("demo", "--home", str(tmp_path))
    assert done.returncode == Exit.BAD_INPUT
    assert str(tmp_path) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_without_a_model_runtime_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # As if it were not there: importlib finds nothing.
    with pytest.raises(Failure) as told:
        demo.demo(Call(None, False), keep=False)
    assert told.value.exit == Exit.UNAVAILABLE
    assert "torch" in told.value.what
    assert "pip install" in told.value.do


def test_the_shipped_job_files_are_sound_as_they_are_and_as_the_demo_writes_them(tmp_path: Path) -> None:
    files = sorted(demo.JOBS.glob("*.yaml"))
    assert {path.stem for path in files} == JOBS
    assert jobfiles.load_files(files, "UTC").problems == []
    due_s = int(time.time()) + 1000
    for path in files:
        text = demo.as_due(path.stem, path.read_text(), due_s, ["/var/log/one.log", "/var/log/two.log"])
        (tmp_path / path.name).write_text(text)
    loaded = jobfiles.load(tmp_path, "America/New_York")
    assert loaded.problems == []
    assert {due.next_slot(job.when, due_s * 1000 - 1) for job, _ in loaded.jobs.values()} == {due_s * 1000}
    assert loaded.jobs["triage-log"][0].canonical()["lines"]["paths"] == ["/var/log/one.log", "/var/log/two.log"]


def test_a_log_that_holds_nothing_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "empty.log").write_text(" \n\n")
    (tmp_path / "full.log").write_text("a line\n")
    (tmp_path / "folder").mkdir()
    found = demo.logs_here([f"{tmp_path}/empty.log", f"{tmp_path}/no.log", f"{tmp_path}/folder", f"{tmp_path}/f*.log"])
    assert found == [f"{tmp_path}/full.log"]


def test_where_no_log_can_be_read_the_report_is_of_the_sample_and_says_so(tmp_path: Path) -> None:
    for name in ("dmesg", "journalctl", "uname"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o700)
    (tmp_path / "logs").mkdir()

    def collected(what: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", str(demo.JOBS / "collect.sh"), what, "5", str(tmp_path / "logs")]
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    assert collected("kernel").stdout == collected("packages").stdout == ""
    system = collected("system")
    assert system.stdout.splitlines() == (demo.JOBS / "sample.log").read_text().splitlines()[-5:]
    assert system.stderr.startswith("a sample that comes with Hermes")
    (tmp_path / "logs" / "dpkg.log").write_text("2026-11-21 06:00:00 status installed jq:amd64 1.7\n")
    assert collected("system").stdout == ""
    assert collected("packages").stderr.strip() == f"{tmp_path}/logs/dpkg.log"
