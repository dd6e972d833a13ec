"""Any slot of any job explained: decided, in the middle of a range, not due yet, never promised, given up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from cli_shell import ROOT, answer, hermesd
from story import Story
from told_home import home_of

from daemon.cli.why import RULES, _family
from ledger.instant import ms_of
from policies import due
from policies.job import parse_job
from policies.overlap import ALLOW_ALL, POLICIES
from state.events import draft

HOUR_MS = 3_600_000
PARIS = {"cron": "30 2 * * *", "timezone": "Europe/Paris"}


def who(reason: str) -> dict[str, str]:
    return {"actor": "anna@box", "reason": reason}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From Monday, 2026-03-02 at noon UTC, for a month; then the daemon stops."""
    story = Story()
    story.define("hourly", "0 * * * *")
    story.define("night", PARIS)
    story.define("quarter", {"cron": "*/30 * * * *", "timezone": "Europe/Paris"})
    story.define("off", "0 * * * *", enabled=False)
    story.define("ending", "0 * * * *", expires="2026-03-02T14:30Z")
    story.define("byhand")
    story.define("removed", "0 * * * *")
    story.define("changed", "0 3 * * *")
    for name in ("gone", "switched", "ended", "edited"):
        story.define(name, "0 3 * * *")
    story.define("paused", "0 13 * * *")
    story.record(draft("job.paused", "job/paused", {"job": "paused", **who("the disk is being changed")}))
    story.pass_ms(HOUR_MS // 2)
    story.remove("removed")
    story.pass_ms(HOUR_MS // 2)
    story.plan()
    story.pass_ms(15 * HOUR_MS + HOUR_MS // 2)  # asleep, over the slot of `changed`
    story.define("changed", "0 5 * * *")
    story.remove("gone")
    story.define("switched", "0 3 * * *", enabled=False)
    story.define("ended", "0 3 * * *", expires="2026-03-03T01:00Z")
    story.define("edited", "0 3 * * *", priority=60)
    while story.plan().more:
        pass
    story.pass_ms(27 * 24 * HOUR_MS)
    while story.plan().more:
        pass
    story.record(draft("daemon.stopped", "daemon", {"reason": "stopped"}))
    return home_of(story, tmp_path_factory.mktemp("why") / "home")


def why(home: Path, what: str) -> Any:
    return answer("why", what, "--home", home)


def test_a_slot_is_named_by_its_job_and_what_the_clock_showed(home: Path) -> None:
    told = why(home, "hourly@2026-03-02T13:00")
    assert (told["decision"]["verdict"], told["decision"]["rule"]) == ("started", "admitted")
    assert told["asked_about"]["utc"] == "2026-03-02T13:00:00Z"
    assert why(home, "hourly@2026-03-02T14:00+01:00")["run"] == told["run"]
    assert told["decision"]["asked_again"] is True


def test_a_slot_in_the_middle_of_a_range_has_the_decision_of_the_range(home: Path) -> None:
    told = why(home, "hourly@2026-03-02T20:00")
    assert told["slots"] > 5
    assert told["at"] < "2026-03-02T20:00:00Z" < told["until"]
    assert told["decision"]["rule"].startswith(("missed.", "overlap."))
    assert "and " in hermesd("why", "hourly@2026-03-02T20:00", "--home", home).stdout


def test_the_night_the_clock_goes_forward_is_explained(home: Path) -> None:
    told = why(home, "night@2026-03-29T02:30")
    assert told["asked_about"]["utc"] == "2026-03-29T01:00:00Z"
    assert "was never on the clock in Europe/Paris: it went from 02:00 to 03:00" in told["asked_about"]["note"]
    skipped = why(home, "quarter@2026-03-29T02:30")
    assert "was never on the clock" in skipped["asked_about"]["note"]
    doubled = why(home, "night@2026-10-25T02:30")
    assert (doubled["state"], doubled["at"]) == ("not_due", "2026-10-25T00:30:00Z") or doubled["state"] == "waits"
    assert "came twice in Europe/Paris, at 2026-10-25T00:30:00Z and 2026-10-25T01:30:00Z" in doubled["note"]


NONE = [
    ("hourly@2026-03-02T11:00", "before_definition", "first seen on 2026-03-02 12:00:00"),
    ("hourly@2026-03-05T11:17", "no_slot", "is not due then: 0 * * * * UTC"),
    ("off@2026-03-05T11:00", "disabled", "`enabled: false`"),
    ("ending@2026-03-05T11:00", "expired", "has no slots from 2026-03-02 14:30:00"),
    ("byhand@2026-03-05T11:00", "no_slot", "no slots by the clock: manual"),
    ("removed@2026-03-05T11:00", "removed", "the job was removed on 2026-03-02 12:30:00"),
    ("changed@2026-03-03T03:00", "given_up", "its schedule was replaced on 2026-03-03 04:30:00"),
    ("gone@2026-03-03T03:00", "given_up", "the job was removed on 2026-03-03 04:30:00"),
    ("switched@2026-03-03T03:00", "given_up", "the job was switched off on 2026-03-03 04:30:00"),
    ("ended@2026-03-03T03:00", "given_up", "`expires` was set to a time before it on 2026-03-03 04:30:00"),
    ("hourly@2026-03-31T11:00", "waits", "no daemon is running since 2026-03-30 04:30:00"),
    ("hourly@2990-03-31T11:00", "not_due", "it is due in "),
]


@pytest.mark.parametrize(("what", "state", "because"), NONE)
def test_of_a_slot_without_a_decision_it_is_said_why(home: Path, what: str, state: str, because: str) -> None:
    told = why(home, what)
    assert (told["decision"], told["state"]) == (None, state)
    assert because in told["because"]
    assert because in hermesd("why", what, "--home", home).stdout


def test_a_slot_that_was_skipped_says_who_paused_the_job_and_why(home: Path) -> None:
    told = why(home, "paused@2026-03-02T13:00")
    assert (told["decision"]["verdict"], told["decision"]["rule"]) == ("skipped", "paused")
    assert told["decision"]["reason"] == "anna@box paused this job: the disk is being changed"
    assert "nothing of it starts by itself" in told["decision"]["rule_in_words"]
    coming = why(home, "paused@2990-01-01T13:00")["because"]
    assert "paused by anna@box: unless it is resumed, the slot will be skipped" in coming


def test_the_identity_that_next_prints_is_enough_though_nothing_is_decided(tmp_path: Path) -> None:
    story = Story()
    story.define("yearly", "0 4 1 1 *", jitter="1h")
    home = home_of(story, tmp_path / "home")
    (home / "jobs" / "yearly.yaml").write_text(
        "{name: yearly, kind: command, argv: ['true'], schedule: '0 4 1 1 *', jitter: 1h}\n"
    )
    (row,) = answer("next", "yearly", "-n", "1", "--home", home)
    told = why(home, row["slot"][:8])
    assert (told["job"], told["at"], told["slot"]) == ("yearly", row["utc"], row["slot"])
    assert row["starts"] > row["utc"]
    assert "by its slot's share of `jitter: 1h`" in told["because"]
    assert "by its jitter" in hermesd("next", "yearly", "--home", home).stdout
    assert "no decision is about 'ffffffffffff'" in hermesd("why", "ffffffffffff", "--home", home, code=3).stderr
    assert "Did you mean 'yearly'?" in hermesd("why", "yerly@2026-01-01", "--home", home, code=3).stderr
    assert "is no instant" in hermesd("why", "yearly@noon", "--home", home, code=2).stderr


def test_the_identity_of_before_an_edit_leads_to_the_decision_of_after_it(home: Path) -> None:
    job = parse_job({"name": "edited", "kind": "command", "argv": ["true"], "schedule": "0 3 * * *"})
    before = due.slot_id("edited", job.digest(), ms_of("2026-03-03T03:00:00Z"))
    told = why(home, before)
    assert (told["at"], told["revision"]) == ("2026-03-03T03:00:00Z", 2)
    assert told["slot"] != before


def test_one_that_waits_behind_another_says_so(tmp_path: Path) -> None:
    story = Story()
    story.define("slow", "0 * * * *", overlap="buffer_one")
    for _ in range(2):
        story.pass_ms(HOUR_MS)
        story.plan()
    home = home_of(story, tmp_path / "home")
    told = why(home, "slow@2026-03-02T14:00")
    assert (told["decision"]["verdict"], told["decision"]["rule"]) == ("buffered", "overlap.buffer_one")
    assert told["decision"]["rule_in_words"]


def test_the_runs_of_a_job_that_was_removed_can_be_listed(tmp_path: Path) -> None:
    story = Story()
    story.define("gone")
    run = story.start("gone")
    story.plan()
    story.remove("gone")
    home = home_of(story, tmp_path / "home")
    assert [row["run"] for row in answer("runs", "list", "--job", "gone", "--home", home)] == [run]
    assert "there is no job 'other'" in hermesd("runs", "list", "--job", "other", "--home", home, code=3).stderr


def test_every_rule_that_a_decision_can_name_is_told_in_words() -> None:
    named = {f"overlap.{policy}" for policy in POLICIES if policy != ALLOW_ALL}
    for room in ("survey", "admission", "budget"):
        text = (ROOT / "policies" / f"{room}.py").read_text()
        named |= set(re.findall(r'"((?:missed|overlap|steps)\.[a-z_]+|(?:needs|pool|budget)\.|lease:)', text))
        named |= set(re.findall(r'"(?:deferred|skipped|blocked|started)", "([a-z_.]+)"', text))
    assert {"missed.latest", "overlap.full", "lease:", "budget.", "paused", "jitter", "admitted"} <= named
    assert [rule for rule in sorted(named) if _family(rule) not in RULES] == []
