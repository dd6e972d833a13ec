"""Job files: every job of a folder, and every problem with its file, line, column and field.

A broken file breaks its own jobs and no others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from daemon.document import FieldPath, Marks, Unreadable, read_document
from ledger.record import is_text
from policies import adoption, catalog
from policies.fault import Fault
from policies.job import InvalidJob, Job, parse_job

Json = Any

SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Problem:
    """`line` and `column` count from 1; 0 means the file as a whole. `job` is the name, where it could be read."""

    file: str
    line: int
    column: int
    field: str
    message: str
    advice: str
    job: str | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        where = f"{self.job}: " if self.job else ""
        where += f"{self.field}: " if self.field else ""
        return f"{place}: {where}{self.message}" + (f". {self.advice}" if self.advice else "")


@dataclass(slots=True)
class Loaded:
    """`jobs` are sound, alone and together; a job with a problem is not among them."""

    jobs: dict[str, tuple[Job, Path]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


class _Found(NamedTuple):
    job: Job
    file: Path
    marks: Marks
    root: FieldPath


def is_job_file(name: str) -> bool:
    """Whether a file of this name is meant to hold jobs; editors' temporary files are not."""
    return name.lower().endswith(SUFFIXES) and not name.startswith((".", "#"))


def load(folder: Path, default_zone: str) -> Loaded:
    """Every job of the folder. `default_zone` is written into schedules that name no zone."""
    loaded = Loaded()
    try:
        names = sorted(name for name in os.listdir(folder) if is_job_file(name))
    except OSError as error:
        what = f"the folder of job files cannot be read: {error.strerror}"
        loaded.problems.append(Problem(str(folder), 0, 0, "", what, "Create it, or correct its owner and mode"))
        return loaded
    # Nothing that is no text can be recorded, nor a job whose file cannot be named.
    unnamed = [name for name in names if not is_text(name)]
    loaded = load_files([folder / name for name in names if name not in unnamed], default_zone)
    for name in unnamed:
        problem = Problem(
            f"{folder}/{ascii(name)[1:-1]}", 0, 0, "", "the name of this file is no UTF-8 text", "Rename it"
        )
        loaded.problems.append(problem)
    return loaded


def load_files(files: list[Path], default_zone: str) -> Loaded:
    """As `load`, for these files: of two jobs with one name the one in the earlier file stays."""
    loaded = Loaded()
    found: dict[str, _Found] = {}
    broken: set[str] = set()
    for file in files:
        try:
            document, marks = read_document(file)
            if document is None or document == []:
                raise Unreadable((0, 0), "the file holds no job", "Write a job, or remove the file")
        except Unreadable as error:
            where = Fault(error.path, "").field
            loaded.problems.append(Problem(str(file), *error.position, where, error.message, error.advice))
            continue
        for root, raw in _jobs_in(document):
            given = raw.get("name") if isinstance(raw, dict) else None
            name = given if isinstance(given, str) else None
            try:
                job = parse_job(_refuse_canonical(raw), default_zone)
            except InvalidJob as error:
                loaded.problems += [_located(file, marks, root, fault, name) for fault in error.faults]
                broken |= {name} if name else set()
                continue
            if job.name in found:
                first = found[job.name]
                other = f"{first.file}:{first.marks.at((*first.root, 'name'))[0]}"
                fault = Fault(("name",), f"there is a job {job.name!r} in {other} already", "Rename one of the two")
                loaded.problems.append(_located(file, marks, root, fault, job.name))
                continue
            found[job.name] = _Found(job, file, marks, root)
    unsound: set[str] = set()
    for name, fault in catalog.check({name: one.job for name, one in found.items()}, broken):
        one = found[name]
        loaded.problems.append(_located(one.file, one.marks, one.root, fault, name))
        unsound.add(name)
    loaded.jobs = {name: (one.job, one.file) for name, one in found.items() if name not in unsound}
    loaded.problems.sort(key=lambda problem: (problem.file, problem.line, problem.column))
    return loaded


def _jobs_in(document: Json) -> Iterator[tuple[FieldPath, Json]]:
    if isinstance(document, list):
        yield from (((index,), raw) for index, raw in enumerate(document))
    else:
        yield (), document


def _refuse_canonical(raw: Json) -> Json:
    """The canonical form is for records; in a file its bare numbers would be read as milliseconds."""
    if isinstance(raw, dict) and "spec" in raw:
        raise InvalidJob([Fault(("spec",), "unknown field 'spec'", "Remove it, and give durations their units")])
    return raw


def _located(file: Path, marks: Marks, root: FieldPath, fault: Fault, job: str | None) -> Problem:
    line, column = marks.at((*root, *fault.path))
    return Problem(str(file), line, column, fault.field, fault.message, fault.advice, job)


def accepted(loaded: Loaded, folder: Path) -> tuple[dict[str, adoption.Accepted], list[adoption.Problem]]:
    """What was loaded from `folder`, as the planner takes it: files by their names alone, the folder as FOLDER."""
    jobs = {
        name: adoption.Accepted(job.digest(), job.canonical(), path.name) for name, (job, path) in loaded.jobs.items()
    }
    problems = [
        adoption.Problem(
            adoption.FOLDER if p.file == str(folder) else Path(p.file).name,
            p.line, p.column, p.field, p.message, p.advice,
        )
        for p in loaded.problems
    ]  # fmt: skip
    return jobs, problems
