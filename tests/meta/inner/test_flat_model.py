"""Flat parameter vectors: there and back, in the order of depth, and restricted to the rows that occur."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdm_ray.meta.inner import flat_model as functional
from sdm_ray.meta.inner.flat_model import FlatModel
from tests.fakes.meta import MlpTrunk, bert_trunk, random_batch

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "ROW_MULTIPLE", 4)


def test_flat_features_are_the_modules_own(bert_folder: Path) -> None:
    trunk, batch = bert_trunk(bert_folder), random_batch(2, 3, seed=1)
    model = FlatModel(trunk)
    flat = batch._replace(inputs=tuple(value.flatten(0, 1) for value in batch.inputs))
    torch.testing.assert_close(model.features(model.initial(), batch).flatten(0, 1), trunk(*flat.inputs))


def test_parameters_are_ordered_from_the_embeddings_upwards(bert_folder: Path) -> None:
    model = FlatModel(bert_trunk(bert_folder))
    depths = [model.trunk.depth_of(name) for name in model.layout.names]
    assert depths == sorted(depths)
    for depth, first in enumerate(model.first_of_depth[:-1]):
        assert depths[first] == depth
        assert first == 0 or depths[first - 1] < depth
    assert model.first_of_depth[-1] == len(depths)


def test_unflatten_inverts_flatten_with_leading_dimensions() -> None:
    model = FlatModel(MlpTrunk())
    flats = torch.stack([model.initial(), 2 * model.initial()])
    views = model.layout.unflatten(flats)
    assert views["embedding"].shape == (2, 40, 6)
    assert torch.equal(model.layout.flatten({name: value[1] for name, value in views.items()}), flats[1])


def test_rows_are_each_tokens_once_and_fixed_ones_stay() -> None:
    rows = functional.Rows.of(torch.tensor([9, 30, 9, 7]), num_fixed=2, vocab_size=40, device=CPU)
    assert rows.tokens[:5].tolist() == [0, 1, 7, 9, 30]
    assert len(rows.tokens) == 8
    assert len(set(rows.tokens.tolist())) == 8, "what fills up repeats no token"
    assert rows.local[rows.tokens].tolist() == list(range(8))
    many = functional.Rows.of(torch.arange(9), num_fixed=0, vocab_size=40, device=CPU, coarse=True)
    assert len(many.tokens) == 16, "a power of two instead of a multiple"
    everything = functional.Rows.of(torch.arange(40), num_fixed=0, vocab_size=40, device=CPU)
    assert everything.tokens.tolist() == list(range(40))


def test_restricted_features_and_gradients_are_the_full_ones(bert_folder: Path) -> None:
    model, batch = FlatModel(bert_trunk(bert_folder)), random_batch(3, seed=2)
    rows = model.plan_rows(batch.inputs[0].flatten(), CPU)
    small = model.restricted(len(rows.tokens))
    assert small is model.restricted(len(rows.tokens)), "one model for all episodes of a size"
    flat = model.initial().requires_grad_()
    compressed = model.compress(flat.detach(), rows).requires_grad_()
    assert compressed.numel() == small.layout.numel < flat.numel()
    ours, theirs = small.features(compressed, rows.localise(batch)), model.features(flat, batch)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    mine = torch.autograd.grad(ours.square().sum(), compressed, materialize_grads=True)[0]
    full = torch.autograd.grad(theirs.square().sum(), flat, materialize_grads=True)[0]
    torch.testing.assert_close(model.expand(mine, rows), full, rtol=0, atol=1e-12)


def test_regrouping_moves_rows_and_keeps_what_follows() -> None:
    model = FlatModel(MlpTrunk())
    few, many = (model.plan_rows(torch.tensor(tokens), CPU) for tokens in ([5, 9], [5, 9, 0, 1, 2, 3, 20]))
    many = model.plan_rows(torch.cat([few.held, many.held]), CPU)
    vector = torch.cat([model.compress(model.initial(), few), torch.tensor([7.0, 8.0])])
    wide = model.regroup(vector, few, many)
    assert wide[-2:].tolist() == [7, 8]
    full = model.expand(wide[:-2], many)
    assert torch.equal(full, model.expand(vector[:-2], few)), "rows that were not held are zero"
    assert torch.equal(model.regroup(wide, many, few), vector)


@pytest.mark.parametrize("shared", [True, False])
def test_stacked_models_equal_one_after_the_other(bert_folder: Path, shared: bool) -> None:
    model = FlatModel(bert_trunk(bert_folder))
    flats = torch.stack([model.initial(), 1.1 * model.initial()])
    batch = random_batch(3, seed=3) if shared else random_batch(2, 3, seed=3)
    ours = model.stacked(model.layout.unflatten(flats), batch.inputs, shared=shared)
    for index in range(2):
        inputs = batch if shared else batch.at(index)
        torch.testing.assert_close(ours[index], model.features(flats[index], inputs), rtol=0, atol=1e-11)


def test_dropout_masks_differ_between_adversaries_and_repeat_by_seed(bert_folder: Path) -> None:
    model, batch = FlatModel(bert_trunk(bert_folder)), random_batch(3, seed=3)
    params = model.layout.unflatten(model.initial().expand(2, -1))
    first, again = (model.stacked(params, batch.inputs, shared=True, dropout_seed=4) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, model.stacked(params, batch.inputs, shared=True, dropout_seed=5))
