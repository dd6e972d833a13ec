"""A life by the few things that decide it, and the smallest life that still shows what a larger one showed.

Dropped are, in this order: whole classes of faults, single strikes, jobs, what people do at a step, and the end of the
life. Nothing that is dropped changes what the rest draws. The smallest lives are kept in `simulations/corpus/`, and the
tests live them for ever.
"""

from __future__ import annotations

import gc
import json
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from simulations import workload
from simulations.checkers import Violation
from simulations.world import World, drawn, length

CORPUS = Path(__file__).parent / "corpus"
_COLLECT_EVERY = 50


class Life(NamedTuple):
    seed: int
    steps: int
    faults: tuple[str, ...]
    without: tuple[str, ...] = ()

    @classmethod
    def of(cls, seed: int, steps: int | None = None, faults: frozenset[str] | None = None) -> Life:
        """What is not told, the seed draws."""
        return cls(
            seed, length(seed) if steps is None else steps, tuple(sorted(drawn(seed) if faults is None else faults))
        )

    def command(self) -> str:
        faults = ",".join(self.faults) or "none"
        without = f" --without {','.join(sorted(self.without))}" if self.without else ""
        return (
            f"python -m simulations --seeds 1 --first-seed {self.seed} --steps {self.steps} --faults {faults}{without}"
        )

    def world(self) -> World:
        return World(self.seed, frozenset(self.faults), self.steps, frozenset(self.without))


class Lived(NamedTuple):
    """What came of a life. `invariant` is "" if all held."""

    invariant: str
    told: str
    steps: int
    struck: tuple[str, ...]
    effects: int
    lived_hours: float


def live(life: Life) -> Lived:
    world = life.world()
    invariant = told = ""
    try:
        world.live()
    except Violation as violation:
        invariant, told = violation.invariant, str(violation)
    except Exception as error:  # What the code raises is a finding like any other.
        invariant = type(error).__name__
        told = f"{world.violation(invariant, error)}\n{traceback.format_exc()}"
    # What is only waited for at the end is not counted.
    effects, hours = len(world.host.trace), (world.calm_since_ns or world.clock.lived_ns) / 3.6e12
    return Lived(invariant, told, world.step, tuple(dict.fromkeys(world.luck.struck)), effects, hours)


def live_all(lives: Iterable[Life]) -> Iterator[Lived]:
    """One life after another. The collector of cycles does not look into the middle of one, nor at what is older."""
    active = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for number, life in enumerate(lives, 1):
            yield live(life)
            if number % _COLLECT_EVERY == 0:
                gc.collect()
    finally:
        gc.unfreeze()
        if active:
            gc.enable()


def shrink(life: Life) -> tuple[Life, Lived]:
    """The smallest life found in which the same invariant does not hold. ValueError if all hold in `life`."""
    lived = live(life)
    if not lived.invariant:
        raise ValueError(f"nothing is wrong in this life: {life.command()}")
    smaller = True
    while smaller:
        smaller = False
        for candidate in _candidates(life, lived):
            tried = live(candidate)
            if tried.invariant == lived.invariant:
                life, lived, smaller = candidate, tried, True
                break
    return life, lived


def _candidates(life: Life, lived: Lived) -> Iterator[Life]:
    """Lives that are smaller than this one by one thing, the boldest first."""
    for steps in sorted({lived.steps, lived.steps * 2 // 3, lived.steps - 1}):
        if 0 <= steps < life.steps:
            yield life._replace(steps=steps)
    for fault in life.faults:
        left = tuple(strike for strike in life.without if not strike.startswith(f"{fault}@"))
        yield life._replace(faults=tuple(other for other in life.faults if other != fault), without=left)
    names = [*lived.struck, *workload.names(life.seed), *(("drop0", "drop1") if "files" in life.faults else ())]
    names += [f"people@{step}" for step in range(1, life.steps + 1)]
    for name in names:
        if name not in life.without:
            yield life._replace(without=(*life.without, name))


def keep(life: Life, lived: Lived, safeguard: str = "", about: str = "") -> Path:
    """Put a life into the corpus. `safeguard`: the ablation without which it still fails, once the bug is mended."""
    CORPUS.mkdir(exist_ok=True)
    path = CORPUS / f"{life.seed}-{'-'.join(lived.invariant.split()[:5]).replace(':', '').replace(',', '')}.json"
    told: dict[str, Any] = {**life._asdict(), "invariant": lived.invariant, "safeguard": safeguard, "about": about}
    path.write_text(json.dumps(told, indent=2) + "\n")
    return path


def kept() -> dict[str, tuple[Life, str]]:
    """The corpus: file -> life, safeguard."""
    found = {}
    for path in sorted(CORPUS.glob("*.json")):
        told = json.loads(path.read_text())
        life = Life(told["seed"], told["steps"], tuple(told["faults"]), tuple(told["without"]))
        found[path.name] = (life, told["safeguard"])
    return found
