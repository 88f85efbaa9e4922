"""What the pieces of a name tell together, in the states of a layer that combines them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from sdm_ray.attack.engine.interaction import PASSES, Hosts, InteractionScaling, NameStates, name_states
from sdm_ray.attack.engine.scoring import ScoringSet
from sdm_ray.attack.engine.token_states import Names
from sdm_ray.core.types import Batch, Params

FIRSTS, SECONDS = range(50, 60), range(60, 72)


class Combining(nn.Module):
    """Hidden state 1 adds to each token what all tokens say, and how the bits of a text agree, in one direction."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(200, 6, generator=generator))
        self.bits = nn.Parameter(torch.zeros(200))
        self.bits.data[50:] = 2.0 * torch.randint(2, (150,), generator=generator) - 1
        self.strength = strength
        self.rows = 0

    def forward(self, ids: Tensor, mask: Tensor, hidden_states: bool) -> tuple[Tensor, Tensor]:
        self.rows += len(ids)
        rows = self.table[ids]
        agreeing = self.bits[ids].sum(1).square() / 2 - 1
        above = rows + rows.mean(1, keepdim=True)
        above[..., 3] += self.strength * agreeing[:, None]
        return rows[:, 0], torch.stack([rows, above])


def known(strength: float = 0.1) -> tuple[Combining, NameStates]:
    trunk = Combining(strength)
    texts = [torch.tensor([1, 7, 50, 8, 60, 9]), torch.tensor([1, 51, 61, 10])]
    return trunk, states_of(trunk, Hosts(texts, torch.tensor([[2, 4], [1, 2]])))


def states_of(trunk: nn.Module, hosts: Hosts) -> NameStates:
    params: Params = {name: value.detach() for name, value in trunk.named_parameters()}
    return NameStates(trunk, params, hosts, list(FIRSTS[:6]), list(SECONDS[:7]))  # type: ignore[arg-type]


def test_what_each_piece_adds_by_itself_drops_out() -> None:
    """What is left is the product of the bits, less its means over the partners that stand for all."""
    trunk, states = known()
    names = [(a, b) for a in FIRSTS for b in SECONDS]
    found = states.of(names)
    assert found.shape == (len(names), 2, 5, 6)
    bits = trunk.bits.detach().double()
    table = torch.outer(bits[FIRSTS.start : FIRSTS.stop], bits[SECONDS.start : SECONDS.stop])
    means = table[:, :7].mean(1, keepdim=True) + table[:6].mean(0, keepdim=True) - table[:6, :7].mean()
    told = 0.1 * (table - means).flatten()
    torch.testing.assert_close(found[:, 1, :, 3], told[:, None].expand(-1, 5), atol=1e-6, rtol=0)
    others = [coordinate for coordinate in range(6) if coordinate != 3]
    assert found[:, 1, :, others].abs().max() < 1e-6
    assert found[:, 0].abs().max() < 1e-6


@pytest.mark.parametrize("strength", [1.0, 1e-3, 0.0])
def test_how_small_it_is_does_not_matter_unless_it_is_rounding(strength: float) -> None:
    _, states = known(strength)
    sizes = (states.table * states.factors).square().sum(3).mean(0).sqrt()
    assert torch.equal(sizes[0], torch.zeros(5).double()), "the embeddings combine nothing"
    torch.testing.assert_close(sizes[1], torch.full((5,), float(strength > 0)).double(), atol=1e-3, rtol=0)


def test_names_that_were_asked_for_take_no_pass_again() -> None:
    trunk, states = known()
    assert trunk.rows == 2 * 6 * 7, "the names of the table, in two texts"
    states.of([(50, 60), (59, 71)])
    assert trunk.rows == 2 * (6 * 7 + 7 + 6 + 1), "a new first and a new second piece with their partners, and the name"
    before = trunk.rows
    again = states.of([(59, 71), (50, 60), (59, 71)])
    assert trunk.rows == before
    assert torch.equal(again[0], again[2])


def texts(pieces: Sequence[Sequence[int]]) -> tuple[ScoringSet, Tensor]:
    """Texts with names of one or two pieces in them, and where those stand."""
    ids = torch.randint(1, 40, (len(pieces), 8), generator=torch.Generator().manual_seed(1))
    places = torch.full((len(pieces), 2), -1)
    for row, name in enumerate(pieces):
        for which, piece in enumerate(name):
            ids[row, 2 + 2 * which], places[row, which] = piece, 2 + 2 * which
    labels = torch.zeros(len(pieces), dtype=torch.long)
    return ScoringSet((Batch((ids, torch.ones_like(ids)), labels),), torch.arange(len(pieces)), labels), places


@pytest.mark.parametrize("pieces", [[(50,), (51,)], [(50, 60), (50, 61)], [(50, 60), (51, 60)], []])
def test_without_a_table_of_names_there_is_nothing_to_tell_apart(pieces: list[tuple[int, ...]]) -> None:
    examples, places = texts([(52,), *pieces])
    assert name_states(Combining(1.0), {}, examples, places, 0) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [3, 12, 60])
def test_many_names_take_fewer_texts_and_partners(count: int) -> None:
    trunk = Combining(1.0)
    generator = torch.Generator().manual_seed(2)
    drawn = torch.randint(count, (300, 2), generator=generator) + torch.tensor([50, 120])
    examples, places = texts(drawn.tolist())
    params: Params = {name: value.detach() for name, value in trunk.named_parameters()}
    states = name_states(trunk, params, examples, places, 0)  # type: ignore[arg-type]
    assert states is not None
    states.of([(a, b) for a, b in drawn.tolist()])
    assert trunk.rows <= PASSES
    if count == 3:
        assert trunk.rows == 8 * 9, "as many texts as are wanted, where names are few"


def named(two: Tensor, pieces: Tensor) -> Names:
    states = torch.randn(len(two), 6, generator=torch.Generator().manual_seed(3))
    return Names(states, states, two, pieces)


def test_kinds_of_names_do_not_mix() -> None:
    _, states = known()
    two = torch.arange(20) % 2 == 0
    names = named(two, torch.stack([torch.arange(20) % 6 + 50, torch.arange(20) % 7 + 60], dim=1))
    for layer, width in ((0, 5 * 6), (1, 5 * 6)):
        found = InteractionScaling.of(names, states, layer)(names)
        assert found.shape == (20, 6 + width)
        assert (found[two][:, :6] == 0).all()
        assert (found[~two][:, 6:] == 0).all()
        assert found[two][:, 6:].square().sum(1).max() > 0.1
        assert found[~two][:, :6].square().sum(1).mean() == pytest.approx(1)


def test_of_a_wide_encoder_names_are_told_along_as_many_axes_as_the_table_has_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, states = known()
    names = named(
        torch.ones(13, dtype=torch.bool), torch.stack([torch.arange(13) % 6 + 50, torch.arange(13) % 7 + 60], 1)
    )
    found = InteractionScaling.of(names, states, 1)(names)
    monkeypatch.setattr("sdm_ray.attack.engine.interaction.WIDE", 29)
    wide = InteractionScaling.of(names, states, 1)
    assert wide.axes is not None
    assert wide.axes.shape[1] == min(30, len(states.table))
    torch.testing.assert_close(wide(names) @ wide(names).T, found @ found.T)


def test_states_of_names_that_were_run_first_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk, states = known()
    monkeypatch.setattr("sdm_ray.attack.engine.interaction.KEPT_BYTES", 2 * 2 * 5 * 6 * 8)
    first, wanted = states.of([(50, 60)]), [(50, 60), (51, 61), (52, 62)]
    found, before = states.of(wanted), trunk.rows
    assert torch.equal(states.of(wanted)[1:], found[1:])
    assert trunk.rows == before + 2, "one name had gone, in two texts"
    torch.testing.assert_close(found[:1], first)


def test_names_that_hardly_share_pieces_make_no_table() -> None:
    examples, places = texts([(row, 400 + row) for row in range(50, 350)])
    assert name_states(Combining(1.0), {}, examples, places, 0) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("two", [False, True])
def test_without_a_table_names_are_read_by_their_first_piece(two: bool) -> None:
    names = named(torch.full((20,), two), torch.zeros(20, 2, dtype=torch.long))
    found = InteractionScaling.of(names, None, 1)(names)
    assert found.shape == (20, 6)
    assert found.square().sum(1).mean() == pytest.approx(1)
