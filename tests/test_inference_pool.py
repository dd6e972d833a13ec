"""Engines as real processes with a real checkpoint, and what may happen to them: killed, hung, out of memory, asked too
much, left alone by their readers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from engine_place import DEADLINE_S, PROMPT, SAID, Place, descriptors, place, run, until, wide  # noqa: F401

from daemon.inference import pool as pool_module
from daemon.inference.failures import (
    BadRequest,
    Broken,
    Busy,
    DoesNotFit,
    EngineLost,
    LoadFailed,
    SlowReader,
    UnknownModel,
)
from daemon.inference.hermes_mini import FOLDER
from daemon.inference.pool import EnginePool
from daemon.inference.runtimes import Done, Generation, Piece, Spec
from daemon.inference.views import Fact, ModelSpec
from policies.engines import Limits


@contextlib.asynccontextmanager
async def a_pool(folder: Path, *models: ModelSpec, **options: Any) -> AsyncIterator[tuple[EnginePool, list[Fact]]]:
    facts: list[Fact] = []
    limits = {name: options.pop(name) for name in list(options) if hasattr(Limits, name)}
    options = {"server": Place.server, "beat_ms": 200, **options}
    pool = EnginePool(folder / "engines", Limits(**limits), record=facts.append, **options)
    await pool.start()
    for model in models or (mini(),):
        pool.register(model)
    pids = set()
    try:
        yield pool, facts
    finally:
        pids = {engine.pid for engine in pool.engines() if engine.pid}
        await pool.close()
    assert not [pid for pid in pids if psutil.pid_exists(pid)], "an engine outlives its pool"


def mini(name: str = "mini", **fields: Any) -> ModelSpec:
    spec = {"model": str(FOLDER), "device": "cpu", "threads": 1, "cache_mb": 16} | fields.pop("spec", {})
    return ModelSpec(name, Spec(**spec), **fields)


def ask(id: str = "r", **fields: Any) -> Generation:
    asked: dict[str, Any] = {"messages": ({"role": "user", "content": PROMPT},), "max_new_tokens": 8}
    return Generation(id=id, **(asked | fields))


def long(id: str = "long", tokens: int = 900, **fields: Any) -> Generation:
    return ask(id, max_new_tokens=tokens, ignore_end=True, **fields)


async def answer(pool: EnginePool, request: Generation, model: str = "mini", **how: Any) -> str:
    said = [one async for one in pool.generate(model, request, **how)]
    assert [one.id for one in said] == [request.id] * len(said)
    assert isinstance(said[-1], Done)
    return "".join(one.text for one in said if isinstance(one, Piece))


def types(facts: list[Fact], *wanted: str) -> list[str]:
    return [fact.type for fact in facts if not wanted or fact.type in wanted]


def last(facts: list[Fact], type: str) -> Any:
    return next(fact.data for fact in reversed(facts) if fact.type == type)


def test_an_engine_lives_from_spawn_to_drain_and_serves_many_at_once(tmp_path: Path) -> None:
    """One load for all that needs no dead engine."""

    async def story() -> None:
        async with a_pool(tmp_path) as (pool, facts):
            before = descriptors()
            together = [answer(pool, ask(f"r{n}", max_new_tokens=1)) for n in range(200)]
            assert set(await asyncio.gather(*together)) == {SAID.split()[0]}
            assert await answer(pool, ask()) == SAID
            assert types(facts)[:4] == ["model.registered", "engine.spawned", "engine.loaded", "engine.warmed"]
            record = last(facts, "generation.finished")
            assert (record["outcome"], record["finish"], record["generated_tokens"]) == ("answered", ["stop"], 3)
            assert SAID not in str(facts)
            assert PROMPT not in str(facts)
            await _refuses_what_cannot_be_done(pool)
            await _lets_go_of_what_nobody_waits_for(pool, facts)
            await _gives_up_on_a_reader_that_does_not_read(pool)
            await _has_several_choices_seeds_and_logprobs(pool)
            await _is_flat(pool)
            (engine,) = pool.engines()
            assert engine.served >= 200
            await pool.unload("mini")
            assert pool.engines() == []
            assert not psutil.pid_exists(engine.pid)
            assert types(facts)[-2:] == ["engine.draining", "engine.ended"]
            assert last(facts, "engine.ended")["why"] == "unloaded"
            assert list((tmp_path / "engines").iterdir()) == []
            assert descriptors() <= before + 2
        with pytest.raises(EngineLost):
            await answer(pool, ask())

    async def _refuses_what_cannot_be_done(pool: EnginePool) -> None:
        with pytest.raises(UnknownModel, match="there are: mini"):
            await answer(pool, ask(), model="nobody")
        with pytest.raises(BadRequest, match="1024") as bad:
            await answer(pool, ask(prompt="word " * 2000, messages=None))
        assert bad.value.parameter
        with pytest.raises(BadRequest) as bad:
            await answer(pool, ask(temperature=-1.0))
        assert bad.value.parameter == "temperature"
        assert len(await pool.tokenize("mini", ask())) == 9

    async def _lets_go_of_what_nobody_waits_for(pool: EnginePool, facts: list[Fact]) -> None:
        async with contextlib.aclosing(pool.generate("mini", long())) as said:
            await anext(said)
            assert pool.engines()[0].running == 1
        (left,) = pool._left.values()
        await until(lambda: pool.engines()[0].running == 0, "the engine stops generating")
        assert [done.finish for done in left.finished.values()] == ["cancelled"]
        record = last(facts, "generation.finished")
        assert (record["outcome"], record["request"]) == ("cancelled", "long")
        assert record["generated_tokens"] < 500
        task = asyncio.create_task(answer(pool, long()))
        await until(lambda: pool.engines()[0].running == 1, "it runs")
        task.cancel()
        await until(lambda: pool.engines()[0].running == 0, "the engine stops generating")

    async def _gives_up_on_a_reader_that_does_not_read(pool: EnginePool) -> None:
        pool_module.UNREAD_MAX, most = 20, pool_module.UNREAD_MAX
        try:
            said = pool.generate("mini", long())
            await anext(said)
            await until(lambda: pool.engines()[0].running == 0, "it is given up")
            with pytest.raises(SlowReader):
                async for _ in said:
                    pass
        finally:
            pool_module.UNREAD_MAX = most

    async def _has_several_choices_seeds_and_logprobs(pool: EnginePool) -> None:
        how: dict[str, Any] = {"n": 2, "temperature": 5.0, "seed": 7, "logprobs": 2, "ignore_end": True}
        said = [one async for one in pool.generate("mini", ask(**how))]
        assert sorted(one.choice for one in said if isinstance(one, Done)) == [0, 1]
        pieces = [one for one in said if isinstance(one, Piece)]
        assert len(pieces) == 16
        assert all(piece.logprob is not None and len(piece.top) == 2 for piece in pieces)
        again = [one async for one in pool.generate("mini", ask(**how))]
        assert [one.text for one in again if isinstance(one, Piece)] == [piece.text for piece in pieces]

    async def _is_flat(pool: EnginePool) -> None:
        process = psutil.Process(pool.engines()[0].pid)
        before, files = process.memory_info().rss, process.num_fds()
        for start in (0, 100):
            await asyncio.gather(*(answer(pool, ask(f"f{start + n}", max_new_tokens=1)) for n in range(100)))
        assert process.memory_info().rss < before + (32 << 20)
        assert process.num_fds() == files
        assert not pool._calls
        assert not pool._left
        assert not pool._pool.assigned

    run(story())


def test_one_that_is_killed_or_hangs_is_replaced_and_what_it_had_not_begun_is_done_again(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_pool(tmp_path, crashes_max=10, silence_ms=8000) as (pool, facts):
            asked = asyncio.create_task(answer(pool, ask()))
            await until(lambda: pool.engines() and pool.engines()[0].pid, "it is started")
            os.kill(pool.engines()[0].pid, signal.SIGKILL)  # while it loads
            assert await asked == SAID
            assert len(types(facts, "engine.spawned")) == 2
            said = pool.generate("mini", long())
            assert isinstance(await anext(said), Piece)
            waiting = [asyncio.create_task(answer(pool, ask(f"w{n}"))) for n in range(30)]
            await until(lambda: pool.stats()["waiting"] > 10, "others wait")
            os.kill(pool.engines()[0].pid, signal.SIGKILL)  # while it streams
            with pytest.raises(EngineLost, match=r"was lost after [0-9]+ tokens: somebody killed it") as lost:
                async for _ in said:
                    pass
            assert lost.value.tokens_so_far > 0
            answers = await asyncio.gather(*waiting, return_exceptions=True)
            assert sum(one == SAID for one in answers) >= 15, "those that had not begun are done again"
            assert all(one == SAID or isinstance(one, EngineLost) for one in answers)
            assert last(facts, "engine.ended")["why"] == "killed"
            os.kill(pool.engines()[0].pid, signal.SIGSTOP)
            assert await answer(pool, ask()) == SAID
            ended = last(facts, "engine.ended")
            assert (ended["why"], ended["requeued"], ended["signal"]) == ("hung", 1, signal.SIGKILL)
            os.kill(pool.engines()[0].pid, signal.SIGKILL)  # while it is idle
            await until(lambda: len(types(facts, "engine.spawned")) == 5, "one that served is had again unasked")
            assert pool.stats()["crashes"] == 4

    run(story())


def test_an_exact_answer_goes_on_in_another_engine_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """And a hermetic engine serves as any other."""

    async def story() -> None:
        exact = mini("exact", spec={"runtime": "exact"})
        request = long(tokens=200, temperature=1.0, seed=11, logprobs=1)
        async with a_pool(tmp_path, exact, hermetic=True) as (pool, facts):
            whole = [one async for one in pool.generate("exact", request)]
            assert "socket-guard" in last(facts, "engine.loaded")["facts"]["sandbox"]
            said = []
            async for one in pool.generate("exact", request):
                said.append(one)
                if len(said) == 50:
                    os.kill(pool.engines()[0].pid, signal.SIGKILL)
            assert said[:-1] == whole[:-1]
            assert isinstance(said[-1], Done)
            assert isinstance(whole[-1], Done)
            assert (said[-1].finish, said[-1].generated_tokens) == ("length", 200)
            assert (last(facts, "engine.ended")["requeued"], last(facts, "engine.ended")["lost"]) == (1, 0)
            first, second = (fact.data for fact in facts if fact.type == "generation.finished")
            assert first["output_sha256"] == second["output_sha256"]
            assert first["request_sha256"] == second["request_sha256"]
            assert first["determinism"]

    run(story())


def test_out_of_memory_while_generating_climbs_the_ladder(tmp_path: Path) -> None:
    """With a real bound on what an engine may allocate."""

    async def story() -> None:
        model = mini("wide", spec={"model": str(wide(tmp_path / "wide")), "rows": 4, "cache_mb": 0})
        async with a_pool(tmp_path, model, engine_memory_max=560 << 20) as (pool, facts):
            with pytest.raises(EngineLost, match="memory") as lost:
                await answer(pool, long(tokens=1000), model="wide")
            assert lost.value.tokens_so_far > 100
            assert last(facts, "engine.ended")["why"] == "out-of-memory"
            assert (last(facts, "engine.fell")["rung"], last(facts, "engine.fell")["rows"]) == ("smaller batch", 1)
            await answer(pool, ask(), model="wide")
            assert last(facts, "engine.spawned")["rung"] == "smaller batch"

    run(story())


def test_out_of_memory_while_loading_climbs_to_the_end_and_opens_the_breaker(tmp_path: Path) -> None:
    async def story() -> None:
        folder = wide(tmp_path / "wide", "BF16", inner=1 << 19)
        model = mini("wide", spec={"model": str(folder), "dtype": "float32", "rows": 1})
        how = {"engine_memory_max": 560 << 20, "crashes_max": 1, "open_ms": 60_000}
        async with a_pool(tmp_path, model, **how) as (pool, facts):
            with pytest.raises(Broken, match="memory") as broken:
                await answer(pool, ask(), model="wide")
            assert 0 < broken.value.retry_after_s <= 60
            assert [fact.data["rung"] for fact in facts if fact.type == "engine.fell"] == ["quantised"]
            assert {fact.data["why"] for fact in facts if fact.type == "engine.ended"} == {"out-of-memory"}
            assert types(facts)[-1] == "breaker.opened"
            assert pool.models()[0].state == "open"

    run(story())


def test_models_that_cannot_be_loaded_are_refused_with_the_reason(tmp_path: Path) -> None:
    async def story() -> None:
        damaged = Path(shutil.copytree(FOLDER, tmp_path / "damaged"))
        weights = next(damaged.glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-100])
        models = (
            mini("damaged", spec={"model": str(damaged)}),
            mini("changed", spec={"digest": "0" * 64}),
            mini("gone", spec={"model": str(tmp_path / "gone")}),
            mini("huge", spec={"cache_mb": 1 << 24}),
            mini("gpu", spec={"device": "cuda:7"}),
        )
        async with a_pool(tmp_path, *models) as (pool, _):
            asked = [answer(pool, ask(), model=model.name) for model in models]
            said = await asyncio.gather(*asked, return_exceptions=True)
            kinds = [type(error) for error in said]
            assert kinds == [LoadFailed, LoadFailed, LoadFailed, DoesNotFit, DoesNotFit], said
            for error, words in zip(
                said, ("damaged or cut short", "digest", "does not exist", "GiB", "cuda:7"), strict=True
            ):
                assert words in str(error)
            figures = said[3].figures["cpu"]  # type: ignore[union-attr]
            assert figures["needed_bytes"] > figures["total_bytes"]
            assert {view.name: view.state for view in pool.models()}["damaged"] == "failed"

    run(story())


def test_many_models_share_one_seat_and_a_full_queue_turns_away(tmp_path: Path) -> None:
    async def story() -> None:
        models = (mini("A"), mini("B"))
        async with a_pool(tmp_path, *models, engines_max=1, waiting_max=6) as (pool, facts):
            asked = [asyncio.create_task(answer(pool, ask(), model=model)) for model in "ABAABB"]
            await asyncio.sleep(0)
            with pytest.raises(Busy) as busy:
                await answer(pool, ask(), model="A")
            assert busy.value.retry_after_s >= 1
            assert await asyncio.gather(*asked) == [SAID] * 6
            assert [fact.data["model"] for fact in facts if fact.type == "engine.spawned"] == ["A", "B"]
            assert [fact.data["why"] for fact in facts if fact.type == "engine.draining"] == ["evicted"]

    run(story())


def test_engines_die_with_the_process_that_has_them(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from daemon.inference.pool import EnginePool\n"
        "from daemon.inference.views import ModelSpec\n"
        "from daemon.inference.runtimes import Spec\n"
        "async def main():\n"
        "    pool = EnginePool(Path(sys.argv[1]))\n"
        "    await pool.start()\n"
        "    pool.register(ModelSpec('mini', Spec(model=sys.argv[2], device='cpu')))\n"
        "    asyncio.create_task(pool.load('mini'))\n"
        "    while not (pool.engines() and pool.engines()[0].state != 'starting'): await asyncio.sleep(0.01)\n"
        "    print(pool.engines()[0].pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    root = str(Path(__file__).resolve().parents[1])
    argv = [sys.executable, "-c", program, str(tmp_path), str(FOLDER)]
    with subprocess.Popen(argv, cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, signal.SIGSTOP)  # so that it cannot see that nobody speaks to it any more
        parent.kill()
    ends = time.monotonic() + DEADLINE_S
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > ends:
            os.kill(pid, signal.SIGKILL)
            pytest.fail("it lives on")
        time.sleep(0.02)
