"""What training and attacks ask of a trunk, and that trunks of texts, vectors and images all give it: one suite.

A new trunk gets these tests by an entry in `TRUNKS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from sdm_ray.config import EncoderSettings
from sdm_ray.models.encoder import load_trunk
from sdm_ray.models.interface import TrunkLike
from sdm_ray.models.mlp import VectorMlp
from sdm_ray.models.packing import token_places
from sdm_ray.models.trunk import params_digest
from tests.fakes.attack_world import TinyTrunk
from tests.fakes.files import MODEL_TYPES
from tests.fakes.meta import MlpTrunk
from tests.fakes.trunks import make_trunk


class ImageEncoder(nn.Module):
    """A small convolutional encoder of images (B, 3, 8, 8) with a mean over positions."""

    feature_dim, num_depths = 6, 2
    embedding_name: str | None = None
    fixed_ids = 0
    has_shortcut = has_dropout = has_packing = False

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 6, 3)])
        generator = torch.Generator().manual_seed(seed)
        for value in self.parameters():
            nn.init.uniform_(value, -0.3, 0.3, generator)

    def forward(self, images: Tensor) -> Tensor:
        for layer in self.layers:
            images = torch.tanh(layer(images))
        return images.mean((-2, -1))

    def depth_of(self, name: str) -> int:
        return int(name.split(".")[1])

    def digest(self) -> str:
        return params_digest(dict(self.named_parameters()))


def text_trunk(folder: Path, seed: int) -> Any:
    return load_trunk(EncoderSettings(name=str(folder)), cache_dir=folder, initialisation="random", seed=seed)


def random_inputs(kind: str, *shape: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(4)
    if kind == "texts":
        ids = torch.randint(5, 30, (*shape, 9), generator=generator)
        return ids, torch.ones_like(ids)
    size = (25,) if kind == "vectors" else (3, 8, 8)
    return (torch.randn(*shape, *size, generator=generator, dtype=torch.float64),)


def architecture(kind: str) -> Callable[[Path, int], Any]:
    return lambda folder, seed: make_trunk(kind, seed=seed)


KINDS: dict[str, Callable[[Path, int], Any]] = {
    "texts": text_trunk,
    "vectors": lambda folder, seed: VectorMlp(25, 8, 3, seed),
    "images": lambda folder, seed: ImageEncoder(seed),
}
TRUNKS: dict[str, Callable[[Path, int], Any]] = {
    **KINDS,
    **{kind: architecture(kind) for kind in MODEL_TYPES},
    "fake of training": lambda folder, seed: MlpTrunk(seed=seed),
    "fake of attacks": lambda folder, seed: TinyTrunk(seed=seed),
}
"""(folder of a tiny BERT, seed) -> a trunk with weights of its own for every seed."""


def inputs_of(kind: str, *shape: int) -> tuple[Tensor, ...]:
    """Inputs of a trunk, texts with padding."""
    if kind in ("vectors", "images"):
        return random_inputs(kind, *shape)
    ids, mask = random_inputs("texts", *shape)
    mask[1, 6:] = 0
    return ids, mask


@pytest.mark.parametrize("kind", TRUNKS)
def test_forward_is_deterministic_and_the_flags_say_what_it_knows(kind: str, bert_folder: Path) -> None:
    trunk, inputs = TRUNKS[kind](bert_folder, 1).double(), inputs_of(kind, 3)
    state = torch.random.get_rng_state()
    plain = trunk(*inputs)
    assert plain.shape == (3, trunk.feature_dim)
    assert torch.equal(trunk(*inputs), plain)
    options: dict[str, Any] = {
        "shortcut": {"shortcut": True},
        "packing": {"places": token_places(inputs[-1], 26) if trunk.has_packing else None},
    }
    for name, option in options.items():
        if getattr(trunk, f"has_{name}"):
            torch.testing.assert_close(trunk(*inputs, **option), plain, rtol=1e-9, atol=1e-9)
    if not trunk.has_shortcut:
        with pytest.raises((TypeError, AssertionError)):
            trunk(*inputs, shortcut=True)
    if trunk.has_dropout:
        dropped = trunk(*inputs, dropout_seed=3)
        assert not torch.allclose(dropped, plain)
        assert torch.equal(trunk(*inputs, dropout_seed=3), dropped)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("kind", TRUNKS)
def test_of_the_embedding_nothing_but_the_named_rows_is_read(kind: str, bert_folder: Path) -> None:
    trunk = TRUNKS[kind](bert_folder, 1).double()
    if trunk.embedding_name is None:
        assert kind in ("vectors", "images", "fake of attacks")
        return
    ids, mask = inputs_of(kind, 3)
    params = {name: value.detach() for name, value in trunk.named_parameters()}
    kept = torch.cat([torch.arange(trunk.fixed_ids), ids.unique()]).unique()
    renumbered = torch.searchsorted(kept, ids)
    few = params | {trunk.embedding_name: params[trunk.embedding_name][kept]}
    assert len(kept) < len(params[trunk.embedding_name])
    torch.testing.assert_close(functional_call(trunk, few, (renumbered, mask)), trunk(ids, mask))


@pytest.mark.parametrize("kind", TRUNKS)
def test_trunks_of_all_kinds_fit_the_interface(kind: str, bert_folder: Path) -> None:
    trunk: TrunkLike = TRUNKS[kind](bert_folder, 1)
    members = [name for name in vars(TrunkLike) if not name.startswith("_")]
    assert len(members) >= 10
    assert not [name for name in members if not hasattr(trunk, name)]
    depths = [trunk.depth_of(name) for name, _ in trunk.named_parameters()]
    assert set(depths) == set(range(trunk.num_depths)), "every depth holds a parameter"
    assert trunk.digest() == TRUNKS[kind](bert_folder, 1).digest() != TRUNKS[kind](bert_folder, 2).digest()


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_second_derivatives_of_stacked_models_are_those_of_each(kind: str, bert_folder: Path) -> None:
    trunk = KINDS[kind](bert_folder, 1).double()
    inputs = random_inputs(kind, 2, 5)
    stacked = {
        name: torch.stack([value.detach() * (1 + 0.2 * copy) for copy in range(2)])
        for name, value in trunk.named_parameters()
    }

    def loss(params: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        features: Tensor = functional_call(trunk, params, inputs)
        assert features.shape == (5, trunk.feature_dim)
        return features.square().sum()

    def slope(params: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([value.square().sum() for value in grad(loss)(params, inputs).values()]).sum()

    together = vmap(grad(slope))(stacked, inputs)
    assert max(float(value.abs().max()) for value in together.values()) > 1e-6
    for copy in range(2):
        alone = grad(slope)({name: value[copy] for name, value in stacked.items()}, tuple(v[copy] for v in inputs))
        for name, value in alone.items():
            torch.testing.assert_close(together[name][copy], value, rtol=1e-9, atol=1e-9)


def test_a_vector_trunk_is_the_network_that_it_says() -> None:
    trunk = VectorMlp(25, 8, 2, seed=3).double()
    (x,) = random_inputs("vectors", 5)
    first, second = trunk.layers
    expected = torch.relu(torch.relu(x @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    torch.testing.assert_close(trunk(x), expected)
    assert trunk(x).shape == (5, trunk.feature_dim)
    assert [trunk.depth_of(name) for name, _ in trunk.named_parameters()] == [0, 0, 1, 1]
    state = torch.random.get_rng_state()
    assert VectorMlp(25, 8, 2, seed=3).digest() == VectorMlp(25, 8, 2, seed=3).digest()
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("changes", [{"input_dim": 0}, {"width": 0}, {"num_layers": -1}])
def test_sizes_below_one_are_refused(changes: dict[str, int]) -> None:
    (name,) = changes
    with pytest.raises(ValueError, match=rf"{name} is -?\d, but must be at least 1"):
        VectorMlp(**{"input_dim": 3, "width": 4, "num_layers": 1, "seed": 0, **changes})
