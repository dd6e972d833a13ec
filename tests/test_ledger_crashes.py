"""Crash points: each state that a crash can leave at each operation of the ledger's work opens, and holds what was
answered; also where the opening itself is cut short."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from story import Story

from ledger import repair
from ledger.archive import archive
from ledger.errors import Refused
from ledger.ledger import Bounds, Ledger
from ledger.reader import read
from ledger.record import Draft, Record
from ledger.segment import CUT
from ledger.verify import verify
from simulations.campaign.corpus import WRITER, now
from simulations.campaign.crashes import Files, WatchedDisk, crashes
from simulations.campaign.memory import Memory
from simulations.disk import PowerCut
from state import snapshot
from state.graph import Graph
from state.projector import fold

SMALL = Bounds(segment_bytes=1_200, reserve_bytes=200)
LARGE = Bounds(reserve_bytes=200)


class Work:
    """Something done to a ledger; `answered` is what it answered, in order."""

    def __init__(self, bounds: Bounds, *sessions: tuple[int, ...], then: str = "") -> None:
        self.bounds, self.sessions, self.then = bounds, sessions, then
        self.answered: list[Record] = []

    def __call__(self, disk: WatchedDisk) -> None:
        for number, sizes in enumerate(self.sessions):
            ledger = Ledger.open(disk, WRITER, now(number), bounds=self.bounds)
            for size in sizes:
                drafts = [Draft("run.finished", f"run/{i}", {"text": "x" * 120 * (1 + i % 5)}) for i in range(size)]
                self.answered += ledger.append(drafts, now(number))
                disk.acknowledged = len(self.answered)
                if size == 1:
                    ledger.note_head()
            if self.then == "archive" and number:
                archive(disk, keep=1)
            ledger.close()


def settled(work: Callable[[WatchedDisk], None], files: Files | None = None) -> Files:
    """What is on the disk when the work is done and everything is synced; nothing is noted on the way."""
    disk = WatchedDisk(files)
    disk.watching = False
    work(disk)
    return dict.fromkeys(["ledger", "ledger/quarantine"]) | dict(disk.files())


def opens(files: Files, answered: list[Record], *, sound: bool = True) -> Memory:
    """The law: it opens, nothing answered is lost, no batch is there in part, and what is there verifies and stays."""
    disk = Memory({path: data for path, data in files.items() if data is not None})
    ledger = Ledger.open(disk, WRITER, now(90), bounds=LARGE)
    ledger.append([Draft("test.over", "test", {})], now(90))
    found = list(read(disk))
    facts = [record for record in found if record.type == "run.finished"]
    assert [record for record in facts if record in answered] == answered
    beyond = facts[len(answered) :]
    assert len({record.batch for record in beyond}) <= 1, "more than the one batch that was being written"
    assert not beyond or not beyond[-1].more
    ledger.close()
    if sound:
        assert verify(disk).ok, verify(disk).damages
    return disk


WORKS = {
    "append and commit": Work(LARGE, (1, 3, 1, 2, 1, 6), (4, 1)),
    "recover an unclean end": Work(LARGE, (1, 2), (2, 1), (3,)),
    "rotate and seal": Work(SMALL, (1, 2, 2, 1, 2), (2, 2)),
    "archive": Work(SMALL, (1, 2, 2), (2, 2, 2), then="archive"),
}
LEAST = {
    ("append and commit", 1): 1_050,
    ("recover an unclean end", 1): 470,
    ("rotate and seal", 1): 1_350,
    ("archive", 1): 830,
    ("append and commit", 2): 4_300,
    ("recover an unclean end", 2): 2_950,
    ("rotate and seal", 2): 4_300,
    ("archive", 2): 5_200,
    ("append and commit", 3): 950,
    ("rotate and seal", 3): 1_100,
    ("cut", 1): 150,
    ("restore", 1): 45,
    ("snapshot", 1): 100,
}
"""How many different states there are to look at, so that none gets lost unseen."""


def test_there_are_twenty_thousand_states() -> None:
    assert sum(LEAST.values()) >= 20_000


@pytest.mark.parametrize("name", WORKS)
def test_each_state_that_a_crash_leaves_opens_with_all_that_was_answered(name: str) -> None:
    work = WORKS[name]
    work.answered.clear()
    disk = crashes(work, states_max=200)
    count = 0
    for moment in disk.moments:
        for state in moment.states:
            opens(state, work.answered[: moment.acknowledged])
            count += 1
    assert count >= LEAST[name, 1]


@pytest.mark.parametrize("name", WORKS)
def test_each_state_that_a_crash_in_the_middle_of_recovery_leaves_opens_as_well(name: str) -> None:
    work = WORKS[name]
    work.answered.clear()
    first = crashes(work, states_max=6)
    count, seen = 0, set[int]()
    chosen = [(moment, state) for moment in first.moments for state in moment.states]
    for moment, state in chosen[:: max(1, len(chosen) // 120)]:
        answered = work.answered[: moment.acknowledged]
        for again in crashes(recover, state, states_max=10).moments:
            for left in again.states:
                key = hash((len(answered), frozenset(left.items())))
                if key not in seen:
                    seen.add(key)
                    opens(left, answered)
                    count += 1
    assert count >= LEAST[name, 2]


@pytest.mark.parametrize("name", ["append and commit", "rotate and seal"])
def test_a_process_that_is_killed_and_the_power_that_goes_while_its_successor_opens_lose_nothing(name: str) -> None:
    """What the dead process had not synced is there for its successor to see, and gone after the power cut."""
    work = WORKS[name]
    count, seen = 0, set[int]()
    whole = WatchedDisk()
    whole.watching = False
    work(whole)
    for last in range(2, 2 * whole.operations + 2):
        work.answered.clear()
        disk = WatchedDisk(states_max=4)
        disk.watching = False
        disk.cut_power(last // 2, after=bool(last % 2))
        with suppress(PowerCut):
            work(disk)
        disk.kill()
        disk.watching = True
        recover(disk)
        for left in (left for moment in disk.moments for left in moment.states):
            key = hash((len(work.answered), frozenset(left.items())))
            if key not in seen:
                seen.add(key)
                opens(left, work.answered)
                count += 1
    assert count >= LEAST[name, 3]


def recover(disk: WatchedDisk) -> None:
    Ledger.open(disk, WRITER, now(50), bounds=LARGE)


def spoiled() -> tuple[Files, list[Record], int]:
    """A ledger with damage in its third segment, its records, and the last one before the damage."""
    work = Work(SMALL, (1, 2, 2), (2, 2, 2))
    files = settled(work)
    records = list(read(Memory({path: data for path, data in files.items() if data is not None})))
    path = sorted(path for path in files if path.endswith(".jsonl") and path[7] == "0")[2]
    data = files[path]
    assert data is not None
    at = data.index(b"\n") + 40
    last_good = int(path[-22:-6])
    return files | {path: data[:at] + b"?" + data[at + 1 :]}, records, last_good


def test_a_crash_anywhere_in_a_repair_leaves_what_can_be_repaired_again() -> None:
    files, records, last_good = spoiled()

    def work(disk: WatchedDisk) -> None:
        data = repair.cut(disk, repair.loss(disk, last_good + 1), now(60))
        kept = frozenset(cut["quarantine"] for cut in data["cuts"])
        ledger = Ledger.open(disk, WRITER, now(61), to_be_recorded=kept)
        ledger.append([Draft(CUT, "ledger", data)], now(61))
        ledger.close()

    count = 0
    for moment in crashes(work, files, states_max=200).moments:
        for state in moment.states:
            disk = Memory({path: data for path, data in state.items() if data is not None})
            if not verify(disk).ok:
                repaired(disk, last_good)
            found = list(read(disk))
            assert found[:last_good] == records[:last_good], moment.operation
            count += 1
    assert count >= LEAST["cut", 1]


def repaired(disk: Memory, last_good: int) -> None:
    """Whoever finds the repair cut short does it again, as the refusal says."""
    with suppress(Refused):  # then the cut itself was done, and only its record is missing
        repair.cut(disk, repair.loss(disk, last_good + 1), now(70))
    Ledger.open(disk, WRITER, now(71)).close()


def test_a_crash_anywhere_in_a_restore_leaves_what_can_be_restored_again() -> None:
    whole = settled(Work(SMALL, (1, 2, 2), (2, 2, 2)))
    files, records, _ = spoiled()
    backup = Memory({path: data for path, data in whole.items() if data is not None})

    def work(disk: WatchedDisk) -> None:
        repair.restore(disk, backup, now(60), at="ledger")

    count = 0
    for moment in crashes(work, files, states_max=200).moments:
        for state in moment.states:
            disk = Memory({path: data for path, data in state.items() if data is not None})
            repair.restore(disk, backup, now(61), at="ledger")
            assert list(read(disk)) == records
            opens(dict(disk.files), [record for record in records if record.type == "run.finished"])
            count += 1
    assert count >= LEAST["restore", 1]


def test_a_crash_anywhere_while_a_snapshot_is_written_leaves_one_that_fits_or_none() -> None:
    story = Story()
    files: Files = dict(story.disk.files())
    records = list(read(story.disk))
    heads = [records[index].seq for index in (0, 1, len(records) - 1)]

    def work(disk: WatchedDisk) -> None:
        for seq in heads:
            graph = fold(Graph(), records[:seq])
            snapshot.write(disk, graph, snapshot.Head(seq, records[seq - 1].hash), "code")

    expected = fold(Graph(), records)
    count = 0
    for moment in crashes(work, dict.fromkeys(["ledger"]) | files, states_max=200).moments:
        for state in moment.states:
            disk = Memory({path: data for path, data in state.items() if data is not None})
            restored = snapshot.restore(disk, "code")
            assert restored.graph == expected
            assert restored.snapshot_seq in (0, *heads)
            count += 1
    assert count >= LEAST["snapshot", 1]
