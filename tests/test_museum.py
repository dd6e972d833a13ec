"""A museum of ledger and log bugs that were reported in public. Each exhibit is a small faithful model of the broken
writer or reader, on which the stated invariant fails, and our ledger under the same fault, where it holds.

`data/museum.json` has the reports' addresses and the invariants.
"""

from __future__ import annotations

import errno
import json
import os
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from ledger_home import WRITER, at, copy_of, fact, grown, last_segment, opened, segment_paths

from daemon.system import OsDisk
from ledger import merkle
from ledger.archive import archive
from ledger.disk import Locked, write_atomically
from ledger.errors import Corrupt, Full, Poisoned, Refused
from ledger.ledger import Bounds, Ledger
from ledger.reader import Tail, read
from ledger.record import Draft, Record, Unsound, check
from ledger.segment import segments_in
from ledger.verify import verify
from simulations.disk import PowerCut, SimDisk

CATALOGUE = json.loads((Path(__file__).parent / "data" / "museum.json").read_text())
Exhibit = Callable[[Path], tuple[bool, bool]]
EXHIBITS: dict[str, Exhibit] = {}


def exhibit(name: str) -> Callable[[Exhibit], Exhibit]:
    """The function says whether the invariant held for them, and for us."""

    def put(function: Exhibit) -> Exhibit:
        EXHIBITS[name] = function
        return function

    return put


@pytest.mark.parametrize("entry", CATALOGUE, ids=[entry["name"] for entry in CATALOGUE])
def test_what_broke_elsewhere_does_not_break_here(entry: dict[str, str], tmp_path: Path) -> None:
    theirs, ours = EXHIBITS[entry["name"]](tmp_path)
    assert not theirs, f"the model does not show the bug of {entry['link']}"
    assert ours, entry["invariant"]


def test_every_exhibit_has_a_report_of_its_own() -> None:
    assert [entry["name"] for entry in CATALOGUE] == list(EXHIBITS)
    assert len(CATALOGUE) == len({entry["link"] for entry in CATALOGUE}) >= 25
    assert all(entry["link"].startswith("https://") and entry["invariant"] for entry in CATALOGUE)


class Lines:
    """The log that everybody writes first: `json.dumps`, a newline, append; on reading, skip what does not parse."""

    def __init__(self) -> None:
        self.data = b""

    def append(self, record: Any, torn_at: int | None = None) -> None:
        self.data += (json.dumps(record) + "\n").encode()[:torn_at]

    def read(self) -> list[Any]:
        found = []
        for line in self.data.split(b"\n"):
            with suppress(ValueError):
                found.append(json.loads(line.decode()))
        return found


def numbers(disk: Any) -> list[int]:
    return [record.data["number"] for record in read(disk) if record.type == "run.finished"]


def unproven(sizes: tuple[int, ...] = (1, 1)) -> SimDisk:
    """A ledger whose writer was killed: nothing proves its last batch."""
    disk = SimDisk(1)
    ledger, number = opened(disk), 0
    for size in sizes:
        ledger.append([fact(number + i) for i in range(size)], at())
        number += size
    disk.kill()
    return disk


def torn(tail: bytes, cut_bytes: int = 0) -> SimDisk:
    """The same, and its last segment ends with `tail` in place of its last bytes."""
    disk = unproven()
    path = last_segment(disk)
    data = disk.read(path)
    disk.corrupt(path, data[: len(data) - cut_bytes] + tail)
    return disk


def goes_on(disk: SimDisk, before: list[int]) -> bool:
    """It opens, has what was acknowledged, and what is appended now is read, also by the next start."""
    for number in (70, 71):
        ledger = opened(disk)
        ledger.append([fact(number)], at())
        ledger.close()
    return numbers(disk) == [*before, 70, 71] and verify(disk).ok


@exhibit("fused after a kill")
def _(tmp_path: Path) -> tuple[bool, bool]:
    log = Lines()
    log.append(1)
    log.append({"number": 2}, torn_at=7)
    log.append({"number": 3})
    return {"number": 3} in log.read(), goes_on(torn(b'{"seq":4,"ep'), [0, 1])


@exhibit("fused after a full disk")
def _(tmp_path: Path) -> tuple[bool, bool]:
    disk = SimDisk(1, capacity_bytes=20)
    file = disk.create("log")
    for text in (b'{"number":1}\n', b'{"number":2}\n'):
        with suppress(OSError):
            while text:  # what fits stays, the error is reported, and nobody cuts back
                text = text[file.write(text) :]
    disk.capacity_bytes = None
    file.write(b'{"number":3}\n')
    log = Lines()
    log.data = disk.read("log")
    full = SimDisk(1)
    ledger = opened(full, bounds=Bounds(reserve_bytes=0))
    ledger.append([fact(0)], at())
    full.capacity_bytes = full.used_bytes() + 50
    with pytest.raises(Full):
        ledger.append([fact(1)], at())
    full.capacity_bytes = None
    ledger.append([fact(2)], at())
    ledger.close()
    return {"number": 3} in log.read(), numbers(full) == [0, 2]


@exhibit("one bad line hides the rest")
def _(tmp_path: Path) -> tuple[bool, bool]:
    def events(data: bytes) -> list[Any]:
        return [json.loads(line) for line in data.splitlines()]

    theirs: list[Any] = []
    with suppress(ValueError):
        theirs = events(b'{"number":0}\n{"num\xff\n{"number":2}\n')
    disk = damaged()
    found: list[Record] = []
    try:
        for record in read(disk):
            found.append(record)
    except Corrupt as corrupt:
        return theirs != [], len(found) == corrupt.last_good == 2 and corrupt.file == last_segment(disk)
    return theirs != [], False


def damaged() -> SimDisk:
    """A ledger of a few batches, closed, with a byte changed in the second."""
    disk = SimDisk(1)
    grown(disk, ((1, 1, 1),))
    path = last_segment(disk)
    lines = disk.read(path).splitlines(keepends=True)
    lines[2] = lines[2].replace(b"run", b"rum", 1)
    disk.corrupt(path, b"".join(lines))
    return disk


@exhibit("damage looks like absence")
def _(tmp_path: Path) -> tuple[bool, bool]:
    def load(data: bytes) -> str:
        try:
            return str([json.loads(line) for line in data.splitlines()])
        except ValueError:
            return "No saved session found"

    with pytest.raises(Corrupt) as caught:
        opened(damaged())
    return "No saved" not in load(b'{"a":1}{"b":2}\n'), "damaged at byte" in str(caught.value)


@exhibit("line separators of Unicode")
def _(tmp_path: Path) -> tuple[bool, bool]:
    texts = ["\u2028", "\u2029", "\x85", "\x0b\x0c", "\r"]
    theirs = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).splitlines()
    disk = SimDisk(1)
    ledger = opened(disk)
    for text in texts:
        ledger.append([fact(0, text)], at())
    ledger.close()
    ours = [record.data["text"] for record in read(disk) if record.type == "run.finished"]
    return len(theirs) == len(texts), ours == texts


@exhibit("a raw newline in a record")
def _(tmp_path: Path) -> tuple[bool, bool]:
    content = "first\nsecond"
    theirs = f'{{"content":"{content}"}}\n'
    disk = SimDisk(1)
    ledger = opened(disk)
    before = disk.read(last_segment(disk)).count(b"\n")
    ledger.append([fact(0, content)], at())
    return theirs.count("\n") == 1, disk.read(last_segment(disk)).count(b"\n") == before + 1


@exhibit("half a character at the end")
def _(tmp_path: Path) -> tuple[bool, bool]:
    data = b'{"number":0}\n{"text":"' + "é".encode()[:1]
    theirs: list[Any] = []
    with suppress(UnicodeDecodeError):
        theirs = data.decode().splitlines()
    half = '{"seq":4,"data":{"text":"é'.encode()[:-1]
    return theirs != [], goes_on(torn(half), [0, 1])


@exhibit("a tail of zeros")
def _(tmp_path: Path) -> tuple[bool, bool]:
    def opens(records: list[tuple[bytes, bytes]]) -> bool:
        return all(sha256(content).digest()[:4] == digest for content, digest in records)

    whole = [(b"one", sha256(b"one").digest()[:4])]
    return opens([*whole, (bytes(3), bytes(4))]), goes_on(torn(bytes(700)), [0, 1])


@exhibit("torn only if a sector is zero")
def _(tmp_path: Path) -> tuple[bool, bool]:
    def is_torn(record: bytes) -> bool:
        return any(not any(record[at : at + 512]) for at in range(0, len(record), 512))

    garbage = b"\x07" * 200 + bytes(300) + b"\x07"  # no sector of it is all zero, and yet nobody was answered on it
    return is_torn(garbage), goes_on(torn(garbage), [0, 1])


@exhibit("the torn tail stays")
def _(tmp_path: Path) -> tuple[bool, bool]:
    def replayed(log: bytes) -> list[bytes]:
        found = []
        while log and len(log) > log[0]:  # a partial record passes for the end of the log
            found.append(log[1 : 1 + log[0]])
            log = log[1 + log[0] :]
        return found

    log = b"\x03one" + b"\x09tw"
    assert replayed(log) == [b"one"]
    log += b"\x05three"
    return b"three" in replayed(log), goes_on(torn(b'{"seq":4'), [0, 1])


@exhibit("replay stops and says nothing")
def _(tmp_path: Path) -> tuple[bool, bool]:
    log = [b"one", b"two", b"three"]
    sums = [sha256(entry).digest() for entry in log]
    log[1] = b"twO"
    replayed = []
    for entry, digest in zip(log, sums, strict=True):
        if sha256(entry).digest() != digest:
            break  # and the next flush truncates the log
        replayed.append(entry)
    disk = damaged()
    before = disk.files()
    with pytest.raises(Corrupt):
        opened(disk)
    kept = all(disk.files()[path] == data for path, data in before.items())
    tail = torn(b"half a record")
    opened(tail).close()
    (aside,) = tail.list("ledger/quarantine")
    return len(replayed) == len(log), kept and tail.read(f"ledger/quarantine/{aside}") == b"half a record"


@exhibit("one bit takes a stretch of records")
def _(tmp_path: Path) -> tuple[bool, bool]:
    blocks = [[(number, sha256(b"%d" % number).digest()) for number in range(start, start + 3)] for start in (0, 3, 6)]
    blocks[1][1] = (4, b"flipped")
    theirs = [
        number
        for block in blocks
        if all(sha256(b"%d" % number).digest() == digest for number, digest in block)
        for number, _ in block
    ]
    whole = SimDisk(1)
    before = grown(whole, ((2,), (1, 2)))
    ours = True
    for path in segment_paths(whole):
        data = whole.read(path)
        for index in range(0, len(data), 23):
            disk = copy_of(whole)
            disk.corrupt(path, data[:index] + bytes([data[index] ^ 4]) + data[index + 1 :])
            found: list[Record] = []
            try:
                found += read(disk)
            except Corrupt:
                continue
            ours = ours and found == before
    return theirs == list(range(9)), ours


@exhibit("sync again and it succeeds")
def _(tmp_path: Path) -> tuple[bool, bool]:
    disk = SimDisk(1)
    file = disk.create("log")
    disk.sync_folder("")
    file.write(b"one")
    disk.fail(disk.operations + 1, errno.EIO)
    with suppress(OSError):
        file.sync()
    file.sync()  # the retry succeeds, so the record is acknowledged
    disk.crash()
    theirs = disk.read("log") == b"one"
    disk = SimDisk(1)
    ledger = opened(disk)
    acknowledged = ledger.append([fact(0)], at())
    disk.fail(disk.operations + 2, errno.EIO)
    for number in (1, 2):
        with pytest.raises(Poisoned):
            acknowledged += ledger.append([fact(number)], at())
    disk.crash()
    opened(disk).close()
    return theirs, [record for record in read(disk) if record.type == "run.finished"] == acknowledged


@exhibit("acknowledged before it is synced")
def _(tmp_path: Path) -> tuple[bool, bool]:
    theirs = ours = True
    for seed in range(12):
        disk = SimDisk(seed)
        file = disk.create("log")
        disk.sync_folder("")
        file.write(b"acknowledged")
        disk.crash()
        theirs = theirs and disk.read("log") == b"acknowledged"
        disk = SimDisk(seed)
        opened(disk).append([fact(0)], at())
        disk.crash()
        opened(disk).close()
        ours = ours and numbers(disk) == [0]
    return theirs, ours


def replaced(seed: int, *, sync_file: bool, sync_folder: bool) -> bytes:
    """What a power cut leaves of a file that was replaced."""
    disk = SimDisk(seed)
    write_atomically(disk, "state", b"old", durable=True)
    file = disk.create("state.tmp")
    file.write(b"new")
    if sync_file:
        file.sync()
    disk.replace("state.tmp", "state")
    if sync_folder:
        disk.sync_folder("")
    disk.crash()
    return disk.read("state")


def replaced_by_us(seed: int) -> bytes:
    disk = SimDisk(seed)
    write_atomically(disk, "state", b"old", durable=True)
    write_atomically(disk, "state", b"new", durable=True)
    disk.crash()
    return disk.read("state")


@exhibit("renamed, and the folder not synced")
def _(tmp_path: Path) -> tuple[bool, bool]:
    theirs = {replaced(seed, sync_file=True, sync_folder=False) for seed in range(20)}
    return theirs == {b"new"}, {replaced_by_us(seed) for seed in range(20)} == {b"new"}


@exhibit("renamed, and the file not synced")
def _(tmp_path: Path) -> tuple[bool, bool]:
    theirs = {replaced(seed, sync_file=False, sync_folder=True) for seed in range(20)}
    return theirs == {b"new"}, {replaced_by_us(seed) for seed in range(20)} == {b"new"}


@exhibit("copied, then truncated")
def _(tmp_path: Path) -> tuple[bool, bool]:
    log = [b"one"]
    put_away = list(log)
    log.append(b"two")  # the writer does not wait for who rotates
    log.clear()
    log.append(b"three")

    class Busy(SimDisk):
        """Whoever has the ledger open writes to it in the middle of everything the archiver does."""

        ledger: Ledger | None = None

        def replace(self, source: str, target: str) -> None:
            super().replace(source, target)
            if self.ledger is not None and target.endswith(".zst"):
                given.extend(self.ledger.append([fact(len(given))], at()))

    given: list[Record] = []
    disk = Busy(1)
    ledger = opened(disk, bounds=Bounds(segment_bytes=900, reserve_bytes=0))
    for number in range(12):
        given += ledger.append([fact(number)], at())
    disk.ledger = ledger
    archive(disk, keep=0)
    assert len(given) > 13
    return b"two" in put_away + log, [record for record in read(disk) if record.type == "run.finished"] == given


@exhibit("an offset of one's own")
def _(tmp_path: Path) -> tuple[bool, bool]:
    log = tmp_path / "log"
    theirs = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.write(theirs, b"one\n")
    os.truncate(log, 0)
    os.write(theirs, b"two\n")
    os.close(theirs)
    ours = OsDisk(tmp_path).create("ours")
    ours.write(b"one\n")
    os.truncate(tmp_path / "ours", 0)
    ours.write(b"two\n")
    ours.close()
    return b"\0" not in log.read_bytes(), (tmp_path / "ours").read_bytes() == b"two\n"


@exhibit("compression failed, original deleted")
def _(tmp_path: Path) -> tuple[bool, bool]:
    def roll(files: dict[str, bytes]) -> None:
        try:
            files["log.gz"] = files["log"][:3]
            raise OSError(errno.ENOSPC, "no room")
        except OSError:
            pass  # noted in the log of the logger
        del files["log"]

    files = {"log": b"all there is"}
    roll(files)
    ours = True
    for point in range(1, 14):
        disk = SimDisk(1)
        before = grown(disk, ((1, 1), (2,), (1,)))
        disk.fail(disk.operations + point, errno.ENOSPC, sticky=True)
        with suppress(OSError):
            archive(disk, keep=0)
        disk.heal()
        ours = ours and list(read(disk)) == before
    return "log" in files, ours


@exhibit("damage, and exit status zero")
def _(tmp_path: Path) -> tuple[bool, bool]:
    log = Lines()
    log.append({"number": 0})
    log.data += b'{"number":\xff1}\n'
    log.append({"number": 2})
    theirs = 0 if log.read() else 1
    with pytest.raises(Corrupt):
        list(read(damaged()))
    return theirs != 0, not verify(damaged()).ok


@exhibit("the last but one is not verified")
def _(tmp_path: Path) -> tuple[bool, bool]:
    files = [b"a", b"b", b"c"]
    sums = [sha256(file).digest() for file in files]
    files[1] = b"B"
    theirs = any(sha256(files[index]).digest() != sums[index] for index in range(len(files) - 2))
    whole = SimDisk(1)
    grown(whole, ((1,), (1,), (1,), (1,)))
    found = []
    for path in segment_paths(whole):
        disk = copy_of(whole)
        data = disk.read(path)
        disk.corrupt(path, data.replace(b"segment", b"segmenT", 1))
        found.append([damage.file for damage in verify(disk).damages][:1] == [path])
    return theirs, all(found) and len(found) == 4


@exhibit("nothing checked, all valid")
def _(tmp_path: Path) -> tuple[bool, bool]:
    def valid(entries: list[tuple[bytes, bytes | None]]) -> bool:
        checked = [(content, digest) for content, digest in entries if digest is not None]
        return all(sha256(content).digest() == digest for content, digest in checked)

    empty = SimDisk(1)
    stripped = SimDisk(1)
    grown(stripped)
    for path in [path for path in stripped.files() if "0000" in path or "MANIFEST" in path]:
        stripped.remove(path)
    theirs = not valid([(b"never hashed", None)])
    return theirs, not verify(empty).ok and not verify(stripped).ok


@exhibit("the end is missing and the chain is whole")
def _(tmp_path: Path) -> tuple[bool, bool]:
    chain = [b""]
    for number in range(5):
        chain.append(sha256(chain[-1] + b"%d" % number).digest())
    del chain[-2:]
    theirs = all(sha256(chain[n] + b"%d" % n).digest() == chain[n + 1] for n in range(len(chain) - 1))
    disk = SimDisk(1)
    grown(disk, ((1, 1, 1),))
    path = last_segment(disk)
    disk.corrupt(path, b"".join(disk.read(path).splitlines(keepends=True)[:-2]))
    with pytest.raises(Corrupt, match="HEAD proves"):
        opened(disk)
    return not theirs, not verify(disk).ok


@exhibit("two writers, one number")
def _(tmp_path: Path) -> tuple[bool, bool]:
    log: list[int] = [1, 2]
    one, other = len(log), len(log)  # each read the file when it began
    log += [one + 1, other + 1, one + 2, other + 2]
    disk = OsDisk(tmp_path)
    first = Ledger.open(disk, WRITER, at(), anywhere=True)
    with pytest.raises(Locked):
        Ledger.open(OsDisk(tmp_path), WRITER, at(), anywhere=True)
    first.append([fact(0)], at())
    first.close()
    seqs = [record.seq for record in read(disk)]
    return len(set(log)) == len(log), seqs == list(range(1, len(seqs) + 1))


@exhibit("numbers begin again")
def _(tmp_path: Path) -> tuple[bool, bool]:
    theirs = [number for _ in range(2) for number, _ in enumerate("abc")]
    disk = SimDisk(1)
    seqs = [record.seq for record in grown(disk, ((1, 1), (1, 1)))]
    return len(set(theirs)) == len(theirs), seqs == list(range(1, len(seqs) + 1))


@exhibit("the counter lags behind")
def _(tmp_path: Path) -> tuple[bool, bool]:
    log, counter = [(1, "a")], 1
    log.append((counter + 1, "b"))  # killed before the counter's own file was written
    log.append((counter + 1, "c"))
    disk = unproven((1, 1, 1))
    disk.remove("ledger/HEAD")
    opened(disk).append([fact(9)], at())
    seqs = [record.seq for record in read(disk)]
    return len({number for number, _ in log}) == len(log), seqs == list(range(1, len(seqs) + 1))


@exhibit("the hash of what was serialised again")
def _(tmp_path: Path) -> tuple[bool, bool]:
    sent = b'{"b": 1, "a": 1.0}'
    theirs = sha256(json.dumps(json.loads(sent), sort_keys=True).encode()).digest() == sha256(sent).digest()
    hashed = b'{"seq":1,"z":{"b": 1,\t"a": 1.0e0},"h":"%b' % (b"0" * 22)
    digest = urlsafe_b64encode(sha256(hashed).digest())[:22]
    line = b'%b%b"}' % (hashed, digest[:8])
    return theirs, check(line) == digest.decode()


@exhibit("numbers become doubles")
def _(tmp_path: Path) -> tuple[bool, bool]:
    written = [12345678901234567890, 2**53 + 1, 0.1, 5e-324, -(2**63)]
    theirs = [float(number) for number in written]
    disk = SimDisk(1)
    ledger = opened(disk)
    ledger.append([Draft("x", "y", {"numbers": written})], at())
    with pytest.raises(Refused, match="beyond 64 bits"):
        ledger.append([Draft("x", "y", {"number": 2**64})], at())
    (found,) = (record.data["numbers"] for record in read(disk) if record.type == "x")
    same = [(type(number), number) for number in found] == [(type(number), number) for number in written]
    return [int(number) for number in theirs[:2]] == written[:2], same


@exhibit("NaN is no JSON")
def _(tmp_path: Path) -> tuple[bool, bool]:
    def strict(text: str) -> bool:
        def refuse(name: str) -> None:
            raise ValueError(name)

        try:
            json.loads(text, parse_constant=refuse)
        except ValueError:
            return False
        return True

    disk = SimDisk(1)
    ledger = opened(disk)
    for number in (float("nan"), float("inf")):
        with pytest.raises(Refused, match=r"data\.energy"):
            ledger.append([Draft("x", "y", {"energy": number})], at())
    lines = disk.read(last_segment(disk)).decode().splitlines()
    return strict(json.dumps({"energy": float("nan")})), all(strict(line) for line in lines)


@exhibit("the clock is the order")
def _(tmp_path: Path) -> tuple[bool, bool]:
    theirs = sorted([(100, "created"), (40, "updated"), (41, "deleted")])  # the clock was set back after the first
    disk = SimDisk(1)
    ledger = opened(disk, 100)
    for number, seconds in enumerate((100, 40, 41)):
        ledger.append([fact(number)], at(seconds))
    ledger.close()
    return [what for _, what in theirs] == ["created", "updated", "deleted"], numbers(disk) == [0, 1, 2]


@exhibit("a byte order mark")
def _(tmp_path: Path) -> tuple[bool, bool]:
    log = Lines()
    log.append({"number": 0})
    log.append({"number": 1})
    log.data = b"\xef\xbb\xbf" + log.data
    disk = SimDisk(1)
    grown(disk, ((1, 1),))
    path = last_segment(disk)
    disk.corrupt(path, b"\xef\xbb\xbf" + disk.read(path))
    with pytest.raises(Corrupt) as caught:
        list(read(disk))
    return len(log.read()) == 2, (caught.value.file, caught.value.offset) == (path, 0)


@exhibit("the deposed writer goes on")
def _(tmp_path: Path) -> tuple[bool, bool]:
    ledger: dict[str, Any] = {"deleted": False, "entries": []}
    ledger["deleted"] = True  # by who owns it now
    ledger["entries"].append("acknowledged by the old owner")
    disk = SimDisk(1)
    grown(disk, ((1,),))
    first = last_segment(disk)
    zombie = disk.append(first)
    grown(disk, ((1,),))
    shown = list(read(disk))
    zombie.write(disk.read(first).splitlines(keepends=True)[-1])
    hidden = list(read(disk)) == shown and not verify(disk).ok
    again = opened(disk)
    aside = [cut.file for cut in again.recovery.cuts]
    return not ledger["entries"], hidden and aside == [first.removeprefix("ledger/")]


@exhibit("full once, closed for ever")
def _(tmp_path: Path) -> tuple[bool, bool]:
    def chase(log: bytes) -> bool:
        """Length, record, length again; whatever differs is fatal."""
        while log:
            size = log[0]
            if log[size + 1 : size + 2] != log[:1]:
                return False
            log = log[size + 2 :]
        return True

    ours = True
    for room in range(0, 700, 23):
        disk = SimDisk(1)
        ledger = opened(disk)
        ledger.append([fact(0)], at())
        disk.capacity_bytes = disk.used_bytes() + room
        given = [0]
        with suppress(Full):
            for number in range(1, 9):
                ledger.append([fact(number)], at())
                given.append(number)
        disk.crash() if room % 2 else disk.kill()
        disk.capacity_bytes = None
        ours = ours and goes_on(disk, given)
    return chase(b"\x03one\x03" + b"\x05fi"), ours


@exhibit("a stale lock taken twice")
def _(tmp_path: Path) -> tuple[bool, bool]:
    def takers() -> Iterator[int]:
        """Two processes see that the lock is stale; each removes it and makes its own."""
        lock: str | None = "stale"
        seen_by = [lock, lock]
        for process, seen in enumerate(seen_by):
            if seen == "stale":
                lock = None  # by now it is the other's fresh one
            if lock is None:
                lock = f"of {process}"
                yield process

    disks = OsDisk(tmp_path), OsDisk(tmp_path)
    held = disks[0].lock("LOCK")
    os.utime(tmp_path / "LOCK", (0, 0))
    with pytest.raises(Locked):
        disks[1].lock("LOCK")
    held.release()
    other = disks[1].lock("LOCK")
    with pytest.raises(Locked):
        disks[0].lock("LOCK")
    other.release()
    return len(list(takers())) == 1, (tmp_path / "LOCK").exists()


@exhibit("a short write")
def _(tmp_path: Path) -> tuple[bool, bool]:
    disk = SimDisk(4, short_writes=True)
    file = disk.create("log")
    file.write(b"a record of some length")
    theirs = disk.read("log") == b"a record of some length"
    ours = SimDisk(4, short_writes=True)
    grown(ours, ((3, 2), (4,)))
    return theirs, len(numbers(ours)) == 9 and verify(ours).ok


@exhibit("the same inode again")
def _(tmp_path: Path) -> tuple[bool, bool]:
    registry = {"inode 7": 100}  # from a file that is gone; a new one got its inode, and is read from there
    theirs = b"a new file of one hundred and twenty-four bytes".ljust(124, b".")[registry["inode 7"] :]
    disk = SimDisk(1)
    tail, followed = Tail(disk), list[Record]()
    ledger = opened(disk, bounds=Bounds(segment_bytes=700, reserve_bytes=0))
    for number in range(20):
        ledger.append([fact(number)], at())
        if number % 3 == 0:
            followed += tail.poll()
        if number % 5 == 0:
            archive(disk, keep=0)
    followed += tail.poll()
    return theirs.startswith(b"a new"), followed == list(read(disk))


@exhibit("three leaves or four")
def _(tmp_path: Path) -> tuple[bool, bool]:
    def root(level: list[bytes]) -> bytes:
        while len(level) > 1:
            level += level[-1:] if len(level) % 2 else []
            level = [sha256(level[n] + level[n + 1]).digest() for n in range(0, len(level), 2)]
        return level[0]

    a, b, c = (sha256(entry).digest() for entry in (b"a", b"b", b"c"))
    leaves = [merkle.leaf(entry) for entry in (b"a", b"b", b"c")]
    ours = merkle.root(leaves) != merkle.root([*leaves, leaves[-1]])
    return root([a, b, c]) != root([a, b, c, c]), ours


@exhibit("a node that passes for a leaf")
def _(tmp_path: Path) -> tuple[bool, bool]:
    def root(entries: list[bytes]) -> bytes:
        level = [sha256(entry).digest() for entry in entries]
        while len(level) > 1:
            level = [sha256(b"".join(level[n : n + 2])).digest() for n in range(0, len(level), 2)]
        return level[0]

    node = sha256(b"a").digest() + sha256(b"b").digest()
    leaves = [merkle.leaf(b"a"), merkle.leaf(b"b")]
    forged = merkle.leaf(b"".join(leaves))
    return root([node]) != root([b"a", b"b"]), merkle.root([forged]) != merkle.root(leaves)


@exhibit("half a batch")
def _(tmp_path: Path) -> tuple[bool, bool]:
    theirs = ours = True
    for point in range(1, 40):
        log = Lines()
        for number in range(3):
            if number * 10 < point:
                log.append(number)
        theirs = theirs and len(log.read()) in (0, 3)
        disk = SimDisk(point)
        disk.cut_power(point)
        with suppress(PowerCut):
            opened(disk).append([fact(0), fact(1), fact(2)], at())
        disk.crash()
        opened(disk).close()
        ours = ours and len(numbers(disk)) in (0, 3)
    return theirs, ours


@exhibit("the same event twice")
def _(tmp_path: Path) -> tuple[bool, bool]:
    theirs: list[tuple[str, str]] = []
    for _ in range(2):
        theirs.append(("event-1", "paid"))  # only concurrent appends are compared
    disk = SimDisk(1)
    ledger = opened(disk)
    (first,) = ledger.append([fact(1)], at(), once=True)
    ledger.close()
    again = opened(disk)
    (second,) = again.append([fact(1)], at(5), once=True)
    again.close()
    return len(set(theirs)) == len(theirs), second == first and numbers(disk) == [1]


def test_the_models_are_not_only_broken() -> None:
    """Without the fault, the naive log is what everybody takes it for."""
    log = Lines()
    for number in range(5):
        log.append({"number": number})
    assert log.read() == [{"number": number} for number in range(5)]
    assert {replaced(seed, sync_file=True, sync_folder=True) for seed in range(20)} == {b"new"}
    with pytest.raises(Unsound):
        check(b"{}")
    assert segments_in(["x"]) == []
