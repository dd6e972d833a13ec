"""Git as a program: argv and no shell, bounded in time, deaf to prompts, and with nothing of a repository run that was
not asked for: no hooks, no file system monitor, no garbage collection, no submodules, no transports that are programs.

What git says is in English (LC_ALL=C), so that a failure can be classified by its words.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

OUTPUT_BYTES_MAX = 64 << 20
LINE_MAX = 300
_TERM_S = 2.0

_CONFIG = {
    "core.hooksPath": os.devnull,
    "core.fsync": "all",  # By itself git syncs neither branches nor single objects: a power cut leaves them empty.
    "core.fsmonitor": "false",
    "core.untrackedCache": "keep",
    "core.pager": "cat",
    "core.editor": "true",
    "core.askPass": "true",
    "core.alternateRefsCommand": "true",
    "core.commitGraph": "true",
    "gc.auto": "0",
    "gc.autoDetach": "false",
    "maintenance.auto": "false",
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    "fetch.prune": "false",
    "fetch.pruneTags": "false",
    "fetch.writeCommitGraph": "false",
    "protocol.ext.allow": "never",
    "credential.interactive": "false",
    "commit.gpgSign": "false",
    "rebase.autoStash": "false",
    "rebase.autoSquash": "false",
    "rebase.updateRefs": "false",
    "rerere.enabled": "false",
    "advice.detachedHead": "false",
    "advice.diverging": "false",
    "status.showUntrackedFiles": "normal",
    "status.renames": "false",
    "status.submoduleSummary": "false",
    "diff.renames": "false",
    "color.ui": "false",
    "log.showSignature": "false",
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "30",
}
_SSH = "ssh -oBatchMode=yes -oConnectTimeout=20 -oServerAliveInterval=15 -oServerAliveCountMax=2 -oControlPath=none"
_ENVIRONMENT = {
    "LC_ALL": "C",
    "LANGUAGE": "C",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "true",
    "SSH_ASKPASS": "true",
    "SSH_ASKPASS_REQUIRE": "never",
    "GCM_INTERACTIVE": "never",
    "GIT_EDITOR": "true",
    "GIT_SEQUENCE_EDITOR": "true",
    "GIT_PAGER": "cat",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_MERGE_AUTOEDIT": "no",
    "GIT_ADVICE": "0",
}
_KEPT = re.compile(r"GIT_SSL_|GIT_SSH|GIT_PROXY_|GIT_CONFIG_(GLOBAL|SYSTEM|NOSYSTEM)$|GIT_TRACE")
"""Of git's own variables those that say how a remote is reached; the others would point it elsewhere."""

NOBODY = {"name": "Hermes", "email": "hermesd@localhost"}


class Done(NamedTuple):
    code: int
    out: bytes
    err: str
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        return self.code == 0

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "replace").strip()

    @property
    def words(self) -> str:
        """What went wrong, in one line, without credentials."""
        return said(self.err, self.timed_out) or (f"git was ended by signal {-self.code}" if self.code < 0 else "")


class Unusable(Exception):
    """Why a repository cannot be looked at: a class, and words for people."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind, self.words = kind, words


class Git:
    """One repository, by the path it was named by. `deadline` is an instant of time.monotonic()."""

    def __init__(self, path: str, deadline: float, *, hooks: bool = False) -> None:
        self.path, self._deadline = path, deadline
        config = {name: value for name, value in _CONFIG.items() if not (hooks and name == "core.hooksPath")}
        self._flags = [word for name, value in config.items() for word in ("-c", f"{name}={value}")]
        self._env = environment(path)

    def left_s(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def __call__(
        self, *words: str, stdin: bytes = b"", within_s: float | None = None, env: Mapping[str, str] | None = None,
        at: str = "",
    ) -> Done:  # fmt: skip
        """Run `git ...`. `at` is another work tree than the repository's own."""
        argv = ["git", "-C", at or self.path, *self._flags, *words]
        seconds = self.left_s() if within_s is None else min(within_s, self.left_s())
        return run(argv, {**self._env, **(env or {})}, stdin, seconds)

    def converse(self, *words: str) -> subprocess.Popen[bytes]:
        """A git that is told what to do bit by bit."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            ["git", "-C", self.path, *self._flags, *words], stdin=pipe, stdout=pipe, stderr=pipe, env=self._env
        )

    def says(self, *words: str) -> bool:
        """Whether git says yes. One that was ended, or had no time, says neither: Unusable."""
        done = self(*words)
        if done.code < 0:
            raise Unusable("timeout" if done.timed_out else "lost", f"git {words[0]}: {done.words}")
        return done.ok

    def commit(self, name: str) -> str | None:
        """The commit of this name, if its object is here. Unusable if that was not to be learned."""
        done = self("rev-parse", "--quiet", "--verify", "--end-of-options", f"{name}^{{commit}}")
        if done.code < 0:
            raise Unusable("timeout" if done.timed_out else "lost", f"git rev-parse: {done.words}")
        return done.text if done.ok else None

    def has(self, commit: str) -> bool:
        """All of the commit is here, and not only the beginning of a fetch that was cut off."""
        return self.says("rev-list", "--objects", "--quiet", commit, "--not", "--all")

    def contains(self, descendant: str, ancestor: str) -> bool:
        return descendant == ancestor or self.says("merge-base", "--is-ancestor", ancestor, descendant)


def environment(path: str) -> dict[str, str]:
    """The environment for git: nothing that points it elsewhere, and no repository looked for above `path`."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or _KEPT.match(name)}
    ssh = {} if "GIT_SSH" in given or "GIT_SSH_COMMAND" in given else {"GIT_SSH_COMMAND": _SSH}
    parents = {os.path.dirname(os.path.abspath(path)), os.path.dirname(os.path.realpath(path))}
    ceiling = {"GIT_CEILING_DIRECTORIES": ":".join(sorted(parents))}
    names = {f"GIT_{who}_{what.upper()}": value for who in ("AUTHOR", "COMMITTER") for what, value in NOBODY.items()}
    return {**given, **ssh, **names, **_ENVIRONMENT, **ceiling}


def run(argv: Sequence[str], env: Mapping[str, str], stdin: bytes, seconds: float) -> Done:
    """Run to the end, or until the time is up: then it is asked to end, and made to. Its output goes to files, since a
    helper that stays behind may keep a pipe open for ever."""
    if seconds <= 0:
        return Done(-1, b"", "no time was left for it", timed_out=True)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        try:
            process = subprocess.Popen(argv, stdin=given, stdout=out, stderr=err, env=dict(env), process_group=0)
        except OSError as error:
            return Done(-1, b"", f"{argv[0]} could not be run: {error.strerror}")
        timed_out = False
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
            code = _end(process)
        out.seek(0)
        err.seek(0)
        said_all = err.read(1 << 16).decode("utf-8", "replace")
        return Done(code if not timed_out else -1, out.read(OUTPUT_BYTES_MAX), said_all, timed_out)


def _end(process: subprocess.Popen[bytes]) -> int:
    """SIGTERM, at which git takes its lock files away; then SIGKILL, to it and all it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_TERM_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+@")


def without_credentials(text: str) -> str:
    """`text`, with what stands before @ in each of its URLs taken out."""
    return _CREDENTIALS.sub("", text)


_CHAT = ("hint:", "Please make sure", "and the repository")


def said(text: str, timed_out: bool = False) -> str:
    """What git said, in one line that can be shown: the last that says what was fatal, or else the last."""
    lines = [" ".join(line.split()) for line in text.replace("\r", "\n").splitlines()]
    lines = [
        line for line in lines if line and not line.startswith(("hint:", "Please make sure", "and the repository"))
    ]
    fatal = [line for line in lines if line.startswith(("fatal:", "error:", "ssh:", "remote:"))]
    line = (fatal or lines or [""])[0 if fatal else -1]
    line = "".join(letter if letter.isprintable() else "?" for letter in without_credentials(line))
    if timed_out:
        line = f"it took too long and was ended{'; ' + line if line else ''}"
    return line[:LINE_MAX]


_FAILURES = (
    ("timeout", r"timed out|timeout|too slow|took too long"),
    ("dns", r"[Cc]ould not resolve|Name or service not known|nodename nor servname|Temporary failure in name"),
    ("tls", r"certificate|SSL|TLS|Host key verification failed|REMOTE HOST IDENTIFICATION"),
    ("rate-limited", r"\b429\b|rate limit|Too Many Requests|abuse detection"),
    (
        "auth",
        r"Authentication failed|could not read (Username|Password)|Permission denied|\b40[13]\b|Access denied"
        r"|terminal prompts disabled|Invalid credentials|not authorized|No supported authentication",
    ),
    (
        "not-found",
        r"not found|does not exist|does not appear to be a git repository|\b404\b|No such file or directory"
        r"|couldn't find remote ref|not a git repository|no such remote",
    ),
    (
        "refused",
        r"Connection refused|[Uu]nable to connect|Failed to connect|No route to host|Network is unreachable"
        r"|Connection reset",
    ),
    (
        "corrupt",
        r"corrupt|bad object|unable to read|index-pack|unpack-objects|pack has|inflate|bad band|protocol error"
        r"|bad line length|missing (blob|tree|commit)|did not send all|garbage|sha1 mismatch|early EOF"
        r"|unexpected disconnect|hash mismatch|fsck error|invalid (sha1|object)|zlib",
    ),
)
"""Class -> what git says then; the first that fits."""
_DISK = re.compile(
    r"No space left on device|Disk quota exceeded|File too large|write error|unable to write"
    rf"|died of signal {int(signal.SIGXFSZ)}"
)


def failure_of(done: Done) -> str:
    """Why a remote could not be used, as a class of `policies.upgrade.facts.Failure`."""
    if done.ok:
        return ""
    if done.timed_out:
        return "timeout"
    return next((name for name, pattern in _FAILURES if re.search(pattern, done.err)), "unknown")


def no_room(done: Done) -> bool:
    """The disk is full, or a file has grown as large as the job's limits let it."""
    return done.code == -signal.SIGXFSZ or bool(_DISK.search(done.err))


def is_name_of_remote(address: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", address) is not None


def address_of(git: Git, address: str) -> str:
    """The URL of a remote: itself, or what the repository's own configuration says of that name ("" if nothing)."""
    if is_name_of_remote(address):
        done = git("config", "--get", f"remote.{address}.url")
        return done.text if done.ok else ""
    return str(Path(address).expanduser()) if address.startswith("~/") else address
