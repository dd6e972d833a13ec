"""The examples hermes-mini learns from: log lines to triage and requests to route, made up from text files.

`triage.txt` holds real programs' messages, `phrases.txt` and `words.txt` what any program may say, `route.txt` requests
in eleven languages. Everything here is a function of the files and a seed.

How a log line is labelled. The category is what the line is about, whoever wrote it; the first that applies:

    auth         who may do what: logins, passwords, keys, tokens, certificates' validity, permissions, sudo, bans
    memory       RAM, swap, heaps, allocations, the OOM killer (the kernel's memory map at boot is kernel)
    disk         drives, file systems, volumes, RAID, space, reading and writing, backups
    network      links, addresses, names, routes, connections and their failures, firewalls, Wi-Fi, VPN
    package      software being installed, upgraded, removed, resolved, downloaded for that
    kernel       the kernel and its hardware: CPU, drivers, USB, GPU, ACPI, heat, crashes of a process it reports
    service      the life of daemons, units, containers, scheduled jobs: start, stop, readiness, configuration, clocks
    application  what a program does for its users: requests, queries, messages, exceptions, mail, prints, windows

Where the words do not say, what the kernel logs is kernel, what comes by syslog service, and the rest application.

The severity is the level that the logger wrote, where it wrote one (fatal, panic, emerg, alert, crit -> critical;
notice, log -> info; trace, verbose -> debug); a syslog priority number is not read. Else it is what the message says:

    critical  data or the machine is lost or about to be: panic, oops, corruption, a failed array, killed for memory
    error     something that was asked for did not happen, and is not said to be tried again
    warning   it goes on, but somebody should know: retries, limits near, slowness, deprecation, refused logins
              and packets, HTTP 4xx
    info      what happens on an ordinary day, including a package's states and a login that worked
    debug     details for whoever wrote the program

How a request is labelled:

    simple    one step: a fact, a definition, a conversion, a few words, a greeting
    medium    one bounded piece of work: a function, a summary, a letter, an explanation, a comparison, a small plan
    complex   several pieces that hang together, or open-ended: architecture, migration, proof, research, strategy
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from daemon.inference.hermes_mini.formats import (
    FLATTENED,
    FORMATS,
    GROUPS,
    IN_TRAINING,
    LEVELLED,
    LEVELLED_IN_TRAINING,
    Entry,
)
from daemon.inference.hermes_mini.slots import filled

CATEGORIES = ("disk", "network", "auth", "memory", "package", "service", "kernel", "application")
LEVELS = ("simple", "medium", "complex")

_FOLDER = Path(__file__).parent
_SOURCES = ("corpus.py", "formats.py", "slots.py", "triage.txt", "phrases.txt", "words.txt", "route.txt")


@dataclass(frozen=True, slots=True)
class Example:
    skill: str  # triage | route
    family: str  # program, "category/phrases", or language and family of phrasings
    text: str  # the log line or the request
    prompt: str  # the instruction with the text in it
    answer: str


@dataclass(frozen=True, slots=True)
class Message:
    severity: str
    category: str
    text: str


@dataclass(frozen=True, slots=True)
class Family:
    name: str
    split: str
    formats: tuple[str, ...]
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Phrasing:
    language: str
    level: str
    name: str
    split: str
    texts: tuple[str, ...]


def digest() -> str:
    """SHA-256 of what the corpus is made from."""
    whole = hashlib.sha256()
    for name in _SOURCES:
        whole.update(name.encode() + b"\0" + (_FOLDER / name).read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return whole.hexdigest()


def training(seed: int) -> Iterator[Example]:
    """Examples for training, without end: seven log lines to three requests."""
    rng = Random(f"training {seed}")
    while True:
        yield _triage_training(rng) if rng.random() < 0.7 else _route_example(rng, _pick_phrasing(rng), "training")


def measuring(seed: int, split: str, per_message: int = 3) -> list[Example]:
    """Examples of families that training never shows, as many of each message or phrasing as asked for."""
    rng = Random(f"{split} {seed}")
    examples = []
    for family in families():
        if family.split == split:
            for message in family.messages:
                examples += [_triage_example(rng, family, message, split) for _ in range(per_message)]
    for phrasing in phrasings():
        if phrasing.split == split:
            for text in phrasing.texts:
                one = Phrasing(phrasing.language, phrasing.level, phrasing.name, split, (text,))
                examples += [_route_example(rng, one, split) for _ in range(per_message)]
    return examples


def vocabulary() -> Iterator[str]:
    """What the tokenizer learns its words from: the texts as they stand, what fills them set aside."""
    said = [message.text for family in families() if family.split == "training" for message in family.messages]
    said += [text for lists in phrases().values() for texts in lists.values() for text in texts]
    said += [f" {text}" for lists in words().values() for text in lists for _ in range(3)]
    said += [text for phrasing in phrasings() if phrasing.split == "training" for text in phrasing.texts]
    said += [text for _, heading, rest in _route_lines() if heading.group(1) not in LEVELS for text in rest]
    said += [text for texts in _ASK.values() for text in texts for _ in range(5)]
    yield from (re.sub(r"\{\w+\}", " ", text) for text in said)


def elsewhere() -> list[Example]:
    """Lines of programs that the corpus does not imitate, labelled by hand: for measuring only."""
    examples = []
    for line in _lines("elsewhere.txt"):
        severity, category, text = line.split(" ", 2)
        prompt = f"Triage this log line: {text}"
        examples.append(Example("triage", "elsewhere", text, prompt, f"{severity} {category}"))
    return examples


@cache
def families() -> tuple[Family, ...]:
    found: list[Family] = []
    heading: re.Match[str] | None = None
    messages: list[Message] = []

    def close() -> None:
        if heading:
            name, formats, split = heading.groups()
            found.append(Family(name, split or "training", tuple(formats.split()), tuple(messages)))

    for line in _lines("triage.txt"):
        if match := re.fullmatch(r"\[([\w-]+)\] ([\w -]+?)(?: / (\w+))?", line):
            close()
            heading, messages = match, []
        else:
            severity, category, text = line.split(" ", 2)
            messages.append(Message(severity, category, text))
    close()
    return tuple(found)


@cache
def phrases() -> dict[str, dict[str, tuple[str, ...]]]:
    """Category -> severity or "subjects" -> what may stand there."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    category = ""
    for line in _lines("phrases.txt"):
        if line.startswith("["):
            category = line.strip("[]")
            found[category] = {}
        else:
            name, rest = line.split(": ", 1)
            found[category][name] = tuple(rest.split(" ; "))
    return found


@cache
def words() -> dict[str, tuple[str, ...]]:
    """Category, severity or "neutral" -> words and short turns."""
    lines = _lines("words.txt")
    return {head.strip("[]"): tuple(rest.split(" ; ")) for head, rest in zip(lines[::2], lines[1::2], strict=True)}


@cache
def phrasings() -> tuple[Phrasing, ...]:
    return tuple(
        Phrasing(language, heading.group(1), heading.group(2), heading.group(3) or "training", rest)
        for language, heading, rest in _route_lines()
        if heading.group(1) in LEVELS
    )


@cache
def _words(language: str) -> dict[str, tuple[str, ...]]:
    return {
        heading.group(2) or heading.group(1): rest
        for spoken, heading, rest in _route_lines()
        if spoken in ("every", language) and heading.group(1) in ("words", "before", "after")
    }


@cache
def _route_lines() -> tuple[tuple[str, re.Match[str], tuple[str, ...]], ...]:
    found = []
    language = ""
    for line in _lines("route.txt"):
        if line.startswith("["):
            language = line.strip("[]")
            continue
        head, rest = line.split(": ", 1)
        match = re.fullmatch(r"(\w+)(?: (\w+))?(?: / (\w+))?", head)
        assert match, f"route.txt: cannot read {head!r}"
        found.append((language, match, tuple(rest.split(" ; "))))
    return tuple(found)


def _lines(name: str) -> list[str]:
    text = (_FOLDER / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and line != "#" and not line.startswith("# ")]


# How the question is put. The last ones of each are kept for measuring: the instruction, too, comes in new words.
_ASK = {
    "triage": (
        "Triage this log line: {}",
        "Triage this log line:\n{}",
        "Triage this log line: {}",
        "Triage: {}",
        "Triage the following log line.\n\n{}",
        "Please triage this log entry: {}",
        "Classify this log line by severity and category: {}",
        "What are the severity and the category of this log line?\n{}",
        "Log line: {}\nSeverity and category?",
        "Give the severity and category: {}",
        "You are a log triage assistant. Answer with severity and category only.\n{}",
        "Label this log message with its severity (debug, info, warning, error, critical) and its category"
        " (disk, network, auth, memory, package, service, kernel, application): {}",
        "Read this line from a log and triage it: `{}`",
        'Triage this log line: "{}"',
        "How bad is this log line, and what is it about?\n{}",
        "{}\n\nTriage the log line above.",
        "Here is a log message. Severity? Category?\n{}",
        "triage {}",
    ),
    "triage asked anew": (
        "Triage this log line: {}",
        "Assess the following log entry, severity and category: {}",
        "Triage the log message below:\n{}",
        "Tell me the severity and category of this entry: {}",
    ),
    "route": (
        "Route this request: {}",
        "Route this request:\n{}",
        "Route this request: {}",
        "Route: {}",
        "Route the following request.\n\n{}",
        "Please route this request: {}",
        "How difficult is this request: simple, medium or complex?\n{}",
        "Is this request simple, medium or complex? {}",
        "Classify the complexity of this request: {}",
        "Request: {}\nSimple, medium or complex?",
        "Which model should answer this, the one for simple, medium or complex requests?\n{}",
        "You are a router. Answer with simple, medium or complex only.\n{}",
        'Route this request: "{}"',
        "{}\n\nRoute the request above.",
        "How much work is this? {}",
        "route {}",
    ),
    "route asked anew": (
        "Route this request: {}",
        "Rate the complexity of the following request: {}",
        "Decide whether this request is simple, medium or complex: {}",
        "Route the request below:\n{}",
    ),
}


def _asked(rng: Random, skill: str, split: str, text: str) -> str:
    return rng.choice(_ASK[skill] if split == "training" else _ASK[f"{skill} asked anew"]).replace("{}", text)


def _pick_phrasing(rng: Random) -> Phrasing:
    language = "en" if rng.random() < 0.4 else rng.choice(_languages())
    level = rng.choice(LEVELS)
    fitting = [p for p in phrasings() if p.split == "training" and p.language == language and p.level == level]
    composed = fitting[-1]
    return composed if rng.random() < 0.35 else rng.choice(fitting)


@cache
def _languages() -> tuple[str, ...]:
    return tuple(dict.fromkeys(phrasing.language for phrasing in phrasings()))


def _route_example(rng: Random, phrasing: Phrasing, split: str) -> Example:
    spoken = _words(phrasing.language)
    text = rng.choice(phrasing.texts)
    constrained = rng.random() < 0.75

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        if name == "k" and not constrained:
            return ""
        if name == "n":
            return str(rng.choice((rng.randint(2, 9), rng.randint(10, 99), rng.randint(100, 999))))
        return rng.choice(spoken[name])

    for _ in range(3):  # a word may itself hold words to fill in
        text = re.sub(r"\{(\w)\}", fill, text)
    if rng.random() < 0.2:
        text = f"{rng.choice(spoken['before'])} {text}"
    if rng.random() < 0.2:
        text = f"{text} {rng.choice(spoken['after'])}"
    if rng.random() < 0.15:
        text = text.rstrip("?.!。？！")  # noqa: RUF001
    text = re.sub(r" +([.,])", r"\1", text)
    return Example(
        "route", f"{phrasing.language} {phrasing.level} {phrasing.name}", text, _asked(rng, "route", split, text),
        phrasing.level,
    )


@cache
def _training_families() -> tuple[tuple[Family, ...], tuple[float, ...]]:
    chosen = tuple(family for family in families() if family.split == "training")
    return chosen, tuple(len(family.messages) ** 0.7 for family in chosen)


_SEVERITY_WEIGHTS = {"debug": 0.1, "info": 0.28, "warning": 0.25, "error": 0.25, "critical": 0.12}


def _triage_training(rng: Random) -> Example:
    chance = rng.random()
    if chance < 0.42:
        chosen, weights = _training_families()
        family = rng.choices(chosen, weights)[0]
        return _triage_example(rng, family, rng.choice(family.messages), "training")
    category = rng.choice(CATEGORIES)
    severity = rng.choices(tuple(_SEVERITY_WEIGHTS), tuple(_SEVERITY_WEIGHTS.values()))[0]
    if chance < 0.72:
        text = _phrase(rng, severity, category)
    elif chance < 0.92:
        text = _thrown(rng, severity, rng.sample(words()[category], rng.randint(1, 3)))
    else:
        text, category = _thrown(rng, severity, []), rng.choice(("kernel", "service", "application"))
        formats = {"kernel": GROUPS["kernel"], "service": GROUPS["syslog"], "application": LEVELLED_IN_TRAINING}
        severity = "info" if severity == "debug" and category != "application" else severity
        family = Family("unsaid/phrases", "training", formats[category], ())
        return _triage_example(rng, family, Message(severity, category, text), "training")
    family = Family(f"{category}/phrases", "training", _formats(rng, severity, category), ())
    return _triage_example(rng, family, Message(severity, category, text), "training")


def _formats(rng: Random, severity: str, category: str) -> tuple[str, ...]:
    if severity == "debug":  # without a logger's word for them, details could as well be information
        return LEVELLED_IN_TRAINING
    if category == "kernel" and rng.random() < 0.6:
        return GROUPS["kernel"]
    if category in ("disk", "network", "memory", "kernel"):
        return IN_TRAINING
    return tuple(name for name in IN_TRAINING if name not in GROUPS["kernel"])


_TAILS = (
    " (pid {pid})", " [{uuid}]", " on {host}", " after {dur}", " id={hex}", ", {word}={n}", " by {prog}",
    " user={user}", " in {path}", ", see {url}", " from {ip}", " at {word}.c:{n}", " for {word}", " ({word})",
    " [{n}]", " {word}",
)  # fmt: skip
_SHAPES = (
    "{s} {p}", "{s} {p}", "{s} {p}", "{s}: {p}", "{s}: {p}", "{p}: {s}", "{s} - {p}", "{p} ({s})", "{p} {s}",
    "[{s}] {p}", "{p}, {s}", "{s} of {word} {p}", "{p} for {s}",
)  # fmt: skip


def _phrase(rng: Random, severity: str, category: str) -> str:
    said = phrases()[category]
    subject, predicate = rng.choice(said["subjects"]), rng.choice(said[severity])
    if rng.random() < 0.3:
        subject = rng.choice(words()[category])
    if rng.random() < 0.3 and severity != "debug":
        predicate = rng.choice(words()[severity])
    text = rng.choice(_SHAPES).replace("{s}", subject).replace("{p}", predicate)
    return text + rng.choice(_TAILS) if rng.random() < 0.3 else text


def _thrown(rng: Random, severity: str, about: list[str]) -> str:
    """Words of the category and of the severity among others that say nothing. Information often has no word for it."""
    how = [] if severity == "debug" or (severity == "info" and rng.random() < 0.5) else [rng.choice(words()[severity])]
    pieces = [*about, *how, *rng.choices(words()["neutral"], k=rng.randint(0 if about else 2, 6))]
    rng.shuffle(pieces)
    return " ".join(pieces)


def _triage_example(rng: Random, family: Family, message: Message, split: str) -> Example:
    names = [name for group in family.formats for name in GROUPS.get(group, (group,))]
    severity = message.severity
    form = rng.choice(names)
    text = filled(rng, message.text)
    if form in LEVELLED and rng.random() < (0.12 if split == "training" else 0.05):
        severity = rng.choices(tuple(_SEVERITY_WEIGHTS), tuple(_SEVERITY_WEIGHTS.values()))[0]
    if split == "training" and rng.random() < 0.3:
        pieces = text.split(" ")
        text = " ".join(piece for piece in pieces if len(pieces) < 4 or rng.random() > 0.1)
    invented = family.name.endswith("/phrases") or (split == "training" and rng.random() < 0.4)
    program = filled(rng, "{prog}") if invented else family.name
    line = FORMATS[form](rng, Entry(severity, text, program))
    if (severity, form) in FLATTENED:
        severity = FLATTENED[severity, form]
    return Example(
        "triage", family.name, line, _asked(rng, "triage", split, line), f"{severity} {message.category}"
    )
