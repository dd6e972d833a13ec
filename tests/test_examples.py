import importlib.util
from pathlib import Path

import pytest

from daemon.jobfiles import load, load_files
from policies.upcoming import upcoming

FOLDER = Path(__file__).parent.parent / "examples" / "jobs"
FILES = sorted(FOLDER.glob("*.yaml"))


def test_the_examples_load_together_without_a_problem():
    loaded = load(FOLDER, "Europe/Paris")

    assert list(map(str, loaded.problems)) == []
    assert len(FILES) >= 12
    assert {job.kind for job, _ in loaded.jobs.values()} == {"command", "python", "inference", "agent", "upgrade"}
    kinds = {
        next(iter(job.canonical()["schedule"].keys() - {"timezone", "offset", "when"}))
        for job, _ in loaded.jobs.values()
    }
    assert kinds == {"cron", "every", "at", "after", "on", "manual"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_example_stands_alone_and_says_what_to_edit(file):
    loaded = load_files([file], "UTC")

    assert loaded.problems == []
    head = [line for line in file.read_text().splitlines()[:4] if line.startswith("#")]
    assert any(word in " ".join(head) for word in ("Edit:", "Nothing to edit"))
    for job, _ in loaded.jobs.values():
        upcoming(job, 0, 3)


def test_the_python_example_does_what_its_job_says(tmp_path):
    (tmp_path / "small").write_bytes(b"1")
    (tmp_path / "large").write_bytes(b"123")
    where = importlib.util.spec_from_file_location("nightly_report", FOLDER / "nightly_report.py")
    module = importlib.util.module_from_spec(where)
    where.loader.exec_module(module)

    report = module.build(folder=str(tmp_path), largest=1)

    assert report == {
        "folder": str(tmp_path),
        "files": 2,
        "bytes": 4,
        "largest": [{"path": str(tmp_path / "large"), "bytes": 3}],
    }
