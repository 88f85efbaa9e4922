"""Random draws on the host before anything runs: seeds, subsets and batch orders."""

from __future__ import annotations

import torch
from torch import Tensor

from sdm_ray.attack.families.base import Attacker
from sdm_ray.core.seeds import seeded


def subset_generator(base_seed: int, attacker: Attacker) -> torch.Generator:
    """Generator of a fine-tune's subset: equal for all attackers of one phase, repetition, n and seed index."""
    return seeded(base_seed, "subset", *_seeds(attacker))


def order_generator(base_seed: int, attacker: Attacker) -> torch.Generator:
    """Generator of a fine-tune's batch order: depends on the same values as the subset's, and on the attempt."""
    return seeded(base_seed, "order", *_seeds(attacker), attacker.attempt)


def head_generator(base_seed: int, attacker: Attacker) -> torch.Generator:
    """Generator of a fine-tune's initial head: depends on the same values as the subset's, and on the attempt."""
    return seeded(base_seed, "head", *_seeds(attacker), attacker.attempt)


def _seeds(attacker: Attacker) -> tuple[object, ...]:
    repeat = (attacker.repeat,) if attacker.repeat else ()
    return attacker.phase, attacker.num_examples, attacker.seed_index, *repeat


def choose_subset(
    indices: Tensor, labels: Tensor, num_examples: int, num_classes: int, *, balanced: bool, generator: torch.Generator
) -> Tensor:
    """Draw the attacker's labelled examples.

    Args:
        indices: (M,) candidates.
        labels: (M,) their labels.
        num_examples: n.
        num_classes: C.
        balanced: whether to draw n // C of each class, and the remainder from randomly chosen classes. If false, or if
            n is M, the draw is uniform.
        generator: host generator.

    Returns:
        (n,) elements of `indices`, without repetition, in random order.
    """
    if not balanced or num_examples == len(indices):
        return indices[torch.randperm(len(indices), generator=generator)[:num_examples]]
    share, remainder = divmod(num_examples, num_classes)
    favoured = set(torch.randperm(num_classes, generator=generator)[:remainder].tolist())
    parts = []
    for label in range(num_classes):
        members = indices[labels == label]
        parts.append(members[torch.randperm(len(members), generator=generator)[: share + (label in favoured)]])
    chosen = torch.cat(parts)
    return chosen[torch.randperm(len(chosen), generator=generator)]


def batch_order(num_examples: int, batch_size: int, num_steps: int, generator: torch.Generator) -> Tensor:
    """(num_steps, batch_size) positions in the subset: concatenated epochs, each shuffled anew, cut into batches."""
    num_epochs = max(1, -(-num_steps * batch_size // num_examples))
    epochs = [torch.randperm(num_examples, generator=generator) for _ in range(num_epochs)]
    return torch.cat(epochs)[: num_steps * batch_size].view(num_steps, batch_size)
