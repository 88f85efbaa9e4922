"""Attackers of version 2 of the synthetic world: a fixed grid, written down before any defence was compared.

They share no code with `sdm_ray.attack`. Readers (`world_readers`) take frozen states; fine-tuning is plain, after the
columns of the token embedding were standardised, or with the embedding frozen. What is best on attacker-validation is
reported on test.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.benchmarks.world_readers import Score, Sides, Texts, balanced_accuracy, mean_over, read

RATES = (5e-4, 2e-3)
"""Learning rates of fine-tuning."""
FINE_TUNINGS = ("plain", "rescaled", "embedding frozen")
NUM_STEPS, BATCH_SIZE = 150, 16
NUM_SEEDS = 2
"""Draws of the labelled examples."""


class Attacked(NamedTuple):
    """A model and the texts of an attacker, with its states (S, N, L, D) on them."""

    model: Any
    texts: Sides
    states: list[Tensor]


class Worst(NamedTuple):
    """Test accuracy of the attackers that are best on validation, means over seeds."""

    all: float
    """Of everyone."""
    embedding: float
    """Of those that read the embedding alone."""
    name: str
    """Which one of all is best."""


def attacked(model: Any, texts: Sides) -> Attacked:
    """The model with its states."""
    return Attacked(model, texts, [states(model, side) for side in texts])


def worst(target: Attacked, column: str, num_examples: int, *, tune: bool) -> Worst:
    """What the grid reaches with `num_examples` labels, the same number of every class.

    Args:
        target: model and texts.
        column: the label.
        num_examples: labelled examples.
        tune: also try to fine-tune.
    """
    labels = target.texts.train.labels[column]
    drawn = [draw_balanced(labels, num_examples, seed) for seed in range(NUM_SEEDS)]
    scores = read(target.texts, target.states, column, torch.stack(drawn))
    embedding = max(score for name, score in scores.items() if name.site == 0)
    found = {str(name): score for name, score in scores.items()}
    if tune:
        runs: dict[str, list[Score]] = {}
        for seed, rows in enumerate(drawn):
            for kind, score in _fine_tunings(target, column, rows, seed):
                runs.setdefault(kind, []).append(score)
        for kind, results in runs.items():
            found[kind] = Score(*(sum(values) / len(values) for values in zip(*results, strict=True)))
    best = max(found, key=found.__getitem__)
    return Worst(found[best].test, embedding.test, best)


def draw_balanced(labels: Tensor, num_examples: int, seed: int) -> Tensor:
    """Indices of n examples, the same number of every class."""
    generator = torch.Generator().manual_seed(500 + seed)
    each = num_examples // len(labels.unique())
    members = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
    return torch.cat([part[torch.randperm(len(part), generator=generator)[:each]] for part in members])


@torch.no_grad()
def states(model: Any, texts: Texts, chunk: int = 256) -> Tensor:
    """(S, N, L, D) states of the embedding and of every layer."""
    parts = []
    for ids, mask in zip(texts.ids.split(chunk), texts.mask.split(chunk), strict=True):
        parts.append(torch.stack(model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states))
    return torch.cat(parts, dim=1)


def classify(model: Any, head: nn.Module, texts: Texts) -> Tensor:
    """(N, C) scores by a head on the mean of the last states."""
    width = int(texts.mask.sum(1).max())
    hidden = model(input_ids=texts.ids[:, :width], attention_mask=texts.mask[:, :width]).last_hidden_state
    return head(mean_over(hidden, texts.mask[:, :width]))


@torch.no_grad()
def guesses(model: Any, head: nn.Module, texts: Texts, chunk: int = 256) -> Tensor:
    """(N,) classes."""
    parts = [texts.at(slice(start, start + chunk)) for start in range(0, len(texts.ids), chunk)]
    return torch.cat([classify(model, head, part).argmax(1) for part in parts])


def train(model: Any, texts: Texts, column: str, rate: float, num_steps: int, batch_size: int, seed: int) -> nn.Linear:
    """Fine-tune what requires gradients, in place; returns the head."""
    generator = torch.Generator().manual_seed(seed)
    labels = texts.labels[column]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(model.config.hidden_size, int(labels.max()) + 1)
    tuned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": tuned, "lr": rate}, {"params": list(head.parameters()), "lr": 3 * rate}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.05, 1 - step / num_steps))
    order = torch.empty(0, dtype=torch.long)
    for _ in range(num_steps):
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(labels), generator=generator)])
        rows, order = order[:batch_size], order[batch_size:]
        loss = F.cross_entropy(classify(model, head, texts.at(rows)), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    return head


def _fine_tunings(target: Attacked, column: str, drawn: Tensor, seed: int) -> Iterator[tuple[str, Score]]:
    for kind in FINE_TUNINGS:
        for rate in RATES:
            model = copy.deepcopy(target.model)
            embedding = model.get_input_embeddings().weight
            if kind == "rescaled":
                with torch.no_grad():
                    spread = embedding.std(0) + 1e-9
                    embedding.copy_((embedding - embedding.mean(0)) / spread * spread.mean())
            embedding.requires_grad_(kind != "embedding frozen")
            head = train(model, target.texts.train.at(drawn), column, rate, NUM_STEPS, BATCH_SIZE, seed)
            sides = (target.texts.validation, target.texts.test)
            reached = (balanced_accuracy(guesses(model, head, side), side.labels[column]).item() for side in sides)
            yield f"fine-tuning, {kind}, {rate:g}", Score(*reached)
