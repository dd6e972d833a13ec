"""What a job of `kind: upgrade` says: which repositories, from where, in which order, and what proves them good.

A dependency cycle is no fault of the file: it blocks the repositories on it, by name, and no others (`topology`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictInt

from policies.fault import BadValue, meant
from policies.field import Duration, OneOrMore, Spec, Text, in_order, named
from policies.upgrade.facts import ROLES

Json = Any

Role = Literal["primary", "origin", "mirror", "cache", "fallback"]
assert get_args(Role) == ROLES

REPOS_MAX = 200
"""So many that the plan of all of them fits in one line of the ledger."""
KEY = r"[a-z0-9][a-z0-9_-]{0,55}"

_REF_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
_SCHEMES = ("https", "http", "ssh", "git", "file")
_USER_LETTERS_MAX = 30
"""A user name in an address that is longer is taken for a token."""


def problem_with_ref(name: str, *, glob: bool = False) -> str:
    """Why git takes no branch or tag of this name; "" if it does. With `glob`, * ? and [ ] may stand in it."""
    plain = re.sub(r"[*?\[\]]", "x", name) if glob else name
    if not plain:
        return "is empty"
    if plain.startswith("-"):
        return "begins with a dash"
    if found := _REF_FORBIDDEN.search(plain):
        return f"holds {found[0]!r}"
    if plain.startswith("/") or plain.endswith(("/", ".")) or plain == "@":
        return "begins or ends as no name may"
    if any(part.startswith(".") or part.endswith(".lock") for part in plain.split("/")):
        return "has a part that begins with a dot or ends with .lock"
    return ""


def _branch(value: str) -> str:
    if problem := problem_with_ref(value):
        raise BadValue(f"the branch name {value[:80]!r} {problem}", "Write it as `git branch` shows it, such as main")
    return value


def _strategy(value: str) -> str:
    if value in ("fast-forward", "rebase"):
        return value
    if not value.startswith("tag:"):
        raise BadValue(
            f"{value[:80]!r} is no strategy",
            meant(
                value, ("fast-forward", "rebase"), "Write fast-forward, rebase, or tag: and a pattern, such as tag:v2.*"
            ),
        )
    if problem := problem_with_ref(value[4:], glob=True):
        raise BadValue(f"the tag pattern {value[4:84]!r} {problem}", "Write for example tag:v2.*")
    return value


def _path(value: str) -> str:
    if any(letter < " " or letter == "\x7f" for letter in value):
        raise BadValue("the path holds a control character", "Write it on one line, as a shell would show it")
    if not value.startswith(("/", "~/")):
        raise BadValue(
            f"{value[:80]!r} is no whole path", f"Begin with / or ~/, for example ~/{value.lstrip('./')[:60]}"
        )
    if ".." in value.split("/"):
        raise BadValue(f"{value[:80]!r} goes up by ..", "Write the folder where it is: one repository has one path")
    return value.rstrip("/") or "/"


def _address(value: str) -> str:
    """A URL, a path, user@host:path, or the name of a remote in the repository's own configuration."""
    blank = value.replace(" ", "") if value.startswith(("/", "~/")) else value  # A folder may have spaces in its name.
    if not value or any(letter <= " " or letter == "\x7f" for letter in blank):
        raise BadValue(f"{value[:80]!r} is no address of a remote", "Write a URL, a path, or the name of a git remote")
    if value.startswith("-") or "::" in value:
        raise BadValue(
            f"{value[:80]!r} would make git run another program", "Write a URL, a path, or the name of a git remote"
        )
    scheme, separator, rest = value.partition("://")
    if separator:
        if scheme not in _SCHEMES:
            raise BadValue(
                f"{scheme[:40]!r} is no way to reach a remote here",
                meant(scheme, _SCHEMES, f"Use one of {', '.join(_SCHEMES)}"),
            )
        authority = rest.partition("/")[0]
        user, at, host = authority.rpartition("@")
        if at and (":" in user or len(user) > _USER_LETTERS_MAX):
            raise BadValue(
                f"the address of {host[:80]!r} holds a password or token, which the ledger would keep for ever",
                "Leave it out, and give it to git by a credential helper or an ssh key",
            )
        if host.startswith("-"):
            raise BadValue(f"{host[:80]!r} is no name of a host", "It begins with a dash")
    elif ":" in value and "/" not in value.partition(":")[0]:
        if value.rpartition("@")[2].startswith("-"):
            raise BadValue(f"{value[:80]!r} has no name of a host", "It begins with a dash")
    elif not value.startswith(("/", "~/")) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise BadValue(
            f"{value[:80]!r} is neither a URL nor a whole path nor the name of a git remote",
            "A path begins with / or ~/",
        )
    return value


def _roles(value: Any) -> Any:
    for role in value if isinstance(value, Mapping) else ():
        if role not in ROLES:
            otherwise = f"The roles are {', '.join(ROLES)}"
            raise BadValue(f"{role!r} is no role of a remote", meant(str(role), ROLES, otherwise))
    return value


def _in_role_order(value: dict[Role, str]) -> dict[Role, str]:
    return {role: value[role] for role in get_args(Role) if role in value}


Argv = Annotated[tuple[Text, ...], Field(min_length=1)]


class Repo(Spec):
    """One repository. While anything changes it, the lease `repo:KEY` is held."""

    key: Annotated[str, named(KEY, "core-lib")]
    path: Annotated[Text, AfterValidator(_path)]
    branch: Annotated[Text, AfterValidator(_branch)] = "main"
    remotes: Annotated[
        dict[Role, Annotated[Text, AfterValidator(_address)]],
        BeforeValidator(_roles),
        Field(min_length=1),
        AfterValidator(_in_role_order),
    ]
    depends_on: Annotated[tuple[str, ...], OneOrMore(), AfterValidator(in_order)] = ()
    canary: Argv | None = None
    """Run in a throw-away worktree of the candidate, before anything changes."""
    verify: Argv | None = None
    """Run in the repository after the change; if it fails, the change is taken back."""
    canary_timeout_ms: Duration = Field(default=1_800_000, alias="canary_timeout", ge=1)
    verify_timeout_ms: Duration = Field(default=1_800_000, alias="verify_timeout", ge=1)
    strategy: Annotated[Text, AfterValidator(_strategy)] = "fast-forward"
    priority: StrictInt = Field(default=50, ge=0, le=100)
    hooks: StrictBool = False
    """Whether the repository's own hooks run when its branch is moved."""


def _whole(repos: tuple[Repo, ...]) -> tuple[Repo, ...]:
    keys = [repo.key for repo in repos]
    paths: dict[str, str] = {}
    for repo in repos:
        if keys.count(repo.key) > 1:
            raise BadValue(f"two repositories have the key {repo.key!r}", "Give each repository its own key")
        if repo.path in paths:
            raise BadValue(
                f"{paths[repo.path]!r} and {repo.key!r} are the same folder {repo.path}",
                "Name it once: a lease on one key would not keep the other away",
            )
        paths[repo.path] = repo.key
    known = set(keys)
    for repo in repos:
        for other in repo.depends_on:
            if other not in known:
                raise BadValue(
                    f"repository {repo.key!r} depends on {other!r}, which is no repository of this job",
                    meant(other, keys, "Add it, or leave it out of depends_on"),
                )
    return tuple(sorted(repos, key=lambda repo: repo.key))


class Upgrade(Spec):
    """The body of the job. Everything before a repository's change only reads."""

    repos: Annotated[tuple[Repo, ...], Field(min_length=1, max_length=REPOS_MAX), AfterValidator(_whole)]
    parallel: StrictInt = Field(default=4, ge=1, le=64)
    """So many repositories are probed, or changed, at once."""
    probe_timeout_ms: Duration = Field(default=120_000, alias="probe_timeout", ge=1)
    fetch_timeout_ms: Duration = Field(default=600_000, alias="fetch_timeout", ge=1)
