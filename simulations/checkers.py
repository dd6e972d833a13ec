"""The watchers beside the world: what must hold whenever the loop has come round, at each start, and of a whole life.

They look at the disk, the host and the events, and ask the loop only for what it holds to be true. `Violation` names
the seed, the invariant and the last steps, and one command that shows it again. Liveness is one of them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import cache
from hashlib import sha256
from sqlite3 import Connection
from typing import TYPE_CHECKING, Any

from daemon.errand import MARK
from daemon.loop import Loop
from daemon.ports import Order
from ledger.chain import Head
from ledger.errors import Corrupt
from ledger.instant import ms_of, text_of
from ledger.reader import FOLDER, read
from ledger.record import Record
from ledger.segment import KEEPING
from ledger.verify import verify
from policies import due
from policies.replay import Past, decide_again, is_decision
from policies.schedule import schedule_of
from simulations.oracle_sqlite import Tables, emptied
from state import snapshot
from state.arrivals import stamp
from state.audit import audit
from state.graph import OVER, Graph
from state.projector import fold
from state.views import render

if TYPE_CHECKING:
    from simulations.world import World

Json = Any


class Violation(Exception):
    """An invariant does not hold. The message names the seed, so that one command shows it again."""

    invariant = ""


def before_an_effect(world: World, order: Order, loop: Loop) -> None:
    """What the spawner is told to begin must be durable by then."""
    if order.run.startswith(MARK):
        notice = loop.graph.notices.get(order.run.removeprefix(MARK))
        durable = notice is not None and notice.queued_seq <= loop.ledger.durable_seq
        if notice is None or not durable or order.attempt != notice.last_attempt + 1:
            raise world.violation("nobody is told of what is not durable", order)
        return
    run = loop.graph.run(order.run)
    if run is None or run.decided_seq > loop.ledger.durable_seq or run.token != order.token:
        raise world.violation("no effect before it is durable", order)


def after_start(world: World) -> None:
    """Whatever came before: what was durable is there, and the epoch is one that no writer had."""
    assert world.loop is not None
    ledger = world.loop.ledger
    if ledger.epoch <= world.epoch:
        raise world.violation("epochs only rise", (world.epoch, ledger.epoch))
    world.epoch = ledger.epoch
    if (head := world.durable) is not None:
        found = next(read(world.disk, after=head.seq - 1, until=head.seq), None)
        if found is None or found.hash != head.hash:
            raise world.violation("no durable record is lost", (head, found))


def start_with_damage(world: World, path: str, whole: bytes) -> None:
    """A start on a home in which one file has rotted: refused with nothing changed, or harmless."""
    before = world.disk.files()
    loop = world.new_loop()
    try:
        loop.begin()
    except Corrupt as refusal:
        world.host.trace.append(f"-- refused: {refusal}")
        # What is opened is left as it was; only what is derived may have been looked at.
        changed = {name for name, content in world.disk.files().items() if before.get(name) != content}
        if changed:
            raise world.violation("a refusal changes nothing", (path, changed)) from None
        world.disk.corrupt(path, whole)
        world.disk.kill()
        return
    if loop.trusted_seq and path.startswith("ledger/0"):
        # A start from a snapshot looks at the lengths of sealed segments; that their bytes are whole is told later.
        found = verify(world.disk)
        # What rotted behind its end, in what a zombie had written there, is cut off and no part of the ledger.
        if found.ok and world.disk.exists(path) and not whole.startswith(world.disk.read(path)):
            raise world.violation("rot is found, by the start or by the verifier", path)
        if not found.ok:
            world.disk.kill()
            world.disk.corrupt(path, whole)
            return
    try:
        if encoded(Graph(), list(read(world.disk))) != snapshot.encode(loop.graph, loop.ledger.head, ""):
            raise world.violation("a start on damage that did no harm knows all that there is", path)
    except Corrupt as error:
        raise world.violation("a start on damage refuses, or nothing is lost", (path, str(error))) from error
    world.rotten.add(path)
    world.disk.kill()


def watch(world: World) -> None:
    """What must hold whenever the loop has come round."""
    assert world.loop is not None
    graph = world.loop.graph
    if world.timer_ms is not None and world.clock.wall_ns // 1_000_000 - world.timer_ms > 3_600_000 * 48:
        raise world.violation("the timer is never left behind", world.timer_ms)
    live: dict[str, list[str]] = {}
    keys: dict[str, str] = {}
    for process in world.host.alive():
        if process.key[0].startswith(MARK):
            continue
        if world.host.begun[process.key] > 1:
            raise world.violation("an attempt begins once", process.key)
        run = graph.run(process.key[0])
        if run is None or run.state in OVER or run.attempt != process.key[1]:
            raise world.violation("no process outlives its attempt's end", (process.key, run and run.state))
        for key in run.leases:
            if keys.setdefault(key, run.name) != run.name:
                raise world.violation("a lease is held by one process at a time", (key, keys[key], run.name))
            if key not in world.host.lease_files and "derived" not in world.drawn:
                raise world.violation("a process runs only while its lease files are there", (run.name, key))
        # What sees through the change of a repository looks at the lease itself before it changes anything.
        goes_on = run.state != "stopping" and not run.spec.get("shielded")
        above = graph.run(run.parent) if run.parent and goes_on else None
        for key in above.leases if above is not None else ():
            other = world.host.foreign.get(key)
            if other is not None and other.expires_boot_ms > world.clock.boot_ns // 1_000_000:
                raise world.violation("no step goes on once another holds a lease of its run", (run.name, key))
        if not run.parent and run.trigger != "backfill":
            live.setdefault(run.job, []).append(run.name)
    for job, runs in live.items():
        if len(runs) > 1 and graph.jobs[job].spec["overlap"] != "allow_all":
            raise world.violation("a job that does not overlap runs once at a time", runs)


def when_the_loop_rests(world: World) -> None:
    """Nothing waits for nothing."""
    assert world.loop is not None
    graph = world.loop.graph
    if graph.here.paused or world.disk.capacity_bytes is not None:
        return
    for name, known in graph.arrivals.items():
        if known.lost or (known.pending and not graph.jobs[name].active and not graph.jobs[name].paused):
            raise world.violation("files do not wait for nothing", (name, known.pending[:2], known.lost[:2]))


def files_arrive(world: World) -> None:
    """What lies there is found, also what nobody has told of and what claims to be of tomorrow."""
    for _ in range(2):
        world.rouse(frozenset({"housekeeping"}))
        world.clock.advance_ns(25_000_000_000)
    world.rouse(frozenset({"housekeeping"}))
    assert world.loop is not None
    known = world.loop.graph.arrivals
    seen = {path: written for one in known.values() for path, written in one.seen.items()}
    wanted = {path: written for path, written in world.host.files.items() if f"drop{path.split('/')[2]}" in known}
    if seen != wanted:
        raise world.violation("every file that stays arrives", sorted(set(seen.items()) ^ set(wanted.items()))[:5])


def encoded(graph: Graph, records: list[Record]) -> bytes:
    """The state after the records, byte for byte."""
    return snapshot.encode(fold(graph, records), Head(records[-1].seq, records[-1].hash), "")


def whole_life(world: World) -> None:
    """What must hold of all that was recorded."""
    assert world.loop is not None
    found = verify(world.disk)
    if not found.ok:
        raise world.violation("the ledger verifies", found.damages)
    records = list(read(world.disk))
    past, head = Past(), world.loop.ledger.head
    for record in records:
        if world.decides_again and is_decision(record) and not (verdict := decide_again(past, record)).agrees:
            raise world.violation(
                "a decision is reproduced from the ledger alone",
                (verdict.seq, verdict.differing_inputs, verdict.recorded, verdict.again),
            )
        past.fold(record)
    if snapshot.encode(past.graph, head, "") != snapshot.encode(world.loop.graph, head, ""):
        raise world.violation("replay equals the live state", head)
    if world.thorough:
        _derived(world, past.graph, Head(records[-1].seq, records[-1].hash))
    taken = {record.id for record in records if record.id}
    if world.acknowledged - taken:
        raise world.violation("no acknowledged request is lost", world.acknowledged - taken)
    _tables(world, records, past.graph)
    _kept_tails(world, records)
    _jumps(world, records)
    if world.host.lease_files:
        raise world.violation("no lease file is left behind", world.host.lease_files)
    _slots(world, records, past)
    _notices(world, records)
    _arrivals(world, records)


def _derived(world: World, graph: Graph, head: Head) -> None:
    restored = snapshot.restore(world.disk, "sim")
    if (restored.head, render(restored.graph, head)) != (head, render(graph, head)):
        raise world.violation("a start from a snapshot is a start from the first record", restored.snapshot_seq)
    unexpected = [finding for finding in audit(world.disk, "sim").findings if finding.where not in world.rotten]
    if unexpected:
        raise world.violation("the auditor finds that all agrees", unexpected)


@cache
def _database() -> Connection:
    """Made once for all lives: with it its prepared questions are kept, too."""
    return emptied()


def _tables(world: World, records: list[Record], graph: Graph) -> None:
    assert world.loop is not None
    tables = Tables(_database())
    tables.feed(records)
    policy = world.policy
    broken = tables.broken_rules(
        places=policy.max_running,
        cpus=world.loop.graph.here.cpus * 1000,
        notices=policy.notices_waiting_max,
        late_after_ms=policy.late_after_ms,
    )
    for rule, rows in broken:
        raise world.violation(rule, rows)
    for what, difference in tables.disagreements(graph):
        raise world.violation("the tables agree with the graph", (what, difference))


def _kept_tails(world: World, records: list[Record]) -> None:
    """Every byte that a recovery took out is in quarantine."""
    for record in records:
        for cut in record.data["cuts"] + record.data["found"] if record.type in KEEPING else ():
            path = f"{FOLDER}/quarantine/{cut['quarantine']}"
            kept = world.disk.read(path) if world.disk.exists(path) else b""
            if sha256(kept).hexdigest() != cut["sha256"] or not world.disk.exists(path):
                raise world.violation("what is cut is kept", cut)


def _jumps(world: World, records: list[Record]) -> None:
    """All in all; two that nobody could record are one. Not where the machine has started anew: nobody can tell how
    long that took."""
    noticed_ms = sum(record.data["jump_ms"] for record in records if record.type == "clock.jumped")
    if abs(noticed_ms - world.jumped_ms) > 1_000 and "power" not in world.drawn:
        raise world.violation("a jump of the clock is noticed", (world.jumped_ms, noticed_ms))


def _arrivals(world: World, records: list[Record]) -> None:
    """Each file once, and each arrival one decision: counted from the events, without the projector."""
    arrived: dict[str, int] = {}
    waiting: dict[tuple[str, str, str], int] = {}
    counts: dict[str, int] = {}
    for record in records:
        if record.type == "files.arrived":
            job = record.data["job"]
            counts[job] = counts.get(job, 0) + len(record.data["files"])
            for file in record.data["files"]:
                path = file["path"]
                one = f"{path} {stamp(file['size_bytes'], file['mtime_ns'], file['inode'])}"
                arrived[one] = arrived.get(one, 0) + 1
                at = text_of(ms_of(record.ts))
                waiting[job, path, at] = waiting.get((job, path, at), 0) + 1
    decided: set[str] = set()
    for record in records:
        for one in record.data["decisions"] if record.type == "plan.decided" else ():
            if one["trigger"] != "on" or one["run"] in decided:
                continue
            decided.add(one["run"])
            counts[one["job"]] -= one.get("count", 1)
            waiting[one["job"], one["file"], one["at"]] = waiting.get((one["job"], one["file"], one["at"]), 0) - 1
            if one["rule"].startswith("overlap.") and one["verdict"] == "skipped":
                raise world.violation("no file is skipped because another is being worked on", one)
    if any(counts.values()) or any(left < 0 for left in waiting.values()):
        raise world.violation(
            "each arrival has exactly one decision", (counts, [k for k, n in waiting.items() if n < 0])
        )
    unknown = arrived.keys() - world.dropped.keys()
    if unknown or any(times > 1 for times in arrived.values()):
        raise world.violation("each file arrives once", [one for one, times in arrived.items() if times > 1] or unknown)


def _notices(world: World, records: list[Record]) -> None:
    """Everybody is told of everything, or it is said that they could not be: counted from the events alone."""
    wishes: dict[str, list[Json]] = {}
    parents: dict[str, str] = {}
    wanted: dict[tuple[str, str], int] = {}
    queued: dict[str, tuple[str, str]] = {}
    ended: dict[str, str] = {}
    tried: set[tuple[str, int]] = set()
    batches: dict[tuple[str, str], int] = {}
    for record in records:
        data = record.data
        if record.type in ("job.defined", "job.changed"):
            wishes[data["job"]] = data["spec"]["notify"]
        elif record.type == "plan.decided":
            parents |= {d["run"]: d.get("parent", "") for d in data["decisions"]}
        elif record.type == "run.finished" and data["retry_at"] is None and not parents[data["run"]]:
            if data["outcome"] in ("failed", "timed_out", "lost"):
                about = (data["run"], "failed")
                times = sum("failed" in wish["on"] for wish in wishes[data["run"].split(".")[0]])
                wanted |= {about: times} if times else {}
                batches[about] = record.batch
        elif record.type == "notice.queued":
            about = queued[data["notice"]] = (data["run"], data["on"])
            if batches.get(about, record.batch) != record.batch:
                raise world.violation("a notice is recorded together with what it tells", data)
        elif record.type in ("notice.delivered", "notice.failed"):
            key = (data["notice"], data["attempt"])
            if key in tried or data["notice"] in ended:
                raise world.violation("an attempt to deliver has one end, and none follows the last", data)
            tried.add(key)
            if record.type == "notice.delivered" or data["retry_at"] is None:
                ended[data["notice"]] = record.type
    for about, times in wanted.items():
        if sum(other == about for other in queued.values()) != times:
            raise world.violation("a failure is told to all who asked for it", (about, times))
    if queued.keys() != ended.keys():
        raise world.violation("a notice is delivered or given up", sorted(queued.keys() ^ ended.keys()))
    unknown = {name for name, how in ended.items() if how == "notice.delivered"} - world.host.told.keys()
    if unknown:
        raise world.violation("what counts as delivered was delivered", unknown)


def _slots(world: World, records: list[Record], past: Past) -> None:
    """Every slot has its decision, and each run one end: counted from the events, without the projector."""
    ends: dict[str, int] = {}
    for record in records:
        if record.type == "run.finished" and record.data["retry_at"] is None:
            ends[record.data["run"]] = ends.get(record.data["run"], 0) + 1
        if record.type == "plan.decided":
            for decided in record.data["decisions"]:
                if decided["verdict"] not in ("started", "deferred", "buffered"):
                    ends[decided["run"]] = ends.get(decided["run"], 0) + 1
    doubled = {run: times for run, times in ends.items() if times != 1}
    if doubled:
        raise world.violation("a run ends exactly once", doubled)
    decided_slots: dict[str, dict[int, set[str]]] = {}
    spans: dict[str, list[tuple[int, int, int]]] = {}
    for record in records:
        if record.type == "plan.decided":
            for decided in record.data["decisions"]:
                if decided["run"] not in ends:
                    raise world.violation("a run that was decided has an end", decided["run"])
                if decided["trigger"] != "schedule":
                    continue
                at_ms = ms_of(decided["at"])
                if "until" in decided:
                    spans.setdefault(decided["job"], []).append((at_ms, ms_of(decided["until"]), decided["count"]))
                else:
                    decided_slots.setdefault(decided["job"], {}).setdefault(at_ms, set()).add(decided["run"])
    for record in records:
        if record.type != "job.defined":
            continue
        name = record.data["job"]
        job, schedule = past.graph.jobs[name], schedule_of(record.data["spec"]["schedule"])
        expected = due.slots(schedule, ms_of(record.ts), job.cursor_ms, 1_000_000)
        singles = decided_slots.get(name, {})
        covered: dict[int, int] = {at_ms: len(runs) for at_ms, runs in singles.items()}
        for start_ms, until_ms, count in spans.get(name, []):
            inside = expected[bisect_left(expected, start_ms) : bisect_right(expected, until_ms)]
            if len(inside) != count:
                raise world.violation("a range counts its slots", (name, start_ms, until_ms, count, len(inside)))
            for at_ms in inside:
                covered[at_ms] = covered.get(at_ms, 0) + 1
        if sorted(covered) != expected or any(times != 1 for times in covered.values()):
            wrong = [text_of(at) for at in sorted(set(expected) ^ set(covered))][:5]
            twice = [text_of(at) for at, times in covered.items() if times != 1][:5]
            raise world.violation("every slot has exactly one decision", (name, wrong, twice))
