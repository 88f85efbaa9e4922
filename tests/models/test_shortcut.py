"""The first token's shortcut gives the features of the plain path, and their derivatives, at a lower price."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.utils.flop_counter import FlopCounterMode

from sdm_ray.models.trunk import Trunk
from tests.fakes import files as helpers
from tests.fakes.trunks import make_trunk, padded_tokens

POST_NORM = ("bert", "distilbert", "electra", "roberta", "xlm-roberta")
CASES: list[tuple[str, Any, dict[str, Any]]] = [
    *((kind, "native", {}) for kind in POST_NORM),
    *((kind, "cls", {}) for kind in (*POST_NORM, "modernbert")),
    ("modernbert", "native", {"classifier_pooling": "cls"}),
    ("modernbert", "cls", {"attention_bias": True, "num_hidden_layers": 3, "global_attn_every_n_layers": 2}),
    ("bert", "native", {"num_hidden_layers": 1}),
    ("electra", "cls", {"embedding_size": 16}),
    ("roberta", "native", {"pad_token_id": 1}),
    ("bert", "native", {"hidden_act": "relu", "num_attention_heads": 4}),
]


def tolerance(trunk: Trunk) -> float:
    """ModernBERT rotates and takes the softmax in float32, whatever the type of its weights."""
    return 1e-5 if trunk.model_type == "modernbert" else 1e-12


def tokens_of(trunk: Trunk, *shape: int) -> tuple[Tensor, Tensor]:
    return padded_tokens(*shape, padding=trunk.hf_model.config.pad_token_id)


def loss(trunk: Trunk, params: dict[str, Tensor], inputs: tuple[Tensor, ...], **options: Any) -> Tensor:
    features: Tensor = functional_call(trunk, params, inputs, options)
    weights = torch.linspace(-1, 2, features.shape[-1], dtype=features.dtype)
    return (features * weights).pow(2).sum() + (features * weights).sum()


def slope(trunk: Trunk, params: dict[str, Tensor], inputs: tuple[Tensor, ...], **options: Any) -> Tensor:
    """A scalar of the first derivative, so that its derivative is of second order."""
    first = grad(lambda params: loss(trunk, params, inputs, **options))(params)
    return torch.stack([value.square().sum() + value.sum() for value in first.values()]).sum()


def assert_close_to_scale(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float) -> None:
    scale = max(float(value.abs().max()) for value in right.values())
    assert scale > 1e-3
    for name, value in right.items():
        torch.testing.assert_close(left[name], value, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("kind", "pooling", "changes"), CASES)
def test_features_and_their_two_derivatives_are_those_of_the_plain_path(
    kind: str, pooling: Any, changes: dict[str, Any]
) -> None:
    trunk = make_trunk(kind, pooling, **changes)
    assert trunk.has_shortcut
    inputs = tokens_of(trunk)
    plain, short = trunk(*inputs), trunk(*inputs, shortcut=True)
    assert plain.std() > 1e-2
    torch.testing.assert_close(short, plain, rtol=0, atol=tolerance(trunk))
    params = {name: value.detach() for name, value in trunk.named_parameters()}
    for derived in (loss, slope):
        found = grad(lambda params, derived=derived: derived(trunk, params, inputs, shortcut=True))(params)
        wanted = grad(lambda params, derived=derived: derived(trunk, params, inputs))(params)
        assert_close_to_scale(found, wanted, 10 * tolerance(trunk))


@pytest.mark.parametrize(("kind", "pooling", "changes"), CASES)
def test_stacked_models_take_the_shortcut_under_vmap(kind: str, pooling: Any, changes: dict[str, Any]) -> None:
    trunk = make_trunk(kind, pooling, **changes)
    inputs = tokens_of(trunk, 2)
    stacked = {
        name: torch.stack([value.detach() * (1 + 0.1 * copy) for copy in range(2)])
        for name, value in trunk.named_parameters()
    }
    together = vmap(grad(lambda params, *inputs: slope(trunk, params, inputs, shortcut=True)))(stacked, *inputs)
    for copy in range(2):
        params = {name: value[copy] for name, value in stacked.items()}
        one = tuple(value[copy] for value in inputs)
        wanted = grad(lambda params, one=one: slope(trunk, params, one))(params)
        assert_close_to_scale({name: value[copy] for name, value in together.items()}, wanted, 10 * tolerance(trunk))


@pytest.mark.parametrize(("kind", "pooling"), [("bert", "mean"), ("roberta", "mean"), ("modernbert", "native")])
def test_poolings_that_read_all_tokens_have_no_shortcut(kind: str, pooling: Any) -> None:
    trunk = make_trunk(kind, pooling)
    assert not trunk.has_shortcut
    with pytest.raises(AssertionError):
        trunk(*padded_tokens(), shortcut=True)


@pytest.mark.parametrize("kind", POST_NORM)
def test_the_shortcut_costs_the_last_layer_next_to_nothing(kind: str) -> None:
    """Of two layers the second is saved but for the first token: half of all, and more than keys and values allow."""
    sizes = {"dim": 64, "hidden_dim": 256} if kind == "distilbert" else {"hidden_size": 64, "intermediate_size": 256}
    trunk = make_trunk(kind, **sizes)
    ids = torch.full((4, 40), 7)
    operations = {}
    for shortcut in (False, True):
        with FlopCounterMode(display=False) as counter:
            trunk(ids, torch.ones_like(ids), shortcut=shortcut).sum().backward()
        operations[shortcut] = counter.get_total_flops()
    assert operations[True] < 0.53 * operations[False]


@pytest.mark.parametrize(("kind", "pooling", "changes"), CASES)
def test_no_value_is_read_from_the_device(kind: str, pooling: Any, changes: dict[str, Any]) -> None:
    trunk = make_trunk(kind, pooling, **changes)
    params = {name: value.detach() for name, value in trunk.named_parameters()}
    with helpers.NoHostSync():
        grad(lambda params: slope(trunk, params, tokens_of(trunk), shortcut=True, dropout_seed=1))(params)


def test_reduced_precision_stays_finite_and_near() -> None:
    """Under autocast the scores are in bfloat16, where float32's lowest number becomes minus infinity."""
    trunk = make_trunk("bert").float()
    inputs = padded_tokens()
    wanted = trunk(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = trunk(*inputs, shortcut=True)
    gradients = torch.autograd.grad(found.square().sum(), list(trunk.parameters()), materialize_grads=True)
    assert all(value.isfinite().all() for value in gradients)
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=0.1)
