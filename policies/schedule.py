"""When a job is due, once its file has been read (`policies.schedule_spec`). `policies.due` turns it into instants.

The daemon holds one of these for each job: plain values, equal for the same words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias


class CronSchedule(NamedTuple):
    cron: str
    timezone: str


class EverySchedule(NamedTuple):
    every_ms: int
    offset_ms: int


class AtSchedule(NamedTuple):
    at: str
    """A reading of the wall clock in `timezone`, or an instant if it carries an offset."""
    timezone: str


class AfterSchedule(NamedTuple):
    after: tuple[str, ...]
    when: str


class Files(NamedTuple):
    """Which files start a job: a pattern, and for how long nothing must have changed in one."""

    path: str
    settle_ms: int

    @property
    def parts(self) -> tuple[str, ...]:
        """The pattern by folder, the last part for the file itself; a `**` that ends it stands for all files below."""
        parts = [part for part in self.path.split("/") if part]
        if parts[-1] == "**":
            parts.append("*")
        return tuple(part for place, part in enumerate(parts) if part != "**" or parts[place - 1 : place] != ["**"])

    @property
    def fixed(self) -> int:
        """How many of the parts, from the first, are folders named in full."""
        folders = self.parts[:-1]
        return next((place for place, part in enumerate(folders) if set(part) & set("*?[")), len(folders))


class OnSchedule(NamedTuple):
    on: Files


class ManualSchedule(NamedTuple):
    pass


Schedule: TypeAlias = CronSchedule | EverySchedule | AtSchedule | AfterSchedule | OnSchedule | ManualSchedule


def schedule_of(canonical: Mapping[str, Any]) -> Schedule:
    """The schedule in a job's canonical form, which has been valid before."""
    match canonical:
        case {"cron": cron, "timezone": zone}:
            return CronSchedule(cron, zone)
        case {"every": every_ms, "offset": offset_ms}:
            return EverySchedule(every_ms, offset_ms)
        case {"at": at, "timezone": zone}:
            return AtSchedule(at, zone)
        case {"after": after, "when": when}:
            return AfterSchedule(tuple(after), when)
        case {"on": {"path": path, "settle": settle_ms}}:
            return OnSchedule(Files(path, settle_ms))
        case {"manual": True}:
            return ManualSchedule()
    raise ValueError(f"{canonical!r} is no schedule in canonical form")
