"""What somebody meets on the first day: a new home, files with mistakes, a job asked for twice, an odd terminal."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_shell import ROOT, Foreground, answer, hermesd, make_home

from daemon.cli import failure
from daemon.cli.events import summary
from ledger.record import Record
from state.events import VOCABULARY

JOBS = """\
- {name: long, kind: command, argv: [sh, -c, "echo begun; exec sleep 100"], schedule: manual}
- {name: grumbles, kind: command, argv: [sh, -c, "echo why >&2; exit 3"], schedule: manual}
"""
BROKEN = "name: broken\nkind: comand\nargv: [echo]\nschedule: manual\n"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreground]:
    home = make_home(tmp_path_factory.mktemp("first") / "day", jobs=JOBS, broken=BROKEN)
    with Foreground(home) as daemon:
        yield daemon


def test_in_a_new_home_nothing_is_damaged_and_a_ledger_that_is_gone_is(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    for words in (("verify",), ("audit",)):
        assert hermesd(*words, "--home", home).stdout.startswith("No daemon has run here yet")
    with Foreground(home):
        pass
    shutil.rmtree(home / "ledger")
    assert "there is no ledger here" in hermesd("verify", "--home", home, code=1).stdout


def test_who_starts_a_daemon_is_told_of_files_that_it_does_not_take(up: Foreground) -> None:
    assert up.process.stdout is not None
    assert up.process.stdout.readline() == "1 job file rejected: see `hermesd jobs check`\n"


def test_a_job_whose_file_was_rejected_is_not_said_to_be_missing(up: Foreground) -> None:
    told = hermesd("start", "broken", "--home", up.home, code=3).stderr
    assert told.startswith("error: there is no job 'broken': its file was rejected\n")
    assert f"{up.home}/jobs/broken.yaml:2:1: broken: kind: unknown kind 'comand'" in told
    told = hermesd("upgrade", "status", "--home", up.home, code=3).stderr
    assert "; 1 problem in job files: see `hermesd jobs check`" in told


def test_a_jobs_name_means_the_run_that_goes_on_and_not_the_start_that_was_skipped(up: Foreground) -> None:
    first = answer("start", "long", "--home", up.home)["run"]
    second = answer("start", "long", "--wait", "--home", up.home, code=1)
    assert second["state"] == "skipped"
    shown = hermesd("runs", "logs", "long", "--home", up.home)
    assert shown.stderr.startswith(f"(of {first}; {second['run']} was skipped: ")
    assert hermesd("cancel", "long", "--home", up.home).stdout == f"Run {first} is being stopped.\n"


def test_a_run_that_only_complained_is_not_said_to_have_said_nothing(up: Foreground) -> None:
    answer("start", "grumbles", "--wait", "--home", up.home, code=1)
    told = hermesd("runs", "logs", "grumbles", "--home", up.home).stderr
    assert "has printed nothing but what it complained (`--stderr` shows it): failed" in told


def test_a_job_that_is_paused_is_listed_so(up: Foreground) -> None:
    hermesd("pause", "grumbles", "--home", up.home)
    notes = {row["job"]: row["note"] for row in answer("jobs", "list", "--home", up.home)}
    hermesd("resume", "grumbles", "--home", up.home)
    assert notes["grumbles"].startswith("paused by ")


def test_who_asks_for_a_run_while_everything_is_paused_is_told_that_it_waits(up: Foreground) -> None:
    hermesd("pause", "--home", up.home)
    told = hermesd("start", "grumbles", "--home", up.home)
    hermesd("resume", "--home", up.home)
    assert told.stderr == "Everything is paused: it begins after `hermesd resume`.\n"


def test_a_state_that_no_run_can_have_is_refused_and_one_as_shown_is_known(up: Foreground) -> None:
    assert "Did you mean 'failed'?" in hermesd("runs", "list", "--state", "faild", "--home", up.home, code=2).stderr
    assert answer("runs", "list", "--state", "timed out", "--home", up.home) == []


def test_a_job_that_no_clock_starts_says_what_does(tmp_path: Path) -> None:
    file = tmp_path / "jobs.yaml"
    file.write_text(JOBS + "- {name: then, kind: command, argv: [echo], schedule: {after: [long]}}\n")
    told = hermesd("next", "then", "--file", file).stdout
    assert told == "Nothing of then is coming by the clock: its schedule is `after success of long`.\n"


def test_a_model_that_is_listed_and_not_kept_is_said_to_be_so(up: Foreground) -> None:
    told = hermesd("models", "show", "hermes-mini", "--home", up.home, code=3).stderr
    assert "do: jobs can use hermes-mini where it lies" in told


def test_a_file_that_is_not_there_is_no_question_of_its_mode(tmp_path: Path) -> None:
    told = hermesd("next", "--file", tmp_path / "none.yaml", code=2).stderr
    assert "No such file or directory. Check the path" in told


def test_commands_to_copy_survive_a_blank_in_the_path(tmp_path: Path) -> None:
    told = hermesd("init", "--home", tmp_path / "my home").stdout
    assert f"hermesd jobs check --home '{tmp_path}/my home'" in told


def test_help_is_found_under_both_its_names() -> None:
    assert hermesd("runs", "logs", "-h").stdout == hermesd("runs", "logs", "--help").stdout


def test_a_terminal_of_another_charset_is_no_reason_to_fail(tmp_path: Path) -> None:
    home = make_home(tmp_path / "büro")
    told = hermesd("status", "--home", home, code=4, PYTHONIOENCODING="ascii", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert "not ok: no daemon is running" in told.stdout


@pytest.mark.parametrize("zone", ["EST5EDT4", "../x"])
def test_a_zone_that_is_none_keeps_nobody_from_reading(tmp_path: Path, zone: str) -> None:
    home = make_home(tmp_path / "home")
    assert "no daemon is running" in hermesd("status", "--home", home, code=4, TZ=zone).stdout
    assert f"TZ={zone} names no zone" in hermesd("jobs", "list", "--home", home, code=78, TZ=zone).stderr


def test_what_is_due_is_told_by_the_daemons_zone_whatever_zone_the_shell_is_in(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", nine="name: nine\nkind: command\nargv: [echo]\nschedule: 0 9 * * *\n")
    words = ("next", "nine", "-n", "1", "--from", "2031-01-01T12:00:00Z", "--home", home)
    before = answer(*words, TZ="UTC")[0]
    assert before["utc"].endswith("T09:00:00Z")
    with Foreground(home):
        assert answer(*words, TZ="Asia/Tokyo")[0]["slot"] == before["slot"]
        assert answer("jobs", "list", "--home", home, TZ="Asia/Tokyo")[0]["note"] == ""
        assert "pending" not in hermesd("plan", "--home", home, TZ="Asia/Tokyo").stdout
    assert answer(*words, TZ="Asia/Tokyo")[0]["slot"] == before["slot"]
    (home / "hermesd.yaml").write_text("timezone: Asia/Tokyo\n")
    assert answer(*words)[0]["utc"].endswith("T00:00:00Z")


@pytest.mark.parametrize("type_", sorted(VOCABULARY))
def test_every_event_is_told_in_words(type_: str) -> None:
    event = json.loads((ROOT / "tests" / "data" / "events" / f"{type_}.v1.json").read_text())["event"]
    record = Record(
        1, 1, 1, False, event["ts"], event["mt"], type_, event["tv"], event["subject"], None, None, None,
        event["data"], "",
    )  # fmt: skip
    assert summary(record).strip()


def test_what_an_event_says_is_nothing_that_a_terminal_obeys() -> None:
    data = {"request": "r", "text": "red \x1b[31m", "actor": "me"}
    told = summary(Record(1, 1, 1, False, "", 0, "note.added", 1, "notes", None, None, None, data, ""))
    assert told == r"'me: red \x1b[31m'"


def test_every_refusal_of_a_request_has_an_exit_code() -> None:
    codes = re.findall(r'Declined\(\s*"([a-z-]+)"', (ROOT / "policies" / "request.py").read_text())
    assert len(codes) > 10
    assert set(codes) <= set(failure._CODES)
