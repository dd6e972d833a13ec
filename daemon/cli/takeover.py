"""A daemon that hangs is put out of the way. Its lock is never broken: it is killed, and the lock ends with it."""

from __future__ import annotations

import os
import select
import signal

from daemon import heartbeat
from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.system import OsDisk, SystemClock
from daemon.workers import identity
from ledger.ledger import LOCK
from ledger.reader import FOLDER

_DIES_WITHIN_MS = 30_000


def takeover(call: Call, after_ms: int) -> int:
    """Kill the daemon if its loop has not completed a turn for `after_ms`. Its runs go on."""
    home = call.home
    home.check(write=True)
    beat = _beat(call)
    if beat is None:
        raise Failure(Exit.NOT_RUNNING, f"no daemon is running in {home.path}", do="start one: `hermesd run`")
    descriptor = os.pidfd_open(beat.pid) if hasattr(os, "pidfd_open") else -1
    try:
        # Looked at again now that its number cannot become another process's: it may have gone, or come back to life.
        beat = _beat(call)
        if beat is None:
            raise Failure(Exit.NOT_RUNNING, f"the daemon in {home.path} has just ended", do="start one: `hermesd run`")
        age_ms = beat.age_ms()
        if age_ms < after_ms:
            raise Failure(
                Exit.HELD,
                f"the daemon (pid {beat.pid}) does not hang: its loop completed a turn {show.span(age_ms)} ago",
                where=str(home.path),
                do=f"`hermesd stop` ends it; it counts as hanging after {show.span(after_ms)} (--after)",
            )
        _kill(beat, descriptor)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    OsDisk(home.path).lock(f"{FOLDER}/{LOCK}").release()
    (home.path / heartbeat.FILE).unlink(missing_ok=True)
    if call.json:
        show.json({"killed": beat.pid, "silent_ms": age_ms})
    else:
        print(f"The daemon (pid {beat.pid}), silent for {show.span(age_ms)}, was killed; nothing recorded is lost.")
        print("The ledger is free: `hermesd run`.")
    return Exit.FINE


def _beat(call: Call) -> heartbeat.Beat | None:
    """That of a daemon that lives; None if there is none."""
    try:
        beat = heartbeat.read(call.home.path)
    except ValueError as error:
        raise Failure(Exit.CONFIGURATION, str(error), do="see `hermesd doctor` for who holds the ledger") from error
    return beat if beat is not None and beat.alive(SystemClock().boot_id) else None


def _kill(beat: heartbeat.Beat, descriptor: int) -> None:
    if descriptor >= 0:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        gone = bool(poll.poll(_DIES_WITHIN_MS))
    else:  # no such descriptors on this system: the process was looked at a moment ago
        import psutil

        try:
            process = psutil.Process(beat.pid)
            process.kill()
            process.wait(_DIES_WITHIN_MS / 1000)
            gone = True
        except psutil.NoSuchProcess:
            gone = True
        except psutil.TimeoutExpired:
            gone = False
    if not gone and identity.alive(beat.pid, beat.process_started):
        raise Failure(
            Exit.HELD,
            f"the daemon (pid {beat.pid}) was killed and is still there: the system waits for a device",
            do="look at the disk (`dmesg`); it ends when the device answers",
        )
