"""A job's generation through the home's gateway, where one runs and serves the job's model as the job wants it: the
model is in memory once, for jobs and for everybody else. Where it does not, the worker loads the model itself.

Standard library only, beside orjson: the worker that asks this stays small.
"""

from __future__ import annotations

import http.client
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from daemon.control import address_of

Json = Any

_ROUTE = "/api/v1/runtime/models"


class _Connection(http.client.HTTPConnection):
    """Over the gateway's socket. It waits as long as the job may."""

    def __init__(self, path: Path) -> None:
        super().__init__("gateway")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with address_of(self._path.parent, self._path.name) as address:
            self.sock.connect(address)

    def ask(self, method: str, route: str, body: Json = None) -> tuple[int, Json]:
        data = None if body is None else orjson.dumps(body)
        # The text is in the run's folder, where `redact` finds it: the gateway keeps no second copy.
        self.request(method, route, data, {"content-type": "application/json", "hermes-keep": "none"} if data else {})
        answer = self.getresponse()
        return answer.status, orjson.loads(answer.read() or b"null")


def generated(task: Mapping[str, Json]) -> dict[str, Json] | None:
    """The result of a task about one prompt, as `InferenceTasks` gives it. None if there is no gateway, it does not
    serve the model so, or it could not answer: then the worker is to do it itself."""
    path = Path(task.get("gateway") or "/nonexistent/gateway.sock")
    if task["lines"] or not path.exists():
        return None
    connection = _Connection(path)
    began = time.monotonic()
    try:
        name = _serving(connection, task)
        if name is None:
            return None
        how = {"model": name, "max_tokens": task["max_new_tokens"], "seed": task["seed"]}
        how |= {field: task[field] for field in ("temperature", "top_p", "top_k")}
        how |= {"stop": list(task["stop"])} if task["stop"] else {}
        turn = [{"role": "user", "content": task["prompt"]}]
        status, said = connection.ask("POST", "/v1/chat/completions", {**how, "messages": turn})
        if status == 400 and (said or {}).get("error", {}).get("param") == "messages":  # It has no chat form.
            status, said = connection.ask("POST", "/v1/completions", {**how, "prompt": task["prompt"]})
        if status != 200:
            return None
        _, about = connection.ask("GET", f"{_ROUTE}/{name}")
        return _result(said, about, round((time.monotonic() - began) * 1000))
    except (OSError, http.client.HTTPException, orjson.JSONDecodeError, KeyError, TypeError):
        return None
    finally:
        connection.close()


def _serving(connection: _Connection, task: Mapping[str, Json]) -> str | None:
    """The gateway's name for the model, if it serves it, or may load it, as the task wants it."""
    status, told = connection.ask("GET", _ROUTE)
    if status != 200:
        return None
    for model in told["models"]:
        facts = model["facts"]
        same = os.path.realpath(model["model_id"]) == os.path.realpath(task["model"])
        if not same or model["model_type"] == "embedding" or model["state"] in ("failed", "open"):
            continue
        wishes = (("device", "auto"), ("dtype", "auto"), ("quantization", "none"))
        if all(task[wish] == facts.get(wish, free) or (task[wish] == free == "auto") for wish, free in wishes):
            return str(model["model_name"])
    return None


def _result(said: Json, about: Json, took_ms: int) -> dict[str, Json]:
    choice = said["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    tokens = {"prompt_tokens": said["usage"]["prompt_tokens"], "generated_tokens": said["usage"]["completion_tokens"]}
    rate = round(tokens["generated_tokens"] * 1000 / took_ms, 1) if took_ms else None
    return {
        "outputs": [{"text": text or "", **tokens, "finish": choice["finish_reason"]}],
        "usage": tokens,
        "model": about["facts"],
        "timing": {"load_ms": 0, "first_token_ms": None, "generate_ms": took_ms, "tokens_per_second": rate},
        "gateway": {"request": said["id"], "model": about["model_name"]},
    }
