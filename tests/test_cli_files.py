"""What needs no daemon: a home made and refused, job files looked at, what is due when, the machine looked at."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import repositories
from cli_shell import ENVIRONMENT, ROOT, answer, hermesd, make_home

SLOTS = "name: report\nkind: command\nargv: [echo]\nschedule: {cron: '30 2 * * *', timezone: Europe/Paris}\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("cli") / "home", report=SLOTS)


def test_what_a_file_says_is_due_is_told_without_a_home_over_the_night_the_clock_goes_forward(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(SLOTS)
    words = ("next", "--file", tmp_path / "job.yaml", "--from", "2026-03-28T00:00:00Z", "-n", "3")
    rows = answer(*words, "--home", tmp_path / "none")
    assert [(row["at"], row["utc"]) for row in rows] == [
        ("2026-03-28T02:30:00+01:00", "2026-03-28T01:30:00Z"),
        ("2026-03-29T03:00:00+02:00", "2026-03-29T01:00:00Z"),
        ("2026-03-30T02:30:00+02:00", "2026-03-30T00:30:00Z"),
    ]
    assert rows[0].keys() == {"slot", "at", "utc"}
    assert rows[1].keys() == {"slot", "at", "utc", "note"}
    assert not (tmp_path / "none").exists()


def test_several_jobs_are_merged_in_the_order_of_time(home: Path, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(
        "- {name: a, kind: command, argv: [echo], schedule: {every: 20m}}\n"
        "- {name: b, kind: command, argv: [echo], schedule: {every: 30m}}\n"
        "- {name: off, kind: command, argv: [echo], schedule: {every: 1m}, enabled: false}\n"
    )
    rows = answer("next", "--home", home, "--file", tmp_path / "two.yaml", "--from", "2026-01-01T00:00:00Z", "-n", "5")
    assert [(row["job"], row["utc"][11:16]) for row in rows] == [
        ("a", "00:00"), ("b", "00:00"), ("a", "00:20"), ("b", "00:30"), ("a", "00:40"),
    ]  # fmt: skip
    only = answer("next", "b", "--file", tmp_path / "two.yaml", "--from", "2026-01-01", "-n", "1")
    assert only[0]["utc"] == "2026-01-01T00:00:00Z"
    assert "job" not in only[0]


def test_every_problem_of_job_files_is_told_with_its_place_and_what_to_do(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    files = {
        "broken": "name: [\n",
        "unknown-field": "name: a\nkind: command\nargv: [echo]\nschedule: manual\npriorty: 3\n",
        "unknown-zone": "name: b\nkind: command\nargv: [echo]\nschedule: {cron: '0 * * * *', timezone: Paris}\n",
        "impossible-date": "name: c\nkind: command\nargv: [echo]\nschedule: {at: 2026-02-30T09:00}\n",
        "first": "name: twin\nkind: command\nargv: [echo]\nschedule: manual\n",
        "second": "name: twin\nkind: command\nargv: [echo]\nschedule: manual\n",
        "cycle": "- {name: d, kind: command, argv: [echo], schedule: {after: e}}\n"
        "- {name: e, kind: command, argv: [echo], schedule: {after: d}}\n",
        "script": f"name: f\nkind: command\nargv: [/bin/sh, {tmp_path}/missing.sh]\nschedule: manual\n",
        "model": f"name: g\nkind: inference\nmodel: {tmp_path}/no-model\nprompt: hello\nschedule: manual\n",
        "good": "name: good\nkind: command\nargv: [echo]\nschedule: manual\n",
    }
    for name, text in files.items():
        (home / "jobs" / f"{name}.yaml").write_text(text)
    told = answer("jobs", "check", "--home", home, code=2)
    found = {Path(one["file"]).stem: one for one in reversed(told["problems"])}
    assert found.keys() == files.keys() - {"good", "first"}
    places = {name: (one["line"], one["column"], one["field"]) for name, one in found.items()}
    assert places["unknown-field"] == (5, 1, "priorty")
    assert places["unknown-zone"] == (4, 31, "schedule.timezone")
    assert places["impossible-date"] == (4, 1, "schedule")
    assert places["second"] == (1, 1, "name")
    assert places["cycle"][0] in (1, 2)
    assert found["broken"]["message"].startswith("this is not YAML")
    assert "Did you mean 'priority'?" in found["unknown-field"]["advice"]
    assert "2026-02-30" in found["impossible-date"]["message"]
    assert "Europe/Paris" in found["unknown-zone"]["advice"]
    assert "d -> e -> d" in found["cycle"]["message"]
    assert f"{tmp_path}/missing.sh" in found["script"]["message"]
    assert f"{tmp_path}/no-model" in found["model"]["message"]
    lines = hermesd("jobs", "check", home / "jobs" / "unknown-field.yaml", code=2).stdout.splitlines()
    assert lines[0].startswith(f"{home}/jobs/unknown-field.yaml:5:1: a: priorty: unknown field 'priorty'.")


def test_the_schema_holds_for_a_job_that_is_accepted(home: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = answer("jobs", "schema")
    jsonschema.validate({"name": "x", "kind": "command", "argv": ["echo"], "schedule": "manual"}, schema)
    shown = answer("jobs", "show", "report", "--home", home)
    assert shown["spec"]["schedule"] == {"timezone": "Europe/Paris", "cron": "30 2 * * *"}
    assert shown["note"] == "new: no daemon has seen it yet"


def test_a_home_is_made_once_and_left_alone_after(tmp_path: Path) -> None:
    made = answer("init", "--home", tmp_path / "home")
    assert made["made"] is True
    (tmp_path / "home" / "hermesd.yaml").write_text("timezone: Asia/Kolkata\n")
    assert answer("init", "--home", tmp_path / "home")["made"] is False
    assert (tmp_path / "home" / "hermesd.yaml").read_text() == "timezone: Asia/Kolkata\n"


@pytest.mark.parametrize("words", [("status",), ("run",), ("jobs", "list"), ("lease", "list"), ("start", "x")])
def test_without_a_home_it_is_said_how_to_make_one(words: tuple[str, ...], tmp_path: Path) -> None:
    done = hermesd(*words, "--home", tmp_path / "none", code=78)
    assert done.stderr.startswith(f"error: there is no home at {tmp_path}/none. Make it: `hermesd init`.")
    assert not (tmp_path / "none").exists()


def test_wrong_settings_are_told_with_their_place(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    (home / "hermesd.yaml").write_text("timezone: Mars/Olympus\n")
    done = hermesd("run", "--home", home, code=78)
    assert f"{home}/hermesd.yaml:1:11: timezone: unknown time zone 'Mars/Olympus'" in done.stderr


def test_a_home_that_may_not_be_written_can_be_read_and_not_run(outside: Path) -> None:
    home = make_home(outside / "home", report=SLOTS)
    # What is needed is loaded first: the other user may not be let in to where Python lies.
    act = (
        "import contextlib, encodings.ascii, os, sys\n"
        "import daemon.cli.jobs, daemon.cli.process\n"
        "from daemon.cli import main\n"
        "words, sys.argv = sys.argv[1:], ['hermesd', 'jobs', 'check', __file__]\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr): main()\n"
        "if os.geteuid() == 0: os.setuid(65534)  # root may write anywhere\n"
        "sys.argv = ['hermesd', *words]\n"
        "main()\n"
    ).replace("__file__", repr(str(home / "jobs" / "report.yaml")))
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", "65534", str(home)], check=True)
    home.chmod(0o500)
    try:
        run, looked = (
            subprocess.run(
                [sys.executable, "-c", act, *words, "--json", "--home", str(home)],
                cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=60,
            )
            for words in (("run",), ("jobs", "list"))
        )  # fmt: skip
    finally:
        home.chmod(0o700)
    assert run.returncode == 78, run.stderr
    assert "is read-only. Make it writable" in json.loads(run.stdout)["error"]["message"]
    assert looked.returncode == 0, looked.stderr
    assert json.loads(looked.stdout)[0]["job"] == "report"


def test_the_plan_is_asked_and_nothing_is_done(home: Path) -> None:
    told = answer("plan", "--home", home)
    assert told["decisions"] == []
    assert told["pending"][0] == "job.defined job/report"
    assert os.listdir(home / "ledger") == []


def test_the_home_may_stand_before_between_and_behind_the_words(home: Path) -> None:
    before = hermesd("--json", "--home", home, "jobs", "list").stdout
    between = hermesd("jobs", "--home", home, "--json", "list").stdout
    variable = hermesd("jobs", "list", "--json", HERMESD_HOME=str(home)).stdout
    assert before == between == variable == hermesd("jobs", "list", "--home", home, "--json").stdout
    assert json.loads(before)[0]["job"] == "report"


REFUSALS = [
    (("nonsense",), 2, "No such command 'nonsense'"),
    (("jobs", "show", "reprot"), 3, "Did you mean 'report'?"),
    (("next", "reprot"), 3, "Did you mean 'report'?"),
    (("next", "--from", "yesterday"), 2, "'yesterday' is no instant"),
    (("start", "reprot"), 3, "Did you mean 'report'?"),
    (("runs", "show", "x"), 3, "there is no run 'x'"),
    (("why", "report"), 3, "job 'report' has no decision yet"),
    (("why", "x"), 3, "no decision is about 'x'"),
    (("state", "job"), 3, "Did you mean 'jobs'?"),
    (("state", "jobs", "--at", "7"), 3, "the ledger ends with record 0"),
    (("events", "--type", "run.ended"), 2, "no event type is like 'run.ended'"),
    (("events", "--grep", "("), 2, "no regular expression"),
    (("lease", "acquire", "no key"), 2, "'no key' is no lease key"),
    (("lease", "release", "k"), 2, "whose lease of k is meant?"),
    (("lease", "release", "k", "--token", "1"), 3, "nobody holds k"),
    (("stop",), 4, "no daemon is running"),
    (("start", "report", "--wait"), 4, "no daemon is running"),
]


@pytest.fixture(scope="module")
def refused(home: Path) -> dict[tuple[str, ...], str]:
    """What each was told. All at once, since most of their time is Python starting."""
    with ThreadPoolExecutor(4) as pool:
        ended = pool.map(lambda row: hermesd("--home", home, *row[0], code=row[1]).stderr, REFUSALS)
        return dict(zip((row[0] for row in REFUSALS), ended, strict=True))


@pytest.mark.parametrize(("words", "code", "told"), REFUSALS)
def test_what_cannot_be_done_is_said_with_an_exit_code_of_its_own(
    refused: dict[tuple[str, ...], str], words: tuple[str, ...], code: int, told: str
) -> None:
    assert told in refused[words]


def test_one_who_waits_for_a_run_that_nobody_starts_leaves_no_wish_behind(home: Path) -> None:
    hermesd("start", "report", "--wait", "--home", home, code=4)
    assert os.listdir(home / "inbox") == []


def test_an_error_is_told_to_a_program_as_json(home: Path) -> None:
    error = answer("jobs", "show", "reprot", "--home", home, code=3)["error"]
    assert error == {
        "code": "unknown",
        "exit": 3,
        "message": "there is no job 'reprot'",
        "where": f"{home}/jobs",
        "advice": "Did you mean 'report'?",
    }


def test_the_examples_come_into_a_folder_of_their_own(tmp_path: Path) -> None:
    if not any((ROOT / "examples" / "jobs").glob("*")):
        pytest.skip("this checkout has no examples")
    copied = answer("init", "--examples", "--home", tmp_path / "home")["examples"]
    assert copied
    assert answer("jobs", "list", "--home", tmp_path / "home") == []
    shutil.rmtree(tmp_path / "home" / "jobs" / "examples")


def test_help_names_every_exit_code_and_imports_no_heavy_room() -> None:
    act = (
        "import sys\nfrom daemon.cli import main\nsys.argv = ['hermesd', '--help']\n"
        "heavy = {'pydantic', 'yaml', 'apscheduler', 'psutil', 'rich', 'orjson'}\n"
        "try: main()\nfinally: print(sorted(heavy & {*sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", act], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    for code in (0, 1, 2, 3, 4, 69, 74, 75, 78, 130):
        assert f"\n  {code:>5}  " in done.stdout


def test_an_upgrade_job_is_looked_over_repository_by_repository(home: Path, tmp_path: Path) -> None:
    there, other = (str(repositories.pair(tmp_path, name).mine.path) for name in ("there", "other"))
    repos = [
        {"key": "here", "path": there, "remotes": {"primary": "/r"}, "verify": ["true"]},
        {"key": "gone", "path": str(tmp_path / "gone"), "remotes": {"primary": "/r"}},
        {"key": "plain", "path": str(tmp_path), "remotes": {"primary": "/r"}},
        {"key": "tools", "path": other, "remotes": {"primary": "/r"}, "canary": ["no-such-program"]},
    ]
    job = {"name": "nightly", "kind": "upgrade", "schedule": "manual", "repos": repos}
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    found = answer("jobs", "check", tmp_path / "job.yaml", "--home", home, code=2)["problems"]
    assert [problem["field"] for problem in found] == ["repos[gone].path", "repos[plain].path", "repos[tools].canary"]
