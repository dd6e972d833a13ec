import json
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from daemon.document import LARGEST_BYTES
from daemon.jobfiles import accepted, is_job_file, load, load_files
from ledger.record import LINE_BYTES_MAX
from policies.adoption import changes
from policies.job import JOB_BYTES_MAX
from state.graph import Graph

JOB = "name: {name}\nkind: command\nargv: [true]\nschedule: manual\n".replace("[true]", "[make]")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "good.yaml").write_text(JOB.format(name="good"))
    return tmp_path


def write(folder, name, text):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def told(loaded):
    return [
        (Path(problem.file).name, problem.line, problem.column, problem.field, problem.message)
        for problem in loaded.problems
    ]


def test_a_folder_of_jobs_in_both_formats_and_in_a_list(folder):
    write(
        folder,
        "two.yml",
        """\
- {name: b, kind: command, argv: [a], schedule: '@daily'}
- {"name": "c", "kind": "command", "argv": ["a"], "schedule": "manual"}
""",
    )
    smile = {"name": "d", "kind": "command", "argv": ["\N{GRINNING FACE}\t/"], "schedule": "manual"}
    write(folder, "json.json", json.dumps(smile))

    loaded = load(folder, "Asia/Kathmandu")

    assert loaded.problems == []
    assert {name: path.name for name, (_, path) in loaded.jobs.items()} == {
        "good": "good.yaml",
        "b": "two.yml",
        "c": "two.yml",
        "d": "json.json",
    }
    assert loaded.jobs["b"][0].canonical()["schedule"] == {"cron": "@daily", "timezone": "Asia/Kathmandu"}
    assert loaded.jobs["d"][0].command == ("\N{GRINNING FACE}\t/",)


def test_words_and_numbers_that_yaml_once_took_for_something_else(folder):
    write(
        folder,
        "traps.yaml",
        """\
name: traps
kind: command
argv: [tail, -n, +5, 010, 12:30, yes, off, 1_000, 0x1F, -3, 2026-11-21, 2026-11-21T10:00:00, !!str 7, "8"]
schedule: {after: good}
retry: {on: [exit], attempts: 2}
env: {PORT: 8080, COUNTRY: NO}
""",
    )

    loaded = load(folder, "UTC")

    job, _ = loaded.jobs["traps"]
    assert loaded.problems == []
    assert job.argv == (
        "tail", "-n", "+5", "010", "12:30", "yes", "off", "1_000", "0x1F", "-3", "2026-11-21", "2026-11-21T10:00:00",
        "7", "8",
    )  # fmt: skip
    assert job.retry.on == ("exit",)
    assert job.env == {"PORT": "8080", "COUNTRY": "NO"}


def test_each_fault_has_its_file_line_column_and_field(folder):
    write(
        folder,
        "bad.yaml",
        """\
# two jobs, both unfit
- name: one
  kind: command
  argv: [echo, 1.10]
  schedule: {cron: "0 0 31 2 *"}
- name: two
  kind: command
  shedule: manual
  argv: [echo]
  schedule:
    every: 30m
    timezone: UTC
""",
    )

    loaded = load(folder, "UTC")

    assert told(loaded) == [
        ("bad.yaml", 4, 16, "argv[1]", "1.1 is not text here"),
        (
            "bad.yaml",
            5,
            14,
            "schedule.cron",
            "'0 0 31 2 *' never comes: day 31 does not exist in month 2",
        ),
        ("bad.yaml", 8, 3, "shedule", "unknown field 'shedule'"),
        ("bad.yaml", 12, 5, "schedule.timezone", "unknown field 'timezone'"),
    ]
    assert [problem.job for problem in loaded.problems] == ["one", "one", "two", "two"]
    assert list(loaded.jobs) == ["good"]
    assert str(loaded.problems[2]).endswith(
        "bad.yaml:8:3: two: shedule: unknown field 'shedule'. Did you mean 'schedule'?"
    )


def test_faults_in_json_have_their_place_too(folder):
    write(folder, "bad.json", '[{"name": "j",\n  "kind": "command", "argv": ["a"],\n  "schedule": {"every": "1x"}}]')

    assert told(load(folder, "UTC")) == [("bad.json", 3, 16, "schedule.every", "'1x' is not a duration")]


def test_one_name_in_two_files(folder):
    write(folder, "a.yaml", "# first\n" + JOB.format(name="twice") + "priority: 1\n")
    write(folder, "b.yaml", JOB.format(name="twice") + "priority: 2\n")

    loaded = load(folder, "UTC")

    assert loaded.jobs["twice"][0].priority == 1
    (problem,) = loaded.problems
    assert (Path(problem.file).name, problem.line, problem.field) == ("b.yaml", 1, "name")
    assert "there is a job 'twice' in" in problem.message
    assert problem.message.endswith("a.yaml:2 already")


def test_a_broken_twin_does_not_take_the_sound_job_along(folder):
    write(folder, "later.yaml", JOB.format(name="good") + "jiter: 5s\n")

    loaded = load(folder, "UTC")

    assert list(loaded.jobs) == ["good"]
    assert [problem.field for problem in loaded.problems] == ["jiter"]


def test_jobs_that_wait_for_each_other_or_for_nobody(folder):
    write(
        folder,
        "x.yaml",
        """\
- {name: a, kind: command, argv: [a], schedule: {after: b}}
- {name: b, kind: command, argv: [a],
   schedule: {after: [a]}}
- {name: c, kind: command, argv: [a], schedule: {after: gud}}
- {name: d, kind: command, argv: [a], schedule: {after: e}}
- {name: e, kind: command, argv: [a], schedule: {evry: 5m}}
""",
    )

    loaded = load(folder, "UTC")

    assert [(line, field, message) for _, line, _, field, message in told(loaded)] == [
        (1, "schedule.after", "the jobs wait for each other: a -> b -> a"),
        (3, "schedule.after", "the jobs wait for each other: b -> a -> b"),
        (4, "schedule.after", "there is no job 'gud'"),
        (6, "schedule", "a schedule needs one of cron, every, at, after, on, manual"),
    ]
    assert sorted(loaded.jobs) == ["d", "good"]


def bomb():
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("name", "content", "line", "message"),
    [
        ("x.yaml", "", 0, "the file holds no job"),
        ("x.yaml", "# nothing yet\n", 0, "the file holds no job"),
        ("x.yaml", "[]", 0, "the file holds no job"),
        ("x.json", " ", 0, "the file holds no job"),
        ("x.yaml", "name: a\nargv: [\n", 3, "this is not YAML"),
        ("x.yaml", "name: a\n\tkind: b\n", 2, "this is not YAML"),
        ("x.yaml", "name: a\n---\nname: b\n", 2, "a second document begins here"),
        ("x.yaml", "name: a\nkind: b\nname: c\n", 3, "the field 'name' is given twice, first in line 1"),
        ("x.json", '{"name": "a",\n"name": "b"}', 2, "the field 'name' is given twice, first in line 1"),
        ("x.json", '{"name": "a",}', 1, "this is not JSON"),
        ("x.json", '{"name": NaN}', 1, "this is not JSON: NaN is no JSON value"),
        ("x.yaml", "name: a\nargv: [\xe9]\n".encode("latin-1"), 2, "byte 15 is not UTF-8"),
        ("x.yaml", "name: a\n".encode("utf-16"), 1, "byte 0 is not UTF-8"),
        ("x.yaml", "name: \x01", 1, "this is not YAML"),
        ("x.yaml", b" " * (LARGEST_BYTES + 1), 0, f"the file is larger than {LARGEST_BYTES} bytes"),
        ("x.yaml", "[" * 100_000, 1, "nested deeper than 50 levels"),
        ("x.json", "[" * 100_000, 1, "the file is nested too deeply"),
        ("x.yaml", bomb(), 6, "the file holds too many values"),
        ("x.yaml", f"- &a {'x' * 300_000}\n" + "- *a\n" * 1000, 171, "the file holds too many values"),
        ("x.yaml", f"- &a\n  ? {'x' * 300_000}\n  : 1\n" + "- *a\n" * 1000, 173, "the file holds too many values"),
        ("x.json", '{"name": "x",\n"argv": ["\\ud83d"]}', 2, "the text holds half of a surrogate pair"),
        ("x.json", '{"\\ud83d": 1}', 1, "the text holds half of a surrogate pair"),
        ("x.yaml", "a: &a [*a]", 1, "there is no anchor &a before this"),
        ("x.yaml", "a: !!python/object:os.system x", 1, "the tag tag:yaml.org,2002:python/object:os.system means"),
        ("x.yaml", "? [a]\n: b", 1, "a field's name must be text"),
        ("x.yaml", "just text", 1, "a job is a mapping, not text"),
        ("x.yaml", "spec: 1\n" + JOB.format(name="x"), 1, "unknown field 'spec'"),
    ],
)  # fmt: skip
def test_a_broken_file_breaks_itself_alone(folder, name, content, line, message):
    write(folder, name, content)

    loaded = load(folder, "UTC")

    (problem,) = loaded.problems
    assert Path(problem.file).name == name
    assert problem.line == line
    assert message in problem.message
    assert list(loaded.jobs) == ["good"]


def test_a_job_too_large_to_be_recorded_is_a_problem_of_its_own_file(folder):
    text = "x" * JOB_BYTES_MAX
    write(folder, "long.yaml", f"name: long\nkind: command\nargv: [echo, {text}]\nschedule: manual\n")
    loaded = load(folder, "UTC")
    ((name, line, _, _, message),) = told(loaded)
    assert (name, line) == ("long.yaml", 1)
    assert "the ledger records no more than 131072" in message
    assert list(loaded.jobs) == ["good"]


@pytest.mark.parametrize(
    "text",
    [
        JOB.format(name="b") + f"overlap: {'x' * 300_000}\n",
        JOB.format(name="b") + f'{"x" * 300_000}: "1"\n',
        JOB.format(name="b") + "".join(f'"\\x01 field {number}": 1\n' for number in range(9_000)),
    ],
    ids=["a long value", "a long name", "many mistakes"],
)
def test_whatever_is_wrong_with_a_file_fits_in_a_record(folder, text):
    write(folder, "b.yaml", text)
    jobs, problems = accepted(load(folder, "UTC"), folder)
    (rejected,) = (event for event in changes(Graph(), jobs, problems) if event.type == "job.rejected")
    assert len(json.dumps(rejected.data)) < LINE_BYTES_MAX
    assert list(jobs) == ["good"]


def test_names_that_are_no_files(folder):
    (folder / "folder.yaml").mkdir()
    os.mkfifo(folder / "pipe.yaml")
    (folder / "gone.yaml").symlink_to("nowhere")

    loaded = load(folder, "UTC")

    assert [(name, message) for name, _, _, _, message in told(loaded)] == [
        ("folder.yaml", "this is a folder"),
        ("gone.yaml", "the file cannot be read: No such file or directory"),
        ("pipe.yaml", "this is no regular file"),
    ]
    assert list(loaded.jobs) == ["good"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is text")
def test_a_name_that_is_no_text(folder):
    for name in (b"\xff.yaml", b"\xfe.yaml"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text(JOB.format(name="a"))

    loaded = load(folder, "UTC")

    assert [(name, message) for name, _, _, _, message in told(loaded)] == [
        ("\\udcfe.yaml", "the name of this file is no UTF-8 text"),
        ("\\udcff.yaml", "the name of this file is no UTF-8 text"),
    ]
    assert list(loaded.jobs) == ["good"]
    jobs, problems = accepted(loaded, folder)
    assert {event.type for event in changes(Graph(), jobs, problems) if orjson.dumps(event.data)} == {
        "job.defined", "job.rejected",
    }  # fmt: skip


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(folder):
    (folder / "secret.yaml").touch(mode=0)

    assert told(load(folder, "UTC"))[0][-1] == "the file cannot be read: Permission denied"


def test_editors_leave_files_that_are_not_ours(folder):
    for name in (
        ".good.yaml.swp",
        "good.yaml~",
        ".#good.yaml",
        "#good.yaml#",
        "4913",
        ".good.yaml.new",
        "good.yaml.bak",
    ):
        write(folder, name, "{")
        assert not is_job_file(name)

    loaded = load(folder, "UTC")

    assert loaded.problems == []
    assert list(loaded.jobs) == ["good"]


def test_a_folder_that_is_not_there(tmp_path):
    (problem,) = load(tmp_path / "jobs", "UTC").problems

    assert "cannot be read: No such file or directory" in problem.message
    assert problem.advice


def test_a_file_without_a_home(folder):
    assert list(load_files([folder / "good.yaml"], "UTC").jobs) == ["good"]


def test_reading_job_files_brings_no_engine_along():
    program = "import sys, daemon.jobfiles; print({'torch', 'transformers'} & set(sys.modules))"

    root = Path(__file__).parent.parent
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)

    assert found.stdout == "set()\n"
