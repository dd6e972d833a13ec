"""Files that arrive for a job: which are there, and which of them still wait for their decision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from state.graph import Arrivals

Json = Any


def stamp(size_bytes: int, mtime_ns: int, inode: int) -> str:
    """What tells a file that was written again from the one before."""
    return f"{size_bytes}-{mtime_ns}-{inode}"


def none_yet(job: str) -> Arrivals:
    return Arrivals(f"arrivals/{job}", job, {}, (), (), "")


def arrived(known: Arrivals, files: Iterable[Mapping[str, Json]], at_ms: int, seq: int) -> Arrivals:
    """One that came again before its turn is wanted as it is now: the earlier arrival needs no run any more."""
    stamps = {file["path"]: stamp(file["size_bytes"], file["mtime_ns"], file["inode"]) for file in files}
    known = _lost(known, stamps, "rewritten")
    new = tuple((path, written, at_ms, seq) for path, written in stamps.items())
    return known._replace(seen={**known.seen, **stamps}, pending=(*known.pending, *new))


def gone(known: Arrivals, paths: Iterable[str]) -> Arrivals:
    names = frozenset(paths)
    seen = {path: written for path, written in known.seen.items() if path not in names}
    return _lost(known, names, "gone")._replace(seen=seen)


def unwanted(known: Arrivals) -> Arrivals:
    """The job was removed, or starts by another schedule now."""
    return _lost(known, known.seen, "removed")._replace(seen={}, problem="")


def answered(known: Arrivals, file: str, lost: str) -> tuple[Arrivals, int]:
    """A decision has been made: about the file, or about all that are lost in the same way. And about how many."""
    if lost:
        left = tuple(one for one in known.lost if one[4] != lost)
        return known._replace(lost=left), len(known.lost) - len(left)
    place = next((place for place, one in enumerate(known.pending) if one[0] == file), None)
    if place is None:
        return known, 0
    return known._replace(pending=known.pending[:place] + known.pending[place + 1 :]), 1


def _lost(known: Arrivals, names: Mapping[str, str] | frozenset[str], why: str) -> Arrivals:
    lost = tuple((*one, why) for one in known.pending if one[0] in names)
    if not lost:
        return known
    return known._replace(pending=tuple(one for one in known.pending if one[0] not in names), lost=known.lost + lost)
