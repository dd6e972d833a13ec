"""The engine pool: engine processes behind one asyncio interface. What to do is said by `policies.engines`; this room
carries it out: spawns, feeds, watches and ends engines, and hands their words to whoever asked.

    pool = EnginePool(folder, options)
    await pool.start()
    pool.register(ModelSpec("tiny", Spec(model="/models/tiny")))
    async with contextlib.aclosing(pool.generate("tiny", request, client="me")) as said:
        async for one in said:             # Piece, or Done (one for each choice); then it ends
            ...
    await pool.close()

Closing the iterator cancels the request in the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import signal
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from daemon.inference import forkserver
from daemon.inference.call import Call, plain
from daemon.inference.devices import Devices, policy_model
from daemon.inference.failures import (
    BadRequest,
    Broken,
    Busy,
    DoesNotFit,
    EngineLost,
    LoadFailed,
    PoolError,
    SlowReader,
    UnknownModel,
)
from daemon.inference.forkserver import ForkServer
from daemon.inference.handle import Handle, environment_of, oom_kills
from daemon.inference.runtimes import REMOTE, Done, Generation, Piece, Refused, Spec, Top
from daemon.inference.views import EngineView, Fact, ModelSpec, ModelView
from daemon.ports import SpawnError
from daemon.workers.wire import Message
from policies import engines as policy
from policies.engines import FAILURES, Assign, Drain, Kill, Limits, Refuse, Spawn, Stop

Json = Any

BEAT_MS = 2_000
MEASURE_EVERY_S = 5.0
MEASURED_S = 0.1
"""The machine's free memory is looked at again after so long, and whenever an engine came or went."""
UNREAD_MAX = 4096
"""So many words of an answer may wait for their reader; then the request is given up."""
FAILED_KEPT = 5
"""Folders of engines that failed stay, for people to look into."""
_CLOSE_S = 5.0


@dataclass(slots=True, eq=False)
class _Engine:
    id: str
    model: str
    handle: Handle
    spawned_s: float
    loaded_s: float = 0.0
    facts: dict[str, Json] = field(default_factory=dict)
    failure: tuple[str, str] = ("", "")
    killed: bool = False
    """By us."""


class EnginePool:
    """Everything is called from the event loop that `start` ran in."""

    def __init__(
        self,
        folder: Path,
        limits: Limits | None = None,
        *,
        record: Callable[[Fact], None] = lambda fact: None,
        hermetic: bool = False,
        devices: Devices | None = None,
        engine_memory_max: int = 0,
        beat_ms: int = BEAT_MS,
        preload: bool = forkserver.POSSIBLE,
        server: ForkServer | None = None,
    ) -> None:
        """`folder` is for the engines' scratch and logs; `record` takes what belongs into the ledger. No engine may
        allocate more than `engine_memory_max` bytes of ordinary memory; 0: as much as there is. With `preload` engines
        are forked from a process that has imported the model libraries already: `server`, which stays its maker's to
        close, or one of the pool's own."""
        self._folder, self._record, self._hermetic = folder, record, hermetic
        self._devices = devices or Devices()
        self._memory_max, self._beat_ms = engine_memory_max, beat_ms
        self._pool = policy.Pool(limits or Limits())
        self._specs: dict[str, ModelSpec] = {}
        self._facts: dict[str, dict[str, Json]] = {}
        self._failed: dict[str, str] = {}
        self._calls: dict[str, Call] = {}
        self._left: dict[str, Call] = {}  # nobody waits for them; an engine has not let go of them yet
        self._engines: dict[str, _Engine] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._preload = preload
        self._server, self._lent = server, server is not None
        self._starting = asyncio.Lock()
        self._server_timer: asyncio.TimerHandle | None = None
        self._turning = self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._asked_s = self._measured_s = 0.0
        self._asking = False
        self._number = 0
        self._mark = secrets.token_hex(3)
        self._counts = dict.fromkeys(
            ("requests", "answered", "cancelled", "lost", "refused", "loads", "crashes", "tokens"), 0
        )
        self._took_s = 1.0

    async def start(self) -> None:
        """Make ready. Folders of engines of an earlier pool, which have died with it, are removed."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self._folder.glob("*-*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
        await asyncio.to_thread(self._devices.ask)
        self._measure()

    async def close(self) -> None:
        """End every engine; whoever still waits gets EngineLost."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for call in list(self._calls.values()):
            self._fail(call, EngineLost("the engine pool is closing", call.told))
        for engine in self._engines.values():
            engine.killed = True
            engine.handle.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_ended(), _CLOSE_S)
        for engine in self._engines.values():
            engine.handle.kill()
        await self._all_ended()
        for task in list(self._tasks):
            await task
        if self._server_timer is not None:
            self._server_timer.cancel()
        self._end_server()

    async def _all_ended(self) -> None:
        while self._engines:
            self._ended.clear()
            await self._ended.wait()

    def register(self, model: ModelSpec) -> None:
        """Make a model known, or known anew: engines of another spec are drained."""
        if self._specs.get(model.name) == model:
            return
        self._specs[model.name] = model
        self._facts.pop(model.name, None)
        self._failed.pop(model.name, None)
        room = max((device.total for device in self._devices.now()), default=0)
        self._pool.register(
            policy_model(model.name, model.spec, instances=model.instances, fallback=model.fallback, room=room)
        )
        data = {"model": model.name, "kind": model.kind, "runtime": model.spec.runtime, "path": model.spec.model}
        self._say("model.registered", f"model/{model.name}", data)
        self._turn()

    def forget(self, name: str) -> None:
        """UnknownModel. Its engines are drained."""
        self._known(name)
        del self._specs[name]
        self._facts.pop(name, None)
        self._pool.forget(name)
        self._say("model.forgotten", f"model/{name}", {"model": name})
        self._turn()

    async def load(self, name: str) -> ModelView:
        """Have an engine of it serve before somebody asks. UnknownModel, LoadFailed, DoesNotFit, Broken, Busy."""
        call = self._call("load", name, 0)
        try:
            await self._whole(call)
        finally:
            self._leave(call)
        return self.model(name)

    async def unload(self, name: str) -> None:
        """Drain its engines and wait for their end. UnknownModel."""
        self._known(name)
        leaving = [id for id, engine in self._pool.engines.items() if engine.model == name]
        for id in leaving:
            self._drain(id, "unloaded")
        self._turn()
        while any(id in self._engines for id in leaving):
            self._ended.clear()
            await self._ended.wait()

    def models(self) -> list[ModelView]:
        return [self._view(model) for _, model in sorted(self._specs.items())]

    def model(self, name: str) -> ModelView:
        """UnknownModel."""
        return self._view(self._known(name))

    def facts(self, name: str) -> Mapping[str, Json]:
        """Of the model that answers for this one: `ModelView.facts`. UnknownModel."""
        self._known(name)
        return self._facts.get(self._pool.target(name), {})

    def engines(self) -> list[EngineView]:
        now = _now_ms()
        views = []
        for id, known in self._pool.engines.items():
            engine = self._engines[id]
            views.append(
                EngineView(
                    id, known.model, engine.handle.pid, known.device, known.state, len(known.running), known.served,
                    known.rss, known.used, 0 if known.running else now - known.idle_ms, engine.facts,
                )
            )  # fmt: skip
        return views

    def stats(self) -> dict[str, Json]:
        """Counters and gauges, by plain names."""
        running = sum(len(engine.running) for engine in self._pool.engines.values())
        return {
            **self._counts,
            "waiting": len(self._pool.waiting),
            "running": running,
            "engines": len(self._engines),
            "devices": {d.name: {"total": d.total, "free": d.free} for d in self._pool.devices.values()},
        }

    async def generate(
        self, model: str, request: Generation, *, priority: int = 0, client: str = ""
    ) -> AsyncGenerator[Piece | Done, None]:
        """The answer as it comes. UnknownModel, Busy, Broken, DoesNotFit, LoadFailed, BadRequest, EngineLost,
        SlowReader; from the first `anext` on."""
        call = self._call("generate", model, priority, _checked(request))
        try:
            async for one in self._said(call):
                yield one
        finally:
            self._leave(call)

    async def embed(self, model: str, texts: Sequence[str], *, client: str = "") -> list[list[float]]:
        """The errors of `generate`."""
        call = self._call("embed", model, 0, texts=texts)
        try:
            vectors: list[list[float]] = await self._whole(call)
            return vectors
        finally:
            self._leave(call)

    async def tokenize(self, model: str, request: Generation) -> list[int]:
        """The request's prompt as the model's tokens. The errors of `generate`."""
        call = self._call("tokenize", model, 0, _checked(request))
        try:
            tokens: list[int] = await self._whole(call)
            return tokens
        finally:
            self._leave(call)

    def _known(self, name: str) -> ModelSpec:
        if name not in self._specs:
            some = ", ".join(sorted(self._specs)[:20]) or "none"
            raise UnknownModel(f"there is no model {name[:120]!r} here; there are: {some}.")
        return self._specs[name]

    def _view(self, model: ModelSpec) -> ModelView:
        name, now = model.name, _now_ms()
        target = self._pool.target(name)
        own = [engine for engine in self._pool.engines.values() if engine.model == target]
        breaker = self._pool.breakers.get(target)
        state, why = "unloaded", ""
        if breaker is not None and breaker.standing(self._pool.limits, now) == "open":
            state, why = "open", breaker.why
        elif any(engine.state == "serving" for engine in own):
            state = "serving"
        elif any(engine.state in policy.COMING for engine in own):
            state = "loading"
        elif name in self._failed:
            state, why = "failed", self._failed[name]
        peaks = self._pool.models[name].peaks.values()
        return ModelView(
            name, model.spec, model.kind, state, why, tuple(engine.id for engine in own),
            sum(request.model == name for request in self._pool.waiting.values()),
            sum(request.model == name for request in self._pool.assigned.values()),
            self._facts.get(target, {}), max(peaks, default=0), model.parameters,
        )  # fmt: skip

    def _call(
        self,
        kind: Literal["generate", "embed", "tokenize", "load"],
        model: str,
        priority: int,
        request: Generation | None = None,
        texts: Sequence[str] = (),
    ) -> Call:
        self._known(model)
        if self._closed:
            raise EngineLost("the engine pool is closed", 0)
        if self._pool.full():
            rows = sum(engine.rows for engine in self._pool.engines.values()) or 1
            after_s = min(60.0, max(1.0, self._took_s * len(self._pool.waiting) / rows))
            raise Busy(
                f"{len(self._pool.waiting)} requests wait already, as many as may; ask again in {after_s:.0f} s.",
                after_s,
            )
        self._number += 1
        call = Call(f"g{self._number}", kind, model, time.monotonic(), request, texts)
        self._calls[call.id] = call
        self._counts["requests"] += 1
        self._pool.arrived(call.id, model, _now_ms(), priority=priority, work=kind != "load")
        self._turn()
        return call

    async def _said(self, call: Call) -> AsyncGenerator[Piece | Done, None]:
        while True:
            while call.said:
                yield call.said.popleft()
            if call.over:
                break
            call.ready.clear()
            await call.ready.wait()
        if call.error is not None:
            raise call.error

    async def _whole(self, call: Call) -> Json:
        while not call.over:
            call.ready.clear()
            await call.ready.wait()
        if call.error is not None:
            raise call.error
        return call.result

    def _leave(self, call: Call) -> None:
        """Whoever asked is gone: satisfied, refused, or away."""
        if self._calls.pop(call.id, None) is None:
            return
        if not call.over:
            self._counts["cancelled"] += 1
            call.over = True
            self._recorded(call, "cancelled")
        engine = self._pool.left(call.id)
        if engine is not None:  # It tells when it has let go.
            self._left[call.id] = call
            self._engines[engine.id].handle.cancel(call.id)

    def _fail(self, call: Call, error: PoolError) -> None:
        self._pool.waiting.pop(call.id, None)
        lost = isinstance(error, EngineLost)
        self._counts["lost" if lost else "refused"] += 1
        if call.engine is not None:
            self._recorded(call, "lost" if lost else "refused")
        call.end(error)

    def _turn(self) -> None:
        """Decide again, soon and once for all that happens at once."""
        if not self._turning and not self._closed:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._decide)

    def _decide(self) -> None:
        self._turning = False
        if self._closed:
            return
        if time.monotonic() - self._measured_s > MEASURED_S:
            self._measure()
        while actions := policy.decide(self._pool, _now_ms()):
            for action in actions:
                self._carry_out(action)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = _now_ms()
        at = policy.next_ms(self._pool, now)
        if at is not None:
            self._timer = asyncio.get_running_loop().call_later((at - now) / 1000 + 0.001, self._turn)

    def _carry_out(self, action: policy.Action) -> None:
        now = _now_ms()
        match action:
            case Assign():
                self._give(action)
            case Spawn():
                self._spawn(action)
            case Drain(engine=id, why=why):
                self._drain(id, why)
            case Stop(engine=id):
                self._pool.stop(id, now)
                self._engines[id].handle.stop()
            case Kill(engine=id, why=why):
                self._pool.kill(id, why, now)
                self._engines[id].killed = True
                self._engines[id].handle.kill()
            case Refuse():
                self._refuse(action)

    def _give(self, action: Assign) -> None:
        self._pool.give(action, _now_ms())
        call, engine = self._calls.get(action.request), self._engines[action.engine]
        if call is None:  # An engine of the pool's own wish.
            return
        if call.kind == "load":
            call.end()
            return
        call.engine, call.given_s = engine, call.given_s or time.monotonic()
        match call.kind:
            case "generate":
                assert call.request is not None
                # Its last token is drawn a second time: behind it there may be nothing but the end.
                so_far = tuple(tuple(call.tokens.get(n, ())[:-1]) for n in range(call.request.n)) if call.told else ()
                call.again = {choice for choice, tokens in call.tokens.items() if tokens}
                engine.handle.submit(replace(call.request, id=call.id, so_far=so_far))
            case "embed":
                engine.handle.tell({"op": "embed", "id": call.id, "texts": list(call.texts)})
            case "tokenize":
                assert call.request is not None
                engine.handle.tell({"op": "tokenize", "id": call.id, "request": call.request.as_json()})

    def _refuse(self, action: Refuse) -> None:
        self._pool.left(action.request)
        call = self._calls.get(action.request)
        if call is None:
            return
        name = call.model
        match action.kind:
            case "unknown":
                self._fail(call, UnknownModel(f"the model {name!r} was forgotten while this request waited."))
            case "does-not-fit":
                figures = action.figures
                told = "; ".join(
                    f"{device} has {f['free_bytes'] / 2**30:.1f} of {f['total_bytes'] / 2**30:.1f} GiB to give and it"
                    f" needs {f['needed_bytes'] / 2**30:.1f}"
                    for device, f in figures.items()
                )
                wish = self._pool.models[self._pool.target(name)].now().device
                told = told or f"there is no device {wish!r} here"
                self._fail(
                    call,
                    DoesNotFit(
                        f"the model {name!r} does not fit: {told}. Choose a smaller model, dtype, quantization or"
                        " cache_mb, or stop what else uses the memory.",
                        figures,
                    ),
                )
            case "broken":
                after_s = max(1.0, action.retry_after_ms / 1000)
                why = f": {action.why}" if action.why else ""
                words = f"the engines of model {name!r} failed again and again; the next is tried in {after_s:.0f} s"
                self._fail(call, Broken(words + why, after_s))

    def _drain(self, id: str, why: policy.Why) -> None:
        if self._pool.engines[id].state in policy.GOING:
            return
        self._pool.drain(id, why)
        engine = self._engines[id]
        self._say("engine.draining", f"engine/{id}", {"engine": id, "model": engine.model, "why": why})

    def _spawn(self, action: Spawn) -> None:
        self._number += 1
        id = f"{self._mark}-{self._number}"
        known = self._pool.spawned(id, action, _now_ms())
        rung = self._pool.models[action.model].ladder()[action.rung]
        spec = self._specs[action.model].spec
        dtype = "auto" if rung.name == "cpu" and spec.dtype == "float16" else spec.dtype
        spec = replace(spec, device=action.device, rows=rung.rows, quantization=rung.quantization, dtype=dtype)
        handle = Handle(
            self._folder / id,
            lambda message: self._heard(engine, message),
            lambda code, number: self._gone(engine, code, number),
        )
        engine = self._engines[id] = _Engine(id, action.model, handle, time.monotonic())
        self._counts["loads"] += 1
        free = self._pool.devices[action.device].free if action.device in self._pool.devices else 0
        self._say(
            "engine.spawned",
            f"engine/{id}",
            {
                "engine": id, "model": action.model, "device": action.device, "runtime": spec.runtime,
                "rung": rung.name, "rows": known.rows, "needed_bytes": action.need, "free_bytes": free,
            },
        )  # fmt: skip
        task = asyncio.get_running_loop().create_task(self._start(engine, spec))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start(self, engine: _Engine, spec: Spec) -> None:
        hermetic = self._hermetic and spec.runtime not in REMOTE
        if engine.killed:
            self._gone(engine, None, None)
            return
        try:
            # A fork may use no device that its parent's libraries may have asked for: only the CPU is safe.
            forked = spec.runtime in forkserver.RUNTIMES and spec.device == "cpu"
            server = await self._forking() if forked else None
            if engine.killed:
                self._gone(engine, None, None)
                return
            how: dict[str, Any] = {"hermetic": hermetic, "beat_ms": self._beat_ms, "memory_max": self._memory_max}
            try:
                await engine.handle.start(spec, server=server, **how)
            except SpawnError:
                if server is None:
                    raise
                await engine.handle.start(spec, **how)  # It takes longer, and works where a fork did not.
        except (SpawnError, OSError) as error:
            engine.failure = "impossible", str(error)
            self._gone(engine, None, None)
            return
        if engine.killed:
            engine.handle.kill()

    async def _forking(self) -> ForkServer | None:
        """The fork server, started if need be; None where there can be none."""
        async with self._starting:
            if self._preload and (self._server is None or not self._server.alive):
                folder = self._folder / "forkserver-0"
                (folder / "scratch").mkdir(mode=0o700, parents=True, exist_ok=True)
                server = ForkServer(folder, environment_of(folder / "scratch"))
                try:
                    await server.start()
                except (SpawnError, OSError):
                    self._preload = False
                    return None
                self._server = server
            return self._server

    def _end_server(self) -> None:
        if not self._engines and self._server is not None and not self._lent:
            self._server.close()
            self._server = None
            shutil.rmtree(self._folder / "forkserver-0", ignore_errors=True)

    def _heard(self, engine: _Engine, message: Message) -> None:
        if engine.id not in self._pool.engines:
            return
        now = _now_ms()
        match message["op"]:
            case "token":
                self._token(engine, message)
            case "done":
                self._done(engine, message)
            case "beat":
                self._pool.heard(engine.id, now, rss=message["rss"], used=message["used"])
                self._measured_s = 0.0
                self._ask_devices()
                self._turn()
            case "facts":
                self._told(engine, message)
            case "error":
                self._refused(engine, message)
            case "embedding":
                self._result(engine, message["id"], message["vectors"])
            case "tokens":
                self._result(engine, message["id"], message["tokens"])
            case "failed":
                engine.failure = message["class"], message["words"]
        self._pool.heard(engine.id, now)

    def _token(self, engine: _Engine, message: Message) -> None:
        call = self._calls.get(message["id"])
        if call is None or call.over or call.engine is not engine:
            return
        choice = message["choice"]
        if choice in call.again:
            call.again.remove(choice)
            return
        if not call.first_s:
            call.first_s = time.monotonic()
        self._counts["tokens"] += 1
        token, text = message["token"], message["text"]
        call.tokens.setdefault(choice, []).append(token)
        call.output.setdefault(choice, []).append(text)
        top = tuple(Top(*each) for each in message.get("top", ()))
        said = message.get("said", "")
        self._push(call, Piece(call.asked_as, choice, token, text, message.get("logprob"), top, said))

    def _push(self, call: Call, one: Piece | Done) -> None:
        call.said.append(one)
        call.ready.set()
        if len(call.said) > UNREAD_MAX:
            engine = call.engine
            call.said.clear()
            self._fail(call, SlowReader(f"{UNREAD_MAX} words of the answer were not read: the request was given up"))
            if engine is not None:
                self._engines[engine.id].handle.cancel(call.id)

    def _done(self, engine: _Engine, message: Message) -> None:
        id, choice = message["id"], message["choice"]
        call = self._calls.get(id) or self._left.get(id)
        if call is None or call.engine is not engine or call.request is None:
            return
        done = Done(
            call.request.id, choice, message["finish"], message["prompt_tokens"], message["generated_tokens"],
            message["cached_tokens"],
        )  # fmt: skip
        call.finished[choice] = done
        if not call.over:
            self._push(call, done)
        if len(call.finished) < call.request.n:
            return
        self._finished(engine, id, well=not call.over)
        if not call.over:
            self._counts["answered"] += 1
            self._took_s = 0.9 * self._took_s + 0.1 * (time.monotonic() - call.given_s)
            self._recorded(call, "answered")
            call.end()

    def _refused(self, engine: _Engine, message: Message) -> None:
        id, words = message["id"], message["words"]
        call = self._calls.get(id)
        self._finished(engine, id, well=message["class"] == "refused")
        if call is None or call.over:
            return
        if message["class"] == "refused":
            self._fail(call, BadRequest(message["parameter"], words))
        else:
            self._fail(call, EngineLost(f"the engine of model {call.model!r} gave this request up: {words}", call.told))

    def _result(self, engine: _Engine, id: str, result: Json) -> None:
        self._finished(engine, id, well=True)
        call = self._calls.get(id)
        if call is not None and not call.over:
            call.result = result
            self._counts["answered"] += 1
            call.end()

    def _finished(self, engine: _Engine, id: str, *, well: bool) -> None:
        self._left.pop(id, None)
        if id not in self._pool.engines[engine.id].running:
            return
        if self._pool.done(id, engine.id, _now_ms(), well=well):
            self._say("breaker.closed", f"model/{engine.model}", {"model": engine.model})
        self._turn()

    def _told(self, engine: _Engine, message: Message) -> None:
        state = message.pop("state")
        message.pop("op")
        known = self._pool.engines[engine.id]
        if known.state in policy.COMING:
            known.state = state
        if state == "warming":
            engine.facts, engine.loaded_s = message, time.monotonic()
            data = {"engine": engine.id, "model": engine.model, "pid": engine.handle.pid}
            data |= {"took_ms": round((engine.loaded_s - engine.spawned_s) * 1000), "facts": plain(message)}
            self._say("engine.loaded", f"engine/{engine.id}", data)
        elif state == "serving":
            self._facts[engine.model] = engine.facts
            self._failed.pop(engine.model, None)
            self._pool.serves(engine.id, _now_ms())
            data = {"engine": engine.id, "model": engine.model}
            data["took_ms"] = round((time.monotonic() - engine.loaded_s) * 1000)
            self._say("engine.warmed", f"engine/{engine.id}", data)
            self._measured_s = 0.0
            self._ask_devices(at_once=True)
            self._turn()

    def _gone(self, engine: _Engine, code: int | None, number: int | None) -> None:
        """Its process has ended, and all its words are heard."""
        known = self._pool.engines[engine.id]
        why, words = self._why(engine, known, code, number)
        resumable = str(engine.facts.get("determinism", "")) != ""
        running = [call for id in known.running if (call := self._calls.get(id)) is not None]
        begun = [call.id for call in running if call.told and not (resumable and call.can_go_on())]
        served, now = known.served, _now_ms()
        ended = self._pool.ended(engine.id, why, now, begun=begun, words=words)
        del self._engines[engine.id]
        self._left = {id: call for id, call in self._left.items() if call.engine is not engine}
        self._ended.set()
        data = {"engine": engine.id, "model": engine.model, "why": why, "code": code, "signal": number}
        data |= {"words": words[:1000], "served": served, "requeued": len(ended.requeued), "lost": len(ended.lost)}
        self._say("engine.ended", f"engine/{engine.id}", data)
        if why in FAILURES:
            self._counts["crashes"] += 1
            self._forget_old_folders()
        else:
            engine.handle.forget()
        if self._closed:
            return
        if not self._engines and self._server is not None:
            loop, wait_s = asyncio.get_running_loop(), self._pool.limits.idle_ms / 1000
            if self._server_timer is not None:
                self._server_timer.cancel()
            self._server_timer = loop.call_later(wait_s, self._end_server) if wait_s else None
        self._after(engine, known, why, words, ended)
        self._measured_s = 0.0
        self._ask_devices(at_once=True)
        self._turn()

    def _after(self, engine: _Engine, known: policy.Engine, why: policy.Why, words: str, ended: policy.Ended) -> None:
        """Tell those it concerns, and have another engine where one that served has died."""
        name = engine.model
        for id in ended.lost:
            if (call := self._calls.get(id)) is not None and not call.over:
                told = f"after {call.told} tokens" if call.told else "while it worked on this request"
                self._fail(call, EngineLost(f"the engine of model {call.model!r} was lost {told}: {words}", call.told))
        for id in ended.requeued:
            if (call := self._calls.get(id)) is None or call.over:  # Nobody waits for it any more.
                self._pool.left(id)
            else:
                call.engine = None
        if ended.rung is not None:
            rung = ended.rung
            data = {"model": name, "engine": engine.id, "rung": rung.name, "rows": rung.rows}
            data |= {"quantization": rung.quantization, "device": rung.device, "instead": rung.instead, "words": words}
            self._say("engine.fell", f"model/{name}", data)
        if ended.opened:
            breaker = self._pool.breakers[name]
            data = {"model": name, "failures": len(breaker.failures), "words": words[:1000]}
            data["open_ms"] = breaker.until_ms(self._pool.limits) - _now_ms()
            self._say("breaker.opened", f"model/{name}", data)
        if why in FAILURES and ended.rung is None:
            self._failed[name] = words
        if why == "load-failed":
            for request in list(self._pool.waiting.values()):
                call = self._calls.get(request.id)
                if self._pool.target(request.model) == name and call is not None:
                    self._fail(call, LoadFailed(words))
        elif why in FAILURES and known.serving_ms and not self._pool.waiting and not self._pool.full():
            self._number += 1  # It was wanted, so it is had again, before the next one asks.
            self._pool.arrived(f"again{self._number}", name, _now_ms(), work=False)

    def _why(
        self, engine: _Engine, known: policy.Engine, code: int | None, number: int | None
    ) -> tuple[policy.Why, str]:
        kind, words = engine.failure
        if known.why is not None and (engine.killed or known.state in policy.GOING) and not kind:
            hung = f"it was silent for more than {self._pool.limits.silence_ms / 1000:.0f} s, or never finished loading"
            return known.why, hung if known.why == "hung" else ""
        if engine.killed and not kind:
            return "closed", ""
        if kind == "memory":
            return "out-of-memory", words
        if kind in ("model", "impossible"):
            return "load-failed", words
        if kind:
            return "crashed", words
        if number == signal.SIGKILL:
            if oom_kills() > engine.handle.oom_kills:
                return "out-of-memory", "the kernel killed it for want of memory"
            return "killed", "somebody killed it (SIGKILL)"
        if number is not None:
            return "crashed", f"it died of signal {number} ({signal.Signals(number).name})"
        return "crashed", f"it ended with status {code}; what it printed is in {engine.handle.folder / 'engine.log'}"

    def _recorded(self, call: Call, outcome: str) -> None:
        data = call.record(outcome)
        if data is not None:
            self._say("generation.finished", f"generation/{data['request']}", data)

    def _say(self, type: str, subject: str, data: Mapping[str, Json]) -> None:
        self._record(Fact(type, subject, data))

    def _measure(self) -> None:
        self._measured_s = time.monotonic()
        self._pool.devices = {device.name: device for device in self._devices.now()}

    def _ask_devices(self, *, at_once: bool = False) -> None:
        """Have the GPUs' free memory asked, beside everything else."""
        if not self._devices.slow or self._asking:
            return
        if not at_once and time.monotonic() - self._asked_s < MEASURE_EVERY_S:
            return
        self._asking = True
        task = asyncio.get_running_loop().create_task(self._asked())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _asked(self) -> None:
        try:
            await asyncio.to_thread(self._devices.ask)
        finally:
            self._asking, self._asked_s, self._measured_s = False, time.monotonic(), 0.0
        self._turn()

    def _forget_old_folders(self) -> None:
        live = {self._folder / id for id in (*self._engines, "forkserver-0")}
        dead = [folder for folder in self._folder.glob("*-*") if folder.is_dir() and folder not in live]
        dead.sort(key=lambda folder: folder.stat().st_mtime)
        for folder in dead[:-FAILED_KEPT]:
            shutil.rmtree(folder, ignore_errors=True)


def _checked(request: Generation) -> Generation:
    try:
        request.check()
    except Refused as refused:
        raise BadRequest(refused.parameter, refused.words) from None
    return request


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
