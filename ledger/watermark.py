"""A watermark: proof, kept outside the segments, that everything up to a seq had been durable.

HEAD says how far the writer had come when it last noted it; EPOCH, written durably before an epoch's first append, says
whose epoch it is and what it found. Each file is one line that carries its own hash, as a record does.
"""

from __future__ import annotations

from typing import NamedTuple

from ledger.disk import Disk
from ledger.record import FORMAT, Unsound, own_hash, with_own_hash

HEAD = "HEAD"
EPOCH = "EPOCH"


class Watermark(NamedTuple):
    ledger_id: str
    epoch: int
    seq: int
    hash: str


def encode(file: str, mark: Watermark) -> bytes:
    named = {"ledger": mark.ledger_id, "epoch": mark.epoch, "seq": mark.seq, "hash": mark.hash}
    return with_own_hash({"v": FORMAT, "file": file, **named})


def decode(file: str, data: bytes) -> Watermark:
    """Unsound if it is not exactly what `encode` writes."""
    try:
        fields = own_hash(data)
        mark = Watermark(fields["ledger"], fields["epoch"], fields["seq"], fields["hash"])
        sound = encode(file, mark) == data
    except (Unsound, KeyError, TypeError):
        sound = False
    if data.startswith(b'{"v":1,'):
        raise Unsound(f"{file} is of format 1; this program reads format {FORMAT}")
    if not sound:
        raise Unsound(f"{file} is not the one line, with a hash that matches, that it must be")
    return mark


def read(disk: Disk, folder: str, file: str) -> Watermark | None:
    """None if there is no such file; Unsound if it is damaged."""
    path = f"{folder}/{file}"
    return decode(file, disk.read(path)) if disk.exists(path) else None
