"""The daemon and its gateway: started, found again, started anew; and what engines do, in the ledger once each."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_shell import Foreground, answer, hermesd, make_home

pytest.importorskip("torch")
pytest.importorskip("uvicorn")

import httpx
from remote_servers import OllamaHandler, url
from remote_servers import serving as serving_ollama

from daemon.gateway_watch import LOG, LOG_BYTES_MAX, GatewayWatch
from daemon.inference.spool import FILE, Spool
from daemon.inference.views import Fact
from daemon.system import OsDisk
from daemon.workers import identity
from ledger.reader import read

DEADLINE_S = 120.0
JOB = """\
name: ask
schedule: manual
kind: inference
model: hermes-mini
prompt: "Triage this log line: link down"
max_new_tokens: 8
"""


def until(true: Callable[[], Any], what: str) -> Any:
    ends = time.monotonic() + DEADLINE_S
    while not (found := true()):
        assert time.monotonic() < ends, f"in vain: {what}"
        time.sleep(0.02)
    return found


def gateway_of(home: Path) -> tuple[int, int] | None:
    try:
        told = json.loads((home / "gateway.json").read_text())
    except (OSError, ValueError):
        return None
    return (told["pid"], told["start"]) if identity.alive(told["pid"], told["start"]) else None


def view(home: Path) -> Any:
    try:
        return json.loads((home / "state" / "engines.json").read_text())
    except (OSError, ValueError):
        return {"engines": [], "models": []}


def serving(home: Path) -> Any:
    return next((engine for engine in view(home)["engines"] if engine["state"] == "serving"), None)


def told(home: Path, type_: str) -> list[Any]:
    return [dict(record.data) for record in read(OsDisk(home)) if record.type == type_]


def say(home: Path, model: str) -> str:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(home / "gateway.sock")), timeout=DEADLINE_S) as client:
        body = {"model": model, "messages": [{"role": "user", "content": "Triage this log line: link down"}]}
        said = client.post("http://gateway/v1/chat/completions", json={**body, "temperature": 0, "max_tokens": 8})
    assert said.status_code == 200, said.text
    return str(said.json()["choices"][0]["message"]["content"])


@pytest.fixture
def ollama() -> Iterator[str]:
    """A model behind another server: its engine loads at once."""
    with serving_ollama(OllamaHandler) as server:
        yield url(server)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    path = make_home(tmp_path / "home")
    yield path
    if (left := gateway_of(path)) is not None:  # the test has failed
        os.kill(left[0], signal.SIGKILL)


def test_the_gateway_outlives_the_daemon_and_what_it_does_meanwhile_is_recorded_once(home: Path, ollama: str) -> None:
    far = f"gateway:\n  model_name: far\n  models: {{far: {{backend: ollama, model: tiny, url: '{ollama}'}}}}\n"
    (home / "hermesd.yaml").write_text(far)
    (home / "jobs" / "ask.yaml").write_text(JOB)
    with Foreground(home) as daemon:
        engine = until(lambda: serving(home), "an engine serves, and the ledger knows")
        gateway = gateway_of(home)
        assert gateway is not None
        assert say(home, "far") == "The disk is full."
        listed = answer("engines", "list", "--home", home)
        assert [each["state"] for each in listed["engines"]] == ["serving"]
        daemon.process.kill()
        daemon.process.wait()
        assert gateway_of(home) == gateway
        assert say(home, "far") == "The disk is full."
        spool = home / "engines" / FILE
        until(lambda: b"generation.finished" in spool.read_bytes(), "it waits in the spool")
    (home / "hermesd.yaml").write_text("gateway:\n  model_name: hermes-mini\n")
    with Foreground(home) as daemon:
        until(lambda: len(told(home, "generation.finished")) == 2, "what happened meanwhile is recorded")
        assert gateway_of(home) == gateway
        assert len(told(home, "gateway.started")) == 1
        os.kill(gateway[0], signal.SIGKILL)
        again = until(lambda: (new := gateway_of(home)) != gateway and new, "another gateway is started")
        until(lambda: (new := serving(home)) and new["pid"] != engine["pid"], "with an engine of its own")
        until(lambda: not (old := identity.process(engine["pid"])) or not old.alive, "the engine went with its gateway")
        ran = answer("start", "ask", "--wait", "--home", home)["run"]
        result = json.loads((home / "runs" / ran / "1" / "result.json").read_text())
        assert (result["outputs"][0]["text"], result["gateway"]["model"]) == ("warning network", "hermes-mini")
        assert len(told(home, "engine.spawned")) == 2
        hermesd("engines", "stop", "--home", home)
        until(lambda: view(home)["engines"] == [], "its end is recorded")
        (home / "hermesd.yaml").write_text("")
    assert gateway_of(home) == again
    with Foreground(home):
        until(lambda: gateway_of(home) is None, "a gateway that is not wanted any more is ended")
        until(lambda: told(home, "gateway.stopped"), "and says so")
    numbers = [(data["by"], data["number"]) for type_ in ("engine.spawned", "generation.finished", "gateway.started")
               for data in told(home, type_)]  # fmt: skip
    assert len(numbers) == len(set(numbers))
    hermesd("replay", "--verify", "--home", home)
    hermesd("audit", "--home", home)


def test_facts_wait_in_a_bounded_file_and_are_recorded_once_and_in_order(home: Path) -> None:
    data = {"model": "m", "kind": "llm", "runtime": "transformers", "path": "/m"}

    async def away() -> str:
        spool = Spool(home, home / "engines", lines_max=50, again_s=0.05)
        await spool.start()
        for _ in range(80):
            spool.take(Fact("model.registered", "model/m", data))
        spool.take(Fact("model.registered", "model/m", {"model": 5}))  # nothing that may be recorded
        await spool.close("tested")
        assert spool.dropped == 33
        return spool.name

    async def back() -> Spool:
        spool = Spool(home, home / "engines", again_s=0.05)
        await spool.start()
        await spool.close("tested")
        return spool

    first = asyncio.run(away())
    kept = (home / "engines" / FILE).read_bytes().splitlines()
    assert len(kept) == 50
    (home / "engines" / FILE).write_bytes(b"\n".join(kept) + b'\n{"cut off')
    with Foreground(home):
        second = asyncio.run(back())
        assert (second.recorded, second.refused) == (51, 1)
        (home / "engines" / FILE).write_bytes(b"\n".join(kept) + b"\n")  # as after a crash before it was emptied
        third = asyncio.run(back())
        assert (third.recorded, third.refused) == (2, 0), "all of the first's are known already"
        assert (home / "engines" / FILE).read_bytes() == b""
    numbers = [each["number"] for each in told(home, "model.registered") if each["by"] == first]
    assert numbers == list(range(34, 82))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_facts_wait_out_a_full_disk(tmp_path: Path) -> None:
    file = tmp_path / "engines" / FILE

    async def told() -> list[int]:
        spool = Spool(tmp_path, tmp_path / "engines", again_s=0.01)
        await spool.start()
        for path in (file, file.with_suffix(".new")):
            path.symlink_to("/dev/full")
        spool.take(Fact("model.registered", "model/m", {"model": "m"}))
        async with asyncio.timeout(DEADLINE_S):
            while not spool._amiss:
                await asyncio.sleep(0)
        for path in (file, file.with_suffix(".new")):
            path.unlink()
        spool.take(Fact("model.forgotten", "model/m", {"model": "m"}))
        await spool.close("tested")
        return [json.loads(line)["data"]["number"] for line in file.read_bytes().splitlines()]

    assert asyncio.run(told()) == [1, 2, 3, 4]


def test_a_gateway_that_dies_at_once_is_started_again_later_and_later(tmp_path: Path) -> None:
    now_ms = 1000
    watched: dict[int, Callable[[], None]] = {}
    watch = GatewayWatch(
        tmp_path, True, watched.__setitem__, watched.__delitem__, lambda: now_ms, command=("/bin/sh", "-c", "exit 3")
    )

    def dies() -> int:
        (number,) = watched
        assert select.select([number], [], [], DEADLINE_S)[0]
        watched[number]()
        at_ms = watch.next_deadline()
        assert at_ms is not None
        return at_ms - now_ms

    watch.begin()
    waits = []
    for _ in range(8):
        waits.append(dies())
        assert "ended with status 3" in watch.problem
        watch.housekeep(now_ms)
        assert watched == {}, "not before its time"
        now_ms += waits[-1]
        watch.housekeep(now_ms)
    assert waits == [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]
    log = tmp_path / "engines" / LOG
    with log.open("ab") as file:
        file.truncate(LOG_BYTES_MAX + 1)
    watch.housekeep(now_ms + 60_000)
    assert watch.process is not None
    os.waitpid(watch.process[0], 0)
    assert log.stat().st_size == 0
    assert log.with_suffix(".log.1").stat().st_size == LOG_BYTES_MAX + 1
    watch.close()
