"""What would go wrong on this machine, with this installation, in this home: looked for before it does."""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import os
import platform
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from daemon import jobfiles, service
from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.check import needed
from daemon.cli.exits import Exit
from daemon.control import CallFailed
from daemon.home import Home, HomeError, Settings
from daemon.serve import PolicyFile, surroundings
from daemon.system import OsDisk, SystemClock
from daemon.version import tzdb_version, version
from ledger.ledger import NOT_LOCAL
from policies.fault import BadValue
from policies.zone import zone_named

Json = Any

ROOMS = ("daemon", "ledger", "policies", "simulations", "state")
_SYNC_SLOW_MS = 50.0
_SYNCS = 5
_ROOM_WARN_BYTES, _ROOM_FAIL_BYTES = 1 << 30, 64 << 20
_WATCHES_FEW, _INSTANCES_FEW = 8192, 64
_INFERENCE = ("torch", "transformers", "safetensors", "tokenizers")


class Row(NamedTuple):
    what: str
    grade: str
    """ok, warn, fail"""
    found: str
    advice: str = ""


def doctor(call: Call) -> int:
    rows = [*_installation(), *_machine(), *_home(call), *_service(call.home)]
    failed = any(row.grade == "fail" for row in rows)
    if call.json:
        show.json({"ok": not failed, "rows": [row._asdict() for row in rows]})
    else:
        show.table(("CHECK", "", "FOUND"), [(row.what, row.grade, row.found) for row in rows])
        advised = [row for row in rows if row.advice]
        if advised:
            print()
        for row in advised:
            print(f"{row.what}: {row.advice}")
    return Exit.NO if failed else Exit.FINE


def _installation() -> Iterator[Row]:
    yield Row("hermesd", "ok", f"{version()} in {Path(__file__).resolve().parents[2]}")
    yield Row("python", "ok", f"{platform.python_version()} ({sys.executable})")
    owners = importlib.metadata.packages_distributions()
    foreign = {room: set(owners.get(room, ())) - {"hermesd"} for room in ROOMS}
    taken = [f"{room} by {', '.join(sorted(names))}" for room, names in foreign.items() if names]
    shadowed = [room for room in ROOMS if not _is_ours(room)]
    if taken or shadowed:
        advice = (
            "another package has one of our names: install Hermes into an environment of its own (pipx, uv tool, make)"
        )
        yield Row("package names", "fail", "; ".join(taken) or f"{', '.join(shadowed)} comes from elsewhere", advice)
    else:
        yield Row("package names", "ok", "nobody else has one of ours")
    missing = [name for name in _INFERENCE if importlib.util.find_spec(name) is None]
    if missing:
        advice = "jobs of kind inference need it: pip install 'hermesd[inference]'"
        yield Row("inference", "warn", f"not installed: {', '.join(missing)}", advice)
    else:
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _INFERENCE[:2])
        yield Row("inference", "ok", versions)


def _is_ours(room: str) -> bool:
    spec = importlib.util.find_spec(room)
    return spec is None or spec.origin is None or Path(spec.origin).parent.parent == Path(__file__).resolve().parents[2]


def _machine() -> Iterator[Row]:
    yield Row(
        "system", "ok", f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs, {socket.gethostname()}"
    )
    if hasattr(time, "CLOCK_BOOTTIME") or sys.platform == "darwin":
        yield Row("clock", "ok", f"counts while the host sleeps; boot id {SystemClock().boot_id[:8]}")
    else:
        advice = "deadlines stand still while the host sleeps"
        yield Row("clock", "warn", "this system has no CLOCK_BOOTTIME", advice)
    if time.time() < 1_700_000_000:
        yield Row(
            "date", "fail", time.strftime("%Y-%m-%d"), "the clock is years behind: set it, or start a time service"
        )
    zone = Settings().timezone
    yield Row("time zone", "ok", f"{zone}, database {tzdb_version()}")
    for name, least in (("max_user_watches", _WATCHES_FEW), ("max_user_instances", _INSTANCES_FEW)):
        with suppress(OSError, ValueError):
            limit = int(Path(f"/proc/sys/fs/inotify/{name}").read_text())
            few = f"little: raise it with `sysctl fs.inotify.{name}={least * 16}`" if limit < least else ""
            yield Row(f"inotify {name}", "warn" if few else "ok", str(limit), few)


def _home(call: Call) -> Iterator[Row]:
    home = call.home
    try:
        home.check(write=True)
    except HomeError as error:
        yield Row("home", "fail", str(home.path), str(error))
        return
    status = home.path.stat()
    yield Row("home", "ok", f"{home.path}, mode {stat.S_IMODE(status.st_mode):04o}, owner {status.st_uid}")
    disk = OsDisk(home.path)
    kind = disk.file_system()
    if kind.partition(".")[0] in NOT_LOCAL:
        advice = "locks and syncs do not keep their promises there: choose a home on a local disk"
        yield Row("file system", "fail", kind, advice)
    else:
        yield Row("file system", "ok" if kind else "warn", kind or "of a kind this system does not tell")
    free = disk.free_bytes()
    grade = "fail" if free < _ROOM_FAIL_BYTES else "warn" if free < _ROOM_WARN_BYTES else "ok"
    yield Row(
        "room", grade, f"{show.size(free)} free", "" if grade == "ok" else "free some space: a full disk stops the plan"
    )
    yield from _try_disk(home)
    try:
        settings = home.settings()
        zone_named(settings.timezone)
    except (HomeError, BadValue) as error:
        yield Row("settings", "fail", str(home.settings_file), str(error))
        return
    yield Row("settings", "ok", f"time zone {settings.timezone}, {show.count(len(settings.models), 'model')} named")
    _, problem = PolicyFile(home.policies).read()
    yield Row("policy", "warn" if problem else "ok", "not legal" if problem else "legal", problem)
    yield from _models(home, settings)
    yield from _jobs(home, settings)
    yield _socket(call)


def _try_disk(home: Home) -> Iterator[Row]:
    """A scratch file beside the ledger: does a lock exclude, and how long does a sync take."""
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=home.path) as folder:
        path = os.path.join(folder, "probe")
        with open(path, "wb") as first, open(path, "rb") as second:
            fcntl.flock(first, fcntl.LOCK_EX)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield Row("lock", "ok", "flock excludes")
            else:
                yield Row(
                    "lock", "fail", "flock lets two in", "two daemons could write one ledger: choose another disk"
                )
            taken_ms = sorted(_timed_ms(lambda: _write_and_sync(first.fileno())) for _ in range(_SYNCS))
        median = taken_ms[len(taken_ms) // 2]
        slow = "every decision waits for it: a faster disk starts runs sooner" if median > _SYNC_SLOW_MS else ""
        yield Row("sync", "warn" if slow else "ok", f"{median:.2f} ms in the middle of {_SYNCS}", slow)


def _write_and_sync(descriptor: int) -> None:
    os.write(descriptor, b"x" * 1024)
    os.fsync(descriptor)


def _timed_ms(act: Callable[[], None]) -> float:
    began_s = time.perf_counter()
    act()
    return (time.perf_counter() - began_s) * 1000


def _models(home: Home, settings: Settings) -> Iterator[Row]:
    for name, folder in sorted(surroundings(home, settings).models.items()):
        if not (folder / "config.json").is_file():
            advice = "a model is a Hugging Face folder: config.json, *.safetensors, tokenizer.json"
            yield Row(f"model {name}", "warn", f"{folder} holds none", advice)
        elif unreadable := [p.name for p in folder.iterdir() if not os.access(p, os.R_OK)]:
            yield Row(f"model {name}", "warn", f"cannot read {', '.join(unreadable)}", f"look at the modes in {folder}")
        else:
            size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
            yield Row(f"model {name}", "ok", f"{folder}, {show.size(size)}")


def _jobs(home: Home, settings: Settings) -> Iterator[Row]:
    loaded = jobfiles.load(home.jobs, settings.timezone)
    around = surroundings(home, settings)
    lacking = {name: found for name, (job, _) in loaded.jobs.items() if (found := needed(around, job))}
    sound = f"{show.count(len(loaded.jobs), 'job')} sound"
    if loaded.problems:
        yield Row(
            "job files", "warn", f"{sound}, {show.count(len(loaded.problems), 'problem')}", "`hermesd jobs check`"
        )
    else:
        yield Row("job files", "ok", sound)
    for name, problems in sorted(lacking.items()):
        yield Row(f"job {name}", "warn", "needs what is not here", "; ".join(problem for _, problem in problems))


def _socket(call: Call) -> Row:
    home = call.home
    try:
        pulse = call.pulse()
    except CallFailed as error:
        return Row("daemon", "fail", error.message, error.advice or "see `hermesd status`")
    if pulse is not None:
        return Row("daemon", "ok", f"up, pid {pulse['pid']}")
    if home.socket.exists():
        return Row(
            "daemon", "warn", "down; it left its socket behind", "it was killed: the next `hermesd run` tidies up"
        )
    return Row("daemon", "ok", "down")


def _service(home: Home) -> Iterator[Row]:
    found = service.status()
    if not found.installed:
        yield Row("service", "ok", "not installed")
    elif found.home != home.path:
        yield Row("service", "warn", f"{found.path} is for {found.home}", f"this home is {home.path}")
    elif found.active not in ("active", "running", "unknown"):
        yield Row("service", "warn", f"{found.active} ({found.path})", f"see `journalctl --user -u {service.UNIT}`")
    else:
        yield Row("service", "ok", f"{found.active} ({found.path}) {found.note}".strip())
