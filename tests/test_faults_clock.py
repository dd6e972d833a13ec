"""What clocks and hosts do to a daemon, and what its ledger then says: the real loop on a clock that the test moves."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer

from daemon.cli.grammar import app
from ledger.instant import ms_of
from ledger.reader import read
from simulations.oracle import Promise, Sleep, Year

Json = Any

MINUTE_MS = 60_000
DAY_MS = 24 * 60 * MINUTE_MS
COMMAND = typer.main.get_command(app)


def host(
    schedule: Json, start: str, *, runs_ms: int = 1_000, asleep: tuple[str, str] | None = None, **spec: Json
) -> Year:
    """A host with one job, `job`; nothing has happened yet."""
    raw = {"name": "job", "kind": "command", "argv": ["work"], "schedule": schedule, "needs": {"cpu": 0}} | spec
    sleeps = [Sleep(ms_of(asleep[0]), ms_of(asleep[1]))] if asleep else []
    return Year([Promise(raw, "cron", runs_ms=runs_ms)], sleeps, ms_of(start))


def set_clock(year: Year, at: str, wall: str) -> None:
    """A person or NTP moves the wall clock; CLOCK_BOOTTIME goes on, and the timer of the kernel tells the loop."""
    year.pass_until(ms_of(at))
    year.move_to(ms_of(at))
    year.clock.wall_ns = ms_of(wall) * 1_000_000
    year.look("clock")


def decisions(year: Year) -> list[Json]:
    return [one for record in read(year.disk) if record.type == "plan.decided" for one in record.data["decisions"]]


def jumps(year: Year) -> list[int]:
    return [record.data["jump_ms"] for record in read(year.disk) if record.type == "clock.jumped"]


def started(year: Year) -> list[str]:
    return [one["at"] for one in decisions(year) if one["verdict"] == "started"]


class Home:
    """The year's ledger in a home of a real disk, and a person who asks about it."""

    def __init__(self, year: Year, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._path, self._capsys = path / "home", capsys
        self.says("init")
        for name, content in year.disk.files().items():
            if name.startswith("ledger/"):
                (self._path / name).parent.mkdir(exist_ok=True)
                (self._path / name).write_bytes(content)

    def says(self, *words: str) -> str:
        COMMAND.main([*words, "--home", str(self._path)], standalone_mode=False)
        return " ".join(self._capsys.readouterr().out.split())

    def told(self, *words: str) -> Json:
        COMMAND.main([*words, "--home", str(self._path), "--json"], standalone_mode=False)
        return json.loads(self._capsys.readouterr().out)


def test_a_clock_set_back_a_day_fires_nothing_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    year = host({"cron": "0 12 * * *"}, "2026-03-02T11:00:00Z")

    set_clock(year, "2026-03-03T13:00:00Z", "2026-03-02T13:00:00Z")
    assert started(year) == ["2026-03-02T12:00:00Z", "2026-03-03T12:00:00Z"]
    year.pass_until(ms_of("2026-03-05T00:00:00Z"))

    assert started(year) == ["2026-03-02T12:00:00Z", "2026-03-03T12:00:00Z", "2026-03-04T12:00:00Z"]
    (jump_ms,) = jumps(year)
    assert abs(jump_ms + DAY_MS) < 1_000
    home = Home(year, tmp_path, capsys)
    jumped = home.told("events", "--type", "clock.jumped")
    assert jumped["data"]["wall"].startswith("2026-03-02T13:00:00")
    assert "asked by its schedule" in home.says("why", "job")
    assert "and the same again when asked again" in home.says("why", "job")


def test_a_clock_set_forward_a_month_misses_a_month_of_slots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    year = host({"cron": "0 * * * *"}, "2026-03-02T12:30:00Z", missed={"policy": "latest", "window": "2h"})

    set_clock(year, "2026-03-02T14:20:00Z", "2026-04-01T14:20:00Z")
    year.pass_until(ms_of("2026-04-01T16:30:00Z"))

    gone, run, *later = decisions(year)[2:]
    assert (gone["verdict"], gone["at"], gone["until"]) == ("coalesced", "2026-03-02T15:00:00Z", "2026-04-01T13:00:00Z")
    assert gone["count"] == 30 * 24 - 1
    assert gone["reason"] == "a later slot of this job stands for it"
    assert (run["verdict"], run["at"]) == ("started", "2026-04-01T14:00:00Z")
    assert [one["at"] for one in later] == ["2026-04-01T15:00:00Z", "2026-04-01T16:00:00Z"]
    (jump_ms,) = jumps(year)
    assert abs(jump_ms - 30 * DAY_MS) < 1_000
    said = Home(year, tmp_path, capsys).says("why", gone["run"])
    assert "coalesced: a later slot of this job stands for it" in said
    assert "and 718 more, up to" in said
    assert "of the slots noticed late only the latest is run" in said


@pytest.mark.parametrize(
    ("policy", "verdicts", "reason", "rule"),
    [
        (
            "skip",
            ["missed x3"],
            "missed: noticed 5h late; this job skips what it missed",
            "`missed: {policy: skip}`: slots noticed late are not made up for",
        ),
        (
            "latest",
            ["coalesced x2", "started 2026-03-09T03:00:00Z"],
            "coalesced: a later slot of this job stands for it",
            "of the slots noticed late only the latest is run",
        ),
        (
            "all",
            ["missed x1", "started 2026-03-08T03:00:00Z", "started 2026-03-09T03:00:00Z"],
            "missed: noticed 2d5h late, beyond the window of 2d",
            "slots older than the window are not made up for",
        ),
    ],
)
def test_a_host_that_slept_over_a_weekend(
    policy: str, verdicts: list[str], reason: str, rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missed = {"policy": policy, "window": "2d", "max": 3}  # More than there are within the window.
    asleep = ("2026-03-06T18:00:00Z", "2026-03-09T08:00:00Z")
    year = host({"cron": "0 3 * * *"}, "2026-03-06T12:00:00Z", asleep=asleep, missed=missed)

    year.pass_until(ms_of("2026-03-09T10:00:00Z"))

    assert jumps(year) == [], "a host that sleeps does not set its clock"
    over = [one for one in decisions(year) if one["verdict"] not in ("buffered", "deferred")]
    assert [
        f"{one['verdict']} {one['at'] if one['verdict'] == 'started' else 'x' + str(one.get('count', 1))}"
        for one in over
    ] == verdicts
    said = Home(year, tmp_path, capsys).says("why", over[0]["run"])
    assert reason in said
    assert rule in said
    assert "decided 2026-03-09" in said


@pytest.mark.parametrize("policy", ["skip", "latest", "all"])
def test_ten_thousand_missed_slots_are_worked_off_in_a_few_decisions(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asleep = ("2026-03-02T12:02:30Z", "2026-03-10T20:00:50Z")  # 11,998 slots: more than one plan looks at.
    missed = {"policy": policy, "window": "30d", "max": 20}
    year = host({"every": "1m"}, "2026-03-02T12:00:30Z", runs_ms=200, asleep=asleep, missed=missed)

    year.pass_until(ms_of("2026-03-10T20:01:30Z"))

    told = decisions(year)
    ranges = [one for one in told if "until" in one]
    caught_up = [at for at in started(year) if "2026-03-02T12:03" <= at <= "2026-03-10T20:00:00Z"]
    assert sum(one["count"] for one in ranges) + len(caught_up) == 11_998
    assert len(caught_up) == {"skip": 0, "latest": 1, "all": 20}[policy]
    assert len(told) < 80
    assert started(year)[-1] == "2026-03-10T20:01:00Z", "it goes on with the next slot"
    home = Home(year, tmp_path, capsys)
    in_the_middle = home.told("why", ranges[0]["run"])
    assert in_the_middle["slots"] == ranges[0]["count"] >= 9_980
    said = home.says("why", ranges[-1]["run"])
    if policy == "skip":
        assert "this job skips what it missed" in said
    elif policy == "latest":
        assert "a later slot of this job stands for it" in said
    else:
        assert "of those missed this job runs the newest 20" in said
        last = home.says("why", next(one["run"] for one in told if one["at"] == caught_up[-1]))
        assert "makes up for a missed slot, after run job." in last


def test_runs_that_make_up_for_a_night_start_one_after_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten jobs, one night asleep: their latest slots are not started as a storm."""
    raw = {"kind": "command", "argv": ["work"], "schedule": {"cron": "0 3 * * *"}, "needs": {"cpu": 0}}
    late = {"missed": {"policy": "latest", "window": "1d"}}
    jobs = [Promise({"name": f"job-{number}"} | raw | late, "cron") for number in range(10)]
    asleep = Sleep(ms_of("2026-03-02T22:00:00Z"), ms_of("2026-03-03T08:00:00Z"))
    year = Year(jobs, [asleep], ms_of("2026-03-02T21:00:00Z"))

    year.pass_until(ms_of("2026-03-03T09:00:00Z"))

    starts = [
        (ms_of(record.ts[:23] + "Z"), one["run"])
        for record in read(year.disk)
        if record.type == "plan.decided"
        for one in record.data["decisions"]
        if one["verdict"] == "started"
    ]
    assert len(starts) == 10
    between = [later[0] - earlier[0] for earlier, later in pairwise(starts)]
    assert all(900 <= gap_ms <= 1_200 for gap_ms in between), between
    said = Home(year, tmp_path, capsys).says("why", starts[-1][1])
    assert "deferred by stagger: makes up for a missed slot; such runs start one after another" in said


def test_a_job_every_second_that_takes_a_minute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    year = host({"every": "1s"}, "2026-03-02T12:00:00Z", runs_ms=MINUTE_MS, overlap="skip")

    year.pass_until(ms_of("2026-03-02T12:05:00Z"))

    told = decisions(year)
    counted = Counter((one["verdict"], one["rule"]) for one in told)
    assert counted[("started", "admitted")] == 5
    assert counted[("skipped", "overlap.skip")] == len(told) - 5
    slots = [ms_of(one["at"]) for one in told]
    assert slots == list(range(slots[0], slots[0] + 1000 * len(slots), 1000)), "every slot, once, in order"
    first, skipped = told[0]["run"], told[30]
    assert skipped["reason"] == f"run {first} is not over, and this job does not overlap"
    said = Home(year, tmp_path, capsys).says("why", skipped["slot"])
    assert f"skipped: run {first} is not over, and this job does not overlap" in said
    assert "`overlap: skip`: while one run of the job is not over, its other slots are skipped" in said
