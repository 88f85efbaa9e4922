"""The trunk computes what transformers computes, and survives `vmap` and double backward while doing so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from transformers import AutoModelForSequenceClassification

from sdm_ray.config import EncoderSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.models.encoder import Trunk, load_trunk, params_digest
from sdm_ray.models.heads import logits
from tests.fakes import files as helpers

POOLINGS = ("native", "cls", "mean")
VARIANTS = [(kind, {}) for kind in helpers.MODEL_TYPES] + [("modernbert", {"classifier_pooling": "cls"})]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("architectures")
    return {kind: helpers.write_encoder(root / kind, kind) for kind in helpers.MODEL_TYPES}


def load(folder: Path, pooling: str = "native", **options: object) -> Trunk:
    settings = EncoderSettings.model_validate({"name": str(folder), "pooling": pooling})
    return load_trunk(settings, cache_dir=folder, **options)  # type: ignore[arg-type]


def tokens(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random tokens (..., 4, 10) with padding after the 6th and the 3rd token of two rows."""
    ids = torch.randint(5, len(helpers.VOCABULARY), (*shape, 4, 10), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[..., 1, 6:] = 0
    mask[..., 2, 3:] = 0
    return ids * mask, mask


@pytest.mark.parametrize(("kind", "changes"), VARIANTS)
def test_native_features_give_the_logits_of_the_classification_model(
    kind: str, changes: dict[str, str], tmp_path: Path
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = helpers.tiny_config(kind, num_labels=3, **changes)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    reference = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    last = reference.classifier if hasattr(reference.classifier, "weight") else reference.classifier.out_proj
    trunk = load(tmp_path)
    ids, mask = tokens()
    expected = reference(input_ids=ids, attention_mask=mask).logits
    assert expected.std() > 1e-3
    torch.testing.assert_close(trunk(ids, mask) @ last.weight.T + last.bias, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", helpers.MODEL_TYPES)
def test_token_states_are_the_last_hidden_states(kind: str, folders: dict[str, Path]) -> None:
    trunk, (ids, mask) = load(folders[kind]), tokens()
    features, states = trunk(ids, mask, token_states=True)
    same, hidden = trunk(ids, mask, hidden_states=True)
    assert torch.equal(states, hidden[-1])
    assert torch.equal(features, same)


@pytest.mark.parametrize("kind", [kind for kind in helpers.MODEL_TYPES if kind != "modernbert"])
def test_float64_is_computed_in_float64(kind: str, folders: dict[str, Path]) -> None:
    trunk = load(folders[kind]).double()
    ids, mask = tokens()
    reference = trunk.export_hf(
        dict(trunk.named_parameters()), torch.eye(trunk.feature_dim).double(), list("abcdefghijklmnop")
    )
    assert reference.dtype == torch.float64
    plain = reference(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(trunk(ids, mask), plain, atol=1e-13, rtol=0)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_modernbert_in_float64_stays_finite_where_a_window_holds_padding_alone(
    pooling: str, folders: dict[str, Path]
) -> None:
    trunk = load(folders["modernbert"], pooling)
    ids, mask = tokens()
    single = trunk(ids, mask)
    double = trunk.double()(ids, mask)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", helpers.MODEL_TYPES)
def test_padding_does_not_change_features(kind: str, folders: dict[str, Path]) -> None:
    trunk = load(folders[kind], "mean")
    ids, mask = tokens()
    torch.testing.assert_close(trunk(ids, mask)[2:3], trunk(ids[2:3, :3], mask[2:3, :3]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", helpers.MODEL_TYPES)
def test_vmap_over_stacked_parameters_equals_a_loop_up_to_the_second_derivative(
    kind: str, pooling: str, folders: dict[str, Path]
) -> None:
    trunk = load(folders[kind], pooling).double()
    ids, mask = tokens(3)
    stacked = {
        name: torch.stack([value.detach() * (1 + 0.1 * copy) for copy in range(3)])
        for name, value in trunk.named_parameters()
    }

    def loss(params: dict[str, Tensor], ids: Tensor, mask: Tensor) -> Tensor:
        return functional_call(trunk, params, (ids, mask)).square().sum()

    def gradient_norm(params: dict[str, Tensor], ids: Tensor, mask: Tensor) -> Tensor:
        return torch.stack([value.square().sum() for value in grad(loss)(params, ids, mask).values()]).sum()

    second = vmap(grad(gradient_norm))(stacked, ids, mask)
    for copy in range(3):
        params = {name: value[copy].clone().requires_grad_() for name, value in stacked.items()}
        # Every parameter is used: autograd.grad refuses one that is not.
        first = torch.autograd.grad(loss(params, ids[copy], mask[copy]), list(params.values()), create_graph=True)
        norm = torch.stack([value.square().sum() for value in first]).sum()
        expected = torch.autograd.grad(norm, list(params.values()))
        scale = max(float(value.abs().max()) for value in expected)
        assert scale > 1e-6
        for name, value in zip(params, expected, strict=True):
            torch.testing.assert_close(second[name][copy], value, atol=1e-6 * scale, rtol=1e-6)


def test_second_derivative_agrees_with_finite_differences(bert_folder: Path) -> None:
    trunk = load(bert_folder).double()
    ids, mask = tokens()
    name, weight = next((n, v.detach()) for n, v in trunk.named_parameters() if "attention.self.query.weight" in n)
    direction = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def slope(shift: float) -> Tensor:
        params = {name: (weight + shift * direction).requires_grad_()}
        loss = functional_call(trunk, params, (ids, mask)).pow(3).sum()
        return (torch.autograd.grad(loss, params[name], create_graph=True)[0] * direction).sum()

    point = weight.clone().requires_grad_()
    loss = functional_call(trunk, {name: point}, (ids, mask)).pow(3).sum()
    first = torch.autograd.grad(loss, point, create_graph=True)[0]
    curvature = (torch.autograd.grad((first * direction).sum(), point)[0] * direction).sum()
    numeric = (slope(1e-4) - slope(-1e-4)) / 2e-4
    assert abs(curvature) > 1e-3
    torch.testing.assert_close(curvature, numeric.detach(), rtol=1e-5, atol=0)


def test_train_mode_does_not_bring_dropout_back(bert_folder: Path) -> None:
    trunk = load(bert_folder)
    assert trunk.hf_model.config.hidden_dropout_prob > 0
    ids, mask = tokens()
    expected = trunk(ids, mask)
    trunk.train()
    assert not any(module.training for module in trunk.modules())
    assert torch.equal(trunk(ids, mask), expected)


@pytest.mark.parametrize("kind", helpers.MODEL_TYPES)
def test_num_layers_keeps_the_first_layers_and_survives_export(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    whole = load(folders[kind])
    settings = EncoderSettings(name=str(folders[kind]), num_layers=1)
    trunk = load_trunk(settings, cache_dir=tmp_path)
    kept = dict(trunk.named_parameters())
    assert len(kept) < len(dict(whole.named_parameters()))
    for name, value in whole.named_parameters():
        assert name not in kept or torch.equal(kept[name], value)
    head = torch.randn(3, trunk.feature_dim, generator=torch.Generator().manual_seed(0))
    trunk.export_hf(kept, head, ["a", "b", "c"]).save_pretrained(tmp_path / "out")
    reread = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert reread.config.num_hidden_layers == 1
    assert reread.config.id2label == {0: "a", 1: "b", 2: "c"}
    ids, mask = tokens()
    with torch.no_grad():
        expected = logits(trunk(ids, mask), head)
        torch.testing.assert_close(reread(input_ids=ids, attention_mask=mask).logits, expected, atol=1e-5, rtol=1e-5)


def test_export_takes_the_parameters_that_it_is_given(encoder_folder: Path) -> None:
    trunk = load(encoder_folder)
    other = {name: value.detach() * 1.5 for name, value in trunk.named_parameters()}
    head = torch.randn(2, trunk.feature_dim, generator=torch.Generator().manual_seed(0))
    before = trunk.digest()
    model = trunk.export_hf(other, head, ["a", "b"])
    ids, mask = tokens()
    expected = logits(functional_call(trunk, other, (ids, mask)), head)
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, expected, atol=1e-5, rtol=1e-5)
    assert trunk.digest() == before


def test_digests_tell_weights_and_pooling_apart_and_nothing_else(encoder_folder: Path) -> None:
    trunk = load(encoder_folder)
    assert trunk.digest() == load(encoder_folder).digest()
    assert trunk.digest() != load(encoder_folder, "mean").digest()
    before = trunk.digest()
    with torch.no_grad():
        next(trunk.parameters()).view(-1)[0] += 1e-3
    assert trunk.digest() != before
    one, two = torch.ones(2), torch.zeros(2)
    assert params_digest({"a": one, "b": two}) == params_digest({"b": two, "a": one})
    assert params_digest({"a": one, "b": two}) != params_digest({"a": two, "b": one})
    assert params_digest({"a": one}) != params_digest({"a": one.double()})


@pytest.mark.parametrize(("kind", "expected"), [("bert", 64), ("roberta", 63), ("modernbert", 64)])
def test_max_length_is_what_the_position_embeddings_reach(kind: str, expected: int, folders: dict[str, Path]) -> None:
    trunk = load(folders[kind])
    assert trunk.max_length == expected
    ids = torch.full((1, expected), 7)
    assert trunk(ids, torch.ones_like(ids)).isfinite().all()
    if kind != "modernbert":
        longer = torch.full((1, expected + 1), 7)
        with pytest.raises((IndexError, RuntimeError)):
            trunk(longer, torch.ones_like(longer))


def test_data_that_does_not_fit_is_refused(encoder_folder: Path) -> None:
    trunk = load(encoder_folder)
    size = len(helpers.VOCABULARY)
    trunk.check_data(64, size - 1)
    with pytest.raises(
        UsageError, match=r"65 tokens wide, but the encoder has positions for 64; set data.max_length to 64"
    ):
        trunk.check_data(65, 0)
    with pytest.raises(UsageError, match=f"gives token id {size}, but the encoder has {size} embeddings"):
        trunk.check_data(8, size)


@pytest.mark.parametrize("kind", helpers.MODEL_TYPES)
def test_no_value_is_read_from_the_device(kind: str, folders: dict[str, Path]) -> None:
    trunk = load(folders[kind])
    params = list(trunk.parameters())
    with helpers.NoHostSync():
        first = torch.autograd.grad(trunk(*tokens()).square().sum(), params, create_graph=True)
        torch.autograd.grad(torch.stack([value.square().sum() for value in first]).sum(), params)


@pytest.mark.gpu
def test_forward_on_cuda_does_not_wait_for_the_device(encoder_folder: Path) -> None:
    trunk = load(encoder_folder).cuda()
    ids, mask = (value.cuda() for value in tokens())
    trunk(ids, mask)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trunk(ids, mask).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
