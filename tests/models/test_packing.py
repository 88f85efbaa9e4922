"""Packed texts give the features of padded ones, and their derivatives, and padding costs next to nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import grad, vmap
from torch.utils.flop_counter import FlopCounterMode

from sdm_ray.models.packing import pack, token_places, unpack
from tests.fakes import files as helpers
from tests.fakes.trunks import make_trunk
from tests.models.test_shortcut import POST_NORM, assert_close_to_scale, loss, slope, tokens_of

CASES: list[tuple[str, Any, bool]] = [
    *((kind, "native", True) for kind in POST_NORM),
    *((kind, "mean", False) for kind in POST_NORM),
]
MASK = torch.tensor([[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 0]]])


def test_places_are_those_of_the_tokens_and_past_the_end_beyond_them() -> None:
    assert token_places(MASK, 6).tolist() == [[0, 1, 3, 6, 6, 6], [0, 1, 2, 3, 4, 6]]


def test_packing_and_unpacking_are_each_others_transpose() -> None:
    places = token_places(MASK, 5)
    generator = torch.Generator().manual_seed(0)
    padded, packed = (torch.randn(2, size, 4, generator=generator, dtype=torch.float64) for size in (6, 5))
    left, right = (pack(padded, places) * packed).sum(), (padded * unpack(packed, places, 6)).sum()
    assert float(left.abs()) > 0.1
    torch.testing.assert_close(left, right)
    assert torch.equal(vmap(pack)(padded, places), pack(padded, places))
    assert torch.equal(vmap(pack, (None, 0))(padded[0], places), pack(padded[:1].expand(2, -1, -1), places))
    assert torch.equal(vmap(lambda x, p: unpack(x, p, 6))(packed, places), unpack(packed, places, 6))
    assert not pack(padded, places)[0, 3:].any()
    assert not unpack(packed, places, 6)[0, 2].any()


@pytest.mark.parametrize(("kind", "pooling", "shortcut"), CASES)
def test_features_and_their_two_derivatives_are_those_of_padded_texts(kind: str, pooling: Any, shortcut: bool) -> None:
    trunk = make_trunk(kind, pooling)
    inputs = tokens_of(trunk)
    tokens = int(inputs[1].sum())
    assert tokens < inputs[1].numel()
    for count in (tokens, tokens + 5):
        options = {"shortcut": shortcut, "places": token_places(inputs[1], count)}
        torch.testing.assert_close(trunk(*inputs, **options), trunk(*inputs), rtol=0, atol=1e-12)
    params = {name: value.detach() for name, value in trunk.named_parameters()}
    for derived in (loss, slope):
        found = grad(lambda params, derived=derived: derived(trunk, params, inputs, **options))(params)
        wanted = grad(lambda params, derived=derived: derived(trunk, params, inputs))(params)
        assert_close_to_scale(found, wanted, 1e-11)


@pytest.mark.parametrize(("kind", "pooling", "shortcut"), CASES)
def test_stacked_models_read_packed_texts_under_vmap(kind: str, pooling: Any, shortcut: bool) -> None:
    trunk = make_trunk(kind, pooling)
    inputs = tokens_of(trunk, 2)
    inputs[1][1, :, 3:] = 0  # another number of tokens for the second model
    places = token_places(inputs[1], int(inputs[1].sum((1, 2)).max()))
    stacked = {
        name: torch.stack([value.detach() * (1 + 0.1 * copy) for copy in range(2)])
        for name, value in trunk.named_parameters()
    }

    def packed(params: Any, *inputs: Any) -> Any:
        return loss(trunk, params, inputs[:2], shortcut=shortcut, places=inputs[2])

    together = vmap(grad(packed))(stacked, *inputs, places)
    for copy in range(2):
        params = {name: value[copy] for name, value in stacked.items()}
        one = tuple(value[copy] for value in inputs)
        wanted = grad(lambda params, one=one: loss(trunk, params, one))(params)
        assert_close_to_scale({name: value[copy] for name, value in together.items()}, wanted, 1e-11)


def test_padding_costs_next_to_nothing() -> None:
    trunk = make_trunk("bert", "mean", hidden_size=64, intermediate_size=256)
    ids, mask = torch.full((4, 40), 7), torch.zeros(4, 40, dtype=torch.long)
    mask[:, :10] = 1
    operations = []
    for places in (None, token_places(mask, 40)):
        with FlopCounterMode(display=False) as counter:
            trunk(ids, mask, places=places).sum().backward()
        operations.append(counter.get_total_flops())
    assert operations[1] < 0.4 * operations[0]


def test_no_value_is_read_from_the_device() -> None:
    trunk = make_trunk("bert")
    params = {name: value.detach() for name, value in trunk.named_parameters()}
    inputs = tokens_of(trunk)
    with helpers.NoHostSync():
        options = {"shortcut": True, "places": token_places(inputs[1], inputs[1].numel())}
        grad(lambda params: slope(trunk, params, inputs, **options))(params)


def test_an_encoder_that_reads_no_places_says_so() -> None:
    trunk = make_trunk("modernbert", "cls")
    assert not trunk.has_packing
    inputs = tokens_of(trunk)
    with pytest.raises(AssertionError):
        trunk(*inputs, places=token_places(inputs[1], inputs[1].numel()))
