"""Terms of the un-adapted model: their values and gradients in both modes, what training makes of them, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdm_ray.config import BlockingSettings, SweepSettings, load_settings, override
from sdm_ray.core.errors import UsageError
from sdm_ray.core.seeds import Generators
from sdm_ray.core.types import Split, Task
from sdm_ray.meta.inner.flat_model import FlatModel, TrunkLike
from sdm_ray.meta.objectives import TERMS, representation_noise
from sdm_ray.meta.outer.plan import Plan
from sdm_ray.meta.outer.step import OuterStep
from sdm_ray.meta.outer.unadapted import Point, Unadapted
from sdm_ray.meta.trainer import GENERATORS
from tests import ROOT
from tests.fakes.meta import FakeData, MlpTrunk, interrupted_and_straight, train, train_settings

TERM_NAMES = ["weight_distance", "harmful_midpoint", "harmful_reduction", "collapse", "desired_well_conditioning"]
STEPPED = ["harmful_reduction", "collapse"]


class LayeredTrunk(MlpTrunk):
    """With two hidden states: the token embeddings, and these after the layer."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *, hidden_states: bool = False) -> Any:
        features = super().forward(input_ids, attention_mask)
        tokens = nn.functional.embedding(input_ids, self.embedding)
        return (features, torch.stack([tokens, torch.tanh(tokens @ self.weight)])) if hidden_states else features


class Regression(FakeData):
    """The desired task is a regression."""

    def num_classes(self, task: Task) -> int:
        return 1 if task is Task.DESIRED else 2

    def labels_host(self, task: Task) -> Tensor:
        labels = super().labels_host(task)
        return labels.double() if task is Task.DESIRED else labels


def unadapted(
    *terms: str, mode: str = "auto", trunk: TrunkLike | None = None, data: Any = None, weight: float = 2.0, **own: Any
) -> Unadapted:
    blocking = dict.fromkeys(terms, weight)
    settings = train_settings(blocking=blocking, gradient_mode=mode, terms=own)
    trunk = trunk or MlpTrunk()
    generator = torch.Generator().manual_seed(0)
    return Unadapted(
        blocking, settings, model=FlatModel(trunk), trunk=trunk, data=data or FakeData(), generator=generator
    )


def point_of(trunk: nn.Module) -> Point:
    """Weights off the original ones, and random heads."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    start = FlatModel(trunk).initial()  # type: ignore[arg-type]
    return Point(start + 0.3 * draw(len(start)), draw(3, 6), draw(2, 6))


def batches() -> tuple[Any, Any]:
    data = FakeData()
    rows = data.indices(Split.META_TRAIN)
    return data.batch(rows[:9], Task.HARMFUL), data.batch(rows[9:17], Task.DESIRED)


def logits(trunk: nn.Module, flat: Tensor, head: Tensor, batch: Any) -> Tensor:
    return FlatModel(trunk).logits(flat, head, batch)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TERM_NAMES)
def test_the_gradient_is_that_of_the_weighted_value(name: str) -> None:
    """Central differences along the gradient and a random direction."""
    trunk = MlpTrunk()
    point, (harmful, desired) = point_of(trunk), batches()

    def at(flat: Tensor) -> tuple[Tensor, float]:
        gradient, values = unadapted(name, trunk=trunk).gradient(point._replace(trunk=flat), harmful, desired)
        return gradient, values[name].item()

    gradient, _ = at(point.trunk)
    random = torch.randn(point.trunk.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sign = -2.0 if TERMS[name].maximised else 2.0
    for direction in (gradient / gradient.norm(), random / random.norm()):
        slope = sign * (at(point.trunk + 1e-5 * direction)[1] - at(point.trunk - 1e-5 * direction)[1]) / 2e-5
        assert slope == pytest.approx((gradient @ direction).item(), rel=1e-5, abs=1e-8)


def by_hand(name: str, flat: Tensor, point: Point, step: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A stepped term and its step; with a given step, that is a constant."""
    trunk, (harmful, desired) = MlpTrunk(), batches()
    before = F.cross_entropy(logits(trunk, flat, point.harmful_head, harmful), harmful.labels)
    if step is None:
        (step,) = torch.autograd.grad(before, flat, retain_graph=True)
        step = 0.7 * (step / step.norm() if name == "harmful_reduction" else step)
    if name == "harmful_reduction":
        return before - F.cross_entropy(logits(trunk, flat - step, point.harmful_head, harmful), harmful.labels), step
    scores = logits(trunk, flat - step, point.desired_head, desired)
    return F.cross_entropy(scores, torch.full_like(desired.labels, 1)), step


@pytest.mark.parametrize("name", STEPPED)
def test_first_order_takes_the_step_for_a_constant(name: str) -> None:
    """As the released code of Booster does; the value is the same in every mode."""
    own = {"harmful_reduction_step": 0.7, "collapse_step": 0.7, "collapse_class": 1}
    point, (harmful, desired) = point_of(MlpTrunk()), batches()
    flat = point.trunk.clone().requires_grad_()
    value, step = by_hand(name, flat, point)
    (expected,) = torch.autograd.grad(by_hand(name, flat, point, step)[0], flat)
    first, found = unadapted(name, mode="first_order", **own).gradient(point, harmful, desired)
    exact, same = unadapted(name, mode="adjoint", **own).gradient(point, harmful, desired)
    torch.testing.assert_close(first, 2 * expected)
    assert (found[name] - value).abs() < 1e-12
    assert same[name] == found[name]
    assert not torch.allclose(first, exact, rtol=0.01)


def test_midpoint_and_distance_are_taken_from_the_original_encoder() -> None:
    trunk, (harmful, desired) = MlpTrunk(), batches()
    point, original = point_of(trunk), FlatModel(trunk).initial()
    _, values = unadapted("harmful_midpoint", "weight_distance", trunk=trunk).gradient(point, harmful, desired)
    halfway = original + 0.5 * (point.trunk - original)
    loss = F.cross_entropy(logits(trunk, halfway, point.harmful_head, harmful), harmful.labels)
    assert values["harmful_midpoint"].item() == pytest.approx(loss.item())
    assert values["weight_distance"].item() == pytest.approx((point.trunk - original).square().mean().sqrt().item())


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("representation_noise", {"representation_noise_layers": [1]}),
        ("weight_distance", {"weight_distance_bound": 0.01}),
        ("harmful_midpoint", {"harmful_midpoint_bound": 0.01}),
        ("harmful_reduction", {"harmful_reduction_step": 0.2}),
        ("collapse", {"collapse_step": 0.2}),
        ("collapse", {"collapse_class": 2}),
    ],
)
def test_each_setting_of_a_term_counts(name: str, own: dict[str, Any]) -> None:
    trunk = LayeredTrunk()
    point, (harmful, desired) = point_of(trunk), batches()
    default, changed = (
        unadapted(name, trunk=trunk, **terms).gradient(point, harmful, desired)[1][name] for terms in ({}, own)
    )
    assert default != changed


def test_noise_takes_the_hidden_states_of_the_harmful_batch() -> None:
    trunk, (harmful, desired) = LayeredTrunk(), batches()
    point = point_of(trunk)
    gradient, values = unadapted("representation_noise", trunk=trunk).gradient(point, harmful, desired)
    leaf = point.trunk.clone().requires_grad_()
    params = FlatModel(trunk).layout.unflatten(leaf)
    tokens = params["embedding"][harmful.inputs[0]]
    hidden = torch.stack([tokens, torch.tanh(tokens @ params["weight"])])
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)).double()
    value = representation_noise(hidden, noise, harmful.inputs[1])
    assert values["representation_noise"].item() == pytest.approx(value.item())
    torch.testing.assert_close(gradient, 2 * torch.autograd.grad(value, leaf)[0])


def test_noise_is_drawn_anew_in_every_step_and_resumes() -> None:
    trunk, generator = LayeredTrunk(), torch.Generator().manual_seed(5)
    terms = Unadapted(
        {"representation_noise": 1.0},
        train_settings(blocking={"representation_noise": 1.0}),
        model=FlatModel(trunk),
        trunk=trunk,
        data=FakeData(),
        generator=generator,
    )
    first = terms.gradient(point_of(trunk), *batches())[0]
    state = generator.get_state()
    second = terms.gradient(point_of(trunk), *batches())[0]
    assert not torch.equal(first, second)
    generator.set_state(state)
    assert torch.equal(terms.gradient(point_of(trunk), *batches())[0], second)


LONG = {"num_outer_steps": 40, "desired_batch_size": 40, "harmful_batch_size": 40, "log_every_steps": 10}


@pytest.mark.parametrize("term", [*TERM_NAMES, "harmful_ill_conditioning", "representation_noise"])
def test_training_moves_a_term_the_way_it_says_without_an_adversary(term: str) -> None:
    """Against training that all but ignores it."""
    trunk = LayeredTrunk(knows_names=True)
    common = {**LONG, "learning_rate": 1e-2, "adversary": {"num_steps": 0}}
    own = {"harmful_reduction_step": 0.5}
    weak, strong = (
        train(train_settings(**common, terms=own, blocking={term: weight}), trunk=trunk).log[-1][f"train/{term}"]
        for weight in (1e-6, 5.0)
    )
    change = strong - weak if TERMS[term].maximised else weak - strong
    # Half of a step reaches the midpoint, and its head learns meanwhile.
    assert change > (0.015 if term == "harmful_midpoint" else 0.1) * abs(weak)


def step_of(**values: Any) -> OuterStep:
    return OuterStep(train_settings(**values), trunk=MlpTrunk(), data=FakeData(), generators=Generators(0, GENERATORS))


@pytest.mark.parametrize(
    ("blocking", "adversary"),
    [
        ({"collapse": 1.0}, {"num_steps": 0}),
        ({"harmful_reduction": 1.0, "gradient_coupling": 1.0}, {"num_steps": 0}),
        ({"harmful_midpoint": 1.0, "harmful_base": 1.0}, {"num_steps": 0}),
        ({"harmful_reduction": 1.0, "harmful_adapted": 1.0}, {"num_steps": 1, "head": "reset"}),
    ],
)
def test_a_harmful_head_that_is_read_learns_its_own_loss_once(blocking: Any, adversary: Any) -> None:
    """One step of SGD of the head is that on the harmful batch's cross-entropy, whatever else is computed."""
    values = {"blocking": blocking, "adversary": adversary, "optimizer": "SGD", "adversary_learning_rate": 1.0}
    step, twin = step_of(**values), step_of(**values)
    batch = FakeData().batch(twin._harmful.next(), Task.HARMFUL)
    before = step.learned.harmful_head.detach().clone().requires_grad_()
    loss = F.cross_entropy(twin.model.logits(twin.trunk.detach(), before, batch), batch.labels)
    (gradient,) = torch.autograd.grad(loss, before)
    step.step()
    torch.testing.assert_close(step.learned.harmful_head.detach(), before.detach() - gradient)


def test_terms_join_adversaries_and_micro_steps() -> None:
    blocking = {"harmful_adapted_calibrated": 1.0, "harmful_ill_conditioning": 0.1, **dict.fromkeys(TERM_NAMES, 0.1)}
    step = step_of(blocking=blocking, adversary={"num_steps": 2, "num_adversaries": 2}, accumulation_steps=2)
    metrics = dict(zip(step.metric_names, step.step().tolist(), strict=True))
    assert {f"train/{name}" for name in blocking} <= metrics.keys()
    assert all(value == value for value in metrics.values())


def test_what_encoder_or_data_do_not_allow_is_refused_in_a_sentence() -> None:
    with pytest.raises(UsageError, match="representation_noise needs an encoder of texts with hidden states, got MlpT"):
        unadapted("representation_noise")
    with pytest.raises(UsageError, match="collapse_class is 3, but the desired task has classes 0 to 2; name one"):
        unadapted("collapse", collapse_class=3)
    with pytest.raises(UsageError, match="collapse needs classes to collapse into, but the desired task is a regress"):
        unadapted("collapse", data=Regression())


@pytest.mark.parametrize("file", ["baselines", "baselines_small"])
def test_the_shipped_sweeps_name_every_one_of_these_terms(file: str) -> None:
    sweep = load_settings(SweepSettings, ROOT / "sweeps" / f"{file}.yaml")
    trainings = [override(sweep.trial, changes).train for changes in sweep.variants.values()]
    plans = [Plan.of(training) for training in trainings]
    named = {name for plan in plans for name in (*plan.unadapted, *plan.fresh)}
    assert named == {*TERM_NAMES, "representation_noise", "harmful_ill_conditioning", "harmful_base"}
    assert not any(plan.simulates() for plan in plans)


def test_terms_and_their_settings_leave_earlier_hashes_as_they_are() -> None:
    """A weight of 0 and default settings are no part of what identifies a training; others are."""
    default, identity = train_settings(method="tuned"), train_settings(method="tuned").identity()
    assert "terms" not in identity
    assert not identity["blocking"].keys() & BlockingSettings.LATER
    for changes in ({"terms": {"collapse_class": 1}}, {"blocking": {"collapse": 1.0}, "method": "mlac"}):
        assert train_settings(**{"method": "tuned", **changes}).identity() != default.identity()


def test_an_interrupted_training_ends_to_the_bit_as_one_that_was_not(tmp_path: Path) -> None:
    settings = train_settings(blocking=dict.fromkeys([*TERM_NAMES, "representation_noise"], 0.5))
    resumed, straight = interrupted_and_straight(settings, LayeredTrunk, tmp_path)
    assert resumed.log == straight.log
    assert all(torch.equal(resumed.params[name], value) for name, value in straight.params.items())
