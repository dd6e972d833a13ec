"""What a request is told when it cannot be served, in OpenAI's shape: one place maps every error to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from daemon.inference import failures
from daemon.inference.runtimes import Refused

Json = Any


class Refusal(Exception):
    """An answer other than 2xx. `kind` and `code` are OpenAI's `type` and `code`; `parameter` is the field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        parameter: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: Json = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.parameter = status, message, kind, code, parameter
        self.headers = dict(headers or {})
        self.details = details

    def json(self, request_id: str) -> Json:
        error: dict[str, Json] = {
            "message": self.message,
            "type": self.kind,
            "param": self.parameter,
            "code": self.code,
            "request_id": request_id,
        }
        if self.details is not None:
            error["details"] = self.details
        return {"error": error}


NO_RETRY = {"x-should-retry": "false"}
"""The official client tries again after a 409; a load that failed fails again."""

_FIELDS = {
    "max_new_tokens": "max_tokens",
    "grammar": "response_format",
    "tokens": "prompt",
}
"""What the engines call a field, and what the caller called it."""


def refusal_of(error: Exception) -> Refusal | None:
    """None for what is no refusal but a bug."""
    match error:
        case Refusal():
            return error
        case failures.UnknownModel():
            return Refusal(404, str(error), kind="not_found_error", code="model_not_found", parameter="model")
        case failures.Broken():
            return Refusal(
                503, str(error), kind="service_unavailable", code="breaker_open", headers=_after(error.retry_after_s)
            )
        case failures.Busy():
            return Refusal(
                429, str(error), kind="rate_limit_error", code="queue_full", headers=_after(error.retry_after_s)
            )
        case failures.DoesNotFit():
            return Refusal(
                409, str(error), kind="conflict_error", code="does_not_fit", headers=NO_RETRY,
                details=dict(error.figures),
            )  # fmt: skip
        case failures.LoadFailed():
            return Refusal(409, str(error), kind="conflict_error", code="load_failed", headers=NO_RETRY)
        case failures.BadRequest():
            return bad_field(error.parameter, str(error))
        case Refused():
            return bad_field(error.parameter, str(error))
        case failures.EngineLost():
            return Refusal(
                502, str(error), kind="engine_error", code="engine_lost",
                details={"tokens_so_far": error.tokens_so_far},
            )  # fmt: skip
        case failures.SlowReader():
            return Refusal(408, str(error), kind="timeout_error", code="slow_reader")
        case failures.PoolError():
            return Refusal(503, str(error), kind="service_unavailable", code="unavailable", headers=_after(1))
    return None


def bad_field(parameter: str, message: str) -> Refusal:
    name = _FIELDS.get(parameter, parameter)
    return Refusal(400, message, code="invalid_value", parameter=name or None)


def _after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
