"""Make-believe git: repositories, remotes, and the people who work in both; and the steps of an upgrade upon them.

A step takes what `daemon.upgrades.steps` takes and tells what it tells (`policies.upgrade.facts`), so that the saga and
the plan cannot know which of the two they deal with. What it does, it does at the end of its time, and all at once; one
that is killed before has done nothing, or half of it, or all of it and told nobody, as luck has it.

Remotes vanish (with every class of failure), hang, lag behind, advertise what they do not deliver, and rewrite their
history. People commit, leave work uncommitted, switch branches, merge, lock the index and die, delete a repository, and
bring all of that in order again some day. What a person has ever done is remembered here, beside the repositories: that
none of it is lost is looked for in the repositories themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha1
from random import Random
from typing import Any, NamedTuple, get_args

from policies.upgrade.facts import ROLES, Failure, unseen

Json = Any

FAILURES = tuple(word for word in get_args(Failure) if word not in ("", "corrupt", "rewritten-history", "timeout"))
BRANCH = "main"


class Commit(NamedTuple):
    parents: tuple[str, ...]
    brings: frozenset[str]
    """The changes of people that it holds, and no parent does."""
    canary_fails: bool = False
    verify_fails: bool = False


@dataclass(slots=True)
class Remote:
    url: str
    tip: str
    state: str = "well"
    """well, a class of failure, hangs, or lies: it advertises what it does not deliver."""
    slow_ms: int = 20


@dataclass(slots=True)
class Lock:
    """`index.lock`: of a step, with what it was about to do; of a person where `mark` is ""."""

    mark: str = ""
    source: str = ""
    target: str = ""


@dataclass(slots=True)
class Repository:
    key: str
    path: str
    tip: str
    """Where its branch is."""
    files: str
    """The commit that the work tree holds; two with a + between them: half of each."""
    objects: set[str]
    branch: str = BRANCH  # that HEAD is on; "" if it is on none
    edits: set[str] = field(default_factory=set)  # work that is not committed
    in_progress: str = ""
    lock: Lock | None = None
    worktrees: dict[str, str] = field(default_factory=dict)  # mark -> commit
    gone: bool = False

    # What only the checkers look at.
    good: set[str] = field(default_factory=set)
    """Commits it may be left at: where it began, where a person put it, where `verify` has passed."""
    theirs: set[str] = field(default_factory=set)
    """Changes that a person has committed to the branch, ever."""
    uncommitted: set[str] = field(default_factory=set)
    """Work that a person has left uncommitted and not taken back."""


@dataclass(slots=True)
class GitWorld:
    """All repositories of a machine and all their remotes."""

    seed: int
    holder_of: Callable[[str], tuple[str, int] | None]
    """What the lease file of a key says: holder, token."""
    trouble: bool = True
    """Whether remotes fail and people get in the way."""
    commits: dict[str, Commit] = field(default_factory=dict)
    repositories: dict[str, Repository] = field(default_factory=dict)  # by path
    remotes: dict[str, Remote] = field(default_factory=dict)  # by address
    made: int = 0

    # History.

    def commit(self, parents: tuple[str, ...], brings: str = "", **more: bool) -> str:
        self.made += 1
        name = sha1(f"{self.seed} {self.made}".encode()).hexdigest()
        self.commits[name] = Commit(parents, frozenset({brings} - {""}), **more)
        return name

    def history(self, tip: str, until: str = "") -> set[str]:
        """`tip` and all before it; the search goes no further than `until`."""
        found, ahead = {tip}, [tip]
        while ahead:
            name = ahead.pop()
            if name == until:
                continue
            for parent in self.commits[name].parents:
                if parent not in found:
                    found.add(parent)
                    ahead.append(parent)
        return found

    def contains(self, tip: str, commit: str) -> bool:
        return tip == commit or commit in self.history(tip, until=commit)

    def changes(self, tip: str) -> set[str]:
        """What people have done that `tip` holds."""
        return {change for name in self.history(tip) for change in self.commits[name].brings}

    def add(self, key: str, roles: tuple[str, ...]) -> None:
        """A repository with its remotes, all at one commit."""
        first = self.commit(())
        path = f"/src/{key}"
        self.repositories[path] = Repository(key, path, first, first, {first}, good={first})
        for role in roles:
            self.remotes[f"ssh://{role}.example/{key}.git"] = Remote(f"ssh://{role}.example/{key}.git", first)

    def remotes_of(self, key: str) -> list[Remote]:
        return [remote for address, remote in self.remotes.items() if address.endswith(f"/{key}.git")]

    # The steps.

    def offer(self, address: str) -> dict[str, Json]:
        found: dict[str, Json] = {
            "url": address, "reachable": False, "latency_ms": 0, "ref": None, "tag": "", "contains_base": None,
            "ahead": 0, "behind": 0, "change": None, "failure": "", "words": "",
        }  # fmt: skip
        remote = self.remotes[address]
        if remote.state == "hangs":
            return found | {"failure": "timeout", "words": "it did not answer"}
        if remote.state not in ("well", "lies"):
            return found | {"failure": remote.state, "words": f"fatal: {remote.state}"}
        return found | {"reachable": True, "latency_ms": remote.slow_ms, "ref": remote.tip}

    def probe(self, args: Mapping[str, Json]) -> dict[str, Json]:
        key, path, branch = args["key"], args["path"], args["branch"]
        repository = self.repositories[path]
        if repository.gone:
            return dict(unseen(key, path, branch, "missing", f"there is nothing at {path}"))
        offers = {role: self.offer(args["remotes"][role]) for role in ROLES if role in args["remotes"]}
        base = repository.tip
        for role, offer in offers.items():
            self._weigh(repository, args["remotes"][role], offer, args["known"].get(role))
        first = next((role for role, offer in offers.items() if offer["ref"] and not offer["failure"]), "")
        chosen = offers.get(first)
        change = chosen["change"] if chosen is not None else None
        for offer in offers.values():
            if chosen is not None and offer["ref"] == chosen["ref"]:
                offer["change"] = None
        edits = sorted(repository.edits)
        return {
            **unseen(key, path, branch, "", ""), "ok": True, "problem": None,
            "head": base, "branch": repository.branch, "wanted": branch, "base": base,
            "detached": not repository.branch, "dirty": edits[:50], "dirty_count": len(edits),
            "in_progress": repository.in_progress, "fsck_ok": True,
            "locks": ["index.lock"] if repository.lock is not None else [],
            "upgrades_left": sorted(repository.worktrees), "role": first, "candidate": chosen and chosen["ref"],
            "ahead": chosen["ahead"] if chosen else 0, "behind": chosen["behind"] if chosen else 0, "change": change,
            "objects_bytes": 1 << 20, "disk_free_bytes": 1 << 40, "remotes": offers,
        }  # fmt: skip

    def _weigh(self, repository: Repository, address: str, offer: dict[str, Json], known: str | None) -> None:
        ref, base = offer["ref"], repository.tip
        if ref is None:
            return
        if self.remotes[address].state == "lies":
            offer |= {"failure": "corrupt", "words": f"it advertised {ref[:12]} and did not deliver it"}
            return
        theirs, ours = self.history(ref), self.history(base)
        repository.objects |= theirs
        if known is not None and known not in theirs and base not in theirs:
            words = f"its history does not contain {known[:12]}, which it offered before"
            offer |= {"failure": "rewritten-history", "words": words, "contains_base": False}
            return
        new = theirs - ours
        files = sorted({f"file{int(name[:4], 16) % 40}" for name in new})
        change = {
            "commits": len(new), "files": files,
            "files_count": len(new), "insertions": 10 * len(new), "deletions": 3 * len(new), "bytes": 100 * len(new),
            "submodules": False,
        }  # fmt: skip
        offer |= {"contains_base": bool(theirs & ours), "ahead": len(ours - theirs), "behind": len(new)}
        offer["change"] = change if new else None

    def step(self, verb: str, args: Mapping[str, Json]) -> dict[str, Json]:
        """fetch, apply, rollback, inspect or clean, to its end."""
        repository = self.repositories[args["path"]]
        found: dict[str, Json] = {"step": verb, "ok": True, "problem": "", "words": "", "branch": args["branch"]}
        if repository.gone:
            repository.worktrees.pop(args["mark"], None)
            nowhere = {"at": "unknown", "commit": None, "clean": False, "worktree": False}
            return found | {"ok": False, "problem": "gone", "words": "there is nothing at its path"} | nowhere
        perform: Callable[[Repository, Mapping[str, Json]], tuple[str, str]] = getattr(self, f"_{verb}")
        problem, words = perform(repository, args)
        more: dict[str, Json] = {}
        new = args["new"]
        if verb == "fetch" and not problem and args["strategy"] == "rebase":
            new = more["candidate"] = repository.worktrees[args["mark"]]
        at = "old" if repository.tip == args["old"] else "new" if repository.tip == new else "elsewhere"
        return found | {"ok": not problem, "problem": problem, "words": words} | more | {
            "at": at, "commit": repository.tip, "clean": not repository.edits and repository.branch == BRANCH,
            "worktree": args["mark"] in repository.worktrees,
        }  # fmt: skip

    def _fetch(self, repository: Repository, args: Mapping[str, Json]) -> tuple[str, str]:
        offer = self.offer(args["address"])
        if offer["failure"]:
            return offer["failure"], offer["words"]
        if self.remotes[args["address"]].state == "lies" and args["new"] not in repository.objects:
            return "corrupt", "the remote did not deliver it"
        if not self.contains(offer["ref"], args["new"]):
            return "rewritten-history", "the remote's history does not contain it any more"
        repository.objects |= self.history(args["new"])
        candidate = args["new"]
        if args["strategy"] == "rebase":
            for name in sorted(self.history(args["old"]) - self.history(args["new"])):
                if self.commits[name].brings:
                    candidate = self.commit((candidate,))
                    self.commits[candidate] = self.commits[candidate]._replace(brings=self.commits[name].brings)
            repository.objects.add(candidate)
        repository.worktrees[args["mark"]] = candidate
        return "", ""

    def _recover(self, repository: Repository, mark: str) -> None:
        """Put away what a killed step of this run has left half done."""
        if repository.lock is None or repository.lock.mark != mark:
            return
        if repository.tip in (repository.lock.source, repository.lock.target):
            repository.files = repository.tip
        repository.lock = None

    def _leased(self, args: Mapping[str, Json]) -> bool:
        lease = args["lease"]
        return self.holder_of(lease["key"]) == (lease["holder"], lease["token"])

    def _apply(self, repository: Repository, args: Mapping[str, Json]) -> tuple[str, str]:
        return self._move(repository, args, args["old"], args["new"], strict=True)

    def _rollback(self, repository: Repository, args: Mapping[str, Json]) -> tuple[str, str]:
        return self._move(repository, args, args["new"], args["old"], strict=False)

    def _move(
        self, repository: Repository, args: Mapping[str, Json], source: str, target: str, *, strict: bool
    ) -> tuple[str, str]:
        problem, words = self._refusal(repository, args, source, target, strict=strict)
        if not problem and repository.tip != target:
            repository.tip = target
            if repository.branch == BRANCH:
                repository.files = target
        return problem, words

    def _refusal(
        self, repository: Repository, args: Mapping[str, Json], source: str, target: str, *, strict: bool
    ) -> tuple[str, str]:
        if not self._leased(args):
            return "lease", "the lease is not held by this run any more"
        self._recover(repository, args["mark"])
        if repository.tip == target:
            return "", ""
        if strict and repository.in_progress:
            return "dirty", f"a {repository.in_progress} is in progress"
        if repository.lock is not None:
            return "locked", "index.lock is there: somebody works in this repository"
        if repository.branch != BRANCH and strict:
            return "moved", f"HEAD is on {repository.branch or 'no branch'} now"
        if strict and repository.edits:
            return "dirty", "uncommitted changes"
        if repository.tip != source:
            return "moved", f"the branch is at {repository.tip[:12]} now"
        return "", ""

    def _inspect(self, repository: Repository, args: Mapping[str, Json]) -> tuple[str, str]:
        self._recover(repository, args["mark"])
        return "", ""

    def _clean(self, repository: Repository, args: Mapping[str, Json]) -> tuple[str, str]:
        self._recover(repository, args["mark"])
        repository.worktrees.pop(args["mark"], None)
        return "", ""

    def cut(self, verb: str, args: Mapping[str, Json], chance: Random) -> None:
        """A step that was killed: it has done nothing, all of it, or a part."""
        how = chance.random()
        repository = self.repositories[args["path"]]
        if how < 0.35 or repository.gone:
            return
        if how < 0.6 or verb not in ("apply", "rollback"):
            self.step(verb, args)
            return
        source, target = (args["old"], args["new"]) if verb == "apply" else (args["new"], args["old"])
        if self._refusal(repository, args, source, target, strict=verb == "apply")[0] or repository.tip != source:
            return
        repository.lock = Lock(args["mark"], source, target)
        if repository.branch == BRANCH:
            repository.files = f"{source}+{target}"
        if chance.random() < 0.5:
            repository.tip = target

    def proof(self, repository: Repository, commit: str, name: str, chance: Random) -> int:
        """The exit status of canary or verify on a commit."""
        about = self.commits[commit]
        fails = about.canary_fails if name == "canary" else about.verify_fails
        code = 1 if fails or (self.trouble and chance.random() < 0.02) else 0
        if name == "verify" and not code and repository.tip == commit:
            repository.good.add(commit)
        return code

    # What people do.

    def upstream_works(self, key: str, chance: Random) -> None:
        """Somebody pushes to the primary, here with more care and there with less; the others follow it, or lag."""
        primary, *others = self.remotes_of(key)
        rate = Random(f"{self.seed} {key}").choice((0.02, 0.1, 0.35)) if self.trouble else 0.0
        for _ in range(chance.choice((0, 1, 1, 2))):
            fails = chance.random()
            canary, verify = fails < rate / 3, rate / 3 <= fails < rate
            primary.tip = self.commit((primary.tip,), canary_fails=canary, verify_fails=verify)
        if self.trouble and chance.random() < 0.01:
            parent = self.commits[primary.tip].parents[:1]
            primary.tip = self.commit(self.commits[parent[0]].parents[:1] if parent else ())
        for other in others:
            if chance.random() < 0.8:
                other.tip = primary.tip

    def remote_changes(self, chance: Random) -> None:
        """One remote falls ill, or gets well again."""
        remote = self.remotes[chance.choice(sorted(self.remotes))]
        if remote.state != "well":
            remote.state = "well"
        elif self.trouble:
            remote.state = chance.choice((*FAILURES, "hangs", "lies"))

    def person_acts(self, path: str, chance: Random) -> str:
        """Something that a person does in a repository, if git lets them; what it was."""
        repository = self.repositories[path]
        if repository.gone:
            return self._tidy(repository) if chance.random() < 0.5 else ""
        act = chance.choice(("commit", "commit", "edit", "edit", "branch", "merge", "lock", "delete", "tidy"))
        change = f"{repository.key}-{self.made}-{len(repository.theirs)}-{len(repository.edits)}"
        if act == "edit":
            repository.edits.add(change)
            repository.uncommitted.add(change)
        elif repository.lock is not None and act != "tidy":
            return f"{act}: index.lock is there"
        elif act == "commit" and repository.branch == BRANCH and not repository.in_progress:
            self._commit(repository, change)
        elif act == "branch":
            repository.branch = chance.choice(("feature", ""))
        elif act == "merge":
            repository.in_progress = chance.choice(("merge", "rebase"))
        elif act == "lock":
            repository.lock = Lock()
        elif act == "delete" and not repository.edits and chance.random() < 0.3:
            repository.gone = True
        elif act == "tidy":
            self._tidy(repository)
        return act

    def person_tidies(self, path: str) -> str:
        """What a person does about it who finds a repository in disorder; "" if it is in order."""
        it = self.repositories[path]
        fine = it.branch == BRANCH and not (it.edits or it.in_progress or it.lock or it.gone)
        upstream = self.remotes_of(it.key)[0].tip
        apart = not self.contains(it.tip, upstream) and not self.contains(upstream, it.tip)
        return self._tidy(it) if apart or not fine else ""

    def _commit(self, repository: Repository, change: str) -> None:
        brought = {change, *repository.edits}
        name = self.commit((repository.tip,))
        self.commits[name] = Commit((repository.tip,), frozenset(brought))
        repository.tip = repository.files = name
        repository.objects.add(name)
        repository.edits.clear()
        repository.uncommitted.clear()
        repository.theirs |= brought
        repository.good.add(name)

    def _tidy(self, repository: Repository) -> str:
        """A person brings a repository in order, and takes what the primary has into it. A lock of ours is not theirs
        to break: it says so."""
        if repository.lock is not None and repository.lock.mark:
            return "tidy: hermesd is at work"
        if repository.gone:  # It comes back as it went, by a person's hand.
            repository.good.add(repository.tip)
        repository.lock, repository.in_progress, repository.gone = None, "", False
        if repository.branch != BRANCH:
            repository.branch, repository.files = BRANCH, repository.tip
        if repository.edits:
            self._commit(repository, f"{repository.key}-{self.made}-tidy")
        primary = self.remotes_of(repository.key)[0]
        if not self.contains(repository.tip, primary.tip) and not self.contains(primary.tip, repository.tip):
            merged = self.commit((repository.tip, primary.tip))
            repository.tip = repository.files = merged
            repository.objects |= self.history(merged)
            repository.good.add(merged)
        if primary.state == "well" and self.contains(repository.tip, primary.tip):
            primary.tip = repository.tip  # And shares it.
        return "tidy"

    # What must hold while no upgrade goes on.

    def broken(self, repository: Repository) -> str:
        """What is wrong with a repository at rest; "" if nothing is."""
        if repository.worktrees:
            return f"a worktree is left: {sorted(repository.worktrees)}"
        if repository.gone:
            return ""
        if repository.lock is not None and repository.lock.mark:
            return f"index.lock of {repository.lock.mark} is left"
        if repository.branch == BRANCH and repository.files != repository.tip:
            return f"its work tree holds {repository.files[:25]} and its branch is at {repository.tip[:12]}"
        if repository.tip not in repository.good:
            return f"its branch is at {repository.tip[:12]}, where nothing was verified and nobody has put it"
        if lost := repository.theirs - self.changes(repository.tip):
            return f"commits of a person are lost: {sorted(lost)[:3]}"
        if repository.edits != repository.uncommitted:
            return f"a person's uncommitted work has changed: {sorted(repository.edits ^ repository.uncommitted)[:3]}"
        return ""
