"""The map that all rows of the embedding share: its gradient, its step, and what it unlearns of tokens never seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdm_ray.core.errors import UsageError
from sdm_ray.core.types import Split
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.outer.embedding_map import EmbeddingMap
from sdm_ray.meta.trainer import Trainer
from sdm_ray.models.mlp import VectorMlp
from tests.fakes.meta import FakeData, MlpTrunk, drive, random_batch, train, train_settings

UNSEEN = slice(30, 40)


class HalfOfTheNames(FakeData):
    """Meta-training holds the names 20 to 29 alone."""

    def indices(self, split: Split) -> Tensor:
        found = super().indices(split)
        return found[self._ids[found, 1] < 30] if split is Split.META_TRAIN else found


def ac(**changes: Any) -> Any:
    return train_settings(method="ac", learning_rate=1e-2, adversary_learning_rate=1e-2, **changes)


def test_its_gradient_is_that_of_the_loss_with_the_map_in_the_embeddings_place() -> None:
    trunk, batch = MlpTrunk(), random_batch(6, seed=0)
    model = FlatModel(trunk)
    flat = model.initial().requires_grad_()
    head = torch.randn(2, trunk.feature_dim, dtype=torch.float64)

    def loss(flat: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(model.logits(flat, head, batch), batch.labels)

    shared = EmbeddingMap(trunk, model)
    (gradient,) = torch.autograd.grad(loss(flat), flat)
    mapping = torch.zeros(6, 6, dtype=torch.float64, requires_grad=True)
    views = model.layout.unflatten(flat.detach())
    moved = {**views, "embedding": views["embedding"] + views["embedding"] @ mapping}
    features = torch.func.functional_call(trunk, moved, batch.inputs)
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(features @ head.T, batch.labels), mapping)
    torch.testing.assert_close(shared.gradient(flat, gradient), expected)


def test_a_step_moves_rows_that_do_not_occur_and_the_map_is_zero_again() -> None:
    trunk = MlpTrunk()
    model = FlatModel(trunk)
    shared, flat = EmbeddingMap(trunk, model), model.initial()
    before = model.layout.unflatten(flat)["embedding"].clone()
    step = torch.randn(6, 6, dtype=torch.float64)
    with torch.no_grad():
        shared.map += step
    shared.fold(flat)
    after = model.layout.unflatten(flat)
    torch.testing.assert_close(after["embedding"], before @ (torch.eye(6, dtype=torch.float64) + step))
    assert torch.equal(after["weight"], trunk.weight)
    assert not shared.map.any()


def separation(names: Tensor) -> float:
    """How far apart the two genders' names lie, in mean distances of a name from its gender's mean."""
    means = names[0::2].mean(0), names[1::2].mean(0)
    within = torch.cat([names[0::2] - means[0], names[1::2] - means[1]])
    return float((means[0] - means[1]).norm() / within.norm(dim=1).mean())


@pytest.mark.parametrize("rate", [0.0, 1e-2])
def test_what_is_unlearnt_of_names_that_occur_is_unlearnt_of_those_that_do_not(rate: float) -> None:
    trunk = MlpTrunk(knows_names=True)
    settings = train_settings(
        method="ac", num_outer_steps=40, learning_rate=1e-3, adversary_learning_rate=3e-2,
        embedding_map_learning_rate=rate,
    )  # fmt: skip
    names = train(settings, trunk=trunk, data=HalfOfTheNames()).params["embedding"][UNSEEN]
    if rate:
        assert separation(names) < 0.8 * separation(trunk.embedding[UNSEEN].detach())
    else:
        assert torch.equal(names, trunk.embedding[UNSEEN])


def test_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    settings = ac(embedding_map_learning_rate=1e-2)

    def trainer(folder: Path) -> Trainer:
        return Trainer(settings, trunk=MlpTrunk(), data=FakeData(), seed=0, checkpoint_dir=folder)

    straight, _ = drive(trainer(tmp_path / "straight"))
    drive(trainer(tmp_path / "broken"), stop_at=5)
    resumed, _ = drive(trainer(tmp_path / "broken"))
    assert straight is not None
    assert resumed is not None
    for name, value in straight.params.items():
        assert torch.equal(value, resumed.params[name])


def test_an_encoder_without_embedding_is_refused() -> None:
    trunk = VectorMlp(4, 8, 2, seed=0)
    with pytest.raises(UsageError, match="no token embedding"):
        EmbeddingMap(trunk, FlatModel(trunk))
