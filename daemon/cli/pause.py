"""Holding back a job or everything, and letting it go on."""

from __future__ import annotations

import time
from typing import Any

import orjson

from daemon import control
from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.runs import ask, known_job, say
from state.graph import WITH_PROCESS

Json = Any

_POLL_S = 0.2


def pause(call: Call, job: str, *, reason: str) -> None:
    if job:
        known_job(call, job)
    answer = _ask(call, "pause", job, reason)
    what = f"Job {job}" if job else "Everything"
    if "left" in answer:
        say(call, answer, f"No daemon is running: {what.lower()} will be paused by the next one ({answer['left']}).")
    elif answer.get("already"):
        say(call, answer, f"{what} is paused already.")
    else:
        on = f"`hermesd resume{' ' + job if job else ''}` lets it go on."
        say(call, answer, f"{what} is paused; what runs goes on. {on}")


def resume(call: Call, job: str, *, reason: str) -> None:
    if job:
        known_job(call, job)
    answer = _ask(call, "resume", job, reason)
    what = f"Job {job}" if job else "Everything"
    if "left" in answer:
        say(call, answer, f"No daemon is running: {what.lower()} goes on with the next one ({answer['left']}).")
    elif answer.get("already"):
        say(call, answer, f"{what} is not paused.")
    else:
        say(call, answer, f"{what} goes on.")


def drain(call: Call, *, wait: bool, reason: str) -> int:
    """Start nothing more. With `wait`, come back when nothing runs any more."""
    answer = _ask(call, "drain", "", reason)
    if "left" in answer:
        say(call, answer, f"No daemon is running; the next one will start nothing ({answer['left']}).")
        return Exit.FINE
    if wait:
        view = call.home.path / "state" / "live_runtime_control_plane.json"
        while (running := _running(view.read_bytes())) and call.pulse() is not None:
            time.sleep(_POLL_S)
        if running:
            raise control.NotRunning("the daemon has stopped meanwhile; its runs go on without it")
    text = "Nothing runs any more" if wait else "Nothing more starts; what runs goes on"
    say(call, answer, f"{text}. `hermesd resume` takes it back, `hermesd stop` stops the daemon.")
    return Exit.FINE


def _running(view: bytes) -> int:
    active = orjson.loads(view)["active"]
    return sum(count for state, count in active.items() if state in WITH_PROCESS)


def _ask(call: Call, verb: str, job: str, reason: str) -> Json:
    call.home.check(write=False)
    return ask(call, verb, {"reason": reason} | ({"job": job} if job else {}), leave=True)


def backfill(
    call: Call, job: str, *, start: str, end: str, current_spec: bool, overlap: str, dry_run: bool, reason: str
) -> None:
    """Ask for slots of the past. A dry run needs no daemon."""
    from daemon.cli.failure import Failure
    from daemon.cli.instant import instant_ms
    from daemon.system import SystemClock
    from ledger.instant import text_of
    from policies.request import Declined, accept

    known_job(call, job)
    now_ms, zone = SystemClock().now().wall_ms, call.zone
    args = {
        "job": job,
        "from": text_of(instant_ms(start, now_ms, zone, ago=True)),
        "to": text_of(instant_ms(end, now_ms, zone, ago=True)),
        "current_spec": current_spec,
        "overlap": overlap,
        "reason": reason,
    }
    if dry_run:
        reading = call.reading
        try:
            _, answer = accept(
                reading.graph, "backfill", "dry-run", args | {"dry_run": True}, "", now_ms,
                lambda seq: next(reading.records(after=seq - 1, until=seq)).data["spec"],
            )  # fmt: skip
        except Declined as declined:
            raise Failure(Exit.BAD_INPUT, declined.message, do=declined.advice) from None
    else:
        answer = ask(call, "backfill", args, leave=False)
    if call.json:
        show.json(answer)
        return
    slots = answer["slots"]
    if dry_run:
        show.table(("SLOT", "REVISION"), [(show.moment(slot["at"], zone), slot["revision"]) for slot in slots])
        print(f"{show.count(len(slots), 'slot')}. Nothing was asked for.")
    else:
        count, request = show.count(len(slots), "slot"), answer["request"]
        print(f"{count} of {job} will be run. To give up those not begun: hermesd cancel {request}")
