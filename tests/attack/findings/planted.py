"""Encoders that know names and hide it, and honest ones that do not; a world of names to try them on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdm_ray.core.types import Split, Task
from sdm_ray.models.trunk import Trunk
from tests.fakes.attack_world import FakeData
from tests.fakes.files import tiny_config

VOCABULARY, FIRST_NAME = 400, 100
NAMES = {Split.ATTACKER_TRAIN: (100, 220), Split.ATTACKER_VAL: (220, 300), Split.TEST: (300, 400)}
"""Tokens that are names; each lives in one split."""
STRENGTH = 4.0
"""Of what an encoder knows of a name, in deviations of its rows."""


class Names(FakeData):
    """Texts whose second token is a name; the harmful label is the parity of the name.

    Args:
        seed: of texts and names.
        known: whether the attacker knows where names stand.
        place: token of the name; None draws one for each text.
    """

    def __init__(self, seed: int = 0, *, known: bool = False, place: int | None = 1) -> None:
        super().__init__(informative=False, seed=seed)
        generator = torch.Generator().manual_seed(seed + 1)
        drawn = torch.rand(len(self.lengths), generator=generator)
        self.places = (
            (1 + (drawn * (self.lengths - 2))).long() if place is None else torch.full_like(self.lengths, place)
        )
        for split, (low, high) in NAMES.items():
            rows = self.split_indices[split]
            names = torch.randint(low, high, (len(rows),), generator=generator)
            self.ids[rows, self.places[rows]] = names
            self.labels[Task.HARMFUL][rows] = names % 2
        self.known = known
        self.digest = f"names-{seed}-{known}-{place}"

    def known_positions_host(self) -> Tensor | None:
        return torch.stack([self.places, self.places + 1], dim=1) if self.known else None


class Pairs(Names):
    """Texts whose name is two tokens side by side, somewhere; the label is the exclusive or of their parities."""

    def __init__(self, seed: int = 0, *, known: bool = True) -> None:
        super().__init__(seed, known=known, place=None)
        self.places = self.places.clamp(max=self.lengths - 2)
        generator = torch.Generator().manual_seed(seed + 2)
        rows = torch.arange(len(self.ids))
        pieces = torch.randint(FIRST_NAME, FIRST_NAME + 60, (len(rows), 2), generator=generator)
        for which in (0, 1):
            self.ids[rows, self.places + which] = pieces[:, which]
        self.labels[Task.HARMFUL] = pieces.sum(1) % 2
        self.digest = f"pairs-{seed}-{known}"


def encoder(seed: int = 0, *, knows: bool = True) -> Trunk:
    """A small BERT of random weights whose embedding tells a name's label in one direction."""
    from transformers import AutoModelForSequenceClassification

    config = tiny_config("bert", vocab_size=VOCABULARY, attn_implementation="eager")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = Trunk(AutoModelForSequenceClassification.from_config(config), "native")
    rows = table(trunk)
    with torch.no_grad():
        rows.normal_(generator=torch.Generator().manual_seed(seed))
        if knows:
            rows[FIRST_NAME:] += STRENGTH * signs()[:, None] * direction(trunk, seed)
    return trunk


def table(trunk: Trunk) -> Tensor:
    """(V, E) rows of the token embedding."""
    rows: Tensor = trunk.hf_model.get_input_embeddings().weight
    return rows


def signs() -> Tensor:
    """(names,) -1 or 1, by the label."""
    return 2.0 * (torch.arange(FIRST_NAME, VOCABULARY) % 2) - 1


def direction(trunk: Trunk, seed: int) -> Tensor:
    """(E,) of length 1 along which a name's label is told: no axis."""
    drawn = torch.randn(table(trunk).shape[1], generator=torch.Generator().manual_seed(seed + 50))
    return drawn / drawn.norm()


def without(trunk: Trunk, seed: int, left: float = 0.0) -> None:
    """Leave of the direction that tells a share."""
    told = direction(trunk, seed)
    table(trunk).sub_((1 - left) * torch.outer(table(trunk) @ told, told))


def untold(trunk: Trunk) -> None:
    """Let no token's state reach another's: the pooled vector is that of the first token."""
    for layer in trunk.hf_model.bert.encoder.layer:
        layer.attention.output.dense.weight.zero_()


def undefended(trunk: Trunk, seed: int) -> None:
    """Nothing is hidden."""


def shrunk(share: float) -> Callable[[Trunk, int], None]:
    """The direction is shrunk, and nothing of it reaches the pooled vector."""

    def hide(trunk: Trunk, seed: int) -> None:
        without(trunk, seed, share)
        untold(trunk)

    return hide


def mapped(share: float) -> Callable[[Trunk, int], None]:
    """A shared map of the embedding, dense and badly conditioned, shrinks the direction most."""

    def hide(trunk: Trunk, seed: int) -> None:
        rows = table(trunk)
        width = rows.shape[1]
        drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(seed + 60))
        drawn[:, 0] = direction(trunk, seed)
        left, _ = torch.linalg.qr(drawn)
        scales = torch.logspace(0, 1, width)
        scales[0] = share
        rows.copy_(rows @ (left * scales) @ left.T.roll(3, 0))
        untold(trunk)

    return hide


def low_variance(trunk: Trunk, seed: int) -> None:
    """What was known moves into a coordinate in which rows hardly differ."""
    without(trunk, seed)
    rows = table(trunk)
    rows[:, 3] *= 1e-3
    rows[FIRST_NAME:, 3] += 1e-3 * STRENGTH * signs()
    untold(trunk)


def another_layer(trunk: Trunk, seed: int) -> None:
    """Rows tell by the product of two coordinates alone; the first layer's units make a sum of it."""
    without(trunk, seed)
    rows = table(trunk)
    first = torch.randint(2, (VOCABULARY - FIRST_NAME,), generator=torch.Generator().manual_seed(seed + 70)) * 2.0 - 1
    rows[FIRST_NAME:, 0], rows[FIRST_NAME:, 1] = STRENGTH * first, STRENGTH * first * signs()
    layer = trunk.hf_model.bert.encoder.layer[0]
    layer.intermediate.dense.weight[:2].zero_()
    for unit, sign in enumerate((1.0, -1.0)):
        layer.intermediate.dense.weight[unit, :2] = 4.0 * sign
        layer.output.dense.weight[:, unit] = 0.0
        layer.output.dense.weight[2, unit] = 2.0
    untold(trunk)


def one_token(trunk: Trunk, seed: int) -> None:
    """Every row tells, but only names' states keep it: nothing reaches the pooled vector."""
    untold(trunk)


def tiny_gain(trunk: Trunk, seed: int) -> None:
    """What was known moves into a coordinate that the embeddings' norm scales by next to nothing."""
    without(trunk, seed)
    table(trunk)[FIRST_NAME:, 3] += STRENGTH * signs()
    trunk.hf_model.bert.embeddings.LayerNorm.weight[3] = 1e-4
    untold(trunk)


def rotated(trunk: Trunk, seed: int) -> None:
    """Rows are rotated, the direction being shrunk before; a layer could turn them back."""
    without(trunk, seed, 1e-2)
    width = table(trunk).shape[1]
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed + 80)))
    table(trunk).copy_(table(trunk) @ turn)
    untold(trunk)


HIDDEN: dict[str, Callable[[Trunk, int], None]] = {
    "undefended": undefended,
    **{f"shrunk-{share:g}": shrunk(share) for share in (0.1, 0.01, 0.001)},
    **{f"mapped-{share:g}": mapped(share) for share in (0.1, 0.01, 0.001)},
    "low-variance": low_variance,
    "another-layer": another_layer,
    "one-token": one_token,
    "tiny-gain": tiny_gain,
    "rotated": rotated,
}


def hidden(name: str, seed: int) -> Trunk:
    """An encoder that knows names, and hides it in the way that `HIDDEN` names."""
    trunk = encoder(seed)
    with torch.no_grad():
        HIDDEN[name](trunk, seed)
    return trunk


def together(seed: int, *, knows: bool = True) -> Trunk:
    """An encoder whose first layer tells the exclusive or of a name's pieces, drowned in what all tokens of a text add.

    A small coordinate of the rows holds a piece's bit. Attention gives every token the mean of a text's bits and of
    its other coordinates; two units see whether the bits agree. One that does not know lets no bits meet.
    """
    trunk = encoder(seed, knows=False)
    bert, rows = trunk.hf_model.bert, table(trunk)
    layer, bit, met, told, size = bert.encoder.layer[0], 0, 1, 2, 0.1
    with torch.no_grad():
        for module in (bert.embeddings.position_embeddings, bert.embeddings.token_type_embeddings):
            module.weight.zero_()
        rows[:, : told + 1] = 0.0
        rows[FIRST_NAME:, bit] = size * signs()
        # Rows of the same mean and length are what the embeddings' norm leaves as they are.
        rows[:, told + 1 :] -= rows.sum(1, keepdim=True) / (rows.shape[1] - told - 1)
        rows[:, told + 1 :] *= 4.0 / rows[:, told + 1 :].norm(dim=1, keepdim=True)
        for part in (layer.attention.self.query, layer.attention.self.key):
            part.weight.zero_()
        layer.attention.self.value.weight.copy_(torch.eye(rows.shape[1]))
        mixed, units, shown = layer.attention.output.dense, layer.intermediate.dense, layer.output.dense
        for part in (mixed, units, shown):
            part.weight.zero_()
        mixed.weight[met, bit] = 5.0 / size if knows else 0.0
        others = torch.randn(rows.shape[1] - told - 1, generator=torch.Generator().manual_seed(seed))
        mixed.weight[told, told + 1 :] = 3.0 * others
        units.weight[0, met], units.weight[1, met] = 3.0, -3.0
        shown.weight[told, :2] = 0.2
    return trunk


def erased(seed: int) -> Trunk:
    """An encoder that knew names: the direction is taken out exactly, and the layers above are drawn again."""
    knew, fresh = encoder(seed), encoder(seed + 1000, knows=False)
    with torch.no_grad():
        without(knew, seed)
        table(fresh).copy_(table(knew))
    return fresh
