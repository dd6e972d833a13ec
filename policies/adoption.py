"""Which events follow from what the job files say now: the accepted changes, the removals, the rejections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from ledger.record import Draft
from state.events import draft
from state.graph import Graph, Rejection

Json = Any

FOLDER = "."
"""In a problem: the folder of job files as a whole. Then no job is known to be gone."""
_PROBLEMS_MAX = 20
_TEXT_MAX = 500
"""So many problems of one file are recorded, and so much of each: a record holds only so much."""


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


class Unread(NamedTuple):
    """The same, its spec as JSON: of a thousand jobs hardly one has changed, and only that one is read."""

    digest: str
    text: str
    source: str

    @property
    def spec(self) -> Json:
        return orjson.loads(self.text)


def changes(graph: Graph, jobs: Mapping[str, Accepted | Unread], problems: Iterable[Problem]) -> Iterator[Draft]:
    """From the files as loaded (by job name, and all problems) to events.

    A job whose file has a problem now, and which is not among the loaded, keeps its last good version. Each is made
    when it is asked for; the graph may take up those before it meanwhile.
    """
    wrong: dict[str, list[Json]] = {}
    for problem in problems:
        of_file = wrong.setdefault(problem.file, [])
        if len(of_file) < _PROBLEMS_MAX:
            of_file.append(
                {name: it[:_TEXT_MAX] if isinstance(it, str) else it for name, it in problem._asdict().items()}
            )
    for name, job in sorted(jobs.items()):
        known = graph.jobs.get(name)
        if known is not None and not known.removed and known.digest == job.digest:
            continue
        data = {
            "job": name,
            "revision": known.revision + 1 if known else 1,
            "digest": job.digest,
            "spec": job.spec,
            "source": job.source,
        }
        yield draft("job.changed" if known else "job.defined", f"job/{name}", data)
    for name, known in sorted(graph.jobs.items()):
        if name not in jobs and not known.removed and not {known.source, FOLDER} & wrong.keys():
            yield draft("job.removed", f"job/{name}", {"job": name, "source": known.source})
    rejected = {node.source: node for node in graph.nodes.values() if isinstance(node, Rejection)}
    for source, found in sorted(wrong.items()):
        if source not in rejected or list(rejected[source].problems) != found:
            yield draft("job.rejected", f"jobfile/{source}", {"source": source, "problems": found})
    for source in sorted(rejected.keys() - wrong.keys()):
        yield draft("job.cleared", f"jobfile/{source}", {"source": source})
