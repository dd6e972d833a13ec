"""The house keeps its laws: imports point down, pure rooms have no doors of their own, the daemon stays light."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"ledger": 0, "state": 1, "policies": 2, "daemon": 3, "simulations": 4}
PURE = ("ledger", "state", "policies")
STANDALONE = {ROOT / "ledger" / "standalone.py", ROOT / "ledger" / "standalone_seals.py"}
"""The one file of a pure room that reads the disk: it shares no code with us, so that it can be held against us."""

ABOVE_THE_ROOMS = {ROOT / "daemon" / "cli" / "grammar.py": "simulations"}
"""The list of the command line's verbs stands above all rooms: it names the file that a verb is imported from when it
is called. `simulate`, `whatif` and `bisect` are the simulation's, which the daemon itself must never need."""

DOORS = {
    "asyncio", "ctypes", "fcntl", "getpass", "glob", "http", "io", "mmap", "multiprocessing", "os", "pathlib",
    "platform", "psutil", "random", "secrets", "select", "selectors", "shutil", "socket", "ssl", "subprocess", "sys",
    "tempfile", "threading", "time", "urllib", "uuid", "filelock", "watchdog", "apscheduler", "tzlocal",
}  # fmt: skip
READS_THE_WORLD = {("datetime", "now"), ("datetime", "today"), ("datetime", "utcnow"), ("date", "today")}


def sources(room: str) -> Iterator[Path]:
    return (path for path in sorted((ROOT / room).rglob("*.py")) if path not in STANDALONE)


def imported(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.split(".")[0]


@pytest.mark.parametrize("room", FLOORS)
def test_imports_point_down(room: str) -> None:
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(room)
        for line, name in imported(path)
        if FLOORS.get(name, -1) > FLOORS[room] and ABOVE_THE_ROOMS.get(path) != name
    ]
    assert upward == []


@pytest.mark.parametrize("room", PURE)
def test_a_pure_room_imports_no_door(room: str) -> None:
    doors = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(room)
        for line, name in imported(path)
        if name in DOORS
    ]
    assert doors == []


@pytest.mark.parametrize("room", PURE)
def test_a_pure_room_opens_nothing_and_reads_no_clock(room: str) -> None:
    found = []
    for path in sources(room):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            function = node.func
            if isinstance(function, ast.Name) and function.id in ("open", "input", "print", "hash", "__import__"):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} calls {function.id}")
            if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                call = (function.value.id, function.attr)
                if call in READS_THE_WORLD:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} calls {'.'.join(call)}")
    assert found == []


def test_the_daemons_process_imports_no_model_library() -> None:
    program = (
        "import sys, daemon.serve, daemon.cli; "
        "print([m for m in ('torch', 'transformers', 'bitsandbytes', 'numpy', 'simulations') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = ast.literal_eval(said.stdout)
    assert not {"torch", "transformers", "bitsandbytes", "numpy", "simulations"} & set(loaded)


HEAVY = {
    "typer", "click", "rich", "pydantic", "pydantic_core", "yaml", "jsonschema", "apscheduler", "tzlocal",
    "asyncio", "ssl", "concurrent", "multiprocessing", "http", "email", "zipfile", "importlib.metadata",
}  # fmt: skip
"""What a daemon does not carry along: each takes from half a megabyte to ten, for as long as it lives. Other processes
read what people write (`daemon.written`), speak HTTP and run models."""


def test_a_daemon_that_has_started_and_run_a_command_holds_none_of_the_heavy_modules(tmp_path: Path) -> None:
    home = tmp_path / "home"
    program = (
        "import sys; from pathlib import Path; import daemon.cli.process\n"
        "from daemon.home import Home; from daemon.serve import Daemon\n"
        "home = Home(Path(sys.argv[1])); home.make()\n"
        "(home.policies / 'scheduling.yaml').write_text('max_running: 3')\n"
        "job = '{name: a, kind: command, argv: [echo], schedule: {every: 1s}}'\n"
        "(home.jobs / 'a.yaml').write_text(job)\n"
        "daemon = Daemon(home); tick = daemon.loop.tick\n"
        "def turn(reasons=frozenset()):\n"
        "    again = tick(reasons)\n"
        "    if daemon.loop.graph.here.counts.get('succeeded'): daemon.waker.poke('stop')\n"
        "    return again\n"
        "daemon.loop.tick = turn\n"
        "daemon.run(); daemon.close()\n"
        "print(daemon.loop.graph.here.counts, sorted(sys.modules), sep='\\n')\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(home)], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    )
    counts, modules = map(ast.literal_eval, said.stdout.splitlines())
    assert counts["succeeded"] >= 1
    assert sorted(HEAVY & set(modules)) == []


def test_no_other_distribution_owns_the_name_of_a_room() -> None:
    owners = importlib.metadata.packages_distributions()
    taken = {room: owners[room] for room in FLOORS if set(owners.get(room, [])) - {"hermesd"}}
    assert taken == {}, f"these names belong to others in this environment, use one of its own: {taken}"


def test_every_dependency_is_pinned_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [r for extra in project["optional-dependencies"].values() for r in extra]
    names = {requirement.split(";")[0].split(">")[0].split("[")[0].strip().lower() for requirement in wanted}
    pinned = [
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    ]
    assert names <= set(pinned)
    assert len(pinned) == len(set(pinned))


def test_nothing_in_the_tree_names_a_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, cwd=ROOT, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    # The superuser's home is the same everywhere, and stands in log lines that the model learns from.
    paths = {f"{ROOT}/", f"{Path.home()}/"} - {"/root/", "//"}
    named = [
        name
        for name in listed.stdout.decode().split("\0")
        if name.endswith((".py", ".md", ".toml", ".yaml", ".txt", "Makefile"))
        and (ROOT / name).exists()
        and any(path in (ROOT / name).read_text(errors="replace") for path in paths)
    ]
    assert named == []
