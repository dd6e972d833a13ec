"""Leases that others hold, as they come and go.

While a daemon runs, or its machine goes on without it, the lease files of its runs keep others away. A power cut ends
all lease files, and others may have been there before the next daemon is: what a start then finds taken (key -> who) is
`taken` here. A run that had not begun waits for its lease again. One that had begun and goes on by steps is stopped:
a key has one holder. A process of its own has died with the machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ledger.record import Draft
from policies.reaction import shielded, stopping
from state.events import draft
from state.graph import Graph, Run, is_container

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
    """Those that had been granted their leases and had not begun: run -> key."""
    return {
        run.name: key
        for run in graph.active.values()
        if (key := next((key for key in run.leases if key in taken), "")) and not _begun(run)
    }


def deprived(graph: Graph, taken: Mapping[str, str]) -> list[Draft]:
    """The order to stop for each that had begun and would go on by steps, and for such steps as nobody knows to have
    begun. The others end as their reports say, or are stopped with their run."""
    stops = []
    for run in graph.active.values():
        key = next((key for key in run.leases if key in taken), "")
        if key and is_container(run.spec) and _begun(run) and run.state == "running":
            stops.append(stopping(run, "lease", "hermesd", key=key, holder=taken[key]))
            granted = [step for step in graph.below(run) if step.state == "granted" and not shielded(step)]
            stops += [stopping(step, "parent", "hermesd") for step in granted]
    return stops


def _begun(run: Run) -> bool:
    return bool(run.children) if is_container(run.spec) else run.state != "granted"


def changes(graph: Graph, seen: Iterable[SeenLease], boot_ms: int) -> list[Draft]:
    """Events for what has changed since the graph was last told.

    A holder renews its lease again and again: that is news only once the end the graph knows has passed.
    """
    now = {lease.key: lease for lease in seen}
    drafts = []
    for key, lease in sorted(now.items()):
        known = graph.leases.get(key)
        if known is not None and not known.foreign:
            continue  # Ours by an earlier grant. If another has taken it, that is news once our run is over.
        if known is None or known.holder != lease.holder or 0 < known.expires_boot_ms <= boot_ms:
            drafts.append(draft("lease.seen", f"lease/{key}", lease._asdict()))
    for key, lease_node in sorted(graph.leases.items()):
        if lease_node.foreign and key not in now:
            why = "expired" if 0 < lease_node.expires_boot_ms <= boot_ms else "released"
            data = {"key": key, "holder": lease_node.holder, "why": why}
            drafts.append(draft("lease.released", f"lease/{key}", data))
    return drafts
