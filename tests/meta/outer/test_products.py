"""Products of a name's two tokens: what linear readers miss is found, and gone once its directions are removed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from sdm_ray.config import DataSettings, EraseSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.progress import run_through
from sdm_ray.core.types import Split, Task
from sdm_ray.meta.outer.erase import check_erasure, find_erasure
from sdm_ray.meta.outer.products import TwoTokens, find_product
from tests.meta.test_trainer import text_world

WIDTH, NUM_TOKENS, LENGTH = 16, 10, 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Named:
    """Texts about two-token names; the label is the exclusive or of a hidden bit of each token."""

    def __init__(self, num_texts: int = 400) -> None:
        drawn = generator()
        tokens = torch.randint(NUM_TOKENS, (num_texts, 2), generator=drawn)
        self.bits = torch.arange(NUM_TOKENS) % 2
        self.labels = self.bits[tokens[:, 0]] ^ self.bits[tokens[:, 1]]
        self.places = torch.tensor([[1, 2], [3, 4]])[torch.randint(2, (num_texts,), generator=drawn)]
        rows = torch.arange(num_texts)
        self.ids = torch.randint(2 * NUM_TOKENS, 3 * NUM_TOKENS, (num_texts, LENGTH), generator=drawn)
        self.ids[rows, self.places[:, 0]] = tokens[:, 0]
        self.ids[rows, self.places[:, 1]] = tokens[:, 1] + NUM_TOKENS
        self.table = torch.randn(3 * NUM_TOKENS, WIDTH, generator=drawn)
        self.table += 3 * torch.randn(WIDTH, generator=drawn) * (torch.arange(len(self.table)) % 2 - 0.5)[:, None]
        self.places[:20] = torch.tensor([2, -1])  # names of one token

    def two_tokens(self) -> TwoTokens:
        return TwoTokens.of(self.places, self.ids, self.labels, generator())

    def states(self, removed: list[Tensor]) -> Tensor:
        """(N, L, D) with directions taken out."""
        table = self.table.double()
        if removed:
            basis = torch.linalg.qr(torch.stack(removed).T).Q
            table = table - (table @ basis) @ basis.T
        return table[self.ids]


def test_products_tell_held_out_names_until_their_directions_are_removed() -> None:
    named = Named()
    texts = named.two_tokens()
    assert len(texts.rows) == 380
    assert int(texts.rows.min()) == 20
    first = find_product(texts, named.states([]))
    assert first.accuracy > 0.9
    removed: list[Tensor] = []
    for _ in range(4):
        found = find_product(texts, named.states(removed))
        removed += [found.first, found.second]
    assert find_product(texts, named.states(removed)).accuracy < 0.65


def test_the_directions_are_those_of_the_hidden_bits() -> None:
    named = Named()
    found = find_product(named.two_tokens(), named.states([]))
    for covector, start in ((found.first, 0), (found.second, NUM_TOKENS)):
        rows = named.table[start : start + NUM_TOKENS].double()
        bit = rows[named.bits == 1].mean(0) - rows[named.bits == 0].mean(0)
        assert abs(float(covector @ bit / bit.norm())) > 0.9
        assert float(covector.norm()) == pytest.approx(1)


def test_names_are_held_out_whole() -> None:
    named = Named()
    texts = named.two_tokens()
    pairs = [tuple(named.ids[row, places].tolist()) for row, places in zip(texts.rows, texts.positions, strict=True)]
    held = {pair for pair, is_held in zip(pairs, texts.held.tolist(), strict=True) if is_held}
    fitted = {pair for pair, is_held in zip(pairs, texts.held.tolist(), strict=True) if not is_held}
    assert held
    assert not held & fitted
    assert len(held) == round(0.25 * len(held | fitted))


def test_what_is_spared_is_left_and_a_metric_changes_what_is_found() -> None:
    named = Named()
    texts, states = named.two_tokens(), named.states([])
    free = find_product(texts, states)
    spared = torch.stack([free.first, free.second])
    spared = torch.linalg.qr(spared.T).Q.T
    other = find_product(texts, states, spared=spared)
    assert float((spared @ other.first).abs().max()) < 1e-9
    assert float((spared @ other.second).abs().max()) < 1e-9
    scaled = torch.diag(torch.logspace(0, 3, WIDTH, dtype=torch.float64))
    root = scaled.sqrt()
    same = find_product(texts, states @ root, metric=scaled)
    assert abs(float(torch.nn.functional.cosine_similarity(root @ same.first, free.first, dim=0))) > 1 - 1e-6
    assert same.accuracy == pytest.approx(free.accuracy)


def test_too_few_names_are_refused() -> None:
    named = Named()
    with pytest.raises(UsageError, match=r"num_products: products need texts with two-token names .* have 0"):
        TwoTokens.of(None, named.ids, named.labels, generator())
    with pytest.raises(UsageError, match="of at least 8 names, but 10 texts"):
        TwoTokens.of(named.places[20:30], named.ids[:10] * 0, named.labels[:10], generator())
    with pytest.raises(UsageError, match="do not give two classes"):
        TwoTokens.of(named.places, named.ids, named.labels * 0, generator())


@pytest.fixture(scope="module")
def world(encoder_folder: Path, data_file: Path) -> tuple[Any, Any]:
    """A small encoder, and texts whose label is the exclusive or of bits of two of their tokens."""
    trunk, data = text_world(encoder_folder, DataSettings(source=str(data_file), max_length=24))
    data = copy.copy(data)
    second = max(range(2, 8), key=lambda place: len(torch.unique(data._input_ids[:, place])))
    data._known = torch.tensor([[1, second]]).repeat(len(data._input_ids), 1)
    first, other = (torch.unique(data._input_ids[:, place], return_inverse=True)[1] % 2 for place in (1, second))
    data._labels = {**data._labels, Task.HARMFUL: (first ^ other).long()}
    return trunk, data


def search(world: tuple[Any, Any], **settings: Any) -> Any:
    trunk, data = world
    wanted = EraseSettings.model_validate(settings)
    work = find_erasure(wanted, trunk=trunk, data=data, indices=data.indices(Split.META_TRAIN), seed=0)
    return run_through(work, lambda progress: None)


def test_an_erasure_takes_pairs_of_directions_out_of_the_stream(
    world: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk, data = world
    monkeypatch.setattr("sdm_ray.meta.outer.erase.MARGIN", -1.0)  # random weights tell nothing
    found = search(world, num_products=1, sites=[0])
    assert [one.kind for one in found.removed] == ["product"]
    assert found.erasure.reads_nothing(0).shape[0] == 2
    (ids, mask), _ = data.batch(data.indices(Split.META_TRAIN), Task.HARMFUL)
    params = found.erasure.applied({name: value.detach() for name, value in trunk.named_parameters()})
    with torch.no_grad():
        _, states = functional_call(trunk, params, (ids, mask), {"hidden_states": True})
    assert float((states[0][mask.bool()] @ found.erasure.reads_nothing(0).T).abs().max()) < 1e-5


def test_the_search_ends_where_products_tell_nothing_and_goes_on_with_directions(
    world: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdm_ray.meta.outer.linear_readers.READER_STEPS", 10)
    monkeypatch.setattr("sdm_ray.meta.outer.erase.MARGIN", 1.0)
    assert [one.kind for one in search(world, num_products=3, num_directions=1).removed] == ["mean"]


def test_texts_without_known_names_are_refused(encoder_folder: Path, data_file: Path) -> None:
    trunk, data = text_world(encoder_folder, DataSettings(source=str(data_file), max_length=24))
    with pytest.raises(UsageError, match="num_products is 2, but the positions of names are not known"):
        check_erasure(EraseSettings(num_products=2), trunk, data)
    with pytest.raises(UsageError, match="16 directions"):
        check_erasure(EraseSettings(num_products=8), trunk)
