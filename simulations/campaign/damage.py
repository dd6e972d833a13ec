"""The cases: every file of every shape cut short at every byte and followed by each kind of tail, and every byte of it
changed in three ways. Case n is the same today and tomorrow; neighbours have nothing to do with each other."""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import NamedTuple

from simulations.campaign.corpus import SHAPES, Whole, whole

TAILS = ("nothing", "garbage", "NULs", "half a record", "a record of another chain")
FLIPS = ("one bit", "0xFF", "a plausible character")
_WAYS = len(TAILS) + len(FLIPS)
_STRIDE = 2_654_435_761
_SWAPS = bytes.maketrans(
    b'0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"{}[],:\n -_./',
    b"1234567890bcdefahijklmnopqrstuvwxyzgBCDEFGHIJKLMNOPQRSTUVWXYZA'[]{}:, \n_-/.",
)


class Case(NamedTuple):
    whole: Whole
    path: str
    way: str
    at: int
    """The first byte that is different, or missing, or more."""
    data: bytes
    """What the file holds now."""

    def __str__(self) -> str:
        return f"{self.whole.shape}: {self.path} at byte {self.at} of {len(self.whole.files[self.path])}, {self.way}"


class _Round(NamedTuple):
    """The cases of one corpus. `starts`: the first case of each file."""

    starts: tuple[int, ...]
    files: tuple[tuple[str, str], ...]
    cases: int


@lru_cache(maxsize=4)
def _round(seed: int) -> _Round:
    starts, files, cases = [], [], 0
    for shape in SHAPES:
        for path, data in sorted(whole(shape, seed).files.items()):
            starts.append(cases)
            files.append((shape, path))
            cases += (len(data) + 1) * _WAYS
    return _Round(tuple(starts), tuple(files), cases)


def cases_in(seed: int) -> int:
    return _round(seed).cases


def case(number: int) -> Case | None:
    """None where a way changes nothing: no tail behind a whole file, a byte changed into itself, no byte there."""
    seed = 0
    while number >= cases_in(seed):
        number -= cases_in(seed)
        seed += 1
    chosen = _round(seed)
    stride = _STRIDE
    while gcd(stride, chosen.cases) != 1:
        stride += 2
    number = number * stride % chosen.cases
    index = _last_at_most(chosen.starts, number)
    shape, path = chosen.files[index]
    at, way = divmod(number - chosen.starts[index], _WAYS)
    return damaged(whole(shape, seed), path, at, way)


def damaged(intact: Whole, path: str, at: int, way: int) -> Case | None:
    data = intact.files[path]
    if way < len(TAILS):
        changed, name = data[:at] + _tail(intact, path, at, TAILS[way]), TAILS[way]
        while at < len(data) and data[at : at + 1] == changed[at : at + 1]:
            at += 1  # the tail happens to begin as what was there did
    else:
        name = FLIPS[way - len(TAILS)]
        if at == len(data):
            return None
        changed = data[:at] + bytes([_flipped(data[at], name, at)]) + data[at + 1 :]
    return None if changed == data else Case(intact, path, name, at, changed)


def _flipped(byte: int, way: str, at: int) -> int:
    if way == "one bit":
        return byte ^ 1 << at % 8
    return 0xFF if way == "0xFF" else _SWAPS[byte]


def _tail(intact: Whole, path: str, at: int, way: str) -> bytes:
    if way == "nothing":
        return b""
    if way == "garbage":
        return bytes((at * 37 + i * 91 + 13) % 255 + 1 for i in range(1 + at % 40)).replace(b"\n", b"?")
    if way == "NULs":
        return bytes(1 + at % 600)
    # The line of the other chain that has the place of the one that is cut here.
    ends = [line.end for line in intact.lines.get(path, ())]
    index = min(_last_at_most((0, *ends), at), len(intact.foreign) - 1)
    line = intact.foreign[index]
    return line if way == "a record of another chain" else line[: 1 + at % (len(line) - 1)]


def _last_at_most(ascending: tuple[int, ...], number: int) -> int:
    low, high = 0, len(ascending)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if ascending[middle] <= number else (low, middle)
    return low - 1
