"""What people write is read by a child process; when it fails, everything keeps its last good version."""

from __future__ import annotations

import resource
import selectors
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from story import Story

from daemon.home import Home, HomeError
from daemon.loader import Loader
from ledger.reader import read
from policies.adoption import FOLDER, Unread, changes
from simulations.world import World

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


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.make()
    home.settings_file.write_text("timezone: Europe/Paris\n")
    return home


def loader(home: Home, descriptors: Descriptors) -> Loader:
    return Loader(home, descriptors.watch, descriptors.selector.unregister, descriptors.tell)


def test_the_settings_that_held_at_the_start_hold_on(home: Home, descriptors: Descriptors) -> None:
    reader = loader(home, descriptors)
    assert reader.settings().timezone == "Europe/Paris"
    home.settings_file.write_text("timezone: [nonsense]\n")
    (home.jobs / "a.yaml").write_text(JOB.format("a").replace("manual", "'30 2 * * *'"))
    reader.again()
    descriptors.until_done(1)
    (job,) = reader.found()[0].values()
    assert job.spec["schedule"] == {"timezone": "Europe/Paris", "cron": "30 2 * * *"}


def test_where_no_process_can_be_started_the_jobs_stay_as_they_are_and_it_is_tried_again(
    home: Home, descriptors: Descriptors
) -> None:
    reader = loader(home, descriptors)
    reader.settings()
    (home.jobs / "a.yaml").write_text(JOB.format("a"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        reader.again()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    descriptors.until_done(1)
    jobs, (problem,) = reader.found()
    assert (jobs, problem.file) == ({}, FOLDER)
    assert "no process can be started for it" in problem.message
    assert reader.overdue
    reader.again()
    descriptors.until_done(2)
    assert list(reader.found()[0]) == ["a"]
    assert not reader.overdue


def test_settings_that_cannot_be_used_are_told_with_their_place(home: Home, descriptors: Descriptors) -> None:
    home.settings_file.write_text("timezone: Europe/Paris\ncolor: red\n")
    with pytest.raises(HomeError, match=r"hermesd.yaml:2:\d+: color: there is no such setting"):
        loader(home, descriptors).settings()


def test_a_policy_that_is_not_legal_any_more_is_as_it_last_was(home: Home, descriptors: Descriptors) -> None:
    override = home.policies / "scheduling.yaml"
    override.write_text("max_running: 3\n")
    reader = loader(home, descriptors)
    reader.settings()
    assert (reader.policy()[0].max_running, reader.policy()[1]) == (3, "")
    override.write_text("max_running: 0\n")
    reader.again()
    descriptors.until_done(1)
    policy, problem = reader.policy()
    assert policy.max_running == 3
    assert "scheduling.yaml: max_running: it must be at least 1 and at most 10000; the names are" in problem
    override.write_text("max_running: [\n")
    reader.again()
    descriptors.until_done(2)
    assert "scheduling.yaml:2:1: this is not YAML" in reader.policy()[1]


def test_what_the_files_say_comes_back_whole(home: Home, descriptors: Descriptors) -> None:
    (home.jobs / "good.yaml").write_text(JOB.format("good"))
    (home.jobs / "bad.yaml").write_text(JOB.format("bad") + "color: red\n")
    jobs, problems = loader(home, descriptors).found()
    assert {name: job.source for name, job in jobs.items()} == {"good": "good.yaml"}
    assert [(p.file, p.line, p.message) for p in problems] == [("bad.yaml", 5, "unknown field 'color'")]


def test_a_change_while_they_are_read_has_them_read_once_more(home: Home, descriptors: Descriptors) -> None:
    (home.jobs / "a.yaml").write_text(JOB.format("a"))
    reader = loader(home, descriptors)
    reader.again()
    (home.jobs / "b.yaml").write_text(JOB.format("b"))
    reader.again()
    descriptors.until_done(2)
    assert sorted(reader.found()[0]) == ["a", "b"]
    reader.close()


def test_of_a_job_that_has_not_changed_the_text_is_not_even_read() -> None:
    story = Story()
    story.define("mine")
    digest = story.graph.jobs["mine"].digest
    assert list(changes(story.graph, {"mine": Unread(digest, "no JSON", "mine.yaml")}, [])) == []


def test_a_reader_that_dies_is_told_and_removes_no_job(
    home: Home, descriptors: Descriptors, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story()
    story.define("mine")
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    jobs, problems = loader(home, descriptors).found()
    assert [(problem.file, problem.message) for problem in problems] == [
        (FOLDER, "the process that reads the job files ended with status 1")
    ]
    assert [event.type for event in changes(story.graph, jobs, problems)] == ["job.rejected"]


def test_a_folder_that_cannot_be_read_removes_no_job(home: Home, descriptors: Descriptors) -> None:
    story = Story()
    story.define("mine")
    shutil.rmtree(home.jobs)
    jobs, problems = loader(home, descriptors).found()
    assert [event.type for event in changes(story.graph, jobs, problems)] == ["job.rejected"]


def test_a_policy_that_is_as_it_was_again_is_no_longer_rejected() -> None:
    world = World(1)
    world.start()
    loop = world.loop
    assert loop is not None
    for problem in ("max_running: it must be at least 1", ""):
        loop.doors = replace(loop.doors, policy=lambda problem=problem: (world.policy, problem))
        loop.tick(frozenset({"policies"}))
        assert loop.graph.policy.rejected == problem
    records = len(list(read(world.disk)))
    loop.tick(frozenset({"policies"}))
    assert len(list(read(world.disk))) == records  # said once
