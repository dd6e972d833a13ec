"""What must be true of a damaged ledger. What is expected follows from the rules, not from the code under test.

Opening either succeeds, with every acknowledged record there byte for byte and every byte that was cut kept, or it
refuses and names the file. Both verifiers see the damage, in that file, and agree. Nothing is undetected, nothing
acknowledged is lost.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from functools import lru_cache
from typing import Any, NamedTuple

from ledger import standalone
from ledger.errors import Corrupt
from ledger.ledger import Ledger
from ledger.reader import read
from ledger.record import Draft, Record
from ledger.recovery import survey
from ledger.segment import ARCHIVE
from ledger.verify import verify
from simulations.campaign.corpus import WRITER, now, plain
from simulations.campaign.damage import FLIPS, TAILS, Case
from simulations.campaign.memory import Memory, MemoryPath


class Broken(AssertionError):
    """The law was broken; the message names the case and how."""


class Expected(NamedTuple):
    refused: bool
    kept_seq: int
    """The last record that is still there (of a complete batch)."""
    kept_bytes: int
    """Where it ends, if the case is about a segment's plain file."""


def expected(case: Case) -> Expected:
    whole, path = case.whole, case.path
    everything = whole.records[-1].seq
    size = len(whole.files[path])
    name = path.rpartition("/")[2]
    if name == "EPOCH":
        return Expected(True, 0, 0)
    if name.endswith(ARCHIVE):
        # Where the plain file is still there too, it counts.
        return Expected(plain(path) not in whole.files, everything, 0)
    if path not in whole.lines:
        return Expected(False, everything, 0)
    kept, kept_bytes = 0, 0
    for line in whole.lines[path]:
        if line.end <= case.at and not line.more:
            kept, kept_bytes = line.seq, line.end
    if path in whole.sealed or path != whole.last:
        # More behind the end of a finished segment was written by a process that had been superseded.
        return Expected(case.at < size, everything if case.at >= size else kept, kept_bytes)
    first = whole.lines[path][0].seq
    proven = max(whole.proven_seq, first)
    later = {line.batch for line in whole.lines[path] if line.start > case.at and case.way in FLIPS}
    if case.way == TAILS[-1]:
        later.add(_batch_of(case.data))
    refused = kept < proven or max(later, default=0) > kept + 1
    return Expected(refused, kept, kept_bytes)


def _batch_of(data: bytes) -> int:
    """The seq of the first record of the batch of the record of another chain at the end of `data`."""
    found = re.match(rb'{"seq":(\d+),(?:"n":(\d+),)?', data[data.rindex(b'{"seq":') :])
    assert found is not None
    return int(found[1]) - int(found[2] or 1) + 1


def uphold(case: Case) -> None:
    """Broken unless the law holds."""
    if case.data in case.whole.foreign:
        return  # another ledger's segment, whole and sound: only that it is not this one's can be said, not where
    want = expected(case)
    files = case.whole.files | {case.path: case.data}
    _verifiers(case, want, files)
    try:
        survey(Memory(files), "ledger")
    except Corrupt as corrupt:
        _refused(case, want, corrupt, files)
    else:
        _require(not want.refused, case, "it is accepted, and must not be")
        if case.path in case.whole.lines or case.at % 5 == 0:
            _opened(case, want, files)
        else:
            kept = list(case.whole.records[: want.kept_seq])
            _require(list(read(Memory(files))) == kept, case, "the reader shows other records")


def _require(holds: bool, case: Case, why: object) -> None:
    if not holds:
        raise Broken(f"{case}: {why}")


def _refused(case: Case, want: Expected, corrupt: Corrupt, files: dict[str, bytes]) -> None:
    _require(want.refused, case, f"it is refused, and need not be: {corrupt}")
    _require(corrupt.file == case.path, case, f"the wrong file is named: {corrupt}")
    _require(corrupt.offset <= case.at, case, f"the offset is behind the damage: {corrupt}")
    if case.path in case.whole.lines:
        _require(corrupt.offset in (0, *_starts(case)), case, f"no line begins there: {corrupt}")
        _require(corrupt.last_good <= want.kept_seq or not want.kept_seq, case, f"too much is called good: {corrupt}")
    shown: list[Record] = []
    with contextlib.suppress(Corrupt):
        shown += read(Memory(files))
    _require(shown == list(case.whole.records[: len(shown)]), case, "the reader shows what was never written")


def _starts(case: Case) -> set[int]:
    return {line.start for line in case.whole.lines[case.path]} | {line.end for line in case.whole.lines[case.path]}


def _opened(case: Case, want: Expected, files: dict[str, bytes]) -> None:
    whole, disk = case.whole, Memory(dict(files))
    later = now(1_000)
    ledger = Ledger.open(disk, WRITER, later)
    added = ledger.append([Draft("test.over", "test", {})], later)
    ledger.close()
    kept = list(whole.records[: want.kept_seq])
    found = list(read(disk))
    _require(found[: len(kept)] == kept, case, "a record is lost or changed")
    _require(found[-1] == added[-1], case, "what is appended now is not there")
    for record in found[len(kept) :]:
        _require(record.epoch == ledger.epoch, case, f"record {record.seq} comes from nowhere")
    if case.path in whole.lines:
        _require(disk.files[case.path] == case.data[: want.kept_bytes], case, "the segment is not cut where it must be")
    if case.path.startswith("ledger/quarantine/") or case.path.endswith(ARCHIVE):
        return  # what lies there is nobody's to repair but a person's
    cut = case.data if case.path not in whole.lines else case.data[want.kept_bytes :]
    kept_aside = [data for path, data in disk.files.items() if path.startswith("ledger/quarantine/")]
    if cut and case.path in whole.lines:
        _require(cut in kept_aside, case, "the bytes that were cut are gone")
    _require(verify(disk).ok, case, f"it does not verify once it was opened: {verify(disk).damages}")


def _verifiers(case: Case, want: Expected, files: dict[str, bytes]) -> None:
    found = verify(Memory(files))
    status, places = alone(files)
    first = found.damages[0] if found.damages else None
    _require(found.ok == (status == 0), case, f"the verifiers disagree: {found}, {places}")
    if first is not None:
        _require(first.file == case.path, case, f"the verifier names another place: {first}")
        named = {f"ledger/{file}" for file, _ in places}
        if case.path == case.whole.last and case.way in TAILS:
            # That whole batches are gone from the end is known from a watermark alone, and the page of plain Python
            # names its witness.
            named |= {case.path} if named & {"ledger/HEAD", "ledger/EPOCH"} else set()
        _require(case.path in named, case, f"the stand-alone verifier names other files: {places}")
    else:
        _require(not want.refused, case, "the verifier sees nothing")
        _require(case.way not in FLIPS or _is_unfinished(case), case, "a changed byte is not seen")
        _require(found.last.seq == want.kept_seq, case, f"the verifier's last record is {found.last.seq}")
    if first is not None and case.way in FLIPS:
        offset = case.data.rfind(b"\n", 0, case.at) + 1 if case.path.endswith(".jsonl") else 0
        _require(first.offset in (offset, _line_start(case)), case, f"the verifier names another byte: {first}")
        at = {offset for file, offset in places if f"ledger/{file}" == case.path}
        _require(bool(at & {offset, _line_start(case)}), case, f"the stand-alone one names other bytes: {places}")


def _line_start(case: Case) -> int:
    """Where the line that the damage hits began before it did."""
    return case.whole.files[case.path].rfind(b"\n", 0, case.at) + 1


def _is_unfinished(case: Case) -> bool:
    """Whether the damage hits a batch that had not been finished."""
    lines = case.whole.lines.get(case.path, ())
    return case.path == case.whole.last and case.at >= max((li.end for li in lines if not li.more), default=0)


_seals: Any = sys.modules["standalone_seals"]
"""The stand-alone verifier finds it beside itself, outside of the package."""
_unpack = lru_cache(maxsize=64)(_seals.unpack)


def alone(files: dict[str, bytes]) -> tuple[int, list[tuple[str, int]]]:
    """The stand-alone verifier's exit status, and the places it names."""
    standalone.damages.clear()
    home: Any = MemoryPath(files)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        kept, _seals.unpack = _seals.unpack, _unpack
        try:
            status = standalone.main(home)
        finally:
            _seals.unpack = kept
    places = [line.split(": byte ") for line in standalone.damages]
    return status, [(file, int(rest.split(":")[0])) for file, rest in places]
