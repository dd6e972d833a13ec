"""What people have written into a home, read for its daemon by a process of its own: `python -m daemon.written HOME`,
or `HOME ZONE` where the settings are in force already, and ZONE is theirs.

The answer is lines of JSON: the settings and the policies; each job, its spec as a text of JSON; all problems of the
job files. The first line is written before a job file is looked at, so that one which ends the reader does not keep the
daemon from starting.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from daemon import jobfiles
from daemon.home import Home, HomeError
from daemon.policyfile import scheduling_policy, upgrade_policy

Json = Any


def lines(home: Home, zone: str = "") -> Iterator[Json]:
    """What each line says."""
    first: dict[str, Json] = {"settings": None, "error": ""}
    try:
        if not zone:
            first["settings"] = settings = home.settings().in_force()
            zone = settings.timezone
    except HomeError as error:
        yield {**first, "error": str(error)}
        return
    for name, file in (("scheduling", scheduling_policy(home)), ("upgrades", upgrade_policy(home))):
        policy, problem = file.read()
        first[name] = [policy.values(), problem]
    yield first
    jobs, problems = jobfiles.accepted(jobfiles.load(home.jobs, zone), home.jobs)
    for job, (digest, spec, source) in jobs.items():
        yield [job, digest, orjson.dumps(spec).decode(), source]
    yield problems


if __name__ == "__main__":
    # A daemon that was killed meanwhile wants no answer.
    with contextlib.suppress(BrokenPipeError), open(1, "wb", closefd=False) as output:
        for number, line in enumerate(lines(Home(Path(sys.argv[1])), *sys.argv[2:])):
            output.write(orjson.dumps(line, default=tuple) + b"\n")
            if number == 0:
                output.flush()
