"""What would be decided now, and what is coming: asked without doing anything."""

from __future__ import annotations

from pathlib import Path

from cli_shell import answer, hermesd
from story import Story
from told_home import home_of

from ledger.instant import ms_of
from state.events import draft

HOURLY = "{name: hourly, kind: command, argv: ['true'], schedule: '0 * * * *', jitter: 30m}\n"
ALL = """\
- {name: hourly, kind: command, argv: ['true'], schedule: '0 * * * *', missed: {policy: all, window: 1000w, max: 3}}
- {name: held, kind: command, argv: ['true'], schedule: manual}
"""


def test_a_plan_tells_of_the_slots_it_would_make_up_for_and_of_who_has_paused_what(tmp_path: Path) -> None:
    story = Story()
    story.define("hourly", "0 * * * *", missed={"policy": "all", "window": "1000w", "max": 3})
    story.define("held")
    story.record(draft("job.paused", "job/held", {"job": "held", "actor": "anna@box", "reason": "later"}))
    home = home_of(story, tmp_path / "home")
    (home / "jobs" / "all.yaml").write_text(ALL)
    before = {path: path.read_bytes() for path in sorted((home / "ledger").iterdir()) if path.is_file()}
    told = answer("plan", "--home", home)
    verdicts = [(one["verdict"], one["rule"]) for one in told["decisions"]]
    assert verdicts[0] == ("missed", "missed.max")
    assert told["decisions"][0]["count"] > 100
    assert ("buffered", "overlap.missed") in verdicts
    assert "job held is paused by anna@box: its slots are skipped" in told["pending"]
    said = hermesd("plan", "--home", home).stdout
    assert f"({told['decisions'][0]['count']} slots, up to " in said
    after = {path: path.read_bytes() for path in sorted((home / "ledger").iterdir()) if path.is_file()}
    assert after == before


def test_while_everything_is_paused_the_plan_says_so(tmp_path: Path) -> None:
    story = Story()
    story.define("hourly", "0 * * * *")
    story.record(draft("daemon.paused", "daemon", {"actor": "anna@box", "reason": "moving", "drain": False}))
    home = home_of(story, tmp_path / "home")
    told = answer("plan", "--home", home)
    assert told["decisions"] == []
    assert "everything is paused by anna@box: until that ends no slot is decided" in told["pending"]
    assert (
        "\npaused     since 2026-03-02 12:00:00 UTC by anna@box: moving\n"
        in hermesd("status", "--home", home, code=4).stdout
    )


def test_the_next_slots_carry_their_jitter_and_say_that_the_job_is_paused(tmp_path: Path) -> None:
    story = Story()
    story.define("hourly", "0 * * * *", jitter="30m")
    story.record(draft("job.paused", "job/hourly", {"job": "hourly", "actor": "anna@box", "reason": ""}))
    home = home_of(story, tmp_path / "home")
    (home / "jobs" / "hourly.yaml").write_text(HOURLY)
    rows = answer("next", "hourly", "-n", "5", "--home", home)
    waits = [(row["utc"], row.get("starts", row["utc"])) for row in rows]
    assert all(utc <= starts <= utc.replace(":00:00Z", ":30:00Z") for utc, starts in waits)
    assert len({starts[13:] for _, starts in waits}) == 5
    assert {row["note"] for row in rows} == {"paused by anna@box: skipped unless the job is resumed"}
    assert answer("next", "hourly", "-n", "5", "--home", home) == rows


def test_a_doubled_and_a_shifted_hour_are_marked(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        "name: night\nkind: command\nargv: [x]\nschedule: {cron: '30 2 * * *', timezone: Europe/Paris}\njitter: 10s\n"
    )
    (row,) = answer("next", "--file", job, "--from", "2026-03-29T00:00:00Z", "-n", "1")
    assert row["note"].startswith("shifted: 02:30 does not exist on 2026-03-29 in Europe/Paris")
    (row,) = answer("next", "--file", job, "--from", "2026-10-25T00:00:00Z", "-n", "1")
    assert row["note"].startswith("doubled hour: 02:30 comes twice on 2026-10-25")


def test_what_is_coming_is_not_promised_twice_nor_while_everything_is_paused(tmp_path: Path) -> None:
    """A clock that has been set back: the ledger's latest slots are still to come by it."""
    story = Story()
    story.wall_ms = ms_of("8989-12-31T20:30:00Z")
    story.define("hourly", "0 * * * *", expires="8990-01-01")
    story.pass_ms(3_600_000)
    story.plan()
    home = home_of(story, tmp_path / "home")
    (home / "jobs" / "hourly.yaml").write_text(HOURLY.replace("jitter: 30m", "expires: 8990-01-01"))
    rows = answer("next", "hourly", "--from", "8989-12-31T21:00:00Z", "--home", home)
    already = "the clock was set back: it has its decision already, and nothing starts"
    assert [(row["utc"][11:13], row.get("note", "")) for row in rows] == [("21", already), ("22", ""), ("23", "")]
    (listed,) = answer("jobs", "list", "--home", home)
    assert listed["next"] == "8989-12-31T22:00:00Z"
    nothing = hermesd("next", "hourly", "--from", "8995-01-01", "--home", home).stdout
    assert "from 8990-01-01 00:00:00 UTC on it has no slots (`expires`)" in nothing

    story = Story()
    story.record(draft("daemon.paused", "daemon", {"actor": "anna@box", "reason": "moving", "drain": False}))
    home = home_of(story, tmp_path / "paused")
    (home / "jobs" / "hourly.yaml").write_text(HOURLY)
    (row,) = answer("next", "-n", "1", "--home", home)
    assert row["note"] == "everything is paused by anna@box: not decided before that ends"
    assert row["job"] == "hourly", "as with several jobs: what asks without a name cannot know how many there are"
