"""Job files looked over: what is wrong with them, and what their jobs need that is not here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from daemon import jobfiles
from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.jobs import settings_or_defaults
from daemon.order import Surroundings, Unfillable, path_of, task_to_check
from daemon.ports import CommandTask
from daemon.serve import surroundings
from daemon.workers.preflight import preflight
from policies.job import Job
from policies.template import references
from state.graph import Graph

Json = Any


def check(call: Call, files: list[Path]) -> int:
    """Every problem of the files (else of the home's jobs), and of what their jobs need here."""
    settings = settings_or_defaults(call)
    if files:
        loaded = jobfiles.load_files(files, settings.timezone)
    else:
        call.home.check(write=False)
        loaded = jobfiles.load(call.home.jobs, settings.timezone)
    problems = list(loaded.problems)
    around = surroundings(call.home, settings.in_force())
    for name, (job, path) in loaded.jobs.items():
        for field, message in needed(around, job):
            problems.append(jobfiles.Problem(str(path), 0, 0, field, message, "", name))
    if call.json:
        show.json({"ok": not problems, "jobs": sorted(loaded.jobs), "problems": [asdict(one) for one in problems]})
    else:
        for problem in problems:
            print(problem)
        wrong = f", {show.count(len(problems), 'problem')}" if problems else ""
        print(f"{show.count(len(loaded.jobs), 'job')} can be read{wrong}")
    return Exit.BAD_INPUT if problems else Exit.FINE


def needed(around: Surroundings, job: Job) -> list[tuple[str, str]]:
    """(field, problem) for what the job needs and this machine does not have now: programs, folders, models."""
    spec = job.canonical()
    if spec["kind"] == "upgrade":
        return list(_of_repositories(around, spec))
    parts = [(f"steps[{number}]", step) for number, step in enumerate(spec.get("steps", ()))] or [("", spec)]
    found = []
    for field, part in parts:
        if any(reference.step for reference in references(part)):
            continue  # What it will be told is known when the steps before it have ended.
        try:
            # Of a job that files start: one that is sure to be there stands for those to come.
            file = os.devnull if "on" in spec["schedule"] else ""
            task, env = task_to_check(around, Graph(), job.name, 1, {**spec, **part}, "", file)
            problem = preflight(task, env)
        except Unfillable as error:
            problem = str(error)
        if problem:
            found.append((field, problem))
    return found


def _of_repositories(around: Surroundings, spec: Mapping[str, Json]) -> Iterator[tuple[str, str]]:
    env = {**around.environment, **spec["env"]}
    if problem := preflight(CommandTask(("git",), str(around.home)), env):
        yield "", problem
    for repo in spec["repos"]:  # In the order of their keys, and not of the file.
        field, path = f"repos[{repo['key']}]", path_of(around, repo["path"])
        if not os.path.isdir(path):
            yield f"{field}.path", f"{path} is no folder here: clone the repository there, or correct `path`"
        elif not os.path.exists(os.path.join(path, ".git")):
            yield f"{field}.path", f"{path} is no work tree of a git repository: name the folder that has .git in it"
        else:
            for step in ("canary", "verify"):
                # What stands in the repository may come, or go, with the commit that is tried.
                programs = [word for word in (repo[step] or ())[:1] if "/" not in word]
                if programs and (problem := preflight(CommandTask((programs[0],), path), env)):
                    yield f"{field}.{step}", problem
