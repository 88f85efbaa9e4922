"""Persistent adversaries: one turn equals a hand-written one, lives end, states survive."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sdm_ray.config import TrainSettings
from sdm_ray.core.types import Split, Task
from sdm_ray.meta.adversaries.few_shot import FewShot
from sdm_ray.meta.adversaries.pool import AdversaryPool
from sdm_ray.meta.inner import flat_model as functional_module
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.objectives.calibration import calibrated_cross_entropy
from tests.fakes.files import NoHostSync
from tests.fakes.meta import FakeData, MlpTrunk, random_batch

WEIGHTS = {"harmful_adapted_calibrated": 2.0}
OUTER = random_batch(6, seed=3)


OUTER_INDICES = torch.arange(6)


def make_pool(
    adversary: dict[str, Any] | None = None, *, mode: str = "unrolled", **pool: Any
) -> tuple[AdversaryPool, FlatModel, FakeData]:
    values = {"size": 2, "frozen_probability": 0.0, "subset_size": 20, **pool}
    adversary = {"num_steps": 0, **(adversary or {}), "pool": values}
    settings = TrainSettings.model_validate({"adversary": adversary, "gradient_mode": mode})
    model, data = FlatModel(MlpTrunk()), FakeData()
    indices = data.indices(Split.META_TRAIN)
    made = AdversaryPool(
        settings,
        model=model,
        data=data,
        indices=indices,
        few_shot=FewShot(indices, data.labels_host(Task.HARMFUL)[indices]),
        generator=torch.Generator().manual_seed(0),
    )
    made.start(model.initial())
    return made, model, data


def take_turns(pool: AdversaryPool, model: FlatModel, count: int) -> list[Any]:
    return [pool.turn(model.initial(), OUTER, OUTER_INDICES, WEIGHTS) for _ in range(count)]


@pytest.mark.parametrize("clip", [100.0, 0.05])
def test_turns_equal_a_hand_written_adversary_at_a_moving_trunk(clip: float) -> None:
    pool, model, data = make_pool({"gradient_clip": clip}, size=1, steps_per_turn=2, lifespan_steps=10**6)
    head = pool.members[0].head.clone().requires_grad_()
    delta = torch.zeros(model.layout.numel, dtype=torch.float64, requires_grad=True)
    rate = pool.members[0].adversary.learning_rate
    assert rate is not None
    adam = torch.optim.Adam([delta, head], rate)
    for outer_step in range(3):
        theta = model.initial() + 0.1 * outer_step
        data.batches.clear()
        turn = pool.turn(theta, OUTER, OUTER_INDICES, WEIGHTS)
        assert len(data.batches) == 2
        for indices, task in list(data.batches):
            assert task is Task.HARMFUL
            batch = data.batch(indices[0], task)
            adam.zero_grad()
            F.cross_entropy(model.logits(theta + delta, head, batch), batch.labels).backward()
            torch.nn.utils.clip_grad_norm_([delta, head], clip)
            adam.step()
        point = (theta + delta.detach()).requires_grad_()
        scores = model.logits(point, head.detach(), OUTER)
        (gradient,) = torch.autograd.grad(-2.0 * calibrated_cross_entropy(scores[None], OUTER.labels).mean(), point)
        torch.testing.assert_close(turn.trunk, gradient, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(turn.trajectory.logits[0], scores.detach())


def test_a_frozen_member_trains_its_head_alone_at_ten_times_the_rate() -> None:
    pool, model, data = make_pool({"optimizers": ["sgd"]}, size=1, frozen_probability=1.0)
    member = pool.members[0]
    head = member.head.clone().requires_grad_()
    data.batches.clear()
    pool.turn(model.initial(), OUTER, OUTER_INDICES, WEIGHTS)
    indices, task = data.batches[0]
    batch = data.batch(indices[0], task)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model.logits(model.initial(), head, batch), batch.labels), head)
    assert member.delta is None
    assert member.adversary.learning_rate is not None
    torch.testing.assert_close(member.head, head.detach() - 10 * member.adversary.learning_rate * gradient)


def test_members_take_turns() -> None:
    pool, model, _ = make_pool(size=3, lifespan_steps=10**6)
    take_turns(pool, model, 4)
    assert [member.age for member in pool.members] == [2, 1, 1]


def test_steps_per_turn_end_with_the_life() -> None:
    pool, model, _ = make_pool(size=1, steps_per_turn=5, lifespan_steps=1)
    take_turns(pool, model, 1)
    assert pool.members[0].age == 1


def test_a_member_is_drawn_anew_at_the_end_of_its_life() -> None:
    pool, model, _ = make_pool(size=1, lifespan_steps=1)
    first = pool.members[0]
    take_turns(pool, model, 1)
    assert pool.members[0] is first
    assert first.delta is not None
    assert first.delta.abs().max() > 0
    take_turns(pool, model, 1)
    assert pool.members[0] is not first
    assert pool.members[0].age == 1
    assert pool.members[0].adversary != first.adversary


def test_life_spans_fill_their_range() -> None:
    pool, _, _ = make_pool(size=100, lifespan_steps=4)
    assert {member.lifespan for member in pool.members} == {1, 2, 3, 4}


@pytest.mark.parametrize(("subset_size", "expected"), [(20, 20), (None, 120)])
def test_a_member_sees_its_own_subset_or_everything(subset_size: int | None, expected: int) -> None:
    pool, model, data = make_pool(size=1, subset_size=subset_size, lifespan_steps=10**6)
    data.batches.clear()
    take_turns(pool, model, 40)
    assert len({index for indices, _ in data.batches for index in indices.flatten().tolist()}) == expected


def test_a_life_that_goes_on_never_waits_for_the_device() -> None:
    pool, model, _ = make_pool(lifespan_steps=10**6)
    with NoHostSync():
        take_turns(pool, model, 3)


@pytest.mark.parametrize("mode", ["unrolled", "adjoint_stored"])
def test_a_second_order_turn_differentiates_its_steps(mode: str) -> None:
    """The gradient of the blocking loss along the turn equals central differences in the current weights."""
    changes: dict[str, Any] = {"size": 1, "steps_per_turn": 3, "second_order": True, "lifespan_steps": 10**6}
    theta = FlatModel(MlpTrunk()).initial()
    direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    direction[: 20 * 6] = 0  # rows that no text of this world has

    def turn_at(point: torch.Tensor) -> Any:
        pool, _, _ = make_pool({"optimizers": ["sgd"]}, mode=mode, **changes)
        pool.turn(theta, OUTER, OUTER_INDICES, WEIGHTS)
        return pool.turn(point, OUTER, OUTER_INDICES, WEIGHTS)

    middle, size = turn_at(theta), 1e-5
    assert middle.trajectory.steps == (0, 1, 2, 3)
    ends = [turn_at(theta + sign * size * direction).values["harmful_adapted_calibrated"].item() for sign in (1, -1)]
    expected = -2.0 * (ends[0] - ends[1]) / (2 * size)
    assert (middle.trunk * direction).sum().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "rmsprop"])
def test_holding_the_rows_of_its_own_tokens_changes_nothing(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional_module, "ROW_MULTIPLE", 1)
    few, model, data = make_pool({"optimizers": [optimizer]}, size=1, subset_size=4, lifespan_steps=10**6)
    outer = data.batch(OUTER_INDICES, Task.HARMFUL)
    monkeypatch.setattr(MlpTrunk, "embedding_name", None)
    full, plain, _ = make_pool({"optimizers": [optimizer]}, size=1, subset_size=4, lifespan_steps=10**6)
    monkeypatch.undo()
    for _ in range(5):
        monkeypatch.setattr(functional_module, "ROW_MULTIPLE", 1)
        mine = few.turn(model.initial(), outer, OUTER_INDICES, WEIGHTS)
        monkeypatch.undo()
        theirs = full.turn(plain.initial(), outer, OUTER_INDICES, WEIGHTS)
        torch.testing.assert_close(mine.trunk, theirs.trunk, rtol=1e-10, atol=1e-13)
    few_held, full_held = few.members[0].delta, full.members[0].delta
    assert few_held is not None
    assert full_held is not None
    assert few_held.numel() < full_held.numel()


def test_weight_decay_holds_all_rows() -> None:
    """It moves rows that never occur, so leaving them out would change the loss on other texts."""
    pool, model, _ = make_pool({"optimizers": ["adamw"]}, size=1, subset_size=4)
    take_turns(pool, model, 1)
    assert pool.members[0].rows is None
    assert pool.members[0].delta is not None
    assert pool.members[0].delta.count_nonzero() == model.layout.numel
