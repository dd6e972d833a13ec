"""`hermesd redact`: what a run printed and kept is deleted; that it was, by whom and why, stays for good."""

from __future__ import annotations

from dataclasses import dataclass, field

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.cli.runs import ask, find
from daemon.reading import Reading
from ledger.index import Wanted


@dataclass(slots=True)
class _Left:
    """What the ledger says a run has left: the graph forgets old runs, the ledger does not."""

    known: bool = False
    runs: set[str] = field(default_factory=set)
    """Its steps."""
    digests: set[str] = field(default_factory=set)
    elsewhere: set[str] = field(default_factory=set)
    """Digests that other runs have named, too, and that were not redacted."""


def redact(call: Call, name: str, *, reason: str) -> None:
    if not reason.strip():
        raise Failure(Exit.BAD_INPUT, "a redaction has a reason", do="say why, with --reason; it is recorded")
    reading = call.reading
    left = _left(reading, name)
    if not left.known:
        name = find(reading, name).name
        left = _left(reading, name)
    args = {
        "run": name,
        "reason": reason,
        "known": True,
        "runs": sorted(left.runs),
        "digests": sorted(left.digests),
        "elsewhere": sorted(left.elsewhere & left.digests),
    }
    answer = ask(call, "redact", args, leave=True)
    if call.json:
        show.json(answer)
    elif "left" in answer:
        print(f"No daemon is running: the next one will redact {name} ({answer['left']}).")
    else:
        gone, shared = answer["digests"], answer["shared"]
        print(f"Redacted {name}: its folder and {show.count(len(gone), 'artifact')} are deleted.")
        for digest in shared:
            print(f"Artifact {digest} stays: another run has the same.")


def _left(reading: Reading, name: str) -> _Left:
    left = _Left()
    stored: list[tuple[str, str]] = []
    about = Wanted(type=lambda it: it == "plan.decided", subject=lambda it: it == f"run/{name}")
    for record, _ in reading.search(about):
        for decided in record.data["decisions"] if record.type == "plan.decided" else ():
            left.known = left.known or decided["run"] == name
            if decided.get("parent") == name:
                left.runs.add(decided["run"])
    for record, _ in reading.search(Wanted(type=lambda it: it == "artifact.stored")):
        if record.type == "artifact.stored":
            stored.append((record.data["run"], record.data["digest"]))
    own = {name, *left.runs}
    for run, digest in stored:
        if run in own:
            left.digests.add(digest)
        elif reading.graph.redacted(run) is None:
            left.elsewhere.add(digest)
    return left
