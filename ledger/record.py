"""One record, one line: how it is made, checked and read. The only place that knows the bytes of a line."""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from math import isfinite
from typing import Any, NamedTuple, NoReturn

from orjson import JSONDecodeError, JSONEncodeError, dumps, loads

from ledger.errors import Refused
from ledger.instant import Now

FORMAT = 2
LINE_BYTES_MAX = 256 * 1024
HASH_LENGTH = 22
GENESIS = "0" * HASH_LENGTH
"""What the first record names as its predecessor's hash."""
START = b'{"seq":'
"""How every line begins."""

# The trailer of a line, without its newline: ,"h":"<hash of the record before><first 8 of its own hash>"}
OWN_LENGTH = 8
TRAILER_BYTES = len(',"h":""}') + HASH_LENGTH + OWN_LENGTH
HASHED_TO = -OWN_LENGTH - len('"}')
_SUM_LENGTH = 44  # of base64 of a SHA-256 and one byte
_OWN_HASHED_TO = -len(',"h":""}\n') - HASH_LENGTH  # of a line that is no record
_FORMAT_1 = b'{"v":1,"seq":'
URL_SAFE = bytes.maketrans(b"+/", b"-_")
_DEPTH_MAX = 200
# Room for seq, epoch, number and count at their widest, so that what `compose` accepts can always be written.
_HEAD_BYTES_MAX = len('{"seq":,"n":,"of":,"ep":,') + 4 * 20
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
    """The seq of the first record of its atomic batch."""
    more: bool
    """Whether the next record is of the same batch (not known before the commit)."""
    ts: str
    """Wall time, RFC 3339 UTC with microseconds; for people."""
    mt: int
    """CLOCK_BOOTTIME, ns; kept to the microsecond."""
    type: str
    tv: int
    subject: str
    id: str | None
    cause: int | None
    corr: str | None
    data: dict[str, Any]
    hash: str
    """"" until committed."""

    def settled(self, more: bool, digest: str) -> Record:
        """The same record, once its batch is written."""
        return _new(Record, (*self[:3], more, *self[4:13], digest))


class Unsound(Exception):
    """Why a line is no record, or not the one that belongs here."""


def timestamp(wall_ns: int) -> str:
    seconds, rest_ns = divmod(wall_ns, 1_000_000_000)
    return f"{_second(seconds)}.{rest_ns // 1000:06d}Z"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]


def hash_of(data: bytes) -> str:
    """The first 132 bits of SHA-256 in base64url, 22 characters."""
    return b2a_base64(sha256(data).digest())[:HASH_LENGTH].translate(URL_SAFE).decode()


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
        "mt": now.boot_ns // 1000,
        "type": draft.type,
    }
    if draft.tv != 1:
        fields["tv"] = draft.tv
    fields["subject"] = draft.subject
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


def place(body: bytes, *, seq: int, epoch: int, number: int, count: int, previous: str) -> tuple[bytes, str]:
    """The finished line, newline included, and its hash. It is the record `number` of a batch of `count`."""
    batch = b'"n":%d,' % number if count > 1 else b""
    if 1 < number == count:
        batch += b'"of":%d,' % count
    hashed = b'{"seq":%d,%b"ep":%d,%b,"h":"%b' % (seq, batch, epoch, body, previous.encode())
    digest = hash_of(hashed)
    return b'%b%b"}\n' % (hashed, digest[:OWN_LENGTH].encode()), digest


def encode(draft: Draft, now: Now, *, seq: int, epoch: int, previous: str, number: int = 1, count: int = 1) -> bytes:
    """The line of a record: what `Ledger.append` writes for it."""
    return place(compose(draft, now)[0], seq=seq, epoch=epoch, number=number, count=count, previous=previous)[0]


def check(line: bytes) -> str:
    """The hash of a line that vouches for itself; Unsound if it does not. `line` is without its newline.

    The bytes outside the hash are compared literally, so no byte of a line is left unchecked.
    """
    if not line:
        raise Unsound("the line is empty")
    if not line.startswith(START):
        if line.startswith(_FORMAT_1):
            raise Unsound(f"the line is of format 1; this program reads format {FORMAT}")
        raise Unsound(f"the line does not begin with {START.decode()}")
    if len(line) < len(START) + TRAILER_BYTES or line[-2:] != b'"}':
        raise Unsound("the line does not end with its hash")
    digest = hash_of(line[:HASHED_TO])
    if line[HASHED_TO:-2] != digest[:OWN_LENGTH].encode():
        raise Unsound("the hash does not match the bytes")
    if line[-TRAILER_BYTES : -TRAILER_BYTES + 6] != b',"h":"':
        raise Unsound("the line does not name its predecessor")
    return digest


def linked(lines: Sequence[bytes], previous: str) -> list[str]:
    """The hashes of as many of `lines`, from the first on, as vouch for themselves and name the one before, the first
    of them `previous`. Every byte counts, as for `check`."""
    # Each digest is given a byte more, so that its text has 44 characters and that of all is made at once.
    sums = b"\0".join([sha256(line[:HASHED_TO]).digest() for line in lines]) + b"\0"
    text = b2a_base64(sums, newline=False).translate(URL_SAFE).decode()
    digests = [text[at : at + HASH_LENGTH] for at in range(0, len(lines) * _SUM_LENGTH, _SUM_LENGTH)]
    wanted = [
        f',"h":"{before}{digest[:OWN_LENGTH]}"}}' for before, digest in zip((previous, *digests), digests, strict=False)
    ]
    # No line has more than a trailer's length to give: where all of them together agree, each of them does.
    trailers = b"".join([line[-TRAILER_BYTES:] for line in lines])
    if trailers == "".join(wanted).encode() and {line[: len(START)] for line in lines} == {START}:
        return digests
    for place, line in enumerate(lines):
        if line[-TRAILER_BYTES:] != wanted[place].encode() or not line.startswith(START):
            return digests[:place]
    return digests


def ending(digest: str) -> bytes:
    """How the line of the record with this hash ends, its newline included."""
    return b'%b"}\n' % digest[:OWN_LENGTH].encode()


def with_own_hash(fields: Mapping[str, Any]) -> bytes:
    """A line that is no record (a watermark, a seal) and vouches for itself as one does."""
    hashed = dumps(fields)[:-1]
    return b'%b,"h":"%b"}\n' % (hashed, hash_of(hashed).encode())


def own_hash(line: bytes) -> dict[str, Any]:
    """The fields of a line that `with_own_hash` may have written. Unsound otherwise."""
    hashed = line[:_OWN_HASHED_TO]
    if line[_OWN_HASHED_TO:] != b',"h":"%b"}\n' % hash_of(hashed).encode():
        raise Unsound("the line does not end with the hash of its bytes")
    try:
        fields = loads(line)
    except JSONDecodeError as error:
        raise Unsound(f"the line is not JSON ({error})") from None
    return dict(fields)


def predecessor(line: bytes) -> str:
    """The hash of the record before, as a line that passed `check` names it."""
    return line[-TRAILER_BYTES + 6 : HASHED_TO].decode()


def decode(line: bytes) -> Record:
    """The record of a line that passes `check` (its newline may still be there). Unsound otherwise."""
    line = line.removesuffix(b"\n")
    digest = check(line)
    return record_of(line, digest)


def record_of(line: bytes, digest: str) -> Record:
    """The record of a line already checked. Unsound if the fields are not those of a record."""
    try:
        (record,) = _made([loads(line)], [digest])
        return record
    except JSONDecodeError as error:
        raise Unsound(f"the line is not JSON ({error})") from None
    except KeyError as error:
        raise Unsound(f"the line has no field {error}") from None
    except TypeError as error:
        raise Unsound(f"a field of the line is not what it must be ({error})") from None


def records_of(lines: Sequence[bytes], digests: Sequence[str]) -> list[Record]:
    """The records of lines already checked, whose hashes are `digests`. Empty if one of them is not that of a record:
    `record_of` says which, and why."""
    try:
        return _made(loads(b"[%b]" % b",".join(lines)), digests)
    except (JSONDecodeError, KeyError, TypeError, ValueError, Unsound):
        return []


def trusted(lines: bytes, last_hash: str) -> list[Record]:
    """The records of whole lines whose bytes have been compared with their seal: only parsed. `last_hash` is that of
    the last of them, which only the line behind it names in full."""
    told = loads(b"[%b]" % lines[:-1].replace(b"\n", b","))
    hashes = [fields["h"][:HASH_LENGTH] for fields in told[1:]]
    hashes.append(last_hash)
    return _made(told, hashes)


def _made(told: list[dict[str, Any]], hashes: Sequence[str]) -> list[Record]:
    records = []
    for fields, digest in zip(told, hashes, strict=True):
        get = fields.get
        seq, number, count = fields["seq"], get("n", 1), get("of")
        if count is not None and count != number:
            raise Unsound(f"the record is number {number} and the last of a batch of {count}")
        records.append(
            _new(
                Record,
                (
                    seq,
                    fields["ep"],
                    seq - number + 1,
                    count is None and "n" in fields,
                    fields["ts"],
                    fields["mt"] * 1000,
                    fields["type"],
                    get("tv", 1),
                    fields["subject"],
                    get("id"),
                    get("cause"),
                    get("corr"),
                    fields["data"],
                    digest,
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


def is_text(text: str) -> bool:
    """Whether UTF-8, and so a record, can carry it: not half a surrogate pair, as a file's name may hold."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_text(text: str, path: _Path) -> None:
    if not is_text(text):
        _refuse(path, "has half a character in it (a lone surrogate), which UTF-8 cannot carry")


def _refuse_fields(draft: Draft) -> None:
    if (
        type(draft.type) is type(draft.subject) is str
        and draft.type
        and draft.subject
        and draft.id is None
        and draft.cause is None
        and draft.corr is None
        and type(draft.tv) is int
        and draft.tv == 1
        and type(draft.data) is dict
    ):
        return  # As most are.
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
