"""Readers' trainings, by gradients that are written out, equal those by automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdm_ray.attack.engine import token_fits as fits
from sdm_ray.attack.engine.plan import AttackTimeoutError
from sdm_ray.core.types import Params
from tests.fakes import token_fits as reference

MANY, COUNT, LENGTH, WIDTH, CLASSES = 2, 30, 5, 6, 3
PENALTIES = torch.tensor([0.01, 1.0]).double()


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ignore() -> None:
    """No time limit."""


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(CLASSES, (COUNT,), generator=drawn(1))


@pytest.fixture
def features() -> Tensor:
    return torch.randn(MANY, COUNT, WIDTH, generator=drawn(2)).double()


def double(params: Params) -> Params:
    """In float32 Adam makes much of rounding where gradients vanish."""
    return {name: value.double() for name, value in params.items()}


def assert_alike(found: Params, expected: Params) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=f"{name} differs")


def test_queries(labels: Tensor) -> None:
    states = torch.randn(MANY, COUNT, LENGTH, WIDTH, generator=drawn(2)).double()
    mask = torch.rand(COUNT, LENGTH, generator=drawn(3)) < 0.6
    mask[:, 0] = True
    found = fits.train_queries(states, mask, labels, CLASSES, drawn(), ignore)
    start = {
        "query": torch.randn(MANY, WIDTH, generator=drawn()) / WIDTH,
        "weight": torch.zeros(MANY, WIDTH, CLASSES),
        "bias": torch.zeros(MANY, 1, CLASSES),
    }
    losses = reference.query_losses(states, mask, labels)
    expected = reference.trained(double(start), losses, fits.QUERY_STEPS, fits.QUERY_RATE)
    torch.testing.assert_close(found, expected["query"])


def test_logistic_regressions(features: Tensor, labels: Tensor) -> None:
    found = fits.train_logistic(features, labels, CLASSES, PENALTIES, drawn(), ignore)
    start = {"weight": torch.zeros(MANY, WIDTH, CLASSES), "bias": torch.zeros(MANY, 1, CLASSES)}
    losses = reference.logistic_losses(features, labels, PENALTIES)
    assert_alike(found, reference.trained(double(start), losses, fits.LOGISTIC_STEPS, fits.LOGISTIC_RATE))


def test_perceptrons(features: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "PERCEPTRON_STEPS", 20)  # rounding grows at the kinks of ReLU
    found = fits.train_perceptrons(features, labels, CLASSES, PENALTIES, drawn(), ignore)
    generator = drawn()
    start = {
        "inner": torch.randn(MANY, WIDTH, fits.HIDDEN, generator=generator) / WIDTH**0.5,
        "shift": torch.zeros(MANY, 1, fits.HIDDEN),
        "weight": torch.randn(MANY, fits.HIDDEN, CLASSES, generator=generator) / fits.HIDDEN**0.5,
        "bias": torch.zeros(MANY, 1, CLASSES),
    }
    losses = reference.perceptron_losses(features, labels, PENALTIES)
    assert_alike(found, reference.trained(double(start), losses, 20, fits.PERCEPTRON_RATE))


def test_each_of_a_stack_is_a_problem_of_its_own(features: Tensor, labels: Tensor) -> None:
    both = fits.train_logistic(features, labels, CLASSES, PENALTIES, drawn(), ignore)
    alone = fits.train_logistic(features[1:], labels, CLASSES, PENALTIES[1:], drawn(), ignore)
    torch.testing.assert_close(both["weight"][1:], alone["weight"])


def test_many_examples_are_taken_in_parts_of_shuffled_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "BATCH", 16)
    parts = list(fits._batches(40, 5, drawn(), torch.device("cpu")))
    assert [len(part) for part in parts] == [16] * 5
    assert torch.cat(parts)[:40].sort().values.tolist() == list(range(40))
    separable = torch.randn(1, 40, WIDTH, generator=drawn(4))
    labels = (separable[0, :, 0] > 0).long()
    params = fits.train_logistic(separable, labels, 2, torch.tensor([0.01]), drawn(), ignore)
    assert (fits.forward(params, separable)[0].argmax(1) == labels).float().mean() > 0.95


def test_the_time_limit_is_asked_at_each_step(features: Tensor, labels: Tensor) -> None:
    def late() -> None:
        raise AttackTimeoutError("timed out")

    with pytest.raises(AttackTimeoutError):
        fits.train_logistic(features, labels, CLASSES, PENALTIES, drawn(), late)
