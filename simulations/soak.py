"""`python -m simulations.soak --requests 10000`: many requests to one gateway, and what they leave behind.

Some are streamed, some left in the middle, some wrong. Memory and descriptors of the gateway, of its engine and of the
daemon that records what they do are printed before, half-way and after. Exit status 1 if those of gateway or engine
grew from half-way on by more than a few, or if something is left undone.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import psutil

Json = Any

AT_ONCE = 64
GREW_BYTES_MAX = 16 << 20
GREW_DESCRIPTORS_MAX = 2
"""Connections to the daemon come and go."""
MODEL = "hermes-mini"
_WARM = 1000
"""By then allocators hold what they need."""
_STATS = "/api/v1/runtime/stats"
_READY_S = 300.0


async def ask_many(socket: Path, at_once: int, numbers: Iterable[int]) -> None:
    """One request for each number, whose number says of what kind it is."""
    gate = asyncio.Semaphore(at_once)

    async def ask(number: int) -> None:
        async with gate:
            await _ask(socket, number)

    await asyncio.gather(*(ask(number) for number in numbers))


async def _ask(socket: Path, number: int) -> None:
    kind = number % 10
    body: Json = {
        "model": "nobody" if kind == 8 else MODEL, "prompt": f"Triage this log line: {number}", "ignore_eos": True,
        "max_tokens": 60 if kind == 7 else 4, "temperature": number % 2, "seed": number, "stream": kind % 2 == 1,
    }  # fmt: skip
    if kind == 9:
        body["top_p"] = 7
    wanted = {8: 404, 9: 400}.get(kind, 200)
    data = orjson.dumps(body)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n"
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        writer.write(head.encode() + data)
        first = await reader.readline()
        if int(first.split()[1]) != wanted:
            raise RuntimeError(f"request {number} was answered with {first!r}, not {wanted}")
        if kind == 7:  # left in the middle
            await reader.readline()
        elif b'{"error"' in await reader.read() and wanted == 200:
            raise RuntimeError(f"request {number} was broken off")
    finally:
        writer.close()


async def _get(socket: Path, path: str) -> Json:
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return orjson.loads(answer.partition(b"\r\n\r\n")[2])


def _gateway(home: Path) -> int | None:
    """Its process, once it is there."""
    ends_s = time.monotonic() + _READY_S
    while time.monotonic() < ends_s:
        if (home / "gateway.json").exists():
            return int(orjson.loads((home / "gateway.json").read_bytes())["pid"])
        time.sleep(0.05)
    return None


async def _soak(socket: Path, daemon: int, gateway: int, requests: int) -> bool:
    await _ask(socket, 0)  # loads the model
    engine = (await _get(socket, _STATS))["engines"][0]["pid"]
    processes = {"gateway": psutil.Process(gateway), "engine": psutil.Process(engine), "daemon": psutil.Process(daemon)}
    began_s, at, measured = time.monotonic(), 1, []
    for when, count in (("warm", min(requests, _WARM)), ("half-way", requests // 2), ("at the end", requests // 2)):
        await ask_many(socket, AT_ONCE, range(at, at + count))
        at += count
        measured.append(_measure(f"{when}, after {at - 1:,}", processes))
    while left := await _left(socket):
        if time.monotonic() - began_s > requests + _READY_S:
            break
        await asyncio.sleep(0.1)
    print(f"{(at - 1) / (time.monotonic() - began_s):,.0f} requests a second; {left} left")
    _, half, end = measured
    return not left and all(
        end[name][0] - half[name][0] <= GREW_BYTES_MAX and end[name][1] - half[name][1] <= GREW_DESCRIPTORS_MAX
        for name in ("gateway", "engine")
    )


async def _left(socket: Path) -> int:
    pool = (await _get(socket, _STATS))["pool"]
    return int(pool["waiting"]) + int(pool["running"])


def _measure(when: str, processes: dict[str, psutil.Process]) -> dict[str, tuple[int, int]]:
    found = {name: (each.memory_info().rss, each.num_fds()) for name, each in processes.items()}
    told = ", ".join(f"{name} {rss / 2**20:.1f} MiB and {fds} descriptors" for name, (rss, fds) in found.items())
    print(f"{when}: {told}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulations.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    requests = parser.parse_args().requests
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "hermesd.yaml").write_text("gateway:\n  resume: 0s\n")
        log = home / "log"
        words = [sys.executable, "-m", "daemon.cli", "--home", folder, "run"]
        with log.open("wb") as told:
            daemon = subprocess.Popen(words, stdout=told, stderr=told)
        try:
            gateway = _gateway(home)
            if gateway is None:
                print(log.read_text()[-2000:], file=sys.stderr)
                return 1
            flat = asyncio.run(_soak(home / "gateway.sock", daemon.pid, gateway, requests))
        finally:
            subprocess.run([*words[:-1], "engines", "stop", "--gateway"], stdout=subprocess.DEVNULL, check=False)
            daemon.terminate()
            daemon.wait(_READY_S)
    print("flat" if flat else "it grew")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
