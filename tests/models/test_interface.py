"""What meta-training asks of a trunk, and that texts, vectors and images all give it."""

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
from sdm_ray.models.trunk import params_digest


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


KINDS: dict[str, Callable[[Path, int], Any]] = {
    "texts": text_trunk,
    "vectors": lambda folder, seed: VectorMlp(25, 8, 3, seed),
    "images": lambda folder, seed: ImageEncoder(seed),
}


@pytest.mark.parametrize("kind", KINDS)
def test_trunks_of_all_kinds_fit_the_interface(kind: str, bert_folder: Path) -> None:
    trunk: TrunkLike = KINDS[kind](bert_folder, 1)
    members = [name for name in vars(TrunkLike) if not name.startswith("_")]
    assert len(members) >= 9
    assert not [name for name in members if not hasattr(trunk, name)]
    depths = [trunk.depth_of(name) for name, _ in trunk.named_parameters()]
    assert set(depths) == set(range(trunk.num_depths)), "every depth holds a parameter"
    assert trunk.digest() == KINDS[kind](bert_folder, 1).digest() != KINDS[kind](bert_folder, 2).digest()


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
