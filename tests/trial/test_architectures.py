"""Encoders of many architectures: each is refused in a sentence before anything starts, or works to the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, AutoModel

from sdm_ray.config import EncoderSettings, TrialSettings, override
from sdm_ray.core.errors import UsageError
from sdm_ray.models.encoder import load_trunk, params_digest
from sdm_ray.models.export import load_exported
from sdm_ray.trial.run import run_trial
from sdm_ray.trial.workspace import check_inputs
from tests.fakes import files as helpers

BERT_LIKE: dict[str, Any] = {
    "vocab_size": len(helpers.VOCABULARY), "pad_token_id": 0, "max_position_embeddings": 64, "hidden_size": 16,
    "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
ENCODER_DECODER: dict[str, Any] = {
    "vocab_size": len(helpers.VOCABULARY), "pad_token_id": 0, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
}  # fmt: skip
VISION = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
WIDE = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 52}
MASK, PADDING = "does not work with a prebuilt attention mask", "padding changes the features of a text"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bart": (ENCODER_DECODER, "is an encoder with a decoder"),
    "t5": ({"vocab_size": 52, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}, "with a decoder"),
    "gpt2": (WIDE, "is a decoder"),
    "xlnet": ({"vocab_size": 52, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32}, "is a decoder"),
    "clip": ({"text_config": BERT_LIKE, "vision_config": VISION | {"intermediate_size": 32}}, "has no hidden_size"),
    "clip_text_model": (BERT_LIKE | {"eos_token_id": 3}, MASK),
    "fnet": (
        {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 52},
        "has no num_attention_heads",
    ),
    "deberta": (BERT_LIKE, MASK),
    "deberta-v2": (BERT_LIKE, MASK),
    "funnel": (
        {
            "architectures": ["FunnelModel"],
            "vocab_size": 52,
            "block_sizes": [1, 1],
            "d_model": 16,
            "n_head": 2,
            "d_head": 8,
            "d_inner": 32,
        },
        MASK,
    ),
    "esm": (BERT_LIKE, MASK),
    "convbert": (BERT_LIKE | {"embedding_size": 16}, PADDING),
    "nystromformer": (BERT_LIKE, PADDING),
}
"""Changes of the configuration, and what the refusal says."""
WORKING: dict[str, dict[str, Any]] = {
    "mpnet": BERT_LIKE | {"pad_token_id": 1},
    "albert": BERT_LIKE | {"embedding_size": 8},
}


def write(folder: Path, kind: str, changes: dict[str, Any]) -> None:
    config = AutoConfig.for_model(kind, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    helpers.write_tokenizer(folder)


@pytest.fixture
def settings(data_file: Path, tmp_path: Path) -> TrialSettings:
    return TrialSettings.model_validate(
        {
            "data": {"source": str(data_file), "max_length": 24},
            "encoder": {"name": str(tmp_path / "encoder"), "pooling": "mean"},
            "train": {
                "method": "mlac", "num_outer_steps": 1, "desired_batch_size": 8, "harmful_batch_size": 8,
                "adversary": {"num_steps": 1, "batch_sizes": [4]},
            },
            "attack": {
                "families": ["token_probe"], "num_examples": [8], "num_probe_trials": 1, "num_rerun_seeds": 2,
                "num_curve_points": 0, "measure_information": False,
            },
            "scratch": {"enabled": False},
            "runtime": {"cache_dir": str(tmp_path / "cache"), "device": "cpu"},
        }
    )  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_work_is_refused_before_anything_starts(kind: str, settings: TrialSettings, tmp_path: Path) -> None:
    changes, words = REFUSED[kind]
    write(tmp_path / "encoder", kind, changes)
    with pytest.raises(UsageError, match=f"encoder.name '.*'.* model type '{kind}'.*{words}") as refusal:
        check_inputs(settings)
    assert "\n" not in str(refusal.value)
    assert "bert, distilbert, electra, modernbert" in str(refusal.value), "it says what works"


@pytest.mark.parametrize("kind", WORKING)
def test_what_is_let_through_is_trained_attacked_exported_and_loaded(
    kind: str, settings: TrialSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdm_ray.trial.run.trajectory_figure", lambda *given, **options: None)
    write(tmp_path / "encoder", kind, WORKING[kind])
    check_inputs(settings)
    result = run_trial(settings, tmp_path / "trial")
    rows = pq.read_table(tmp_path / "trial" / "attack.parquet").to_pylist()
    assert {row["family"] for row in rows} == {"token_probe"}
    assert not [row["error"] for row in rows if row["error"]]
    loaded = load_exported(tmp_path / "trial" / "model")
    assert params_digest(loaded.params) == result.provenance["weights"]
    untrained = load_trunk(settings.encoder, cache_dir=tmp_path)
    assert params_digest(dict(untrained.named_parameters())) != result.provenance["weights"]
    again = override(settings, {"encoder.name": str(tmp_path / "trial" / "model")})
    assert check_inputs(again)["encoder"] == loaded.trunk.digest()


def test_a_configuration_that_transformers_cannot_build_is_a_sentence(tmp_path: Path) -> None:
    write(tmp_path, "funnel", REFUSED["funnel"][0])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": None}))
    encoder = EncoderSettings(name=str(tmp_path), pooling="mean")
    for initialisation in ("random", "pretrained"):
        with pytest.raises(UsageError, match=r"encoder\.name .* cannot be (built|loaded): "):
            load_trunk(encoder, cache_dir=tmp_path, initialisation=initialisation)  # type: ignore[arg-type]


def test_positions_that_begin_after_the_padding_are_counted_before_training(
    settings: TrialSettings, tmp_path: Path
) -> None:
    write(tmp_path / "encoder", "mpnet", WORKING["mpnet"] | {"max_position_embeddings": 12})
    with pytest.raises(UsageError, match=r"positions for 10; set data\.max_length to 10 or less"):
        check_inputs(override(settings, {"data.max_length": 12}))


@pytest.mark.parametrize("kind", ["convbert", "nystromformer"])
def test_padding_does_change_what_is_refused_for_it(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdm_ray.models.encoder._check_masks", lambda trunk, name: None)
    write(tmp_path, kind, REFUSED[kind][0])
    trunk = load_trunk(EncoderSettings(name=str(tmp_path), pooling="mean"), cache_dir=tmp_path)
    ids, mask = torch.arange(4, 10)[None], torch.ones(1, 6, dtype=torch.int64)
    alone = trunk(ids, mask)
    padded = trunk(torch.nn.functional.pad(ids, (0, 6)), torch.nn.functional.pad(mask, (0, 6)))
    assert (alone - padded).abs().max() > 1e-4
