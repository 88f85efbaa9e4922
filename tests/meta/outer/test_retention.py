"""Retention: nothing to pay at the original weights, the right gradient elsewhere, and draws that resume exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from sdm_ray.config import EncoderSettings, RetainSettings, SyntheticWorld, TrainSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.types import Batch, Split, Task
from sdm_ray.data.general import GeneralText
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.objectives import TERMS
from sdm_ray.meta.outer.retention import GeneralSources, Retention, load_general_sources
from sdm_ray.models.encoder import load_tokenizer, load_trunk
from sdm_ray.models.masked_lm import load_masked_lm
from sdm_ray.models.trunk import Trunk
from tests.fakes import files as helpers
from tests.fakes.trunks import padded_tokens

WEIGHTS = {"retain_mlm": 0.5, "retain_distill": 2.0, "retain_representation": 3.0}
DISTANCES = ("retain_distill", "retain_representation")


class TextData:
    """Sixteen texts, a `Dataset`."""

    device, digest = torch.device("cpu"), "sixteen texts"

    def __init__(self) -> None:
        self.inputs = tuple(value.flatten(0, 1) for value in padded_tokens(4))

    def num_classes(self, task: Task) -> int:
        return 1

    def indices(self, split: Split) -> Tensor:
        return torch.arange(16)

    def labels_host(self, task: Task) -> Tensor:
        return torch.zeros(16, dtype=torch.int64)

    def batch(self, indices: Tensor, task: Task, *, pad_to: int | None = None, coarse: bool = False) -> Batch:
        return Batch(tuple(value[indices] for value in self.inputs), torch.zeros(indices.shape, dtype=torch.int64))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("retention")
    return {kind: helpers.write_encoder(root / kind, kind) for kind in helpers.MODEL_TYPES}


def load(folder: Path, pooling: str = "native") -> tuple[Trunk, Any]:
    settings = EncoderSettings.model_validate({"name": str(folder), "pooling": pooling})
    tokenizer = load_tokenizer(settings, cache_dir=folder)
    return load_trunk(settings, cache_dir=folder), load_masked_lm(settings, tokenizer, cache_dir=folder)


def general_text(seed: int = 5, device: str = "cpu") -> GeneralText:
    ids, mask = (value.flatten(0, 1) for value in padded_tokens(10, seed=seed))
    return GeneralText(ids.numpy(), mask.sum(1).numpy(), device)


def retention_of(trunk: Any, head: Any, weights: dict[str, float] = WEIGHTS, **changes: Any) -> Retention:
    values: dict[str, Any] = {
        "model": FlatModel(trunk), "trunk": trunk, "sources": GeneralSources(general_text(), head), "data": TextData(),
        "indices": torch.arange(16), "generator": torch.Generator().manual_seed(3),
    }  # fmt: skip
    settings = changes.pop("settings", RetainSettings(batch_size=6, mask_share=0.3))
    return Retention(weights, settings, **{**values, **changes})


def desired_batch() -> Batch:
    return Batch(padded_tokens(seed=9), torch.zeros(4, dtype=torch.int64))


def moved(trunk: Trunk) -> Tensor:
    """Parameters some way off the original ones."""
    flat = FlatModel(trunk).initial()
    return flat + 0.05 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(4)).to(flat)


@pytest.mark.parametrize("kind", helpers.MODEL_TYPES)
def test_distances_are_zero_at_the_original_weights_and_flat_there(kind: str, folders: dict[str, Path]) -> None:
    trunk, _ = load(folders[kind])
    retention = retention_of(trunk, None, dict.fromkeys(DISTANCES, 1.0))
    gradient, values = retention.gradient(FlatModel(trunk).initial(), desired_batch())
    assert [values[name].item() for name in DISTANCES] == [0.0, 0.0]
    assert gradient.abs().max() == 0
    gradient, values = retention.gradient(moved(trunk), desired_batch())
    assert min(value.item() for value in values.values()) > 1e-4
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_gradient_is_that_of_the_weighted_value(name: str, folders: dict[str, Path]) -> None:
    """Central differences in float64 along the gradient and a random direction; the draw is the same each time."""
    trunk, head = load(folders["bert"])
    trunk = trunk.double()
    retention = retention_of(trunk, head, {name: WEIGHTS[name]})
    start, point = retention.state_dict(), moved(trunk)

    def at(flat: Tensor) -> tuple[Tensor, float]:
        retention.load_state_dict(start)
        gradient, values = retention.gradient(flat, desired_batch())
        return gradient, values[name].item()

    gradient, value = at(point)
    assert at(point)[1] == value
    random = torch.randn(point.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for direction in (gradient / gradient.norm(), random / random.norm()):
        ahead, behind = at(point + 1e-5 * direction)[1], at(point - 1e-5 * direction)[1]
        slope = WEIGHTS[name] * (ahead - behind) / 2e-5
        assert slope == pytest.approx((gradient @ direction).item(), rel=1e-5, abs=1e-8)
    assert (at(point - 1e-4 * gradient)[1] < value) != TERMS[name].maximised


def test_terms_add_up_and_values_are_not_weighted(folders: dict[str, Path]) -> None:
    trunk, head = load(folders["modernbert"])
    point, whole = moved(trunk), retention_of(trunk, head)
    gradient, values = whole.gradient(point, desired_batch())
    assert list(values) == list(WEIGHTS)
    parts = []
    for name, weight in WEIGHTS.items():
        part, value = retention_of(trunk, head, {name: weight}).gradient(point, desired_batch())
        torch.testing.assert_close(values[name], value[name])
        parts.append(part)
        halved, same = retention_of(trunk, head, {name: weight / 2}).gradient(point, desired_batch())
        torch.testing.assert_close((2 * halved, same[name]), (part, value[name]))
    torch.testing.assert_close(gradient, torch.stack(parts).sum(0))


@pytest.mark.parametrize("kind", helpers.MODEL_TYPES)
def test_the_masked_lm_gradient_reaches_every_layer_and_the_whole_embedding(
    kind: str, folders: dict[str, Path]
) -> None:
    """Rows of tokens that occur nowhere are pulled too: through the decoder."""
    trunk, head = load(folders[kind])
    point = FlatModel(trunk).initial()
    gradient, values = retention_of(trunk, head, {"retain_mlm": 1.0}).gradient(point, desired_batch())
    named = FlatModel(trunk).layout.unflatten(gradient)
    assert trunk.embedding_name is not None
    assert (named[trunk.embedding_name].abs().sum(1) > 0).all()
    for depth in range(trunk.num_depths - 1):
        assert any(named[name].abs().max() > 0 for name in named if trunk.depth_of(name) == depth)
    assert 0 < values["retain_mlm"].item() < 50
    assert torch.equal(point, FlatModel(trunk).initial())


def test_general_terms_read_the_general_text_and_the_other_one_the_desired_batch(folders: dict[str, Path]) -> None:
    trunk, head = load(folders["bert"])
    point, batch = moved(trunk), desired_batch()

    def values(text: GeneralText, desired: Batch) -> dict[str, float]:
        found = retention_of(trunk, head, sources=GeneralSources(text, head)).gradient(point, desired)[1]
        return {name: value.item() for name, value in found.items()}

    base = values(general_text(), batch)
    other_text = values(general_text(seed=6), batch)
    other_batch = values(general_text(), Batch(padded_tokens(seed=10), batch.labels))
    assert {name for name in WEIGHTS if base[name] != other_text[name]} == {"retain_mlm", "retain_distill"}
    assert {name for name in WEIGHTS if base[name] != other_batch[name]} == {"retain_representation"}
    hidden, reference = (
        functional_call(trunk, FlatModel(trunk).layout.unflatten(flat), batch.inputs, {"hidden_states": True})[1]
        for flat in (point, FlatModel(trunk).initial())
    )
    squares = (hidden - reference).square().mean(-1)[:, batch.attention_mask == 1]
    assert base["retain_representation"] == pytest.approx(squares.mean().item())


def test_as_many_tokens_are_predicted_as_the_settings_say(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk, head = load(folders["bert"])
    seen: list[int] = []
    mlm = TERMS["retain_mlm"]

    def counting(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(len(labels))
        return mlm.function(logits, labels)

    monkeypatch.setitem(TERMS, "retain_mlm", mlm._replace(function=counting))
    ids, mask = (value[:1].repeat(6, 1) for value in padded_tokens())
    sources = GeneralSources(GeneralText(ids.numpy(), mask.sum(1).numpy(), "cpu"), head)
    for share in (0.1, 0.5, 1.0):
        settings = RetainSettings(batch_size=6, mask_share=share)
        retention = retention_of(trunk, head, {"retain_mlm": 1.0}, sources=sources, settings=settings)
        retention.gradient(moved(trunk), desired_batch())
    assert seen == [6, 30, 60]


def test_without_a_source_the_texts_are_those_of_meta_training(folders: dict[str, Path]) -> None:
    trunk, _ = load(folders["bert"])
    point, weights = moved(trunk), {"retain_distill": 1.0}
    data = TextData()
    ids, mask = (value[:8] for value in data.inputs)
    text = GeneralText(ids.numpy(), mask.sum(1).numpy(), "cpu")
    settings = RetainSettings(batch_size=8)
    found = []
    for sources in (None, GeneralSources(text)):
        retention = Retention(
            weights, settings, model=FlatModel(trunk), trunk=trunk, sources=sources, data=data,
            indices=torch.arange(8), generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        found.append(retention.gradient(point, desired_batch())[1]["retain_distill"])
    torch.testing.assert_close(*found)  # eight of eight texts, whatever their order


def test_draws_go_on_where_a_state_was_taken(folders: dict[str, Path]) -> None:
    trunk, head = load(folders["roberta"])
    point, one = moved(trunk), retention_of(trunk, head)
    for _ in range(8):  # past the end of an epoch
        one.gradient(point, desired_batch())
    state = one.state_dict()
    expected = [one.gradient(point, desired_batch()) for _ in range(3)]
    other = retention_of(trunk, head, generator=torch.Generator().manual_seed(77))
    other.load_state_dict(state)
    for gradient, values in expected:
        resumed, again = other.gradient(point, desired_batch())
        assert torch.equal(resumed, gradient)
        assert again == values
    assert expected[0][1] != expected[1][1]


def test_other_text_than_the_checkpoints_is_refused(folders: dict[str, Path]) -> None:
    trunk, head = load(folders["bert"])
    state = retention_of(trunk, head).state_dict()
    other = retention_of(trunk, head, sources=GeneralSources(general_text(seed=8), head))
    with pytest.raises(UsageError, match=r"train\.retain\.source: its text is not the one that the checkpoint"):
        other.load_state_dict(state)


def test_the_desired_batch_alone_needs_no_text_and_has_no_state(folders: dict[str, Path]) -> None:
    trunk, _ = load(folders["bert"])
    retention = retention_of(trunk, None, {"retain_representation": 1.0}, sources=None, data=None)
    assert retention.gradient(moved(trunk), desired_batch())[1]["retain_representation"] > 0
    assert retention.state_dict() == {}
    retention.load_state_dict({})


def test_a_step_never_waits_for_the_device(folders: dict[str, Path]) -> None:
    trunk, head = load(folders["distilbert"])
    retention, point, batch = retention_of(trunk, head), moved(trunk), desired_batch()
    with helpers.NoHostSync():
        retention.gradient(point, batch)


@pytest.mark.gpu
def test_a_step_on_cuda_never_waits_and_agrees_with_the_cpu(folders: dict[str, Path]) -> None:
    trunk, head = load(folders["bert"])
    batch, point = desired_batch(), moved(trunk)
    expected, values = retention_of(trunk, head).gradient(point, batch)
    trunk, data = trunk.cuda(), TextData()
    data.device = torch.device("cuda")
    there = Batch(tuple(value.cuda() for value in batch.inputs), batch.labels.cuda())
    sources = GeneralSources(general_text(device="cuda"), head)
    retention, start = retention_of(trunk, head, sources=sources, data=data), point.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradient, found = retention.gradient(start, there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(gradient.cpu(), expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close({name: value.cpu() for name, value in found.items()}, values, atol=1e-4, rtol=1e-3)


def test_global_random_state_is_not_read(folders: dict[str, Path]) -> None:
    trunk, head = load(folders["bert"])
    state = torch.random.get_rng_state()
    retention_of(trunk, head).gradient(moved(trunk), desired_batch())
    assert torch.equal(torch.random.get_rng_state(), state)


class Vectors(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_an_encoder_without_hidden_states_or_head_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"blocking\.retain_distill needs an encoder of texts .*, got Vectors; set"):
        Retention({"retain_distill": 1.0}, RetainSettings(), model=None, trunk=Vectors(), sources=None, data=None,  # type: ignore[arg-type]
                  indices=torch.arange(2), generator=torch.Generator())  # fmt: skip
    trunk, _ = load(folders["bert"])
    with pytest.raises(UsageError, match=r"blocking\.retain_mlm needs the encoder's masked-LM head"):
        retention_of(trunk, None)


def sources_of(folder: Path, blocking: dict[str, float], retain: dict[str, Any], max_length: int = 500) -> Any:
    encoder = EncoderSettings(name=str(folder))
    return load_general_sources(
        TrainSettings.model_validate({"blocking": {"harmful_adapted": 1.0, **blocking}, "retain": retain}),
        encoder,
        trunk=load_trunk(encoder, cache_dir=folder),
        tokenizer=load_tokenizer(encoder, cache_dir=folder),
        world=SyntheticWorld(version=1, num_pretraining_texts=20),
        max_length=max_length,
        device="cpu",
        cache_dir=folder,
    )


def test_sources_are_loaded_as_far_as_a_weight_asks_for_them(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, corpus = folders["bert"], {"source": "pretraining"}
    assert sources_of(folder, {}, corpus) is None
    assert sources_of(folder, {"retain_representation": 1.0}, corpus) is None
    assert sources_of(folder, {"retain_distill": 1.0}, {}) is None
    text, head = sources_of(folder, {"retain_distill": 1.0}, corpus)
    assert (len(text), head) == (20, None)
    text, head = sources_of(folder, {"retain_mlm": 1.0}, {})
    assert text is None
    assert head.mask_id == helpers.VOCABULARY.index("[MASK]")
    rows = helpers.write_rows(tmp_path / "long.parquet", {"text": ["mara works " * 100, "otto likes planes"]})
    text, _ = sources_of(folder, {"retain_mlm": 1.0}, {"source": str(rows)})
    assert text.width == 64, "as far as the encoder's positions reach"
    text, _ = sources_of(folder, {"retain_mlm": 1.0}, {"source": str(rows)}, max_length=30)
    assert text.width == 30


def test_clues_are_removed_where_asked(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = helpers.write_rows(tmp_path / "names.parquet", {"text": ["the planes of Mara she likes"]})
    lengths = []
    for scrub in ("none", "words", "all"):
        text, _ = sources_of(folders["bert"], {"retain_distill": 1.0}, {"source": str(rows), "scrub": scrub})
        lengths.append(int(text.batch(torch.tensor([0]))[1].sum()))
    assert lengths[0] == lengths[1] > lengths[2], "`she` becomes `they`; then the name goes too"
    asked = []

    def of_meta_training(*args: Any, scrubbed: bool) -> GeneralText:
        asked.append(scrubbed)
        return GeneralText(np.array([[2, 5, 3]]), np.array([3]), "cpu")

    monkeypatch.setattr("sdm_ray.meta.outer.retention.meta_training_text", of_meta_training)
    trunk = load_trunk(EncoderSettings(name=str(folders["bert"])), cache_dir=folders["bert"])
    for scrub in ("none", "words", "all"):
        Retention(
            {"retain_distill": 1.0}, RetainSettings(batch_size=1, scrub=scrub), model=None, trunk=trunk, sources=None,
            data=None, indices=torch.arange(1), generator=torch.Generator(),
        )  # type: ignore[arg-type]  # fmt: skip
    assert asked == [False, False, True]


def test_text_of_another_vocabulary_is_refused(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = GeneralText(np.array([[2, 999, 3]]), np.array([3]), "cpu")
    monkeypatch.setattr("sdm_ray.meta.outer.retention.load_general_text", lambda *args, **options: foreign)
    with pytest.raises(UsageError, match="token id 999"):
        sources_of(folders["bert"], {"retain_distill": 1.0}, {"source": "pretraining"})
