"""What a person gives these verbs: job files, a policy, and what the home knows of how its jobs went."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from daemon import jobfiles, resources
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.version import ROOT
from policies.adoption import Accepted, Problem
from policies.policy import IllegalPolicy, SchedulingPolicy, adopt
from simulations.habits import Habits
from state.graph import Graph

Json = Any

_POLICY = "scheduling.yaml"
LEARNED_FROM = 200_000
"""So many of the ledger's latest records are read for how the jobs have gone."""


class Given(NamedTuple):
    jobs: Mapping[str, Accepted]
    problems: list[Problem]
    jobs_from: Path


def jobs_of(call: Call, folder: Path | None) -> Given:
    """The jobs of the folder, else of the home. Those with mistakes are told, and left out."""
    from daemon.cli.jobs import settings_or_defaults, zone_in_force

    if folder is None:
        call.home.check(write=False)
    elif not folder.is_dir():
        raise Failure(Exit.BAD_INPUT, f"{folder} is no folder of job files", do="name the folder with --jobs DIR")
    place = folder or call.home.jobs
    zone = zone_in_force(call, call.reading) if has_home(call) else settings_or_defaults(call).timezone
    jobs, problems = jobfiles.accepted(jobfiles.load(place, zone), place)
    if not jobs:
        raise Failure(Exit.BAD_INPUT, "there is no job that can be read", where=str(place), do="`hermesd jobs check`")
    return Given(jobs, problems, place)


def policy_of(call: Call, file: Path | None) -> SchedulingPolicy:
    """The defaults under the file's values, else under the home's override. Failure if they are not legal."""
    defaults = yaml.safe_load((ROOT / "policies" / "defaults" / _POLICY).read_text())
    path = file or call.home.policies / _POLICY
    try:
        override = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(override, dict):
            raise Failure(Exit.BAD_INPUT, "a policy is written as `name: value`, one a line", where=str(path))
        return adopt(defaults, override)
    except FileNotFoundError:
        if file is not None:
            raise Failure(Exit.BAD_INPUT, f"there is no file {file}", do="name a policy with --policy FILE") from None
        return adopt(defaults, {})
    except IllegalPolicy as error:
        raise Failure(Exit.BAD_INPUT, str(error), where=str(path), do=f"the names are {', '.join(defaults)}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise Failure(Exit.BAD_INPUT, " ".join(str(error).split()), where=str(path)) from None


def has_home(call: Call) -> bool:
    return call.home.ledger.is_dir()


def graph_of(call: Call) -> Graph | None:
    """The home's graph; None without a home that has a ledger."""
    if not has_home(call):
        return None
    call.home.check(write=False)
    return call.reading.graph


def habits_of(call: Call, seed: int) -> tuple[Habits, int]:
    """How the home's jobs have gone lately, and from how many attempts that is known."""
    habits = Habits(seed)
    if not has_home(call):
        return habits, 0
    after = max(0, call.reading.last_seq() - LEARNED_FROM)
    return habits, sum(1 for _ in habits.learn(islice(call.reading.records(after=after), LEARNED_FROM)))


def resources_of(call: Call, graph: Graph | None) -> dict[str, Json]:
    """What the daemon saw last, else what this machine offers."""
    if graph is not None and graph.here.cpus:
        here = graph.here
        return {
            "cpus": here.cpus, "memory_bytes": here.memory_bytes, "memory_free_bytes": here.memory_free_bytes,
            "disk_bytes": here.disk_bytes, "disk_free_bytes": here.disk_free_bytes,
            "gpu_memory_bytes": here.gpu_memory_bytes,
        }  # fmt: skip
    return resources.sample(Path.cwd())
