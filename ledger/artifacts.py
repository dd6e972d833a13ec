"""Artifacts: content too large for a line, kept under its SHA-256."""

from __future__ import annotations

import contextlib
from hashlib import sha256

from ledger.disk import Disk, temporary_of, write_atomically
from ledger.errors import Corrupt, Missing, Refused

_DIGITS = frozenset("0123456789abcdef")


class Artifacts:
    """Content by digest, in `artifacts/<first 2 digits>/<digest>`. An event that names one is appended after `put`."""

    def __init__(self, disk: Disk, *, folder: str = "artifacts") -> None:
        self._disk, self._folder = disk, folder
        self._known: set[str] = set()

    def put(self, data: bytes) -> str:
        """The digest, 64 hex digits; the content is durable once this returns. Putting it again changes nothing, except
        that a damaged copy is made whole. OSError if there is no room for it."""
        digest = sha256(data).hexdigest()
        path = self._path(digest)
        folder = path.rpartition("/")[0]
        if folder not in self._known:
            self._disk.make_folder(folder)
            self._disk.sync_folder(self._folder)
            self._disk.sync_folder(self._folder.rpartition("/")[0])
            self._known.add(folder)
        if self._disk.exists(path) and self._disk.read(path) == data:
            # Its name may have been published by a process that died before it was durable.
            self._disk.sync_folder(folder)
        else:
            try:
                write_atomically(self._disk, path, data, durable=True)
            except OSError:
                # Half of it would stay, in a place that nobody looks into, and take what room there is.
                with contextlib.suppress(OSError):
                    self._disk.remove(temporary_of(path))
                raise
        return digest

    def get(self, digest: str) -> bytes:
        """Missing if it is not here; Corrupt if what is here is not it."""
        path = self._path(digest)
        try:
            data = self._disk.read(path)
        except FileNotFoundError:
            raise Missing(f"there is no artifact {digest} ({path})") from None
        if sha256(data).hexdigest() != digest:
            raise Corrupt(
                path, 0, "the content is not that of its digest", advice="put it back from a backup, or put it again"
            )
        return data

    def remove(self, digest: str) -> None:
        """Delete the content; no error if it is not here. Durable once this returns."""
        path = self._path(digest)
        if self._disk.exists(path):
            self._disk.remove(path)
            self._disk.sync_folder(path.rpartition("/")[0])

    def has(self, digest: str) -> bool:
        return self._disk.exists(self._path(digest))

    def _path(self, digest: str) -> str:
        if len(digest) != 64 or not _DIGITS.issuperset(digest):
            raise Refused(f"{digest!r} is not a digest: 64 of 0-9 and a-f")
        return f"{self._folder}/{digest[:2]}/{digest}"
