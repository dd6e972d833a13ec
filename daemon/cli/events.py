"""What happened: the ledger's records, filtered, as a table, as they stand, or as CloudEvents."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import orjson

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.cli.instant import instant_ms
from daemon.reading import RawLines
from daemon.system import SystemClock
from ledger.instant import ms_of
from ledger.reader import Tail
from ledger.record import Record
from ledger.segment import OPEN
from state.events import VOCABULARY

Json = Any

_FORMS = ("table", "jsonl", "cloudevents")
_FOLLOWED_BY = 10
_POLL_S = 0.1


def events(
    call: Call, *, follow: bool, types: Sequence[str], subject: str, since: str, until: str, grep: str,
    limit: int | None, form: str,
) -> None:  # fmt: skip
    form = form or ("jsonl" if call.json else "table")
    if form not in _FORMS:
        raise Failure(Exit.BAD_INPUT, f"{form!r} is no format", do=f"it is one of {', '.join(_FORMS)}")
    for glob in types:
        if not any(fnmatchcase(name, glob) for name in VOCABULARY) and not glob.startswith("x-"):
            raise Failure(Exit.BAD_INPUT, f"no event type is like {glob!r}", do=f"they are: {', '.join(VOCABULARY)}")
    reading = call.reading
    now_ms = SystemClock().now().wall_ms
    first_ms = instant_ms(since, now_ms, call.zone, ago=True) if since else None
    last_ms = instant_ms(until, now_ms, call.zone, ago=True) if until else None
    pattern = _pattern(grep)
    raw = RawLines(reading.disk)
    printed = _Printer(form, call.zone)

    def chosen(records: Iterable[Record]) -> Iterator[tuple[Record, bytes]]:
        for record in records:
            if record.type == OPEN:
                printed.ledger_id = record.data["ledger"]
            if types and not any(fnmatchcase(record.type, glob) for glob in types):
                continue
            if subject and not fnmatchcase(record.subject, subject):
                continue
            if first_ms is not None or last_ms is not None:
                at_ms = ms_of(record.ts)
                if (first_ms is not None and at_ms < first_ms) or (last_ms is not None and at_ms > last_ms):
                    continue
            line = raw.of(record)
            if pattern is None or pattern.search(line.decode()):
                yield record, line

    last = 0

    def noted(records: Iterable[Record]) -> Iterator[Record]:
        nonlocal last
        for record in records:
            last = record.seq
            yield record

    if limit is None and follow:
        limit = _FOLLOWED_BY
    past: Iterable[tuple[Record, bytes]] = chosen(noted(reading.records()))
    for record, line in past if limit is None else deque(past, maxlen=limit):
        printed(record, line)
    if follow:
        tail = Tail(reading.disk, after=last)
        while True:
            for record, line in chosen(tail.poll()):
                printed(record, line)
            time.sleep(_POLL_S)


def _pattern(grep: str) -> re.Pattern[str] | None:
    try:
        return re.compile(grep) if grep else None
    except re.error as error:
        raise Failure(Exit.BAD_INPUT, f"{grep!r} is no regular expression: {error}", do=r"escape it: \(") from error


class _Printer:
    def __init__(self, form: str, zone: str) -> None:
        self._form, self._zone = form, zone
        self.ledger_id = ""

    def __call__(self, record: Record, line: bytes) -> None:
        if self._form == "jsonl":
            show.raw(line)
        elif self._form == "cloudevents":
            show.raw(orjson.dumps(cloud_event(record, self.ledger_id)) + b"\n")
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
    return " ".join(tell(data).split()) if tell is not None else ""


def _plan(data: Json) -> str:
    told = ", ".join(f"{one['verdict']} {one['run']}" for one in data["decisions"][:3])
    more = len(data["decisions"]) - 3
    return f"{told}{f' and {more} more' if more > 0 else ''}; hash {data['decision_hash'][:12]}"


def _finished(data: Json) -> str:
    used = f", {show.span(data['cpu_ms'])} CPU" if data["cpu_ms"] is not None else ""
    return f"{data['outcome'].replace('_', ' ')}: {data['reason']}{used}"


_SUMMARIES: dict[str, Callable[[Json], str]] = {
    "segment.open": lambda data: f"epoch {data['epoch']} by pid {data['pid']} on {data['host']}",
    "ledger.recovered": lambda data: f"{len(data['cuts'])} cut, kept in quarantine/; last good {data['last_seq']}",
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
    "run.stopping": lambda data: f"attempt {data['attempt']}: {data['why']}{', by force' if data['force'] else ''}",
    "run.finished": _finished,
    "run.fenced": lambda data: f"attempt {data['attempt']} reported late; {data['latest_attempt']} is the latest",
    "start.requested": lambda data: f"{data['run']} by {data['actor']} {data['reason']}",
    "cancel.requested": lambda data: f"by {data['actor']} {data['reason']}",
    "artifact.stored": lambda data: f"{data['name']}, {show.size(data['bytes'])}, {data['digest'][:12]}",
    "note.added": lambda data: f"{data['actor']}: {data['text']}",
}
