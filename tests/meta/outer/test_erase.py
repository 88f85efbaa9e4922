"""What readers find on meta-training is erased, stays so through training, and obeys its settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from sdm_ray.config import DataSettings, EraseSettings, TrainSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.progress import run_through
from sdm_ray.core.seeds import Generators
from sdm_ray.core.types import Params, Split, Task
from sdm_ray.meta.outer import linear_readers
from sdm_ray.meta.outer.erase import FoundErasure, check_erasure, covariance, find_erasure
from sdm_ray.meta.outer.linear_readers import Texts, between, fit_reader, mean_covector
from sdm_ray.meta.outer.step import OuterStep
from sdm_ray.meta.trainer import GENERATORS, Trainer
from sdm_ray.models.erasure import Erasure
from sdm_ray.models.stream import stream_of
from tests.fakes.files import NoHostSync
from tests.fakes.meta import drive, train_settings
from tests.meta.test_trainer import same, text_world

World = tuple[Any, Any]
"""An encoder and its data."""


@pytest.fixture(params=["modernbert", "bert"])
def world(request: pytest.FixtureRequest) -> World:
    found_world: World = request.getfixturevalue(request.param)
    return found_world


@pytest.fixture(scope="module")
def modernbert(encoder_folder: Path, data_file: Path) -> World:
    return text_world(encoder_folder, DataSettings(source=str(data_file), max_length=24))


@pytest.fixture(scope="module")
def bert(bert_folder: Path, data_file: Path) -> World:
    return text_world(bert_folder, DataSettings(source=str(data_file), max_length=24))


@pytest.fixture(scope="module", autouse=True)
def short_readers() -> Iterator[None]:
    with mock.patch.multiple(linear_readers, READER_STEPS=30, READER_BATCH=64):
        yield


@pytest.fixture(scope="module")
def erasure(bert: World, short_readers: None) -> Erasure:
    """Of two directions, found once for all trainings."""
    return found(bert).erasure


def found(world: World, seed: int = 0, **settings: Any) -> FoundErasure:
    trunk, data = world
    wanted = EraseSettings.model_validate({"num_directions": 2, **settings})
    work = find_erasure(wanted, trunk=trunk, data=data, indices=data.indices(Split.META_TRAIN), seed=seed)
    return run_through(work, lambda progress: None)


def weights(world: World) -> Params:
    return {name: value.detach().clone() for name, value in world[0].named_parameters()}


def tokens(world: World, params: Params) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (H, N, L, D) of meta-training, the mask and the harmful labels."""
    trunk, data = world
    inputs, labels = data.batch(data.indices(Split.META_TRAIN), Task.HARMFUL)
    with torch.no_grad():
        _, states = functional_call(trunk, params, inputs, {"hidden_states": True})
    return states, inputs[1].bool(), labels


def leak(world: World, erasure: Erasure, params: Params) -> float:
    """The most that covectors which should read nothing read of any token, in units of the states."""
    states, mask, _ = tokens(world, params)
    read = [
        (states[state][mask] @ erasure.reads_nothing(state).T).abs().max() / states[state][mask].std()
        for state in range(len(states))
        if len(erasure.reads_nothing(state))
    ]
    assert read, "something is promised"
    return float(torch.stack(read).max())


def balanced(scores: Tensor, labels: Tensor) -> float:
    """Balanced accuracy of the best threshold on scores (N,), whichever way it points."""
    best = 0.0
    for threshold in torch.unique(scores):
        right = (scores >= threshold) == (labels == 1)
        accuracy = float((right[labels == 0].double().mean() + right[labels == 1].double().mean()) / 2)
        best = max(best, accuracy, 1 - accuracy)
    return best


@pytest.mark.parametrize("estimator", ["means", "leace"])
def test_a_linear_reader_of_what_is_erased_reads_chance_on_meta_training(world: World, estimator: str) -> None:
    result = found(world, estimator=estimator)
    assert len(result.removed) == 2
    before, mask, labels = tokens(world, weights(world))
    after, _, _ = tokens(world, result.erasure.applied(weights(world)))
    for removed in result.removed:
        covectors = result.erasure.reads_nothing(removed.state)

        def told(states: Tensor, covectors: Tensor = covectors, state: int = removed.state) -> float:
            read = torch.where(mask[..., None], states[state] @ covectors.T, 0).sum(1) / mask.sum(1, keepdim=True)
            return max(balanced(column.round(decimals=4), labels) for column in read.T)

        assert told(before) > 0.55
        assert told(after) == pytest.approx(0.5, abs=1e-9)
    assert leak(world, result.erasure, weights(world)) > 0.1
    assert leak(world, result.erasure, result.erasure.applied(weights(world))) < 1e-4


def test_the_classes_means_of_what_was_attended_to_are_equal_after_it(bert: World) -> None:
    """At the embeddings, whose states change by the erasure there alone, with the tokens weighted as before."""
    states, mask, labels = tokens(bert, weights(bert))
    reader = fit_reader(Texts(states[0], mask, labels), 0, 0, 0)
    attended = reader.attended(Texts(states[0], mask, labels), states[0])
    for metric in (None, covariance(states[0][mask])):
        covector = mean_covector(attended, labels, metric, None)
        assert covector is not None
        along = covector if metric is None else metric @ covector
        left = attended.double() - (attended.double() @ covector)[:, None] * along / (along @ covector)
        assert between(attended, labels).norm() > 1e-2
        assert between(left, labels).norm() < 1e-6 * between(attended, labels).norm()


def test_the_same_seed_finds_the_same_and_another_seed_another(bert: World) -> None:
    first, again, other = found(bert), found(bert), found(bert, seed=1)
    one, two, three = (result.erasure.applied(weights(bert)) for result in (first, again, other))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], three[name]) for name in one)
    assert first.removed == again.removed


def test_more_directions_begin_with_those_of_fewer(bert: World) -> None:
    fewer, more = found(bert, num_directions=1), found(bert, num_directions=3)
    assert more.removed[:1] == fewer.removed
    assert len(more.removed) == 3
    assert leak(bert, fewer.erasure, more.erasure.applied(weights(bert))) < 1e-4
    assert leak(bert, more.erasure, fewer.erasure.applied(weights(bert))) > 1e-2


def test_readers_look_at_the_sites_that_are_named(bert: World) -> None:
    assert all(removed.state == 1 and len(removed.accuracies) == 1 for removed in found(bert, sites=[1]).removed)
    assert all(len(removed.accuracies) == 3 for removed in found(bert).removed)


def test_reach_says_where_a_direction_is_taken_out(world: World) -> None:
    def last(reach: str) -> int:
        """Covectors that read nothing of hidden state 1, after a direction was found in the embeddings."""
        return len(found(world, num_directions=1, sites=[0], reach=reach).erasure.reads_nothing(1))

    assert (last("below"), last("everywhere") > 0) == (0, True)
    assert (last("auto") > 0) == stream_of(world[0]).pre_norm


def test_what_desired_labels_need_is_spared(bert: World) -> None:
    states, mask, _ = tokens(bert, weights(bert))
    data = bert[1]
    desired = data.labels_host(Task.DESIRED)[data.indices(Split.META_TRAIN)]
    pooled = (states[0] * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    axes = torch.linalg.svd(between(pooled, desired), full_matrices=False).Vh[:2]
    settings: dict[str, Any] = {"num_directions": 1, "sites": [0], "num_texts": 10_000}
    plain, sparing = (
        found(bert, **settings, spare_desired=count).erasure.reads_nothing(0).double() for count in (0, 2)
    )
    assert (plain @ axes.T).norm() > 1e-2
    assert (sparing @ axes.T).norm() < 1e-4


def test_what_all_tokens_vary_in_is_spared(bert: World) -> None:
    states, mask, _ = tokens(bert, weights(bert))
    axes = torch.linalg.eigh(covariance(states[0][mask])).eigenvectors[:, -3:].T
    settings: dict[str, Any] = {"num_directions": 1, "sites": [0], "num_texts": 10_000}
    plain, sparing = (
        found(bert, **settings, spare_general=count).erasure.reads_nothing(0).double() for count in (0, 3)
    )
    assert (plain @ axes.T).norm() > 1e-2
    assert (sparing @ axes.T).norm() < 1e-4


@pytest.fixture
def read(bert: World, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The indices of the examples that were read, a batch each."""
    indices_read: list[Tensor] = []
    plain = bert[1].batch

    def batch(indices: Tensor, task: Task) -> Any:
        indices_read.append(indices)
        return plain(indices, task)

    monkeypatch.setattr(bert[1], "batch", batch)
    return indices_read


def test_no_more_texts_are_read_than_asked(bert: World, read: list[Tensor]) -> None:
    found(bert, num_directions=1, num_texts=40)
    assert [len(indices) for indices in read] == [40]
    with pytest.raises(UsageError, match="do not give two classes"):
        found(bert, num_texts=2)


def test_labels_of_meta_training_alone_are_read(bert: World, read: list[Tensor]) -> None:
    found(bert, num_directions=1)
    assert torch.isin(torch.cat(read), bert[1].indices(Split.META_TRAIN)).all()


def test_what_cannot_be_erased_is_refused(bert: World) -> None:
    with pytest.raises(UsageError, match="names hidden state 3, but the encoder has 0 to 2"):
        check_erasure(EraseSettings(num_directions=1, sites=(3,)), bert[0])
    with pytest.raises(UsageError, match="leave nothing of the encoder's 16 dimensions"):
        check_erasure(EraseSettings(num_directions=10, spare_general=6), bert[0])


METHODS: dict[str, dict[str, Any]] = {
    "erase": {"method": "erase"},
    "ac": {"method": "ac"},
    "unrolled": {"adversary": {"num_steps": 2}, "gradient_mode": "unrolled"},
    "adjoint": {"adversary": {"num_steps": 2}, "gradient_mode": "adjoint"},
    "adjoint_stored": {"adversary": {"num_steps": 2}, "gradient_mode": "adjoint_stored"},
    "truncated": {"adversary": {"num_steps": 2}, "gradient_mode": "truncated", "truncation_steps": 1},
    "first_order": {"adversary": {"num_steps": 2}, "gradient_mode": "first_order"},
    "pool": {"adversary": {"num_steps": 0, "pool": {"size": 2, "lifespan_steps": 4, "subset_size": 8}}},
    "map": {"method": "erase", "embedding_map_learning_rate": 0.1},
    "muon": {"method": "erase", "optimizer": "Muon"},
    "decay": {"method": "erase", "optimizer": "AdamW", "optimizer_options": {"weight_decay": 0.1}},
}
"""Settings of a training that erases two directions."""


def settings_of(name: str, **changes: Any) -> TrainSettings:
    common = {"erase": {"num_directions": 2}, "learning_rate": 1e-2, "num_outer_steps": 2}
    return train_settings(**{**common, **METHODS[name], **changes})


@pytest.mark.parametrize("name", METHODS)
def test_training_keeps_it(bert: World, erasure: Erasure, name: str) -> None:
    trunk, data = bert
    trainer = Trainer(settings_of(name), trunk=trunk, data=data, seed=0, erasure=erasure)
    start, _ = trainer.weights()
    assert leak(bert, erasure, start) < 1e-4, "the inner loops start from it"
    outcome, _ = drive(trainer)
    assert outcome is not None
    assert leak(bert, erasure, outcome.params) < 1e-4
    moved = max(float((outcome.params[key] - value).abs().max()) for key, value in start.items())
    assert moved > 1e-3, "and it trains"


def test_weights_that_read_make_nothing_of_it_where_that_is_asked(world: World) -> None:
    trunk, data = world
    erasure = found(world, reads=True).erasure
    assert not found(world).erasure.unread
    assert len(erasure.unread) >= 3, "queries, keys and values of a layer, at least"
    trainer = Trainer(settings_of("erase"), trunk=trunk, data=data, seed=0, erasure=erasure)
    outcome, _ = drive(trainer)
    assert outcome is not None
    for params in (trainer.weights()[0], outcome.params):
        for name, projector in erasure.unread.items():
            assert (params[name] @ projector.read.T).abs().max() < 1e-5
    assert "reads" not in EraseSettings().identity(), "digests of before stay"
    assert EraseSettings(reads=True).identity()["reads"] is True


def test_persistent_adversaries_start_from_it(bert: World, erasure: Erasure) -> None:
    trunk, data = bert
    step = OuterStep(settings_of("pool"), trunk=trunk, data=data, generators=Generators(0, GENERATORS), erasure=erasure)
    members = step.adversaries.pool.members
    assert all(float(member.delta.abs().max()) == 0 for member in members if member.delta is not None)
    assert leak(bert, erasure, step.params()) < 1e-4


def test_taking_it_out_waits_for_no_device(world: World) -> None:
    erasure, params = found(world).erasure, weights(world)
    with NoHostSync():
        erasure.apply(params)


def test_a_resumed_training_keeps_it_to_the_bit(bert: World, erasure: Erasure, tmp_path: Path) -> None:
    """Even where directions were found anew and differ."""
    trunk, data = bert
    settings = settings_of("pool", num_outer_steps=8, checkpoint_every_steps=4)
    other = found(bert, seed=1).erasure
    straight, _ = drive(Trainer(settings, trunk=trunk, data=data, seed=0, erasure=erasure))
    drive(Trainer(settings, trunk=trunk, data=data, seed=0, erasure=erasure, checkpoint_dir=tmp_path), 4)
    again = Trainer(settings, trunk=trunk, data=data, seed=0, erasure=other, checkpoint_dir=tmp_path)
    resumed, _ = drive(again)
    assert straight is not None
    assert resumed is not None
    assert same(straight, resumed)
    assert leak(bert, erasure, resumed.params) < 1e-4
