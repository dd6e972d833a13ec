"""The corpus of hermes-mini is a function of its files and a seed, and the model in the package is made from it."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.inference.hermes_mini import FOLDER, corpus, formats, make, slots

ROOT = Path(__file__).parents[1]
RECIPE = make.Recipe()


def first_examples(count: int) -> list[corpus.Example]:
    return list(itertools.islice(corpus.training(make.SEED), count))


def measured(split: str) -> list[corpus.Example]:
    return corpus.elsewhere() if split == "elsewhere" else corpus.measuring(make.SEED, split)


def test_the_order_of_hashes_changes_nothing() -> None:
    program = (
        "import hashlib, itertools; from daemon.inference.hermes_mini import corpus;"
        "e = list(itertools.islice(corpus.training(5), 3000)) + corpus.measuring(5, 'heldout');"
        "print(hashlib.sha256(repr(e).encode()).hexdigest())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(said) == 1


def test_another_seed_gives_other_examples() -> None:
    assert next(corpus.training(1)) != next(corpus.training(2))


@pytest.mark.parametrize("split", ["training", "heldout", "elsewhere"])
def test_every_answer_is_one_of_the_labels(split: str) -> None:
    triage = {f"{severity} {category}" for severity in formats.SEVERITIES for category in corpus.CATEGORIES}
    for example in first_examples(5000) if split == "training" else measured(split):
        assert example.answer in (triage if example.skill == "triage" else corpus.LEVELS), example
        assert example.text in example.prompt


def test_no_slot_is_left_unfilled() -> None:
    slot = re.compile(r"\{(?:" + "|".join(slots.SLOTS) + r"|[xtlpdfeskMNCDQR])\}")
    left = [example.text for example in [*first_examples(5000), *measured("heldout")] if slot.search(example.text)]
    assert left == []


def test_the_unseen_templates_are_labelled_and_near_none_that_the_model_was_trained_on() -> None:
    def words(text: str) -> frozenset[str]:
        return frozenset(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", text).lower()))

    trained: dict[str, set[frozenset[str]]] = {}
    for family in corpus.families():
        for message in family.messages if family.split == "training" else ():
            for word in (mine := words(message.text)):
                trained.setdefault(word, set()).add(mine)
    families = make.families_in(ROOT / "tests" / "data" / "triage_unseen.txt")
    messages = [message for family in families for message in family.messages]
    assert {family.split for family in families} == {"known", "unknown"}
    assert {name for family in families for name in family.formats} <= set(formats.FORMATS) | set(formats.GROUPS)
    assert {m.severity for m in messages} == set(formats.SEVERITIES)
    assert {m.category for m in messages} == set(corpus.CATEGORIES)
    assert len({message.text for message in messages}) > 5_000
    for mine in map(words, (message.text for message in messages)):
        others = {other for word in mine for other in trained.get(word, ())}
        assert not [other for other in others if 2 * len(mine & other) >= len(mine | other)], mine


def test_families_kept_for_measuring_never_train() -> None:
    trained = {example.family for example in first_examples(20_000)}
    kept = {example.family for example in measured("heldout")}
    assert kept
    assert not trained & kept


def test_no_message_or_phrasing_stands_on_both_sides() -> None:
    sides: dict[bool, set[str]] = {True: set(), False: set()}
    for family in corpus.families():
        sides[family.split == "training"] |= {message.text for message in family.messages}
    for phrasing in corpus.phrasings():
        sides[phrasing.split == "training"] |= set(phrasing.texts)
    assert not sides[True] & sides[False]


def test_formats_kept_for_measuring_never_train() -> None:
    used = {name for family in corpus.families() if family.split == "training" for name in family.formats}
    assert not formats.KEPT_FROM_TRAINING & (used | set(formats.IN_TRAINING))
    kept = {name for family in corpus.families() if family.split == "heldout" for name in family.formats}
    assert kept >= formats.KEPT_FROM_TRAINING


def test_the_corpus_is_wide() -> None:
    training = [family for family in corpus.families() if family.split == "training"]
    assert len(training) >= 120
    assert len([family for family in corpus.families() if family.split == "heldout"]) >= 15
    assert len({phrasing.language for phrasing in corpus.phrasings()}) == 11
    assert len(corpus.elsewhere()) >= 140
    for languages in corpus._languages():
        heldout = [p for p in corpus.phrasings() if p.language == languages and p.split == "heldout"]
        assert {phrasing.level for phrasing in heldout} == set(corpus.LEVELS)


def test_the_model_in_the_package_is_made_from_this_corpus_by_this_recipe() -> None:
    recorded = json.loads((FOLDER / "config.json").read_text())["hermes_mini"]
    assert recorded == json.loads(json.dumps(make.made_from(RECIPE)))


def test_the_tokenizer_comes_out_the_same_again() -> None:
    pytest.importorskip("tokenizers")
    assert make.check(FOLDER, RECIPE) == []


def test_the_tokenizer_reads_any_text() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    for text in ("žluťoučký kůň", "日本語のログ", "🍺🍺", "\x00\x07\t", "ئۇيغۇرچە"):
        read = tokenizer.encode(text).ids
        assert read
        assert tokenizer.decode(read).strip() == text.strip()


def test_the_package_files_stay_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4_000_000
    assert {path.name for path in FOLDER.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_the_card_is_about_the_model_in_the_package() -> None:
    card = (FOLDER.parent / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest() in card


def pairs(text: str) -> set[tuple[str, ...]]:
    """Pairs of neighbouring words; what a slot parts is not neighbouring. Scripts without spaces: runs of four."""
    found: set[tuple[str, ...]] = set()
    for part in re.split(r"\{\w+\}", text.lower()):
        letters = re.findall(r"[^\W\d_]+", part)
        if any(ord(letter) > 0x3000 for letter in part):
            run = "".join(letters)
            found |= {tuple(run[k : k + 4]) for k in range(len(run) - 3)}
        else:
            found |= set(itertools.pairwise(letters))
    return found


def test_no_loose_phrase_is_taken_from_what_is_kept_for_measuring() -> None:
    trained: set[tuple[str, ...]] = set()
    kept: set[tuple[str, ...]] = set()
    for family in corpus.families():
        for message in family.messages:
            (trained if family.split == "training" else kept).update(pairs(message.text))
    for example in corpus.elsewhere():
        kept |= pairs(example.text)
    loose = [text for lists in corpus.phrases().values() for texts in lists.values() for text in texts]
    loose += [text for name, texts in corpus.words().items() for text in texts if name != "neutral"]
    assert [text for text in loose if pairs(text) & kept - trained] == []


@pytest.mark.parametrize("language", corpus._languages())
def test_no_loose_part_of_a_request_is_taken_from_a_phrasing_kept_for_measuring(language: str) -> None:
    trained: set[tuple[str, ...]] = set()
    kept: set[tuple[str, ...]] = set()
    for phrasing in corpus.phrasings():
        if phrasing.language == language and phrasing.name != "composed":
            for text in phrasing.texts:
                (trained if phrasing.split == "training" else kept).update(pairs(text))
    loose = [text for name in "QRMNCD" for text in corpus._words(language).get(name, ())]
    assert [text for text in loose if pairs(text) & kept - trained] == []
