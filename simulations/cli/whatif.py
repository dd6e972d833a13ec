"""`hermesd whatif`: the past decided again, and what would have become of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.cli.instant import instant_ms
from daemon.reading import Reading, replaying
from daemon.system import SystemClock
from ledger.instant import Now, ms_of, text_of
from ledger.record import Record
from simulations.cli.given import LEARNED_FROM, jobs_of, policy_of
from simulations.counterfactual import (
    LIMITS,
    Comparison,
    Counterfactual,
    Difference,
    Told,
    differences,
    reordered,
    waits_ms,
)
from simulations.habits import Habits
from state.graph import Graph

Json = Any

_SHOWN = 20
_KINDS = {
    "verdict": "end otherwise", "time": "start at another time", "rule": "wait by another rule",
    "new": "are only in what was simulated", "gone": "are only in the record",
}  # fmt: skip


def whatif(call: Call, *, policy: Path | None, jobs: Path | None, since: str, seed: int) -> None:
    if policy is None and jobs is None:
        raise Failure(
            Exit.BAD_INPUT, "there is nothing that is otherwise", do="give --policy FILE, --jobs DIR, or both"
        )
    reading = call.reading
    given = jobs_of(call, jobs) if jobs is not None else None
    rules = policy_of(call, policy) if policy is not None else None
    seq = _seq(call, reading, since)
    began_s = perf_counter()
    with replaying():
        graph, begin = _at(reading, seq)
        habits = Habits(seed)
        before = reading.records(after=max(0, seq - LEARNED_FROM), until=seq) if seq else iter(())
        for _ in habits.learn(before):
            pass

        def records() -> Iterator[Record]:
            return reading.records(after=seq)

        found = Counterfactual(
            graph, records, habits, rules, given.jobs if given is not None else None, begin, policy_of(call, None)
        ).compare()
    took_s = perf_counter() - began_s
    if call.json:
        show.json(_json(found, seq, habits))
        return
    for problem in given.problems if given is not None else ():
        print(f"left out: {problem.file}:{problem.line}: {problem.field}: {problem.message}")
    _print(call, found, habits, seq, took_s)


def _seq(call: Call, reading: Reading, since: str) -> int:
    if since.isdecimal():
        last = reading.last_seq()
        if int(since) >= last:
            raise Failure(Exit.UNKNOWN, f"the ledger ends at record {last}", do="give an earlier one with --since")
        return int(since)
    return reading.seq_at(instant_ms(since, SystemClock().now().wall_ms, call.zone, ago=True))


def _at(reading: Reading, seq: int) -> tuple[Graph, Now]:
    """The graph after a record, and the two clocks at it."""
    records = reading.records(after=max(0, seq - 1))
    record = next(records, None)
    if record is None:
        raise Failure(Exit.UNKNOWN, "the ledger holds no event", do="`hermesd run` makes a past")
    now = Now(ms_of(record.ts) * 1_000_000, record.mt)
    return (reading.graph_at(seq) if seq else Graph()), now


def _print(call: Call, found: Comparison, habits: Habits, seq: int, took_s: float) -> None:
    zone = call.zone
    print(
        f"{show.count(found.recorded.decisions, 'recorded decision')} from record {seq + 1} on,"
        f" {show.moment(found.begin_ms, zone)} to {show.moment(found.end_ms, zone)}, asked again in {took_s:.1f} s"
    )
    apart = found.divergence
    if apart is None:
        print("Every one comes out as it was recorded: nothing would have been otherwise.")
        return
    where = f"record {apart.seq}" if apart.seq else "the beginning: the jobs are others"
    print(f"{found.agreed} come out as recorded, up to {where}, {show.moment(apart.at_ms, zone)}:")
    for sign, decisions in (("recorded", apart.only_recorded), ("instead", apart.only_again)):
        for one in decisions[:3]:
            by = f" by {one['rule']}: {one['reason']}" if one["rule"] else ""
            print(f"  {sign:>8}: {one['run']} {one['verdict']}{by}")
        if len(decisions) > 3:
            print(f"  {sign:>8}: and {len(decisions) - 3} more")
    if apart.by_planner:
        print("  Another version of the planner decided it: under the recorded policy it comes out otherwise, too.")
    print(f"All that follows is simulated: {found.simulated} decisions.\n")
    changed = list(differences(found))
    counts = Counter(one.kind for one in changed)
    for kind, words in _KINDS.items():
        if counts[kind]:
            print(f"{counts[kind]:>8} {words}")
    print(f"{reordered(found):>8} of {len(found.again.order)} starts stand elsewhere in the order\n")
    show.table(("CHANGE", "JOB", "SLOT", "RECORDED", "INSTEAD"), (_row(one, zone) for one in changed[:_SHOWN]))
    if len(changed) > _SHOWN:
        print(f"and {len(changed) - _SHOWN} more (--json has all)")
    print()
    _print_jobs(found, changed)
    print("What this cannot know:")
    for limit in LIMITS:
        print(f"  {limit}")
    drawn = ", ".join(f"{count} {source}" for source, count in sorted(found.drawn.items()))
    print(f"  Courses of the simulated attempts: {drawn or 'none'}.")
    if habits.unknown:
        print(f"  No past at all, so a minute each and no failure: {', '.join(sorted(habits.unknown))}.")
    for kind, count in sorted(found.left_out.items()):
        were = "was" if count == 1 else "were"
        print(f"  {count} {kind} had no object any more and {were} left out.")


def _row(one: Difference, zone: str) -> tuple[str, ...]:
    told = one.recorded or one.again
    assert told is not None
    step = f" step {one.key[-1]}" if len(one.key) > 3 and one.key[1] == "schedule" else ""
    return one.kind, told.job + step, show.moment(told.at_ms, zone), _said(one.recorded), _said(one.again)


def _said(told: Told | None) -> str:
    if told is None:
        return "-"
    if told.wait_ms is not None:
        end = f", {told.outcome}" if told.outcome and told.outcome != "succeeded" else ""
        return f"started after {show.span(told.wait_ms)}{end}"
    return f"{told.verdict} ({told.rule})"


def _sums(found: Comparison) -> list[tuple[str, Json, Json]]:
    rows: list[tuple[str, Json, Json]] = []
    both = (found.recorded, found.again)
    for verdict in ("started", "waiting", "skipped", "missed", "blocked"):
        first, second = (sum(one.count for one in c.told.values() if one.verdict == verdict) for c in both)
        rows.append((verdict, first, second))
    first, second = (sum(o.outcome in ("failed", "timed_out", "lost") for o in c.told.values()) for c in both)
    rows.append(("failed", first, second))
    waits = [waits_ms(chronicle.told.values()) for chronicle in both]
    for percent in (50, 95, 100):
        p, q = (w[min(len(w) - 1, len(w) * percent // 100)] if w else 0 for w in waits)
        rows.append((f"wait_p{percent}_ms" if percent < 100 else "wait_max_ms", p, q))
    rows.append(("run_time_ms", found.recorded.busy_ms, found.again.busy_ms))
    rows.append(("runs_at_once_max", found.recorded.most_runs, found.again.most_runs))
    return rows


def _print_jobs(found: Comparison, changed: list[Difference]) -> None:
    def shown(name: str, value: int) -> str:
        return show.span(value) if name.endswith("_ms") else str(value)

    rows = [(name.removesuffix("_ms").replace("_", " "), shown(name, a), shown(name, b)) for name, a, b in _sums(found)]
    show.table(("ALL", "RECORDED", "SIMULATED"), rows)
    by_job = Counter((one.recorded or one.again).job for one in changed if one.recorded or one.again)  # type: ignore[union-attr]
    if by_job:
        worst = ", ".join(f"{job} {count}" for job, count in islice(by_job.most_common(), 8))
        print(f"\nMost changes: {worst}\n")


def _json(found: Comparison, seq: int, habits: Habits) -> Json:
    apart = found.divergence
    changed = list(differences(found))
    return {
        "since_seq": seq,
        "from": text_of(found.begin_ms),
        "to": text_of(found.end_ms),
        "recorded_decisions": found.recorded.decisions,
        "agreed_decisions": found.agreed,
        "first_divergence": None
        if apart is None
        else {
            "seq": apart.seq,
            "at": text_of(apart.at_ms),
            "only_recorded": list(apart.only_recorded),
            "only_again": list(apart.only_again),
            "by_planner": apart.by_planner,
        },
        "simulated_decisions": found.simulated,
        "differences": [
            {
                "kind": one.kind,
                "key": list(one.key),
                "simulated": True,
                "recorded": _told(one.recorded),
                "again": _told(one.again),
            }
            for one in changed
        ],
        "by_kind": dict(sorted(Counter(one.kind for one in changed).items())),
        "reordered_starts": reordered(found),
        "sums": {name: {"recorded": a, "simulated": b} for name, a, b in _sums(found)},
        "courses": dict(sorted(found.drawn.items())),
        "no_past": sorted(habits.unknown),
        "left_out": dict(sorted(found.left_out.items())),
        "limits": list(LIMITS),
    }


def _told(told: Told | None) -> Json:
    if told is None:
        return None
    started = None if told.started_ms is None else text_of(told.started_ms)
    return {
        "job": told.job, "at": text_of(told.at_ms), "verdict": told.verdict, "rule": told.rule, "started": started,
        "wait_ms": told.wait_ms, "outcome": told.outcome, "slots": told.count,
    }  # fmt: skip
