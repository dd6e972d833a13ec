"""A proof that a record is in the ledger: small, and checked without the ledger.

From the record's line up: a Merkle path to the root that its segment's seal names, a path from that seal to the root in
the manifest's last line. Whoever once kept that root (or any later one, with a newer proof) need trust nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from orjson import JSONEncodeError, dumps

from ledger import manifest, merkle, seal
from ledger.disk import Disk
from ledger.errors import Missing
from ledger.reader import FOLDER
from ledger.record import Record, Unsound, decode, own_hash
from ledger.segment import content, lines, segments_in

_KIND = "hermes ledger proof 2"


class Proven(NamedTuple):
    record: Record
    root: str
    """The manifest's, 64 hex digits: what the proof rests on."""
    segments: int
    """How many are sealed below it."""


def prove(disk: Disk, seq: int, folder: str = FOLDER) -> dict[str, Any]:
    """The proof of record `seq`, ready for JSON. Missing if there is no such record, or if its segment is still being
    written; Unsound if the segment is not as it was sealed."""
    noted = manifest.read(disk, folder)
    entry = next((e for e in noted.entries if e.seal.first_seq <= seq <= e.seal.last_seq), None)
    if entry is None:
        open_ = [s for s in segments_in(disk.list(folder)) if s.number > len(noted.entries)]
        if not open_ or seq < 1:
            raise Missing(f"there is no record {seq} here")
        last = max((decode(line).seq for _, line in lines(disk, f"{folder}/{open_[-1].name}")), default=0)
        if seq > last:
            raise Missing(f"there is no record {seq} here; the last one is {last}")
        raise Missing(
            f"record {seq} is in the segment that is being written; it can be proven once that is sealed, "
            "when the daemon starts next or the segment is full"
        )
    sealed = entry.seal
    data = content(disk, f"{folder}/{sealed.segment.name}", sealed.size_bytes)
    entries = data[:-1].split(b"\n")
    leaves = [merkle.leaf(line) for line in entries]
    if merkle.root(leaves).hex() != sealed.merkle:
        raise Unsound(f"{folder}/{sealed.segment.name} is not as it was sealed; `hermesd verify` says where")
    seals = [merkle.leaf(e.seal.line()[:-1]) for e in noted.entries]
    return {
        "proof": _KIND,
        "line": entries[seq - sealed.first_seq].decode(),
        "path": [node.hex() for node in merkle.path(leaves, seq - sealed.first_seq)],
        "seal": own_hash(sealed.line()),
        "seal_path": [node.hex() for node in merkle.path(seals, sealed.number - 1)],
        "manifest": own_hash(noted.entries[-1].line),
    }


def check(proof: Mapping[str, Any], root: str = "") -> Proven:
    """What the proof proves. Unsound if it proves nothing, or rests on another root than the one given."""
    try:
        if proof["proof"] != _KIND:
            raise Unsound(f"{proof['proof']!r} is no kind of proof that is known here")
        line = proof["line"].encode()
        record = decode(line)
        sealed = seal.decode(dumps(proof["seal"]) + b"\n")
        path = [bytes.fromhex(node) for node in proof["path"]]
        if (
            merkle.root_by(path, merkle.leaf(line), record.seq - sealed.first_seq, sealed.records).hex()
            != sealed.merkle
        ):
            raise Unsound("the record is not in the segment that the seal is about")
        entry = manifest.entry_of(dumps(proof["manifest"]) + b"\n")
        path = [bytes.fromhex(node) for node in proof["seal_path"]]
        leaf = merkle.leaf(sealed.line()[:-1])
        if merkle.root_by(path, leaf, sealed.number - 1, entry.seal.number).hex() != entry.root:
            raise Unsound("the seal is not in the manifest")
    except (KeyError, TypeError, ValueError, AttributeError, JSONEncodeError) as error:
        raise Unsound(f"this is no proof ({type(error).__name__}: {error})") from None
    if root and root != entry.root:
        raise Unsound(f"the proof rests on the root {entry.root}, not on {root}")
    return Proven(record, entry.root, entry.seal.number)
