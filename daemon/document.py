"""Documents people write, YAML or JSON, read with the position of every field.

YAML is read by the rules of version 1.2: `on`, `yes`, `12:30`, `010` and dates are text, only true and false are
booleans. A field given twice is an error, in JSON too.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from ledger.record import is_text

Json = Any

LARGEST_BYTES = 1 << 20
_DEEPEST = 50
_MOST_VALUES = 200_000
_CHARACTERS = 256  # of a long text count as one more value

Position = tuple[int, int]  # line and column, from 1; (0, 0) is the file as a whole
FieldPath = tuple[str | int, ...]


class Unreadable(Exception):
    """The text cannot be read as a document."""

    def __init__(self, position: Position, message: str, advice: str = "", path: FieldPath = ()) -> None:
        super().__init__(message)
        self.position, self.message, self.advice, self.path = position, message, advice, path


class Marks:
    """Where each field of a document stands: a mapping's entry at its key, a list's item at its start. It counts the
    document's values as well, so that a file cannot grow without bound while it is read."""

    def __init__(self) -> None:
        self._positions: dict[FieldPath, Position] = {}
        self.count = 0

    def put(self, path: FieldPath, position: Position) -> None:
        self.add(1, position)
        self._positions[path] = position

    def add(self, count: int, position: Position) -> None:
        self.count += count
        if self.count > _MOST_VALUES:
            raise Unreadable(position, "the file holds too many values", "Aliases count each time they are used")

    def at(self, path: FieldPath) -> Position:
        while path and path not in self._positions:
            path = path[:-1]
        return self._positions.get(path, (1, 1))


def read_document(file: Path) -> tuple[Json, Marks]:
    """The value, None for an empty file, and where its fields stand. Unreadable if there is no value to be had."""
    text = _text(file)
    marks = Marks()
    try:
        document = _json(text, marks) if file.suffix.lower() == ".json" else _yaml(text, marks)
    except RecursionError as error:
        raise Unreadable((1, 1), "the file is nested too deeply", f"Keep it below {_DEEPEST} levels") from error
    return document, marks


def _text(file: Path) -> str:
    try:
        # O_NONBLOCK: a pipe with such a name must not hold up the daemon.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
                raise Unreadable((0, 0), f"this is {what}", "Rename it or move it away")
            data = os.read(descriptor, LARGEST_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        do = "Check the path, and where it leads if it is a link" if missing else "Correct its owner and mode"
        raise Unreadable((0, 0), f"the file cannot be read: {error.strerror}", do) from error
    if len(data) > LARGEST_BYTES:
        raise Unreadable((0, 0), f"the file is larger than {LARGEST_BYTES} bytes", "Split it, or move data out of it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise Unreadable((line, column), f"byte {error.start} is not UTF-8", "Save the file as UTF-8") from error


_INTEGER = re.compile(r"0|-?[1-9][0-9]*", re.ASCII)
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?", re.ASCII)
_WORDS: dict[str, Json] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def _plain(text: str) -> Json:
    """An unquoted scalar. Numbers that would be written back differently (`+5`, `0x10`, `010`) stay text."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) < 40 and _INTEGER.fullmatch(text):
        return int(text)
    if len(text) < 40 and _FLOAT.fullmatch(text):
        return float(text)
    return text


def _yaml(text: str, marks: Marks) -> Json:
    try:
        return _YamlReader(text, marks).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        message = ": ".join(part for part in (error.context, error.problem) if part)
        line = "".join(text.splitlines()[position[0] - 1 : position[0]])
        advice = "YAML indents with spaces, not tabs" if "\t" in line else ""
        raise Unreadable(position, f"this is not YAML: {message}", advice) from error
    except yaml.reader.ReaderError as error:
        number = text.count("\n", 0, error.position) + 1
        raise Unreadable((number, 1), f"this is not YAML: {error.reason}", "Remove the control character") from error


class _YamlReader:
    """Builds values from the parser's events. PyYAML's own composer recurses without bound: a file of brackets ends
    the process. An alias stands for its anchor's value and counts as many values, so that few lines cannot make many.
    """

    def __init__(self, text: str, marks: Marks) -> None:
        self._events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        self._marks = marks
        self._anchors: dict[str, tuple[Json, int]] = {}

    def document(self) -> Json:
        next(self._events)  # the stream's start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events), (), 0)
        next(self._events)  # the document's end
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            advice = "Write the jobs of one file as a list, each beginning with a dash"
            raise Unreadable(_place(after), "a second document begins here", advice)
        return value

    def _value(self, event: Any, path: FieldPath, depth: int) -> Json:
        here = _place(event)
        if depth > _DEEPEST:
            raise Unreadable(here, f"nested deeper than {_DEEPEST} levels", "", path[:4])
        if path == () or isinstance(path[-1], int):
            self._marks.put(path, here)
        before = self._marks.count
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise Unreadable(here, f"there is no anchor &{event.anchor} before this", "", path)
            value, count = self._anchors[event.anchor]
            self._marks.add(count, here)
            return value
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise Unreadable(here, f"the tag {event.tag} means nothing here", "Remove it; put text in quotes", path)
        if isinstance(event, yaml.ScalarEvent):
            # An alias of a long text stands for much, too.
            self._marks.add(1 + len(event.value) // _CHARACTERS, here)
            value = _plain(event.value) if event.implicit[0] and event.tag is None else str(event.value)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._list(path, depth)
        else:
            value = self._mapping(path, depth)
        if event.anchor:
            self._anchors[event.anchor] = (value, self._marks.count - before)
        return value

    def _list(self, path: FieldPath, depth: int) -> list[Json]:
        items: list[Json] = []
        event = next(self._events)
        while not isinstance(event, yaml.SequenceEndEvent):
            items.append(self._value(event, (*path, len(items)), depth + 1))
            event = next(self._events)
        return items

    def _mapping(self, path: FieldPath, depth: int) -> dict[str, Json]:
        mapping: dict[str, Json] = {}
        event = next(self._events)
        while not isinstance(event, yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise Unreadable(_place(event), "a field's name must be text", "Put it in quotes", path)
            key = str(event.value)
            _put_key(self._marks, (*path, key), _place(event), twice=key in mapping)
            mapping[key] = self._value(next(self._events), (*path, key), depth + 1)
            event = next(self._events)
        return mapping


def _place(event: Any) -> Position:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _put_key(marks: Marks, path: FieldPath, here: Position, *, twice: bool) -> None:
    if twice:
        first = marks.at(path)[0]
        raise Unreadable(here, f"the field {path[-1]!r} is given twice, first in line {first}", "Keep one", path)
    marks.put(path, here)
    marks.add(len(str(path[-1])) // _CHARACTERS, here)


def _json(text: str, marks: Marks) -> Json:
    if not text.strip():
        return None
    try:
        json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise Unreadable((error.lineno, error.colno), f"this is not JSON: {error.msg}") from error
    except ValueError as error:
        raise Unreadable((1, 1), f"this is not JSON: {error}", "Write a number in quotes, or null") from error
    return _JsonReader(text, marks).value((), 0)


def _no_constant(word: str) -> Json:
    raise ValueError(f"{word} is no JSON value")


class _JsonReader:
    """Reads text that `json` has accepted once more, for the positions and for fields given twice."""

    _TOKEN = re.compile(r'[ \t\r\n]*("(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+)')

    def __init__(self, text: str, marks: Marks) -> None:
        self._text, self._marks = text, marks
        self._tokens = [(match[1], match.start(1)) for match in self._TOKEN.finditer(text)]
        self._index = 0
        self._line, self._line_start, self._counted = 1, 0, 0

    def _take(self) -> tuple[str, Position]:
        token, start = self._tokens[self._index]
        self._index += 1
        self._line += self._text.count("\n", self._counted, start)
        self._line_start = max(self._line_start, self._text.rfind("\n", self._counted, start) + 1)
        self._counted = start
        return token, (self._line, start - self._line_start + 1)

    def value(self, path: FieldPath, depth: int) -> Json:
        token, here = self._take()
        if depth > _DEEPEST:
            raise Unreadable(here, f"nested deeper than {_DEEPEST} levels")
        if path == () or isinstance(path[-1], int):
            self._marks.put(path, here)
        if token == "{":
            return self._mapping(path, depth)
        if token == "[":
            return self._list(path, depth)
        return self._plain(token, here)

    def _plain(self, token: str, here: Position) -> Json:
        value = json.loads(token)
        if isinstance(value, str) and not is_text(value):
            raise Unreadable(here, "the text holds half of a surrogate pair", "Write the whole character")
        return value

    def _mapping(self, path: FieldPath, depth: int) -> dict[str, Json]:
        mapping: dict[str, Json] = {}
        token, here = self._take()
        while token != "}":
            if token != ",":
                key = self._plain(token, here)
                _put_key(self._marks, (*path, key), here, twice=key in mapping)
                self._take()
                mapping[key] = self.value((*path, key), depth + 1)
            token, here = self._take()
        return mapping

    def _list(self, path: FieldPath, depth: int) -> list[Json]:
        items: list[Json] = []
        while self._tokens[self._index][0] != "]":
            if self._tokens[self._index][0] == ",":
                self._take()
            items.append(self.value((*path, len(items)), depth + 1))
        self._take()
        return items
