"""Erasure equals a dense reference that projects the stream itself, and a second time changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from sdm_ray.core.errors import UsageError
from sdm_ray.models.erasure import Direction, Erasure, Projector, independent
from sdm_ray.models.stream import KNOWN, stream_of
from sdm_ray.models.trunk import Trunk
from tests.fakes.trunks import make_trunk, padded_tokens

CASES: list[tuple[str, dict[str, Any]]] = [(kind, {}) for kind in KNOWN] + [("electra", {"embedding_size": 16})]
"""The tiny ELECTRA projects its embeddings, unless they are as wide as its layers."""


def params_of(trunk: Trunk) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trunk.named_parameters()}


def directions(trunk: Trunk, states: tuple[int, ...]) -> list[Direction]:
    generator = torch.Generator().manual_seed(1)
    return [
        Direction(state, torch.randn(trunk.feature_dim, generator=generator, dtype=torch.float64)) for state in states
    ]


def erased(trunk: Trunk, states: tuple[int, ...] = (0, 1, 2), *, everywhere: bool | None = None) -> Erasure:
    stream = stream_of(trunk)
    everywhere = stream.pre_norm if everywhere is None else everywhere
    return Erasure.of(stream, directions(trunk, states), params_of(trunk), everywhere=everywhere)


def hidden(trunk: Trunk, params: dict[str, Tensor]) -> Tensor:
    states: Tensor = functional_call(trunk, params, padded_tokens(), {"hidden_states": True})[1]
    return states


@pytest.mark.parametrize(("kind", "changes"), CASES)
@pytest.mark.parametrize("everywhere", [True, False])
def test_what_is_erased_is_read_as_zero_in_every_hidden_state_that_promises_it(
    kind: str, changes: dict[str, Any], everywhere: bool
) -> None:
    trunk = make_trunk(kind, **changes)
    found = directions(trunk, (1,) if everywhere else (1, 2))
    stream = stream_of(trunk)
    erasure = Erasure.of(stream, found, params_of(trunk), everywhere=everywhere)
    before, after = hidden(trunk, params_of(trunk)), hidden(trunk, erasure.applied(params_of(trunk)))
    for state, covector in found:
        assert (before[state] @ covector).abs().max() > 1e-2
        assert (after[state] @ covector).abs().max() < 1e-9
    for state in range(stream.num_states):
        assert not (after[state] @ erasure.reads_nothing(state).T).abs().gt(1e-9).any()
    if everywhere:  # a final norm's output is read by other covectors than the stream below it
        within = range(stream.num_states - stream.pre_norm)
        assert all((after[state] @ found[0].covector).abs().max() < 1e-9 for state in within)


def complement(covectors: Tensor) -> Tensor:
    """(D, D) dense projection onto what covectors (K, D) read nothing of."""
    read: Tensor = torch.linalg.pinv(covectors) @ covectors
    return torch.eye(covectors.shape[1], dtype=covectors.dtype) - read


def by_hooks(trunk: Trunk, wanted: list[Tensor]) -> Tensor:
    """Features with the stream projected at each site, from the top down, without a change of weights.

    Args:
        wanted: (K, D) covectors of each site of its own.
    """
    stream, module_of = stream_of(trunk), dict(trunk.named_modules())
    handles, carried = [], torch.zeros(0, trunk.feature_dim, dtype=torch.float64)

    def output(name: str, dense: Tensor) -> None:
        module = module_of[name.rpartition(".")[0]]
        handles.append(module.register_forward_hook(lambda _module, _inputs, value: value @ dense))

    for index in reversed(range(len(stream.sites))):
        site = stream.sites[index]
        carried = torch.cat([wanted[index], carried])
        dense = complement(carried)
        if site.gain is not None:
            norm: Any = module_of[site.gain.rpartition(".")[0]]
            # Of the norm's output the bias alone has a part there: what goes in is projected below.
            handles.append(norm.register_forward_hook(lambda _module, _inputs, value, dense=dense: value @ dense))
            centred = torch.eye(trunk.feature_dim, dtype=torch.float64) - 1 / trunk.feature_dim
            carried = carried @ torch.diag(norm.weight.detach()) @ centred
            inside = complement(carried)
            handles.append(norm.register_forward_pre_hook(lambda _module, inputs, inside=inside: (inputs[0] @ inside,)))
        else:
            for name in site.columns:
                output(name, dense)
    features: Tensor = trunk(*padded_tokens())
    for handle in handles:
        handle.remove()
    return features


@pytest.mark.parametrize(("kind", "changes"), CASES)
@pytest.mark.parametrize("everywhere", [True, False])
def test_folded_weights_compute_what_a_dense_projection_of_the_stream_does(
    kind: str, changes: dict[str, Any], everywhere: bool
) -> None:
    trunk = make_trunk(kind, **changes)
    stream, found = stream_of(trunk), directions(trunk, (1,) if everywhere else (0, 1, 2))
    erasure = Erasure.of(stream, found, params_of(trunk), everywhere=everywhere)
    own = [torch.zeros(0, trunk.feature_dim, dtype=torch.float64) for _ in stream.sites]
    for state, covector in found:
        for index, site in enumerate(stream.sites):
            if index == stream.of_state(state) or (everywhere and not site.only_read):
                own[index] = torch.cat([own[index], covector[None]])
    folded = functional_call(trunk, erasure.applied(params_of(trunk)), padded_tokens())
    reference = by_hooks(trunk, own)
    assert (folded - trunk(*padded_tokens())).abs().max() > 1e-4
    torch.testing.assert_close(folded, reference, atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("kind", KNOWN)
def test_a_second_time_changes_nothing(kind: str) -> None:
    trunk = make_trunk(kind)
    erasure = erased(trunk)
    once = erasure.applied(params_of(trunk))
    twice = erasure.applied(once)
    assert any(not torch.equal(value, once[name]) for name, value in params_of(trunk).items())
    for name, value in once.items():
        torch.testing.assert_close(twice[name], value, atol=1e-12, rtol=0)


def test_the_shortcut_and_packing_are_erased_too() -> None:
    trunk = make_trunk("bert")
    weights = erased(trunk).applied(params_of(trunk))
    plain = functional_call(trunk, weights, padded_tokens())
    short = functional_call(trunk, weights, padded_tokens(), {"shortcut": True})
    torch.testing.assert_close(short, plain)


def test_a_metric_moves_weights_along_itself_and_leaves_as_little() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(200, 6, generator=generator, dtype=torch.float64) * torch.arange(1.0, 7.0)
    metric, covectors = values.T @ values / 200, torch.randn(2, 6, generator=generator, dtype=torch.float64)
    weighted, plain = values.clone(), values.clone()
    Projector.of(covectors, metric).rows(weighted)
    Projector.of(covectors).rows(plain)
    for found in (weighted, plain):
        assert (found @ covectors.T).abs().max() < 1e-10
    whitener = torch.linalg.inv(torch.linalg.cholesky(metric)).T
    moved = [((found - values) @ whitener).norm() for found in (weighted, plain)]
    assert moved[0] < moved[1] - 1e-3, "LEACE's is the nearest in the metric of the states' covariance"


def test_below_takes_no_more_dimensions_than_directions_and_everywhere_does() -> None:
    trunk = make_trunk("bert")
    below, everywhere = erased(trunk, (2,), everywhere=False), erased(trunk, (2,), everywhere=True)
    assert len(below.before[0].read) == 1
    assert len(everywhere.before[0].read) > 1


def test_gains_are_held_as_they_were() -> None:
    trunk = make_trunk("bert")
    erasure, moved = erased(trunk), params_of(trunk)
    for value in moved.values():
        value += 0.1
    erasure.apply(moved)
    gain = "hf_model.bert.embeddings.LayerNorm.weight"
    assert torch.equal(moved[gain], params_of(trunk)[gain])
    assert (hidden(trunk, moved)[0] @ erasure.reads_nothing(0).T).abs().max() < 1e-9


def test_a_state_comes_back_to_the_bit() -> None:
    trunk = make_trunk("roberta")
    erasure, params = erased(trunk), params_of(trunk)
    again = Erasure.from_state(stream_of(trunk), erasure.state_dict())
    wanted, found = erasure.applied(params), again.applied(params)
    assert all(torch.equal(wanted[name], found[name]) for name in params)


def test_too_many_directions_are_refused() -> None:
    trunk = make_trunk("bert")
    with pytest.raises(UsageError, match="more than half of them; lower"):
        erased(trunk, (2,) * (trunk.feature_dim // 2 + 1), everywhere=False)


def test_independent_rows_leave_repetitions_out() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 3.0, 0.0]], dtype=torch.float64)
    found = independent(rows)
    assert found.shape == (2, 3)
    torch.testing.assert_close(found @ found.T, torch.eye(2, dtype=torch.float64))
