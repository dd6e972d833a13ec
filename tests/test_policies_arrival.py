"""Jobs that files start: what counts as arrived, and one decision for each, told event by event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from story import Story

from ledger.reader import read
from ledger.record import LINE_BYTES_MAX
from policies import arrival
from policies.arrival import Look, Unsettled, news
from policies.decision import FILES_BYTES_MAX, decide
from policies.job import InvalidJob, parse_job
from policies.replay import verify_decisions
from policies.request import Declined
from policies.schedule import Files
from state import snapshot
from state.arrivals import stamp
from state.events import draft
from state.projector import Impossible

Json = Any
ON = {"on": {"path": "/in/*.txt", "settle": "2s"}}
LONG_AGO_MS = 3_600_000


class Folder:
    """A folder that a story's job watches."""

    def __init__(self, story: Story, job: str = "a", schedule: Json = None, **fields: Json) -> None:
        self.story, self.job, self.files = story, job, dict[str, str]()
        self.unsettled: Unsettled = {}
        story.define(job, schedule or ON, **fields)
        self.writes = 0

    def write(self, *names: str, age_ms: int = LONG_AGO_MS) -> None:
        for name in names:
            self.writes += 1
            mtime_ns = (self.story.wall_ms - age_ms) * 1_000_000 + self.writes
            self.files[f"/in/{name}"] = stamp(5, mtime_ns, self.writes)

    def remove(self, *names: str) -> None:
        for name in names:
            del self.files[f"/in/{name}"]

    def look(
        self, files: Mapping[str, str] | None = None, unread: tuple[str, ...] = (), problem: str = ""
    ) -> list[str]:
        """The types of the events that followed."""
        wanted = self.story.past.agenda.files(self.story.wall_ms)[self.job]
        there = self.files if files is None else files
        types = []
        more = True
        while more:
            look = Look(self.job, wanted, self.story.now, there, unread, problem)
            found = news(self.story.graph, look, self.unsettled)
            self.unsettled, more = found.unsettled, found.more
            self.settles_in_ms = None if found.settles_boot_ms is None else found.settles_boot_ms - self.story.boot_ms
            self.story.record(*found.events)
            types += [event.type for event in found.events]
        return types

    def take(self) -> list[str]:
        """Look, plan, and say what was decided about which file."""
        self.look()
        return [f"{d['verdict']} {d['file'].removeprefix('/in/')}" for d in self.story.plan().decisions]

    def pending(self) -> list[str]:
        known = self.story.graph.arrivals.get(self.job)
        return [one[0].removeprefix("/in/") for one in known.pending] if known else []

    def end_all(self) -> None:
        for name in list(self.story.graph.active):
            self.story.end(name)


def test_what_was_there_when_the_job_was_defined_has_arrived_too() -> None:
    folder = Folder(Story())
    folder.write("old.txt")
    assert folder.take() == ["started old.txt"]


def test_a_file_is_taken_once_however_often_one_looks() -> None:
    folder = Folder(Story())
    folder.write("a.txt")
    assert folder.take() == ["started a.txt"]
    assert folder.look() == []
    folder.end_all()
    assert folder.take() == []


def test_the_same_name_written_again_is_a_new_arrival() -> None:
    folder = Folder(Story())
    folder.write("a.txt")
    folder.take()
    folder.end_all()
    folder.write("a.txt")
    assert folder.take() == ["started a.txt"]


def test_a_file_that_is_still_written_is_left_until_it_has_settled() -> None:
    story = Story()
    folder = Folder(story)
    folder.write("a.txt", age_ms=500)
    assert folder.look() == []
    assert folder.settles_in_ms == 1500
    story.pass_ms(1500)
    folder.write("a.txt", age_ms=100)
    assert folder.look() == []
    story.pass_ms(folder.settles_in_ms)
    assert folder.take() == ["started a.txt"]


def test_a_file_from_the_future_settles_by_two_looks() -> None:
    story = Story()
    folder = Folder(story)
    folder.write("a.txt", age_ms=-86_400_000)
    assert folder.look() == []
    assert folder.settles_in_ms == 2000
    story.pass_ms(1000)
    folder.write("a.txt", age_ms=-86_400_000)
    assert folder.look() == []
    assert folder.settles_in_ms == 2000
    story.pass_ms(1000)
    assert folder.look() == []
    story.pass_ms(1000)
    assert folder.look() == ["files.arrived"]


def test_gone_files_are_forgotten_and_may_come_again() -> None:
    folder = Folder(Story())
    folder.write("a.txt")
    same = dict(folder.files)
    folder.take()
    folder.end_all()
    folder.remove("a.txt")
    assert folder.look() == ["files.gone"]
    assert folder.job not in folder.story.graph.arrivals or not folder.story.graph.arrivals["a"].seen
    folder.files = same
    assert folder.take() == ["started a.txt"]


def test_what_cannot_be_read_is_not_taken_for_gone() -> None:
    folder = Folder(Story())
    folder.write("a.txt")
    folder.take()
    assert folder.look({}, unread=("/in",), problem="there is no folder /in") == ["files.hidden"]
    assert list(folder.story.graph.arrivals["a"].seen) == ["/in/a.txt"]
    assert folder.look() == ["files.hidden"]
    assert folder.story.graph.arrivals["a"].problem == ""


def test_files_wait_their_turn_as_files_and_not_as_runs() -> None:
    folder = Folder(Story())
    folder.write("1.txt", "2.txt", "3.txt")
    assert folder.take() == ["started 1.txt"]
    assert folder.pending() == ["2.txt", "3.txt"]
    assert folder.take() == []
    folder.end_all()
    assert folder.take() == ["started 2.txt"]
    assert len(folder.story.graph.active) == 1


@pytest.mark.parametrize("overlap", ["buffer_one", "buffer_all(<=2)"])
def test_no_file_is_skipped_because_the_buffer_is_full(overlap: str) -> None:
    folder = Folder(Story(), overlap=overlap)
    folder.write(*(f"{n}.txt" for n in range(9)))
    done = []
    while taken := folder.take():
        done += taken
        folder.end_all()
    assert done == [f"started {n}.txt" for n in range(9)]


def test_side_by_side_means_as_many_as_there_are_places() -> None:
    story = Story(max_running=3)
    folder = Folder(story, overlap="allow_all")
    folder.write(*(f"{n}.txt" for n in range(5)))
    assert folder.take() == ["started 0.txt", "started 1.txt", "started 2.txt"]
    story.end(sorted(story.graph.active)[0])
    assert folder.take() == ["started 3.txt"]
    assert folder.pending() == ["4.txt"]


def test_a_new_file_replaces_the_run_before_it_where_the_job_says_so() -> None:
    story = Story()
    folder = Folder(story, overlap="cancel_other")
    folder.write("1.txt")
    folder.take()
    folder.write("2.txt", "3.txt")
    assert folder.take() == ["buffered 2.txt", "buffered 3.txt"]
    assert {event.type for event in story.react()} == {"run.stopping", "run.finished"}


def test_a_paused_job_keeps_its_files_waiting() -> None:
    story = Story()
    folder = Folder(story)
    story.request("pause", "p1", job="a")
    folder.write("1.txt", "2.txt")
    assert folder.take() == []
    story.request("resume", "p2", job="a")
    assert folder.take() == ["started 1.txt"]


def test_a_file_that_is_gone_before_its_turn_is_skipped_and_many_are_one_decision() -> None:
    folder = Folder(Story())
    folder.write("1.txt", "2.txt", "3.txt", "4.txt")
    folder.take()
    folder.remove("2.txt", "3.txt")
    folder.look()
    (decided,) = folder.story.plan().decisions
    assert (decided["verdict"], decided["rule"], decided["count"]) == ("skipped", "on.gone", 2)
    assert folder.pending() == ["4.txt"]


def test_a_file_written_again_before_its_turn_is_worked_on_once() -> None:
    folder = Folder(Story())
    folder.write("1.txt", "2.txt")
    folder.take()
    folder.write("2.txt")
    assert folder.take() == ["coalesced 2.txt"]
    folder.end_all()
    assert folder.take() == ["started 2.txt"]
    assert folder.pending() == []


def test_files_of_a_removed_job_are_told_of_and_dropped() -> None:
    story = Story()
    folder = Folder(story)
    folder.write("1.txt", "2.txt", "3.txt")
    folder.take()
    story.request("pause", "p1")
    story.remove("a")
    (decided,) = story.plan().decisions
    assert (decided["verdict"], decided["rule"], decided["count"]) == ("skipped", "on.removed", 2)
    assert story.graph.arrivals == {}


def test_files_wait_on_when_something_else_of_the_job_changes() -> None:
    story = Story()
    folder = Folder(story)
    folder.write("1.txt", "2.txt")
    folder.take()
    story.define("a", ON, priority=90)
    folder.end_all()
    assert folder.take() == ["started 2.txt"]


def test_another_schedule_ends_the_waiting() -> None:
    story = Story()
    folder = Folder(story)
    folder.write("1.txt", "2.txt")
    folder.take()
    story.define("a", "manual")
    assert [d["rule"] for d in story.plan().decisions] == ["on.removed"]
    assert story.past.agenda.files(story.wall_ms) == {}


def test_a_switched_off_or_expired_job_waits_for_no_files() -> None:
    story = Story()
    story.define("off", ON, enabled=False)
    story.define("over", ON, expires="2026-03-02T13:00:00Z")
    assert list(story.past.agenda.files(story.wall_ms)) == ["over"]
    assert story.past.agenda.files(story.wall_ms + 3_600_000) == {}


def test_files_wait_while_their_job_is_switched_off() -> None:
    story = Story()
    folder = Folder(story)
    folder.write("1.txt", "2.txt")
    folder.take()
    story.define("a", ON, enabled=False)
    folder.end_all()
    assert story.plan().decisions == ()
    story.define("a", ON)
    assert folder.take() == ["started 2.txt"]


def test_what_has_arrived_comes_back_from_a_snapshot() -> None:
    story = Story()
    folder = Folder(story)
    folder.write("1.txt", "2.txt", "3.txt")
    folder.take()
    folder.remove("3.txt")
    folder.look()
    kept = snapshot.decode(snapshot.encode(story.graph, story.ledger.head, "code"), "code")
    assert kept is not None
    assert kept.graph.arrivals == story.graph.arrivals
    assert kept.graph.arrivals["a"].lost


def test_a_file_is_not_used_up_by_what_a_person_has_yet_to_put_right() -> None:
    story = Story()
    folder = Folder(story)
    folder.write("1.txt", "2.txt")
    folder.look()
    (decided,) = story.plan({"a": "there is no program"}).decisions
    assert (decided["verdict"], decided["rule"], decided["reason"]) == ("deferred", "preflight", "there is no program")
    assert story.plan({"a": "there is no program"}).decisions == ()
    assert folder.take() == ["started 1.txt"]


def test_every_decision_about_files_is_the_same_when_asked_again() -> None:
    story = Story()
    folder = Folder(story, overlap="allow_all")
    folder.write(*(f"{n}.txt" for n in range(30)))
    folder.take()
    folder.remove("29.txt")
    folder.write("28.txt")
    folder.take()
    verdicts = list(verify_decisions(read(story.disk)))
    assert len(verdicts) == 2
    assert all(verdict.agrees for verdict in verdicts)


def test_the_files_that_wait_are_part_of_what_is_hashed() -> None:
    story = Story()
    folder = Folder(story)
    folder.write("1.txt", "2.txt")
    folder.look()
    before = story.ask().groups()["history"]
    folder.write("3.txt")
    folder.look()
    assert story.ask().groups()["history"] != before


def test_a_plan_about_files_with_long_names_fits_in_a_line() -> None:
    story = Story(max_running=10_000)
    for number in range(6):
        folder = Folder(story, f"a{number}", overlap="allow_all")
        folder.write(*(f"{n}" + "\n" * 2000 + ".txt" for n in range(40)))
        folder.look()
    started = 0
    while decisions := story.plan().decisions:
        assert sum(len(d["file"]) for d in decisions) < FILES_BYTES_MAX + 5000 < LINE_BYTES_MAX
        started += len(decisions)
    assert started == 240


def test_events_about_files_with_long_names_fit_in_a_line() -> None:
    folder = Folder(Story())
    folder.write(*(f"{n}" + "\n" * 4000 for n in range(60)))
    assert len(folder.look()) > 2
    folder.files.clear()
    assert len(folder.look()) > 2


def test_a_decision_about_a_file_that_does_not_wait_is_impossible() -> None:
    story = Story()
    folder = Folder(story)
    folder.write("1.txt")
    folder.look()
    plan = decide(story.ask())
    told = [decided | {"file": "/in/other.txt"} for decided in plan.decisions]
    data = {
        "tick": 1, "wall_ms": story.wall_ms, "boot_ms": 0, "preflight": {}, "decisions": told, "inputs": plan.inputs,
        "decision_hash": plan.decision_hash,
    }  # fmt: skip
    with pytest.raises(Impossible, match="0 files of job 'a' wait for this decision about '/in/other.txt'"):
        story.record(draft("plan.decided", "plan", data))


def test_more_files_than_one_job_may_have_wait_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "FILES_MAX", 3)
    folder = Folder(Story())
    folder.write(*(f"{n}.txt" for n in range(5)))
    assert folder.look() == ["files.arrived", "files.hidden"]
    assert "no more are taken up" in folder.story.graph.arrivals["a"].problem
    folder.remove("0.txt", "1.txt")
    assert folder.look() == ["files.gone", "files.arrived", "files.hidden"]
    assert sorted(folder.story.graph.arrivals["a"].seen) == ["/in/2.txt", "/in/3.txt", "/in/4.txt"]


def test_a_person_names_the_file_that_the_job_is_to_be_started_for() -> None:
    story = Story()
    story.define("a", ON)
    story.define("b")
    with pytest.raises(Declined, match="so its run needs one"):
        story.request("start", "r1", job="a")
    with pytest.raises(Declined, match="is not started by files"):
        story.request("start", "r2", job="b", file="/in/x")
    with pytest.raises(Declined, match="no whole path"):
        story.request("start", "r3", job="a", file="x")
    run = story.request("start", "r4", job="a", file="/in/x")["run"]
    story.plan()
    assert story.run(run).file == "/in/x"
    story.end(run)
    again = story.request("retry", "r5", run=run)["run"]
    story.plan()
    assert story.run(again).file == "/in/x"


@pytest.mark.parametrize(
    ("path", "parts", "fixed"),
    [
        ("inbox/*.txt", ("inbox", "*.txt"), 1),
        ("~/a/b/c.txt", ("~", "a", "b", "c.txt"), 3),
        ("/srv/**", ("srv", "**", "*"), 1),
        ("a/**/**/b?/*.pdf", ("a", "**", "b?", "*.pdf"), 1),
    ],
)
def test_a_pattern_has_a_part_that_is_fixed(path: str, parts: tuple[str, ...], fixed: int) -> None:
    files = Files(path, 1000)
    assert (files.parts, files.fixed) == (parts, fixed)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"argv": ["x"], "schedule": {"on": {"path": "a/../b"}}}, "schedule.on.path: 'a/../b' has an empty part"),
        ({"argv": ["x"], "schedule": {"on": {"path": "a/"}}}, "schedule.on.path: 'a/' names no files"),
        ({"argv": ["x"], "schedule": {"on": {"path": "a**"}}}, "something stands beside `**`"),
        ({"argv": ["x"], "schedule": {"on": {}}}, "schedule.on: the field 'path' is missing"),
        ({"argv": ["x", "{{ file.path }}"], "schedule": "manual"}, "in a job that no file starts"),
        ({"argv": ["x", "{{ file.size }}"], "schedule": ON}, "unknown placeholder {{ file.size }}"),
        ({"shell": "cat {{ file.path }}", "schedule": ON}, "a text for the shell"),
        ({"argv": ["/bin/sh", "-ec", "cat {{ file.name }}"], "schedule": ON}, "a text for the shell"),
        ({"argv": ["x"], "cwd": "{{ file.path }}", "schedule": ON}, "are not filled in `cwd`"),
    ],
)
def test_what_a_job_on_files_cannot_say(fields: dict[str, Json], complaint: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        parse_job({"name": "a", "kind": "command", **fields})
    assert complaint in str(caught.value)


def test_a_shell_in_a_step_gets_no_file_name_either() -> None:
    step: dict[str, Json] = {"name": "one", "kind": "command", "shell": "cat {{ file.path }}"}
    with pytest.raises(InvalidJob, match="HERMESD_FILE"):
        parse_job({"name": "a", "kind": "agent", "schedule": ON, "steps": [step]})
    step = {"name": "one", "kind": "command", "argv": ["sh", "-c", 'cat "$1"', "x", "{{ file.path }}"]}
    parse_job({"name": "a", "kind": "agent", "schedule": ON, "steps": [step]})


def test_other_braces_that_begin_with_file_are_left_alone() -> None:
    argv = ["x", "{{ files }}", "{{ file }}"]
    job = parse_job({"name": "a", "kind": "command", "schedule": "manual", "argv": argv})
    assert job.canonical()["argv"] == argv
