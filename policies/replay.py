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
from state.graph import Graph
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

    def fold(self, record: Record) -> None:
        patch = apply(self.graph, record)
        self.graph.merge(patch, record.seq)
        self.agenda.follow(patch.put, self.graph)


def decide_again(past: Past, record: Record) -> Verdict:
    """Put the question of one `plan.decided` to the planner again, in the state just before it."""
    data = record.data
    policy = SchedulingPolicy.model_validate(past.graph.policy.values)
    question = ask(past.graph, past.agenda, policy, data["wall_ms"])
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


def verify_decisions(records: Iterable[Record], past: Past | None = None) -> Iterator[Verdict]:
    """Walk a ledger from its first record; one verdict for each plan, in order. `past` ends at the last record."""
    past = past or Past()
    for record in records:
        if record.type == "plan.decided":
            yield decide_again(past, record)
        past.fold(record)
