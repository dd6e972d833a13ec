"""The past, asked again: every plan in a ledger must follow from what the ledger says was known then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ledger.record import Record
from policies.agenda import Agenda
from policies.decision import decide
from policies.policy import SchedulingPolicy
from policies.question import ask, digest
from policies.upgrade.plan import plan_upgrade
from policies.upgrade.saga import question_of
from state.graph import Graph, Policy
from state.projector import apply

Json = Any


@dataclass(frozen=True, slots=True)
class Verdict:
    """One plan as it was recorded, and as it comes out when its question is put again."""

    seq: int
    tick: int
    code: str
    """Digest of the planner that decided; another one may rightly decide otherwise."""
    recorded_hash: str
    hash: str
    differing_inputs: tuple[str, ...]
    """Input groups whose digest is not the recorded one."""
    recorded: tuple[Json, ...]
    again: tuple[Json, ...]

    @property
    def agrees(self) -> bool:
        """A record changed by hand may have kept its hash: the inputs and the decisions themselves are compared too."""
        same = digest(list(self.recorded)) == digest(list(self.again))
        return self.hash == self.recorded_hash and not self.differing_inputs and same


@dataclass(slots=True)
class Past:
    """The graph and agenda as of the last record folded in."""

    graph: Graph = field(default_factory=Graph)
    agenda: Agenda = field(default_factory=Agenda)
    _adopted: tuple[Policy, SchedulingPolicy] | None = None

    def policy(self) -> SchedulingPolicy:
        """The one in force, read once for as long as it is."""
        known = self.graph.policy
        if self._adopted is None or self._adopted[0] is not known:  # Not by its digest, which may be a lie.
            self._adopted = known, SchedulingPolicy.recorded(known.values)
        return self._adopted[1]

    def fold(self, record: Record) -> None:
        patch = apply(self.graph, record)
        self.graph.merge(patch, record.seq)
        self.agenda.follow(patch.put, self.graph)


def is_decision(record: Record) -> bool:
    return record.type in ("plan.decided", "upgrade.planned")


def decide_again(past: Past, record: Record) -> Verdict:
    """Put the question of one decision to its planner again, in the state just before it."""
    data = record.data
    if record.type == "upgrade.planned":
        return _upgrade_again(past, record)
    question = ask(past.graph, past.agenda, past.policy(), data["wall_ms"])
    question.preflight.update(data["preflight"])
    plan = decide(question)
    return Verdict(
        seq=record.seq,
        tick=data["tick"],
        code=past.graph.here.code,
        recorded_hash=data["decision_hash"],
        hash=plan.decision_hash,
        differing_inputs=tuple(group for group, found in plan.inputs.items() if data["inputs"].get(group) != found),
        recorded=tuple(data["decisions"]),
        again=plan.decisions,
    )


def _upgrade_again(past: Past, record: Record) -> Verdict:
    data, graph = record.data, past.graph
    run = graph.run(data["run"])
    answer = plan_upgrade(question_of(graph, run, data["wall_ms"], data["policy"])) if run is not None else None
    told = ("repos", "gate", "federation", "coordination", "topology")
    return Verdict(
        seq=record.seq,
        tick=graph.here.tick,
        code=graph.here.code,
        recorded_hash=data["decision_hash"],
        hash=answer["decision_hash"] if answer else "",
        differing_inputs=tuple(
            group for group, found in (answer["inputs"] if answer else {}).items() if data["inputs"].get(group) != found
        ),
        recorded=tuple(data[name] for name in told),
        again=tuple(answer[name] for name in told) if answer else (),  # type: ignore[literal-required]
    )


def verify_decisions(records: Iterable[Record], past: Past | None = None) -> Iterator[Verdict]:
    """Walk a ledger from its first record; one verdict for each plan, in order. `past` ends at the last record."""
    past = past or Past()
    for record in records:
        if is_decision(record):
            yield decide_again(past, record)
        past.fold(record)
