"""Why a task could not start here, found before its slot is granted; nothing is run or imported to find out."""

from __future__ import annotations

import importlib
import json
import os
import re
import stat
import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder

from daemon.ports import CommandTask, InferenceTask, PythonTask, SpawnError
from daemon.workers.command import program_of


def preflight(task: CommandTask | PythonTask | InferenceTask, env: Mapping[str, str]) -> str | None:
    """What is wrong, where, and what to do; None if nothing was found to be. `env` is the job's whole environment."""
    if isinstance(task, CommandTask):
        return _folder(task.cwd) or _program(task, env) or _script(task) or _input(task)
    if isinstance(task, PythonTask):
        return _folder(task.cwd) or _module(task)
    return _model(task.model) or _lines(task.lines)


def _folder(path: str) -> str | None:
    if not os.path.isdir(path):
        what = "is not a folder" if os.path.exists(path) else "does not exist"
        return f"working folder {path} {what}: make it, or correct `cwd`"
    if not os.access(path, os.X_OK):
        return f"working folder {path} may not be entered by this user: check its permissions"
    return None


def _program(task: CommandTask, env: Mapping[str, str]) -> str | None:
    if not task.argv:
        return "`argv` is empty: write the program and its arguments"
    try:
        path = os.path.normpath(os.path.join(task.cwd, program_of(task.argv[0], env, task.cwd)))
    except SpawnError as error:
        return str(error)
    if not os.path.exists(path):
        return f"program {path} does not exist: correct `argv`, or put it there"
    if not os.path.isfile(path):
        return f"program {path} is not a file: correct `argv`"
    if not os.access(path, os.X_OK):
        return f"program {path} is not executable: chmod +x {path}, or name its interpreter first in `argv`"
    return _first_line(path)


def _first_line(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            line = file.read(256).split(b"\n", 1)[0]
    except OSError:
        return None  # A program that may be run and not read is a program.
    words = line[2:].strip(b" \t").split(maxsplit=1) if line.startswith(b"#!") else []
    if words and line.endswith(b"\r"):
        return f"program {path} has DOS line ends, so its interpreter is not found: convert it to Unix line ends"
    if words and not os.path.exists(words[0]):
        return f"program {path} names the interpreter {os.fsdecode(words[0])}, which does not exist: correct that line"
    return None


# What an interpreter's options mean: letters after which there is no script, and options that take the next word.
_INTERPRETERS: list[tuple[re.Pattern[str], str, frozenset[str]]] = [
    (re.compile(r"(ba|da|k|z|a)?sh"), "cs", frozenset({"-o", "+o", "-O", "+O", "--rcfile", "--init-file"})),
    (re.compile(r"(python|pypy)[\d.]*"), "cm", frozenset({"-W", "-X", "--check-hash-based-pycs"})),
    (re.compile(r"node(js)?"), "ep", frozenset({"-r", "--require", "--import", "-C", "--conditions"})),
    (re.compile(r"perl[\d.]*"), "eE", frozenset({"-I"})),
    (re.compile(r"ruby[\d.]*"), "e", frozenset({"-I", "-r", "-C", "-E"})),
]


def _script(task: CommandTask) -> str | None:
    name = os.path.basename(task.argv[0])
    for pattern, codes, valued in _INTERPRETERS:
        if pattern.fullmatch(name):
            script = _first_operand(task.argv[1:], codes, valued)
            return script and _readable(os.path.join(task.cwd, script), name)
    return None


def _first_operand(words: tuple[str, ...], codes: str, valued: frozenset[str]) -> str | None:
    """The script among an interpreter's arguments; None if there is none, or no telling."""
    rest = iter(words)
    for word in rest:
        if word == "--":
            return next(rest, None)
        if not word.startswith(("-", "+")):
            return word
        if word in valued:
            next(rest, None)
        elif word == "-" or (word.startswith("--") and "=" not in word):
            return None  # Standard input, or a long option that may take the next word.
        elif not word.startswith("--") and any(code in word for code in codes):
            return None
    return None


def _readable(path: str, interpreter: str) -> str | None:
    if not os.path.exists(path):
        return f"script {path} for {interpreter} does not exist: correct `argv` or `cwd`"
    if not os.access(path, os.R_OK):
        return f"script {path} for {interpreter} may not be read by this user: check its permissions"
    if os.path.isdir(path) and not os.path.exists(f"{path}/__main__.py"):
        return f"script {path} for {interpreter} is a folder: name the file in it"
    return None


def _input(task: CommandTask) -> str | None:
    if task.stdin is None:
        return None
    path = os.path.join(task.cwd, task.stdin)
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except OSError:
        return f"standard input {path} does not exist: correct `stdin`, or let an earlier job make it"
    if kind in (stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK) or not os.access(path, os.R_OK):
        return f"standard input {path} may not be read: check that it is a file, and its permissions"
    return None


def _module(task: PythonTask) -> str | None:
    module, colon, function = task.call.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
        return f"call {task.call!r} is not of the form module:function"
    top = module.partition(".")[0]
    # Where most modules are; the importer itself reads whole folders to find one.
    if any(os.path.isfile(f"{folder}/{top}.py") for folder in (*task.path, task.cwd)):
        return None
    importlib.invalidate_caches()
    if top in sys.builtin_module_names or PathFinder.find_spec(top, [*task.path, task.cwd, *sys.path]) is not None:
        return None
    return (
        f"module {top!r} of call {task.call!r} is not in {', '.join(dict.fromkeys((*task.path, task.cwd)))}, nor "
        "installed beside Hermes: correct `call`, or add its folder to `path`"
    )


_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def _model(folder: str) -> str | None:
    if not os.path.isdir(folder):
        return f"model folder {folder} does not exist: correct `model`, or put the model there"
    try:
        names = set(os.listdir(folder))
    except OSError as error:
        return f"model folder {folder}: {error.strerror}: check its permissions"
    weights = {name for name in names if name.endswith(".safetensors")}
    needed = {"config.json", *weights} | (names & set(_TOKENIZERS))
    if "config.json" not in names:
        return f"model folder {folder} has no config.json: it is not a Hugging Face model folder, or not a whole one"
    if not weights:
        return f"model folder {folder} has no *.safetensors: convert its weights, or download them"
    if names.isdisjoint(_TOKENIZERS):
        return f"model folder {folder} has no tokenizer ({', '.join(_TOKENIZERS)}): copy it from the model's source"
    if "model.safetensors.index.json" in names:
        try:
            with open(f"{folder}/model.safetensors.index.json", encoding="utf-8") as file:
                needed |= set(json.load(file)["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            return f"{folder}/model.safetensors.index.json cannot be read ({error}): download the model again"
    for name in sorted(needed):
        if not os.path.isfile(f"{folder}/{name}"):
            return f"model folder {folder} lacks {name}: the model is not whole, download it again"
        if not os.access(f"{folder}/{name}", os.R_OK):
            return f"{folder}/{name} may not be read by this user: check its permissions"
    return None


def _lines(paths: tuple[str, ...]) -> str | None:
    if not paths or any(os.path.isfile(path) and os.access(path, os.R_OK) for path in paths):
        return None
    return f"none of `lines` can be read ({', '.join(paths)}): name a file that exists and that this user may read"
