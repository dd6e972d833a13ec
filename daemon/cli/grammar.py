"""The verbs of `hermesd` and their options. What a verb does stands in the file of its noun, which is imported when it
is called: `hermesd --help` needs none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.call import Call
from daemon.cli.exits import TABLE, Exit
from daemon.cli.verb import group, root, verb

Limit = Annotated[int, typer.Option("-n", "--limit", min=1, metavar="N", help="At most so many.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is recorded.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run, enough of its beginning, or a job for its latest.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="A lease key, such as repo:core-lib.")]
Bundle = Annotated[Path | None, typer.Argument(metavar="[BUNDLE]", help="A file by `bundle`, instead of a home.")]
Ttl = Annotated[str, typer.Option("--ttl", metavar="DURATION", help="How long it holds unless renewed.")]

app = root(
    help="Hermes, a local control plane: cron for AI work, every decision recorded.",
    epilog="Every read works with the daemon up or down.\n\n" + TABLE,
)
jobs = group(app, "jobs", "What is to be run, and when.")
runs = group(app, "runs", "What ran, runs and waits.")
generations = group(app, "generations", "Answers of models that the gateway kept.")
notices = group(app, "notices", "What somebody is still to be told.")
events = group(app, "events", "What happened, from the ledger; and proofs of it.", alone=True)
models = group(app, "models", "The store of models, and what this machine can run.")
engines = group(app, "engines", "Engines that the gateway has loaded models into.")
lease = group(app, "lease", "Keys that keep Hermes and everything beside it out of each other's way.")
ledger = group(app, "ledger", "The ledger's files: compressed, repaired.")
upgrade = group(app, "upgrade", "Git repositories kept up to date, and none left broken.")
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


@verb(app, "gateway")
def gateway(
    call: Call,
    env: Annotated[
        Path | None, typer.Option("--env", metavar="FILE", help="Settings over hermesd.yaml's, as configs/env.*.yaml.")
    ] = None,
    tcp: Annotated[str, typer.Option("--tcp", metavar="HOST:PORT", help="Also on loopback TCP, with a token.")] = "",
) -> int:
    """Serve local models over HTTP in the foreground, OpenAI-compatible, on gateway.sock in the home."""
    from daemon.cli import gateway

    return gateway.gateway(call, env, tcp)


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


@verb(app, "watch")
def watch(
    call: Call,
    fresh: Annotated[
        list[str] | None, typer.Option("--fresh", metavar="JOB=AGE", help="As backup=26h; beside what jobs state.")
    ] = None,
    late: Annotated[str, typer.Option("--late", metavar="DURATION", help="A loop silent for longer hangs.")] = "2m",
) -> int:
    """A dead-man's check from files alone, for cron. Silent and 0 if all is well; 4: no daemon lives, or its loop is
    late; 1: a job has had no success for too long, a run is lost or stuck, the ledger is damaged."""
    from daemon.cli import watch

    return watch.watch(call, fresh=fresh or [], late=late)


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
    what: Annotated[str, typer.Argument(metavar="RUN|SLOT|JOB|JOB@TIME", help="A name, or backup@2026-03-29T02:30.")],
) -> None:
    """Why it was decided so: the rule, what was seen, the hash, and what came of it."""
    from daemon.cli import why

    why.why(call, what)


@verb(app, "diff")
def diff(
    call: Call,
    first: Annotated[str, typer.Argument(metavar="DECISION", help="A record, tick:N, or the beginning of a hash.")],
    second: Annotated[str, typer.Argument(metavar="DECISION")],
) -> None:
    """What made two decisions differ: the inputs, the values in them, the answers."""
    from daemon.cli import diff

    diff.diff(call, first, second)


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
    file: Annotated[Path | None, typer.Option("--file", metavar="PATH", help="For a job that files start.")] = None,
    reason: Reason = "",
) -> int:
    """Start a job now. With the daemon down, the next one does."""
    from daemon.cli import runs

    return runs.start(call, job, wait=wait, reason=reason, file=file)


@verb(app, "cancel")
def cancel(call: Call, run: RunName, reason: Reason = "") -> None:
    """Stop a run, or take back one that waits."""
    from daemon.cli import runs

    runs.cancel(call, run, reason=reason)


@verb(app, "retry")
def retry(call: Call, run: RunName, reason: Reason = "") -> None:
    """Have a run that is over done again."""
    from daemon.cli import runs

    runs.retry(call, run, reason=reason)


@verb(app, "pause")
def pause(
    call: Call,
    job: Annotated[str, typer.Argument(metavar="[JOB]", help="Without: everything.")] = "",
    reason: Reason = "",
) -> None:
    """Start no more of a job, or of anything. A paused job's slots are skipped; with everything paused they are missed,
    and decided on resuming."""
    from daemon.cli import pause

    pause.pause(call, job, reason=reason)


@verb(app, "resume")
def resume(
    call: Call,
    job: Annotated[str, typer.Argument(metavar="[JOB]", help="Without: everything.")] = "",
    reason: Reason = "",
) -> None:
    """Let a paused job, or everything, go on."""
    from daemon.cli import pause

    pause.resume(call, job, reason=reason)


@verb(app, "drain")
def drain(
    call: Call,
    wait: Annotated[bool, typer.Option("--wait", help="Come back when nothing runs any more.")] = False,
    reason: Reason = "",
) -> int:
    """Start nothing more, and let what runs end. `resume` takes it back."""
    from daemon.cli import pause

    return pause.drain(call, wait=wait, reason=reason)


@verb(app, "backfill")
def backfill(
    call: Call,
    job: Annotated[str, typer.Argument(metavar="JOB")],
    start: Annotated[str, typer.Option("--from", metavar="TIME", help="The first slot may be at this instant.")],
    end: Annotated[str, typer.Option("--to", metavar="TIME", help="Slots lie before this instant.")] = "now",
    current_spec: Annotated[
        bool, typer.Option("--current-spec", help="The job as it is today, not as it was at each slot.")
    ] = False,
    overlap: Annotated[
        str, typer.Option("--overlap", help="buffer_all: one after another; allow_all: side by side.")
    ] = "buffer_all",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the slots, ask for nothing.")] = False,
    reason: Reason = "",
) -> None:
    """Run slots of the past, each by the job as it was then. Look first, with --dry-run."""
    from daemon.cli import pause

    pause.backfill(
        call, job, start=start, end=end, current_spec=current_spec, overlap=overlap, dry_run=dry_run, reason=reason
    )


@verb(app, "note")
def note(call: Call, text: Annotated[str, typer.Argument(metavar="TEXT")]) -> None:
    """Record a remark in the ledger."""
    from daemon.cli import runs

    runs.note(call, text)


@verb(events, "")
def events_(
    call: Call,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what comes.")] = False,
    type: Annotated[
        list[str] | None, typer.Option("--type", metavar="GLOB", help="As run.*; or-ed if several.")
    ] = None,
    subject: Annotated[str, typer.Option("--subject", metavar="GLOB", help="As run/backup.* or job/backup.")] = "",
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="From then on; 2h is two hours ago.")] = "",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="Up to then.")] = "",
    seq: Annotated[str, typer.Option("--seq", metavar="SEQ", help="This record; 12-40, or 12- from there on.")] = "",
    grep: Annotated[str, typer.Option("--grep", metavar="REGEX", help="Lines that match.")] = "",
    limit: Annotated[
        int | None, typer.Option("-n", "--limit", min=0, help="The last so many [default: all; 10 with -f].")
    ] = None,
    format: Annotated[str, typer.Option("--format", help="table, jsonl (the ledger's own bytes) or cloudevents.")] = "",
) -> None:
    """What happened, from the ledger."""
    from daemon.cli import events

    events.events(
        call, follow=follow, types=type or [], subject=subject, since=since, until=until, seq=seq, grep=grep,
        limit=limit, form=format,
    )  # fmt: skip


@verb(events, "prove")
def events_prove(
    call: Call,
    seq: Annotated[int | None, typer.Argument(min=1, metavar="[SEQ]")] = None,
    check: Annotated[Path | None, typer.Option("--check", metavar="FILE", help="Check a proof; needs no home.")] = None,
    root: Annotated[str, typer.Option("--root", metavar="HASH", help="The manifest's root that it must rest on.")] = "",
) -> int:
    """Prove that a record is in the ledger, for who has but the manifest's root; or check such a proof."""
    from daemon.cli import ledger
    from daemon.cli.failure import Failure

    if check is not None and seq is None:
        return ledger.check_proof(call, check, root)
    if seq is None or check is not None or root:
        raise Failure(Exit.BAD_INPUT, "either SEQ, or --check FILE, which --root goes with")
    return ledger.prove(call, seq)


@verb(app, "state")
def state(
    call: Call,
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VIEW | show VIEW | diff SEQ SEQ | rebuild]", help="Without: the views there are."),
    ] = None,
    at: Annotated[str, typer.Option("--at", metavar="SEQ|TIME", help="As of this record, or this instant.")] = "",
) -> int:
    """The views in state/: listed, shown, shown as of a record or an instant, compared, or rebuilt from the ledger."""
    from daemon.cli import state

    return state.state(call, what or [], at)


@verb(app, "audit")
def audit(call: Call) -> int:
    """Read everything again, now: every byte, and every view and snapshot against what the ledger gives."""
    from daemon.cli import audit

    return audit.audit(call)


@verb(app, "rerun")
def rerun(
    call: Call,
    what: Annotated[str, typer.Argument(metavar="RUN|GENERATION", help="An inference run, or the id of an answer.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="0 only if the bytes are the same and had to be; 1 if they differ.")
    ] = False,
) -> int:
    """Ask a model the same again, and compare the bytes. Where nobody promised the same, it says so."""
    from daemon.cli import rerun

    return rerun.rerun(call, what, verify=verify)


@verb(app, "redact")
def redact(call: Call, run: RunName, reason: Reason = "") -> None:
    """Delete what a run printed and kept; who and why is recorded, and the chain stays whole."""
    from daemon.cli import redact

    redact.redact(call, run, reason=reason)


@verb(app, "verify")
def verify(
    call: Call,
    file: Bundle = None,
    artifacts: Annotated[bool, typer.Option("--artifacts", help="Also every artifact that an event names.")] = False,
) -> int:
    """Check every byte of the ledger against its hash chain."""
    from daemon.cli import bundle, ledger

    with bundle.home_of(call, file) as looked_at:
        return ledger.verify(looked_at, artifacts=artifacts)


@verb(app, "simulate")
def simulate(
    call: Call,
    days: Annotated[float, typer.Option("--days", min=0.01, max=3660, metavar="N", help="So many days ahead.")] = 7,
    seed: Annotated[
        int, typer.Option("--seed", metavar="S", help="Decides every chance; the same gives the same.")
    ] = 1,
    faults: Annotated[
        str,
        typer.Option("--faults", metavar="KIND,...", help="kill (the daemon), power (the machine), sleep (the host)."),
    ] = "",
    jobs: Annotated[Path | None, typer.Option("--jobs", metavar="DIR", help="These job files; needs no home.")] = None,
    policy: Annotated[Path | None, typer.Option("--policy", metavar="FILE", help="Values over the defaults.")] = None,
    start: Annotated[str, typer.Option("--from", metavar="TIME", help="From then on [default: now].")] = "",
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Draw it there.")] = None,
) -> None:
    """The days ahead: what will run when, wait, starve or be skipped. Durations are learned from the ledger."""
    from simulations.cli import simulate

    simulate.simulate(call, days=days, seed=seed, faults=faults, jobs=jobs, policy=policy, start=start, svg=svg)


@verb(app, "whatif")
def whatif(
    call: Call,
    policy: Annotated[Path | None, typer.Option("--policy", metavar="FILE", help="Values over the defaults.")] = None,
    jobs: Annotated[Path | None, typer.Option("--jobs", metavar="DIR", help="These job files, from then on.")] = None,
    since: Annotated[str, typer.Option("--since", metavar="TIME|SEQ", help="From then on; 7d is a week ago.")] = "7d",
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Decides what the record cannot.")] = 1,
) -> None:
    """The past decided again under another policy or other jobs: what would have run otherwise, and waited."""
    from simulations.cli import whatif

    whatif.whatif(call, policy=policy, jobs=jobs, since=since, seed=seed)


@verb(app, "bisect")
def bisect(
    call: Call,
    expression: Annotated[str, typer.Option("--assert", metavar="EXPR", help="As 'runs.failed < 3'; see below.")],
    start: Annotated[int, typer.Option("--from", min=0, metavar="SEQ", help="Behind this record.")] = 0,
    to: Annotated[
        int | None, typer.Option("--to", min=1, metavar="SEQ", help="Up to this one [default: the last].")
    ] = None,
    monotone: Annotated[
        bool, typer.Option("--monotone", help="It changes at most once, so that snapshots can be asked.")
    ] = False,
) -> int:
    """The first event after which an expression over the graph stops, or starts, to hold.

    \b
    runs.failed, runs.running, runs.active ...      so many have ended so since the ledger began, or are so now
    jobs.count, jobs.paused, jobs.failing           how many
    jobs["backup"].failures_in_row                  also active, kept, last_outcome, last_success_at, revision, paused,
                                                    removed, exists, failing_since, priority
    run["NAME"].state                               also attempt, reason, rule, token, code, exists
    leases.count, leases["repo:x"].holder           also token, foreign, held
    here.tokens, here.tick, here.daemon             and whatever else the node of this machine has
    policy.max_running, requests.count, notices.count, decisions.count, seq

    \b
    and or not  < <= == != >= >  in [..]  + - * / // %  ( )  numbers, "texts", True, False, None
    What is not there is None, and None is neither smaller nor larger than anything.
    """
    from simulations.cli import bisect

    return bisect.bisect(call, expression, start=start, to=to, monotone=monotone)


@verb(app, "replay")
def replay(
    call: Call,
    file: Bundle = None,
    verify: Annotated[bool, typer.Option("--verify", help="Every plan must give its decision hash again.")] = False,
    to: Annotated[int | None, typer.Option("--to", min=0, metavar="SEQ", help="Up to this record.")] = None,
    graph: Annotated[bool, typer.Option("--graph", help="Print the graph.")] = False,
    format: Annotated[str, typer.Option("--format", help="Of the graph: json, dot or mermaid.")] = "json",
) -> int:
    """Walk the ledger again from its first record."""
    from daemon.cli import bundle, ledger

    with bundle.home_of(call, file) as looked_at:
        return ledger.replay(looked_at, verify=verify, to=to, graph=graph, form=format)


@verb(app, "doctor")
def doctor(call: Call) -> int:
    """Look at this machine, this installation and this home for what would go wrong."""
    from daemon.cli import doctor

    return doctor.doctor(call)


@verb(app, "bundle")
def bundle(
    call: Call,
    out: Annotated[Path | None, typer.Argument(metavar="[OUT.tar.gz]", help="[default: named by the ledger]")] = None,
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="Only the events from then on; cannot be replayed.")
    ] = "",
    outputs: Annotated[bool, typer.Option("--outputs", help="Also what runs printed and kept, as it is.")] = False,
    as_is: Annotated[
        bool, typer.Option("--with-ledger-as-is", help="Though something in it looks like a secret.")
    ] = False,
    without_ledger: Annotated[bool, typer.Option("--without-ledger", help="All but the ledger.")] = False,
) -> None:
    """An archive of this home to give away, secrets masked; `hermesd replay --verify OUT.tar.gz` reads it anywhere."""
    from daemon.cli import bundle

    bundle.bundle(call, out, since=since, outputs=outputs, as_is=as_is, without_ledger=without_ledger)


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


@verb(ledger, "archive")
def ledger_archive(
    call: Call,
    keep: Annotated[int, typer.Option("--keep", min=0, metavar="N", help="Leave the newest N sealed ones.")] = 4,
) -> int:
    """Compress sealed segments; they stay readable. The daemon may run."""
    from daemon.cli import ledger

    return ledger.archive(call, keep)


@verb(ledger, "cut")
def ledger_cut(
    call: Call,
    at: Annotated[int, typer.Option("--at", min=1, metavar="SEQ", help="This record goes, and all behind it.")],
    accept_loss: Annotated[bool, typer.Option("--accept-loss", help="Do it; without it, only say what goes.")] = False,
    reason: Reason = "",
) -> int:
    """Give up the end of a damaged ledger. What is cut is kept in quarantine, and the cut is recorded."""
    from daemon.cli import repair

    return repair.cut(call, at, accept_loss=accept_loss, reason=reason)


@verb(ledger, "takeover")
def ledger_takeover(
    call: Call,
    after: Annotated[
        str, typer.Option("--after", metavar="DURATION", help="It hangs if its loop was silent so long.")
    ] = "5m",
) -> int:
    """Kill a daemon that hangs, so that another may start. One that does not is left alone."""
    from daemon.cli import takeover
    from policies.quantity import parse_duration

    return takeover.takeover(call, parse_duration(after))


@verb(ledger, "restore")
def ledger_restore(
    call: Call,
    source: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="Of a backup: a segment, a ledger, or a home.")],
) -> int:
    """Put missing or damaged files of the ledger back, if the backup's are what was sealed. It is recorded."""
    from daemon.cli import repair

    return repair.restore(call, source)


@verb(notices, "list")
def notices_list(call: Call) -> None:
    """Notices that have not been delivered, and why."""
    from daemon.cli import notices

    notices.listing(call)


@verb(notices, "retry")
def notices_retry(
    call: Call, notice: Annotated[str, typer.Argument(metavar="NOTICE", help="As listed.")], reason: Reason = ""
) -> None:
    """Try to deliver one that was given up."""
    from daemon.cli import notices

    notices.retry(call, notice, reason=reason)


@verb(generations, "list")
def generations_list(call: Call, limit: Limit = 20) -> None:
    """Answers whose text is kept, the newest first."""
    from daemon.cli import rerun

    rerun.listing(call, limit=limit)


@verb(generations, "audit")
def generations_audit(
    call: Call,
    sample: Annotated[str, typer.Option("--sample", metavar="PERCENT", help="So many of those kept.")] = "1%",
) -> int:
    """Ask a sample of the kept answers again, and compare the bytes. The same sample of the same answers, always."""
    from daemon.cli import rerun

    return rerun.audit(call, sample)


@verb(engines, "list")
def engines_list(call: Call) -> None:
    """What is loaded, where, and what serving each model has been like; from the ledger."""
    from daemon.cli import engines

    engines.listing(call)


@verb(engines, "stop")
def engines_stop(
    call: Call,
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="Its engines; without it: all.")] = "",
    gateway: Annotated[bool, typer.Option("--gateway", help="End the gateway process itself.")] = False,
) -> int:
    """Unload a model, or all. Answers in progress are finished first; the next request loads it again."""
    from daemon.cli import engines

    return engines.stop(call, model, gateway=gateway)


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


UpgradeJob = Annotated[str, typer.Argument(metavar="[JOB]", help="Of several upgrade jobs, which.")]


@verb(upgrade, "plan")
def upgrade_plan(call: Call, job: UpgradeJob = "") -> int:
    """Look at every repository now, and say what would be done. Nothing is changed, and nothing recorded."""
    from daemon.cli import upgrade

    return upgrade.plan(call, job)


@verb(upgrade, "run")
def upgrade_run(
    call: Call,
    job: UpgradeJob = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show what became of each repository.")] = True,
    reason: Reason = "",
) -> int:
    """Upgrade now: probe, plan, and what the plan grants."""
    from daemon.cli import upgrade

    return upgrade.run(call, job, wait=wait, reason=reason)


@verb(upgrade, "status")
def upgrade_status(call: Call, job: UpgradeJob = "") -> int:
    """What became of each repository the last time, and what is remembered of it."""
    from daemon.cli import upgrade

    return upgrade.status(call, job)


@verb(upgrade, "why")
def upgrade_why(
    call: Call, key: Annotated[str, typer.Argument(metavar="KEY", help="A repository, as the job calls it.")]
) -> int:
    """Why a repository was upgraded, or was not: the plan, its risk, its steps, and what the gate said."""
    from daemon.cli import upgrade

    return upgrade.why(call, key)


@verb(upgrade, "rollback")
def upgrade_rollback(
    call: Call,
    key: Annotated[str, typer.Argument(metavar="KEY", help="A repository, as the job calls it.")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Say what became of it.")] = True,
    reason: Reason = "",
) -> int:
    """Take the last upgrade of a repository back, under its lease, if nobody has moved the branch since."""
    from daemon.cli import upgrade

    return upgrade.rollback(call, key, wait=wait, reason=reason)


@verb(upgrade, "graph")
def upgrade_graph(
    call: Call,
    job: Annotated[str, typer.Argument(metavar="[JOB]", help="Of several upgrade jobs, which.")] = "",
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="svg, mermaid or json.")] = "svg",
) -> int:
    """Repositories, what they depend on and where they come from, as of the latest plan."""
    from daemon.cli import upgrade_graph

    return upgrade_graph.graph(call, job, form)


@verb(upgrade, "calibrate")
def upgrade_calibrate(call: Call) -> int:
    """Whether the risks that plans estimated have come true: reliability and Brier score, by a replay of the ledger."""
    from daemon.cli import upgrade_calibrate

    return upgrade_calibrate.calibrate(call)


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


Model = Annotated[str, typer.Argument(metavar="NAME", help="A model of the store.")]


@verb(models, "add")
def models_add(
    call: Call,
    source: Annotated[
        Path, typer.Argument(metavar="PATH", help="A Hugging Face folder (safetensors), or a GGUF file.")
    ],
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="What jobs call it [default: the folder's].")
    ] = "",
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype", metavar="DTYPE", help="keep, auto (what this machine serves), float32, bfloat16 or float16."
        ),
    ] = "auto",
    pin: Annotated[bool, typer.Option("--pin", help="It is never evicted.")] = False,
    evict: Annotated[bool, typer.Option("--evict", help="Make room by removing what was unused the longest.")] = False,
) -> None:
    """Take a model into models/: checked, converted once to the dtype it is served in, read-only."""
    from daemon.cli import models

    models.add(call, source, name=name, dtype=dtype, pin=pin, evict=evict)


@verb(models, "list")
def models_list(call: Call) -> None:
    """The models that jobs can name."""
    from daemon.cli import models

    models.listing(call)


@verb(models, "show")
def models_show(call: Call, name: Model) -> None:
    """One model of the store: where it is from, and its files by digest."""
    from daemon.cli import models

    models.one(call, name)


@verb(models, "remove")
def models_remove(call: Call, name: Model) -> None:
    """Delete a model of the store. Engines that have it loaded keep it until they end."""
    from daemon.cli import models

    models.remove(call, name)


@verb(models, "verify")
def models_verify(
    call: Call,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="A model of the store; without it: all.")] = "",
) -> int:
    """Every byte of the store's models against its manifest."""
    from daemon.cli import models

    return models.verify(call, name)


@verb(models, "matrix")
def models_matrix(call: Call) -> None:
    """Which runtime, device and quantization this machine can do, and why not."""
    from daemon.cli import models

    models.matrix(call)


@verb(models, "recommend")
def models_recommend(call: Call) -> None:
    """What well-known models fit this machine, and in which form."""
    from daemon.cli import models

    models.recommend(call)
