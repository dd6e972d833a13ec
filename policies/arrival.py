"""Which events follow from a look at the files that a job waits for: what has arrived, what is gone, what hides.

A file has arrived once nothing has changed in it for the job's `settle`: by its mtime, or where that lies in the future
by two looks so far apart. What was there when the job was defined has arrived, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from ledger.instant import Now
from ledger.record import Draft
from policies.schedule import Files
from state.arrivals import none_yet
from state.events import draft
from state.graph import Graph

Json = Any

FILES_MAX = 100_000
"""What one job may have there at a time. Beyond, nothing arrives until some are gone."""
EVENT_BYTES_MAX = 100_000
"""What the files of one event may take up, which has to fit in a line of the ledger."""
AT_ONCE = 500
"""So many arrivals are recorded together; the rest of a look follows at once."""


class Look(NamedTuple):
    """What one look at the disk has found, for one job."""

    job: str
    wanted: Files
    at: Now
    """Before the first file was looked at."""
    files: Mapping[str, str]
    """Path -> `state.arrivals.stamp`."""
    unread: tuple[str, ...]
    """Folders that could not be read: nobody knows what is in there. "/" if the look was broken off."""
    problem: str
    """What a person should know: why files are not seen. "" if all are."""


Unsettled = Mapping[str, tuple[str, int]]
"""Path -> its stamp, and since when (CLOCK_BOOTTIME, ms) it has been that."""


class News(NamedTuple):
    events: list[Draft]
    unsettled: Unsettled
    """What to give with the next look."""
    settles_boot_ms: int | None
    """When the first of those will have settled, if it stays as it is."""
    more: bool
    """There is more in this look than is recorded together: ask again once these events are in the graph."""


def news(graph: Graph, look: Look, before: Unsettled) -> News:
    known = graph.arrivals.get(look.job) or none_yet(look.job)
    settle_ms, at = look.wanted.settle_ms, look.at
    arrived: list[tuple[int, str, Json]] = []
    unsettled: dict[str, tuple[str, int]] = {}
    settles: list[int] = []
    for path, stamp in look.files.items():
        if known.seen.get(path) == stamp:
            continue
        size, mtime_ns, inode = _read(stamp)
        since_ms = at.boot_ms
        if path in before and before[path][0] == stamp:
            since_ms = before[path][1]
        age_ms = at.wall_ms - mtime_ns // 1_000_000
        left_ms = settle_ms - (age_ms if age_ms >= 0 else at.boot_ms - since_ms)
        if left_ms <= 0:
            arrived.append((mtime_ns, path, {"path": path, "size_bytes": size, "mtime_ns": mtime_ns, "inode": inode}))
        else:
            unsettled[path] = (stamp, since_ms)
            settles.append(at.boot_ms + left_ms)
    gone = [path for path in known.seen if path not in look.files and not _under(path, look.unread)]
    arrived.sort(key=lambda one: one[:2])
    # A file that is there already and was written again takes no more room than before.
    room = FILES_MAX - len(known.seen) + len(gone)
    wanted: list[Json] = []
    for _, path, file in arrived:
        if path not in known.seen:
            room -= 1
            if room < 0:
                continue
        wanted.append(file)
    problem = look.problem or (f"there are more than {FILES_MAX} files, and no more are taken up" if room < 0 else "")
    subject = f"job/{look.job}"
    events = [draft("files.gone", subject, {"job": look.job, "paths": some}) for some in _portions(gone)]
    events += [
        draft("files.arrived", subject, {"job": look.job, "files": some}) for some in _portions(wanted[:AT_ONCE])
    ]
    if problem != known.problem:
        events.append(draft("files.hidden", subject, {"job": look.job, "problem": problem}))
    return News(events, unsettled, min(settles, default=None), len(wanted) > AT_ONCE)


def _read(stamp: str) -> tuple[int, int, int]:
    front, _, inode = stamp.rpartition("-")
    size, _, mtime_ns = front.partition("-")
    return int(size), int(mtime_ns), int(inode)


def _under(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _portions(items: list[Json]) -> Iterator[list[Json]]:
    some: list[Json] = []
    room_bytes = EVENT_BYTES_MAX
    for item in items:
        room_bytes -= len(orjson.dumps(item))
        if room_bytes < 0 and some:
            yield some
            some, room_bytes = [], EVENT_BYTES_MAX - len(orjson.dumps(item))
        some.append(item)
    if some:
        yield some
