"""`hermesd gateway`: the HTTP gateway in the foreground. Where hermesd.yaml has `gateway:`, the daemon starts it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import ValidationError

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.document import Unreadable, read_document
from daemon.gateway.settings import GatewaySettings
from policies.fault import BadValue, meant

if TYPE_CHECKING:
    from daemon.gateway.server import Gateway

Json = Any


def gateway(call: Call, env: Path | None, tcp: str) -> int:
    call.home.check(write=True)
    settings = settings_of(call, env, tcp)
    try:
        from daemon.gateway import log
        from daemon.gateway.server import Gateway
    except ModuleNotFoundError as error:
        raise Failure(
            Exit.UNAVAILABLE,
            f"the gateway needs {error.name}, which is not installed",
            do="pip install 'hermesd[serve]'",
        ) from error
    log.capture()
    found = Gateway(call.home, settings)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(found.run(lambda ready: _tell(call, ready)))
    return Exit.FINE


def settings_of(call: Call, env: Path | None, tcp: str = "") -> GatewaySettings:
    """hermesd.yaml, over it the file, over it the environment, over it the options."""
    written = call.settings.gateway or GatewaySettings()
    given = written.model_dump(exclude_unset=True)
    if env is not None:
        given |= read_env(env)
    backend, hermetic = os.environ.get("HERMES_BACKEND"), os.environ.get("HERMES_HERMETIC")
    if backend:
        given["backend"] = backend
    if hermetic:
        if hermetic not in ("0", "1"):
            raise BadValue(f"HERMES_HERMETIC is {hermetic!r}", "It is 1 or 0")
        given["hermetic"] = hermetic == "1"
    if tcp:
        given["tcp"] = tcp
    try:
        return GatewaySettings.model_validate(given)
    except ValidationError as error:
        raise Failure(Exit.BAD_INPUT, _words(error), where="HERMES_BACKEND or the command line") from error


def read_env(path: Path) -> dict[str, Json]:
    """A file with the fields of `gateway:`, such as configs/env.prod.yaml. Failure with the place of what is wrong."""
    try:
        value, marks = read_document(path)
    except Unreadable as error:
        line, column = error.position
        raise Failure(Exit.BAD_INPUT, error.message, where=f"{path}:{line}:{column}", do=error.advice) from error
    if value is not None and not isinstance(value, dict):
        raise Failure(Exit.BAD_INPUT, "settings are written as `name: value`, one a line", where=str(path))
    try:
        return GatewaySettings.model_validate(value or {}).model_dump(exclude_unset=True)
    except ValidationError as error:
        line, column = marks.at(tuple(error.errors()[0]["loc"]))
        raise Failure(Exit.BAD_INPUT, _words(error), where=f"{path}:{line}:{column}") from error


def _words(error: ValidationError) -> str:
    fault = error.errors()[0]
    name = ".".join(map(str, fault["loc"]))
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, BadValue):
        return f"{name}: {cause}. {cause.advice}"
    if fault["type"] == "extra_forbidden":
        known = list(GatewaySettings.model_fields)
        return f"{name}: there is no such setting. {meant(name, known, 'Known are ' + ', '.join(known))}"
    return f"{name}: {fault['msg']}"


def _tell(call: Call, ready: Gateway) -> None:
    socket = call.home.path / "gateway.sock"
    with contextlib.suppress(BrokenPipeError):
        if call.json:
            told = {"ready": True, "pid": os.getpid(), "socket": str(socket), "urls": ready.urls}
            show.raw(orjson.dumps(told) + b"\n")
        else:
            also = "".join(f" and {url}" for url in ready.urls)
            print(f"hermesd gateway is ready: {socket}{also}, pid {os.getpid()}")
        sys.stdout.flush()
