"""A real file system filled to its last byte: the ledger says that it is full, keeps what it has, and goes on with
room."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
from pathlib import Path
from contextlib import suppress
from ledger import standalone
from ledger.errors import Full
from ledger.reader import read
from ledger.verify import verify
from daemon.system import OsDisk
from ledger.ledger import Bounds, Ledger
from ledger_process import WRITER, append, now

home = Path(sys.argv[1])
bounds = Bounds(segment_bytes=int(sys.argv[2]), reserve_bytes=int(sys.argv[3]))
disk = OsDisk(home)
# Given back when all is full: a start may have to write the last segment anew.
(home / "ballast").write_bytes(b"b" * int(sys.argv[5]))
ledger = Ledger.open(disk, WRITER, now(), bounds=bounds)

def until_full():
    for number in range(100_000):
        try:
            append(ledger, number, "x" * (1 + number % 700))
        except Full:
            return
    raise SystemExit("it never became full")

def fill(name):
    descriptor = os.open(home / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with suppress(OSError):
        for size in (4096, 1):
            while os.write(descriptor, b"f" * size):
                pass
    os.close(descriptor)

until_full()
before = ledger.head.seq
fill("filler")
assert disk.free_bytes() == 0, disk.free_bytes()
for _ in range(3):
    try:
        append(ledger, 1, "y" * 5000)
        raise SystemExit("a batch was taken without room for it")
    except Full:
        pass
assert ledger.head.seq == before == ledger.durable_seq
assert [record.seq for record in read(disk)] == list(range(1, before + 1))
assert verify(disk).ok, verify(disk).damages
with suppress(Full):
    ledger.note_head()
os.unlink(home / "filler")
os.unlink(home / "ballast")
if sys.argv[4] == "closed":
    ledger.close()
    fill("filler")
    try:
        while True:  # until there is no room to open it at all
            Ledger.open(disk, WRITER, now(), bounds=bounds).close()
    except Full:
        pass
    assert [record.seq for record in read(disk)][:before] == list(range(1, before + 1))
    os.unlink(home / "filler")
    ledger = Ledger.open(disk, WRITER, now(), bounds=bounds)
for number in range(5):
    append(ledger, number)
ledger.close()
Ledger.open(disk, WRITER, now(), bounds=bounds).close()
assert verify(disk).ok, verify(disk).damages
assert standalone.main(home) == 0
print("last", [record.seq for record in read(disk)][-1])
"""


def why_not() -> str:
    """Why no file system can be mounted here; "" if one can."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return "there is no unshare here"
    tried = subprocess.run(
        ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no file system may be mounted here: {tried.stderr.strip()}" if tried.returncode else ""


@pytest.fixture(scope="module")
def mounting() -> None:
    if why := why_not():
        pytest.skip(why)


@pytest.mark.parametrize("then", ["open", "closed"])
@pytest.mark.parametrize(
    ("size_kib", "segment_bytes", "reserve_bytes"), [(192, 1 << 20, 8192), (320, 20_000, 4096), (128, 9_000, 0)]
)
def test_a_file_system_filled_to_its_last_byte_loses_nothing_and_the_ledger_goes_on_with_room(
    size_kib: int, segment_bytes: int, reserve_bytes: int, then: str, mounting: None, tmp_path: Path
) -> None:
    mount = f'mount -t tmpfs -o size={size_kib}k,mode=700 tmpfs "$1"'
    script = f'{mount} && exec "$2" -c "$3" "$1" {segment_bytes} {reserve_bytes} {then} {size_kib * 512}'
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}", "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-3000:]
    seqs = [int(line.split()[1]) for line in ended.stdout.splitlines() if line.startswith("ack ")]
    assert seqs == sorted(set(seqs))
    assert len(seqs) > 40
