"""The planner against the slow oracle, over days on which clocks change; and the oracle against planted mistakes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from policies import due, survey
from policies.agenda import Agenda
from simulations import watcher
from simulations.checkers import Violation
from simulations.oracle import ZONES, live, main, make_promises
from state import projector


@pytest.mark.parametrize(
    ("jobs", "days", "start", "seed"),
    [
        (200, 3, "2026-03-27T12:00:00Z", 1),  # Europe, Beirut, Gaza and Troll spring forward.
        (150, 2, "2026-10-24T00:00:00Z", 2),  # Europe goes back.
        (60, 4, "2026-04-03T00:00:00Z", 3),  # Santiago, Lord Howe, Chatham and Auckland go back.
        (20, 12, "2026-03-01T00:00:00Z", 4),  # North America and Havana spring forward.
    ],
)
def test_every_slot_is_decided_once_at_its_instant(jobs: int, days: int, start: str, seed: int) -> None:
    lived = live(jobs, days, start=start, seed=seed)

    assert lived.sleeps >= 1
    assert lived.slots == sum(lived.by_kind.values()) > 100
    assert lived.decisions["started"] > jobs / 2


def test_the_promises_are_of_every_kind() -> None:
    promises = make_promises(1000, 1, 0, 365)

    assert {promise.kind for promise in promises} == {"cron", "every", "at"}
    assert {promise.zone for promise in promises} >= set(ZONES)
    assert {promise.spec["missed"]["policy"] for promise in promises} == {"skip", "latest", "all"}
    assert sum(promise.expires_ms is not None for promise in promises) > 100
    assert any("jitter" in promise.spec for promise in promises)


def test_the_command_says_what_it_saw(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--jobs", "10", "--days", "2"]) == 0
    assert "each slot decided once, at its instant" in capsys.readouterr().out


def test_one_watch_of_a_wall_serves_many_expressions() -> None:
    start = datetime(2026, 10, 24, tzinfo=UTC)
    texts = ["30 2 * * *", "0 * * * *", "*/7 1-3 * * 0", "0 0 L * *", "@daily"]

    together = watcher.watch(texts, "Europe/Paris", start, start + timedelta(days=9))

    for text in texts:
        assert together[text] == watcher.slots(text, "Europe/Paris", start, start + timedelta(days=9))
    assert len(together["30 2 * * *"]) == 9
    assert len(together["0 * * * *"]) == 9 * 24


def _forget_the_gap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("policies.cron.LONGEST_SHIFT_MS", -1)


def _count_the_second_time(patch: pytest.MonkeyPatch) -> None:
    shown = due.instants_ms
    patch.setattr(due, "instants_ms", lambda zone, wall_ms: shown(zone, wall_ms)[-1:])


def _leave_the_cursor(patch: pytest.MonkeyPatch) -> None:
    decided = projector._decided

    def still(change: Any, entry: Any, record: Any) -> None:
        decided(change, entry, record)
        before = change.graph.jobs[entry["job"]].cursor_ms
        change.put(change.job(entry["job"])._replace(cursor_ms=before))

    patch.setattr(projector, "_decided", still)


def _forget_to_expire(patch: pytest.MonkeyPatch) -> None:
    filed = Agenda._file

    def file(self: Agenda, job: Any) -> None:
        filed(self, job._replace(spec=job.spec | {"expires": None}))

    patch.setattr(Agenda, "_file", file)
    slots = survey._slots
    patch.setattr(
        survey, "_slots", lambda found, asked, job: slots(found, asked, job._replace(spec=job.spec | {"expires": None}))
    )


def _run_what_was_missed(patch: pytest.MonkeyPatch) -> None:
    slots = survey._slots

    def run_all(found: Any, asked: Any, job: Any) -> None:
        missed = {"policy": "all", "window": 10**10, "max": 20}
        slots(found, asked, job._replace(spec=job.spec | {"missed": missed}))

    patch.setattr(survey, "_slots", run_all)


def _sleep_in(patch: pytest.MonkeyPatch) -> None:
    soon = Agenda.next_ms

    def later(self: Agenda) -> int | None:
        at_ms = soon(self)
        return None if at_ms is None else at_ms + 5_000

    patch.setattr(Agenda, "next_ms", later)


MISTAKES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str | None]] = {
    "a time in a gap is lost": (_forget_the_gap, "no slot is without a decision"),
    "of a doubled time the second counts": (_count_the_second_time, "no slot is without a decision"),
    "a decision leaves the cursor": (_leave_the_cursor, None),
    "a job outlives its end": (_forget_to_expire, "no decision is about an instant that is no slot"),
    "a policy for missed slots is not obeyed": (_run_what_was_missed, "is made up for by no run"),
    "the timer is late": (_sleep_in, "a slot is noticed in time"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_seen(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, invariant = MISTAKES[mistake]
    make(monkeypatch)
    start = "2026-10-24T12:00:00Z" if "doubled" in mistake else "2026-03-28T12:00:00Z"
    with pytest.raises((Violation, projector.Impossible), match=invariant):
        live(100, 2, start=start)
