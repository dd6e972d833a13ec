"""The index beside sealed segments: a search by it finds what reading everything finds, and reads less."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import pytest
from ledger_home import WRITER, at

from ledger import index
from ledger.errors import Corrupt
from ledger.index import Wanted, last_before, search
from ledger.instant import ms_of
from ledger.ledger import Bounds, Ledger
from ledger.manifest import seals_in
from ledger.reader import read
from ledger.record import Draft, Record
from ledger.segment import segments_in
from simulations.disk import SimDisk

TEXT = "x" * 40
TYPES = ("run.started", "run.finished", "note.added", "plan.decided")


class WatchedDisk(SimDisk):
    def __init__(self) -> None:
        super().__init__(1)
        self.files_read: set[str] = set()

    def read(self, path: str, offset: int = 0, limit: int = -1) -> bytes:
        self.files_read.add(path)
        return super().read(path, offset, limit)


def about(record: Record) -> Iterator[str]:
    if "other" in record.data:
        yield record.data["other"]


def long_ledger(count: int = 1500) -> WatchedDisk:
    """Several sealed segments and one that is open; the wall clock jumps back in the middle."""
    disk, chance = WatchedDisk(), Random(5)
    ledger = Ledger.open(disk, WRITER, at(), bounds=Bounds(segment_bytes=64_000))
    number = 0
    while number < count:
        size = chance.randint(1, 5)
        seconds = number if number < count // 2 else number - 300
        drafts = [
            Draft(
                chance.choice(TYPES), f"run/{chance.randint(0, 60)}", {"other": f"job/{number + i}", "text": "x" * 40}
            )
            for i in range(size)
        ]
        ledger.append(drafts, at(seconds))
        number += size
    ledger.close()
    return disk


def by_reading(disk: SimDisk, wanted: Callable[[Record], bool]) -> list[int]:
    return [record.seq for record in read(disk) if wanted(record)]


def by_index(disk: SimDisk, wanted: Wanted, again: Callable[[Record], bool]) -> list[int]:
    return [record.seq for record, _ in search(disk, wanted, about) if again(record)]


def index_files(disk: SimDisk) -> list[str]:
    return [name for name in disk.list("ledger") if name.endswith(".idx")]


def instant(seconds: int) -> int:
    return at(seconds).wall_ms


@pytest.mark.parametrize(
    ("wanted", "again"),
    [
        (Wanted(), lambda r: True),
        (Wanted(type=lambda t: t == "note.added"), lambda r: r.type == "note.added"),
        (Wanted(subject=lambda s: s == "run/7"), lambda r: r.subject == "run/7"),
        (Wanted(subject=lambda s: s == "job/700"), lambda r: r.data.get("other") == "job/700"),
        (Wanted(subject=lambda s: s.startswith("run/1")), lambda r: r.subject.startswith("run/1")),
        (Wanted(after=333, until=900), lambda r: 333 < r.seq <= 900),
        (Wanted(after=10_000), lambda r: r.seq > 10_000),
        (Wanted(since_ms=instant(600), until_ms=instant(700)),
         lambda r: instant(600) <= ms_of(r.ts) <= instant(700)),
        (Wanted(type=lambda t: t == "run.started", subject=lambda s: s == "run/3", after=100),
         lambda r: r.type == "run.started" and r.subject == "run/3" and r.seq > 100),
    ],
)  # fmt: skip
def test_a_search_finds_what_reading_everything_finds(wanted: Wanted, again: Callable[[Record], bool]) -> None:
    disk = long_ledger()
    assert len(segments_in(disk.list("ledger"))) > 4
    expected = by_reading(disk, again)
    assert by_index(disk, wanted, again) == expected  # making the indexes
    assert by_index(disk, wanted, again) == expected  # using them


def test_a_search_gives_the_very_bytes_of_a_sealed_record() -> None:
    disk = long_ledger()
    whole = b"".join(data for path, data in disk.files().items() if path.endswith(".jsonl") and "MANIFEST" not in path)
    found = list(search(disk, Wanted(type=lambda t: t == "note.added"), about))
    assert all(line in whole for _, line in found)
    assert any(line for _, line in found)


def test_a_search_by_a_made_index_reads_only_the_segments_that_have_something() -> None:
    disk = long_ledger()
    wanted = Wanted(subject=lambda s: s == "job/20")
    list(search(disk, wanted, about))
    disk.files_read.clear()
    assert [r.data["other"] for r, _ in search(disk, wanted, about) if r.data.get("other") == "job/20"] == ["job/20"]
    sealed = {f"ledger/{seal.segment.name}" for seal in seals_in(disk, "ledger").values()}
    assert len(sealed & disk.files_read) == 1


def test_an_index_that_is_gone_damaged_or_of_other_bytes_is_made_again() -> None:
    disk = long_ledger()
    wanted, again = Wanted(type=lambda t: t == "note.added"), lambda r: r.type == "note.added"
    expected = by_index(disk, wanted, again)
    first, second, third, *_ = index_files(disk)
    made = {name: disk.read(f"ledger/{name}") for name in index_files(disk)}
    disk.remove(f"ledger/{first}")
    disk.corrupt(f"ledger/{second}", made[second].replace(b'"note.added":[0', b'"note.added":[1', 1))
    disk.corrupt(f"ledger/{third}", made[first])
    assert by_index(disk, wanted, again) == expected
    assert {name: disk.read(f"ledger/{name}") for name in index_files(disk)} == made


@pytest.mark.parametrize("place", range(0, 400, 23))
def test_a_changed_byte_of_an_index_hides_nothing(place: int) -> None:
    disk = long_ledger(400)
    wanted, again = Wanted(type=lambda t: t == "note.added"), lambda r: r.type == "note.added"
    expected = by_index(disk, wanted, again)
    for name in index_files(disk):
        data = bytearray(disk.read(f"ledger/{name}"))
        data[place * len(data) // 400] ^= 1
        disk.corrupt(f"ledger/{name}", bytes(data))
    assert by_index(disk, wanted, again) == expected


def test_a_changed_byte_of_the_segment_itself_is_never_indexed() -> None:
    disk = long_ledger()
    segment = segments_in(disk.list("ledger"))[0]
    path = f"ledger/{segment.name}"
    disk.corrupt(path, disk.read(path).replace(b"xxxx", b"xxxy", 1))
    with pytest.raises(Corrupt) as found:
        list(search(disk, Wanted(type=lambda t: t == "note.added"), about))
    assert found.value.file == path
    assert index.path_of(segment).rpartition("/")[2] not in index_files(disk)


def test_a_home_that_cannot_be_written_is_searched_all_the_same() -> None:
    disk = long_ledger()
    disk.fail(disk.operations + 1, 30, sticky=True)  # EROFS
    again = lambda r: r.type == "note.added"  # noqa: E731
    assert by_index(disk, Wanted(type=lambda t: t == "note.added"), again) == by_reading(disk, again)
    assert index_files(disk) == []


@pytest.mark.parametrize("seconds", [-5, 0, 1, 320, 640, 700, 749, 760, 900, 1190, 5000])
def test_the_last_record_before_an_instant_is_found_though_the_clock_jumped(seconds: int) -> None:
    disk = long_ledger()
    expected = max((r.seq for r in read(disk) if ms_of(r.ts) <= instant(seconds)), default=0)
    assert last_before(disk, instant(seconds), about) == expected


def test_only_sealed_segments_have_an_index() -> None:
    disk = long_ledger()
    list(search(disk, Wanted(), about))
    assert len(index_files(disk)) == len(seals_in(disk, "ledger")) < len(segments_in(disk.list("ledger")))
