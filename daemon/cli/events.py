"""What happened: the ledger's records, filtered, as a table, as they stand, or as CloudEvents."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import orjson

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.cli.instant import instant_ms
from daemon.reading import RawLines, Reading
from daemon.system import SystemClock
from ledger.index import Found, Wanted
from ledger.instant import ms_of
from ledger.reader import Tail
from ledger.record import Record
from state.events import VOCABULARY
from state.upcast import current

Json = Any

_FORMS = ("table", "jsonl", "cloudevents")
_FOLLOWED_BY = 10
_POLL_S = 0.1


def events(
    call: Call, *, follow: bool, types: Sequence[str], subject: str, since: str, until: str, seq: str, grep: str,
    limit: int | None, form: str,
) -> None:  # fmt: skip
    form = form or ("jsonl" if call.json else "table")
    if form not in _FORMS:
        raise Failure(Exit.BAD_INPUT, f"{form!r} is no format", do=f"it is one of {', '.join(_FORMS)}")
    for glob in types:
        if not any(fnmatchcase(name, glob) for name in VOCABULARY) and not glob.startswith("x-"):
            raise Failure(Exit.BAD_INPUT, f"no event type is like {glob!r}", do=f"they are: {', '.join(VOCABULARY)}")
    if seq and not re.fullmatch(r"\d+(-(\d+)?)?", seq):
        raise Failure(Exit.BAD_INPUT, f"{seq!r} is no record", do="write 12, 12-40, or 12- for all from there on")
    first_seq, _, last_seq = (seq or "1-").partition("-")
    reading = call.reading
    now_ms = SystemClock().now().wall_ms
    first_ms = instant_ms(since, now_ms, call.zone, ago=True) if since else None
    last_ms = instant_ms(until, now_ms, call.zone, ago=True) if until else None
    pattern = _pattern(grep)
    raw = RawLines(reading.disk)
    printed = _Printer(form, call.zone, reading)
    needs_line = form == "jsonl" or pattern is not None

    def of_type(name: str) -> bool:
        return any(fnmatchcase(name, glob) for glob in types)

    def of_subject(name: str) -> bool:
        return fnmatchcase(name, subject)

    wanted = Wanted(
        after=int(first_seq) - 1,
        until=(int(last_seq) if last_seq else None) if "-" in (seq or "1-") else int(first_seq),
        since_ms=first_ms,
        until_ms=last_ms,
        type=of_type if types else None,
        subject=of_subject if subject else None,
    )

    def chosen(found: Iterable[Found]) -> Iterator[Found]:
        for record, line in found:
            if types and not of_type(record.type):
                continue
            if subject and not of_subject(record.subject):
                continue
            if first_ms is not None or last_ms is not None:
                at_ms = ms_of(record.ts)
                if (first_ms is not None and at_ms < first_ms) or (last_ms is not None and at_ms > last_ms):
                    continue
            line = line or (raw.of(record) if needs_line else b"")
            if pattern is None or pattern.search(line.decode()):
                yield Found(record, line)

    if limit is None and follow:
        limit = _FOLLOWED_BY
    last = reading.last_seq() if limit is not None else 0
    if follow:  # What comes while the past is printed is found behind the head of before.
        wanted = replace(wanted, until=min(last, wanted.until or last))
    if limit is not None and not (types or subject or since or until or seq or grep):
        wanted = replace(wanted, after=max(0, last - limit))
    past: Iterable[Found] = chosen(reading.search(wanted))
    for record, line in past if limit is None else deque(past, maxlen=limit):
        printed(record, line)
    if follow:
        tail = Tail(reading.disk, after=last)
        while True:
            for record, line in chosen(Found(current(record), b"") for record in tail.poll()):
                printed(record, line)
            time.sleep(_POLL_S)


def _pattern(grep: str) -> re.Pattern[str] | None:
    try:
        return re.compile(grep) if grep else None
    except re.error as error:
        raise Failure(Exit.BAD_INPUT, f"{grep!r} is no regular expression: {error}", do=r"escape it: \(") from error


class _Printer:
    def __init__(self, form: str, zone: str, reading: Reading) -> None:
        self._form, self._zone, self._reading = form, zone, reading

    def __call__(self, record: Record, line: bytes) -> None:
        if self._form == "jsonl":
            show.raw(line)
        elif self._form == "cloudevents":
            show.raw(orjson.dumps(cloud_event(record, self._reading.ledger_id)) + b"\n")
        else:
            place = f"{record.seq:>6}  {show.moment(record.ts, self._zone)}"
            print(f"{place}  {record.type:<16}  {record.subject:<34}  {summary(record)}".rstrip(), flush=True)


def cloud_event(record: Record, ledger_id: str) -> Json:
    """CloudEvents 1.0, structured JSON. Source and id together name the record; the extensions carry its place."""
    event = {
        "specversion": "1.0",
        "id": str(record.seq),
        "source": f"urn:hermesd:ledger:{ledger_id}",
        "type": f"dev.hermesd.{record.type}",
        "subject": record.subject,
        "time": record.ts,
        "datacontenttype": "application/json",
        "data": record.data,
        "sequence": f"{record.seq:020d}",
        "hermesepoch": record.epoch,
        "hermeshash": record.hash,
        "hermesversion": record.tv,
    }
    if record.id is not None:
        event["hermeskey"] = record.id
    if record.cause is not None:
        event["hermescause"] = str(record.cause)
    if record.corr is not None:
        event["correlationid"] = record.corr
    return event


def summary(record: Record) -> str:
    """What a person wants to know of it, in one line."""
    data = record.data
    tell = _SUMMARIES.get(record.type)
    return show.path(" ".join(tell(data).split())) if tell is not None else ""


def _plan(data: Json) -> str:
    told = ", ".join(f"{one['verdict']} {one['run']}" for one in data["decisions"][:3])
    more = len(data["decisions"]) - 3
    return f"{told}{f' and {more} more' if more > 0 else ''}; hash {data['decision_hash'][:12]}"


def _finished(data: Json) -> str:
    used = f", {show.span(data['cpu_ms'])} CPU" if data["cpu_ms"] is not None else ""
    return f"{data['outcome'].replace('_', ' ')}: {data['reason']}{used}"


def _findings(data: Json) -> str:
    if data["ok"]:
        return "all agrees"
    first = data["findings"][0]
    return f"{data['findings_in_all']} differ, first {first['where']}: {first['what']}"


def _probed(data: Json) -> str:
    facts = data["facts"]
    if not facts["ok"]:
        return (facts["problem"] or {}).get("words") or "cannot be used as it is"
    if facts["dirty_count"]:
        return f"{show.count(facts['dirty_count'], 'file')} not committed"
    return f"{show.count(facts['behind'], 'commit')} behind" if facts["candidate"] else "nothing new is offered"


def _stepped(data: Json) -> str:
    facts = data["facts"]
    if not facts["ok"]:
        return f"{facts['step']} failed: {facts['problem']} {facts['words']}"
    return f"{facts['step']}: at the {facts['at']} commit" if facts["at"] in ("old", "new") else facts["step"]


def _upgrade_plan(data: Json) -> str:
    granted = sum(1 for repo in data["repos"] if repo["verdict"] == "granted")
    broken = [law["name"] for law in data["gate"] if not law["ok"]]
    gate = f"; the gate is shut: {broken[0]}" if broken else ""
    return f"{granted} of {len(data['repos'])} granted{gate}; hash {data['decision_hash'][:12]}"


_SUMMARIES: dict[str, Callable[[Json], str]] = {
    "segment.open": lambda data: f"epoch {data['epoch']} by pid {data['pid']} on {data['host']}",
    "ledger.recovered": lambda data: (
        (f"{len(data['cuts'])} cut, kept in quarantine/" if data["cuts"] else "nothing lost")
        + f"; last good {data['last_seq']}"
    ),
    "ledger.cut": lambda data: f"behind {data['last_seq']} by {data['actor']} {data['reason']}",
    "ledger.restored": lambda data: f"{', '.join(file['file'] for file in data['files'])} by {data['actor']}",
    "daemon.started": lambda data: f"hermesd {data['version']}, pid {data['pid']}, zone {data['zone']}",
    "daemon.stopped": lambda data: data["reason"],
    "clock.jumped": lambda data: f"by {show.span(data['jump_ms'])} to {data['wall']}",
    "job.defined": lambda data: f"revision {data['revision']} from {data['source']}",
    "job.changed": lambda data: f"revision {data['revision']} from {data['source']}",
    "job.removed": lambda data: f"it was in {data['source']}",
    "job.rejected": lambda data: f"{show.count(len(data['problems']), 'problem')}: {data['problems'][0]['message']}",
    "policy.adopted": lambda data: data["digest"],
    "policy.rejected": lambda data: data["message"],
    "resources.sampled": lambda data: f"{data['cpus']} CPUs, {show.size(data['memory_free_bytes'])} of memory free",
    "lease.seen": lambda data: f"held by {data['holder']} {data['note']}",
    "lease.released": lambda data: f"{data['why']}, was held by {data['holder']}",
    "lease.refused": lambda data: f"attempt {data['attempt']} waits: {data['key']} was taken by {data['holder']}",
    "plan.decided": _plan,
    "run.started": lambda data: f"attempt {data['attempt']}, pid {data['pid']}, token {data['token']}",
    "run.adopted": lambda data: f"attempt {data['attempt']}, pid {data['pid']}, token {data['token']}",
    "run.stopping": lambda data: (
        f"attempt {data['attempt']}: {data['why']}{', by force' if data['force'] else ''}"
        + (f", {data['key']} was taken by {data['holder']}" if "key" in data else "")
    ),
    "run.finished": _finished,
    "run.fenced": lambda data: f"attempt {data['attempt']} reported late; {data['latest_attempt']} is the latest",
    "start.requested": lambda data: f"{data['run']} by {data['actor']} {data['reason']}",
    "cancel.requested": lambda data: f"by {data['actor']} {data['reason']}",
    "artifact.stored": lambda data: f"{data['name']}, {show.size(data['bytes'])}, {data['digest'][:12]}",
    "job.cleared": lambda data: f"{data['source']} has no problem any more",
    "job.paused": lambda data: f"by {data['actor']} {data['reason']}",
    "job.resumed": lambda data: f"by {data['actor']} {data['reason']}",
    "daemon.paused": lambda data: f"{'drains, ' if data['drain'] else ''}by {data['actor']} {data['reason']}",
    "daemon.resumed": lambda data: f"by {data['actor']} {data['reason']}",
    "backfill.requested": lambda data: f"{show.count(len(data['slots']), 'slot')} by {data['actor']} {data['reason']}",
    "backfill.cancelled": lambda data: f"by {data['actor']} {data['reason']}",
    "files.arrived": lambda data: ", ".join(show.path(file["path"]) for file in data["files"][:3]),
    "files.gone": lambda data: ", ".join(map(show.path, data["paths"][:3])),
    "files.hidden": lambda data: data["problem"],
    "runs.forgotten": lambda data: show.count(len(data["runs"]), "run"),
    "artifact.redacted": lambda data: (
        f"{show.count(len(data['digests']), 'artifact')} by {data['actor']}: {data['reason']}"
    ),
    "audit.finished": lambda data: f"up to {data['seq']}: {_findings(data)}",
    "gateway.started": lambda data: f"hermesd {data['version']}, pid {data['pid']}",
    "gateway.stopped": lambda data: data["why"],
    "model.registered": lambda data: f"{data['runtime']}, {data['path']}",
    "model.forgotten": lambda data: "the gateway has it no more",
    "engine.spawned": lambda data: f"{data['model']} on {data['device']}, {data['runtime']}, {data['rung']}",
    "engine.loaded": lambda data: f"{data['model']} in {show.span(data['took_ms'])}, pid {data['pid']}",
    "engine.warmed": lambda data: f"{data['model']} is served from now on",
    "engine.draining": lambda data: f"{data['model']}: {data['why']}",
    "engine.ended": lambda data: (
        f"{data['model']}: {data['why']}, {show.count(data['served'], 'answer')} {data['words']}"
    ),
    "engine.fell": lambda data: f"{data['model']} goes on {data['instead'] or data['rung']}: {data['words']}",
    "breaker.opened": lambda data: (
        f"{show.count(data['failures'], 'failure')}, for {show.span(data['open_ms'])}: {data['words']}"
    ),
    "breaker.closed": lambda data: f"{data['model']} answers again",
    "generation.finished": lambda data: (
        f"{data['outcome']} by {data['model']}, {show.count(data['generated_tokens'], 'token')}"
        f" in {show.span(data['took_ms'])}"
    ),
    "note.added": lambda data: f"{data['actor']}: {data['text']}",
    "notice.queued": lambda data: f"to tell by {next(iter(data['to']))} of {data['on']}: {data['reason']}",
    "notice.delivered": lambda data: f"delivered, attempt {data['attempt']}",
    "notice.failed": lambda data: (
        f"attempt {data['attempt']}: {data['error']}" + ("" if data["retry_at"] else "; it is given up")
    ),
    "notice.requeued": lambda data: f"by {data['actor']} {data['reason']}",
    "upgrade.probed": _probed,
    "upgrade.checked": lambda data: "all agrees" if data["facts"]["ok"] else data["facts"]["words"] or "does not agree",
    "upgrade.planned": _upgrade_plan,
    "upgrade.stepped": _stepped,
    "upgrade.settled": lambda data: f"{data['outcome'].replace('_', ' ')}: {data['reason']}",
}
