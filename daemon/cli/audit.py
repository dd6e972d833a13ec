"""`hermesd audit`: the auditor in the foreground. The daemon runs the same by itself, at low priority."""

from __future__ import annotations

from daemon import control
from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.ledger import NOTHING_YET
from daemon.reading import replaying
from daemon.version import code_digest
from state.audit import Audited
from state.audit import audit as audited


def audit(call: Call) -> int:
    reading = call.reading
    untouched = reading.home.untouched()
    with reading.watched(), replaying():
        found = audited(reading.disk, code_digest())
    if untouched:
        found = found._replace(findings=())
    recorded = True
    try:
        control.call(call.home.path, "audit", found.told())
    except control.NotRunning:
        recorded = False
    if call.json:
        show.json(found.told() | {"recorded": recorded})
    elif untouched:
        print(NOTHING_YET)
    else:
        _print(found)
        if not recorded:
            print("No daemon is running, so that this is not recorded.")
    return Exit.FINE if found.ok else Exit.NO


def _print(found: Audited) -> None:
    compared = ", ".join(show.count(number, what.removesuffix("s")) for what, number in found.compared.items())
    segments = show.count(found.segments, "segment")
    print(f"{found.records} records in {segments} up to {found.head.seq} {found.head.hash}; {compared} compared.")
    for finding in found.findings:
        print(f"differs: {finding.where}: {finding.what}")
    if found.ok:
        print("ok: every byte is as it was written, and all that is derived is what follows from it")
