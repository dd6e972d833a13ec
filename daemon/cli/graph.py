"""The graph for other programs: JSON, DOT (Graphviz) and Mermaid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from ledger.chain import Head
from state.graph import AnyNode, Graph, Job, Lease, Run, snapshot

Json = Any

FORMATS = ("json", "dot", "mermaid")


def snapshot_json(graph: Graph, head: Head) -> Json:
    shot = snapshot(graph, head)
    return {
        "head": head._asdict(),
        "nodes": [{"kind": type(node).__name__.lower(), **node._asdict()} for node in shot.nodes],
        "edges": [edge._asdict() for edge in shot.edges],
    }


def drawing(graph: Graph, head: Head, form: str) -> Iterator[str]:
    """Lines of DOT or Mermaid. A node that nothing hangs on is left out."""
    shot = snapshot(graph, head)
    named = {name for edge in shot.edges for name in (edge.source, edge.target)}
    numbers = {name: f"n{number}" for number, name in enumerate(sorted(named))}
    nodes = {node[0]: node for node in shot.nodes}
    yield f"digraph hermes {{  // at record {head.seq}" if form == "dot" else "graph LR"
    for name, short in numbers.items():
        text = _label(name, nodes.get(name))
        yield f"  {short} [label={_quoted(text)}];" if form == "dot" else f"  {short}[{_mermaid(text)}]"
    for edge in shot.edges:
        source, target = numbers[edge.source], numbers[edge.target]
        if form == "dot":
            yield f"  {source} -> {target} [label={_quoted(edge.kind)}];"
        else:
            yield f"  {source} -->|{edge.kind}| {target}"
    if form == "dot":
        yield "}"


def _label(name: str, node: AnyNode | None) -> str:
    match node:
        case Run():
            return f"{name}\n{node.state}"
        case Job(removed=True):
            return f"{name}\nremoved"
        case Lease():
            return f"{name}\n{node.holder}"
    return name


def _quoted(text: str) -> str:
    return orjson.dumps(text).decode()


def _mermaid(text: str) -> str:
    for letter, code in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;"), ("\n", "<br>")):
        text = text.replace(letter, code)
    return f'"{text}"'
