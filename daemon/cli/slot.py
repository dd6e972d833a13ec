"""A slot as a person names it, `JOB@2026-03-29T02:30`, and what there is to say of one that no decision is about: it is
not due yet, was never promised, or waits for a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from daemon.cli import show
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.cli.jobs import schedule_text
from daemon.reading import Reading
from ledger.instant import ms_of, text_of
from policies import due
from policies.quantity import duration_text
from policies.schedule import AtSchedule, CronSchedule, Schedule, schedule_of
from policies.zone import gap_at, instants_ms, local_text, wall_ms_of, wall_text, zone_named
from state.graph import Job

Json = Any

_LOOKED_INTO = 200_000
_COMING = 1_000
_ID_LEAST = 6


class Version(NamedTuple):
    """What a job's file said from one instant to another."""

    since_ms: int
    seq: int
    revision: int
    digest: str
    spec: dict[str, Json]
    """Empty: the job was removed."""

    @property
    def schedule(self) -> Schedule:
        return schedule_of(self.spec["schedule"])


class Instant(NamedTuple):
    at_ms: int
    note: str
    """What the wall clock did there; "" if nothing."""


def instants_of(text: str, zone_name: str) -> list[Instant]:
    """The instants that a reading of the wall clock names: one, two where the clock was set back, and where it skipped
    the reading the end of the gap."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        do = "write JOB@2026-03-29T02:30, as the wall clock of the job shows it, or with an offset: ...T02:30+01:00"
        raise Failure(Exit.BAD_INPUT, f"{text!r} is no instant: {error}", do=do) from error
    if not 1970 < moment.year < 9000:
        raise Failure(Exit.BAD_INPUT, f"{text!r} is out of range", do="the years 1971 to 8999 can be given")
    if moment.tzinfo is not None:
        return [Instant(ms_of(moment.isoformat()), "")]
    zone, wall_ms = zone_named(zone_name), wall_ms_of(moment)
    found = instants_ms(zone, wall_ms)
    if len(found) == 1:
        return [Instant(found[0], "")]
    shown = f"{wall_text(wall_ms)[11:16]} of {wall_text(wall_ms)[:10]}"
    if found:
        both = " and ".join(text_of(at_ms) for at_ms in found)
        return [Instant(at_ms, f"{shown} came twice in {zone_name}, at {both}") for at_ms in found]
    gap = gap_at(zone, wall_ms)
    assert gap is not None
    start, end = wall_text(gap.start_wall_ms)[11:16], wall_text(gap.end_wall_ms)[11:16]
    return [Instant(gap.at_ms, f"{shown} was never on the clock in {zone_name}: it went from {start} to {end}")]


def zone_of(job: Job, home_zone: str) -> str:
    schedule = schedule_of(job.spec["schedule"])
    return schedule.timezone if isinstance(schedule, CronSchedule | AtSchedule) else home_zone


def versions(reading: Reading, job: str) -> list[Version]:
    found = []
    for record in reading.records():
        if record.type in ("job.defined", "job.changed") and record.data["job"] == job:
            data = record.data
            found.append(Version(ms_of(record.ts), record.seq, data["revision"], data["digest"], data["spec"]))
        elif record.type == "job.removed" and record.data["job"] == job:
            found.append(Version(ms_of(record.ts), record.seq, 0, "", {}))
    return found


def in_force(found: list[Version], at_ms: int) -> Version | None:
    """The version that answered for a slot at this instant; None before the first."""
    return next((version for version in reversed(found) if version.since_ms < at_ms), None)


def of_id(reading: Reading, beginning: str, now_ms: int) -> tuple[str, int] | None:
    """The job and the instant of a slot that may have no decision, by enough of the beginning of its identity: those to
    come, then those since each job was defined."""
    if len(beginning) < _ID_LEAST:
        return None
    left = _LOOKED_INTO
    for job in reading.graph.jobs.values():
        schedule = schedule_of(job.spec["schedule"])
        for at_ms in due.slots(schedule, now_ms, now_ms + 400 * 86_400_000, _COMING):
            if due.slot_id(job.name, job.digest, at_ms).startswith(beginning):
                return job.name, at_ms
    for name in reading.graph.jobs:
        found = versions(reading, name)
        for version, follower in zip(found, [*found[1:], None], strict=True):
            if not version.spec or left <= 0:
                continue
            until_ms = follower.since_ms if follower is not None else now_ms
            for at_ms in due.slots(version.schedule, version.since_ms, until_ms, left):
                left -= 1
                if due.slot_id(name, version.digest, at_ms).startswith(beginning):
                    return name, at_ms
    return None


def undecided(reading: Reading, name: str, at_ms: int, now_ms: int, zone: str, up: bool) -> Json:
    """What there is to say of a job at an instant that no decision is about."""
    found = versions(reading, name)
    version = in_force(found, at_ms)
    told: Json = {
        "job": name,
        "at": text_of(at_ms),
        "local": local_text(zone_named(zone), at_ms),
        "slot": "",
        "revision": version.revision if version is not None else 0,
        "state": "",
        "because": "",
        "previous": "",
        "next": "",
        "note": "",
        "decision": None,
    }
    if version is not None and version.spec:
        schedule = version.schedule
        told["note"] = due.explain_shift(schedule, at_ms)
        told |= _around(schedule, at_ms)
        if due.next_slot(schedule, at_ms - 1) == at_ms:
            told["slot"] = due.slot_id(name, version.digest, at_ms)
    told["state"], told["because"] = _why_undecided(reading, name, found, version, at_ms, now_ms, zone, up)
    return told


def _around(schedule: Schedule, at_ms: int) -> Json:
    """The slots before and behind an instant."""
    following = due.next_slot(schedule, at_ms)
    before = ""
    for span_ms in (3_600_000, 86_400_000, 40 * 86_400_000, 400 * 86_400_000):
        earlier = due.slots(schedule, at_ms - span_ms, at_ms - 1, 10_000)
        if earlier:
            before = text_of(earlier[-1])
            break
    return {"previous": before, "next": "" if following is None else text_of(following)}


def _why_undecided(
    reading: Reading, name: str, found: list[Version], version: Version | None, at_ms: int, now_ms: int, zone: str,
    up: bool,
) -> tuple[str, str]:  # fmt: skip
    """(state, in words), the first that holds."""
    if version is None:
        first = found[0]
        told = f"{name} was first seen on {show.moment(first.since_ms, zone)} (record {first.seq})"
        return "before_definition", f"{told}; what lay before was never promised"
    if not version.spec:
        return "removed", f"the job was removed on {show.moment(version.since_ms, zone)} (record {version.seq})"
    spec, revision = version.spec, f"revision {version.revision}"
    if "manual" in spec["schedule"] or "after" in spec["schedule"] or "on" in spec["schedule"]:
        return "no_slot", f"{revision} has no slots by the clock: {schedule_text(spec['schedule'])}"
    if due.next_slot(version.schedule, at_ms - 1) != at_ms:
        return "no_slot", f"{revision} is not due then: {schedule_text(spec['schedule'])}"
    if not spec.get("enabled", True):
        return "disabled", f"{revision}, since {show.moment(version.since_ms, zone)}, says `enabled: false`"
    if spec.get("expires") and ms_of(spec["expires"]) <= at_ms:
        return "expired", f"{revision} has no slots from {show.moment(spec['expires'], zone)} on (`expires`)"
    job = reading.graph.jobs[name]
    if at_ms > now_ms:
        return "not_due", " ".join(_to_come(reading, job, version, at_ms, now_ms, up))
    for later in found[found.index(version) + 1 :]:
        if gave_up := _gave_up(spec, later.spec, at_ms):
            when = f"on {show.moment(later.since_ms, zone)} (record {later.seq}), before it had been decided"
            return "given_up", gave_up.format(when)
    if at_ms > job.cursor_ms:
        return "waits", _waits(reading, job, zone, up)
    return "unknown", "the ledger accounts for it and names no decision: this is a bug, please report it with a bundle"


def _gave_up(spec: Json, later: Json, at_ms: int) -> str:
    """What a later version did to a slot of the one before it that waited for its decision; "" if it waits on."""
    if not later:
        return "the job was removed {}"
    if later["schedule"] != spec["schedule"]:
        return "its schedule was replaced {}, and the new one counts from then"
    if not later.get("enabled", True):
        return "the job was switched off {}"
    if later.get("expires") and ms_of(later["expires"]) <= at_ms:
        return "`expires` was set to a time before it {}"
    return ""


def _to_come(reading: Reading, job: Job, version: Version, at_ms: int, now_ms: int, up: bool) -> Iterator[str]:
    yield f"it is due in {show.span(at_ms - now_ms)}."
    jitter_ms = due.jitter_ms(version.spec.get("jitter", 0), due.slot_id(job.name, version.digest, at_ms))
    if jitter_ms:
        longest = duration_text(version.spec["jitter"])
        yield f"It starts {show.span(jitter_ms)} after that: by its slot's share of `jitter: {longest}`."
    if reading.graph.here.paused:
        yield f"Everything is paused by {reading.graph.here.paused['actor']}: until that ends nothing is decided."
    elif job.paused:
        yield f"The job is paused by {job.paused['actor']}: unless it is resumed, the slot will be skipped."
    if not up:
        yield f"No daemon is running: {_by_missed(job)}"


def _waits(reading: Reading, job: Job, zone: str, up: bool) -> str:
    here = reading.graph.here
    if here.paused:
        since = show.moment(here.paused["since"], zone)
        return f"everything is paused by {here.paused['actor']} since {since}; on resuming, {_by_missed(job)}"
    if not up:
        since = f" since {show.moment(here.since, zone)}" if here.daemon == "stopped" else ""
        return f"no daemon is running{since}; {_by_missed(job)}"
    return "it is due and the daemon has not decided yet; see `hermesd status` if that lasts"


def _by_missed(job: Job) -> str:
    missed = job.spec["missed"]
    return f"a slot noticed late is decided by `missed: {missed['policy']}` within {duration_text(missed['window'])}."
