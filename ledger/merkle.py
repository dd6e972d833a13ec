"""Merkle trees as RFC 6962 has them: one hash for a list, and a short path that proves one entry to be in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import NamedTuple

from ledger.record import Unsound

EMPTY = sha256().digest()


def leaf(entry: bytes) -> bytes:
    """The prefixes keep an entry from passing for an inner node."""
    return sha256(b"\0" + entry).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()


class Tree(NamedTuple):
    """A tree that grows: the roots of its whole subtrees, the largest first."""

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def followed_by(self, leaf: bytes) -> Tree:
        peaks, size = [*self.peaks, leaf], self.size
        while size & 1:
            right = peaks.pop()
            peaks[-1] = _node(peaks[-1], right)
            size >>= 1
        return Tree(self.size + 1, tuple(peaks))

    @property
    def root(self) -> bytes:
        if not self.peaks:
            return EMPTY
        found = self.peaks[-1]
        for peak in self.peaks[-2::-1]:
            found = _node(peak, found)
        return found


def root(leaves: Iterable[bytes]) -> bytes:
    level = list(leaves)
    if not level:
        return EMPTY
    while len(level) > 1:
        level = _above(level)
    return level[0]


def path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes beside the way from the leaf `index` up to the root."""
    beside, level = [], list(leaves)
    while len(level) > 1:
        if index ^ 1 < len(level):
            beside.append(level[index ^ 1])
        level, index = _above(level), index >> 1
    return beside


def root_by(path: Sequence[bytes], start: bytes, index: int, size: int) -> bytes:
    """The root of a tree of `size` leaves whose leaf `index` is `start`. Unsound if no such tree has such a path."""
    if not 0 <= index < size:
        raise Unsound(f"a tree of {size} leaves has no leaf {index}")
    last, found, rest = size - 1, start, list(path)
    while last:
        if index & 1 or index < last:
            if not rest:
                raise Unsound("the path is too short")
            beside = rest.pop(0)
            found = _node(beside, found) if index & 1 else _node(found, beside)
        index, last = index >> 1, last >> 1
    if rest:
        raise Unsound("the path is too long")
    return found


def _above(level: Sequence[bytes]) -> list[bytes]:
    above = [_node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    if len(level) & 1:
        above.append(level[-1])
    return above
