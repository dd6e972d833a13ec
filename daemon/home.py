"""The home: one folder that holds everything Hermes knows, and the settings in its `hermesd.yaml`."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from zoneinfo import ZoneInfoNotFoundError

import tzlocal
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from daemon.gateway.settings import EngineLimits, GatewaySettings, ServedModel
from policies.fault import BadValue, meant
from policies.quantity import parse_size
from policies.zone import zone_named

_SETTINGS_BYTES_MAX = 1 << 20

_ENVIRONMENT = ["PATH", "HOME", "USER", "LANG"]

TEMPLATE = f"""\
# Settings of this Hermes home. Every line may be left out; what stands here behind a # is what holds without it.

# The zone of schedules that name none. Without it: this machine's zone at the time the daemon starts.
# timezone: Europe/Paris

# Short names for model folders (Hugging Face format, safetensors), for jobs to use. A relative path starts in models/.
# models:
#   big: /srv/models/qwen-7b-instruct

# What `hermesd models add` may keep in models/, all together. Without it: what the disk holds.
# models_max: 200GB

# Variables that runs get from the daemon's environment. They get no others but those their job sets.
# environment: [{", ".join(_ENVIRONMENT)}]

# A home on a network or FUSE file system is refused: a lock there may exclude nobody, and a sync may keep nothing.
# any_file_system: false

# Serve local models over HTTP, OpenAI-compatible, on gateway.sock in this home; see docs/serving.md.
# gateway:
#   tcp: 127.0.0.1:8710
#   model_name: hermes-mini
"""


class HomeError(Exception):
    """The home cannot be used as it is. The message says what is wrong, where, and what to do."""


class Settings(BaseModel):
    """`hermesd.yaml`. `timezone` is always a name of the zone database, the machine's own if none was written."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    timezone: str = Field(default_factory=lambda: _zone_of_this_machine(), validate_default=True)
    models: dict[str, Path] = {}
    models_max: str = ""
    """A size; "" for no bound."""
    environment: list[str] = _ENVIRONMENT
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


class Home:
    """Where everything lies. The layout is this list; nothing else puts a file at the top."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings_file = path / "hermesd.yaml"
        self.socket = path / "hermesd.sock"
        self.jobs = path / "jobs"
        self.policies = path / "policies"
        self.ledger = path / "ledger"
        self.state = path / "state"
        self.leases = path / "leases"
        self.inbox = path / "inbox"
        self.runs = path / "runs"
        self.artifacts = path / "artifacts"
        self.snapshots = path / "snapshots"
        self.models = path / "models"
        self.secrets = path / "secrets"

    @classmethod
    def find(cls, option: str | None) -> Home:
        """`--home`, else HERMESD_HOME, else ~/.hermesd. Nothing is looked at yet."""
        return cls(Path(os.path.abspath(os.path.expanduser(option or os.environ.get("HERMESD_HOME") or "~/.hermesd"))))

    def make(self) -> None:
        """Make what is missing of the home, for its owner alone; what is there is left as it is. HomeError."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:
            pass  # a file is in the way; `check` says so
        except OSError as error:
            raise HomeError(
                f"cannot make the home {self.path}: {error.strerror}. "
                "Make it yourself, or name another place with --home or HERMESD_HOME."
            ) from error
        self.check(write=True)
        try:
            for folder in (self.jobs, self.policies, self.ledger, self.state, self.leases,
                           self.inbox, self.runs, self.artifacts, self.models, self.secrets):  # fmt: skip
                folder.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(self.settings_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="utf-8") as file:
                file.write(TEMPLATE)
        except FileExistsError as error:
            if Path(error.filename) != self.settings_file:
                raise HomeError(f"{error.filename} is a file where a folder must be: move it away.") from error
        except OSError as error:
            raise HomeError(f"cannot write to the home: {error.filename}: {error.strerror}.") from error

    def check(self, *, write: bool) -> None:
        """HomeError if the home is missing, not a folder, not only ours, or (with `write`) read-only."""
        try:
            status = self.path.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise HomeError(f"there is no home at {self.path}. Make it: `hermesd init`.") from error
        except OSError as error:
            raise HomeError(f"cannot look at the home {self.path}: {error.strerror}.") from error
        if not stat.S_ISDIR(status.st_mode):
            raise HomeError(f"the home {self.path} is a file, not a folder: move it away, or name another home.")
        if status.st_uid != os.geteuid():
            raise HomeError(
                f"the home {self.path} belongs to user {status.st_uid}, but this is user {os.geteuid()}. "
                "Run hermesd as its owner, or name another home with --home or HERMESD_HOME."
            )
        if status.st_mode & 0o077:
            raise HomeError(
                f"others can get into the home {self.path} (mode {stat.S_IMODE(status.st_mode):04o}), and so could "
                f"give orders to this daemon. Close it: chmod 700 '{self.path}'"
            )
        if write and not os.access(self.path, os.W_OK | os.X_OK):
            raise HomeError(f"the home {self.path} is read-only. Make it writable (chmod u+rwx, remount).")

    def settings(self) -> Settings:
        """What `hermesd.yaml` says, its defaults filled in; without the file, the defaults. HomeError with file, line,
        column and field for all that is wrong with it."""
        path = self.settings_file
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
        except ZoneInfoNotFoundError as error:
            raise HomeError(f"{error.args[0].strip()}\nOr name a zone in {path}: `timezone: Europe/Paris`.") from error
        inside = {alias: self.models / folder for alias, folder in settings.models.items()}
        return settings.model_copy(update={"models": inside})


def _zone_of_this_machine() -> str:
    """UTC if the machine names no zone at all (most containers)."""
    # Always read anew, not from tzlocal's cache: a daemon lives longer than a stay in one zone.
    with warnings.catch_warnings(action="ignore"):
        tzlocal.reload_localzone()
    return tzlocal.get_localzone_name() or "UTC"


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
