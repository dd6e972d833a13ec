"""Which Hermes this is: its version, the code that decides, the time zone database it reads."""

from __future__ import annotations

import hashlib
import zoneinfo
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds the rooms."""


VERSION = "0.1.0"
"""Here and nowhere else: to ask the installed package for it takes a megabyte and a half of modules."""


def version() -> str:
    return VERSION


def code_digest() -> str:
    """Names the source that decides: SHA-256 over every file of `policies/` and `state/`."""
    digest = hashlib.sha256()
    for room in ("policies", "state"):
        for path in sorted((ROOT / room).rglob("*")):
            if path.suffix in (".py", ".yaml"):
                digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def tzdb_version() -> str:
    """The release of the time zone database that `zoneinfo` reads here."""
    for folder in zoneinfo.TZPATH:
        try:
            with open(Path(folder) / "tzdata.zi", encoding="ascii") as file:
                return file.readline().removeprefix("# version").strip()
        except OSError:
            continue
        except UnicodeDecodeError:
            break
    if any(Path(folder).is_dir() for folder in zoneinfo.TZPATH):
        return "of this system, release unknown"
    import tzdata  # type: ignore[import-untyped]

    return str(tzdata.IANA_VERSION)
