"""One record, one line: how it is made, checked and read. The only place that knows the bytes of a line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from math import isfinite
from typing import Any, NamedTuple, NoReturn

from orjson import JSONDecodeError, JSONEncodeError, dumps, loads

from ledger.errors import Refused
from ledger.instant import Now

FORMAT = 1
LINE_BYTES_MAX = 256 * 1024
GENESIS = "0" * 32
"""What the first record names as its predecessor's hash."""
START = b'{"v":%d,"seq":' % FORMAT
"""How every line begins. It cannot occur inside a line: there, the quotes would be escaped."""

# The trailer of a line, without its newline: ,"p":"<32 hex>","h":"<32 hex>"}
TRAILER_BYTES = 79
HASHED_TO = -40
_DEPTH_MAX = 200
# Room for seq, epoch, batch and remaining at their widest, so that what `compose` accepts can always be written.
_HEAD_BYTES_MAX = len('{"v":1,"seq":,"ep":,"b":,"n":,') + 4 * 20
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_new = tuple.__new__  # Record(...) would go through a Python-level constructor, at twice the price
_Path = tuple[Any, ...]  # linked backwards, (parent, key), so that it costs nothing unless an error prints it


@dataclass(frozen=True, slots=True)
class Draft:
    """A fact to be recorded, before the ledger gives it its place."""

    type: str
    subject: str
    data: Mapping[str, Any]
    id: str | None = None
    """Idempotency key."""
    cause: int | None = None
    """The seq of the record that caused this one."""
    corr: str | None = None
    """Correlation (trace) id."""
    tv: int = 1
    """Version of this event type."""


class Record(NamedTuple):
    """A fact in its place. A tuple, because replay makes hundreds of thousands of them in a second."""

    seq: int
    epoch: int
    batch: int
    remaining: int
    """Records still to come in the same atomic batch; 0 marks the commit (and is not known before it)."""
    ts: str
    """Wall time, RFC 3339 UTC with microseconds; for people."""
    mt: int
    """CLOCK_BOOTTIME, ns."""
    type: str
    tv: int
    subject: str
    id: str | None
    cause: int | None
    corr: str | None
    data: dict[str, Any]
    hash: str
    """32 hex digits; "" until committed."""

    def settled(self, remaining: int, digest: str) -> Record:
        """The same record, once its batch is written."""
        return _new(Record, (*self[:3], remaining, *self[4:13], digest))


class Unsound(Exception):
    """Why a line is no record, or not the one that belongs here."""


def timestamp(wall_ns: int) -> str:
    seconds, rest_ns = divmod(wall_ns, 1_000_000_000)
    return f"{_second(seconds)}.{rest_ns // 1000:06d}Z"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]


def compose(draft: Draft, now: Now) -> tuple[bytes, str, dict[str, Any]]:
    """The part of a line that does not depend on its place (from "ts" to the end of "data"), and its ts and data as a
    reader will see them.

    Refused if JSON cannot carry the draft exactly, or if the line would be longer than LINE_BYTES_MAX.
    """
    ts = timestamp(now.wall_ns)
    _refuse_fields(draft)
    data = draft.data if type(draft.data) is dict else dict(draft.data)
    fields: dict[str, Any] = {
        "ts": ts,
        "mt": now.boot_ns,
        "type": draft.type,
        "tv": draft.tv,
        "subject": draft.subject,
    }
    if draft.id is not None:
        fields["id"] = draft.id
    if draft.cause is not None:
        fields["cause"] = draft.cause
    if draft.corr is not None:
        fields["corr"] = draft.corr
    fields["data"] = data
    try:
        text = dumps(fields)
        plain: dict[str, Any] = loads(text)["data"]
    except (JSONEncodeError, JSONDecodeError) as error:
        _refuse_value(data, (None, "data"), 0)
        raise Refused(f"a {draft.type!r} event cannot be written as JSON: {error}") from None
    if plain != data:  # a value that JSON changes on the way, NaN among them; looked for only when there is one
        _refuse_value(data, (None, "data"), 0)
    if len(text) + _HEAD_BYTES_MAX + TRAILER_BYTES + 1 > LINE_BYTES_MAX:
        raise Refused(
            f"a {draft.type!r} event of {len(text)} bytes does not fit in a line of {LINE_BYTES_MAX}; "
            "put its content into the artifact store and name it by digest"
        )
    return text[1:-1], ts, plain


def place(body: bytes, *, seq: int, epoch: int, batch: int, remaining: int, previous: str) -> tuple[bytes, str]:
    """The finished line, newline included, and its hash."""
    hashed = b'{"v":%d,"seq":%d,"ep":%d,"b":%d,"n":%d,%b,"p":"%b"' % (
        FORMAT,
        seq,
        epoch,
        batch,
        remaining,
        body,
        previous.encode(),
    )
    digest = sha256(hashed).hexdigest()[:32]
    return b'%b,"h":"%b"}\n' % (hashed, digest.encode()), digest


def encode(draft: Draft, now: Now, *, seq: int, epoch: int, batch: int, remaining: int, previous: str) -> bytes:
    """The line of a record: what `Ledger.append` writes for it."""
    return place(compose(draft, now)[0], seq=seq, epoch=epoch, batch=batch, remaining=remaining, previous=previous)[0]


def check(line: bytes) -> str:
    """The hash of a line that vouches for itself; Unsound if it does not. `line` is without its newline.

    The bytes outside the hash are compared literally, so no byte of a line is left unchecked.
    """
    if not line:
        raise Unsound("the line is empty")
    if not line.startswith(START):
        raise Unsound(f"the line does not begin with {START.decode()}")
    if len(line) < len(START) + TRAILER_BYTES or line[-40:-34] != b',"h":"' or line[-2:] != b'"}':
        raise Unsound("the line does not end with its hash")
    digest = sha256(line[:HASHED_TO]).hexdigest()[:32]
    if line[-34:-2] != digest.encode():
        raise Unsound("the hash does not match the bytes")
    if line[-79:-73] != b',"p":"' or line[-41:-40] != b'"':
        raise Unsound("the line does not name its predecessor")
    return digest


def with_own_hash(fields: Mapping[str, Any]) -> bytes:
    """A line that is no record (a watermark, a seal) and vouches for itself as one does."""
    hashed = dumps(fields)[:-1]
    return b'%b,"h":"%b"}\n' % (hashed, sha256(hashed).hexdigest()[:32].encode())


def own_hash(line: bytes) -> dict[str, Any]:
    """The fields of a line that `with_own_hash` may have written. Unsound otherwise."""
    hashed = line[: HASHED_TO - 1]
    if line[HASHED_TO - 1 :] != b',"h":"%b"}\n' % sha256(hashed).hexdigest()[:32].encode():
        raise Unsound("the line does not end with the hash of its bytes")
    try:
        fields = loads(line)
    except JSONDecodeError as error:
        raise Unsound(f"the line is not JSON ({error})") from None
    return dict(fields)


def predecessor(line: bytes) -> str:
    """The hash of the record before, as a line that passed `check` names it."""
    return line[-73:-41].decode()


def decode(line: bytes) -> Record:
    """The record of a line that passes `check` (its newline may still be there). Unsound otherwise."""
    line = line.removesuffix(b"\n")
    digest = check(line)
    return record_of(line, digest)


def record_of(line: bytes, digest: str) -> Record:
    """The record of a line already checked. Unsound if the fields are not those of a record."""
    try:
        fields = loads(line)
        get = fields.get
        return _new(
            Record,
            (
                fields["seq"],
                fields["ep"],
                fields["b"],
                fields["n"],
                fields["ts"],
                fields["mt"],
                fields["type"],
                fields["tv"],
                fields["subject"],
                get("id"),
                get("cause"),
                get("corr"),
                fields["data"],
                digest,
            ),
        )
    except JSONDecodeError as error:
        raise Unsound(f"the line is not JSON ({error})") from None
    except KeyError as error:
        raise Unsound(f"the line has no field {error}") from None


def trusted(lines: bytes) -> list[Record]:
    """The records of whole lines whose bytes have been compared with their seal: only parsed."""
    records = []
    for fields in loads(b"[%b]" % lines[:-1].replace(b"\n", b",")):
        get = fields.get
        records.append(
            _new(
                Record,
                (
                    fields["seq"],
                    fields["ep"],
                    fields["b"],
                    fields["n"],
                    fields["ts"],
                    fields["mt"],
                    fields["type"],
                    fields["tv"],
                    fields["subject"],
                    get("id"),
                    get("cause"),
                    get("corr"),
                    fields["data"],
                    fields["h"],
                ),
            )
        )
    return records


def _refuse(path: _Path, why: str) -> NoReturn:
    text = ""
    parent: _Path | None = path
    while parent is not None:
        parent, key = parent
        text = (f"[{key}]" if isinstance(key, int) else f".{key}" if parent else str(key)) + text
    raise Refused(f"{text} {why}".encode("utf-8", "backslashreplace").decode())


def _refuse_text(text: str, path: _Path) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse(path, "has half a character in it (a lone surrogate), which UTF-8 cannot carry")


def _refuse_fields(draft: Draft) -> None:
    if not (_is_text(draft.type) and _is_text(draft.subject)):
        raise Refused(f"an event of type {draft.type!r} on {draft.subject!r}: both must be texts that are not empty")
    if not ((draft.id is None or _is_text(draft.id)) and (draft.corr is None or _is_text(draft.corr))):
        raise Refused(f"id {draft.id!r}, corr {draft.corr!r} of {draft.type!r}: each must be None or a text, not empty")
    if not (type(draft.tv) is int and 0 < draft.tv < 2**63):
        raise Refused(f"tv of {draft.type!r} is {draft.tv!r}; it must be a positive integer")
    if not (draft.cause is None or (type(draft.cause) is int and 0 < draft.cause < 2**63)):
        raise Refused(f"cause of {draft.type!r} is {draft.cause!r}; it must be None or the seq of a record")
    if not isinstance(draft.data, Mapping):
        raise Refused(f"data of {draft.type!r} is a {type(draft.data).__name__}; it must be a mapping")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _refuse_value(value: Any, path: _Path, depth: int) -> None:
    """Refused, with the path, unless JSON carries `value`. A tuple becomes a list, as everyone expects."""
    kind = type(value)
    if isinstance(value, str):
        _refuse_text(value, path)
    elif kind is int:
        if not -(2**63) <= value < 2**64:
            _refuse(path, f"is {value}, beyond 64 bits; write it as a text")
    elif kind is float:
        if not isfinite(value):
            _refuse(path, f"is {value}, which JSON cannot carry; leave it out or write null")
    elif isinstance(value, (dict, list, tuple)):
        if depth == _DEPTH_MAX:
            _refuse(path, f"is nested deeper than {_DEPTH_MAX} levels")
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict):
                if type(key) is not str:
                    _refuse(path, f"has the key {key!r}; a JSON key must be a text")
                _refuse_text(key, (path, key))
            _refuse_value(item, (path, key), depth + 1)
    elif value is not None and kind is not bool:
        _refuse(path, f"is a {kind.__name__}, which JSON cannot carry")
