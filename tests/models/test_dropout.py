"""Dropout from a seed: reproducible, wherever the architecture has one, and without a trace in global random state."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from sdm_ray.models.trunk import Trunk
from tests.fakes import files as helpers
from tests.fakes.trunks import make_trunk, padded_tokens

WITHOUT: dict[str, dict[str, float]] = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0},
    "distilbert": {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
    "electra": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0},
    "modernbert": {
        "embedding_dropout": 0.0, "mlp_dropout": 0.0, "attention_dropout": 0.0, "classifier_dropout": 0.0,
    },
    "roberta": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0},
    "xlm-roberta": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0},
}  # fmt: skip
"""Settings by which each architecture has no dropout."""
EVERY = {kind: dict.fromkeys(settings, 0.3) for kind, settings in WITHOUT.items()}
STEP = 1e-5
"""Of finite differences."""
PATHS = [(kind, shortcut) for kind in WITHOUT for shortcut in (False, True)]


def trunk_of(kind: str, **changes: Any) -> Trunk:
    """With native pooling of the first token, so that it has a shortcut."""
    pooling = {"classifier_pooling": "cls"} if kind == "modernbert" else {}
    return make_trunk(kind, **{**pooling, **changes})


@pytest.mark.parametrize(("kind", "shortcut"), PATHS)
def test_a_seed_settles_the_masks_and_global_random_state_is_left_alone(kind: str, shortcut: bool) -> None:
    trunk = trunk_of(kind, **EVERY[kind])
    assert trunk.has_dropout
    tokens = padded_tokens()
    plain = trunk(*tokens, shortcut=shortcut)
    state = torch.random.get_rng_state()
    first = trunk(*tokens, shortcut=shortcut, dropout_seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(trunk(*tokens, shortcut=shortcut, dropout_seed=3), first)
    assert not torch.allclose(trunk(*tokens, shortcut=shortcut, dropout_seed=4), first)
    assert not torch.allclose(first, plain)
    assert torch.equal(trunk(*tokens, shortcut=shortcut), plain), "dropout stayed on"
    assert not any(module.training for module in trunk.modules())


@pytest.mark.parametrize(("kind", "shortcut"), PATHS)
def test_every_dropout_of_the_architecture_is_sampled(kind: str, shortcut: bool) -> None:
    """With all settings but one at 0, features with a seed differ from those without."""
    for setting in WITHOUT[kind]:
        trunk = trunk_of(kind, **{**WITHOUT[kind], setting: 0.5})
        assert trunk.has_dropout
        tokens = padded_tokens()
        dropped = trunk(*tokens, shortcut=shortcut, dropout_seed=1)
        assert not torch.allclose(dropped, trunk(*tokens, shortcut=shortcut)), setting
    assert not trunk_of(kind, **WITHOUT[kind]).has_dropout


@pytest.mark.parametrize("kind", [kind for kind in WITHOUT if kind != "modernbert"])
def test_both_paths_drop_at_the_same_places(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With masks that depend on values alone, the two paths agree; random masks differ in shape and order."""

    def halve_small(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.where(input > input.detach().mean(-1, keepdim=True), input, input * p) if training else input

    assert list(inspect.signature(F.dropout).parameters) == ["input", "p", "training", "inplace"]
    monkeypatch.setattr(F, "dropout", halve_small)
    trunk, tokens = trunk_of(kind, **EVERY[kind]), padded_tokens()
    plain = trunk(*tokens, dropout_seed=0)
    assert not torch.allclose(plain, trunk(*tokens))
    torch.testing.assert_close(trunk(*tokens, shortcut=True, dropout_seed=0), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", WITHOUT)
def test_both_paths_have_the_same_distribution(kind: str) -> None:
    trunk = make_trunk(kind, "cls", **dict.fromkeys(WITHOUT[kind], 0.1))
    ids, mask = (value[:1].expand(500, -1) for value in padded_tokens())
    with torch.no_grad():
        plain, short = (trunk(ids, mask, shortcut=shortcut, dropout_seed=2) for shortcut in (False, True))
    spread = plain.std(0)
    assert float(((plain.mean(0) - short.mean(0)).abs() / spread).max()) < 5 * (2 / 500) ** 0.5
    assert float((short.std(0) / spread).log().abs().max()) < 0.3


@pytest.mark.parametrize(("kind", "shortcut"), PATHS)
def test_masks_hold_through_recomputation_and_second_derivatives(kind: str, shortcut: bool) -> None:
    trunk, tokens = trunk_of(kind, **EVERY[kind]), padded_tokens()
    name, weight = next((n, v.detach()) for n, v in trunk.named_parameters() if ".0." in n and v.dim() == 2)
    direction = torch.randn(weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(0))

    def loss(weight: Tensor) -> Tensor:
        options = {"shortcut": shortcut, "dropout_seed": 7}
        features: Tensor = functional_call(trunk, {name: weight}, tokens, options)
        return features.pow(3).sum()

    def slope(point: Tensor) -> Tensor:
        return (torch.autograd.grad(loss(point), point, create_graph=True)[0] * direction).sum()

    point = weight.clone().requires_grad_()
    (direct,) = torch.autograd.grad(loss(point), point)
    recomputed = checkpoint(loss, point, use_reentrant=False, preserve_rng_state=False)
    assert torch.equal(torch.autograd.grad(recomputed, point)[0], direct)
    (second,) = torch.autograd.grad(slope(point), point)
    ahead, behind = (slope((weight + shift * direction).requires_grad_()).detach() for shift in (STEP, -STEP))
    assert abs(ahead - behind) > 1e-6
    if kind != "modernbert":  # float32 inside is too coarse for finite differences
        torch.testing.assert_close((second * direction).sum(), (ahead - behind) / (2 * STEP), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", helpers.MODEL_TYPES)
def test_hidden_states_are_those_of_transformers(kind: str) -> None:
    trunk = trunk_of(kind)
    ids, mask = padded_tokens()
    features, hidden = trunk(ids, mask, hidden_states=True)
    assert hidden.shape == (3, *ids.shape, 16)
    assert torch.equal(features, trunk(ids, mask))
    expected = trunk.hf_model.base_model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    for layer, wanted in enumerate(expected.hidden_states):
        torch.testing.assert_close(hidden[layer][mask == 1], wanted[mask == 1], rtol=0, atol=1e-6)
    torch.testing.assert_close(hidden[-1][mask == 1], expected.last_hidden_state[mask == 1], rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("shortcut", [False, True])
def test_masks_on_cuda_follow_the_seed_without_waiting_for_the_device(shortcut: bool) -> None:
    trunk = trunk_of("bert", **EVERY["bert"]).cuda()
    ids, mask = (value.cuda() for value in padded_tokens())
    state = torch.cuda.get_rng_state()
    torch.cuda.set_sync_debug_mode("error")
    try:
        first, again = (trunk(ids, mask, shortcut=shortcut, dropout_seed=3) for _ in range(2))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, again)
    assert not torch.equal(first, trunk(ids, mask, shortcut=shortcut, dropout_seed=4))
    assert torch.equal(torch.cuda.get_rng_state(), state)
