"""A short past, told event by event: a real ledger on a make-believe disk, folded by the real projector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ledger.instant import Now, ms_of, text_of
from ledger.ledger import Ledger
from ledger.reader import read
from ledger.record import Draft, Record
from ledger.segment import Writer
from policies.adoption import Accepted, changes
from policies.decision import Plan, decide
from policies.job import parse_job
from policies.policy import SchedulingPolicy, adopt
from policies.question import Question, ask
from policies.reaction import finished, react
from policies.replay import Past
from policies.request import accept
from simulations.disk import SimDisk
from state.events import draft
from state.graph import Graph, Run

Json = Any
DEFAULTS = yaml.safe_load((Path(__file__).parent.parent / "policies" / "defaults" / "scheduling.yaml").read_text())
NOON = ms_of("2026-03-02T12:00:00Z")


class Story:
    """`at` moves both clocks; every event carries the instant it stands at."""

    def __init__(self, **policy: Json) -> None:
        self.disk = SimDisk(1)
        self.wall_ms, self.boot_ms = NOON, 1_000_000
        self.ledger = Ledger.open(self.disk, Writer("host", "boot", 1, 1, "0"), self.now)
        self.past = Past()
        for record in read(self.disk):
            self.past.fold(record)
        self.policy: SchedulingPolicy = adopt(DEFAULTS, policy)
        self.jobs: dict[str, Accepted] = {}
        self.record(draft("policy.adopted", "policy", {"digest": self.policy.digest(), "policy": self.policy.values()}))
        self.resources()

    @property
    def now(self) -> Now:
        return Now(self.wall_ms * 1_000_000, self.boot_ms * 1_000_000)

    @property
    def graph(self) -> Graph:
        return self.past.graph

    def pass_ms(self, ms: int) -> None:
        self.wall_ms += ms
        self.boot_ms += ms

    def record(self, *drafts: Draft) -> list[Record]:
        records = self.ledger.append(drafts, self.now)
        for record in records:
            self.past.fold(record)
        return records

    def resources(self, **changed: int) -> None:
        sample = {
            "cpus": 4, "memory_bytes": 8 << 30, "memory_free_bytes": 4 << 30, "disk_bytes": 1 << 40,
            "disk_free_bytes": 1 << 39, "gpu_memory_bytes": 0,
        }  # fmt: skip
        self.record(draft("resources.sampled", "node/here", sample | changed))

    def define(self, name: str, schedule: Json = "manual", **fields: Json) -> None:
        raw = {"name": name, "kind": "command", "schedule": schedule} | fields
        if raw["kind"] == "command":
            raw.setdefault("argv", ["true"])
        job = parse_job(raw)
        self.jobs[name] = Accepted(job.digest(), job.canonical(), f"{name}.yaml")
        self.adopt()

    def remove(self, name: str) -> None:
        del self.jobs[name]
        self.adopt()

    def adopt(self) -> None:
        self.record(*changes(self.graph, self.jobs, []))

    def ask(self) -> Question:
        return ask(self.graph, self.past.agenda, self.policy, self.wall_ms)

    def plan(self, preflight: Mapping[str, str] | None = None) -> Plan:
        """Ask the planner, and record what it says."""
        problems = preflight or {}
        question = self.ask()
        plan = decide(question, check=lambda candidate: problems.get(candidate.job, ""))
        if plan.decisions:
            data = {
                "tick": self.graph.here.tick + 1, "wall_ms": self.wall_ms, "boot_ms": self.boot_ms,
                "preflight": question.preflight, "decisions": list(plan.decisions), "inputs": plan.inputs,
                "decision_hash": plan.decision_hash,
            }  # fmt: skip
            self.record(draft("plan.decided", "plan", data))
        return plan

    def request(self, verb: str, request: str, **args: Json) -> Json:
        """What a person is answered. Declined comes through."""
        event, answer = accept(self.graph, verb, request, args, "me@here", self.wall_ms, self.spec_at)
        if event is not None:
            self.record(event)
        self.react()
        return answer

    def spec_at(self, seq: int) -> Mapping[str, Json]:
        spec: Mapping[str, Json] = next(record for record in read(self.disk) if record.seq == seq).data["spec"]
        return spec

    def start(self, job: str, request: str = "r1") -> str:
        return str(self.request("start", request, job=job).get("run", ""))

    def cancel(self, run: str, request: str = "c1") -> None:
        self.request("cancel", request, run=run)

    def react(self) -> list[Record]:
        records = []
        while follows := react(self.graph, self.now):
            records += self.record(*follows)
        return records

    def begin(self, name: str) -> None:
        run = self.run(name)
        data = {"run": name, "attempt": run.attempt, "token": run.token, "pid": 7, "process_started": 7}
        self.record(draft("run.started", run.id, data))

    def end(self, name: str, outcome: str = "succeeded", *, code: int | None = 0, retry_in_ms: int = 0) -> None:
        retry_at = text_of(self.wall_ms + retry_in_ms) if retry_in_ms else None
        self.record(finished(self.run(name), outcome, "as told", code=code, retry_at=retry_at))

    def run(self, name: str) -> Run:
        run = self.graph.run(name)
        assert run is not None, f"no run {name} among {[n for n in self.graph.nodes if n.startswith('run/')]}"
        return run

    def states(self) -> dict[str, str]:
        """Of every job's runs and steps: the last part of the name that tells them apart -> the state."""
        return {
            (run.step or run.job): run.state
            for run in sorted((n for n in self.graph.nodes.values() if isinstance(n, Run)), key=lambda r: r.created_at)
        }
