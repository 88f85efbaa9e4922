"""Which numbers of labelled examples fit, and what is suggested where they do not."""

from __future__ import annotations

import pytest

from sdm_ray.config.sizes import fitting_sizes, largest_size, size_problem

OF = {"meta_train": 330, "attacker_train": 98, "attacker_val": 60, "test": 112}


@pytest.mark.parametrize(("balanced", "most"), [(True, 92), (False, 98)])
def test_the_largest_size(balanced: bool, most: int) -> None:
    assert largest_size([52, 46], balanced=balanced) == most


@pytest.mark.parametrize(
    ("sizes", "fitting"),
    [
        ([20, 50], [20, 50]),
        ([20, 50, 100, 200], [10, 20, 50]),
        ([100], [50]),
        ([2], [50]),
    ],
)
def test_sizes_that_fit_stay_and_others_are_replaced(sizes: list[int], fitting: list[int]) -> None:
    assert fitting_sizes(sizes, [52, 46], balanced=True) == fitting
    assert size_problem(fitting, [52, 46], ["uk", "us"], balanced=True, of=OF) is None


def test_all_that_is_wrong_is_said_with_what_would_do() -> None:
    problem = size_problem([1, 95, 100], [52, 46], ["uk", "us"], balanced=True, of=OF)
    assert problem is not None
    for words in (
        "n = 1 is below the number of classes (2)",
        "n = 95 needs 48 examples of each class, but split 'attacker_train' has 46 of 'us'",
        "n = 100, but split 'attacker_train' has 98 examples",
        "set attack.num_examples to [10, 20, 50], or data.splits to",
        "{meta_train: 0.51, attacker_train: 0.20, attacker_val: 0.10, test: 0.19}",
    ):
        assert words in problem, problem


def test_no_split_is_suggested_that_leaves_nothing_to_train_on() -> None:
    problem = size_problem([500], [52, 46], ["uk", "us"], balanced=True, of=OF)
    assert problem is not None
    assert "data.splits" not in problem
    assert size_problem([5], [0, 3], ["a", "b"], balanced=True, of=OF).endswith("use more data")  # type: ignore[union-attr]
