"""Make hermes-mini anew: corpus, tokenizer, model, figures. From a checkout, with the `inference` extra installed:

    python -m daemon.inference.hermes_mini.make [--out FOLDER]    train and write the model; 25 minutes of one core
    python -m daemon.inference.hermes_mini.make --check           is the model in the package made from this corpus, and
                                                                  what are its figures? ten seconds

The same corpus, seed, torch and processor give the same bytes; the tokenizer does not depend on the processor.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import os
import random
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # two threads would merge their counts in any order

from daemon.inference.hermes_mini import FOLDER, corpus
from daemon.inference.hermes_mini.formats import SEVERITIES

SEED = 20_261_121
PAD, END, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}<|system|>"
    "{%- elif message['role'] == 'assistant' -%}<|assistant|>"
    "{%- else -%}<|user|>{%- endif -%}"
    "{{ message['content'] }}"
    "{%- if message['role'] == 'assistant' -%}<|end|>{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)

# What the tokenizer does before it reads, in this order. A clock, an address or a long number says nothing about how
# bad a line is, only that there is one, and each would cost ten tokens.
NORMALIZATION = (
    (r"\b\d{4}[-/.]\d{2}[-/.]\d{2}[t ]{1,2}\d{2}:\d{2}:\d{2}([.,]\d+)?( ?(z|utc|[+-]\d{2}:?\d{2})\b)?", "~"),
    (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "0x"),
    (r"\b([0-9a-f]{1,4}:){3,7}:?[0-9a-f]{1,4}\b", "#:#"),
    (r"\b\d{1,2}:\d{2}:\d{2}([.,:]\d+)?", "~"),
    (r"\b\d{1,3}(\.\d{1,3}){3}\b", "#.#"),
    (r"\b0x[0-9a-f]+\b", "0x"),
    (r"\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{7,}\b", "0x"),
    (r"\[ *\d+\.\d{6}\]", "[~]"),
    (r"\d{4,}", "#"),
    (r"[a-z0-9+/]{40,}", "0x"),
    (r"[ \t]{2,}", " "),
)


@dataclass(frozen=True, slots=True)
class Recipe:
    vocabulary: int = 3072
    tokenizer_examples: int = 8_000
    vocabulary_weight: int = 10
    hidden: int = 160
    layers: int = 4
    heads: int = 5
    intermediate: int = 448
    positions: int = 1024
    steps: int = 3200
    batch: int = 64
    pool_batches: int = 32  # so many batches are sorted by length together, to pad little
    rate: float = 3.0e-3
    matrix_rate: float = 0.02
    warmup_steps: int = 50
    decay: float = 0.05
    forgotten: float = 0.1  # share of a prompt's tokens that half of the batches do without


def make_tokenizer(recipe: Recipe) -> Any:
    """A byte-level BPE, so that any text in any language has a reading. Returns tokenizers.Tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase()]
        + [normalizers.Replace(Regex(pattern), said) for pattern, said in NORMALIZATION]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[PAD, END, USER, ASSISTANT, SYSTEM],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    examples = itertools.islice(corpus.training(SEED), recipe.tokenizer_examples)
    texts = itertools.chain(
        itertools.chain.from_iterable(itertools.repeat(list(corpus.vocabulary()), recipe.vocabulary_weight)),
        (f"{example.prompt}\n{example.answer}" for example in examples),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_tokenizer(tokenizer: Any, recipe: Recipe, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n", encoding="utf-8")
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": recipe.positions,
            "pad_token": PAD,
            "eos_token": END,
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def train(recipe: Recipe, tokenizer: Any, folder: Path) -> None:
    """Train the model and write it to `folder`, in float16. Answers only: the model learns to judge, not to chatter."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    pad, end = tokenizer.token_to_id(PAD), tokenizer.token_to_id(END)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.positions,
        tie_word_embeddings=True,
        pad_token_id=pad,
        eos_token_id=end,
        bos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config)
    model.train()
    # Muon for the layers' matrices, AdamW for the embedding and the norms: half the steps that AdamW alone takes.
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if not any(weight is matrix for matrix in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=recipe.matrix_rate, weight_decay=recipe.decay, momentum=0.95),
        torch.optim.AdamW(others, lr=recipe.rate, weight_decay=0.0, betas=(0.9, 0.95)),
    ]
    groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    began, seen, losses = time.monotonic(), 0, []
    for step, batch in enumerate(itertools.islice(_batches(recipe, tokenizer), recipe.steps)):
        share = min(1.0, (step + 1) / recipe.warmup_steps)
        share *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        for group, rate in groups:
            group["lr"] = rate * share
        longest = max(len(tokens) for tokens, _ in batch)
        # Padded on the right: what comes after an answer cannot change it, so no mask is needed.
        tokens = torch.tensor([tokens + [pad] * (longest - len(tokens)) for tokens, _ in batch])
        rows = torch.tensor([row for row, (_, answer) in enumerate(batch) for _ in range(answer)])
        columns = torch.tensor([len(tokens) - answer - 1 + k for tokens, answer in batch for k in range(answer)])
        # Training now and then without a token keeps the model from hanging a judgement on a single one.
        kept = torch.rand(tokens.shape) >= (recipe.forgotten if step % 2 else 0.0)
        kept[:, 0] = True
        kept[rows, columns] = True
        hidden = model.model(input_ids=torch.where(kept, tokens, pad), use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[rows, columns])
        loss = torch.nn.functional.cross_entropy(logits, tokens[rows, columns + 1])
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        seen += len(batch)
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            took = time.monotonic() - began
            print(
                f"step {step + 1}/{recipe.steps}  loss {sum(losses[-100:]) / 100:.4f}  {seen} examples  {took:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    model.eval()
    model.half().save_pretrained(folder)


def _batches(recipe: Recipe, tokenizer: Any) -> Iterator[list[tuple[list[int], int]]]:
    """Batches of (prompt and answer as tokens, length of the answer), each of about one length, in a mixed order."""
    rng = random.Random(f"batches {SEED}")
    examples = corpus.training(SEED)
    user, assistant, end = (tokenizer.token_to_id(name) for name in (USER, ASSISTANT, END))
    while True:
        pool = list(itertools.islice(examples, recipe.batch * recipe.pool_batches))
        prompts = tokenizer.encode_batch([example.prompt for example in pool])
        answers = tokenizer.encode_batch([example.answer for example in pool])
        whole = []
        for prompt, answer in zip(prompts, answers, strict=True):
            said = [*answer.ids, end]
            whole.append(([user, *prompt.ids[: recipe.positions - len(said) - 2], assistant, *said], len(said)))
        whole.sort(key=lambda pair: len(pair[0]))
        batches = [whole[k : k + recipe.batch] for k in range(0, len(whole), recipe.batch)]
        rng.shuffle(batches)
        yield from batches


@dataclass(frozen=True, slots=True)
class Figures:
    """Shares of right answers; `families` holds the joint share of each family."""

    triage: int
    severity: float
    category: float
    joint: float
    route: int
    level: float
    families: dict[str, float]
    outside: int  # answers that are none of the labels


def measure(folder: Path, examples: Sequence[corpus.Example]) -> Figures:
    """What the model in `folder`, loaded as any model is, answers to `examples`."""
    from daemon.inference.engine import Engine

    engine = Engine.load(str(folder), device="cpu")
    outputs = engine.generate([example.prompt for example in examples], max_new_tokens=8)
    return compare(examples, [output.text.strip() for output in outputs])


def compare(examples: Sequence[corpus.Example], said: Sequence[str]) -> Figures:
    right: dict[str, list[bool]] = defaultdict(list)
    families: dict[str, list[bool]] = defaultdict(list)
    outside = 0
    for example, answer in zip(examples, said, strict=True):
        parts, wanted = [*answer.split(), "", ""][:2], example.answer.split()
        if example.skill == "triage":
            outside += parts[0] not in SEVERITIES or parts[1] not in corpus.CATEGORIES
            right["severity"].append(parts[0] == wanted[0])
            right["category"].append(parts[1] == wanted[1])
            right["joint"].append(answer == example.answer)
        else:
            outside += answer not in corpus.LEVELS
            right["level"].append(answer == example.answer)
        families[example.family].append(answer == example.answer)

    def share(of: list[bool]) -> float:
        return sum(of) / len(of) if of else math.nan

    return Figures(
        triage=len(right["joint"]),
        severity=share(right["severity"]),
        category=share(right["category"]),
        joint=share(right["joint"]),
        route=len(right["level"]),
        level=share(right["level"]),
        families={name: share(of) for name, of in sorted(families.items())},
        outside=outside,
    )


def show(title: str, figures: Figures) -> None:
    print(title)
    if figures.triage:
        print(
            f"  triage  {figures.triage} lines: severity {figures.severity:.1%}, category {figures.category:.1%},"
            f" both {figures.joint:.1%}"
        )
    if figures.route:
        print(f"  route   {figures.route} requests: {figures.level:.1%}")
    print(f"  answers outside the labels: {figures.outside}")
    for name, share in figures.families.items():
        print(f"    {share:6.1%}  {name}")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def write(folder: Path, recipe: Recipe) -> None:
    """Make the whole model in `folder`, which must exist."""
    tokenizer = make_tokenizer(recipe)
    write_tokenizer(tokenizer, recipe, folder)
    train(recipe, tokenizer, folder)
    (folder / "model.safetensors").chmod(0o644)
    config = json.loads((folder / "config.json").read_bytes())
    _write_json(folder / "config.json", {**config, "hermes_mini": made_from(recipe)})


def made_from(recipe: Recipe) -> dict[str, Any]:
    """What the model is made from, as its config.json records it."""
    return {"corpus": corpus.digest(), "seed": SEED, "recipe": asdict(recipe)}


def check(folder: Path, recipe: Recipe) -> list[str]:
    """What is wrong with the model in `folder`: nothing, if it was made from this corpus by this recipe."""
    wrong = []
    recorded = json.loads((folder / "config.json").read_bytes()).get("hermes_mini")
    for name, value in made_from(recipe).items():
        if (recorded or {}).get(name) != value:
            wrong.append(f"{folder}/config.json says {name} {(recorded or {}).get(name)}, and it is {value} here")
    if (folder / "tokenizer.json").read_text(encoding="utf-8") != make_tokenizer(recipe).to_str(pretty=False) + "\n":
        wrong.append(f"{folder}/tokenizer.json is not the tokenizer that this corpus gives")
    return wrong


def families_in(file: Path) -> list[corpus.Family]:
    """Families in the form of triage.txt, which stands here once more because corpus.py is part of its own digest."""
    found: list[corpus.Family] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\[([\w-]+)\] ([\w -]+?) / (\w+)", line):
            name, formats, split = match.groups()
            found.append(corpus.Family(name, split, tuple(formats.split()), ()))
        elif line and not line.startswith("#"):
            severity, category, said = line.split(" ", 2)
            messages = [corpus.Message(severity, category, text) for text in said.split(" || ")]
            found[-1] = replace(found[-1], messages=(*found[-1].messages, *messages))
    return found


def report(folder: Path, splits: Sequence[str], lines: Path | None) -> None:
    families = families_in(lines) if lines else []
    for split in dict.fromkeys(family.split for family in families):
        rng = Random(f"{split} {SEED}")
        of = [family for family in families if family.split == split]
        examples = [corpus._triage_example(rng, family, message, split) for family in of for message in family.messages]
        show(split, measure(folder, examples))
    for split in splits:
        examples = corpus.elsewhere() if split == "elsewhere" else corpus.measuring(SEED, split)
        show(split, measure(folder, examples))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m daemon.inference.hermes_mini.make", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the model goes (default: into the package)")
    parser.add_argument("--check", action="store_true", help="make nothing: check the model there and show its figures")
    parser.add_argument("--splits", nargs="+", default=["heldout", "elsewhere"], help="what to measure on")
    parser.add_argument("--lines", type=Path, help="measure on the families of this file, too")
    asked = parser.parse_args()
    recipe, began = Recipe(), time.monotonic()
    if not asked.check:
        asked.out.mkdir(parents=True, exist_ok=True)
        write(asked.out, recipe)
        print(f"made in {(time.monotonic() - began) / 60:.0f} minutes", file=sys.stderr)
    wrong = check(asked.out, recipe)
    for line in wrong:
        print(line, file=sys.stderr)
    report(asked.out, asked.splits, asked.lines)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
