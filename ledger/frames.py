"""An archived segment: zstd frames of a bounded size, and a trailer that vouches for every byte of the file.

Any zstd program unpacks it. The frames are independent, so that a reader may begin at any of them. The trailer is a
frame that zstd skips: a line with its own hash, then that line's length in eight digits and a newline.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from hashlib import sha256
from itertools import accumulate
from typing import Any

from ledger.disk import Disk
from ledger.record import FORMAT, Unsound, own_hash, with_own_hash

try:
    from backports import zstd
except ModuleNotFoundError:  # it is in the standard library from Python 3.14 on, and not installed there
    from compression import zstd  # type: ignore[import-not-found, no-redef, unused-ignore]

FRAME_BYTES = 1 << 20
"""Of plain content in each frame, but for the last."""
_SKIPPED = 0x184D2A5E
_LEVEL = 9
_LENGTH_BYTES = 9


def pack(data: bytes) -> bytes:
    frames = [
        zstd.compress(data[at : at + FRAME_BYTES], options={zstd.CompressionParameter.compression_level: _LEVEL})
        for at in range(0, len(data), FRAME_BYTES)
    ]
    packed = b"".join(frames)
    fields = {"frame_bytes": FRAME_BYTES, "frames": [len(frame) for frame in frames], "bytes": len(data)}
    line = _trailer(fields | {"sha256": sha256(packed).hexdigest()})
    return packed + struct.pack("<II", _SKIPPED, len(line) + _LENGTH_BYTES) + line + b"%08d\n" % len(line)


def unpack(packed: bytes) -> bytes:
    """The plain content. Unsound unless every byte is as it was packed."""
    fields, line = _trailer_in(packed)
    end = sum(fields["frames"])
    behind = struct.pack("<II", _SKIPPED, len(line) + _LENGTH_BYTES) + line + b"%08d\n" % len(line)
    if packed[end:] != behind or sha256(packed[:end]).hexdigest() != fields["sha256"]:
        raise Unsound("the archive's bytes are not those that its trailer vouches for")
    starts = accumulate(fields["frames"], initial=0)
    plain = b"".join(_frame(packed[at : at + size]) for at, size in zip(starts, fields["frames"], strict=False))
    if len(plain) != fields["bytes"]:
        raise Unsound(f"the archive holds {len(plain)} bytes; its trailer says {fields['bytes']}")
    return plain


def plain_bytes(disk: Disk, path: str) -> int:
    """How long the content of the archive `path` is. Unsound if its trailer is damaged."""
    return int(_trailer_of(disk, path)["bytes"])


def chunks(disk: Disk, path: str, offset: int) -> Iterator[bytes]:
    """The content of the archive `path` from `offset`, frame by frame, without reading those before. Unsound if a frame
    or the trailer is damaged."""
    fields = _trailer_of(disk, path)
    first = offset // int(fields["frame_bytes"])
    at, skipped = sum(fields["frames"][:first]), offset - first * int(fields["frame_bytes"])
    for size in fields["frames"][first:]:
        yield _frame(disk.read(path, at, size))[skipped:]
        at, skipped = at + size, 0


def _frame(packed: bytes) -> bytes:
    try:
        return zstd.decompress(packed)
    except zstd.ZstdError as error:
        raise Unsound(f"the archive cannot be unpacked: {error}") from None


def _trailer(fields: dict[str, Any]) -> bytes:
    return with_own_hash({"v": FORMAT, "file": "archive", **fields})


def _trailer_of(disk: Disk, path: str) -> dict[str, Any]:
    size = disk.size(path)
    length = disk.read(path, max(0, size - _LENGTH_BYTES))
    behind = _LENGTH_BYTES + (int(length[:-1]) if length[:-1].isdigit() else 0)
    return _trailer_in(disk.read(path, max(0, size - behind)))[0]


def _trailer_in(packed: bytes) -> tuple[dict[str, Any], bytes]:
    length = packed[-_LENGTH_BYTES:]
    if not length[:-1].isdigit():
        raise Unsound("the archive has no trailer")
    line = packed[-_LENGTH_BYTES - int(length[:-1]) : -_LENGTH_BYTES]
    fields = own_hash(line)
    if line != _trailer({name: fields.get(name) for name in ("frame_bytes", "frames", "bytes", "sha256")}):
        raise Unsound("the archive's trailer is not laid out as it must be")
    return fields, line
