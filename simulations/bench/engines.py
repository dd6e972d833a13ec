"""Engines: what grouping by model saves, and two engines beside one."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from time import perf_counter

import psutil

from daemon.inference.hermes_mini import FOLDER
from daemon.inference.pool import EnginePool
from daemon.inference.runtimes import Done, Generation, Spec
from daemon.inference.views import ModelSpec
from policies.engines import Limits
from simulations.bench.figure import Figure, Target, figure, percentile
from simulations.bench.place import Bench
from simulations.engines import ANSWER_MS, LOAD_MS, lived, trace

_REQUESTS = 32
_TOKENS = 64


def measure(bench: Bench) -> list[Figure]:
    return [*_swaps(bench), *asyncio.run(_two(bench))]


def _swaps(bench: Bench) -> list[Figure]:
    """The real decisions over a trace of three models that take turns on a machine with room for one."""
    loads: tuple[list[float], list[float]] = [], []
    waits_s: tuple[list[float], list[float]] = [], []
    for seed in range(bench.some(max(5, bench.rounds), 1)):
        bench.tell(f"a mixed trace, seed {seed}")
        asked = trace(seed, "ABC", bench.some(500, 50), 120)
        for place, limits in enumerate(({}, {"overtakes_max": 0, "fairness_ms": 10**9})):
            world = lived(asked, **limits)
            loads[place].append(len(world.loads()))
            waits_s[place].append(percentile(sorted(world.waits_ms.values()), 95) / 1000)
    note = f"decided as in life; a load takes {LOAD_MS} ms, an answer {ANSWER_MS}; 3 models, room for 1"
    peer = "first in, first out"
    return [
        figure("model loads, mixed trace", "loads", loads[0], peer, loads[1], Target(at_most=0.5, of_ratio=True), note),
        figure("wait p95, mixed trace", "s", waits_s[0], peer, waits_s[1], Target(at_most=1, of_ratio=True), note),
    ]


async def _two(bench: Bench) -> list[Figure]:
    """The same requests, one at a time each, through two engines of one thread, and through one."""
    spec = Spec(model=str(FOLDER), device="cpu", threads=1, rows=1, cache_mb=16)
    pool = EnginePool(bench.folder / "engines", Limits(idle_ms=0))
    both: list[float] = []
    one: list[float] = []
    await pool.start()
    try:
        pool.register(ModelSpec("a", spec))
        pool.register(ModelSpec("b", spec))
        bench.tell("loading two engines")
        await pool.load("a")
        alone = _pss()
        await pool.load("b")
        more = _pss() - alone if alone else 0
        for turn in range(bench.rounds):
            bench.tell(f"two engines and one, round {turn + 1} of {bench.rounds}")
            both.append(await _timed(pool, bench, "a", "b"))
            one.append(await _timed(pool, bench, "a"))
    finally:
        await pool.close()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    target = Target(at_most=0.7, of_ratio=True) if cores > 1 else None
    note = f"hermes-mini, {_REQUESTS} requests of {_TOKENS} tokens, {cores} cores"
    found = [figure("two engines", "s", both, "one engine", one, target, note)]
    if alone:
        told = "PSS of all engine processes, and what they are forked from; hermes-mini"
        found.append(figure("one more engine of a model", "MB", [more / 1e6], "the first", [alone / 1e6], note=told))
    return found


def _pss() -> int:
    """Bytes of all processes below this one, what they share counted once; 0 where the system does not tell."""
    found = 0
    for process in psutil.Process().children(recursive=True):
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            return 0
        found += sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:"))
    return found


async def _timed(pool: EnginePool, bench: Bench, *models: str) -> float:
    async def ask(number: int) -> None:
        request = Generation(
            id=str(number), prompt=f"Route this request: {number}", max_new_tokens=bench.some(_TOKENS, 4),
            ignore_end=True,
        )  # fmt: skip
        said = [one async for one in pool.generate(models[number % len(models)], request)]
        assert isinstance(said[-1], Done)

    began_s = perf_counter()
    await asyncio.gather(*(ask(number) for number in range(bench.some(_REQUESTS, 4))))
    return perf_counter() - began_s
