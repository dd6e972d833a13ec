"""An incident archive to give away: `hermesd bundle`, and a bundle read as if it were a home."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daemon import bundle as archive
from daemon import service
from daemon.bundle import Archive, NoBundle, Scan
from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure, failure_of
from daemon.cli.instant import instant_ms
from daemon.masking import Mask
from daemon.reading import RawLines, Reading
from daemon.system import SystemClock
from daemon.version import code_digest, tzdb_version, version
from ledger.instant import ms_of, text_of

Json = Any

_LOG_LINES = 5000
_TOLD = 5

README = """\
An incident archive of a Hermes home, made by `hermesd bundle` {version}.

Values that look like secrets are masked as *** ; `about.json` says what was left out.
{ledger}
about.json   versions, the ledger's head, what was left out
doctor.json  what `hermesd doctor` found          status.json  what `hermesd status` said
jobs/ policies/ hermesd.yaml                      as they were, masked
state/ leases/ inbox/ heartbeat                   as they were, masked
"""
_REPLAY = """
    tar xzf FILE
    hermesd replay --verify --home {top}     (or, without unpacking: hermesd replay --verify FILE)
"""


def bundle(call: Call, out: Path | None, *, since: str, outputs: bool, as_is: bool, without_ledger: bool) -> None:
    reading = call.reading
    if as_is and without_ledger:
        raise Failure(Exit.BAD_INPUT, "the ledger as it is, or without it?", do="give one of the two options")
    now_ms = SystemClock().now().wall_ms
    since_ms = instant_ms(since, now_ms, call.zone, ago=True) if since else None
    mask = Mask(archive.secrets_of(call.home))
    scanned = archive.scan(reading, mask)
    wanted = not without_ledger
    if wanted and not as_is and (scanned.secrets or scanned.damage):
        raise _refusal(scanned)
    parts = Archive(mask)
    parts.put_home(call.home)
    if wanted and since_ms is None:
        parts.put_ledger(scanned, call.home.ledger)
    elif wanted and since_ms is not None:
        parts.put("events.jsonl", b"".join(_lines_since(reading, since_ms, scanned)))
    if outputs:
        parts.put_folder("runs", call.home.runs)
        parts.put_folder("artifacts", call.home.artifacts)
    log = _log(call)
    if log:
        parts.put("daemon.log", mask.text(log).encode())
    parts.put_json("doctor.json", _told(lambda: _doctor(call)))
    parts.put_json("status.json", _told(lambda: _status(call)))
    parts.put_json("about.json", _about(scanned, now_ms, since_ms, outputs=outputs, ledger=wanted))
    whole = wanted and since_ms is None
    ledger = _REPLAY.format(top=archive.TOP) if whole else "The ledger is not in it whole, so it cannot be replayed.\n"
    parts.put("README.txt", README.format(version=version(), ledger=ledger).encode())
    stamp = text_of(scanned.at_ms // 1000 * 1000).replace("-", "").replace(":", "")
    out = out or Path(f"{archive.TOP}-{stamp}-{scanned.head.seq}.tar.gz")
    try:
        parts.write(out, scanned.at_ms)
    except FileExistsError as error:
        raise Failure(Exit.BAD_INPUT, "there is such a file already", where=str(out), do="name another") from error
    size = out.stat().st_size
    if call.json:
        head = scanned.head._asdict()
        show.json({"bundle": str(out), "bytes": size, "head": head, "replays": whole, "files": sorted(parts.members)})
        return
    print(f"{out}: {show.size(size)}, {show.count(len(parts.members), 'file')}, up to record {scanned.head.seq}.")
    if whole:
        print(f"Look into it anywhere: hermesd replay --verify {out}")
    print("What looks like a secret is masked; have a look yourself before you give it away.")


def _refusal(scanned: Scan) -> Failure:
    if scanned.damage:
        what = f"the ledger cannot be looked through for secrets to its end: {scanned.damage}"
    else:
        listed = [f"  {secret}" for secret in scanned.secrets[:_TOLD]]
        more = [f"  and {len(scanned.secrets) - _TOLD} more"] if len(scanned.secrets) > _TOLD else []
        what = "\n".join(
            ["the ledger holds what may be secret, and cannot be masked without breaking it:", *listed, *more]
        )
    do = "--with-ledger-as-is if whoever gets it may know this, else --without-ledger; keep secrets out of job files"
    return Failure(Exit.NO, what, do=do)


def _lines_since(reading: Reading, since_ms: int, scanned: Scan) -> Iterator[bytes]:
    raw = RawLines(reading.disk)
    for record in reading.records(until=scanned.head.seq):
        if ms_of(record.ts) >= since_ms:
            yield raw.of(record)


def _about(scanned: Scan, now_ms: int, since_ms: int | None, *, outputs: bool, ledger: bool) -> Json:
    packages = ("apscheduler", "cronsim", "orjson", "psutil", "pydantic", "pyyaml", "tzdata", "watchdog", "torch",
                "transformers")  # fmt: skip
    left_out = [
        "environment variables",
        "scripts and other files in jobs/ that are no job files",
        "models/",
        "secrets/",
    ]
    left_out += [] if outputs else ["runs/ (what the runs printed)", "artifacts/"]
    left_out += [] if ledger else ["ledger/"]
    return {
        "made_at": text_of(now_ms),
        "version": version(),
        "code": code_digest(),
        "python": f"{platform.python_version()} ({sys.implementation.name})",
        "system": platform.platform(),
        "tzdb": tzdb_version(),
        "packages": {name: found for name in packages if (found := _installed(name))},
        "head": scanned.head._asdict(),
        "head_at": text_of(scanned.at_ms),
        "events_since": None if since_ms is None else text_of(since_ms),
        "ledger_damage": scanned.damage,
        "may_be_secret_in_the_ledger": [str(secret) for secret in scanned.secrets] if ledger else [],
        "left_out": left_out,
    }


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _doctor(call: Call) -> Json:
    from daemon.cli import doctor

    return [row._asdict() for row in doctor.rows(call)]


def _status(call: Call) -> Json:
    from daemon.cli import status

    return status.report(call)


def _told(look: Callable[[], Json]) -> Json:
    """What was seen, or why nothing could be: a home in trouble is what bundles are made of."""
    try:
        return look()
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            raise
        return failure.json()


def _log(call: Call) -> str:
    """The last of what the service has written, where there is a service of this home and a log to be read."""
    found = service.status()
    if found.home != call.home.path:
        return ""
    if found.system == "launchd":
        path = service.log_path()
        return "\n".join(path.read_text("utf-8", "replace").splitlines()[-_LOG_LINES:]) if path.is_file() else ""
    words = ["journalctl", "--user", "--no-pager", "--output=short-iso", f"--lines={_LOG_LINES}", "-u", service.UNIT]
    try:
        return subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=20, check=False).stdout
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""


@contextmanager
def home_of(call: Call, file: Path | None) -> Iterator[Call]:
    """The call for the home that `file` holds, unpacked for as long; the same call without a file."""
    if file is None:
        yield call
        return
    if not file.is_file():
        raise Failure(Exit.UNKNOWN, "there is no such bundle", where=os.path.abspath(file))
    try:
        with archive.unpacked(file) as home:
            yield Call(str(home), call.json)
    except NoBundle as error:
        raise Failure(Exit.BAD_INPUT, str(error), do="give a file that `hermesd bundle` has made") from error
