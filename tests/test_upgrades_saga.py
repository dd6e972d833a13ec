"""What comes after what, for every way in which steps can end: all of it ends, and none of it ends in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from policies.upgrade.facts import Step
from policies.upgrade.saga import LOST_MAX, Do, End, Past, next_step

SPEC = {"canary": ["true"], "verify": ["true"], "undo": False}


def facts(step: str, at: str, *, ok: bool = True, problem: str = "", clean: bool = True) -> Step:
    told: Any = {
        "step": step, "ok": ok, "problem": problem, "words": problem, "branch": "main", "at": at, "commit": "a" * 40,
        "clean": clean, "worktree": step != "clean",
    }  # fmt: skip
    result: Step = told
    return result


class Repository:
    """A make-believe repository that steps move, and may be killed at."""

    def __init__(self) -> None:
        self.at, self.done = "old", list[Past]()

    def copy(self) -> Repository:
        other = Repository()
        other.at, other.done = self.at, list(self.done)
        return other

    def ways(self, step: str) -> Iterator[Repository]:
        """Every way in which this step may end."""
        for how in ("well", "badly", "lost before", "lost after"):
            other = self.copy()
            moved = how in ("well", "lost after")
            if moved and step == "apply" and other.at == "old":
                other.at = "new"
            if moved and step == "rollback" and other.at == "new":
                other.at = "old"
            lost = how.startswith("lost")
            state = "lost" if lost else "succeeded" if how == "well" or step not in ("canary", "verify") else "failed"
            told = None
            if not lost and step not in ("canary", "verify"):
                told = facts(step, other.at, ok=how == "well", problem="" if how == "well" else "locked")
            other.done.append(Past(step, state, how, told))
            yield other


def ends(repository: Repository, *, depth: int, stop_at: int = 99) -> Iterator[tuple[Repository, End]]:
    found = next_step(SPEC, repository.done, stopping=len(repository.done) >= stop_at)
    if isinstance(found, End):
        yield repository, found
        return
    ways = list(repository.ways(found.step))
    for way in ways if depth else ways[:1]:  # At the end of the tree all goes well.
        yield from ends(way, depth=max(0, depth - 1), stop_at=stop_at)


@pytest.mark.parametrize("stop_at", [99, 0, 1, 2, 3, 4])
def test_every_story_ends_at_the_old_commit_or_at_the_verified_new_one(stop_at: int) -> None:
    stories = 0
    for repository, end in ends(Repository(), depth=7, stop_at=stop_at):
        stories += 1
        steps = [(one.step, one.state) for one in repository.done]
        if repository.at == "new" and end.outcome != "needs_person":
            assert (end.outcome, ("verify", "succeeded") in steps) == ("upgraded", True), (steps, end)
        if end.outcome == "upgraded":
            assert repository.at == "new"
        if end.outcome == "rolled_back":
            assert repository.at == "old"
        assert steps == [] or steps[-1][0] == "clean", "nothing is left behind"
        if end.step == "verify":
            assert ("verify", "failed") in steps, "only a verify that came to its end speaks against the commit"
    assert stories > (500 if stop_at > 4 else 0)


def test_a_machine_that_keeps_dying_comes_to_an_end() -> None:
    done: list[Past] = []
    while isinstance(found := next_step(SPEC, done, stopping=False), Do):
        done.append(Past(found.step, "lost", "nobody saw its end", None))
        assert len(done) < 3 * LOST_MAX
    assert found.outcome == "needs_person"


@pytest.mark.parametrize(
    ("step", "told", "outcome"),
    [
        ("fetch", {"at": "old", "problem": "auth"}, "failed"),
        ("fetch", {"at": "old", "problem": "disk"}, "deferred"),
        ("fetch", {"at": "old", "problem": "conflict"}, "needs_person"),
        ("fetch", {"at": "old", "problem": "rewritten-history"}, "held"),
        ("apply", {"at": "elsewhere", "problem": "moved"}, "deferred"),
        ("apply", {"at": "old", "problem": "dirty"}, "deferred"),
        ("apply", {"at": "unknown", "problem": "gone"}, "needs_person"),
        ("rollback", {"at": "elsewhere", "problem": "moved"}, "needs_person"),
        ("rollback", {"at": "new", "problem": "dirty"}, "needs_person"),
    ],
)
def test_what_a_step_that_fails_comes_to(step: str, told: dict[str, str], outcome: str) -> None:
    well = [Past("fetch", "succeeded", "", facts("fetch", "old"))]
    if step != "fetch":
        well.append(Past("canary", "succeeded", "", None))
    if step == "rollback":
        well += [Past("apply", "succeeded", "", facts("apply", "new")), Past("verify", "failed", "exit status 1", None)]
    before = well if step != "fetch" else []
    failed = Past(step, "succeeded", "", facts(step, told["at"], ok=False, problem=told["problem"]))
    assert next_step(SPEC, [*before, failed], stopping=False) == Do("clean")
    cleaned = Past("clean", "succeeded", "", facts("clean", told["at"]))
    end = next_step(SPEC, [*before, failed, cleaned], stopping=False)
    assert isinstance(end, End)
    assert end.outcome == outcome
