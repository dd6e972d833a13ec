"""Which ended runs leave the graph, and with them their folders, because their job keeps none so old.

How many a job keeps (`keep.runs`) is a rule of the graph itself; the age is looked at now and then. The ledger keeps
everything.
"""

from __future__ import annotations

from collections.abc import Iterable

from ledger.instant import ms_of
from ledger.record import Draft
from state.events import draft
from state.graph import Graph

_DAY_MS = 86_400_000
_AT_ONCE = 500


def forgotten(graph: Graph, wall_ms: int) -> Draft | None:
    """The event for the runs whose time is over, at most 500 of them; None if there are none."""
    names: list[str] = []
    for _, job in sorted(graph.jobs.items()):
        days = job.spec.get("keep", {}).get("days")
        if days is None:
            continue
        for kept in (job.kept, job.unrun):
            for name in kept:
                run = graph.run(name)
                if run is None or len(names) == _AT_ONCE or ms_of(run.ended_at) > wall_ms - days * _DAY_MS:
                    break  # Those behind it ended later.
                names.append(name)
    return draft("runs.forgotten", "runs", {"runs": names}) if names else None


def left_over(graph: Graph, errands: Iterable[str]) -> list[str]:
    """Of the names of errands' folders (a mark, then the notice, or the run and what about it), those that nobody waits
    for: what a daemon left that was killed between an errand's end and its folder's."""
    return [
        name
        for name in errands
        if name[1:] not in graph.notices and not any(name[1:].startswith(f"{run}.") for run in graph.active)
    ]
