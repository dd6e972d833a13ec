"""The views of upgrades, and what the memory behind them learns: from the events of a few nights, by the real saga."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from story import Story
from upgrade_facts import DEFAULTS, NEW, OLD, failed, integrity, probe, remote, repo

from ledger.reader import read
from policies.upgrade import saga
from state import snapshot, upgrade_views, upgrades, views
from state.audit import audit
from state.graph import Graph, Run, is_container
from state.projector import fold

Json = Any
SCHEMAS = Path(__file__).parent.parent / "docs" / "state"
SEVENTEEN = {
    "auto_safe_upgrade_summary", "auto_safe_upgrade_state", "auto_safe_upgrade_state_history", "remote_health",
    "runtime_intelligence", "runtime_resource_state", "runtime_resource_telemetry", "agent_coordination_state",
    "coordination_leases", "global_orchestration_plan", "runtime_consensus_state", "runtime_topology_graph",
    "remote_federation_state", "federation_topology_state", "control_plane_integrity", "rollback_intelligence",
    "live_runtime_control_plane",
}  # fmt: skip


class Nights(Story):
    """A job of three repositories; b depends on a. `look` and `try_` say what steps find."""

    def __init__(self) -> None:
        super().__init__()
        fields = ("key", "path", "remotes", "depends_on", "canary", "verify")
        repos = [repo("a", remotes={"primary": "p", "mirror": "m"}), repo("b", depends_on=["a"]), repo("c")]
        self.define("nightly", kind="upgrade", repos=[{name: one[name] for name in fields} for one in repos])
        self.number = 0
        self.looks: dict[str, Json] = {}
        self.proofs: dict[str, int] = {}
        self.at: dict[str, str] = {}

    def night(self, *, until: str = "") -> str:
        """One whole cycle; or until the first step of this kind would begin."""
        self.number += 1
        self.pass_ms(86_400_000)
        run = self.start("nightly", f"r{self.number}")
        for _ in range(200):
            decided = self.plan().decisions
            waiting = [r for r in self.graph.holding.values() if not is_container(r.spec)]
            if until and any(r.step.startswith(until) for r in self.graph.holding.values()):
                break
            for child in waiting:
                self.end_step(child)
            self.react()
            planned = saga.planned(self.graph, self.wall_ms, lambda: DEFAULTS)
            for event in planned:
                self.record(event)
            self.react()
            if not (decided or waiting or planned):
                break
        return run

    def end_step(self, run: Run) -> None:
        self.begin(run.name)
        if run.spec["kind"] == "git":
            event = saga.told(self.graph, self.run(run.name), self.result(run), "as told")
            if event is not None:
                self.record(event)
            self.end(run.name)
            return
        key = self.run(run.parent).spec["key"]
        code = self.proofs.get(f"{key} {run.step}", 0)
        self.end(run.name, "failed" if code else "succeeded", code=code)

    def result(self, run: Run) -> Json:
        verb, args = run.spec["verb"], run.spec["args"]
        if verb == "integrity":
            told = [{"seq": 3, "hash": "ab", "again": "ab"}]
            return integrity(decisions=told, decisions_compared=1)
        if verb == "probe":
            here = {"base": self.at.get(args["key"], OLD), "head": self.at.get(args["key"], OLD), "path": args["path"]}
            return probe(args["key"], **here) | self.looks.get(args["key"], {})
        key = self.run(run.parent).spec["key"]
        if verb in ("apply", "rollback"):
            self.at[key] = args["new"] if verb == "apply" else args["old"]
        commit = self.at.get(key, OLD)
        return {
            "step": verb, "ok": True, "problem": "", "words": "", "branch": "main", "commit": commit, "clean": True,
            "at": "old" if commit == args["old"] else "new", "worktree": verb not in ("clean",),
        }  # fmt: skip

    def view(self, name: str) -> Json:
        data = views.render(self.graph, self.ledger.head)[views.file_of(name)]
        return [json.loads(line) for line in data.splitlines()] if name.endswith("history") else json.loads(data)

    def outcomes(self, run: str) -> dict[str, str]:
        return {key: data["outcome"] for key, data in self.graph.upgrades[run].settled.items()}


@pytest.fixture(scope="module")
def lived() -> Nights:
    """Three nights: all well; the mirror takes over and verify of b fails; nothing new, b is gone and c dirty."""
    story = Nights()
    story.looks["a"] = {"remotes": {"primary": remote(), "mirror": remote()}}
    assert story.outcomes(story.night()) == {"a": "upgraded", "b": "upgraded", "c": "upgraded"}
    newer = {"candidate": "e" * 40}
    story.looks["a"] = newer | {"remotes": {"primary": failed("timeout"), "mirror": remote(ref="e" * 40)}}
    story.looks["b"] = newer | {"remotes": {"primary": remote(ref="e" * 40)}}
    story.looks["c"] = {"behind": 0, "remotes": {"primary": remote()}}
    story.proofs["b verify"] = 1
    assert story.outcomes(story.night()) == {"a": "upgraded", "b": "rolled_back", "c": "unchanged"}
    story.looks["a"] = {"behind": 0, "ahead": 1, "candidate": "e" * 40, "remotes": {
        "primary": remote(ref="e" * 40), "mirror": remote(ref="e" * 40)}}  # fmt: skip
    story.looks["b"] = {"ok": False, "problem": {"class": "missing", "words": "nothing there"}, "remotes": {}}
    story.looks["c"] = {"dirty": ["x.c"], "dirty_count": 1}
    assert story.outcomes(story.night()) == {"a": "unchanged", "b": "needs_person", "c": "deferred"}
    return story


def told(view: Json, key: str, **more: str) -> Json:
    wanted = {"repository": key} | more
    rows = next(rows for name, rows in view.items() if name in ("repositories", "remotes"))
    return next(row for row in rows if wanted.items() <= row.items())


def test_each_of_the_seventeen_has_a_schema_and_keeps_to_it(lived: Nights) -> None:
    assert {path.name.removesuffix(".schema.json") for path in SCHEMAS.glob("*.schema.json")} >= SEVENTEEN
    for name in sorted(SEVENTEEN):
        schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
        Draft202012Validator.check_schema(schema)
        found = lived.view(name)
        for one in found if isinstance(found, list) else [found]:
            wrong = [
                f"{error.json_path}: {error.message[:200]}" for error in Draft202012Validator(schema).iter_errors(one)
            ]
            assert wrong == [], name


@pytest.mark.parametrize("until", ["probe", "repo", "fetch", "verify"])
def test_they_keep_to_it_in_the_middle_of_a_night_too(until: str) -> None:
    story = Nights()
    story.night(until=until)
    test_each_of_the_seventeen_has_a_schema_and_keeps_to_it(story)
    phase = story.view("auto_safe_upgrade_summary")["upgrades"][0]["phase"]
    assert phase == ("probing" if until == "probe" else "executing")


def test_a_house_without_upgrades_has_no_file_of_theirs() -> None:
    story = Story()
    story.define("a")
    files = views.render(story.graph, story.ledger.head)
    ours = {views.file_of(name) for name in (*upgrade_views.VIEWS, upgrade_views.HISTORY)}
    assert not ours & files.keys()
    assert "upgrades" not in json.loads(files["global_orchestration_plan.json"])


def test_replaying_the_ledger_gives_every_view_back_to_the_byte(lived: Nights) -> None:
    views.publish(lived.disk, lived.graph, lived.ledger.head)
    again = fold(Graph(), read(lived.disk))
    assert views.render(again, lived.ledger.head) == views.render(lived.graph, lived.ledger.head)
    head = lived.ledger.head
    kept = snapshot.decode(snapshot.encode(lived.graph, head, "x"), "x")
    assert kept is not None
    assert views.render(kept.graph, head) == views.render(lived.graph, head)
    assert audit(lived.disk, lived.graph.here.code).ok


def test_an_edited_history_is_found_by_the_auditor(lived: Nights) -> None:
    views.publish(lived.disk, lived.graph, lived.ledger.head)
    file = f"{views.FOLDER}/{views.file_of(upgrade_views.HISTORY)}"
    whole = lived.disk.read(file)
    lived.disk.corrupt(file, whole.replace(b"rolled_back", b"upgraded"))
    found = audit(lived.disk, lived.graph.here.code)
    lived.disk.corrupt(file, whole)
    assert [finding.where for finding in found.findings] == [file]


def test_the_history_has_one_line_for_each_settled_cycle_in_order(lived: Nights) -> None:
    stamp, *lines = lived.view(upgrade_views.HISTORY)
    assert stamp["head"]["seq"] == lived.ledger.head.seq
    settled = [record.data for record in read(lived.disk) if record.type == "upgrade.settled"]
    assert sorted((line["run"], line["repository"], line["outcome"]) for line in lines) == sorted(
        (data["run"], data["key"], data["outcome"]) for data in settled
    )
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)


def test_what_is_known_of_remotes_is_what_the_probes_found(lived: Nights) -> None:
    health, federation = lived.view("remote_health"), lived.view("remote_federation_state")
    primary, mirror = told(health, "a", role="primary"), told(health, "a", role="mirror")
    assert (primary["on_probation"], primary["healthy_in_row"], primary["probes"]) == (True, 1, 3)
    assert (mirror["health"], mirror["on_probation"]) == (1.0, False)
    assert primary["health"] < 1
    chosen = told(federation, "a")
    assert chosen["remote"] == "mirror"
    assert [(one["from"], one["to"]) for one in chosen["promotions"]] == [("primary", "mirror")]
    assert chosen["promotions"][0]["why"].startswith("timeout")


def test_what_could_be_rolled_back_and_what_had_to_be(lived: Nights) -> None:
    view = lived.view("rollback_intelligence")
    a, b, c = (told(view, key) for key in "abc")
    assert a["restore"] == {
        "possible": True, "from": "e" * 40, "to": NEW, "command": "hermesd upgrade rollback a",
    }  # fmt: skip
    assert (b["last_known_good"], b["restore"]["possible"], b["failed_commits"]) == (NEW, False, {"e" * 40: 1})
    assert [row["outcome"] for row in b["history"]] == ["upgraded", "rolled_back"]
    assert c["last_known_good"] == NEW
    assert b["next_rollback_probability"] > a["next_rollback_probability"]


def test_intelligence_says_how_much_it_has_seen(lived: Nights) -> None:
    view = lived.view("runtime_intelligence")
    a, b = told(view, "a"), told(view, "b")
    assert a["observations"] == {"cycles": 3, "attempts": 2, "proofs_remembered": 2}
    assert a["outcomes"] == {"unchanged": 1, "upgraded": 2}
    assert b["stability"] < a["stability"] == 1
    assert b["fragile_files"] == [{"file": "a.c", "attempts": 2, "failed": 1}]
    assert 0 < a["confidence"] < 0.5


def test_the_summary_and_the_state_tell_the_latest_night(lived: Nights) -> None:
    (summary,) = lived.view("auto_safe_upgrade_summary")["upgrades"]
    assert (summary["phase"], summary["gate_holds"]) == ("over", True)
    assert summary["outcomes"] == {"deferred": 1, "needs_person": 1, "unchanged": 1}
    state = lived.view("auto_safe_upgrade_state")
    assert told(state, "c")["reason"] == "it holds work that is not committed: x.c"
    assert [one["agrees"] for one in lived.view("runtime_consensus_state")["decisions"]] == [True]


def test_deleting_the_memory_is_no_loss(lived: Nights) -> None:
    before = [upgrades.told(one) for one in upgrades.memories(lived.graph)]
    again = fold(Graph(), read(lived.disk))
    assert [upgrades.told(one) for one in upgrades.memories(again)] == before


def test_a_recorded_plan_is_reproduced_from_the_record_alone(lived: Nights) -> None:
    graph, compared = Graph(), 0
    for record in read(lived.disk):
        if record.type == "upgrade.planned":
            run = graph.active[record.data["run"]]
            question = saga.question_of(graph, run, record.data["wall_ms"], record.data["policy"])
            answer = saga.plan_upgrade(question)
            assert answer["decision_hash"] == record.data["decision_hash"]
            compared += 1
        fold(graph, [record])
    assert compared == 3
