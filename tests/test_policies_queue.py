"""Runs that wait: a look considers few of them, and decides as if it had considered all."""

from __future__ import annotations

import time
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from story import NOON, Story

from ledger.instant import text_of
from ledger.reader import read
from policies.agenda import Agenda
from policies.decision import decide
from policies.question import Question, ask
from policies.replay import verify_decisions
from policies.request import Declined
from policies.survey import survey
from state.graph import Graph

Json = Any
OVERLAPS = ("skip", "buffer_one", "buffer_all", "cancel_other", "terminate_other", "allow_all", "allow_all")
STEPS = [
    {"name": "a", "kind": "command", "argv": ["true"]},
    {"name": "b", "kind": "command", "argv": ["true"]},
    {"name": "c", "kind": "command", "argv": ["true"], "after": ["a", "b"]},
]


def asked_of_all(story: Story) -> Question:
    """The question with every run in it that waits."""
    agenda = Agenda.of(story.graph)
    queue = agenda.queue
    queue._lines.clear()
    queue._filed.clear()
    queue.stirring.update({n: run for n, run in story.graph.active.items() if run.state in ("waiting", "backoff")})
    return ask(story.graph, agenda, story.policy, story.wall_ms)


def fields(chance: Random, name: str) -> dict[str, Json]:
    given: dict[str, Json] = {"overlap": chance.choice(OVERLAPS), "priority": chance.choice((10, 50, 50, 52))}
    if chance.random() < 0.3:
        given["leases"] = [chance.choice("kl")]
    if chance.random() < 0.3:
        given["needs"] = {"cpu": chance.choice((1, 2, 5))}
    if chance.random() < 0.3:
        given["tags"] = ["pool"]
    if chance.random() < 0.2:
        given["budget"] = {"runs_per_minute": 2}
    if chance.random() < 0.2:
        given["jitter"] = "40s"
    if name == "agent":
        given |= {"kind": "agent", "steps": STEPS}
    if name == "behind":
        given["schedule"] = {"after": ["b"], "when": "any"}
    elif chance.random() < 0.6:
        given["schedule"] = {"every": chance.choice(("20s", "1m"))}
    return given


def happen(story: Story, chance: Random, turn: int) -> None:
    """Something that changes who waits, and for what."""
    names = sorted(story.jobs)
    alive = sorted(name for name, run in story.graph.holding.items() if run.spec.get("kind") != "agent")
    kind = chance.random()
    if kind < 0.45:
        for number in range(chance.randrange(1, 6)):
            story.start(chance.choice(names), f"r{turn}.{number}")
    elif kind < 0.65:
        for name in alive[: chance.randrange(3)]:
            again = chance.choice((0, 0, 15_000)) if not story.run(name).parent else 0
            story.end(name, "failed" if again else "succeeded", code=1 if again else 0, retry_in_ms=again)
    elif kind < 0.72:
        name = chance.choice(names)
        story.request("resume" if story.graph.jobs[name].paused else "pause", f"p{turn}", job=name)
    elif kind < 0.76:
        story.request("resume" if story.graph.here.paused else "pause", f"p{turn}")
    elif kind < 0.82 and story.graph.active:
        story.cancel(chance.choice(sorted(story.graph.active)), f"c{turn}")
    elif kind < 0.90:
        name = chance.choice(names)
        story.define(name, **fields(chance, name))
    elif kind < 0.915 and len(names) > 3:
        story.remove(chance.choice(names))
    elif kind < 0.93:
        story.wall_ms -= chance.randrange(200_000)
    else:
        span = {"from": text_of(story.wall_ms - 120_000), "to": text_of(story.wall_ms)}
        overlap = chance.choice(("buffer_all", "allow_all"))
        with suppress(Declined):
            story.request("backfill", f"b{turn}", job=chance.choice(names), overlap=overlap, **span)
    story.pass_ms(chance.choice((0, 1, 5_000, 31_000, 61_000)))
    story.react()


@pytest.mark.parametrize("seed", range(40))
def test_a_look_at_few_decides_as_a_look_at_all_would(seed: int) -> None:
    chance = Random(seed)
    story = Story(max_running=chance.choice((1, 2, 3, 8)), aging_ms=chance.choice((1000, 60_000)),
                  pools={"pool": {"places": chance.choice((1, 2)), "runs_per_minute": 6}})  # fmt: skip
    for name in ("a", "agent", "b", "behind", "c", "d"):
        story.define(name, **fields(chance, name))
    left_out = compared = 0
    for turn in range(60):
        happen(story, chance, turn)
        problems = {name: "is not there" for name in sorted(story.jobs) if chance.random() < 0.1}
        everything = asked_of_all(story)
        wanted = decide(everything, check=lambda candidate, p=problems: p.get(candidate.job, ""))
        left_out += len(everything.waiting) - len(story.ask().waiting)
        all_found, found, more = list(wanted.decisions), list[Json](), False
        while True:
            plan = story.plan(problems)
            found += plan.decisions
            if not plan.more:
                break
            more = True
        if not more:  # A plan cut short is followed by one that knows already what follows from the first.
            assert found == all_found, f"turn {turn}"
            compared += bool(found)
        queue, made_anew = story.past.agenda.queue, Agenda.of(story.graph).queue
        assert (set(queue.stirring), len(queue)) == (set(made_anew.stirring), len(made_anew)), f"turn {turn}"
    anew = Graph()
    anew.take(story.graph.nodes.values(), (), story.graph.seq)
    assert (anew.holding, anew.contested, anew.taken) == (story.graph.holding, story.graph.contested, story.graph.taken)
    assert left_out
    assert compared > 10
    assert all(verdict.agrees for verdict in verify_decisions(read(story.disk)))


def test_nobody_takes_the_place_of_one_that_could_not_start_before_those_who_waited_longer_for_it() -> None:
    story = Story(max_running=1)
    story.define("holder")
    holder = story.start("holder", "r1")
    story.plan()
    for number, priority in enumerate((90, 80, 70)):
        story.define(f"waits{number}", priority=priority)
        story.start(f"waits{number}", f"w{number}")
    story.plan()
    story.end(holder)
    story.define("late", priority=10)
    story.start("late", "r2")
    problems = {"waits0": "the script is gone"}
    first, second = story.plan(problems), story.plan(problems)
    assert [(d["job"], d["verdict"]) for d in first.decisions] == [("waits0", "blocked")]
    assert [(d["job"], d["verdict"]) for d in second.decisions] == [("waits1", "started"), ("late", "deferred")]
    assert (first.more, second.more) == (True, False)


def test_one_of_a_job_that_is_gone_keeps_no_place_from_those_behind_it() -> None:
    story = Story(max_running=2)
    for name, priority in (("holder", 50), ("first", 90), ("gone", 80), ("last", 70)):
        story.define(name, priority=priority, overlap="allow_all")
    holders = [story.start("holder", f"h{number}") for number in range(2)]
    story.plan()
    for name in ("first", "gone", "last"):
        story.start(name, name)
    story.plan()
    story.remove("gone")
    for run in holders:
        story.end(run)
    plans = [story.plan()]
    while plans[-1].more:
        plans.append(story.plan())
    found = [(d["job"], d["verdict"]) for plan in plans for d in plan.decisions]
    assert found == [("first", "started"), ("gone", "skipped"), ("last", "started")]


def test_many_jobs_that_missed_many_slots_are_looked_through_once() -> None:
    """Not once for each of the slots: that took a minute for twenty jobs, and was done for each plan."""
    story = Story(max_decisions_per_plan=400)
    for number in range(40):
        fields: Json = {"missed": {"policy": "all", "max": 1000}, "overlap": "buffer_all(<=1000)"}
        story.define(f"job{number}", {"every": "1m"}, **fields)
    story.pass_ms(20 * 3_600_000)
    began_s = time.process_time()
    found = survey(story.ask())
    assert (len(found.entries), found.more) == (40 * 401, True), "what one plan could decide, and what lies before it"
    assert time.process_time() - began_s < 4


def test_a_long_queue_is_not_looked_through_while_no_place_is_free_and_only_its_first_when_one_is() -> None:
    story = Story(max_running=2)
    story.define("a", overlap="allow_all")
    for number in range(50):
        story.start("a", f"r{number:02}")
    story.plan()
    assert story.ask().waiting == ()
    running = sorted(story.graph.holding)
    story.end(running[0])
    (waiting,) = story.ask().waiting
    assert waiting.name == min(run for run in story.graph.active if run not in running)


def test_a_pause_is_told_to_every_run_that_waits_for_a_place() -> None:
    story = Story(max_running=1)
    story.define("a", {"every": "1m"}, overlap="allow_all")
    for _ in range(5):
        story.pass_ms(60_000)
        story.plan()
    story.request("pause", "p1", job="a")
    assert [d["rule"] for d in story.plan().decisions] == ["paused"] * 4
    story.request("resume", "p2", job="a")
    story.request("pause", "p3")
    assert [d["rule"] for d in story.plan().decisions] == []
    story.request("resume", "p4")
    assert [d["rule"] for d in story.plan().decisions] == ["places"] * 4
    story.request("pause", "p5")
    assert [d["rule"] for d in story.plan().decisions] == ["paused"] * 4


def test_an_edited_priority_does_not_move_a_run_that_waits_and_a_new_dependency_does() -> None:
    story = Story(max_running=1)
    story.define("holder")
    holder = story.start("holder", "r1")
    story.plan()
    for name in ("a", "b"):
        story.define(name, overlap="allow_all")
        story.start(name, f"w{name}")
    story.plan()
    story.define("b", overlap="allow_all", priority=99)
    story.define("a", {"after": ["b"]}, overlap="allow_all")
    story.end(holder)
    assert [(d["job"], d["verdict"]) for d in story.plan().decisions] == [("b", "started")]


def test_a_run_that_waits_moves_back_when_a_job_before_its_own_comes_to_stand_behind_another() -> None:
    story = Story(max_running=1)
    for name in ("holder", "base", "mid"):
        story.define(name)
    story.define("leaf", {"after": ["mid"]}, priority=90)
    story.define("other", {"after": ["base"]})
    holder = story.start("holder", "r1")
    story.plan()
    for name in ("leaf", "other"):
        story.start(name, f"w{name}")
    story.plan()
    story.define("mid", {"after": ["base"]})
    story.end(holder)
    assert [(d["job"], d["verdict"]) for d in story.plan().decisions] == [("other", "started")]


def test_who_was_first_in_line_is_no_longer_looked_at_when_another_run_of_its_job_has_begun() -> None:
    story = Story()
    story.define("a", {"every": "1m"}, jitter="50s", overlap="buffer_all")
    story.pass_ms(60_000)
    story.plan()
    story.pass_ms(50_000)
    story.plan()
    story.end(*story.graph.holding)
    while "jitter" not in [d["rule"] for d in story.plan().decisions]:
        story.pass_ms(1_000)
    span = {"from": text_of(NOON), "to": text_of(NOON + 60_000)}
    story.request("backfill", "b1", job="a", overlap="allow_all", **span)
    assert "started" in [d["verdict"] for d in story.plan().decisions]
    made_anew = Agenda.of(story.graph).queue
    assert set(story.past.agenda.queue.stirring) == set(made_anew.stirring)
