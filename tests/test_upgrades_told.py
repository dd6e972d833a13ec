"""Upgrades as people are told of them: the picture, whether estimates were true, and what is wrong with a job file."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cli_shell import hermesd
from hypothesis import given, settings
from hypothesis import strategies as st
from test_upgrades_views import Nights
from upgrade_facts import policy, remote

from daemon.home import Home
from ledger.reader import read
from policies.job import InvalidJob, parse_job
from policies.upgrade import calibrate
from policies.upgrade.policy import adopt

Json = Any
REPO: Json = {"key": "a", "path": "/src/a", "remotes": {"origin": "origin"}}


def job(*repos: Json, **more: Json) -> Json:
    return {"name": "nightly", "kind": "upgrade", "schedule": "manual", "repos": list(repos), **more}


def commit(number: int) -> str:
    return f"{number:040x}"


@pytest.fixture(scope="module")
def lived() -> Nights:
    """Forty nights with something new in each; b fails its proof every third time."""
    story = Nights()
    for night in range(40):
        for key in "abc":
            offered = {"primary": remote(ref=commit(night))}
            story.looks[key] = {"candidate": commit(night), "remotes": offered}
        story.proofs["b verify"] = int(night % 3 == 2)
        story.night()
    return story


@pytest.fixture(scope="module")
def home(lived: Nights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("told") / "home"
    Home(path).make()
    for name, content in lived.disk.files().items():
        if name.startswith("ledger/"):
            (path / name).write_bytes(content)
    return path


def test_the_replayed_past_has_each_proof_once_with_the_risk_of_its_night(lived: Nights) -> None:
    tried = list(calibrate.replayed(read(lived.disk), policy()))
    settled = [r.data for r in read(lived.disk) if r.type == "upgrade.settled"]
    proofs = [d for d in settled if d["outcome"] in ("upgraded", "rolled_back")]
    assert [(one.run, one.key, one.estimated) for one in tried] == [(d["run"], d["key"], d["risk"]) for d in proofs]
    assert sum(one.failed for one in tried) == 13
    assert all(one.now == pytest.approx(one.estimated) for one in tried), "the same policy estimates the same"


def test_the_command_tells_reliability_and_brier_score(home: Path) -> None:
    said = hermesd("--home", home, "upgrade", "calibrate").stdout
    assert re.search(r"^120 upgrades came to a proof from .* 13 failed it", said, re.M)
    assert re.search(r"^Brier score as estimated +0\.\d{4} \(skill \+0\.\d{3}\)", said, re.M)
    assert "calibration: [[" in said
    told = json.loads(hermesd("--home", home, "--json", "upgrade", "calibrate").stdout)
    assert told["as_estimated"]["brier"] < told["failed"] / told["upgrades"], "better than knowing nothing"
    assert sum(one["upgrades"] for one in told["as_estimated"]["reliability"]) == 120
    adopt(policy().values(), {"risk": {"calibration": told["proposed"]}})


def test_the_picture_has_a_box_for_each_repository_and_an_arrow_for_each_dependency(home: Path) -> None:
    picture = ElementTree.fromstring(hermesd("--home", home, "upgrade", "graph").stdout)
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a", "b", "c"} <= set(texts)
    arrows = [p for p in picture.iter("{http://www.w3.org/2000/svg}path") if p.get("marker-end")]
    assert len(arrows) == 1
    mermaid = hermesd("--home", home, "upgrade", "graph", "--format", "mermaid").stdout
    assert mermaid.startswith("graph LR\n")
    assert '["b<br>' in mermaid
    assert mermaid.count("depends-on") == 1
    told = json.loads(hermesd("--home", home, "upgrade", "graph", "--format", "json").stdout)
    assert ["repository/b", "depends-on", "repository/a"] in told["edges"]
    wrong = hermesd("--home", home, "upgrade", "graph", "nightl", code=None)
    assert wrong.returncode
    assert "Did you mean 'nightly'?" in wrong.stderr


def test_what_if_tells_each_upgrade_as_one_run(home: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("max_running: 1\n")
    said = hermesd("--home", home, "whatif", "--policy", tmp_path / "policy.yaml", "--since", "1").stdout
    assert re.search(r"^started +40 +40$", said, re.M)
    assert re.search(r"^failed +13 +13$", said, re.M)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_a_true_forecaster_fits_and_a_correction_helps_one_who_exaggerates(seed: int) -> None:
    chance = Random(seed)
    rates = [chance.random() ** 2 for _ in range(600)]
    honest = [(rate, chance.random() < rate) for rate in rates]
    assert calibrate.skill(honest) > 0.1
    assert sum(one.fits for one in calibrate.reliability(honest)) >= 3
    loud = [(min(1.0, 2 * rate), failed) for rate, failed in honest]
    judged = calibrate.judged(loud)
    assert judged is not None
    assert judged.after < judged.before
    correction = calibrate.fitted(loud)
    assert [below for below, _ in correction] == sorted(below for below, _ in correction)
    assert [above for _, above in correction] == sorted(above for _, above in correction)


def test_too_little_of_the_past_proposes_nothing() -> None:
    assert calibrate.fitted([(0.1, True)] * 10) == ()
    assert calibrate.fitted([(0.1, False)] * 100) == ()
    assert calibrate.judged([]) is None
    assert calibrate.brier([]) == 0


def test_a_home_without_upgrades_is_told_so(tmp_path: Path) -> None:
    hermesd("init", "--home", tmp_path / "home")
    assert "No upgrade has come to a proof" in hermesd("--home", tmp_path / "home", "upgrade", "calibrate").stdout
    assert "no job upgrades repositories" in hermesd("--home", tmp_path / "home", "upgrade", "graph", code=None).stderr


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"remotes": {"upstream": "x"}}, "remotes: 'upstream' is no role of a remote. The roles are primary, origin"),
        ({"remotes": {"miror": "x"}}, "Did you mean 'mirror'?"),
        ({"remotes": {}}, "remotes: the list is empty"),
        ({"remotes": {"origin": "https://me:secret@host/x.git"}}, "holds a password or token"),
        ({"remotes": {"origin": f"https://{'t' * 40}@host/x.git"}}, "holds a password or token"),
        ({"remotes": {"origin": "ext::sh -c id"}}, "is no address of a remote"),
        ({"remotes": {"origin": "ext::sh"}}, "would make git run another program"),
        ({"remotes": {"origin": "--upload-pack=x"}}, "would make git run another program"),
        ({"remotes": {"origin": "ssh://-oProxyCommand=x/y"}}, "begins with a dash"),
        ({"remotes": {"origin": "-oProxyCommand=x:y"}}, "would make git run another program"),
        ({"remotes": {"origin": "ftp://host/x"}}, "is no way to reach a remote"),
        ({"remotes": {"origin": "some/where"}}, "neither a URL nor a whole path"),
        ({"depends_on": ["b"]}, "depends on 'b', which is no repository of this job"),
        ({"path": "src/a"}, "is no whole path. Begin with / or ~/"),
        ({"path": "/src/../a"}, "goes up by .."),
        ({"path": "/a\nb"}, "control character"),
        ({"branch": "-f"}, "begins with a dash"),
        ({"branch": "a..b"}, "holds '..'"),
        ({"branch": "x.lock"}, "ends with .lock"),
        ({"strategy": "fastforward"}, "Did you mean 'fast-forward'?"),
        ({"strategy": "tag:"}, "the tag pattern '' is empty"),
        ({"canary": "make smoke"}, "canary"),
        ({"canary": []}, "canary: the list is empty"),
        ({"key": "Core/Lib"}, "key: 'Core/Lib' cannot be used here"),
        ({"verify": ["make", "{{ secret.token }}"]}, "cannot stand here"),
        ({"colour": 1}, "unknown field 'colour'"),
    ],
)
def test_a_mistake_in_the_file_is_told_in_plain_words(change: Json, says: str) -> None:
    with pytest.raises(InvalidJob) as told:
        parse_job(job({**REPO, **change}))
    assert says in str(told.value)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"repos": [REPO, {**REPO, "path": "/src/b"}]}, "two repositories have the key 'a'"),
        ({"repos": [REPO, {**REPO, "key": "b"}]}, "'a' and 'b' are the same folder /src/a"),
        ({"repos": []}, "repos: the list is empty"),
        ({"retry": {"attempts": 3}}, "not tried again by `retry`"),
        ({"outputs": ["x"]}, "`outputs` has no meaning"),
        ({"cwd": "/"}, "`cwd` has no meaning"),
    ],
)
def test_a_mistake_about_the_whole_is_told_in_plain_words(more: Json, says: str) -> None:
    with pytest.raises(InvalidJob) as told:
        parse_job(job(REPO, **more))
    assert says in str(told.value)


def test_good_addresses_of_every_form_are_taken_and_the_order_in_the_file_does_not_matter() -> None:
    remotes = {
        "fallback": "/srv/mirror/a.git", "cache": "~/cache/a.git", "mirror": "https://me@host:8443/a.git",
        "origin": "upstream", "primary": "git@example.org:core/a.git",
    }  # fmt: skip
    one, two = {**REPO, "remotes": remotes, "strategy": "tag:v2.*"}, {**REPO, "key": "b", "path": "~/b"}
    first, second = parse_job(job(one, two)), parse_job(job(two, one))
    assert first.digest() == second.digest() == parse_job(first.canonical()).digest()
    assert list(first.canonical()["repos"][0]["remotes"]) == ["primary", "origin", "mirror", "cache", "fallback"]


def test_two_that_depend_on_each_other_are_no_mistake_of_the_file() -> None:
    parse_job(job({**REPO, "depends_on": "b"}, {**REPO, "key": "b", "path": "/b", "depends_on": "a"}))


def test_a_policy_override_reaches_into_the_weights_and_a_wrong_one_is_refused() -> None:
    assert policy(risk={"weights": {"staleness": 0.5}}).risk.weights.staleness == 0.5
    assert policy(risk={"weights": {"staleness": 0.5}}).digest() != policy().digest()
    for wrong in (
        {"risk": {"weights": {"luck": 1}}}, {"risk": {"hold_at": 2}}, {"risk": 1}, {"hold_at": 0.5},
        {"tries_per_commit": 0}, {"tries_per_commit": "2"},
        {"risk": {"calibration": [[0.5, 0.9], [0.6, 0.1]]}},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="risk|hold_at|tries_per_commit"):
            policy(**wrong)
