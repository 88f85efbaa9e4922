"""What becomes of a teacher's weights, the loss of its student, and that every setting of a distillation acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from sdm_ray.config import DataSettings, DistilSettings
from sdm_ray.config.distil import Alphas
from sdm_ray.core.errors import UsageError
from sdm_ray.core.types import Split
from sdm_ray.data.general import GeneralText, meta_training_text
from sdm_ray.meta.outer.distil import Distillation, Model, alpha_of, perturbed
from sdm_ray.models.encoder import fresh_params
from tests.fakes.meta import MlpTrunk
from tests.meta.test_trainer import text_world


@pytest.fixture
def world(encoder_folder: Path, data_settings: DataSettings) -> tuple[Any, Any]:
    return text_world(encoder_folder, data_settings)


@pytest.fixture
def teacher(world: tuple[Any, Any]) -> Model:
    trunk, _ = world
    head = torch.randn(3, trunk.feature_dim, generator=torch.Generator().manual_seed(1))
    return Model({name: value.detach().clone() for name, value in trunk.named_parameters()}, head)


def distillation(world: tuple[Any, Any], teacher: Model, **settings: Any) -> Distillation:
    trunk, data = world
    made = DistilSettings.model_validate({"desired_batch_size": 4, "general_batch_size": 3, **settings})
    text = meta_training_text(data, data.indices(Split.META_TRAIN))
    student = perturbed(trunk, teacher, Alphas(0.5, 0.5, 0.5), 0)
    return Distillation(
        made, trunk=trunk, teacher=teacher, student=student, desired=text, general=text, seed=made.num_steps
    )


def gradient(made: Distillation) -> tuple[Tensor, Tensor | None, dict[str, float]]:
    """Gradients and parts of the loss on the next batch, at the student's start."""
    names, shapes = zip(*((name, value.shape) for name, value in made.student.params.items()), strict=True)
    flat = torch.cat([value.reshape(-1) for value in made.student.params.values()]).requires_grad_()
    pieces = flat.split([shape.numel() for shape in shapes])
    params = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
    trunk, head, values = made.gradient(params, made.student.head.clone().requires_grad_(), flat)
    return trunk, head, {name: float(value) for name, value in values.items()}


def test_alpha_is_the_share_of_a_fresh_draw_at_every_depth(world: tuple[Any, Any], teacher: Model) -> None:
    trunk, _ = world
    none, all_, half = (perturbed(trunk, teacher, Alphas(*3 * (alpha,)), 0) for alpha in (0.0, 1.0, 0.5))
    by_depth = perturbed(trunk, teacher, Alphas(1.0, 0.0, 0.5), 0)
    depths = set()
    for name, value in teacher.params.items():
        assert torch.equal(none.params[name], value)
        torch.testing.assert_close(half.params[name], (value + all_.params[name]) / 2)
        depth = trunk.depth_of(name)
        wanted = all_ if depth == 0 else none if depth == 1 else half
        assert torch.equal(by_depth.params[name], wanted.params[name]), name
        depths.add(depth)
    assert depths == {0, 1, 2, 3}
    assert torch.equal(none.head, teacher.head)
    assert torch.equal(by_depth.head, half.head)
    embedding = str(trunk.embedding_name)
    assert not torch.equal(all_.params[embedding], teacher.params[embedding])
    assert all_.params[embedding].std() == pytest.approx(float(fresh_params(trunk, 5)[embedding].std()), rel=0.2)
    other = perturbed(trunk, teacher, Alphas(1.0, 1.0, 1.0), 1)
    assert not torch.equal(other.params[embedding], all_.params[embedding])


@pytest.mark.parametrize(("num_layers", "lower"), [(1, []), (2, [1]), (3, [1, 2]), (6, [1, 2, 3])])
def test_lower_is_the_first_half(num_layers: int, lower: list[int]) -> None:
    num_depths = num_layers + 2  # embeddings below, a norm or a pooler above
    shares = [alpha_of(depth, num_depths, Alphas(1.0, 2.0, 3.0)) for depth in range(num_depths)]
    assert shares[0] == 1
    assert [depth for depth, share in enumerate(shares) if share == 2] == (lower or [1])
    assert shares[-1] == 3


def test_what_reads_no_texts_is_refused() -> None:
    head = torch.zeros(2, 6)
    trunk = MlpTrunk()
    with pytest.raises(UsageError, match=r"needs an encoder of texts, got MlpTrunk"):
        perturbed(trunk, Model(dict(trunk.named_parameters()), head), Alphas(1.0, 1.0, 1.0), 0)


def dense(made: Distillation, text: GeneralText, rows: Tensor, settings: DistilSettings, trunk: Any) -> Tensor:
    """The loss on one batch, text by text and token by token."""
    ids, mask = text.batch(rows)
    total = torch.zeros(())
    for row in range(len(rows)):
        length = int(mask[row].sum())
        inputs = (ids[row : row + 1, :length], mask[row : row + 1, :length])
        read = [
            functional_call(trunk, model.params, inputs, {"hidden_states": True})
            for model in (made.student, made.teacher)
        ]
        heads = (made.student.head, made.teacher.head)
        scores = [features[0] @ head.T for (features, _), head in zip(read, heads, strict=True)]
        ours, theirs = ((score / settings.temperature).softmax(0) for score in scores)
        outputs = settings.temperature**2 * (theirs * (theirs / ours).log()).sum()
        chosen = [states if settings.features == "hidden_states" else features for features, states in read]
        ours, theirs = (
            (value - value.mean(-1, keepdim=True)) / (value.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            for value in chosen
        )
        squares = (ours - theirs).square()
        tokens = length / float(mask.sum()) if settings.features == "hidden_states" else 1 / len(rows)
        features = squares.mean() * tokens
        total = total + settings.output_weight * outputs / len(rows) + settings.feature_weight * features
    return total


@pytest.mark.parametrize("features", ["hidden_states", "pooled"])
def test_the_loss_is_that_of_a_dense_reference(world: tuple[Any, Any], teacher: Model, features: str) -> None:
    settings = {"features": features, "temperature": 3.0, "output_weight": 0.7, "feature_weight": 2.0}
    made, drawn = distillation(world, teacher, **settings, general_weight=0.25), []
    for text, sampler, _ in made._texts:
        state = sampler.state_dict()
        drawn.append((text, sampler.next()))
        sampler.load_state_dict(state)
    trunk, head, values = gradient(made)
    for value in (*made.student.params.values(), made.student.head):
        value.requires_grad_()
    parts = [dense(made, text, rows, made._settings, world[0]) for text, rows in drawn]
    loss = parts[0] + 0.25 * parts[1]
    weighted = 0.7 * values["distil_outputs"] + 2.0 * values["distil_features"]
    assert 1.25 * weighted == pytest.approx(float(loss.detach()), rel=1e-4)
    named = [*made.student.params.values(), made.student.head]
    wanted = torch.autograd.grad(loss, named, allow_unused=True)
    flat = [value.new_zeros(value.shape) if grad is None else grad for value, grad in zip(named, wanted, strict=True)]
    torch.testing.assert_close(trunk, torch.cat([value.reshape(-1) for value in flat[:-1]]), rtol=1e-3, atol=1e-6)
    assert head is not None
    torch.testing.assert_close(head, flat[-1], rtol=1e-3, atol=1e-6)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(world: tuple[Any, Any], teacher: Model) -> None:
    made = distillation(world, teacher)
    made.student = made.teacher
    trunk, head, values = gradient(made)
    assert max(map(abs, values.values())) < 1e-6
    assert head is not None
    assert max(float(trunk.abs().max()), float(head.abs().max())) < 1e-5
    assert float(gradient(distillation(world, teacher))[0].abs().max()) > 1e-3


def test_parts_without_a_weight_are_left_out(world: tuple[Any, Any], teacher: Model) -> None:
    outputs, features = distillation(world, teacher, feature_weight=0), distillation(world, teacher, output_weight=0)
    assert (outputs.metric_names, features.metric_names) == (("distil_outputs",), ("distil_features",))
    assert gradient(outputs)[1] is not None
    assert gradient(features)[1] is None


def test_batches_are_as_large_as_asked_and_go_on_where_they_were(world: tuple[Any, Any], teacher: Model) -> None:
    assert distillation(world, teacher).texts_per_step == 7
    alone = distillation(world, teacher, general_batch_size=0)
    assert (alone.texts_per_step, len(alone._texts)) == (4, 1)
    made, again = distillation(world, teacher), distillation(world, teacher)
    gradient(made)
    again.load_state_dict(made.state_dict())
    assert torch.equal(gradient(made)[0], gradient(again)[0])
    assert not torch.equal(gradient(made)[0], gradient(distillation(world, teacher))[0])
    state = made.state_dict()
    state["1"]["text"] = "another"
    with pytest.raises(UsageError, match=r"train\.distil\.general\.source: its texts are not those"):
        again.load_state_dict(state)
