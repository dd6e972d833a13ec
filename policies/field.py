"""The kinds of value a job's fields hold, each with its check: durations, sizes, text, names, zones, JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StrictInt,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, core_schema

from policies.fault import BadValue
from policies.quantity import BOUND, DURATION_PATTERN, parse_duration, parse_size
from policies.zone import zone_named

Json = Any  # A JSON value. Kept apart from Any so that signatures say which is meant.

_INT64 = 2**63


def _canonical(info: ValidationInfo) -> bool:
    return bool(info.context and info.context.get("canonical"))


def default_zone(info: ValidationInfo) -> str:
    return str((info.context or {}).get("zone", "UTC"))


def _duration(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadValue(f"{value!r} is not a duration", "Write a number with a unit, such as 90s, 10m or 1h30m")
    if value < 0:
        raise BadValue(f"{value} is negative", "A duration is zero or more")
    if value and not _canonical(info):
        raise BadValue(f"{value} has no unit", f"Write {value}s, {value}m or {value}h")
    return value


def _size(value: Any) -> Any:
    if isinstance(value, str):
        return parse_size(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadValue(f"{value!r} is not a size", "Write a number with a unit, such as 512MiB or 2GiB")
    if value > BOUND:
        raise BadValue(f"{value} is larger than this program can count", f"The most is {BOUND} bytes")
    return value


def _text(value: Any) -> Any:
    """A whole number reads the same as text; anything else YAML has interpreted must be quoted by its author."""
    if isinstance(value, bool) or value is None or isinstance(value, float):
        raise BadValue(f"{json.dumps(value)} is not text here", "Put it in quotes")
    value = str(value) if isinstance(value, int) else value
    if isinstance(value, str) and "\0" in value:
        raise BadValue("the text holds a NUL character", "No program and no path can take one")
    return value


class OneOrMore:
    """Lets a list of one be written as its only item."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._listed, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        several = handler(schema)
        return {"anyOf": [several["items"], several]}

    @staticmethod
    def _listed(value: Any) -> Any:
        return [value] if isinstance(value, str) else value


def in_order(value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(value)))


def each_once(value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value))


def _zone_name(value: str) -> str:
    zone_named(value)
    return value


def json_value(value: Any) -> Any:
    """Refuses what JSON, or the ledger, could not hold and give back unchanged."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise BadValue(f"the key {key!r} is not text", "Put it in quotes")
            json_value(key), json_value(inner)
    elif isinstance(value, list):
        for inner in value:
            json_value(inner)
    elif isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise BadValue(f"{value} is no JSON value", "Write a finite number, or text in quotes")
    elif isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            raise BadValue(f"{value} does not fit in 64 bits", "Put it in quotes")
    elif isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise BadValue("the text holds half of a surrogate pair", "Write the whole character")
    elif value is not None:
        raise BadValue(f"{value!r} is no JSON value", "Use text, numbers, true, false, null, lists and mappings")
    return value


def named(pattern: str, example: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise BadValue(f"{value[:80]!r} cannot be used here", f"Write something like {example}; allowed: {pattern}")
        return value

    return AfterValidator(check)


JOB_NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
DURATION_FORMAT = "duration-text"
_DURATION_SCHEMA = WithJsonSchema({"type": "string", "format": DURATION_FORMAT, "pattern": f"^(0|{DURATION_PATTERN})$"})
_SIZE_SCHEMA = WithJsonSchema({"type": ["string", "integer"], "minimum": 0, "examples": ["2GiB"]})

Duration = Annotated[int, BeforeValidator(_duration), _DURATION_SCHEMA]
Size = Annotated[int, BeforeValidator(_size), _SIZE_SCHEMA]
Text = Annotated[str, BeforeValidator(_text, json_schema_input_type=str | int)]
Words = Annotated[tuple[Text, ...], OneOrMore()]
Zone = Annotated[str, AfterValidator(_zone_name)]
Count = Annotated[StrictInt, Field(le=BOUND)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
JobName = Annotated[str, named(JOB_NAME, "nightly-report")]
StepName = Annotated[str, named(r"[a-z0-9][a-z0-9_-]{0,63}", "collect")]
TagName = Annotated[str, named(r"[a-z0-9][a-z0-9._:/-]{0,63}", "nightly")]
LeaseKey = Annotated[str, named(r"[A-Za-z0-9._:/@-]{1,120}", "repo:core-lib")]
VariableName = Annotated[str, named(r"[A-Za-z_][A-Za-z0-9_]*", "LOG_LEVEL")]


class Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
