"""Old events in today's words: pure upcasters from version k of a type to k + 1, applied when a record is read.

A ledger is never rewritten, so each version ever released stays readable for good; tests/data/events holds one of each.
A version is raised only when a field changes its meaning or goes; one that may be absent is added without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ledger.record import Record
from state.events import VERSIONS, VOCABULARY

Json = Any
Upcaster = Callable[[dict[str, Json]], dict[str, Json]]

UPCASTERS: Mapping[tuple[str, int], Upcaster] = {}
"""(type, k) -> what a version k said, as version k + 1 says it. The data it is given stays as it is."""

OTHERS = "x-"
"""Types that begin so belong to others: kept in the ledger, counted, and without an effect."""


class Unknown(Exception):
    """A core event type or version this Hermes does not know: the ledger was written by a newer one."""

    def __init__(self, record: Record) -> None:
        super().__init__(
            f"event {record.seq} has type {record.type!r} (version {record.tv}), which this Hermes does not"
            " know; read this home with the version that wrote it, or a newer one"
        )


def current(record: Record) -> Record:
    """The record as it would be written today. Unknown if it was written by a newer Hermes."""
    known = VERSIONS.get(record.type, 1)
    if record.tv == known or record.type.startswith(OTHERS):
        return record
    if record.tv > known or record.type not in VOCABULARY:
        raise Unknown(record)
    data = record.data
    for version in range(record.tv, known):
        data = UPCASTERS[record.type, version](data)
    return record._replace(tv=known, data=data)


def as_current(records: Iterable[Record]) -> Iterator[Record]:
    """Each of `records` as it would be written today."""
    return map(current, records)


assert all((name, version) in UPCASTERS for name, known in VERSIONS.items() for version in range(1, known)), (
    "every version that was ever written can be read"
)
