"""Secrets found and masked, so that what is shown to others holds none.

Nobody can tell a secret from any other text for sure. What is masked: values under names such as `password`, all values
of `env`, addresses of webhooks, what stands before the @ of an address, authorization headers, and the well-known forms
of keys. `{{ ... }}` is left alone: it names a secret and holds none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import orjson
import yaml

Json = Any

MASK = "***"
_NAMES = (
    r"(?:token|secret|passw(?:or)?d|passphrase|api[_-]?key|private[_-]?key|access[_-]?key|credential|authorization"
    r"|cookie|webhook)"
)
_NAME = re.compile(_NAMES.replace("token", "token(?!iz)"), re.IGNORECASE)
_AMOUNT = re.compile(r"token(?:s|s?_[a-z_]+)?$", re.IGNORECASE)
"""Names that may stand before a number: of a grant, or so many of a model's tokens."""
_OPTION = re.compile(rf"--?[\w-]*{_NAMES}[\w-]*", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"\s*(\{\{[^{}]*\}\}\s*)+")
_ENVIRONMENTS = ("env",)
_KNOWN_LEAST = 6

# Each is linear in the text: a log may hold megabytes without a blank. So nothing unbounded stands before what is
# sought, and what follows a name is bounded.
_FORMS = [
    (kind, re.compile(form))
    for kind, form in (
        ("a private key", r"(?s)(?P<secret>-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|\Z))"),
        (
            "a user in an address",
            r"[A-Za-z0-9+.-]://(?P<secret>(?!(?:git|\*\*\*)@[^@/\s\"'<>]*(?:[/\s\"'<>]|\Z))[^/\s\"'<>]+)@",
        ),
        (
            "a webhook's address",
            r"(?P<secret>https://(?:hooks\.slack\.com|(?:\w+\.)?discord(?:app)?\.com/api/webhooks"
            r"|[\w-]+\.webhook\.office\.com)/[^\s\"'<>]+)",
        ),
        (
            "an authorization header",
            r"(?i)\bauthorization[\"']?\s*[:=]\s*[\"']?(?P<secret>(?!\*\*\*|\{\{)(?:(?:bearer|basic|token)\s+)?[^\s\"',}]+)",
        ),
        ("a bearer token", r"(?i)\bbearer\s+(?P<secret>(?!\{\{)[A-Za-z0-9._~+/=-]{8,})"),
        (
            "a key of a well-known form",
            r"(?P<secret>\b(?:sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{40,}|glpat-[\w-]{20,}"
            r"|xox[abeprs]-[A-Za-z0-9-]{10,}|AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{30,}|AIza[\w-]{35}"
            r"|eyJ[\w-]{10,1000}+\.eyJ[\w-]{10,}+\.[\w-]*))",
        ),
        (
            "a value under such a name",
            rf"(?i){_NAMES}[\w-]{{0,64}}+[\"']?\s*+[:=]\s*(?P<quote>[\"'])"
            r"(?P<secret>(?!\*\*\*|\{\{)(?:(?!(?P=quote))[^\\\n]|\\.)+)(?P=quote)",
        ),
        (
            "a value under such a name",
            rf"(?i){_NAMES}[\w-]{{0,64}}+[\"']?\s*+[:=]\s*"
            r"(?P<secret>(?!(?:-?[\d.]+|true|false|null|none)(?![^\s\"',;}\])])|\*\*\*|\{\{|[\[{(<\"'])[^\s\"',;&}\])]+)",
        ),
        (
            "a value of such an option",
            rf"(?i)(?<![\w-])--?[\w-]{{0,64}}?{_NAMES}[\w-]{{0,64}}+\s+(?P<secret>(?!\*\*\*|\{{\{{|-)[^\s\"']+)",
        ),
    )
]
_PERHAPS = re.compile(
    rb"(?i)secret|passw|passphrase|[_-]key|apikey|credential|authorization|cookie|webhook|bearer|://[^/\s]*@"
    rb"|private key|hooks\.slack|sk-|gh[pousr]_|github_pat_|glpat-|xox|AKIA|hf_|AIza|eyJ|\"env\":\{\""
    rb"|token[\w-]*+[\"']?+\s*+[=:]?+\s*+[^\s\d:,}]"
)


class Mask:
    """`known`: secrets of this home, name -> value; they are found wherever and however they stand."""

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        told = {value.strip(): name for name, value in (known or {}).items()}
        # A secret of a few letters would be found in every other word.
        ways = {way: name for value, name in told.items() if len(value) >= _KNOWN_LEAST for way in _written(value)}
        # The longest first: one that is the beginning of another would leave the other's end.
        self._known = {way: ways[way] for way in sorted(ways, key=len, reverse=True)}

    def text(self, text: str) -> str:
        """Lines of a log, or anything else that is no document."""
        for value in self._known:
            text = text.replace(value, MASK)
        for _, form in _FORMS:
            text = form.sub(_without, text)
        return text

    def document(self, text: str) -> str:
        """A YAML or JSON file, every other byte and every line where it was. Of one that cannot be read only the names
        of its fields are kept."""
        try:
            tree = yaml.compose(text, Loader=yaml.SafeLoader)
            spans = sorted(set(_spans(tree, "", False, set())), reverse=True) if tree is not None else []
        except (yaml.YAMLError, RecursionError):
            return "".join(map(_field_alone, text.splitlines(keepends=True)))
        for start, end in spans:
            lines = text.count("\n", start, end)
            text = text[:start] + f'"{MASK}"' + "\n" * lines + text[end:]
        return self.text(text)

    def secrets_in(self, value: Json) -> Iterator[tuple[str, str]]:
        """What `document` would mask in a value, as (path, what it seems to be): `spec.env.API_KEY`."""
        # Most records hold nothing of the kind: one look over all of it is quicker than a walk.
        data = orjson.dumps(value)
        if _PERHAPS.search(data):
            yield from _found(value, "", "", False)
        for name in sorted({name for way, name in self._known.items() if orjson.dumps(way)[1:-1] in data}):
            yield "the text", f"the value of the secret {name}"


def _written(value: str) -> set[str]:
    """How a secret stands in a text, in JSON, and in an address."""
    return {value, orjson.dumps(value)[1:-1].decode(), json.dumps(value)[1:-1], quote(value, safe="")}


def _without(match: re.Match[str]) -> str:
    start, end = match.span("secret")
    begin = match.start()
    return match[0][: start - begin] + MASK + match[0][end - begin :]


def _field_alone(line: str) -> str:
    field, colon, value = line.rstrip("\r\n").partition(":")
    if not colon:
        return f"{MASK}\n" if line.strip() else line
    return field + colon + (f" {MASK}" if value.strip() else "") + "\n"


def _spans(node: yaml.Node, name: str, secret: bool, seen: set[tuple[int, str, bool]]) -> Iterator[tuple[int, int]]:
    """Where the values stand that are to be masked. `secret`: all that is in here is. `seen`: an alias is its anchor
    once more, and a few lines of them could name a million."""
    if (id(node), name, secret) in seen:
        return
    seen.add((id(node), name, secret))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            field = str(key.value)
            yield from _spans(value, field, secret or name in _ENVIRONMENTS or _is_secret_group(field, value), seen)
    elif isinstance(node, yaml.SequenceNode):
        before = ""
        for item in node.value:
            text = item.value if isinstance(item, yaml.ScalarNode) else ""
            yield from _spans(item, name, secret or _is_value_of_option(before, text), seen)
            before = text
    elif isinstance(node, yaml.ScalarNode) and _to_mask(
        node.value, name, secret, node.tag.endswith((":int", ":float"))
    ):
        yield node.start_mark.index, node.end_mark.index


def _is_secret_group(field: str, value: Any) -> bool:
    return isinstance(value, Mapping | yaml.MappingNode) and bool(_NAME.search(field)) and not _AMOUNT.search(field)


def _is_value_of_option(before: str, text: str) -> bool:
    return bool(_OPTION.fullmatch(before)) and not text.startswith("-")


def _to_mask(value: str, name: str, secret: bool, number: bool) -> bool:
    if not value.strip() or _PLACEHOLDER.fullmatch(value) or value.lower() in ("true", "false", "null", "~", MASK):
        return False
    return secret or (bool(_NAME.search(name)) and not (number and _AMOUNT.search(name)))


def _found(value: Json, path: str, name: str, secret: bool) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for field, inner in value.items():
            below = secret or name in _ENVIRONMENTS or _is_secret_group(field, inner)
            yield from _found(inner, f"{path}.{field}" if path else str(field), str(field), below)
    elif isinstance(value, list | tuple):
        before = ""
        for index, item in enumerate(value):
            text = item if isinstance(item, str) else ""
            yield from _found(item, f"{path}[{index}]", name, secret or _is_value_of_option(before, text))
            before = text
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        number = not isinstance(value, str)
        if _to_mask(str(value), name, secret, number):
            yield path, "a value of env" if ".env." in f".{path}" else "a value under such a name"
            return
        for kind, form in _FORMS if not number else ():
            if form.search(str(value)):
                yield path, kind
                return
