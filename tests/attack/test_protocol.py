"""The protocol: what selects, what is scored, what pairs, and what a failure does to the result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import sdm_ray.attack.engine.executor as execute_module
import sdm_ray.attack.engine.stack as batch_module
from sdm_ray.attack.engine.executor import Executor
from sdm_ray.attack.engine.plan import Plan
from sdm_ray.attack.engine.sizes import LARGEST_STACK
from sdm_ray.attack.engine.stack import HEAD, Trained
from sdm_ray.attack.families import FAMILIES, Attacker
from sdm_ray.attack.findings.regret import regret
from sdm_ray.attack.protocol import AttackReport, attack_model
from sdm_ray.attack.report import AttackRecord
from sdm_ray.attack.space import Point, SobolSampler, Space
from sdm_ray.config import AttackSettings
from sdm_ray.config.attack import FAMILIES as ALL_FAMILIES
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.statistics import t_interval
from sdm_ray.core.types import Split, Task
from tests.fakes.attack_world import SIZES, FakeData, TinyTrunk, attack, drain, params_of, quick


def stable(report: AttackReport) -> list[AttackRecord]:
    """Records without wall-clock times."""
    return [dataclasses.replace(record, seconds=0.0, error="") for record in report.records]


def comparable(records: Sequence[AttackRecord]) -> list[str]:
    """As text, in which NaN equals NaN."""
    return [repr(record) for record in records]


STRONG = {"learning_rate": {"low": 1e-2, "high": 1e-1}, "num_steps_min": 40, "num_steps_max": 80}


def test_a_planted_cue_is_found() -> None:
    report = attack(FakeData(), quick(**STRONG, num_examples=(40, 100)))
    assert [cell.num_examples for cell in report.cells] == [40, 100]
    assert all(cell.valid and cell.accuracy > 0.9 for cell in report.cells)
    assert report.worst_accuracy == pytest.approx(sum(cell.accuracy for cell in report.cells) / 2)
    assert all(0 <= cell.accuracy_low <= cell.accuracy <= cell.accuracy_high <= 1 for cell in report.cells)
    assert all(cell.loss < 0.4 and cell.mutual_information > 0.3 for cell in report.cells)


def test_without_a_cue_the_attack_is_at_chance() -> None:
    report = attack(FakeData(informative=False), quick(num_rerun_seeds=6))
    for cell in report.cells:
        assert abs(cell.accuracy - 0.5) < 0.06
        assert cell.loss == pytest.approx(math.log(2), abs=0.05)
        assert cell.mutual_information < 0.02


def test_several_classes() -> None:
    report = attack(FakeData(num_classes=5), quick(**STRONG, num_examples=(60,)))
    assert report.cells[0].accuracy > 0.8
    assert report.num_classes == 5


def test_the_attack_is_reproducible_and_leaves_the_model_alone() -> None:
    trunk, data = TinyTrunk(), FakeData()
    before = {name: value.clone() for name, value in trunk.named_parameters()}
    state = torch.random.get_rng_state()
    first = drain(attack_model(trunk, params_of(trunk), data, quick()))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in trunk.named_parameters())
    assert comparable(stable(first)) == comparable(stable(attack(data)))


def test_the_attack_is_on_the_given_weights_not_on_the_trunks() -> None:
    trunk, other = TinyTrunk(seed=0), TinyTrunk(seed=1)
    swapped = drain(attack_model(trunk, params_of(other), FakeData(), quick()))
    assert comparable(stable(swapped)) == comparable(stable(attack(FakeData(), seed=1)))


def test_selection_never_reads_test() -> None:
    """With all test labels wrong the search and the winners are the same to the last digit, and the scores are not."""
    honest, corrupted = FakeData(), FakeData()
    test = corrupted.split_indices[Split.TEST]
    corrupted.labels[Task.HARMFUL][test] = 1 - corrupted.labels[Task.HARMFUL][test]
    left, right = attack(honest), attack(corrupted)
    searches = [[r for r in stable(report) if r.phase == "search"] for report in (left, right)]
    assert comparable(searches[0]) == comparable(searches[1])
    assert all(math.isnan(record.test_accuracy) for record in searches[0])
    assert [cell.winner for cell in left.cells] == [cell.winner for cell in right.cells]
    assert all(a.accuracy == pytest.approx(1 - b.accuracy) for a, b in zip(left.cells, right.cells, strict=True))


def test_training_reads_attacker_train_alone() -> None:
    """Validation and test are read while the executor is made, and nothing but attacker-train after that."""
    data, trunk = FakeData(), TinyTrunk()
    generator = attack_model(trunk, params_of(trunk), data, quick())
    setup: list[int] = []
    original = execute_module.Executor.run

    def run(self: Executor, *args: Any, **kwargs: Any) -> Any:
        setup.append(len(data.asked))
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute_module.Executor, "run", run)
        drain(generator)
    during = torch.cat([indices.flatten() for indices in data.asked[setup[0] :]])
    assert len(during) > 0
    assert set(during.tolist()) <= set(data.split_indices[Split.ATTACKER_TRAIN].tolist())


@pytest.mark.parametrize("balanced", [True, False])
def test_subsets_have_n_examples_and_follow_the_class_setting(balanced: bool) -> None:
    data, trunk = FakeData(), TinyTrunk()
    labels = data.labels[Task.HARMFUL]
    labels[data.split_indices[Split.ATTACKER_TRAIN][:150]] = 0
    settings = quick(class_balanced=balanced)
    executor = Executor(trunk, params_of(trunk), data, settings, Task.HARMFUL)  # type: ignore[arg-type]
    attacker = Attacker(family="fine_tune", num_examples=20, learning_rate=1e-3, num_steps=5, batch_size=8)
    subset = executor.subset(attacker)
    assert len(set(subset.tolist())) == 20
    assert (int(labels[subset].sum()) == 10) == balanced


def test_models_are_paired() -> None:
    """Two models meet the same search points, subsets, orders and heads at every seed index."""
    plans: list[list[Plan]] = []
    with pytest.MonkeyPatch.context() as patch:
        original = Executor.plan

        def keep(self: Executor, stack: Sequence[Attacker], seconds: float | None = None) -> Plan:
            plan = original(self, stack, seconds)
            plans[-1].append(plan)
            return plan

        patch.setattr(Executor, "plan", keep)
        for seed in (0, 1):
            plans.append([])
            attack(FakeData(), seed=seed)
    first, second = (
        {a: (s, o, h) for p in run for a, s, o, h in zip(p.attackers, p.subsets, p.orders, p.heads, strict=True)}
        for run in plans
    )
    searched = [attacker for attacker in first if attacker.phase == "search"]
    assert searched == [attacker for attacker in second if attacker.phase == "search"]
    for attacker in searched:
        assert all(torch.equal(a, b) for a, b in zip(first[attacker], second[attacker], strict=True))
    for index in range(3):
        for n in (20, 40):
            mine, theirs = (
                next(v for a, v in run.items() if (a.phase, a.num_examples, a.seed_index) == ("rerun", n, index))
                for run in (first, second)
            )
            assert torch.equal(mine[0], theirs[0])
            assert torch.equal(mine[2], theirs[2])


def test_reruns_are_fresh() -> None:
    trunk = TinyTrunk()
    executor = Executor(trunk, params_of(trunk), FakeData(), quick(), Task.HARMFUL)
    search = Attacker(family="fine_tune", num_examples=20, learning_rate=1e-3, num_steps=5, batch_size=8)
    rerun = dataclasses.replace(search, phase="rerun")
    plan = executor.plan([search, rerun])
    assert set(plan.subsets[0].tolist()) != set(plan.subsets[1].tolist())
    assert not torch.equal(plan.orders[0], plan.orders[1])
    assert not torch.equal(plan.heads[0], plan.heads[1])


def test_counts_follow_the_settings() -> None:
    settings = quick(num_examples=(20,), num_search_trials=5, num_search_seeds=2, num_rerun_seeds=4)
    report = attack(FakeData(), settings)
    search = [record for record in report.records if record.phase == "search"]
    assert sorted((r.trial, r.seed_index) for r in search) == [(t, s) for t in range(5) for s in range(2)]
    assert sorted(r.seed_index for r in report.records if r.phase == "rerun") == [0, 1, 2, 3]
    assert all(r.examples_seen == r.num_steps * r.batch_size for r in report.records)
    assert len(report.cells[0].seed_accuracies) == 4
    assert report.metrics()[Metric.COST_NUM_FINE_TUNES] == 14


def test_the_winner_is_the_best_on_validation() -> None:
    report = attack(FakeData(), quick(num_examples=(20,), num_search_seeds=2, num_search_trials=6))
    means = {}
    for trial in range(6):
        mine = [r for r in report.records if r.phase == "search" and r.trial == trial]
        means[trial] = (sum(r.val_accuracy for r in mine) / 2, -sum(r.val_loss for r in mine) / 2)
    winner = report.cells[0].winner
    assert winner is not None
    assert winner.trial == max(means, key=lambda trial: means[trial])
    assert winner.val_accuracy == pytest.approx(means[winner.trial][0])
    assert len({value[0] for value in means.values()}) > 1
    assert report.cells[0].mean_search_accuracy == pytest.approx(sum(a for a, _ in means.values()) / 6)
    assert {(r.learning_rate, r.num_steps) for r in report.records if r.phase == "rerun"} == {
        (winner.learning_rate, winner.num_steps)
    }
    curve = {r.trial: r.best_so_far for r in report.records if r.phase == "search"}
    assert [curve[t] for t in range(6)] == [max(means[i][0] for i in range(t + 1)) for t in range(6)]


def test_validation_sample_is_capped() -> None:
    assert attack(FakeData(), quick(max_validation_examples=50)).num_validation == 50
    full = attack(FakeData(), quick(max_validation_examples=None))
    assert (full.num_validation, full.num_test) == (120, 160)


def test_the_seed_changes_everything() -> None:
    first, second = (attack(FakeData(), quick(seed=seed)) for seed in (0, 1))
    assert {r.learning_rate for r in first.records}.isdisjoint(r.learning_rate for r in second.records)


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5)])
def test_frozen_attackers(probability: float, share: float) -> None:
    report = attack(FakeData(), quick(frozen_probability=probability))
    search = [record for record in report.records if record.phase == "search"]
    assert sum(record.frozen for record in search) == share * len(search)


def test_a_model_that_flips_its_labels_is_not_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    straight = attack(FakeData(), quick(frozen_probability=0.0))
    original = Trained.logits
    monkeypatch.setattr(Trained, "logits", lambda self, examples: -original(self, examples))
    flipped = attack(FakeData(), quick(frozen_probability=0.0))
    assert flipped.worst_accuracy == pytest.approx(straight.worst_accuracy)
    assert all(record.permutation == "1 0" for record in flipped.records if record.phase == "rerun")


def test_a_sampler_may_learn_from_scores() -> None:
    """The search asks until it has its trials, and tells every score before it asks again."""

    class Adaptive:
        made: list[Adaptive] = []

        def __init__(self, space: Space, seed: int) -> None:
            self.inner, self.told = SobolSampler(space, seed), []  # type: ignore[var-annotated]
            self.asked = 0
            Adaptive.made.append(self)

        def ask(self, num: int) -> list[Point]:
            assert len(self.told) == self.asked
            points = self.inner.ask(min(num, 3))
            self.asked += len(points)
            return points

        def tell(self, points: Sequence[Point], scores: Sequence[float]) -> None:
            self.told += scores

    report = attack(FakeData(), sampler=Adaptive)
    assert [sampler.asked for sampler in Adaptive.made] == [8, 8]
    assert all(len(sampler.told) == 8 and not any(map(math.isnan, sampler.told)) for sampler in Adaptive.made)
    same = attack(FakeData())
    assert [cell.winner for cell in report.cells] == [cell.winner for cell in same.cells]


def test_small_stacks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attack(FakeData())
    monkeypatch.setitem(LARGEST_STACK, "cpu", 1)
    single = attack(FakeData())
    for cell, other in zip(whole.cells, single.cells, strict=True):
        assert cell.winner == other.winner
        assert cell.seed_losses == pytest.approx(other.seed_losses, abs=1e-4)


def test_progress_counts_fine_tunes() -> None:
    trunk = TinyTrunk()
    ticks = list(attack_model(trunk, params_of(trunk), FakeData(), quick()))
    assert ticks[-1].done == ticks[-1].total == 2 * (8 + 3)
    assert [tick.done for tick in ticks] == sorted({tick.done for tick in ticks})
    assert {tick.stage for tick in ticks} == {"attack"}


def test_errors_come_before_any_work() -> None:
    data = FakeData()
    with pytest.raises(UsageError, match="attacker_train"):
        attack(data, quick(num_examples=(20, 1000)))
    assert not data.asked


Predicate = Callable[[Attacker], bool]


def spoil(
    monkeypatch: pytest.MonkeyPatch, *, diverges: Predicate | None = None, crashes: Predicate | None = None
) -> None:
    """Make chosen full fine-tunes end in NaN, or their stacks raise."""
    original = execute_module.train_stack

    def train(model: Any, data: Any, task: Any, plan: Plan, val: Any) -> Any:
        if crashes is not None and any(map(crashes, plan.attackers)):
            raise RuntimeError("planted\n  crash")
        trained, curves = original(model, data, task, plan, val)
        for i, attacker in enumerate(plan.attackers):
            if diverges is not None and diverges(attacker):
                trained._stacked[HEAD][i] = math.nan
        return trained, curves

    monkeypatch.setattr(execute_module, "train_stack", train)


FULL = {"frozen_probability": 0.0, "num_examples": (20,)}


def test_a_failed_fine_tune_is_retried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, diverges=lambda a: a.phase == "rerun" and a.seed_index == 1 and a.attempt == 0)
    report = attack(FakeData(), quick(**FULL))
    cell, reruns = report.cells[0], [r for r in report.records if r.phase == "rerun"]
    assert [(r.seed_index, r.attempt, r.status) for r in reruns if r.seed_index == 1] == [
        (1, 0, "diverged"),
        (1, 1, "ok"),
    ]
    assert (cell.valid, cell.num_missing) == (True, 0)
    assert not any(map(math.isnan, cell.seed_accuracies))


@pytest.mark.parametrize(("share", "valid"), [(0.5, True), (0.2, False)])
def test_missing_reruns(monkeypatch: pytest.MonkeyPatch, share: float, valid: bool) -> None:
    """One of three re-runs fails twice: missing, not blocked; past `max_failed_share` there is no result."""
    spoil(monkeypatch, diverges=lambda a: a.phase == "rerun" and a.seed_index == 1)
    report = attack(FakeData(), quick(max_failed_share=share, **FULL))
    cell = report.cells[0]
    assert (cell.valid, cell.num_missing) == (valid, 1)
    assert math.isnan(cell.seed_accuracies[1])
    if valid:
        assert cell.accuracy == pytest.approx((cell.seed_accuracies[0] + cell.seed_accuracies[2]) / 2)
    else:
        assert math.isnan(cell.accuracy)
        assert math.isnan(report.worst_accuracy)
        assert "1 of 3 re-runs" in cell.reason


def test_one_invalid_cell_makes_the_whole_number_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, diverges=lambda a: a.phase == "rerun" and a.num_examples == 20)
    report = attack(FakeData(), quick(frozen_probability=0.0))
    assert [cell.valid for cell in report.cells] == [False, True]
    assert math.isnan(report.metrics()[Metric.HARMFUL_WORST_ACCURACY])
    assert math.isnan(report.metrics()[Metric.harmful_accuracy(20)])
    assert report.metrics()[Metric.harmful_accuracy(40)] > 0.7


def test_points_that_diverge_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    best = attack(FakeData(), quick(**FULL)).cells[0].winner
    assert best is not None
    spoil(monkeypatch, diverges=lambda a: a.phase == "search" and a.trial == best.trial)
    cell = attack(FakeData(), quick(**FULL)).cells[0]
    assert cell.valid
    assert cell.winner is not None
    assert cell.winner.trial != best.trial


def test_when_all_points_diverge_the_cell_is_invalid() -> None:
    """Really diverging: a learning rate of 1e30."""
    settings = quick(learning_rate={"low": 1e30, "high": 1e30}, **FULL)
    report = attack(FakeData(), settings)
    cell = report.cells[0]
    assert {record.status for record in report.records} == {"diverged"}
    assert len(report.records) == 2 * 8
    assert cell.winner is None
    assert not cell.valid
    assert math.isnan(report.worst_accuracy)
    assert "every search point" in cell.reason


def test_a_crash_costs_one_fine_tune_not_its_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, crashes=lambda a: a.phase == "search" and a.trial == 2)
    report = attack(FakeData(), quick(**FULL))
    crashed = [record for record in report.records if record.status == "crashed"]
    assert [(record.trial, record.attempt) for record in crashed] == [(2, 0), (2, 1)]
    assert all(record.error == "planted crash" and math.isnan(record.val_accuracy) for record in crashed)
    assert report.cells[0].valid


def test_when_everything_crashes_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, crashes=lambda a: True)
    with pytest.raises(RunError, match="planted crash"):
        attack(FakeData(), quick(**FULL))


def test_out_of_memory_shrinks_the_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, original = [], execute_module.train_stack

    def train(*args: Any) -> Any:
        sizes.append(len(args[3].attackers))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("planted")
        return original(*args)

    monkeypatch.setattr(execute_module, "train_stack", train)
    report = attack(FakeData(), quick(batch_sizes=(8,), **FULL))
    assert {record.status for record in report.records} == {"ok"}
    assert sizes[0] == 8
    assert max(sizes[sizes.index(2) :]) <= 4


def test_regret_against_itself_is_zero() -> None:
    report = attack(FakeData())
    values = regret(report, report)
    assert {values[str(m)] for m in (Metric.REGRET_LOSS, Metric.REGRET_ACCURACY)} == {0.0}
    assert values[Metric.regret(20)] == values[Metric.low(Metric.regret(20))] == 0.0


def test_regret_is_paired_by_seed() -> None:
    model, floor = attack(FakeData(), seed=0), attack(FakeData(), seed=1)
    values = regret(model, floor)
    for cell, base in zip(model.cells, floor.cells, strict=True):
        n = cell.num_examples
        assert values[Metric.regret(n)] == pytest.approx(base.loss - cell.loss)
        assert values[Metric.regret_accuracy(n)] == pytest.approx(cell.accuracy - base.accuracy)
        low, high = (end(Metric.regret(n)) for end in (Metric.low, Metric.high))
        assert values[low] <= values[Metric.regret(n)] <= values[high]
    assert values[str(Metric.REGRET_LOSS)] == pytest.approx(sum(values[Metric.regret(n)] for n in (20, 40)) / 2)


def test_regret_leaves_out_seeds_missing_on_either_side(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = quick(max_failed_share=0.5, **FULL)
    floor = attack(FakeData(), settings, seed=1)
    spoil(monkeypatch, diverges=lambda a: a.phase == "rerun" and a.seed_index == 1)
    model = attack(FakeData(), settings)
    pairs = zip(floor.cells[0].seed_losses, model.cells[0].seed_losses, strict=True)
    differences = [base - mine for base, mine in pairs if not math.isnan(mine)]
    assert len(differences) == 2
    assert regret(model, floor)[Metric.regret(20)] == pytest.approx(sum(differences) / 2)


def test_regret_of_an_invalid_cell_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    floor = attack(FakeData(), quick(frozen_probability=0.0))
    spoil(monkeypatch, diverges=lambda a: a.phase == "rerun" and a.num_examples == 20)
    values = regret(attack(FakeData(), quick(frozen_probability=0.0)), floor)
    assert math.isnan(values[Metric.regret(20)])
    assert math.isnan(values[str(Metric.REGRET_LOSS)])
    assert not math.isnan(values[Metric.regret(40)])


def test_regret_wants_the_same_attack() -> None:
    with pytest.raises(UsageError, match="different settings or data"):
        regret(attack(FakeData()), attack(FakeData(), quick(seed=3)))


def test_defaults_of_settings_are_in_use() -> None:
    """Every optimiser and family that settings name exists."""
    settings = AttackSettings()
    assert set(batch_module.OPTIMIZERS) == set(settings.optimizers)
    assert set(FAMILIES) == set(ALL_FAMILIES)
    assert settings.num_examples == (20, 50, 100, 200)


def test_presets_give_defaults_and_leave_what_is_given() -> None:
    paper = AttackSettings.model_validate({"preset": "paper"})
    fits = paper.num_search_trials * paper.num_search_seeds + paper.num_rerun_seeds
    assert fits * len(paper.num_examples) * paper.num_searches == 1560, "as many fine-tunes as the paper has a model"
    assert (paper.learning_rate.low, paper.num_steps_max, paper.batch_sizes) == (1e-5, 1000, (8, 16, 24))
    worst = AttackSettings.model_validate({"preset": "worst-case", "num_search_trials": 7, "families": ["knn"]})
    assert (worst.num_search_trials, worst.families, worst.num_rerun_seeds) == (7, ("knn",), 15)
    assert AttackSettings.model_validate(worst.model_dump(mode="json")) == worst


def test_all_is_all_of_attacker_train() -> None:
    report = attack(FakeData(), quick(num_examples=(20, "all")))
    assert [cell.num_examples for cell in report.cells] == [20, SIZES[Split.ATTACKER_TRAIN]]


def test_the_search_may_be_repeated_and_intervals_are_then_over_repetitions() -> None:
    report = attack(FakeData(), quick(num_examples=(20,), num_searches=3))
    (cell,) = report.cells
    assert len(cell.seed_accuracies) == 3 * 3
    assert len(report.records) == 3 * (8 + 3)
    means = [sum(cell.seed_accuracies[i : i + 3]) / 3 for i in (0, 3, 6)]
    assert (cell.accuracy_low + cell.accuracy_high) / 2 == pytest.approx(sum(means) / 3)
    _, high = t_interval(means)
    assert cell.accuracy_high == pytest.approx(min(high, 1.0))
    by_repeat = [{r.learning_rate for r in report.records if r.repeat == repeat} for repeat in range(3)]
    assert by_repeat[0].isdisjoint(by_repeat[1])
    first = attack(FakeData(), quick(num_examples=(20,)))
    assert {r.learning_rate for r in first.records} == by_repeat[0], "the first is the search without repetition"


def test_halving_gives_later_seeds_to_the_better_half() -> None:
    report = attack(FakeData(), quick(num_examples=(20,), num_search_seeds=3, halving=True))
    search = [r for r in report.records if r.phase == "search"]
    counts = [sum(r.seed_index == seed for r in search) for seed in range(3)]
    assert counts == [8, 4, 2]
    first = sorted((r for r in search if r.seed_index == 0), key=lambda r: (r.val_accuracy, -r.val_loss))
    assert {r.trial for r in search if r.seed_index == 1} == {r.trial for r in first[4:]}
    winner = report.cells[0].winner
    assert winner is not None
    assert winner.trial in {r.trial for r in search if r.seed_index == 2}, "nobody wins on fewer seeds"


def test_the_worst_family_is_chosen_on_validation_and_the_others_are_kept() -> None:
    report = attack(FakeData(), quick(families=("fine_tune", "linear_probe", "knn")))
    for n in (20, 40):
        cells = [report.cell(family, n) for family in ("fine_tune", "linear_probe", "knn")]
        assert all(cell is not None and cell.valid for cell in cells)
        best = max((cell for cell in cells if cell is not None), key=lambda cell: cell.val_accuracy)
        assert report.cells[0 if n == 20 else 1].accuracy == best.accuracy
    with pytest.raises(UsageError, match="'nothing' is not known; known: fine_tune"):
        attack(FakeData(), quick(families=("nothing",)))


def test_what_a_model_does_not_allow_is_said() -> None:
    report = attack(FakeData(), quick(families=("fine_tune", "interpolate", "lora")))
    assert [line.split(" ")[0] for line in report.not_tried] == ["interpolate", "lora"]
    with pytest.raises(UsageError, match="none can be tried on this model: interpolate"):
        attack(FakeData(), quick(families=("interpolate",)))


def test_reruns_keep_their_course() -> None:
    report = attack(FakeData(), quick(num_curve_points=4, num_examples=(20,), frozen_probability=0.0))
    rerun = next(r for r in report.records if r.phase == "rerun")
    assert rerun.curve_steps[-1] == rerun.num_steps
    assert len(rerun.val_accuracy_curve) == len(rerun.curve_steps) == len(rerun.train_loss_curve) == 4
    assert rerun.val_accuracy_curve[-1] == rerun.val_accuracy
    assert rerun.train_loss_curve[-1] < rerun.train_loss_curve[0]
    search = next(r for r in report.records if r.phase == "search")
    assert search.val_accuracy_curve == ()
    without = attack(FakeData(), quick(num_curve_points=0, num_examples=(20,), frozen_probability=0.0))
    assert all(r.val_accuracy_curve == () for r in without.records)


def test_an_attacker_that_timed_out_is_not_tried_again() -> None:
    """It would take as long once more; what crashed or diverged has a second attempt."""
    report = attack(FakeData(), quick(families=("full", "linear_probe"), timeout_seconds=1e-9))
    slow = [record for record in report.records if record.family == "full"]
    assert {(record.error, record.attempt) for record in slow} == {("timed out", 0)}
    assert not any(cell.valid for cell in report.family_cells if cell.family == "full")
    assert all(cell.valid for cell in report.family_cells if cell.family == "linear_probe")
