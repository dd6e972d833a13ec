"""The daemon's side of the keeper: command attempts, from the order to the end."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from json import dumps
from pathlib import Path

from daemon.ports import Began, CommandTask, Ended, Order, Report, SpawnError
from daemon.workers.claim import Status, claim_never, make_folder, read_claim, write_status
from daemon.workers.command import command_line, launch, note_of, place_of
from daemon.workers.exits import Exit
from daemon.workers.folders import SpareFolders, sweep
from daemon.workers.keeper import status_of
from daemon.workers.tree import Unwatch, Watch, signal_tree
from daemon.workers.wire import BUFFER_BYTES, Channel, Message

Key = tuple[str, int]

SENT_AHEAD = 64
"""Orders that the keeper may not have begun yet, as far as they fit in the socket's buffer."""

_BARE_MAX = 1000
_ROOT = str(Path(__file__).resolve().parents[2])
_BOOT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from daemon.workers.keeper import main
main(3)
"""


@dataclass(slots=True, eq=False)
class _Ticket:
    """A command that we answer for, until its Ended is reported or it is given to be adopted."""

    order: Order
    line: bytes
    sent: bool = False
    process: tuple[int, int] | None = None
    stop: int = 0
    """The signal to send as soon as the process is known."""

    @property
    def key(self) -> Key:
        return self.order.run, self.order.attempt


@dataclass(slots=True, eq=False)
class _Keeper:
    pid: int
    exit: Exit
    channel: Channel
    ready: bool = False


class Keeping:
    """Hands orders to the keeper, which is started with the first. `report` takes reports; `adopt(order)` takes up an
    attempt that another process has claimed, or one whose keeper died."""

    def __init__(
        self,
        watch: Watch,
        unwatch: Unwatch,
        *,
        python: str,
        report: Callable[[Report], None],
        adopt: Callable[[Order], None],
    ) -> None:
        self._watch, self._unwatch = watch, unwatch
        self._python, self._report, self._adopt = python, report, adopt
        self._keeper: _Keeper | None = None
        self._tickets: dict[Key, _Ticket] = {}
        self._waiting: deque[_Ticket] = deque()  # not sent
        self._ahead = 0
        self._ahead_bytes = 0
        self._held = False
        self._bare: dict[Key, str] = {}  # attempts that left nothing, whose ends may not be durable yet: their folders
        self._folders = SpareFolders()

    def __contains__(self, key: Key) -> bool:
        return key in self._tickets

    @property
    def pids(self) -> set[int]:
        return {self._keeper.pid} if self._keeper else set()

    def start(self, order: Order, task: CommandTask) -> None:
        """SpawnError if the keeper cannot be started, or the order cannot be carried out."""
        ticket = _Ticket(order, command_line(order, task))
        if self._keeper is None:
            self._keeper = self._launch(order)
        self._tickets[ticket.key] = ticket
        self._waiting.append(ticket)
        if not self._held:
            self._send()

    def hold(self) -> None:
        """Send no orders until `let_go`: then all at once."""
        self._held = True

    def let_go(self) -> None:
        self._held = False
        self._send()

    def recorded(self, key: Key) -> None:
        """This end is durable: the folder can be another's, if it left nothing."""
        folder = self._bare.pop(key, None)
        if folder is not None:
            self._folders.take(folder)

    def prepare(self, folder: str) -> None:
        """Have the keeper ready before the first command is due. `folder` is any attempt's."""
        if self._keeper is None:
            self._keeper = self._launch(Order("", 0, 0, folder, CommandTask((), "")))

    def stop(self, key: Key, *, force: bool) -> None:
        ticket = self._tickets[key]
        number = signal.SIGKILL if force else signal.SIGTERM
        if ticket.process is not None:
            signal_tree(ticket.order.folder, ticket.process[0], number)
        elif not self._settle(ticket, Status(None, signal.SIGTERM), "stopped before it began"):
            # Just begun, and not told yet. Its processes cannot be told from the keeper until then.
            ticket.stop = signal.SIGKILL if force else ticket.stop or number

    def close(self) -> None:
        """Let go of the keeper: it begins no more, and ends with the last command."""
        if self._keeper is not None:
            self._unwatch(self._keeper.exit.fileno())
            self._keeper.exit.close()
            self._hang_up(self._keeper)
            self._keeper = None
        self._tickets.clear()
        self._waiting.clear()

    def _launch(self, order: Order) -> _Keeper:
        place = place_of(order.folder)
        try:
            make_folder(place)
            sweep(place)
        except OSError as error:
            few = error.errno in (errno.EMFILE, errno.ENFILE)
            advice = "raise the daemon's limit of open files" if few else "make room or check its permissions"
            raise SpawnError(f"cannot make {place}: {error.strerror}; {advice}") from error
        try:
            channel, theirs = Channel.pair()
        except OSError as error:
            raise SpawnError(
                f"cannot start the keeper of commands for run {order.run}: {error.strerror}; "
                "raise the daemon's limit of open files, or let fewer runs go at once"
            ) from error
        # Elsewhere the process table is read by an installed package.
        flags = ["-I", "-S"] if sys.platform == "linux" else ["-P"]
        argv = [self._python, *flags, "-c", _BOOT, _ROOT, place]
        try:
            pid = launch(self._python, argv, {}, stdout=os.devnull, stderr=f"{place}/keeper.log", channel=theirs)
            try:
                exit = Exit(pid)
            except OSError as error:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise SpawnError(
                    f"cannot watch the keeper of commands: {error.strerror}; raise the daemon's limit of open files"
                ) from error
        except SpawnError:
            channel.close()
            raise
        finally:
            os.close(theirs)
        keeper = _Keeper(pid, exit, channel)
        self._ahead = self._ahead_bytes = 0
        self._watch(exit.fileno(), lambda: self._gone(keeper))
        self._watch(channel.fileno(), lambda: self._hear(keeper))
        return keeper

    def _send(self) -> None:
        """Send what the keeper has room for; the rest when it has begun some."""
        keeper = self._keeper
        lines = []
        while keeper and self._waiting and self._ahead < SENT_AHEAD:
            size = len(self._waiting[0].line)
            if self._ahead and self._ahead_bytes + size > BUFFER_BYTES // 2:
                break
            ticket = self._waiting.popleft()
            ticket.sent = True
            self._ahead += 1
            self._ahead_bytes += size
            line = ticket.line
            if ticket.order.attempt == 1 and (spare := self._folders.lend()):
                line = b'{"spare":%b,%b' % (dumps(spare).encode(), line[1:])
            lines.append(line)
        if keeper and lines:
            keeper.channel.send(b"".join(lines))

    def _hear(self, keeper: _Keeper) -> None:
        for message in keeper.channel.receive():
            self._heed(keeper, message)
        if keeper.channel.ended:
            self._hang_up(keeper)
        elif keeper is self._keeper:
            keeper.channel.send(b"")
            self._send()

    def _heed(self, keeper: _Keeper, message: Message) -> None:
        kind = message["type"]
        if kind == "ready":
            keeper.ready = True
            return
        ticket = self._tickets.get((message["run"], message["attempt"]))
        if ticket is None:
            return  # Settled since it was sent; its own "refused" was the answer to it.
        order = ticket.order
        if ticket.process is None:
            self._ahead -= 1
            self._ahead_bytes -= len(ticket.line)
        if kind == "began":
            ticket.process = message["pid"], message["started"]
            self._report(Began(order.run, order.attempt, *ticket.process))
            if ticket.stop:
                signal_tree(order.folder, ticket.process[0], ticket.stop)
        elif kind == "ended":
            del self._tickets[ticket.key]
            code, number = message["code"], message["signal"]
            notes = [note for note in (note_of(code, number, order.limits), message["note"]) if note]
            bare = message["bare"]
            if bare:
                if len(self._bare) == _BARE_MAX:  # Of some nobody ever tells that they are recorded: of steps, errands.
                    del self._bare[next(iter(self._bare))]
                self._bare[ticket.key] = order.folder
            self._report(
                Ended(
                    order.run, order.attempt, code, number, message["cpu_ms"], message["rss_kib"], "; ".join(notes),
                    {} if bare else None,
                )
            )  # fmt: skip
        elif kind == "refused":
            del self._tickets[ticket.key]
            self._adopt(order)
        elif kind == "failed":
            del self._tickets[ticket.key]
            self._report(Ended(order.run, order.attempt, 1, None, note=message["note"]))

    def _gone(self, keeper: _Keeper) -> None:
        """The keeper has ended, which it does not do by itself while it has a daemon."""
        if not keeper.channel.closed:
            self._hear(keeper)
            self._hang_up(keeper)
        self._unwatch(keeper.exit.fileno())
        keeper.exit.close()
        end = status_of(os.waitpid(keeper.pid, 0)[1])
        self._keeper = None
        self._waiting.clear()
        tickets, self._tickets = list(self._tickets.values()), {}
        for ticket in tickets:
            order = ticket.order
            if read_claim(order.folder) is not None:
                self._adopt(order)
                continue
            try:
                if not keeper.ready:
                    how = f"signal {end.signal}" if end.code is None else f"exit status {end.code}"
                    log = f"{place_of(order.folder)}/keeper.log"
                    raise SpawnError(f"the keeper of commands could not start: {how}; see {log}")
                assert isinstance(order.task, CommandTask)
                self.start(order, order.task)
            except SpawnError as error:
                if not self._settle(ticket, Status(1, None), str(error)):
                    self._drop(ticket, Status(1, None), str(error))

    def _settle(self, ticket: _Ticket, end: Status, note: str) -> bool:
        """End an attempt that never began, by taking its claim; False if it is claimed."""
        order = ticket.order
        try:
            make_folder(order.folder)
            if not claim_never(order.folder):
                return False
            write_status(order.folder, end)
        except OSError:
            return False  # Without room for a claim it will not begin, and that is told.
        self._drop(ticket, end, note)
        return True

    def _drop(self, ticket: _Ticket, end: Status, note: str) -> None:
        if ticket.sent:
            self._ahead -= 1
            self._ahead_bytes -= len(ticket.line)
        with contextlib.suppress(ValueError):
            self._waiting.remove(ticket)
        self._tickets.pop(ticket.key, None)
        self._report(Ended(*ticket.key, end.code, end.signal, note=note))

    def _hang_up(self, keeper: _Keeper) -> None:
        if not keeper.channel.closed:
            self._unwatch(keeper.channel.fileno())
            keeper.channel.close()
