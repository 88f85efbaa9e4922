"""What reading weights make of missing directions tells what stood in them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdm_ray.attack.engine.missing import maps_of_missing, missing_directions, read_states
from sdm_ray.attack.engine.missing_readers import MissingReader, MissingReadings, NameVectors
from sdm_ray.attack.engine.token_states import Names
from sdm_ray.attack.families.probes import ridge
from sdm_ray.models.erasure import Direction, Erasure
from sdm_ray.models.stream import stream_of
from sdm_ray.models.trunk import Trunk
from tests.fakes.trunks import make_trunk

WIDTH = 48


def test_missing_are_directions_along_which_no_token_differs() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(400, 8, generator=generator, dtype=torch.float64)
    gone = torch.linalg.qr(torch.randn(8, 2, generator=generator, dtype=torch.float64)).Q
    erased = tokens - tokens @ gone @ gone.T + 7.0
    found = missing_directions(erased)
    torch.testing.assert_close(found @ found.T, gone @ gone.T, atol=1e-8, rtol=0)
    noisy = erased + 0.05 * torch.randn(400, 2, generator=generator, dtype=torch.float64) @ gone.T
    found = missing_directions(noisy)
    assert found.shape == (8, 2)
    torch.testing.assert_close(found @ found.T, gone @ gone.T, atol=0.03, rtol=0)
    assert missing_directions(tokens).shape == (8, 0)
    assert missing_directions(erased[:20]).shape == (8, 0), "too few tokens say nothing"
    assert missing_directions(erased, gone[:, 0]).shape == (8, 1), "what a norm never lets through is none"


def states(trunk: Trunk, params: dict[str, Tensor]) -> dict[int, Tensor]:
    ids = torch.randint(5, 30, (40, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = torch.func.functional_call(trunk, params, (ids, torch.ones_like(ids)), {"hidden_states": True})[1]
    return {layer: hidden[layer].flatten(0, 1) for layer in read_states(trunk)}


@pytest.mark.parametrize("noise", [0.0, 0.05], ids=["exact", "noisy"])
@pytest.mark.parametrize("kind", ["modernbert", "bert"])
def test_only_of_an_erased_encoder_something_is_missing(kind: str, noise: float) -> None:
    trunk = make_trunk(kind)
    params = {name: value.detach().clone() for name, value in trunk.named_parameters()}
    stream = stream_of(trunk)
    for site in stream.sites:  # a gain near zero makes a direction vary little
        if site.gain is not None:
            params[site.gain].fill_(1.0)
    assert maps_of_missing(trunk, params, states(trunk, params)) == ()
    drawn = torch.randn(2, trunk.feature_dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    erasure = Erasure.of(stream, [Direction(1, row) for row in drawn], params, everywhere=stream.pre_norm)
    params = erasure.applied(params)
    rows = params[stream.sites[0].rows[-1]]
    rows += noise * rows.std() * torch.randn(rows.shape, generator=torch.Generator().manual_seed(2))
    maps = maps_of_missing(trunk, params, states(trunk, params))
    assert len(maps) == (6 if kind == "modernbert" else 4), "of a post-norm layer, what hidden states are read by"
    assert all(each.shape[0] == trunk.feature_dim and each.shape[1] >= 2 for each in maps)
    trunk.model_type = "albert"
    assert read_states(trunk) == ()


def names(count: int, seed: int) -> Names:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)
    found[:, -1] = 0.0
    pieces = torch.stack([torch.arange(count) + 1000 * seed, torch.zeros(count, dtype=torch.long)], dim=1)
    return Names(found, found, torch.zeros(count, dtype=torch.bool), pieces)


@pytest.mark.parametrize("reads", [True, False])
def test_few_labels_are_enough_where_weights_still_show_the_class(reads: bool) -> None:
    """The class goes along a direction of the stream that no reader finds from 20 names, but a matrix that was trained
    to read it beside a direction that is missing now; weights that were not read nothing, and that is not chosen."""
    generator = torch.Generator().manual_seed(5)
    told = torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    told[-1] = 0.0
    missing = torch.eye(WIDTH, dtype=torch.float64)[:, -1:]
    matrix = 0.05 * torch.randn(20, WIDTH, generator=generator, dtype=torch.float64)
    if reads:
        matrix[0] += told + 5 * missing[:, 0]
    to_missing = matrix.T @ (matrix @ missing)
    sets = {kind: names(count, seed) for seed, (kind, count) in enumerate((("own", 20), ("val", 80), ("test", 400)), 1)}
    labels = {kind: (found.first @ told > 0).long() for kind, found in sets.items()}
    readings = MissingReadings([to_missing], {0: names(200, 9)}, None)
    vectors: dict[str, NameVectors] = {kind: readings.vectors({0: found}) for kind, found in sets.items()}
    reader = MissingReader(vectors["own"], labels["own"], 2, 1.0)
    val, test = reader.scores(vectors["val"], labels["val"], vectors["test"])
    accuracy = float((test.argmax(1) == labels["test"]).double().mean())
    plain = ridge(sets["own"].first, labels["own"], 2, 0.1)(sets["test"].first)
    assert float((plain.argmax(1) == labels["test"]).double().mean()) < 0.8
    if reads:
        assert accuracy > 0.95
    else:
        assert float((val.argmax(1) == labels["val"]).double().mean()) < 0.65
