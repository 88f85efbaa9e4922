"""Draws follow the settings, exactly reproducibly; subsets are balanced as far as the examples go."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from sdm_ray.config import AdversarySettings
from sdm_ray.core.errors import UsageError
from sdm_ray.meta.adversaries.distribution import draw_fresh, draw_persistent
from sdm_ray.meta.adversaries.few_shot import FewShot, InnerBatches
from sdm_ray.meta.inner.adversary import Adversary

PLAIN = Adversary(
    optimizer="adam",
    batch_size=8,
    num_steps=4,
    learning_rate=None,
    schedule="constant",
    adaptation="full",
    depth=0,
    rank=0,
    reset_head=False,
    noise=0.0,
)
MANY = 2000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def settings(**values: Any) -> AdversarySettings:
    return AdversarySettings.model_validate(values)


def fresh(count: int = 200, *, step: int = 0, num_depths: int = 4, **values: Any) -> list[Adversary]:
    source, drawn_from = generator(), settings(**values)
    return [draw_fresh(drawn_from, source, step=step, num_depths=num_depths) for _ in range(count)]


def persistent(count: int = 200, *, pool: dict[str, Any] | None = None, **values: Any) -> list[Adversary]:
    source, drawn_from = generator(), settings(pool=pool or {}, **values)
    return [draw_persistent(drawn_from, source) for _ in range(count)]


def within(count: int, probability: float) -> bool:
    """Whether a count of `MANY` draws is within four standard deviations of what is expected."""
    return abs(count - MANY * probability) <= 4 * (MANY * probability * (1 - probability)) ** 0.5


def test_equal_generator_states_give_equal_draws() -> None:
    values: dict[str, Any] = {
        "frozen_probability": 0.3, "partly_frozen_probability": 0.3, "lora_probability": 0.3, "head": "mixture",
        "num_steps_min": 1, "num_steps": 9, "parameter_noise": 0.1, "optimizers": ["sgd", "adam"],
        "learning_rate_mode": "log_uniform", "learning_rate_schedules": ["constant", "linear"],
    }  # fmt: skip
    assert fresh(**values) == fresh(**values)
    assert persistent(**values) == persistent(**values)
    assert len(set(fresh(**values))) > 190
    source = generator()
    state = source.get_state()
    first = draw_fresh(settings(**values), source, step=0, num_depths=4)
    source.set_state(state)
    assert draw_fresh(settings(**values), source, step=0, num_depths=4) == first


def test_optimizers_batch_sizes_and_schedules_are_all_drawn() -> None:
    optimizers, schedules = ["sgd", "momentum", "adam", "adamw", "rmsprop"], ["constant", "warmup", "linear", "cosine"]
    drawn = fresh(MANY, optimizers=optimizers, batch_sizes=[8, 24], learning_rate_schedules=schedules)
    for values, key in ((optimizers, "optimizer"), ([8, 24], "batch_size"), (schedules, "schedule")):
        counts = Counter(getattr(a, key) for a in drawn)
        assert set(counts) == set(values)
        assert all(within(count, 1 / len(values)) for count in counts.values())


def test_a_meta_learned_rate_is_not_drawn() -> None:
    assert {a.learning_rate for a in fresh()} == {None}


def test_a_fixed_rate_is_the_initial_one() -> None:
    assert {a.learning_rate for a in fresh(learning_rate_mode="fixed", learning_rate_initial=0.002)} == {0.002}


def test_rates_fill_their_range_on_a_logarithmic_scale() -> None:
    bounds = {"low": 1e-5, "high": 1e-1}
    for drawn in (
        fresh(learning_rate_mode="log_uniform", learning_rate=bounds),
        persistent(pool={"learning_rate": bounds}),
    ):
        rates = [a.learning_rate for a in drawn if a.learning_rate is not None]
        assert len(rates) == len(drawn)
        assert 1e-5 <= min(rates) < 3e-5
        assert 3e-2 < max(rates) <= 1e-1
        assert 0.4 < sum(rate < 1e-3 for rate in rates) / len(rates) < 0.6


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_frozen_share(probability: float) -> None:
    for drawn in (
        fresh(MANY, frozen_probability=probability),
        persistent(MANY, pool={"frozen_probability": probability}),
    ):
        assert within(sum(a.adaptation == "head" for a in drawn), probability)
        assert {a.adaptation for a in drawn} <= {"head", "full"}


def test_shares_of_the_adaptations() -> None:
    shares = {"head": 0.2, "partial": 0.3, "lora": 0.1, "full": 0.4}
    drawn = fresh(MANY, frozen_probability=0.2, partly_frozen_probability=0.3, lora_probability=0.1)
    counts = Counter(a.adaptation for a in drawn)
    assert set(counts) == set(shares)
    assert all(within(counts[adaptation], share) for adaptation, share in shares.items())


def test_shares_that_sum_to_one_leave_nothing_else() -> None:
    drawn = fresh(MANY, frozen_probability=0.7, partly_frozen_probability=0.2, lora_probability=0.1)
    assert {a.adaptation for a in drawn} == {"head", "partial", "lora"}


def test_only_low_rank_adversaries_have_a_rank() -> None:
    drawn = fresh(MANY, lora_probability=0.5, lora_ranks=[2, 8])
    assert {a.rank for a in drawn if a.adaptation == "lora"} == {2, 8}
    assert {a.rank for a in drawn if a.adaptation != "lora"} == {0}


@pytest.mark.parametrize("num_depths", [2, 5])
def test_depths_leave_at_least_one_block_to_train(num_depths: int) -> None:
    drawn = fresh(MANY, num_depths=num_depths, partly_frozen_probability=0.5)
    counts = Counter(a.depth for a in drawn if a.adaptation == "partial")
    assert set(counts) == set(range(1, num_depths))
    assert all(within(count, 0.5 / (num_depths - 1)) for count in counts.values())
    assert {a.depth for a in drawn if a.adaptation != "partial"} == {0}


def test_a_single_block_is_frozen_whole() -> None:
    assert {(a.adaptation, a.depth) for a in fresh(num_depths=1, partly_frozen_probability=1.0)} == {("head", 0)}


@pytest.mark.parametrize(
    ("head", "probability"), [("meta_learned", 0.0), ("reset", 1.0), ("mixture", 0.25), ("mixture", 0.0)]
)
def test_share_of_fresh_heads(head: str, probability: float) -> None:
    drawn = fresh(MANY, head=head, head_reset_probability=probability)
    assert within(sum(a.reset_head for a in drawn), probability)


def test_steps_are_fixed_or_drawn_from_a_range() -> None:
    assert {a.num_steps for a in fresh(num_steps=5)} == {5}
    assert {a.num_steps for a in fresh(num_steps=0)} == {0}
    counts = Counter(a.num_steps for a in fresh(MANY, num_steps=6, num_steps_min=3))
    assert set(counts) == {3, 4, 5, 6}
    assert all(within(count, 0.25) for count in counts.values())


@pytest.mark.parametrize(
    ("step", "expected"), [(0, {2}), (50, {2, 3, 4, 5, 6}), (100, set(range(2, 11))), (999, set(range(2, 11)))]
)
def test_a_range_of_steps_grows(step: int, expected: set[int]) -> None:
    drawn = fresh(num_steps=10, num_steps_min=2, growing_steps=100, step=step)
    assert {a.num_steps for a in drawn} == expected


@pytest.mark.parametrize(("step", "expected"), [(0, 1), (50, 5), (100, 9), (999, 9)])
def test_a_fixed_number_of_steps_grows(step: int, expected: int) -> None:
    assert {a.num_steps for a in fresh(num_steps=9, growing_steps=100, step=step)} == {expected}


def test_noise_is_uniform_up_to_its_largest() -> None:
    assert {a.noise for a in fresh()} == {0.0}
    noise = [a.noise for a in fresh(MANY, parameter_noise=0.1)]
    assert 0 <= min(noise) < 0.002
    assert 0.098 < max(noise) <= 0.1
    assert within(sum(value < 0.025 for value in noise), 0.25)


@pytest.mark.parametrize(
    ("change", "concerns"),
    [
        ({"frozen_probability": 0.5}, {"adaptation", "depth", "rank"}),
        ({"partly_frozen_probability": 0.5}, {"adaptation", "depth", "rank"}),
        ({"lora_probability": 0.5}, {"adaptation", "depth", "rank"}),
        ({"head": "mixture", "head_reset_probability": 0.5}, {"reset_head"}),
        ({"parameter_noise": 0.2}, {"noise"}),
        ({"learning_rate_mode": "log_uniform"}, {"learning_rate"}),
        ({"num_steps": 20}, {"num_steps"}),
        ({"optimizers": ["sgd", "momentum", "rmsprop"]}, {"optimizer"}),
        ({"lora_ranks": [1, 2, 3]}, {"rank"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_change_of_one_setting_does_not_shift_the_other_draws(change: dict[str, Any], concerns: set[str]) -> None:
    base: dict[str, Any] = {
        "optimizers": ["sgd", "adam"], "num_steps": 9, "num_steps_min": 1, "frozen_probability": 0.1,
        "partly_frozen_probability": 0.1, "lora_probability": 0.2,
        "learning_rate_schedules": ["constant", "linear", "cosine"],
    }  # fmt: skip
    before, after = fresh(**base), fresh(**base | change)
    differing = {
        key for a, b in zip(before, after, strict=True) for key in vars(a) if getattr(a, key) != getattr(b, key)
    }
    assert differing
    assert differing <= concerns


@pytest.mark.parametrize("name", ["frozen_probability", "partly_frozen_probability"])
def test_a_larger_share_of_frozen_adversaries_turns_no_low_rank_one_into_another(name: str) -> None:
    before, after = fresh(lora_probability=0.3), fresh(lora_probability=0.3, **{name: 0.4})
    assert [a.rank for a in before] == [a.rank for a in after]
    assert {a.adaptation for a in before} != {a.adaptation for a in after}


def test_members_of_the_pool_start_from_a_fresh_head_and_take_the_turn_s_steps() -> None:
    drawn = persistent(
        pool={"steps_per_turn": 3}, head="meta_learned", num_steps=7, parameter_noise=0.1, lora_probability=1.0,
        learning_rate_schedules=["cosine"], optimizers=["sgd", "adamw"], batch_sizes=[2, 4],
    )  # fmt: skip
    seen = {(a.num_steps, a.reset_head, a.noise, a.rank, a.depth, a.schedule) for a in drawn}
    assert seen == {(3, True, 0.0, 0, 0, "constant")}
    assert {a.optimizer for a in drawn} == {"sgd", "adamw"}
    assert {a.batch_size for a in drawn} == {2, 4}


def test_a_plain_adversary_says_what_it_does() -> None:
    assert PLAIN.describe() == "adam, meta-learned learning rate, batch 8, whole model, 4 steps, meta-learned head"


DIFFERENCES = [
    ({"optimizer": "rmsprop"}, "rmsprop", False),
    ({"batch_size": 24}, "batch 24", False),
    ({"num_steps": 7}, "7 steps", False),
    ({"learning_rate": 0.00123}, "learning rate 0.00123", True),
    ({"schedule": "cosine"}, "cosine schedule", False),
    ({"adaptation": "head"}, "head only", False),
    ({"adaptation": "partial", "depth": 2}, "lowest 2 of the blocks frozen", False),
    ({"adaptation": "lora", "rank": 16}, "LoRA of rank 16", False),
    ({"reset_head": True}, "fresh head", True),
    ({"noise": 0.05}, "noise 0.05", True),
]


@pytest.mark.parametrize(("change", "phrase", "alike"), DIFFERENCES, ids=[phrase for _, phrase, _ in DIFFERENCES])
def test_what_differs_is_named_and_keeps_apart_what_cannot_run_together(
    change: dict[str, Any], phrase: str, alike: bool
) -> None:
    changed = replace(PLAIN, **change)
    assert phrase in changed.describe().split(", ")
    assert phrase not in PLAIN.describe().split(", ")
    assert (changed.shape() == PLAIN.shape()) is alike


def test_depth_and_rank_keep_adversaries_apart() -> None:
    partial, lora = replace(PLAIN, adaptation="partial", depth=1), replace(PLAIN, adaptation="lora", rank=4)
    assert partial.shape() != replace(partial, depth=2).shape()
    assert lora.shape() != replace(lora, rank=8).shape()


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
