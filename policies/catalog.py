"""The jobs as a whole: what no single file can know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from policies.dependency import depths, loops
from policies.fault import Fault, meant
from policies.job import Job
from policies.schedule_spec import AfterSpec


class Problem(NamedTuple):
    job: str
    fault: Fault


def waits_for(job: Job) -> tuple[str, ...]:
    """The jobs this one starts after."""
    return job.schedule.after if isinstance(job.schedule, AfterSpec) else ()


def check(jobs: Mapping[str, Job], also_known: Iterable[str] = ()) -> list[Problem]:
    """One problem for each job that waits for a name that does not exist, and for each job on a cycle. `also_known`
    are names that exist although their jobs are not here, such as those whose files are broken at the moment."""
    names = {*jobs, *also_known}
    before = {name: waits_for(job) for name, job in sorted(jobs.items())}
    found = []
    for name, path in loops(before).items():
        what = "the job waits for itself" if len(path) == 2 else f"the jobs wait for each other: {' -> '.join(path)}"
        found.append(Problem(name, Fault(("schedule", "after"), what, "Remove one of these `after`")))
    for name, others in before.items():
        for other in others:
            if other not in names:
                advice = meant(other, sorted(names), "Name a job that exists, or add the one that is missing")
                found.append(Problem(name, Fault(("schedule", "after"), f"there is no job {other!r}", advice)))
    return sorted(found, key=lambda problem: problem.job)


def depth(jobs: Mapping[str, Job]) -> dict[str, int]:
    """How many jobs stand, one after another, before each; jobs on or behind a cycle are left out."""
    return depths({name: waits_for(job) for name, job in jobs.items()})
