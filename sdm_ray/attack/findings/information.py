"""How well readers with all labels predict the harmful label from each site of a model, compared with `scratch`.

An attack has few labels and little time, so information that it misses may be erased or only hidden. A reader fitted to
all of attacker-train tells which. The floor is its accuracy on a model without pretraining.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdm_ray.attack.engine.scoring import ScoringSet, validation_sample
from sdm_ray.attack.engine.token_readers import TokenReaders
from sdm_ray.attack.families.base import Attacker, Facts
from sdm_ray.attack.families.knowledge import Knowledge
from sdm_ray.attack.families.token_probe import NAME, OF_NAMES, POOLED, layers, reading_words, readings, site_words
from sdm_ray.attack.scores import raw_accuracy
from sdm_ray.core.seeds import seeded
from sdm_ray.core.types import Params, Split, Task
from sdm_ray.data.interface import known_positions
from sdm_ray.models.interface import TrunkLike

if TYPE_CHECKING:
    from sdm_ray.data.interface import AttackDataset

VERSION = 5
"""Increase this when the same weights and data give other numbers."""
MAX_EXAMPLES, MAX_VALIDATION, MAX_TEST = 3000, 1000, 3000
"""Most texts for fitting, selecting and scoring readers."""
WAYS = (
    ("standardised", "logistic", 1e-2),
    ("whitened", "logistic", 1e-2),
    ("whitened", "perceptron", 1.0),
)
"""Scaling, readout and penalty of the readers at each site; readers of names have one combination each."""
INTERACTION_PENALTY = 0.1
"""Penalty for the joint effect of a name's tokens."""
CONFIDENT = 1.96
"""Half-width of an accuracy's interval in standard errors."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """Result of a site's best reader; selected on attacker-validation, scored on test."""

    layer: int
    """Hidden state 0 (the embeddings) to L; -1 the pooled features, -2 rows of the token embedding."""
    accuracy: float
    """Balanced accuracy on test."""
    low: float
    """Lower end of its 95 % interval, over names if they are known, otherwise over texts."""
    high: float
    reader: str
    """Description of the reader."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A site of a released model, compared with that of a model without pretraining."""

    released: Told
    floor: Told

    @property
    def name(self) -> str:
        """Description of the site."""
        return site_words(self.released.layer)


def beside(released: Sequence[Told], *floors: Sequence[Told]) -> tuple[Site, ...]:
    """Pair each site that all models have with the most accurate floor there."""
    found = []
    for told in released:
        same = [other for floor in floors for other in floor if other.layer == told.layer]
        if len(same) == len(floors):
            found.append(Site(released=told, floor=max(same, key=lambda other: other.accuracy)))
    return tuple(found)


def measure_information(
    trunk: TrunkLike, params: Params, data: AttackDataset, task: Task, seed: int
) -> tuple[Told, ...]:
    """Fit readers to every site of a model with all labels of attacker-train.

    Args:
        trunk: the architecture.
        params: its weights.
        data: attacker-train, attacker-validation and test are used.
        task: task of the labels.
        seed: seed of samples and readers.

    Returns:
        The best reader of the pooled features and, of a transformers encoder, of each layer's token states.
    """
    facts = Knowledge().facts(trunk, data.num_classes(task))
    facts = facts._replace(knows_positions=known_positions(data) is not None)
    train, val, test = (
        _sample(data, split, most, task, seed)
        for split, most in (
            (Split.ATTACKER_TRAIN, MAX_EXAMPLES), (Split.ATTACKER_VAL, MAX_VALIDATION), (Split.TEST, MAX_TEST),
        )
    )  # fmt: skip
    readers, found = TokenReaders(trunk, params, data, task, seed), []
    chosen_on, scored_on = (ScoringSet.of(data, indices, task) for indices in (val, test))
    names = _names(data, scored_on)
    for layer in (POOLED, *layers(facts)):
        attackers = _attackers(layer, facts, len(train))
        fitted = readers.fit(attackers, [train] * len(attackers))
        on_validation = [raw_accuracy(scores, chosen_on.labels) for scores in readers.scores(fitted, chosen_on)]
        best = max(range(len(fitted)), key=on_validation.__getitem__)
        (scores,) = readers.scores([fitted[best]], scored_on)
        accuracy, error = balanced_with_error(scores.argmax(1) == scored_on.labels, scored_on.labels, names)
        low, high = max(0.0, accuracy - CONFIDENT * error), min(1.0, accuracy + CONFIDENT * error)
        reader = _phrase(attackers[best])
        found.append(Told(layer=layer, accuracy=accuracy, low=low, high=high, reader=reader))
    return tuple(found)


def balanced_with_error(right: Tensor, labels: Tensor, names: Tensor) -> tuple[float, float]:
    """Balanced accuracy and its standard error, clustered by name.

    Args:
        right: (N,) bool.
        labels: (N,) class indices.
        names: (N,) int64; equal for texts about the same name.
    """
    shares, squares = [], 0.0
    _, groups = torch.unique(names, return_inverse=True)
    present = torch.unique(labels)
    for label in present:
        mine = labels == label
        share = right[mine].double().mean()
        excess = torch.zeros(int(groups.max()) + 1, dtype=torch.float64)
        excess.index_add_(0, groups[mine], right[mine].double() - share)
        squares += float(excess.square().sum()) / int(mine.sum()) ** 2
        shares.append(float(share))
    return sum(shares) / len(shares), math.sqrt(squares) / len(present)


def _sample(data: AttackDataset, split: Split, most: int, task: Task, seed: int) -> Tensor:
    candidates = data.indices(split)
    labels = data.labels_host(task)[candidates]
    return validation_sample(candidates, labels, most, data.num_classes(task), seeded(seed, "information", split))


def _names(data: AttackDataset, examples: ScoringSet) -> Tensor:
    """(N,) ids that are equal for texts with the same name tokens; all different if no name is known."""
    known, texts = known_positions(data), torch.arange(len(examples))
    if known is None:
        return texts
    places = known[examples.indices]
    ids, largest, start = [], 0, 0
    for batch in examples.batches:
        rows = batch.input_ids.cpu()
        # The token after a name of one token does not identify the person: the first token alone makes the group.
        ids.append(rows.gather(1, places[start : start + len(rows), :1].clamp_min(0))[:, 0])
        largest, start = max(largest, int(rows.max())), start + len(rows)
    return torch.where(places[:, 0] < 0, largest + 1 + texts, torch.cat(ids))


def _attackers(layer: int, facts: Facts, num_examples: int) -> list[Attacker]:
    """Readers of a site."""
    ways = readings(facts) if layer != POOLED else (("position", 0),)
    if layer <= 0:
        # In the embeddings, tokens have not interacted yet.
        ways = tuple(way for way in ways if way[0] != "interaction")
    return [
        Attacker(
            family=NAME,
            num_examples=num_examples,
            trains="probe",
            probe=NAME,
            layer=layer,
            reading=reading,
            position=position,
            scaling=scaling,
            readout="ridge" if reading in OF_NAMES else readout,
            amount=INTERACTION_PENALTY if reading == "interaction" else amount,
        )
        for (reading, position), (scaling, readout, amount) in product(ways, WAYS)
        if reading not in OF_NAMES or (scaling, readout) == WAYS[0][:2]
    ]


def _phrase(attacker: Attacker) -> str:
    """Name of a reader in reports."""
    return f"{attacker.readout} on {reading_words(attacker)}, {attacker.scaling}"
