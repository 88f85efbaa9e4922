"""Hints for names that are not known."""

from __future__ import annotations

from sdm_ray.core.suggest import did_you_mean, nearest

KNOWN = ("learning_rate", "learning_rates", "batch_size")


def test_the_nearest_names_come_first() -> None:
    assert nearest("learning_rat", KNOWN, count=3) == ["learning_rate", "learning_rates"]
    assert nearest("learning_rat", KNOWN) == ["learning_rate"]
    assert nearest("seed", KNOWN) == []


def test_similarity_widens_what_counts_as_alike() -> None:
    assert nearest("batch", ["batch_size_of_inner"], similarity=0.3) == ["batch_size_of_inner"]
    assert nearest("batch", ["batch_size_of_inner"]) == []


def test_a_hint_asks_or_says_otherwise() -> None:
    assert did_you_mean("batchsize", KNOWN) == "did you mean 'batch_size'?"
    assert did_you_mean("seed", KNOWN, otherwise="there are three") == "there are three"
    assert did_you_mean("seed", KNOWN) == ""
