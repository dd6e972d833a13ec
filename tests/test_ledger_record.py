"""A line of the ledger: its bytes, what it refuses, and that no byte of it can change unseen."""

from __future__ import annotations

import json
import math
from base64 import urlsafe_b64encode
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_home import at, fact

from ledger.chain import Chain
from ledger.errors import Refused
from ledger.instant import Now
from ledger.record import GENESIS, LINE_BYTES_MAX, Draft, Unsound, check, compose, decode, encode, hash_of, timestamp
from ledger.segment import Segment, named


def line_of(
    draft: Draft, *, seq: int = 1, epoch: int = 1, number: int = 1, count: int = 1, previous: str = GENESIS
) -> bytes:
    return encode(draft, at(), seq=seq, epoch=epoch, number=number, count=count, previous=previous)


def refused(data: Any) -> str:
    with pytest.raises(Refused) as caught:
        compose(Draft("a", "b", data), at())
    return str(caught.value)


def test_a_line_is_laid_out_as_the_format_says() -> None:
    draft = Draft("run.finished", "run/1", {"b": 1, "a": ["é", None]}, id="i", cause=3, corr="plan-88", tv=2)
    line = encode(draft, at(), seq=1207, epoch=7, number=3, count=3, previous="Ab_-" * 5 + "01")
    body = (
        '{"seq":1207,"n":3,"of":3,"ep":7,"ts":"2026-11-21T04:39:00.123456Z","mt":5000000,'
        '"type":"run.finished","tv":2,"subject":"run/1","id":"i","cause":3,"corr":"plan-88",'
        '"data":{"b":1,"a":["é",null]},"h":"Ab_-Ab_-Ab_-Ab_-Ab_-01'
    ).encode()
    digest = urlsafe_b64encode(sha256(body).digest())[:22]
    assert line == body + digest[:8] + b'"}\n'
    assert json.loads(line)["seq"] == 1207
    record = decode(line)
    assert (record.corr, record.hash, record.batch, record.more) == ("plan-88", digest.decode(), 1205, False)
    assert (record.mt, record.tv) == (5_000_000_000, 2)


def test_a_batch_of_one_says_nothing_of_batches_and_a_larger_one_where_its_records_stand() -> None:
    said = [
        {
            name: value
            for name, value in json.loads(line_of(fact(1), number=number, count=count)).items()
            if name in ("n", "of")
        }
        for number, count in ((1, 1), (1, 3), (2, 3), (3, 3))
    ]
    assert said == [{}, {"n": 1}, {"n": 2}, {"n": 3, "of": 3}]
    assert [decode(line_of(fact(1), number=number, count=3)).more for number in (1, 2, 3)] == [True, True, False]
    assert not decode(line_of(fact(1))).more


def test_what_a_draft_leaves_out_is_not_written() -> None:
    fields = json.loads(line_of(Draft("a", "b", {})))
    assert not {"id", "cause", "corr", "tv", "n", "of"} & set(fields)


@pytest.mark.parametrize("wall_ns", [0, 999, 1_000, 1_795_235_940_123_456_789, 4_102_444_799_999_999_999])
def test_a_timestamp_has_microseconds_and_never_rounds_up(wall_ns: int) -> None:
    text = timestamp(wall_ns)
    assert len(text) == 27
    moment = datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)
    assert (moment.days * 86400 + moment.seconds) * 1_000_000 + moment.microseconds == wall_ns // 1000


def test_every_flip_of_every_byte_of_a_line_is_seen() -> None:
    line = line_of(Draft("a.b", "c/1", {"t": 'é\n"', "p": "0" * 32, "h": [1.5, -0.0, 2**63]}, id="x", corr="y"))[:-1]
    for index in range(len(line)):
        for flip in (0x01, 0x20, 0x80, 0xFF):
            changed = bytearray(line)
            changed[index] ^= flip
            with pytest.raises(Unsound):
                check(bytes(changed))


def test_every_part_of_a_line_is_no_line() -> None:
    line = line_of(fact(1))[:-1]
    for end in range(len(line)):
        with pytest.raises(Unsound):
            check(line[:end])
        with pytest.raises(Unsound):
            check(line[end + 1 :])


@pytest.mark.parametrize(
    ("start", "why"), [(b'{"v":1,"seq":', "of format 1; this program reads format 2"), (b'{"x":1,"seq":', "not begin")]
)
def test_a_line_of_another_format_is_named_so(start: bytes, why: str) -> None:
    body = line_of(fact(1))[:-11].replace(b'{"seq":', start)
    line = body + hash_of(body)[:8].encode() + b'"}'
    with pytest.raises(Unsound, match=why):
        check(line)
    with pytest.raises(Unsound, match=why):
        Chain().take(line)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ((b'"of":3', b'"of":4'), "number 3 and the last of a batch of 4"),
        ((b'"n":3,', b""), "number 1 and the last of a batch of 3"),
        ((b'"n":3,"of":3', b'"n":"3","of":"3"'), "not what it must be"),
        ((b'"mt":', b'"mt":null,"m":'), "not what it must be"),
    ],
)
def test_a_line_that_is_hashed_and_cannot_be_understood_is_no_record(change: tuple[bytes, bytes], why: str) -> None:
    body = line_of(fact(1), seq=3, number=3, count=3)[:-11].replace(*change)
    with pytest.raises(Unsound, match=why):
        decode(body + hash_of(body)[:8].encode() + b'"}')


def test_the_chain_takes_only_what_follows() -> None:
    chain = Chain()
    chain.enter(Segment(1, 1, 1))
    opening = {"ledger": "l", "segment": 1, "first_seq": 1, "epoch": 1, "format": 2}
    first = line_of(Draft("segment.open", "segment/1", opening))[:-1]
    chain.take(first)
    good: dict[str, Any] = {"seq": 2, "number": 1, "count": 3, "previous": chain.hash}
    wrong: dict[str, Any]
    another = "the record does not name the one before it as its predecessor"
    begin = "the record is of the batch that began with seq {}; a batch must begin"
    for wrong, why in (
        ({"seq": 3}, "seq is 3; 2 must come next"),
        ({"seq": 1}, "seq is 1; 2 must come next"),
        ({"number": 0}, begin.format(3)),
        ({"number": 2}, begin.format(1)),
        ({"number": 3}, begin.format(0)),
        ({"epoch": 2}, "the record is of epoch 2; the segment is of epoch 1"),
        ({"previous": GENESIS}, another),
    ):
        with pytest.raises(Unsound, match=f"^{why}$"):
            chain.take(line_of(fact(1), **{**good, **wrong})[:-1])
    second = chain.take(line_of(fact(1), **good)[:-1])
    within: dict[str, Any] = {"seq": 3, "number": 2, "count": 2, "previous": second.hash}
    go_on = "the record is of the batch that began with seq {}; the batch that began with seq 2 must go on"
    for wrong, why in (
        ({"number": 1}, go_on.format(3)),
        ({"number": 3, "count": 3}, go_on.format(1)),
        ({"count": 1, "number": 1}, go_on.format(3)),
    ):
        with pytest.raises(Unsound, match=f"^{why}$"):
            chain.take(line_of(fact(2), **{**within, **wrong})[:-1])
    last = chain.take(line_of(fact(2), **within)[:-1])
    assert (last.seq, last.batch, last.more) == (3, 2, False)
    with pytest.raises(Unsound):
        chain.take(line_of(fact(3), seq=4, number=3, count=3, previous=last.hash)[:-1])


def test_many_lines_are_taken_as_one_by_one_they_would_be() -> None:
    opening = {"ledger": "l", "segment": 1, "first_seq": 1, "epoch": 1, "format": 2}
    lines = [line_of(Draft("segment.open", "segment/1", opening))[:-1]]
    for seq, number, count in ((2, 1, 1), (3, 1, 3), (4, 2, 3), (5, 3, 3), (6, 1, 1)):
        previous = decode(lines[-1]).hash
        lines.append(line_of(fact(seq), seq=seq, number=number, count=count, previous=previous)[:-1])
    forged = b'{"seq":4]' + lines[3][-38:-10]  # hashed, and no JSON
    no_json = [*lines[:3], forged + hash_of(forged)[:8].encode() + b'"}']
    other_seq = [*lines[:3], line_of(fact(4), seq=9, number=2, count=3, previous=decode(lines[2]).hash)[:-1]]
    left_out = [*lines[:3], line_of(fact(4), seq=5, number=3, count=9, previous=decode(lines[2]).hash)[:-1]]
    forged = lines[3][:-10].replace(b'{"seq":4,"n":2,', b'{"n":2,"seq":4,')
    other_start = [*lines[:3], forged + hash_of(forged)[:8].encode() + b'"}']
    own_hash = [*lines[:3], lines[3][:-3] + b'="}', *lines[4:]]
    of_none = [*lines[:3], lines[3][-40:], *lines[4:]]
    whole = ((lines, 0), (lines, 4), (lines, 9))
    broken = ([*lines[:4], lines[5]], no_json, other_seq, left_out, other_start, own_hash, of_none)
    for some, until in (*whole, *((some, 0) for some in broken)):
        one, many = Chain(), Chain()
        for chain in (one, many):
            chain.enter(Segment(1, 1, 1))
            assert chain.take_many(some, until) == []  # how a segment begins is looked at by `take`
            chain.take(some[0])
        taken, expected = many.take_many(some[1:], until), []
        for line in some[1:]:
            if one.seq == until:
                break
            try:
                expected.append(one.take(line))
            except Unsound:
                break
        # What is hashed and cannot be parsed is left to `take`, with what was read together with it.
        assert taken == ([] if some is no_json else expected)
        if taken:
            assert (many.seq, many.hash, many.batch, many.more) == (one.seq, one.hash, one.batch, one.more)


def test_what_json_cannot_carry_is_refused_with_its_path() -> None:
    @dataclass
    class Thing:
        a: int = 1

    assert "data.lanes[3].score is nan" in refused({"lanes": [0, 1, 2, {"score": math.nan}]})
    assert "data.x is inf" in refused({"x": math.inf})
    assert "data.x is 18446744073709551616, beyond 64 bits" in refused({"x": 2**64})
    assert "data.x is -9223372036854775809" in refused({"x": -(2**63) - 1})
    assert "data.m has the key 1" in refused({"m": {1: 2}})
    assert "data.t is a Thing" in refused({"t": Thing()})
    assert "data.t is a datetime" in refused({"t": datetime(2026, 1, 1, tzinfo=UTC)})
    assert "data.t is a set" in refused({"t": {1}})
    assert "data.t is a bytes" in refused({"t": b"x"})
    assert "data.t has half a character" in refused({"t": "\ud800"})
    assert "half a character" in refused({"\ud800": 1})
    around: dict[str, Any] = {}
    around["again"] = around
    assert "nested deeper" in refused(around)


def test_a_tuple_and_an_enum_are_carried_as_the_reader_will_see_them() -> None:
    class Colour(StrEnum):
        RED = "red"

    data = {"pair": (1, 2), "colour": Colour.RED, "ordered": OrderedDict(a=1), "big": 2**64 - 1, "nothing": -0.0}
    _, _, plain = compose(Draft("a", "b", data), at())
    assert plain == {"pair": [1, 2], "colour": "red", "ordered": {"a": 1}, "big": 2**64 - 1, "nothing": -0.0}
    assert type(plain["colour"]) is str


@pytest.mark.parametrize(
    "draft",
    [
        Draft("", "b", {}),
        Draft("a", "", {}),
        Draft("a", "b", {}, id=""),
        Draft("a", "b", {}, corr=""),
        Draft("a", "b", {}, cause=0),
        Draft("a", "b", {}, cause=2**63),
        Draft("a", "b", {}, tv=0),
        Draft("a", "b", {}, tv=True),
        Draft("a\ud800", "b", {}),
        Draft("a", "b", [1]),  # type: ignore[arg-type]
        Draft(1, "b", {}),  # type: ignore[arg-type]
    ],
)
def test_a_draft_without_sense_is_refused(draft: Draft) -> None:
    with pytest.raises(Refused):
        compose(draft, at())


def test_a_line_may_fill_its_limit_and_not_pass_it() -> None:
    def of(size: int) -> Draft:
        return Draft("a", "b", {"text": "x" * size})

    around = LINE_BYTES_MAX - len(compose(of(0), Now(0, 2**63))[0])
    fits = max(size for size in range(around - 300, around) if _fits(of(size)))
    with pytest.raises(Refused, match="artifact store"):
        compose(of(fits + 1), Now(0, 2**63))
    draft = of(fits)
    widest = encode(draft, Now(0, 2**63), seq=10**19, epoch=10**19, number=10**19, count=10**19, previous=GENESIS)
    assert LINE_BYTES_MAX - 10 < len(widest) <= LINE_BYTES_MAX


def _fits(draft: Draft) -> bool:
    try:
        compose(draft, Now(0, 2**63))
    except Refused:
        return False
    return True


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=15,
)  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(TEXT, TEXT, st.dictionaries(TEXT, JSON, max_size=4), st.none() | TEXT, st.none() | st.integers(1, 2**63 - 1))
def test_any_json_comes_back_as_it_was(
    kind: str, subject: str, data: dict[str, Any], key: str | None, cause: int | None
) -> None:
    line = line_of(Draft(kind, subject, data, id=key, cause=cause))
    assert line.count(b"\n") == 1
    record = decode(line)
    assert (record.type, record.subject, record.data, record.id, record.cause) == (kind, subject, data, key, cause)


@given(st.integers(1, 10**10 - 1), st.integers(1, 10**19), st.integers(1, 10**16 - 1))
def test_a_segment_is_what_its_name_says(number: int, epoch: int, first_seq: int) -> None:
    segment = Segment(number, epoch, first_seq)
    assert named(segment.name) == segment
    assert named(segment.name + "~") is None
    assert named(segment.name.replace("-e", "-e0")) is None
