"""`python -m simulations --seeds 2000`: make-believe lives of the daemon, in parallel.

Exit status 0: every invariant held in every life. 1: one did not; it is shown with the command that shows it again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

from simulations.world import FAULTS, Violation, live


def _lives(first: int, count: int, hours: float, faults: str | None) -> tuple[int, str]:
    """Steps lived through, and the first violation ("" if none)."""
    chosen = None if faults is None else frozenset(filter(None, faults.split(",")))
    steps = 0
    for seed in range(first, first + count):
        try:
            steps += len(live(seed, hours=hours, faults=chosen).host.trace)
        except Violation as violation:
            return steps, str(violation)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    return steps, ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulations", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many lives")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--hours", type=float, default=0.5, help="simulated hours of work in each life")
    parser.add_argument("--faults", default=None, help=f"only these classes, with commas: {','.join(FAULTS)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    asked = parser.parse_args()
    print(f"seeds {asked.first_seed} to {asked.first_seed + asked.seeds - 1}", flush=True)
    began, done, steps = time.monotonic(), 0, 0
    share = max(1, min(25, asked.seeds // asked.jobs))
    with ProcessPoolExecutor(asked.jobs) as pool:
        ends = asked.first_seed + asked.seeds
        waiting = {
            pool.submit(_lives, first, min(share, ends - first), asked.hours, asked.faults): min(share, ends - first)
            for first in range(asked.first_seed, ends, share)
        }
        for future in as_completed(waiting):
            lived, violation = future.result()
            done, steps = done + waiting[future], steps + lived
            if violation:
                pool.shutdown(cancel_futures=True)
                print(violation)
                return 1
            if sys.stderr.isatty():
                print(f"\r{done} lives, {done / (time.monotonic() - began):.0f} a second ", end="", file=sys.stderr)
    took = time.monotonic() - began
    hours = asked.seeds * asked.hours
    summary = f"{done} lives of {asked.hours:g} h, {steps} effects"
    print(f"{summary}: every invariant held ({took:.0f} s, {hours / took:.1f} simulated h/s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
