"""The masked-LM head scores tokens as transformers does, on the trunk's own embedding; corruption is BERT's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining

from sdm_ray.config import EncoderSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.models.corruption import corrupt, replaced
from sdm_ray.models.encoder import load_tokenizer, load_trunk
from sdm_ray.models.masked_lm import MaskedLmHead, load_masked_lm, word_embedding_name
from tests.fakes import files as helpers
from tests.fakes.trunks import padded_tokens

SPECIAL = torch.tensor([index < 5 for index in range(len(helpers.VOCABULARY))])
MASK = helpers.VOCABULARY.index("[MASK]")


def load_head(folder: Path, **changes: Any) -> MaskedLmHead:
    settings = EncoderSettings.model_validate({"name": str(folder), **changes})
    return load_masked_lm(settings, load_tokenizer(settings, cache_dir=folder), cache_dir=folder)


@pytest.mark.parametrize("kind", helpers.MODEL_TYPES)
@pytest.mark.parametrize("pooling", ["native", "mean"])
def test_scores_and_embedding_gradient_are_those_of_the_masked_lm_model(
    kind: str, pooling: str, tmp_path: Path
) -> None:
    """The gradient of the embedding is the sum of what comes through the input and through the decoder."""
    helpers.write_encoder(tmp_path, kind)
    ids, mask = padded_tokens()
    labels = ids.roll(1, 1)[mask == 1]
    reference = AutoModelForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    expected = reference(input_ids=ids, attention_mask=mask).logits[mask == 1]
    (wanted,) = torch.autograd.grad(F.cross_entropy(expected, labels), reference.get_input_embeddings().weight)

    settings = EncoderSettings.model_validate({"name": str(tmp_path), "pooling": pooling})
    trunk = load_trunk(settings, cache_dir=tmp_path)
    params = {name: value.detach().clone() for name, value in trunk.named_parameters()}
    embedding = params[word_embedding_name(trunk)].requires_grad_()
    _, hidden = functional_call(trunk, params, (ids, mask), {"hidden_states": True})
    scores = load_head(tmp_path)(hidden[-1][mask == 1], embedding)
    assert expected.std() > 0.1
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(F.cross_entropy(scores, labels), embedding, retain_graph=True)
    scale = float(wanted.abs().max())
    # transformers withholds the input's gradient from the padding token; nothing of it arises where it is masked.
    torch.testing.assert_close(gradient, wanted, atol=1e-4 * scale, rtol=1e-4)
    decoder_alone = load_head(tmp_path)(hidden[-1][mask == 1].detach(), embedding)
    (part,) = torch.autograd.grad(F.cross_entropy(decoder_alone, labels), embedding)
    assert (gradient - part).abs().max() > 1e-3 * scale


def test_the_head_stands_still(bert_folder: Path) -> None:
    head = load_head(bert_folder)
    assert not any(value.requires_grad for value in head.parameters())
    assert not head.training
    assert (head.mask_id, head.special.tolist()) == (MASK, SPECIAL.tolist())


def test_fewer_layers_keep_the_head(encoder_folder: Path) -> None:
    torch.testing.assert_close(load_head(encoder_folder, num_layers=1).bias, load_head(encoder_folder).bias)


def write_discriminator(folder: Path) -> None:
    helpers.write_encoder(folder, "electra")
    AutoModelForPreTraining.from_config(helpers.tiny_config("electra")).save_pretrained(folder)


def write_untied(folder: Path) -> None:
    helpers.write_encoder(folder, "bert", tie_word_embeddings=False)


def write_without_head(folder: Path) -> None:
    helpers.write_encoder(folder, "bert")
    AutoModelForMaskedLM.from_config(helpers.tiny_config("bert")).base_model.save_pretrained(folder)


def write_foreign(folder: Path) -> None:
    helpers.write_encoder(folder, "bert")
    helpers.tiny_config("mpnet").save_pretrained(folder)


def write_without_mask_token(folder: Path) -> None:
    helpers.write_encoder(folder, "bert")
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"mask_token"', '"no_token"'), encoding="utf-8")


def write_pickle_only(folder: Path) -> None:
    helpers.write_encoder(folder, "bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_discriminator, r"no masked-LM head \(an ELECTRA discriminator has none\); first missing: generator_"),
        (write_without_head, r"holds no masked-LM head; first missing: cls\.predictions"),
        (write_untied, "its decoder is not tied to its token embedding"),
        (write_foreign, "model type 'mpnet' is not one of bert, distilbert"),
        (write_without_mask_token, "its tokenizer has no mask token"),
    ],
)
def test_an_encoder_without_a_usable_head_is_refused_with_the_weight_to_change(
    write: Any, message: str, tmp_path: Path
) -> None:
    write(tmp_path)
    state = torch.random.get_rng_state()
    with pytest.raises(
        UsageError, match=rf"blocking\.retain_mlm does not work with .*{message}.*; set its weight to 0"
    ):
        load_head(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_weights_come_from_safetensors_alone_and_a_hub_that_is_away_is_told(
    tmp_path: Path, bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pickle_only(tmp_path)
    with pytest.raises(UsageError, match=r"no model.safetensors \(it holds pytorch_model.bin"):
        load_head(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tokenizer = load_tokenizer(EncoderSettings(name=str(bert_folder)), cache_dir=tmp_path)
    with pytest.raises(RunError, match="'nobody/nothing' could not be had"):
        load_masked_lm(EncoderSettings(name="nobody/nothing"), tokenizer, cache_dir=tmp_path)


def texts(num_texts: int = 400, length: int = 20) -> Tensor:
    """[CLS], ordinary tokens, [SEP], two tokens of padding."""
    ids = torch.randint(5, len(SPECIAL), (num_texts, length), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, -3], ids[:, -2:] = 2, 3, 0
    return ids


def corrupt_texts(ids: Tensor, share: float = 0.2, seed: int = 0) -> Any:
    return corrupt(ids, SPECIAL, mask_id=MASK, share=share, generator=torch.Generator().manual_seed(seed))


def test_of_every_text_the_share_of_ordinary_tokens_is_predicted() -> None:
    ids = texts()
    found = corrupt_texts(ids)
    rows, columns = found.positions // ids.shape[1], found.positions % ids.shape[1]
    assert torch.equal(torch.bincount(rows, minlength=len(ids)), torch.full((len(ids),), round(0.2 * 16)))
    assert torch.equal(found.labels, ids[rows, columns])
    assert (found.labels >= 5).all()
    assert (torch.bincount(columns, minlength=20)[1:17] > 40).all()  # every place is drawn about 75 times


def test_eight_in_ten_are_masked_one_replaced_by_an_ordinary_token_and_one_kept() -> None:
    ids = texts()
    found = corrupt_texts(ids)
    after = found.input_ids.flatten()[found.positions]
    masked, kept = after == MASK, after == found.labels
    assert masked.double().mean().item() == pytest.approx(0.8, abs=0.03)
    assert kept.double().mean().item() == pytest.approx(0.1, abs=0.03)
    assert (after[~masked] >= 5).all()
    elsewhere = torch.ones(ids.numel(), dtype=torch.bool)
    elsewhere[found.positions] = False
    assert torch.equal(found.input_ids.flatten()[elsewhere], ids.flatten()[elsewhere])


def test_corruption_follows_its_generator() -> None:
    ids = texts(8)
    one, same, other = corrupt_texts(ids), corrupt_texts(ids), corrupt_texts(ids, seed=1)
    assert torch.equal(one.input_ids, same.input_ids)
    assert not torch.equal(one.input_ids, other.input_ids)


def test_a_short_text_predicts_one_token_and_an_empty_one_none() -> None:
    ids = torch.tensor([[2, 7, 3, 0], [2, 3, 0, 0], [2, 7, 8, 3]])
    found = corrupt_texts(ids, share=0.01)
    assert (found.positions // 4).tolist() == [0, 2]
    assert len(corrupt_texts(ids[1:2]).labels) == 0


def test_corruption_does_not_wait_for_a_device() -> None:
    with helpers.NoHostSync():
        corrupt_texts(texts(4))


def test_replacing_touches_chosen_tokens_only() -> None:
    ids = torch.full((50, 40), 9)
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    chosen[:, ::2] = True
    after = replaced(
        ids, chosen, mask_id=MASK, tokens=torch.tensor([20, 30]), generator=torch.Generator().manual_seed(0)
    )
    assert (after[:, 1::2] == 9).all()
    assert set(after[:, ::2].flatten().tolist()) == {MASK, 9, 20, 30}
