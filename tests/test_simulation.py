"""Make-believe lives of the real loop: every invariant holds, and the watchers can see when one does not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.loop import LOOK_AT_LEASES, Loop
from policies import survey as survey_module
from simulations.world import FAULTS, Violation, live
from state import projector
from state.projector import Impossible

ROOT = Path(__file__).resolve().parent.parent
ALL = frozenset(FAULTS)
HOURS = 0.15


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_ten_lives_with_whatever_faults_their_seeds_draw(first: int) -> None:
    for seed in range(first, first + 10):
        world = live(seed, hours=HOURS)
        assert world.loop is not None
        assert world.loop.ledger.head.seq > 3


@pytest.mark.parametrize(
    ("seed", "faults"),
    [
        # A grant that met a foreign lease was granted again at once, and again, for as long as the lease lasted.
        (45, None),
        # A plan cut at its bound skipped a slot for a run that the same plan did not come to decide.
        (45, frozenset({"full", "kill"})),
    ],
)
def test_lives_that_once_showed_a_bug(seed: int, faults: frozenset[str] | None) -> None:
    assert live(seed, hours=0.2, faults=faults).lives >= 1


def test_a_seed_decides_everything() -> None:
    program = "from simulations.world import live; print(live(11, hours=0.1).trace_hash())"
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "1", "77")
    }  # fmt: skip
    assert len(said) == 1


def _act_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    record = Loop._record

    def act_first(self: Loop, now: Any) -> Any:
        self._act(list(self._staged))
        return record(self, now)

    patch.setattr(Loop, "_record", act_first)


def _forget_what_ran(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Loop, "_resume", lambda self, run: None)


def _leave_the_cursor(patch: pytest.MonkeyPatch) -> None:
    decided = projector._decided

    def still(change: Any, entry: Any, record: Any) -> None:
        decided(change, entry, record)
        before = change.graph.jobs[entry["job"]].cursor_ms
        change.put(change.job(entry["job"])._replace(cursor_ms=before))

    patch.setattr(projector, "_decided", still)


def _never_look_again_at_leases(patch: pytest.MonkeyPatch) -> None:
    assert LOOK_AT_LEASES
    patch.setattr("daemon.loop.LOOK_AT_LEASES", frozenset())


def _overlap_all(patch: pytest.MonkeyPatch) -> None:
    def start(found: Any, job: Any, candidate: Any) -> None:
        found.entries.append((candidate, None))

    patch.setattr(survey_module, "_unless_overlapping", start)


def _drop_reports_when_full(patch: pytest.MonkeyPatch) -> None:
    record = Loop._record

    def forget(self: Loop, now: Any) -> Any:
        recorded = record(self, now)
        self._reports.clear()
        return recorded

    patch.setattr(Loop, "_record", forget)


def _answer_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    take = Loop._take_requests

    def answer(self: Loop, now: Any) -> None:
        take(self, now)
        for asked, said in self._answers:
            asked.answer(said)
        self._answers.clear()

    patch.setattr(Loop, "_take_requests", answer)


ABLATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "act only on what is durable": _act_before_it_is_durable,
    "take up what an earlier daemon left running": _forget_what_ran,
    "a decision moves the cursor": _leave_the_cursor,
    "look again at foreign leases": _never_look_again_at_leases,
    "do not overlap": _overlap_all,
    "keep reports that could not be recorded": _drop_reports_when_full,
    "answer only what is durable": _answer_before_it_is_durable,
}


@pytest.mark.parametrize("safeguard", ABLATIONS)
def test_without_a_safeguard_some_life_fails(safeguard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ABLATIONS[safeguard](monkeypatch)
    with pytest.raises((Violation, Impossible)):
        [live(seed, hours=HOURS, faults=ALL) for seed in range(60)]
