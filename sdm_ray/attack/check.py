"""Whether data can carry an attack: sizes, classes and names, checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from sdm_ray.attack.families import the_family
from sdm_ray.attack.families.composed import COMPOSED, check_chains
from sdm_ray.attack.portfolio import read_portfolio
from sdm_ray.config.attack import AttackSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.types import Split, Task

if TYPE_CHECKING:
    from sdm_ray.data.interface import AttackDataset


def resolve_sizes(sizes: Sequence[int | str], data: AttackDataset) -> tuple[int, ...]:
    """Numbers of examples, `all` as the size of attacker-train; ascending and without repetition."""
    total = len(data.indices(Split.ATTACKER_TRAIN))
    return tuple(sorted({total if size == "all" else int(size) for size in sizes}))


def check_data(data: AttackDataset, settings: AttackSettings, task: Task) -> None:
    """Refuse an attack that the data cannot carry, or that names what is not there.

    Raises:
        UsageError: for an unknown family or edit, or a portfolio that cannot be read; where n is below the number of
            classes, attacker-train has too few examples for n, or attacker-validation or test lacks a class.
    """
    for family in (*settings.families, *settings.benign_families):
        the_family(family)
    read_portfolio(settings.portfolio)
    if COMPOSED.name in settings.families:
        check_chains(settings.edit_chains)
    names, labels = data.label_names(task), data.labels_host(task)
    counts = {
        split: torch.bincount(labels[data.indices(split)], minlength=len(names)).tolist()
        for split in (Split.ATTACKER_TRAIN, Split.ATTACKER_VAL, Split.TEST)
    }
    for n in resolve_sizes(settings.num_examples, data):
        _check_size(n, counts[Split.ATTACKER_TRAIN], names, balanced=settings.class_balanced)
    for split in (Split.ATTACKER_VAL, Split.TEST):
        for name, count in zip(names, counts[split], strict=True):
            if count == 0:
                raise UsageError(
                    f"data: split '{split}' has no example of {task} label '{name}', so no attack can be scored on it; "
                    "use more data, a larger split or another label column"
                )


def _check_size(n: int, counts: list[int], names: tuple[str, ...], *, balanced: bool) -> None:
    if n < len(names):
        raise UsageError(f"attack.num_examples: n = {n} is below the number of classes ({len(names)}); raise it")
    split = Split.ATTACKER_TRAIN
    if n > sum(counts):
        raise UsageError(
            f"attack.num_examples: n = {n}, but split '{split}' has {sum(counts)} examples; lower n or use more data"
        )
    needed = -(-n // len(names))
    for name, count in zip(names, counts, strict=True):
        if balanced and count < needed and n < sum(counts):
            raise UsageError(
                f"attack.num_examples: n = {n} needs {needed} examples of each class, but split '{split}' has {count} "
                f"of '{name}'; lower n, use more data or set attack.class_balanced to false"
            )
