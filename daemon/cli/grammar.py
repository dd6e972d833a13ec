"""The verbs of `hermesd` and their options. What a verb does stands in the file of its noun, which is imported when it
is called: `hermesd --help` needs none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.call import Call
from daemon.cli.exits import TABLE
from daemon.cli.verb import group, root, verb

Limit = Annotated[int, typer.Option("-n", "--limit", min=1, metavar="N", help="At most so many.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is recorded.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run, enough of its beginning, or a job for its latest.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="A lease key, such as repo:core-lib.")]
Ttl = Annotated[str, typer.Option("--ttl", metavar="DURATION", help="How long it holds unless renewed.")]

app = root(
    help="Hermes, a local control plane: cron for AI work, every decision recorded.",
    epilog="Every read works with the daemon up or down.\n\n" + TABLE,
)
jobs = group(app, "jobs", "What is to be run, and when.")
runs = group(app, "runs", "What ran, runs and waits.")
lease = group(app, "lease", "Keys that keep Hermes and everything beside it out of each other's way.")
service = group(app, "service", "The daemon as a service of this user (systemd or launchd).")


@verb(app, "init")
def init(
    call: Call,
    examples: Annotated[bool, typer.Option("--examples", help="Bring example jobs, into jobs/examples/.")] = False,
) -> None:
    """Make a home, and say what comes next."""
    from daemon.cli import home

    home.init(call, examples=examples)


@verb(app, "demo")
def demo(
    call: Call,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the home there. One named by --home always stays.")
    ] = False,
) -> int:
    """See the whole machine work, in a home of its own: jobs planned, run, killed and found again."""
    from daemon.cli import demo

    return demo.demo(call, keep=keep)


@verb(app, "run")
def run(call: Call) -> None:
    """Run the daemon in the foreground, until Ctrl-C. Its runs go on without it."""
    from daemon.cli import process

    process.run(call)


@verb(app, "stop")
def stop(
    call: Call,
    timeout: Annotated[str, typer.Option("--timeout", metavar="DURATION", help="Wait so long for its end.")] = "30s",
) -> int:
    """Ask the daemon to stop, and wait until it has. Its runs go on."""
    from daemon.cli import process
    from policies.quantity import parse_duration

    return process.stop(call, parse_duration(timeout))


@verb(app, "status")
def status(call: Call) -> int:
    """How it stands. 0 only if the daemon is up, its loop turns and nothing is stuck."""
    from daemon.cli import status

    return status.status(call)


@verb(app, "next")
def next_(
    call: Call,
    job: Annotated[str, typer.Argument(metavar="[JOB]", help="Only this job.")] = "",
    limit: Limit = 10,
    start: Annotated[str, typer.Option("--from", metavar="TIME", help="From then on [default: now].")] = "",
    file: Annotated[Path | None, typer.Option("--file", metavar="FILE", help="A job file; needs no home.")] = None,
) -> None:
    """What is due when."""
    from daemon.cli import jobs

    jobs.upcoming_slots(call, job, limit=limit, start=start, file=file)


@verb(app, "why")
def why(
    call: Call,
    what: Annotated[str, typer.Argument(metavar="RUN|SLOT|JOB", help="A name, or enough of its beginning.")],
) -> None:
    """Why it was decided so: the rule, what was seen, the hash, and what came of it."""
    from daemon.cli import why

    why.why(call, what)


@verb(app, "plan")
def plan(call: Call) -> None:
    """What would be decided now. Nothing is done."""
    from daemon.cli import plan

    plan.plan(call)


@verb(app, "start")
def start(
    call: Call,
    job: Annotated[str, typer.Argument(metavar="JOB")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end; 0 only if it succeeded.")] = False,
    reason: Reason = "",
) -> int:
    """Start a job now. With the daemon down, the next one does."""
    from daemon.cli import runs

    return runs.start(call, job, wait=wait, reason=reason)


@verb(app, "cancel")
def cancel(call: Call, run: RunName, reason: Reason = "") -> None:
    """Stop a run, or take back one that waits."""
    from daemon.cli import runs

    runs.cancel(call, run, reason=reason)


@verb(app, "note")
def note(call: Call, text: Annotated[str, typer.Argument(metavar="TEXT")]) -> None:
    """Record a remark in the ledger."""
    from daemon.cli import runs

    runs.note(call, text)


@verb(app, "events")
def events(
    call: Call,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what comes.")] = False,
    type: Annotated[
        list[str] | None, typer.Option("--type", metavar="GLOB", help="As run.*; or-ed if several.")
    ] = None,
    subject: Annotated[str, typer.Option("--subject", metavar="GLOB", help="As run/backup.* or job/backup.")] = "",
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="From then on; 2h is two hours ago.")] = "",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="Up to then.")] = "",
    grep: Annotated[str, typer.Option("--grep", metavar="REGEX", help="Lines that match.")] = "",
    limit: Annotated[
        int | None, typer.Option("-n", "--limit", min=0, help="The last so many [default: all; 10 with -f].")
    ] = None,
    format: Annotated[str, typer.Option("--format", help="table, jsonl (the ledger's own bytes) or cloudevents.")] = "",
) -> None:
    """What happened, from the ledger."""
    from daemon.cli import events

    events.events(
        call, follow=follow, types=type or [], subject=subject, since=since, until=until, grep=grep, limit=limit,
        form=format,
    )  # fmt: skip


@verb(app, "state")
def state(
    call: Call,
    what: Annotated[
        list[str] | None, typer.Argument(metavar="[VIEW | show VIEW | rebuild]", help="Without: the views there are.")
    ] = None,
    at: Annotated[int | None, typer.Option("--at", min=0, metavar="SEQ", help="As of this record.")] = None,
) -> int:
    """The views in state/: listed, shown, shown as of a record, or rebuilt from the ledger."""
    from daemon.cli import state

    return state.state(call, what or [], at)


@verb(app, "verify")
def verify(
    call: Call,
    artifacts: Annotated[bool, typer.Option("--artifacts", help="Also every artifact that an event names.")] = False,
) -> int:
    """Check every byte of the ledger against its hash chain."""
    from daemon.cli import ledger

    return ledger.verify(call, artifacts=artifacts)


@verb(app, "replay")
def replay(
    call: Call,
    verify: Annotated[bool, typer.Option("--verify", help="Every plan must give its decision hash again.")] = False,
    to: Annotated[int | None, typer.Option("--to", min=0, metavar="SEQ", help="Up to this record.")] = None,
    graph: Annotated[bool, typer.Option("--graph", help="Print the graph, as JSON.")] = False,
) -> int:
    """Walk the ledger again from its first record."""
    from daemon.cli import ledger

    return ledger.replay(call, verify=verify, to=to, graph=graph)


@verb(app, "doctor")
def doctor(call: Call) -> int:
    """Look at this machine, this installation and this home for what would go wrong."""
    from daemon.cli import doctor

    return doctor.doctor(call)


@verb(jobs, "list")
def jobs_list(call: Call) -> None:
    """The jobs in force, and when each is due next."""
    from daemon.cli import jobs

    jobs.listing(call)


@verb(jobs, "show")
def jobs_show(call: Call, job: Annotated[str, typer.Argument(metavar="JOB")]) -> None:
    """One job, with every default filled in."""
    from daemon.cli import jobs

    jobs.shown(call, job)


@verb(jobs, "check")
def jobs_check(
    call: Call,
    files: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="[default: the home's]")] = None,
) -> int:
    """Every problem of job files, with file, line, column, field and advice."""
    from daemon.cli import check

    return check.check(call, files or [])


@verb(jobs, "schema")
def jobs_schema(call: Call) -> None:
    """The JSON Schema of job files, for editors."""
    from daemon.cli import jobs

    jobs.schema(call)


@verb(runs, "list")
def runs_list(
    call: Call,
    job: Annotated[str, typer.Option("--job", metavar="JOB", help="Of this job.")] = "",
    state: Annotated[str, typer.Option("--state", metavar="STATE", help="In this state, such as failed.")] = "",
    limit: Limit = 20,
) -> None:
    """Runs, the newest first."""
    from daemon.cli import runs

    runs.listing(call, job=job, state=state, limit=limit)


@verb(runs, "show")
def runs_show(call: Call, run: RunName) -> None:
    """One run."""
    from daemon.cli import runs

    runs.shown(call, run)


@verb(runs, "logs")
def runs_logs(
    call: Call,
    run: RunName,
    stderr: Annotated[bool, typer.Option("--stderr", help="What it complained, not what it printed.")] = False,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until it is over.")] = False,
    attempt: Annotated[int | None, typer.Option("--attempt", min=1, help="[default: the last]")] = None,
) -> None:
    """What a run printed."""
    from daemon.cli import runs

    runs.logs(call, run, stderr=stderr, follow=follow, attempt=attempt)


@verb(lease, "list")
def lease_list(call: Call) -> None:
    """Who holds which key."""
    from daemon.cli import leases

    leases.listing(call)


@verb(lease, "acquire")
def lease_acquire(call: Call, key: Key, ttl: Ttl = "1h") -> int:
    """Take a key, until it is released or its time is over. Prints the token."""
    from daemon.cli import leases

    return leases.acquire(call, key, ttl)


@verb(lease, "release")
def lease_release(
    call: Call,
    key: Key,
    token: Annotated[int | None, typer.Option("--token", help="As `lease acquire` printed it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Whoever holds it, and whatever its file looks like.")] = False,
) -> int:
    """Give a key back."""
    from daemon.cli import leases

    return leases.release(call, key, token, force=force)


@verb(lease, "exec")
def lease_exec(
    call: Call,
    key: Key,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND [ARGUMENT]...")],
    ttl: Ttl = "1m",
    wait: Annotated[
        str, typer.Option("--wait", metavar="DURATION", help="Wait so long for the key [default: for ever].")
    ] = "",
) -> int:
    """Hold a key while a command runs. Its exit status is the command's."""
    from daemon.cli import leases

    return leases.execute(call, key, command, ttl, wait)


@verb(service, "install")
def service_install(call: Call) -> None:
    """Start the daemon now and at every log-in."""
    from daemon.cli import service

    service.install(call)


@verb(service, "uninstall")
def service_uninstall(call: Call) -> None:
    """Stop the service and remove it. Runs go on, the home stays."""
    from daemon.cli import service

    service.uninstall(call)


@verb(service, "status")
def service_status(call: Call) -> int:
    """Whether the service is installed, and active."""
    from daemon.cli import service

    return service.status(call)
