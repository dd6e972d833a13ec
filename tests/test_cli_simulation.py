"""At a shell: the days ahead, the past decided again, the event that changed something."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cli_shell import answer, hermesd
from lived import FRIDAY, Life, any_fate, any_jobs, policy
from story import Story
from told_home import home_of

HOUR_MS = 3_600_000
JOBS = """\
- {name: backup, schedule: {cron: "30 2 * * *", timezone: Europe/Paris}, kind: command, argv: ["true"], leases: [disk]}
- {name: probe, schedule: {every: 10m}, kind: command, argv: ["true"]}
- {name: tidy, schedule: {cron: "30 2 * * *", timezone: Europe/Paris}, kind: command, argv: ["true"], leases: [disk]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "jobs.yaml").write_text(JOBS)
    return tmp_path / "mine"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight hours of seven jobs."""
    life = Life(any_jobs(9, 7), policy(max_running=2), any_fate(9))
    life.pass_until(FRIDAY + 8 * HOUR_MS)
    life.end()
    story = Story()
    story.disk = life.disk
    return home_of(story, tmp_path_factory.mktemp("lived") / "home")


def test_the_days_ahead_need_no_home_and_draw_a_picture(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "days.svg"
    words = ("simulate", "--jobs", folder, "--from", "2026-03-27T12:00:00Z", "--days", "3", "--home", tmp_path / "none")

    told = answer(*words, "--svg", picture)
    shown = hermesd(*words).stdout

    assert told["jobs"]["probe"]["slots"] == 3 * 144 - 1
    assert told["assumed"]["no_past"] == ["backup", "probe", "tidy"]
    [collision] = told["collisions"]
    assert (collision["waits"], collision["holds"], collision["times"]) == ("tidy", "backup", 3)
    assert [shift["job"] for shift in told["shifts"]] == ["backup", "tidy"]
    assert "tidy waits for backup (lease:disk): 3 times, 3m" in shown
    assert "2026-03-29 02:00 becomes 03:00" in shown
    assert len([e for e in ElementTree.parse(picture).iter() if e.tag.endswith("rect")]) > 3 * 144
    assert not (tmp_path / "none").exists()


def test_the_same_seed_gives_the_same_and_faults_are_told(folder: Path, tmp_path: Path) -> None:
    words = ("simulate", "--jobs", folder, "--from", "2026-03-01", "--days", "30", "--home", tmp_path / "none")
    first, second = (hermesd(*words, "--faults", "sleep,kill", "--seed", "4", "--json").stdout for _ in range(2))

    assert first == second
    assert {outage["kind"] for outage in json.loads(first)["outages"]} == {"sleep", "kill"}
    assert sum(job["missed"] for job in json.loads(first)["jobs"].values()) > 0
    assert "there is no fault 'flood'" in hermesd(*words, "--faults", "flood", code=2).stderr


def test_a_home_teaches_how_long_its_jobs_take(home: Path, tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "some.yaml").write_text(
        "- {name: job0, schedule: {every: 1h}, kind: command, argv: ['true']}\n"
        "- {name: unheard-of, schedule: {every: 1h}, kind: command, argv: ['true']}\n"
    )

    told = answer("simulate", "--jobs", tmp_path / "jobs", "--days", "2", "--home", home)

    assert told["learned_from_attempts"] > 50
    assert told["assumed"]["no_past"] == ["unheard-of"]


def test_another_policy_changes_the_past_and_the_same_does_not(home: Path, tmp_path: Path) -> None:
    (tmp_path / "same.yaml").write_text("max_running: 2\n")
    (tmp_path / "wide.yaml").write_text("max_running: 9\n")

    same = answer("whatif", "--policy", tmp_path / "same.yaml", "--since", "0", "--home", home)
    wide = answer("whatif", "--policy", tmp_path / "wide.yaml", "--since", "0", "--home", home)
    shown = hermesd("whatif", "--policy", tmp_path / "wide.yaml", "--since", "0", "--home", home).stdout

    assert (same["first_divergence"], same["differences"]) == (None, [])
    assert same["agreed_decisions"] == same["recorded_decisions"] > 100
    assert wide["first_divergence"]["only_recorded"][0]["rule"] == "places"
    assert wide["sums"]["started"]["simulated"] > wide["sums"]["started"]["recorded"]
    assert wide["sums"]["runs_at_once_max"]["simulated"] > wide["sums"]["runs_at_once_max"]["recorded"] == 2
    assert "All that follows is simulated" in shown
    assert "What this cannot know:" in shown
    assert "there is nothing that is otherwise" in hermesd("whatif", "--home", home, code=2).stderr
    hermesd("whatif", "--policy", tmp_path / "wide.yaml", "--since", "999999", "--home", home, code=3)
    (tmp_path / "bad.yaml").write_text("max_runing: 9\n")
    assert "max_runing" in hermesd("whatif", "--policy", tmp_path / "bad.yaml", "--home", home, code=2).stderr


def test_the_event_that_changed_something_is_named(home: Path) -> None:
    told = answer("bisect", "--assert", "runs.succeeded < 20", "--home", home)
    shown = hermesd("bisect", "--assert", "runs.succeeded < 20", "--home", home).stdout

    assert (told["found"], told["holds"], told["type"]) == (True, False, "run.finished")
    assert (told["before"], told["after"]) == ({"runs.succeeded": 19}, {"runs.succeeded": 20})
    assert f"no longer holds after record {told['seq']}" in shown
    assert answer("bisect", "--assert", "runs.succeeded < 99999", "--home", home, code=1)["found"] is False
    assert "runs has no 'failled'" in hermesd("bisect", "--assert", "runs.failled > 1", "--home", home, code=2).stderr
    hermesd("bisect", "--assert", "seq > 5", "--to", "999999", "--home", home, code=3)
    hermesd("bisect", "--assert", "seq > 5", "--from", "9", "--to", "9", "--home", home, code=2)


def test_a_graph_is_told_as_json_as_dot_and_as_mermaid(home: Path) -> None:
    whole = json.loads(hermesd("replay", "--graph", "--to", "60", "--home", home).stdout)
    dot = hermesd("replay", "--graph", "--format", "dot", "--to", "60", "--home", home).stdout
    mermaid = hermesd("replay", "--graph", "--format", "mermaid", "--to", "60", "--home", home).stdout

    assert whole["head"]["seq"] == 60
    assert dot.startswith("digraph")
    assert dot.count(" -> ") == mermaid.count(" -->|") == len(whole["edges"])
    assert mermaid.startswith("graph LR")
    hermesd("replay", "--graph", "--format", "gif", "--home", home, code=2)
