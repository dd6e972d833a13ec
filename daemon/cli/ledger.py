"""The ledger looked over: `verify` (every byte is as it was written) and `replay` (everything follows from it)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.cli.graph import FORMATS, drawing, snapshot_json
from daemon.reading import Reading
from daemon.system import OsDisk
from daemon.version import code_digest
from ledger import proof
from ledger.archive import archive as packed
from ledger.artifacts import Artifacts
from ledger.chain import Head
from ledger.errors import Corrupt, Missing
from ledger.record import Unsound
from ledger.verify import Damage
from ledger.verify import verify as verified
from policies.question import GROUPS
from policies.replay import Past, Verdict, decide_again, is_decision
from state.graph import Graph

Json = Any

NOTHING_YET = "No daemon has run here yet: there is no ledger to look at."


def verify(call: Call, *, artifacts: bool) -> int:
    reading = call.reading
    untouched = reading.home.untouched()
    with reading.watched():
        found = verified(reading.disk)
    damages = [] if untouched else list(found.damages)
    kept = 0
    if artifacts:
        for damage in _artifact_damages(reading):
            kept += 1
            if damage is not None:
                damages.append(damage)
    told = {
        "ok": not damages,
        "records": found.records,
        "segments": found.segments,
        "last": found.last._asdict(),
        "torn_bytes": found.torn_bytes,
        "artifacts": kept if artifacts else None,
    }
    if call.json:
        return _print_damages(call, told, damages)
    if untouched:
        print(NOTHING_YET)
        return Exit.FINE
    torn = f"; {found.torn_bytes} bytes behind the last batch are unfinished" if found.torn_bytes else ""
    named = f", {show.count(kept, 'artifact')}" if artifacts else ""
    segments = show.count(found.segments, "segment")
    print(f"{found.records} records in {segments}{named}{torn}. Head: {found.last.seq} {found.last.hash}")
    if not damages:
        print("ok")
    return _print_damages(call, told, damages)


def _print_damages(call: Call, told: dict[str, Json], damages: list[Damage]) -> int:
    if call.json:
        show.json(told | {"damages": [{"file": d.file, "offset": d.offset, "reason": d.reason} for d in damages]})
        return Exit.NO if damages else Exit.FINE
    for damage in damages:
        print(f"damaged: {damage.file} at byte {damage.offset}: {damage.reason}")
    if not damages:
        return Exit.FINE
    print("Keep a copy of the home first; then put back what a backup holds: `hermesd ledger restore BACKUP`.")
    return Exit.NO


def _artifact_damages(reading: Reading) -> Iterator[Damage | None]:
    """For each artifact that an event names: None, or what is wrong with it. Ends where the ledger is damaged: that is
    in the verifier's list already."""
    store = Artifacts(reading.disk)
    seen: set[str] = set()
    try:
        for record in reading.records():
            digest = record.data.get("digest", "") if record.type == "artifact.stored" else ""
            if not digest or digest in seen:
                continue
            seen.add(digest)
            try:
                store.get(digest)
            except Missing:
                if reading.graph.redacted(digest) is not None:
                    continue
                yield Damage(f"artifacts/{digest[:2]}/{digest}", 0, f"is missing; record {record.seq} names it")
            except Corrupt as corrupt:
                yield Damage(corrupt.file, corrupt.offset, f"{corrupt.reason}; record {record.seq} names it")
            else:
                yield None
    except Corrupt:
        return


def archive(call: Call, keep: int) -> int:
    call.home.check(write=True)
    archived = packed(OsDisk(call.home.path), keep=keep)
    before, after = sum(one.bytes for one in archived), sum(one.packed_bytes for one in archived)
    if call.json:
        show.json({"archived": [one._asdict() for one in archived], "bytes": before, "packed_bytes": after})
    elif archived:
        print(f"{show.count(len(archived), 'segment')} archived: {before} bytes became {after}.")
    else:
        print(f"Nothing to archive: there are no more than {keep} sealed segments that are not.")
    return Exit.FINE


def prove(call: Call, seq: int) -> int:
    """A proof is for programs, with --json and without."""
    try:
        show.json(proof.prove(call.reading.disk, seq))
    except Unsound as unsound:
        raise Failure(Exit.NO, str(unsound), do="`hermesd verify` says more") from None
    return Exit.FINE


def check_proof(call: Call, file: Path, root: str) -> int:
    try:
        given = orjson.loads(file.read_bytes())
        if not isinstance(given, dict):
            raise Unsound("a proof is a JSON object")
        proven = proof.check(given, root)
    except (Unsound, orjson.JSONDecodeError) as error:
        raise Failure(Exit.NO, f"it proves nothing: {error}", where=str(file)) from None
    record = proven.record
    if call.json:
        show.json({"ok": True, "record": record._asdict(), "root": proven.root, "sealed_segments": proven.segments})
        return Exit.FINE
    print(f"record {record.seq} ({record.type}, {record.subject}, {record.ts}) is in the ledger whose manifest")
    print(f"has, at {show.count(proven.segments, 'segment')}, the root {proven.root}")
    if not root:
        print("That this is the root of your ledger is for you to know: compare it, or give --root.")
    return Exit.FINE


def replay(call: Call, *, verify: bool, to: int | None, graph: bool, form: str) -> int:
    if form not in FORMATS:
        raise Failure(Exit.BAD_INPUT, f"there is no format {form!r}", do=f"there are {', '.join(FORMATS)}")
    past, plans, head = Past(), 0, Head(0, "")
    others, differing, code = 0, 0, code_digest()
    for record in call.reading.records(until=to):
        if verify and is_decision(record):
            plans += 1
            verdict = decide_again(past, record)
            others += verdict.code != code
            differing += not verdict.agrees
            # Another version of the planner may rightly decide otherwise: that is told, and is no damage.
            if not verdict.agrees and verdict.code == code:
                _print_difference(call, verdict, plans)
                return Exit.NO
        past.fold(record)
        head = Head(record.seq, record.hash)
    # What a fold never reads (HEAD, EPOCH, the end of the last line) must be sound too before the past is vouched for.
    if verify and not call.reading.home.untouched() and (damages := verified(call.reading.disk).damages):
        return _print_damages(call, {"ok": False}, list(damages))
    if graph and form == "json":
        show.json(snapshot_json(past.graph, head))
    elif graph:
        for line in drawing(past.graph, head, form):
            print(line)
    elif call.json:
        told = {"ok": True, "head": head._asdict(), "plans_verified": plans - differing if verify else None}
        told |= {"plans_by_other_code": others, "plans_other_code_decided_otherwise": differing}
        show.json(told | _counts(past.graph))
    else:
        counts = _counts(past.graph)
        among = f"{show.count(counts['jobs'], 'job')} and {show.count(counts['runs'], 'run')}"
        nodes = f"{show.count(counts['nodes'], 'node')}, among them {among}"
        print(f"{head.seq} records give {nodes}. Head: {head.hash}")
        if verify:
            print(f"ok: {plans - differing} plans, every decision hash follows from its recorded inputs")
            if others:
                print(
                    f"{others} of {plans} plans were decided by another version of the planner;"
                    f" {differing} of them would come out otherwise today"
                )
    return Exit.FINE


def _counts(graph: Graph) -> Json:
    runs = sum(1 for name in graph.nodes if name.startswith("run/"))
    return {"nodes": len(graph.nodes), "jobs": len(graph.jobs), "runs": runs}


def _print_difference(call: Call, verdict: Verdict, plans: int) -> None:
    missing = [one for one in verdict.recorded if one not in verdict.again]
    added = [one for one in verdict.again if one not in verdict.recorded]
    if call.json:
        show.json(
            {
                "ok": False,
                "seq": verdict.seq,
                "tick": verdict.tick,
                "recorded_hash": verdict.recorded_hash,
                "hash": verdict.hash,
                "differing_inputs": list(verdict.differing_inputs),
                "only_recorded": missing,
                "only_again": added,
            }
        )
        return
    same = [group for group in GROUPS if group not in verdict.differing_inputs]
    print(f"plan {verdict.tick} (record {verdict.seq}) does not follow from what is recorded before it")
    print(f"  {plans - 1} plans before it do")
    show.facts(
        [
            ("  recorded hash", verdict.recorded_hash),
            ("  hash again", verdict.hash),
            ("  inputs that differ", ", ".join(verdict.differing_inputs) or "none"),
            ("  inputs that agree", ", ".join(same) or "none"),
        ]
    )
    for sign, decisions in (("recorded", missing), ("again", added)):
        for one in decisions:
            print(f"  {sign:>8}: {one['run']} {one['verdict']} by {one['rule']}: {one['reason']}")
    if not missing and not added:
        print("  the decisions are the same; only the inputs were seen differently")
