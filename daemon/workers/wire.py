"""What the daemon and a warm worker say to each other: one JSON object a line, over a socketpair, UTF-8, no pickle.

Standard library only: this module is imported by every worker. It is spoken by `daemon.workers.warm` on the daemon's
side and by `daemon.workers.child.serve` on the worker's; an engine only gives `serve` its `perform`.

From the daemon:

    {"type": "perform", "run", "attempt", "folder", "env", "task", "limits"}
        Perform one attempt. `task` is the fields of the PythonTask or the InferenceTask of `daemon.ports` by their
        own names; `env` is what this attempt adds to the worker's environment (HERMESD_RUN, HERMESD_ATTEMPT,
        HERMESD_FOLDER); `limits` may hold `cpu_seconds`, which counts from here.
    {"type": "perform", "run", "attempt", "folder", "file"}
        The same, too long for a line: the whole message is in the file at path `file`.

Orders may be sent ahead; the worker performs one at a time, in the order received. The end of the stream means that
the daemon wants no more of the worker, or is dead: the worker finishes what it has claimed, leaves the rest unclaimed
for whoever comes, and exits.

From the worker:

    {"type": "ready"}
        It is up. A worker that ends before this could not start.
    {"type": "claimed", "run", "attempt"}
        The claim file is its own: from here on nobody else performs this attempt.
    {"type": "refused", "run", "attempt"}
        Somebody else has the claim; it does nothing with this attempt.
    {"type": "ended", "run", "attempt", "code", "cpu_ms", "rss_kib", "note"}
        Over; result, status and output are in the folder. `rss_kib` is the worker's peak so far.
    {"type": "facts", ...}
        What people may want to know of this worker (state, device, load_ms); merged into its view.

Files in the attempt's folder, the worker's to write: `claim`, `stdout.log`, `stderr.log`, `result.json` (only with
status 0), `status` (see `daemon.workers.claim`).
"""

from __future__ import annotations

import json
from typing import Any

Message = dict[str, Any]

LINE_BYTES_MAX = 16_384
"""Longest order sent on the socket; a longer one goes by file. Sent-ahead orders times this must fit in the socket's
buffer, for the daemon never waits for a worker to read."""


def line_of(message: Message) -> bytes:
    """The message as one line. TypeError or ValueError if it is not JSON."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"


class Lines:
    """Bytes as they come from the stream, given back as whole messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """Messages that `data` completes. ValueError if a line is not a JSON object."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        messages: list[Message] = []
        for line in whole:
            message = json.loads(line)
            if not isinstance(message, dict):
                raise ValueError(f"expected a JSON object on the worker's line, got {line[:80]!r}")
            messages.append(message)
        return messages
