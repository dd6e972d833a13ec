"""What would go wrong on this machine, with this installation, in this home: looked for before it does."""

from __future__ import annotations

import ctypes
import fcntl
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
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
from daemon.cli.failure import failure_of
from daemon.control import CallFailed
from daemon.home import Home, HomeError
from daemon.policyfile import SCHEDULING, UPGRADES, scheduling_policy, upgrade_policy
from daemon.serve import surroundings
from daemon.settings import Settings
from daemon.system import OsDisk, SystemClock, without_journal
from daemon.version import tzdb_version, version
from ledger.errors import Corrupt
from ledger.instant import ms_of
from ledger.ledger import NOT_LOCAL
from policies.fault import BadValue
from policies.zone import zone_named
from state.projector import Impossible, Unknown

Json = Any

ROOMS = ("daemon", "ledger", "policies", "simulations", "state")
_SYNC_SLOW_MS = 50.0
_SYNCS = 5
_ROOM_WARN_BYTES, _ROOM_FAIL_BYTES = 1 << 30, 64 << 20
_SKEW_S = 2.0
_MOVED_MS = 1000
_RUNS_WARN_BYTES = 10 << 30
_QUARANTINE_OLD_S = 30 * 86_400
_TIMEX_BYTES = 512  # more than any system's struct timex has
_CLOCK_UNSYNCHRONISED = 5
_ZONES_OLD = "some country has changed its rules since: update this system's tzdata"
_WATCHES_FEW, _INSTANCES_FEW = 8192, 64
_INFERENCE = ("torch", "transformers", "safetensors", "tokenizers")


class Row(NamedTuple):
    what: str
    grade: str
    """ok, warn, fail"""
    found: str
    advice: str = ""


def doctor(call: Call) -> int:
    found = rows(call)
    failed = any(row.grade == "fail" for row in found)
    if call.json:
        show.json({"ok": not failed, "rows": [row._asdict() for row in found]})
    else:
        show.table(("CHECK", "", "FOUND"), [(row.what, row.grade, row.found) for row in found])
        advised = [row for row in found if row.advice]
        if advised:
            print()
        for row in advised:
            print(f"{row.what}: {row.advice}")
    return Exit.NO if failed else Exit.FINE


def rows(call: Call) -> list[Row]:
    return [*_installation(), *_machine(), *_home(call), *_service(call.home)]


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
    yield _time_service()
    yield _zone_database()
    for name, least in (("max_user_watches", _WATCHES_FEW), ("max_user_instances", _INSTANCES_FEW)):
        with suppress(OSError, ValueError):
            limit = int(Path(f"/proc/sys/fs/inotify/{name}").read_text())
            few = f"little: raise it with `sysctl fs.inotify.{name}={least * 16}`" if limit < least else ""
            yield Row(f"inotify {name}", "warn" if few else "ok", str(limit), few)


def _time_service() -> Row:
    """Whether the kernel's clock is kept right by somebody."""
    try:
        adjtimex = ctypes.CDLL(None).adjtimex
    except (OSError, AttributeError):
        return Row("time service", "ok", "this system does not tell")
    state = adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))  # all zero: look and change nothing
    if state == _CLOCK_UNSYNCHRONISED:
        advice = "slots fire by this clock: start a time service, such as systemd-timesyncd or chrony"
        return Row("time service", "warn", "the kernel says that nobody keeps this clock", advice)
    return Row("time service", "ok" if state >= 0 else "warn", "keeps the clock" if state >= 0 else "cannot be asked")


def _zone_database() -> Row:
    """A country may change its rules a few times a year; a database of years ago is wrong about some."""
    release, packaged = tzdb_version(), _tzdata_release()
    found = f"{Settings().timezone}, database {release}"
    year = re.match(r"20\d\d", release)
    now_year = time.gmtime().tm_year
    if year and packaged > release:
        # `zoneinfo` reads the system's first. An empty search path is how it is told to read the package's.
        advice = f"update this system's tzdata, or set PYTHONTZPATH= for the daemon: the package here is {packaged}"
        return Row("time zone", "warn", f"{found}, older than {packaged}", advice)
    if year and int(year[0]) < now_year - 1:
        return Row("time zone", "warn", f"{found}, {now_year - int(year[0])} years old", _ZONES_OLD)
    return Row("time zone", "ok", found)


def _tzdata_release() -> str:
    """The release in the Python package tzdata, as the database names it: 2025.2 is 2025b."""
    with suppress(importlib.metadata.PackageNotFoundError):
        year, _, number = importlib.metadata.version("tzdata").partition(".")
        if number.isdigit():
            return f"{year}{chr(ord('a') + int(number) - 1)}"
    return ""


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
    elif kind.startswith("ext") and without_journal(home.path):
        advice = "a power cut may harm the file system itself: give it one, or choose a home on another disk"
        yield Row("file system", "warn", f"{kind} without a journal", advice)
    else:
        yield Row("file system", "ok" if kind else "warn", kind or "of a kind this system does not tell")
    free = disk.free_bytes()
    grade = "fail" if free < _ROOM_FAIL_BYTES else "warn" if free < _ROOM_WARN_BYTES else "ok"
    yield Row(
        "room", grade, f"{show.size(free)} free", "" if grade == "ok" else "free some space: a full disk stops the plan"
    )
    yield from _try_disk(home)
    yield from _ledger(call)
    yield from _left_behind(home)
    yield from _secrets(home)
    try:
        settings = home.settings()
        zone_named(settings.timezone)
    except (HomeError, BadValue) as error:
        yield Row("settings", "fail", str(home.settings_file), str(error))
        return
    yield Row("settings", "ok", f"time zone {settings.timezone}, {show.count(len(settings.models), 'model')} named")
    problem = "; ".join(filter(None, (policy.read()[1] for policy in (scheduling_policy(home), upgrade_policy(home)))))
    yield Row("policy", "warn" if problem else "ok", "not legal" if problem else "legal", problem)
    unread = {path.name for path in home.policies.glob("*") if jobfiles.is_job_file(path.name)} - {SCHEDULING, UPGRADES}
    if unread:
        advice = f"rename: what is read in {home.policies} is {SCHEDULING} and {UPGRADES}"
        yield Row("policy files", "warn", f"nobody reads {', '.join(sorted(unread))}", advice)
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
            yield _file_time(first.fileno())
            taken_ms = sorted(_timed_ms(lambda: _write_and_sync(first.fileno())) for _ in range(_SYNCS))
        median = taken_ms[len(taken_ms) // 2]
        slow = "every decision waits for it: a faster disk starts runs sooner" if median > _SYNC_SLOW_MS else ""
        yield Row("sync", "warn" if slow else "ok", f"{median:.2f} ms in the middle of {_SYNCS}", slow)


def _file_time(descriptor: int) -> Row:
    """The disk's clock is another machine's where the disk is."""
    before_s = time.time()
    os.write(descriptor, b"x")
    skew_s = os.fstat(descriptor).st_mtime - before_s
    if abs(skew_s) > _SKEW_S:
        advice = "files are stamped by another clock: keep both clocks right, or choose a local disk"
        return Row("file times", "warn", f"{skew_s:+.1f} s from this machine's clock", advice)
    return Row("file times", "ok", "by this machine's clock")


def _ledger(call: Call) -> Iterator[Row]:
    """What the ledger says, and how the wall clock has moved since its last record."""
    try:
        reading = call.reading
        graph, last = reading.graph, reading.head
    except (Corrupt, Unknown, Impossible) as error:
        failure = failure_of(error)
        assert failure is not None
        yield Row("ledger", "fail", failure.what, "; ".join(word for word in (failure.where, failure.do) if word))
        return
    found = f"{last.seq} records, {show.size(reading.ledger_bytes())}"
    yield Row("ledger", "ok", found + (f", recovered {graph.here.recoveries} times" if graph.here.recoveries else ""))
    clock = SystemClock()
    record = next(iter(reading.records(after=last.seq - 1, until=last.seq)), None) if last.seq else None
    if record is None or graph.here.boot_id != clock.boot_id:
        return
    now = clock.now()
    moved_ms = (now.wall_ms - ms_of(record.ts)) - (now.boot_ms - record.mt // 1_000_000)
    if abs(moved_ms) > _MOVED_MS:
        advice = "a daemon that runs takes it as a jump and decides about the slots in between; see docs/operating.md"
        text = f"moved {show.span(moved_ms)} against CLOCK_BOOTTIME since record {record.seq}"
        yield Row("wall clock", "warn", text, advice)
    else:
        yield Row("wall clock", "ok", f"in step with CLOCK_BOOTTIME since record {record.seq}")


def _left_behind(home: Home) -> Iterator[Row]:
    """Requests that nobody took, output that nobody wants any more, bytes that were cut out of the ledger."""
    waiting = [path for path in home.inbox.glob("*.json") if not path.name.startswith(".")]
    rejected = list((home.inbox / "rejected").glob("*.json"))
    if rejected:
        advice = f"each has its reason beside it in {home.inbox / 'rejected'}; remove what you have read"
        yield Row("inbox", "warn", f"{show.count(len(rejected), 'request')} rejected", advice)
    elif waiting:
        yield Row("inbox", "ok", f"{show.count(len(waiting), 'request')} for the next daemon")
    else:
        yield Row("inbox", "ok", "empty")
    files, size = _weight(home.runs)
    disk = shutil.disk_usage(home.path)
    much = size > max(_RUNS_WARN_BYTES, disk.total // 10)
    advice = "say `keep: {runs: N, days: N}` in the jobs that print most (`du -sh runs/* | sort -h`)" if much else ""
    yield Row("runs", "warn" if much else "ok", f"{show.size(size)} in {show.count(files, 'file')}", advice)
    quarantine = home.ledger / "quarantine"
    cut = sorted(path.stat().st_mtime for path in quarantine.rglob("*") if path.is_file())
    if cut:
        files, size = _weight(quarantine)
        age = show.span(int((time.time() - cut[0]) * 1000))
        text = f"{show.count(files, 'file')}, {show.size(size)}, the oldest {age} old"
        advice = f"bytes that a crash tore; `ledger.recovered` tells of each. Look at them, then remove: {quarantine}"
        yield Row("quarantine", "warn" if time.time() - cut[0] > _QUARANTINE_OLD_S else "ok", text, advice)


def _weight(folder: Path) -> tuple[int, int]:
    """How many files, and their bytes on the disk. What vanishes meanwhile does not count."""
    files = size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size += os.lstat(os.path.join(place, name)).st_blocks * 512
                files += 1
    return files, size


def _secrets(home: Home) -> Iterator[Row]:
    folder = home.secrets
    if not folder.is_dir():
        return
    paths = [folder, *sorted(path for path in folder.iterdir() if path.is_file())]
    open_to_others = [path for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077]
    if open_to_others:
        names = ", ".join(path.name for path in open_to_others)
        yield Row("secrets", "fail", f"others may read {names}", f"chmod 700 '{folder}' && chmod 600 '{folder}'/*")
    else:
        yield Row("secrets", "ok", f"{show.count(len(paths) - 1, 'secret')}, for nobody else to read")


def _write_and_sync(descriptor: int) -> None:
    os.write(descriptor, b"x" * 1024)
    os.fsync(descriptor)


def _timed_ms(act: Callable[[], None]) -> float:
    began_s = time.perf_counter()
    act()
    return (time.perf_counter() - began_s) * 1000


def _models(home: Home, settings: Settings) -> Iterator[Row]:
    for name, folder in sorted(surroundings(home, settings.in_force()).models.items()):
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
    around = surroundings(home, settings.in_force())
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
        mode = home.socket.lstat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISSOCK(mode):
        return Row("daemon", "fail", f"{home.socket} is no socket", "it is in the daemon's way: move it away")
    if mode is not None and stat.S_IMODE(mode) & 0o177:
        advice = f"close it: chmod 600 '{home.socket}'"
        return Row("daemon", "fail", f"others may command it by its socket (mode {stat.S_IMODE(mode):04o})", advice)
    try:
        pulse = call.pulse()
    except CallFailed as error:
        return Row("daemon", "fail", error.message, error.advice or "see `hermesd status`")
    if pulse is not None:
        return Row("daemon", "ok", f"up, pid {pulse['pid']}")
    if mode is not None:
        return Row(
            "daemon", "warn", "down; it left its socket behind", "it was killed: the next `hermesd run` tidies up"
        )
    return Row("daemon", "ok", "down")


def _service(home: Home) -> Iterator[Row]:
    found = service.status()
    if not found.installed:
        yield Row("service", "ok", "not installed")
        return
    if found.home != home.path:
        yield Row("service", "warn", f"{found.path} is for {found.home}", f"this home is {home.path}")
        return
    again = "write it anew: `hermesd service install`"
    program = service.program_in(found.system, found.path)
    if program is None or not os.access(program, os.X_OK):
        what = f"{program} is not there any more" if program else f"{found.path} names no program"
        yield Row("service", "fail", what, again)
    elif found.active not in ("active", "running", "unknown"):
        yield Row("service", "warn", f"{found.active} ({found.path})", f"see `journalctl --user -u {service.UNIT}`")
    else:
        yield Row("service", "ok", f"{found.active} ({found.path}) {found.note}".strip())
    if found.system != "systemd":
        return
    if service.outdated(home.path, found.path):
        yield Row("service file", "warn", "is not what this version writes", again)
    if not service.lingers():
        advice = "it ends when you log out and starts when you log in; to keep it: `loginctl enable-linger`"
        yield Row("lingering", "warn", "off", advice)
