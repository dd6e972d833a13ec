"""`python -m simulations.soak --requests 10000`: many requests through one engine, and what they leave behind.

Memory and descriptors of both processes are printed before, half-way and after. Exit status 1 if they grew from
half-way on by more than a few MiB or by any descriptor.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import psutil

from daemon.inference.hermes_mini import FOLDER
from daemon.inference.pool import EnginePool, ModelSpec
from daemon.inference.runtimes import Generation, Spec

AT_ONCE = 64
GREW_BYTES_MAX = 16 << 20


async def _soak(requests: int) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        pool = EnginePool(Path(folder))
        await pool.start()
        try:
            pool.register(ModelSpec("mini", Spec(model=str(FOLDER), device="cpu", threads=1, cache_mb=16)))
            await pool.load("mini")
            processes = {"pool": psutil.Process(), "engine": psutil.Process(pool.engines()[0].pid)}
            await _many(pool, min(requests, 200))
            measured = [_measure("after 200", processes)]
            for part in ("half-way", "at the end"):
                await _many(pool, requests // 2)
                measured.append(_measure(part, processes))
            left = pool.stats()["waiting"] + pool.stats()["running"]
            print(f"{pool.stats()['answered']:,} answered, {left} left")
        finally:
            await pool.close()
    _, half, end = measured
    return left == 0 and all(
        end[name][0] - half[name][0] <= GREW_BYTES_MAX and end[name][1] <= half[name][1] for name in processes
    )


async def _many(pool: EnginePool, count: int) -> None:
    """So many, a part of them left in the middle, some sampled."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(number: int) -> None:
        request = Generation(
            id=str(number), prompt=f"Triage this log line: {number}", max_new_tokens=4, ignore_end=True,
            temperature=float(number % 2), seed=number,
        )  # fmt: skip
        async with gate:
            said = pool.generate("mini", request)
            async for _ in said:
                if number % 10 == 0:
                    break
            await said.aclose()

    await asyncio.gather(*(ask(number) for number in range(count)))


def _measure(when: str, processes: dict[str, psutil.Process]) -> dict[str, tuple[int, int]]:
    found = {name: (each.memory_info().rss, each.num_fds()) for name, each in processes.items()}
    told = ", ".join(f"{name} {rss / 2**20:.1f} MiB and {fds} descriptors" for name, (rss, fds) in found.items())
    print(f"{when}: {told}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulations.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    flat = asyncio.run(_soak(parser.parse_args().requests))
    print("flat" if flat else "it grew")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
