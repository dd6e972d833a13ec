"""The two verifiers: each finds every changed byte, and they agree on where."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest
from ledger_home import at, copy_of, fact, grown, last_segment, opened

from ledger import standalone
from ledger.record import GENESIS
from ledger.verify import verify
from simulations.disk import SimDisk


def quarantined() -> SimDisk:
    """A ledger of three segments, whose second recovery quarantined a torn batch."""
    disk = SimDisk(1)
    grown(disk, ((1, 2),))
    disk.remove("ledger/HEAD")
    disk.corrupt(last_segment(disk), disk.read(last_segment(disk))[:-7])
    ledger = opened(disk)
    ledger.append([fact(9), fact(10)], at())
    ledger.close()
    opened(disk).close()
    return disk


def laid_out(disk: SimDisk, home: Path) -> Path:
    for path, data in disk.files().items():
        file = home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return home


def alone(home: Path) -> tuple[int, list[tuple[str, int]], str]:
    """The stand-alone verifier's exit status, the places it names, and all that it says."""
    standalone.damages.clear()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = standalone.main(home)
    places = [line.split(": byte ") for line in standalone.damages]
    return status, [(file, int(rest.split(":")[0])) for file, rest in places], said.getvalue()


def test_a_whole_ledger_verifies(tmp_path: Path) -> None:
    disk = quarantined()
    found = verify(disk)
    assert (found.ok, found.segments, found.torn_bytes, found.last.seq) == (True, 3, 0, found.records)
    assert alone(laid_out(disk, tmp_path))[:2] == (0, [])
    assert len((Path(standalone.__file__)).read_text().splitlines()) <= 100


@pytest.mark.parametrize("flip", [0x01, 0x80, "newline"])
def test_every_changed_byte_of_every_file_is_found_by_both_in_the_same_place(flip: int | str, tmp_path: Path) -> None:
    whole = quarantined()
    laid_out(whole, tmp_path)
    for path, data in whole.files().items():
        name = path.removeprefix("ledger/")
        for index in range(len(data)):
            byte = ord("\n") if flip == "newline" else data[index] ^ int(flip)
            if byte == data[index]:
                continue
            changed = data[:index] + bytes([byte]) + data[index + 1 :]
            whole.corrupt(path, changed)
            found = verify(whole)
            first = found.damages[0]
            line = data.rfind(b"\n", 0, index) + 1
            assert first.file == path, (path, index)
            assert first.offset in (line if name.endswith(".jsonl") else 0, index + 1 if byte == 10 else line)
            if index % 5 and data[index] != 10:
                continue  # the second verifier reads real files, which takes its time: every fifth byte, every newline
            (tmp_path / path).write_bytes(changed)
            status, places, _ = alone(tmp_path)
            assert (status, (name, first.offset) in places) == (1, True), (path, index, found, places)
        whole.corrupt(path, data)
        (tmp_path / path).write_bytes(data)


def test_damage_in_several_places_is_reported_in_each(tmp_path: Path) -> None:
    disk = SimDisk(1)
    grown(disk, ((1, 2), (1, 1, 1), (2,)))
    offsets = []
    for name in [name for name in disk.list("ledger") if name[0] == "0" and name.endswith(".jsonl")]:
        path = f"ledger/{name}"
        data = bytearray(disk.read(path))
        second = data.index(b"\n") + 1
        data[second + 20] ^= 1
        disk.corrupt(path, bytes(data))
        offsets.append((name, second))
    assert [(damage.file, damage.offset) for damage in verify(disk).damages] == [(f"ledger/{n}", o) for n, o in offsets]
    assert alone(laid_out(disk, tmp_path))[1] == offsets


def test_lines_taken_out_doubled_or_swapped_are_found(tmp_path: Path) -> None:
    whole = SimDisk(1)
    grown(whole, ((1, 2, 1),))
    path = last_segment(whole)
    lines = whole.read(path).splitlines(keepends=True)
    for index in range(len(lines)):
        out = [*lines[:index], *lines[index + 1 :]]
        double = [*lines[: index + 1], lines[index], *lines[index + 1 :]]
        swap = [*lines[:index], *lines[index : index + 2][::-1], *lines[index + 2 :]]
        for case, changed in enumerate((out, double, swap)):
            if changed == lines:
                continue
            disk = copy_of(whole)
            disk.corrupt(path, b"".join(changed))
            assert not verify(disk).ok
            assert alone(laid_out(disk, tmp_path / f"{index}-{case}"))[0] == 1


def test_a_torn_end_is_told_apart_from_damage(tmp_path: Path) -> None:
    whole = SimDisk(1)
    grown(whole, ((1, 2),))
    whole.remove("ledger/HEAD")
    path = last_segment(whole)
    lines = whole.read(path).splitlines(keepends=True)
    torn = copy_of(whole)
    torn.corrupt(path, b"".join([*lines[:3], lines[3][:50]]))
    found = verify(torn)
    assert (found.ok, found.torn_bytes, found.last.seq) == (True, len(lines[2]) + 50, 2)
    status, _, said = alone(laid_out(torn, tmp_path))
    assert status == 0
    assert "unfinished" in said


def test_files_that_do_not_belong_or_are_gone_are_named(tmp_path: Path) -> None:
    whole = quarantined()
    kept = whole.list("ledger/quarantine")[0]
    cases = {
        "stray.txt": ("ledger/stray.txt", b"?"),
        "LOCK": ("ledger/LOCK", b"1"),
        "EPOCH": ("ledger/EPOCH", None),
        f"quarantine/{kept}": (f"ledger/quarantine/{kept}", None),
    }
    for number, (name, (path, data)) in enumerate(cases.items()):
        disk = copy_of(whole)
        if data is None:
            disk.remove(path)
        else:
            disk.corrupt(path, data)
        assert [(damage.file, damage.offset) for damage in verify(disk).damages] == [(path, 0)]
        assert alone(laid_out(disk, tmp_path / str(number)))[:2] == (1, [(name, 0)])


def test_each_missing_segment_and_each_cut_of_whole_lines_is_found_by_both(tmp_path: Path) -> None:
    whole = quarantined()
    for name in [name for name in whole.list("ledger") if name[0] == "0" and name.endswith(".jsonl")]:
        disk = copy_of(whole)
        disk.remove(f"ledger/{name}")
        assert not verify(disk).ok
        assert alone(laid_out(disk, tmp_path / name))[0] == 1
        disk = copy_of(whole)
        lines = whole.read(f"ledger/{name}").splitlines(keepends=True)
        disk.corrupt(f"ledger/{name}", b"".join(lines[:-1]))
        assert not verify(disk).ok
        assert alone(laid_out(disk, tmp_path / f"cut-{name}"))[0] == 1


def test_no_ledger_is_not_a_sound_ledger(tmp_path: Path) -> None:
    found = verify(SimDisk(1))
    assert not found.ok
    assert found.last == (0, GENESIS)
    assert alone(tmp_path)[0] == 2
    disk = SimDisk(1)
    grown(disk)
    for name in [name for name in disk.list("ledger") if name[0] in "0M"]:
        disk.remove(f"ledger/{name}")
    assert [damage.file for damage in verify(disk).damages] == ["ledger", "ledger"]
    assert alone(laid_out(disk, tmp_path))[:2] == (1, [("EPOCH", 0), ("HEAD", 0)])


def test_the_stand_alone_verifier_runs_by_itself(tmp_path: Path) -> None:
    laid_out(quarantined(), tmp_path)

    def status(*arguments: str | Path) -> int:
        command = [sys.executable, "-I", "-S", standalone.__file__, *arguments]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert status(tmp_path) == status(tmp_path / "ledger") == 0
    (tmp_path / "ledger" / "HEAD").write_bytes(b"")
    assert status(tmp_path) == 1
    assert status() == status(tmp_path / "nowhere") == 2
