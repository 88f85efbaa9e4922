"""What can be no trunk is refused by its configuration, in one sentence that says what can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModel

from sdm_ray.config import EncoderSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.models.architecture import check_architecture
from sdm_ray.models.encoder import load_tokenizer, load_trunk
from tests.fakes import files as helpers

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("gpt2", {}, "'gpt2' is a decoder"),
        ("llama", {}, "'llama' is a decoder"),
        ("bert", {"is_decoder": True}, "'bert' is a decoder"),
        ("bart", {}, "'bart' is an encoder with a decoder"),
        ("t5", {}, "'t5' is an encoder with a decoder"),
        ("clip", {}, "'clip' is no transformer encoder of texts (its configuration has no hidden_size"),
        ("fnet", {}, "has no num_attention_heads"),
    ],
)
def test_what_is_no_encoder_is_refused(kind: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as error:
        check_architecture(AutoConfig.for_model(kind, **changes), "it")
    assert words in str(error.value)
    assert "takes an encoder: bert, distilbert, electra, modernbert, roberta, xlm-roberta" in str(error.value)


@pytest.mark.parametrize("kind", [*helpers.MODEL_TYPES, "mpnet", "albert", "camembert", "deberta-v2"])
def test_encoders_are_let_through(kind: str) -> None:
    check_architecture(AutoConfig.for_model(kind), "it")


def test_a_decoder_is_refused_before_its_tokenizer_is_asked_for(tmp_path: Path) -> None:
    AutoConfig.for_model("gpt2", vocab_size=40, n_embd=16, n_layer=1, n_head=2).save_pretrained(tmp_path)
    settings = EncoderSettings(name=str(tmp_path))
    for load in (load_tokenizer, load_trunk):
        with pytest.raises(UsageError, match="'gpt2' is a decoder"):
            load(settings, cache_dir=tmp_path)


def test_a_configuration_without_a_type_says_what_to_add(bert_folder: Path, tmp_path: Path) -> None:
    values = json.loads((bert_folder / "config.json").read_text())
    del values["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match='add "model_type", such as "bert", to it'):
        load_trunk(EncoderSettings(name=str(tmp_path)), cache_dir=tmp_path)


def test_positions_that_begin_after_the_padding_are_fewer(tmp_path: Path) -> None:
    config = AutoConfig.for_model("mpnet", vocab_size=40, max_position_embeddings=12, pad_token_id=1, **SMALL)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    trunk = load_trunk(EncoderSettings(name=str(tmp_path), pooling="mean"), cache_dir=tmp_path)
    assert trunk.max_length == 10
    with pytest.raises(UsageError, match=r"set data\.max_length to 10 or less"):
        trunk.check_data(12, 5)
