"""`hermesd upgrade graph`: repositories, what they depend on, and where they come from; as SVG, Mermaid or JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from policies.fault import meant
from policies.upgrade import topology
from state.graph import Graph

Json = Any

FORMATS = ("svg", "mermaid", "json")
_WIDE, _HIGH, _GAP_X, _GAP_Y, _EDGE = 190, 46, 90, 14, 24
_COLORS = {
    "upgraded": "#d5ecd4", "granted": "#d5ecd4", "unchanged": "#eef1f5", "held": "#fbe9c4", "deferred": "#fbe9c4",
    "blocked": "#f3c9c6", "rolled_back": "#f3c9c6", "failed": "#f3c9c6", "needs_person": "#f3c9c6", "": "#ffffff",
}  # fmt: skip


def graph(call: Call, job: str, form: str) -> int:
    """As of the latest plan of the job; of a job that never ran, as its file has it."""
    if form not in FORMATS:
        raise Failure(Exit.BAD_INPUT, f"{form!r} is no form", do=meant(form, FORMATS, f"one of {', '.join(FORMATS)}"))
    known = call.reading.graph
    name = _job(known, job)
    spec = known.jobs[name].spec
    upgrade = next((one for one in known.upgrades.values() if one.job == name), None)
    rows = {row["key"]: row for row in upgrade.plan.get("repos", ())} if upgrade is not None else {}
    settled = {key: data["outcome"] for key, data in upgrade.settled.items()} if upgrade is not None else {}
    drawing = topology.draw(spec["repos"], rows)
    states = {repo["key"]: settled.get(repo["key"]) or rows.get(repo["key"], {}).get("verdict", "")
              for repo in spec["repos"]}  # fmt: skip
    if form == "mermaid":
        notes = {f"repository/{key}": state.replace("_", " ") for key, state in states.items()}
        print(topology.mermaid(drawing, notes), end="")
    elif form == "json":
        show.json(
            {"job": name, "run": upgrade.run if upgrade is not None else "", "nodes": [
                {"id": node, "kind": kind} for node, kind in drawing.nodes
            ], "edges": drawing.edges, "states": states, "digest": topology.digest_of(spec["repos"], rows)}
        )  # fmt: skip
    else:
        title = f"{name}: {upgrade.run}" if upgrade is not None else name
        print(svg(title, spec["repos"], rows, states), end="")
    return Exit.FINE


def _job(known: Graph, job: str) -> str:
    jobs = known.jobs.items()
    names = sorted(name for name, one in jobs if one.spec.get("kind") == "upgrade" and not one.removed)
    if job in names:
        return job
    if job:
        raise Failure(Exit.UNKNOWN, f"there is no upgrade job {job!r}", do=meant(job, names, _names(names)))
    if len(names) != 1:
        raise Failure(
            Exit.UNKNOWN, "which job is meant?" if names else "no job upgrades repositories", do=_names(names)
        )
    return names[0]


def _names(names: list[str]) -> str:
    return f"the jobs are {', '.join(names)}" if names else "write one of kind: upgrade (docs/upgrades.md)"


def svg(
    title: str, repos: list[Mapping[str, Json]], rows: Mapping[str, Mapping[str, Json]], states: Mapping[str, str]
) -> str:
    """A picture that stands alone: a column for each depth, an arrow from each repository to what it depends on."""
    layers = topology.layers({repo["key"]: repo["depends_on"] for repo in repos})
    columns: dict[int, list[str]] = {}
    for key in sorted(layers.depth, key=lambda key: (layers.depth[key], key)):
        columns.setdefault(layers.depth[key], []).append(key)
    places: dict[str, tuple[int, int]] = {}
    for number, depth in enumerate(sorted(columns)):
        for row, key in enumerate(columns[depth]):
            places[key] = (_EDGE + number * (_WIDE + _GAP_X), 2 * _EDGE + row * (_HIGH + _GAP_Y))
    wide = max((x for x, _ in places.values()), default=0) + _WIDE + _EDGE
    high = max((y for _, y in places.values()), default=0) + _HIGH + _EDGE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}" '
        f'font-family="sans-serif" font-size="11">',
        f"<title>{escape(title)}</title>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#667"/></marker></defs>',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_EDGE}" y="20" font-size="14">{escape(title)}</text>',
    ]
    for repo in repos:
        parts += _arrows(repo["key"], repo["depends_on"], places, set(layers.cycles))
    for repo in repos:
        parts += _box(repo, rows.get(repo["key"], {}), states.get(repo["key"], ""), places[repo["key"]])
    return "\n".join([*parts, "</svg>\n"])


def _arrows(
    key: str, depends_on: list[str], places: Mapping[str, tuple[int, int]], circular: set[str]
) -> Iterator[str]:
    x, y = places[key]
    for other in depends_on:
        to_x, to_y = places[other]
        color = "#d64541" if {key, other} <= circular else "#667"
        if to_x < x:
            start, end, bend = (x, y + _HIGH // 2), (to_x + _WIDE, to_y + _HIGH // 2), _GAP_X // 2
            curve = f"C{start[0] - bend},{start[1]} {end[0] + bend},{end[1]} {end[0]},{end[1]}"
        else:  # In one column, as on a cycle: around the right side.
            start, end = (x + _WIDE, y + _HIGH // 3), (to_x + _WIDE, to_y + 2 * _HIGH // 3)
            curve = f"C{start[0] + 50},{start[1]} {end[0] + 50},{end[1]} {end[0]},{end[1]}"
        path = f"M{start[0]},{start[1]} {curve}"
        yield f'<path d="{path}" fill="none" stroke="{color}" marker-end="url(#arrow)"/>'


def _box(repo: Mapping[str, Json], row: Mapping[str, Json], state: str, place: tuple[int, int]) -> Iterator[str]:
    x, y = place
    chosen = row.get("role", "")
    others = [role for role in repo["remotes"] if role != chosen]
    remotes = " ".join(filter(None, (chosen, f"({', '.join(others)})" if others else "")))
    told = state.replace("_", " ") + (f", risk {row['risk']:.2f}" if row.get("risk") else "")
    yield (
        f'<g><title>{escape(str(row.get("reason", "")))}</title><rect x="{x}" y="{y}" width="{_WIDE}" height="{_HIGH}" '
        f'rx="5" fill="{_COLORS.get(state, "#ffffff")}" stroke="#99a"/>'
        f'<text x="{x + 8}" y="{y + 15}" font-weight="bold">{escape(_short(repo["key"]))}</text>'
        f'<text x="{x + 8}" y="{y + 28}">{escape(_short(told))}</text>'
        f'<text x="{x + 8}" y="{y + 40}" fill="#667">{escape(_short(remotes))}</text></g>'
    )


def _short(text: str) -> str:
    return text if len(text) <= 30 else f"{text[:29]}…"
