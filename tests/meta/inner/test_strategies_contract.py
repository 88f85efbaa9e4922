"""What every gradient strategy must do; a new one gets these tests by its entry in `STRATEGIES`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdm_ray.meta.inner.episode import MetaGradients
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.inner.head_reader import head_rows
from sdm_ray.meta.inner.loop import EXACT, STRATEGIES, meta_gradients
from sdm_ray.meta.inner.problems import EvaluationBatch
from tests.fakes.meta import MlpTrunk, episode_of, random_batch, start_of

WEIGHTS = {"harmful_adapted_calibrated": 1.0, "harmful_base": 0.3}
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "rmsprop")
KINDS: list[dict[str, Any]] = [
    {"adaptation": "full"},
    {"adaptation": "head"},
    {"adaptation": "partial", "depth": 1},
    {"adaptation": "lora", "rank": 2},
    {"head_kind": "attention"},
    {"head_kind": "max"},
    {"adaptation": "head", "head_kind": "attention"},
    {"adaptation": "lora", "rank": 2, "head_kind": "attention"},
]

pytestmark = pytest.mark.parametrize("mode", sorted(STRATEGIES))


def gradients(mode: str, weights: dict[str, float] = WEIGHTS, *, learned: bool = True, **changes: Any) -> MetaGradients:
    model = FlatModel(MlpTrunk())
    episode = episode_of(mode=mode, count=2, truncation_steps=2, **changes)
    rows = head_rows(episode.adversary.head_kind, 2)
    return meta_gradients(model, start_of(model, count=2, learned=learned, num_classes=rows), episode, weights)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_rollout_is_that_of_the_reference(mode: str, optimizer: str, kind: dict[str, Any]) -> None:
    """Strategies differ in their gradients alone: adapted models, optimiser states and terms are the same."""
    found, reference = (gradients(name, optimizer=optimizer, **kind) for name in (mode, "unrolled"))
    torch.testing.assert_close(found.final, reference.final, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.final_state.moments, reference.final_state.moments, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.values, reference.values)
    torch.testing.assert_close(found.trajectory.logits, reference.trajectory.logits)
    assert found.trajectory.steps == reference.trajectory.steps


def test_without_inner_steps_the_gradient_is_exact(mode: str) -> None:
    found, reference = (gradients(name, {"harmful_base": 1.0}, num_steps=0) for name in (mode, "unrolled"))
    torch.testing.assert_close(found.trunk, reference.trunk)
    torch.testing.assert_close(found.head, reference.head)
    assert found.log_learning_rate is None


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_gradient_points_where_the_exact_one_does(mode: str, kind: dict[str, Any]) -> None:
    found, reference = (gradients(name, **kind) for name in (mode, "unrolled"))
    least = 1 - 1e-12 if mode in EXACT else 0.5
    assert torch.nn.functional.cosine_similarity(found.trunk, reference.trunk).item() > least


def test_shapes_are_those_of_the_start_and_nothing_has_a_graph(mode: str) -> None:
    model = FlatModel(MlpTrunk())
    start, found = start_of(model, count=2), gradients(mode)
    assert found.trunk.shape == start.trunk.shape
    assert found.head is not None
    assert found.head.shape == start.head.shape
    assert found.log_learning_rate is not None
    assert found.log_learning_rate.shape == start.log_learning_rate.shape
    kept = [found.trunk, found.head, found.log_learning_rate, found.final, *found.final_state.moments]
    assert not any(value.requires_grad for value in (*kept, *found.values.values(), *found.trajectory[:2]))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_not_learned_has_no_gradient(mode: str, kind: dict[str, Any]) -> None:
    found = gradients(mode, learned=False, **kind)
    assert found.head is None
    assert found.log_learning_rate is None
    torch.testing.assert_close(found.trunk, gradients(mode, **kind).trunk)


def test_adapting_to_the_desired_task_evaluates_the_harmful_one_beside_it(mode: str) -> None:
    """A fixed harmful head descends its own loss; trunk, head and rate follow the blocking loss."""
    fixed = torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 6)
    evaluation = (EvaluationBatch(random_batch(6, seed=3), None), EvaluationBatch(random_batch(4, seed=4), fixed))
    weights = {"desired_adapted": 0.5, "desired_adapted_harmful": 0.2}
    found, reference = (gradients(name, weights, evaluation=evaluation) for name in (mode, "unrolled"))
    assert found.fixed_head is not None
    torch.testing.assert_close(found.fixed_head, reference.fixed_head)
    if mode in EXACT:
        for name in ("trunk", "head", "log_learning_rate"):
            torch.testing.assert_close(getattr(found, name), getattr(reference, name), rtol=1e-8, atol=1e-12)
