"""Splits: disjoint whatever the data, unmoved by other rows, and close to the shares that were asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdm_ray.config import DataSettings, SplitFractions
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.types import Split
from sdm_ray.data.sources import Examples, load_examples, normalise
from sdm_ray.data.splits import SPLITS, assign_splits, check_classes, check_disjoint

SETTINGS = DataSettings()

texts = st.lists(st.text("abC \n", min_size=1, max_size=4), min_size=1, max_size=40)
rows = st.lists(
    st.tuples(st.text("abC ", min_size=1, max_size=3), st.sampled_from("pqrstuvw")), min_size=1, max_size=40
)


def make(values: list[str], groups: list[str] | None = None) -> Examples:
    labels = np.arange(len(values)) % 2
    return Examples(values, labels, labels, groups, ("a", "b"), ("c", "d"), "")


@given(texts)
def test_one_text_is_in_one_split(values: list[str]) -> None:
    examples = make(values)
    split = assign_splits(examples, SETTINGS)
    seen: dict[str, int] = {}
    for value, code in zip(values, split.tolist(), strict=True):
        assert seen.setdefault(normalise(value), code) == code
    check_disjoint(examples, split)


@given(texts, texts, st.randoms(use_true_random=False))
def test_a_row_stays_where_it_is_when_others_come_and_all_are_shuffled(old: list[str], new: list[str], random) -> None:  # type: ignore[no-untyped-def]
    before = dict(zip(old, assign_splits(make(old), SETTINGS).tolist(), strict=True))
    mixed = old + new
    random.shuffle(mixed)
    after = dict(zip(mixed, assign_splits(make(mixed), SETTINGS).tolist(), strict=True))
    assert all(after[value] == code for value, code in before.items())


@given(rows)
def test_groups_and_texts_are_both_disjoint(values: list[tuple[str, str]]) -> None:
    examples = make([text for text, _ in values], [group for _, group in values])
    split = assign_splits(examples, SETTINGS)
    for kind in (0, 1):
        seen: dict[str, int] = {}
        for row, code in zip(values, split.tolist(), strict=True):
            key = row[1] if kind else normalise(row[0])
            assert seen.setdefault(key, code) == code
    check_disjoint(examples, split)


@given(rows, st.randoms(use_true_random=False))
def test_tied_groups_do_not_depend_on_the_order(values: list[tuple[str, str]], random) -> None:  # type: ignore[no-untyped-def]
    def split_of(values: list[tuple[str, str]]) -> dict[tuple[str, str], int]:
        examples = make([text for text, _ in values], [group for _, group in values])
        return dict(zip(values, assign_splits(examples, SETTINGS).tolist(), strict=True))

    shuffled = list(values)
    random.shuffle(shuffled)
    assert split_of(values) == split_of(shuffled)


def test_untied_groups_do_not_move_when_groups_are_added() -> None:
    old = make([f"text {i}" for i in range(200)], [f"name {i % 50}" for i in range(200)])
    more = make([f"text {i}" for i in range(400)], [f"name {i % 50 + (50 if i >= 200 else 0)}" for i in range(400)])
    assert np.array_equal(assign_splits(more, SETTINGS)[:200], assign_splits(old, SETTINGS))


def test_shares_are_close_to_the_fractions_and_the_seed_redraws_them() -> None:
    examples = make([f"text {i}" for i in range(20_000)])
    shares = SplitFractions(meta_train=0.4, attacker_train=0.3, attacker_val=0.2, test=0.1)
    split = assign_splits(examples, DataSettings(splits=shares))
    # Four standard deviations of a binomial share are below 0.014.
    assert np.allclose(np.bincount(split, minlength=4) / 20_000, [0.4, 0.3, 0.2, 0.1], atol=0.014)
    other = assign_splits(examples, DataSettings(splits=shares, split_seed=1))
    assert 0.2 < np.mean(split == other) < 0.4
    assert SPLITS == (Split.META_TRAIN, Split.ATTACKER_TRAIN, Split.ATTACKER_VAL, Split.TEST)


def test_the_assignment_is_frozen() -> None:
    """Results are compared across versions: another hash would move examples from test to training."""
    split = assign_splits(make([f"text {i}" for i in range(24)]), SETTINGS)
    assert "".join(map(str, split)) == "100030330232031201000130"


def test_check_disjoint_finds_a_text_or_a_group_in_two_splits() -> None:
    split = np.array([0, 3], dtype=np.int8)
    check_disjoint(make(["one", "two"]), split)
    with pytest.raises(RunError, match="the text 'one' occurs in the splits meta_train and test"):
        check_disjoint(make(["One", "  one"]), split)
    with pytest.raises(RunError, match="the group 'g' occurs in the splits meta_train and test"):
        check_disjoint(make(["one", "two"], ["g", "g"]), split)


def test_a_split_without_a_class_is_refused(data_file: Path) -> None:
    settings = DataSettings(source=str(data_file))
    examples = load_examples(settings)
    split = assign_splits(examples, settings)
    check_classes(examples, split, settings)
    in_val = split == SPLITS.index(Split.ATTACKER_VAL)
    split[in_val & (examples.desired == 1)] = 0  # nobody trains or scores the desired task there
    check_classes(examples, split, settings)
    in_test = split == SPLITS.index(Split.TEST)
    with pytest.raises(UsageError, match=r"split test \(\d+ of 240 examples\) has no .* desired class 'pilot'"):
        check_classes(examples, np.where(in_test & (examples.desired == 1), 0, split), settings)
    female = examples.harmful_labels[0]
    with pytest.raises(UsageError, match=rf"split attacker_val .* has no .* harmful class '{female}'"):
        check_classes(examples, np.where(in_val & (examples.harmful == 0), 0, split), settings)


def test_synthetic_test_names_occur_in_no_other_split() -> None:
    settings = DataSettings.model_validate({"synthetic": {"version": 1, "num_examples": 2000, "num_names": 200}})
    examples = load_examples(settings)
    split = assign_splits(examples, settings)
    assert examples.groups is not None
    names = [{name for name, code in zip(examples.groups, split, strict=True) if code == k} for k in range(4)]
    assert all(names)
    assert sum(map(len, names)) == len(set(examples.groups))
