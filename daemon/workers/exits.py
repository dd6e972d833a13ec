"""A descriptor that becomes readable when a process ends: a pidfd on Linux, a kqueue of one event elsewhere."""

from __future__ import annotations

import os
import signal
import sys


class Exit:
    """Watches one process, ours or not. ProcessLookupError if it is gone already (a zombie of ours is not gone).

    Linux's descriptor also names the process for signals, so that none ever reaches another one with the same pid.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._descriptor = os.pidfd_open(pid) if sys.platform == "linux" else _exit_queue(pid)

    def fileno(self) -> int:
        return self._descriptor

    def send(self, number: int) -> None:
        """Signal the process; ProcessLookupError if it is gone."""
        if sys.platform == "linux":
            signal.pidfd_send_signal(self._descriptor, number)
        else:
            os.kill(self._pid, number)

    def close(self) -> None:
        os.close(self._descriptor)


def _exit_queue(pid: int) -> int:
    """The descriptor of a new kqueue that holds nothing but this process's end."""
    if sys.platform == "linux":
        raise NotImplementedError
    import select

    queue = select.kqueue()
    event = select.kevent(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD | select.KQ_EV_ONESHOT, select.KQ_NOTE_EXIT)
    try:
        queue.control([event], 0)
        return os.dup(queue.fileno())
    finally:
        queue.close()
