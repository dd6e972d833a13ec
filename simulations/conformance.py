"""`python -m simulations.conformance`: the cases of tests/data/slots.json, asked of Hermes and of other libraries.

A case is a zone, an expression, an instant to begin at, and the instants at which Debian's cron would run such a job
there, daylight saving and all (man 8 cron, man 5 crontab; `L`, `W` and `#` as in Quartz, "stars written out" by a rule
of our own; each case names its source). A library that promises other rules is "wrong" here in that sense only.
"Refused" is its own column: a library that says that it cannot read an expression misleads nobody.

Exit status 0 whatever the others answer; 1 if Hermes answers a case wrongly.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.table import Table

from ledger.instant import ms_of
from policies.schedule import CronSchedule
from policies.upcoming import upcoming

Json = Any

CASES = Path(__file__).resolve().parent.parent / "tests" / "data" / "slots.json"
_SECOND, _MINUTE, _HOUR, _DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
_WIDTH = 150


@dataclass(frozen=True, slots=True)
class Case:
    zone: str
    expression: str
    start: datetime
    """Slots at this instant count. UTC."""
    kind: str
    """What makes the case worth asking, such as "midnight gap"."""
    reason: str
    source: str
    expected: tuple[datetime, ...]
    """UTC."""

    @property
    def place(self) -> ZoneInfo:
        return ZoneInfo(self.zone)

    @property
    def before(self) -> datetime:
        """For libraries that look for what comes after an instant: a moment before the start, in the case's zone."""
        return (self.start - _SECOND).astimezone(self.place)


class Refused(Exception):
    """A library says that this is not for it."""


Ask = Callable[[Case], list[datetime]]


@dataclass(frozen=True, slots=True)
class Library:
    name: str
    distribution: str
    asked: str
    """How, in few words: it decides what its answers are worth."""
    adapter: Callable[[], Ask]
    """Imports the library; ImportError if it is not there."""

    @property
    def version(self) -> str:
        """ "" if it is not installed."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return ""


Verdict = Literal["passed", "wrong", "refused"]


class Answer(NamedTuple):
    case: Case
    verdict: Verdict
    found: tuple[datetime, ...]
    said: str
    """Why it refused."""


def load(path: Path = CASES) -> list[Case]:
    return [
        Case(
            zone=raw["zone"],
            expression=raw["expression"],
            start=_instant(raw["from"]),
            kind=raw["class"],
            reason=raw["reason"],
            source=raw["source"],
            expected=tuple(_instant(row["utc"]) for row in raw["expected"]),
        )
        for raw in json.loads(path.read_text())
    ]


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def answers(library: Library, cases: list[Case]) -> list[Answer]:
    """What it says to each case. ImportError if it is not installed."""
    ask = library.adapter()
    return [_answer(ask, case) for case in cases]


def _answer(ask: Ask, case: Case) -> Answer:
    try:
        found = tuple(moment.astimezone(UTC) for moment in ask(case))
    except Exception as error:  # Whatever it raises is its way to refuse, and is shown.
        return Answer(case, "refused", (), f"{type(error).__name__}: {error}".splitlines()[0][:200])
    return Answer(case, "passed" if found == case.expected else "wrong", found, "")


def _hermes() -> Ask:
    def ask(case: Case) -> list[datetime]:
        schedule = CronSchedule(case.expression, case.zone)
        rows = upcoming(schedule, ms_of(case.start.isoformat()), len(case.expected))
        return [_instant(row["utc"]) for row in rows]

    return ask


def _cronsim() -> Ask:
    CronSim = import_module("cronsim").CronSim

    return lambda case: list(islice(CronSim(case.expression, case.before), len(case.expected)))


def _apscheduler() -> Ask:
    CronTrigger = import_module("apscheduler.triggers.cron").CronTrigger

    def fires(case: Case) -> Iterator[datetime]:
        trigger = CronTrigger.from_crontab(case.expression, timezone=case.place)
        last = None
        while (fire := trigger.get_next_fire_time(last, last or case.before)) is not None:
            yield fire
            last = fire

    return lambda case: list(islice(fires(case), len(case.expected)))


def _croniter() -> Ask:
    croniter = import_module("croniter").croniter

    def ask(case: Case) -> list[datetime]:
        walk = croniter(case.expression, case.before)
        return [walk.get_next(datetime) for _ in case.expected]

    return ask


def _cron_converter() -> Ask:
    Cron = import_module("cron_converter").Cron

    return lambda case: list(islice(Cron(case.expression).schedule(case.before), len(case.expected)))


def _crontab() -> Ask:
    CronTab = import_module("crontab").CronTab

    def waits(case: Case) -> Iterator[datetime]:
        tab, now = CronTab(case.expression), case.before
        while (wait_s := tab.next(now)) is not None:
            now = (now.astimezone(UTC) + timedelta(seconds=wait_s)).astimezone(case.place)
            yield now

    return lambda case: list(islice(waits(case), len(case.expected)))


def _pycron() -> Ask:
    is_now = import_module("pycron").is_now

    def ask(case: Case) -> list[datetime]:
        words = case.expression.split()
        if len(words) != 5:
            raise Refused("it takes five fields")
        dates = " ".join(["*", "*", *words[2:]])
        return _polled(
            case, lambda wall: is_now(case.expression, wall), lambda wall: is_now(dates, wall)
        )  # fmt: skip

    return ask


def _huey() -> Ask:
    crontab = import_module("huey").crontab

    def ask(case: Case) -> list[datetime]:
        words = case.expression.split()
        if len(words) != 5:
            raise Refused("it takes five fields")
        minute, hour, day, month, weekday = words
        matches = crontab(minute, hour, day, month, weekday, strict=True)
        return _polled(case, matches, crontab("*", "*", day, month, weekday, strict=True))

    return ask


def _polled(
    case: Case, matches: Callable[[datetime], bool], on_date: Callable[[datetime], bool]
) -> list[datetime]:  # fmt: skip
    """A library that only says whether a reading of the wall matches is asked once a minute, as its user would.

    `on_date` asks about the date alone. It only saves time: hours that lie in dates without a match are passed over.
    """

    @cache
    def may_match(day: date) -> bool:
        return on_date(datetime(day.year, day.month, day.day))

    found, moment, place = [], case.start, case.place
    while moment <= case.expected[-1]:
        ahead = moment + _HOUR
        if moment.minute == 0 and not any(may_match(edge.astimezone(place).date()) for edge in (moment, ahead)):
            moment = ahead
            continue
        if matches(moment.astimezone(place).replace(tzinfo=None)):
            found.append(moment)
        moment += _MINUTE
    return found


def _celery() -> Ask:
    Celery, crontab = import_module("celery").Celery, import_module("celery.schedules").crontab

    longest_sleep = timedelta(seconds=300)  # celery beat's own default

    def ask(case: Case) -> list[datetime]:
        now = case.start
        app = Celery(set_as_current=False)
        app.conf.timezone, app.conf.enable_utc = case.zone, True
        schedule = crontab.from_string(case.expression)
        schedule.app, schedule.nowfun = app, lambda: now
        found, last = [], case.before
        while now <= case.expected[-1]:
            due, next_s = schedule.is_due(last)
            if due:
                found.append(now)
                last = now.astimezone(case.place)
            sleep = timedelta(seconds=max(1, next_s))
            now += min(sleep, longest_sleep) if sleep < 2 * _DAY else sleep - _DAY
        return found

    return ask


HERMES = Library("Hermes", "hermesd", "hermesd next", _hermes)
PEERS = (
    Library("cronsim", "cronsim", "iterated in the zone", _cronsim),
    Library("croniter", "croniter", "iterated in the zone", _croniter),
    Library("APScheduler", "apscheduler", "CronTrigger.from_crontab", _apscheduler),
    Library("cron-converter", "cron-converter", "iterated in the zone", _cron_converter),
    Library("crontab", "crontab", "waits added up in UTC", _crontab),
    Library("celery", "celery", "crontab.is_due, as beat does", _celery),
    Library("huey", "huey", "the wall, once a minute", _huey),
    Library("pycron", "pycron", "the wall, once a minute", _pycron),
)
LIBRARIES = (HERMES, *PEERS)


def main(arguments: list[str] | None = None) -> int:
    asked = _options(arguments)
    cases = load(asked.cases)
    told: dict[str, list[Answer] | None] = {}
    for library in LIBRARIES:
        if not asked.library or library.name in asked.library:
            try:
                told[library.name] = answers(library, cases)
            except ImportError:
                told[library.name] = None
    if asked.json:
        print(json.dumps(_report(told, cases), indent=1))
    else:
        _print(told, cases, everything=asked.all)
    ours = told.get(HERMES.name) or []
    return int(any(answer.verdict != "passed" for answer in ours))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m simulations.conformance", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [library.name for library in LIBRARIES]
    parser.add_argument("--library", action="append", choices=names, metavar="NAME", help=f"only: {', '.join(names)}")
    parser.add_argument("--all", action="store_true", help="every case that a library did not pass, with its answer")
    parser.add_argument("--json", action="store_true", help="every answer, for programs")
    parser.add_argument("--cases", type=Path, default=CASES, metavar="FILE", help="other cases of the same form")
    asked = parser.parse_args(arguments)
    if not asked.cases.is_file():
        parser.error(f"there is no file {asked.cases}: the cases lie in a checkout, in tests/data/slots.json")
    return asked


def _counts(answered: list[Answer]) -> dict[str, int]:
    counted = Counter(answer.verdict for answer in answered)
    return {verdict: counted[verdict] for verdict in ("passed", "wrong", "refused")}


def _wrong_by_kind(answered: list[Answer]) -> dict[str, int]:
    """The commonest first."""
    return dict(Counter(answer.case.kind for answer in answered if answer.verdict == "wrong").most_common())


def _report(told: dict[str, list[Answer] | None], cases: list[Case]) -> Json:
    return {
        "cases": len(cases),
        "zones": len({case.zone for case in cases}),
        "tzdata": _tzdata(),
        "libraries": [
            {"library": library.name, "installed": told[library.name] is not None, "version": library.version}
            | ({} if (answered := told[library.name]) is None else _told(answered))
            for library in LIBRARIES
            if library.name in told
        ],
    }


def _told(answered: list[Answer]) -> Json:
    return _counts(answered) | {
        "wrong_by_kind": _wrong_by_kind(answered),
        "answers": [
            {
                "zone": answer.case.zone,
                "expression": answer.case.expression,
                "from": _text(answer.case.start),
                "kind": answer.case.kind,
                "source": answer.case.source,
                "verdict": answer.verdict,
                "found": [_text(at) for at in answer.found],
                "said": answer.said,
            }
            for answer in answered
        ],
    }


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _tzdata() -> str:
    return importlib.metadata.version("tzdata")


def _print(told: dict[str, list[Answer] | None], cases: list[Case], *, everything: bool) -> None:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _WIDTH
    kinds = Counter(case.kind for case in cases)
    zones = len({case.zone for case in cases})
    console.print(f"{len(cases)} cases in {zones} zones (tzdata {_tzdata()}): " + _listed(dict(kinds.most_common())))
    console.print()
    table = Table("library", "version", "asked", "passed", "wrong", "refused", "wrong about", box=None, pad_edge=False)
    for column in table.columns[3:6]:
        column.justify = "right"
    for library in LIBRARIES:
        if library.name in told:
            table.add_row(library.name, *_row(library, told[library.name]))
    console.print(table)
    console.print()
    for name, answered in told.items():
        failed = [answer for answer in answered or [] if answer.verdict != "passed"]
        shown = failed if everything else _first_of_each_kind(failed)
        if shown:
            console.print(name)
        for answer in shown:
            console.print(_sentence(answer), soft_wrap=True)
    if not everything:
        console.print("One wrong case of each kind is shown; --all shows every one, and what was refused.")


def _row(library: Library, answered: list[Answer] | None) -> tuple[str, ...]:
    if answered is None:
        return ("none", "", "", "", "", f"not installed: pip install {library.distribution}")
    counts = _counts(answered)
    return (library.version, library.asked, *map(str, counts.values()), _listed(_wrong_by_kind(answered)))


def _listed(counted: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in counted.items())


def _first_of_each_kind(failed: list[Answer]) -> list[Answer]:
    first: dict[str, Answer] = {}
    for answer in failed:
        if answer.verdict == "wrong":
            first.setdefault(answer.case.kind, answer)
    return list(first.values())


def _sentence(answer: Answer) -> str:
    case = answer.case
    asked = f"  {case.kind}: {case.expression} {case.zone} from {_text(case.start)} ({case.reason})"
    if answer.verdict == "refused":
        return f"{asked}: refused: {answer.said}"
    wanted, found = list(case.expected), list(answer.found)
    for at, due in enumerate(wanted):
        if at >= len(found):
            return f"{asked}: {_text(due)} never came"
        if found[at] != due:
            return f"{asked}: {_text(found[at])} instead of {_text(due)}"
    return f"{asked}: {_text(found[len(wanted)])} is too many"


if __name__ == "__main__":
    sys.exit(main())
