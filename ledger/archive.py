"""The archive: sealed segments compressed where they lie, and read where they lie."""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

from ledger import frames, seal
from ledger.disk import Disk, write_atomically
from ledger.errors import Corrupt
from ledger.ledger import ARCHIVING
from ledger.reader import FOLDER, repairs
from ledger.record import Unsound
from ledger.seal import Seal
from ledger.segment import ARCHIVE, segments_in

KEEP = 4
"""Sealed segments that stay as they are unless told otherwise: what is read most."""


class Archived(NamedTuple):
    """A segment that was compressed. `name` is the archive's."""

    name: str
    bytes: int
    packed_bytes: int


def archive(disk: Disk, *, keep: int = KEEP, folder: str = FOLDER) -> list[Archived]:
    """Compress all sealed segments but the newest `keep`. A daemon may be writing meanwhile, and others reading.

    A segment is removed only when its archive has been read back from the device and is the same. Locked if somebody
    else is at it; Corrupt, with nothing removed, if a segment is not as it was sealed.
    """
    sealed = []
    lock = disk.lock(f"{folder}/{ARCHIVING}")
    try:
        for segment in segments_in(disk.list(folder)):
            try:
                found = seal.read(disk, folder, segment)
            except Unsound as unsound:
                raise Corrupt(f"{folder}/{segment.seal_name}", 0, str(unsound), advice=_VERIFY) from None
            if found is not None and disk.exists(f"{folder}/{segment.name}"):
                sealed.append(found)
        return [_archived(disk, folder, one) for one in sealed[: max(0, len(sealed) - keep)]]
    finally:
        lock.release()


_VERIFY = "nothing was removed; `hermesd verify` says more"


def _archived(disk: Disk, folder: str, sealed: Seal) -> Archived:
    path = f"{folder}/{sealed.segment.name}"
    target = path + ARCHIVE
    data = disk.read(path)
    if len(data) != sealed.size_bytes or sha256(data).hexdigest() != sealed.sha256:
        advice = repairs(path, sealed.first_seq - 1)
        raise Corrupt(path, 0, "its bytes are not those that its seal names", advice=advice)
    packed = frames.pack(data)
    _compare(packed, data, target)
    write_atomically(disk, target, packed, durable=True)
    disk.drop_cache(target)
    _compare(disk.read(target), data, target)
    disk.set_read_only(target, read_only=True)
    disk.remove(path)
    disk.sync_folder(folder)
    return Archived(sealed.segment.name + ARCHIVE, len(data), len(packed))


def _compare(packed: bytes, data: bytes, target: str) -> None:
    try:
        same = frames.unpack(packed) == data
    except Unsound:
        same = False
    if not same:
        raise Corrupt(target, 0, "the archive just made does not give back the segment", advice=_VERIFY)
