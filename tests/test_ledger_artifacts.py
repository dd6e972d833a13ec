"""Artifacts: durable before they are named, and never other than what their digest says."""

from __future__ import annotations

import errno
from hashlib import sha256
from pathlib import Path

import pytest

from daemon.system import OsDisk
from ledger.artifacts import Artifacts
from ledger.errors import Corrupt, Missing, Refused
from simulations.disk import PowerCut, SimDisk


def test_what_is_put_is_given_back_and_putting_it_again_changes_nothing(tmp_path: Path) -> None:
    artifacts = Artifacts(OsDisk(tmp_path))
    for data in (b"", b"x", bytes(range(256)) * 1000):
        digest = artifacts.put(data)
        assert digest == sha256(data).hexdigest() == artifacts.put(data)
        assert artifacts.get(digest) == data
        assert artifacts.has(digest)
        assert (tmp_path / "artifacts" / digest[:2] / digest).read_bytes() == data
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3


def test_what_was_put_survives_any_crash_and_nothing_half_written_has_its_name() -> None:
    data = b"content" * 200
    digest = sha256(data).hexdigest()
    for point in range(1, 12):
        for seed in range(20):
            disk = SimDisk(seed, short_writes=True)
            disk.cut_power(point, after=seed % 2 == 0)
            put = False
            try:
                Artifacts(disk).put(data)
                put = True
            except PowerCut:
                pass
            disk.crash()
            artifacts = Artifacts(disk)
            assert artifacts.has(digest) or not put
            assert not artifacts.has(digest) or artifacts.get(digest) == data
            artifacts.put(data)
            disk.crash()
            assert artifacts.get(digest) == data


def test_a_put_that_found_the_name_already_there_is_durable_too() -> None:
    for seed in range(20):
        disk = SimDisk(seed)
        artifacts = Artifacts(disk)
        artifacts.put(b"other")
        disk.fail(disk.operations + 8, errno.EIO)
        with pytest.raises(OSError, match="artifacts"):
            artifacts.put(b"content")
        assert [entry.split()[0] for entry in list(disk.trace)[-3:]] == ["replace", "sync_folder", "remove"]
        digest = artifacts.put(b"content")
        disk.crash()
        assert artifacts.get(digest) == b"content"


def test_a_damaged_artifact_is_named_and_made_whole_by_putting_it_again() -> None:
    disk = SimDisk(1)
    artifacts = Artifacts(disk)
    digest = artifacts.put(b"content")
    disk.corrupt(f"artifacts/{digest[:2]}/{digest}", b"c0ntent")
    with pytest.raises(Corrupt, match=digest):
        artifacts.get(digest)
    assert artifacts.put(b"content") == digest
    assert artifacts.get(digest) == b"content"


def test_what_finds_no_room_leaves_none_taken() -> None:
    disk = SimDisk(0, capacity_bytes=1000)
    artifacts = Artifacts(disk)
    artifacts.put(b"small")
    with pytest.raises(OSError, match="No space"):
        artifacts.put(b"x" * 2000)
    assert disk.used_bytes() == len(b"small")
    artifacts.put(b"y" * 900)


def test_what_is_not_there_is_missing_and_what_is_no_digest_is_refused() -> None:
    artifacts = Artifacts(SimDisk(1))
    with pytest.raises(Missing):
        artifacts.get("0" * 64)
    assert not artifacts.has("0" * 64)
    for wrong in ("", "../../etc/passwd", "A" * 64, "0" * 63):
        with pytest.raises(Refused):
            artifacts.get(wrong)
