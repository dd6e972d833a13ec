"""From what a job says to what a worker is told: paths made whole, placeholders filled, the environment spelled out."""

from __future__ import annotations

import contextlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from daemon.inference.hermes_mini import FOLDER as HERMES_MINI
from daemon.leases import file_name
from daemon.ports import CommandTask, InferenceTask, Order, PythonTask
from daemon.secret import NoSecret, Secrets
from daemon.version import ROOT
from policies.fault import BadValue
from policies.template import Reference, fill, places, references
from state.graph import Graph, Run

Json = Any
Task = CommandTask | PythonTask | InferenceTask

TEXT_BYTES_MAX = 1 << 20
"""What `{{ steps.NAME.text }}` may bring along; a longer output is passed by file."""

SECRET_BYTES_MAX = 12_000
"""What all secret variables of an attempt take, as JSON: they go to its process by a socket and never by a file."""


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
    gateway: str = ""
    """The path of the gateway's socket, whether or not one runs; "" if none is to be asked."""
    _plain: dict[int, tuple[Mapping[str, Json], _Plain | None]] = field(default_factory=dict, compare=False, repr=False)
    """By the identity of a spec, which is kept with it so that no other one can come to have it."""

    def folder(self, run: str, attempt: int) -> Path:
        return self.home / "runs" / run / str(attempt)

    def plain(self, spec: Mapping[str, Json]) -> _Plain | None:
        """What a job without placeholders tells every run; None if there is nothing of the kind. A queue of runs of one
        job is worked off without putting the same task together again and again."""
        known = self._plain.get(id(spec))
        if known is None:
            if len(self._plain) >= _PLAIN_KEPT:
                self._plain.clear()
            known = self._plain[id(spec)] = (spec, _plain_of(self, spec))
        return known[1]


class _Plain(NamedTuple):
    task: Task
    """Where it is to be in the run's folder, this is in the home, which stands for it in a look before the start."""
    env: Mapping[str, str]
    limits: Mapping[str, int]
    in_folder: bool


_PLAIN_KEPT = 4096


def _plain_of(around: Surroundings, spec: Mapping[str, Json]) -> _Plain | None:
    body = {key: value for key, value in spec.items() if key not in _NOT_A_TASK}
    if "steps" in spec or any(True for _ in places([body, spec.get("env", {})])):
        return None
    try:
        task, env, limits = task_of(around, Graph(), "", 0, spec, "")
    except Unfillable:
        return None  # Perhaps there is something else to say the next time.
    in_folder = isinstance(task, CommandTask) and not spec.get("cwd")
    return _Plain(_at_home(around, task) if in_folder else task, env, limits, in_folder)


def _at_home(around: Surroundings, task: Task) -> Task:
    return replace(task, cwd=str(around.home)) if isinstance(task, CommandTask) else task


def task_of(
    around: Surroundings,
    graph: Graph,
    name: str,
    attempt: int,
    spec: Mapping[str, Json],
    parent: str,
    file: str = "",
    *,
    reveal: bool = True,
) -> tuple[Task, dict[str, str], dict[str, int]]:
    """The task of one attempt, its whole environment and its limits. Unfillable if something it names is not there.

    Without `reveal` secrets are looked for, and the environment holds their placeholders.
    """
    above = graph.run(parent) if parent else None
    if spec["kind"] == "git":
        return _git_task(around, spec, above), {**around.environment, **_env_of(around, above)}, {}
    folder = around.folder(name, attempt)
    whole = above.spec if above is not None else spec
    file = above.file if above is not None else file
    steps: dict[str, Run] = {}
    if above is not None and above.spec["kind"] == "agent":
        steps = {child.step: child for n in above.children if (child := graph.run(n))}

    def look_up(found: Reference) -> Json:
        if found.name == "run.folder":
            return str(folder)
        if found.name.startswith("file."):
            return _file(file, found.name)
        if found.name == "line":
            return "{{ line }}"  # Filled by the engine, once for each line.
        if found.secret:
            value = Secrets(around.home / "secrets").value(found.secret)
            return value if reveal else f"{{{{ secret.{found.secret} }}}}"
        return _output(around, steps[found.step], found.output)

    try:
        body = fill({key: value for key, value in spec.items() if key not in _NOT_A_TASK}, look_up)
        env = fill(dict(whole.get("env", {})), look_up)
    except NoSecret as error:
        raise Unfillable(str(error)) from None
    except BadValue as error:
        raise Unfillable(f"{error}. {error.advice}".rstrip(". ") + ".") from None
    env = {**around.environment, **env, "HERMESD_HOME": str(around.home)} | ({"HERMESD_FILE": file} if file else {})
    for step, child in steps.items():
        ended = around.folder(child.name, child.attempt)
        variable = "HERMESD_STEP_" + step.upper().replace("-", "_")
        env[variable + "_STDOUT"] = str(_printed(ended))
        env[variable + "_RESULT"] = str(ended / "result.json")
    cwd = _place(around, spec, above) if "place" in spec else path_of(around, whole.get("cwd") or "")
    return _task(around, body, cwd, folder), env, dict(_limits(whole))


_NOT_A_TASK = frozenset({"name", "description", "after", "steps", "env", "notify", "expects", "place"})


def _place(around: Surroundings, spec: Mapping[str, Json], repository: Run | None) -> str:
    """Where a command of an upgrade runs: in the throw-away worktree, or in the repository itself."""
    assert repository is not None
    return worktree_of(around, repository) if spec["place"] == "worktree" else path_of(around, repository.spec["path"])


def worktree_of(around: Surroundings, repository: Run) -> str:
    return str(around.folder(repository.name, repository.attempt) / "worktree")


def _env_of(around: Surroundings, above: Run | None) -> dict[str, str]:
    """What the job sets for its steps. Secrets are told to commands, and not to git."""
    given = above.spec.get("env", {}) if above is not None else {}
    plain = {name: str(text) for name, text in given.items() if not any(found.secret for found in references(text))}
    return {**plain, "HERMESD_HOME": str(around.home)}


def _git_task(around: Surroundings, spec: Mapping[str, Json], above: Run | None) -> PythonTask:
    """A step of an upgrade, in a worker that serves nothing but our own code. Nothing of it is filled in: a branch or
    a folder may be called as it likes."""
    args, verb = dict(spec["args"]), spec["verb"]
    if "path" in args:
        args["path"] = path_of(around, args["path"])
    if verb == "integrity":
        args["home"] = str(around.home)
    elif verb == "probe":
        args["runs"] = str(around.home / "runs")
    elif above is not None:
        args |= {"worktree": worktree_of(around, above), "mark": above.name}
        if verb in ("apply", "rollback"):
            (key,) = above.leases
            file = str(around.home / "leases" / file_name(key))
            args["lease"] = {"key": key, "file": file, "holder": above.name, "token": above.token}
    return PythonTask(call=f"daemon.upgrades.steps:{verb}", kwargs=args, cwd=str(ROOT), path=())


def task_to_check(
    around: Surroundings,
    graph: Graph,
    name: str,
    attempt: int,
    spec: Mapping[str, Json],
    parent: str,
    file: str = "",
) -> tuple[Task, Mapping[str, str]]:
    """As `task_of`, for a look before the start: the attempt's own folder is not made yet, the home stands for it."""
    if not (parent or file) and (known := around.plain(spec)) is not None:
        return known.task, known.env
    task, env, _ = task_of(around, graph, name, attempt, spec, parent, file, reveal=False)
    if isinstance(task, CommandTask) and task.cwd == str(around.folder(name, attempt)):
        task = _at_home(around, task)
    return task, env


def _task(around: Surroundings, body: Mapping[str, Json], cwd: str, folder: Path) -> Task:
    match body["kind"]:
        case "command":
            argv = tuple(body["argv"]) if body.get("argv") else ("/bin/sh", "-c", body["shell"])
            stdin = path_of(around, body["stdin"]) if body.get("stdin") else None
            return CommandTask(argv=tuple(map(str, argv)), cwd=cwd or str(folder), stdin=stdin)
        case "python":
            # Not the run's folder: workers are kept warm for one folder, and modules stand beside the job files.
            jobs = str(around.home / "jobs")
            path = tuple(path_of(around, entry) for entry in body["path"])
            return PythonTask(call=body["call"], kwargs=body["kwargs"], cwd=cwd or jobs, path=(*path, jobs))
        case "inference":
            lines = body.get("lines") or {"paths": (), "last": 100}
            return InferenceTask(
                model=str(_model(around, body["model"])), prompt=body["prompt"],
                lines=tuple(path_of(around, path) for path in lines["paths"]), last=lines["last"],
                max_new_tokens=body["max_new_tokens"], temperature=body["temperature"], top_p=body["top_p"],
                top_k=body["top_k"], seed=body["seed"], stop=tuple(body["stop"]), device=body["device"],
                dtype=body["dtype"], quantization=body["quantization"], gateway=around.gateway,
            )  # fmt: skip
    raise Unfillable(f"kind {body['kind']!r} has no worker")


def _limits(spec: Mapping[str, Json]) -> Mapping[str, int]:
    return {name: value for name, value in spec.get("limits", {}).items() if value is not None}


def path_of(around: Surroundings, text: str) -> str:
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
    return Path(path_of(around, name))


def _gguf_in(folder: Path) -> Path:
    """The one GGUF file of the folder, else the folder: as the store of models lays them out."""
    files = list(folder.glob("*.gguf"))
    return files[0] if len(files) == 1 and not (folder / "config.json").exists() else folder


def models_of(home: Path, named: Mapping[str, str], user_home: Path) -> dict[str, Path]:
    """Every model that a job can name without a path: the embedded one, the folders in `models/`, the aliases."""
    models = {"hermes-mini": HERMES_MINI}
    if (home / "models").is_dir():
        models |= {entry.name: _gguf_in(entry) for entry in sorted((home / "models").iterdir())
                   if entry.is_dir() and not entry.name.startswith(".")}  # fmt: skip
    return models | {name: user_home / Path(path).expanduser() for name, path in named.items()}


def _file(path: str, name: str) -> str:
    if not path:
        raise Unfillable(f"this run has no file for {{{{ {name} }}}}: start it with `hermesd start JOB --file PATH`")
    return path if name == "file.path" else path.rpartition("/")[2]


def _printed(folder: Path) -> Path:
    """What an attempt printed. Where it printed nothing there is no file, and an empty one is made for who reads it."""
    path = folder / "stdout.log"
    if folder.is_dir():
        with contextlib.suppress(OSError):  # No room: whoever reads it finds that it is missing.
            path.touch(0o600)
    return path


def _output(around: Surroundings, child: Run, output: str) -> Json:
    folder = around.folder(child.name, child.attempt)
    path = folder / "result.json" if output == "result" else _printed(folder)
    if output == "file":
        return str(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # A pipe would keep the daemon waiting for somebody to write into it.
            raise Unfillable(f"the output of step {child.step} is no file: {path}")
        if status.st_size > TEXT_BYTES_MAX:
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


def order_to_watch(around: Surroundings, run: Run, why: str) -> Order:
    """For an attempt that has begun and whose order cannot be put together any more: it has what it needs. Should it
    turn out that it never began, it cannot, and its error output says why."""
    task = CommandTask(("/bin/sh", "-c", 'echo "$1" >&2; exit 1', "hermesd", why), str(around.home))
    return Order(run.name, run.attempt, run.token, str(around.folder(run.name, run.attempt)), task, around.environment)


def order_of(around: Surroundings, graph: Graph, run: Run) -> Order:
    """The order for `run`'s current attempt. Unfillable as for `task_of`."""
    if not (run.parent or run.file) and (known := around.plain(run.spec)) is not None:
        own, plain = f"{around.home}/runs/{run.name}/{run.attempt}", known.task
        if known.in_folder and isinstance(plain, CommandTask):
            plain = CommandTask(plain.argv, own, plain.stdin)
        return Order(run.name, run.attempt, run.token, own, plain, known.env, known.limits)
    task, env, limits = task_of(around, graph, run.name, run.attempt, run.spec, run.parent, run.file)
    folder = str(around.folder(run.name, run.attempt))
    above = graph.run(run.parent) if run.parent else run
    given = above.spec.get("env", {}) if above is not None else {}
    secret = frozenset(name for name, text in given.items() if any(found.secret for found in references(text)))
    held_bytes = len(json.dumps({name: env[name] for name in secret}))
    if held_bytes > SECRET_BYTES_MAX:
        raise Unfillable(
            f"its secret variables take {held_bytes} bytes, more than {SECRET_BYTES_MAX}: give the program their paths"
        )
    return Order(run.name, run.attempt, run.token, folder, task, env, limits, secret)


def without_secrets(order: Order, text: str) -> str:
    """`text`, with none of the order's secrets in it."""
    for name in order.secret:
        text = text.replace(order.env[name], "***")
    return text
