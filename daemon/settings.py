"""`hermesd.yaml`: what it may say, and what is wrong with it by file, line, column and field."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from zoneinfo import ZoneInfoNotFoundError

import tzlocal
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from daemon.gateway.settings import EngineLimits, GatewaySettings, ServedModel
from daemon.home import ENVIRONMENT, HomeError, InForce
from policies.fault import BadValue, meant
from policies.quantity import parse_size
from policies.zone import zone_named

_SETTINGS_BYTES_MAX = 1 << 20


class Settings(BaseModel):
    """`hermesd.yaml`. `timezone` is always a name of the zone database, the machine's own if none was written."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    timezone: str = Field(default_factory=lambda: _zone_of_this_machine(), validate_default=True)
    models: dict[str, Path] = {}
    models_max: str = ""
    """A size; "" for no bound."""
    environment: list[str] = list(ENVIRONMENT)
    any_file_system: bool = False
    """Also one on which locks and syncs may not keep their promises."""
    gateway: GatewaySettings | None = None
    """The HTTP gateway, which the daemon starts and watches if this is there."""

    @field_validator("timezone")
    @classmethod
    def _zone_exists(cls, name: str) -> str:
        zone_named(name)
        return name

    @field_validator("models", mode="before")
    @classmethod
    def _paths(cls, models: object) -> object:
        if not isinstance(models, dict):
            return models
        return {alias: Path(folder).expanduser() if isinstance(folder, str) else folder
                for alias, folder in models.items()}  # fmt: skip

    @field_validator("models_max")
    @classmethod
    def _size(cls, text: str) -> str:
        if text:
            parse_size(text)
        return text

    @field_validator("environment")
    @classmethod
    def _names(cls, names: list[str]) -> list[str]:
        for name in names:
            if not name or "=" in name or "\0" in name:
                raise BadValue(f"{name!r} is no name of a variable", "Write names only; values come from the daemon")
        return names

    def in_force(self) -> InForce:
        models = {alias: str(folder) for alias, folder in self.models.items()}
        return InForce(self.timezone, models, self.environment, self.any_file_system, self.gateway is not None)


def read(path: Path, models: Path) -> Settings:
    """As `Home.settings`: the file, and the folder that relative paths of models start in."""
    try:
        with path.open("rb") as file:
            data = file.read(_SETTINGS_BYTES_MAX + 1)
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise HomeError(f"cannot read {path}: {error.strerror}.") from error
    if len(data) > _SETTINGS_BYTES_MAX:
        raise HomeError(f"{path} has more than {_SETTINGS_BYTES_MAX} bytes: that is no settings file.")
    try:
        tree = yaml.compose(data.decode("utf-8"), Loader=yaml.SafeLoader)
        value = yaml.SafeLoader("").construct_document(tree) if tree is not None else {}
    except UnicodeDecodeError as error:
        raise HomeError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark is not None else str(path)
        raise HomeError(f"{where}: this is not YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise HomeError(f"{path}: this is not YAML: {error}.") from error
    twice = next(_written_twice(tree), None)
    if twice is not None:
        mark = twice.start_mark
        raise HomeError(f"{path}:{mark.line + 1}:{mark.column + 1}: {twice.value} is written twice. Keep one.")
    if not isinstance(value, dict):
        raise HomeError(f"{path}:1: settings are written as `name: value`, one a line. See the comments in it.")
    try:
        settings = Settings.model_validate({} if value is None else value)
    except ValidationError as error:
        raise HomeError("\n".join(_located(path, tree, error))) from error
    inside = {alias: models / folder for alias, folder in settings.models.items()}
    return settings.model_copy(update={"models": inside})


def _zone_of_this_machine() -> str:
    """UTC if the machine names no zone at all (most containers). HomeError if it names one that is none."""
    try:
        # Always read anew, not from tzlocal's cache: a daemon lives longer than a stay in one zone.
        with warnings.catch_warnings(action="ignore"):
            tzlocal.reload_localzone()
        return tzlocal.get_localzone_name() or "UTC"
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        given = os.environ.get("TZ")
        what = f"TZ={given} names no zone" if given else f"the zone of this machine cannot be told: {error.args[0]}"
        do = "Write a name such as `timezone: Europe/Paris` into hermesd.yaml" + (", or into TZ." if given else ".")
        raise HomeError(f"{what}. {do}") from error


def _located(path: Path, tree: yaml.Node | None, error: ValidationError) -> Iterator[str]:
    for fault in error.errors():
        where, field = [part for part in fault["loc"] if part != "[key]"], ""
        for part in where:
            field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else str(part)
        cause = fault.get("ctx", {}).get("error")
        message, advice = fault["msg"], ""
        if isinstance(cause, BadValue):
            message, advice = str(cause), cause.advice
        elif fault["type"] == "extra_forbidden":
            message = "there is no such setting"
            known = _fields_at(where[:-1])
            advice = meant(str(where[-1]), known, f"Known are {', '.join(known)}")
        mark = _node_at(tree, where).start_mark if tree is not None else None
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark is not None else str(path)
        yield f"{place}: {field or 'settings'}: {message}." + (f" {advice.rstrip('.')}." if advice else "")


def _fields_at(where: list[int | str]) -> list[str]:
    """The settings that there are below this path."""
    shape: type[BaseModel] = Settings
    if where[:1] == ["gateway"]:
        shape = GatewaySettings if len(where) == 1 else EngineLimits if where[1] == "engines" else ServedModel
    return list(shape.model_fields)


def _node_at(node: yaml.Node, where: list[int | str]) -> yaml.Node:
    """The node that the path leads to, or the deepest one on the way there."""
    for part in where:
        if isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == str(part)), node)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
    return node


def _written_twice(node: yaml.Node | None) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        names = set()
        for key, value in node.value:
            if key.value in names:
                yield key
            names.add(key.value)
            yield from _written_twice(value)
