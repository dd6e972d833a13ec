"""An incident archive: given away, it holds no secret; on another machine, it replays."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
import zlib
from pathlib import Path

import pytest
from cli_shell import Foreground, answer, hermesd, make_home

from daemon import bundle
from daemon.masking import Mask

SECRET = "hunter2-and-no-other"
JOBS = "- {name: report, kind: command, shell: echo all well > report.md, outputs: [report.md], schedule: manual}\n"
APART = ("about.json", "doctor.json", "status.json")


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = make_home(tmp_path_factory.mktemp("cli") / "past", jobs=JOBS)
    with Foreground(home):
        hermesd("start", "report", "--wait", "--home", home)
    (home / "secrets").mkdir(mode=0o700, exist_ok=True)
    (home / "secrets" / "slack").write_text(SECRET)
    (home / "jobs" / "broken.yaml").write_text(f"name: [\nenv: {{KEY: {SECRET}}}\n")
    (home / "jobs" / "later.yaml").write_text(
        "name: later\nkind: command\nargv: [x]\nschedule: manual\nenv: {DATABASE: postgres://me:pw123@db/x}\n"
    )
    (home / "state" / "note.json").write_text(f'{{"said": "{SECRET}"}}')
    return home


@pytest.fixture
def home(past: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(past, tmp_path / "home"))


def members(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as archive:
        found = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        return {name.partition("/")[2]: content.read() for name, content in found.items() if content is not None}


def test_a_bundle_replays_on_another_machine_packed_and_unpacked(past: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.tar.gz"
    told = answer("bundle", out, "--home", past)
    assert told["replays"] is True
    assert out.stat().st_mode & 0o777 == 0o600
    elsewhere = {"HERMESD_HOME": str(tmp_path / "none")}
    assert answer("replay", "--verify", out, **elsewhere)["plans_verified"] >= 1
    assert answer("verify", out, **elsewhere)["last"] == told["head"]
    subprocess.run(["tar", "xzf", out], cwd=tmp_path, check=True)
    unpacked = tmp_path / "hermesd-bundle"
    assert answer("replay", "--verify", "--home", unpacked)["head"] == told["head"]
    assert answer("runs", "list", "--home", unpacked)[0]["state"] == "succeeded"
    for segment in (past / "ledger").glob("0*.jsonl"):
        assert (unpacked / "ledger" / segment.name).read_bytes() == segment.read_bytes()


def test_no_secret_and_no_output_gets_out(past: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.tar.gz"
    hermesd("bundle", out, "--home", past, PASSWORD=SECRET)
    found = members(out)
    assert not [name for name, data in found.items() if SECRET.encode() in data or b"pw123" in data]
    assert not [name for name in found if name.startswith(("secrets/", "runs/", "artifacts/"))]
    assert found["jobs/later.yaml"].decode().endswith('env: {DATABASE: "***"}\n')
    assert found["jobs/broken.yaml"].decode() == "name: ***\nenv: ***\n"
    assert json.loads(found["about.json"])["head"]["seq"] > 0
    assert json.loads(found["doctor.json"])
    assert json.loads(found["status.json"])["daemon"]["up"] is False


def test_outputs_come_along_only_when_asked_for(past: Path, tmp_path: Path) -> None:
    hermesd("bundle", tmp_path / "b.tar.gz", "--outputs", "--home", past)
    found = members(tmp_path / "b.tar.gz")
    assert b"all well\n" in [data for name, data in found.items() if name.startswith("artifacts/")]
    assert [name for name in found if name.endswith("/report.md")]


def test_an_unchanged_home_gives_the_same_bytes_again(past: Path, tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        hermesd("bundle", tmp_path / name, "--home", past)
        with tarfile.open(tmp_path / name) as archive:
            files.append([(m.name, m.mtime, m.mode, m.uid, m.uname) for m in archive])
    assert files[0] == files[1]
    assert len({mtime for _, mtime, *_ in files[0]}) == 1
    one, two = members(tmp_path / "one"), members(tmp_path / "two")
    assert [name for name in one if one[name] != two[name] and name not in APART] == []


def test_a_ledger_that_holds_what_may_be_secret_is_not_taken_unasked(home: Path, tmp_path: Path) -> None:
    with Foreground(home):  # Now it takes up the job with a value in its env.
        pass
    out = tmp_path / "b.tar.gz"
    refused = hermesd("bundle", out, "--home", home, code=1).stderr
    assert "a value of env: spec.env.DATABASE of record " in refused
    assert "pw123" not in refused
    assert "--with-ledger-as-is" in refused
    assert not out.exists()
    hermesd("bundle", out, "--without-ledger", "--home", home)
    assert not [name for name in members(out) if name.startswith("ledger")]
    assert "holds no ledger" in hermesd("replay", out, code=2).stderr
    hermesd("bundle", tmp_path / "as is", "--with-ledger-as-is", "--home", home)
    assert answer("replay", "--verify", tmp_path / "as is")["ok"] is True
    assert "spec.env.DATABASE" in members(tmp_path / "as is")["about.json"].decode()


def test_events_since_an_instant_are_the_bytes_of_the_ledger(past: Path, tmp_path: Path) -> None:
    hermesd("bundle", tmp_path / "b", "--since", "1h", "--home", past)
    found = members(tmp_path / "b")
    written = b"".join(path.read_bytes() for path in sorted((past / "ledger").glob("0*.jsonl")))
    assert found["events.jsonl"] == written
    hermesd("bundle", tmp_path / "none", "--since", "now", "--home", past)
    assert members(tmp_path / "none")["events.jsonl"] == b""


def test_a_damaged_ledger_is_what_a_bundle_is_for(home: Path, tmp_path: Path) -> None:
    segment = max((home / "ledger").glob("0*.jsonl"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    assert "cannot be looked through" in hermesd("bundle", tmp_path / "b", "--home", home, code=1).stderr
    hermesd("bundle", tmp_path / "b", "--with-ledger-as-is", "--home", home)
    found = members(tmp_path / "b")
    assert found[f"ledger/{segment.name}"] == data
    assert "error" in json.loads(found["status.json"])
    assert json.loads(found["about.json"])["ledger_damage"]


def test_a_file_that_is_there_is_not_written_over(past: Path, tmp_path: Path) -> None:
    (tmp_path / "b").write_text("mine")
    assert "there is such a file already" in hermesd("bundle", tmp_path / "b", "--home", past, code=2).stderr
    assert (tmp_path / "b").read_text() == "mine"


def test_an_archive_that_would_write_beside_its_folder_writes_nothing_there(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as archive:
        for name in ("x/ledger/../../evil", "/x/ledger/evil", "x/ledger/fine"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
        link = tarfile.TarInfo("x/ledger/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    hermesd("replay", tmp_path / "evil.tar.gz", TMPDIR=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["evil.tar.gz"]
    (tmp_path / "text").write_text("no archive")
    assert "is no bundle" in hermesd("replay", tmp_path / "text", code=2).stderr
    assert "there is no such bundle" in hermesd("replay", tmp_path / "none", code=3).stderr


def test_a_bundle_damaged_on_its_way_is_told_to_be_none(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x/ledger/fine")
    info.size = 10_000
    packer = zlib.compressobj(wbits=31)
    begun = packer.compress(info.tobuf() + b"x" * 5000) + packer.flush(zlib.Z_FULL_FLUSH)
    (tmp_path / "damaged").write_bytes(begun + b"\x07" * 100)  # No block begins like this.
    assert "is no bundle" in hermesd("replay", tmp_path / "damaged", code=2).stderr


def test_of_a_file_that_is_too_long_no_line_is_taken_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_FILE_BYTES_MAX", 20)
    (tmp_path / "log").write_text(f"key {SECRET}\nthe end\n")
    parts = bundle.Archive(Mask({"key": SECRET}))
    parts.put_text("log", tmp_path / "log", parts.mask.text)
    assert parts.members == {"log": b"... the beginning is left out ...\nthe end\n"}
