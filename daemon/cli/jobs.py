"""Jobs: what is in force, what the files say, what is wrong with them, and when each is due."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daemon import jobfiles
from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.cli.instant import instant_ms
from daemon.home import HomeError
from daemon.reading import Reading
from daemon.settings import Settings
from daemon.system import SystemClock
from ledger.instant import ms_of, text_of
from policies.fault import meant
from policies.job import Job, json_schema, parse_job
from policies.quantity import duration_text
from policies.upcoming import upcoming
from state.graph import Job as Known

Json = Any


def in_force(call: Call, reading: Reading | None = None) -> dict[str, Job]:
    """The jobs as the daemon runs them, or would once it had looked at the files: those of sound files, and the last
    good version of those whose file is broken."""
    reading = reading or call.reading
    graph, loaded = reading.graph, jobfiles.load(call.home.jobs, zone_in_force(call, reading))
    jobs = {name: job for name, (job, _) in loaded.jobs.items()}
    broken = {Path(problem.file).name for problem in loaded.problems}
    for name, node in graph.jobs.items():
        if name not in jobs and not node.removed and node.source in broken:
            jobs[name] = parse_job(node.spec)
    return dict(sorted(jobs.items()))


def zone_in_force(call: Call, reading: Reading) -> str:
    """The zone of schedules that name none. A daemon took it when it started, and this shell may be in another: so that
    of the one that runs; else what the settings name; else that of the last one."""
    here, settings = reading.graph.here, call.settings
    named = "timezone" in settings.model_fields_set
    return here.zone if here.zone and (here.daemon == "running" or not named) else settings.timezone


def listing(call: Call) -> None:
    reading = call.reading
    jobs = in_force(call, reading)
    now_ms = SystemClock().now().wall_ms
    rows = [_row(reading, name, job, now_ms) for name, job in jobs.items()]
    loaded = jobfiles.load(call.home.jobs, zone_in_force(call, reading))
    if call.json:
        show.json(rows)
        return
    if not rows and not loaded.problems:
        print(f"No jobs yet: write one into {call.home.jobs}, or begin with `hermesd init --examples`.")
    zone = call.zone
    if rows:
        show.table(
            ("JOB", "KIND", "SCHEDULE", "NEXT", "LAST", "NOTE"),
            [
                (
                    row["job"],
                    row["kind"],
                    row["schedule_text"],
                    show.moment(row["next"], zone) or "-",
                    row["last_outcome"].replace("_", " ") or "-",
                    row["note"],
                )
                for row in rows
            ],
        )
    for problem in loaded.problems:
        print(f"rejected: {problem}")


def _row(reading: Reading, name: str, job: Job, now_ms: int) -> Json:
    node = reading.graph.jobs.get(name)
    known = node is not None and not node.removed
    # Where the clock was set back, slots that are to come once more have their decision.
    from_ms = max(now_ms, node.cursor_ms + 1) if node is not None else now_ms
    rows = upcoming(job, from_ms, 1) if job.enabled else []
    notes = [] if job.enabled else ["disabled"]
    if not known:
        notes.append("new: no daemon has seen it yet")
    elif node is not None and node.digest != job.digest():
        notes.append("changed: no daemon has seen the change yet")
    if job.expires_ms is not None and job.expires_ms <= now_ms:
        notes.append("expired")
    if known and node is not None and node.paused:
        notes.append(f"paused by {node.paused['actor']}")
    if node is not None and node.failures_in_row > 1:
        notes.append(f"failed {node.failures_in_row} times in a row")
    if (files := reading.graph.arrivals.get(name)) is not None:
        notes += [f"{show.count(len(files.pending), 'file')} waiting"] if files.pending else []
        notes += [files.problem] if files.problem else []
    return {
        "job": name,
        "kind": job.kind,
        "schedule": job.canonical()["schedule"],
        "schedule_text": schedule_text(job.canonical()["schedule"]),
        "enabled": job.enabled,
        "priority": job.priority,
        "digest": job.digest(),
        "revision": node.revision if node is not None else 0,
        "source": node.source if node is not None else "",
        "next": rows[0]["utc"] if rows else "",
        "active": list(node.active) if node is not None else [],
        "last_outcome": node.last_outcome if node is not None else "",
        "last_success_at": node.last_success_at if node is not None else "",
        "failures_in_row": node.failures_in_row if node is not None else 0,
        "note": "; ".join(notes),
    }


def schedule_text(schedule: Mapping[str, Json]) -> str:
    """As a person would write it, in few words."""
    if "cron" in schedule:
        return f"{schedule['cron']} {schedule['timezone']}"
    if "every" in schedule:
        offset = f" + {duration_text(schedule['offset'])}" if schedule["offset"] else ""
        return f"every {duration_text(schedule['every'])}{offset}"
    if "at" in schedule:
        return f"at {schedule['at']} {schedule['timezone']}"
    if "after" in schedule:
        return f"after {schedule['when']} of {', '.join(schedule['after'])}"
    if "on" in schedule:
        return f"on {schedule['on']['path']}"
    return "manual"


def shown(call: Call, name: str) -> None:
    import yaml

    reading = call.reading
    jobs = in_force(call, reading)
    if name not in jobs:
        raise unknown(call, name, jobs)
    now_ms = SystemClock().now().wall_ms
    row = _row(reading, name, jobs[name], now_ms) | {"spec": jobs[name].canonical()}
    if call.json:
        show.json(row)
        return
    zone = call.zone
    show.facts(
        [
            ("job", name),
            ("file", str(call.home.jobs / row["source"]) if row["source"] else "not seen by a daemon yet"),
            ("revision", f"{row['revision']}, digest {row['digest']}"),
            ("next", show.moment(row["next"], zone) or "not scheduled"),
            ("last", row["last_outcome"].replace("_", " ") or "never ran"),
            ("last success", show.moment(row["last_success_at"], zone) or "never"),
            ("active", ", ".join(row["active"]) or "none"),
            ("note", row["note"] or "none"),
        ]
    )
    print("\nIn force, defaults filled in (durations in ms, sizes in bytes):\n")
    print(yaml.safe_dump(row["spec"], sort_keys=False, allow_unicode=True), end="")


def unknown(call: Call, name: str, known: Mapping[str, object]) -> Failure:
    problems = jobfiles.load(call.home.jobs, call.settings.timezone).problems
    own = next((problem for problem in problems if problem.job == name), None)
    if own is not None:
        what = f"there is no job {name!r}: its file was rejected"
        return Failure(Exit.UNKNOWN, what, where=str(own), do="correct it; `hermesd jobs check` shows every problem")
    do = meant(name, sorted(known), f"the jobs are: {', '.join(sorted(known))}" if known else "there is none yet")
    return Failure(Exit.UNKNOWN, f"there is no job {name!r}", where=str(call.home.jobs), do=do + rejections(problems))


def rejections(problems: list[jobfiles.Problem]) -> str:
    """What advice adds where the job that is missed may stand in a file that was rejected."""
    return f"; {show.count(len(problems), 'problem')} in job files: see `hermesd jobs check`" if problems else ""


def settings_or_defaults(call: Call) -> Settings:
    """The home's, or those of no home at all: files can be looked at without one."""
    try:
        call.home.check(write=False)
    except HomeError:
        return Settings()
    return call.settings


def schema(call: Call) -> None:
    del call
    show.json(json_schema())


def upcoming_slots(call: Call, name: str, *, limit: int, start: str, file: Path | None) -> None:
    """`hermesd next`."""
    now_ms = SystemClock().now().wall_ms
    zone = settings_or_defaults(call).timezone if file is not None else zone_in_force(call, call.reading)
    from_ms = instant_ms(start, now_ms, zone, ago=False) if start else now_ms
    if file is not None:
        loaded = jobfiles.load_files([file], zone)
        if loaded.problems:
            raise Failure(
                Exit.BAD_INPUT,
                "\n       ".join(f"{problem}" for problem in loaded.problems),
                do="correct the file; `hermesd jobs check FILE` looks again",
            )
        jobs = {found: job for found, (job, _) in loaded.jobs.items()}
    else:
        jobs = in_force(call)
    if name and name not in jobs:
        raise unknown(call, name, jobs)
    chosen = {found: job for found, job in jobs.items() if job.enabled and (not name or found == name)}
    rows: list[tuple[int, str, dict[str, str]]] = []
    for found, job in chosen.items():
        rows += [(ms_of(row["utc"]), found, row) for row in upcoming(job, from_ms, limit, zone)]
    rows = sorted(rows, key=lambda row: row[:2])[:limit]
    several = not name and (file is None or len(jobs) > 1)
    nodes = {} if file is not None else call.reading.graph.jobs
    held = {} if file is not None else call.reading.graph.here.paused

    def noted(found: str, row: Mapping[str, str]) -> str:
        return _slot_note(row, nodes.get(found), now_ms, held)

    if call.json:
        show.json(
            [
                ({"job": found} if several else {})
                | {"slot": row["slot"], "at": row["at"], "utc": row["utc"]}
                | ({"starts": row["starts"]} if "starts" in row else {})
                | ({"note": note} if (note := noted(found, row)) else {})
                for _, found, row in rows
            ]
        )
    elif rows:
        show.table(
            ("JOB", "AT", "UTC", "IN", "SLOT", "NOTE"),
            [
                (found, row["at"], text_of(at_ms), show.span(at_ms - now_ms), row["slot"], "; ".join(notes))
                for at_ms, found, row in rows
                for notes in [[note for note in (_jitter_note(row), noted(found, row)) if note]]
            ],
        )
    elif name and name in chosen and "on" in chosen[name].canonical()["schedule"]:
        print(f"{name} starts whenever a file arrives: {chosen[name].canonical()['schedule']['on']['path']}")
    elif name:
        job = jobs[name]
        why = f"its schedule is `{schedule_text(job.canonical()['schedule'])}`"
        if job.expires is not None:
            why += f", and from {show.moment(job.expires, zone)} on it has no slots (`expires`)"
        print(f"Nothing of {name} is coming by the clock: {why if name in chosen else 'it is disabled'}.")
    else:
        why = "is due by the clock" if chosen else "is enabled" if jobs else "is there"
        print(f"Nothing is coming: no job {why}.")


def _slot_note(row: Mapping[str, str], node: Known | None, now_ms: int, held: Mapping[str, Json]) -> str:
    notes = [row["note"]] if row["note"] else []
    if node is not None and now_ms < ms_of(row["utc"]) <= node.cursor_ms:
        notes.append("the clock was set back: it has its decision already, and nothing starts")
    elif held:
        notes.append(f"everything is paused by {held['actor']}: not decided before that ends")
    elif node is not None and node.paused:
        notes.append(f"paused by {node.paused['actor']}: skipped unless the job is resumed")
    return "; ".join(notes)


def _jitter_note(row: Mapping[str, str]) -> str:
    return (
        f"starts {show.span(ms_of(row['starts']) - ms_of(row['utc']))} after, by its jitter" if "starts" in row else ""
    )
