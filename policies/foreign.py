"""Leases that others hold, as they come and go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ledger.record import Draft
from state.events import draft
from state.graph import Graph, is_container

Json = Any


class SeenLease(NamedTuple):
    """An unexpired lease file that is not ours.

    `expires_boot_ms` counts on CLOCK_BOOTTIME; 0: it has no end of its own. `note` is what people should know of it.
    """

    key: str
    holder: str
    expires_boot_ms: int
    note: str


def may_be_refused(graph: Graph, decisions: Iterable[Mapping[str, Json]]) -> bool:
    """Whether a run begins by these whose steps would be planned next, and which may yet be refused a lease: nothing of
    it begins before its lease files are there."""
    begun = (graph.run(decided["run"]) for decided in decisions if decided["verdict"] == "started")
    return any(run is not None and run.leases and is_container(run.spec) for run in begun)


def refused(graph: Graph, taken: Mapping[str, str]) -> dict[str, str]:
    """Of the keys that others have `taken` (key -> who), those of runs that were granted just before a crash, and whose
    lease files were never there: run -> key. What has begun goes on."""
    found = {}
    for run in graph.active.values():
        begun = run.children if is_container(run.spec) else run.state != "granted"
        key = next((key for key in run.leases if key in taken), "")
        if key and not begun:
            found[run.name] = key
    return found


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
