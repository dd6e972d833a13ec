"""A line of the ledger: its bytes, what it refuses, and that no byte of it can change unseen."""

from __future__ import annotations

import json
import math
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
from ledger.record import GENESIS, LINE_BYTES_MAX, Draft, Unsound, check, compose, decode, encode, timestamp
from ledger.segment import Segment, named


def line_of(draft: Draft, *, seq: int = 1, batch: int = 1, remaining: int = 0, previous: str = GENESIS) -> bytes:
    return encode(draft, at(), seq=seq, epoch=1, batch=batch, remaining=remaining, previous=previous)


def refused(data: Any) -> str:
    with pytest.raises(Refused) as caught:
        compose(Draft("a", "b", data), at())
    return str(caught.value)


def test_a_line_is_laid_out_as_the_format_says() -> None:
    draft = Draft("run.finished", "run/1", {"b": 1, "a": ["é", None]}, id="i", cause=3, corr="plan-88", tv=2)
    line = encode(draft, at(), seq=1207, epoch=7, batch=391, remaining=2, previous="ab" * 16)
    body = (
        '{"v":1,"seq":1207,"ep":7,"b":391,"n":2,"ts":"2026-11-21T04:39:00.123456Z","mt":5000000000,'
        '"type":"run.finished","tv":2,"subject":"run/1","id":"i","cause":3,"corr":"plan-88",'
        '"data":{"b":1,"a":["é",null]},"p":"abababababababababababababababab"'
    ).encode()
    assert line == body + b',"h":"' + sha256(body).hexdigest()[:32].encode() + b'"}\n'
    assert json.loads(line)["seq"] == 1207
    assert decode(line).corr == "plan-88"


def test_what_a_draft_leaves_out_is_not_written() -> None:
    fields = json.loads(line_of(Draft("a", "b", {})))
    assert not {"id", "cause", "corr"} & set(fields)


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


def test_a_line_of_a_later_format_is_named_so() -> None:
    body = line_of(fact(1))[:-41].replace(b'{"v":1', b'{"v":2')
    line = body + b',"h":"' + sha256(body).hexdigest()[:32].encode() + b'"}'
    with pytest.raises(Unsound, match="does not begin"):
        check(line)
    with pytest.raises(Unsound, match="does not begin"):
        Chain().take(line)


def test_the_chain_takes_only_what_follows() -> None:
    chain = Chain()
    chain.enter(Segment(1, 1, 1))
    opening = {"ledger": "l", "segment": 1, "first_seq": 1, "epoch": 1, "format": 1}
    first = line_of(Draft("segment.open", "segment/1", opening))[:-1]
    chain.take(first)
    good: dict[str, Any] = {"seq": 2, "batch": 2, "remaining": 1, "previous": chain.hash}
    wrong: dict[str, Any]
    for wrong in ({"seq": 3}, {"seq": 1}, {"batch": 1}, {"batch": 3}, {"previous": GENESIS}, {"remaining": -1}):
        with pytest.raises(Unsound):
            chain.take(line_of(fact(1), **{**good, **wrong})[:-1])
    second = chain.take(line_of(fact(1), **good)[:-1])
    within: dict[str, Any] = {"seq": 3, "batch": 2, "remaining": 0, "previous": second.hash}
    for wrong in ({"batch": 3}, {"remaining": 1}):
        with pytest.raises(Unsound):
            chain.take(line_of(fact(2), **{**within, **wrong})[:-1])
    assert chain.take(line_of(fact(2), **within)[:-1]).seq == 3


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
    widest = encode(draft, Now(0, 2**63), seq=10**19, epoch=10**19, batch=10**19, remaining=10**19, previous=GENESIS)
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
