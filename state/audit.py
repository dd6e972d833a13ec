"""The auditor: everything that is derived, held against what the ledger gives when it is read again from the start.

It trusts nothing that is kept: not the bytes (the verifier looks at each), not a snapshot, not a view. It changes
nothing. A view or a snapshot that other code made is not compared: that code may rightly have folded otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any, NamedTuple

from ledger.chain import Head
from ledger.disk import Disk
from ledger.errors import Corrupt
from ledger.reader import read
from ledger.record import GENESIS
from ledger.verify import verify
from state import snapshot, views
from state.graph import Graph
from state.projector import Impossible, Unknown, apply
from state.upcast import OTHERS

Json = Any

FINDINGS_TOLD = 50
_TEXT_MAX = 300


class Finding(NamedTuple):
    where: str
    what: str


class Audited(NamedTuple):
    head: Head
    """The last record that was folded."""
    records: int
    segments: int
    foreign: int
    """Records of types of others: kept, and without an effect."""
    compared: dict[str, int]
    """views, snapshots -> how many were compared byte for byte."""
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return not self.findings

    def told(self) -> dict[str, Json]:
        """For the `audit.finished` event, and for programs."""
        first = self.findings[:FINDINGS_TOLD]
        return {
            "seq": self.head.seq,
            "hash": self.head.hash,
            "ok": self.ok,
            "records": self.records,
            "segments": self.segments,
            "foreign": self.foreign,
            "compared": self.compared,
            "findings": [{"where": it.where[:_TEXT_MAX], "what": it.what[:_TEXT_MAX]} for it in first],
            "findings_in_all": len(self.findings),
        }


class _View(NamedTuple):
    file: str
    data: bytes
    head: Head | None
    """None if it does not say what it was made from."""


def audit(disk: Disk, code: str) -> Audited:
    """Read everything again. `code` is the digest of the source that folds and renders here."""
    # What is derived is read first: a writer that goes on meanwhile only ever replaces it by something newer.
    shown, kept = list(_views(disk)), snapshot.stored_in(disk)
    findings: list[Finding] = []
    compared = {"views": 0, "snapshots": 0}
    verified = verify(disk)
    findings += (Finding(it.file, f"damaged at byte {it.offset}: {it.reason}") for it in verified.damages)
    graph, head, foreign = Graph(), Head(0, GENESIS), 0
    waiting = {stored.seq for stored in kept} | {view.head.seq for view in shown if view.head is not None}
    findings += (Finding(view.file, "does not say which record it was made from") for view in shown if not view.head)
    try:
        for record in read(disk):
            graph.merge(apply(graph, record), record.seq)
            head = Head(record.seq, record.hash)
            foreign += record.type.startswith(OTHERS)
            if record.seq not in waiting:
                continue
            waiting.discard(record.seq)
            found = _compare_views(graph, head, [v for v in shown if v.head and v.head.seq == head.seq], code, compared)
            findings += found
            findings += _compare_snapshots(disk, graph, head, [s for s in kept if s.seq == head.seq], code, compared)
    except Corrupt as corrupt:
        if verified.ok:  # It was whole when it was verified, a moment ago.
            findings.append(Finding(corrupt.file, f"damaged at byte {corrupt.offset}: {corrupt.reason}"))
    except (Impossible, Unknown) as error:
        findings.append(Finding(f"record {head.seq + 1}", str(error)))
    else:
        ahead = [stored.path for stored in kept if stored.seq in waiting]
        ahead += [view.file for view in shown if view.head is not None and view.head.seq in waiting]
        findings += (Finding(path, f"is ahead of the ledger, which ends with record {head.seq}") for path in ahead)
    return Audited(head, verified.records, verified.segments, foreign, compared, tuple(findings))


def _views(disk: Disk) -> Iterator[_View]:
    for name in views.known():
        file = f"{views.FOLDER}/{views.file_of(name)}"
        if disk.exists(file):
            data = disk.read(file)
            yield _View(file, data, views.head_in(data))


def _compare_views(
    graph: Graph, head: Head, shown: list[_View], code: str, compared: dict[str, int]
) -> Iterator[Finding]:
    if not shown or graph.here.code != code:
        return
    rendered = views.render(graph, head)
    for view in shown:
        compared["views"] += 1
        if view.head != head:
            yield Finding(view.file, f"names another record as {head.seq} than the ledger has")
        elif rendered.get(view.file.rpartition("/")[2]) != view.data:
            yield Finding(view.file, f"is not what the records up to {head.seq} give")


def _compare_snapshots(
    disk: Disk, graph: Graph, head: Head, kept: list[snapshot.Stored], code: str, compared: dict[str, int]
) -> Iterator[Finding]:
    for stored in kept:
        try:
            data = disk.read(stored.path)
        except FileNotFoundError:  # replaced by a newer one
            continue
        if sha256(data).hexdigest()[:32] != stored.digest:
            compared["snapshots"] += 1
            yield Finding(stored.path, "its bytes are not those it was named by; it is not used, and may be deleted")
        elif (found := snapshot.decode(data, code)) is not None:
            compared["snapshots"] += 1
            if found.head != head:
                yield Finding(stored.path, f"names another record as {head.seq} than the ledger has")
            elif snapshot.encode(graph, head, code) != data:
                yield Finding(stored.path, f"is not what the records up to {head.seq} give")
