"""Directions whose products predict the harmful label: what linear readers of two-token names miss.

If the label of a name depends on the combination of its two tokens (their exclusive or, for example), no direction of a
single token predicts it, so linear erasure leaves it for readers of products. The classes then differ in the cross
moment of both tokens' states, E[x1 x2' | class]. Its principal pair of directions (u, v) gives the product
(u · x1)(v · x2) in which the classes differ most; both directions are removed, and the next pair is searched in the
rest.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sdm_ray.core.errors import UsageError

NUM_READ = 3
"""Products that the reader of a site combines."""
RIDGE = 1e-3
"""Of the reader's regression, relative to the products' variance."""
HELD_SHARE = 0.25
"""Share of two-token names to which no reader is fitted."""
FEWEST_NAMES = 8
"""Fewest two-token names in which products are searched."""
MARGIN = 0.02
"""Accuracy above chance, on held-out names, below which no product is left."""


class TwoTokens(NamedTuple):
    """Texts with a two-token name, split into those that readers are fitted to and the others."""

    rows: Tensor
    """(N,) texts of the sample."""
    positions: Tensor
    """(N, 2) positions of both tokens."""
    labels: Tensor
    """(N,) class indices."""
    held: Tensor
    """(N,) bool; True for texts about held-out names."""

    @classmethod
    def of(cls, known: Tensor | None, ids: Tensor, labels: Tensor, generator: torch.Generator) -> TwoTokens:
        """Select the texts of a sample.

        Args:
            known: (N, 2) positions of a name's tokens on the host, -1 for none; None if no position is known.
            ids: (N, L) token ids.
            labels: (N,) class indices.
            generator: CPU generator of the held-out names.

        Raises:
            UsageError: if there are too few two-token names, or one class only.
        """
        rows = torch.zeros(0, dtype=torch.long) if known is None else (known >= 0).all(1).nonzero()[:, 0]
        first, second = (
            ids[rows.to(ids.device), known[rows, side].to(ids.device)].cpu() if known is not None else rows
            for side in (0, 1)
        )
        names = first * (int(ids.max()) + 1) + second
        kinds = torch.unique(names)
        if len(kinds) < FEWEST_NAMES:
            raise UsageError(
                f"train.erase.num_products: products need texts with two-token names at known positions, of at least "
                f"{FEWEST_NAMES} names, but {len(ids)} texts of meta-training have {len(kinds)}; set it to 0 or raise "
                "train.erase.num_texts"
            )
        chosen = kinds[torch.randperm(len(kinds), generator=generator)[: max(1, round(HELD_SHARE * len(kinds)))]]
        held = torch.isin(names, chosen)
        own = labels[rows.to(labels.device)].cpu()
        if any(len(torch.unique(own[part])) < 2 for part in (held, ~held)):
            raise UsageError(
                f"train.erase.num_products: the {len(kinds)} two-token names of meta-training do not give two classes "
                "to fit readers to and two to choose among them; set it to 0 or raise train.erase.num_texts"
            )
        assert known is not None
        return cls(*(value.to(ids.device) for value in (rows, known[rows], own, held)))

    def states(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) float64 states of the first and of the second token, from a site's (·, L, D); centred on those that
        readers are fitted to."""
        both = [states[self.rows, self.positions[:, side]].double() for side in (0, 1)]
        first, second = (one - one[~self.held].mean(0) for one in both)
        return first, second


class Product(NamedTuple):
    """The pair of directions whose product differs most between classes, at one site."""

    first: Tensor
    """(D,) float64 unit covector for the first token."""
    second: Tensor
    """(D,) for the second."""
    accuracy: float
    """Balanced accuracy, on held-out names, of a reader of the `NUM_READ` best products."""


def find_product(
    texts: TwoTokens, states: Tensor, *, metric: Tensor | None = None, spared: Tensor | None = None
) -> Product:
    """Find the product in which the classes differ most.

    Args:
        texts: the two-token names.
        states: (·, L, D) states of the sample's tokens at a site.
        metric: (D, D) covariance of the states, so that differences are measured relative to it; None for none.
        spared: (K, D) orthonormal directions that are left out; None for none.
    """
    first, second = texts.states(states)
    moments = _between(first[~texts.held], second[~texts.held], texts.labels[~texts.held])
    if spared is not None:
        left = torch.eye(moments.shape[1], dtype=moments.dtype, device=moments.device) - spared.T @ spared
        moments = left @ moments @ left
    root = None
    if metric is not None:
        sizes, axes = torch.linalg.eigh(metric)
        root = (axes * sizes.rsqrt()) @ axes.T
        moments = root @ moments @ root
    _, _, rights = torch.linalg.svd(moments.flatten(0, 1), full_matrices=False)
    _, _, lefts = torch.linalg.svd(moments.transpose(1, 2).flatten(0, 1), full_matrices=False)
    if root is not None:
        lefts, rights = lefts @ root, rights @ root
    lefts, rights = (one / one.norm(dim=1, keepdim=True).clamp_min(1e-300) for one in (lefts, rights))
    products = (first @ lefts[:NUM_READ].T) * (second @ rights[:NUM_READ].T)
    return Product(lefts[0], rights[0], _told(products, texts))


def _between(first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
    """(C, D, D) classes' cross moments less the mean of all, each times the root of its share."""
    every = first.T @ second / len(first)
    found = []
    for label in torch.unique(labels):
        own = labels == label
        found.append(own.double().mean().sqrt() * (first[own].T @ second[own] / own.sum() - every))
    return torch.stack(found)


def _told(products: Tensor, texts: TwoTokens) -> float:
    """Balanced accuracy on held-out names of a ridge regression on products (N, R)."""
    fitted, labels = ~texts.held, texts.labels
    scaled = products / products[fitted].std(0).clamp_min(1e-300)
    inputs = torch.cat([scaled, torch.ones_like(scaled[:, :1])], 1)
    classes = torch.unique(labels)
    targets = (labels[:, None] == classes).to(inputs)
    targets = targets / targets[fitted].mean(0)
    gram = inputs[fitted].T @ inputs[fitted] / fitted.sum()
    gram = gram + RIDGE * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    scores = inputs @ torch.linalg.solve(gram, inputs[fitted].T @ targets[fitted] / fitted.sum())
    right, held = classes[scores.argmax(1)] == labels, texts.held
    shares = [right[held & (labels == label)].double().mean() for label in classes if (held & (labels == label)).any()]
    return float(torch.stack(shares).mean())


__all__ = ["MARGIN", "Product", "TwoTokens", "find_product"]
