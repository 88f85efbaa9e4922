"""Withhold labels from training: all desired labels but a few, or all texts of some desired classes.

A withheld label is `UNLABELLED`. Which labels are withheld depends on content hashes and class names only, so all
methods and seeds train on the same labels.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from sdm_ray.config import DataSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.suggest import nearest
from sdm_ray.core.types import Split
from sdm_ray.data.assignment import SPLITS
from sdm_ray.data.interface import UNLABELLED
from sdm_ray.data.sources import Examples, Labels, normalise

HELD_OUT = "held_out"
"""Name of the benign task whose classes are the desired classes that are held out of training."""


def withhold(examples: Examples, split: np.ndarray, settings: DataSettings) -> tuple[Examples, np.ndarray]:
    """Apply `data.benign_classes` and `data.desired_labels` to examples.

    Meta-training texts of held-out classes are removed. In the other splits such texts stay, with a label of the benign
    task `held_out` instead of a desired label.

    Args:
        examples: N examples.
        split: (N,) codes of their splits.
        settings: the data settings.

    Returns:
        The remaining examples and their split codes.

    Raises:
        UsageError: if a held-out class does not exist, too few classes remain, or there are too few texts to label.
    """
    if settings.benign_classes:
        examples, split = _hold_classes_out(examples, split, settings)
    if settings.desired_labels != "all":
        examples = _keep_labels(examples, split, int(settings.desired_labels))
    return examples, split


def _hold_classes_out(examples: Examples, split: np.ndarray, settings: DataSettings) -> tuple[Examples, np.ndarray]:
    names = examples.desired_labels
    held = _held_classes(names, settings)
    kept = tuple(name for name in names if name not in held)
    new_code = np.array([kept.index(name) if name in kept else UNLABELLED for name in names])
    held_code = np.array([held.index(name) if name in held else UNLABELLED for name in names])
    benign = examples.benign | {HELD_OUT: Labels(held_code[examples.desired], held)}
    changed = replace(examples, desired=new_code[examples.desired], desired_labels=kept, benign=benign)
    stays = (split != SPLITS.index(Split.META_TRAIN)) | (changed.desired != UNLABELLED)
    return changed.rows(np.flatnonzero(stays)), split[stays]


def _held_classes(names: tuple[str, ...], settings: DataSettings) -> tuple[str, ...]:
    wanted = settings.benign_classes
    count = wanted if isinstance(wanted, int) else len(wanted)
    where = f"data.benign_classes is {wanted!r}"
    if count < 2 or len(names) - count < 2:
        raise UsageError(
            f"{where}, of the {len(names)} desired classes: hold out at least 2, and leave at least 2 to train on"
        )
    if isinstance(wanted, int):
        chosen = sorted(names, key=lambda name: hashlib.sha256(f"held out\0{name}".encode()).digest())[:wanted]
        return tuple(name for name in names if name in chosen)
    for name in wanted:
        if name not in names:
            close = nearest(name, names, count=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names[:20])}"
            raise UsageError(f"data.benign_classes: the desired column has no class {name!r}{hint}")
    return tuple(name for name in names if name in wanted)


def _keep_labels(examples: Examples, split: np.ndarray, wanted: int) -> Examples:
    """Keep the desired labels of `wanted` meta-training texts: first the text with the smallest content hash of each
    class, then the texts with the smallest hashes overall."""
    rows = np.flatnonzero((split == SPLITS.index(Split.META_TRAIN)) & (examples.desired != UNLABELLED))
    num_classes = len(examples.desired_labels)
    if not num_classes <= wanted <= len(rows):
        raise UsageError(
            f"data.desired_labels is {wanted}: it must be at least one a class ({num_classes}) and at most the "
            f"meta-training texts ({len(rows)}), or 'all'"
        )
    hashes = [hashlib.sha256(b"label\0" + _encoded(examples.texts[row])).digest() for row in rows]
    order = rows[np.array(sorted(range(len(rows)), key=hashes.__getitem__))]
    _, firsts = np.unique(examples.desired[order], return_index=True)
    rest = np.delete(np.arange(len(order)), firsts)
    chosen = order[np.concatenate([firsts, rest])[:wanted]]
    desired = examples.desired.copy()
    desired[rows] = UNLABELLED
    desired[chosen] = examples.desired[chosen]
    return replace(examples, desired=desired)


def _encoded(text: str) -> bytes:
    return normalise(text).encode("utf-8", "surrogatepass")
