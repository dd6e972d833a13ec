"""A home of its own with a daemon in it, followed through its ledger, and cleared away whatever happens."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from daemon import control
from daemon.home import Home
from daemon.system import OsDisk
from daemon.workers import identity
from daemon.workers.claim import read_claim
from ledger.reader import Tail
from ledger.record import Record
from state.graph import WITH_PROCESS, Graph, Run
from state.projector import apply

ROOT = Path(__file__).resolve().parents[2]
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_LOOK_AGAIN_S = 0.03
_READY_WITHIN_S = 60.0
_GONE_WITHIN_S = 30.0
_LAST_WORDS_BYTES = 2000


class Fell(Exception):
    """The play cannot go on: something did not happen, or should not have. The message says what."""


class Stage:
    """`graph` and `records` are what the ledger has told so far; `look` asks it for more."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.graph = Graph()
        self.records: list[Record] = []
        self._tail = Tail(OsDisk(home.path))
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `clear`)
        self._daemon: subprocess.Popen[bytes] | None = None
        self._seen: set[tuple[int, int]] = set()

    @property
    def pid(self) -> int:
        """Of the daemon; 0 while there is none."""
        return self._daemon.pid if self._daemon is not None else 0

    def command(self, *words: str) -> list[str]:
        """`hermesd WORDS --home HOME`, by the interpreter that runs this."""
        return [sys.executable, "-m", "daemon.cli", *words, "--home", str(self.home.path)]

    def start(self) -> float:
        """Start the daemon and wait until it answers; returns how long that took, in seconds."""
        began_s = time.monotonic()
        with undisturbed():
            # A session of its own: a Ctrl-C at the terminal is ours to deal with.
            self._daemon = subprocess.Popen(
                self.command("run"),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=self._words,
                stderr=self._words,
                start_new_session=True,
            )
        while True:
            with contextlib.suppress(control.NotRunning):
                control.call(self.home.path, "ping", {})
                return time.monotonic() - began_s
            self._must_live()
            if time.monotonic() > began_s + _READY_WITHIN_S:
                raise Fell(f"the daemon was not ready after {_READY_WITHIN_S:g} s{self._last_words()}")
            time.sleep(_LOOK_AGAIN_S)

    def look(self) -> list[Record]:
        """What the ledger says that it did not say before."""
        news = self._tail.poll()
        for record in news:
            if record.seq <= len(self.records):
                # A batch that was read before it was durable was taken back; its successors come with the same numbers.
                del self.records[record.seq - 1 :]
                self.graph = Graph()
                for earlier in self.records:
                    self.graph.merge(apply(self.graph, earlier), earlier.seq)
            self.records.append(record)
            self.graph.merge(apply(self.graph, record), record.seq)
        return news

    def until(
        self,
        done: Callable[[], bool],
        what: str,
        within_s: float,
        tell: Callable[[Record], None],
        wait: Callable[[], None],
    ) -> None:
        """Follow the ledger until `done`. `tell` hears each record; `wait` is called when there is none."""
        give_up_s = time.monotonic() + within_s
        while True:
            for record in self.look():
                tell(record)
            if done():
                return
            self._must_live()
            if time.monotonic() > give_up_s:
                raise Fell(f"{what}: not within {within_s:g} s{self._last_words()}")
            wait()
            time.sleep(_LOOK_AGAIN_S)

    def living(self) -> list[Run]:
        """The runs that have a process, as far as the ledger has told, and whose process is there."""
        return [
            run
            for _, run in sorted(self.graph.active.items())
            if run.state in WITH_PROCESS and run.pid and identity.alive(run.pid, run.process_started)
        ]

    def kill(self) -> None:
        """SIGKILL to the daemon, and to nothing else."""
        assert self._daemon is not None
        self._notice()
        self._daemon.kill()
        self._daemon.wait()
        self._daemon = None

    def stop(self) -> int:
        """Ask the daemon to stop; returns how many processes it had started, all gone now. Fell if one is left."""
        assert self._daemon is not None
        self._notice()
        self._daemon.terminate()
        try:
            code = self._daemon.wait(_GONE_WITHIN_S)
        except subprocess.TimeoutExpired:
            raise Fell(f"the daemon (pid {self.pid}) does not stop{self._last_words()}") from None
        self._daemon = None
        if code:
            raise Fell(f"the daemon stopped with status {code}{self._last_words()}")
        self._notice()
        if left := self._left(_GONE_WITHIN_S):
            raise Fell(f"processes are left: {', '.join(str(pid) for pid, _ in left)}")
        return len(self._seen)

    def clear(self, *, remove: bool) -> None:
        """End whatever is left of it, at once; with `remove`, the home goes too."""
        with undisturbed():
            self._notice()
            if self._daemon is not None:
                self._daemon.kill()
                self._daemon.wait()
                self._daemon = None
            for _ in range(5):  # What they start before they die is seen in the next round.
                self._notice()
                for pid, _ in self._left(0):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                if not self._left(1):
                    break
            self._words.close()
            if remove:
                shutil.rmtree(self.home.path, ignore_errors=True)

    def _must_live(self) -> None:
        if self._daemon is not None and self._daemon.poll() is not None:
            raise Fell(f"the daemon ended by itself, with status {self._daemon.returncode}{self._last_words()}")

    def _last_words(self) -> str:
        self._words.seek(0)
        words = self._words.read()[-_LAST_WORDS_BYTES:].decode("utf-8", "replace").strip()
        return f". It had said:\n{words}" if words else ""

    def _notice(self) -> None:
        """Remember every process of this home: the daemon's descendants, those whose environment names an attempt of
        it, and those that have claimed one."""
        if self._daemon is not None:
            self._seen.update(process for process in identity.tree(None, self.pid) if process[0] != self.pid)
        runs = f"{self.home.runs}/"
        for found in identity.processes():
            if found.alive and identity.folder_of(found.pid).startswith(runs):
                self._seen.add((found.pid, found.started))
        for path in self.home.runs.glob("*/*/claim"):
            claim = read_claim(str(path.parent))
            if claim is not None:
                self._seen.update(process for process in (claim.process, claim.keeper) if process is not None)

    def _left(self, patience_s: float) -> list[tuple[int, int]]:
        """Those of the processes seen that do not end within that time."""
        give_up_s = time.monotonic() + patience_s
        while True:
            left = [process for process in self._seen if identity.alive(*process)]
            if not left or time.monotonic() >= give_up_s:
                return left
            time.sleep(_LOOK_AGAIN_S)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A Ctrl-C meanwhile counts afterwards, so that no process is started and not known, or known and not ended."""
    late: list[int] = []
    before = {number: signal.signal(number, lambda number, _: late.append(number)) for number in ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if late:
            raise KeyboardInterrupt
