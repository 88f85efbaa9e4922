"""Which readers of tokens a search tries."""

from __future__ import annotations

import pytest

from sdm_ray.attack.families.base import Facts
from sdm_ray.attack.families.token_probe import ROWS, TOKEN_PROBE
from sdm_ray.attack.space import DesignedSampler
from sdm_ray.config import AttackSettings


def facts(num_layers: int, *, knows_positions: bool) -> Facts:
    return Facts(
        num_depths=num_layers + 2, num_hidden_states=num_layers + 1, has_linear_layers=True, has_public=False,
        has_own_head=False, can_redraw=False, has_masked_lm=False, has_token_rows=True, knows_positions=knows_positions,
    )  # fmt: skip


def attackers(known: Facts) -> list[tuple[str, int, int, str, str, float]]:
    """Reading, layer, position, scaling, read-out and penalty of a search's readers."""
    settings = AttackSettings()
    assert TOKEN_PROBE.design is not None
    space, design = TOKEN_PROBE.space(settings, 20, known), TOKEN_PROBE.design(settings, 20, known)
    points = DesignedSampler(space, 0, design).ask(settings.num_probe_trials)
    found = [TOKEN_PROBE.attacker(point, 20) for point in points]
    return [(a.reading, a.layer, a.position, a.scaling, a.readout, a.amount) for a in found]


def test_what_pieces_tell_together_is_read_in_all_layers_and_in_each() -> None:
    """Names of one piece are read off the embeddings, which tell most of a single token."""
    found = [reader for reader in attackers(facts(2, knows_positions=True)) if reader[0] == "interaction"]
    assert [reader[1:5] for reader in found] == [
        (0, 0, "standardised", "ridge"), (0, 2, "standardised", "ridge"), (0, 1, "standardised", "ridge"),
        (ROWS, 0, "standardised", "ridge"),
    ]  # fmt: skip
    assert all(0.03 <= reader[-1] <= 3.2 for reader in found), "weak penalties do not pay"


@pytest.mark.parametrize("num_layers", [2, 12])
def test_a_search_reads_names_where_they_are_known_and_places_where_not(num_layers: int) -> None:
    known = {reader[0] for reader in attackers(facts(num_layers, knows_positions=True))}
    assert known == {"known", "query", "pair", "maximum", "bilinear", "interaction"}
    assert {reader[0] for reader in attackers(facts(num_layers, knows_positions=False))} == {
        "position", "query", "maximum",
    }  # fmt: skip
