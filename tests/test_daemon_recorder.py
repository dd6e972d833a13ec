"""The ledger's writer as an actor: many hand over, one writes, and everybody hears how it went."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as all_done
from contextlib import suppress
from pathlib import Path

import pytest
from ledger_home import WRITER, at, fact, opened

from daemon.recorder import Busy, Counts, Latencies, Mode, Recorder
from daemon.system import OsDisk, SystemClock
from ledger.errors import Conflict, Full, Poisoned, Refused
from ledger.instant import Now
from ledger.ledger import Bounds, Ledger
from ledger.reader import read
from ledger.record import Draft, Record
from ledger.verify import verify
from simulations.disk import PowerCut, SimDisk

WITHIN_S = 60
Answer = Future[list[Record]]


class HeldClock:
    """The writer asks for the time when it has taken a batch and before it writes it: here it can be held."""

    boot_id = "boot-1"

    def __init__(self) -> None:
        self.go, self.asked = threading.Event(), threading.Semaphore(0)
        self.go.set()

    def now(self) -> Now:
        self.asked.release()
        assert self.go.wait(WITHIN_S)
        return at()

    def hold(self, recorder: Recorder, draft: Draft) -> Answer:
        """One request, taken and not yet written."""
        while self.asked.acquire(blocking=False):
            pass
        self.go.clear()
        answer = recorder.append([draft])
        assert self.asked.acquire(timeout=WITHIN_S)
        return answer


@pytest.fixture
def clock() -> Iterator[HeldClock]:
    held = HeldClock()
    yield held
    held.go.set()


def free(number: int) -> Draft:
    return Draft("x-sample", f"node/{number}", {"number": number})


def numbers(disk: SimDisk | OsDisk) -> list[int]:
    return [record.data["number"] for record in read(disk) if "number" in record.data]


def records_of(answers: list[Answer]) -> list[Record]:
    return [record for answer in answers for record in answer.result(WITHIN_S)]


def test_the_answer_is_what_a_reader_finds_on_the_disk(clock: HeldClock) -> None:
    disk = SimDisk(1)
    with Recorder(opened(disk), clock) as recorder:
        given = recorder.append([fact(0), fact(1)]).result(WITHIN_S)
        assert given == list(read(disk, after=1))
        assert recorder.durable_seq == 3
        assert recorder.append([]).result(WITHIN_S) == []


def test_who_asks_while_a_batch_is_written_shares_the_next_one(clock: HeldClock) -> None:
    disk = SimDisk(1)
    with Recorder(opened(disk), clock) as recorder:
        answers = [clock.hold(recorder, fact(0))]
        answers += [recorder.append([fact(number)]) for number in range(1, 11)]
        assert not any(answer.done() for answer in answers)
        clock.go.set()
        records = records_of(answers)
        assert [record.data["number"] for record in records] == list(range(11))
        assert [record.batch for record in records] == [2, *[3] * 10]
        assert recorder.counts == Counts(taken=11, answered=11, commits=2, records=11, most_waiting=10)
        assert recorder.latencies.total == 11


def test_one_that_is_refused_leaves_nothing_and_takes_nobody_with_it(clock: HeldClock) -> None:
    disk = SimDisk(1)
    with Recorder(opened(disk), clock) as recorder:
        clock.hold(recorder, fact(0))
        before, bad, after = (recorder.append(it) for it in ([fact(1)], [fact(2), Draft("", "b", {})], [fact(3)]))
        clock.go.set()
        with pytest.raises(Refused):
            bad.result(WITHIN_S)
        records_of([before, after])
    assert numbers(disk) == [0, 1, 3]
    assert recorder.counts.failed == 1


def test_conditions_hold_between_those_who_ask_at_the_same_time(clock: HeldClock) -> None:
    disk = SimDisk(1)
    with Recorder(opened(disk), clock) as recorder:
        clock.hold(recorder, fact(0))
        twice = [recorder.append([fact(1)], once=True) for _ in range(2)]
        plain = recorder.append([fact(1)])
        first, second = (recorder.append([fact(2)], expect={"run/2": 0}) for _ in range(2))
        clock.go.set()
        assert twice[0].result(WITHIN_S) == twice[1].result(WITHIN_S)
        first.result(WITHIN_S)
        with pytest.raises(Conflict):
            second.result(WITHIN_S)
        plain.result(WITHIN_S)
    assert numbers(disk) == [0, 1, 1, 2]


def test_a_full_disk_refuses_the_batch_and_the_next_one_goes_on_when_there_is_room(clock: HeldClock) -> None:
    disk = SimDisk(1)
    with Recorder(opened(disk, bounds=Bounds(reserve_bytes=0)), clock) as recorder:
        clock.hold(recorder, fact(0)).cancel()
        shared = [recorder.append([fact(number)]) for number in (1, 2)]
        disk.capacity_bytes = disk.used_bytes()
        clock.go.set()
        for answer in shared:
            with pytest.raises(Full):
                answer.result(WITHIN_S)
        with pytest.raises(Full):
            recorder.append([fact(3)]).result(WITHIN_S)
        disk.capacity_bytes = None
        assert recorder.append([fact(4)]).result(WITHIN_S)[0].data["number"] == 4
    assert numbers(disk) == [4]
    assert recorder.counts.full == 3


@pytest.mark.parametrize("operation", [1, 2, 3])
def test_a_failing_disk_fails_all_who_wait_and_all_who_come(operation: int, clock: HeldClock) -> None:
    disk = SimDisk(1)
    with Recorder(opened(disk), clock, bound=2) as recorder:
        answers = [clock.hold(recorder, fact(0)), *(recorder.append([fact(number)]) for number in (1, 2))]
        heard: list[str] = []

        def ask() -> None:
            try:
                recorder.append([fact(3)]).result(WITHIN_S)
            except Poisoned as poisoned:
                heard.append(str(poisoned))

        late = threading.Thread(target=ask)
        late.start()
        disk.fail(disk.operations + operation, errno.EIO)
        clock.go.set()
        for answer in answers:
            with pytest.raises(Poisoned, match="failed"):
                answer.result(WITHIN_S)
        late.join(WITHIN_S)
        assert len(heard) == 1
        with pytest.raises(Poisoned):
            recorder.append([fact(4)])


def test_who_waits_for_a_place_hears_of_a_failing_disk(clock: HeldClock) -> None:
    disk = SimDisk(1)
    recorder = Recorder(opened(disk), clock, bound=1)
    held, waits = clock.hold(recorder, fact(0)), recorder.append([fact(1)])
    disk.cut_power(disk.operations + 2)
    clock.go.set()
    for answer in (held, waits):
        with pytest.raises(Poisoned, match="PowerCut"):
            answer.result(WITHIN_S)
    with pytest.raises(Poisoned):
        recorder.append([fact(2)])
    recorder.close()


def test_nothing_that_was_answered_is_lost_in_a_power_cut(clock: HeldClock) -> None:
    for seed in range(60):
        disk = SimDisk(seed)
        recorder = Recorder(opened(disk), clock)
        answers = [clock.hold(recorder, fact(0))]
        disk.cut_power(disk.operations + 1 + seed % 12, after=seed % 2 == 0)
        answers += [recorder.append([fact(2 * number), fact(2 * number + 1)]) for number in range(1, 4)]
        clock.go.set()
        with suppress(Poisoned, PowerCut):
            for number in range(4, 8):
                answers.append(recorder.append([fact(2 * number)]))
                answers[-1].result(WITHIN_S)
        all_done(answers, WITHIN_S)
        recorder.close()
        kept = [record for answer in answers if not answer.exception() for record in answer.result()]
        disk.crash()
        opened(disk).close()
        found = list(read(disk))
        assert [record for record in kept if record not in found] == [], seed


def test_what_waits_can_be_cancelled_and_what_is_written_cannot(clock: HeldClock) -> None:
    disk = SimDisk(1)
    with Recorder(opened(disk), clock) as recorder:
        held, waits = clock.hold(recorder, fact(0)), recorder.append([fact(1)])
        assert (held.cancel(), waits.cancel()) == (False, True)
        clock.go.set()
        held.result(WITHIN_S)
        with pytest.raises(CancelledError):
            waits.result(WITHIN_S)
    assert numbers(disk) == [0]
    assert recorder.counts.cancelled == 1


def test_when_too_many_wait_the_next_one_waits_or_is_told(clock: HeldClock) -> None:
    disk = SimDisk(1)
    with Recorder(opened(disk), clock, bound=2) as recorder:
        clock.hold(recorder, fact(0))
        for number in (1, 2):
            recorder.append([fact(number)])
        with pytest.raises(Busy, match="2 requests wait"):
            recorder.append([fact(3)], within_s=0)
        patient = threading.Thread(target=lambda: recorder.append([fact(4)]).result(WITHIN_S))
        patient.start()
        clock.go.set()
        patient.join(WITHIN_S)
        assert recorder.counts.busy == 1
        assert recorder.counts.most_waiting == 2
    assert numbers(disk) == [0, 1, 2, 4]


def test_who_asks_from_an_answer_does_not_wait_for_itself(clock: HeldClock) -> None:
    disk = SimDisk(1)
    said: list[type] = []
    told = threading.Event()

    def again(_: Answer) -> None:
        for number in (1, 2):
            try:
                said.append(type(recorder.append([fact(number)])))
            except Busy:
                said.append(Busy)
        told.set()

    with Recorder(opened(disk), clock, bound=1) as recorder:
        clock.hold(recorder, fact(0)).add_done_callback(again)
        clock.go.set()
        assert told.wait(WITHIN_S)
    assert said == [Future, Busy]
    assert numbers(disk) == [0, 1]


def test_a_group_waits_for_company_until_it_is_as_large_as_it_may_be(clock: HeldClock) -> None:
    disk = SimDisk(1)
    with Recorder(opened(disk), clock, mode="group:3600000", bound=3) as recorder:
        records = records_of([recorder.append([fact(number)]) for number in range(3)])
        assert {record.batch for record in records} == {2}
        last = recorder.append([fact(3)])
        assert not last.done()
    assert last.result(0)[0].batch == 5


def test_a_group_waits_no_longer_than_it_says(clock: HeldClock) -> None:
    with Recorder(opened(SimDisk(1)), clock, mode="group:1") as recorder:
        assert recorder.append([fact(0)]).result(WITHIN_S)[0].batch == 2


def test_relaxed_answers_before_it_is_durable_and_keeps_it_when_it_closes(clock: HeldClock) -> None:
    disk = SimDisk(1)
    with Recorder(opened(disk), clock, mode="relaxed:3600000") as recorder:
        given = recorder.append([free(0), free(1)]).result(WITHIN_S)
        assert [(record.seq, record.hash) for record in given] == [(2, ""), (3, "")]
        assert (recorder.durable_seq, numbers(disk)) == (1, [])
        with pytest.raises(Refused):
            recorder.append([free(2), Draft("x-", "", {})]).result(WITHIN_S)
    assert numbers(disk) == [0, 1]
    assert recorder.counts.records == 2


def test_relaxed_is_durable_soon_and_at_once_when_there_is_much(clock: HeldClock) -> None:
    disk = SimDisk(1)
    recorder = Recorder(opened(disk), clock, mode="relaxed:3600000", bound=2)
    answers = [recorder.append([free(number)]) for number in range(2)]
    all_done(answers, WITHIN_S)
    recorder.append([free(2)]).result(WITHIN_S)  # the writer is behind the commit of the two by now
    assert recorder.durable_seq == 3
    recorder.close()
    with Recorder(opened(SimDisk(1)), clock, mode="relaxed:1") as soon:
        soon.append([free(0)]).result(WITHIN_S)
        while soon.durable_seq < 2:
            pass


@pytest.mark.parametrize("type_", ["plan.decided", "run.finished", "run.stopping", "note.added"])
def test_relaxed_refuses_an_event_that_something_waits_for(type_: str, clock: HeldClock) -> None:
    with Recorder(opened(SimDisk(1)), clock, mode="relaxed:5") as recorder:
        with pytest.raises(Refused, match="may gate an effect"):
            recorder.append([free(0), Draft(type_, "b", {})])
        with pytest.raises(Refused, match="condition"):
            recorder.append([free(0)], once=True)
    assert recorder.counts.taken == 0


def test_relaxed_counts_what_was_answered_and_had_no_room(clock: HeldClock) -> None:
    disk = SimDisk(1)
    with Recorder(opened(disk, bounds=Bounds(reserve_bytes=0)), clock, mode="relaxed:3600000") as recorder:
        recorder.append([free(0)]).result(WITHIN_S)
        disk.capacity_bytes = disk.used_bytes()
    assert (recorder.counts.full, recorder.counts.dropped, recorder.counts.records) == (1, 1, 0)


def test_a_closed_recorder_has_written_what_it_took_and_takes_no_more(clock: HeldClock) -> None:
    disk = SimDisk(1)
    recorder = Recorder(opened(disk), clock)
    answers = [recorder.append([fact(number)]) for number in range(20)]
    recorder.close()
    assert all(answer.done() for answer in answers)
    assert numbers(disk) == list(range(20))
    with pytest.raises(ValueError, match="closed"):
        recorder.append([fact(20)])


def test_sixty_four_producers_on_a_real_disk_share_syncs_and_keep_their_order(tmp_path: Path) -> None:
    disk, each = OsDisk(tmp_path), 20
    ledger = Ledger.open(disk, WRITER, SystemClock().now())
    with Recorder(ledger, SystemClock()) as recorder:

        def produce(who: int) -> None:
            for number in range(each):
                record = recorder.append([fact(who * each + number)]).result(WITHIN_S)[0]
                assert record.seq <= recorder.durable_seq

        producers = [threading.Thread(target=produce, args=(who,)) for who in range(64)]
        for producer in producers:
            producer.start()
        for producer in producers:
            producer.join(WITHIN_S)
        counts = recorder.counts
    ledger.close()
    found = numbers(disk)
    assert sorted(found) == list(range(64 * each))
    for who in range(64):
        mine = [number for number in found if number // each == who]
        assert mine == sorted(mine)
    assert (counts.answered, counts.records) == (64 * each, 64 * each)
    assert counts.commits < counts.answered / 2
    assert verify(disk).ok


def test_latencies_are_told_to_within_a_fifth() -> None:
    latencies = Latencies()
    assert latencies.percentile_us(50) == 0
    for took_us in [*[100] * 98, 5000, 90_000_000]:
        latencies.note(took_us * 1000)
    assert 100 <= latencies.percentile_us(50) < 120
    assert 5000 <= latencies.percentile_us(99) < 6000
    assert latencies.percentile_us(100) == Latencies.BOUNDS_US[-1]


@pytest.mark.parametrize("text", ["", "loose", "strict:5", "group", "group:", "group:0", "relaxed:-1", "relaxed:1.5"])
def test_a_mode_is_named_in_full(text: str) -> None:
    with pytest.raises(ValueError, match="is no mode"):
        Mode.of(text)
    assert Mode.of("group:5") == Mode("group", 5)


def test_at_least_one_request_may_wait(clock: HeldClock) -> None:
    ledger = opened(SimDisk(1))
    with pytest.raises(ValueError, match="at least one"):
        Recorder(ledger, clock, bound=0)
