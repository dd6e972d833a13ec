"""Nights of a make-believe fleet: what must hold after each of them, and that it is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from policies.upgrade import plan, saga
from policies.upgrade.saga import Do, End
from simulations import fleet, gitworld
from simulations.checkers import Violation

Json = Any
NIGHTS = 6


@pytest.mark.parametrize("seed", [3, 11])
def test_after_every_night_each_repository_is_whole_and_nothing_is_left_behind(seed: int) -> None:
    world = fleet.live(seed, NIGHTS)
    assert world.outcomes["upgraded"]
    assert sum(world.outcomes.values()) >= NIGHTS * world.repositories - world.repositories


def test_where_nobody_gets_in_the_way_none_is_left_for_a_person_to_roll_back() -> None:
    world = fleet.live(1, NIGHTS, people=False)
    assert world.outcomes["rolled_back"]
    assert world.unproven == {}
    assert not world.outcomes["needs_person"]


def test_one_seed_is_one_life() -> None:
    assert fleet.live(2, 3).trace_hash() == fleet.live(2, 3).trace_hash()


def believed_unseen(after: Callable[..., Any]) -> Callable[..., Any]:
    """What came to be by apply counts as verified."""
    return lambda *told, **more: End("upgraded", "it will be well")


def never_rolled_back(after: Callable[..., Any]) -> Callable[..., Any]:
    def after_steps(*told: Json, **more: Json) -> Do | End:
        found = after(*told, **more)
        return End("failed", "so be it") if found == Do("rollback") else found

    return after_steps


def never_looked_at(after: Callable[..., Any]) -> Callable[..., Any]:
    """A step that was lost counts as one that did nothing."""

    def after_steps(*told: Json, **more: Json) -> Do | End:
        found = after(*told, **more)
        return End("failed", "it was lost") if found == Do("inspect") else found

    return after_steps


def never_cleaned(after: Callable[..., Any]) -> Callable[..., Any]:
    def next_step(*told: Json, **more: Json) -> Do | End:
        found = after(*told, **more)
        return End("failed", "somebody else will do it") if found == Do("clean") else found

    return next_step


def nights(seeds: range, **how: Json) -> None:
    for seed in seeds:
        fleet.live(seed, NIGHTS, **how)


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("_at_new", believed_unseen),
        ("_after", never_rolled_back),
        ("next_step", never_cleaned),
        ("_after", never_looked_at),
    ],
)
def test_without_a_safeguard_of_the_saga_a_night_ends_badly(
    name: str, without: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saga, name, without(getattr(saga, name)))
    with pytest.raises(Violation, match="no repository is left broken"):
        nights(range(30), people=False)


def test_a_planner_that_ignores_what_a_person_left_uncommitted_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hands keep Hermes off a person's work: the plan, and the step that changes the branch. Without both it is
    noticed."""
    move = gitworld.GitWorld._move

    def careless(self: gitworld.GitWorld, repository: gitworld.Repository, *more: Any, strict: bool) -> Any:
        repository.edits.clear()
        return move(self, repository, *more, strict=False)

    gone = plan._Finding("deferred", "hold", "gone")
    monkeypatch.setattr(plan, "_unfit", lambda probe: None if probe["ok"] else gone)
    monkeypatch.setattr("policies.upgrade.gate._clean", lambda probes: (True, ""))
    monkeypatch.setattr(gitworld.GitWorld, "_move", careless)
    with pytest.raises(Violation, match="no repository is left broken"):
        nights(range(10))


def test_a_branch_moved_without_comparing_loses_a_persons_commit_and_that_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def moved(
        self: gitworld.GitWorld, repository: gitworld.Repository, args: Json, source: str, target: str, *, strict: bool
    ) -> tuple[str, str]:
        repository.lock = None
        repository.tip = repository.files = target
        return "", ""

    monkeypatch.setattr(gitworld.GitWorld, "_move", moved)
    with pytest.raises(Violation, match="commits of a person are lost"):
        nights(range(20), busy=0.5)
