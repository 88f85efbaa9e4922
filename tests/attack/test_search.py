"""The search space, its sampler, and what is planned on the host before anything runs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from sdm_ray.attack.check import check_data
from sdm_ray.attack.engine.draws import batch_order, choose_subset, head_generator, order_generator, subset_generator
from sdm_ray.attack.engine.scoring import validation_sample
from sdm_ray.attack.families import FAMILIES, HEAD_RATE_FACTOR, Attacker, Facts
from sdm_ray.attack.space import Chance, Choice, Integer, LogFloat, SobolSampler
from sdm_ray.core.errors import UsageError
from sdm_ray.core.seeds import derived_seed
from sdm_ray.core.types import Split, Task
from tests.fakes.attack_world import FakeData, quick

SPACE = {
    "rate": LogFloat(1e-4, 1e-2),
    "steps": Integer(3, 7),
    "size": Choice((8, 16)),
    "frozen": Chance(0.25),
}
FAMILY = FAMILIES["fine_tune"]
FACTS = Facts(
    num_depths=3,
    num_hidden_states=3,
    has_linear_layers=True,
    has_public=True,
    has_own_head=True,
    can_redraw=True,
    has_masked_lm=True,
)


def test_dimensions_reach_both_ends_and_no_further() -> None:
    edge = 1 - 1e-12
    assert LogFloat(1e-4, 1e-2).at(0.0) == pytest.approx(1e-4)
    assert LogFloat(1e-4, 1e-2).at(0.5) == pytest.approx(1e-3)
    assert LogFloat(1e-4, 1e-2).at(edge) == pytest.approx(1e-2)
    assert [Integer(3, 5).at(u) for u in (0.0, 0.34, 0.67, edge, 1.0)] == [3, 4, 5, 5, 5]
    assert [Choice((8, 16)).at(u) for u in (0.0, 0.5, 1.0)] == [8, 16, 16]
    assert not any(Chance(0.0).at(u) for u in (0.0, 0.5))
    assert all(Chance(1.0).at(u) for u in (0.0, 0.5, edge))


def test_points_depend_on_the_seed_alone() -> None:
    first, again, other = SobolSampler(SPACE, 1), SobolSampler(SPACE, 1), SobolSampler(SPACE, 2)
    points = first.ask(8)
    first.tell(points, [0.5] * 8)
    again_points = again.ask(8)
    again.tell(again_points, [float("nan")] * 8)
    assert points == again_points
    assert first.ask(4) == again.ask(4)
    assert points != other.ask(8)


def test_points_are_spread_evenly() -> None:
    points = SobolSampler(SPACE, 3).ask(16)
    assert sum(point["frozen"] for point in points) == 4
    assert sum(point["size"] == 8 for point in points) == 8
    assert sum(point["rate"] < 1e-3 for point in points) == 8


def test_points_do_not_touch_global_randomness() -> None:
    state = torch.random.get_rng_state()
    SobolSampler(SPACE, 3).ask(16)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(("n", "sizes"), [(4, {4}), (10, {8}), (20, {8, 16}), (100, {8, 16, 24})])
def test_batch_size_never_exceeds_n(n: int, sizes: set[int]) -> None:
    space = FAMILY.space(quick(batch_sizes=(8, 16, 24)), n, FACTS)
    assert {point["batch_size"] for point in SobolSampler(space, 0).ask(64)} == sizes


def test_settings_bound_the_search() -> None:
    settings = quick(
        learning_rate={"low": 2e-4, "high": 3e-4}, num_steps_min=5, num_steps_max=6, frozen_probability=0.5
    )
    points = SobolSampler(FAMILY.space(settings, 20, FACTS), 0).ask(64)
    assert all(2e-4 <= point["learning_rate"] <= 3e-4 for point in points)
    assert {point["num_steps"] for point in points} == {5, 6}
    assert sum(point["frozen"] for point in points) == 32
    for point in points:
        factor = HEAD_RATE_FACTOR if point["frozen"] else 1.0
        assert FAMILY.attacker(point, 20).learning_rate == point["learning_rate"] * factor


def some_attacker(**changes: object) -> Attacker:
    values = {
        "family": "fine_tune", "num_examples": 20, "learning_rate": 1e-3, "num_steps": 5, "batch_size": 8,
    }  # fmt: skip
    return Attacker(**{**values, **changes})  # type: ignore[arg-type]


def test_seeds_do_not_depend_on_the_process() -> None:
    code = "from sdm_ray.core.seeds import derived_seed; print(derived_seed(0, 'subset', 'search', 20, 1))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == derived_seed(0, "subset", "search", 20, 1)
    assert 0 <= derived_seed(0, "subset", "search", 20, 1) < 2**63


@pytest.mark.parametrize("make", [subset_generator, order_generator, head_generator])
def test_seeds_pair_attackers(make: object) -> None:
    """Equal for equal (phase, n, seed index) whatever the hyper-parameters, different otherwise."""
    base = make(0, some_attacker()).initial_seed()  # type: ignore[operator]
    same = {"learning_rate": 1e-2, "num_steps": 9, "batch_size": 16, "trains": "head", "trial": 7}
    assert make(0, some_attacker(**same)).initial_seed() == base  # type: ignore[operator]
    for change in ({"num_examples": 50}, {"seed_index": 1}, {"phase": "rerun"}):
        assert make(0, some_attacker(**change)).initial_seed() != base  # type: ignore[operator]
    assert make(1, some_attacker()).initial_seed() != base  # type: ignore[operator]
    retry = make(0, some_attacker(attempt=1)).initial_seed()  # type: ignore[operator]
    assert (retry == base) == (make is subset_generator)


def test_subset_order_and_head_are_drawn_apart() -> None:
    makers = (subset_generator, order_generator, head_generator)
    assert len({make(0, some_attacker()).initial_seed() for make in makers}) == 3


@pytest.mark.parametrize("n", [4, 7, 20])
def test_balanced_subsets(n: int) -> None:
    indices, labels = torch.arange(100, 160), torch.arange(60) % 5 % 3
    subset = choose_subset(indices, labels, n, 3, balanced=True, generator=torch.Generator().manual_seed(1))
    counts = torch.bincount(labels[subset - 100], minlength=3)
    assert len(set(subset.tolist())) == n
    assert int(counts.max() - counts.min()) <= 1


def test_natural_subsets_follow_the_pool() -> None:
    labels = (torch.arange(1000) >= 900).long()
    generator = torch.Generator().manual_seed(1)
    subset = choose_subset(torch.arange(1000), labels, 200, 2, balanced=False, generator=generator)
    assert len(set(subset.tolist())) == 200
    assert 5 < int(labels[subset].sum()) < 40


def test_every_epoch_is_shuffled_anew() -> None:
    order = batch_order(10, 4, 10, torch.Generator().manual_seed(0))
    assert order.shape == (10, 4)
    epochs = order.flatten().view(4, 10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


@pytest.mark.parametrize(
    ("n", "balanced", "words"),
    [
        (4, True, ["n = 4", "number of classes (5)"]),
        (500, False, ["n = 500", "attacker_train", "200 examples", "set attack.num_examples to [200]"]),
        (195, True, ["n = 195", "39 examples of each class", "attacker_train", "harmful-", "to [100]"]),
    ],
)
def test_too_few_examples(n: int, balanced: bool, words: list[str]) -> None:
    data = FakeData(num_classes=5)
    with pytest.raises(UsageError) as caught:
        check_data(data, quick(num_examples=(n,), class_balanced=balanced), Task.HARMFUL)
    assert all(word in str(caught.value) for word in words), caught.value


def test_validation_sample_keeps_rare_classes() -> None:
    labels = torch.zeros(1000, dtype=torch.long)
    labels[:3], labels[3:40] = 2, 1
    indices = torch.arange(1000) + 5
    sample = validation_sample(indices, labels, 100, 3, torch.Generator().manual_seed(0))
    counts = torch.bincount(labels[sample - 5], minlength=3)
    assert len(set(sample.tolist())) == len(sample) == 100
    assert counts[2] == 3
    assert counts[1] >= 8
    again = validation_sample(indices, labels, 100, 3, torch.Generator().manual_seed(0))
    assert torch.equal(sample, again)
    tiny = validation_sample(indices, labels, 2, 3, torch.Generator().manual_seed(0))
    assert torch.bincount(labels[tiny - 5]).tolist() == [1, 1, 1]


@pytest.mark.parametrize("split", [Split.ATTACKER_VAL, Split.TEST])
def test_a_split_without_a_class(split: Split) -> None:
    data = FakeData()
    data.labels[Task.HARMFUL][data.split_indices[split]] = 0
    with pytest.raises(UsageError, match=f"'{split}' has no example of harmful label 'harmful-1'"):
        check_data(data, quick(), Task.HARMFUL)
