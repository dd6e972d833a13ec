"""A damaged ledger repaired: `cut` and `restore`. Each takes the ledger's lock, and records itself in the ledger."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.control import actor
from daemon.system import OsDisk, SystemClock
from daemon.version import version
from daemon.workers import identity
from ledger import repair
from ledger.errors import Corrupt
from ledger.ledger import LOCK, Ledger
from ledger.reader import FOLDER
from ledger.recovery import Cut
from ledger.repair import Loss, Restored
from ledger.segment import Writer
from state.events import draft

Json = Any


def cut(call: Call, at: int, *, accept_loss: bool, reason: str) -> int:
    with _held(call) as (disk, clock):
        planned = repair.loss(disk, at)
        if not accept_loss:
            _tell_loss(call, planned, done=False)
            return Exit.NO
        data = repair.cut(disk, planned, clock.now())
    _record(call, disk, clock, "ledger.cut", data | {"actor": actor(), "reason": reason})
    _tell_loss(call, planned, done=True)
    return Exit.FINE


def restore(call: Call, source: Path) -> int:
    if not source.exists():
        raise Failure(Exit.BAD_INPUT, f"there is nothing at {source}", do="name a file or a folder of a backup")
    names = None if source.is_dir() else frozenset({source.name})
    folder = source if source.is_dir() else source.parent
    if names is not None and folder.name == "quarantine":
        folder = folder.parent
    at = FOLDER if (folder / FOLDER).is_dir() else ""
    with _held(call) as (disk, clock):
        restored, cuts = repair.restore(disk, OsDisk(folder), clock.now(), names=names, at=at)
    if not restored:
        raise Failure(
            Exit.NO,
            "nothing was put back: the backup has none of the files that are missing or damaged here",
            where=str(source),
            do="`hermesd verify` says which these are",
        )
    data = {"files": [asdict(one) for one in restored], "cuts": [asdict(one) for one in cuts], "found": []}
    try:
        _record(call, disk, clock, "ledger.restored", data | {"actor": actor()})
    except Corrupt:
        _tell_restored(call, restored, cuts)
        print("There is more damage:")
        raise
    _tell_restored(call, restored, cuts)
    return Exit.FINE


@contextmanager
def _held(call: Call) -> Iterator[tuple[OsDisk, SystemClock]]:
    """Nobody else writes meanwhile. Locked if a daemon runs."""
    call.home.check(write=True)
    disk = OsDisk(call.home.path)
    lock = disk.lock(f"{FOLDER}/{LOCK}")
    try:
        yield disk, SystemClock()
    finally:
        lock.release()


def _record(call: Call, disk: OsDisk, clock: SystemClock, type_: str, data: dict[str, Json]) -> None:
    pid = os.getpid()
    writer = Writer(socket.gethostname(), clock.boot_id, pid, identity.start_time(pid) or 0, version())
    kept = frozenset(cut["quarantine"] for cut in data["cuts"])
    anywhere = call.settings.any_file_system
    ledger = Ledger.open(disk, writer, clock.now(), anywhere=anywhere, to_be_recorded=kept)
    try:
        ledger.append([draft(type_, f"ledger/{ledger.ledger_id}", data)], clock.now())
    finally:
        ledger.close()


def _tell_loss(call: Call, planned: Loss, *, done: bool) -> None:
    lost = max(0, planned.last_lost - planned.head.seq)
    if call.json:
        files = [{"file": file, "offset": offset} for file, offset in planned.files]
        show.json({"done": done, "last": planned.head._asdict(), "last_lost": planned.last_lost, "files": files})
        return
    records = f"records {planned.head.seq + 1} to {planned.last_lost}" if lost else "no record that can still be read"
    print(f"{'Cut' if done else 'A cut would take'}: {records}; the last that stays is {planned.head.seq}.")
    for file, offset in planned.files:
        print(f"  {'in quarantine' if done else 'to go into quarantine'}: {FOLDER}/{file} from byte {offset}")
    if not done:
        print("Nothing was changed. To do it, add --accept-loss.")


def _tell_restored(call: Call, restored: list[Restored], cuts: list[Cut]) -> None:
    if call.json:
        show.json({"restored": [asdict(one) for one in restored], "quarantined": [asdict(one) for one in cuts]})
        return
    for one in restored:
        print(f"put back: {FOLDER}/{one.file}, {one.bytes} bytes, SHA-256 {one.sha256}")
    for cut in cuts:
        print(f"in quarantine: what was {FOLDER}/{cut.file} is {FOLDER}/quarantine/{cut.quarantine}")
