"""A command attempt's process: a constant shell wrapper that keeps the exit status where any later daemon finds it."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

from daemon.ports import CommandTask, Order, SpawnError

CLAIM_LOST = 121
CLAIM_FAILED = 122

WRAPPER = f"""
set -C
{{ echo $$ || exit {CLAIM_FAILED}; }} 2>/dev/null >"$1/claim" || exit {CLAIM_LOST}
hermesd_files=$3 hermesd_size=$4 hermesd_cpu=$5 hermesd_memory=$6
cd -- "$2" || {{ echo 125 >"$HERMESD_FOLDER/status"; exit 125; }}
unset OLDPWD
shift 6
trap : HUP INT QUIT TERM
if [ -z "$hermesd_files$hermesd_size$hermesd_cpu$hermesd_memory" ]; then
  "$@"
else
  (
    [ -z "$hermesd_files" ] || ulimit -n "$hermesd_files" || exit 125
    [ -z "$hermesd_size" ] || ulimit -f "$hermesd_size" || exit 125
    [ -z "$hermesd_cpu" ] || {{ ulimit -S -t "$hermesd_cpu" && ulimit -H -t "$((hermesd_cpu + 5))"; }} || exit 125
    [ -z "$hermesd_memory" ] || ulimit -v "$hermesd_memory" || exit 125
    exec "$@"
  )
fi
code=$?
echo $code >"$HERMESD_FOLDER/status"
exit $code
"""
"""Positions: folder, cwd, open files, file size (512-byte blocks), CPU seconds, memory (KiB), argv.

`set -C` makes the creation of `claim` exclusive. The traps keep the wrapper alive through a SIGTERM to the whole tree,
so that it sees how the command ends; the command does not inherit them. It forks once, and by vfork where there are no
limits; the limits' subshell spares the wrapper, which must still write the status. The command's path holds a slash,
or it might be taken for a shell builtin; our variables' names must not be ones that the job exports.
"""

LIMITS = ("open_files", "file_size", "cpu_seconds", "memory")
_UNITS = {"file_size": 512, "memory": 1024}

_DEFAULTED = [
    number
    for name in ("HUP", "INT", "QUIT", "PIPE", "ALRM", "TERM", "CHLD", "USR1", "USR2", "XFSZ", "XCPU", "TSTP")
    if (number := getattr(signal, f"SIG{name}", None)) is not None
]


def environment_of(order: Order) -> dict[str, str]:
    """The whole environment of the attempt: what the order says and who it is, nothing of ours."""
    return {
        **order.env,
        "HERMESD_RUN": order.run,
        "HERMESD_ATTEMPT": str(order.attempt),
        "HERMESD_FOLDER": order.folder,
    }


def launch(
    program: str,
    argv: list[str],
    env: Mapping[str, str],
    *,
    folder: str,
    stdin: str = os.devnull,
    channel: int | None = None,
) -> int:
    """Start a process in a session of its own, with output appended to the folder's logs, no other descriptor of ours
    (but `channel`, as 3) and signals as a login shell would leave them.
    Returns its pid. SpawnError says what is wrong."""
    log = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, stdin, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, f"{folder}/stdout.log", log, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, f"{folder}/stderr.log", log, 0o600),
    ]
    if channel is not None:
        actions.append((os.POSIX_SPAWN_DUP2, channel, 3))
    make_folder(folder)
    try:
        return os.posix_spawn(
            program, argv, env, file_actions=actions, setsid=True, setsigmask=[], setsigdef=_DEFAULTED
        )
    except (OSError, ValueError) as error:
        raise SpawnError(_reason(error, program, folder, stdin)) from error


def make_folder(folder: str) -> None:
    """The attempt's folder, if it is not there yet. SpawnError if it cannot be made."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        try:
            os.makedirs(folder, 0o700, exist_ok=True)
        except OSError as error:
            raise SpawnError(f"cannot make {folder}: {error.strerror}; check the home's permissions") from error
    except OSError as error:
        raise SpawnError(f"cannot make {folder}: {error.strerror}; make room or check permissions") from error


def start_command(order: Order, task: CommandTask) -> int:
    """Start the wrapper; whether it or another one performs the attempt is decided by the claim. Returns its pid."""
    env = environment_of(order)
    for name in env:
        # The shell passes on only what it could itself have set.
        if not (name.isascii() and name.isidentifier()):
            raise SpawnError(
                f"environment variable {name!r} of run {order.run} cannot be passed to a command: "
                "rename it to letters, digits and underscores"
            )
    limits = []
    for name in LIMITS:
        value = order.limits.get(name)
        limits.append("" if value is None else str(-(-value // _UNITS.get(name, 1))))
    program = program_of(task.argv[0], env, task.cwd)
    stdin = os.path.join(task.cwd, task.stdin) if task.stdin else os.devnull
    argv = ["sh", "-c", WRAPPER, "hermesd-run", order.folder, task.cwd, *limits, program, *task.argv[1:]]
    return launch("/bin/sh", argv, env, folder=order.folder, stdin=stdin)


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


def note_of(code: int, limits: Mapping[str, int]) -> str:
    """What an exit status of the wrapper may mean, in words; "" if nothing need be said."""
    if code in (126, 127):
        return f"exit status {code}: the command could not be executed or was not found; see stderr.log"
    if code == 125:
        return "exit status 125: the working directory or a limit could not be set; see stderr.log"
    if 128 < code < 128 + 65:
        try:
            name = signal.Signals(code - 128).name
        except ValueError:
            return ""
        if name == "SIGXFSZ" and "file_size" in limits:
            return f"stopped by its limit of file size ({limits['file_size']} bytes)"
        if name == "SIGXCPU" and "cpu_seconds" in limits:
            return f"stopped by its limit of CPU time ({limits['cpu_seconds']} s)"
        return f"exit status {code}: most likely ended by {name}"
    return ""


def _reason(error: OSError | ValueError, program: str, folder: str, stdin: str) -> str:
    if isinstance(error, ValueError):
        return f"cannot start: an argument or environment value holds a NUL byte ({error}); remove it"
    for path, mode, what in (
        (program, os.X_OK, "program"),
        (stdin, os.R_OK, "standard input"),
        (folder, os.W_OK | os.X_OK, "attempt folder"),
    ):
        if not os.access(path, mode):
            return f"cannot start: {what} {path}: {error.strerror}; check that it exists and its permissions"
    if error.errno == 7:
        return "cannot start: argv and environment together are too long for this system; pass the data in a file"
    return f"cannot start in {folder}: {error.strerror}; check the limits on processes, memory and disk"
