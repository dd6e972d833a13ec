"""A job's prompt goes through the gateway where it serves the model as the job wants it, and not otherwise."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

import pytest

from daemon.inference.through import generated
from daemon.ports import InferenceTask

FACTS = {"device": "cuda:0", "dtype": "bfloat16", "quantization": "none", "digest": "d"}
USAGE = {"prompt_tokens": 9, "completion_tokens": 3}


class Gateway:
    """A small one, which serves one model."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "gateway.sock"
        self.model = {
            "model_name": "m", "model_id": str(folder), "model_type": "llm", "state": "unloaded", "facts": FACTS
        }  # fmt: skip
        self.chat: tuple[int, Any] = (200, {"id": "g1", "usage": USAGE, "choices": [
            {"message": {"content": "hello"}, "finish_reason": "stop"}]})  # fmt: skip
        self.asked: list[tuple[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def address_string(self) -> str:
                return "unix"

            def log_message(self, *_: Any) -> None: ...

            def do_GET(self) -> None:
                self.give(200, {"models": [outer.model]} if self.path.endswith("models") else outer.model)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.asked.append((self.path, body))
                plain = {"id": "g2", "usage": USAGE, "choices": [{"text": "plain", "finish_reason": "length"}]}
                self.give(*(outer.chat if "chat" in self.path else (200, plain)))

            def give(self, status: int, answer: Any) -> None:
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingUnixStreamServer(str(self.socket), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    found = Gateway(tmp_path)
    yield found
    found.server.shutdown()
    found.server.server_close()


def ask(gateway: Gateway, **fields: Any) -> Any:
    task = InferenceTask(gateway.model["model_id"], "hi", gateway=str(gateway.socket), **fields)  # type: ignore[arg-type]
    return generated(dataclasses.asdict(task))


def test_the_result_is_as_a_worker_gives_it(gateway: Gateway) -> None:
    result = ask(gateway, max_new_tokens=5, seed=3, stop=("x",))
    (output,) = result["outputs"]
    assert output == {"text": "hello", "prompt_tokens": 9, "generated_tokens": 3, "finish": "stop"}
    assert result["usage"] == {"prompt_tokens": 9, "generated_tokens": 3}
    assert (result["model"], result["gateway"]) == (FACTS, {"request": "g1", "model": "m"})
    ((path, body),) = gateway.asked
    assert path == "/v1/chat/completions"
    assert (body["max_tokens"], body["seed"], body["stop"], body["temperature"]) == (5, 3, ["x"], 0.0)


def test_a_model_without_a_chat_form_completes_the_prompt(gateway: Gateway) -> None:
    gateway.chat = 400, {"error": {"param": "messages", "message": "it has no chat template"}}
    assert ask(gateway)["outputs"][0]["text"] == "plain"
    assert gateway.asked[-1][1]["prompt"] == "hi"


def test_the_worker_does_it_where_the_gateway_serves_the_model_otherwise_or_cannot(gateway: Gateway) -> None:
    assert ask(gateway, device="cuda:0", dtype="bfloat16") is not None
    assert ask(gateway, device="cpu") is None
    assert ask(gateway, dtype="float32") is None
    assert ask(gateway, quantization="bnb-4bit") is None
    assert ask(gateway, lines=("/var/log/syslog",)) is None
    for state in ("failed", "open"):
        gateway.model["state"] = state
        assert ask(gateway) is None
    gateway.model |= {"state": "serving", "model_id": "/elsewhere"}
    assert generated(dataclasses.asdict(InferenceTask("/here", "hi", gateway=str(gateway.socket)))) is None
    gateway.model["model_id"] = "/here"
    gateway.chat = 503, {"error": {"message": "later"}}
    assert ask(gateway) is None
    gateway.chat = 200, {"nothing": "of use"}
    assert ask(gateway) is None
    assert generated(dataclasses.asdict(InferenceTask("/here", "hi", gateway="/gone.sock"))) is None
