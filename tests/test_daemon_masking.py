"""Secrets masked where others will read, and nothing else."""

from __future__ import annotations

import json
import time

import pytest
import yaml

from daemon.masking import Mask

TEXTS = [
    ("Authorization: Bearer abcdefgh12345", "Authorization: ***"),
    ("curl -H 'Authorization: Basic dXNlcg==' x", "curl -H 'Authorization: ***' x"),
    ("got bearer abcdefgh12345 back", "got bearer *** back"),
    ("fetch https://user:pw@host/x", "fetch https://***@host/x"),
    ("push https://t0ken@host/x", "push https://***@host/x"),
    ("fetch https://user:p@ss@host/x", "fetch https://***@host/x"),
    (
        '{"password": "a \\"b c", "token": 12, "webhook":"https://x"}',
        '{"password": "***", "token": 12, "webhook":"***"}',
    ),
    ("PASSWORD=hunter2 run", "PASSWORD=*** run"),
    ("mysql --password hunter2 -v", "mysql --password *** -v"),
    ("https://api/x?access_token=abc&y=1", "https://api/x?access_token=***&y=1"),
    ("https://hooks.slack.com/services/T/B/x failed", "*** failed"),
    ("key sk-abcdefghijklmnopqrstuvwx was refused", "key *** was refused"),
    ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nrest", "***\nrest"),
]
INNOCENT = [
    "lease token 7 is fenced",
    '"token": 12, "tokens": [1], "max_new_tokens": 128',
    '"token":null}',
    "git fetch ssh://git@github.com/x",
    "tokenizer.json: found",
    "webhook: {{ secret.HOOK }}",
    "api_key: none",
    "budget.tokens_per_day of report is 5",
    "exit status 3",
]


@pytest.mark.parametrize(("text", "masked"), TEXTS)
def test_a_secret_in_a_line_is_masked_and_a_second_time_changes_nothing(text: str, masked: str) -> None:
    assert Mask().text(text) == masked
    assert Mask().text(masked) == masked


@pytest.mark.parametrize("text", INNOCENT)
def test_what_only_sounds_like_a_secret_stays(text: str) -> None:
    assert Mask().text(text) == text


DOCUMENT = """\
name: a  # kept as it was
env: {PLAIN: b, TOKEN: "{{ secret.X }}", N: 5}
password: |
  line one
  line two
kwargs: {api_key: abc, tokens: 20, token: 3, max_new_tokens: 5, secrets: {a: x, b: [y]}}
argv: [x, --password, hunter2, --verbose, "--token=abc"]
notify:
  webhook: https://h/x
needs: {tokens: 5}
"""


def test_a_job_file_is_masked_where_its_values_stand_and_keeps_its_lines() -> None:
    masked = Mask().document(DOCUMENT)
    assert masked.splitlines()[0] == DOCUMENT.splitlines()[0]
    assert masked.splitlines()[-1] == DOCUMENT.splitlines()[-1]
    assert yaml.safe_load(masked) == {
        "name": "a",
        "env": {"PLAIN": "***", "TOKEN": "{{ secret.X }}", "N": "***"},
        "password": "***",
        "kwargs": {
            "api_key": "***", "tokens": 20, "token": 3, "max_new_tokens": 5, "secrets": {"a": "***", "b": ["***"]},
        },
        "argv": ["x", "--password", "***", "--verbose", "--token=***"],
        "notify": {"webhook": "***"},
        "needs": {"tokens": 5},
    }  # fmt: skip


def test_of_a_file_that_cannot_be_read_only_the_names_are_kept() -> None:
    assert Mask().document("name: [\n  env: hunter2\nhunter3\n") == "name: ***\n  env: ***\n***\n"
    deep = "[" * 5000
    assert "[" not in Mask().document(deep + "hunter2")


def test_what_would_be_masked_in_a_record_is_named_by_its_path() -> None:
    spec = yaml.safe_load(DOCUMENT)
    assert {path for path, _ in Mask().secrets_in({"spec": spec, "token": 5})} == {
        "spec.env.PLAIN", "spec.env.N", "spec.password", "spec.kwargs.api_key", "spec.kwargs.secrets.a",
        "spec.kwargs.secrets.b[0]", "spec.argv[2]", "spec.argv[4]", "spec.notify.webhook",
    }  # fmt: skip
    innocent = {"token": 5, "decisions": [{"rule": "budget.tokens_per_day", "token": 9}], "spec": {"env": {}}}
    assert list(Mask().secrets_in(innocent)) == []


@pytest.mark.parametrize(("text", "_"), TEXTS)
def test_the_quick_look_overlooks_nothing_that_the_long_one_finds(text: str, _: str) -> None:
    assert list(Mask().secrets_in({"reason": text}))


def test_a_secret_of_this_home_is_found_wherever_it_stands() -> None:
    mask = Mask({"slack": 'T0"/B0/plain\n', "short": "a"})
    assert mask.text('posting to T0"/B0/plain failed') == "posting to *** failed"
    (found,) = mask.secrets_in({"reason": 'no answer from T0"/B0/plain'})
    assert found == ("the text", "the value of the secret slack")
    assert json.loads(mask.text('{"a": "a"}')) == {"a": "a"}


def test_a_secret_that_begins_like_another_leaves_nothing_of_it() -> None:
    mask = Mask({"old": "correct-horse", "new": "correct-horse-battery"})
    assert mask.text("tried correct-horse-battery, then correct-horse") == "tried ***, then ***"


def test_a_secret_is_found_as_json_and_as_part_of_an_address_write_it() -> None:
    mask = Mask({"key": 'ä"b/c\\d e'})
    for written in (json.dumps('ä"b/c\\d e'), json.dumps('ä"b/c\\d e', ensure_ascii=False), '"%C3%A4%22b%2Fc%5Cd%20e"'):
        assert mask.text(f"said {written}.") == 'said "***".'
    (found,) = mask.secrets_in({"reason": 'no ä"b/c\\d e', "url": "https://h/%C3%A4%22b%2Fc%5Cd%20e"})
    assert found == ("the text", "the value of the secret key")


def test_an_alias_is_masked_with_its_anchor_and_nothing_beside_it() -> None:
    told = "x: &x plain\nenv:\n  A: &a hunter2\n  B: *a\n  C: *x\nname: a-name-that-stays\n"
    masked = 'x: "***"\nenv:\n  A: "***"\n  B: *a\n  C: *x\nname: a-name-that-stays\n'
    assert Mask().document(told) == masked


HUGE = ["a" * 200_000, "a-" * 100_000, "-" * 200_000, "token" * 40_000, "http://" * 30_000, "secret" + " " * 200_000]


@pytest.mark.parametrize("text", HUGE, ids=lambda text: text[:8])
def test_the_time_to_mask_grows_with_the_text_and_not_with_its_square(text: str) -> None:
    began_s = time.process_time()
    Mask().text(text)
    assert time.process_time() - began_s < 10  # A tenth of a second; with a square in it, an hour.


def test_anchors_upon_anchors_are_looked_at_once() -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)), "loop: &l [*l]"]
    assert Mask().document("\n".join([*lines, "password: hunter2"])) == "\n".join([*lines, 'password: "***"'])
