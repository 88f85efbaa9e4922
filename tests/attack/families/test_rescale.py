"""Rescaling: what it makes equal, that a shrunk direction comes back, and that it goes with every kind of training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdm_ray.attack.engine.executor import Executor
from sdm_ray.attack.families import Attacker
from sdm_ray.attack.families.rescale import CHAINS, RESCALINGS, table_names
from sdm_ray.config import AttackSettings
from sdm_ray.core.types import Params, Task
from sdm_ray.models.trunk import Trunk
from tests.attack.test_planted import NameData, bert, run
from tests.fakes.attack_world import attack, params_of, quick

TABLE = "hf_model.bert.embeddings.word_embeddings.weight"


def shrunk(factor: float) -> Trunk:
    """An encoder that knows names along a slanted direction of its embedding, which is multiplied."""
    trunk = bert()
    with torch.no_grad():
        table = trunk.get_parameter(TABLE)
        generator = torch.Generator().manual_seed(1)
        turn = torch.linalg.qr(torch.randn(table.shape[1], table.shape[1], generator=generator)).Q
        table.copy_(table @ torch.diag(torch.tensor([factor] + [1.0] * (table.shape[1] - 1))) @ turn)
    return trunk


@pytest.mark.parametrize(("name", "amount", "spread"), [("rescale_embedding", 1.0, 1.0), ("rescale_embedding", 0.5, 0)])
def test_singular_values_are_flattened_by_the_exponent_and_the_norm_is_kept(
    name: str, amount: float, spread: float
) -> None:
    trunk = shrunk(1e-3)
    params = params_of(trunk)
    centred = params[TABLE] - params[TABLE].mean(0)
    before = torch.linalg.svdvals(centred)
    after = torch.linalg.svdvals(RESCALINGS[name](trunk, params, amount)[TABLE])
    assert (before[0] / before[-1]).item() > 100
    assert (after[0] / after[-1]).item() == pytest.approx(spread or (before[0] / before[-1]).sqrt().item(), rel=1e-2)
    assert after.square().sum().item() == pytest.approx(before.square().sum().item(), rel=1e-3)


def test_columns_rows_and_gains_are_made_equal_and_an_amount_of_zero_changes_only_the_mean() -> None:
    trunk = bert()
    params = params_of(trunk)
    columns = RESCALINGS["rescale_columns"](trunk, params, 1.0)[TABLE]
    torch.testing.assert_close(columns.std(0), columns.std(0).mean().expand(columns.shape[1]))
    gains = [name for name in params if "LayerNorm.weight" in name]
    tiny = params | {name: torch.full_like(params[name], 1e-4) for name in gains}
    assert gains
    assert all((RESCALINGS["rescale_gains"](trunk, tiny, 1.0)[name] == 1).all() for name in gains)
    dense = "hf_model.bert.encoder.layer.0.intermediate.dense.weight"
    weak = params | {dense: params[dense] * torch.logspace(-4, 0, len(params[dense]))[:, None]}
    norms = RESCALINGS["rescale_neurons"](trunk, weak, 1.0)[dense].norm(dim=1)
    assert (norms.max() / norms.min()).item() < 3, "rows were four orders of magnitude apart"
    for name in ("rescale_weights", "rescale_gains", "rescale_neurons"):
        for key, value in RESCALINGS[name](trunk, params, 0.0).items():
            torch.testing.assert_close(value, params[key], rtol=1e-4, atol=1e-6)


def test_a_direction_that_was_projected_out_does_not_come_back() -> None:
    trunk = shrunk(0.0)
    params = params_of(trunk)
    table = RESCALINGS["rescale_embedding"](trunk, params, 1.0)[TABLE]
    values = torch.linalg.svdvals(table)
    assert (values[-1] / values[0]).item() < 0.5, "what is left is rounding, and is raised no further than float32 goes"


def test_a_shrunk_direction_that_fine_tuning_misses_is_found_after_rescaling() -> None:
    settings: dict[str, Any] = {"num_examples": (100,), "num_steps_min": 60, "num_steps_max": 90}
    settings |= {"num_search_trials": 6, "learning_rate": {"low": 1e-4, "high": 1e-3}, "frozen_probability": 0.0}
    plain = run(shrunk(0.02), ("fine_tune",), **settings)
    rescaled = run(shrunk(0.02), ("rescale",), **settings)
    assert plain.worst_accuracy < 0.7
    assert rescaled.worst_accuracy > plain.worst_accuracy + 0.15


@pytest.mark.parametrize("trains", ["full", "upper", "lora", "head", "probe"])
def test_an_edit_goes_with_every_kind_of_training_as_if_the_edited_weights_had_been_released(trains: Any) -> None:
    trunk, data, edit = shrunk(0.05), NameData(), "rescale_gains+rescale_embedding"
    params = params_of(trunk)
    edited: Params = RESCALINGS["rescale_embedding"](trunk, RESCALINGS["rescale_gains"](trunk, params, 1.0), 1.0)
    common: dict[str, Any] = {"family": "x", "num_examples": 40, "trains": trains, "learning_rate": 1e-3}
    common |= {"num_steps": 5, "batch_size": 8, "depth": int(trains == "upper"), "rank": 2 * (trains == "lora")}
    common |= {"learning_rate": 0.0} if trains == "lora" else {}  # factors are drawn for each attacker anew
    common |= {"probe": "linear_probe", "amount": 0.1, "layer": 1, "num_steps": 0} if trains == "probe" else {}
    attackers = [Attacker(**common, edit=edit, amounts=(1.0, 1.0)), Attacker(**common)]
    settings = quick(num_examples=(40,))
    given, plain = Executor(trunk, params, data, settings, Task.HARMFUL).run(attackers, with_test=True), {}
    for outcome in [outcome for part in given for outcome in part]:
        plain[outcome.attacker.edit] = outcome.test_logits
    reference = Executor(trunk, edited, data, settings, Task.HARMFUL).run(attackers[1:], with_test=True)
    ((expected,),) = list(reference)
    torch.testing.assert_close(plain[edit], expected.test_logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain[""], plain[edit], atol=1e-3), "released features were not mistaken for edited ones"


def test_plain_and_rescaled_weights_share_a_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk, data = shrunk(0.05), NameData()
    common: dict[str, Any] = {"family": "x", "num_examples": 40, "learning_rate": 1e-3, "num_steps": 3, "batch_size": 8}
    attackers = [Attacker(**common)] + [
        Attacker(**common, edit=edit, amount=amount) for edit in CHAINS for amount in (0.5, 1.0)
    ]
    executor = Executor(trunk, params_of(trunk), data, quick(num_examples=(40,)), Task.HARMFUL)
    together = list(executor.run(attackers, with_test=True))
    assert [len(part) for part in together] == [7]
    for outcome in together[0]:
        ((alone,),) = list(executor.run([outcome.attacker], with_test=True))
        torch.testing.assert_close(outcome.test_logits, alone.test_logits, rtol=1e-4, atol=1e-5)


def test_a_trunk_without_a_token_embedding_has_its_lowest_matrices_rescaled() -> None:
    report = attack(*_tiny(), quick(families=("rescale",), num_search_trials=6))
    assert report.cells[0].valid


def _tiny() -> tuple[Any]:
    from tests.fakes.attack_world import FakeData, TinyTrunk

    trunk = TinyTrunk()
    assert table_names(trunk, params_of(trunk)) == ["embedding", "weight"]
    return (FakeData(),)


def test_fine_tune_and_rescale_share_search_points_and_re_runs() -> None:
    from tests.fakes.attack_world import FakeData

    settings = quick(families=("fine_tune", "rescale"), num_search_trials=7)
    report = attack(FakeData(), settings)
    assert len(report.records) == 2 * settings.num_fine_tunes == 2 * (7 + 3)
    for n in (20, 40):
        count = {f: sum(r.family == f and r.num_examples == n and r.phase == "search" for r in report.records)
                 for f in ("fine_tune", "rescale")}  # fmt: skip
        assert count == {"fine_tune": 4, "rescale": 3}
        cells = {cell.family: cell for cell in report.family_cells if cell.num_examples == n}
        better = max(cells.values(), key=lambda cell: cell.best_so_far[-1])
        (given,) = [cell for cell in cells.values() if cell.valid]
        assert given.best_so_far[-1] == better.best_so_far[-1]
        assert not any(cell.failed for cell in cells.values())
    points = [(r.learning_rate, r.num_steps) for r in report.records if (r.phase, r.num_examples) == ("search", 20)]
    assert len(set(points)) == 7, "one sequence of points, of which each takes its own"
    apart = AttackSettings.model_validate(settings.model_dump() | {"shared_search": False})
    assert [apart.search_trials(name) for name in apart.families] == [7, 7]
    assert all(cell.valid for cell in attack(FakeData(), apart).family_cells)
