"""A person holds jobs back, lets them go on, has runs done again, and asks for the past."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_shell import Foreground, answer, hermesd, make_home

JOBS = """\
- {name: fine, kind: command, argv: [echo, out], schedule: manual}
- {name: bad, kind: command, shell: "exit 3", schedule: manual, stop_after_failures: 2}
- {name: hour, kind: command, argv: [echo], schedule: {every: 1h}}
- {name: promised, kind: command, shell: "echo '{}' > $HERMESD_FOLDER/a.json", schedule: manual,
   expects: {file: a.json, json_schema: {type: object, required: [total]}}}
- {name: flood, kind: command, argv: [echo, out], schedule: manual, keep: {runs: 2}}
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreground]:
    home = make_home(tmp_path_factory.mktemp("cli") / "home", jobs=JOBS)
    with Foreground(home) as daemon:
        yield daemon


def test_everything_is_held_back_until_it_may_go_on(up: Foreground) -> None:
    hermesd("pause", "--reason", "a benchmark", "--home", up.home)
    held = answer("start", "fine", "--home", up.home)["run"]
    assert "a benchmark" in hermesd("status", "--home", up.home, code=None).stdout
    assert answer("pause", "--home", up.home)["already"]
    assert answer("runs", "show", held, "--home", up.home)["rule"] == "paused"

    hermesd("resume", "--home", up.home)

    assert hermesd("runs", "logs", held, "-f", "--home", up.home).stdout == "out\n"


def test_a_drain_comes_back_when_nothing_runs(up: Foreground) -> None:
    assert "Nothing runs any more" in hermesd("drain", "--wait", "--home", up.home).stdout
    hermesd("resume", "--home", up.home)


def test_a_job_that_fails_too_often_is_paused_and_says_so(up: Foreground) -> None:
    for _ in range(2):
        hermesd("start", "bad", "--wait", "--home", up.home, code=1)
    paused = [job for job in answer("jobs", "list", "--home", up.home) if job["job"] == "bad"]
    told = answer("events", "--type", "job.paused", "--subject", "job/bad", "--home", up.home)
    assert paused
    assert told["data"]["reason"].startswith("2 runs in a row have failed")
    assert hermesd("resume", "bad", "--home", up.home).stdout == "Job bad goes on.\n"


def test_a_run_that_is_over_is_done_again(up: Foreground) -> None:
    first = answer("start", "fine", "--wait", "--home", up.home)["run"]
    second = answer("retry", first, "--reason", "once more", "--home", up.home)["run"]
    assert hermesd("runs", "logs", second, "-f", "--home", up.home).stdout == "out\n"
    assert f"does {first} again" in hermesd("retry", first, "--home", up.home).stdout


def test_an_end_without_the_promised_output_is_no_success(up: Foreground) -> None:
    ended = answer("start", "promised", "--wait", "--home", up.home, code=1)
    assert ended["state"] == "failed"
    assert ended["reason"] == "exit status 0, but a.json: $: 'total' is a required property"


def test_the_past_is_looked_at_and_then_run(up: Foreground) -> None:
    span = ["--from", "2026-01-01T00:00:00Z", "--to", "2026-01-01T03:00:00Z", "--current-spec"]
    dry = hermesd("backfill", "hour", *span, "--dry-run", "--home", up.home)
    assert dry.stdout.endswith("3 slots. Nothing was asked for.\n")
    assert "no spec then" in hermesd("backfill", "hour", *span[:4], "--home", up.home, code=None).stderr

    answer("backfill", "hour", *span, "--home", up.home)

    for hour in range(3):
        name = f"hour.20260101T0{hour}0000Z"
        assert hermesd("runs", "logs", name, "-f", "--home", up.home).stdout == "\n"


def test_only_the_folders_of_the_runs_that_are_kept_stay(up: Foreground) -> None:
    names = [answer("start", "flood", "--wait", "--home", up.home)["run"] for _ in range(4)]
    left = {path.name for path in (up.home / "runs").glob("flood.*")}
    assert left == set(names[2:])


def test_state_deleted_under_a_running_daemon_comes_back(up: Foreground) -> None:
    shutil.rmtree(up.home / "state")
    answer("start", "fine", "--wait", "--home", up.home)
    for _ in range(100):
        if (Path(up.home) / "state" / "runs.json").exists():
            break
        hermesd("status", "--home", up.home, code=None)
    hermesd("state", "show", "runs", "--home", up.home)
    assert (Path(up.home) / "state" / "runs.json").exists()
    assert answer("status", "--home", up.home, code=None)["integrity"] is True


def test_with_no_daemon_the_wish_is_left_for_the_next_one(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", jobs=JOBS)
    with Foreground(home):
        pass
    assert "by the next one" in hermesd("pause", "fine", "--home", home).stdout
    with Foreground(home):
        assert answer("pause", "fine", "--home", home)["already"]
