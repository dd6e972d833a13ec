"""The OpenAPI description of every route."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from daemon.gateway.shapes import ErrorAnswer
from daemon.gateway.stream import EVENT_ID

if TYPE_CHECKING:
    from daemon.gateway.app import Route

Json = Any

_WORDS = {
    400: "The request is wrong; `error.param` names the field.",
    401: "The token is missing or wrong (only over TCP).",
    403: "Not over TCP, only over the gateway's own socket.",
    404: "There is no such model, stream or page.",
    408: "The request was not there in time.",
    409: "The model could not be loaded, and why.",
    413: "The body is too large.",
    415: "The body is no application/json.",
    422: "A parameter is wrong; `error.param` names it.",
    429: "Too many requests wait; `Retry-After` says when to ask again.",
    500: "A bug; the log has the request id.",
    502: "The engine died; `error.details.tokens_so_far`.",
    503: "The model failed again and again; `Retry-After` says when it is tried anew.",
}

_EVENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": EVENT_ID, "description": "For Last-Event-ID."},
        "data": {"type": "string", "description": "A chunk or an error as JSON; [DONE] is the last of OpenAI's."},
    },
    "required": ["id", "data"],
}
"""Of a stream, each."""


def described(routes: Sequence[Route], version: str) -> Json:
    shapes: list[tuple[type[BaseModel], Any]] = [(ErrorAnswer, "serialization")]
    for route in routes:
        shapes += [(route.asks, "validation")] if route.asks else []
        shapes += [(route.answers, "serialization")] if route.answers else []
    unique = list(dict.fromkeys(shapes))
    names, together = models_json_schema(unique, ref_template="#/components/schemas/{model}")
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.described_path, {})[route.method.lower()] = _operation(route, names)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Hermes gateway",
            "version": version,
            "description": "Local models, OpenAI-compatible. Over the Unix socket no token is asked for.",
        },
        "paths": paths,
        "components": {
            "schemas": together.get("$defs", {}),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _operation(route: Route, names: Any) -> Json:
    answer: Json = {"description": "As asked."}
    if route.answers is not None:
        answer["content"] = {"application/json": {"schema": names[route.answers, "serialization"]}}
    else:
        schema: Json = {"application/json": {}, "text/event-stream": _EVENT}.get(route.media, {"type": "string"})
        answer["content"] = {route.media: {"schema": schema}}
    if route.streams:
        answer["content"]["text/event-stream"] = {"schema": _EVENT}
    error = {"application/json": {"schema": names[ErrorAnswer, "serialization"]}}
    told = {str(status): {"description": _WORDS[status], "content": error} for status in route.statuses}
    for status in ("429", "503"):
        if status in told:
            told[status]["headers"] = {"Retry-After": {"schema": {"type": "string"}, "description": "Seconds."}}
    operation: dict[str, Json] = {
        "operationId": route.name,
        "summary": route.summary,
        "responses": {"200": answer} | told,
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in route.parameters
    ]
    if route.resumes:
        parameters.append(
            {
                "name": "Last-Event-ID",
                "in": "header",
                "required": False,
                "schema": {"type": "string", "pattern": EVENT_ID},
                "description": "The id of the last event that was read; the stream goes on behind it.",
            }
        )
    if parameters:
        operation["parameters"] = parameters
    if route.asks is not None:
        schema = names[route.asks, "validation"]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation
