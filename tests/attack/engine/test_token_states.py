"""Names of one and of two tokens as an attacker reads them: products of principal components."""

from __future__ import annotations

import torch
from torch import Tensor

from sdm_ray.attack.engine.token_states import Names, NameScaling, Tokens
from sdm_ray.attack.families.probes import ridge


def drawn(count: int, seed: int, pieces: int = 14) -> tuple[Names, Tensor]:
    """Names of two tokens, each a row whose largest direction holds a bit; the label is the bits' exclusive or."""
    rows = torch.randn(2, pieces, 8, generator=torch.Generator().manual_seed(0))
    bits = torch.arange(pieces) % 2
    rows[:, :, 0] += 6 * (2 * bits - 1)
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randint(pieces, (count,), generator=generator) for _ in range(2))
    names = Names(rows[0, first], rows[1, second], torch.ones(count, dtype=torch.bool))
    return names, bits[first] ^ bits[second]


def test_few_labels_tell_what_two_tokens_tell_together() -> None:
    unlabelled, _ = drawn(500, 1)
    owned, labels = drawn(12, 2)
    others, truth = drawn(500, 3)
    scaling = NameScaling.of("standardised", unlabelled, 4)
    found = ridge(scaling(owned), labels, 2, 1e-3)(scaling(others)).argmax(1)
    assert float((found == truth).double().mean()) > 0.95
    side_by_side = [torch.cat([names.first, names.second], dim=1).double() for names in (owned, others)]
    linear = ridge(side_by_side[0], labels, 2, 1e-3)(side_by_side[1]).argmax(1)
    assert float((linear == truth).double().mean()) < 0.75


def test_kinds_of_names_do_not_mix() -> None:
    names, _ = drawn(40, 1)
    two = torch.arange(40) % 2 == 0
    mixed = Names(names.first, names.second, two)
    features = NameScaling.of("standardised", mixed, 3)(mixed)
    assert features.shape == (40, 3 + 9)
    assert (features[two][:, :3] == 0).all()
    assert (features[~two][:, 3:] == 0).all()
    assert torch.isfinite(features).all()
    changed = Names(names.first, torch.where(two[:, None], names.second, 99.0), two)
    assert torch.equal(NameScaling.of("standardised", changed, 3)(changed), features), "no second token, nothing read"


def test_a_world_without_one_kind() -> None:
    names, _ = drawn(40, 1)
    for there in (True, False):
        only = Names(names.first, names.second, torch.full((40,), there))
        features = NameScaling.of("standardised", only, 3)(only)
        assert features.shape[1] == (9 if there else 3)
        assert torch.isfinite(features).all()


def test_what_stands_in_for_tokens_of_no_name() -> None:
    states = torch.arange(2 * 4).reshape(2, 4, 1).float()
    tokens = Tokens({0: states}, torch.ones(2, 4, dtype=torch.bool), torch.tensor([[2, -1], [-1, -1]]))
    assert tokens.name(0, 0).tolist() == [[2.0], [5.0]]
    assert tokens.name(0, 1).tolist() == [[3.0], [6.0]], "the token after the first"
    assert Names.of(tokens, 0).second_known.tolist() == [False, False]
