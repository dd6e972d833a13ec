"""kill -9 of the real daemon, again and again, at random moments under load; then the books are audited.

What is held against the ledger comes from elsewhere: answers that clients were given, lines that the runs themselves
wrote, the exit statuses that the jobs are known to have, the grid of the schedules, the process table.

HERMES_KILL_CYCLES: how many (60 unless told; `make kills` asks for 200). HERMES_KILL_SEED: the one a failure printed,
for the same moments and requests; what the machine makes of them is not repeatable.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from cli_shell import ENVIRONMENT, ROOT, hermesd, make_home

from daemon.control import Request, address_of, leave, new_request
from daemon.system import OsDisk
from ledger.instant import ms_of
from ledger.reader import read
from ledger.record import Record

CYCLES = int(os.environ.get("HERMES_KILL_CYCLES", "60"))
PARTS = 2
"""Homes that the cycles are shared out over, so that they are lived side by side."""
SEED = int(os.environ.get("HERMES_KILL_SEED", "0")) or time.time_ns() % 1_000_000_000

SAY = 'say() { echo "$HERMESD_RUN $HERMESD_ATTEMPT $1" >>"$WITNESS"; }; say begin; '
MODULE = """\
import os

def say(word):
    line = f"{os.environ['HERMESD_RUN']} {os.environ['HERMESD_ATTEMPT']} {word}\\n"
    witness = os.open(os.environ["WITNESS"], os.O_WRONLY | os.O_APPEND)
    os.write(witness, line.encode())
    os.close(witness)

def returns(value):
    say("begin")
    say("end")
    return value

def exits(code):
    say("begin")
    say("end")
    raise SystemExit(code)

def dies(code):
    say("begin")
    say("end")
    os._exit(code)
"""

ENDINGS: dict[str, set[tuple[str, int | None]]] = {
    "fine": {("succeeded", 0)},
    "seven": {("failed", 7)},
    "shot": {("failed", None)},
    "again": {("succeeded", 0)},
    "family": {("failed", 3)},
    "left": {("succeeded", 0)},
    "right": {("succeeded", 0)},
    "called": {("succeeded", 0)},
    "raised": {("failed", 5)},
    # A worker that dies without a word, with no daemon to see it: nobody knows how, and that is what must be said.
    "crashed": {("failed", 6), ("lost", None)},
    "asked": {("failed", 11)},
    "asked-called": {("succeeded", 0)},
    # Stopped, stopped before it began, or at its end already when the signal came.
    "slow": {("succeeded", 0), ("cancelled", 143), ("cancelled", None), ("cancelled", 0)},
    "steps": {("failed", None)},
    "steps/first": {("succeeded", 0)},
    "steps/second": {("failed", 9)},
    "steps/never": {("skipped", None)},
    "follower": {("succeeded", 0)},
    "arrived": {("succeeded", 0)},
}
"""Job, or job/step -> how its runs may end: outcome and exit status."""

PERIODS_MS = {
    "fine": 1000, "seven": 2000, "shot": 2000, "again": 4000, "family": 4000, "left": 1000, "right": 1000,
    "called": 1000, "raised": 2000, "crashed": 4000, "steps": 3000,
}  # fmt: skip


def job(name: str, text: str = "", **more: Any) -> dict[str, Any]:
    """A command job that says when it begins and when it ends."""
    period_ms = PERIODS_MS.get(name)
    schedule = {"every": f"{period_ms // 1000}s"} if period_ms else "manual"
    work = {"kind": "command", "shell": SAY + text} if text else {"kind": "python"}
    return {"name": name, "schedule": schedule, "needs": {"cpu": 0.1}, "overlap": "allow_all", **work, **more}


def jobs(home: Path) -> list[dict[str, Any]]:
    guarded = 'mkdir "$GUARD" || say overlap; sleep 0.05; rmdir "$GUARD"; say end'
    thrice = {"attempts": 3, "backoff": "fixed", "base": "1s"}
    found = [
        job("fine", "say end"),
        job("seven", "sleep 0.1; say end; exit 7"),
        job("shot", "say end; kill -9 $$"),
        job("again", "say end; [ $HERMESD_ATTEMPT = 3 ] || exit 4", retry=thrice),
        job("family", "sleep 600 & sh -c 'sleep 600' & say end; exit 3"),
        job("left", guarded, leases=["repo:shared"], overlap="skip"),
        job("right", guarded, leases=["repo:shared"], overlap="skip"),
        job("called", call="witness:returns", kwargs={"value": [1, "two"]}),
        job("raised", call="witness:exits", kwargs={"code": 5}),
        job("crashed", call="witness:dies", kwargs={"code": 6}),
        job("asked", "say end; exit 11"),
        job("asked-called", call="witness:returns", kwargs={"value": None}),
        job("slow", "sleep 1.5; say end", grace="2s"),
        job("follower", "say end", schedule={"after": "seven", "when": "any"}, overlap="skip"),
        job("arrived", "say end", schedule={"on": {"path": str(home.parent / "inbox" / "*.txt"), "settle": "50ms"}}),
        job("steps", kind="agent", steps=[
            {"name": "first", "kind": "command", "shell": SAY + "say end"},
            {"name": "second", "kind": "command", "after": "first", "shell": SAY + "say end; exit 9"},
            {"name": "never", "kind": "command", "after": "second", "shell": SAY},
        ]),
    ]  # fmt: skip
    for one in found:
        one["env"] = {"WITNESS": str(home.parent / "witness"), "GUARD": str(home.parent / "guard")}
    return found


@dataclass
class Books:
    """What happened as others saw it."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    """Request -> the run it was told of ("" where the request was known already)."""
    unanswered: list[Request] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    """Those that were put, whole, where `arrived` looks for them."""
    said: Counter[str] = field(default_factory=Counter)
    """What the daemon answered, by kind."""


class Daemon:
    """The real command, from its start to its end by SIGKILL."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.errors = open(home.parent / "daemon.log", "ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "daemon.cli", "--home", str(home), "run"],
            cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip
        self._timer: threading.Timer | None = None

    def kill_in(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self.process.send_signal, (signal.SIGKILL,))
        self._timer.start()

    def ready(self) -> bool:
        """Wait for it; False if it was killed first. One that ends by itself is a failure."""
        assert self.process.stdout is not None
        if b"is ready" in self.process.stdout.readline():
            return True
        self.gone(-signal.SIGKILL)
        return False

    def gone(self, code: int) -> None:
        found = self.process.wait(60)
        if self._timer is not None:
            self._timer.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()
        assert found == code, f"it ended with {found}:\n{(self.home.parent / 'daemon.log').read_text()[-4000:]}"


def ask_all(home: Path, requests: list[Request], books: Books) -> bool:
    """Ask all of these at once, each on a connection of its own; False once the daemon is gone."""
    alive = True
    with contextlib.ExitStack() as open_sockets:
        asked = []
        for request in requests:
            peer = open_sockets.enter_context(socket.socket(socket.AF_UNIX))
            peer.settimeout(30)
            books.unanswered.append(request)
            try:
                with address_of(home) as address:
                    peer.connect(address)
                peer.sendall(request.line())
            except OSError:
                return False
            asked.append((request, peer))
        for request, peer in asked:
            answer = b""
            with contextlib.suppress(ConnectionError):
                while not answer.endswith(b"\n") and (data := peer.recv(65_536)):
                    answer += data
            if not answer.endswith(b"\n"):
                alive = False
                continue
            books.unanswered.remove(request)
            told = orjson.loads(answer)
            books.said[f"{request.verb} {'fine' if told['ok'] else told['error']['code']}"] += 1
            if told["ok"]:
                run = told["result"].get("run", "")
                books.acknowledged[request.id] = books.acknowledged.get(request.id) or run
                if request.verb == "start" and request.args["job"] == "slow" and run:
                    books.slow.append(run)
    return alive


def some_requests(chance: random.Random, books: Books) -> list[Request]:
    found = []
    for _ in range(chance.randint(1, 4)):
        dice = chance.random()
        if dice < 0.15 and books.unanswered:
            found.append(chance.choice(books.unanswered))  # Asked again, since nobody knows whether it was taken.
            books.unanswered.remove(found[-1])
        elif dice < 0.3 and books.slow:
            found.append(new_request("cancel", {"run": books.slow.pop(chance.randrange(len(books.slow)))}))
        elif dice < 0.4:
            found.append(new_request("note", {"text": "somebody was here"}))
        else:
            name = chance.choices(("asked", "asked-called", "slow", "steps"), (10, 10, 3, 1))[0]
            found.append(new_request("start", {"job": name}))
    return found


def put_file(home: Path, books: Books) -> None:
    inbox = home.parent / "inbox"
    books.files.append(str(inbox / f"{len(books.files)}.txt"))
    (inbox / ".written").write_text(books.files[-1])
    (inbox / ".written").rename(books.files[-1])


def one_life(home: Path, chance: random.Random, books: Books) -> bool:
    """Start the daemon, load it, kill it; False if it did not live to be ready."""
    daemon = Daemon(home)
    if chance.random() < 0.25:
        daemon.kill_in(chance.uniform(0.1, 0.9))
        lived = daemon.ready()
    else:
        lived = daemon.ready()
        daemon.kill_in(chance.uniform(0, 0.35))
    if not lived:
        return False
    bursts = 0
    while bursts < 6 and ask_all(home, some_requests(chance, books), books):
        bursts += 1
    daemon.gone(-signal.SIGKILL)
    return True


def processes_of(home: Path) -> list[str]:
    """Everything alive that was started for this home."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            alive = (folder / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
            told = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
            if alive and os.fsencode(home) in told and int(folder.name) != os.getpid():
                found.append(f"{folder.name} {(folder / 'cmdline').read_bytes()!r}")
    return found


def until(met: Any, what: str, within_s: float = 60.0) -> None:
    give_up_s = time.monotonic() + within_s
    pause = threading.Event()
    while not met():
        assert time.monotonic() < give_up_s, f"not within {within_s} s: {what}"
        pause.wait(0.05)


def sound(home: Path) -> None:
    """The verifier that shares no code with the ledger finds no damage."""
    verifier = [sys.executable, str(ROOT / "ledger" / "standalone.py"), str(home)]
    done = subprocess.run(verifier, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


class Audit:
    """The ledger's own account, in the words of the checks."""

    def __init__(self, records: list[Record]) -> None:
        self.requested: dict[str, list[str]] = {}
        self.granted: Counter[tuple[str, int]] = Counter()
        self.ends: dict[str, list[tuple[str, int | None]]] = {}
        self.attempts: Counter[tuple[str, int]] = Counter()
        self.codes: dict[tuple[str, int], tuple[str, int | None]] = {}
        self.of: dict[str, str] = {}
        """Run -> its job, or job/step."""
        self.slots: dict[str, dict[str, tuple[int, int]]] = {}
        self.defined_ms: dict[str, int] = {}
        self.fenced: list[str] = []
        self.files: Counter[str] = Counter()
        for record in records:
            self._take(record, record.data)

    def _take(self, record: Record, data: Any) -> None:
        match record.type:
            case "job.defined":
                self.defined_ms[data["job"]] = ms_of(record.ts[:23] + "Z")
            case "start.requested" | "cancel.requested" | "note.added":
                self.requested.setdefault(data["request"], []).append(data.get("run", ""))
            case "plan.decided":
                for decided in data["decisions"]:
                    self._decided(decided)
            case "run.finished":
                key = data["run"], data["attempt"]
                self.attempts[key] += 1
                self.codes[key] = data["outcome"], data["code"]
                if data["retry_at"] is None:
                    self.ends.setdefault(data["run"], []).append((data["outcome"], data["code"]))
            case "run.fenced":
                self.fenced.append(f"{record.seq}: {data}")

    def _decided(self, decided: Any) -> None:
        run, verdict = decided["run"], decided["verdict"]
        self.of[run] = decided["job"] + (f"/{decided['step']}" if "step" in decided else "")
        if verdict == "started":
            self.granted[run, decided["attempt"]] += 1
        elif verdict != "deferred":
            self.ends.setdefault(run, []).append((verdict, None))
        if decided["trigger"] == "on" and decided["attempt"] <= 1 and verdict != "deferred":
            self.files[decided["file"]] += 1
        if decided["trigger"] == "schedule":
            until = ms_of(decided.get("until", decided["at"]))
            self.slots.setdefault(decided["job"], {})[run] = ms_of(decided["at"]), until

    def check(self, books: Books, witness: list[str]) -> None:
        assert self.fenced == [], "no report came about an attempt that was over"
        self._check_requests(books)
        self._check_endings()
        self._check_slots()
        assert self.files == Counter(books.files), "a file that arrived started no run, or two"
        self._check_witness(witness)

    def _check_requests(self, books: Books) -> None:
        doubled = {request: runs for request, runs in self.requested.items() if len(runs) > 1}
        assert doubled == {}, "a request was taken twice"
        lost = {
            request: run
            for request, run in books.acknowledged.items()
            if request not in self.requested or run not in ("", self.requested[request][0])
        }
        assert lost == {}, "a client was told of what the ledger does not hold"
        silent = [runs[0] for runs in self.requested.values() if runs[0] and runs[0] not in self.ends]
        assert silent == [], "a run was asked for and never ended"

    def _check_endings(self) -> None:
        endless = [run for run in self.of if run not in self.ends]
        assert endless == [], "a run has no end"
        doubled = {run: ends for run, ends in self.ends.items() if len(ends) > 1}
        assert doubled == {}, "a run ended more than once"
        false = {
            run: ends[0]
            for run, ends in self.ends.items()
            if ends[0][0] not in ("skipped", "missed", "coalesced") and ends[0] not in ENDINGS[self.of[run]]
        }
        assert false == {}, "a run did not end as its job does"
        retried = {key: end for key, end in self.codes.items() if self.of[key[0]] == "again" and key[1] < 3}
        assert all(end == ("failed", 4) for end in retried.values()), retried
        assert all(count == 1 for count in (self.attempts | self.granted).values()), (
            "an attempt was granted or ended twice"
        )

    def _check_slots(self) -> None:
        for name, period_ms in PERIODS_MS.items():
            ranges = sorted(self.slots.get(name, {}).values())
            assert ranges, f"{name} never had a slot"
            first_ms = (self.defined_ms[name] // period_ms + 1) * period_ms
            expected_ms = first_ms
            for begin_ms, end_ms in ranges:
                assert begin_ms == expected_ms, (
                    f"a slot of {name} has no decision, or two: {begin_ms}, not {expected_ms}"
                )
                expected_ms = end_ms + period_ms

    def _check_witness(self, witness: list[str]) -> None:
        seen: Counter[tuple[str, int, str]] = Counter()
        for line in witness:
            run, attempt, word = line.split()
            seen[run, int(attempt), word] += 1
        assert not [key for key in seen if key[2] == "overlap"], "two runs held one lease"
        assert not {key: count for key, count in seen.items() if count > 1}, "an attempt ran twice"
        unordered = [key for key in seen if (key[0], key[1]) not in self.granted]
        assert unordered == [], "something ran that no event had ordered"
        unseen = [
            (key, word)
            for key in self.granted
            for word in ("begin", "end")
            if not seen[(*key, word)] and self.of[key[0]] != "steps" and self.codes[key][0] != "cancelled"
        ]
        assert unseen == [], "an attempt is said to have ended, and did not run"


@pytest.mark.timeout(60 + 10 * CYCLES)
@pytest.mark.parametrize("part", range(PARTS))
def test_the_daemon_is_killed_again_and_again_and_the_books_balance(tmp_path: Path, part: int) -> None:
    print(f"HERMES_KILL_SEED={SEED} HERMES_KILL_CYCLES={CYCLES}")
    chance, books = random.Random(SEED + part), Books()
    home = make_home(tmp_path / "home")
    (tmp_path / "witness").touch()
    (tmp_path / "inbox").mkdir()
    (home / "jobs" / "witness.py").write_text(MODULE)
    defined = jobs(home)
    (home / "jobs" / "jobs.yaml").write_text(yaml.safe_dump(defined))
    began_s, lived = time.monotonic(), 0
    for cycle in range(CYCLES // PARTS):
        if chance.random() < 0.5:
            put_file(home, books)
        lived += one_life(home, chance, books)
        if cycle % 20 == 19:
            sound(home)
        if chance.random() < 0.1:
            books.unanswered.append(new_request("start", {"job": "asked"}))
            leave(home, books.unanswered[-1])
        if chance.random() < 0.1:
            defined[0]["description"] = f"as of cycle {cycle}"
            (home / "jobs" / "jobs.yaml").write_text(yaml.safe_dump(defined))
    put_file(home, books)
    for one in defined:
        one["enabled"] = one["name"] == "arrived"  # A job that is switched off answers no file any more.
    (home / "jobs" / "jobs.yaml").write_text(yaml.safe_dump(defined))
    daemon = Daemon(home)
    assert daemon.ready()
    ask_all(home, list(books.unanswered), books)
    view = home / "state" / "live_runtime_control_plane.json"
    epoch = int(max(path.name.split("-")[1] for path in (home / "ledger").glob("0*.jsonl")).removeprefix("e"))
    until(lambda: _answered(home, books.files[-1]), "the last file has its run")
    until(lambda: _idle(orjson.loads(view.read_bytes()), epoch), "every run is over")
    daemon.process.send_signal(signal.SIGTERM)
    daemon.gone(0)
    until(lambda: not processes_of(home), f"no process of ours is left: {processes_of(home)}", 15)
    records = list(read(OsDisk(home)))
    audit = Audit(records)
    took_s = time.monotonic() - began_s
    ends = Counter(f"{audit.of[run]} {end[0][0]}" for run, end in audit.ends.items())
    kills = CYCLES // PARTS
    print(f"{kills} kills in {took_s:.0f} s, {kills - lived} of them before it was ready; {len(records)} events")
    print(f"{sum(audit.granted.values())} attempts, {len(books.acknowledged)} requests acknowledged; {dict(ends)}")
    print(dict(books.said))
    audit.check(books, (tmp_path / "witness").read_text().splitlines())
    sound(home)
    hermesd("verify", "--home", home)
    hermesd("replay", "--verify", "--home", home)
    assert b"Traceback" not in (tmp_path / "daemon.log").read_bytes()


def _answered(home: Path, file: str) -> bool:
    plans = (record.data["decisions"] for record in read(OsDisk(home)) if record.type == "plan.decided")
    return any(decided.get("file") == file for decisions in plans for decided in decisions)


def _idle(view: Any, epoch: int) -> bool:
    return view["daemon"]["epoch"] == epoch and view["active"] == {}
