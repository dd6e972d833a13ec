"""What the events of engines, models and generations add up to.

They are told by gateways, each under a name of its own and with numbers that rise: what comes a second time changes
nothing (`told_already`), and what an engine of a gateway that has ended was doing is over.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from state.graph import Engine, Gateway, Graph, ServedModel

Json = Any

GATEWAYS_KEPT = 8


class Change(NamedTuple):
    put: tuple[Engine | Gateway | ServedModel, ...]
    drop: tuple[str, ...] = ()


def told_already(graph: Graph, by: str, number: int) -> bool:
    known = graph.gateways.get(by)
    return known is not None and number <= known.number


def follow(graph: Graph, type_: str, data: Json) -> Change:
    """What an event of `gateway.*`, `model.*`, `engine.*`, `breaker.*` or `generation.*` changes."""
    at, name = data["at"], data["by"]
    gateway = graph.gateways.get(name) or Gateway(f"gateway/{name}", name, 0, "running", 0, 0, at)
    gateway = gateway._replace(number=data["number"])
    if type_ in ("gateway.started", "gateway.stopped"):
        return _gateway(graph, gateway, type_, data)
    if type_ == "model.forgotten":
        return Change((gateway,), (f"model/{data['model']}",))
    model = _model(graph, data["model"])
    engine = graph.engines.get(data.get("engine", ""))
    match type_:
        case "model.registered":
            told = {"kind": data["kind"], "runtime": data["runtime"], "path": data["path"], "since": at}
            return Change((gateway, model._replace(**told, breaker={}, rung={})))
        case "engine.spawned":
            spawned = Engine(
                f"engine/{data['engine']}", data["engine"], name, data["model"], "loading", data["device"],
                data["runtime"], data["rung"], 0, at, "", {},
            )  # fmt: skip
            return Change((gateway, spawned, model._replace(loads=model.loads + 1)))
        case "engine.loaded":
            model = model._replace(facts=data["facts"])
            return Change(_with(gateway, model, engine, state="warming", pid=data["pid"], facts=data["facts"]))
        case "engine.warmed":
            return Change(_with(gateway, model, engine, state="serving", serving_at=at))
        case "engine.draining":
            return Change(_with(gateway, model, engine, state="draining"))
        case "engine.ended":
            ended = {"at": at, "why": data["why"], "words": data["words"], "engine": data["engine"]}
            return Change((gateway, model._replace(ended=ended)), (f"engine/{data['engine']}",))
        case "engine.fell":
            rung = {"at": at, "rung": data["rung"], "instead": data["instead"], "words": data["words"]}
            return Change((gateway, model._replace(rung=rung)))
        case "breaker.opened":
            breaker = {"at": at, "open_ms": data["open_ms"], "failures": data["failures"], "words": data["words"]}
            return Change((gateway, model._replace(breaker=breaker)))
        case "breaker.closed":
            return Change((gateway, model._replace(breaker={})))
        case _:
            outcomes = {**model.outcomes, data["outcome"]: model.outcomes.get(data["outcome"], 0) + 1}
            tokens = model.tokens + data["generated_tokens"]
            return Change((gateway, model._replace(outcomes=outcomes, tokens=tokens, last_at=at)))


def _gateway(graph: Graph, gateway: Gateway, type_: str, data: Json) -> Change:
    """There is one at a time: what another one's engines were, they are no more."""
    state = "running" if type_ == "gateway.started" else "stopped"
    pid, started = (data["pid"], data["process_started"]) if state == "running" else (0, 0)
    gateway = gateway._replace(state=state, pid=pid, process_started=started, since=data["at"])
    gone = [engine.id for engine in graph.engines.values() if state == "stopped" or engine.gateway != gateway.gateway]
    others = [other for other in graph.gateways.values() if other.gateway != gateway.gateway]
    ended = [other._replace(state="stopped", pid=0, process_started=0) for other in others if other.state == "running"]
    forgotten = [other.id for other in others[: max(0, len(others) + 1 - GATEWAYS_KEPT)]]
    put = [other for other in ended if other.id not in forgotten] if state == "running" else []
    return Change((gateway, *put), (*gone, *forgotten))


def _model(graph: Graph, name: str) -> ServedModel:
    found = graph.models.get(name)
    return found or ServedModel(f"model/{name}", name, "", "", "", "", {}, 0, {}, 0, "", {}, {}, {})


def _with(
    gateway: Gateway, model: ServedModel, engine: Engine | None, **fields: Json
) -> tuple[Engine | Gateway | ServedModel, ...]:
    """An engine that is not known any more was another gateway's."""
    return (gateway, model) if engine is None else (gateway, model, engine._replace(**fields))
