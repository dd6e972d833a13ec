"""Every state that a crash can leave, operation by operation: a disk that is watched, and its crash model, enumerated.

`SimDisk.crash` chooses by chance; here the same model is asked for each of its choices. What one file can become is
multiplied with what the others can, and with each name that was not synced being there or not; where that is more than
a bound, an even share of it is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import prod
from random import Random
from typing import Any, NamedTuple

from simulations.disk import SimDisk, _File

STATES_MAX = 24
"""Of one moment."""
Files = dict[str, bytes | None]
"""What a crash left: paths and contents; None is a folder."""


class Moment(NamedTuple):
    """Just before an operation, or when all is over (then `operation` is "")."""

    operation: str
    acknowledged: int
    states: tuple[Files, ...]


class WatchedDisk(SimDisk):
    """Notes, before each operation, what a crash there would leave. `acknowledged` is the work's to count up."""

    def __init__(self, files: Files | None = None, states_max: int = STATES_MAX) -> None:
        super().__init__(0)
        self.acknowledged = 0
        self.moments: list[Moment] = []
        self.watching = True
        self._states_max = states_max
        for path, data in (files or {}).items():
            self._shown[path] = None if data is None else _File(bytearray(data), bytearray(data))
        self._held = dict(self._shown)

    def note(self, operation: str = "") -> None:
        if self.watching:
            self.moments.append(Moment(operation, self.acknowledged, tuple(self._states())))

    def _before(self, verb: str, path: str) -> None:
        self.note(f"{verb} {path}")
        super()._before(verb, path)

    def _states(self) -> Iterator[Files]:
        names = sorted({*self._shown, *self._held})
        unsure = [name for name in names if self._place(self._shown, name) is not self._place(self._held, name)]
        files = {id(file): file for source in (self._shown, self._held) for file in source.values() if file}
        dirty = [file for file in files.values() if file.dirty_from is not None]
        contents = [_contents(file) for file in dirty]
        choices: list[Sequence[Any]] = [*[(self._shown, self._held)] * len(unsure), *contents]
        for chosen in _share(choices, self._states_max):
            source = dict(zip(unsure, chosen, strict=False))
            held = dict(zip(map(id, dirty), chosen[len(unsure) :], strict=True))
            left: Files = {}
            for name in names:
                place = source.get(name, self._shown)
                folder = name.rpartition("/")[0]
                if name in place and (not folder or folder in left):
                    file = place[name]
                    left[name] = None if file is None else held.get(id(file), bytes(file.device))
            yield left

    @staticmethod
    def _place(source: dict[str, _File | None], name: str) -> object:
        return source.get(name, "none")


class _Script(Random):
    """Answers what it is told to, and notes how many answers there were to each question."""

    def __init__(self) -> None:
        super().__init__(0)
        self.answers: list[int] = []
        self._widths: list[int] = []
        self._asked = 0

    def again(self) -> bool:
        """Other answers than before; False if all have been given."""
        self._asked = 0
        while self.answers:
            self.answers[-1] += 1
            if self.answers[-1] < self._widths[len(self.answers) - 1]:
                del self._widths[len(self.answers) :]
                return True
            self.answers.pop()
        return False

    def _answer(self, width: int) -> int:
        if self._asked == len(self.answers):
            self.answers.append(0)
            self._widths.append(width)
        self._asked += 1
        return self.answers[self._asked - 1]

    def random(self) -> float:
        return (0.0, 0.9)[self._answer(2)]

    def randint(self, a: int, b: int) -> int:
        points = sorted({a, b, (a + b) // 2, min(b, a + 1), max(a, b - 1)})
        return points[self._answer(len(points))]

    def choice(self, seq: Any) -> Any:
        return seq[self._answer(len(seq))]


def _contents(file: _File) -> list[bytes]:
    """What the device may have of a file that was not synced."""
    script, found = _Script(), dict[bytes, None]()
    assert file.dirty_from is not None
    while len(found) < 64:
        found[bytes(file._after_crash(file.dirty_from, script))] = None
        if not script.again():
            break
    return list(found)


def _share(choices: Sequence[Sequence[Any]], limit: int) -> Iterator[tuple[Any, ...]]:
    """All combinations, or an even share of them that has the first and the last."""
    total = prod(map(len, choices))
    if total <= limit:
        yield from product(*choices)
        return
    for number in range(limit):
        index = number * (total - 1) // (limit - 1)
        chosen = []
        for options in reversed(choices):
            index, place = divmod(index, len(options))
            chosen.append(options[place])
        yield tuple(reversed(chosen))


def crashes(
    work: Callable[[WatchedDisk], None], files: Files | None = None, states_max: int = STATES_MAX
) -> WatchedDisk:
    """Do the work on a disk that holds `files`; its moments tell what a crash would have left, each state once."""
    disk = WatchedDisk(files, states_max)
    work(disk)
    disk.note()
    seen: set[tuple[int, frozenset[tuple[str, bytes | None]]]] = set()
    for index, moment in enumerate(disk.moments):
        fresh = []
        for state in moment.states:
            key = (moment.acknowledged, frozenset(state.items()))
            if key not in seen:
                seen.add(key)
                fresh.append(state)
        disk.moments[index] = moment._replace(states=tuple(fresh))
    return disk
