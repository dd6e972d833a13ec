"""A person at a shell: the real command as a process, and a daemon in another window."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8", "TZ": "UTC"}


def hermesd(*words: str | Path, code: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command's end, which must be `code`; None is any."""
    done = subprocess.run(
        [sys.executable, "-m", "daemon.cli", *map(str, words)],
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    fits = code is None or done.returncode == code
    assert fits, f"{words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def answer(*words: str | Path, code: int = 0, **environment: str) -> Any:
    """What it answers to a program."""
    return json.loads(hermesd(*words, "--json", code=code, **environment).stdout)


def make_home(path: Path, **files: str) -> Path:
    """A home with these job files (name -> text)."""
    hermesd("init", "--home", path)
    for name, text in files.items():
        (path / "jobs" / f"{name}.yaml").write_text(text)
    return path


class Foreground:
    """`hermesd run`, from ready to gone."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-m", "daemon.cli", "--home", str(home), "run"],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()
        assert "is ready" in self.ready, self.process.communicate()[1]

    def __enter__(self) -> Foreground:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.interrupt()

    def interrupt(self) -> tuple[int, str]:
        """Ctrl-C: the exit code, and what it said."""
        self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)
