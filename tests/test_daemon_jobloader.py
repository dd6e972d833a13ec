"""The job files are read by a child process; when it fails, every job keeps its last good version."""

from __future__ import annotations

import selectors
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from story import Story

from daemon.jobloader import JobLoader
from policies.adoption import FOLDER, changes

JOB = "name: {}\nkind: command\nschedule: manual\nargv: [echo]\n"


class Descriptors:
    """A selector that runs callbacks, as the daemon's does."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.done = 0

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        self.selector.register(fd, selectors.EVENT_READ, ready)

    def until_done(self, times: int) -> None:
        while self.done < times:
            ready = self.selector.select(30)
            assert ready, "the reader said nothing for half a minute"
            for key, _ in ready:
                key.data()

    def tell(self) -> None:
        self.done += 1


@pytest.fixture
def descriptors() -> Descriptors:
    return Descriptors()


def loader(folder: Path, descriptors: Descriptors) -> JobLoader:
    return JobLoader(folder, "Europe/Paris", descriptors.watch, descriptors.selector.unregister, descriptors.tell)


def test_what_the_files_say_comes_back_whole(tmp_path: Path, descriptors: Descriptors) -> None:
    (tmp_path / "good.yaml").write_text(JOB.format("good"))
    (tmp_path / "bad.yaml").write_text(JOB.format("bad") + "color: red\n")
    jobs, problems = loader(tmp_path, descriptors).found()
    assert {name: job.source for name, job in jobs.items()} == {"good": "good.yaml"}
    assert [(p.file, p.line, p.message) for p in problems] == [("bad.yaml", 5, "unknown field 'color'")]


def test_a_change_while_they_are_read_has_them_read_once_more(tmp_path: Path, descriptors: Descriptors) -> None:
    (tmp_path / "a.yaml").write_text(JOB.format("a"))
    reader = loader(tmp_path, descriptors)
    reader.again()
    (tmp_path / "b.yaml").write_text(JOB.format("b"))
    reader.again()
    descriptors.until_done(2)
    assert sorted(reader.found()[0]) == ["a", "b"]
    reader.close()


def test_a_reader_that_dies_is_told_and_removes_no_job(
    tmp_path: Path, descriptors: Descriptors, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story()
    story.define("mine")
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    jobs, problems = loader(tmp_path, descriptors).found()
    assert [(problem.file, problem.message) for problem in problems] == [
        (FOLDER, "the process that reads the job files ended with status 1")
    ]
    assert [event.type for event in changes(story.graph, jobs, problems)] == ["job.rejected"]


def test_a_folder_that_cannot_be_read_removes_no_job(tmp_path: Path, descriptors: Descriptors) -> None:
    story = Story()
    story.define("mine")
    jobs, problems = loader(tmp_path / "gone", descriptors).found()
    assert [event.type for event in changes(story.graph, jobs, problems)] == ["job.rejected"]
