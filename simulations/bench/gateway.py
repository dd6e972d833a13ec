"""What the gateway adds to an engine: the time from the pool's word to the client's, and from the request to the pool.

The clock is one for all processes of a machine, so that both ends of each token are known: the pool inside a real
gateway notes when it gives a token, the client beside it when it has it. Calling the pool directly is having it then.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
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
_ADDED_MS = Target(at_most=5)
_READY_S = 120.0


def measure(bench: Bench) -> list[Figure]:
    from daemon.home import Home

    home, stamps = bench.folder / "home", bench.folder / "stamps.json"
    Home(home).make()
    words = [sys.executable, "-P", "-m", "simulations.bench.gateway", str(home), str(stamps)]
    with (bench.folder / "log").open("wb") as log:
        gateway = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log)
        try:
            assert gateway.stdout is not None
            if not gateway.stdout.readline():
                raise Stuck(f"the gateway did not start: {(bench.folder / 'log').read_text()[-500:]}")
            asked = asyncio.run(_ask_all(bench, home, psutil.Process(gateway.pid)))
        finally:
            gateway.terminate()
            gateway.wait(_READY_S)
    given: dict[str, list[int]] = orjson.loads(stamps.read_bytes())
    return [found for streams in STREAMS for found in _figures(streams, asked[streams], given)]


class _Asked:
    """One request, as its client saw it. Times in nanoseconds of the machine's monotonic clock."""

    def __init__(self) -> None:
        self.id = ""
        self.sent = 0
        self.events: list[int] = []


@dataclass(slots=True)
class _Round:
    asked: list[_Asked]
    cpu_us: float
    """Of the gateway's process, for all of them."""


async def _ask_all(bench: Bench, home: Path, gateway: psutil.Process) -> dict[int, list[_Round]]:
    each = {1: bench.some(8, 1), 16: bench.some(4, 1)}

    async def one_after_another(streams: int, number: int) -> list[_Asked]:
        # Of different lengths, so that they do not all begin at the same moment again.
        lengths = [bench.some(40 + 3 * number + 5 * turn, 4) for turn in range(each[streams])]
        return [await _ask(home, tokens) for tokens in lengths]

    await _ask(home, 2)  # loads the model
    asked: dict[int, list[_Round]] = {streams: [] for streams in STREAMS}
    for turn in range(bench.rounds):
        bench.tell(f"round {turn + 1} of {bench.rounds}")
        for streams in STREAMS:
            before = gateway.cpu_times()
            found = await asyncio.gather(*(one_after_another(streams, number) for number in range(streams)))
            after = gateway.cpu_times()
            cpu_us = 1e6 * (after.user + after.system - before.user - before.system)
            asked[streams].append(_Round([one for each_stream in found for one in each_stream], cpu_us))
    return asked


async def _ask(home: Path, tokens: int) -> _Asked:
    body = json.dumps(
        {"model": MODEL, "prompt": "route: hello", "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
         "stream": True}
    ).encode()  # fmt: skip
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    asked = _Asked()
    async with asyncio.timeout(_READY_S):
        with address_of(home, "gateway.sock") as path:
            reader, writer = await asyncio.open_unix_connection(path)
        asked.sent = time.monotonic_ns()
        writer.write(head.encode() + body)
        seen = b""
        while data := await reader.read(1 << 16):
            now = time.monotonic_ns()
            whole, _, seen = (seen + data).rpartition(b"\n")
            ids = [line for line in whole.split(b"\n") if line.startswith(b"id: ")]
            asked.events += [now] * len(ids)
            if ids and not asked.id:
                asked.id = ids[0][4:].partition(b".")[0].decode()
        writer.close()
    if not asked.id:
        raise Stuck(f"the gateway did not answer: {seen[:300]!r}")
    return asked


def _figures(streams: int, rounds: list[_Round], given: dict[str, list[int]]) -> list[Figure]:
    who = "1 stream" if streams == 1 else f"{streams} streams"
    token: dict[int, list[float]] = {50: [], 99: []}
    first: dict[int, list[float]] = {50: [], 99: []}
    cpu_us = [each.cpu_us / sum(len(one.events) for one in each.asked) for each in rounds]
    for each in rounds:
        tokens, firsts = [], []
        for one in each.asked:
            called, *said = given[one.id]
            added = [(had - gave) / 1e6 for gave, had in zip(said, one.events, strict=False)]
            tokens += added
            firsts.append((called - one.sent) / 1e6 + added[0])
        for percent in token:
            token[percent].append(percentile(tokens, percent))
            first[percent].append(percentile(firsts, percent))
    note = "more than calling the pool in its own process"

    def told(name: str, values: list[float], target: Target | None) -> Figure:
        return figure(f"gateway: {name}, {who}", "ms", values, target=target, note=note)

    return [
        told("added to the first token, p50", first[50], None),
        told("added to the first token, p99", first[99], _ADDED_MS),
        told("added to each token, p50", token[50], None),
        told("added to each token, p99", token[99], _ADDED_MS),
        figure(f"gateway: processor time for each token, {who}", "us", cpu_us, note="requests and pool counted in"),
    ]


def _serve(home: Path, stamps: Path) -> None:
    """The gateway as it is, with a pool that notes when it gives what."""
    from daemon.gateway.server import Gateway
    from daemon.gateway.settings import GatewaySettings
    from daemon.home import Home
    from daemon.inference.pool import EnginePool, Fact
    from daemon.inference.runtimes import Done, Generation, Piece

    given: dict[str, list[int]] = {}

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
            return Noting(folder, record=record)

    settings = GatewaySettings(keep_text="none")
    asyncio.run(Noted(Home(home), settings).run(lambda _: print("ready", flush=True)))
    stamps.write_bytes(orjson.dumps(given))


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[2]))
