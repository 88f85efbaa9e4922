"""Blocking terms: closed forms, directions, edges; and the registry that a user's own module joins."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sdm_ray.config import BlockingSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.meta.objectives import (
    TERMS,
    Trajectory,
    accuracies,
    adapted_grad_norm,
    blocking_term,
    desired_adapted,
    desired_adapted_harmful,
    example_losses,
    gradient_coupling,
    harmful_adapted,
    harmful_adapted_calibrated,
    harmful_adapted_clamped,
    harmful_adapted_entropy,
    harmful_adapted_inverse,
    harmful_adapted_uniform,
    harmful_base,
    load_terms,
    mutual_information,
    predictor_loss,
    retain_distill,
    retain_mlm,
    retain_representation,
    step_losses,
    task_loss,
    weighted_sum,
)
from tests.fakes.files import NoHostSync

CLASSES_ONLY = [
    harmful_adapted_clamped,
    harmful_adapted_entropy,
    harmful_adapted_inverse,
    harmful_adapted_uniform,
]


def trajectory_of(logits: Tensor, labels: Tensor, features: Tensor | None = None) -> Trajectory:
    """Steps 0, 1, ... of one adversary."""
    features = logits.new_zeros(*logits.shape[:2], 3) if features is None else features
    return Trajectory(logits, features, labels, tuple(range(len(logits))))


def margins(*values: float) -> Trajectory:
    """One moment for each value: every example of four has that logit on its right class and 0 on the other."""
    labels = torch.tensor([0, 1, 0, 1])
    onehot = F.one_hot(labels, 2).double()
    return trajectory_of(torch.stack([value * onehot for value in values]), labels)


def targets(*scores: list[float]) -> Trajectory:
    """A regression on the targets 1, -2, 2: one moment for each list of three scores."""
    return trajectory_of(torch.tensor(scores).double()[..., None], torch.tensor([1.0, -2.0, 2.0]).double())


def loss(margin: float) -> float:
    return math.log1p(math.exp(-margin))


def random_case(name: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A tensor that a term is a function of, and the term as that function."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    term, labels = TERMS[name], torch.tensor([0, 2, 1, 1, 0])
    if term.reads == "predicted":
        scores, predictors = draw(4, 5, 3), draw(4, 3, 3)
        return draw(4, 5, 3), lambda x: term.function(trajectory_of(scores, labels, x), predictors)
    if term.reads == "inner_gradient":
        return draw(2, 7), term.function
    if term.reads == "gradients":
        other = draw(7)
        return draw(7), lambda x: term.function(x, other)
    if term.reads == "masked_lm":
        return draw(5, 3), lambda x: term.function(x, labels)
    if term.reads in ("hidden_states", "harmful_hidden"):
        other, mask = draw(3, 2, 4, 6), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        return draw(3, 2, 4, 6), lambda x: term.function(x, other, mask)
    if term.reads == "weights":
        other = draw(7)
        return draw(7), lambda x: term.function(x, other)
    if term.reads == "harmful_step":
        return draw(2), lambda x: term.function(*x)
    if term.reads == "desired_after_step":
        return draw(1, 5, 3), lambda x: term.function(trajectory_of(x, labels), 1)
    if name.endswith("conditioning"):
        scores = draw(4, 5, 3)
        return draw(4, 5, 6), lambda x: term.function(trajectory_of(scores, labels, x))
    return draw(4, 5, 3), lambda x: term.function(trajectory_of(x, labels))


def test_every_weight_but_the_desired_one_names_a_term() -> None:
    assert set(TERMS) == set(BlockingSettings.model_fields) - {"desired_base", "custom"}


@pytest.mark.parametrize("name", TERMS)
def test_a_step_down_the_weighted_sum_moves_a_term_the_way_it_says(name: str) -> None:
    leaf, function = random_case(name)
    value = function(leaf.requires_grad_())
    assert value.shape == ()
    (gradient,) = torch.autograd.grad(weighted_sum({name: value}, {name: 2.0}), leaf)
    assert gradient.abs().max() > 0
    moved = function((leaf - 1e-3 * gradient).detach())
    assert (moved > value) == TERMS[name].maximised


@pytest.mark.parametrize("name", TERMS)
def test_terms_and_their_derivatives_never_wait_for_the_device(name: str) -> None:
    leaf, function = random_case(name)
    with NoHostSync():
        torch.autograd.grad(function(leaf.requires_grad_()), leaf)


def test_base_is_step_0_alone_of_every_adversary() -> None:
    assert harmful_base(margins(1.0, 5.0)).item() == pytest.approx(loss(1.0))
    mixed = margins(1.0, 5.0, 3.0, 7.0)._replace(steps=(0, 4, 0, 4))
    assert harmful_base(mixed).item() == pytest.approx((loss(1.0) + loss(3.0)) / 2)


@pytest.mark.parametrize("term", [harmful_adapted, desired_adapted, desired_adapted_harmful])
def test_adapted_losses_are_means_over_all_moments(term: Callable[[Trajectory], Tensor]) -> None:
    trajectory = margins(0.0, 1.0, 4.0)
    assert term(trajectory).item() == pytest.approx((math.log(2) + loss(1.0) + loss(4.0)) / 3)
    torch.testing.assert_close(step_losses(trajectory), torch.tensor([loss(m) for m in (0.0, 1.0, 4.0)]).double())
    assert term(targets([0, 0, 0], [1, -2, 5])).item() == pytest.approx((9 / 3 + 9 / 3) / 2)


def test_clamped_counts_wrong_answers_no_more_than_guesses() -> None:
    trajectory = margins(-3.0, 2.0)
    assert harmful_adapted_clamped(trajectory).item() == pytest.approx((math.log(2) + loss(2.0)) / 2)
    logits = trajectory.logits.requires_grad_()
    (gradient,) = torch.autograd.grad(harmful_adapted_clamped(trajectory._replace(logits=logits)), logits)
    assert gradient[0].abs().max() == 0
    assert gradient[1].abs().max() > 0


def test_calibrated_takes_the_best_map() -> None:
    # A margin m on the right class can be doubled (W = +-1 on the diagonal and off it), whatever its sign.
    for margin in (1.5, -1.5):
        assert harmful_adapted_calibrated(margins(margin)).item() == pytest.approx(loss(2 * 1.5), abs=1e-6)


def test_calibrated_regression_takes_the_best_factor() -> None:
    """The best factor of twice the targets is 1/2, of minus the targets -1; half the targets may not grow, and
    scores of 0 tell nothing."""
    for scores, expected in (([2, -4, 4], 0.0), ([-1, 2, -2], 0.0), ([0.5, -1, 1], 9 / 4 / 3), ([0, 0, 0], 9 / 3)):
        assert harmful_adapted_calibrated(targets(scores)).item() == pytest.approx(expected)
    trajectory = targets([1, 1, 2])  # factor (1 - 2 + 4) / 6
    logits = trajectory.logits.requires_grad_()
    (gradient,) = torch.autograd.grad(harmful_adapted_calibrated(trajectory._replace(logits=logits)), logits)
    residual = 0.5 * logits[0, :, 0] - trajectory.labels
    torch.testing.assert_close(gradient[0, :, 0], 0.5 * 2 * residual.detach() / 3)


def test_entropy_is_that_of_the_prediction_whatever_the_label() -> None:
    share = 1 / (1 + math.exp(-2.0))
    expected = -share * math.log(share) - (1 - share) * math.log(1 - share)
    for trajectory in (margins(2.0), margins(-2.0)):
        assert harmful_adapted_entropy(trajectory).item() == pytest.approx(expected)
    assert harmful_adapted_entropy(margins(0.0, 0.0)).item() == pytest.approx(math.log(2))


def test_inverse_cross_entropy_is_that_of_all_other_classes_together() -> None:
    logits = torch.tensor([[[1.0, 2.0, 3.0], [0.0, -1.0, 4.0]]]).double()
    labels = torch.tensor([1, 2])
    shares = logits.softmax(-1)[0, [0, 1], labels]
    expected = -(1 - shares).log().mean()
    torch.testing.assert_close(harmful_adapted_inverse(trajectory_of(logits, labels)), expected)


def test_divergence_from_uniform_of_a_known_prediction() -> None:
    prediction = torch.tensor([0.2, 0.3, 0.5]).double()
    trajectory = trajectory_of(prediction.log().expand(2, 4, 3), torch.tensor([0, 1, 2, 0]))
    expected = sum(math.log(1 / 3 / share) / 3 for share in (0.2, 0.3, 0.5))
    assert harmful_adapted_uniform(trajectory).item() == pytest.approx(expected)
    assert harmful_adapted_uniform(margins(0.0)).item() == pytest.approx(0.0)


@pytest.mark.parametrize("term", [*CLASSES_ONLY, harmful_adapted, harmful_adapted_calibrated])
@pytest.mark.parametrize("margin", [1e4, -1e4])
def test_saturated_predictions_give_finite_values_and_derivatives(
    term: Callable[[Trajectory], Tensor], margin: float
) -> None:
    trajectory = margins(margin)
    logits = trajectory.logits.float().requires_grad_()
    value = term(trajectory._replace(logits=logits))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient.abs().max() <= 1


@pytest.mark.parametrize(
    "term", [*CLASSES_ONLY, lambda trajectory: mutual_information(trajectory, torch.ones(1, 1, 3))]
)
def test_what_is_defined_for_classes_alone_refuses_a_regression(term: Callable[[Trajectory], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"blocking\.\w+ is defined for class labels, got torch.float64 targets; set"):
        term(targets([0, 0, 0]))


def test_gradient_norm_is_the_mean_over_adversaries_and_flat_at_zero() -> None:
    gradient = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    value = adapted_grad_norm(gradient)
    assert value.item() == pytest.approx(2.5)
    (derivative,) = torch.autograd.grad(value, gradient)
    torch.testing.assert_close(derivative, torch.tensor([[0.3, 0.4, 0.0], [0.0, 0.0, 0.0]]))


def test_coupling_is_the_cosine_whatever_the_lengths() -> None:
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([1.0, math.sqrt(3.0)])
    assert gradient_coupling(first, second).item() == pytest.approx(0.5)
    assert gradient_coupling(1e-15 * first, -1e15 * second).item() == pytest.approx(-0.5)
    nothing = torch.zeros(2, requires_grad=True)
    value = gradient_coupling(nothing, second)
    (derivative,) = torch.autograd.grad(value, nothing)
    assert (value.item(), derivative.tolist()) == (0.0, [0.0, 0.0])


def test_information_of_features_that_tell_the_label_or_nothing() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    telling = F.one_hot(labels, 2).double().expand(2, 4, 2)
    trajectory = trajectory_of(telling, labels, telling)
    sharp = 50 * torch.eye(2).double().expand(2, 2, 2)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert mutual_information(trajectory, sharp).item() == pytest.approx(entropy)
    # A predictor that knows nothing gives log 2 where the frequencies would have given the entropy.
    assert mutual_information(trajectory, 0 * sharp).item() == pytest.approx(entropy - math.log(2))
    assert predictor_loss(trajectory, 0 * sharp).item() == pytest.approx(math.log(2))


def test_each_moment_has_a_predictor_of_its_own_and_they_descend_what_the_trunk_ascends() -> None:
    labels = torch.tensor([0, 1])
    features = torch.eye(2).double().expand(2, 2, 2).clone().requires_grad_()
    predictors = torch.stack([torch.eye(2), -2 * torch.eye(2)]).double().requires_grad_()
    trajectory = trajectory_of(features, labels, features)
    value = predictor_loss(trajectory, predictors)
    assert value.item() == pytest.approx((loss(1.0) + loss(-2.0)) / 2)
    of_loss = torch.autograd.grad(value, (features, predictors))
    of_term = torch.autograd.grad(mutual_information(trajectory, predictors), (features, predictors))
    for one, other in zip(of_loss, of_term, strict=True):
        torch.testing.assert_close(one, -other)


def test_masked_lm_is_the_mean_over_predicted_tokens() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    assert retain_mlm(logits, torch.tensor([0, 0])).item() == pytest.approx((loss(1.0) + loss(-3.0)) / 2)
    empty = torch.zeros(0, 2, requires_grad=True)
    assert retain_mlm(empty, torch.zeros(0, dtype=torch.int64)).item() == 0


def test_distances_leave_padding_out_and_divide_by_tokens_and_width() -> None:
    reference = torch.zeros(2, 2, 3, 4)
    hidden = torch.zeros(2, 2, 3, 4)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    hidden[0, 0, 0] = 3.0
    hidden[1, 1, 0] = 1.0
    hidden[:, 1, 1:] = 100.0
    assert retain_distill(hidden, reference, mask).item() == pytest.approx(1 / 4)
    assert retain_representation(hidden, reference, mask).item() == pytest.approx((9 / 4 + 1 / 4) / 2)
    assert retain_representation(reference, reference, mask).item() == 0


def test_losses_share_labels_over_leading_dimensions() -> None:
    logits = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 1])
    losses = example_losses(logits, labels)
    assert losses.shape == (3, 2, 5)
    torch.testing.assert_close(losses[1, 0], F.cross_entropy(logits[1, 0], labels, reduction="none"))
    torch.testing.assert_close(task_loss(logits, labels), losses.mean(-1))
    torch.testing.assert_close(
        example_losses(logits[..., :1], labels / 2), (logits[..., 0] - labels / 2).square(), rtol=0, atol=0
    )


def test_half_precision_scores_are_read_in_single_precision() -> None:
    trajectory = margins(1.0, 2.0)
    halved = trajectory._replace(logits=trajectory.logits.bfloat16())
    for term in (*CLASSES_ONLY, harmful_base, harmful_adapted, harmful_adapted_calibrated):
        value = term(halved)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(term(trajectory).item(), abs=1e-5)


def test_accuracy_by_step() -> None:
    assert accuracies(margins(1.0, -1.0)).tolist() == [1.0, 0.0]
    assert accuracies(targets([1, -2, 2], [0, 0, 0])).tolist() == [0.0, 0.0]


def test_the_sum_subtracts_what_is_maximised() -> None:
    values = {"harmful_base": 2.0, "harmful_adapted": 3.0, "harmful_adapted_uniform": 5.0}
    weights = {"harmful_base": 2.0, "harmful_adapted": 0.5, "harmful_adapted_uniform": 3.0}
    total = weighted_sum({name: torch.tensor(value) for name, value in values.items()}, weights)
    assert total.item() == -2 * 2 - 0.5 * 3 + 3 * 5


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a module onto Python's path and gives its name; the registry is put back afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = dict(TERMS)

    def write(body: str) -> str:
        name = f"own_terms_{len(list(tmp_path.glob('*.py')))}"
        source = "from sdm_ray.meta.objectives import Trajectory, blocking_term\n" + body
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    yield write
    TERMS.clear()
    TERMS.update(before)


PEAK = """
@blocking_term("peak", reads="harmful_adapted", maximised=False)
def peak(trajectory: Trajectory):
    return trajectory.logits.max()
"""


def test_a_term_of_ones_own_is_read_and_weighted_like_any_other(own_module: Callable[[str], str]) -> None:
    name = own_module(PEAK)
    for _ in range(2):
        load_terms((name,), ["peak", "harmful_base"])
    value = TERMS["peak"].function(margins(3.0))
    assert weighted_sum({"peak": value}, {"peak": 2.0}).item() == 6.0


def test_a_cell_that_runs_twice_replaces_its_term_and_nobody_elses(own_module: Callable[[str], str]) -> None:
    name = own_module(PEAK)
    load_terms((name,), ["peak"])
    del sys.modules[name]
    load_terms((name,), ["peak"])
    other = own_module(PEAK.replace("def peak", "def summit"))
    with pytest.raises(UsageError, match="'peak' is already registered; choose another name"):
        load_terms((other,), [])
    with pytest.raises(ValueError, match="'harmful_base' is already registered"):
        blocking_term("harmful_base", reads="harmful_base", maximised=True)(harmful_adapted)


@pytest.mark.parametrize("reads", ["hidden_states", "predicted", "nonesuch"])
def test_a_term_of_ones_own_reads_a_trajectory(reads: str) -> None:
    with pytest.raises(ValueError, match=f"'mine' cannot read '{reads}'; choose one of harmful_base, harmful_adapted"):
        blocking_term("mine", reads=reads, maximised=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "message"),
    [("import nothing_of_the_kind", "ModuleNotFoundError: .*nothing_of_the_kind"), ("1 / 0", "division by zero")],
)
def test_a_module_that_cannot_be_imported_is_named(body: str, message: str, own_module: Callable[[str], str]) -> None:
    name = own_module(body)
    with pytest.raises(UsageError, match=rf"train\.term_modules: '{name}' cannot be imported \(.*{message}"):
        load_terms((name,), [])
    with pytest.raises(UsageError, match="'no_such_module' cannot be imported"):
        load_terms(("no_such_module",), [])


def test_an_unknown_term_is_told_with_its_neighbour() -> None:
    with pytest.raises(UsageError, match=r"no term is called 'harmful_adaptet', only .*did you mean 'harmful_adapted'"):
        load_terms((), ["harmful_base", "harmful_adaptet"])
