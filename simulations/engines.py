"""The engine pool in a world of plain values: the real decisions, loads and answers that take their time, engines that
die of a request. For tests, and for comparing one set of limits with another on the same trace."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from policies import engines
from policies.engines import GIB, Assign, Device, Drain, Kill, Limits, Model, Pool, Refuse, Spawn, Stop, decide, next_ms

LOAD_MS, ANSWER_MS = 1000, 100


@dataclass
class World:
    """Carries out what is decided, at once and faithfully; `at` is what happens later."""

    pool: Pool
    now: int = 0
    later: list[tuple[int, int, Any]] = field(default_factory=list)
    log: list[Any] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    refused: dict[str, Refuse] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    capacity: dict[str, int] = field(default_factory=dict)
    size: dict[str, int] = field(default_factory=dict)
    dies: dict[str, str] = field(default_factory=dict)  # request -> why its engine dies of it
    ends: list[tuple[str, str, engines.Ended]] = field(default_factory=list)
    passed_max: int = 0
    waits_ms: dict[str, int] = field(default_factory=dict)
    takes_ms: dict[str, int] = field(default_factory=dict)  # request -> how long its answer takes, if not as usual
    number: int = 0

    def ask(self, id: str, model: str, priority: int = 0) -> None:
        self.pool.arrived(id, model, self.now, priority=priority)

    def at(self, delay_ms: int, what: Any) -> None:
        self.number += 1
        heapq.heappush(self.later, (self.now + delay_ms, self.number, what))

    def measure(self) -> None:
        for name, total in self.capacity.items():
            used = sum(engine.used for engine in self.pool.engines.values() if engine.device == name)
            assert used <= total, "more was loaded than fits"
            self.pool.devices[name] = Device(name, total, total - used)

    def settle(self) -> None:
        """Decide until there is nothing to do now."""
        for _ in range(10_000):
            self.measure()
            actions = decide(self.pool, self.now)
            if not actions:
                return
            for action in actions:
                self.log.append(action)
                self.carry_out(action)
        raise AssertionError("it never comes to rest")

    def carry_out(self, action: engines.Action) -> None:
        pool = self.pool
        match action:
            case Spawn(model=model):
                self.number += 1
                engine = pool.spawned(f"e{self.number}", action, self.now)
                engine.used = self.size.get(model, GIB)
                self.at(LOAD_MS, lambda id=engine.id: self.loaded(id))
            case Assign(request=request, engine=engine_id):
                asked = pool.waiting[request]
                self.passed_max = max(self.passed_max, *(pool.waiting[id].passed + 1 for id in action.passed), 0)
                pool.give(action, self.now)
                self.waits_ms[request] = self.now - asked.arrived_ms
                if asked.work:
                    self.at(self.takes_ms.get(request, ANSWER_MS), lambda: self.over(request, engine_id))
            case Drain(engine=engine_id, why=why):
                pool.drain(engine_id, why)
            case Stop(engine=engine_id) | Kill(engine=engine_id):
                if isinstance(action, Stop):
                    pool.stop(engine_id, self.now)
                else:
                    pool.kill(engine_id, action.why, self.now)
                self.at(10, lambda: self.gone(engine_id, pool.engines[engine_id].why or "closed"))
            case Refuse(request=request):
                pool.left(request)
                self.refused[request] = action

    def loaded(self, id: str) -> None:
        if id in self.pool.engines:
            self.pool.serves(id, self.now)

    def over(self, request: str, engine: str) -> None:
        found = self.pool.engines.get(engine)
        if found is None or request not in found.running:
            return
        if why := self.dies.get(request):
            self.gone(engine, why)
            return
        self.pool.heard(engine, self.now, used=found.used)
        self.pool.done(request, engine, self.now, well=True)
        self.answered.append(request)

    def gone(self, engine: str, why: Any) -> engines.Ended | None:
        if engine not in self.pool.engines:
            return None
        ended = self.pool.ended(engine, why, self.now)
        self.ends.append((engine, why, ended))
        self.lost += ended.lost
        return ended

    def live(self, until_ms: int | None = None) -> None:
        """Until nothing is left to happen, or the instant."""
        self.settle()
        while True:
            instants = [self.later[0][0]] if self.later else []
            if (wake := next_ms(self.pool, self.now)) is not None and (self.later or self.pool.waiting or until_ms):
                instants.append(wake)
            if not instants or (until_ms is not None and min(instants) > until_ms):
                break
            self.now = min(instants)
            for engine in self.pool.engines.values():
                engine.heard_ms = self.now
            while self.later and self.later[0][0] <= self.now:
                heapq.heappop(self.later)[2]()
            self.settle()
        if until_ms is not None:
            self.now = until_ms

    def loads(self) -> list[str]:
        return [action.model for action in self.log if isinstance(action, Spawn)]


def trace(seed: int, models: Sequence[str], count: int, gap_ms: int) -> list[tuple[int, str]]:
    """Requests as people make them: at random, some models asked more than others. (instant, model) each."""
    chance, at, found = Random(seed), 0, []
    weights = [2**-place for place in range(len(models))]
    for _ in range(count):
        at += round(chance.expovariate(1 / gap_ms))
        found.append((at, chance.choices(models, weights)[0]))
    return found


def lived(asked: Sequence[tuple[int, str]], *, rows: int = 4, **limits: Any) -> World:
    """What becomes of these on a machine with room for one engine."""
    pool = Pool(Limits(**{"engines_max": 1, "idle_ms": 0, **limits}))
    for name in dict.fromkeys(model for _, model in asked):
        pool.register(Model(name, weights_bytes=GIB // 2, rows=rows))
    world = World(pool, capacity={"cpu": 64 * GIB})
    for number, (at_ms, model) in enumerate(asked):
        world.at(at_ms, lambda id=str(number), model=model: world.ask(id, model))
    world.live()
    return world
