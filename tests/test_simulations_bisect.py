"""The first event after which something holds, or stops to: by walking every prefix, by jobs alone, by snapshots."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from lived import FRIDAY, Life, any_fate, any_jobs, policy

from daemon.system import OsDisk
from ledger.chain import Head
from ledger.errors import Corrupt
from policies.fault import BadValue
from simulations.bisection import bisect, bisect_in_parts, only
from simulations.expression import Expression
from state import snapshot
from state.graph import Graph
from state.projector import fold

HOUR_MS = 3_600_000
EXPRESSIONS = (
    "runs.succeeded < 20",
    "runs.failed + runs.timed_out == 0",
    'jobs["job1"].failures_in_row < 2',
    'jobs["job0"].active == 0 or jobs["job2"].active == 0',
    "leases.count < 2",
    'not leases["repo:a"].held',
    "runs.active <= 3",
    "here.tokens < 15 and not here.paused",
    "jobs.failing == 0",
    "0 <= runs.running < 2",
    "runs.waiting < 3 and jobs.count < 100",
    "jobs.paused == 0",
    'jobs["job0"].last_outcome in ["", None, "succeeded"]',
    "policy.max_running != 2",
    "seq < 100",
)


@pytest.fixture(scope="module")
def life() -> Life:
    life = Life(any_jobs(9, 7), policy(max_running=2), any_fate(9))
    life.pass_until(FRIDAY + 6 * HOUR_MS)
    return life


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_it_is_the_first_of_all_prefixes_whose_value_differs(life: Life, text: str) -> None:
    expression, graph = Expression(text), Graph()
    first, expected = expression.holds(graph), None
    for record in life.records():
        if expression.holds(fold(graph, [record])) != first:
            expected = record.seq
            break

    found = bisect(life.disk, "sim", expression)

    assert (found.change.record.seq if found.change else None) == expected
    assert found.holds_first == first
    if found.change is not None:
        assert found.change.holds is not first
        assert found.change.before != found.change.after or text.startswith("seq")


def test_a_run_is_found_as_its_whole_past_would_find_it(life: Life) -> None:
    ended = sorted({record.data["run"] for record in life.records() if record.type == "run.finished"})
    for name in ended[:: len(ended) // 6]:
        expression, graph = Expression(f'run["{name}"].exists and run["{name}"].state != "running"'), Graph()
        expected = next(record.seq for record in life.records() if expression.holds(fold(graph, [record])))

        change = bisect(life.disk, "sim", expression).change

        assert expression.jobs == {name.split(".")[0]}
        assert change is not None
        assert change.record.seq == expected


def test_of_one_job_the_part_of_the_past_that_is_about_it_is_enough(life: Life) -> None:
    whole, part = Graph(), Graph()
    mine = {record.seq: record for record in only(iter(life.records()), {"job1", "job3"}, Graph())}
    assert 0 < len(mine) < len(life.records()) * 0.8

    for record in life.records():
        fold(whole, [record])
        if record.seq in mine:
            fold(part, [mine[record.seq]])
        for name in ("job1", "job3"):
            if name in whole.jobs:  # What it has consumed is told by other jobs at its definition.
                assert part.jobs[name]._replace(consumed={}) == whole.jobs[name]._replace(consumed={}), record


def test_what_begins_in_the_middle_starts_from_there(life: Life) -> None:
    expression = Expression("runs.succeeded < 20")
    first = bisect(life.disk, "sim", expression).change
    assert first is not None

    assert bisect(life.disk, "sim", expression, until=first.record.seq - 1).change is None
    later = bisect(life.disk, "sim", Expression("runs.succeeded < 25"), after=first.record.seq).change
    assert later is not None
    assert later.record.seq > first.record.seq


def test_a_monotone_one_skips_what_lies_before_a_snapshot_with_the_same_value(life: Life) -> None:
    records = life.records()
    half = len(records) // 2
    graph = fold(Graph(), records[:half])
    snapshot.write(life.disk, graph, Head(half, records[half - 1].hash), "sim")
    bound = graph.here.counts["succeeded"] + 5
    early, late = Expression(f"runs.succeeded < {bound - 10}"), Expression(f"runs.succeeded < {bound}")

    for expression, behind in ((late, half), (early, 0)):
        quick, slow = (bisect(life.disk, "sim", expression, monotone=monotone) for monotone in (True, False))
        assert quick.change is not None
        assert quick.change == slow.change
        assert (quick.looked_from, slow.looked_from) == (behind, 0)


def in_a_folder(life: Life, folder: Path) -> OsDisk:
    """The life's ledger on a real disk, with snapshots after each fifth of it."""
    for name, content in life.disk.files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    disk, graph, records = OsDisk(folder), Graph(), life.records()
    for start, end in pairwise(len(records) * part // 5 for part in range(5)):
        fold(graph, records[start:end])
        snapshot.write(disk, graph, Head(end, records[end - 1].hash), "sim")
    return disk


@pytest.mark.parametrize("text", ["runs.succeeded < 20", "jobs.failing == 0", 'jobs["job0"].revision != 9'])
def test_in_parts_between_snapshots_the_same_is_found(life: Life, text: str, tmp_path: Path) -> None:
    disk, count = in_a_folder(life, tmp_path), len(life.records())
    assert snapshot.seqs_between(disk, "sim") == [count * part // 5 for part in range(1, 5)]
    rotten = tmp_path / snapshot.stored_in(disk)[1].path
    rotten.write_bytes(rotten.read_bytes()[:-2] + b"}]")  # It is passed over, and what lies before it is folded.
    told: list[tuple[int, int]] = []

    whole = bisect(disk, "sim", Expression(text))
    parts = bisect_in_parts(disk, "sim", text, processes=2, told=lambda done, of: told.append((done, of)))

    assert (parts.change, parts.holds_first) == (whole.change, whole.holds_first)
    assert told == [(done, 5) for done in range(1, len(told) + 1)]
    assert parts.change is not None or parts.records == whole.records == count


def test_in_parts_a_damaged_ledger_is_refused_as_ever(life: Life, tmp_path: Path) -> None:
    disk = in_a_folder(life, tmp_path)
    segment = max((tmp_path / "ledger").glob("0*.jsonl"), key=lambda path: path.stat().st_size)
    data = segment.read_bytes()
    segment.write_bytes(data[: len(data) // 2] + b"#" + data[len(data) // 2 + 1 :])
    with pytest.raises(Corrupt) as as_ever:
        bisect(disk, "sim", Expression("runs.failed < 100000"))
    with pytest.raises(Corrupt) as refused:
        bisect_in_parts(disk, "sim", "runs.failed < 100000", processes=2)
    assert str(refused.value) == str(as_ever.value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "runs.failed.__class__", "jobs['a'].__class__", "open('x')", "lambda: 1",
        "[x for x in (1,)]", "runs.fialed < 3", "jobs['a'].colour", "jobs", "nobody.knows", "1 if 2 else 3",
        "f'{seq}'",
        "here.__doc__", "2 ** 9999999",
        "runs['a'].failed", "(seq := 3)", "", "runs.failed <", "b'x' == seq", "-" * 3000,
        "(" * 900 + "1" + ")" * 900, "jobs[0].paused", "jobs['a']['b']", "policy.model_dump()", "policy.max_runing",
    ],
)  # fmt: skip
def test_what_is_not_in_the_language_is_refused_with_advice(text: str) -> None:
    with pytest.raises(BadValue) as refused:
        Expression(text)
    assert refused.value.advice


def test_what_is_not_there_is_none_and_compares_with_nothing() -> None:
    nothing = Graph()
    for text, value in {
        'jobs["x"].failures_in_row': None, 'jobs["x"].failures_in_row < 3': False,
        'jobs["x"].failures_in_row + 1': None,
        'jobs["x"].exists': False, 'run["x"].state == None': True, 'leases["k"].holder != "me"': True, "1 / 0": None,
        "-(2 + 3) // 2 == -3": True, "not (True and False)": True, '"a" < "b" < "c"': True, '"a" < 1': False,
        "7 % 4 in [3, 4]": True, "7 not in [3]": True, "runs.failed": 0,
    }.items():  # fmt: skip
        assert Expression(text).value(nothing) == value, text
