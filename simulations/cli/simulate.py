"""`hermesd simulate`: the days ahead, as a table and a picture."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.cli.instant import instant_ms
from daemon.reading import replaying
from daemon.system import SystemClock
from ledger.instant import text_of
from simulations import chart
from simulations.cli.given import graph_of, habits_of, jobs_of, policy_of, resources_of
from simulations.forecast import FAULTS, Forecast, forecast
from simulations.tally import BY_DESIGN, JobTally

Json = Any

_DAY_MS = 86_400_000
_SHOWN = 12


def simulate(
    call: Call,
    *,
    days: float,
    seed: int,
    faults: str,
    jobs: Path | None,
    policy: Path | None,
    start: str,
    svg: Path | None,
) -> None:
    kinds = [kind.strip() for kind in faults.split(",") if kind.strip()]
    if wrong := sorted(set(kinds) - set(FAULTS)):
        raise Failure(Exit.BAD_INPUT, f"there is no fault {wrong[0]!r}", do=f"there are {', '.join(FAULTS)}")
    now_ms = SystemClock().now().wall_ms
    begin_ms = instant_ms(start, now_ms, call.zone, ago=False) if start else now_ms // 60_000 * 60_000
    given, rules = jobs_of(call, jobs), policy_of(call, policy)
    graph = graph_of(call)
    habits, attempts = habits_of(call, seed)
    paused = {}
    if graph is not None and jobs is None:
        paused = {
            job.name: job.paused["reason"] for job in graph.jobs.values() if job.paused and job.name in given.jobs
        }
    with replaying():
        found = forecast(
            given.jobs, rules, resources_of(call, graph), habits,
            begin_ms=begin_ms, end_ms=begin_ms + int(days * _DAY_MS), seed=seed, faults=kinds, paused=paused,
        )  # fmt: skip
    ahead = f"{days:g} {'day' if days == 1 else 'days'} from {show.moment(begin_ms, call.zone)}"
    title = f"{show.count(len(given.jobs), 'job')}, {ahead}, seed {seed}"
    if svg is not None:
        svg.write_text(chart.svg(found.tally, call.zone, title), encoding="utf-8")
    if call.json:
        show.json(_json(found, seed, attempts, [problem._asdict() for problem in given.problems], sorted(paused), svg))
        return
    print(f"{title}: {_total(found)}. Nothing was done.")
    for problem in given.problems:
        print(f"left out: {problem.file}:{problem.line}: {problem.field}: {problem.message}")
    print()
    show.table(
        ("JOB", "SLOTS", "RAN", "NOT RUN", "FAILED", "WAIT p50", "p95", "LONGEST", "BY", "TIME", "FROM"),
        (
            _row(name, job, habits.known(name) or _steps_known(habits, given.jobs[name].spec))
            for name, job in _jobs(found)
        ),
    )
    _print_picture(found, call.zone)
    _print_findings(found, call.zone, sorted(paused), attempts)
    if svg is not None:
        print(f"\nThe picture is in {svg}.")


def _steps_known(habits: Any, spec: Json) -> int:
    return min((habits.known(spec["name"], step["name"]) for step in spec.get("steps", ())), default=0)


def _jobs(found: Forecast) -> Iterable[tuple[str, JobTally]]:
    return sorted(found.tally.jobs.items())


def _total(found: Forecast) -> str:
    jobs = found.tally.jobs.values()
    slots, started = sum(job.slots for job in jobs), sum(job.started for job in jobs)
    return f"{show.count(slots, 'slot')}, {started} run, {show.count(found.records, 'event')}"


def _failed(job: JobTally) -> int:
    return sum(count for outcome, count in job.outcomes.items() if outcome not in ("succeeded", "cancelled"))


def _row(name: str, job: JobTally, known: int) -> tuple[object, ...]:
    not_run = ", ".join(f"{count} {rule}" for rule, count in sorted(job.not_run.items()))
    waits = [show.span(job.percentile_ms(percent)) if job.waits_ms else "" for percent in (50, 95)]
    longest = show.span(job.longest.ms) if job.waits_ms else ""
    past = show.count(known, "attempt") if known else "assumed"
    return (
        name,
        job.slots,
        job.started,
        not_run,
        _failed(job) or "",
        *waits,
        longest,
        job.longest.rule,
        show.span(job.busy_ms),
        past,
    )


def _print_picture(found: Forecast, zone: str) -> None:
    """As wide as the terminal; in a file, as wide as a page."""
    width = get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100
    plain = "utf" not in (sys.stdout.encoding or "").lower()
    lines = list(chart.text(found.tally, width, ascii_only=plain))
    (_, first), (_, last) = (found_ticks := chart.ticks(found.tally, zone, 2))[0], found_ticks[-1]
    print(f"\n{first} to {last}; fuller is busier, ! a failure, x a slot not run")
    for line in lines:
        print(line)


def _print_findings(found: Forecast, zone: str, paused: list[str], attempts: int) -> None:
    tally = found.tally
    _listed("What starves", [f"{one.job}: {one.why}" for one in found.starving], "nothing")
    collisions = [
        f"{one.waits} waits for {one.holds or 'others'} ({one.rule}): {show.count(count, 'time')},"
        f" {show.span(tally.collision_ms[one])}"
        for one, count in sorted(tally.collisions.items(), key=lambda item: (-tally.collision_ms[item[0]], item))
    ]
    _listed("What collides", collisions, "nothing")
    clocks = [f"{name}: {text}" for name, text in found.skipped_hours]
    clocks += [f"{one.job} at {show.moment(one.at_ms, zone)}: {one.text}" for one in found.shifts]
    _listed("What daylight saving does", clocks, "nothing in this span")
    most = max((one.most_runs for one in tally.usage), default=0)
    run_ms = sum(one.run_ms for one in tally.usage)
    cpu_ms = sum(one.cpu_ms for one in tally.usage)
    span_ms = max(1, found.end_ms - found.begin_ms)
    used = [f"runs: {run_ms / span_ms:.2f} at once on average, {most} at most; {tally.waiting} wait at the end"]
    if cpu_ms:
        used.append(f"reserved processors: {cpu_ms / span_ms:.2f} on average")
    if tokens := sum(one.tokens for one in tally.usage):
        used.append(f"tokens: {tokens}")
    _listed("What is used", used, "nothing")
    if found.outages:
        told = [f"{show.moment(o.begin_ms, zone)}: {o.kind}, {show.span(o.end_ms - o.begin_ms)}" for o in found.outages]
        _listed("What went wrong on purpose", told, "nothing")
    assumed = [f"durations are drawn from {show.count(attempts, 'attempt')} in the ledger"] if attempts else []
    if found.unknown:
        assumed.append(f"no past, so a minute each and no failure: {_names(found.unknown)}")
    if found.not_driven:
        assumed.append(f"started by people or files, so never here: {_names(found.not_driven)}")
    if paused:
        assumed.append(f"paused now, and so all the time: {_names(paused)}")
    assumed.append("programs, models and secrets are there; nobody starts, cancels or pauses anything")
    _listed("What was assumed", assumed, "nothing")


def _names(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def _listed(title: str, lines: list[str], none: str) -> None:
    print(f"\n{title}:" + ("" if lines else f" {none}"))
    for line in lines[:_SHOWN]:
        print(f"  {line}")
    if len(lines) > _SHOWN:
        print(f"  and {len(lines) - _SHOWN} more (--json has all)")


def _json(found: Forecast, seed: int, attempts: int, problems: list[Json], paused: list[str], svg: Path | None) -> Json:
    tally = found.tally
    return {
        "seed": seed,
        "from": text_of(found.begin_ms),
        "to": text_of(found.end_ms),
        "decisions": tally.decisions,
        "events": found.records,
        "jobs": {name: _job_json(job) for name, job in _jobs(found)},
        "starving": [one._asdict() for one in found.starving],
        "collisions": [
            {**one._asdict(), "times": count, "waited_ms": tally.collision_ms[one]}
            for one, count in sorted(tally.collisions.items())
        ],
        "clock_changes": [{"zone": zone, "change": text} for zone, text in found.skipped_hours],
        "shifts": [{"job": one.job, "at": text_of(one.at_ms), "text": one.text} for one in found.shifts],
        "usage": [
            {
                "from": text_of(one.begin_ms), "runs": round(one.run_ms / tally.stretch_ms, 4),
                "runs_at_most": one.most_runs, "processors": round(one.cpu_ms / tally.stretch_ms, 4),
                "memory_bytes": one.memory_byte_ms // tally.stretch_ms, "tokens": one.tokens,
            }
            for one in tally.usage
        ],
        "outages": [
            {"kind": one.kind, "from": text_of(one.begin_ms), "to": text_of(one.end_ms)} for one in found.outages
        ],
        "learned_from_attempts": attempts,
        "assumed": {"no_past": found.unknown, "not_started_by_the_clock": found.not_driven, "paused": paused},
        "left_out": problems,
        "running_at_end": tally.unfinished,
        "waiting_at_end": tally.waiting,
        "svg": str(svg) if svg is not None else None,
    }  # fmt: skip


def _job_json(job: JobTally) -> Json:
    return {
        "slots": job.slots,
        "started": job.started,
        "attempts": job.attempts,
        "not_run": dict(sorted(job.not_run.items())),
        "missed": job.count("missed") + job.count("coalesced"),
        "outcomes": dict(sorted(job.outcomes.items())),
        "wait_ms": {"p50": job.percentile_ms(50), "p95": job.percentile_ms(95), "max": job.longest.ms},
        "longest_wait": job.longest._asdict(),
        "waited_ms_by_rule": dict(sorted(job.waited_by.items())),
        "waited_by_design": sorted(BY_DESIGN & job.waited_by.keys()),
        "busy_ms": job.busy_ms,
        "tokens": job.tokens,
    }
