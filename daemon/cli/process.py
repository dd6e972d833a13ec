"""The daemon as a process: `hermesd run` in the foreground, `hermesd stop` from beside it.

`run` becomes `python -m daemon.cli.process HOME`: the same process, without the command line's own modules, which a
daemon would carry along for as long as it lives.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from datetime import datetime

from daemon import control
from daemon.cli import show
from daemon.cli.call import Call, exit_code
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure, failure_of
from daemon.serve import Daemon
from daemon.version import version
from daemon.workers import identity
from ledger.errors import Corrupt
from state.graph import WITH_PROCESS, Graph, Rejection, is_container

_LOOK_AGAIN_S = 0.02


def run(call: Call) -> None:
    if call.home.path.exists():
        call.home.check(write=True)
    words = [sys.executable, "-P", "-m", "daemon.cli.process", str(call.home.path), *(["--json"] if call.json else [])]
    sys.stdout.flush()
    # The threads that wait for files and for the time allocate little: one heap for all of them saves megabytes.
    os.execve(sys.executable, words, {"MALLOC_ARENA_MAX": "1", **os.environ})


def serve(call: Call) -> None:
    home = call.home
    home.check(write=True)
    home.make()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    daemon = Daemon(home)

    def ready() -> None:
        loop = daemon.loop
        pid, epoch, jobs = os.getpid(), loop.ledger.epoch, len([j for j in loop.graph.jobs.values() if not j.removed])
        # Nobody may read this any more; that is no reason to stop the work.
        with contextlib.suppress(BrokenPipeError):
            if call.json:
                show.raw(b'{"ready":true,"pid":%d,"epoch":%d,"jobs":%d}\n' % (pid, epoch, jobs))
            else:
                going = _with_process(loop.graph)
                on = f", {show.count(len(going), 'run')} in progress" if going else ""
                told = f"{home.path}, pid {pid}, epoch {epoch}, {show.count(jobs, 'job')}{on}"
                print(f"hermesd {version()} is ready: {told}", flush=True)
                if rejected := sum(isinstance(node, Rejection) for node in loop.graph.nodes.values()):
                    print(f"{show.count(rejected, 'job file')} rejected: see `hermesd jobs check`", flush=True)

    try:
        daemon.run(ready)
        going = _with_process(daemon.loop.graph)
        _say(f"stopped; {_go_on(going)}" if going else "stopped")
    except Corrupt as error:
        # A person must decide. A service manager that started us again would only have it all read again.
        failure = failure_of(error)
        assert failure is not None
        failure.exit = Exit.CONFIGURATION
        raise failure from error
    finally:
        daemon.close()


def stop(call: Call, wait_ms: int) -> int:
    home = call.home
    home.check(write=False)
    pulse = call.pulse()
    if pulse is None:
        raise Failure(Exit.NOT_RUNNING, f"no daemon is running in {home.path}", do="nothing: there is nothing to stop")
    pid = int(pulse["pid"])
    started = identity.start_time(pid)
    control.call(home.path, "stop", {})
    give_up_s = time.monotonic() + wait_ms / 1000
    while started is not None and identity.alive(pid, started):
        if time.monotonic() > give_up_s:
            raise Failure(
                Exit.NO,
                f"the daemon (pid {pid}) was asked to stop and is still there after {show.span(wait_ms)}",
                where=str(home.path),
                do=f"wait on (`hermesd stop --timeout 5m`), or `kill -9 {pid}`: nothing recorded is lost",
            )
        time.sleep(_LOOK_AGAIN_S)
    graph = call.reading.graph
    going = _with_process(graph)
    gateway = next(
        (g.pid for g in graph.gateways.values() if g.state == "running" and identity.alive(g.pid, g.process_started)), 0
    )
    if call.json:
        show.json({"stopped": True, "pid": pid, "going_on": going, "gateway": gateway or None})
    else:
        print(f"The daemon (pid {pid}) has stopped" + (f"; {_go_on(going)}" if going else "."))
        if gateway:
            print(f"The gateway (pid {gateway}) serves on; `hermesd engines stop --gateway` ends it.")
    return Exit.FINE


def _with_process(graph: Graph) -> list[str]:
    return [run.name for run in graph.active.values() if run.state in WITH_PROCESS and not is_container(run.spec)]


def _go_on(runs: list[str]) -> str:
    names = ", ".join(runs[:3]) + (", ..." if len(runs) > 3 else "")
    go = "goes" if len(runs) == 1 else "go"
    return f"{show.count(len(runs), 'run')} {go} on ({names}); the next daemon takes them up."


def _say(text: str) -> None:
    """For people at a terminal; the journal has times of its own."""
    stamp = "" if "JOURNAL_STREAM" in os.environ else datetime.now().astimezone().strftime("%H:%M:%S ")
    with contextlib.suppress(BrokenPipeError):
        print(f"{stamp}hermesd: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    _call = Call(sys.argv[1], "--json" in sys.argv[2:])
    sys.exit(exit_code(_call, lambda: serve(_call)))
