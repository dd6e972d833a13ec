"""Why the pool could not serve a request: one error for each thing that whoever asked may do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = Any


class PoolError(Exception):
    """A request that the pool could not serve. The message says what is wrong and what to do."""


class UnknownModel(PoolError):
    """No model of this name is registered."""


class Busy(PoolError):
    """As many requests wait as may. Ask again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Broken(Busy):
    """The model's engines failed again and again; none is tried before `retry_after_s` from now."""


class DoesNotFit(PoolError):
    """No device has room for the model, whatever is unloaded. `figures`: device -> {needed_bytes, free_bytes, ...}."""

    def __init__(self, message: str, figures: Mapping[str, Json]) -> None:
        super().__init__(message)
        self.figures = figures


class LoadFailed(PoolError):
    """The model could not be loaded: the message is the engine's reason."""


class BadRequest(PoolError):
    """The model cannot do what is asked; `parameter` is the field at fault."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(message)
        self.parameter = parameter


class EngineLost(PoolError):
    """The engine died when it had said `tokens_so_far` tokens of the answer."""

    def __init__(self, message: str, tokens_so_far: int) -> None:
        super().__init__(message)
        self.tokens_so_far = tokens_so_far


class SlowReader(PoolError):
    """Whoever asked did not take the answer: the request was given up."""
