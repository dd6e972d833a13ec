"""The first event after which an expression over the graph stops, or starts, to hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import pairwise
from multiprocessing import get_context
from typing import Any, NamedTuple

from daemon.reading import replaying
from ledger.disk import Disk
from ledger.reader import read
from ledger.record import Record
from simulations.expression import Expression
from state.graph import AnyNode, Graph
from state.projector import apply
from state.snapshot import restore, seqs_between, usable
from state.upcast import as_current

Json = Any


class Change(NamedTuple):
    record: Record
    holds: bool
    """From this event on."""
    before: dict[str, Json]
    """What the expression reads, as it is written -> its value."""
    after: dict[str, Json]


class Found(NamedTuple):
    change: Change | None
    """None: it holds, or does not, all the time."""
    holds_first: bool
    looked_from: int
    """The record behind which events were folded one by one."""
    records: int


def bisect(
    disk: Disk,
    projector: str,
    expression: Expression,
    *,
    after: int = 0,
    until: int | None = None,
    monotone: bool = False,
) -> Found:
    """Look between two records. `monotone`: the value changes once at most, which the caller vouches for; then what
    lies between snapshots with the same value need not be looked at."""
    restored = restore(disk, projector, until=after) if after else None
    graph, start = (restored.graph, restored.head.seq) if restored is not None else (Graph(), 0)
    first = expression.holds(graph)
    if monotone:
        for kept, head in usable(disk, projector, until=until):
            if head.seq <= start:
                break
            if expression.holds(kept) == first and _bound(disk, head.seq, head.hash):
                graph, start = kept, head.seq
                break
    return _walk(read(disk, after=start, until=until), graph, expression, first, start)


def bisect_in_parts(
    disk: Disk,
    projector: str,
    text: str,
    *,
    after: int = 0,
    until: int | None = None,
    processes: int,
    told: Callable[[int, int], None] = lambda done, parts: None,
) -> Found:
    """As `bisect` of the expression `text`, by several processes at once: each walks from one snapshot to the next.
    `disk` goes to them; `told` hears how many parts are done."""
    bounds = [after, *seqs_between(disk, projector, after=after, until=until), until]
    if len(bounds) == 2 or processes < 2:
        return bisect(disk, projector, Expression(text), after=after, until=until)
    first = Expression(text).holds(restore(disk, projector, until=after).graph if after else Graph())
    pool, records = ProcessPoolExecutor(processes, get_context("spawn")), 0
    try:
        parts = [pool.submit(_part, disk, projector, text, start or 0, end, first) for start, end in pairwise(bounds)]
        for done, part in enumerate(parts, 1):  # In order: what a later part finds counts if no earlier one does.
            found = part.result()
            told(done, len(parts))
            records += found.records
            if found.change is not None:
                break
    except BrokenProcessPool:  # One was killed, or had something to say that does not go through a pipe.
        return bisect(disk, projector, Expression(text), after=after, until=until)
    finally:
        pool.shutdown(cancel_futures=True)
    return found._replace(looked_from=after, records=records)


def _part(disk: Disk, projector: str, text: str, start: int, end: int | None, first: bool) -> Found:
    with replaying():
        graph = restore(disk, projector, until=start).graph if start else Graph()
        return _walk(read(disk, after=start, until=end), graph, Expression(text), first, start)


def _bound(disk: Disk, seq: int, hash_: str) -> bool:
    """Whether the ledger has this very record."""
    record = next(read(disk, after=seq - 1, until=seq), None)
    return record is not None and record.hash == hash_


def _walk(records: Iterable[Record], graph: Graph, expression: Expression, first: bool, start: int) -> Found:
    count = 0

    def counted() -> Iterator[Record]:
        nonlocal count
        for record in as_current(records):
            count += 1
            yield record

    told = counted()
    if expression.jobs:
        told = only(told, expression.jobs, graph)
    counted_on = [
        (text, is_one, {n.id for n in _countable(graph) if is_one(n)}) for text, is_one in expression.counted.items()
    ]
    reads = {text: read for text, read in expression.names.items() if text not in expression.counted}
    before = {text: read(graph) for text, read in expression.names.items()}
    for record in told:
        patch = apply(graph, record)
        graph.merge(patch, record.seq)
        values = None
        if reads and expression.concerns(patch.put, patch.drop):
            values = before | {text: read(graph) for text, read in reads.items()}
        for text, is_one, found in counted_on:  # There may be very many: who joins and who leaves is looked at.
            for node in patch.put:
                if is_one(node) != (node[0] in found):
                    found ^= {node[0]}
            found.difference_update(patch.drop)
            if len(found) != before[text]:
                values = (values or before) | {text: len(found)}
        if values is not None and values != before:
            if (holds := expression.holds_for(values)) != first:
                change = Change(record, holds, _as_written(expression, before), _as_written(expression, values))
                return Found(change, first, start, count)
            before = values
    return Found(None, first, start, count)


def _countable(graph: Graph) -> Iterator[AnyNode]:
    yield from graph.jobs.values()
    yield from graph.active.values()


def _as_written(expression: Expression, values: Mapping[str, Json]) -> dict[str, Json]:
    return {text: values[text] for text in expression.names}


_OF_A_JOB = frozenset(
    {
        "job.defined", "job.changed", "job.removed", "job.paused", "job.resumed", "start.requested",
        "backfill.requested", "files.arrived", "files.gone", "files.hidden",
    }
)  # fmt: skip
_OF_A_RUN = frozenset(
    {"run.started", "run.adopted", "run.stopping", "run.finished", "run.fenced", "lease.refused", "cancel.requested"}
)


def only(records: Iterable[Record], jobs: set[str], graph: Graph) -> Iterator[Record]:
    """The part of the past that has made these jobs what they are: the nodes of other jobs and of their runs do not
    come to be. A job's node follows from its own events and those of its runs alone, and the policy."""
    runs = {run.name for run in graph.active.values() if run.job in jobs}
    runs |= {name for job in jobs if job in graph.jobs for name in (*graph.jobs[job].kept, *graph.jobs[job].unrun)}
    for record in records:
        kind, data = record.type, record.data
        if kind == "plan.decided":
            decisions = [one for one in data["decisions"] if one["job"] in jobs]
            if decisions:
                runs.update(one["run"] for one in decisions)
                yield record._replace(data={**data, "decisions": decisions})
        elif kind in _OF_A_RUN:
            if data["run"] in runs:
                yield record
        elif kind in _OF_A_JOB:
            if data["job"] in jobs:
                yield record
        elif kind == "runs.forgotten":
            if left := [run for run in data["runs"] if run in runs]:
                yield record._replace(data={**data, "runs": left})
        elif kind in ("policy.adopted", "backfill.cancelled"):
            yield record
