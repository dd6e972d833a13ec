"""Which engines to start, feed, drain and end: the pool's whole decision logic, over plain values.

`Pool` is what is known; its methods are what may happen to it; `decide(pool, now_ms)` says what to do now, and
`next_ms` when time alone will change the answer. No clock and no process is here: instants come in, in milliseconds of
any one clock that does not jump.

The laws:
- A request for a loaded model may overtake one that waits for another model, but only so often and for so long
  (`overtakes_max`, `fairness_ms`); then the loaded model serves what came before it, and makes room. Every load serves
  at least one request, so the pool cannot be kept busy with loading alone.
- Nothing is loaded that would not fit: what an engine may come to need is reserved from its start, as estimated, then
  as measured. Idle engines are ended for others, the least recently used first; busy ones only for fairness's sake.
- An engine that dies gives back what it had not begun, in its old place. A request that was being worked on when
  engines died `tries_max` times is not tried again.
- Out of memory climbs a ladder: smaller batch, quantised, a smaller model, the CPU.
- After `crashes_max` failures in a window the breaker opens: nothing is loaded for a while, then one engine is tried
  with one request at a time, and what becomes of that decides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

State = Literal["starting", "loading", "warming", "serving", "draining", "stopping", "killed"]
Why = Literal[
    "idle", "evicted", "recycled", "replaced", "unloaded", "closed", "memory",
    "crashed", "killed", "hung", "out-of-memory", "load-failed",
]  # fmt: skip

FAILURES = frozenset({"crashed", "killed", "hung", "out-of-memory", "load-failed"})
COMING = frozenset({"starting", "loading", "warming"})
GOING = frozenset({"draining", "stopping", "killed"})
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for the whole pool: times in milliseconds, sizes in bytes; 0 is no bound where it makes no sense."""

    waiting_max: int = 2048
    """Requests that may wait; one more is turned away."""
    overtakes_max: int = 32
    """A request waiting for its model lets so many later ones pass, to within a batch."""
    fairness_ms: int = 30_000
    """... and for so long."""
    aging_ms: int = 10_000
    """A waiting request gains one step of priority each time so long."""
    engines_max: int = 0
    """Engines at once."""
    memory_max: int = 0
    """What the engines of one device may take together."""
    memory_percent: int = 90
    """A device is not filled beyond this, and idle engines are ended when it is."""
    margin_max: int = GIB
    """... but no more than this is kept free for it."""
    process_bytes: int = 400 << 20
    """What an engine takes beside its model and cache, until it has been measured."""
    idle_ms: int = 600_000
    """An engine nobody asked anything of for so long is ended; 0 keeps it."""
    recycle_requests: int = 0
    """An engine is replaced after so many requests."""
    recycle_rss: int = 0
    """... or when its process holds so much."""
    load_ms: int = 900_000
    """An engine that does not serve by then hangs."""
    silence_ms: int = 120_000
    """An engine that serves and has not been heard of for so long hangs."""
    stop_ms: int = 10_000
    """How long an engine may take to end by itself."""
    tries_max: int = 2
    crashes_max: int = 3
    crashes_ms: int = 300_000
    """The window the failures are counted in."""
    open_ms: int = 15_000
    """How long the breaker stays open at first; twice as long each time in a row."""
    open_ms_max: int = 600_000


@dataclass(frozen=True, slots=True)
class Device:
    """`free` counts everybody's use of it, ours too."""

    name: str
    total: int
    free: int

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]


class Rung(NamedTuple):
    """One way to run a model; the ladder is its spec as registered and what to fall back to."""

    name: str  # as asked | smaller batch | quantised | smaller model | cpu
    rows: int
    quantization: str
    device: str
    instead: str  # the model that answers; "" for itself


@dataclass(slots=True)
class Model:
    name: str
    revision: int = 1
    weights_bytes: int = 0
    """In the dtype it is served in, not quantised."""
    cache_bytes: int = 0
    device: str = "auto"
    rows: int = 16
    quantization: str = "none"
    quantizable: bool = False
    instances: int = 1
    fallback: str = ""
    remote: bool = False
    """It is served elsewhere: its engine takes next to nothing here."""
    rung: int = 0
    peaks: dict[tuple[int, str], int] = field(default_factory=dict)
    """(rung, kind of device) -> the most an engine was seen to take."""

    def ladder(self) -> list[Rung]:
        rungs = [Rung("as asked", self.rows, self.quantization, self.device, "")]
        if self.rows > 1 and not self.remote:
            rungs.append(rungs[-1]._replace(name="smaller batch", rows=max(1, self.rows // 4)))
        if self.quantizable and self.quantization == "none":
            rungs.append(rungs[-1]._replace(name="quantised", quantization="bnb-4bit"))
        if self.fallback:
            rungs.append(rungs[-1]._replace(name="smaller model", instead=self.fallback))
        if self.device != "cpu" and not self.remote:
            rungs.append(rungs[-1]._replace(name="cpu", device="cpu", instead=""))
        return rungs

    def now(self) -> Rung:
        return self.ladder()[self.rung]


_SHARES = {"bnb-8bit": 2, "bnb-4bit": 4}
"""So many times smaller than weights of two bytes."""


@dataclass(slots=True)
class Engine:
    id: str
    model: str
    revision: int
    device: str
    rung: int
    rows: int
    need: int
    """Reserved on its device."""
    spawned_ms: int
    state: State = "starting"
    used: int = 0
    rss: int = 0
    running: dict[str, None] = field(default_factory=dict)
    served: int = 0
    heard_ms: int = 0
    serving_ms: int = 0
    """Since when it serves."""
    idle_ms: int = 0
    """Since when it has had nothing to do."""
    ends_ms: int = 0
    """When it was told to stop, or killed."""
    why: Why | None = None
    """Why it goes."""

    @property
    def reserved(self) -> int:
        return max(self.need - self.used, 0)


@dataclass(slots=True)
class Waiting:
    id: str
    model: str
    seq: int
    arrived_ms: int
    priority: int = 0
    work: bool = True
    """False: it only wants the model to be there."""
    passed: int = 0
    """Later ones that were served while it waited for its model."""
    tries: int = 0


@dataclass(slots=True)
class Breaker:
    failures: list[int] = field(default_factory=list)
    opened_ms: int | None = None
    times: int = 0
    why: str = ""

    def standing(self, limits: Limits, now_ms: int) -> Literal["closed", "open", "half-open"]:
        if self.opened_ms is None:
            return "closed"
        return "open" if now_ms < self.until_ms(limits) else "half-open"

    def until_ms(self, limits: Limits) -> int:
        return (self.opened_ms or 0) + min(limits.open_ms << min(self.times - 1, 20), limits.open_ms_max)

    def failed(self, limits: Limits, now_ms: int, why: str) -> bool:
        """True if it opens by this."""
        self.why = why
        self.failures = [at for at in self.failures if now_ms - at < limits.crashes_ms] + [now_ms]
        half = self.standing(limits, now_ms) == "half-open"
        if not half and (self.opened_ms is not None or len(self.failures) < limits.crashes_max):
            return False
        self.opened_ms, self.times = now_ms, self.times + 1
        return True


class Spawn(NamedTuple):
    model: str
    """Whose engine it is: after the ladder's "smaller model", that one's."""
    device: str
    need: int
    rung: int


class Assign(NamedTuple):
    request: str
    engine: str
    passed: tuple[str, ...]
    """Those that are first to wait for their models and are overtaken by it."""


class Drain(NamedTuple):
    """Give it nothing any more."""

    engine: str
    why: Why


class Stop(NamedTuple):
    """It has nothing left to do: let it end."""

    engine: str


class Kill(NamedTuple):
    engine: str
    why: Why


class Refuse(NamedTuple):
    request: str
    kind: Literal["unknown", "does-not-fit", "broken"]
    figures: Mapping[str, Mapping[str, int]]
    retry_after_ms: int
    why: str


Action = Spawn | Assign | Drain | Stop | Kill | Refuse


class Ended(NamedTuple):
    """What follows from an engine's end."""

    requeued: tuple[str, ...]
    lost: tuple[str, ...]
    rung: Rung | None
    """The ladder was climbed to here."""
    opened: bool
    """The breaker opened by it."""


@dataclass(slots=True)
class Pool:
    limits: Limits = field(default_factory=Limits)
    devices: dict[str, Device] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    engines: dict[str, Engine] = field(default_factory=dict)
    waiting: dict[str, Waiting] = field(default_factory=dict)
    breakers: dict[str, Breaker] = field(default_factory=dict)
    assigned: dict[str, Waiting] = field(default_factory=dict)
    seq: int = 0

    def register(self, model: Model) -> None:
        """Known anew it begins at the foot of its ladder, with nothing measured."""
        known = self.models.get(model.name)
        self.models[model.name] = replace(model, revision=known.revision + 1 if known else 1)
        self.breakers.pop(model.name, None)

    def forget(self, name: str) -> None:
        del self.models[name]
        self.breakers.pop(name, None)

    def target(self, name: str) -> str:
        """The model that answers for this one: itself, or what its ladder says."""
        seen = {name}
        while (model := self.models.get(name)) is not None and model.fallback and (instead := model.now().instead):
            if instead in seen or instead not in self.models:
                return name
            seen.add(instead)
            name = instead
        return name

    def full(self) -> bool:
        return len(self.waiting) >= self.limits.waiting_max

    def arrived(self, id: str, model: str, now_ms: int, *, priority: int = 0, work: bool = True) -> None:
        self.seq += 1
        self.waiting[id] = Waiting(id, model, self.seq, now_ms, priority, work)

    def left(self, id: str) -> Engine | None:
        """Whoever asked has gone, or was refused. The engine that works on it still, if one does."""
        self.waiting.pop(id, None)
        return next((engine for engine in self.engines.values() if id in engine.running), None)

    def spawned(self, id: str, action: Spawn, now_ms: int) -> Engine:
        model = self.models[action.model]
        rung = model.ladder()[action.rung]
        engine = Engine(id, model.name, model.revision, action.device, action.rung, rung.rows, action.need, now_ms)
        self.engines[id] = engine
        engine.heard_ms = now_ms
        return engine

    def heard(self, id: str, now_ms: int, *, rss: int | None = None, used: int | None = None) -> None:
        engine = self.engines[id]
        engine.heard_ms = now_ms
        if rss is not None:
            engine.rss = rss
        if used is not None:
            engine.used = used
            model = self.models.get(engine.model)
            learnt = engine.served or engine.running or used > engine.need  # Before that its cache may be empty.
            if learnt and model is not None and model.revision == engine.revision:
                key = engine.rung, engine.device.partition(":")[0]
                model.peaks[key] = max(model.peaks.get(key, 0), used)
            engine.need = max(engine.need, used)

    def serves(self, id: str, now_ms: int) -> None:
        """It has loaded its model and answers. What it turned out to take is what it needs from now on."""
        engine = self.engines[id]
        if engine.state in COMING:
            engine.state = "serving"
        engine.serving_ms = engine.idle_ms = engine.heard_ms = now_ms

    def give(self, action: Assign, now_ms: int) -> None:
        request = self.waiting.pop(action.request)
        for id in action.passed:
            self.waiting[id].passed += 1
        engine = self.engines[action.engine]
        engine.idle_ms = now_ms
        if request.work:
            engine.running[request.id] = None
            self.assigned[request.id] = request

    def done(self, id: str, engine: str, now_ms: int, *, well: bool) -> bool:
        """A request is over, and its engine lives on. True if the breaker closes by it."""
        found = self.engines[engine]
        found.running.pop(id, None)
        self.assigned.pop(id, None)
        found.served += 1
        found.idle_ms = now_ms
        breaker = self.breakers.get(found.model)
        if not well or breaker is None or breaker.standing(self.limits, now_ms) != "half-open":
            return False
        del self.breakers[found.model]
        return True

    def drain(self, id: str, why: Why) -> None:
        engine = self.engines[id]
        if engine.state not in GOING:
            engine.state, engine.why = "draining", why

    def stop(self, id: str, now_ms: int) -> None:
        engine = self.engines[id]
        engine.state, engine.ends_ms = "stopping", now_ms

    def kill(self, id: str, why: Why, now_ms: int) -> None:
        engine = self.engines[id]
        engine.state, engine.ends_ms = "killed", now_ms
        engine.why = engine.why if engine.why is not None and why not in FAILURES else why

    def ended(self, id: str, why: Why, now_ms: int, *, begun: Iterable[str] = (), words: str = "") -> Ended:
        """An engine's process is gone. `begun`: those of its requests of which something had been told already and
        that cannot be gone on with elsewhere."""
        engine = self.engines.pop(id)
        gone, requeued, lost = set(begun), [], []
        for request_id in engine.running:
            request = self.assigned.pop(request_id, None)
            if request is None:
                continue
            request.tries += why in FAILURES and why != "out-of-memory"
            if request_id in gone or request.tries >= self.limits.tries_max:
                lost.append(request_id)
            else:
                requeued.append(request_id)
                self.waiting[request_id] = request
        model = self.models.get(engine.model)
        if why not in FAILURES or model is None or model.revision != engine.revision:
            return Ended(tuple(requeued), tuple(lost), None, False)
        if why == "out-of-memory" and engine.rung == model.rung and (rung := self._climb(model)) is not None:
            return Ended(tuple(requeued), tuple(lost), rung, False)
        if why == "out-of-memory" and engine.rung < model.rung:  # Another one has climbed for it.
            return Ended(tuple(requeued), tuple(lost), None, False)
        breaker = self.breakers.setdefault(model.name, Breaker())
        opened = breaker.failed(self.limits, now_ms, words or why)
        return Ended(tuple(requeued), tuple(lost), None, opened)

    def _climb(self, model: Model) -> Rung | None:
        """The next rung of its ladder; of one that stands on it, where it has none."""
        ladder = model.ladder()
        if model.rung + 1 < len(ladder):
            model.rung += 1
            if ladder[model.rung].instead and self.target(model.name) == model.name:
                return self._climb(model)  # The smaller model is not known.
            return ladder[model.rung]
        rung = None
        for other in self.models.values():
            if other is not model and other.now().instead == model.name and other.rung + 1 < len(other.ladder()):
                other.rung += 1
                rung = other.now()
        return rung

    def order(self, now_ms: int) -> list[Waiting]:
        """Who is first: by priority, which grows with waiting, then by arrival."""
        aging = max(1, self.limits.aging_ms)
        return sorted(self.waiting.values(), key=lambda w: (-(w.priority + (now_ms - w.arrived_ms) // aging), w.seq))

    def need(self, model: Model, device: Device) -> int:
        """What an engine of it may come to take there, as it is to be run now."""
        measured = model.peaks.get((model.rung, device.kind))
        if measured is not None:
            return measured
        rung = model.now()
        if model.remote:
            return self.limits.process_bytes // 4
        weights = model.weights_bytes
        if rung.quantization != model.quantization:
            weights //= _SHARES[rung.quantization]
        cache = model.cache_bytes * rung.rows // max(1, model.rows)
        return weights + weights // 20 + cache + self.limits.process_bytes

    def margin(self, device: Device) -> int:
        return min(device.total * (100 - self.limits.memory_percent) // 100, self.limits.margin_max)

    def free(self, device: Device, gone: Collection[str] = ()) -> int:
        """What may be given away of it, were these engines gone: what nobody uses, less what our engines may come to
        need, and less what is kept free."""
        there = [engine for engine in self.engines.values() if engine.device == device.name]
        back = sum(engine.used for engine in there if engine.id in gone)
        stay = [engine for engine in there if engine.id not in gone]
        free = device.free + back - self.margin(device) - sum(e.reserved for e in stay if e.state not in GOING)
        if self.limits.memory_max:
            free = min(free, self.limits.memory_max - sum(max(engine.need, engine.used) for engine in stay))
        return free

    def fits(self, model: Model, device: Device, gone: Collection[str] = ()) -> bool:
        """Whether an engine of it could be started there, were these gone."""
        if self.limits.engines_max and sum(id not in gone for id in self.engines) >= self.limits.engines_max:
            return False
        return self.need(model, device) <= self.free(device, gone)

    def over(self, device: Device) -> bool:
        """It is filled beyond its bound."""
        return device.free < self.margin(device)


_RANK = {"cuda": 0, "mps": 1, "cpu": 2}


def places(pool: Pool, model: Model) -> list[Device]:
    """The devices it may be loaded on, the best first: of several of a kind the one with fewest engines, then the one
    with most free memory."""
    wish = model.now().device
    counts = {name: sum(engine.device == name for engine in pool.engines.values()) for name in pool.devices}
    fit = [
        device
        for device in pool.devices.values()
        if wish in ("auto", device.name, device.kind) or (model.remote and device.name == "cpu")
    ]
    if model.remote:
        fit = [device for device in fit if device.name == "cpu"]
    return sorted(fit, key=lambda d: (_RANK.get(d.kind, 1), counts[d.name], -pool.free(d), d.name))


def decide(pool: Pool, now_ms: int) -> list[Action]:
    """What to do now. Carry all of it out, tell the pool by its methods, and ask again while there is something."""
    actions: list[Action] = list(_keep_house(pool, now_ms))
    leaving = {action.engine for action in actions if isinstance(action, Drain | Kill)}
    room = _room(pool, leaving, now_ms)
    by_model: dict[str, list[Engine]] = {}
    for engine in pool.engines.values():
        if engine.state in COMING or engine.id in room:
            by_model.setdefault(engine.model, []).append(engine)
    order = pool.order(now_ms)
    wanted = {pool.target(request.model) for request in order}
    heads: dict[str, str] = {}  # model -> the first request that has to wait for it
    held: set[str] = set()  # engines that give way to a request that was passed over for too long
    hopeless: dict[str, dict[str, dict[str, int]]] = {}  # model -> the figures
    for request in order:
        name = pool.target(request.model)
        if (refusal := _refusal(pool, request, name, hopeless, now_ms)) is not None:
            actions.append(refusal)
            continue
        if not (request.work and name in heads):
            engine_id = _engine(pool, request, by_model.get(name, ()), room, held)
            if engine_id is not None:
                passed = tuple(first for model, first in heads.items() if model != name)
                actions.append(Assign(request.id, engine_id, passed if request.work else ()))
                continue
        if name in heads:
            continue
        heads[name] = request.id
        model, mine = pool.models[name], by_model.get(name, [])
        if any(engine.state in COMING for engine in mine):
            continue
        if mine and (len(mine) >= model.instances or _standing(pool, name, now_ms) != "closed"):
            continue
        found = _place(pool, model, request, leaving, wanted, now_ms, more=bool(mine))
        if isinstance(found, Spawn):
            actions.append(found)
            return actions  # What it takes is known once it is started: then ask again.
        if isinstance(found, Mapping):
            hopeless[name] = dict(found)
            del heads[name]
            actions.append(Refuse(request.id, "does-not-fit", found, 0, ""))
            continue
        for engine in found:
            held.add(engine.id)
            if engine.model not in heads:  # What came before is served first.
                leaving.add(engine.id)
                room.pop(engine.id, None)
                actions.append(Drain(engine.id, "evicted"))
    return actions


def _room(pool: Pool, leaving: Collection[str], now_ms: int) -> dict[str, int]:
    """Engine -> how many requests more it may be given. While the breaker is half open it is one for the model; a
    request that was there when an engine died has one for itself, so that it takes no others along."""
    room: dict[str, int] = {}
    for engine in pool.engines.values():
        if engine.state != "serving" or engine.id in leaving or engine.model not in pool.models:
            continue
        room[engine.id] = engine.rows - len(engine.running)
        if any(pool.assigned[id].tries for id in engine.running):
            room[engine.id] = 0
        if _standing(pool, engine.model, now_ms) == "half-open":
            others = [other for other in pool.engines.values() if other.model == engine.model]
            first = others[0] is engine and not any(other.running for other in others)
            room[engine.id] = int(first)
    return room


def _engine(
    pool: Pool, request: Waiting, engines: Iterable[Engine], room: dict[str, int], held: Collection[str]
) -> str | None:
    """The engine that takes it now, of those that serve its model the one with most room."""
    if not request.work:
        return next((engine.id for engine in engines if engine.id in room), None)
    able = [engine for engine in engines if room.get(engine.id, 0) > 0 and engine.id not in held]
    if request.tries:
        able = [engine for engine in able if not engine.running and room[engine.id] in (1, engine.rows)]
    if not able:
        return None
    best = max(able, key=lambda engine: room[engine.id])
    room[best.id] = 0 if request.tries else room[best.id] - 1
    return best.id


def next_ms(pool: Pool, now_ms: int) -> int | None:
    """When to ask again though nothing happens; None for never."""
    limits, at = pool.limits, []
    for engine in pool.engines.values():
        if engine.state == "stopping":
            at.append(engine.ends_ms + limits.stop_ms)
        elif engine.state in COMING:
            at.append(engine.spawned_ms + limits.load_ms)
        elif engine.state != "killed":
            at.append(engine.heard_ms + limits.silence_ms)
            if limits.idle_ms and not engine.running:
                at.append(engine.idle_ms + limits.idle_ms)
    for request in pool.waiting.values():
        at.append(request.arrived_ms + limits.fairness_ms)
        breaker = pool.breakers.get(pool.target(request.model))
        if breaker is not None and breaker.opened_ms is not None:
            at.append(breaker.until_ms(limits))
    # A victim may have to have served for as long as it took to load.
    at += [2 * e.serving_ms - e.spawned_ms for e in pool.engines.values() if pool.waiting and e.state == "serving"]
    later = [instant for instant in at if instant > now_ms]
    return min(later, default=None)


def _standing(pool: Pool, name: str, now_ms: int) -> str:
    breaker = pool.breakers.get(name)
    return "closed" if breaker is None else breaker.standing(pool.limits, now_ms)


def _keep_house(pool: Pool, now_ms: int) -> Iterator[Drain | Stop | Kill]:
    limits = pool.limits
    wanted = {pool.target(request.model) for request in pool.waiting.values()}
    for engine in pool.engines.values():
        model = pool.models.get(engine.model)
        if engine.state == "killed":
            continue
        if engine.state == "stopping":
            if now_ms - engine.ends_ms >= limits.stop_ms:
                yield Kill(engine.id, engine.why or "closed")
        elif _hangs(engine, limits, now_ms):
            yield Kill(engine.id, "hung")
        elif engine.state == "draining":
            if not engine.running:
                yield Stop(engine.id)
        elif model is None:
            yield Drain(engine.id, "unloaded")
        elif model.revision != engine.revision or model.rung != engine.rung:
            yield Drain(engine.id, "replaced")
        elif engine.state == "serving":
            idle = not engine.running and engine.model not in wanted
            many = limits.recycle_requests and engine.served >= limits.recycle_requests
            if many or (limits.recycle_rss and engine.rss >= limits.recycle_rss and engine.served):
                yield Drain(engine.id, "recycled")
            elif idle and limits.idle_ms and now_ms - engine.idle_ms >= limits.idle_ms:
                yield Drain(engine.id, "idle")
    for device in pool.devices.values():
        there = [engine for engine in pool.engines.values() if engine.device == device.name]
        if pool.over(device) and not any(engine.state in GOING for engine in there):
            idle_ones = [e for e in there if e.state == "serving" and not e.running and e.model not in wanted]
            if idle_ones:
                yield Drain(min(idle_ones, key=lambda engine: engine.idle_ms).id, "memory")


def _hangs(engine: Engine, limits: Limits, now_ms: int) -> bool:
    if engine.state in COMING:
        return now_ms - engine.spawned_ms >= limits.load_ms
    return now_ms - engine.heard_ms >= limits.silence_ms


def _refusal(
    pool: Pool, request: Waiting, name: str, hopeless: Mapping[str, Mapping[str, Mapping[str, int]]], now_ms: int
) -> Refuse | None:
    if name not in pool.models:
        return Refuse(request.id, "unknown", {}, 0, "")
    if name in hopeless:
        return Refuse(request.id, "does-not-fit", hopeless[name], 0, "")
    breaker = pool.breakers.get(name)
    if breaker is None or breaker.standing(pool.limits, now_ms) != "open":
        return None
    return Refuse(request.id, "broken", {}, breaker.until_ms(pool.limits) - now_ms, breaker.why)


def _place(
    pool: Pool,
    model: Model,
    request: Waiting,
    leaving: Collection[str],
    wanted: Collection[str],
    now_ms: int,
    *,
    more: bool,
) -> Spawn | list[Engine] | dict[str, dict[str, int]]:
    """Where to load it; or who has to go for it first, nobody if enough go already or it has to wait; or, where it fits
    nowhere, the figures. For one more engine of a model that has one nobody has to go."""
    figures: dict[str, dict[str, int]] = {}
    going = {engine.id for engine in pool.engines.values() if engine.state in GOING or engine.id in leaving}
    stay = [engine for engine in pool.engines.values() if engine.id not in going]
    for kind in dict.fromkeys(device.kind for device in places(pool, model)):  # Another kind only if it never fits.
        devices = [device for device in places(pool, model) if device.kind == kind]
        for device in devices:
            if pool.fits(model, device):
                return Spawn(model.name, device.name, pool.need(model, device), model.rung)
        if more or any(pool.fits(model, device, going) for device in devices):
            return []
        idle = [e for e in stay if e.state == "serving" and not e.running and e.model not in wanted]
        idle.sort(key=lambda engine: engine.idle_ms)
        busy = [engine for engine in stay if _gives_way(pool, engine, request, now_ms) and engine not in idle]
        busy.sort(key=lambda engine: (len(engine.running), engine.idle_ms))
        for able in (idle, [*idle, *busy]):
            for device in devices:
                if (chosen := _enough(pool, model, device, going, able)) is not None:
                    return chosen
        if any(_enough(pool, model, device, going, stay) is not None for device in devices):
            return []
        for device in devices:
            figures[device.name] = {
                "needed_bytes": pool.need(model, device),
                "free_bytes": max(pool.free(device, {engine.id for engine in pool.engines.values()}), 0),
                "total_bytes": device.total,
            }
    return figures


def _gives_way(pool: Pool, engine: Engine, request: Waiting, now_ms: int) -> bool:
    """Whether a busy engine makes room for this request: it was passed over too often, or waits for too long while the
    engine has served for at least as long as it took to load. Each load serves a request."""
    if engine.state != "serving" or not (engine.served or engine.running):
        return False
    if request.passed >= pool.limits.overtakes_max:
        return True
    took_ms = engine.serving_ms - engine.spawned_ms
    return now_ms - request.arrived_ms >= pool.limits.fairness_ms and now_ms - engine.serving_ms >= took_ms


def _enough(
    pool: Pool, model: Model, device: Device, going: Collection[str], able: Iterable[Engine]
) -> list[Engine] | None:
    """The first of `able` that make enough room together, and none that is not needed; None if all do not."""
    chosen: list[Engine] = []
    for engine in able:
        if pool.fits(model, device, {*going, *(each.id for each in chosen)}):
            break
        chosen.append(engine)
    if not pool.fits(model, device, {*going, *(each.id for each in chosen)}):
        return None
    for engine in list(chosen):
        if pool.fits(model, device, {*going, *(each.id for each in chosen if each is not engine)}):
            chosen.remove(engine)
    return chosen


SETTLED_MS = 60_000
"""A gateway that has lived so long is well: its next death is the first again."""


def again_after_ms(deaths: int) -> int:
    """How long to wait before the gateway is started again after so many deaths in a row."""
    return min(60_000, 1_000 << min(max(deaths, 1) - 1, 6))
