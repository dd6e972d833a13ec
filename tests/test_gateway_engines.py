"""A gateway and its engines under load and under faults, over HTTP: who goes first, what is replaced, what is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("torch")
pytest.importorskip("uvicorn")

import httpx
from engine_place import DEADLINE_S, PROMPT, SAID, Place, descriptors, place, run, until, wide  # noqa: F401
from remote_servers import OllamaHandler, serving, url

from daemon.gateway.server import Gateway
from daemon.gateway.settings import GatewaySettings
from daemon.home import Home
from daemon.inference.hermes_mini import FOLDER
from daemon.inference.pool import EnginePool
from daemon.inference.views import Fact
from simulations.soak import ask_many

Json = Any

MINI = "hermes-mini"
TALK = {"model": MINI, "messages": [{"role": "user", "content": PROMPT}], "temperature": 0, "max_tokens": 8}
LONG = {"model": MINI, "prompt": "route: hello", "temperature": 0, "ignore_eos": True}
OWN = "/api/v1/runtime"


class Served(Gateway):
    """The gateway as it is, in this process, its engines forked from the tests' fork server."""

    def __init__(self, home: Path, settings: Json, engine_memory_max: int) -> None:
        super().__init__(Home(home), GatewaySettings.model_validate(settings))
        self.facts: list[Fact] = []
        self._memory_max = engine_memory_max

    def make_pool(self, folder: Path, record: Callable[[Fact], None]) -> EnginePool:
        def told(fact: Fact) -> None:
            self.facts.append(fact)
            record(fact)

        self.pool = EnginePool(
            folder, self.settings.engines.limits(), record=told, server=Place.server, beat_ms=200,
            engine_memory_max=self._memory_max,
        )  # fmt: skip
        return self.pool

    def said(self, type_: str, field: str) -> list[Json]:
        return [fact.data[field] for fact in self.facts if fact.type == type_]

    @property
    def socket(self) -> Path:
        return self.home.path / "gateway.sock"


@contextlib.asynccontextmanager
async def a_gateway(
    home: Path, *, engine_memory_max: int = 0, **settings: Any
) -> AsyncIterator[tuple[Served, httpx.AsyncClient]]:
    Home(home).make()
    gateway, ready = Served(home, settings, engine_memory_max), asyncio.Event()
    running = asyncio.create_task(gateway.run(lambda _: ready.set()))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
    assert ready.is_set(), await running
    transport = httpx.AsyncHTTPTransport(uds=str(gateway.socket), limits=httpx.Limits(max_connections=None))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://hermes", timeout=DEADLINE_S) as client:
            yield gateway, client
    finally:
        gateway.stop()
        await running
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)


async def chat(client: httpx.AsyncClient, model: str = MINI, **more: Json) -> str:
    said = await client.post("/v1/chat/completions", json=TALK | {"model": model} | more)
    assert said.status_code == 200, said.text
    return str(said.json()["choices"][0]["message"]["content"])


@contextlib.asynccontextmanager
async def streaming(client: httpx.AsyncClient, **asked: Json) -> AsyncIterator[AsyncIterator[Json]]:
    """The events of a stream, of which one is there already."""
    async with client.stream("POST", "/v1/completions", json=LONG | {"stream": True} | asked) as response:
        assert response.status_code == 200, await response.aread()
        yield (line.removeprefix("data: ") async for line in response.aiter_lines() if line.startswith("data: "))


def state(gateway: Served) -> Json:
    return gateway.pool.stats()


# Who goes first


@pytest.mark.parametrize("aging", ["10s", "1ms"])
def test_the_higher_priority_goes_first_until_another_has_waited_for_long(tmp_path: Path, aging: str) -> None:
    async def story() -> None:
        one = {"one": {"model": MINI, "max_parallel": 1}}
        settings: Json = {"models": one, "engines": {"aging": aging}, "resume": "0s"}
        async with a_gateway(tmp_path / "home", **settings) as (gateway, client):
            order: list[str] = []

            async def ask(name: str, priority: int) -> None:
                await chat(client, "one", priority=priority)
                order.append(name)

            async with streaming(client, model="one", max_tokens=1000) as events:
                await anext(events)
                low = asyncio.create_task(ask("low", -1))
                await until(lambda: state(gateway)["waiting"] == 1, "it waits")
                arrived = time.monotonic()
                await until(lambda: time.monotonic() - arrived > 0.02, "it has waited for more than two steps")
                high = asyncio.create_task(ask("high", 1))
                await until(lambda: state(gateway)["waiting"] == 2 or order, "the other one waits, too")
                assert state(gateway)["running"] == 1, "the engine is not free yet"
            await asyncio.gather(low, high)
            assert order == (["high", "low"] if aging == "10s" else ["low", "high"])

    run(story())


def test_a_thousand_at_once_are_answered_and_a_full_queue_says_when_to_come_again(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_gateway(tmp_path / "home", engines={"waiting_max": 900}) as (gateway, client):
            await chat(client)
            before = descriptors()
            said = await asyncio.gather(*(post(gateway.socket, LONG | {"max_tokens": 1}) for _ in range(1000)))
            answered = [body for status, _, body in said if status == 200]
            turned_away = [head for status, head, _ in said if status == 429]
            assert len(answered) + len(turned_away) == 1000
            assert len(answered) >= 900
            assert len({body["choices"][0]["text"] for body in answered}) == 1
            assert all(b"retry-after: " in head for head in turned_away)
            await until(lambda: state(gateway)["running"] == state(gateway)["waiting"] == 0, "nothing is left")
            assert descriptors() <= before

    run(story())


async def post(socket: Path, body: Json) -> tuple[int, bytes, Json]:
    """Status, head and body of the answer, at the least cost."""
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_unix_connection(socket)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    answer = await reader.read()
    writer.close()
    told, _, rest = answer.partition(b"\r\n\r\n")
    return int(told.split()[1]), told, json.loads(rest)


# What is replaced


def test_an_engine_is_replaced_after_so_many_requests_and_nobody_notices(tmp_path: Path) -> None:
    async def story() -> None:
        settings: Json = {"engines": {"recycle_requests": 3}}
        async with a_gateway(tmp_path / "home", **settings) as (gateway, client):
            assert [await chat(client) for _ in range(7)] == [SAID] * 7
            assert await asyncio.gather(*(chat(client) for _ in range(6))) == [SAID] * 6
            await until(lambda: gateway.said("engine.ended", "why"), "the first one ends")
            assert set(gateway.said("engine.draining", "why")) == {"recycled"}
            assert gateway.said("engine.ended", "lost") == [0] * len(gateway.said("engine.ended", "lost"))
            assert len(gateway.said("engine.spawned", "engine")) >= 3

    run(story())


def test_what_runs_is_finished_when_its_model_is_unloaded_or_the_gateway_stops(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_gateway(tmp_path / "home") as (gateway, client):
            async with streaming(client, max_tokens=300) as events:
                await anext(events)
                unloading = asyncio.create_task(client.post(f"{OWN}/models/unload", json={"model_name": MINI}))
                await until(lambda: gateway.said("engine.draining", "why") == ["unloaded"], "it is drained")
                assert await chat(client) == SAID, "another engine serves who comes meanwhile"
                told = [event async for event in events]
            assert told[-1] == "[DONE]"
            assert json.loads(told[-2])["choices"][0]["finish_reason"] == "length"
            assert (await unloading).status_code == 200
            assert gateway.said("engine.ended", "lost") == [0]
            assert len(gateway.said("engine.spawned", "engine")) == 2
            async with streaming(client, max_tokens=300) as events:
                await anext(events)
                gateway.stop()
                await until(lambda: not gateway.socket.exists() or not accepts(gateway.socket), "it takes no more")
                told = [event async for event in events]
            assert told[-1] == "[DONE]"

    run(story())


def accepts(socket: Path) -> bool:
    try:
        httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=1).get("http://hermes/")
    except httpx.HTTPError:
        return False
    return True


def test_a_model_there_is_no_memory_for_is_answered_for_by_the_smaller_one(tmp_path: Path) -> None:
    async def story() -> None:
        folder = wide(tmp_path / "wide", "BF16", inner=1 << 19)
        big = {"model": str(folder), "dtype": "float32", "max_parallel": 1, "fallback": MINI}
        async with a_gateway(tmp_path / "home", models={"big": big}, engine_memory_max=560 << 20) as (gateway, client):
            assert await chat(client, "big") == SAID
            assert gateway.said("engine.fell", "rung") == ["quantised", "smaller model"]
            assert gateway.said("engine.fell", "instead") == ["", MINI]
            assert gateway.said("engine.ended", "why") == ["out-of-memory"] * 2
            assert (await client.get(f"{OWN}/models/big")).json()["state"] == "serving"
            assert await chat(client, "big") == SAID
            assert gateway.said("engine.spawned", "model") == ["big", "big", MINI], "it is not tried again"

    run(story())


# What is lost


def test_models_that_cannot_be_served_are_told_with_the_reason(tmp_path: Path) -> None:
    async def story() -> None:
        damaged = Path(shutil.copytree(FOLDER, tmp_path / "damaged"))
        weights = next(damaged.glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-100])
        models = {
            "damaged": {"model": str(damaged)},
            "changed": {"model": MINI, "digest": "0" * 64},
            "huge": {"model": MINI, "cache_mb": 1 << 24},
        }
        async with a_gateway(tmp_path / "home", models=models) as (gateway, client):
            for name, status, code, words in (
                ("nobody", 404, "model_not_found", MINI),
                ("damaged", 409, "load_failed", "damaged or cut short"),
                ("changed", 409, "load_failed", "digest"),
                ("huge", 409, "does_not_fit", "GiB"),
            ):
                said = await client.post("/v1/chat/completions", json=TALK | {"model": name})
                error = said.json()["error"]
                assert (said.status_code, error["code"]) == (status, code), said.text
                assert words in error["message"]
            figures = error["details"]["cpu"]
            assert figures["needed_bytes"] > figures["total_bytes"]
            assert gateway.said("engine.spawned", "model") == ["damaged", "changed"]
            assert await chat(client) == SAID

    run(story())


def test_an_engine_that_dies_ends_the_answers_it_had_begun_and_no_others(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_gateway(tmp_path / "home") as (gateway, client):
            begun = asyncio.create_task(chat(client))
            await until(lambda: any(engine.pid for engine in gateway.pool.engines()), "one loads")
            os.kill(gateway.pool.engines()[0].pid, signal.SIGKILL)
            assert await begun == SAID
            whole = asyncio.create_task(client.post("/v1/completions", json=LONG | {"max_tokens": 900}))
            async with streaming(client, max_tokens=900) as events:
                await anext(events)
                await until(lambda: [call.told > 0 for call in gateway.pool._calls.values()] == [True] * 2, "both run")
                os.kill(gateway.pool.engines()[0].pid, signal.SIGKILL)
                error = json.loads([event async for event in events][-1])["error"]
            assert error["code"] == "engine_lost"
            assert error["details"]["tokens_so_far"] > 0
            assert error["request_id"]
            said = await whole
            assert (said.status_code, said.json()["error"]["code"]) == (502, "engine_lost")
            assert await chat(client) == SAID
            os.kill(gateway.pool.engines()[0].pid, signal.SIGKILL)
            await until(lambda: gateway.said("breaker.opened", "failures") == [3], "three deaths are too many")
            said = await client.post("/v1/chat/completions", json=TALK)
            assert (said.status_code, said.json()["error"]["code"]) == (503, "breaker_open")
            assert 1 <= int(said.headers["retry-after"]) <= 15

    run(story())


def test_what_many_requests_leave_behind_is_nothing(tmp_path: Path) -> None:
    """A short soak; `python -m simulations.soak` is the long one."""

    async def story() -> None:
        async with a_gateway(tmp_path / "home", resume="0s") as (gateway, client):
            await chat(client)
            ours, engine = psutil.Process(), psutil.Process(gateway.pool.engines()[0].pid)
            await ask_many(gateway.socket, 50, range(50))
            before = [(each.memory_info().rss, each.num_fds()) for each in (ours, engine)]
            await ask_many(gateway.socket, 50, range(50, 150))
            await until(lambda: not gateway.pool._calls and not gateway.pool._left, "all is let go of")
            for each, (rss, fds) in zip((ours, engine), before, strict=True):
                assert each.memory_info().rss < rss + (16 << 20)
                assert each.num_fds() <= fds
            assert not gateway.pool._pool.assigned

    run(story())


# Models behind another server


def test_another_gateway_serves_as_a_model_of_ours_and_may_come_and_go(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_gateway(tmp_path / "here") as (_, client):
            async with a_gateway(tmp_path / "there", tcp="127.0.0.1:0") as (there, direct):
                asked = {"model_id": MINI, "model_name": "far", "runtime_type": "openai"}
                more = {"url": there.urls[0], "key_file": str(tmp_path / "there" / "gateway.token")}
                said = await client.post(f"{OWN}/models/register", json=asked | {"parameters": more})
                assert said.status_code == 200, said.text
                assert await chat(client, "far") == SAID
                body = LONG | {"max_tokens": 20, "seed": 3, "temperature": 2, "n": 2, "logprobs": 2}
                ours = (await client.post("/v1/completions", json=body | {"model": "far"})).json()
                theirs = (await direct.post("/v1/completions", json=body)).json()
                assert [each["text"] for each in ours["choices"]] == [each["text"] for each in theirs["choices"]]
                assert ours["choices"][1]["logprobs"]["tokens"] == theirs["choices"][1]["logprobs"]["tokens"]
                assert ours["usage"]["total_tokens"] == theirs["usage"]["total_tokens"]
                refused = await client.post("/v1/completions", json=LONG | {"model": "far", "prompt": "a " * 3000})
                assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
                async with streaming(client, model="far", max_tokens=900) as events:
                    await anext(events)
                    assert state(there)["running"] == 1
                await until(lambda: state(there)["running"] == 0, "who leaves here is let go of there")
                async with streaming(client, model="far", max_tokens=900) as events:
                    await anext(events)
                    os.kill(there.pool.engines()[0].pid, signal.SIGKILL)
                    error = json.loads([event async for event in events][-1])["error"]
                assert error["code"] == "engine_lost"
                assert await chat(client, "far") == SAID
            gone = await client.post("/v1/chat/completions", json=TALK | {"model": "far"})
            assert gone.status_code == 502, gone.text
            assert there.urls[0].removeprefix("http://") in gone.json()["error"]["message"]
            assert await chat(client) == SAID, "the others are served"

    run(story())


def test_a_server_of_ollamas_serves_as_a_model_of_ours(tmp_path: Path) -> None:
    async def story(server: str) -> None:
        models = {"far": {"backend": "ollama", "model": "tiny", "url": server}}
        async with a_gateway(tmp_path / "home", models=models) as (gateway, client):
            assert await chat(client, "far") == "The disk is full."
            asked = LONG | {"model": "far", "max_tokens": 2, "ignore_eos": False}
            said = (await client.post("/v1/completions", json=asked)).json()
            assert said["choices"][0] == said["choices"][0] | {"text": "The disk", "finish_reason": "length"}
            assert said["usage"]["prompt_tokens"] == 7
            refused = await client.post("/v1/completions", json=asked | {"logprobs": 1})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logprobs")
            lost = await client.post("/v1/completions", json=asked | {"prompt": "broken"})
            assert lost.status_code == 502
            assert gateway.said("engine.loaded", "facts")[0]["versions"] == {"ollama": "0.99.1"}

    with serving(OllamaHandler) as server:
        run(story(url(server)))
