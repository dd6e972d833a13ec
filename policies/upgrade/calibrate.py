"""Whether the estimated risks were true: reliability, Brier score, and the correction that the past proposes.

An estimate of 0.1 is true when of all upgrades estimated so one in ten failed its proof. The past is replayed: of each
upgrade that was tried there is the risk that was estimated then, the one that the policy in force would estimate from
the same inputs, and what came of it. A correction is fitted on the earlier two thirds and judged on the last third.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ledger.instant import ms_of
from ledger.record import Record
from policies.upgrade import saga
from policies.upgrade.plan import plan_upgrade
from policies.upgrade.policy import UpgradePolicy
from policies.upgrade.risk import bent
from state.graph import Graph
from state.projector import fold
from state.upgrades import proved

Json = Any
Pairs = Sequence[tuple[float, bool]]
"""Each an estimated risk, and whether the upgrade failed its proof."""

ENOUGH = 30
"""With fewer upgrades no correction is proposed."""
_PRIOR = 2
"""A step of the correction is drawn towards the rate of all as if by so many more upgrades."""


class Tried(NamedTuple):
    """One upgrade that came to a proof."""

    at_ms: int
    run: str
    key: str
    estimated: float
    """As the plan of that night said."""
    now: float
    """As the policy in force would say, without its correction."""
    failed: bool


class Bin(NamedTuple):
    low: float
    high: float
    upgrades: int
    estimated: float
    """Mean."""
    observed: float
    lower: float
    upper: float
    """What the true rate may be, 95 of 100 times (Wilson)."""

    @property
    def fits(self) -> bool:
        return self.lower <= self.estimated <= self.upper


def replayed(records: Iterable[Record], policy: UpgradePolicy) -> Iterator[Tried]:
    """Walk a ledger from its first record."""
    graph, values = Graph(), policy.values()
    planned: dict[tuple[str, str], tuple[float, float]] = {}
    for record in records:
        data = record.data
        if record.type == "upgrade.planned":
            run = graph.active[data["run"]]
            again = plan_upgrade(saga.question_of(graph, run, data["wall_ms"], values))
            raw = {row["key"]: row.get("details", {}).get("raw_risk", row["risk"]) for row in again["repos"]}
            planned = {key: told for key, told in planned.items() if key[0] in graph.active}
            planned |= {(data["run"], row["key"]): (row["risk"], raw[row["key"]]) for row in data["repos"]}
        elif record.type == "upgrade.settled":
            proof = proved(data["outcome"], data["attempted"], data["step"])
            told = planned.get((data["run"], data["key"]))
            if proof is not None and told is not None:
                yield Tried(ms_of(record.ts), data["run"], data["key"], *told, not proof)
        fold(graph, [record])


def brier(pairs: Pairs) -> float:
    """The mean square of how far the estimates were from what came (0 or 1): 0 is perfect."""
    return sum((risk - failed) ** 2 for risk, failed in pairs) / len(pairs) if pairs else 0.0


def base_rate(pairs: Pairs) -> float:
    return sum(failed for _, failed in pairs) / len(pairs) if pairs else 0.0


def skill(pairs: Pairs) -> float:
    """How much better than always saying the rate of all, which is 0; 1 is perfect, less than 0 is worse. 0 where
    all came out alike."""
    rate = base_rate(pairs)
    blind = brier([(rate, failed) for _, failed in pairs])
    return 1 - brier(pairs) / blind if blind else 0.0


def reliability(pairs: Pairs, count: int = 5) -> list[Bin]:
    """The upgrades in up to `count` bins of equal size, by estimate; equal estimates are never parted."""
    ordered = sorted(pairs)
    bins: list[list[tuple[float, bool]]] = []
    size = max(1, -(-len(ordered) // count))
    for pair in ordered:
        if not bins or (len(bins[-1]) >= size and bins[-1][-1][0] != pair[0]):
            bins.append([])
        bins[-1].append(pair)
    return [_bin(inside) for inside in bins]


def _bin(pairs: Pairs) -> Bin:
    count, failed = len(pairs), sum(failed for _, failed in pairs)
    lower, upper = wilson(failed, count)
    mean = sum(risk for risk, _ in pairs) / count
    return Bin(pairs[0][0], pairs[-1][0], count, mean, failed / count, lower, upper)


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of rates that `hits` of `count` speak for."""
    if not count:
        return 0.0, 1.0
    rate, square = hits / count, z * z
    middle = (rate + square / (2 * count)) / (1 + square / count)
    half = z * (rate * (1 - rate) / count + square / (4 * count * count)) ** 0.5 / (1 + square / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def fitted(pairs: Pairs, count: int = 5) -> tuple[tuple[float, float], ...]:
    """A correction for `risk.calibration` of the policy: pairs of estimate and rate that never fall (isotonic
    regression over bins, each drawn towards the rate of all). () where there is too little to go by."""
    if len(pairs) < ENOUGH or not 0 < base_rate(pairs) < 1:
        return ()
    rate = base_rate(pairs)
    pools: list[list[float]] = []  # of neighbours that would fall: estimates, failures and upgrades together
    for one in reliability(pairs, count):
        tried = one.upgrades
        pools.append([one.estimated * tried, one.observed * tried + _PRIOR * rate, tried + _PRIOR, tried])
        while len(pools) > 1 and pools[-2][1] / pools[-2][2] >= pools[-1][1] / pools[-1][2]:
            last = pools.pop()
            pools[-1] = [below + above for below, above in zip(pools[-1], last, strict=True)]
    found = [(round(told / members, 4), round(failed / weight, 4)) for told, failed, weight, members in pools]
    return tuple(pair for place, pair in enumerate(found) if not place or pair[0] > found[place - 1][0])


def corrected(pairs: Pairs, correction: tuple[tuple[float, float], ...]) -> list[tuple[float, bool]]:
    return [(bent(risk, correction) if correction else risk, failed) for risk, failed in pairs]


class Judged(NamedTuple):
    """A correction fitted on the earlier upgrades, judged on the later ones it had not seen."""

    seen: int
    unseen: int
    before: float
    """Brier score of the unseen ones without it."""
    after: float


def judged(pairs: Pairs) -> Judged | None:
    """`pairs` in the order of time. None where there are too few to hold any back."""
    cut = len(pairs) * 2 // 3
    correction = fitted(pairs[:cut])
    if not correction or cut == len(pairs):
        return None
    unseen = pairs[cut:]
    return Judged(cut, len(unseen), brier(unseen), brier(corrected(unseen, correction)))
