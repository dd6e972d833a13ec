"""Who waits for whom: names, each with the names it waits for. Used for jobs, and for the steps of an agent.

A name that is waited for but does not itself appear counts as waiting for nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

Before = Mapping[str, Iterable[str]]


def depths(before: Before) -> dict[str, int]:
    """How many names stand in the longest chain in front of each, shallowest first, then by name.

    Names on a cycle, or behind one, have no depth and are left out.
    """
    waits = {name: {other for other in others if other in before} for name, others in before.items()}
    behind: dict[str, list[str]] = {}
    for name, others in waits.items():
        for other in others:
            behind.setdefault(other, []).append(name)
    found: dict[str, int] = {}
    layer = sorted(name for name, others in waits.items() if not others)
    depth = 0
    while layer:
        found |= dict.fromkeys(layer, depth)
        following: set[str] = set()
        for name in layer:
            for next_name in behind.get(name, ()):
                waits[next_name].discard(name)
                if not waits[next_name]:
                    following.add(next_name)
        layer, depth = sorted(following), depth + 1
    return found


def loops(before: Before) -> dict[str, list[str]]:
    """For each name that waits for itself, sorted: the shortest path from it back to it, each waiting for the next."""
    shallow = depths(before)
    tangled = {
        name: sorted(other for other in others if other in before and other not in shallow)
        for name, others in sorted(before.items())
        if name not in shallow
    }
    return {name: path for name in tangled if (path := _way_back(tangled, name))}


def _way_back(before: Mapping[str, list[str]], start: str) -> list[str]:
    came_from: dict[str, str] = {}
    ahead = deque([start])
    while ahead:
        name = ahead.popleft()
        for other in before[name]:
            if other == start:
                path = [name]
                while path[-1] != start:
                    path.append(came_from[path[-1]])
                return [*reversed(path), start]
            if other not in came_from:
                came_from[other] = name
                ahead.append(other)
    return []
