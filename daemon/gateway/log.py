"""The gateway's log: one JSON object a line, on standard error. No line holds text of a prompt or of an answer."""

from __future__ import annotations

import logging
import re
import secrets
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

import orjson

Json = Any

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}", re.ASCII)


def say(event: str, level: str = "info", **fields: Json) -> None:
    line = {"ts": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, "event": event} | fields
    data = orjson.dumps({name: value for name, value in line.items() if value is not None}, default=str)
    try:
        sys.stderr.buffer.write(data + b"\n")
        sys.stderr.buffer.flush()
    except (OSError, ValueError):
        return  # nobody reads it any more, or its disk is full; that is no reason to stop serving


def trace_id(traceparent: str | None) -> str:
    """The caller's trace (W3C), or a new one."""
    match = _TRACEPARENT.fullmatch(traceparent or "")
    if match and match[1].strip("0") and match[2].strip("0"):
        return match[1]
    return secrets.token_hex(16)


def where(error: BaseException) -> list[str]:
    """The kind of an error and the places it went through. Its words may quote a prompt, so they stay out."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
    return [type(error).__name__, *places]


class Structured(logging.Handler):
    """What libraries log, in the same form."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        words = record.getMessage()[:500] if error is None else None
        trouble = where(error) if error else None
        say("library", record.levelname.lower(), logger=record.name, message=words, error=trouble)


def capture(level: int = logging.WARNING) -> None:
    logging.basicConfig(level=level, handlers=[Structured()], force=True)
