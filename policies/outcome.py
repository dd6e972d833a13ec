"""What an attempt came to, and whether there is another."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Mapping
from typing import Any, NamedTuple

from state.graph import WITH_PROCESS, Run, is_container

Json = Any


_WORDS_MAX = 2000
"""Of each that is said of an attempt: a record holds only so much."""


class Outcome(NamedTuple):
    outcome: str
    reason: str
    retry_at_ms: int | None


def accepts(run: Run, attempt: int) -> bool:
    """Whether a report about `attempt` is heard: only of the latest attempt, while it holds its grant. Any other is a
    late one, to be fenced."""
    return run.state in WITH_PROCESS and run.attempt == attempt


def judge(
    run: Run,
    wall_ms: int,
    *,
    code: int | None,
    signal_number: int | None,
    note: str = "",
    unstarted: str = "",
    unmet: str = "",
    jitter_percent: int = 0,
) -> Outcome:
    """The truth about one ended attempt.

    `code` and `signal_number` both None: nobody saw its end. `unstarted`: why it could not be started at all. `unmet`:
    what the job expects of a success and is not there. `jitter_percent`: by how much at most the next attempt's wait
    is made longer.
    """
    kind, outcome, reason = _kind(run, code, signal_number, unstarted[:_WORDS_MAX], unmet[:_WORDS_MAX])
    if note:
        reason = f"{reason}; {note[:_WORDS_MAX]}"
    retry_at_ms = None
    # An agent's run is not tried again as a whole: its steps are, one by one.
    retry = {} if is_container(run.spec) else run.spec["retry"]
    attempts = retry.get("attempts", 1)
    if kind in retry.get("on", ()) and run.attempt < attempts:
        wait_ms = backoff_ms(retry, run.attempt)
        wait_ms += share(run.name, run.attempt) * wait_ms * jitter_percent // (100 << 32)
        retry_at_ms = wall_ms + wait_ms
        reason = f"{reason}; attempt {run.attempt + 1} of {attempts} follows in {wait_ms / 1000:g} s"
    elif kind == "lost":
        reason += f"; it is not run again by itself, since it may have done its work: `hermesd retry {run.name}` does"
    return Outcome(outcome, reason, retry_at_ms)


def share(name: str, attempt: int) -> int:
    """A number below 2**32, always the same for the same attempt."""
    return int.from_bytes(hashlib.sha256(f"{name}/{attempt}".encode()).digest()[:4], "big")


def _kind(run: Run, code: int | None, signal_number: int | None, unstarted: str, unmet: str) -> tuple[str, str, str]:
    """Class for `retry.on` ("" is never retried), outcome, reason."""
    if run.stopping_why == "timeout":
        return "timeout", "timed_out", f"was stopped after its timeout of {run.spec['timeout'] / 1000:g} s"
    if run.stopping_why == "lease":
        again = "" if run.parent else f"; `hermesd retry {run.name}` runs it again, once the lease is free"
        return "", "failed", f"was stopped: {run.reason}{again}"
    if run.stopping_why:
        because = {"parent": "its agent's run was stopped", "overlap": "a later slot of its job took its place"}
        return "", "cancelled", f"was stopped: {because.get(run.stopping_why, 'a person asked for it')}"
    if unstarted:
        return "exit", "failed", unstarted
    if signal_number is not None:
        return "exit", "failed", f"was killed by {_signal_name(signal_number)}"
    if code is None:
        return "lost", "lost", "nobody saw its end"
    if code == 0 and unmet:
        return "output", "failed", f"exit status 0, but {unmet}"
    if code == 0:
        return "", "succeeded", "exit status 0"
    if code > 128 and (name := _signal_name(code - 128)):
        return "exit", "failed", f"exit status {code} (as after {name})"
    return "exit", "failed", f"exit status {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""


def backoff_ms(retry: Mapping[str, Json], attempt: int) -> int:
    """The wait after attempt `attempt` (from 1), in ms."""
    base, longest = int(retry["base"]), int(retry["max"])
    if retry["backoff"] == "fixed":
        return base
    return min(longest, base << min(attempt - 1, 32))
