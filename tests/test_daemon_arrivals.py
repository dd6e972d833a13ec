"""Files that start jobs: what a look finds, and a real daemon with real files, killed and started again."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from cli_shell import Foreground, answer, hermesd, make_home

from daemon.arrivals import CHANGED, LOOKED, Lookout, search
from daemon.home import Home
from daemon.order import Surroundings, Unfillable, task_of
from daemon.serve import Daemon
from daemon.system import OsDisk, SystemClock
from daemon.wake import Waker
from ledger.reader import read
from policies.arrival import Look
from policies.job import parse_job
from policies.schedule import Files
from state.graph import Graph

Json = Any


def files(path: Path | str, settle_ms: int = 0) -> Files:
    return Files(str(path), settle_ms)


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def names(folder: Path, pattern: str) -> set[str]:
    found = search(Path("/nowhere"), files(folder / pattern))
    return {str(Path(path).relative_to(folder)) for path in found.files}


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("*.txt", {"a.txt", "b.txt"}),
        ("a.txt", {"a.txt"}),
        ("[ab].*", {"a.txt", "b.txt"}),
        ("*", {"a.txt", "b.txt", "c.pdf"}),
        (".*", {".hidden", ".a.txt.swp"}),
        ("*.bak", {"d.bak"}),
        ("**/*.txt", {"a.txt", "b.txt", "in/a.txt", "in/deep/a.txt"}),
        ("**", {"a.txt", "b.txt", "c.pdf", "in/a.txt", "in/deep/a.txt", "out/c.pdf"}),
        ("*/*.txt", {"in/a.txt"}),
        ("**/deep/*", {"in/deep/a.txt"}),
        ("**/in/**/a.txt", {"in/a.txt", "in/deep/a.txt"}),
        (".kept/*", {".kept/a.txt"}),
    ],
)
def test_a_pattern_matches_as_in_a_shell(tmp_path: Path, pattern: str, matched: set[str]) -> None:
    put(tmp_path, "a.txt", "b.txt", "c.pdf", "d.bak", "e.txt~", ".hidden", ".a.txt.swp")
    put(tmp_path, "in/a.txt", "in/deep/a.txt", "out/c.pdf", ".kept/a.txt")
    assert names(tmp_path, pattern) == matched


def test_only_regular_files_count_and_links_lead_nowhere(tmp_path: Path) -> None:
    put(tmp_path, "in/real.txt", "elsewhere/secret.txt")
    (tmp_path / "in" / "folder.txt").mkdir()
    (tmp_path / "in" / "link.txt").symlink_to(tmp_path / "elsewhere" / "secret.txt")
    (tmp_path / "in" / "links").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "in" / "pipe.txt")
    assert names(tmp_path, "in/**/*.txt") == {"in/real.txt"}
    (tmp_path / "inbox").symlink_to(tmp_path / "in")
    assert names(tmp_path, "inbox/*.txt") == {"inbox/real.txt"}


def test_a_relative_pattern_starts_in_the_users_home(tmp_path: Path) -> None:
    put(tmp_path, "inbox/a.txt", "b.txt")
    for path, found in (("inbox/*", "inbox/a.txt"), ("~/inbox/*", "inbox/a.txt"), ("~/*.txt", "b.txt"), ("*", "b.txt")):
        assert list(search(tmp_path, files(path)).files) == [str(tmp_path / found)]


def test_names_that_are_no_text_are_passed_over_and_told_of(tmp_path: Path) -> None:
    put(tmp_path, "new\nline.txt", "a space.txt", "$(touch x).txt", "-rf.txt", "ü.txt")
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    found = search(tmp_path, files(tmp_path / "*.txt"))
    assert len(found.files) == 5
    assert "caf\\udce9.txt' is no UTF-8 text" in found.problem
    orjson.dumps(found.problem)


def test_a_folder_that_is_not_there_is_waited_for_from_the_one_above(tmp_path: Path) -> None:
    found = search(tmp_path, files(tmp_path / "a" / "b" / "*.txt"))
    assert (found.files, found.unread, found.nearest) == ({}, (str(tmp_path / "a/b"),), str(tmp_path))
    assert found.problem == f"there is no folder {tmp_path}/a/b: the job waits for it"


def test_a_folder_that_cannot_be_read_hides_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "turns").symlink_to(tmp_path / "turns")
    found = search(tmp_path, files(tmp_path / "turns" / "*.txt"))
    assert found.unread == (str(tmp_path / "turns"),)
    assert found.problem.startswith(f"cannot read {tmp_path}/turns: ")


def test_a_look_is_broken_off_where_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.arrivals.FILES_MAX", 3)
    put(tmp_path, *(f"{n}.txt" for n in range(9)))
    found = search(tmp_path, files(tmp_path / "*"))
    assert len(found.files) == 4
    assert found.unread == ("/",)


def test_ten_thousand_files_are_looked_at_while_the_loop_goes_on(tmp_path: Path) -> None:
    for number in range(10_000):
        os.close(os.open(tmp_path / f"{number}.txt", os.O_CREAT))
    waker = Waker()
    lookout = Lookout(tmp_path, SystemClock(), waker)
    try:
        lookout.look({"a": files(tmp_path / "*.txt")})
        assert lookout.found() == [], "it returned before anything was found"
        (look,) = _looks(waker, lookout)
        assert len(look.files) == 10_000
    finally:
        lookout.close()
        waker.close()


def _looks(waker: Waker, lookout: Lookout) -> list[Look]:
    while True:
        waker.wait()
        if LOOKED in waker.reasons():
            return lookout.found()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[tuple[Waker, Lookout]]:
    waker = Waker()
    lookout = Lookout(tmp_path, SystemClock(), waker)
    yield waker, lookout
    lookout.close()
    waker.close()


def _told(waker: Waker, within_s: float = 5.0) -> bool:
    """Whether we are told of a change."""
    give_up = threading.Timer(within_s, waker.poke, ("enough",))
    give_up.start()
    try:
        while True:
            waker.wait()
            reasons = waker.reasons()
            if CHANGED in reasons:
                return True
            if "enough" in reasons:
                return False
    finally:
        give_up.cancel()


@pytest.mark.parametrize("where", ["new/*.txt", "new/**/*.txt"])
def test_we_are_told_of_a_folder_and_a_file_that_come(door: tuple[Waker, Lookout], tmp_path: Path, where: str) -> None:
    waker, lookout = door
    wanted = {"a": files(tmp_path / where)}
    lookout.look(wanted)
    assert "no folder" in _looks(waker, lookout)[0].problem
    assert _told(waker)  # It is watched from now on, and looked at once more.
    lookout.look(wanted)
    _looks(waker, lookout)
    (tmp_path / "new").mkdir()
    assert _told(waker)
    lookout.look(wanted)
    assert _looks(waker, lookout)[0].problem == ""
    assert _told(waker)
    lookout.look(wanted)
    _looks(waker, lookout)
    put(tmp_path / "new", "deep/a.txt" if "**" in where else "a.txt")
    assert _told(waker)
    lookout.look(wanted)
    assert len(_looks(waker, lookout)[0].files) == 1


def test_a_folder_that_no_job_waits_at_is_not_watched_any_more(door: tuple[Waker, Lookout], tmp_path: Path) -> None:
    waker, lookout = door
    lookout.look({"a": files(tmp_path / "*"), "b": files(tmp_path / "**/x")})
    _looks(waker, lookout)
    assert _told(waker)
    assert set(waker._folders) == {(str(tmp_path), CHANGED)}
    lookout.look({})
    assert waker._folders == {}
    put(tmp_path, "x")
    assert not _told(waker, 0.5)


def test_a_look_that_does_not_end_is_told_of_and_loses_nothing(
    door: tuple[Waker, Lookout], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waker, lookout = door
    back = threading.Event()

    def away(user_home: Path, wanted: Files) -> Any:
        back.wait(20)
        return search(user_home, wanted)

    monkeypatch.setattr("daemon.arrivals.search", away)
    monkeypatch.setattr("daemon.arrivals._NO_ANSWER_S", 0.0)
    lookout.look({"a": files(tmp_path / "*")})
    while not (looks := lookout.found()):
        pass
    assert "does not come to an end" in looks[0].problem
    assert looks[0].unread == ("/",)
    back.set()
    assert _looks(waker, lookout)[-1].problem == ""


# A file that is dropped is worked on by a shell that appends its path, and a NUL, to the witness.
def _task(spec: Json, file: str) -> Any:
    around = Surroundings(Path("/home"), Path("/me"), {}, {})
    job = parse_job({"name": "a", "schedule": {"on": {"path": "in/*"}}} | spec)
    return task_of(around, Graph(), "a.run", 1, job.canonical(), "", file)


def test_placeholders_stand_for_the_file_wherever_a_task_is_told_of_it() -> None:
    hostile = "/in/$(x) {{ run.folder }}\n-y"
    argv = {"kind": "command", "argv": ["x", "{{ file.path }}", "n={{ file.name }}"], "stdin": "{{ file.path }}"}
    task, env, _ = _task(argv | {"env": {"F": "{{ file.name }}"}}, hostile)
    assert task.argv == ("x", hostile, "n=$(x) {{ run.folder }}\n-y")
    assert (task.stdin, env["F"], env["HERMESD_FILE"]) == (hostile, "$(x) {{ run.folder }}\n-y", hostile)
    task, _, _ = _task({"kind": "python", "call": "m:f", "kwargs": {"deep": [{"path": "{{ file.path }}"}]}}, hostile)
    assert task.kwargs == {"deep": [{"path": hostile}]}
    model = {"kind": "inference", "model": "/m", "prompt": "of {{ file.name }}: {{ line }}"}
    task, _, _ = _task(model | {"lines": {"paths": ["{{ file.path }}"]}}, "/in/x")
    assert (task.prompt, task.lines) == ("of x: {{ line }}", ("/in/x",))


def test_a_run_without_a_file_says_how_to_give_it_one() -> None:
    with pytest.raises(Unfillable, match="--file PATH"):
        _task({"kind": "command", "argv": ["x", "{{ file.path }}"]}, "")


SAY = """cat "$HERMESD_FILE" >>"$WITNESS.text"; printf '%s\\0' "$HERMESD_FILE" >>"$WITNESS\""""


def _until(holds: Callable[[], bool], otherwise: Callable[[], str] = lambda: "") -> None:
    give_up_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < give_up_s, otherwise()
        time.sleep(0.02)  # It is another process that we wait for.


class Drop:
    """A home with a job that files start, and the folder they are dropped into."""

    def __init__(self, path: Path, *, pattern: str = "*", settle: str = "100ms", overlap: str = "skip") -> None:
        self.folder, self.witness = path / "in", path / "witness"
        self.folder.mkdir()
        job = {
            "name": "drop", "kind": "command", "shell": SAY, "env": {"WITNESS": str(self.witness)},
            "schedule": {"on": {"path": f"{self.folder}/{pattern}", "settle": settle}}, "overlap": overlap,
        }  # fmt: skip
        self.home = make_home(path / "home", drop=orjson.dumps(job).decode())

    def worked_on(self) -> Counter[str]:
        said = self.witness.read_bytes() if self.witness.exists() else b""
        return Counter(os.fsdecode(path).removeprefix(f"{self.folder}/") for path in said.split(b"\0")[:-1])

    def until(self, holds: Callable[[], bool], what: str) -> None:
        _until(holds, lambda: f"not {what}: {self.worked_on()}")

    def view(self) -> Json:
        (row,) = orjson.loads((self.home / "state" / "jobs.json").read_bytes())["jobs"]
        return row.get("files", {"there": 0, "waiting": 0, "problem": ""})

    def decided(self) -> Counter[str]:
        """By the ledger: how many decisions about each path began a run, or ended its waiting."""
        runs: dict[str, str] = {}
        for record in read(OsDisk(str(self.home))):
            for one in record.data["decisions"] if record.type == "plan.decided" else ():
                runs.setdefault(one["run"], one["file"].removeprefix(f"{self.folder}/"))
        return Counter(runs.values())


def test_dropped_files_are_worked_on_once_each_whatever_they_are_called(tmp_path: Path) -> None:
    drop = Drop(tmp_path)
    hostile = ["plain", "a space", "new\nline", "$(touch hacked)", "`touch hacked`", "'; touch hacked; '", "-n", "ü %s"]
    put(drop.folder, "there before")
    with Foreground(drop.home) as daemon:
        put(drop.folder, *hostile)
        (drop.folder / os.fsdecode(b"caf\xe9")).write_text("x")
        expected = Counter([*hostile, "there before"])
        drop.until(lambda: drop.worked_on() == expected, "all worked on")
        drop.until(lambda: "no UTF-8 text" in drop.view()["problem"], "told of the odd name")
        status = answer("status", "--home", drop.home, code=1)
        assert any("no UTF-8 text" in problem for problem in status["problems"])
        daemon.kill()
    with Foreground(drop.home):
        put(drop.folder, "one more")
        drop.until(lambda: drop.worked_on()["one more"] == 1, "the new one worked on")
    assert drop.worked_on() == expected + Counter(["one more"])
    assert drop.decided() == drop.worked_on()
    assert not list(tmp_path.rglob("hacked"))


def test_a_file_written_slowly_is_taken_whole_and_one_renamed_into_place_as_well(tmp_path: Path) -> None:
    drop = Drop(tmp_path, pattern="*.txt", settle="2500ms")
    with Foreground(drop.home):
        with (drop.folder / "slow.txt").open("w") as file:
            for part in range(8):
                file.write(f"part {part}\n")
                file.flush()
                time.sleep(0.4)  # The writer's own pace, far quicker than what counts as settled.
                assert drop.worked_on() == Counter()
        drop.until(lambda: drop.worked_on()["slow.txt"] == 1, "the slow one taken")
        assert (tmp_path / "witness.text").read_text().count("part") == 8
        put(drop.folder, "beside.part")
        (drop.folder / "beside.part").rename(drop.folder / "beside.txt")
        drop.until(lambda: drop.worked_on()["beside.txt"] == 1, "the renamed one taken")
        put(drop.folder, "slow.txt")
        drop.until(lambda: drop.worked_on()["slow.txt"] == 2, "the same name taken again")
    assert drop.worked_on() == {"slow.txt": 2, "beside.txt": 1}


def test_two_thousand_files_wait_through_a_kill_and_many_gone_ones_are_one_decision(tmp_path: Path) -> None:
    drop = Drop(tmp_path)
    with Foreground(drop.home) as daemon:
        hermesd("pause", "drop", "--home", drop.home)
        put(drop.folder, *(f"{n}" for n in range(2000)))
        drop.until(lambda: drop.view()["waiting"] == 2000, "all waiting")
        daemon.kill()
    with Foreground(drop.home):
        assert drop.view()["waiting"] == 2000
        for number in range(1, 2000):
            (drop.folder / f"{number}").unlink()
        drop.until(lambda: drop.view()["there"] == 1, "seen to be gone")
        hermesd("resume", "drop", "--home", drop.home)
        drop.until(lambda: drop.worked_on() == {"0": 1}, "the last one worked on")
    skipped = [
        one
        for record in read(OsDisk(str(drop.home)))
        for one in (record.data["decisions"] if record.type == "plan.decided" else ())
        if one["rule"] == "on.gone"
    ]
    assert sum(one.get("count", 1) for one in skipped) == 1999
    assert len(skipped) < 100


@pytest.mark.parametrize("overlap", ["skip", "allow_all"])
def test_each_file_once_though_the_daemon_is_killed_again_and_again(tmp_path: Path, overlap: str) -> None:
    seed = time.time_ns() % 1_000_000
    print("seed", seed)
    chance = random.Random(seed)
    drop = Drop(tmp_path, settle="50ms", overlap=overlap)
    dropped = 0
    for _ in range(6):
        with Foreground(drop.home) as daemon:
            for _ in range(chance.randint(1, 5)):
                for _ in range(chance.randint(1, 4)):
                    put(drop.folder, f"{dropped}")
                    dropped += 1
                time.sleep(chance.random() / 10)
            time.sleep(chance.random() / 3)
            daemon.kill()
    expected = Counter(f"{n}" for n in range(dropped))
    with Foreground(drop.home):
        drop.until(lambda: len(drop.worked_on()) == dropped, "all worked on")
        drop.until(lambda: drop.view()["waiting"] == 0, "nothing left")
    assert drop.worked_on() == expected
    assert drop.decided() == expected


def test_the_steps_of_an_agent_all_know_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    tell = {"kind": "command", "argv": ["sh", "-c", 'printf "%s %s" "$1" "$HERMESD_FILE"', "x", "{{ file.name }}"]}
    job = {
        "name": "drop", "kind": "agent", "schedule": {"on": {"path": f"{folder}/*", "settle": "0"}},
        "steps": [{"name": "one", **tell}, {"name": "two", "after": ["one"], **tell}],
    }  # fmt: skip
    home = make_home(tmp_path / "home", drop=orjson.dumps(job).decode())
    put(folder, "a b")
    with Foreground(home):
        _until(lambda: _states(home) == ["succeeded"])
    printed = sorted(path.read_text() for path in home.glob("runs/*/1/stdout.log"))
    assert printed == [f"a b {folder}/a b"] * 2


def _states(home: Path) -> list[str]:
    runs = orjson.loads((home / "state" / "runs.json").read_bytes())["runs"]
    return [run["state"] for run in runs if "parent" not in run]


def test_a_look_for_a_pattern_that_has_changed_meanwhile_tells_nothing(tmp_path: Path) -> None:
    put(tmp_path, "in/a.txt", "out/a.txt")
    home = Home(tmp_path / "home")
    home.make()
    text = "{name: a, kind: command, argv: [x], schedule: {on: {path: '%s', settle: 0}}, enabled: true}\n"
    (home.jobs / "a.yaml").write_text(text % (tmp_path / "out/*"))
    daemon = Daemon(home)
    try:
        daemon.loop.begin()
        late = Look("a", files(tmp_path / "in/*"), SystemClock().now(), {str(tmp_path / "in/a.txt"): "1-1-1"}, (), "")
        daemon._lookout.found = lambda: [late]  # type: ignore[method-assign]
        daemon.loop.tick(frozenset({"looked"}))
        assert daemon.loop.graph.arrivals == {}
    finally:
        daemon.close()


def test_a_job_is_started_by_hand_for_a_file(tmp_path: Path) -> None:
    drop = Drop(tmp_path, pattern="*.txt")
    put(tmp_path, "elsewhere")
    with Foreground(drop.home):
        said = hermesd("start", "drop", "--home", drop.home, code=2).stderr
        assert "--file" in said
        hermesd("start", "drop", "--wait", "--file", tmp_path / "elsewhere", "--home", drop.home)
    assert drop.worked_on() == {str(tmp_path / "elsewhere"): 1}
    run = answer("runs", "list", "--home", drop.home)[0]
    assert run["file"] == str(tmp_path / "elsewhere")


def test_a_job_says_what_it_waits_for(tmp_path: Path) -> None:
    drop = Drop(tmp_path, pattern="sub/*.txt")
    with Foreground(drop.home):
        drop.until(lambda: "no folder" in drop.view()["problem"], "told that the folder is missing")
        put(drop.folder, "sub/a.txt")
        drop.until(lambda: drop.worked_on() == {"sub/a.txt": 1}, "found in the new folder")
        drop.until(lambda: drop.view() == {"there": 1, "waiting": 0, "problem": ""}, "told that it is there")
    assert "starts whenever a file arrives" in hermesd("next", "drop", "--home", drop.home).stdout
    assert f"on {drop.folder}/sub/*.txt" in hermesd("jobs", "list", "--home", drop.home).stdout
