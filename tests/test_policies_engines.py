"""What the engine pool decides, in a world of plain values: loads take time, answers take time, engines die."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.engines import GIB, Device, Drain, Kill, Limits, Model, Pool, Spawn, decide, next_ms
from simulations.engines import ANSWER_MS, LOAD_MS, World, lived, trace


def world(*models: str, rows: int = 1, capacity: dict[str, int] | None = None, **limits: Any) -> World:
    pool = Pool(Limits(**{"engines_max": 1, "idle_ms": 0, **limits}))
    for name in models:
        pool.register(Model(name, weights_bytes=GIB // 2, rows=rows))
    return World(pool, capacity=capacity or {"cpu": 64 * GIB})


def test_requests_are_grouped_by_model() -> None:
    there = world("A", "B", "C")
    for number, model in enumerate("ABAACABC"):
        there.ask(f"{number}{model}", model)
    there.live()
    assert there.loads() == ["A", "B", "C"]
    assert there.answered == ["0A", "2A", "3A", "5A", "1B", "6B", "4C", "7C"]


def test_without_the_grouping_it_would_be_seven_loads() -> None:
    there = world("A", "B", "C", overtakes_max=0, fairness_ms=10**9)
    for number, model in enumerate("ABAACABC"):
        there.ask(f"{number}{model}", model)
    there.live()
    assert len(there.loads()) == 7


def test_a_steady_stream_for_one_model_does_not_starve_another() -> None:
    there = world("A", "B", overtakes_max=5)
    there.ask("a0", "A")
    there.ask("b", "B")
    for number in range(1, 200):
        there.at(number * ANSWER_MS // 2, lambda n=number: there.ask(f"a{n}", "A"))
    there.live()
    assert there.answered.index("b") <= 6
    assert len(there.answered) == 201


def test_even_few_overtakes_end_after_a_while() -> None:
    there = world("A", "B", overtakes_max=10**9, fairness_ms=3000)
    there.ask("a0", "A")
    for number in range(1, 200):
        there.at(number * ANSWER_MS, lambda n=number: there.ask(f"a{n}", "A"))
    there.at(1050, lambda: there.ask("b", "B"))
    there.live()
    assert there.answered.index("b") <= 35
    assert there.loads()[:2] == ["A", "B"]


@settings(max_examples=150, deadline=None)
@given(
    asked=st.lists(
        st.tuples(st.sampled_from("ABCD"), st.integers(0, 3000), st.integers(0, 3)), min_size=1, max_size=60
    ),
    rows=st.integers(1, 4),
    overtakes=st.integers(0, 12),
    seats=st.integers(1, 3),
)
def test_everyone_is_answered_in_turn_and_overtaken_within_the_bound(
    asked: list[tuple[str, int, int]], rows: int, overtakes: int, seats: int
) -> None:
    there = world("A", "B", "C", "D", rows=rows, engines_max=seats, overtakes_max=overtakes)
    for number, (model, at_ms, priority) in enumerate(asked):
        there.at(at_ms, lambda n=number, m=model, p=priority: there.ask(f"{n}", m, p))
    there.live()
    assert sorted(there.answered, key=int) == [str(number) for number in range(len(asked))]
    assert there.refused == {}
    assert len(there.loads()) <= len(asked)
    if seats == 1 and len({priority for _, _, priority in asked}) == 1:
        assert there.passed_max <= overtakes + rows * 3, "each load for somebody before it may serve one batch"


@settings(max_examples=100, deadline=None)
@given(
    asked=st.lists(st.tuples(st.sampled_from("ABCDE"), st.integers(0, 5000)), min_size=1, max_size=40),
    sizes=st.lists(st.integers(1, 12), min_size=5, max_size=5),
    gpus=st.integers(0, 2),
)
def test_no_device_is_filled_beyond_its_bound_and_what_can_fit_is_served(
    asked: list[tuple[str, int]], sizes: list[int], gpus: int
) -> None:
    capacity = {f"cuda:{number}": 10 * GIB for number in range(gpus)} | {"cpu": 8 * GIB}
    there = world(rows=2, capacity=capacity, engines_max=0)
    for name, size in zip("ABCDE", sizes, strict=True):
        there.pool.register(Model(name, weights_bytes=size * GIB // 2, rows=2))
        there.size[name] = size * GIB // 2 + GIB // 4
    for number, (model, at_ms) in enumerate(asked):
        there.at(at_ms, lambda n=number, m=model: there.ask(f"{n}", m))
    there.live()
    assert len(there.answered) + len(there.refused) == len(asked)
    for number, (model, _) in enumerate(asked):
        fits = "ABCDE".index(model), sizes["ABCDE".index(model)]
        if str(number) in there.refused:
            refused = there.refused[str(number)]
            assert refused.kind == "does-not-fit", fits
            assert all(f["needed_bytes"] > f["free_bytes"] for f in refused.figures.values())


@settings(max_examples=100, deadline=None)
@given(
    asked=st.lists(st.tuples(st.sampled_from("AB"), st.integers(0, 4000)), min_size=1, max_size=30),
    deadly=st.sets(st.integers(0, 29), max_size=3),
    crashes=st.integers(2, 50),
)
def test_nothing_is_forgotten_when_engines_die_and_only_the_deadly_are_lost(
    asked: list[tuple[str, int]], deadly: set[int], crashes: int
) -> None:
    there = world("A", "B", rows=4, crashes_max=1000, overtakes_max=crashes)
    there.dies = {str(number): "crashed" for number in deadly}
    for number, (model, at_ms) in enumerate(asked):
        there.at(at_ms, lambda n=number, m=model: there.ask(f"{n}", m))
    there.live()
    assert sorted(there.lost, key=int) == [str(n) for n in sorted(deadly) if n < len(asked)]
    assert len(there.answered) + len(there.lost) == len(asked)
    assert len(set(there.answered)) == len(there.answered)


def test_one_that_was_there_when_an_engine_died_is_alone_the_next_time() -> None:
    there = world("A", rows=4, crashes_max=1000)
    there.dies = {"deadly": "crashed", "later": "crashed"}
    there.takes_ms["slow"] = 10 * ANSWER_MS
    there.ask("deadly", "A")
    there.ask("slow", "A")
    there.at(LOAD_MS + 10 * ANSWER_MS, lambda: there.ask("later", "A"))
    there.live()
    assert there.answered == ["slow"]
    assert there.lost == ["deadly", "later"]


def test_an_engine_serves_somebody_before_it_gives_way_again() -> None:
    there = world("A", "B", overtakes_max=0)
    there.ask("b", "B")
    there.at(LOAD_MS // 2, lambda: there.ask("a", "A", priority=5))
    there.live()
    assert there.loads() == ["B", "A"]
    assert there.answered == ["b", "a"]


def test_what_an_engine_had_not_begun_is_done_again_in_its_old_place() -> None:
    there = world("A", rows=2)
    for number in range(6):
        there.ask(str(number), "A")
    there.at(LOAD_MS + ANSWER_MS // 2, lambda: there.gone(next(iter(there.pool.engines)), "killed"))
    there.live()
    assert there.answered == ["0", "1", "2", "3", "4", "5"]
    assert there.loads() == ["A", "A"]


def test_an_idle_engine_makes_room_the_longest_unused_first() -> None:
    there = world("A", "B", "C", engines_max=2)
    for at_ms, model in ((0, "A"), (5000, "B"), (10_000, "A"), (15_000, "C")):
        there.at(at_ms, lambda m=model, n=at_ms: there.ask(f"{n}", m))
    there.live()
    assert there.loads() == ["A", "B", "C"]
    assert {engine.model for engine in there.pool.engines.values()} == {"A", "C"}


def test_what_was_measured_counts_more_than_what_was_estimated() -> None:
    there = world("A", "B", capacity={"cpu": 5 * GIB}, engines_max=0)
    there.size = {"A": 3 * GIB, "B": GIB // 2}
    there.ask("1", "A")
    there.live()
    device = there.pool.devices["cpu"]
    assert there.pool.need(there.pool.models["A"], device) == 3 * GIB
    there.size["B"] = 3 * GIB
    there.pool.models["B"].peaks[0, "cpu"] = 3 * GIB
    there.ask("2", "B")
    there.live()
    assert {engine.model for engine in there.pool.engines.values()} == {"B"}


def test_devices_of_a_kind_take_turns_and_the_cpu_comes_last() -> None:
    there = world("A", "B", "C", capacity={"cpu": 64 * GIB, "cuda:0": 8 * GIB, "cuda:1": 8 * GIB}, engines_max=0)
    for model in "ABC":
        there.ask(model, model)
    there.live()
    devices = [action.device for action in there.log if isinstance(action, Spawn)]
    assert devices == ["cuda:0", "cuda:1", "cuda:0"]


def test_one_model_too_large_for_the_gpu_goes_to_the_cpu_and_one_too_large_for_all_is_refused_with_figures() -> None:
    there = world("A", capacity={"cpu": 32 * GIB, "cuda:0": 8 * GIB}, engines_max=0)
    there.pool.register(Model("big", weights_bytes=12 * GIB))
    there.pool.register(Model("huge", weights_bytes=40 * GIB))
    there.ask("1", "big")
    there.ask("2", "huge")
    there.live()
    assert [action.device for action in there.log if isinstance(action, Spawn)] == ["cpu"]
    assert set(there.refused["2"].figures) == {"cpu", "cuda:0"}
    assert there.refused["2"].figures["cpu"]["needed_bytes"] > there.refused["2"].figures["cpu"]["free_bytes"]


def test_a_full_device_ends_its_longest_idle_engine() -> None:
    there = world("A", "B", engines_max=0, capacity={"cpu": 16 * GIB})
    there.ask("a", "A")
    there.ask("b", "B")
    there.live()
    there.pool.devices["cpu"] = Device("cpu", 16 * GIB, GIB // 2)  # somebody else has taken the rest
    assert decide(there.pool, there.now) == [Drain(next(iter(there.pool.engines)), "memory")]


def test_an_idle_engine_ends_after_its_time_and_one_that_served_its_number_is_replaced() -> None:
    there = world("A", idle_ms=60_000, recycle_requests=2)
    for number in range(4):
        there.ask(str(number), "A")
    there.live(until_ms=70_000)
    whys = [action.why for action in there.log if isinstance(action, Drain)]
    assert whys == ["recycled", "recycled"]
    assert len(there.answered) == 4
    there = world("A", idle_ms=60_000)
    there.ask("0", "A")
    there.live(until_ms=62_000)
    assert [action.why for action in there.log if isinstance(action, Drain)] == ["idle"]
    assert there.pool.engines == {}


def test_a_silent_engine_and_one_that_never_finishes_loading_are_killed() -> None:
    there = world("A", load_ms=5000, silence_ms=2000)
    there.pool.spawned("e1", Spawn("A", "cpu", 1, 0), 0)
    assert decide(there.pool, 4999) == []
    assert decide(there.pool, 5000) == [Kill("e1", "hung")]
    there.pool.serves("e1", 1000)
    assert next_ms(there.pool, 1000) == 3000
    assert decide(there.pool, 3000) == [Kill("e1", "hung")]
    there.pool.heard("e1", 2500)
    assert decide(there.pool, 3000) == []


def test_the_breaker_opens_tries_one_and_closes_or_opens_for_longer() -> None:
    there = world("A", rows=4, crashes_max=2, open_ms=10_000, tries_max=99)
    there.dies = {"1": "crashed", "2": "crashed"}
    there.ask("1", "A")
    there.live(until_ms=4000)
    assert there.refused["1"].kind == "broken"
    assert [ended.opened for _, why, ended in there.ends if why == "crashed"] == [False, True]
    there.ask("x", "A")
    there.settle()
    assert 0 < there.refused["x"].retry_after_ms <= 10_000
    there.now = there.pool.breakers["A"].until_ms(there.pool.limits)
    for id in ("2", "3", "4"):
        there.ask(id, "A")
    there.live(until_ms=there.now + 1500)
    assert there.refused["3"].kind == "broken", "the one that was tried has failed"
    assert there.pool.breakers["A"].until_ms(there.pool.limits) - there.pool.breakers["A"].opened_ms == 20_000  # type: ignore[operator]
    there.now = there.pool.breakers["A"].until_ms(there.pool.limits)
    for id in ("5", "6", "7"):
        there.ask(id, "A")
    most = 0
    while there.pool.waiting or there.later:
        there.live(until_ms=there.now + 50)
        if "A" in there.pool.breakers:
            most = max(most, sum(len(engine.running) for engine in there.pool.engines.values()))
    assert most == 1
    assert [id for id in there.answered if id in "567"] == ["5", "6", "7"]
    assert there.pool.breakers == {}


def test_out_of_memory_climbs_the_ladder_and_then_counts_as_a_failure() -> None:
    there = world("A", "small", capacity={"cpu": 64 * GIB, "cuda:0": 8 * GIB}, crashes_max=1)
    there.pool.register(Model("A", weights_bytes=GIB, rows=8, quantizable=True, fallback="small"))
    there.dies = {"1": "out-of-memory"}
    there.ask("1", "A")
    there.live(until_ms=60_000)
    rungs = [ended.rung.name for _, _, ended in there.ends if ended.rung is not None]
    assert rungs == ["smaller batch", "quantised", "smaller model", "cpu", "cpu"]
    spawns = [(action.model, action.device) for action in there.log if isinstance(action, Spawn)]
    assert spawns == [("A", "cuda:0")] * 3 + [("small", "cuda:0"), ("small", "cpu"), ("A", "cpu")]
    assert there.refused["1"].kind == "broken"


def test_requests_of_higher_priority_go_first_until_the_others_have_aged() -> None:
    there = world("A", aging_ms=1000)
    for number in range(3):
        there.ask(f"low{number}", "A")
    there.ask("high", "A", priority=5)
    there.live()
    assert there.answered[0] == "high"
    there = world("A", aging_ms=1000, overtakes_max=10**6)
    there.ask("low", "A")
    for number in range(300):
        there.at(number * ANSWER_MS, lambda n=number: there.ask(f"high{n}", "A", priority=5))
    there.live()
    assert there.answered.index("low") < 80


def test_a_second_engine_is_started_only_when_all_are_full_and_there_is_room() -> None:
    there = world("B", rows=2, engines_max=0)
    there.pool.register(Model("A", weights_bytes=GIB, rows=2, instances=2))
    there.ask("0", "A")
    there.live(until_ms=LOAD_MS)
    assert len(there.pool.engines) == 1
    for number in range(1, 6):
        there.ask(str(number), "A")
    there.live()
    assert there.loads() == ["A", "A"]
    assert len(there.answered) == 6


def test_a_model_that_was_registered_anew_is_served_by_new_engines() -> None:
    there = world("A")
    there.ask("1", "A")
    there.live()
    there.pool.register(Model("A", weights_bytes=GIB, rows=2))
    there.ask("2", "A")
    there.live()
    assert [action.why for action in there.log if isinstance(action, Drain)] == ["replaced"]
    assert there.answered == ["1", "2"]
    there.pool.forget("A")
    there.ask("3", "A")
    there.live()
    assert there.refused["3"].kind == "unknown"
    assert there.pool.engines == {}


def test_a_thousand_waiting_requests_cost_little_each() -> None:
    there = world("A", "B", rows=16, engines_max=2, waiting_max=1000)
    for number in range(1000):
        there.ask(str(number), "AB"[number % 2])
    assert there.pool.full()
    there.live()
    assert len(there.answered) == 1000


def test_grouping_saves_loads_and_waiting_on_a_mixed_trace() -> None:
    asked = trace(7, "ABC", 300, 120)
    grouped, in_turn = lived(asked), lived(asked, overtakes_max=0, fairness_ms=10**9)
    assert len(grouped.answered) == len(in_turn.answered) == 300
    assert len(grouped.loads()) * 2 < len(in_turn.loads())
    assert max(grouped.waits_ms.values()) < max(in_turn.waits_ms.values())
