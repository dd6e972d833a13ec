"""The engines of the home's gateway: what the ledger says of them, and asking them to go."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import time
from typing import Any

import orjson

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.control import address_of
from daemon.gateway_watch import FACTS
from daemon.workers import identity

Json = Any

SOCKET = "gateway.sock"
_WAIT_S = 120.0
_LOOK_AGAIN_S = 0.02


def listing(call: Call) -> None:
    call.home.check(write=False)
    graph = call.reading.graph
    engines = [engine for _, engine in sorted(graph.engines.items())]
    models = [model for _, model in sorted(graph.models.items())]
    if call.json:
        gateway = next((each for each in graph.gateways.values() if each.state == "running"), None)
        show.json(
            {
                "gateway": None if gateway is None else gateway._asdict(),
                "engines": [engine._asdict() for engine in engines],
                "models": [model._asdict() for model in models],
            }
        )
        return
    if engines:
        show.table(
            ("ENGINE", "MODEL", "STATE", "DEVICE", "RUN", "PID", "SINCE"),
            [
                (e.engine, e.model, e.state, e.device, e.rung, e.pid or "-",
                 show.moment(e.serving_at or e.spawned_at, call.zone))
                for e in engines
            ],
        )  # fmt: skip
        print()
    if not models:
        print("No gateway has served a model yet. Serve them: `hermesd gateway`, or `gateway:` in hermesd.yaml.")
        return
    show.table(
        ("MODEL", "RUNTIME", "LOADS", "ANSWERED", "TOKENS", "LATEST END", "BREAKER"),
        [
            (m.model, m.runtime, m.loads, m.outcomes.get("answered", 0), m.tokens, m.ended.get("why", "-"),
             f"opened {show.moment(m.breaker['at'], call.zone)}" if m.breaker else "-")
            for m in models
        ],
    )  # fmt: skip


def stop(call: Call, model: str, *, gateway: bool) -> int:
    """End a model's engines, or all of them, or the gateway itself; answers in progress are finished first."""
    call.home.check(write=False)
    if gateway:
        if model:
            raise Failure(Exit.BAD_INPUT, "--gateway ends all engines", do="leave the model out")
        return _stop_gateway(call)
    path, body = ("models/unload", {"model_name": model}) if model else ("unload-all", {})
    status, told = _ask(call, f"/api/v1/runtime/{path}", body)
    if status == 404:
        words = told.get("error", {}).get("message", "there is no such model")
        raise Failure(Exit.UNKNOWN, words.rstrip("."), do="`hermesd engines list` names them")
    if status != 200:
        words = told.get("error", {}).get("message", f"the gateway answered with {status}")
        raise Failure(Exit.UNAVAILABLE, words.rstrip("."), do="see engines/gateway.log in the home")
    names = [model] if model else told["unloaded"]
    if call.json:
        show.json({"stopped": names})
    else:
        print(f"Ended: {', '.join(names)}." if names else "No engine is running.")
    return Exit.FINE


def _ask(call: Call, path: str, body: Json) -> tuple[int, Json]:
    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(_WAIT_S)
            with address_of(call.home.path, SOCKET) as address:
                self.sock.connect(address)

    connection = Connection("gateway")
    try:
        connection.request("POST", path, orjson.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, orjson.loads(answer.read() or b"{}")
    except (FileNotFoundError, ConnectionRefusedError) as error:
        do = "start it: `hermesd gateway`, or `gateway:` in hermesd.yaml and `hermesd run`"
        raise Failure(Exit.NOT_RUNNING, f"no gateway is running in {call.home.path}", do=do) from error
    except (OSError, http.client.HTTPException, orjson.JSONDecodeError) as error:
        raise Failure(Exit.UNAVAILABLE, f"the gateway in {call.home.path} did not answer: {error}") from error
    finally:
        connection.close()


def _stop_gateway(call: Call) -> int:
    pid, started = 0, 0
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        told = orjson.loads((call.home.path / FACTS).read_bytes())
        pid, started = int(told["pid"]), int(told["start"])
    if not pid or not identity.alive(pid, started):
        raise Failure(Exit.NOT_RUNNING, f"no gateway is running in {call.home.path}", do="nothing: there is none")
    os.kill(pid, signal.SIGTERM)
    give_up_s = time.monotonic() + _WAIT_S
    while identity.alive(pid, started):
        if time.monotonic() > give_up_s:
            do = f"wait on, or `kill -9 {pid}`: its engines end with it"
            raise Failure(Exit.NO, f"the gateway (pid {pid}) was asked to end and is still there", do=do)
        time.sleep(_LOOK_AGAIN_S)
    if call.json:
        show.json({"stopped": "gateway", "pid": pid})
    else:
        again = "; the daemon starts it again" if call.settings.gateway is not None and call.pulse() else ""
        print(f"The gateway (pid {pid}) has ended, and its engines with it{again}.")
    return Exit.FINE
