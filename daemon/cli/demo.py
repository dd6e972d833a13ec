"""`hermesd demo`: the whole machine at work on this computer, killed in the middle. Every claim it makes is checked."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.demo.stage import ENDINGS, ROOT, Fell, Stage
from daemon.home import Home
from daemon.system import OsDisk
from ledger.artifacts import Artifacts
from ledger.instant import ms_of
from ledger.record import Record
from policies import due
from policies.schedule import schedule_of
from state.graph import OVER, Run

Json = Any

JOBS = Path(__file__).resolve().parents[1] / "demo" / "jobs"
SAMPLE = "sample.log"
ENGINE_NEEDS = ("torch", "transformers", "tokenizers", "safetensors")
LOGS = (
    "/var/log/syslog",
    "/var/log/messages",
    "/var/log/system.log",
    "/var/log/kern.log",
    "/var/log/dpkg.log",
    "/var/log/apt/history.log",
    "/var/log/dnf.log",
    "/var/log/dnf.rpm.log",
    "/var/log/yum.log",
    "/var/log/zypp/history",
    "/var/log/pacman.log",
    "/var/log/install.log",
    "~/Library/Logs/*.log",
)
DUE_IN_S = 2
ADOPTED_WITHIN_S, BUSY_WITHIN_S, OVER_WITHIN_S = 30.0, 180.0, 300.0
_SHOWN_LINES, _REPORT_LINES = 5, 24
_LINE_CHARACTERS = 110
_TRIES = 5
_STYLES = {"run.adopted": "yellow", "ledger.recovered": "yellow", "plan.decided": "cyan", "daemon.started": "bold"}


def demo(call: Call, *, keep: bool) -> int:
    missing = [name for name in ENGINE_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        checkout = (ROOT / "constraints.txt").is_file()
        what = "-c constraints.txt -e '.[inference]'" if checkout else "'hermesd[inference]'"
        raise Failure(
            Exit.UNAVAILABLE,
            f"the demo runs a small language model, and {', '.join(missing)} {_are(missing)} not installed here",
            where=sys.prefix,
            do=f"{shlex.quote(sys.executable)} -m pip install {what}",
        )
    for number in ENDINGS:
        signal.signal(number, signal.default_int_handler)
    stage = Stage(_fresh(call))
    kept = keep or call.home_given
    try:
        stage.home.make()
        outcome = Play(stage, Console(stderr=call.json, highlight=False, emoji=False, soft_wrap=True), kept).perform()
    except Exception as error:
        kept = True  # It is evidence.
        look = f"look at it: {_hermesd('events', stage.home)}"
        if isinstance(error, Fell):
            raise Failure(Exit.NO, str(error), where=str(stage.home.path), do=look) from None
        error.add_note(look)
        raise
    finally:
        stage.clear(remove=not kept)
    if call.json:
        show.json(outcome)
    return Exit.FINE


def _fresh(call: Call) -> Home:
    if not call.home_given:
        return Home(Path(tempfile.mkdtemp(prefix="hermes-demo-")))
    if call.home.path.exists() and (not call.home.path.is_dir() or any(call.home.path.iterdir())):
        raise Failure(
            Exit.BAD_INPUT,
            "the demo makes a fresh home, and there is something there already",
            where=str(call.home.path),
            do="name a folder that does not exist, or leave --home out",
        )
    return call.home


def logs_here(candidates: Sequence[str] = LOGS) -> list[str]:
    """Those of this machine's logs that hold something and can be read, the newest first."""
    found = []
    for place, pattern in enumerate(candidates):
        path = Path(pattern).expanduser()
        for file in [path] if "*" not in path.name else path.parent.glob(path.name):
            try:
                with file.open("rb") as opened:
                    if opened.read(4096).strip():
                        # By the day: of those written to on the same day, the better one comes first.
                        found.append((-(file.stat().st_mtime // 86_400), place, str(file)))
            except OSError:
                continue
    return [path for _, _, path in sorted(found)]


class Play:
    """The acts in their order; each raises Fell where what it claims does not hold."""

    def __init__(self, stage: Stage, console: Console, kept: bool) -> None:
        self._stage, self._console, self._kept = stage, console, kept
        self._status: Status | None = None
        self._act = 0
        self._outcome: dict[str, Json] = {"home": str(stage.home.path) if kept else None}

    def perform(self) -> dict[str, Json]:
        where = f"{self._stage.home.path}" + ("" if self._kept else ", removed at the end")
        self._say(f"A home of its own for this: {where}")
        self._begin()
        self._jobs()
        self._kill_when_busy()
        self._restart()
        self._all_over()
        self._results()
        self._stop()
        self._look_over()
        self._farewell()
        return self._outcome

    def _begin(self) -> None:
        self._headline("The daemon starts")
        with self._waiting("starting the daemon"):
            took_s = self._stage.start()
            self._follow_once()
        self._claim(f"ready after {took_s:.1f} s; it waits for events, it does not poll")

    def _jobs(self) -> None:
        self._headline("Three job files appear in jobs/")
        stage, logs = self._stage, logs_here()
        for path in sorted(JOBS.iterdir()):
            if path.suffix in (".py", ".sh", ".log"):
                (stage.home.jobs / path.name).write_bytes(path.read_bytes())
        names = [path.stem for path in sorted(JOBS.glob("*.yaml"))]
        sample = stage.home.jobs / SAMPLE
        self._say(f"   triage-log reads {logs[0] if logs else 'a shipped sample: no log of this machine can be read'}")
        for attempt in range(_TRIES):
            due_s = int(time.time()) + 1 + DUE_IN_S * (attempt + 1)
            for name in names:
                text = as_due(name, (JOBS / f"{name}.yaml").read_text(encoding="utf-8"), due_s, logs or [str(sample)])
                fresh = stage.home.jobs / f".{name}.new"
                fresh.write_text(text, encoding="utf-8")
                fresh.replace(stage.home.jobs / f"{name}.yaml")
            self._until(partial(self._defined, names, due_s), "the three jobs were read", ADOPTED_WITHIN_S)
            if all(ms_of(self._definitions(name)[-1].ts) < due_s * 1000 for name in names):
                break  # Else a slot lies before its job's definition, and was never promised: this machine is busy.
        else:
            raise Fell("the jobs were read too late for their slots, again and again: this machine is too busy")
        self._claim(f"defined, and each due at {datetime.fromtimestamp(due_s).astimezone():%H:%M:%S %Z}")

    def _defined(self, names: list[str], due_s: int) -> bool:
        """Each job is in force with a slot at that instant. Fell if a file was rejected."""
        jobs = self._stage.graph.jobs
        for record in self._stage.records:
            if record.type == "job.rejected":
                raise Fell(f"{record.data['source']} was rejected: {record.data['problems']}")
        for name in names:
            if name not in jobs:
                return False
            asked = schedule_of(jobs[name].spec["schedule"])
            if due.next_slot(asked, due_s * 1000 - 1) != due_s * 1000:
                return False
        return True

    def _kill_when_busy(self) -> None:
        self._headline("The slots are due: planned, recorded with a decision hash, and only then started")
        stage = self._stage

        def busy() -> bool:
            return any(run.spec.get("kind") == "inference" for run in stage.living())

        self._until(busy, "a run of the language model was under way", BUSY_WITHIN_S)
        pid, running = stage.pid, [run.name for run in stage.living()]
        self._headline(f"kill -9 {pid}: the daemon, in the middle of it")
        stage.kill()
        self._follow_once()  # What it had still recorded.
        left = stage.living()
        for run in left:
            self._say(f"   still at work without it: {_shown(run.name)}, pid {run.pid}")
        if not left:
            raise Fell(f"no run outlived the daemon; running were {', '.join(running)}")
        waiting = [_shown(run.name) for _, run in sorted(stage.graph.active.items()) if run.state == "granted"]
        if waiting:
            self._say(f"   granted, and nobody there to start them: {', '.join(waiting)}")
        self._claim(f"{_count(len(left), 'run lives', 'runs live')} on")
        self._outcome["killed"] = {"pid": pid, "running": [run.name for run in left]}

    def _restart(self) -> None:
        self._headline("The daemon starts again, and takes up what it finds")
        stage, orphans = self._stage, self._outcome["killed"]["running"]
        with self._waiting("starting the daemon"):
            took_s = stage.start()

        def taken_up(name: str) -> str:
            for record in stage.records:
                if record.epoch == stage.records[-1].epoch and record.data.get("run") == name:
                    if record.type == "run.adopted":
                        return "adopted"
                    if record.type == "run.finished":
                        return "ended"
            return ""

        self._until(lambda: all(map(taken_up, orphans)), "every run that lived on was taken up", ADOPTED_WITHIN_S)
        found = Counter(map(taken_up, orphans))
        ended = f", {found['ended']} had ended meanwhile and left their exit status" if found["ended"] else ""
        self._claim(f"ready after {took_s:.1f} s; {found['adopted']} adopted alive{ended}")
        self._outcome["taken_up"] = {name: taken_up(name) for name in orphans}

    def _all_over(self) -> None:
        self._headline("Until every slot has ended")
        stage = self._stage

        def over() -> bool:
            return not stage.graph.active and all(self._runs_of(name) for name in stage.graph.jobs)

        self._until(over, "every slot has ended", OVER_WITHIN_S)

    def _results(self) -> None:
        rows = self._slots()
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for column in ("slot or step", "began", "ended", "attempts", "outcome"):
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(str(row[name])) for name in ("shown", "began", "ended", "attempts", "outcome")))
        self._headline("Each slot, once")
        self._console.print(table)
        bad = [row for row in rows if row["outcome"] != "succeeded"]
        if bad:
            first = bad[0]
            folder = self._stage.home.runs / first["run"] / str(first["attempts"])
            raise Fell(f"{first['shown']} {first['outcome']}: {first['reason']}; see {folder}/stderr.log")
        slots = sum(1 for row in rows if row["slot"])
        self._claim(f"{slots} slots were due, {slots} began once and ended once; {len(rows) - slots} steps likewise")
        self._outcome["slots"] = [{name: row[name] for name in ("slot", "run", "attempts", "outcome")} for row in rows]
        self._show_triage()
        self._show_report()

    def _slots(self) -> list[dict[str, Json]]:
        """A row for each slot that was due and for each step. Fell unless each began once and ended once."""
        graph, records = self._stage.graph, self._stage.records
        ends = Counter(r.data["run"] for r in records if r.type == "run.finished" and r.data["retry_at"] is None)
        begun = Counter((r.data["run"], r.data["attempt"]) for r in records if r.type == "run.started")
        now_ms, rows = time.time_ns() // 1_000_000, []
        for name in sorted(graph.jobs):
            # What was due, asked of the schedules and not of what happened.
            promised = [(ms_of(r.ts), schedule_of(r.data["spec"]["schedule"])) for r in self._definitions(name)]
            ends_ms = [from_ms for from_ms, _ in promised[1:]] + [now_ms]
            instants = [
                at_ms
                for (from_ms, schedule), until_ms in zip(promised, ends_ms, strict=True)
                for at_ms in due.slots(schedule, from_ms, until_ms, 1000)
            ]
            found = {ms_of(run.at): run for run in self._runs_of(name)}
            if sorted(found) != instants:
                raise Fell(f"{name} was due at {instants} and has runs for {sorted(found)}")
            for at_ms in instants:
                steps = [child for step in found[at_ms].children if (child := graph.run(step)) is not None]
                for run in (found[at_ms], *sorted(steps, key=lambda step: step.started_at)):
                    if run.state not in OVER or ends[run.name] != 1:
                        raise Fell(f"{run.name} ended {ends[run.name]} times: {run.state}, {run.reason}")
                    twice = [key for key, count in begun.items() if key[0] == run.name and count > 1]
                    if twice or run.attempt != 1:
                        raise Fell(f"{run.name} began more than once: {run.attempt} attempts, {twice}")
                    rows.append(_row(run, at_ms))
        return rows

    def _definitions(self, job: str) -> list[Record]:
        defined = [record for record in self._stage.records if record.type in ("job.defined", "job.changed")]
        return [record for record in defined if record.data["job"] == job]

    def _runs_of(self, job: str) -> list[Run]:
        runs = [node for node in self._stage.graph.nodes.values() if isinstance(node, Run)]
        return [run for run in runs if run.job == job and not run.parent]

    def _show_triage(self) -> None:
        run = self._runs_of("triage-log")[0]
        result = json.loads((self._folder(run) / "result.json").read_text(encoding="utf-8"))
        self._headline(f"What hermes-mini says of {result['source']}, {len(result['outputs'])} lines; the newest:")
        for output in result["outputs"][-_SHOWN_LINES:]:
            self._say(f"   {output['text']:<22}{_printable(output['line'])[:90]}")

    def _show_report(self) -> None:
        home, graph = self._stage.home, self._stage.graph
        agent = self._runs_of("morning-report")[0]
        step = next(run for name in agent.children if (run := graph.run(name)) is not None and run.artifacts)
        report = Artifacts(OsDisk(home.path)).get(step.artifacts["report.md"]).decode("utf-8")
        self._headline("report.md, an artifact kept by its digest; it begins:")
        for line in report.splitlines()[:_REPORT_LINES]:
            self._say("   " + line)
        self._outcome["report"] = report

    def _folder(self, run: Run) -> Path:
        return self._stage.home.runs / run.name / str(run.attempt)

    def _stop(self) -> None:
        self._headline("The daemon stops")
        with self._waiting("stopping the daemon"):
            started = self._stage.stop()
            self._follow_once()
        self._claim(f"{started} processes had been seen, none is left")

    def _look_over(self) -> None:
        self._headline("The ledger, looked over")
        stage, home = self._stage, self._stage.home
        self._run("verify", "--artifacts")
        standalone = [sys.executable, str(ROOT / "ledger" / "standalone.py"), str(home.path)]
        self._execute(standalone, "python ledger/standalone.py HOME   (shares no code with the above)")
        self._run("replay", "--verify")
        plans = sum(1 for record in stage.records if record.type == "plan.decided")
        before = {path.name: path.read_bytes() for path in sorted(home.state.iterdir())}
        for path in home.state.iterdir():
            path.unlink()
        home.state.rmdir()
        self._say("   $ rm -r state")
        self._run("state", "rebuild")
        after = {path.name: path.read_bytes() for path in sorted(home.state.iterdir())}
        if before != after:
            differ = sorted(name for name in before | after if before.get(name) != after.get(name))
            raise Fell(f"state/ came back different: {', '.join(differ)}")
        told = f"{len(stage.records)} records sound, {plans} plans decided again to the same hash, "
        self._claim(f"{told}{len(before)} views rebuilt to the same bytes")
        self._outcome |= {"records": len(stage.records), "plans": plans, "views": sorted(before)}

    def _farewell(self) -> None:
        home = self._stage.home
        self._headline("What to look at next")
        if not self._kept:
            self._say("   The home is removed now. To keep one: hermesd demo --home ~/hermes-demo")
            return
        for words, what in (
            (f"why {self._runs_of('triage-log')[0].name}", "why it was started, and by which hash"),
            ("events --type 'run.*'", "what happened"),
            ("runs list", "the runs; `runs logs RUN` shows what one printed"),
            ("state show global_orchestration_plan", "one of the views"),
            ("next", "what is due when"),
            ("run", "the daemon again, until Ctrl-C"),
        ):
            self._say(f"   {_hermesd(words, home)}   # {what}")

    def _run(self, *words: str) -> None:
        self._execute(self._stage.command(*words), f"hermesd {' '.join(words)}")

    def _execute(self, command: list[str], shown: str) -> None:
        self._say(f"   $ {shown}")
        with self._waiting(shown):
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        for line in (done.stdout + done.stderr).splitlines():
            line = line.replace(str(self._stage.home.path), "HOME")
            self._say(f"     {line if len(line) <= _LINE_CHARACTERS else line[: _LINE_CHARACTERS - 3] + '...'}")
        if done.returncode:
            raise Fell(f"`{shown}` says no, with status {done.returncode}")

    def _until(self, done: Callable[[], bool], what: str, within_s: float) -> None:
        with self._waiting(""):
            self._stage.until(done, what, within_s, self._tell, self._tick)

    def _follow_once(self) -> None:
        for record in self._stage.look():
            self._tell(record)

    @contextmanager
    def _waiting(self, text: str) -> Iterator[None]:
        """On a terminal, something that moves while nothing is printed."""
        with self._console.status(Text(text)) as self._status:
            yield
        self._status = None

    def _tick(self) -> None:
        if self._status is None:
            return
        now_ms = time.time_ns() // 1_000_000
        at_work = [
            f"{_shown(run.name)} {(now_ms - ms_of(run.started_at)) // 1000} s"
            for run in self._stage.living()
            if run.started_at
        ]
        self._status.update(Text((", ".join(at_work) or "waiting")[: self._console.width - 4]))

    def _tell(self, record: Record) -> None:
        told = _told(record)
        if told:
            clock = datetime.fromisoformat(record.ts).astimezone().strftime("%H:%M:%S.%f")[:-3]
            line = f"   {clock} {record.seq:>4} {record.type:<16} {told}"
            self._console.print(Text(line, style=_STYLES.get(record.type, "")))

    def _headline(self, text: str) -> None:
        self._act += 1
        self._console.print(Text(f"\n{self._act}. {text}", style="bold"))

    def _say(self, text: str) -> None:
        self._console.print(Text(text))

    def _claim(self, text: str) -> None:
        """Said only after it has been checked."""
        self._console.print(Text.assemble(("   ok: ", "green"), text))


def as_due(name: str, text: str, due_s: int, logs: list[str]) -> str:
    """The shipped job file, due at that instant, and reading these logs."""

    def soon(found: re.Match[str]) -> str:
        as_shipped = found[0]
        if every := re.search(r"every: (\d+)([mh])", as_shipped):
            period_s = int(every[1]) * {"m": 60, "h": 3600}[every[2]]
            return f"schedule: {{every: {every[1]}{every[2]}, offset: {due_s % period_s}s}}"
        at = datetime.fromtimestamp(due_s).astimezone().isoformat()
        return f'# {as_shipped}, but for the demo once, and soon:\nschedule: {{at: "{at}"}}'

    text = re.sub(r"^schedule: .*$", soon, text, count=1, flags=re.MULTILINE)
    if name == "triage-log":
        text = re.sub(r"^  paths: .*$", lambda _: f"  paths: {json.dumps(logs)}", text, count=1, flags=re.MULTILINE)
    return text


def _told(record: Record) -> str:
    """One record in a line for people; "" for what would only distract here."""
    data = record.data
    match record.type:
        case "daemon.started":
            return f"hermesd {data['version']}, pid {data['pid']}, epoch {record.epoch}"
        case "daemon.stopped":
            return str(data["reason"])
        case "ledger.recovered":
            return "an unfinished write was set aside"
        case "job.defined" | "job.changed":
            return f"{data['job']}: {_schedule(data['spec']['schedule'])}"
        case "job.rejected":
            return f"{data['source']}: {data['problems'][0]['message']}"
        case "plan.decided":
            counts = Counter(decided["verdict"] for decided in data["decisions"])
            verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
            others = [d for d in data["decisions"] if d["verdict"] != "started"]
            more = "".join(f"; {_shown(d['run'])}: {d['reason']}" for d in others)
            leases = [f"{key} (token {d['token']})" for d in data["decisions"] for key in d.get("leases", ())]
            more += f"; lease {', '.join(leases)}" if leases else ""
            return f"{verdicts}   decision_hash {data['decision_hash']}{more}"
        case "run.started" | "run.adopted":
            return f"{_shown(data['run'])}, pid {data['pid']}"
        case "run.finished":
            return f"{_shown(data['run'])} {data['outcome']}: {data['reason']}"
        case "run.stopping" | "run.fenced" | "lease.refused":
            return f"{_shown(data['run'])}"
        case "artifact.stored":
            return f"{data['name']}, {data['bytes']} bytes, sha256 {data['digest'][:16]}"
    return ""


def _schedule(schedule: dict[str, Json]) -> str:
    if "at" in schedule:
        return f"once, at {schedule['at']}"
    return f"every {show.span(schedule['every'])}, {show.span(schedule['offset'])} past"


def _row(run: Run, at_ms: int) -> dict[str, Json]:
    return {
        "shown": f"  {run.step}" if run.step else f"{run.job} at {_clock(at_ms)}",
        "slot": "" if run.step else run.slot,
        "run": run.name,
        "began": _clock(ms_of(run.started_at)) if run.started_at else "",
        "ended": _clock(ms_of(run.ended_at)),
        "attempts": run.attempt,
        "outcome": run.state,
        "reason": run.reason,
    }


def _clock(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000).astimezone():%H:%M:%S}"


def _shown(run: str) -> str:
    """`job.20261121T064200Z.ab12cd.step` as `job/step`: here each job has one run."""
    job, _, _, *step = run.split(".", 3)
    return "/".join([job, *step])


def _hermesd(words: str, home: Home) -> str:
    return f"hermesd {words} --home {shlex.quote(str(home.path))}"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _count(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
