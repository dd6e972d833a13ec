"""Runs: started and cancelled by hand, listed, shown, and their output."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from daemon import control
from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.reading import Reading
from ledger.instant import ms_of
from ledger.reader import Tail
from ledger.record import Record
from state.graph import OVER, WITH_PROCESS, Redacted, Run

Json = Any

_STATES = sorted({"waiting", "backoff"} | WITH_PROCESS | OVER)
_POLL_S = 0.05
_DAEMON_LOOKED_AFTER_S = 2.0


def start(call: Call, job: str, *, wait: bool, reason: str, file: Path | None = None) -> int:
    """Ask for a run now. Without a daemon the wish is left for the next one, unless somebody waits for its outcome."""
    reading = call.reading
    known_job(call, job)
    after = reading.head.seq
    about = {"file": os.path.abspath(file)} if file is not None else {}
    answer = ask(call, "start", {"job": job, "reason": reason, **about}, leave=not wait)
    if "left" in answer:
        say(call, answer, f"No daemon is running: {job} will be started by the next one ({answer['left']}).")
        return Exit.FINE
    if reading.graph.here.paused:
        print("Everything is paused: it begins after `hermesd resume`.", file=sys.stderr)
    if not wait:
        say(call, answer, f"Asked for run {answer['run']}. Follow it with `hermesd runs logs -f {answer['run']}`.")
        return Exit.FINE
    try:
        ended = follow(call, answer["run"], after)
    except KeyboardInterrupt:
        print(f"\nThe run goes on. To end it: hermesd cancel {answer['run']}", file=sys.stderr)
        raise
    say(call, ended, f"{ended['run']} {_words(ended['state'])}: {ended['reason']}")
    return Exit.FINE if ended["state"] == "succeeded" else Exit.NO


def retry(call: Call, name: str, *, reason: str) -> None:
    """Have a run that is over done again, by the job as it stands now."""
    run = find(call.reading, name)
    answer = ask(call, "retry", {"run": run.name, "reason": reason}, leave=True)
    if "left" in answer:
        say(call, answer, f"No daemon is running: the next one will do {run.name} again ({answer['left']}).")
    else:
        say(call, answer, f"Run {answer['run']} does {run.name} again.")


def cancel(call: Call, name: str, *, reason: str) -> None:
    asked = call.reading.graph.requests.get(name)
    if asked is not None and asked.verb == "backfill":
        answer = ask(call, "cancel", {"run": name, "reason": reason}, leave=True)
        say(
            call,
            answer,
            f"What is left of the backfill of {asked.job} is given up: {show.count(len(asked.slots), 'slot')}.",
        )
        return
    run = find(call.reading, name, rather=lambda run: run.state not in OVER)
    answer = ask(call, "cancel", {"run": run.name, "reason": reason}, leave=True)
    if "left" in answer:
        say(call, answer, f"No daemon is running: the next one will cancel {run.name} ({answer['left']}).")
    else:
        say(call, answer, f"Run {run.name} is being stopped.")


def note(call: Call, text: str) -> None:
    call.home.check(write=False)
    answer = ask(call, "note", {"text": text}, leave=True)
    say(call, answer, f"Left for the next daemon ({answer['left']})." if "left" in answer else "Noted.")


def listing(call: Call, *, job: str, state: str, limit: int) -> None:
    reading = call.reading
    if job and not any(run.job == job for run in reading.runs()):  # Those of a job that was removed are still there.
        known_job(call, job)
    state = state.replace(" ", "_").replace("-", "_")  # As it is shown, too.
    if state and state not in _STATES:
        from policies.fault import meant

        do = meant(state, _STATES, f"they are {', '.join(_STATES)}")
        raise Failure(Exit.BAD_INPUT, f"no run can be {state!r}", do=do)
    runs = [run for run in reversed(reading.runs()) if not run.parent]
    chosen = [run for run in runs if (not job or run.job == job) and (not state or run.state == state)][:limit]
    if call.json:
        show.json([_row(run) for run in chosen])
        return
    zone = call.zone
    rows = [
        (run.name, _words(run.state), show.moment(run.started_at or run.created_at, zone), lasted(run), run.reason)
        for run in chosen
    ]
    if rows:
        show.table(("RUN", "STATE", "SINCE", "TOOK", "REASON"), rows)
    else:
        print("No runs." if not runs else f"None of {len(runs)} runs is like that.")


def shown(call: Call, name: str) -> None:
    reading = call.reading
    run = find(reading, name)
    folder = call.home.runs / run.name
    children = [child for child_name in run.children if (child := reading.graph.run(child_name)) is not None]
    redacted = reading.graph.redacted(run.name)
    if call.json:
        told_of = {"folder": str(folder), "redacted": redacted._asdict() if redacted else None}
        show.json(_row(run) | told_of | {"steps": [_row(child) for child in children]})
        return
    zone = call.zone
    show.facts(
        [
            ("run", run.name),
            ("job", f"{run.job}, revision {run.revision}"),
            ("slot", f"{run.slot} at {show.moment(run.at, zone)} ({run.trigger})"),
            ("state", f"{_words(run.state)}: {run.reason}"),
            *([("file", show.path(run.file))] if run.file else []),
            ("attempt", f"{run.attempt}, token {run.token}"),
            ("began", show.moment(run.started_at, zone) or "not yet"),
            ("ended", f"{show.moment(run.ended_at, zone)} after {lasted(run)}" if run.state in OVER else "not yet"),
            ("leases", ", ".join(run.leases) or "none"),
            ("used", _used(run)),
            ("output", told(redacted, zone) if redacted else "\n".join(_outputs(run, folder)) or "none"),
            ("kept", "\n".join(_kept(reading, run, zone)) or "nothing"),
            ("why", f"hermesd why {run.name}"),
        ]
    )
    if children:
        print()
        show.table(
            ("STEP", "STATE", "TOOK", "REASON"),
            [(child.step, _words(child.state), lasted(child), child.reason) for child in children],
        )


def logs(call: Call, name: str, *, stderr: bool, follow: bool, attempt: int | None) -> None:
    """What a run printed, byte for byte. Of an agent's run: what its steps printed, each under its name."""
    reading = call.reading
    run, latest = find(reading, name, rather=lambda run: bool(run.started_at)), find(reading, name)
    if run is not latest:
        print(f"(of {run.name}; {latest.name} was {_words(latest.state)}: {latest.reason})", file=sys.stderr)
    file = "stderr.log" if stderr else "stdout.log"
    steps = [child for child_name in run.children if (child := reading.graph.run(child_name)) is not None]
    if run.spec.get("kind") == "agent" or steps:
        for step in steps:
            print(f"==> {step.step} ({_words(step.state)}) <==", flush=True)
            _print_log(call, reading, step, file, follow=follow, attempt=None)
        return
    if attempt is not None and not 1 <= attempt <= run.attempt:
        raise Failure(Exit.UNKNOWN, f"run {run.name} has no attempt {attempt}", do=f"it has 1 to {run.attempt}")
    _print_log(call, reading, run, file, follow=follow, attempt=attempt)


def _print_log(call: Call, reading: Reading, run: Run, file: str, *, follow: bool, attempt: int | None) -> None:
    path = call.home.runs / run.name / str(attempt or run.attempt) / file
    follow = follow and attempt is None and run.state not in OVER
    if not path.exists() and not follow:
        redacted = reading.graph.redacted(run.name)
        if redacted is not None:
            raise Failure(Exit.UNKNOWN, f"the output of run {run.name} was {told(redacted, call.zone)}")
        if run.state in OVER and run.outputs.get(file):
            do = "its folder was removed; the ledger still has the digest: `hermesd why " + run.name + "`"
            raise Failure(Exit.UNKNOWN, f"the output of run {run.name} is not there any more", where=str(path), do=do)
        complained = file == "stdout.log" and (path.with_name("stderr.log")).exists()
        nothing = "nothing but what it complained (`--stderr` shows it)" if complained else "nothing"
        print(f"{run.name} has printed {nothing}: {_words(run.state)}: {run.reason}", file=sys.stderr)
        return
    over = _over(reading, run.name) if follow else iter((True,))
    offset = 0
    for ended in over:
        try:
            with open(path, "rb") as log:
                log.seek(offset)
                while data := log.read(1 << 16):
                    show.raw(data)
                    offset += len(data)
        except FileNotFoundError:
            pass  # It has not begun to print.
        if ended:
            return
        time.sleep(_POLL_S)


def _over(reading: Reading, name: str) -> Iterator[bool]:
    """Whether the run is over, as the ledger grows; ends after the first True."""
    tail = Tail(reading.disk, after=reading.head.seq)
    ended = False
    while not ended:
        ended = any(_end_of(record, name) is not None for record in tail.poll())
        yield ended


def follow(call: Call, name: str, after: int) -> Json:
    """Wait for the run's end, telling its way at the terminal. What `_end_of` gives."""
    tail = Tail(call.reading.disk, after=after)
    looked_s = time.monotonic()
    down = False
    while True:
        for record in tail.poll():
            ended = _end_of(record, name)
            if ended is not None:
                return ended
            if sys.stderr.isatty() and (told := _way_of(record, name)):
                print(told, file=sys.stderr)
        if time.monotonic() - looked_s > _DAEMON_LOOKED_AFTER_S:
            looked_s = time.monotonic()
            gone = call.pulse() is None
            if gone and not down:
                print(
                    "The daemon has stopped. The run goes on; its end is told when a daemon is back.", file=sys.stderr
                )
            down = gone
        time.sleep(_POLL_S)


def _end_of(record: Record, name: str) -> Json | None:
    data = record.data
    if record.type == "run.finished" and data["run"] == name and data["retry_at"] is None:
        return {"run": name, "state": data["outcome"], "reason": data["reason"], "code": data["code"]}
    for decided in data["decisions"] if record.type == "plan.decided" else ():
        if decided["run"] == name and decided["verdict"] in OVER:
            return {"run": name, "state": decided["verdict"], "reason": decided["reason"], "code": None}
    return None


def _way_of(record: Record, name: str) -> str:
    data = record.data
    if record.type == "plan.decided":
        decided = [one for one in data["decisions"] if _is_of(one["run"], name)]
        return "\n".join(f"{one['run']} {one['verdict']}: {one['reason']}" for one in decided)
    if record.type in ("run.started", "run.adopted", "run.stopping", "run.finished") and _is_of(data["run"], name):
        return f"{data['run']} {record.type.removeprefix('run.')}" + (f": {data['reason']}" if "reason" in data else "")
    return ""


def _is_of(run: str, name: str) -> bool:
    return run == name or run.startswith(f"{name}.")


def find(reading: Reading, name: str, *, rather: Callable[[Run], bool] = lambda _: True) -> Run:
    """The run of this name, the latest of a job of this name (of those such as `rather`, if there are any), or the only
    run whose name begins so. Failure if there is none, or several."""
    exact = reading.graph.run(name)
    if exact is not None:
        return exact
    of_job = [run for run in reading.runs() if run.job == name and not run.parent]
    if of_job:
        return ([run for run in of_job if rather(run)] or of_job)[-1]
    fitting = [run for run in reading.runs() if run.name.startswith(name) and not run.parent] if name else []
    if not fitting:
        do = "see `hermesd runs list`; `hermesd why` knows older ones"
        raise Failure(Exit.UNKNOWN, f"there is no run {name!r}", do=do)
    if len(fitting) > 1:
        names = ", ".join(run.name for run in fitting[-3:]) + (", ..." if len(fitting) > 3 else "")
        raise Failure(Exit.BAD_INPUT, f"{len(fitting)} runs begin with {name!r}", do=f"write more of the name: {names}")
    return fitting[0]


def known_job(call: Call, name: str) -> None:
    from daemon.cli.jobs import in_force, unknown

    known = in_force(call).keys() | {job.name for job in call.reading.graph.jobs.values() if not job.removed}
    if name not in known:
        raise unknown(call, name, dict.fromkeys(known))


def ask(call: Call, verb: str, args: Json, *, leave: bool) -> Json:
    """The daemon's answer; with `leave`, and no daemon to answer, {"request", "left": the file}."""
    try:
        return control.call(call.home.path, verb, args)
    except control.NotRunning:
        if not leave:
            raise
    call.home.check(write=True)
    call.home.inbox.mkdir(mode=0o700, exist_ok=True)
    request = control.new_request(verb, args)
    return {"request": request.id, "left": str(control.leave(call.home.path, request))}


def say(call: Call, answer: Json, text: str) -> None:
    if call.json:
        show.json(answer)
    else:
        print(text)


def _row(run: Run) -> Json:
    row = run._asdict()
    for name in ("id", "spec", "started_boot_ms", "stopping_boot_ms", "forced"):
        del row[name]
    return row | {"run": row.pop("name")}


def lasted(run: Run) -> str:
    """How long the latest attempt ran; "" if it never did."""
    if not run.started_at or run.state not in OVER or not run.ended_at:
        return ""
    return show.span(max(0, ms_of(run.ended_at) - ms_of(run.started_at)))


def _words(state: str) -> str:
    return state.replace("_", " ")


def _used(run: Run) -> str:
    if run.cpu_ms is None:
        return "not known"
    return f"{show.span(run.cpu_ms)} of CPU" + (f", {show.size(run.rss_kib * 1024)} of memory" if run.rss_kib else "")


def _kept(reading: Reading, run: Run, zone: str) -> Iterator[str]:
    for name, digest in run.artifacts.items():
        redacted = reading.graph.redacted(digest)
        yield f"{name}  artifact {digest}" + (f", {told(redacted, zone)}" if redacted else "")


def told(redacted: Redacted, zone: str) -> str:
    """Who, when and why, for whoever finds the content gone."""
    return f"redacted by {redacted.actor} at {show.moment(redacted.at, zone)}: {redacted.reason}"


def _outputs(run: Run, folder: Path) -> list[str]:
    if run.outputs:
        return [f"{folder / str(run.attempt) / name}  {show.size(it['bytes'])}" for name, it in run.outputs.items()]
    path = folder / str(run.attempt)
    return [str(path / name) for name in sorted(os.listdir(path)) if name.endswith(".log")] if path.is_dir() else []
