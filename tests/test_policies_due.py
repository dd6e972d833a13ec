import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.instant import ms_of, text_of
from policies import due
from policies.fault import BadValue
from policies.job import parse_job
from policies.upcoming import upcoming
from policies.zone import local_text, zone_named
from simulations import watcher

CASES = json.loads((Path(__file__).parent / "data" / "slots.json").read_text())


def cron(expression, zone="UTC"):
    return when(cron=expression, timezone=zone)


def when(**schedule):
    return parse_job({"name": "x", "kind": "command", "argv": ["true"], "schedule": schedule}).when


def texts(schedule, after, until, limit=100):
    return [text_of(at_ms) for at_ms in due.slots(schedule, ms_of(after), ms_of(until), limit)]


def name_of(case):
    return f"{case['zone']}-{case['expression']}-{case['from']}".replace("/", "_")


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_slots_of_the_conformance_suite(case):
    rows = upcoming(cron(case["expression"], case["zone"]), ms_of(case["from"]), case["n"])

    assert [{"local": row["at"], "utc": row["utc"]} for row in rows] == case["expected"], case["reason"]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_conformance_suite_is_what_a_watcher_of_the_wall_clock_sees(case):
    after = datetime.fromisoformat(case["from"]) - timedelta(seconds=1)
    until = datetime.fromisoformat(case["expected"][-1]["utc"])

    seen = watcher.slots(case["expression"], case["zone"], after, until)

    assert [moment.strftime("%Y-%m-%dT%H:%M:%SZ") for moment in seen] == [row["utc"] for row in case["expected"]]


def test_the_conformance_suite_is_wide():
    assert len(CASES) >= 120
    assert len({case["zone"] for case in CASES}) >= 8
    assert all(case["reason"] and len(case["expected"]) == case["n"] for case in CASES)


CHANGES = [
    ("Europe/Paris", "2025-03-30T01:00Z"),
    ("Europe/Paris", "2025-10-26T01:00Z"),
    ("America/New_York", "2025-03-09T07:00Z"),
    ("America/New_York", "2025-11-02T06:00Z"),
    ("Africa/Cairo", "2025-04-24T22:00Z"),
    ("Africa/Cairo", "2025-10-30T21:00Z"),
    ("Australia/Lord_Howe", "2025-04-05T15:00Z"),
    ("Australia/Lord_Howe", "2025-10-04T15:30Z"),
    ("America/Santiago", "2025-04-06T03:00Z"),
    ("America/Santiago", "2025-09-07T04:00Z"),
    ("Pacific/Apia", "2011-12-30T10:00Z"),
    ("Africa/Casablanca", "2025-02-23T02:00Z"),
    ("Africa/Casablanca", "2025-04-06T02:00Z"),
    ("Asia/Kathmandu", "1985-12-31T18:30Z"),
    ("Asia/Tehran", "2022-03-21T20:30Z"),
    ("Antarctica/Troll", "2025-03-30T01:00Z"),
    ("Antarctica/Troll", "2025-10-26T01:00Z"),
    ("Antarctica/Casey", "2020-10-03T16:01Z"),
    ("Asia/Pyongyang", "2018-05-04T15:00Z"),
    ("America/St_Johns", "2010-11-07T02:31Z"),
    ("Pacific/Chatham", "2025-09-27T14:00Z"),
    ("UTC", "2025-01-31T00:00Z"),
]
minutes = st.sampled_from(["0", "1", "30", "59", "*", "*/7", "*/15", "5-50/9", "0,15,45", "17"])
hours = st.sampled_from(["0", "1", "2", "3", "23", "*", "*/2", "*/5", "0-3", "22,23", "1,2", "0-23", "2-20/6"])
days = st.sampled_from(["*", "*", "*", "*/2", "1", "30,31", "L", "5-9"])
months = st.sampled_from(["*", "*", "*", "3-10", "DEC", "*/2"])
weekdays = st.sampled_from(["*", "*", "*", "0", "7", "5L", "SUN", "1-5", "6#1", "*/3"])


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(CHANGES), st.tuples(minutes, hours, days, months, weekdays), st.integers(-1500, 1500))
def test_any_expression_near_any_change_agrees_with_the_watcher_of_the_wall_clock(change, fields, start_minutes):
    zone, moment = change
    after = datetime.fromisoformat(moment) + timedelta(minutes=start_minutes, milliseconds=start_minutes % 3)
    until = after + timedelta(hours=30)
    expression = " ".join(fields)

    expected = [int(seen.timestamp()) * 1000 for seen in watcher.slots(expression, zone, after, until)]

    after_ms = round(after.timestamp() * 1000)
    assert due.slots(cron(expression, zone), after_ms, after_ms + 30 * 3_600_000, 10_000) == expected


@settings(deadline=None)
@given(st.sampled_from(CHANGES), minutes, hours, st.lists(st.integers(0, 3000), min_size=1, max_size=5))
def test_slots_do_not_depend_on_where_one_begins_to_look(change, minute, hour, cuts):
    zone, moment = change
    schedule = cron(f"{minute} {hour} * * *", zone)
    start_ms = ms_of(moment) - 86_400_000
    ends = [*sorted(start_ms + cut * 60_000 for cut in cuts), start_ms + 3000 * 60_000]

    pieces, after_ms = [], start_ms
    for until_ms in ends:
        pieces += due.slots(schedule, after_ms, until_ms, 10_000)
        after_ms = until_ms

    assert pieces == due.slots(schedule, start_ms, ends[-1], 10_000)


@pytest.mark.parametrize(
    ("zone", "expression", "after", "until", "expected"),
    [
        ("Europe/Berlin", "30 2 * * *", "2027-03-27T12:00Z", "2027-03-28T12:00Z", ["2027-03-28T01:00:00Z"]),
        ("Europe/Berlin", "30 2 * * *", "2027-10-30T12:00Z", "2027-10-31T12:00Z", ["2027-10-31T00:30:00Z"]),
        (
            "Europe/Berlin",
            "0 * * * *",
            "2027-10-30T22:30Z",
            "2027-10-31T03:00Z",
            [f"2027-10-{day}:00:00Z" for day in ("30T23", "31T00", "31T01", "31T02", "31T03")],
        ),
        ("Africa/Cairo", "0 0 * * *", "2025-04-24T12:00Z", "2025-04-25T12:00Z", ["2025-04-24T22:00:00Z"]),
        ("UTC", "0 9 * * 1-5", "2026-10-23T12:00Z", "2026-10-26T12:00Z", ["2026-10-26T09:00:00Z"]),
    ],
    ids=["gap", "fold", "hourly over the fold", "midnight gap", "1-5 is Monday to Friday"],
)
def test_what_deployed_schedulers_get_wrong(zone, expression, after, until, expected):
    assert texts(cron(expression, zone), after, until) == expected


def test_each_day_of_a_year_has_its_one_slot_in_every_odd_zone():
    for zone in ("Europe/Paris", "Africa/Cairo", "America/Santiago", "Australia/Lord_Howe", "Antarctica/Troll"):
        for expression in ("30 2 * * *", "0 0 * * *", "15 1 * * *"):
            found = due.slots(cron(expression, zone), ms_of("2025-01-01T12:00Z"), ms_of("2026-01-01T12:00Z"), 1000)
            assert len({local_text(zone_named(zone), at_ms)[:10] for at_ms in found}) == len(found) == 365


def test_an_interval_lies_on_the_grid_of_the_epoch():
    schedule = when(every="30m", offset="5m")

    assert texts(schedule, "2026-01-01T00:05:00Z", "2026-01-01T01:10:00Z") == [
        "2026-01-01T00:35:00Z",
        "2026-01-01T01:05:00Z",
    ]
    assert due.next_slot(schedule, -1) == 300_000
    assert due.next_slot(when(every="7s"), 10**14) == (10**14 // 7000 + 1) * 7000


def test_a_moment_is_due_once():
    schedule = when(at="2026-12-01T09:00", timezone="Europe/Paris")

    assert due.next_slot(schedule, ms_of("2026-12-01T07:59:59Z")) == ms_of("2026-12-01T08:00:00Z")
    assert due.next_slot(schedule, ms_of("2026-12-01T08:00:00Z")) is None
    assert due.next_slot(when(at="2026-12-01T09:00+05:30"), 0) == ms_of("2026-12-01T03:30:00Z")


def test_a_moment_that_the_wall_skips_or_doubles():
    skipped = when(at="2027-03-28T02:30", timezone="Europe/Berlin")
    doubled = when(at="2027-10-31T02:30", timezone="Europe/Berlin")

    assert due.next_slot(skipped, 0) == ms_of("2027-03-28T01:00:00Z")
    assert "02:30 does not exist" in due.explain_shift(skipped, ms_of("2027-03-28T01:00:00Z"))
    assert due.next_slot(doubled, 0) == ms_of("2027-10-31T00:30:00Z")
    with pytest.raises(ValueError, match="never was"):
        when(at="2011-12-30T09:00", timezone="Pacific/Apia")


def test_after_and_manual_have_no_slots():
    assert due.next_slot(when(after=["other"]), 0) is None
    assert due.next_slot(when(manual=True), 0) is None
    assert due.slots(when(manual=True), 0, 10**13, 5) == []


def test_the_limit_and_both_ends_of_a_window():
    schedule = cron("0 * * * *")

    assert texts(schedule, "2026-01-01T00:00:00Z", "2026-01-01T02:00:00Z") == [
        "2026-01-01T01:00:00Z",
        "2026-01-01T02:00:00Z",
    ]
    assert len(due.slots(schedule, 0, ms_of("2026-01-01T00:00:00Z"), 3)) == 3
    assert due.slots(schedule, ms_of("2026-01-01T00:00:00Z"), 0, 3) == []


def test_the_end_of_time_is_no_error():
    assert due.next_slot(cron("0 0 29 2 *"), ms_of("8990-01-01T00:00:00Z")) is not None
    for schedule in (cron("0 0 * * *", "Europe/Paris"), cron("* * * * *", "Europe/Paris"), when(every="365000d")):
        assert due.next_slot(schedule, ms_of("9999-12-31T23:00:00Z")) is None


@pytest.mark.parametrize(
    ("expression", "zone", "at", "note"),
    [
        ("30 2 * * *", "Europe/Berlin", "2027-03-28T01:00Z", "shifted: 02:30 does not exist on 2027-03-28"),
        ("0,30 2 * * *", "Europe/Berlin", "2027-03-28T01:00Z", "shifted: 02:00, 02:30 do not exist"),
        ("0 3 * * *", "Europe/Berlin", "2027-03-28T01:00Z", ""),
        ("30 2 * * *", "Europe/Berlin", "2027-03-29T00:30Z", ""),
        ("30 2 * * *", "Europe/Berlin", "2027-10-31T00:30Z", "the first time counts"),
        ("30 * * * *", "Europe/Berlin", "2027-10-31T00:30Z", "doubled hour: 02:30 comes twice on 2027-10-31"),
        ("30 * * * *", "Europe/Berlin", "2027-10-31T01:30Z", "this is the second time"),
        ("0 * * * *", "Europe/Berlin", "2027-03-28T01:00Z", ""),
        ("15 2 * * *", "Australia/Lord_Howe", "2025-10-04T15:30Z", "the clock goes from 02:00 to 02:30"),
        ("0 0 * * *", "Pacific/Apia", "2011-12-30T10:00Z", ""),
    ],
)
def test_shifted_and_doubled_hours_are_explained(expression, zone, at, note):
    explained = due.explain_shift(cron(expression, zone), ms_of(at))

    assert note in explained
    assert bool(note) == bool(explained)


def test_a_slot_has_a_name_of_its_own():
    slot = due.slot_id("report", "d" * 32, 1_764_547_200_000)

    assert slot == due.slot_id("report", "d" * 32, 1_764_547_200_000) == "524a39453500"
    others = {
        due.slot_id("reports", "d" * 32, 1_764_547_200_000),
        due.slot_id("report", "e" * 32, 1_764_547_200_000),
        due.slot_id("report", "d" * 32, 1_764_547_200_001),
        due.slot_id("report", "d" * 32, 1_764_547_200_000, "again"),
    }
    assert slot not in others
    assert len(others) == 4


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("0 0 31 2 *", "day 31 does not exist in month 2"),
        ("0 0 30,31 FEB *", "day 30,31 does not exist"),
        ("0 0 31 4,6,9,11 *", "never comes"),
        ("60 * * * *", "'60' is no minute"),
        ("* 24 * * *", "'24' is no hour"),
        ("* * 0 * *", "'0' is no day of month"),
        ("* * * 13 *", "'13' is no month"),
        ("* * * * 8", "'8' is no day of week"),
        ("* * * * MON#6", "'MON#6' is no day of week"),
        ("*/0 * * * *", "'\\*/0' is no minute"),
        ("5-1 * * * *", "'5-1' is no minute"),
        ("* * * *", "five fields"),
        ("0 0 * * * *", "five fields"),
        ("@reboot", "unknown cron name"),
        ("@dayly", "unknown cron name"),
        ("", "five fields"),
        ("9" * 5000 + " * * * *", "is no minute|characters"),
    ],
)
def test_an_expression_that_cannot_be_read_or_never_comes_says_why(expression, reason):
    with pytest.raises(ValueError, match=reason):
        cron(expression)


def test_an_unknown_zone_suggests_a_known_one():
    with pytest.raises(BadValue) as caught:
        zone_named("Europe/Pariss")

    assert "Europe/Paris" in caught.value.advice
    for name in ("localtime", "right/UTC", "posix/UTC", "../etc/passwd", "/etc/passwd", "", "Europe", "a\0b"):
        with pytest.raises(BadValue):
            zone_named(name)


def test_upcoming_rows_carry_the_slot_the_local_time_and_the_note():
    rows = upcoming(cron("30 2 * * *", "Europe/Paris"), ms_of("2026-03-28T12:00:00Z"), 2)

    assert rows[0]["at"] == "2026-03-29T03:00:00+02:00"
    assert rows[0]["utc"] == "2026-03-29T01:00:00Z"
    assert rows[0]["note"].startswith("shifted: 02:30")
    assert len({row["slot"] for row in rows}) == 2
    assert upcoming(cron("0 * * * *"), ms_of("2026-03-28T12:00:00Z"), 1)[0]["utc"] == "2026-03-28T12:00:00Z"


def test_the_oracle_knows_a_day_when_it_sees_one():
    """By hand: 2026-02-06 is a Friday; the clock of Paris goes back at 2025-10-26T01:00Z."""
    noon = datetime(2026, 2, 1, tzinfo=UTC)
    assert watcher.slots("0 12 * * 5", "UTC", noon, noon + timedelta(days=7)) == [datetime(2026, 2, 6, 12, tzinfo=UTC)]
    night = datetime(2025, 10, 25, 12, tzinfo=UTC)
    assert watcher.slots("30 2 * * *", "Europe/Paris", night, night + timedelta(days=1)) == [
        datetime(2025, 10, 26, 0, 30, tzinfo=UTC)
    ]
