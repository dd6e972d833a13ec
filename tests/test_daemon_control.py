"""The control socket between real sockets, and the inbox on a real folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon import control
from daemon.control import Asked, CallFailed, ControlServer, NotRunning, Request, call, done, leave, new_request, take
from daemon.wake import Waker


class Daemon:
    """A loop in a thread that answers every request by `serve`."""

    def __init__(self, home: Path, serve: Callable[[Asked], None]) -> None:
        self.waker = Waker()
        self.server = ControlServer(home, self.waker)
        self.seen: list[Request] = []
        self._serve = serve
        self._thread = threading.Thread(target=self._loop)
        self._thread.start()

    def _loop(self) -> None:
        while True:
            self.waker.wait()
            reasons = self.waker.reasons()
            if "stop" in reasons:
                return
            if "housekeeping" in reasons:
                self.server.housekeep()
            for asked in self.server.requests():
                self.seen.append(asked.request)
                self._serve(asked)

    def stop(self) -> None:
        self.waker.poke("stop")
        self._thread.join()
        self.server.close()
        self.waker.close()


def echo(asked: Asked) -> None:
    asked.answer({"verb": asked.request.verb, **asked.request.args})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., Daemon]]:
    started = []

    def start(serve: Callable[[Asked], None] = echo, home: Path = home) -> Daemon:
        started.append(Daemon(home, serve))
        return started[-1]

    yield start
    for daemon in started:
        daemon.stop()


def connect(home: Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(home / "hermesd.sock"))
    peer.settimeout(10)
    return peer


def line(peer: socket.socket) -> dict:
    return json.loads(peer.makefile("rb").readline())


def test_a_call_is_answered(home: Path, start: Callable[..., Daemon]) -> None:
    daemon = start()
    assert call(home, "pause", {"job": "a", "why": "é"}) == {"verb": "pause", "job": "a", "why": "é"}
    (seen,) = daemon.seen
    assert seen.actor.endswith(f"@{socket.gethostname()}")


def test_a_refusal_carries_code_message_and_advice(home: Path, start: Callable[..., Daemon]) -> None:
    start(lambda asked: asked.fail("no-such-job", "there is no job b.", "See `hermesd jobs list`."))
    with pytest.raises(CallFailed, match=r"there is no job b\. See `hermesd jobs list`") as failure:
        call(home, "start", {"job": "b"})
    assert failure.value.code == "no-such-job"


def test_answers_may_come_later_and_in_another_order(home: Path, start: Callable[..., Daemon]) -> None:
    held: list[Asked] = []

    def both_then_backwards(asked: Asked) -> None:
        held.append(asked)
        if len(held) == 2:
            for earlier in reversed(held):
                echo(earlier)

    start(both_then_backwards)
    first, second = connect(home), connect(home)
    for number, peer in enumerate((first, second)):
        peer.sendall(Request(f"r{number}", "note", {"n": number}, "a@b").line())
    assert [line(peer)["result"]["n"] for peer in (first, second)] == [0, 1]


def test_requests_sent_ahead_on_one_connection_are_answered_in_order(home: Path, start: Callable[..., Daemon]) -> None:
    start()
    peer = connect(home)
    peer.sendall(b"".join(Request(f"r{n}", "note", {"n": n, "pad": "x" * 1000}, "a@b").line() for n in range(100)))
    answers = peer.makefile("rb")
    assert [json.loads(answers.readline())["id"] for _ in range(100)] == [f"r{n}" for n in range(100)]


def test_without_a_daemon_the_error_says_how_to_start_one(home: Path) -> None:
    with pytest.raises(NotRunning, match="hermesd run"):
        call(home, "status", {})
    with pytest.raises(NotRunning, match="hermesd run"):
        call(home / "nowhere", "status", {})


def test_the_socket_of_a_killed_daemon_is_replaced(home: Path, start: Callable[..., Daemon]) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(home / "hermesd.sock"))
    dead.listen()
    dead.close()
    with pytest.raises(NotRunning):
        call(home, "status", {})
    start()
    assert call(home, "status", {}) == {"verb": "status"}


def test_a_second_daemon_is_refused_and_the_first_goes_on(home: Path, start: Callable[..., Daemon]) -> None:
    start()
    waker = Waker()
    with pytest.raises(control.AlreadyRunning, match=r"hermesd\.sock"):
        ControlServer(home, waker)
    waker.close()
    assert call(home, "status", {}) == {"verb": "status"}


def test_a_file_in_the_sockets_place_is_left_alone(home: Path) -> None:
    (home / "hermesd.sock").write_text("mine")
    waker = Waker()
    with pytest.raises(FileExistsError, match="in the way"):
        ControlServer(home, waker)
    waker.close()
    assert (home / "hermesd.sock").read_text() == "mine"


def test_closing_removes_only_our_own_socket(home: Path) -> None:
    waker = Waker()
    server = ControlServer(home, waker)
    (home / "hermesd.sock").unlink()
    other = socket.socket(socket.AF_UNIX)
    other.bind(str(home / "hermesd.sock"))
    server.close()
    waker.close()
    assert (home / "hermesd.sock").is_socket()
    other.close()


def test_the_socket_is_the_owners_alone_from_birth(home: Path, start: Callable[..., Daemon]) -> None:
    earlier = os.umask(0)
    try:
        start()
    finally:
        assert os.umask(earlier) == 0
    assert stat.S_IMODE((home / "hermesd.sock").stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_even_where_the_mode_would_let_them_in() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o755)
        daemon = Daemon(home, echo)
        (home / "hermesd.sock").chmod(0o666)
        program = (
            "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
            "print(s.makefile().readline())"
        )
        answer = subprocess.run(
            [sys.executable, "-c", program, str(home / "hermesd.sock")], capture_output=True, check=True, timeout=20
        )
        daemon.stop()
    assert json.loads(answer.stdout)["error"]["code"] == "forbidden"
    assert daemon.seen == []


def test_a_home_deeper_than_a_socket_address_works(home: Path, start: Callable[..., Daemon]) -> None:
    deep = home / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    start(home=deep)
    assert call(deep, "status", {}) == {"verb": "status"}


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\n",
        b"[]\n",
        b'{"id": "a", "verb": "note", "args": {}}\n',
        b'{"id": "../a", "verb": "note", "args": {}, "actor": "a@b"}\n',
        b'{"id": "a", "verb": "note", "args": [], "actor": "a@b"}\n',
        b'{"id": "a", "verb": "note", "args": {"x": NaN}, "actor": "a@b"}\n',
        b'{"id": "a", "verb": "note", "args": {}, "actor": "a\\u001b[2J"}\n',
        b'{"id": "a", "verb": "note", "args": {"x": "' + b"x" * 70_000 + b'"}, "actor": "a@b"}\n',
        b"x" * 200_000,
    ],
)
def test_what_is_no_request_is_refused_and_hung_up_on(home: Path, start: Callable[..., Daemon], sent: bytes) -> None:
    daemon = start()
    peer = connect(home)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        peer.sendall(sent)
    assert line(peer)["error"]["code"] == "bad-request"
    assert daemon.seen == []
    assert call(home, "status", {}) == {"verb": "status"}


def test_a_line_that_comes_byte_by_byte_is_one_request(home: Path, start: Callable[..., Daemon]) -> None:
    start()
    peer = connect(home)
    for byte in Request("a", "note", {"x": 1}, "a@b").line():
        peer.sendall(bytes([byte]))
    assert line(peer) == {"id": "a", "ok": True, "result": {"verb": "note", "x": 1}}


def test_silent_clients_make_room_for_those_who_ask(home: Path, start: Callable[..., Daemon]) -> None:
    start()
    silent = [connect(home) for _ in range(control.CONNECTIONS_MAX + 20)]
    assert call(home, "status", {}) == {"verb": "status"}
    assert silent[0].recv(1) == b""  # the one that was silent longest was hung up on


def test_callers_wait_their_turn_while_the_daemon_does_not_accept(home: Path) -> None:
    waker = Waker()
    server = ControlServer(home, waker)
    early = []
    try:
        while True:
            peer = socket.socket(socket.AF_UNIX)
            early.append(peer)
            peer.setblocking(False)
            peer.connect(str(home / "hermesd.sock"))
    except BlockingIOError:
        pass
    with pytest.raises(CallFailed) as failure:
        call(home, "status", {}, timeout_s=0.05)
    assert failure.value.code == "timeout"
    answers = []
    caller = threading.Thread(target=lambda: answers.append(call(home, "status", {})))
    caller.start()
    while not (asked := server.requests()):
        waker.wait()
    echo(asked[0])
    caller.join()
    assert answers == [{"verb": "status"}]
    server.close()
    waker.close()


def test_beyond_the_limit_of_waiting_clients_the_next_is_told(home: Path, start: Callable[..., Daemon]) -> None:
    held: list[Asked] = []
    full = threading.Event()

    def hold(asked: Asked) -> None:
        held.append(asked)
        if len(held) == control.CONNECTIONS_MAX:
            full.set()

    daemon = start(hold)
    waiting = [connect(home) for _ in range(control.CONNECTIONS_MAX)]
    for number, peer in enumerate(waiting):
        peer.sendall(Request(f"r{number}", "note", {}, "a@b").line())
    assert full.wait(10)
    with pytest.raises(CallFailed) as failure:
        call(home, "status", {})
    assert failure.value.code == "busy"
    assert len(daemon.seen) == control.CONNECTIONS_MAX


def test_a_large_answer_reaches_a_reader_and_a_client_that_does_not_read_is_dropped(
    home: Path, start: Callable[..., Daemon]
) -> None:
    daemon = start(lambda asked: asked.answer("x" * 3_000_000))
    assert len(call(home, "events", {})) == 3_000_000
    stalled = connect(home)
    stalled.sendall(Request("a", "events", {}, "a@b").line())
    assert stalled.recv(1) == b"{"
    # It has taken some of it once, then nothing more between one housekeeping and the next.
    for _ in range(3):
        daemon.waker.poke("housekeeping")
        assert len(call(home, "status", {})) == 3_000_000
    received = 1
    while data := stalled.recv(1 << 20):
        received += len(data)
    assert received < 3_000_000


def test_an_answer_beyond_all_bounds_becomes_a_refusal(home: Path, start: Callable[..., Daemon]) -> None:
    start(lambda asked: asked.answer("x" * (control.ANSWER_BYTES_MAX + 1)))
    with pytest.raises(CallFailed) as failure:
        call(home, "events", {})
    assert failure.value.code == "too-large"


def test_a_client_that_goes_before_its_answer_harms_nobody(home: Path, start: Callable[..., Daemon]) -> None:
    held: list[Asked] = []

    def answer_the_first_with_the_second(asked: Asked) -> None:
        held.append(asked)
        if len(held) == 2:
            held[0].answer("x" * 3_000_000)
            held[0].answer("twice is nothing to one who has gone")
            echo(held[1])

    daemon = start(answer_the_first_with_the_second)
    gone = connect(home)
    gone.sendall(Request("a", "note", {}, "a@b").line())
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone.close()
    assert call(home, "status", {}) == {"verb": "status"}
    assert len(daemon.seen) == 2


def test_a_daemon_that_does_not_answer_is_given_up_on(home: Path, start: Callable[..., Daemon]) -> None:
    start(lambda asked: None)
    with pytest.raises(CallFailed, match="no answer") as failure:
        call(home, "status", {}, timeout_s=0.05)
    assert failure.value.code == "timeout"


def test_a_daemon_that_stops_first_says_that_it_is_not_known_whether_it_acted(home: Path) -> None:
    arrived = threading.Event()
    daemon = Daemon(home, lambda asked: arrived.set())

    def stop() -> None:
        arrived.wait(10)
        daemon.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(CallFailed, match="hermesd events") as failure:
        call(home, "start", {"job": "a"})
    thread.join()
    assert failure.value.code == "gone"
    assert not (home / "hermesd.sock").exists()


def test_a_descriptor_shortage_neither_kills_nor_spins_the_server(home: Path) -> None:
    waker = Waker()
    server = ControlServer(home, waker)
    peer = connect(home)
    hog = []
    try:
        while True:
            hog.append(os.open(os.devnull, os.O_RDONLY))
            if len(hog) > 100_000:
                pytest.skip("there is no limit on open files here")
    except OSError:
        pass
    waker.wait()
    for fd in hog:
        os.close(fd)
    assert peer.recv(1) == b""
    later = connect(home)
    later.sendall(Request("a", "note", {}, "a@b").line())
    while not (asked := server.requests()):
        waker.wait()
    echo(asked[0])
    assert line(later)["ok"]
    server.close()
    waker.close()


def test_a_user_without_a_name_asks_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert new_request("ping", {}).actor == f"uid{os.geteuid()}@{socket.gethostname()}"


def test_requests_left_in_the_inbox_are_taken_in_order_until_they_are_done(home: Path) -> None:
    left = [new_request("note", {"n": n}) for n in range(5)]
    paths = [leave(home, request) for request in left]
    taken = take(home)
    assert [request for _, request in taken] == left
    assert [path for path, _ in taken] == paths
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in paths)
    done(paths[0])
    done(paths[0])
    assert [request for _, request in take(home)] == left[1:]  # taken again: the ledger knows their ids


@pytest.mark.parametrize("content", [b"", b"{}", b'{"id":"b","verb":"note","args":{},"actor":"a@b"}', b"\xff" * 80_000])
def test_what_is_no_request_in_the_inbox_is_set_aside_with_the_reason(home: Path, content: bytes) -> None:
    good = leave(home, new_request("note", {}))
    (home / "inbox" / "a.json").write_bytes(content)
    (home / "inbox" / ".half.new").write_bytes(b"{")
    (home / "inbox" / "link.json").symlink_to("/etc/passwd")
    os.mkfifo(home / "inbox" / "pipe.json")
    assert [path for path, _ in take(home)] == [good]
    rejected = home / "inbox" / "rejected"
    assert (rejected / "a.json").read_bytes() == content
    reasons = {path.name: path.read_text().strip() for path in rejected.glob("*.reason")}
    assert sorted(reasons) == ["a.json.reason", "link.json.reason", "pipe.json.reason"]
    assert all(reasons.values())
    assert [path for path, _ in take(home)] == [good]


def test_what_cannot_be_set_aside_is_passed_over(home: Path) -> None:
    good = leave(home, new_request("note", {}))
    (home / "inbox" / "bad.json").write_bytes(b"{}")
    (home / "inbox" / "folder.json").mkdir()
    (home / "inbox" / "rejected").write_text("in the way")
    before = len(os.listdir("/dev/fd"))
    assert [path for path, _ in take(home)] == [good]
    assert [path for path, _ in take(home)] == [good]
    assert len(os.listdir("/dev/fd")) == before


def test_a_request_that_would_be_rejected_cannot_be_left(home: Path) -> None:
    with pytest.raises(ValueError, match="verb"):
        leave(home, Request("a", "No Verb", {}, "a@b"))
    assert list((home / "inbox").iterdir()) == []
