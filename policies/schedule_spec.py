"""When a job is due, as its file says it: what may be written, and what it is checked for. `policies.schedule` is what
comes of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, ValidationInfo, model_validator

from policies import cron
from policies.fault import BadValue, meant
from policies.field import Duration, JobName, OneOrMore, Spec, Text, Zone, default_zone, in_order
from policies.zone import gap_at, wall_ms_of, wall_text, zone_named


def _cron_text(value: str) -> str:
    return cron.compiled(" ".join(value.split())).text


class ScheduleSpec(Spec):
    """When a job is due. Exactly one of cron, every, at, after, on, manual."""


class ZonedSpec(ScheduleSpec):
    timezone: Zone = "UTC"

    @model_validator(mode="before")
    @classmethod
    def _home_zone(cls, value: Any, info: ValidationInfo) -> Any:
        return {"timezone": default_zone(info), **value} if isinstance(value, Mapping) else value


class CronSpec(ZonedSpec):
    """Five fields in Debian cron's meaning, or @daily and kin. Read against the wall clock of `timezone`."""

    cron: Annotated[str, AfterValidator(_cron_text)]


class EverySpec(ScheduleSpec):
    """Every so often, on the grid that starts at the epoch (UTC) plus `offset`: restarts do not move it."""

    every_ms: Duration = Field(alias="every")
    offset_ms: Duration = Field(default=0, alias="offset")

    @model_validator(mode="after")
    def _grid(self) -> Self:
        if self.every_ms < 1000:
            raise BadValue("`every` is shorter than a second", "The shortest is 1s")
        if self.offset_ms >= self.every_ms:
            raise BadValue("`offset` is not shorter than `every`", "Slots are at every * k + offset")
        return self


class AtSpec(ZonedSpec):
    """Once. `at` is a reading of the wall clock in `timezone`, or an instant if it carries an offset."""

    at: Text

    @model_validator(mode="after")
    def _moment(self) -> Self:
        example = "Write it like 2026-12-01T09:00, or with an offset: 2026-12-01T09:00+01:00"
        if not re.match(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d", self.at, re.ASCII):
            raise BadValue(f"{self.at!r} is not a date with a time", example)
        try:
            moment = datetime.fromisoformat(self.at)
        except ValueError as error:
            raise BadValue(f"{self.at!r} is not a date with a time: {error}", example) from error
        if not 1970 < moment.year < 9000 or moment.microsecond:
            raise BadValue(f"{self.at!r} cannot be a slot", "Slots lie on whole seconds in the years 1971 to 8999")
        object.__setattr__(self, "at", moment.isoformat())
        if moment.tzinfo is None:
            wall_ms = wall_ms_of(moment)
            gap = gap_at(zone_named(self.timezone), wall_ms)
            if gap and gap.end_wall_ms - gap.start_wall_ms > cron.LONGEST_SHIFT_MS:
                raise BadValue(f"{wall_text(wall_ms)} never was in {self.timezone}", "That date was left out there")
        return self


class AfterSpec(ScheduleSpec):
    """When each of these jobs has ended as `when` says, once for each time they have."""

    after: Annotated[tuple[JobName, ...], OneOrMore(), AfterValidator(in_order), Field(min_length=1)]
    when: Literal["success", "failure", "any"] = "success"


def _pattern(value: str) -> str:
    example = "Write it like inbox/*.txt, ~/scans/**/*.pdf or /srv/drop/*"
    if not value.strip("/") or value.endswith("/"):
        raise BadValue(f"{value!r} names no files", example)
    if any(part in ("", ".", "..") for part in value.removeprefix("/").split("/")):
        raise BadValue(f"{value!r} has an empty part, `.` or `..` in it", example)
    if any("**" in part and part != "**" for part in value.split("/")):
        raise BadValue(f"in {value!r} something stands beside `**`", "`**` is a whole part: inbox/**/*.txt")
    return value


class FilesSpec(Spec):
    """Which files start a job. `path` is a pattern: `*`, `?` and `[a-z]` within a name, `**` for folders in any depth;
    a name that begins with a dot is matched only by a pattern that does. A file counts once nothing has changed in it
    for `settle`."""

    path: Annotated[Text, AfterValidator(_pattern)]
    settle_ms: Duration = Field(default=1000, alias="settle", le=86_400_000)


class OnSpec(ScheduleSpec):
    """Whenever a file has arrived: one run for each, and one more whenever it has been written again."""

    on: FilesSpec


class ManualSpec(ScheduleSpec):
    """Only when somebody asks."""

    manual: Literal[True] = True


SCHEDULE_SPECS: dict[str, type[ScheduleSpec]] = {
    "cron": CronSpec,
    "every": EverySpec,
    "at": AtSpec,
    "after": AfterSpec,
    "on": OnSpec,
    "manual": ManualSpec,
}


def _schedule(value: Any) -> Any:
    if isinstance(value, str):
        return {"manual": True} if value.strip() == "manual" else {"cron": value}
    if not isinstance(value, Mapping):
        if isinstance(value, ScheduleSpec):
            return value
        raise BadValue(f"{value!r} is no schedule", 'Write for example "*/15 * * * *", {every: 30m} or manual')
    kinds = [key for key in SCHEDULE_SPECS if key in value]
    if len(kinds) == 1:
        return value
    if kinds:
        raise BadValue(f"a schedule has one of {', '.join(kinds)}, not several", "Make one job for each")
    keys = [str(key) for key in value]
    advice = meant(keys[0], SCHEDULE_SPECS) if keys else ""
    raise BadValue(f"a schedule needs one of {', '.join(SCHEDULE_SPECS)}", advice or "For example {every: 30m}")


def _schedule_kind(value: Any) -> str:
    if isinstance(value, ScheduleSpec):
        return next(f"<{key}>" for key, model in SCHEDULE_SPECS.items() if type(value) is model)
    return next((f"<{key}>" for key in SCHEDULE_SPECS if key in value), "")


AnySchedule = Annotated[
    Annotated[CronSpec, Tag("<cron>")]
    | Annotated[EverySpec, Tag("<every>")]
    | Annotated[AtSpec, Tag("<at>")]
    | Annotated[AfterSpec, Tag("<after>")]
    | Annotated[OnSpec, Tag("<on>")]
    | Annotated[ManualSpec, Tag("<manual>")],
    Discriminator(_schedule_kind),
    BeforeValidator(_schedule, json_schema_input_type=Any),
]
