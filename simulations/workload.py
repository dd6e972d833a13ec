"""What people do in the make-believe world: the jobs they define, what they ask for, the files they drop."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache
from random import Random
from typing import TYPE_CHECKING, Any

import orjson

from ledger.instant import text_of
from policies.adoption import Accepted
from policies.job import digest_of, parse_job
from state.arrivals import stamp

if TYPE_CHECKING:
    from simulations.world import World

Json = Any

OVERLAPS = ("buffer_one", "buffer_all(<=3)", "cancel_other", "terminate_other")
TEMPOS: dict[str, tuple[tuple[Json, ...], tuple[int, ...]]] = {
    "seconds": (({"every": "7s"}, {"every": "90s"}, "manual"), (200, 2_000, 30_000)),
    "minutes": (
        ({"every": "90s"}, {"every": "10m"}, {"cron": "*/5 * * * *", "timezone": "Europe/Paris"}, "manual"),
        (500, 5_000, 60_000, 600_000),
    ),
    "hours": (
        ({"every": "45m"}, {"cron": "0 * * * *", "timezone": "Australia/Lord_Howe"}, "manual",
         {"cron": "30 2 * * *", "timezone": "Europe/Paris"}, {"cron": "0 0 * * *", "timezone": "Africa/Cairo"}),
        (5_000, 600_000, 3_600_000, 6 * 3_600_000),
    ),
}  # fmt: skip
"""How dense a life is: its schedules, and how long people wait between two things they do (ms)."""


def names(seed: int) -> list[str]:
    return [f"job{place}" for place in range(Random(f"{seed} jobs").randint(1, 5))]


@lru_cache(maxsize=16)
def tempo_of(seed: int) -> str:
    return Random(f"{seed} tempo").choice(("seconds", "minutes", "minutes", "hours", "hours"))


def job(seed: int, name: str, before: list[str], start_ms: int) -> dict[str, Json]:
    """A job, decided by its name and the seed alone, whatever other jobs there are; `before` may come before it."""
    chance = Random(f"{seed} {name}")
    schedule: Json = chance.choice((*TEMPOS[tempo_of(seed)][0], {"at": text_of(start_ms + 3_600_000)}))
    wants_before, which, when = chance.random() < 0.3, chance.random(), chance.choice(("success", "any"))
    if before and wants_before:
        first = int(which * len(before))
        schedule = {"after": sorted({before[first], before[first // 2]}), "when": when}
    return {"name": name, "schedule": schedule, **_body(chance.randrange(_BODIES))}


_BODIES = 500
"""What jobs do, and how, is one of so many, so that not every life has to read new ones."""


@cache
def _body(number: int) -> dict[str, Json]:
    chance = Random(f"body {number}")
    raw: dict[str, Json] = {
        "kind": "command", "argv": ["work"],
        "priority": chance.randint(0, 100), "timeout": chance.choice(("5s", "5s", "1m", "1h")), "grace": "3s",
        "overlap": chance.choice(("skip", "skip", "allow_all", *OVERLAPS)),
        "missed": {
            "policy": chance.choice(("latest", "skip", "all")), "window": chance.choice(("10m", "1d")), "max": 5,
        },
        "jitter": chance.choice(("0", "0", "3s", "2m")),
        "stop_after_failures": chance.choice((None, None, 2)),
        "budget": chance.choice((None, None, {"runs_per_minute": 2, "tokens_per_hour": 50})),
        "retry": {"attempts": chance.randint(1, 3), "base": "2s", "max": "1m", "on": ["exit", "timeout"]},
        "leases": chance.sample(["repo:a", "repo:b", "gpu"], k=chance.randint(0, 2)),
        "needs": {"cpu": chance.choice((0, 1, 2)), "tokens": 5}, "keep": {"runs": chance.choice((1, 2, 5, 50))},
    }  # fmt: skip
    if chance.random() < 0.25:
        for field in ("argv", "retry", "needs"):
            raw.pop(field)
        raw |= {
            "kind": "agent",
            "steps": [
                {"name": "a", "kind": "command", "argv": ["work"]},
                {"name": "b", "kind": "command", "argv": ["work"]},
                {"name": "c", "kind": "command", "argv": ["work"], "after": ["a", "b"], "timeout": "30s"},
            ],
        }
    return raw


def job_on_files(seed: int, place: int) -> dict[str, Json]:
    chance = Random(f"{seed} drop{place}")
    return {
        "name": f"drop{place}", "kind": "command", "argv": ["work", "{{ file.path }}"], "timeout": "1m", "grace": "3s",
        "schedule": {"on": {"path": f"/drop/{place}/*", "settle": chance.choice(("0", "1s", "20s"))}},
        "overlap": chance.choice(("skip", "allow_all", *OVERLAPS)), "keep": {"runs": chance.choice((1, 2, 5, 50))},
        "retry": {"attempts": chance.randint(1, 2), "base": "2s"},
    }  # fmt: skip


def accepted(raw: Mapping[str, Json]) -> Accepted:
    """A job as its file is taken up. What many jobs say alike is read once, and put together here."""
    name, apart = raw["name"], {"notify"} if "on" in raw["schedule"] else {"notify", "schedule"}
    rest = {field: value for field, value in raw.items() if field not in apart}
    spec = _read(orjson.dumps({**_PLAIN, **rest, "name": "one"})) | {"name": name}
    for field in apart & raw.keys():
        spec[field] = _read(orjson.dumps({**_PLAIN, "argv": ["work"], field: raw[field]}))[field]
    return Accepted(digest_of(spec), spec, f"{name}.yaml")


_PLAIN: Json = {"name": "one", "kind": "command", "schedule": "manual"}


@lru_cache(maxsize=8192)
def _read(text: bytes) -> dict[str, Json]:
    return parse_job(orjson.loads(text)).canonical()


def wishes(seed: int, name: str) -> list[Json]:
    """Whom a job tells of what."""
    rarer = Random(f"{seed} notices {name}").sample(["succeeded", "missed", "skipped", "cancelled", "paused"], 2)
    return [{"on": ["failed", "recovered", *rarer], "webhook": "http://sim/"}, {"on": "failed", "command": ["tell"]}]


def touch_files(world: World, chance: Random) -> bool:
    """People and programs drop files, write them again, and take them away. Whether the daemon is told of it."""
    files = world.host.files
    for _ in range(chance.choice((1, 1, 2, 8))):
        what, there = chance.random(), sorted(files)
        if there and what < 0.25:
            world.host.trace.append(f"-- remove {(path := chance.choice(there))}")
            del files[path]
            continue
        new = f"/drop/{chance.randint(0, 1)}/{len(world.dropped)}"
        path = chance.choice(there) if there and what < 0.45 else new
        # Most are as old as they look; a copy keeps its date, and some dates lie ahead.
        age_ms = chance.choice((0, 0, 0, 86_400_000, -3_600_000))
        mtime_ns = (world.clock.wall_ns // 1_000_000 - age_ms) * 1_000_000
        files[path] = stamp(chance.randint(0, 9), mtime_ns, len(world.dropped))
        world.dropped[f"{path} {files[path]}"] = len(world.dropped)
        world.host.trace.append(f"-- write {path} {files[path]}")
    return chance.random() < 0.7


def ask_something(world: World, chance: Random) -> frozenset[str]:
    """What somebody does next, if anything; the reasons that the daemon is given to look."""
    assert world.loop is not None
    graph = world.loop.graph
    kind = chance.random()
    if kind < 0.45:
        if jobs := _by_hand(world):
            job = chance.choice(jobs)
            for _ in range(chance.choice((1, 1, 1, 2))):  # Some press twice.
                world.ask("start", {"job": job})
    elif kind < 0.65 and graph.active:
        world.ask("cancel", {"run": chance.choice(sorted(graph.active))})
    elif kind < 0.75 and "edit" in world.faults:
        name = chance.choice(sorted(world.jobs))
        world.define(name, {**world.jobs[name].spec, "priority": chance.randint(0, 100)})
        return frozenset({"jobs"})
    elif kind < 0.9:
        _ask_something_rarer(world, chance)
    return frozenset()


def _ask_something_rarer(world: World, chance: Random) -> None:
    assert world.loop is not None
    graph, jobs = world.loop.graph, _by_hand(world)
    if not jobs:
        return
    job = chance.choice(jobs)
    over = (*graph.jobs[job].kept, *graph.jobs[job].unrun) if job in graph.jobs else ()
    kept = sorted(over, key=lambda name: run.ended_at if (run := graph.run(name)) is not None else "")
    now_ms = world.clock.wall_ns // 1_000_000
    what = chance.random()
    if what < 0.3:
        world.ask(chance.choice(("pause", "resume", "resume")), {"job": job})
    elif what < 0.5:
        world.ask(chance.choice(("pause", "resume", "drain", "resume")), {})
    elif what < 0.7 and kept:
        world.ask("retry", {"run": chance.choice(kept)})
    elif what < 0.9:
        span = {"from": text_of(now_ms - 1_200_000), "to": text_of(now_ms)}
        world.ask("backfill", {"job": job, "overlap": chance.choice(("buffer_all", "allow_all")), **span})
    elif graph.requests:
        world.ask("cancel", {"run": chance.choice(sorted(graph.requests))})


def tire_of_jobs(world: World) -> None:
    """People pause what waits, and want its past once more; they take the jobs away next."""
    assert world.loop is not None
    now_ms = world.clock.wall_ns // 1_000_000
    span = {"from": text_of(now_ms - 1_200_000), "to": text_of(now_ms), "overlap": "buffer_all"}
    for name in sorted({run.job for run in world.loop.graph.active.values() if run.state == "waiting"}):
        world.ask("pause", {"job": name})
        world.ask("backfill", {"job": name, **span})


def _by_hand(world: World) -> list[str]:
    return [name for name in sorted(world.jobs) if "on" not in world.jobs[name].spec["schedule"]]
