"""`python -m simulations.campaign --cases 1000000`: damaged ledgers, in parallel.

Exit status 0: the law held in every case. 1: it did not; the case is shown, with the command that shows it again.
Interrupted, it says with which `--first` to go on.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice

from simulations.campaign.damage import case
from simulations.campaign.law import Broken, uphold

SHARE = 2_000
"""Cases that a process takes on at once."""


def share(first: int, count: int) -> tuple[int, str]:
    """Cases upheld among those numbered from `first`, and the first that is not ("" if all are)."""
    upheld = 0
    for number in range(first, first + count):
        chosen = case(number)
        if chosen is None:
            continue
        try:
            uphold(chosen)
        except Exception as error:
            why = str(error) if isinstance(error, Broken) else f"{chosen}: {error!r}"
            return upheld, f"{why}\npython -m simulations.campaign --first {number} --cases 1"
        upheld += 1
    return upheld, ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulations.campaign", description=__doc__)
    parser.add_argument("--cases", type=int, default=80_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    asked = parser.parse_args()
    end = asked.first + asked.cases
    began, upheld, next_case = time.monotonic(), 0, asked.first
    starts = iter(range(asked.first, end, SHARE))
    print(f"cases {asked.first} to {end - 1}", flush=True)
    with ProcessPoolExecutor(asked.jobs) as pool:

        def begin(start: int) -> Future[tuple[int, str]]:
            return pool.submit(share, start, min(SHARE, end - start))

        # In the order of their numbers, so that all before `next_case` is done whenever it is interrupted.
        running = [begin(start) for start in islice(starts, 4 * asked.jobs)]
        try:
            while running:
                done, broken = running.pop(0).result()
                upheld += done
                if broken:
                    pool.shutdown(cancel_futures=True)
                    print(broken)
                    return 1
                next_case = min(next_case + SHARE, end)
                running += [begin(start) for start in islice(starts, 1)]
                rate = (next_case - asked.first) / (time.monotonic() - began)
                if sys.stderr.isatty():
                    print(
                        f"\r{next_case - asked.first} of {asked.cases}, {rate:.0f} a second ", end="", file=sys.stderr
                    )
                elif (next_case - asked.first) % 100_000 == 0:
                    print(
                        f"{next_case - asked.first} of {asked.cases}, {rate:.0f} a second", file=sys.stderr, flush=True
                    )
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            print(f"\n{upheld} held; go on with --first {next_case} --cases {end - next_case}")
            return 130
    took = time.monotonic() - began
    nothing = asked.cases - upheld
    print(f"{upheld} damaged ledgers ({nothing} numbers change nothing): the law held in each", end=" ")
    print(f"({took:.0f} s, {upheld / took:.0f} a second on {asked.jobs} processes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
