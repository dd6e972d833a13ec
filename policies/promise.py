"""JSON Schemas that say what a success has written: Draft 2020-12, whole in itself, checked when the job is read.

jsonschema takes long to import and few jobs need it: whoever reads a recorded job, whose schema was checked when it was
written, never does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from policies.fault import BadValue

Json = Any

SCHEMA_BYTES_MAX = 65_536
"""All schemas of one task together: the process that checks is told of them in its environment."""
_META = "https://json-schema.org/draft/2020-12/schema"
_REFERENCES = ("$ref", "$dynamicRef")


def check_schema(schema: Mapping[str, Json]) -> None:
    """BadValue if nothing could be held against it, with the place in it."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing.exceptions import Unresolvable

    if schema.get("$schema", _META).rstrip("#") != _META:
        raise BadValue(f"the schema is written for {schema['$schema']}", f"Hermes checks by {_META}")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise BadValue(f"this is no JSON Schema: {error.json_path}: {error.message[:200]}") from None
    resolver = _resolver(schema)
    for place, key, value in _keywords(schema, "$"):
        if key in _REFERENCES and isinstance(value, str):
            if not value.startswith("#"):
                advice = "Nothing is fetched: put it under $defs and refer to #/$defs/NAME"
                raise BadValue(f"{place}.{key} leads out of the schema, to {value!r}", advice)
            try:
                resolver.lookup(value)
            except Unresolvable:
                raise BadValue(f"{place}.{key} refers to {value!r}, which is not in the schema") from None


def against(schema: Mapping[str, Json], value: Json) -> str:
    """What of a value does not agree with the schema, in words; "" if all does. May take for ever: some patterns and
    some schemas do."""
    from jsonschema import Draft202012Validator
    from referencing import Registry

    errors = Draft202012Validator(schema, registry=Registry()).iter_errors(value)
    first = min(errors, key=lambda error: (len(error.absolute_path), error.json_path, error.message), default=None)
    return "" if first is None else f"{first.json_path}: {first.message[:200]}"


def size_bytes(schemas: list[Json]) -> int:
    return len(json.dumps(schemas, separators=(",", ":")))


def _resolver(schema: Mapping[str, Json]) -> Any:
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    return Registry().resolver_with_root(DRAFT202012.create_resource(dict(schema)))


def _keywords(value: Json, place: str) -> Iterator[tuple[str, str, Json]]:
    """Keywords of the schema and of those in it. What is data (`const`, `enum`, `examples`) or names (`properties`) is
    no keyword."""
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _keywords(inner, f"{place}[{index}]")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield place, key, inner
            if key in ("properties", "patternProperties", "$defs", "dependentSchemas"):
                for name, below in inner.items():
                    yield from _keywords(below, f"{place}.{key}.{name}")
            elif key not in ("const", "enum", "examples", "default"):
                yield from _keywords(inner, f"{place}.{key}")
