"""How repositories, remotes, leases, dependencies and lanes hang together: the order, the cycles, and a digest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from policies.dependency import depths, loops

Json = Any


def digest(value: Json) -> str:
    """The first 128 bits of SHA-256 over the canonical form, as hex."""
    return sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


class Layers(NamedTuple):
    depth: dict[str, int]
    """How many repositories stand, one after another, before each. Those on a cycle come behind all others, and behind
    them those that wait for them, each behind what it depends on."""
    cycles: dict[str, list[str]]
    """Repository on a cycle -> the way from it back to it, each depending on the next."""
    behind: frozenset[str]
    """Those that depend, through others, on a cycle, and are on none."""


def layers(depends_on: Mapping[str, Iterable[str]]) -> Layers:
    found = depths(depends_on)
    if len(found) == len(depends_on):
        return Layers(found, {}, frozenset())
    cycles = loops(depends_on)
    last = 1 + max(found.values(), default=-1)
    behind = {name: depends_on[name] for name in sorted(depends_on) if name not in found and name not in cycles}
    after = {name: last + 1 + depth for name, depth in depths(behind).items()}
    return Layers(found | dict.fromkeys(cycles, last) | after, cycles, frozenset(behind))


def endpoint(url: str) -> str:
    """What an address shares with others: its host, with user and port left out; "local" for a path."""
    scheme, separator, rest = url.partition("://")
    if separator:
        if scheme == "file":
            return "local"
        host = rest.partition("/")[0].rpartition("@")[2]
        if host.startswith("["):
            return host.partition("]")[0] + "]"
        return host.partition(":")[0].lower() or "local"
    head, separator, _ = url.partition(":")
    return head.rpartition("@")[2].lower() if separator and "/" not in head else "local"


class Drawing(NamedTuple):
    """A graph of names, each edge with its kind; both sorted."""

    nodes: list[tuple[str, str]]
    """Id, and kind: repository, remote, lease, lane."""
    edges: list[tuple[str, str, str]]
    """From, kind, to."""


def draw(repos: Iterable[Mapping[str, Json]], planned: Mapping[str, Mapping[str, Json]]) -> Drawing:
    """`repos` as the job's spec has them; `planned` by key, as the plan has them, or nothing before there is one."""
    nodes: set[tuple[str, str]] = set()
    edges: set[tuple[str, str, str]] = set()
    for repo in repos:
        key = repo["key"]
        me = f"repository/{key}"
        nodes.add((me, "repository"))
        for other in repo["depends_on"]:
            edges.add((me, "depends-on", f"repository/{other}"))
        row = planned.get(key)
        for role in repo["remotes"]:
            remote = f"remote/{key}/{role}"
            nodes.add((remote, "remote"))
            edges.add((me, "fetches-from" if row is not None and row["role"] == role else "knows", remote))
        if row is not None and row["lane"] >= 0:
            lane, lease = f"lane/{row['lane']}", f"lease/repo:{key}"
            nodes |= {(lane, "lane"), (lease, "lease")}
            edges |= {(lane, "upgrades", me), (me, "reserves", lease)}
    return Drawing(sorted(nodes), sorted(edges))


def digest_of(repos: Iterable[Mapping[str, Json]], planned: Mapping[str, Mapping[str, Json]]) -> str:
    """Names the drawing: any node or edge that is another makes it another."""
    rows = []
    for repo in repos:
        row = planned.get(repo["key"], _NO_ROW)
        rows.append((repo["key"], sorted(repo["depends_on"]), sorted(repo["remotes"]), row["role"], row["lane"]))
    return digest(sorted(rows))


_NO_ROW = {"role": "", "lane": -1}


def mermaid(drawing: Drawing, notes: Mapping[str, str]) -> str:
    """The graph as Mermaid text. `notes`: a second line for a node, by id."""
    numbers = {name: f"n{number}" for number, (name, _) in enumerate(drawing.nodes)}
    lines = ["graph LR"]
    for name, kind in drawing.nodes:
        text = _mermaid(name.partition("/")[2] if kind == "repository" else name)
        note = f"<br>{_mermaid(notes[name])}" if notes.get(name) else ""
        left, right = {"repository": ("[", "]"), "remote": ("([", "])"), "lease": ("{{", "}}")}.get(kind, ("[[", "]]"))
        lines.append(f'  {numbers[name]}{left}"{text}{note}"{right}')
    for source, kind, target in drawing.edges:
        lines.append(f"  {numbers[source]} -->|{kind}| {numbers[target]}")
    return "\n".join(lines) + "\n"


def _mermaid(text: str) -> str:
    for letter, code in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;"), ("\n", " ")):
        text = text.replace(letter, code)
    return text
