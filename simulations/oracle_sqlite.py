"""An independent telling of the rules: the accepted events in plain tables, and the rules as questions in SQL.

It shares no code with the planner, the projector or the loop. It reads only what the events say; each question gives
the rows that break a rule, so an empty answer is a rule that holds. `Tables.disagreements` holds it against the graph.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

from ledger.instant import ms_of
from ledger.record import Record
from state.graph import CONTAINERS, OVER, Graph

Json = Any

_TABLES = """
create table runs (run primary key, job, trig, parent, step, max_attempts, overlap, kind, at_ms, seq, end_seq, end);
create table grants (run, attempt, token, seq, ms, passed_ms, latest_ms, cpu, limit_a_minute, ended_seq, outcome,
    retry_ms);
create table holds (key, holder, token, seq, until_seq);
create table foreigners (key, holder, seq, until_seq);
create table waits (run, seq, ms);
create table pauses (job, seq, until_seq, batch);
create table rows_of_failures (job, seq, batch, in_row, bound);
create table steps (run, step, before);
create table consumed (job, dependency, run, seq, when_);
create table requests (request, seq);
create table notices (notice primary key, seq, until_seq);
create index holds_key on holds (key);
create index grants_run on grants (run, attempt);
"""

_RULES = {
    "tokens only rise": """
        select token, before from (select token, lag(token) over (order by seq, rowid) as before from grants)
        where before >= token""",
    "a key has one holder at a time": """
        select a.key, a.holder, b.holder from holds a join holds b on a.key = b.key and a.rowid < b.rowid
        where b.seq < coalesce(a.until_seq, 1e18) and a.seq < coalesce(b.until_seq, 1e18)""",
    "an unexpired foreign lease wins": """
        select h.key, h.holder, f.holder from holds h join foreigners f on f.key = h.key
        where f.seq < h.seq and h.seq < coalesce(f.until_seq, 1e18)""",
    "no more attempts than the job allows": """
        select g.run, g.attempt, r.max_attempts from grants g join runs r using (run)
        where g.attempt > r.max_attempts""",
    "an attempt begins when the one before it is over": """
        select b.run, b.attempt from grants a join grants b on a.run = b.run and a.rowid < b.rowid
        where a.ended_seq is null or a.ended_seq > b.seq""",
    "a retry waits its time": """
        select b.run, b.attempt, a.retry_ms, b.latest_ms from grants a join grants b on a.run = b.run
        and b.attempt = a.attempt + 1 and b.seq > a.seq where b.latest_ms < a.retry_ms""",
    "what was put off waits its time": """
        select g.run, w.ms, g.latest_ms from grants g join waits w using (run)
        where w.seq < g.seq and g.latest_ms < w.ms""",
    "nothing is granted while everything is paused": """
        select g.run from grants g join pauses p on p.job = '' and p.seq < g.seq
        and g.seq < coalesce(p.until_seq, 1e18)""",
    "a paused job runs only what people ask for": """
        select g.run from grants g join runs r using (run) join pauses p on p.job = r.job and p.seq < g.seq
        and g.seq < coalesce(p.until_seq, 1e18) where r.trig in ('schedule', 'after', 'on')""",
    "no more runs at once than there are places": """
        select g.run, count(*) from grants g
        join runs r on r.run = g.run and r.kind not in ('agent', 'upgrade', 'repository')
        join grants o on o.seq <= g.seq and coalesce(o.ended_seq, 1e18) > g.seq
        join runs s on s.run = o.run and s.kind not in ('agent', 'upgrade', 'repository')
        group by g.rowid having count(*) > :places""",
    "no more processors are given out than there are": """
        select g.run, sum(o.cpu) from grants g join grants o on o.seq <= g.seq and coalesce(o.ended_seq, 1e18) > g.seq
        group by g.rowid having sum(o.cpu) > :cpus""",
    "no more runs a minute than the budget gives": """
        select g.run, count(*) from grants g join runs r on r.run = g.run
        join runs s on s.job = r.job and s.parent = ''
        join grants o on o.run = s.run and o.rowid <= g.rowid and o.passed_ms > g.passed_ms - 60000
        and not (o.outcome is 'refused' and o.ended_seq < g.seq)
        where g.limit_a_minute is not null and r.parent = ''
        group by g.rowid having count(*) > g.limit_a_minute""",
    "what makes up for missed slots starts one after another": """
        select g.seq, count(*) from grants g join runs r on r.run = g.run and r.seq = g.seq
        where r.trig = 'schedule' and g.ms - r.at_ms > :late_after_ms group by g.seq having count(*) > 1""",
    "after too many failures in a row a job is paused": """
        select f.job, f.in_row from rows_of_failures f where f.in_row >= f.bound and not exists (
        select 1 from pauses p where p.job = f.job and p.batch <= f.batch and coalesce(p.until_seq, 1e18) > f.seq)
        and not exists (select 1 from rows_of_failures g where g.job = f.job and g.batch = f.batch
        and g.seq > f.seq and g.in_row = 0)""",
    "a job that does not overlap runs once at a time": """
        select a.run, b.run from runs a join runs b on a.job = b.job and a.rowid < b.rowid
        join grants g on g.run = a.run join grants h on h.run = b.run
        where a.parent = '' and b.parent = '' and a.overlap <> 'allow_all' and b.overlap <> 'allow_all'
        and a.trig <> 'backfill' and b.trig <> 'backfill'
        and h.seq < coalesce(g.ended_seq, 1e18) and g.seq < coalesce(h.ended_seq, 1e18)""",
    "a step begins when those before it have succeeded": """
        select s.run, s.step, s.before from runs s_run join steps s on s.run = s_run.parent and s.step = s_run.step
        join grants g on g.run = s_run.run
        left join runs b on b.parent = s_run.parent and b.step = s.before
        where s_run.parent <> '' and (b.end is not 'succeeded' or b.end_seq > g.seq)""",
    "each end is answered once": "select job, dependency, run from consumed group by 1, 2, 3 having count(*) > 1",
    "what is answered has ended so": """
        select c.job, c.run from consumed c left join runs r on r.run = c.run
        where r.end is null or r.end_seq >= c.seq or (c.when_ = 'success' and r.end <> 'succeeded')""",
    "a request is taken once": "select request from requests group by 1 having count(*) > 1",
    "no more notices wait than may": """
        select n.notice, count(*) from notices n
        join notices o on o.seq <= n.seq and coalesce(o.until_seq, 1e18) > n.seq
        group by n.rowid having count(*) > :notices + 1""",
}


def emptied() -> sqlite3.Connection:
    """The tables, with nothing in them. `rollback` empties them again: nothing is ever committed."""
    database = sqlite3.connect(":memory:")
    database.executescript(_TABLES)
    return database


class Tables:
    """Feed it every event in order, then ask."""

    def __init__(self, database: sqlite3.Connection | None = None) -> None:
        """`database`: one that `emptied` gave."""
        self.database = database or emptied()
        self.database.rollback()
        self.broken: list[tuple[str, Any]] = []
        """What no accepted event may say, found while they were fed."""
        self._specs: dict[tuple[str, int], Json] = {}
        self._latest: dict[str, Json] = {}
        self._failures: dict[str, int] = {}
        self._gone: set[str] = set()
        self._set_ms = 0
        """By how much the clock was set so far. Less this, its times tell how much time has passed."""
        self._latest_ms = 0  # What has once passed stays so, also where it was set in a power cut, and nobody noticed.

    def feed(self, records: Iterable[Record]) -> None:
        for record in records:
            if record.type == "clock.jumped":  # Its own time is told by the clock as it was set.
                self._set_ms += record.data["jump_ms"]
            self._latest_ms = max(self._latest_ms, self._passed_ms(record.ts))
            act = getattr(self, "_" + record.type.replace(".", "_"), None)
            if act is not None:
                act(record, record.data)

    def broken_rules(self, *, places: int, cpus: int, notices: int, late_after_ms: int) -> list[tuple[str, Any]]:
        """Each rule that does not hold, with the first rows that break it."""
        bounds = {"places": places, "cpus": cpus, "notices": notices, "late_after_ms": late_after_ms}
        found = list(self.broken)
        for rule, question in _RULES.items():
            rows = self.database.execute(question, bounds).fetchmany(3)
            if rows:
                found.append((rule, rows))
        return found

    def disagreements(self, graph: Graph) -> list[tuple[str, Any]]:
        """Where the graph says something else than the tables."""
        ask = self.database.execute
        found: list[tuple[str, Any]] = []
        for run, end in ask("select run, end from runs"):
            node = graph.run(run)
            if node is not None and (node.state if node.state in OVER else None) != end:
                found.append(("a run's end", (run, end, node.state)))
        active = {run for (run,) in ask("select run from runs where end is null")}
        if active != set(graph.active):
            found.append(("what is not over", active ^ set(graph.active)))
        held = set(ask("select key, holder, token from holds where until_seq is null"))
        ours = {(lease.key, lease.holder, lease.token) for lease in graph.leases.values() if not lease.foreign}
        if held != ours:
            found.append(("our leases", held ^ ours))
        others = {key for (key,) in ask("select key from foreigners where until_seq is null")}
        if others != {lease.key for lease in graph.leases.values() if lease.foreign}:
            found.append(("leases of others", others))
        paused = {job for (job,) in ask("select job from pauses where until_seq is null")}
        known = {job.name for job in graph.jobs.values() if job.paused} | ({""} if graph.here.paused else set())
        if paused != known:
            found.append(("what is paused", paused ^ known))
        token = ask("select coalesce(max(token), 0) from grants").fetchone()[0]
        if token != graph.here.tokens:
            found.append(("the latest token", (token, graph.here.tokens)))
        waiting = {notice for (notice,) in ask("select notice from notices where until_seq is null")}
        if waiting != {notice.notice for notice in graph.notices.values() if notice.state == "queued"}:
            found.append(("notices that wait", waiting))
        return found

    def _passed_ms(self, instant: str) -> int:
        return ms_of(instant) - self._set_ms

    def _job_defined(self, record: Record, data: Json) -> None:
        del record
        self._specs[data["job"], data["revision"]] = self._latest[data["job"]] = data["spec"]
        self._gone.discard(data["job"])

    _job_changed = _job_defined

    def _job_removed(self, record: Record, data: Json) -> None:
        del record
        self._gone.add(data["job"])

    def _plan_decided(self, record: Record, data: Json) -> None:
        for decided in data["decisions"]:
            self._decided(record, decided)

    def _decided(self, record: Record, decided: Json) -> None:
        insert, run = self.database.execute, decided["run"]
        top = self._specs[decided["job"], decided["revision"]]
        parent = decided.get("parent", "")
        if parent and "spec" not in decided:
            spec = next(step for step in top["steps"] if step["name"] == decided["step"])
        else:
            spec = decided.get("spec", top)
        known = insert("select end from runs where run = ?", (run,)).fetchone()
        if known is None:
            attempts = 1 if spec["kind"] in CONTAINERS else top["retry"]["attempts"]
            overlap = top["overlap"].partition("(")[0]
            insert(
                "insert into runs values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, null, null)",
                (run, decided["job"], decided["trigger"], parent, decided.get("step", ""), attempts, overlap,
                 spec["kind"], ms_of(decided["at"]), record.seq),
            )  # fmt: skip
            for step in spec["steps"] if spec["kind"] == "agent" else ():
                for before in step["after"]:
                    insert("insert into steps values (?, ?, ?)", (run, step["name"], before))
        elif known[0] is not None:
            self.broken.append(("nothing is decided about what is over", (record.seq, run)))
        for dependency, answered in (decided.get("consumes") or {}).items():
            when = top["schedule"]["when"]
            insert("insert into consumed values (?, ?, ?, ?, ?)",
                   (decided["job"], dependency, answered, record.seq, when))  # fmt: skip
        verdict = decided["verdict"]
        if verdict == "started":
            budget = None if parent else (top.get("budget") or {}).get("runs_per_minute")
            cpu = round(1000 * float((spec.get("needs") or {}).get("cpu", 0))) if spec["kind"] not in CONTAINERS else 0
            insert("insert into grants values (?, ?, ?, ?, ?, ?, ?, ?, ?, null, null, null)",
                   (run, decided["attempt"], decided["token"], record.seq, ms_of(record.ts), self._passed_ms(record.ts),
                    self._latest_ms, cpu, budget))  # fmt: skip
            for key in decided["leases"]:
                insert("insert into holds values (?, ?, ?, ?, null)", (key, run, decided["token"], record.seq))
        elif verdict in ("deferred", "buffered"):
            if "not_before" in decided:
                insert("insert into waits values (?, ?, ?)", (run, record.seq, self._passed_ms(decided["not_before"])))
        else:
            insert("update runs set end = ?, end_seq = ? where run = ?",
                   (verdict, record.seq, run))  # fmt: skip

    def _run_finished(self, record: Record, data: Json) -> None:
        change, run, token = self.database.execute, data["run"], data["token"]
        latest = change("select max(token) from grants where run = ?", (run,)).fetchone()[0]
        if (latest or 0) != token:
            self.broken.append(("an end carries the latest token", (record.seq, run, token, latest)))
        retry_ms = self._passed_ms(data["retry_at"]) if data["retry_at"] else None
        change("update grants set ended_seq = ?, outcome = ?, retry_ms = ? where run = ? and ended_seq is null",
               (record.seq, data["outcome"], retry_ms, run))  # fmt: skip
        change("update holds set until_seq = ? where holder = ? and until_seq is null", (record.seq, run))
        if retry_ms is not None:
            return
        ended = change("update runs set end = ?, end_seq = ? where run = ? and end is null",
                       (data["outcome"], record.seq, run))  # fmt: skip
        if ended.rowcount != 1:
            self.broken.append(("a run ends once", (record.seq, run)))
        job, parent = change("select job, parent from runs where run = ?", (run,)).fetchone()
        if not parent:
            self._count_failure(record, job, data)

    def _count_failure(self, record: Record, job: str, data: Json) -> None:
        ran = data["outcome"] != "cancelled"
        self._failures[job] = 0 if data["outcome"] == "succeeded" else self._failures.get(job, 0) + ran
        bound = self._latest[job]["stop_after_failures"]
        if bound and ran and job not in self._gone:
            self.database.execute("insert into rows_of_failures values (?, ?, ?, ?, ?)",
                                  (job, record.seq, record.batch, self._failures[job], bound))  # fmt: skip

    def _lease_refused(self, record: Record, data: Json) -> None:
        change = self.database.execute
        change("update grants set ended_seq = ?, outcome = 'refused' where run = ? and token = ?",
               (record.seq, data["run"], data["token"]))  # fmt: skip
        change("update holds set until_seq = ? where holder = ? and until_seq is null", (record.seq, data["run"]))

    def _lease_seen(self, record: Record, data: Json) -> None:
        self._lease_released(record, data)
        self.database.execute("insert into foreigners values (?, ?, ?, null)",
                              (data["key"], data["holder"], record.seq))  # fmt: skip

    def _lease_released(self, record: Record, data: Json) -> None:
        self.database.execute("update foreigners set until_seq = ? where key = ? and until_seq is null",
                              (record.seq, data["key"]))  # fmt: skip

    def _pause(self, record: Record, job: str) -> None:
        self._resume(record, job)
        self.database.execute("insert into pauses values (?, ?, null, ?)", (job, record.seq, record.batch))

    def _resume(self, record: Record, job: str) -> None:
        self.database.execute("update pauses set until_seq = ? where job = ? and until_seq is null", (record.seq, job))

    def _job_paused(self, record: Record, data: Json) -> None:
        self._pause(record, data["job"])
        self._asked(record, data)

    def _job_resumed(self, record: Record, data: Json) -> None:
        self._resume(record, data["job"])
        self._failures[data["job"]] = 0
        self._asked(record, data)

    def _daemon_paused(self, record: Record, data: Json) -> None:
        self._pause(record, "")
        self._asked(record, data)

    def _daemon_resumed(self, record: Record, data: Json) -> None:
        self._resume(record, "")
        self._asked(record, data)

    def _asked(self, record: Record, data: Mapping[str, Json]) -> None:
        if "request" in data:
            self.database.execute("insert into requests values (?, ?)", (data["request"], record.seq))

    _start_requested = _cancel_requested = _backfill_requested = _asked

    def _notice_queued(self, record: Record, data: Json) -> None:
        self.database.execute("insert into notices values (?, ?, null)", (data["notice"], record.seq))

    def _notice_delivered(self, record: Record, data: Json) -> None:
        self.database.execute("update notices set until_seq = ? where notice = ?", (record.seq, data["notice"]))

    def _notice_failed(self, record: Record, data: Json) -> None:
        if data["retry_at"] is None:
            self._notice_delivered(record, data)
