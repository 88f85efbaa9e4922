"""Draws follow the settings, exactly reproducibly; subsets are balanced as far as the examples go."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdm_ray.config import AdversarySettings
from sdm_ray.errors import UsageError
from sdm_ray.meta.adversary import Adversary, FewShot, InnerBatches, draw_fresh, draw_persistent


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def settings(**values: Any) -> AdversarySettings:
    return AdversarySettings.model_validate(values)


def fresh(count: int = 200, **values: Any) -> list[Adversary]:
    source = generator()
    return [draw_fresh(settings(**values), source) for _ in range(count)]


def persistent(count: int = 200, **pool: Any) -> list[Adversary]:
    source = generator()
    return [draw_persistent(settings(pool=pool), source) for _ in range(count)]


def test_equal_seeds_give_equal_draws() -> None:
    assert fresh(frozen_probability=0.5) == fresh(frozen_probability=0.5)


def test_optimizers_and_batch_sizes_are_all_drawn() -> None:
    drawn = fresh(optimizers=["sgd", "momentum", "adam"], batch_sizes=[8, 24])
    assert {a.optimizer for a in drawn} == {"sgd", "momentum", "adam"}
    assert {a.batch_size for a in drawn} == {8, 24}


def test_a_meta_learned_rate_is_not_drawn() -> None:
    assert {a.learning_rate for a in fresh()} == {None}


def test_rates_fill_their_range_on_a_logarithmic_scale() -> None:
    bounds = {"low": 1e-5, "high": 1e-1}
    for drawn in (
        fresh(learning_rate_mode="log_uniform", learning_rate=bounds),
        persistent(learning_rate=bounds),
    ):
        rates = [a.learning_rate for a in drawn if a.learning_rate is not None]
        assert 1e-5 <= min(rates) < 3e-5
        assert 3e-2 < max(rates) <= 1e-1
        assert 0.4 < sum(rate < 1e-3 for rate in rates) / len(rates) < 0.6


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (0.3, 35, 85), (1.0, 200, 200)])
def test_frozen_share(probability: float, low: int, high: int) -> None:
    for drawn in (fresh(frozen_probability=probability), persistent(frozen_probability=probability)):
        assert low <= sum(a.frozen for a in drawn) <= high


def test_an_adversary_says_what_it_does() -> None:
    adversary = Adversary(optimizer="adam", batch_size=8, learning_rate=0.00123, frozen=True)
    assert adversary.describe() == "adam, learning rate 0.00123, batch 8, head only"


def few_shot(counts: tuple[int, ...]) -> FewShot:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    return FewShot(torch.arange(len(labels)) + 1000, labels)


@pytest.mark.parametrize(
    ("counts", "size", "expected"),
    [((50, 50), 20, (10, 10)), ((3, 50), 20, (3, 17)), ((50, 2, 50), 32, (15, 2, 15)), ((5, 5), 10, (5, 5))],
)
def test_subsets_are_as_even_as_the_classes_allow(
    counts: tuple[int, ...], size: int, expected: tuple[int, ...]
) -> None:
    subset = few_shot(counts).draw(size, generator()) - 1000
    ends = torch.tensor(counts).cumsum(0)
    drawn = torch.bucketize(subset, ends, right=True).bincount(minlength=len(counts))
    assert tuple(drawn.tolist()) == expected
    assert len(set(subset.tolist())) == size


def test_an_odd_subset_favours_no_class_for_good() -> None:
    source, draws = generator(), few_shot((10, 10))
    firsts = [int((draws.draw(3, source) < 1010).sum()) for _ in range(50)]
    assert set(firsts) == {1, 2}


def test_a_subset_beyond_the_examples_is_refused() -> None:
    with pytest.raises(UsageError, match=r"adversary\.subset_size is 30, but the meta-training split has only 20"):
        few_shot((10, 10)).check(30, "adversary.subset_size")


def test_inner_batches_pass_all_examples_once_an_epoch() -> None:
    indices = torch.arange(48)
    batches = InnerBatches(indices, FewShot(indices, indices % 2), settings(batch_sizes=[8]), generator())
    drawn = torch.cat([batches.draw(8, 3), batches.draw(8, 3)])
    assert drawn.shape == (6, 8)
    assert sorted(drawn.flatten().tolist()) == list(range(48))


def test_inner_batches_stay_within_the_episode_s_subset() -> None:
    indices = torch.arange(48)
    batches = InnerBatches(
        indices, FewShot(indices, indices % 2), settings(batch_sizes=[8], subset_size=16), generator()
    )
    first, second = batches.draw(8, 6), batches.draw(8, 6)
    assert len(set(first.flatten().tolist())) == 16
    assert set(first.flatten().tolist()) != set(second.flatten().tolist())
    assert batches.draw(24, 2).shape == (2, 16)
