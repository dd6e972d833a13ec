"""Secrets: one file each in the home's `secrets/`, for its owner alone. Read when something is about to be done with
one, by whoever does it; what is recorded names the secret and never holds it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

SECRET_BYTES_MAX = 8192


class NoSecret(Exception):
    """A secret that cannot be used. The message says which file, what is wrong with it, and what to do."""


class Secrets:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def value(self, name: str) -> str:
        """Its text, without the line end at its end. NoSecret."""
        path = self._folder / name
        self._check_folder()
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NoSecret(
                f"there is no secret {name}: write it to {path}, with `umask 077` or a `chmod 600` after"
            ) from None
        except OSError as error:
            raise NoSecret(f"secret {name}: {path} cannot be read: {error.strerror}") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise NoSecret(f"secret {name}: {path} is no file")
            if status.st_uid != os.geteuid():
                raise NoSecret(f"secret {name}: {path} belongs to user {status.st_uid}: chown it to the daemon's user")
            if status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise NoSecret(f"secret {name}: others may read {path} (mode {mode:04o}): chmod 600 '{path}'")
            data = os.read(descriptor, SECRET_BYTES_MAX + 1)
        finally:
            os.close(descriptor)
        if len(data) > SECRET_BYTES_MAX:
            raise NoSecret(f"secret {name}: {path} has more than {SECRET_BYTES_MAX} bytes: give a program its path")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            raise NoSecret(f"secret {name}: {path} is not UTF-8 text") from None
        text = text.removesuffix("\n").removesuffix("\r")
        if not text or "\0" in text:
            what = "is empty" if not text else "holds a NUL character"
            raise NoSecret(f"secret {name}: {path} {what}: write the secret to it")
        return text

    def _check_folder(self) -> None:
        try:
            status = self._folder.lstat()
        except OSError as error:
            advice = f"mkdir -m 700 '{self._folder}', or `hermesd init`"
            raise NoSecret(f"the folder of secrets {self._folder}: {error.strerror}: {advice}") from None
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise NoSecret(f"the folder of secrets {self._folder} is no folder of the daemon's user: move it away")
        if status.st_mode & 0o077:
            raise NoSecret(f"others can get into the folder of secrets: chmod 700 '{self._folder}'")
