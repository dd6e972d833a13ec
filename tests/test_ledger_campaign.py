"""The campaign's share of the ordinary tests: 80,000 damaged ledgers; and proof that its law would notice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ledger import chain, reader, record, recovery, standalone, verify
from ledger.archive import archive
from ledger.errors import Corrupt
from ledger.ledger import Bounds, Ledger
from ledger.reader import read
from ledger.record import Draft
from simulations.campaign import __main__ as campaign
from simulations.campaign.corpus import SHAPES, WRITER, now, whole
from simulations.campaign.damage import FLIPS, TAILS, case, cases_in, damaged
from simulations.campaign.law import Broken, alone, uphold
from simulations.campaign.memory import Memory

SHARES = 23
CASES = 3_500
"""In each share; about 20 of them change nothing."""


@pytest.mark.parametrize("share", range(SHARES))
def test_whatever_is_damaged_nothing_is_undetected_and_nothing_acknowledged_is_lost(share: int) -> None:
    upheld, broken = campaign.share(share * CASES, CASES)
    assert broken == ""
    assert upheld * SHARES >= 80_000


def test_every_shape_is_sound_as_it_is() -> None:
    for shape in SHAPES:
        intact = whole(shape, 0)
        assert verify.verify(Memory(dict(intact.files))).ok, shape
        assert [found.seq for found in intact.records] == list(range(1, len(intact.records) + 1))


def test_each_number_is_another_case_and_the_same_tomorrow() -> None:
    total = cases_in(0)
    assert total > 450_000
    seen = {(chosen.whole.shape, chosen.path, chosen.at, chosen.data) for chosen in map(case, range(3_000)) if chosen}
    assert len(seen) > 2_900
    assert case(total) is not None  # the next corpus
    assert str(case(17)) == str(case(17))


def broken_cases(shape: str, ways: range, limit: int = 150) -> int:
    """In how many of the cases on the last segment of `shape` the law is broken."""
    intact = whole(shape, 0)
    path, broken = intact.last, 0
    size = len(intact.files[path])
    for at in range(0, size, max(1, size // limit)):
        for way in ways:
            chosen = damaged(intact, path, at, way)
            try:
                if chosen is not None:
                    uphold(chosen)
            except (Broken, IndexError, AttributeError, record.Unsound):
                broken += 1
    return broken


CUTS = range(len(TAILS))
CHANGES = range(len(TAILS), len(TAILS) + len(FLIPS))


@pytest.mark.parametrize(("shape", "ways"), [("killed", CUTS), ("many batches", CUTS), ("killed", CHANGES)])
def test_the_law_holds_where_the_safeguards_are_switched_off_below(shape: str, ways: range) -> None:
    assert broken_cases(shape, ways) == 0


def test_without_proof_that_more_had_been_durable_records_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "proof_of_more", lambda *_: "")
    assert broken_cases("many batches", CUTS) > 30
    assert broken_cases("killed", CHANGES) > 30


def test_without_the_hash_a_changed_byte_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def believed(self: chain.Chain, line: bytes) -> record.Record:
        found = record.record_of(line, record.hash_of(line[: record.HASHED_TO]))
        self.seq, self.hash, self.batch, self.more = found.seq, found.hash, found.batch, found.more
        return found

    monkeypatch.setattr(chain.Chain, "take", believed)
    assert broken_cases("killed", CHANGES) > 30


def test_without_a_quarantine_bytes_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgotten(disk: Any, folder: str, cut: recovery.Cut, now: Any) -> recovery.Cut:
        return cut

    monkeypatch.setattr(recovery, "keep", forgotten)
    assert broken_cases("killed", CUTS) > 30


def test_without_the_cut_the_next_record_is_fused_to_a_torn_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "cut_off", lambda *_: None)
    assert broken_cases("killed", CUTS) > 30


def test_a_verifier_that_reports_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify._Pass, "_report", lambda *_: None)
    assert broken_cases("many batches", CHANGES) > 30


def test_several_damages_at_once_are_never_met_with_anything_but_a_report_and_a_refusal() -> None:
    chance = Random(1)
    for _ in range(2_000):
        intact = whole(chance.choice(list(SHAPES)), 0)
        files, paths = dict(intact.files), sorted(intact.files)
        said = []
        for path in chance.sample(paths, min(len(paths), chance.choice((2, 3)))):
            said.append(path)
            if chance.random() < 0.35:
                del files[path]
            elif chosen := damaged(intact, path, chance.randrange(len(files[path])), chance.randrange(8)):
                files[path] = chosen.data
        found = verify.verify(Memory(dict(files)))
        assert found.ok == (alone(files)[0] == 0), (intact.shape, said, found)
        shown: list[record.Record] = []
        try:
            recovery.survey(Memory(dict(files)), "ledger")
            shown += read(Memory(dict(files)))
        except Corrupt:
            assert not found.ok, (intact.shape, said)
        assert shown == list(intact.records[: len(shown)])


def test_an_archive_that_nothing_vouches_for_any_more_is_read_and_sealed_again() -> None:
    intact = whole("archived", 0)
    files = {path: data for path, data in intact.files.items() if not path.endswith((".seal", "MANIFEST.jsonl"))}
    disk = Memory(files)
    assert list(read(disk)) == list(intact.records)
    assert verify.verify(disk).ok
    Ledger.open(disk, WRITER, now(500)).close()
    for path, data in intact.files.items():
        if path.endswith((".seal", "MANIFEST.jsonl")):
            assert disk.files[path].startswith(data)
    path = next(path for path in files if path.endswith(".zst"))
    broken = Memory({name: data for name, data in intact.files.items() if name in files} | {path: files[path][:-3]})
    del broken.files["ledger/HEAD"]
    assert path in [damage.file for damage in verify.verify(broken).damages]


def test_the_campaign_as_a_program_says_how_many_held(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["campaign", "--cases", "300", "--first", "90000", "--jobs", "1"])
    assert campaign.main() == 0
    assert "the law held in each" in capsys.readouterr().out


def test_the_campaign_as_a_program_shows_the_case_that_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify._Pass, "_report", lambda *_: None)
    upheld, broken = campaign.share(0, 1_000)
    assert upheld < 1_000
    assert "python -m simulations.campaign --first " in broken


def fifty_segments() -> Memory:
    """Fifty sealed segments of several epochs, some of them archived, and the one being written."""
    disk = Memory({})
    for session in range(5):
        ledger = Ledger.open(disk, WRITER, now(session), bounds=Bounds(segment_bytes=700, reserve_bytes=0))
        while ledger.segment.number < 10 * (session + 1):
            ledger.append([Draft("run.finished", f"run/{session}", {"text": "x" * 90})], now(session))
        ledger.close()
    archive(disk, keep=30)
    Ledger.open(disk, WRITER, now(9)).close()
    return disk


@pytest.fixture(scope="module")
def large() -> Memory:
    return fifty_segments()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_one_byte_changed_in_any_file_of_fifty_segments_is_found_there_by_both_verifiers(large: Memory) -> None:
    files = {path: data for path, data in large.files.items() if data}
    assert verify.verify(Memory(dict(files))).ok
    assert alone(files) == (0, [])
    kinds: dict[str, int] = {}
    for number, (path, data) in enumerate(files.items()):
        name = path.removeprefix("ledger/")
        kinds[Path(name).suffix] = kinds.get(Path(name).suffix, 0) + 1
        at = (number * 7_919 + 13) % len(data)
        changed = files | {path: flipped(data, at)}
        found = verify.verify(Memory(changed)).damages
        line = data.rfind(b"\n", 0, at) + 1 if name.endswith(".jsonl") else 0
        assert [(damage.file, damage.offset) for damage in found][:1] == [(path, line)], (path, at, found[:2])
        assert {damage.file for damage in found} == {path}, found
        status, places = alone(changed)
        assert (status, places[:1]) == (1, [(name, line)]), (path, at, places)
    assert kinds[".seal"] >= 50
    assert kinds[".zst"] >= 19
    assert kinds[".jsonl"] >= 31
    assert kinds[""] == 2


def test_the_programs_say_so_with_their_exit_status(large: Memory, tmp_path: Path) -> None:
    files = {path: data for path, data in large.files.items() if data}
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    programs = (
        [sys.executable, standalone.__file__, str(tmp_path)],
        [sys.executable, "-m", "daemon.cli", "--home", str(tmp_path), "verify", "--json"],
    )

    def statuses() -> list[tuple[int, str]]:
        ended = [subprocess.run(command, capture_output=True, text=True, check=False) for command in programs]
        return [(one.returncode, one.stdout) for one in ended]

    assert [status for status, _ in statuses()] == [0, 0], statuses()
    paths = sorted(files)
    for path in (paths[0], paths[len(paths) // 3], next(path for path in paths if path.endswith(".zst")), max(paths)):
        (tmp_path / path).write_bytes(flipped(files[path], len(files[path]) // 2))
        name = path.removeprefix("ledger/")
        for status, said in statuses():
            assert (status, name in said) == (1, True), (path, said)
        (tmp_path / path).write_bytes(files[path])
