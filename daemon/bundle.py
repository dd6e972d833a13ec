"""A bundle: one home's incident archive, fit to be given away. It unpacks to a home that `hermesd replay` accepts.

Everything in it is masked (`daemon.masking`) but the ledger, which is there byte for byte or not at all: its hashes
would not hold otherwise. So a ledger in which a secret was found is not taken unless somebody says so who has been told
what was found.

The archive of an unchanged home has the same bytes wherever it is made, but for `about.json`, `status.json` and
`doctor.json`: files sorted, nobody's names, times those of the ledger's last record.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import orjson

from daemon.heartbeat import FILE as HEARTBEAT
from daemon.home import Home
from daemon.jobfiles import is_job_file
from daemon.masking import Mask
from daemon.reading import Reading
from ledger.chain import Head
from ledger.errors import Corrupt
from ledger.instant import ms_of
from ledger.reader import FOLDER as LEDGER
from ledger.record import GENESIS
from ledger.watermark import EPOCH, HEAD
from state.projector import Impossible, Unknown

Json = Any

TOP = "hermesd-bundle"
_FILE_BYTES_MAX = 4 << 20  # of what is masked as text; a longer one keeps its end, where the incident is
_DERIVED = (".idx", ".tmp", ".new")
_COPIED_FIRST = (HEAD, EPOCH, "MANIFEST.jsonl")
"""They vouch for what the segments held when they were written, so they are read before any segment is."""


class Secret(NamedTuple):
    """Something in the ledger that looks like one. So many `records` hold it at this path; `seq` is the first."""

    seq: int
    type: str
    path: str
    kind: str
    records: int

    def __str__(self) -> str:
        more = f" and {self.records - 1} later records" if self.records > 1 else ""
        return f"{self.kind}: {self.path} of record {self.seq} ({self.type}){more}"


@dataclass(frozen=True, slots=True)
class Scan:
    """The ledger looked through, and the bytes of it that were."""

    head: Head
    at_ms: int
    secrets: list[Secret]
    damage: str
    """Why it could not be looked through to its end; "" if it could."""
    files: Mapping[str, int]
    """File in the ledger's folder -> how many of its bytes have been looked at (others may have come since)."""
    first: Mapping[str, bytes]
    """Those that are copied first, as they were then."""


def scan(reading: Reading, mask: Mask) -> Scan:
    folder = reading.home.ledger
    first = {name: path.read_bytes() for name in _COPIED_FIRST if (path := folder / name).is_file()}
    files = {
        path.name: path.stat().st_size
        for path in sorted(folder.glob("*"))
        if path.is_file() and path.name not in (*first, "LOCK") and not path.name.endswith(_DERIVED)
    }
    found: dict[tuple[str, str], Secret] = {}
    head, at, damage = Head(0, GENESIS), "", ""
    try:
        for record in reading.records():
            head, at = Head(record.seq, record.hash), record.ts
            for where, kind in mask.secrets_in(record.data):
                key = (f"{record.type} {where}", kind)
                before = found.get(key) or Secret(record.seq, record.type, where, kind, 0)
                found[key] = before._replace(records=before.records + 1)
    except (Corrupt, Unknown, Impossible) as error:
        damage = str(error)
    return Scan(head, ms_of(at) if at else 0, list(found.values()), damage, files, first)


@dataclass(slots=True)
class Archive:
    """What goes into the bundle, by its path in there. A value is bytes, or a file and how much of it."""

    mask: Mask
    members: dict[str, bytes | tuple[Path, int]] = field(default_factory=dict)

    def put(self, name: str, data: bytes) -> None:
        self.members[name] = data

    def put_json(self, name: str, value: Json) -> None:
        text = orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode()
        self.put(name, self.mask.text(text).encode() + b"\n")

    def put_text(self, name: str, path: Path, mask: Callable[[str], str]) -> None:
        """A file that people or programs write, masked. One that is gone meanwhile is left out."""
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                return
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size - _FILE_BYTES_MAX))
                data = file.read(_FILE_BYTES_MAX)
        except FileNotFoundError:
            return
        cut = b""
        if size > len(data):
            cut = b"... the beginning is left out ...\n"
            data = data.partition(b"\n")[2]  # The rest of a line may be the rest of a secret, which nobody would know.
        self.put(name, cut + mask(data.decode("utf-8", "replace")).encode())

    def put_ledger(self, scanned: Scan, folder: Path) -> None:
        for name, data in scanned.first.items():
            self.put(f"{LEDGER}/{name}", data)
        for name, size in scanned.files.items():
            self.members[f"{LEDGER}/{name}"] = (folder / name, size)

    def put_folder(self, name: str, folder: Path) -> None:
        """As it is, links left out."""
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                self.members[f"{name}/{path.relative_to(folder).as_posix()}"] = (path, path.stat().st_size)

    def put_home(self, home: Home) -> None:
        """What a person needs to know of a home beside its ledger, masked."""
        self.put_text(home.settings_file.name, home.settings_file, self.mask.document)
        self.put_text(HEARTBEAT, home.path / HEARTBEAT, self.mask.text)
        documents, texts = (home.jobs, home.policies), (home.state, home.leases, home.inbox)
        for folder in (*documents, *texts):
            mask = self.mask.document if folder in documents else self.mask.text
            for path in sorted(folder.glob("*")) if folder.is_dir() else ():
                if not path.name.startswith(".") and (folder != home.jobs or is_job_file(path.name)):
                    self.put_text(f"{folder.name}/{path.name}", path, mask)

    def write(self, out: Path, at_ms: int) -> None:
        """Into a new file that only its owner can read. FileExistsError; OSError."""
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with (
                open(descriptor, "wb") as raw,
                gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
                tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
            ):
                for name in sorted({*self.members, *_folders(self.members)}):
                    self._add(archive, name, at_ms)
        except BaseException:
            out.unlink(missing_ok=True)
            raise

    def _add(self, archive: tarfile.TarFile, name: str, at_ms: int) -> None:
        info = tarfile.TarInfo(f"{TOP}/{name}" if name else TOP)
        info.mtime, info.mode = at_ms // 1000, 0o600
        value = self.members.get(name)
        if value is None:
            # A home that others can get into is no home: the mode comes with the archive.
            info.type, info.mode = tarfile.DIRTYPE, 0o700
            archive.addfile(info)
        elif isinstance(value, bytes):
            info.size = len(value)
            archive.addfile(info, io.BytesIO(value))
        else:
            path, info.size = value
            with path.open("rb") as file:
                archive.addfile(info, file)


def _folders(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        yield from ("" if str(parent) == "." else str(parent) for parent in PurePosixPath(name).parents)


def secrets_of(home: Home) -> dict[str, str]:
    """The secrets that the home keeps for its jobs, so that none of them gets out."""
    folder = home.secrets
    files = [path for path in sorted(folder.glob("*")) if path.is_file()] if folder.is_dir() else []
    return {path.name: path.read_text("utf-8", "replace") for path in files}


class NoBundle(Exception):
    """The file is no bundle that can be used so. The message says why."""


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A bundle's ledger and artifacts as a home of their own, for as long as they are looked at."""
    with tempfile.TemporaryDirectory(prefix="hermesd-bundle-") as folder:
        home = Path(folder)
        taken = 0
        try:
            with tarfile.open(path, "r:gz") as archive:
                for member in archive:
                    parts = PurePosixPath(member.name).parts[1:]
                    # Only plain files under the two names, each part a name: nothing can be written beside the folder.
                    if not member.isfile() or parts[:1] not in (("ledger",), ("artifacts",)) or ".." in parts:
                        continue
                    target = home.joinpath(*parts)
                    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    content = archive.extractfile(member)
                    assert content is not None
                    with content, target.open("xb") as file:
                        while data := content.read(1 << 20):
                            file.write(data)
                    taken += parts[0] == LEDGER
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise NoBundle(f"{path} is no bundle: {error}") from error
        if not taken:
            raise NoBundle(f"{path} holds no ledger: it was made with --since or --without-ledger")
        yield home
