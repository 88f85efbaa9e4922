"""Weights that read the stream lose what they would make of erased directions, and nothing of what they do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from sdm_ray.models.erasure import Direction, Erasure
from sdm_ray.models.reads import StreamReader, stream_readers, unread
from sdm_ray.models.stream import KNOWN, stream_of
from sdm_ray.models.trunk import Trunk
from tests.fakes.trunks import make_trunk, padded_tokens

CASES: list[tuple[str, dict[str, Any]]] = [(kind, {}) for kind in KNOWN] + [("electra", {"embedding_size": 16})]


def params_of(trunk: Trunk) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trunk.named_parameters()}


def erasures(trunk: Trunk) -> tuple[Erasure, Erasure]:
    """The same directions without and with weights that read."""
    generator = torch.Generator().manual_seed(1)
    found = [Direction(1, torch.randn(trunk.feature_dim, generator=generator).double()) for _ in range(3)]
    params, stream = params_of(trunk), stream_of(trunk)
    with torch.no_grad():
        for name, value in params.items():  # gains differ from one, as trained ones do
            if "norm" in name.lower() and name.endswith("weight"):
                value.mul_(1 + 0.3 * torch.rand(value.shape, generator=generator))
    trunk.load_state_dict(params, strict=False)
    plain = Erasure.of(stream, found, params, everywhere=stream.pre_norm)
    return plain, Erasure.of(stream, found, params, everywhere=stream.pre_norm, readers=stream_readers(trunk))


def passed(trunk: Trunk, params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    features, states = functional_call(trunk, params, padded_tokens(), {"hidden_states": True})
    return features, states


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_the_model_computes_what_it_did(kind: str, changes: dict[str, Any]) -> None:
    trunk = make_trunk(kind, **changes)
    plain, blind = erasures(trunk)
    params = params_of(trunk)
    before, after = plain.applied(params), blind.applied(params)
    assert blind.unread
    assert not plain.unread
    for name in blind.unread:
        assert (before[name] - after[name]).abs().max() > 1e-4, "something was taken out"
    for expected, found in zip(passed(trunk, before), passed(trunk, after), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", KNOWN)
def test_matrices_equal_those_without_their_part_along_what_is_never_read(kind: str) -> None:
    """A dense reference: the inputs that a matrix really sees span what it may act on, and the rest is taken out."""
    trunk = make_trunk(kind)
    _, blind = erasures(trunk)
    params = params_of(trunk)
    after, seen = blind.applied(params), {}
    modules = {name: module for name, module in trunk.named_modules() if isinstance(module, nn.Linear)}
    handles = [
        modules[reader.name.removesuffix(".weight")].register_forward_pre_hook(
            lambda module, inputs, name=reader.name: seen.update({name: inputs[0].detach().flatten(0, -2)})
        )
        for reader in stream_readers(trunk)
    ]
    passed(trunk, after)
    for handle in handles:
        handle.remove()
    for name, projector in blind.unread.items():
        never = projector.read
        assert (seen[name] @ never.T).abs().max() < 1e-8
        dense = params[name] @ (torch.eye(never.shape[1]).to(never) - torch.linalg.pinv(never) @ never)
        torch.testing.assert_close(after[name], dense, atol=1e-9, rtol=0)
        assert (after[name] @ never.T).abs().max() < 1e-9


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_a_second_time_changes_nothing_and_a_state_comes_back(kind: str) -> None:
    trunk = make_trunk(kind)
    _, blind = erasures(trunk)
    once = blind.applied(params_of(trunk))
    again = Erasure.from_state(stream_of(trunk), blind.state_dict())
    for name, value in again.applied(once).items():
        torch.testing.assert_close(value, once[name], atol=1e-9, rtol=0)
    assert blind.unread.keys() == again.unread.keys()
    assert blind.held.keys() == again.held.keys()
    assert all(torch.equal(blind.unread[name].read, again.unread[name].read) for name in blind.unread)


def test_what_a_norm_lets_through_is_kept() -> None:
    """Of three covectors a norm, which takes the mean away, leaves two that tell, beside the mean itself."""
    generator = torch.Generator().manual_seed(0)
    covectors = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    gain = 0.5 + torch.rand(8, generator=generator, dtype=torch.float64)
    states = torch.randn(200, 8, generator=generator, dtype=torch.float64)
    states -= states @ torch.linalg.pinv(covectors) @ covectors
    read = nn.functional.layer_norm(states, (8,), gain)
    found = unread(covectors, gain)
    assert torch.linalg.matrix_rank(found) == 3
    assert (read @ found.T).abs().max() < 1e-9
    assert torch.linalg.matrix_rank(read, rtol=1e-9) == 8 - 3
    assert torch.equal(unread(covectors, None), covectors)


def test_values_are_told_from_queries_and_keys() -> None:
    fused = torch.arange(12.0)[:, None]
    reader = StreamReader(name="qkv", kind="attention", site=0)
    assert reader.values_of(fused)[:, 0].tolist() == [8.0, 9.0, 10.0, 11.0]
    readers = [reader for reader in stream_readers(make_trunk("bert")) if reader.kind == "attention"]
    assert [len(reader.values_of(fused)) for reader in readers[:3]] == [0, 0, 12]


def test_other_architectures_have_none() -> None:
    trunk = make_trunk("bert")
    trunk.model_type = "albert"
    assert stream_readers(trunk) == ()
