"""Small real HTTP servers on loopback that speak Ollama's and OpenAI's protocols."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

WORDS = ["The", " disk", " is", " full", "."]


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.seen: list[tuple[str, Any]] = []
        self.broken_pipes = threading.Event()
        self.go_on = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def body(self) -> Any:
        value = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, value))
        return value

    def answer(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def tell(self, text: str) -> None:
        data = text.encode()
        try:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        except OSError:
            self.server.broken_pipes.set()
            raise ConnectionAbortedError from None


class OllamaHandler(Handler):
    """Ollama's protocol, as its API reference describes it."""

    def do_GET(self) -> None:
        if self.path == "/api/version":
            return self.answer({"version": "0.99.1"})
        details = {"family": "llama", "quantization_level": "Q4_K_M"}
        self.answer({"models": [{"name": "tiny:latest", "digest": "ab" * 32, "details": details}]})

    def do_POST(self) -> None:
        body = self.body()
        options = body.get("options", {})
        if self.path == "/api/embed":
            return self.answer({"embeddings": [[3.0, 4.0] for _ in body["input"]]})
        if body.get("prompt") == "unknown":
            return self.answer({"error": "model 'tiny' not found"}, 404)
        self.begin("application/x-ndjson")
        chat = self.path == "/api/chat"
        if body.get("tools"):
            call = {"function": {"name": "look", "arguments": {"at": "disk"}}}
            turn: Any = {"role": "assistant", "content": "", "tool_calls": [call]}
            self.tell(json.dumps({"message": turn, "done": False}) + "\n")
        words = WORDS[: options["num_predict"]]
        if body.get("prompt") == "for ever":
            words = ["on"] * 100_000
        with contextlib.suppress(ConnectionAbortedError):
            for word in words:
                turn = {"message": {"role": "assistant", "content": word}} if chat else {"response": word}
                self.tell(json.dumps({**turn, "done": False}) + "\n")
                if body.get("prompt") == "for ever":
                    self.server.go_on.wait(0.01)
            if body.get("prompt") == "broken":
                return self.close_connection_now()
            reason = "length" if len(words) == options["num_predict"] else "stop"
            end = {"done": True, "done_reason": reason, "prompt_eval_count": 7, "eval_count": len(words)}
            self.tell(json.dumps(end) + "\n")
            self.tell("")

    def close_connection_now(self) -> None:
        self.close_connection = True
        self.connection.close()


class OpenAIHandler(Handler):
    """The streaming protocol of OpenAI's reference, tool calls in parts included."""

    def do_GET(self) -> None:
        self.answer({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    def do_POST(self) -> None:
        body = self.body()
        assert self.headers["Authorization"] == "Bearer secret"
        if self.path == "/v1/embeddings":
            rows = [{"index": place, "embedding": [0.0, float(place + 1)]} for place in range(len(body["input"]))]
            return self.answer({"data": rows[::-1]})
        if body.get("prompt") == "bad":
            return self.answer({"error": {"message": "top_p is off", "param": "top_p"}}, 400)
        self.begin("text/event-stream")
        chat = self.path.endswith("/chat/completions")
        words = WORDS[: body["max_tokens"]]
        for choice in range(body.get("n", 1)):
            for word in words:
                part: dict[str, Any] = {"index": choice, "finish_reason": None}
                part |= {"delta": {"content": word}} if chat else {"text": word}
                if body.get("logprobs") is not None and chat:
                    tops = [{"token": word, "logprob": -0.5}]
                    part["logprobs"] = {"content": [{"token": word, "logprob": -0.5, "top_logprobs": tops}]}
                self.event({"choices": [part]})
            if body.get("tools"):
                for each in ({"function": {"name": "look", "arguments": ""}}, {"function": {"arguments": '{"at"'}},
                             {"function": {"arguments": ': "disk"}'}}):  # fmt: skip
                    self.event({"choices": [{"index": choice, "delta": {"tool_calls": [{"index": 0, **each}]}}]})
            finish = "length" if len(words) == body["max_tokens"] else "stop"
            self.event({"choices": [{"index": choice, "delta": {}, "finish_reason": finish}]})
        self.event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": len(words),
                                             "prompt_tokens_details": {"cached_tokens": 4}}})  # fmt: skip
        self.tell("data: [DONE]\n\n")
        self.tell("")

    def event(self, value: Any) -> None:
        self.tell(f"data: {json.dumps(value)}\n\n")


@contextlib.contextmanager
def serving(handler: type[Handler]) -> Iterator[Server]:
    with Server(handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.go_on.set()
            server.shutdown()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}"
