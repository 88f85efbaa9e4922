"""Adversaries that train on the desired task first: where that leads, what it costs, and when it cannot be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdm_ray.config import TrainSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.seeds import Generators
from sdm_ray.core.types import Split, Task
from sdm_ray.data.interface import UNLABELLED
from sdm_ray.meta.adversaries.benign import BenignFirst
from sdm_ray.meta.adversaries.distribution import log_uniform
from sdm_ray.meta.inner import flat_model
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.outer.step import OuterStep
from sdm_ray.meta.trainer import GENERATORS
from sdm_ray.models.heads import init_head
from tests.fakes.meta import FakeData, MlpTrunk, adversary_of, interrupted_and_straight, train, train_settings

TEXTS = str(Metric.COST_TRAIN_TEXTS)


def benign(model: FlatModel, data: FakeData | None = None, **starts: Any) -> BenignFirst:
    settings = TrainSettings.model_validate({"adversary": {"starts": {"benign_first": 1.0, **starts}}})
    data = data or FakeData()
    return BenignFirst(settings, model=model, data=data, indices=data.indices(Split.META_TRAIN))


def first(num_steps: int, seed: int = 5) -> Any:
    return adversary_of(start="benign_first", start_amount=float(num_steps), start_seed=seed)


def desired_loss(model: FlatModel, trunk: Tensor, head: Tensor) -> Tensor:
    data = FakeData()
    batch = data.batch(data.indices(Split.ATTACKER_TRAIN), Task.DESIRED)
    return torch.nn.functional.cross_entropy(model.logits(trunk, head, batch), batch.labels)


def best_loss(model: FlatModel, trunk: Tensor) -> float:
    """Desired loss of the best head on a frozen trunk."""
    head = torch.zeros(3, model.feature_dim, dtype=trunk.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([head], max_iter=60)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = desired_loss(model, trunk, head) + 1e-3 * head.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return desired_loss(model, trunk, head.detach()).item()


def test_the_start_does_the_desired_task_better() -> None:
    model = FlatModel(MlpTrunk())
    trunk = model.initial()
    rate = {"low": 3e-2, "high": 3e-2}
    moved = benign(model, benign_first_learning_rate=rate).displacement(first(40), trunk)
    assert best_loss(model, trunk + moved) < 0.5 * best_loss(model, trunk)


@pytest.mark.parametrize("restricted", [True, False])
def test_the_steps_are_those_of_adam_from_a_fresh_head(restricted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the embedding's rows restricted to those that occur, as without."""
    monkeypatch.setattr(flat_model, "ROW_MULTIPLE", 1 if restricted else 256)
    model, data = FlatModel(MlpTrunk()), FakeData()
    starts, adversary = benign(model, data), first(4)
    moved = starts.displacement(adversary, model.initial())
    generator = torch.Generator().manual_seed(adversary.start_seed)
    settings = TrainSettings.model_validate({}).adversary.starts
    rate = log_uniform(settings.benign_first_learning_rate, generator)
    head = init_head(6, 3, generator, dtype=torch.float64).requires_grad_()
    trunk = model.initial().requires_grad_()
    optimizer = torch.optim.Adam([trunk, head], lr=rate)
    drawn = [(indices, task) for indices, task in data.batches if task is Task.DESIRED]
    assert [indices.shape for indices, _ in drawn] == [(1, 5)] * 4
    for indices, task in drawn:
        batch = FakeData().batch(indices[0], task)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.logits(trunk, head, batch), batch.labels).backward()
        optimizer.step()
    torch.testing.assert_close(model.initial() + moved, trunk.detach(), rtol=1e-9, atol=1e-12)


def test_steps_rate_and_seed_change_the_start() -> None:
    model = FlatModel(MlpTrunk())
    trunk = model.initial()

    def length(num_steps: int, rate: float = 1e-3) -> float:
        found = benign(model, benign_first_learning_rate={"low": rate, "high": rate})
        return found.displacement(first(num_steps), trunk).norm().item()

    assert length(1) < length(5) < length(25)
    assert length(1, 1e-2) == pytest.approx(10 * length(1), rel=1e-3)
    starts = benign(model)
    one, same, other = (starts.displacement(first(2, seed), trunk) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


FRESH = {"num_steps": 2, "batch_sizes": [4], "num_adversaries": 2}
POOL = {"num_steps": 0, "batch_sizes": [4], "pool": {"size": 2, "lifespan_steps": 1, "subset_size": 20}}
STARTS = {"released": 0.0, "benign_first": 1.0, "benign_first_steps": [3]}


@pytest.mark.parametrize(
    ("adversary", "texts"),
    [(FRESH, 5 * 2 * (2 + 3) * 4), (POOL, 5 * 4 + (2 + 3) * 3 * 4)],
    ids=["fresh", "two members, and three that replaced one"],
)
def test_its_texts_are_counted(adversary: dict[str, Any], texts: int) -> None:
    outcome = train(train_settings(adversary={**adversary, "starts": STARTS}, num_outer_steps=5))
    assert outcome.costs[TEXTS] == 5 * 18 + texts


@pytest.mark.parametrize("adversary", [FRESH, POOL], ids=["fresh", "pool"])
def test_its_products_are_counted(adversary: dict[str, Any]) -> None:
    flops = [
        train(train_settings(adversary={**adversary, **starts}, num_outer_steps=4)).costs[str(Metric.COST_TRAIN_FLOPS)]
        for starts in ({}, {"starts": STARTS})
    ]
    runs = 4 * 2 if adversary is FRESH else 4
    assert flops[1] - flops[0] == runs * 3 * 6 * 4 * (6 * 6 + 6 * 3)


def test_an_interrupted_training_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """Fresh ones draw their start from a seed, so that there is nothing to restore."""
    settings = train_settings(adversary={**POOL, "starts": STARTS}, gradient_mode="adjoint")
    resumed, straight = interrupted_and_straight(settings, MlpTrunk, tmp_path)
    assert all(torch.equal(resumed.params[name], straight.params[name]) for name in straight.params)
    assert resumed.costs == straight.costs


class Harmful(FakeData):
    """Data without desired labels."""

    def labels_host(self, task: Task) -> Tensor:
        labels = super().labels_host(task)
        return torch.full_like(labels, UNLABELLED) if task is Task.DESIRED else labels


def test_data_without_a_desired_task_are_refused() -> None:
    said = r"train\.adversary\.starts\.benign_first is 1, but the data have no desired task; set it to 0"
    with pytest.raises(UsageError, match=said):
        benign(FlatModel(MlpTrunk()), Harmful())


def test_other_draws_stay_those_of_a_run_without_it() -> None:
    """Where the desired task is trained by no step, the run is that of unedited starts to the bit."""
    drawn = []
    for starts in ({}, {"released": 1.0, "benign_first": 1e-12}):
        settings = train_settings(adversary={**FRESH, "starts": starts})
        step = OuterStep(settings, trunk=MlpTrunk(), data=FakeData(), generators=Generators(0, GENERATORS))
        step.step()
        drawn.append(step.trunk.detach())
    assert torch.equal(*drawn)


def test_the_adversary_says_so() -> None:
    assert "benign first start of 50" in first(50).describe()
    assert math.isclose(first(50).start_amount, 50)
