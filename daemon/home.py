"""The home: one folder that holds everything Hermes knows. What its `hermesd.yaml` may say is in `daemon.settings`."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from daemon.settings import Settings

ENVIRONMENT = ("PATH", "HOME", "USER", "LANG")
"""The variables that runs get from the daemon's environment, unless the settings name others."""

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
# environment: [{", ".join(ENVIRONMENT)}]

# A home on a network or FUSE file system is refused: a lock there may exclude nobody, and a sync may keep nothing.
# any_file_system: false

# Serve local models over HTTP, OpenAI-compatible, on gateway.sock in this home; see docs/serving.md.
# gateway:
#   tcp: 127.0.0.1:8710
#   model_name: hermes-mini
"""


class HomeError(Exception):
    """The home cannot be used as it is. The message says what is wrong, where, and what to do."""


class InForce(NamedTuple):
    """What a running daemon knows of `hermesd.yaml`; `daemon.settings` has the whole."""

    timezone: str
    models: dict[str, str]
    environment: list[str]
    any_file_system: bool
    gateway: bool


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
        self._check_folder(write=True)
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
        self._check_folder(write=write)
        if not self._begun():
            raise HomeError(
                f"there is no home at {self.path}: the folder has neither hermesd.yaml nor jobs/ nor ledger/. "
                "Make it one with `hermesd init`, or name another with --home or HERMESD_HOME."
            )

    def untouched(self) -> bool:
        """Whether no daemon has run here yet: there is no ledger, and nothing that is made from one. OSError."""
        made = [folder for folder in (self.ledger, self.state, self.runs, self.artifacts) if folder.is_dir()]
        return not any(os.listdir(folder) for folder in made)

    def _begun(self) -> bool:
        return any(path.exists() for path in (self.settings_file, self.jobs, self.ledger))

    def _check_folder(self, *, write: bool) -> None:
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
        mode = f"mode {stat.S_IMODE(status.st_mode):04o}"
        if status.st_mode & 0o077 and not self._begun():  # It may be /etc or a shared folder: nothing to be closed.
            raise HomeError(
                f"{self.path} is no home, and a folder that others can get into ({mode}) cannot become one. "
                "Name a folder of its own with --home or HERMESD_HOME; `hermesd init` makes it."
            )
        if status.st_mode & 0o077:
            raise HomeError(
                f"others can get into the home {self.path} ({mode}), and so could "
                f"give orders to this daemon. Close it: chmod 700 '{self.path}'"
            )
        if write and not os.access(self.path, os.W_OK | os.X_OK):
            raise HomeError(f"the home {self.path} is read-only. Make it writable (chmod u+rwx, remount).")

    def settings(self) -> Settings:
        """What `hermesd.yaml` says, its defaults filled in; without the file, the defaults. HomeError with file, line,
        column and field for all that is wrong with it. Not in the daemon's own process, which has it read by another
        (`daemon.loader`): pydantic and YAML would stay there for as long as it lives."""
        from daemon import settings

        return settings.read(self.settings_file, self.models)
