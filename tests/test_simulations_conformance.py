"""The conformance cases, through the command line and through other libraries."""

from __future__ import annotations

import json
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from cli_shell import answer

from daemon.cli.grammar import app
from simulations import conformance
from simulations.conformance import CASES, LIBRARIES, Library, answers, load, main

RAW = json.loads(CASES.read_text())


def job_file(folder: Path, case: Any) -> Path:
    path = folder / "job.yaml"
    path.write_text(
        "name: asked\nkind: command\nargv: ['true']\n"
        f"schedule: {{cron: {json.dumps(case['expression'])}, timezone: {case['zone']}}}\n"
    )
    return path


def wanted(case: Any) -> list[tuple[str, str]]:
    return [(row["local"], row["utc"]) for row in case["expected"]]


def test_every_case_is_answered_by_hermesd_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hermesd, wrong = typer.main.get_command(app), []
    for case in RAW:
        path = job_file(tmp_path, case)
        words = ["next", "--file", str(path), "--from", case["from"], "-n", str(case["n"]), "--json"]
        hermesd.main(words, standalone_mode=False)
        rows = json.loads(capsys.readouterr().out)
        if [(row["at"], row["utc"]) for row in rows] != wanted(case):
            wrong.append((case["reason"], rows))
    assert wrong == []


@pytest.mark.parametrize("place", [0, 90, 150])
def test_so_does_the_command_as_a_process(tmp_path: Path, place: int) -> None:
    case = RAW[place]

    rows = answer("next", "--file", job_file(tmp_path, case), "--from", case["from"], "-n", str(case["n"]))

    assert [(row["at"], row["utc"]) for row in rows] == wanted(case)
    assert len({row["slot"] for row in rows}) == case["n"]


def test_each_case_says_what_it_is_about_and_where_the_rule_stands() -> None:
    kinds = Counter(case["class"] for case in RAW)
    assert all(case["source"].startswith("tzdb: ") and case["reason"] for case in RAW)
    for kind in (
        "gap", "doubled hour", "elapsed hours", "half-hour shift", "midnight gap", "skipped day", "changed rules",
        "day-of-week numbers", "day of month or week", "L and #",
    ):  # fmt: skip
        assert kinds[kind] >= 7, kind
    assert {
        "Australia/Lord_Howe", "America/Santiago", "Africa/Cairo", "Asia/Beirut", "America/Asuncion", "Pacific/Apia",
        "Pacific/Kwajalein", "Africa/Casablanca", "Europe/Volgograd", "America/Mexico_City", "Asia/Amman",
    } <= {case["zone"] for case in RAW}  # fmt: skip


def test_no_case_is_there_twice() -> None:
    asked = Counter((case["zone"], case["expression"], case["from"]) for case in RAW)
    assert [case for case, times in asked.items() if times > 1] == []


def test_the_table_tells_of_every_library_and_what_is_not_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nowhere = Library("Nowhere", "no-such-cron", "never", lambda: import_module("no_such_cron").ask)
    monkeypatch.setattr(conformance, "LIBRARIES", (*LIBRARIES, nowhere))
    some = tmp_path / "some.json"
    some.write_text(json.dumps([case for case in RAW if case["zone"] == "Australia/Lord_Howe"]))

    assert main(["--cases", str(some)]) == 0

    said = capsys.readouterr().out
    table = said.partition("\n\n")[2].partition("\n\n")[0]
    rows = {line.split()[0]: line for line in table.splitlines() if not line.startswith(" ")}
    assert {library.name for library in LIBRARIES} <= rows.keys()
    assert "12      0        0" in rows["Hermes"]
    assert "not installed: pip install no-such-cron" in rows["Nowhere"]
    assert "half-hour shift" in rows["APScheduler"]
    assert "15 2 * * * Australia/Lord_Howe from 2025-10-03T12:00:00Z" in said


def test_the_report_for_programs_has_every_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--library", "Hermes", "--library", "cronsim"]) == 0

    report = json.loads(capsys.readouterr().out)
    hermes, cronsim = sorted(report["libraries"], key=lambda library: library["library"])
    assert (hermes["passed"], hermes["wrong"], hermes["refused"]) == (len(RAW), 0, 0)
    assert cronsim["passed"] + cronsim["wrong"] + cronsim["refused"] == len(RAW) == len(cronsim["answers"])
    assert cronsim["wrong"] == sum(cronsim["wrong_by_kind"].values())


def test_to_refuse_is_not_to_be_wrong() -> None:
    """What APScheduler does with numbers of days is its own; what it does with L it says."""
    peer = next(library for library in LIBRARIES if library.name == "APScheduler")
    asked = [case for case in load() if case.expression in ("0 9 * * 1-5", "0 12 L * *")]

    said = {told.case.expression: told for told in answers(peer, asked)}

    assert said["0 9 * * 1-5"].verdict == "wrong"
    assert said["0 12 L * *"].verdict == "refused"
    assert "ValueError" in said["0 12 L * *"].said


def test_a_case_that_hermes_fails_fails_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = json.loads(json.dumps(RAW[0]))
    case["expected"][1]["utc"] = "2025-03-30T01:30:00Z"
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps([case]))

    assert main(["--library", "Hermes", "--cases", str(path)]) == 1
    assert "2025-03-30T01:00:00Z instead of 2025-03-30T01:30:00Z" in capsys.readouterr().out


def test_cases_that_are_not_there_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--cases", str(tmp_path / "none.json")])
    assert ended.value.code == 2
    assert "none.json: the cases lie in a checkout" in capsys.readouterr().err
