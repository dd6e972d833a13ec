"""Two decisions held against each other, in a past told event by event."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_shell import answer, hermesd
from story import Story
from told_home import home_of

from daemon.cli.diff import _COLUMNS, differences
from ledger.record import Record
from state.events import draft


def plans(story: Story) -> list[Record]:
    from ledger.reader import read

    return [record for record in read(story.disk) if record.type == "plan.decided"]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    """Four plans: one waits for a lease of somebody else, one starts, one is of a changed job, one of a new policy."""
    story = Story()
    story.define("deploy", leases=["repo:core"])
    data = {"key": "repo:core", "holder": "anna@box", "expires_boot_ms": 0, "note": ""}
    story.record(draft("lease.seen", "lease/repo:core", data))
    run = story.start("deploy", "r1")
    story.plan()
    story.record(
        draft("lease.released", "lease/repo:core", {"key": "repo:core", "holder": "anna@box", "why": "released"})
    )
    story.plan()
    story.begin(run)
    story.end(run)
    story.define("deploy", leases=["repo:core"], priority=80)
    story.start("deploy", "r2")
    story.plan()
    return home_of(story, tmp_path_factory.mktemp("diff") / "home"), plans(story)


def test_the_lease_that_made_the_difference_is_named(told: tuple[Path, list[Record]]) -> None:
    home, (waited, started, _) = told
    found = answer("diff", str(waited.seq), str(started.seq), "--home", home)
    assert list(found["differing_inputs"]) == ["leases", "history"]
    assert "jobs" in found["same_inputs"]
    assert found["differing_inputs"]["leases"][0] == {
        "path": "leases.held.repo:core",
        "first": {"holder": "anna@box", "token": 0, "foreign": True},
        "second": "(absent)",
    }
    verdicts = {change["path"].rpartition(".")[2]: change for change in found["decisions"]}
    assert (verdicts["verdict"]["first"], verdicts["verdict"]["second"]) == ("deferred", "started")
    assert found["put_together_by_other_code"] == []
    said = hermesd("diff", str(waited.seq), str(started.seq), "--home", home).stdout
    assert 'held.repo:core: {"holder":"anna@box"' in said
    assert '.verdict: "deferred" -> "started"' in said


def test_a_decision_is_named_by_its_record_its_tick_or_its_hash(told: tuple[Path, list[Record]]) -> None:
    home, (first, second, _) = told
    by_record = answer("diff", str(first.seq), str(second.seq), "--home", home)
    by_hash = [plan.data["decision_hash"][:10] for plan in (first, second)]
    assert answer("diff", *by_hash, "--home", home) == by_record
    assert answer("diff", "tick:1", "tick:2", "--home", home) == by_record
    assert "no decision is 'tick:99'" in hermesd("diff", "tick:1", "tick:99", "--home", home, code=3).stderr
    same = hermesd("diff", "tick:1", "tick:1", "--home", home).stdout
    assert "The same question and the same answer." in same


def test_a_changed_job_is_told_field_by_field(told: tuple[Path, list[Record]]) -> None:
    home, (_, started, changed) = told
    found = answer("diff", str(started.seq), str(changed.seq), "--home", home)["differing_inputs"]
    jobs = {change["path"]: (change["first"], change["second"]) for change in found["jobs"]}
    assert jobs["jobs.deploy.revision"] == (1, 2)
    assert "jobs.deploy.digest" in jobs
    assert len(jobs) == 2


def test_rows_are_told_apart_by_their_names_and_not_by_their_places() -> None:
    first = [["a", 1, 2], ["b", 3, 4]]
    second = [["b", 3, 5], ["c", 6, 7]]
    assert [change.path for change in differences(first, second, "x")] == ["x.a", "x.b[1]", "x.c"]
    assert list(differences({"k": [1, {"z": 1}]}, {"k": [1, {"z": 1}]}, "x")) == []
    assert [change.path for change in differences({"k": [1, {"z": 1}]}, {"k": [1, {"z": 2}]}, "x")] == ["x.k[1].z"]


def test_the_columns_of_every_row_have_their_names() -> None:
    story = Story(max_running=8, pools={"t": {"places": 5}})
    story.define("a", {"every": "1h"}, overlap="buffer_all", leases=["k"], tags=["t"])
    story.define("agent", kind="agent", steps=[{"name": "one", "kind": "command", "argv": ["true"]}])
    story.define("files", {"on": {"path": "in/*"}})
    story.pass_ms(3 * 3_600_000)
    story.plan()
    story.request("backfill", "b", job="a", **{"from": "2026-03-02T12:00:00Z", "to": "2026-03-02T15:00:00Z"})
    story.start("agent", "r1")
    story.plan()
    story.define("b", leases=["k"])
    story.start("b", "r2")
    story.plan()
    file = {"path": "/in/x", "size_bytes": 1, "mtime_ns": 1, "inode": 1}
    story.record(draft("files.arrived", "job/files", {"job": "files", "files": [file]}))
    story.request("start", "r3", job="files", file="/in/y")
    groups = story.ask().groups()
    for path, columns in _COLUMNS.items():
        value = groups
        for part in path.split("."):
            value = value[part]
        assert value, f"nothing is asked about {path}"
        assert {len(row) - 1 for row in value} == {len(columns)}, path
