"""Validates an attack before it runs: sizes, classes and names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from sdm_ray.attack.families import the_family
from sdm_ray.attack.families.composed import COMPOSED, check_chains
from sdm_ray.attack.portfolio import read_portfolio
from sdm_ray.config.attack import AttackSettings
from sdm_ray.config.sizes import size_problem
from sdm_ray.core.errors import Faults
from sdm_ray.core.types import Split, Task

if TYPE_CHECKING:
    from sdm_ray.data.interface import AttackDataset


def resolve_sizes(sizes: Sequence[int | str], data: AttackDataset) -> tuple[int, ...]:
    """Numbers of examples in increasing order without repetition; `all` becomes the size of attacker-train."""
    total = len(data.indices(Split.ATTACKER_TRAIN))
    return tuple(sorted({total if size == "all" else int(size) for size in sizes}))


def check_data(data: AttackDataset, settings: AttackSettings, task: Task) -> None:
    """Refuse an attack with unknown names or unsuitable data; several faults give one line each.

    Raises:
        UsageError: for an unknown family or edit, or an unreadable portfolio; if n is below the number of classes,
            attacker-train has too few examples for n (with sizes that fit), or attacker-validation or test lacks a
            class.
    """
    faults = Faults()
    for family in (*settings.families, *settings.benign_families):
        faults.check(the_family, family)
    faults.check(read_portfolio, settings.portfolio)
    if COMPOSED.name in settings.families:
        faults.check(check_chains, settings.edit_chains)
    names, labels = data.label_names(task), data.labels_host(task)
    counts = {
        split: torch.bincount(labels[data.indices(split)], minlength=len(names)).tolist()
        for split in (Split.ATTACKER_TRAIN, Split.ATTACKER_VAL, Split.TEST)
    }
    problem = size_problem(
        resolve_sizes(settings.num_examples, data),
        counts[Split.ATTACKER_TRAIN],
        names,
        balanced=settings.class_balanced,
        of=_split_sizes(data, len(labels)),
    )
    if problem is not None:
        faults.add(problem)
    for split in (Split.ATTACKER_VAL, Split.TEST):
        for name, count in zip(names, counts[split], strict=True):
            if count == 0:
                faults.add(
                    f"data: split '{split}' has no example of {task} label '{name}', so no attack can be scored on it; "
                    "use more data, a larger split or another label column"
                )
    faults.refuse()


def _split_sizes(data: AttackDataset, total: int) -> dict[str, int]:
    """Number of examples of each split; meta-training, which the attack does not read, has the remaining ones."""
    attacked = {
        split.value: len(data.indices(split)) for split in (Split.ATTACKER_TRAIN, Split.ATTACKER_VAL, Split.TEST)
    }
    return {Split.META_TRAIN.value: total - sum(attacked.values()), **attacked}
