"""A command as the daemon sees it: looked up and checked before it is handed to the keeper, explained after its end."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

from daemon.ports import CommandTask, Order, SpawnError
from daemon.workers.claim import make_folder
from daemon.workers.keeper import DEFAULTED
from daemon.workers.wire import LINE_BYTES_MAX, line_of

LOG = os.O_WRONLY | os.O_CREAT | os.O_APPEND


def environment_of(order: Order) -> dict[str, str]:
    """The whole environment of the attempt: what the order says and who it is, nothing of ours."""
    return {**order.env, **who(order)}


def who(order: Order) -> dict[str, str]:
    """The variables that name the attempt."""
    return {"HERMESD_RUN": order.run, "HERMESD_ATTEMPT": str(order.attempt), "HERMESD_FOLDER": order.folder}


def place_of(folder: str) -> str:
    """Where the processes that perform attempts keep their own files: beside the runs, in the same file system."""
    return f"{folder.rsplit('/', 2)[0]}/.workers"


def launch(program: str, argv: list[str], env: Mapping[str, str], *, stdout: str, stderr: str, channel: int) -> int:
    """Start a process of ours that performs attempts: in a session of its own, with output appended to these files, no
    descriptor of ours but `channel`, as 3, and signals as a login shell would leave them. Returns its pid. SpawnError
    says what is wrong."""
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, stdout, LOG, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, stderr, LOG, 0o600),
        (os.POSIX_SPAWN_DUP2, channel, 3),
    ]
    try:
        return os.posix_spawn(program, argv, env, file_actions=actions, setsid=True, setsigmask=[], setsigdef=DEFAULTED)
    except ValueError as error:
        raise SpawnError(f"cannot start: an environment value holds a NUL byte ({error}); remove it") from error
    except OSError as error:
        raise SpawnError(
            f"cannot start {program}: {error.strerror}; check that it and {os.path.dirname(stderr)} are there, and the "
            "limits on processes, memory and disk"
        ) from error


def line_for(order: Order, env: Mapping[str, str], rest: bytes) -> bytes:
    """The order as it is sent: the message itself, or the path of the file it was put in, with what must be in no file.
    `rest` is the end of the message as a line, what stands before and in `env` is the attempt's own. ValueError if that
    is not JSON; SpawnError if there is no room for the file."""
    about = {"type": "perform", "run": order.run, "attempt": order.attempt, "folder": order.folder}
    line = b"%b,%b" % (line_of({**about, "env": env})[:-2], rest)
    if len(line) <= LINE_BYTES_MAX:
        return line
    apart = {name: env[name] for name in order.secret if name in env}
    kept = {name: value for name, value in env.items() if name not in apart}
    path = f"{order.folder}/order.json"
    try:
        make_folder(order.folder)
        with open(path, "wb") as file:
            file.write(b"%b,%b" % (line_of({**about, "env": kept})[:-2], rest))
    except OSError as error:
        raise SpawnError(f"cannot write {path}: {error.strerror}; make room or check its permissions") from error
    return line_of({**about, "file": path, "env": apart})


def command_line(order: Order, task: CommandTask) -> bytes:
    """The order for the keeper. SpawnError says what of it cannot be started."""
    env = environment_of(order) | {"PWD": task.cwd}
    for name in env:
        # A shell on the way would pass on only what it could itself have set.
        if not (name.isascii() and name.isidentifier()):
            raise SpawnError(
                f"environment variable {name!r} of run {order.run} cannot be passed to a command: "
                "rename it to letters, digits and underscores"
            )
    program = program_of(task.argv[0], env, task.cwd)
    stdin = os.path.join(task.cwd, task.stdin) if task.stdin else os.devnull
    if task.stdin and not os.access(stdin, os.R_OK):
        why = "no permission to read it" if os.path.exists(stdin) else "No such file or directory"
        raise SpawnError(f"cannot start: standard input {stdin}: {why}; correct `stdin`, or let an earlier job make it")
    argv = [program, *task.argv[1:]]
    if any("\0" in word for word in (*argv, *env.values(), stdin, task.cwd)):
        raise SpawnError(f"cannot start run {order.run}: an argument or environment value holds a NUL byte; remove it")
    rest = line_of({"argv": argv, "cwd": task.cwd, "stdin": stdin, "limits": dict(order.limits)})[1:]
    return line_for(order, env, rest)


def program_of(name: str, env: Mapping[str, str], cwd: str) -> str:
    """The path of the program to run, looked up on the PATH of `env` as a shell in `cwd` would. SpawnError if it is not
    there; a name with a slash is taken as it is."""
    if "/" in name:
        return name
    search = env.get("PATH", os.defpath)
    for folder in search.split(os.pathsep):
        path = os.path.join(cwd, folder, name)
        if name and os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
    raise SpawnError(f"program {name!r} is not on the PATH of the job ({search}): install it, or write its full path")


def note_of(code: int | None, number: int | None, limits: Mapping[str, int]) -> str:
    """What people should know of how a command ended; "" if nothing need be said."""
    inner = number or 0
    if code is not None and 128 < code < 128 + 65:
        inner = code - 128  # A shell says so of the command that it waited for.
    if inner == signal.SIGXFSZ and "file_size" in limits:
        return f"stopped by its limit of file size ({limits['file_size']} bytes)"
    if inner == signal.SIGXCPU and "cpu_seconds" in limits:
        return f"stopped by its limit of CPU time ({limits['cpu_seconds']} s)"
    if number is None and code in (126, 127):
        return f"exit status {code}: the command could not be executed or was not found; see stderr.log"
    if number is None and code == 125:
        return "exit status 125: the working directory or a limit could not be set; see stderr.log"
    if number is None and inner:
        try:
            return f"exit status {code} is its own; a shell ends so after {signal.Signals(inner).name}"
        except ValueError:
            return ""
    return ""
