"""Notices that really leave the machine: a webhook that answers, refuses, hangs and goes; commands; kill -9 between.

What the receiver saw is held against the ledger. No delivery, however it ends, changes how a run ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cli_shell import Foreground, answer, hermesd, make_home

from daemon.delivery import Undelivered, deliver

POLICY = "notice_base_ms: 1000\nnotice_max_ms: 1000\nnotice_attempts: 3\n"


class Receiver:
    """A web server that answers each path in its own way, and remembers what it was sent."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, dict[str, str], Any]] = []
        self.let_go = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.posts.append((self.path, dict(self.headers), body))
                receiver.answer(self)

            def log_message(self, *about: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.split("?")[0]
        if path == "/hangs":
            self.let_go.wait(60)
        if path == "/closes":
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        if path == "/garbage":
            handler.wfile.write(b"no http at all\r\n\r\n")
            return
        status = {"/moved": 307, "/broken": 500, "/gone": 404}.get(path, 200)
        if path == "/later":
            status = 500 if len(self.to("/later")) < 2 else 204
        handler.send_response(status)
        if status == 307:
            handler.send_header("Location", f"{self.url}/fine")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def to(self, path: str) -> list[tuple[dict[str, str], Any]]:
        return [(headers, body) for at, headers, body in self.posts if at.split("?")[0] == path]

    def close(self) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with contextlib.closing(Receiver()) as found:
        yield found


def until(met: Callable[[], Any], what: str, within_s: float = 30.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := met()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


def home_with(place: Path, **jobs: dict[str, Any]) -> Path:
    listed = [{"name": name, "kind": "command", "schedule": "manual", **job} for name, job in jobs.items()]
    home = make_home(place / "home")
    (home / "jobs" / "jobs.json").write_text(json.dumps(listed))
    (home / "policies" / "scheduling.yaml").write_text(POLICY)
    return home


def told(home: Path, kind: str = "notice.") -> list[dict[str, Any]]:
    events = map(json.loads, hermesd("events", "--json", "--home", home).stdout.splitlines())
    return [event for event in events if event["type"].startswith(kind)]


def row(home: Path, job: str) -> Any:
    [found] = answer("runs", "list", "--job", job, "--home", home)
    return found


FAILS = {"shell": "echo out; exit 3"}


def test_a_webhook_is_told_what_happened_and_nothing_more(tmp_path: Path, receiver: Receiver) -> None:
    notify = {"webhook": f"{receiver.url}/fine"}
    home = home_with(tmp_path, bad={**FAILS, "env": {"PASSWORD": "hunter2"}, "notify": notify})
    (home / "runs" / "@n-of-a-daemon-that-was-killed" / "1").mkdir(parents=True)
    with Foreground(home):
        assert not list((home / "runs").glob("@*"))
        hermesd("start", "bad", "--wait", "--home", home, code=1)
        until(lambda: told(home, "notice.delivered"), "it is delivered")
        run = row(home, "bad")
    [(headers, body)] = receiver.to("/fine")
    assert headers["Idempotency-Key"] == body["notice"] == told(home)[0]["data"]["notice"]
    assert (body["job"], body["run"], body["on"], body["outcome"]) == ("bad", run["run"], "failed", "failed")
    assert body["text"] == f"bad failed on {socket.gethostname()}: exit status 3"
    assert "hunter2" not in json.dumps([headers, body])
    assert run["notices"] == {body["notice"]: "delivered"}
    assert not list((home / "runs").glob("@*"))


def test_a_webhook_that_fails_is_tried_again_under_one_name_and_one_that_stays_broken_is_given_up(
    tmp_path: Path, receiver: Receiver
) -> None:
    secret = "s3cr3t-path"
    home = home_with(
        tmp_path,
        later={**FAILS, "notify": {"webhook": f"{receiver.url}/later"}},
        broken={**FAILS, "notify": {"webhook": f"{receiver.url}/broken?key={secret}"}},
        never={**FAILS, "notify": {"webhook": "{{ secret.hook }}"}},
    )
    with Foreground(home):
        for job in ("later", "broken", "never"):
            hermesd("start", job, "--wait", "--home", home, code=1)
        state = home / "state" / "live_runtime_control_plane.json"
        until(lambda: len(json.loads(state.read_text())["notices"]["given_up"]) == 2, "two are given up")
        listed = answer("notices", "list", "--home", home)
        assert [row(home, job)["state"] for job in ("later", "broken", "never")] == ["failed"] * 3
        (home / "secrets" / "hook").touch(0o600)
        (home / "secrets" / "hook").write_text(f"{receiver.url}/fine\n")
        [lost] = [one["notice"] for one in listed["given_up"] if one["job"] == "never"]
        hermesd("notices", "retry", lost, "--home", home)
        until(lambda: receiver.to("/fine"), "a person had it tried again")
    assert len({headers["Idempotency-Key"] for headers, _ in receiver.to("/later")}) == 1
    assert len(receiver.to("/later")) == 2
    assert len(receiver.to("/broken")) == 3
    errors = {one["job"]: one["error"] for one in listed["given_up"]}
    assert errors["broken"] == "127.0.0.1 answered 500 Internal Server Error"
    assert "there is no secret hook: write it to" in errors["never"]
    assert not any(secret in error for error in errors.values())


def test_a_webhook_that_hangs_holds_up_neither_runs_nor_other_notices(tmp_path: Path, receiver: Receiver) -> None:
    home = home_with(
        tmp_path,
        bad={**FAILS, "notify": {"webhook": f"{receiver.url}/hangs"}},
        fine={"argv": ["true"], "notify": {"on": "succeeded", "webhook": f"{receiver.url}/fine"}},
    )
    with Foreground(home):
        hermesd("start", "bad", "--wait", "--home", home, code=1)
        until(lambda: receiver.to("/hangs"), "it has called")
        hermesd("start", "fine", "--wait", "--home", home)
        until(lambda: receiver.to("/fine"), "another notice gets through")
        (hangs,) = answer("notices", "list", "--home", home)["waiting"]
        assert (hangs["job"], hangs["attempts"]) == ("bad", 0), "nobody has answered yet"
        assert row(home, "bad")["state"] == "failed"


def test_a_daemon_killed_while_it_tells_tells_again_and_once_is_enough_where_the_first_got_through(
    tmp_path: Path, receiver: Receiver
) -> None:
    home = home_with(tmp_path, bad={**FAILS, "notify": {"webhook": f"{receiver.url}/hangs"}})
    with Foreground(home) as daemon:
        hermesd("start", "bad", "--wait", "--home", home, code=1)
        until(lambda: receiver.to("/hangs"), "it has called")
        daemon.kill()
    receiver.let_go.set()
    with Foreground(home):
        until(lambda: told(home, "notice.delivered"), "the next daemon sees it through")
    assert {headers["Idempotency-Key"] for headers, _ in receiver.to("/hangs")} == {
        told(home, "notice.queued")[0]["data"]["notice"]
    }
    assert [event["type"] for event in told(home)] == ["notice.queued", "notice.delivered"]
    assert row(home, "bad")["state"] == "failed"


def test_a_daemon_killed_before_it_could_tell_leaves_the_wish_to_the_next(tmp_path: Path, receiver: Receiver) -> None:
    wait = 'cd "$HERMESD_HOME"; while [ ! -e go ]; do sleep 0.05; done; touch gone; exit 3'
    home = home_with(tmp_path, bad={"shell": wait, "notify": {"webhook": f"{receiver.url}/fine"}})
    with Foreground(home) as daemon:
        hermesd("start", "bad", "--home", home)
        until(lambda: row(home, "bad")["state"] == "running", "it runs")
        daemon.kill()
    assert not receiver.posts
    (home / "go").touch()
    until((home / "gone").exists, "the run ends while nobody looks")
    with Foreground(home):
        until(lambda: receiver.to("/fine"), "it is told")
    assert row(home, "bad")["reason"] == "exit status 3"


def test_a_command_is_told_by_its_environment_and_one_that_is_missing_is_said_to_be(tmp_path: Path) -> None:
    say = 'printf "%s|%s|%s" "$HERMESD_NOTICE_ON" "$HERMESD_NOTICE" "$1" >"$HERMESD_HOME/said"'
    home = home_with(
        tmp_path,
        bad={**FAILS, "notify": [
            {"command": ["/bin/sh", "-c", say, "say", "{{ secret.me }}"]},
            {"command": ["no-such-program", "{{ secret.me }}"]},
            {"command": ["/bin/sh", "-c", "exit 9"]},
        ]},
    )  # fmt: skip
    (home / "secrets" / "me").touch(0o600)
    (home / "secrets" / "me").write_text("hush-hush")
    with Foreground(home):
        hermesd("start", "bad", "--wait", "--home", home, code=1)
        until(lambda: len(told(home, "notice.failed")) >= 2, "two fail")
        until((home / "said").exists, "one is told")
    first, *_ = [event["data"] for event in told(home, "notice.queued")]
    assert (home / "said").read_text() == f"failed|{first['notice']}|hush-hush"
    errors = {event["data"]["error"] for event in told(home, "notice.failed")}
    assert "the command could not be started: no-such-program: No such file or directory" in errors
    assert "its process ended with exit status 9" in errors


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/fine", ""),
        ("/broken?key=k3y", "127.0.0.1 answered 500 Internal Server Error"),
        ("/gone", "127.0.0.1 answered 404 Not Found"),
        ("/moved", "127.0.0.1 answered 307, another address, which is not followed: use that one"),
        ("/closes", "127.0.0.1 gave no whole answer: RemoteDisconnected"),
        ("/garbage", "127.0.0.1 gave no whole answer: BadStatusLine"),
        ("/hangs", "127.0.0.1 did not answer within 0.3 s"),
    ],
)
def test_only_an_answer_of_2xx_is_a_delivery(receiver: Receiver, path: str, why: str) -> None:
    if not why:
        deliver(receiver.url + path, "n1", b"{}")
        return
    with pytest.raises(Undelivered) as caught:
        deliver(receiver.url + path, "n1", b"{}", timeout_s=0.3)
    assert str(caught.value) == why
    assert len(receiver.posts) == 1


@pytest.mark.parametrize(
    "address",
    ["ftp://x/k3y", "http:///k3y", "http://[k3y", "http://a:k3y/", "http://h/k3y\r\nHost: other", "not an address k3y"],
)
def test_an_address_that_is_none_is_refused_without_a_word_of_it(address: str) -> None:
    with pytest.raises(Undelivered) as caught:
        deliver(address, "n1", b"{}", timeout_s=0.3)
    assert "k3y" not in str(caught.value)


@pytest.mark.parametrize("host", ["hooks..example", f"{'x' * 64}.example"])
def test_a_host_that_cannot_be_is_named(host: str) -> None:
    with pytest.raises(Undelivered) as caught:
        deliver(f"https://{host}/k3y", "n1", b"{}", timeout_s=0.3)
    assert str(caught.value) == f"there is no host {host}"


def test_a_certificate_that_is_not_trusted_is_no_delivery(tmp_path: Path) -> None:
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "certificate",
               "-days", "2", "-subj", "/CN=localhost"]  # fmt: skip
    try:
        subprocess.run(openssl, cwd=tmp_path, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl to make a certificate")
    import ssl

    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with server, pytest.raises(Undelivered, match="the certificate of localhost is not valid"):
        deliver(f"https://localhost:{server.server_port}/", "n1", b"{}", timeout_s=5)
    server.shutdown()


def test_a_delivery_that_takes_too_long_ends_itself_also_as_a_command(tmp_path: Path) -> None:
    program = "import sys; sys.path.insert(0, sys.argv[1]); import daemon.delivery as d; d.WHOLE_S = 1; d.main()"
    env = {
        "PATH": os.environ["PATH"], "HERMESD_HOME": str(tmp_path), "HERMESD_FOLDER": str(tmp_path),
        "HERMESD_NOTICE": "n", "HERMESD_NOTICE_JSON": "{}", "HERMESD_NOTICE_TO": '{"command": ["sleep", "60"]}',
    }  # fmt: skip
    root = str(Path(__file__).parent.parent)
    ended = subprocess.run([sys.executable, "-P", "-c", program, root], env=env, timeout=30, check=False)
    assert ended.returncode == -14
