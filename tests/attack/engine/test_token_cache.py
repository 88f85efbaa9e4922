"""Forward passes that readers of tokens share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdm_ray.attack.engine.scoring import ScoringSet
from sdm_ray.attack.engine.token_cache import Passes
from sdm_ray.attack.engine.token_states import Tokens, run_trunk
from sdm_ray.attack.families.token_probe import POOLED, ROWS
from sdm_ray.core.types import Batch
from tests.fakes.attack_world import params_of
from tests.fakes.trunks import make_trunk, padded_tokens


@pytest.fixture
def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that went through the trunk."""
    sizes: list[int] = []
    run = run_trunk

    def counted(trunk, params, batch, layers):  # type: ignore[no-untyped-def]
        sizes.append(len(batch.labels))
        return run(trunk, params, batch, layers)

    monkeypatch.setattr("sdm_ray.attack.engine.token_cache.run_trunk", counted)
    return sizes


def texts(num_batches: int, first: int = 0) -> ScoringSet:
    """Batches of four texts each; the indices begin at `first`."""
    ids, mask = padded_tokens(num_batches, seed=first)
    labels = torch.zeros(num_batches, 4, dtype=torch.long)
    batches = tuple(map(Batch, zip(ids, mask, strict=True), labels))
    return ScoringSet(batches, torch.arange(first, first + labels.numel()), labels.flatten())


def states(passes: Passes, examples: ScoringSet, layer: int, known: Tensor | None = None) -> Tensor:
    found: list[Tokens] = list(passes.tokens(examples, {layer}, known))
    assert known is None or torch.equal(torch.cat([part.known for part in found if part.known is not None]), known)
    return torch.cat([part.states[layer] for part in found])


@pytest.mark.parametrize("most", [0, 20_000, 10**9])
def test_all_layers_of_the_same_texts_take_one_pass_where_they_fit(count_passes: list[int], most: int) -> None:
    trunk = make_trunk("bert")
    examples, known = texts(3), torch.arange(24).reshape(12, 2)
    passes = Passes(trunk, params_of(trunk), most)
    found = [states(passes, examples, layer, known) for layer in (0, 1, POOLED)]
    alone = [states(Passes(trunk, params_of(trunk)), examples, layer) for layer in (0, 1, POOLED)]
    for mine, theirs in zip(found, alone, strict=True):
        torch.testing.assert_close(mine, theirs)
    kept = most == 10**9
    assert len(count_passes) == (3 if kept else 9) + 9


def test_rows_need_no_pass_and_do_not_stand_for_one(count_passes: list[int]) -> None:
    trunk = make_trunk("bert")
    passes, examples = Passes(trunk, params_of(trunk)), texts(1)
    assert trunk.embedding_name is not None
    rows = states(passes, examples, ROWS)
    torch.testing.assert_close(rows, params_of(trunk)[trunk.embedding_name][examples.batches[0].inputs[0]])
    assert not torch.equal(states(passes, examples, 0), rows)
    assert count_passes == [4, 4], "the second call has states of layers, which the first did not ask for"


def test_the_texts_asked_for_longest_ago_make_room(count_passes: list[int]) -> None:
    trunk = make_trunk("bert")
    one, two = texts(1), texts(1, first=4)
    done = run_trunk(trunk, params_of(trunk), one.batches[0], {0})
    size = sum(value.nbytes for value in done if value is not None)
    passes = Passes(trunk, params_of(trunk), most=size + size // 2)
    count_passes.clear()
    for examples, passed in ((one, 1), (one, 1), (two, 2), (two, 2), (one, 3)):
        states(passes, examples, 0)
        assert len(count_passes) == passed
