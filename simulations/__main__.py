"""`python -m simulations --seeds 2000`: make-believe lives of the daemon, in parallel.

A seed decides a life: its jobs, what people do, and which classes of faults strike. `--shrink SEED` looks for the
smallest life that still fails, and keeps it in simulations/corpus. `--resume FOLDER` goes on where it stopped.

Exit status 0: every invariant held in every life. 1: one did not; it is shown with the command that shows it again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from simulations.faults import FAULTS
from simulations.shrink import Life, keep, live_all, shrink

SHARE = 50
"""Lives that a process lives through before it tells how it went."""


class Chunk(NamedTuple):
    first: int
    lives: int
    effects: int
    lived_hours: float
    cpu_s: float
    told: str


def _lives(first: int, count: int, steps: int | None, faults: str | None, without: str) -> Chunk:
    began_s, effects, hours = time.process_time(), 0, 0.0
    lives = (_life(seed, steps, faults, without) for seed in range(first, first + count))
    for seed, lived in enumerate(live_all(lives), first):
        effects, hours = effects + lived.effects, hours + lived.lived_hours
        if lived.invariant:
            return Chunk(first, seed - first + 1, effects, hours, time.process_time() - began_s, lived.told)
    return Chunk(first, count, effects, hours, time.process_time() - began_s, "")


def _life(seed: int, steps: int | None, faults: str | None, without: str) -> Life:
    chosen = None if faults is None else frozenset(faults.split(",")) - {"none", ""}
    return Life.of(seed, steps, chosen)._replace(without=tuple(filter(None, without.split(","))))


class _Memory:
    """The chunks that were lived through without a violation, by what was asked for."""

    def __init__(self, folder: str, about: dict[str, str | int]) -> None:
        self._path = Path(folder) / "campaign.jsonl" if folder else None
        self._about = about

    def chunks(self) -> Iterator[Chunk]:
        if self._path is None or not self._path.exists():
            return
        for line in self._path.read_text().splitlines():
            told = json.loads(line)
            if told["about"] == self._about:
                yield Chunk(*told["chunk"])

    def note(self, chunk: Chunk) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps({"about": self._about, "chunk": chunk}) + "\n")


def _shrink(asked: argparse.Namespace) -> int:
    life = _life(asked.shrink, asked.steps, asked.faults, asked.without)
    try:
        small, lived = shrink(life)
    except ValueError as error:
        print(error)
        return 2
    print(f"{lived.told}\nkept in {keep(small, lived)}: {small.command()}")
    return 1


def _campaign(asked: argparse.Namespace) -> int:
    memory = _Memory(asked.resume, {"steps": asked.steps or 0, "faults": asked.faults or "", "without": asked.without})
    ends = asked.first_seed + asked.seeds
    share = max(1, min(SHARE, asked.seeds // (2 * asked.jobs)))
    done = [chunk for chunk in memory.chunks() if asked.first_seed <= chunk.first and chunk.first + chunk.lives <= ends]
    known = {seed for chunk in done for seed in range(chunk.first, chunk.first + chunk.lives)}
    print(
        f"seeds {asked.first_seed} to {ends - 1}" + (f", {len(known)} of them lived before" if known else ""),
        flush=True,
    )
    began_s = time.monotonic()
    with ProcessPoolExecutor(asked.jobs) as pool:
        waiting: list[Future[Chunk]] = []
        first = asked.first_seed
        while first < ends:
            count = next((n for n in range(share) if first + n >= ends or first + n in known), share)
            if count:
                waiting.append(pool.submit(_lives, first, count, asked.steps, asked.faults, asked.without))
            first += count or 1
        for future in as_completed(waiting):
            chunk = future.result()
            done.append(chunk)
            if chunk.told:
                pool.shutdown(cancel_futures=True)
                print(chunk.told)
                return 1
            memory.note(chunk)
            if sys.stderr.isatty():
                lives = sum(chunk.lives for chunk in done)
                rate = (lives - len(known)) / (time.monotonic() - began_s)
                print(f"\r{lives} lives, {rate:.0f} a second ", end="", file=sys.stderr, flush=True)
    lives, cpu_s = sum(chunk.lives for chunk in done), sum(chunk.cpu_s for chunk in done)
    hours, effects = sum(chunk.lived_hours for chunk in done), sum(chunk.effects for chunk in done)
    told = f"{lives} lives of {asked.steps} steps" if asked.steps else f"{lives} lives"
    print(
        f"{told}, {hours / 8766:.2f} simulated years, {effects} effects: every invariant "
        f"held ({lives / cpu_s:.1f} lives and {hours / cpu_s:.0f} simulated hours per CPU second, "
        f"{time.monotonic() - began_s:.0f} s)"
    )
    return 0


def main(arguments: list[str] | None = None) -> int:
    assert __doc__ is not None
    told = "\n".join(f"  {name:<9}{fault.what}" for name, fault in FAULTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m simulations", description=f"{__doc__}\nclasses of faults:\n{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=200, help="how many lives")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="how long each life is; else the seed draws it")
    parser.add_argument("--faults", help="only these classes, with commas, or none; else the seed draws them")
    parser.add_argument("--without", default="", help="strikes (kill@17), jobs (job3) and people@STEP to leave out")
    parser.add_argument("--resume", default="", metavar="FOLDER", help="note there what is done, and go on from it")
    parser.add_argument("--shrink", type=int, metavar="SEED", help="the smallest life that fails as this one does")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    asked = parser.parse_args(arguments)
    if unknown := set((asked.faults or "none").split(",")) - FAULTS.keys() - {"none", ""}:
        parser.error(f"no class of faults is called {', '.join(sorted(unknown))}")
    return _campaign(asked) if asked.shrink is None else _shrink(asked)


if __name__ == "__main__":
    sys.exit(main())
