"""What counts as success: a file that was promised, as large and of the shape that the job says; told apart from how
the process ended, and found out without holding up anything."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_shell import Foreground, answer, make_home

from daemon import order
from daemon.expectation import unmet
from daemon.outputs import OutputFolder
from policies.job import InvalidJob, parse_job

SCHEMA = {"type": "object", "required": ["rows"], "properties": {"rows": {"type": "integer", "minimum": 1}}}
HANGS = {"type": "string", "pattern": "^(a+)+$"}


def job(name: str, writes: str, schema: Any = None, **more: Any) -> dict[str, Any]:
    shell = f"printf %s '{writes}' >$HERMESD_FOLDER/out.json"
    expects = {"file": "out.json"} | ({"json_schema": schema} if schema is not None else {})
    return {"name": name, "kind": "command", "schedule": "manual", "shell": shell, "expects": expects, **more}


def test_the_process_the_output_and_the_delivery_are_told_apart(tmp_path: Path) -> None:
    step = {"name": "s", "kind": "command", "shell": "echo {} >$HERMESD_FOLDER/out.json",
            "expects": {"file": "out.json", "json_schema": SCHEMA}}  # fmt: skip
    home = make_home(tmp_path / "home")
    (home / "jobs" / "jobs.json").write_text(json.dumps([
        job("good", '{"rows": 2}', SCHEMA),
        job("bad", '{"rows": 0}', SCHEMA),
        job("empty", "", SCHEMA),
        job("none", "x", None, shell="true", retry={"attempts": 2, "base": "0s", "on": "output"}),
        job("fails", "x", SCHEMA, shell="exit 4"),
        {"name": "agent", "kind": "agent", "schedule": "manual", "steps": [step]},
    ]))  # fmt: skip
    with Foreground(home):
        ended = {}
        for name in ("good", "bad", "empty", "none", "fails", "agent"):
            run = answer("start", name, "--wait", "--home", home, code=int(name != "good"))["run"]
            ended[name] = answer("runs", "show", run, "--home", home)
        steps = answer("runs", "list", "--job", "agent", "--home", home)
    assert ended["good"]["reason"] == "exit status 0"
    assert ended["bad"]["reason"] == "exit status 0, but out.json: $.rows: 0 is less than the minimum of 1"
    assert ended["empty"]["reason"] == "exit status 0, but out.json has 0 bytes, fewer than 1"
    assert ended["none"]["reason"] == "exit status 0, but out.json was not written"
    assert ended["none"]["attempt"] == 2
    assert ended["fails"]["reason"] == "exit status 4"
    assert "step s failed: exit status 0, but out.json: $: 'rows' is a required property" in ended["agent"]["reason"]
    rows = {row["job"]: row.get("expected") for row in json.loads((home / "state" / "runs.json").read_text())["runs"]
            if "step" not in row}  # fmt: skip
    assert rows["good"] == {"met": True, "why": ""}
    assert rows["bad"] == {"met": False, "why": "out.json: $.rows: 0 is less than the minimum of 1"}
    assert rows["fails"] is None
    assert len(steps) >= 1
    assert not list((home / "runs").glob("@*"))


def test_a_pattern_that_takes_for_ever_holds_up_nothing_and_a_killed_daemon_has_it_looked_at_again(
    tmp_path: Path,
) -> None:
    home = make_home(tmp_path / "home")
    jobs = [
        job("hangs", json.dumps("a" * 60 + "!"), HANGS, timeout="1s"),
        job("slow", json.dumps("a" * 60 + "!"), HANGS),
        {"name": "fine", "kind": "command", "schedule": "manual", "argv": ["true"]},
    ]
    (home / "jobs" / "jobs.json").write_text(json.dumps(jobs))
    with Foreground(home) as daemon:
        hangs = answer("start", "hangs", "--home", home)["run"]
        slow = answer("start", "slow", "--home", home)["run"]
        while not list((home / "runs").glob("@slow*/1/claim")):
            time.sleep(0.05)
        fine = answer("start", "fine", "--wait", "--home", home)["run"]
        daemon.kill()
    with Foreground(home):
        deadline = time.monotonic() + 40
        while answer("runs", "show", slow, "--home", home)["state"] == "running":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        ended = [answer("runs", "show", run, "--home", home)["ended_at"] for run in (fine, slow)]
        assert ended == sorted(ended)
        for run in (hangs, slow):
            told = answer("runs", "show", run, "--home", home)
            # Not "timed out": the process had ended in time, and what is slow is the look at what it left.
            assert told["state"] == "failed"
            assert "could not be held against its schema: it took too long and was stopped" in told["reason"]


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ({"type": "objekt"}, "this is no JSON Schema: $.type: 'objekt' is not valid"),
        ({"properties": {"a": {"pattern": "("}}}, "$.properties.a.pattern: '(' is not a 'regex'"),
        ({"patternProperties": {"(": {}}}, "$.patternProperties: '(' is not a 'regex'"),
        ({"$ref": "https://example.org/x"}, "$.$ref leads out of the schema, to 'https://example.org/x'. Nothing is"),
        ({"items": {"$ref": "#/$defs/x"}}, "$.items.$ref refers to '#/$defs/x', which is not in the schema"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "the schema is written for http://json-schema.org/d"),
        ({"enum": ["x" * 70_000]}, "the schemas have more than 65536 bytes together"),
    ],
)
def test_a_schema_that_could_not_be_checked_is_refused_with_its_place(schema: Any, fault: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        parse_job(job("a", "x", schema))
    [found] = map(str, caught.value.faults)
    assert found.startswith("expects")
    assert fault in found


def test_what_only_looks_like_a_reference_is_data(tmp_path: Path) -> None:
    schema = {
        "properties": {"$ref": {"const": "#x"}, "pattern": {"enum": ["("]}},
        "const": {"$ref": "#x"}, "$defs": {"t": {"$anchor": "t", "type": "object"}}, "allOf": [{"$ref": "#t"}],
    }  # fmt: skip
    parse_job(job("a", "x", schema))
    (tmp_path / "out.json").write_text('{"$ref": "#x"}')
    assert unmet(tmp_path, [{"file": "out.json", "min_bytes": 1, "json_schema": schema}]) == ""


def test_a_file_outside_the_folder_a_pipe_and_no_json_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "x").write_text("1")
    (tmp_path / "folder" / "link").symlink_to("../x")
    os.mkfifo(tmp_path / "folder" / "pipe")
    (tmp_path / "folder" / "text").write_text("no json")
    found = [
        unmet(tmp_path / "folder", [{"file": name, "min_bytes": 1, "json_schema": {}}])
        for name in ("link", "pipe", "text")
    ]
    assert found[:2] == ["link leads out of the run's folder", "pipe is no file"]
    assert found[2].startswith("text is no JSON")


def test_a_pipe_in_the_place_of_what_a_step_printed_keeps_nobody_waiting(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "1"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "stdout.log")
    around, step = SimpleNamespace(folder=lambda run, attempt: folder), SimpleNamespace(name="run", attempt=1, step="a")
    found: list[str] = []

    def look() -> None:
        with pytest.raises(order.Unfillable) as refused:
            order._output(around, step, "text")  # type: ignore[arg-type]
        found.append(str(refused.value))

    threading.Thread(target=look, daemon=True).start()
    deadline = time.monotonic() + 20
    while not found:
        assert time.monotonic() < deadline, "it waits for somebody to write into the pipe"
        time.sleep(0.01)
    assert found == [f"the output of step a is no file: {folder}/stdout.log"]


def test_links_in_a_circle_and_a_file_without_end_are_told_of_and_stop_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "1"
    folder.mkdir(parents=True)
    (folder / "round").symlink_to("round")
    with (folder / "result.json").open("wb") as file:
        file.truncate(1 << 40)  # a hole: to read it would take minutes
    outputs = OutputFolder(tmp_path)
    assert outputs.read("run", 1, "round") == "round could not be kept: Too many levels of symbolic links"
    found = unmet(folder, [{"file": "round", "min_bytes": 1}])
    assert found == "round cannot be read: Too many levels of symbolic links"
    assert outputs.measure("run", 1) == {
        "result.json": {"bytes": 1 << 40, "sha256": "unread: more than 1073741824 bytes"}
    }


def test_a_pipe_in_the_place_of_an_output_keeps_nobody_waiting(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "1"
    folder.mkdir(parents=True)
    for name in ("report.md", "result.json", "stdout.log"):
        os.mkfifo(folder / name)
    outputs, found = OutputFolder(tmp_path), []

    def look() -> None:
        found.append(outputs.read("run", 1, "report.md"))
        found.append(outputs.result("run", 1))
        found.append(outputs.measure("run", 1))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(30)
    assert found == ["report.md is no file and was not kept", None, {}]
