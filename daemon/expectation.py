"""Whether an attempt has left what its job expects of a success."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from policies.promise import against

Json = Any

CHECKED_BYTES_MAX = 16 << 20
"""A larger file is not read to be held against a schema."""
WHOLE_S = 10
"""For all files of an attempt. The kernel ends the process then, whatever a pattern does to it."""


def unmet(folder: Path, expects: Iterable[Mapping[str, Json]]) -> str:
    """What is wrong with the expected files of an attempt's folder, in words; "" if nothing is."""
    return "; ".join(found for expected in expects if (found := _unmet(folder, expected)))


def _unmet(folder: Path, expected: Mapping[str, Json]) -> str:
    name, schema = expected["file"], expected.get("json_schema")
    path = Path(os.path.realpath(folder / name))  # Path.resolve takes no links that lead round in a circle.
    if not path.is_relative_to(os.path.realpath(folder)):
        return f"{name} leads out of the run's folder"
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return f"{name} is no file"
            if status.st_size < expected["min_bytes"]:
                return f"{name} has {status.st_size} bytes, fewer than {expected['min_bytes']}"
            if schema is None:
                return ""
            if status.st_size > CHECKED_BYTES_MAX:
                return f"{name} has {status.st_size} bytes, too many to be held against a schema"
            value = orjson.loads(file.read())
    except FileNotFoundError:
        return f"{name} was not written"
    except orjson.JSONDecodeError as error:
        return f"{name} is no JSON: {error}"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    wrong = against(schema, value)
    return f"{name}: {wrong}" if wrong else ""


def main() -> None:
    """The errand: told by its environment, it leaves `unmet.txt` in its folder."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(WHOLE_S)
    found = unmet(Path(os.environ["HERMESD_EXPECTS_IN"]), orjson.loads(os.environ["HERMESD_EXPECTS"]))
    Path(os.environ["HERMESD_FOLDER"], "unmet.txt").write_text(found, encoding="utf-8")
