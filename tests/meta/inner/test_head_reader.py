"""Heads that read token states: their gradients are those of a plain loop, and they are the attack's heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from sdm_ray.attack.families.token_heads import TokenHeadTrunk
from sdm_ray.config.adversary import ATTACK_HEADS, HeadKind
from sdm_ray.meta.inner.episode import Episode, Start
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.inner.head_reader import HeadReader, head_rows
from sdm_ray.meta.inner.loop import EXACT, meta_gradients
from sdm_ray.meta.inner.problems import EvaluationBatch
from tests.fakes.meta import MlpTrunk, bert_trunk, episode_of, random_batch, start_of

TOKEN_KINDS: tuple[HeadKind, ...] = ("attention", "max")
WEIGHTS = {"harmful_adapted": 1.0}


def start_for(model: FlatModel, kind: HeadKind, **changes: Any) -> Start:
    return start_of(model, num_classes=head_rows(kind, 2), **changes)


def plain_scores(trunk: Any, params: dict[str, Tensor], head: Tensor, kind: str, batch: Any) -> Tensor:
    """(B, 2) text by text, over the tokens that are there; the states are the last of all hidden states."""
    ids, mask = batch.inputs
    options = {"token_states": True} if isinstance(trunk, MlpTrunk) else {"hidden_states": True}
    states = functional_call(trunk, params, (ids, mask), options)[1]
    rows = []
    for text, length in zip(states if isinstance(trunk, MlpTrunk) else states[-1], mask.sum(-1), strict=True):
        tokens = text[: int(length)]
        if kind == "max":
            rows.append((tokens @ head.T).max(0).values)
        else:
            weights = torch.softmax(tokens @ head[-1], 0)
            rows.append(head[:-1] @ (weights[:, None] * tokens).sum(0))
    return torch.stack(rows)


def plain_gradient(model: FlatModel, start: Start, episode: Episode, kind: str) -> Tensor:
    """(P,) by autograd through steps of SGD that are written out."""
    trunk = start.trunk.detach()[0].clone().requires_grad_()
    current, head, rate = trunk, start.head.detach()[0].requires_grad_(), start.log_learning_rate.detach().exp()[0]
    frozen = episode.adversary.adaptation == "head"
    for batch in episode.data.inner:
        one = batch.at(0)
        scores = plain_scores(model.trunk, model.layout.unflatten(current), head, kind, one)
        loss = torch.nn.functional.cross_entropy(scores, one.labels)
        moved = torch.autograd.grad(loss, [current, head], create_graph=True)
        current = current if frozen else current - rate * moved[0]
        head = head - (10 * rate if frozen else rate) * moved[1]
    outer = episode.data.evaluation[0].batch
    scores = plain_scores(model.trunk, model.layout.unflatten(current), head, kind, outer)
    (gradient,) = torch.autograd.grad(-torch.nn.functional.cross_entropy(scores, outer.labels), trunk)
    return gradient


@pytest.mark.parametrize("adaptation", ["full", "head"])
@pytest.mark.parametrize("kind", TOKEN_KINDS)
@pytest.mark.parametrize("mode", EXACT)
def test_the_gradient_is_that_of_a_plain_loop(mode: str, kind: HeadKind, adaptation: str) -> None:
    model = FlatModel(MlpTrunk())
    episode = episode_of(mode=mode, optimizer="sgd", adaptation=adaptation, head_kind=kind, evaluated_steps=(3,))
    start = start_for(model, kind, learned=False)
    found = meta_gradients(model, start, episode, WEIGHTS)
    torch.testing.assert_close(found.trunk[0], plain_gradient(model, start, episode, kind), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("kind", TOKEN_KINDS)
def test_the_gradient_of_a_real_encoder_is_that_of_a_plain_loop(kind: HeadKind, bert_folder: Path) -> None:
    """With the embedding's rows restricted to those that occur."""
    model = FlatModel(bert_trunk(bert_folder))
    episode = episode_of(mode="adjoint", num_steps=2, optimizer="sgd", head_kind=kind, evaluated_steps=(2,))
    batches = [*episode.data.inner, *(one.batch for one in episode.data.evaluation)]
    occurring = torch.cat([batch.inputs[0].flatten() for batch in batches])
    episode = episode._replace(rows=model.plan_rows(occurring, torch.device("cpu")))
    start = start_for(model, kind, learned=False)
    found = meta_gradients(model, start, episode, WEIGHTS)
    expected = plain_gradient(model, start, episode, kind)
    torch.testing.assert_close(found.trunk[0], expected, rtol=1e-8, atol=1e-12)
    assert expected.abs().max() > 1e-6


@pytest.mark.parametrize("kind", TOKEN_KINDS)
def test_they_are_the_attacks_heads(kind: HeadKind, bert_folder: Path) -> None:
    trunk = bert_trunk(bert_folder)
    model, batch = FlatModel(trunk), random_batch(6, seed=3)
    head = torch.randn(1, head_rows(kind, 2), model.feature_dim, dtype=torch.float64)
    reader = HeadReader(model, (head.shape[1], head.shape[2]), kind)
    params = {name: value.detach() for name, value in trunk.named_parameters()}
    mine = reader.read(reader.encode(params, batch.inputs, shared=True), head, batch.inputs)
    theirs = TokenHeadTrunk(trunk, ATTACK_HEADS[kind], num_classes=2)
    query, classes = (head[0], torch.eye(2).double()) if kind == "max" else (head[0, -1:], head[0, :-1])
    features = functional_call(theirs, {"reader": query}, batch.inputs)
    torch.testing.assert_close(mine.logits[0], features @ classes.T)
    if kind == "attention":
        torch.testing.assert_close(mine.features[0], features)
    else:
        torch.testing.assert_close(mine.features[0], trunk(*batch.inputs))


@pytest.mark.parametrize("adaptation", ["full", "head"])
def test_a_head_that_does_not_adapt_reads_the_pooled_features(adaptation: str) -> None:
    model = FlatModel(MlpTrunk())
    fixed = torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 6)
    evaluation = (EvaluationBatch(random_batch(6, seed=3), None), EvaluationBatch(random_batch(4, seed=4), fixed))
    episode = episode_of(num_steps=0, head_kind="attention", adaptation=adaptation, evaluation=evaluation)
    weights = {"desired_adapted": 0.5, "desired_adapted_harmful": 0.2}
    found = meta_gradients(model, start_for(model, "attention"), episode, weights)
    batch = evaluation[1].batch
    scores = model.logits(model.initial(), fixed, batch)
    expected = torch.nn.functional.cross_entropy(scores, batch.labels)
    torch.testing.assert_close(found.values["desired_adapted_harmful"], expected)


@pytest.mark.parametrize("adaptation", ["full", "head"])
@pytest.mark.parametrize("kind", TOKEN_KINDS)
def test_adversaries_of_a_batch_are_those_that_run_alone(kind: HeadKind, adaptation: str) -> None:
    model = FlatModel(MlpTrunk())
    changes: dict[str, Any] = {"mode": "adjoint", "adaptation": adaptation, "head_kind": kind}
    start, episode = start_for(model, kind, count=2, learned=False), episode_of(count=2, **changes)
    together = meta_gradients(model, start, episode, WEIGHTS)
    alone = []
    for index in range(2):
        here = slice(index, index + 1)
        one = start._replace(head=start.head[here], log_learning_rate=start.log_learning_rate[here])
        inner = tuple(batch.at(here) for batch in episode.data.inner)
        alone.append(meta_gradients(model, one, episode._replace(data=episode.data._replace(inner=inner)), WEIGHTS))
    torch.testing.assert_close(together.trunk, alone[0].trunk + alone[1].trunk, rtol=1e-9, atol=1e-13)
