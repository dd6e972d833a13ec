"""From what a job says to what a worker is told: paths made whole, placeholders filled, the environment spelled out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from daemon.inference.hermes_mini import FOLDER as HERMES_MINI
from daemon.ports import CommandTask, InferenceTask, Order, PythonTask
from policies.fault import BadValue
from policies.template import Reference, fill
from state.graph import Graph, Run

Json = Any
Task = CommandTask | PythonTask | InferenceTask

TEXT_BYTES_MAX = 1 << 20
"""What `{{ steps.NAME.text }}` may bring along; a longer output is passed by file."""


class Unfillable(Exception):
    """A task that cannot be put together here. The message says what is missing, where, and what to do."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What tasks are made against: the home, the user, and the models that have a name."""

    home: Path
    user_home: Path
    environment: Mapping[str, str]
    """The clean environment every run starts from."""
    models: Mapping[str, Path]

    def folder(self, run: str, attempt: int) -> Path:
        return self.home / "runs" / run / str(attempt)


def task_of(
    around: Surroundings, graph: Graph, name: str, attempt: int, spec: Mapping[str, Json], parent: str
) -> tuple[Task, dict[str, str], dict[str, int]]:
    """The task of one attempt, its whole environment and its limits. Unfillable if something it names is not there."""
    folder = around.folder(name, attempt)
    above = graph.run(parent) if parent else None
    whole = above.spec if above is not None else spec
    steps = {child.step: child for n in above.children if (child := graph.run(n))} if above is not None else {}

    def look_up(found: Reference) -> Json:
        if found.name == "run.folder":
            return str(folder)
        if found.name == "line":
            return "{{ line }}"  # Filled by the engine, once for each line.
        return _output(around, steps[found.step], found.output)

    try:
        body = fill({key: value for key, value in spec.items() if key not in ("name", "after", "steps")}, look_up)
        env = fill(dict(whole.get("env", {})), look_up)
    except BadValue as error:
        raise Unfillable(f"{error}. {error.advice}".rstrip(". ") + ".") from None
    env = {**around.environment, **env, "HERMESD_HOME": str(around.home)}
    for step, child in steps.items():
        ended = around.folder(child.name, child.attempt)
        variable = "HERMESD_STEP_" + step.upper().replace("-", "_")
        env[variable + "_STDOUT"] = str(ended / "stdout.log")
        env[variable + "_RESULT"] = str(ended / "result.json")
    cwd = _path(around, whole.get("cwd") or "")
    return _task(around, body, cwd, folder), env, dict(_limits(whole))


def task_to_check(
    around: Surroundings, graph: Graph, name: str, attempt: int, spec: Mapping[str, Json], parent: str
) -> tuple[Task, dict[str, str]]:
    """As `task_of`, for a look before the start: the attempt's own folder is not made yet, the home stands for it."""
    task, env, _ = task_of(around, graph, name, attempt, spec, parent)
    if isinstance(task, CommandTask) and task.cwd == str(around.folder(name, attempt)):
        task = replace(task, cwd=str(around.home))
    return task, env


def _task(around: Surroundings, body: Mapping[str, Json], cwd: str, folder: Path) -> Task:
    match body["kind"]:
        case "command":
            argv = tuple(body["argv"]) if body.get("argv") else ("/bin/sh", "-c", body["shell"])
            stdin = _path(around, body["stdin"]) if body.get("stdin") else None
            return CommandTask(argv=tuple(map(str, argv)), cwd=cwd or str(folder), stdin=stdin)
        case "python":
            # Not the run's folder: workers are kept warm for one folder, and modules stand beside the job files.
            jobs = str(around.home / "jobs")
            path = tuple(_path(around, entry) for entry in body["path"])
            return PythonTask(call=body["call"], kwargs=body["kwargs"], cwd=cwd or jobs, path=(*path, jobs))
        case "inference":
            lines = body.get("lines") or {"paths": (), "last": 100}
            return InferenceTask(
                model=str(_model(around, body["model"])), prompt=body["prompt"],
                lines=tuple(_path(around, path) for path in lines["paths"]), last=lines["last"],
                max_new_tokens=body["max_new_tokens"], temperature=body["temperature"], top_p=body["top_p"],
                top_k=body["top_k"], seed=body["seed"], stop=tuple(body["stop"]), device=body["device"],
                dtype=body["dtype"], quantization=body["quantization"],
            )  # fmt: skip
    raise Unfillable(f"kind {body['kind']!r} has no worker")


def _limits(spec: Mapping[str, Json]) -> Mapping[str, int]:
    return {name: value for name, value in spec.get("limits", {}).items() if value is not None}


def _path(around: Surroundings, text: str) -> str:
    """`~` is the user's home folder; a relative path counts from there, as it does for cron."""
    if not text:
        return ""
    if text == "~" or text.startswith("~/"):
        return str(around.user_home / text[2:])
    return str(around.user_home / text)


def _model(around: Surroundings, name: str) -> Path:
    if name in around.models:
        return around.models[name]
    if "/" not in name:
        known = ", ".join(sorted(around.models))
        raise Unfillable(
            f"model {name!r} is no known name ({known}); name it under `models:` in hermesd.yaml, or give its folder"
        )
    return Path(_path(around, name))


def models_of(home: Path, named: Mapping[str, str], user_home: Path) -> dict[str, Path]:
    """Every model that a job can name without a path: the embedded one, the folders in `models/`, the aliases."""
    models = {"hermes-mini": HERMES_MINI}
    if (home / "models").is_dir():
        models |= {entry.name: entry for entry in sorted((home / "models").iterdir()) if entry.is_dir()}
    return models | {name: user_home / Path(path).expanduser() for name, path in named.items()}


def _output(around: Surroundings, child: Run, output: str) -> Json:
    folder = around.folder(child.name, child.attempt)
    path = folder / ("result.json" if output == "result" else "stdout.log")
    if output == "file":
        return str(path)
    try:
        if path.stat().st_size > TEXT_BYTES_MAX:
            raise Unfillable(
                f"the output of step {child.step} has more than {TEXT_BYTES_MAX} bytes ({path});"
                f" pass it on as {{{{ steps.{child.step}.file }}}}"
            )
        data = path.read_bytes()
    except OSError as error:
        raise Unfillable(f"the output of step {child.step} cannot be read: {path}: {error.strerror}") from None
    if output == "text":
        return data.decode("utf-8", "replace").strip()
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Unfillable(f"the result of step {child.step} is no JSON: {path}: {error}") from None


def order_of(around: Surroundings, graph: Graph, run: Run) -> Order:
    """The order for `run`'s current attempt. Unfillable as for `task_of`."""
    task, env, limits = task_of(around, graph, run.name, run.attempt, run.spec, run.parent)
    folder = str(around.folder(run.name, run.attempt))
    return Order(run.name, run.attempt, run.token, folder, task, env, limits)
