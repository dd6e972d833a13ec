"""The manifest: the seal of every segment, one line each, chained by hash, each with one root for all up to it.

Its n-th line is about segment n. It says nothing that the seals do not, so a line that a crash has torn is written
again; but with one line of it kept elsewhere, nobody can take a sealed segment away, or change one, unseen.
"""

from __future__ import annotations

from typing import NamedTuple

from orjson import dumps

from ledger import merkle, seal
from ledger.disk import Disk, write_atomically
from ledger.record import FORMAT, GENESIS, HASH_LENGTH, Unsound, own_hash, with_own_hash
from ledger.seal import Seal
from ledger.segment import segments_in

MANIFEST = "MANIFEST.jsonl"


class Entry(NamedTuple):
    """One line. `root` is that of the Merkle tree over the seals' lines (no newlines) up to this one's."""

    seal: Seal
    root: str
    hash: str
    line: bytes
    """As it stands, newline included."""


class Manifest(NamedTuple):
    entries: tuple[Entry, ...]
    """The sound ones from the first on."""
    tree: merkle.Tree
    good_bytes: int
    why: str
    """What is wrong behind those; "" if nothing is there."""
    torn: bool
    """What is wrong is only that the last line is not there as a whole."""
    beyond: tuple[Seal, ...]
    """In lines behind the damage that vouch for themselves."""

    @property
    def head(self) -> str:
        return self.entries[-1].hash if self.entries else GENESIS

    def followed_by(self, sealed: Seal) -> Manifest:
        """With one more line. Unsound if `sealed` is not that of the next segment."""
        if sealed.number != len(self.entries) + 1:
            raise Unsound(f"it seals segment {sealed.number}; {len(self.entries) + 1} must come next")
        tree = self.tree.followed_by(merkle.leaf(sealed.line()[:-1]))
        root = tree.root.hex()
        fields = {"v": FORMAT, "file": "MANIFEST", "seal": own_hash(sealed.line()), "root": root, "p": self.head}
        line = with_own_hash(fields)
        entry = Entry(sealed, root, line[-3 - HASH_LENGTH : -3].decode(), line)
        return Manifest((*self.entries, entry), tree, self.good_bytes + len(line), "", False, ())


def parse(data: bytes) -> Manifest:
    entries: list[Entry] = []
    tree = merkle.Tree()
    good, why, beyond = 0, "", []
    *lines, rest = data.split(b"\n")
    for line in lines:
        try:
            entry = entry_of(line + b"\n")
        except Unsound as unsound:
            why = why or str(unsound)
            continue
        if why:
            beyond.append(entry.seal)
            continue
        follower = tree.followed_by(merkle.leaf(entry.seal.line()[:-1]))
        previous = entries[-1].hash if entries else GENESIS
        if entry.seal.number != follower.size:
            why = f"the line is about segment {entry.seal.number}; {follower.size} must come next"
        elif own_hash(entry.line)["p"] != previous:
            why = "the line does not name the one before it as its predecessor"
        elif entry.root != follower.root.hex():
            why = "the line's root is not that of the seals up to it"
        if why:
            beyond.append(entry.seal)
            continue
        entries.append(entry)
        tree = follower
        good += len(entry.line)
    torn = bool(rest) and not why
    why = why or ("the last line is not complete" if rest else "")
    return Manifest(tuple(entries), tree, good, why, torn, tuple(beyond))


def entry_of(line: bytes) -> Entry:
    """Unsound if the line does not vouch for itself."""
    fields = own_hash(line)
    try:
        sealed = seal.decode(dumps(fields["seal"]) + b"\n")
        laid_out = {"v": FORMAT, "file": "MANIFEST", "seal": fields["seal"], "root": fields["root"], "p": fields["p"]}
        if with_own_hash(laid_out) != line:
            raise Unsound("the line is not laid out as one of a manifest")
        return Entry(sealed, fields["root"], fields["h"], line)
    except (KeyError, TypeError, AttributeError):
        raise Unsound("the line is not laid out as one of a manifest") from None


def read(disk: Disk, folder: str) -> Manifest:
    path = f"{folder}/{MANIFEST}"
    return parse(disk.read(path) if disk.exists(path) else b"")


def note(disk: Disk, folder: str, manifest: Manifest, sealed: Seal) -> Manifest:
    """Write down, durably, that a segment is sealed. What a crash leaves of the line is written again."""
    follower = manifest.followed_by(sealed)
    path = f"{folder}/{MANIFEST}"
    if manifest.entries and disk.exists(path) and disk.size(path) == manifest.good_bytes:
        file, line = disk.append(path), memoryview(follower.entries[-1].line)
        try:
            while line:
                line = line[file.write(bytes(line)) :]
            file.sync()
        finally:
            file.close()
    else:
        write_atomically(disk, path, b"".join(entry.line for entry in follower.entries), durable=True)
    return follower


def seals_in(disk: Disk, folder: str) -> dict[int, Seal]:
    """What is known of the sealed segments, by number: from the manifest, and from the seals it does not have yet. A
    damaged seal or line says nothing; recovery and the verifier speak of it."""
    found = read(disk, folder)
    seals = {sealed.number: sealed for sealed in (*found.beyond, *(entry.seal for entry in found.entries))}
    for segment in segments_in(disk.list(folder)):
        if segment.number in seals:
            continue
        try:
            sealed = seal.read(disk, folder, segment)
        except Unsound:
            continue
        if sealed is not None:
            seals[segment.number] = sealed
    return seals
