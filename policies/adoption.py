"""Which events follow from what the job files say now: the accepted changes, the removals, the rejections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ledger.record import Draft
from state.events import draft
from state.graph import Graph, Rejection

Json = Any

FOLDER = "."
"""In a problem: the folder of job files as a whole. Then no job is known to be gone."""


class Problem(NamedTuple):
    """One thing that is wrong with a job file. `line` and `column` count from 1; 0 is unknown."""

    file: str
    line: int
    column: int
    field: str
    message: str
    advice: str


class Accepted(NamedTuple):
    """A job as a file says it now: the digest of its spec, the spec in canonical form, and the file's name."""

    digest: str
    spec: dict[str, Json]
    source: str


def changes(graph: Graph, jobs: Mapping[str, Accepted], problems: Iterable[Problem]) -> list[Draft]:
    """From the files as loaded (by job name, and all problems) to events.

    A job whose file has a problem now, and which is not among the loaded, keeps its last good version.
    """
    wrong: dict[str, list[Json]] = {}
    for problem in problems:
        wrong.setdefault(problem.file, []).append(problem._asdict())
    drafts = []
    for name, (digest, spec, source) in sorted(jobs.items()):
        known = graph.jobs.get(name)
        if known is not None and not known.removed and known.digest == digest:
            continue
        data = {
            "job": name,
            "revision": known.revision + 1 if known else 1,
            "digest": digest,
            "spec": spec,
            "source": source,
        }
        drafts.append(draft("job.changed" if known else "job.defined", f"job/{name}", data))
    for name, job in sorted(graph.jobs.items()):
        if name not in jobs and not job.removed and not {job.source, FOLDER} & wrong.keys():
            drafts.append(draft("job.removed", f"job/{name}", {"job": name, "source": job.source}))
    rejected = {node.source: node for node in graph.nodes.values() if isinstance(node, Rejection)}
    for source, found in sorted(wrong.items()):
        if source not in rejected or list(rejected[source].problems) != found:
            drafts.append(draft("job.rejected", f"jobfile/{source}", {"source": source, "problems": found}))
    for source in sorted(rejected.keys() - wrong.keys()):
        drafts.append(draft("job.cleared", f"jobfile/{source}", {"source": source}))
    return drafts
