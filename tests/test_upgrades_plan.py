"""The upgrade planner: one verdict for each repository, a total order, one failure of the gate stops all, and a hash
that tells one question from another and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upgrade_facts import (
    NEW,
    NIGHT,
    OLD,
    OTHER,
    change,
    failed,
    integrity,
    policy,
    probe,
    question,
    remote,
    repo,
)

from ledger.record import LINE_BYTES_MAX
from policies.upgrade import coordination
from policies.upgrade.facts import ROLES, Answer, Question
from policies.upgrade.plan import GROUPS, VOLATILE, groups, hash_of, plan_upgrade
from policies.upgrade.spec import REPOS_MAX
from state import intelligence, upgrades

Json = Any
DAY_MS = 86_400_000


def verdicts(answer: Answer) -> dict[str, str]:
    return {row["key"]: row["verdict"] for row in answer["repos"]}


def one(answer: Answer, key: str = "a") -> dict[str, Json]:
    return dict(next(row for row in answer["repos"] if row["key"] == key))


def plan_of(found: Json = None, spec: Json = None, **more: Json) -> dict[str, Json]:
    """The plan of a single repository `a`."""
    return one(plan_upgrade(question([repo("a", **(spec or {}))], {"a": probe("a", **(found or {}))}, **more)))


def test_a_clean_repository_behind_its_remote_is_upgraded() -> None:
    row = plan_of()
    assert (row["verdict"], row["old"], row["new"], row["role"], row["lane"]) == ("granted", OLD, NEW, "primary", 0)
    assert 0 < row["risk"] < 0.1


def broken(kind: str) -> dict[str, Json]:
    return {"ok": False, "problem": {"class": kind, "words": ""}, "base": None, "candidate": None, "remotes": {}}


@pytest.mark.parametrize(
    ("found", "verdict", "recommendation", "says"),
    [
        (broken("missing"), "needs_person", "repair", "nothing at its path"),
        (broken("not-a-repository"), "needs_person", "repair", "no git repository"),
        (broken("not-yours"), "needs_person", "repair", "another user"),
        (broken("timeout"), "deferred", "repair", "in time"),
        ({"fsck_ok": False}, "needs_person", "repair", "fsck"),
        ({"bare": True}, "needs_person", "repair", "bare"),
        ({"in_progress": "rebase"}, "needs_person", "hold", "a rebase is in progress"),
        ({"unborn": True, "base": None, "head": None}, "needs_person", "hold", "has no commit"),
        ({"locks": ["index.lock"]}, "deferred", "hold", "index.lock"),
        ({"detached": True, "branch": ""}, "deferred", "hold", "on no branch"),
        ({"branch": "feature"}, "deferred", "hold", "on branch feature, not on main"),
        (
            {"dirty": [f"f{n}" for n in range(9)], "dirty_count": 60}, "deferred", "hold",
            "not committed: f0, f1, f2, f3, f4 and 55 more",
        ),
        ({"remotes": {"primary": remote(ref=OLD)}, "candidate": OLD, "behind": 0}, "unchanged", "skip", "newest"),
        ({"behind": 0, "ahead": 3}, "unchanged", "skip", "3 commits more"),
        ({"behind": 2, "ahead": 1}, "held", "hold", "only here"),
        ({"obstructing": ["new.c"]}, "deferred", "hold", "new.c"),
        ({"change": change(submodules=True)}, "held", "hold", "submodule"),
        ({"change": None}, "deferred", "hold", "could not be fetched"),
        ({"disk_free_bytes": 1 << 20}, "deferred", "upgrade", "no room"),
        ({"remotes": {"primary": failed("auth")}, "candidate": None}, "deferred", "repair", "primary (auth)"),
        ({"remotes": {"primary": failed("dns")}, "candidate": None}, "deferred", "skip", "primary (dns)"),
        ({"remotes": {"primary": remote(contains_base=False)}}, "held", "hold", "rewritten"),
        ({"remotes": {"primary": remote(failure="rewritten-history")}}, "held", "hold", "rewritten"),
        ({"remotes": {"primary": remote(ref=None)}, "candidate": None}, "deferred", "repair", "no-branch"),
        ({"remotes": {"primary": remote(contains_base=None)}}, "deferred", "skip", "unproven"),
    ],
)  # fmt: skip
def test_what_keeps_a_repository_from_being_upgraded(found: Json, verdict: str, recommendation: str, says: str) -> None:
    row = plan_of(found)
    assert (row["verdict"], row["recommendation"]) == (verdict, recommendation)
    assert says in row["reason"]
    assert row["lane"] == -1


def test_rebase_brings_two_histories_together_and_a_tag_that_nothing_matches_is_no_news() -> None:
    assert plan_of({"behind": 2, "ahead": 1}, {"strategy": "rebase"})["verdict"] == "granted"
    nothing: Json = {"remotes": {"primary": remote(ref=None)}, "candidate": None, "behind": 0}
    assert plan_of(nothing, {"strategy": "tag:v2.*"})["verdict"] == "unchanged"
    nothing["remotes"]["primary"]["failure"] = "not-found"
    assert plan_of(nothing, {"strategy": "tag:v2.*"})["verdict"] == "unchanged"


def test_one_behind_a_repository_that_waits_waits_and_one_behind_an_unchanged_one_does_not() -> None:
    repos = [
        repo("a"),
        repo("b", depends_on=["a"]),
        repo("c", depends_on=["b"]),
        repo("d", depends_on=["e"]),
        repo("e"),
    ]
    current = probe("e", remotes={"primary": remote(ref=OLD)}, candidate=OLD, behind=0)
    answer = plan_upgrade(question(repos, {"a": probe("a", dirty=["x"], dirty_count=1), "e": current}))
    assert verdicts(answer) == {
        "a": "deferred", "b": "deferred", "c": "deferred", "d": "granted", "e": "unchanged",
    }  # fmt: skip
    assert one(answer, "c")["reason"] == "it depends on b, which is deferred"


def test_a_cycle_blocks_those_on_it_and_no_others() -> None:
    repos = [
        repo("a", depends_on=["b"]), repo("b", depends_on=["a"]), repo("c", depends_on=["a"]), repo("d"), repo("e"),
        repo("me", depends_on=["me"]),
    ]  # fmt: skip
    answer = plan_upgrade(question(repos))
    assert verdicts(answer) == {
        "a": "blocked", "b": "blocked", "c": "deferred", "d": "granted", "e": "granted", "me": "blocked",
    }  # fmt: skip
    assert one(answer, "a")["reason"] == "its dependencies go in a circle: a -> b -> a"
    assert answer["topology"]["cycles"] == [["a", "b", "a"], ["me", "me"]]


def test_a_chain_behind_a_cycle_waits_to_its_end_whatever_its_names() -> None:
    repos = [repo("a", depends_on=["b"]), repo("b", depends_on=["z"]), repo("z", depends_on=["z"])]
    assert verdicts(plan_upgrade(question(repos))) == {"a": "deferred", "b": "deferred", "z": "blocked"}


def test_the_order_is_depth_then_recommendation_then_priority_then_risk_then_key() -> None:
    repos = [
        repo("deep", depends_on=["plain"], priority=100), repo("held"), repo("first", priority=90), repo("risky"),
        repo("plain"), repo("twin"),
    ]  # fmt: skip
    probes = {
        "held": probe("held", change=change(submodules=True)),
        "risky": probe("risky", change=change(insertions=50_000)),
    }
    answer = plan_upgrade(question(repos, probes))
    assert [row["key"] for row in answer["repos"]] == ["first", "plain", "twin", "risky", "held", "deep"]


def test_a_lease_of_somebody_else_defers_and_one_of_this_run_does_not() -> None:
    held = {"holder": "an editor", "token": 0, "foreign": True, "holder_alive": True}
    row = plan_of(leases={"repo:a": held})
    assert (row["verdict"], row["reason"]) == ("deferred", "lease repo:a is held by an editor")
    mine = {"holder": "nightly.1", "token": 3, "foreign": False, "holder_alive": True}
    leases = [{"key": "fleet", "holder": "nightly.1", "token": 3, "foreign": False, "expired": False}]
    assert plan_of(leases={"fleet": mine}, integrity=integrity(leases=leases))["verdict"] == "granted"


def test_pressure_lowers_the_lanes_and_then_defers_everything() -> None:
    repos = [repo(f"r{n}") for n in range(6)]

    def lanes(**resources: int) -> tuple[int, set[str]]:
        asked = question(repos)
        asked["resources"] = {**asked["resources"], **resources}
        answer = plan_upgrade(asked)
        return answer["coordination"]["lanes"], {row["verdict"] for row in answer["repos"]}

    assert lanes() == (4, {"granted"})
    assert lanes(running=9) == (2, {"granted"})
    assert lanes(memory_free_bytes=(8 << 30) * 5 // 100) == (1, {"granted"})
    assert lanes(memory_free_bytes=1 << 20) == (0, {"deferred"})


def test_those_with_remotes_on_one_host_share_its_budget() -> None:
    here = [repo(f"here{n}", remotes={"primary": "x"}) for n in range(6)]
    there = [repo(f"there{n}", remotes={"primary": "x"}) for n in range(6)]
    urls = {"here": "https://busy.example:8443/x.git", "ther": "ssh://git@idle.example/x.git"}
    probes = {
        one["key"]: probe(one["key"], remotes={"primary": remote(url=urls[one["key"][:4]])}) for one in here + there
    }
    asked = question(here + there, probes, policy=policy(uses_per_remote_host=2).values())
    answer = plan_upgrade(asked)
    of_host: dict[str, set[int]] = {}
    for row in answer["repos"]:
        of_host.setdefault(row["key"][:4], set()).add(row["lane"])
    assert {host: len(lanes) for host, lanes in of_host.items()} == {"here": 2, "ther": 2}
    assert answer["coordination"]["hosts"] == {"busy.example": 6, "idle.example": 6}


HEALTHY, ILL = 1, 0


def remembered(key: str = "a", **remotes: list[int]) -> dict[str, Json]:
    """What is remembered after probes a day apart, the last of them just now; `key` is behind its remotes."""
    known: dict[str, Json] = {}
    for role, probes in remotes.items():
        told = [[NIGHT - DAY_MS * (len(probes) - 1 - n), well] for n, well in enumerate(probes)]
        known[role] = {"url": "u", "failure": "" if probes[-1] else "timeout", "words": "", "probes": told}
    return {**upgrades.told(upgrades.empty(key)), "remotes": known}


def test_a_remote_that_failed_is_preferred_again_only_after_three_healthy_probes() -> None:
    both = {"remotes": {"primary": remote(), "mirror": remote(ref=NEW)}}
    spec = {"remotes": {"primary": "p", "mirror": "m"}}

    def chosen(*probes: int) -> str:
        return str(plan_of(both, spec, memory={"a": remembered(primary=[*probes], mirror=[1] * len(probes))})["role"])

    assert chosen(HEALTHY, HEALTHY) == "primary"
    assert chosen(HEALTHY, ILL, HEALTHY) == "mirror"
    assert chosen(ILL, HEALTHY, HEALTHY) == "mirror"
    assert chosen(ILL, HEALTHY, HEALTHY, HEALTHY) == "primary"


def test_one_on_probation_is_used_where_no_other_can_be() -> None:
    found = {"remotes": {"primary": remote(), "mirror": failed("refused")}}
    memory = {"a": remembered(primary=[ILL, HEALTHY], mirror=[ILL, ILL])}
    answer = plan_upgrade(question([repo("a")], {"a": probe("a", **found)}, memory=memory))
    assert (one(answer)["role"], one(answer)["verdict"]) == ("primary", "granted")
    assert "although on probation" in answer["federation"]["a"]["why"]["primary"]
    assert answer["federation"]["a"]["why"]["mirror"].startswith("refused: ")


def test_a_remote_whose_history_lost_the_branch_is_never_promoted() -> None:
    found = {"remotes": {"primary": remote(contains_base=False, ref=OTHER), "cache": remote()}}
    row = plan_of(found, {"remotes": {"primary": "p", "cache": "c"}})
    assert (row["role"], row["verdict"]) == ("cache", "granted")


def test_the_figures_are_those_of_the_remote_that_is_chosen() -> None:
    memory = {"a": remembered(primary=[ILL, HEALTHY], mirror=[HEALTHY, HEALTHY])}

    def row(**offered: Json) -> dict[str, Json]:
        return plan_of({"remotes": {"primary": remote(), "mirror": remote(**offered)}}, memory=memory)

    upgraded = row(ref=OTHER, behind=3, change=change(files_count=7))
    assert (upgraded["verdict"], upgraded["role"], upgraded["new"]) == ("granted", "mirror", OTHER)
    assert upgraded["reason"].startswith("3 commits and 7 files from mirror")
    assert row(ref=OTHER, behind=3, ahead=1, change=change())["verdict"] == "held"
    assert row(ref=OTHER)["verdict"] == "deferred", "of what could not be fetched nothing is known"
    assert row(ref=OLD)["verdict"] == "unchanged"


def lived(*nights: tuple[str, str, Json], files: tuple[str, ...] = ("a.c",)) -> dict[str, Json]:
    """The memory after nights, each with an outcome, the step that failed, and the commit it was about."""
    known = None
    for number, (outcome, step, new) in enumerate(nights):
        data = {
            "run": f"n{number}", "job": "nightly", "key": "a", "path": "/src/a", "outcome": outcome, "reason": "",
            "old": OLD, "new": new, "risk": 0.1, "attempted": outcome not in ("unchanged", "deferred"),
            "step": step, "role": "primary", "url": "u",
        }  # fmt: skip
        known = upgrades.settled(known, data, files, NIGHT - DAY_MS * (len(nights) - number))
    return upgrades.told(known)


def test_a_commit_that_failed_its_proof_twice_is_held_until_there_is_another() -> None:
    memory = {"a": lived(("rolled_back", "verify", NEW), ("failed", "canary", NEW))}
    loose = policy(risk={"hold_at": 1.0}).values()
    row = plan_of(memory=memory, policy=loose)
    assert (row["verdict"], "failed its proof here 2 times" in row["reason"]) == ("held", True)
    moved = {"candidate": OTHER, "remotes": {"primary": remote(ref=OTHER)}}
    assert plan_of(moved, memory=memory, policy=loose)["verdict"] == "granted"
    network = {"a": lived(("failed", "fetch", NEW), ("failed", "fetch", NEW), ("failed", "fetch", NEW))}
    assert plan_of(memory=network)["verdict"] == "granted"


def test_one_left_at_a_commit_that_failed_its_proof_needs_a_person_until_there_is_a_newer_one() -> None:
    memory = {"a": lived(("needs_person", "verify", NEW))}
    there = {"base": NEW, "head": NEW, "candidate": NEW, "behind": 0, "change": None}
    row = plan_of(there, memory=memory)
    assert (row["verdict"], "was not rolled back" in row["reason"]) == ("needs_person", True)
    newer = {"base": NEW, "head": NEW, "candidate": OTHER, "remotes": {"primary": remote(ref=OTHER)}}
    assert plan_of(newer, memory=memory)["verdict"] == "granted"


def test_a_commit_that_a_person_rolled_back_is_not_brought_back_by_a_plan() -> None:
    data = {
        "run": "n", "job": "nightly", "key": "a", "path": "/src/a", "outcome": "rolled_back", "reason": "", "old": OLD,
        "new": NEW, "risk": None, "attempted": True, "step": "person", "role": "primary", "url": "u",
    }  # fmt: skip
    row = plan_of(memory={"a": upgrades.told(upgrades.settled(None, data, (), NIGHT - DAY_MS))})
    assert (row["verdict"], "rolled back by a person" in row["reason"]) == ("held", True)


def test_each_part_of_the_risk_can_be_seen_and_what_failed_here_raises_it() -> None:
    fresh = plan_of()
    failures = [("rolled_back", "verify", f"{n:040}") for n in range(9)]
    row = plan_of(memory={"a": lived(("upgraded", "", OTHER), *failures)})
    raised = {name for name, value in row["parts"].items() if value > fresh["parts"][name]}
    assert {"rollback_rate", "fragile_files"} <= raised
    assert row["verdict"] == "held"
    assert "rollback rate" in row["reason"]
    assert row["details"]["worst_file"] == "a.c"
    other_file = plan_of({"change": change(files=["b.c"])}, memory={"a": lived(("upgraded", "", OTHER), *failures)})
    assert other_file["parts"]["fragile_files"] == 0


def test_an_hour_that_fails_more_often_than_others_raises_the_risk_at_that_hour_only() -> None:
    memory = {"a": {**lived(("upgraded", "", OTHER)), "hours": {"3": [9, 7], "40": [30, 1]}}}
    monday_three = plan_of(memory=memory)["parts"]["risky_hour"]
    assert plan_of(memory=memory, wall_ms=NIGHT + 3_600_000)["parts"]["risky_hour"] < monday_three


def test_a_correction_bends_the_risk_and_never_turns_its_order() -> None:
    bent = policy(risk={"calibration": [[0.02, 0.1], [0.2, 0.3]]}).values()
    row = plan_of(policy=bent)
    assert row["details"]["raw_risk"] == plan_of()["risk"]
    assert 0.1 < row["risk"] < 0.3


Change = Callable[[Question], None]


def gate_breaks() -> dict[str, tuple[str, Change]]:
    def of(**more: Json) -> Change:
        return lambda asked: asked["integrity"].update(more)  # type: ignore[typeddict-item]

    ours = {"holder": "nightly.1", "token": 3, "foreign": False, "holder_alive": True}
    file = {"key": "fleet", "holder": "nightly.1", "token": 3, "foreign": False, "expired": False}

    def leases(alive: bool, *files: Json) -> Change:
        def act(asked: Question) -> None:
            asked["leases"] = {"fleet": {**ours, "holder_alive": alive}}  # type: ignore[typeddict-item]
            asked["integrity"]["leases"] = list(files)

        return act

    chain, views = "the ledger's chain verifies", "state files carry the ledger's head"
    reserved = "every granted reservation has a matching active lease"
    return {
        "a damaged segment": (chain, of(findings=[{"where": "ledger/1.jsonl", "what": "torn"}], findings_in_all=1)),
        "more findings than are told": (chain, of(ok=False, findings=[{"where": "state/x", "what": ""}],
                                                  findings_in_all=99)),
        "a ledger that could not be read": (chain, of(ok=False, words="killed", records=0)),
        "a decision that comes out otherwise": (
            "decisions are reproduced from their recorded inputs", of(decisions_differing=1),
        ),
        "a view of another past": (views, of(findings=[{"where": "state/runs.json", "what": "differs"}],
                                             findings_in_all=1)),
        "a lease without a living holder": (reserved, leases(False, file)),
        "a lease without its file": (reserved, leases(True)),
        "a lease file of another holder": (reserved, leases(True, {**file, "holder": "b"})),
        "two lease files of one key": ("active leases are unique by key", leases(True, file, {**file, "token": 9})),
        "an expired lease of ours": ("no lease held here has expired", leases(True, {**file, "expired": True})),
        "no room where the ledger is": ("the disk has room for the change", of(home_free_bytes=1)),
    }  # fmt: skip


@pytest.mark.parametrize("situation", gate_breaks())
def test_one_failure_of_the_gate_blocks_every_change(situation: str) -> None:
    invariant, strike = gate_breaks()[situation]
    current = probe("c", remotes={"primary": remote(ref=OLD)}, candidate=OLD, behind=0)
    asked = question([repo("a"), repo("b"), repo("c")], {"c": current})
    assert set(verdicts(plan_upgrade(asked)).values()) == {"granted", "unchanged"}
    strike(asked)
    answer = plan_upgrade(asked)
    assert invariant in [one["name"] for one in answer["gate"] if not one["ok"]]
    assert verdicts(answer) == {"a": "blocked", "b": "blocked", "c": "unchanged"}
    assert all(invariant in row["reason"] for row in answer["repos"] if row["verdict"] == "blocked")
    assert all(row["lane"] == -1 for row in answer["repos"])


def test_all_that_is_granted_together_must_fit_on_the_disk() -> None:
    probes = {key: probe(key, objects_bytes=3 << 30, disk_free_bytes=4 << 30) for key in "ab"}
    assert set(verdicts(plan_upgrade(question([repo("a"), repo("b")], probes))).values()) == {"blocked"}
    assert verdicts(plan_upgrade(question([repo("a")], {"a": probes["a"]}))) == {"a": "granted"}


# Any fleet at all.

KEYS = ["a", "b", "c", "d", "pid", "folder", "tick"]
SITUATIONS: list[dict[str, Json]] = [
    {}, {"dirty_count": 1, "dirty": ["x"]}, {"behind": 0, "ahead": 2}, {"ahead": 1}, {"detached": True, "branch": ""},
    broken("missing"), {"in_progress": "merge"}, {"change": change(insertions=10**6, files_count=900)},
    {"remotes": {"primary": failed("timeout"), "cache": remote()}}, {"change": None}, {"disk_free_bytes": 1},
    {"remotes": {"primary": remote(contains_base=False)}}, {"locks": ["index.lock"]},
]  # fmt: skip


@st.composite
def fleets(draw: st.DrawFn) -> Question:
    keys = draw(st.lists(st.sampled_from(KEYS), min_size=1, unique=True))
    repos = [
        repo(key, depends_on=sorted(draw(st.sets(st.sampled_from(keys), max_size=2))), priority=draw(st.integers(0, 2)))
        for key in keys
    ]
    probes = {key: probe(key, **copy.deepcopy(draw(st.sampled_from(SITUATIONS)))) for key in keys}
    leases = {
        f"repo:{key}": {"holder": "x", "token": 1, "foreign": True, "holder_alive": True}
        for key in draw(st.sets(st.sampled_from(keys), max_size=1))
    }
    failures = [("rolled_back", "verify", NEW)]
    memory = {key: lived(*failures * draw(st.integers(0, 3))) for key in draw(st.sets(st.sampled_from(keys)))}
    memory = {key: known for key, known in memory.items() if known}
    return question(repos, probes, leases=leases, memory=memory)


@given(fleets(), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_the_order_in_which_things_are_told_changes_nothing(asked: Question, chance: Any) -> None:
    def mixed(found: dict[str, Json]) -> dict[str, Json]:
        return {key: found[key] for key in chance.sample(sorted(found), len(found))}

    repos = list(asked["spec"]["repos"])
    chance.shuffle(repos)
    otherwise: Json = {
        **asked, "spec": {**asked["spec"], "repos": repos}, "probes": mixed(asked["probes"]),
        "leases": mixed(asked["leases"]), "memory": mixed(asked["memory"]),
    }  # fmt: skip
    assert plan_upgrade(otherwise) == plan_upgrade(asked)


@given(fleets())
@settings(max_examples=150, deadline=None)
def test_every_repository_has_one_verdict_and_nothing_is_granted_that_may_not_be(asked: Question) -> None:
    answer = plan_upgrade(asked)
    keys = [repo["key"] for repo in asked["spec"]["repos"]]
    assert sorted(row["key"] for row in answer["repos"]) == sorted(keys)
    found = verdicts(answer)
    cycles = {key for path in answer["topology"]["cycles"] for key in path}
    place = {row["key"]: number for number, row in enumerate(answer["repos"])}
    for one in asked["spec"]["repos"]:
        key, row = one["key"], answer["repos"][place[one["key"]]]
        assert row["reason"]
        assert (row["lane"] >= 0) == (row["verdict"] == "granted")
        if row["verdict"] == "granted":
            assert key not in cycles
            assert f"repo:{key}" not in asked["leases"]
            assert all(found[other] in ("granted", "unchanged") for other in one["depends_on"])
            assert all(place[other] < place[key] for other in one["depends_on"])
            assert "" not in (row["old"], row["new"], row["role"])
        if key in cycles:
            assert row["verdict"] == "blocked"
    assert orjson.loads(orjson.dumps(answer)) == answer
    assert hash_of(answer) == answer["decision_hash"]
    if any(not one["ok"] for one in answer["gate"]):
        assert "granted" not in found.values()


def test_every_input_that_may_change_the_answer_changes_the_hash_and_names_its_group() -> None:
    asked = question([repo("a"), repo("folder")], memory={"a": lived(("upgraded", "", OTHER))})
    before = plan_upgrade(asked)
    changes: dict[str, Change] = {
        "clock": lambda q: q.update(wall_ms=NIGHT + 1),
        "spec": lambda q: q["spec"]["repos"][0].update(priority=51),
        "probes": lambda q: q["probes"]["folder"]["remotes"]["primary"].update(ref=OTHER),
        "memory": lambda q: q["memory"]["a"].update(attempts=7),
        "leases": lambda q: q["leases"].update(x={"holder": "h", "token": 1, "foreign": True, "holder_alive": True}),
        "resources": lambda q: q["resources"].update(running=2),
        "integrity": lambda q: q["integrity"].update(records=10),
        "policy": lambda q: q["policy"].update(tries_per_commit=3),
        "code": lambda q: q.update(code="other"),
    }
    assert tuple(changes) == GROUPS == tuple(groups(asked))
    for group, act in changes.items():
        other = copy.deepcopy(asked)
        act(other)
        after = plan_upgrade(other)
        assert after["decision_hash"] != before["decision_hash"]
        assert [name for name in GROUPS if after["inputs"][name] != before["inputs"][name]] == [group]


def canonical(value: Json) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def fields(value: Json, path: tuple[Json, ...] = ()) -> list[tuple[Json, ...]]:
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in fields(inner, (*path, key))]
    return [path]


def test_each_field_of_the_facts_is_hashed_or_declared_volatile() -> None:
    asked = question([repo("a")], memory={"a": remembered(primary=[1])})
    before = canonical(groups(asked))
    for group in ("probes", "integrity", "memory"):
        for path in fields(asked[group]):  # type: ignore[literal-required]
            other: Json = copy.deepcopy(asked)
            inner = other[group]
            for part in path[:-1]:
                inner = inner[part]
            old = inner[path[-1]]
            inner[path[-1]] = (not old) if isinstance(old, bool) else {"class": "x"} if old is None else [old]
            assert (canonical(groups(other)) == before) == (path[-1] in VOLATILE), path


def test_what_is_volatile_changes_nothing_unless_the_answer_is_another() -> None:
    asked = question([repo("a")])
    before = plan_upgrade(asked)["decision_hash"]
    for act in (
        lambda q: q["probes"]["a"]["remotes"]["primary"].update(latency_ms=900, words="Cloning into"),
        lambda q: q["probes"]["a"].update(disk_free_bytes=1 << 39, fsck_words="ok"),
        lambda q: q["integrity"].update(home_free_bytes=1 << 39, words="took 3 s"),
    ):  # type: Change
        other = copy.deepcopy(asked)
        act(other)
        assert plan_upgrade(other)["decision_hash"] == before
    other = copy.deepcopy(asked)
    other["probes"]["a"]["disk_free_bytes"] = 0
    assert plan_upgrade(other)["decision_hash"] != before


@given(st.lists(st.sampled_from(["upgraded", "rolled_back", "failed", "unchanged", "deferred"]), max_size=60))
@settings(max_examples=50, deadline=None)
def test_rates_are_probabilities_and_one_more_failure_never_makes_them_better(outcomes: list[str]) -> None:
    def rate(*more: str) -> float:
        steps = [
            (outcome, "verify" if outcome in ("rolled_back", "failed") else "", NEW) for outcome in [*outcomes, *more]
        ]
        return intelligence.rollback_rate(lived(*steps) if steps else {}, policy().priors)

    assert 0 < rate() < 1
    assert rate("rolled_back") >= rate("upgraded")
    known = lived(*[(outcome, "", NEW) for outcome in outcomes]) if outcomes else {}
    assert 0 <= intelligence.stability(known) <= 1
    assert 0 <= intelligence.confidence(known) < 1


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(60_000, 10**10))
@settings(max_examples=200, deadline=None)
def test_what_a_remote_did_is_forgotten_by_half_in_each_half_life(age_ms: int, more_ms: int, half_life_ms: int) -> None:
    now = intelligence.faded(1.0, age_ms, half_life_ms)
    assert 0 <= intelligence.faded(1.0, age_ms + more_ms, half_life_ms) <= now <= 1
    assert intelligence.faded(1.0, age_ms + half_life_ms, half_life_ms) == pytest.approx(now / 2)


@given(st.lists(st.sampled_from(["one", "two", "three"]), max_size=40), st.integers(1, 8), st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_lanes_that_are_obeyed_keep_the_budget_of_every_host(hosts: list[str], count: int, uses: int) -> None:
    order = [(f"r{number}", host) for number, host in enumerate(hosts)]
    found = coordination.lanes(order, count, uses)
    assert found.keys() == {key for key, _ in order}
    assert all(0 <= lane < count for lane in found.values())
    for host in set(hosts):
        assert len({found[key] for key, other in order if other == host}) <= uses


@pytest.mark.parametrize(
    "situation",
    [
        {},
        {"dirty": [f"{'y' * 80}{number}" for number in range(50)], "dirty_count": 50},
        {"remotes": {role: failed("rewritten-history") for role in ROLES}, "candidate": None},
        {"fsck_ok": False},
    ],
)
def test_the_plan_of_as_many_repositories_as_a_job_may_have_fits_in_a_line_of_the_ledger(situation: Json) -> None:
    keys = [f"{number:03}{'x' * 53}" for number in range(REPOS_MAX)]
    urls = {role: f"https://{role}.example/x.git" for role in ROLES}
    repos = [repo(key, remotes=urls, depends_on=keys[max(0, n - 1) : n]) for n, key in enumerate(keys)]
    found = {"remotes": {role: remote(url=f"{url}{'z' * 60}") for role, url in urls.items()}} | situation
    asked = question(repos, {key: probe(key, **found) for key in keys})
    asked["integrity"]["decisions_differing"] = int("fsck_ok" in found)
    answer = plan_upgrade(asked)
    data = {"run": "r" * 100, "job": "j" * 64, "wall_ms": NIGHT, "policy": asked["policy"], **answer}
    assert len(orjson.dumps(data)) < LINE_BYTES_MAX - 4096


def test_ten_thousand_repositories_have_a_plan() -> None:
    keys = [f"r{number:05}" for number in range(10_000)]
    repos = [repo(key, depends_on=[keys[n - 1]] if n % 5 else []) for n, key in enumerate(keys)]
    asked = question(repos)
    answer = plan_upgrade(asked)
    assert {row["verdict"] for row in answer["repos"]} == {"granted"}
