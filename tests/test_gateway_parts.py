"""Parts of the gateway that need no process: streams and their credit, settings, what is kept, calls of tools."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncGenerator, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cli_shell import ROOT, hermesd
from gateway_home import make_home
from pydantic import ValidationError

from daemon.cli.call import Call
from daemon.cli.failure import Failure
from daemon.cli.gateway import settings_of
from daemon.gateway import openai, stream
from daemon.gateway.kept import Kept, kept_in
from daemon.gateway.models import Catalogue
from daemon.gateway.refusal import Refusal, refusal_of
from daemon.gateway.server import _expire
from daemon.gateway.settings import GatewaySettings
from daemon.gateway.stream import CREDIT_BYTES, KEPT_BYTES, Stream, Streams
from daemon.home import HomeError
from daemon.inference import failures
from daemon.inference.rerun import drawn

T = TypeVar("T")
_WAIT_S = 120


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, _WAIT_S))


class Engine:
    """Says numbers, and notes how far it was asked to go."""

    def __init__(self, count: int, size: int = 100) -> None:
        self.count, self.said, self.let_go = count, 0, False
        self._size = size

    async def words(self) -> AsyncGenerator[bytes, None]:
        try:
            for number in range(1, self.count + 1):
                await asyncio.sleep(0)
                self.said = number
                yield str(number).encode().ljust(self._size)
        finally:
            self.let_go = True

    async def stands_still(self) -> int:
        """How far it is when it does not go on any more."""
        before = -1
        while before != self.said:
            before = self.said
            for _ in range(100):
                await asyncio.sleep(0)
        return self.said


def numbers(data: bytes) -> list[int]:
    return [int(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: ")]


async def read_all(of: Stream, last: int) -> list[int]:
    return [number for data in [part async for part in of.read(last)] for number in numbers(data)]


def test_the_engine_is_held_while_nobody_reads() -> None:
    async def story() -> None:
        engine = Engine(100_000)
        of = Stream("a", engine.words())
        of.start()
        await of.opened()
        ahead = await engine.stands_still()
        assert ahead * 100 < CREDIT_BYTES * 2
        reading = of.read(0)
        await anext(reading)
        assert ahead < await engine.stands_still() < engine.count
        await reading.aclose()
        await of.close()
        assert engine.let_go

    run(story())


def test_a_reader_that_comes_again_gets_what_follows_and_replaces_the_one_before() -> None:
    async def story() -> None:
        engine = Engine(500)
        of = Stream("a", engine.words())
        of.start()
        first = of.read(0)
        begun = numbers(await anext(first))
        again = asyncio.create_task(read_all(of, begun[-1]))
        with contextlib.suppress(StopAsyncIteration):
            while True:
                await anext(first)
        assert begun + await again == list(range(1, 501))

    run(story())


def test_what_is_far_behind_the_reader_is_let_go() -> None:
    async def story() -> None:
        of = Stream("a", Engine(KEPT_BYTES // 100 * 2).words())
        of.start()
        streams = Streams(5)
        streams.add(of)
        await read_all(of, 0)
        assert not of.follows(1)
        with pytest.raises(Refusal, match="not kept any more"):
            streams.again("a.1")
        assert await read_all(of, of._newest - 3) == list(range(of._newest - 2, of._newest + 1))
        await streams.close()

    run(story())


def test_a_stream_without_a_reader_is_given_up_in_time() -> None:
    async def story() -> None:
        engine = Engine(1_000_000)
        of, streams = Stream("a", engine.words()), Streams(0.05)
        of.start()
        streams.add(of)
        reading = of.read(0)
        await anext(reading)
        await reading.aclose()
        reading = of.read(1)  # back before the time is over
        streams.again("a.1")
        await anext(reading)
        await asyncio.sleep(0.1)
        assert not engine.let_go
        await reading.aclose()
        with pytest.raises(Refusal, match="of another stream"):  # Whoever asks by a wrong name does not keep it.
            streams.again("a.1", "b")
        while not engine.let_go:
            await asyncio.sleep(0.01)
        assert len(streams) == 0
        await streams.close()

    run(story())


def test_silence_is_filled_with_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SILENCE_S", 0.01)

    async def nothing() -> AsyncGenerator[bytes, None]:
        await asyncio.Event().wait()
        yield b""

    async def story() -> None:
        of = Stream("a", nothing())
        of.start()
        assert (await anext(of.read(0))).startswith(b":")
        await of.close()

    run(story())


@pytest.mark.parametrize("id", ["", "a", "a.", "a.-1", "a.1\n", "a.1e3", "a.b.c", "é.1", "a.9999999999999999"])
def test_ids_that_are_no_events(id: str) -> None:
    with pytest.raises(Refusal) as refused:
        Streams(1).again(id)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("error", "status", "after"),
    [
        (failures.UnknownModel("no"), 404, None),
        (failures.Busy("no", 0.2), 429, "1"),
        (failures.Broken("no", 12.3), 503, "13"),
        (failures.DoesNotFit("no", {"cpu": {"needed_bytes": 2}}), 409, None),
        (failures.LoadFailed("no"), 409, None),
        (failures.BadRequest("max_new_tokens", "no"), 400, None),
        (failures.EngineLost("no", 7), 502, None),
        (failures.SlowReader("no"), 408, None),
    ],
)
def test_every_error_of_the_pool_has_its_status(error: Exception, status: int, after: str | None) -> None:
    refusal = refusal_of(error)
    assert refusal is not None
    assert (refusal.status, refusal.headers.get("Retry-After")) == (status, after)
    told = refusal.json("r1")["error"]
    assert told["request_id"] == "r1"
    assert told.get("param") in (None, "model", "max_tokens")


def test_a_bug_is_no_refusal() -> None:
    assert refusal_of(KeyError("x")) is None


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("", 0),
        ("  ", 0),
        ('{"name"', 0),
        ("sun", 3),
        ("it is <", 6),
        ("it is <b> now", 13),
        ("so <tool_call>{", 3),
        ("a [1] b", 7),
        ("a [TOOL", 2),
    ],
)
def test_text_is_shown_as_far_as_it_cannot_be_a_call(text: str, plain: int) -> None:
    assert openai._plain_part(text) == plain


def test_kept_texts_go_when_their_time_is_over(tmp_path: Path) -> None:
    folder = tmp_path / "generations"
    folder.mkdir()
    today = datetime.now(UTC).date()
    for days in (1, 2, 40):
        (folder / f"{today - timedelta(days=days)}.jsonl").write_text('{"id":"old","spec":1,"request":1,"texts":[]}\n')
    kept = Kept(folder, 2)
    kept.expire(today.isoformat())
    kept.keep({"id": "new", "spec": {}, "request": {}, "texts": []})
    kept.close()
    path = folder / f"{today}.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("a") as file:
        file.write('{"id": "cut o')
    assert [one["id"] for one in kept_in(folder)] == ["old", "new"]
    Kept(folder, 0).expire(today.isoformat())
    assert list(folder.iterdir()) == []


def test_kept_texts_go_also_where_none_are_kept_any_more_and_nobody_asks(tmp_path: Path) -> None:
    folder = tmp_path / "generations"
    folder.mkdir()
    (folder / f"{datetime.now(UTC).date()}.jsonl").write_text("{}\n")

    async def story() -> None:
        looking = asyncio.create_task(_expire(Kept(folder, 0)))
        async with asyncio.timeout(30):
            while list(folder.iterdir()):
                await asyncio.sleep(0.01)
        looking.cancel()

    run(story())
    assert not list(folder.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    words = (
        "from daemon.gateway import log; log.say('a', text='x' * 20_000); log.say('b'); print('goes on', flush=True)"
    )
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, stdout=subprocess.PIPE, stderr=full, timeout=60)
    assert done.stdout == b"goes on\n"


def test_a_sample_is_the_same_each_time_and_of_its_size() -> None:
    ids = [f"{number:026x}" for number in range(20_000)]
    chosen = {id for id in ids if drawn(id, 0.01)}
    assert chosen == {id for id in ids if drawn(id, 0.01)}
    assert 130 < len(chosen) < 280
    assert chosen < {id for id in ids if drawn(id, 0.05)}
    assert all(drawn(id, 1) for id in ids)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("tcp", "0.0.0.0:80", "other machines"),
        ("tcp", "127.0.0.1", "no address"),
        ("tcp", "127.0.0.1:99999", "no address"),
        ("keep_text", "1h", "days"),
        ("resume", "1h", "too long"),
    ],
)
def test_settings_that_cannot_be_used(field: str, value: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        GatewaySettings.model_validate({field: value})


def test_the_shipped_files_are_settings_and_the_environment_stands_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_home(tmp_path / "home", "gateway:\n  max_parallel: 3\n  num_instances: 5\n")
    call = Call(str(home), False)
    for name in ("dev", "prod"):
        settings = settings_of(call, ROOT / "configs" / f"env.{name}.yaml")
        assert settings.backend == "transformers"
        assert settings.max_parallel != 3
        monkeypatch.setenv("HERMES_BACKEND", "ollama")
        monkeypatch.setenv("HERMES_HERMETIC", "1")
        settings = settings_of(call, ROOT / "configs" / f"env.{name}.yaml")
        assert (settings.backend, settings.hermetic) == ("ollama", True)
        monkeypatch.undo()
    assert settings_of(call, None).num_instances == 5
    monkeypatch.setenv("HERMES_BACKEND", "vllm")
    with pytest.raises(Failure, match="backend"):
        settings_of(call, None)


def test_mistakes_in_settings_are_told_with_their_place(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", "gateway:\n  tcpp: 127.0.0.1:1\n")
    with pytest.raises(HomeError, match=r"hermesd.yaml:\d+:\d+: gateway.tcpp: .*Did you mean 'tcp'"):
        Call(str(home), False).settings.gateway  # noqa: B018
    env = tmp_path / "env.yaml"
    env.write_text("backend: transformers\nmax_paralel: 3\n")
    said = hermesd("gateway", "--home", make_home(tmp_path / "other"), "--env", env, code=2)
    assert f"{env}:2:1" in said.stderr
    assert "max_parallel" in said.stderr


def test_the_catalogue_has_what_jobs_may_name_and_what_is_served(tmp_path: Path) -> None:
    home = tmp_path
    (home / "models" / "one").mkdir(parents=True)
    (home / "cache").mkdir()
    (home / "cache" / "two.gguf").touch()
    served = {"far": {"backend": "openai", "model": "gpt", "url": "http://127.0.0.1:1"}, "one": {"device": "cuda:0"}}
    settings = GatewaySettings.model_validate({"cache_dir": "cache", "use_bnb_on_cuda": True, "models": served})
    specs = {one.name: one for one in Catalogue(home, {"alias": "/m"}, settings, cuda=True).specs()}
    assert set(specs) == {"far", "one", "two.gguf", "alias", "hermes-mini"}
    assert (specs["far"].spec.runtime, specs["far"].spec.model) == ("openai", "gpt")
    assert specs["two.gguf"].spec.runtime == "llama_cpp"
    assert specs["one"].spec.quantization == specs["alias"].spec.quantization == "bnb-4bit"
    assert specs["far"].spec.quantization == "none"
    without = Catalogue(home, {"alias": "/m"}, settings, cuda=False).specs()
    assert {one.name for one in without if one.spec.quantization != "none"} == {"one"}
