"""What an event is about besides its subject, for the index of the ledger: the runs, slots and jobs that it names."""

from __future__ import annotations

from collections.abc import Iterator

from ledger.record import Record

RANGE = "range"
"""A decision about a range of slots, which names the first of them only."""


def mentions(record: Record) -> Iterator[str]:
    """Each as a subject would be written."""
    data = record.data
    for name in ("run", "job"):
        if isinstance(data.get(name), str):
            yield f"{name}/{data[name]}"
    if record.type == "plan.decided":
        for decided in data["decisions"]:
            yield f"run/{decided['run']}"
            yield f"job/{decided['job']}"
            yield f"slot/{decided['slot']}"
            if "parent" in decided:
                yield f"run/{decided['parent']}"
            if "until" in decided:
                yield RANGE
