"""The ledger, read again in a process of its own before any repository is changed: its bytes, what is derived from it,
the last decisions, and the lease files."""

from __future__ import annotations

import shutil
from collections import deque
from pathlib import Path
from typing import Any

from daemon.home import Home
from daemon.leases import LeaseFolder, Me
from daemon.reading import replaying
from daemon.system import OsDisk, SystemClock
from daemon.version import code_digest
from ledger.reader import read
from policies.replay import Past, Verdict, decide_again, is_decision
from policies.upgrade.facts import unread
from state.audit import audit

Json = Any

FINDINGS_MAX = 20
DECISIONS_MAX = 20


def integrity(home: str) -> dict[str, Json]:
    """`policies.upgrade.facts.Integrity`. What cannot be read is a finding, and no error."""
    code, disk = code_digest(), OsDisk(home)
    free = shutil.disk_usage(home).free
    try:
        with replaying():
            audited = audit(disk, code)
            decisions = _decisions(disk, audited.head.seq, code) if audited.ok else []
    except Exception as error:  # Whatever it is: it is what the gate has to know.
        return {**unread(f"the ledger could not be read again: {error}"[:500]), "home_free_bytes": free}
    told = audited.told()
    differing = [verdict for verdict in decisions if not verdict.agrees]
    words = ""
    if not audited.ok:
        words = f"{audited.findings[0].where}: {audited.findings[0].what}"[:500]
    elif differing:
        words = f"decision {differing[0].seq} comes out otherwise when its question is put again"
    return {
        "ok": not words, "words": words, "seq": told["seq"], "hash": told["hash"], "records": told["records"],
        "segments": told["segments"], "compared": told["compared"], "findings": told["findings"][:FINDINGS_MAX],
        "findings_in_all": told["findings_in_all"],
        "decisions": [{"seq": one.seq, "hash": one.recorded_hash, "again": one.hash} for one in decisions],
        "decisions_compared": len(decisions), "decisions_differing": len(differing), "leases": _leases(home),
        "home_free_bytes": free,
    }  # fmt: skip


def _decisions(disk: OsDisk, until: int, code: str) -> list[Verdict]:
    """The last decisions that this very code has made, made again."""
    last = deque((record.seq for record in read(disk, until=until) if is_decision(record)), maxlen=DECISIONS_MAX)
    past, found = Past(), []
    for record in read(disk, until=until):
        if last and record.seq >= last[0] and is_decision(record) and past.graph.here.code == code:
            found.append(decide_again(past, record))
        past.fold(record)
    return found


def _leases(home: str) -> list[dict[str, Json]]:
    folder = LeaseFolder(Home(Path(home)).leases, SystemClock(), Me.here())
    return [
        {"key": held.key, "holder": held.holder, "token": held.token, "foreign": held.foreign, "expired": False}
        for held in folder.held()
    ]
