"""`python -m simulations.transcript [--rewrite] [FILE...]`: stories of the real loop, as commands and what they show.

A story is a text: a command, a line of dashes, what is recorded from then on (or what the command answers), an empty
line. `--rewrite` writes down what happens now, for a reviewer to read. Exit status 0: all stories go as they are told.

    at TIME                       what the wall shows in the beginning
    policy {max_running: 1}       instead of the stories' own
    define NAME {schedule: ...}   a job file; `remove NAME`
    takes NAME 5m [exit 3]        how long the next attempts of a job take, and how they end: `stubborn` ignores
                                  SIGTERM, `unseen` leaves no exit status, `echo 10s` reports again after its end
    begin, end, kill, power       the daemon starts, stops, is killed; the power goes
    pass 10m                      time passes, and the daemon looks whenever something is due
    sleep 8h                      the machine sleeps: no time for anybody; `stall 8h`: no time for the daemon
    clock +1h                     the wall clock is set
    start NAME, cancel NAME, retry NAME, pause [NAME], resume [NAME], backfill NAME FROM TO
    ask-again                     the last request once more, under the same name
    hold KEY 30s, free KEY        somebody else's lease
    full, room                    the disk
    fail                          the next sync of a batch fails
    second                        another daemon on the same home
    flip FILE, cut FILE           the last file whose name has FILE in it rots, or loses its end
    drop PATH                     a file
    runs [NAME], why NAME         the runs and their states; what the last of them came to
    verify                        the verifier, and every decision asked again
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from daemon.ports import Order
from ledger.disk import Locked
from ledger.errors import Corrupt, Full
from ledger.instant import ms_of
from ledger.reader import read
from ledger.record import Record
from ledger.verify import verify
from policies.adoption import Accepted
from policies.foreign import SeenLease
from policies.job import parse_job
from policies.quantity import parse_duration
from policies.replay import verify_decisions
from simulations.fence import fenced
from simulations.host import Process, SimSpawner
from simulations.world import World
from state.arrivals import stamp
from state.graph import Run

Json = Any

SCENARIOS = Path(__file__).parent / "scenarios"
_DASHES = "----"


class Told(NamedTuple):
    command: str
    """With the comments above it."""
    shown: str


class _Takes(NamedTuple):
    span_ms: int = 1_000
    code: int = 0
    stubborn: bool = False
    unseen: bool = False
    echo_ms: int = 0


class _Workers(SimSpawner):
    """Attempts go as the story says."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.host)
        self._stage = stage

    def process_of(self, order: Order) -> Process:
        job = order.run.partition(".")[0]
        takes = self._stage.takes.get(job, _Takes())
        self._stage.host.next_pid += 1
        boot_ms = self._stage.clock.boot_ns // 1_000_000
        return Process(
            (order.run, order.attempt), job, self._stage.host.next_pid, boot_ms, boot_ms + takes.span_ms, takes.code,
            takes.stubborn, (), unheard=takes.unseen, echo_ms=takes.echo_ms,
        )  # fmt: skip


class Stage(World):
    """A world in which only happens what the story says."""

    def __init__(self) -> None:
        self.takes: dict[str, _Takes] = {}
        self._shown_seq = 0
        super().__init__(0)
        self.view_every_ms, self.snapshot_every = 36_000_000, 1_000_000
        self.disk.short_writes = False
        self.clock.wall_ns = ms_of("2026-03-02T12:00:00Z") * 1_000_000
        self.answers: list[str] = []

    def _define_jobs(self) -> None: ...

    def _spawner(self) -> SimSpawner:
        return _Workers(self)

    def tell(self, command: str) -> str:
        """Do what a line says; what there is to show for it."""
        verb, _, rest = command.partition(" ")
        act: Callable[[str], str | None] | None = getattr(self, f"_do_{verb.replace('-', '_')}", None)
        if act is None:
            raise ValueError(f"{verb!r} is no command of a story")
        shown = act(rest.strip()) or ""
        if self.loop is not None:
            shown += self._news()
        return shown.rstrip() or "(nothing)"

    def _news(self) -> str:
        lines = []
        for record in read(self.disk, after=self._shown_seq):
            self._shown_seq = record.seq
            lines += [f"{record.ts[5:19].replace('T', ' ')} {line}\n" for line in _lines(record)]
        return "".join(lines)

    def _look(self, *reasons: str) -> None:
        if self.loop is not None:
            self.rouse(frozenset(reasons))

    def _do_at(self, rest: str) -> None:
        self.clock.wall_ns = ms_of(rest) * 1_000_000

    def _do_policy(self, rest: str) -> None:
        self.policy = replace(self.policy, **yaml.safe_load(rest))
        self._look("policies")

    def _do_define(self, rest: str) -> None:
        name, _, fields = rest.partition(" ")
        raw = {"name": name, "kind": "command", "schedule": "manual"} | (yaml.safe_load(fields) or {})
        if raw["kind"] == "command":
            raw.setdefault("argv", ["work"])
        job = parse_job(raw)
        self.jobs[name] = Accepted(job.digest(), job.canonical(), f"{name}.yaml")
        self._look("jobs")

    def _do_remove(self, rest: str) -> None:
        del self.jobs[rest]
        self._look("jobs")

    def _do_takes(self, rest: str) -> None:
        job, span, *more = rest.split()
        words = iter(more)
        takes = _Takes(span_ms=1 << 40 if span == "forever" else parse_duration(span))
        for word in words:
            if word == "exit":
                takes = takes._replace(code=int(next(words)))
            elif word == "echo":
                takes = takes._replace(echo_ms=parse_duration(next(words)))
            else:
                takes = takes._replace(**{word: True})
        self.takes[job] = takes

    def _do_begin(self, rest: str) -> str:
        del rest
        try:
            self.lives += 1
            loop = self.new_loop()
            loop.begin()
        except (Corrupt, Full, Locked) as refusal:
            self.disk.kill()
            return f"refused: {refusal}\n"
        self.loop = loop
        self._look("start")
        return ""

    def _do_end(self, rest: str) -> str:
        del rest
        self.stop()
        return ""

    def _do_kill(self, rest: str) -> str:
        del rest
        shown = self._news()
        self.loop, self.timer_ms = None, None
        self.disk.kill()
        return shown

    def _do_power(self, rest: str) -> str:
        shown = self._do_kill(rest)
        self.disk.crash()
        self.host.lose_power()
        return shown

    def _do_pass(self, rest: str) -> None:
        until_ns = self.clock.lived_ns + parse_duration(rest) * 1_000_000
        for _ in range(10_000):
            left_ms = (until_ns - self.clock.lived_ns) // 1_000_000
            now_ms = self.clock.wall_ns // 1_000_000
            next_ms = max(0, self._next_ms() - now_ms)
            if self.loop is None or next_ms > left_ms:
                break
            self.clock.advance_ns(next_ms * 1_000_000)
            self._look("timer")
        self.clock.advance_ns(max(0, until_ns - self.clock.lived_ns))
        self.host.pass_time()

    def _do_sleep(self, rest: str) -> None:
        """Processes sleep, too."""
        span_ms = parse_duration(rest)
        for process in self.host.alive():
            process.ends_at_ms += span_ms
        self.clock.advance_ns(span_ms * 1_000_000)
        self._look("clock", "timer")

    def _do_stall(self, rest: str) -> None:
        self.clock.advance_ns(parse_duration(rest) * 1_000_000)
        self._look("timer")

    def _do_clock(self, rest: str) -> None:
        sign = -1 if rest.startswith("-") else 1
        self.clock.wall_ns += sign * parse_duration(rest.lstrip("+-")) * 1_000_000
        self._look("clock", "timer")

    def _asked(self, verb: str, args: dict[str, Json]) -> str:
        self.ask(verb, args)
        return self._answered()

    def _answered(self) -> str:
        answers: list[str] = []
        for asked in self.asked:
            answer = asked.answer

            def heard(said: Json, answer: Callable[[Json], None] = answer) -> None:
                answer(said)
                answers.append("answer: already so" if said.get("already") else "answer: taken")

            asked.answer = heard
            asked.fail = lambda code, message, advice: answers.append(f"declined: {message}; {advice}")
        self.last = self.asked[-1].request
        self._look()
        return "".join(f"{answer}\n" for answer in answers) or "no answer\n"

    def _do_ask_again(self, rest: str) -> str:
        del rest
        self._send(self.last)
        return self._answered()

    def _do_start(self, rest: str) -> str:
        return self._asked("start", {"job": rest})

    def _do_cancel(self, rest: str) -> str:
        return self._asked("cancel", {"run": self._last_run(rest).name})

    def _do_retry(self, rest: str) -> str:
        return self._asked("retry", {"run": self._last_run(rest).name})

    def _do_pause(self, rest: str) -> str:
        return self._asked("pause", {"job": rest} if rest else {})

    def _do_resume(self, rest: str) -> str:
        return self._asked("resume", {"job": rest} if rest else {})

    def _do_backfill(self, rest: str) -> str:
        job, begin, end = rest.split()
        return self._asked("backfill", {"job": job, "from": begin, "to": end})

    def _do_hold(self, rest: str) -> None:
        key, span = rest.split()
        ends_ms = self.clock.boot_ns // 1_000_000 + parse_duration(span)
        self.host.foreign[key] = SeenLease(key, "editor", ends_ms, "")
        self._look("leases")

    def _do_free(self, rest: str) -> None:
        del self.host.foreign[rest]
        self._look("leases")

    def _do_full(self, rest: str) -> None:
        del rest
        self.disk.capacity_bytes = self.disk.used_bytes()

    def _do_room(self, rest: str) -> None:
        del rest
        self._make_room()

    def _do_fail(self, rest: str) -> None:
        del rest
        self.disk.fail_at(r"sync ledger/0.*\.jsonl$", errno.EIO)

    def _do_second(self, rest: str) -> str:
        del rest
        try:
            self.new_loop().begin()
        except Locked as locked:
            return f"refused: {locked}\n"
        return "both run\n"

    def _do_flip(self, rest: str) -> str:
        path = [path for path in self.disk.files() if rest in path][-1]
        data = bytearray(self.disk.files()[path])
        data[len(data) // 2] ^= 1
        self.disk.corrupt(path, bytes(data))
        return f"{path}: a byte of {len(data)} is another one\n"

    def _do_cut(self, rest: str) -> str:
        path = [path for path in self.disk.files() if rest in path][-1]
        data = self.disk.files()[path]
        self.disk.corrupt(path, data[: -len(data) // 3])
        return f"{path}: {len(self.disk.files()[path])} bytes of {len(data)} are left\n"

    def _do_drop(self, rest: str) -> None:
        self.dropped[rest] = len(self.dropped)
        self.host.files[rest] = stamp(1, self.clock.wall_ns, len(self.dropped))
        self._look("files")

    def _do_runs(self, rest: str) -> str:
        return "".join(
            f"{_short(run.name)}  {run.state}{f', attempt {run.attempt}' if run.attempt > 1 else ''}\n"
            for run in self._runs(rest)
        )

    def _do_why(self, rest: str) -> str:
        run = self._last_run(rest)
        return (
            f"{_short(run.name)}  {run.state}, by rule {run.rule}: {run.reason.replace(run.name, _short(run.name))}\n"
        )

    def _do_verify(self, rest: str) -> str:
        del rest
        found, records = verify(self.disk), list(read(self.disk))
        wrong = [verdict.seq for verdict in verify_decisions(records) if not verdict.agrees]
        damages = "".join(f"{it.file}, byte {it.offset}: {it.reason}\n" for it in found.damages)
        return damages + f"{len(records)} records; decisions that cannot be reproduced: {wrong or 'none'}\n"

    def _runs(self, job: str) -> list[Run]:
        assert self.loop is not None, "the daemon does not run"
        nodes = [node for node in self.loop.graph.nodes.values() if isinstance(node, Run)]
        return sorted((run for run in nodes if not job or run.job == job), key=lambda run: (run.at, run.name))

    def _last_run(self, job: str) -> Run:
        return self._runs(job)[-1]


def _short(run: str) -> str:
    """The job, the instant, the step: without the hash that tells runs of one second apart."""
    job, instant, *rest = run.split(".")
    return ".".join(
        [f"{job}@{instant[4:6]}-{instant[6:8]}T{instant[9:11]}:{instant[11:13]}:{instant[13:15]}", *rest[1:]]
    )


def _lines(record: Record) -> Iterator[str]:
    """What a record tells, in a line or several."""
    data, kind = record.data, record.type
    if kind == "plan.decided":
        for decided in data["decisions"]:
            span = f" and {decided['count'] - 1} more" if decided.get("count", 1) > 1 else ""
            attempt = f", attempt {decided['attempt']}" if decided["attempt"] > 1 else ""
            reason = " ".join(_short(word) if word.count(".") >= 2 and "T" in word else word
                              for word in decided["reason"].split())  # fmt: skip
            yield f"{decided['verdict']} {_short(decided['run'])}{span}{attempt} [{decided['rule']}] {reason}"
    elif kind == "run.finished":
        reason = data["reason"].replace(data["run"], _short(data["run"]))
        yield f"{data['outcome']} {_short(data['run'])}, attempt {data['attempt']}: {reason}"
    elif kind in ("run.started", "run.adopted", "run.fenced"):
        yield f"{kind} {_short(data['run'])}, attempt {data['attempt']}"
    elif kind == "run.stopping":
        yield f"{kind} {_short(data['run'])} ({data['why']}{', by force' if data['force'] else ''})"
    elif kind in ("lease.seen", "lease.released", "lease.refused"):
        yield f"{kind} {data['key']} ({data['holder']}{', ' + data['why'] if 'why' in data else ''})"
    elif kind in ("job.paused", "daemon.paused"):
        yield f"{kind} {data.get('job', '')} by {data['actor']}: {data['reason'] or 'no reason given'}".replace(
            "  ", " "
        )
    elif kind == "clock.jumped":
        yield f"{kind} by {data['jump_ms'] / 1000:g} s"
    elif kind == "ledger.recovered":
        cuts = sum(cut["bytes"] for cut in data["cuts"])
        yield f"{kind}: {cuts} bytes cut and kept" + (", the last batch written again" if data["rewritten"] else "")
    elif kind == "files.arrived":
        yield f"{kind} {', '.join(file['path'] for file in data['files'])}"
    elif kind in ("job.defined", "job.changed", "job.removed", "daemon.started", "daemon.stopped", "job.resumed"):
        yield f"{kind} {data.get('job', '')}".rstrip()


def parse(text: str) -> list[Told]:
    """The commands of a story, each with what it is said to show."""
    told: list[Told] = []
    for block in text.split("\n\n"):
        command, dashes, shown = block.strip("\n").partition(f"\n{_DASHES}")
        if dashes:
            told.append(Told(command, shown.strip("\n")))
        elif command.strip():
            told.append(Told(command, ""))
    return told


def play(text: str) -> str:
    """The story as it goes now."""
    stage, blocks = Stage(), []
    with fenced():
        for command, _ in parse(text):
            lines = [line for line in command.splitlines() if not line.startswith("#") and line.strip()]
            shown = [stage.tell(line) for line in lines]
            if not shown:
                blocks.append(command)
                continue
            together = "\n".join(part for part in shown if part != "(nothing)") or "(nothing)"
            blocks.append(f"{command}\n{_DASHES}\n{together}")
    return "\n\n".join(blocks) + "\n"


def main(arguments: list[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m simulations.transcript", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="stories; all of simulations/scenarios else"
    )
    parser.add_argument("--rewrite", action="store_true", help="write down what happens now")
    asked = parser.parse_args(arguments)
    differing = 0
    for path in asked.files or sorted(SCENARIOS.glob("*.txt")):
        text = path.read_text()
        played = play(text)
        if played == text:
            continue
        differing += 1
        if asked.rewrite:
            path.write_text(played)
        print(f"{path.name} {'is rewritten' if asked.rewrite else 'goes otherwise now; --rewrite shows how'}")
    return 1 if differing and not asked.rewrite else 0


if __name__ == "__main__":
    sys.exit(main())
