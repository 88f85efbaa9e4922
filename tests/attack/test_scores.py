"""Scores, calibration and intervals against brute force and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from sdm_ray.attack.scores import (
    Calibration,
    best_permutation,
    best_scale,
    confusion,
    evaluate,
    fit_calibration,
    mutual_information,
    permuted_accuracy,
    raw_accuracy,
)
from sdm_ray.core.statistics import bootstrap_interval, t_interval, t_quantile


@pytest.mark.parametrize("classes", [2, 3, 5, 6])
def test_best_permutation_equals_brute_force(classes: int) -> None:
    generator = np.random.default_rng(classes)
    for _ in range(20):
        counts = generator.integers(1, 30, size=(classes, classes)).astype(float)
        gains = counts / counts.sum(axis=0)
        best = max(gains[range(classes), list(p)].sum() for p in itertools.permutations(range(classes)))
        found = best_permutation(counts)
        assert sorted(found) == list(range(classes))
        assert gains[range(classes), list(found)].sum() == pytest.approx(best, abs=1e-6)


def test_best_permutation_weighs_classes_equally() -> None:
    """By plain counts the identity would win; by balanced accuracy the swap does."""
    assert best_permutation(np.array([[80.0, 9.0], [20.0, 1.0]])) == (1, 0)


def test_a_constant_prediction_keeps_its_name() -> None:
    assert best_permutation(np.array([[0.0, 0.0], [7.0, 9.0]])) == (0, 1)


def make_problem(classes: int = 3, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(classes, (400,), generator=generator)
    logits = torch.nn.functional.one_hot(labels, classes) + noise * torch.randn(400, classes, generator=generator)
    return logits.double(), labels


def test_flipped_labels_score_the_same() -> None:
    logits, labels = make_problem()
    straight = evaluate(logits, labels, fit_calibration(logits, labels))
    flipped = logits[:, [2, 0, 1]]
    calibration = fit_calibration(flipped, labels)
    assert calibration.permutation == (2, 0, 1)
    assert evaluate(flipped, labels, calibration) == pytest.approx(straight)
    assert straight.accuracy > 0.5


def test_saturated_logits_score_the_same() -> None:
    """A model whose logits are 1 000 times too large is wrong with confidence; one temperature undoes it."""
    logits, labels = make_problem()
    straight = evaluate(logits, labels, fit_calibration(logits, labels))
    saturated = evaluate(1000 * logits, labels, fit_calibration(1000 * logits, labels))
    assert saturated.loss == pytest.approx(straight.loss, rel=1e-6)
    assert saturated.raw_loss > 100
    assert saturated.accuracy == straight.accuracy


def test_scores_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    scores = evaluate(logits, labels, Calibration((0, 1), scale=0.5))
    assert scores.accuracy == pytest.approx((1 + 0.5) / 2)
    assert scores.plain_accuracy == pytest.approx(0.8)
    assert scores.loss == pytest.approx((4 * math.log(1 + math.exp(-1)) + math.log(1 + math.e)) / 5)
    assert scores.raw_loss == pytest.approx((4 * math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 5)


def test_a_class_that_does_not_occur_counts_for_nothing() -> None:
    """Two of three classes among the labels; the third is predicted once."""
    labels = torch.tensor([0, 0, 1, 1])
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 2])]
    found = evaluate(logits, labels, Calibration((0, 1, 2), scale=1.0))
    assert found.accuracy == raw_accuracy(logits, labels) == (1 + 1 / 2) / 2
    assert found.macro_f1 == pytest.approx((1 + 2 / 3 + 0) / 3), "a class that is predicted alone is never right"
    nowhere = evaluate(torch.eye(4)[labels], labels, Calibration((0, 1, 2, 3), scale=1.0))
    assert nowhere.accuracy == nowhere.macro_f1 == 1.0
    assert permuted_accuracy(torch.eye(4)[1 - labels], labels) == 1.0
    assert best_permutation(confusion(logits.double().numpy(), labels.numpy())) == (0, 1, 2)


def test_raw_loss_equals_torch() -> None:
    logits, labels = make_problem()
    scores = evaluate(logits, labels, Calibration((0, 1, 2), scale=2.0))
    assert scores.raw_loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)))
    assert scores.loss == pytest.approx(float(torch.nn.functional.cross_entropy(2 * logits, labels)))


def test_scale_is_the_minimiser() -> None:
    logits, labels = make_problem(noise=0.5)
    scale = best_scale(logits.numpy(), labels.numpy())
    smoothing = 3 / (len(labels) + 3)

    def loss(factor: float) -> float:
        return float(torch.nn.functional.cross_entropy(factor * logits, labels, label_smoothing=smoothing))

    assert loss(scale) <= min(loss(scale * factor) for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0))


def test_scale_at_its_ends() -> None:
    labels = np.array([0, 1] * 50)
    right = np.eye(2)[labels]
    assert best_scale(-right, labels) == 0.0
    assert best_scale(np.zeros((100, 2)), labels) == 0.0
    assert 1 < best_scale(right, labels) < 20


def test_mutual_information_in_closed_form() -> None:
    assert mutual_information(np.array([[25.0, 25.0], [25.0, 25.0]])) == pytest.approx(0.0, abs=1e-12)
    assert mutual_information(np.array([[0.0, 50.0], [50.0, 0.0]])) == pytest.approx(math.log(2))
    p = 0.8
    channel = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
    assert mutual_information(np.array([[80.0, 20.0], [20.0, 80.0]])) == pytest.approx(channel)


def test_confusion_counts_prediction_then_label() -> None:
    counts = confusion(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.array([0, 1, 1]))
    assert counts.tolist() == [[1.0, 1.0], [0.0, 1.0]]


@pytest.mark.parametrize("degrees", [1, 2, 4, 14, 20, 21, 30, 100])
def test_t_quantile_by_integration(degrees: int) -> None:
    """The density between minus and plus the quantile holds 95 %."""
    quantile = t_quantile(degrees)
    x = np.linspace(0, quantile, 200_001)
    log_norm = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    density = np.exp(log_norm - (degrees + 1) / 2 * np.log1p(x**2 / degrees))
    assert 2 * float(np.trapezoid(density, x)) == pytest.approx(0.95, abs=1e-5)


def test_t_interval() -> None:
    low, high = t_interval([0.4, 0.5, 0.6])
    assert (low + high) / 2 == pytest.approx(0.5)
    assert high - low == pytest.approx(2 * 4.302653 * 0.1 / math.sqrt(3))
    assert all(math.isnan(value) for value in t_interval([0.5]))


def test_bootstrap_interval() -> None:
    values = np.random.default_rng(0).normal(2.0, 1.0, 400).tolist()
    low, high = bootstrap_interval([values])
    mean, error = float(np.mean(values)), float(np.std(values)) / 20
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.02)
    narrow = bootstrap_interval([values, values, values, values])
    assert narrow[1] - narrow[0] == pytest.approx((high - low) / 2, rel=0.1)
    assert bootstrap_interval([[1.0, 1.0]]) == (1.0, 1.0)
    assert all(math.isnan(value) for value in bootstrap_interval([[1.0, 2.0], [1.0]]))
