"""Leases that others hold, as they come and go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ledger.record import Draft
from state.events import draft
from state.graph import Graph


class SeenLease(NamedTuple):
    """An unexpired lease file that is not ours.

    `expires_boot_ms` counts on CLOCK_BOOTTIME; 0: it has no end of its own. `note` is what people should know of it.
    """

    key: str
    holder: str
    expires_boot_ms: int
    note: str


def changes(graph: Graph, seen: Iterable[SeenLease], boot_ms: int) -> list[Draft]:
    """Events for what has changed since the graph was last told.

    A holder renews its lease again and again: that is news only once the end the graph knows has passed.
    """
    now = {lease.key: lease for lease in seen}
    drafts = []
    for key, lease in sorted(now.items()):
        known = graph.leases.get(key)
        if known is not None and not known.foreign:
            continue  # Ours by an earlier grant: the file of another cannot have been taken while we held it.
        if known is None or known.holder != lease.holder or 0 < known.expires_boot_ms <= boot_ms:
            drafts.append(draft("lease.seen", f"lease/{key}", lease._asdict()))
    for key, lease_node in sorted(graph.leases.items()):
        if lease_node.foreign and key not in now:
            why = "expired" if 0 < lease_node.expires_boot_ms <= boot_ms else "released"
            data = {"key": key, "holder": lease_node.holder, "why": why}
            drafts.append(draft("lease.released", f"lease/{key}", data))
    return drafts
