"""Heads that read tokens: what they compute, that stacks train them as one by one, and what they find."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import functional_call

from sdm_ray.attack.engine.executor import Executor
from sdm_ray.attack.families import Attacker
from sdm_ray.attack.families.token_heads import POOLINGS, TokenHeadTrunk
from sdm_ray.core.types import Task
from tests.attack.test_planted import NameData, bert, run
from tests.fakes.attack_world import FakeData, attack, params_of, quick


@pytest.mark.parametrize("pooling", POOLINGS)
def test_features_are_read_off_the_tokens_and_padding_is_not(pooling: str) -> None:
    trunk = bert()
    module = TokenHeadTrunk(trunk, pooling, num_classes=2)
    reader = torch.randn(module.reader.shape, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(1, 400, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 6, dtype=torch.long)
    ids[0, 4:] = mask[0, 4:] = 0
    features = functional_call(module, {"reader": reader}, (ids, mask))
    _, states = trunk(ids, mask, hidden_states=True)
    for row, length in enumerate((4, 6, 6)):
        tokens = states[-1][row, :length]
        scores = tokens @ reader.T
        expected = scores.amax(0) if pooling == "maximum" else (scores.softmax(0) * tokens).sum(0)
        torch.testing.assert_close(features[row], expected)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_stacked_attackers_are_those_that_run_alone(pooling: str) -> None:
    common: dict[str, Any] = {"family": "attention_head", "num_examples": 40, "learning_rate": 1e-3, "batch_size": 8}
    attackers = [
        Attacker(**common, pooling=pooling, num_steps=steps, seed_index=seed) for seed, steps in enumerate((6, 4, 4))
    ]
    trunk = bert()
    executor = Executor(trunk, params_of(trunk), NameData(), quick(num_examples=(40,)), Task.HARMFUL)
    (together,) = list(executor.run(attackers, with_test=True))
    assert len(together) == 3
    for outcome in together:
        ((alone,),) = list(executor.run([outcome.attacker], with_test=True))
        torch.testing.assert_close(outcome.test_logits, alone.test_logits, rtol=1e-4, atol=1e-5)


def test_what_the_pooled_features_lost_is_found_and_a_trunk_without_token_states_is_not_tried() -> None:
    """The pooler is zero, so nothing that reads pooled features, fine-tuning included, gets far."""
    trunk = bert(pooler=0.0)
    budget: dict[str, Any] = {"num_examples": (100,), "num_search_trials": 4, "num_steps_min": 40, "num_steps_max": 60}
    budget |= {"learning_rate": {"low": 1e-3, "high": 3e-3}, "optimizers": ("adam",), "frozen_probability": 0.0}
    assert run(trunk, ("attention_head",), **budget).worst_accuracy > 0.85
    report = attack(FakeData(), quick(families=("fine_tune", "attention_head")))
    assert report.not_tried == ("attention_head (needs hidden states of a transformers model)",)
