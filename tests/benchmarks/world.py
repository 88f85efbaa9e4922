"""Is there something to find and to keep in version 2 of the synthetic world? `python -m tests.benchmarks.world`.

Figures of three models under the attackers of `world_attackers`: the public encoder, one that was tuned on the trades,
and one of the same architecture that was trained on them from scratch, each at its own best of three learning rates.
The bars that they have to meet are in `tests/data/test_world_bars.py`.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from sdm_ray.config import DataSettings, SyntheticWorld
from sdm_ray.core.types import Split
from sdm_ray.data.sources import load_examples
from sdm_ray.data.splits import SPLITS, assign_splits
from sdm_ray.data.synthetic import BENIGN_COLUMNS, people, task_table
from sdm_ray.models.pretrain import SHIPPED_FOLDERS
from tests.benchmarks.world_attackers import attacked, guesses, train, worst
from tests.benchmarks.world_readers import Sides, Texts, balanced_accuracy

HARMFUL_SIZES = (20, 50, 100, 200)
BENIGN_SIZES = (20, 48, 100)
TUNED_SIZES = (50, 200)
"""Numbers of labels at which the attacker of the gender also fine-tunes."""
RATES = (5e-4, 1e-3, 2e-3)
NUM_STEPS = {"tuned": 400, "scratch": 800}
NUM_VALIDATION, NUM_TEST = 500, 800
"""Texts that attackers select and are scored on."""


class Figures(NamedTuple):
    """One model under attack."""

    desired: float | None
    """Accuracy on trades, test texts; None for the public encoder, which has no head."""
    harmful: list[float]
    """By `HARMFUL_SIZES`."""
    embedding: list[float]
    """The same for readers of the embedding alone."""
    benign: dict[str, list[float]]
    """By column, by `BENIGN_SIZES`."""


def read_texts(encoder: Path, world: SyntheticWorld) -> dict[Split, Texts]:
    """The table, tokenised and split as a trial's."""
    settings = DataSettings(synthetic=world)
    split = torch.from_numpy(assign_splits(load_examples(settings), settings))
    table = task_table(world).to_pydict()
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokens = tokenizer(table["text"], padding=True, return_tensors="pt")
    pieces = sorted({piece for name in people(world) for piece in name.split()})
    named = torch.isin(tokens["input_ids"], torch.tensor(tokenizer.convert_tokens_to_ids(pieces)))
    labels = {}
    for column in ("profession", "gender", *BENIGN_COLUMNS):
        classes = sorted(set(table[column]))
        labels[column] = torch.tensor([classes.index(value) for value in table[column]])
    texts = Texts(tokens["input_ids"], tokens["attention_mask"], named.long(), labels)
    return {name: texts.at(split == code) for code, name in enumerate(SPLITS)}


def trained(base: Any, kind: str, texts: dict[Split, Texts], seed: int = 0) -> tuple[Any, float]:
    """A copy that was trained on all trades of meta-training, best of `RATES` on validation; its accuracy on test."""
    candidates = []
    for rate in RATES:
        model = copy.deepcopy(base)
        head = train(model, texts[Split.META_TRAIN], "profession", rate, NUM_STEPS[kind], 32, seed)
        reached = [
            balanced_accuracy(guesses(model, head, texts[side]), texts[side].labels["profession"]).item()
            for side in (Split.ATTACKER_VAL, Split.TEST)
        ]
        candidates.append((reached, model))
    (_, accuracy), model = max(candidates, key=lambda candidate: candidate[0][0])
    return model, accuracy


def measure(model: Any, desired: float | None, texts: dict[Split, Texts]) -> Figures:
    """The whole grid."""
    scored = texts[Split.ATTACKER_VAL].at(slice(NUM_VALIDATION)), texts[Split.TEST].at(slice(NUM_TEST))
    target = attacked(model, Sides(texts[Split.ATTACKER_TRAIN], *scored))
    harmful = [worst(target, "gender", size, tune=size in TUNED_SIZES) for size in HARMFUL_SIZES]
    benign = {
        column: [worst(target, column, size, tune=False).all for size in BENIGN_SIZES] for column in BENIGN_COLUMNS
    }
    print("best:", *(found.name for found in harmful), sep="\n  ", flush=True)
    return Figures(desired, [found.all for found in harmful], [found.embedding for found in harmful], benign)


def figures(
    encoder: Path, world: SyntheticWorld, models: tuple[str, ...] = ("public", "tuned", "scratch")
) -> dict[str, Figures]:
    """By model: what the grid reaches."""
    texts = read_texts(encoder, world)
    public = AutoModel.from_pretrained(encoder, attn_implementation="sdpa").eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(100)
        fresh = AutoModel.from_config(AutoConfig.from_pretrained(encoder), attn_implementation="sdpa").eval()
    result = {}
    for name in models:
        model, desired = (
            (public, None) if name == "public" else trained(public if name == "tuned" else fresh, name, texts)
        )
        started = time.perf_counter()
        result[name] = measure(model, desired, texts)
        print(f"{name:8} {result[name]} in {time.perf_counter() - started:.0f} s", flush=True)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--encoder", type=Path, default=SHIPPED_FOLDERS[2], help="folder of an encoder of version 2")
    parser.add_argument("--models", nargs="+", default=["public", "tuned", "scratch"])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured = figures(arguments.encoder, SyntheticWorld.model_validate({"version": 2}), tuple(arguments.models))
    if arguments.json:
        values = {name: row._asdict() for name, row in measured.items()}
        arguments.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
