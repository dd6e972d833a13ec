"""A daemon in one window and a person in another: started, asked, interrupted, killed, found again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from cli_shell import ENVIRONMENT, ROOT, Foreground, answer, hermesd, make_home

JOBS = """\
- {name: fine, kind: command, shell: "echo out; echo err >&2", schedule: manual}
- {name: bad, kind: command, shell: "exit 3", schedule: manual}
- {name: long, kind: command, argv: [sleep, '60'], schedule: manual}
- {name: keyed, kind: command, argv: [echo, had it], schedule: manual, leases: [repo:core]}
- {name: later, kind: command, argv: [echo], schedule: "0 4 1 1 *"}
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreground]:
    home = make_home(tmp_path_factory.mktemp("cli") / "home", jobs=JOBS, broken="name: [\n")
    with Foreground(home) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def ran(up: Foreground) -> str:
    """A run that succeeded."""
    ended = answer("start", "fine", "--wait", "--reason", "to see it", "--home", up.home)
    assert (ended["state"], ended["reason"]) == ("succeeded", "exit status 0")
    return str(ended["run"])


def test_the_status_is_fine_only_because_the_loop_answers(up: Foreground) -> None:
    told = answer("status", "--home", up.home)
    assert told["ok"] is True
    assert told["daemon"]["pid"] == up.process.pid
    assert told["daemon"]["loop_completed_ms_ago"] < 60_000
    assert told["integrity"] is True
    assert [job["job"] for job in told["next"]] == ["later"]
    assert told["rejected"][0]["source"] == "broken.yaml"  # ... and the other file's jobs are in force
    assert told["jobs"]["known"] == 5
    assert "broken.yaml:2:1: this is not YAML" in hermesd("status", "--home", up.home).stdout


def test_a_run_that_failed_is_no_success_of_the_one_who_waited(up: Foreground) -> None:
    done = hermesd("start", "bad", "--wait", "--home", up.home, code=1)
    assert done.stdout.endswith("failed: exit status 3\n")
    assert answer("runs", "list", "--job", "bad", "--state", "failed", "--home", up.home)[0]["code"] == 3


def test_what_a_run_printed_comes_back_byte_for_byte(up: Foreground, ran: str) -> None:
    assert hermesd("runs", "logs", ran, "--home", up.home).stdout == "out\n"
    assert hermesd("runs", "logs", "fine", "--stderr", "-f", "--home", up.home).stdout == "err\n"


def test_why_tells_the_rule_the_inputs_the_hash_and_the_end(up: Foreground, ran: str) -> None:
    told = answer("why", ran, "--home", up.home)
    decision = told["decision"]
    assert (decision["verdict"], decision["rule"]) == ("started", "admitted")
    assert decision["asked_again"] is True
    assert decision["question"].keys() == decision["inputs"].keys()
    assert told["outcome"] == "succeeded"
    assert told["attempts"][0]["outputs"]["stdout.log"]["bytes"] == 4
    assert told["requests"][0]["reason"] == "to see it"
    assert answer("why", ran[:-2], "--home", up.home) == told
    assert answer("why", "fine", "--home", up.home)["run"] == ran
    for said in (decision["decision_hash"], told["run"], "a person's `hermesd start`", "succeeded: exit status 0"):
        assert said in hermesd("why", ran, "--home", up.home).stdout


def test_events_are_the_bytes_of_the_ledger(up: Foreground, ran: str) -> None:
    lines = hermesd("events", "--format", "jsonl", "--until", "0s", "--home", up.home).stdout
    written = "".join(path.read_text() for path in sorted((up.home / "ledger").glob("0*.jsonl")))
    assert written.startswith(lines)
    assert f'"run":"{ran}"' in lines
    last = hermesd(
        "events", "--type", "run.*", "--subject", f"run/{ran}", "-n", "1", "--json", "--home", up.home
    ).stdout
    assert json.loads(last)["data"]["outcome"] == "succeeded"
    assert hermesd("events", "--grep", "to see it", "--json", "--home", up.home).stdout.count("\n") == 1


def test_events_are_also_cloudevents(up: Foreground, ran: str) -> None:
    text = hermesd("events", "--type", "run.finished", "--format", "cloudevents", "--home", up.home).stdout
    event = json.loads(text.splitlines()[0])
    assert event["specversion"] == "1.0"
    assert event["type"] == "dev.hermesd.run.finished"
    assert event["source"].startswith("urn:hermesd:ledger:")
    assert all(name.isalnum() and name.islower() and len(name) <= 20 for name in event)


def test_events_are_followed_as_they_come(up: Foreground) -> None:
    words = [
        sys.executable,
        "-m",
        "daemon.cli",
        "--home",
        str(up.home),
        "events",
        "-f",
        "-n",
        "0",
        "--type",
        "note.added",
    ]
    follower = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert follower.stdout is not None
    try:
        # The first note may come before the follower stands; each of the others is one more chance.
        heard = None
        while heard is None:
            hermesd("note", "do you hear me", "--home", up.home)
            heard = _line_within(follower, 2.0)
        assert "do you hear me" in heard
    finally:
        follower.send_signal(signal.SIGINT)
        assert follower.wait(10) == 130


def _line_within(process: subprocess.Popen[str], seconds: float) -> str | None:
    import select

    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline() if ready else None


def test_a_run_is_cancelled_by_hand(up: Foreground) -> None:
    run = answer("start", "long", "--home", up.home)["run"]
    hermesd("cancel", run, "--reason", "enough", "--home", up.home)
    waited = hermesd("runs", "logs", run, "-f", "--home", up.home)
    assert waited.stdout == ""
    shown = answer("runs", "show", run, "--home", up.home)
    assert shown["state"] == "cancelled"
    assert "is over: cancelled" in hermesd("cancel", run, "--home", up.home, code=1).stderr


def test_a_job_waits_while_a_person_holds_its_key(up: Foreground) -> None:
    token = answer("lease", "acquire", "repo:core", "--home", up.home)["token"]
    waiting = answer("start", "keyed", "--home", up.home)["run"]
    told = answer("why", waiting, "--home", up.home)
    while told["decision"]["rule"] == "":
        told = answer("why", waiting, "--home", up.home)
    assert told["decision"]["verdict"] == "deferred"
    assert told["decision"]["rule"] == "lease:repo:core"
    assert told["decision"]["rule_in_words"].startswith("one holder per lease key")
    hermesd("lease", "release", "repo:core", "--token", str(token), "--home", up.home)
    assert hermesd("runs", "logs", waiting, "-f", "--home", up.home).stdout == "had it\n"


def test_a_second_daemon_is_refused_and_names_the_first(up: Foreground) -> None:
    refused = hermesd("run", "--home", up.home, code=75)
    assert f"pid {up.process.pid}" in refused.stderr
    assert "hermesd stop" in refused.stderr
    assert answer("status", "--home", up.home)["ok"] is True


def test_a_state_file_edited_by_hand_is_told_and_shown_from_the_ledger(up: Foreground, ran: str) -> None:
    path = up.home / "state" / "coordination_leases.json"
    # The views follow the ledger a few times a second: an edit before they have caught up would only be overwritten.
    rows: dict[str, str] = {}
    for _ in range(100):
        if not all(row["state"] == "current" for row in answer("state", "--home", up.home)["views"]):
            continue
        right = path.read_bytes()
        path.write_bytes(right.replace(b'"leases": []', b'"leases": [1]'))
        rows = {row["view"]: row["state"] for row in answer("state", "--home", up.home)["views"]}
        if rows["coordination_leases"] != "behind":  # Nothing has happened in between.
            break
    assert rows["coordination_leases"] == "different"
    assert json.loads(hermesd("state", "show", "coordination_leases", "--home", up.home).stdout)["leases"] == []
    hermesd("state", "rebuild", "--home", up.home)
    assert path.read_bytes() == right


def test_the_ledger_verifies_and_replays_while_it_is_written(up: Foreground, ran: str) -> None:
    assert answer("verify", "--artifacts", "--home", up.home)["ok"] is True
    told = answer("replay", "--verify", "--home", up.home)
    assert told["ok"] is True
    assert told["plans_verified"] >= 1
    graph = json.loads(hermesd("replay", "--graph", "--home", up.home).stdout)
    assert f"run/{ran}" in {node["id"] for node in graph["nodes"]}


def test_what_a_person_sees_of_it_fits_the_eye(up: Foreground, ran: str) -> None:
    assert ran in hermesd("runs", "list", "--home", up.home).stdout
    shown = hermesd("runs", "show", ran, "--home", up.home).stdout
    assert "succeeded: exit status 0" in shown
    jobs = hermesd("jobs", "list", "--home", up.home).stdout
    assert "rejected: " in jobs
    table = hermesd("events", "--home", up.home).stdout.splitlines()
    assert "segment.open" in table[0]
    assert any("note.added" in line or "plan.decided" in line for line in table)
