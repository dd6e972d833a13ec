"""What the gateway adds to an engine: the same requests over HTTP, and to the pool inside the same gateway, in turn.

The clock is one for all processes of a machine, so that both ends of each token are known: the pool inside a real
gateway notes when it gives a token, the client beside it when it has it. Calling the pool directly is having it then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import psutil

from daemon.control import address_of
from simulations.bench.daemon import Stuck
from simulations.bench.figure import Figure, Target, figure, percentile
from simulations.bench.place import Bench

Json = Any

STREAMS = (1, 16)
MODEL = "hermes-mini"
DIRECT = "the pool, called directly"
_PROMPT = "route: hello"
_ADDED_MS = Target(at_most=5)
_READY_S = 120.0
_MS = 1e6


def measure(bench: Bench) -> list[Figure]:
    from daemon.home import Home

    home, stamps = bench.folder / "home", bench.folder / "stamps.json"
    Home(home).make()
    words = [sys.executable, "-P", "-m", "simulations.bench.gateway", str(home), str(stamps)]
    with (bench.folder / "log").open("wb") as log:
        gateway = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        try:
            assert gateway.stdout is not None
            if not gateway.stdout.readline():
                raise Stuck(f"the gateway did not start: {(bench.folder / 'log').read_text()[-500:]}")
            rounds = _ask_all(bench, home, gateway)
        finally:
            gateway.terminate()
            gateway.wait(_READY_S)
    given: dict[str, list[int]] = orjson.loads(stamps.read_bytes())
    return [found for streams in STREAMS for found in _figures(streams, rounds[streams], given)]


@dataclass(slots=True)
class _Asked:
    """One request, as whoever asked saw it. Times in nanoseconds of the machine's monotonic clock."""

    sent: int
    id: str = ""
    events: list[int] = field(default_factory=list)
    seen: bytes = b""

    @property
    def first_ms(self) -> float:
        return (self.events[0] - self.sent) / _MS


@dataclass(slots=True)
class _Round:
    asked: list[_Asked]
    direct: list[_Asked]
    cpu_us: float
    """Of the gateway's process, for all it was asked."""


def _ask_all(bench: Bench, home: Path, gateway: subprocess.Popen[bytes]) -> dict[int, list[_Round]]:
    each = {1: bench.some(8, 1), 16: bench.some(4, 1)}
    process = psutil.Process(gateway.pid)
    _ask(home, [[2]])  # loads the model
    rounds: dict[int, list[_Round]] = {streams: [] for streams in STREAMS}
    for turn in range(bench.rounds):
        bench.tell(f"round {turn + 1} of {bench.rounds}")
        for streams in STREAMS:
            # Of different lengths, so that they do not all begin at the same moment again.
            plans = [
                [bench.some(40 + 3 * number + 5 * turn, 4) for turn in range(each[streams])]
                for number in range(streams)
            ]  # fmt: skip
            before = process.cpu_times()
            asked = _ask(home, plans)
            after = process.cpu_times()
            cpu_us = 1e6 * (after.user + after.system - before.user - before.system)
            rounds[streams].append(_Round(asked, _ask_directly(gateway, plans), cpu_us))
    return rounds


def _ask(home: Path, plans: Sequence[Sequence[int]]) -> list[_Asked]:
    """Each plan is a stream: so many tokens, then so many, one request after another. The client does next to nothing,
    so that what is measured is the gateway."""
    done: list[_Asked] = []
    with selectors.DefaultSelector() as ready:
        for plan in plans:
            _send(ready, home, iter(plan))
        while ready.get_map():
            events = ready.select(_READY_S)
            if not events:
                raise Stuck("the gateway did not answer")
            for key, _ in events:
                data, now = key.fileobj.recv(1 << 16), time.monotonic_ns()  # type: ignore[union-attr]
                asked, plan = key.data
                if data:
                    _note(asked, data, now)
                    continue
                if not asked.id:
                    raise Stuck(f"the gateway did not answer: {asked.seen[:300]!r}")
                done.append(asked)
                ready.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
                _send(ready, home, plan)
    return done


def _send(ready: selectors.BaseSelector, home: Path, plan: Iterator[int]) -> None:
    """The next request of the plan, if there is one."""
    tokens = next(plan, 0)
    if not tokens:
        return
    body = json.dumps(
        {"model": MODEL, "prompt": _PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    peer = socket.socket(socket.AF_UNIX)
    with address_of(home, "gateway.sock") as path:
        peer.connect(str(path))
    ready.register(peer, selectors.EVENT_READ, (_Asked(time.monotonic_ns()), plan))
    peer.sendall(head.encode() + body)


def _note(asked: _Asked, data: bytes, now: int) -> None:
    whole, _, asked.seen = (asked.seen + data).rpartition(b"\n")
    ids = [line for line in whole.split(b"\n") if line.startswith(b"id: ")]
    asked.events += [now] * len(ids)
    if ids and not asked.id:
        asked.id = ids[0][4:].partition(b".")[0].decode()


def _ask_directly(gateway: subprocess.Popen[bytes], plans: Json) -> list[_Asked]:
    """The same, of the pool, inside the gateway's process."""
    assert gateway.stdin is not None
    assert gateway.stdout is not None
    gateway.stdin.write(orjson.dumps(plans) + b"\n")
    gateway.stdin.flush()
    return [_Asked(sent, "", events) for sent, *events in orjson.loads(gateway.stdout.readline())]


def _figures(streams: int, rounds: list[_Round], given: dict[str, list[int]]) -> list[Figure]:
    who = "1 stream" if streams == 1 else f"{streams} streams"
    percents = 50, 99
    ours: dict[int, list[float]] = {percent: [] for percent in percents}
    direct: dict[int, list[float]] = {percent: [] for percent in percents}
    inside: dict[int, list[float]] = {percent: [] for percent in percents}
    token: dict[int, list[float]] = {percent: [] for percent in percents}
    for each in rounds:
        tokens, insides = [], []
        for one in each.asked:
            called, *said = given[one.id]
            added = [(had - gave) / _MS for gave, had in zip(said, one.events, strict=False)]
            tokens += added
            insides.append((called - one.sent) / _MS + added[0])
        for percent in percents:
            ours[percent].append(percentile([one.first_ms for one in each.asked], percent))
            direct[percent].append(percentile([one.first_ms for one in each.direct], percent))
            inside[percent].append(percentile(insides, percent))
            token[percent].append(percentile(tokens, percent))
    figures = []
    for percent in percents:
        target = _ADDED_MS if percent == 99 else None
        added_ms = [max(0.0, a - b) for a, b in zip(ours[percent], direct[percent], strict=True)]
        figures += [
            figure(f"gateway: first token p{percent}, {who}", "ms", ours[percent], DIRECT, direct[percent]),
            figure(f"gateway: added to the first token p{percent}, {who}", "ms", added_ms, target=target,
                   note="of the two above, the one less the other"),
            figure(f"gateway: a first token's time outside the pool p{percent}, {who}", "ms", inside[percent],
                   note="while others are served, too, by pool and gateway, which share a thread"),
            figure(f"gateway: added to each token p{percent}, {who}", "ms", token[percent], target=target,
                   note="from the pool's word to the client's"),
        ]  # fmt: skip
    cpu_us = [each.cpu_us / sum(len(one.events) for one in each.asked) for each in rounds]
    note = "requests and pool counted in"
    return [*figures, figure(f"gateway: processor time for each token, {who}", "us", cpu_us, note=note)]


def _serve(home: Path, stamps: Path) -> None:
    """The gateway as it is, with a pool that notes when it gives what, and can be asked directly, by standard input."""
    from daemon.gateway.server import Gateway
    from daemon.gateway.settings import GatewaySettings
    from daemon.home import Home
    from daemon.inference.pool import EnginePool
    from daemon.inference.runtimes import Done, Generation, Piece
    from daemon.inference.views import Fact

    given: dict[str, list[int]] = {}
    pools: list[EnginePool] = []
    tasks: set[asyncio.Task[None]] = set()

    class Noting(EnginePool):
        async def generate(
            self, model: str, request: Generation, *, priority: int = 0, client: str = ""
        ) -> AsyncGenerator[Piece | Done, None]:
            times = given[request.id] = [time.monotonic_ns()]
            async with aclosing(super().generate(model, request, priority=priority, client=client)) as said:
                async for one in said:
                    if isinstance(one, Done) or one.text:  # only of these the client hears
                        times.append(time.monotonic_ns())
                    yield one

    class Noted(Gateway):
        def make_pool(self, folder: Path, record: Callable[[Fact], None]) -> EnginePool:
            pools.append(Noting(folder, record=record))
            return pools[0]

    async def stream(number: int, plan: list[int]) -> None:
        for turn, tokens in enumerate(plan):
            request = Generation(f"direct-{number}-{turn}", prompt=_PROMPT, max_new_tokens=tokens, ignore_end=True)
            async for _ in pools[0].generate(MODEL, request):
                pass

    async def direct(plans: list[list[int]]) -> None:
        await asyncio.gather(*(stream(number, plan) for number, plan in enumerate(plans)))
        times = [given.pop(id) for id in list(given) if id.startswith("direct-")]
        print(orjson.dumps(times).decode(), flush=True)

    def ready(_: Gateway) -> None:
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), asked)
        print("ready", flush=True)

    def asked() -> None:
        line = sys.stdin.buffer.readline()
        if not line:
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            return
        task = asyncio.get_running_loop().create_task(direct(orjson.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    settings = GatewaySettings(keep_text="none")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(Noted(Home(home), settings).run(ready))
    stamps.write_bytes(orjson.dumps(given))


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[2]))
