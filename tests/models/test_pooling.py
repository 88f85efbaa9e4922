"""Pooling that is left open is what the encoder's own files say; nothing computed before gets another hash."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sdm_ray.config import EncoderSettings, TrialSettings, content_hash
from sdm_ray.models.encoder import load_trunk
from sdm_ray.models.pooling import choose_pooling

MEAN = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def write(folder: Path, values: Any, name: str = "1_Pooling") -> EncoderSettings:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "config.json").write_text(json.dumps(values))
    return EncoderSettings(name=str(folder))


@pytest.mark.parametrize(
    ("values", "pooling", "words"),
    [
        (MEAN, "mean", "encoder.pooling: mean, as 1_Pooling/config.json"),
        ({"pooling_mode_cls_token": True}, "cls", "encoder.pooling: cls, as"),
        ({"pooling_mode": "mean"}, "mean", "encoder.pooling: mean, as"),
        ({"pooling_mode_max_tokens": True}, "native", "asks for max_tokens, which is not offered"),
        (MEAN | {"pooling_mode_max_tokens": True}, "native", "mean_tokens and max_tokens, which is not"),
        ([], "native", None),
    ],
)
def test_an_encoders_own_files_decide(values: Any, pooling: str, words: str | None, tmp_path: Path) -> None:
    encoder, note = choose_pooling(write(tmp_path, values))
    assert encoder.pooling == pooling
    assert (note is None) == (words is None)
    assert words is None or words in str(note)


def test_the_list_of_modules_names_the_folder(tmp_path: Path) -> None:
    settings = write(tmp_path, MEAN, "pool")
    (tmp_path / "modules.json").write_text(
        json.dumps([{"path": "", "type": "a.Transformer"}, {"path": "pool", "type": "a.Pooling"}])
    )
    assert choose_pooling(settings).encoder.pooling == "mean"


@pytest.mark.parametrize("pooling", ["native", "cls", "mean"])
def test_what_is_asked_for_stays(pooling: str, tmp_path: Path) -> None:
    settings = write(tmp_path, MEAN).model_copy(update={"pooling": pooling})
    assert choose_pooling(settings) == (settings, None)


def test_without_such_files_it_is_native(tmp_path: Path) -> None:
    for name in ("builtin", "mlp", str(tmp_path)):
        assert choose_pooling(EncoderSettings(name=name)) == (EncoderSettings(name=name, pooling="native"), None)


def test_the_trunk_pools_as_the_files_say(bert_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert_folder, tmp_path / "bert")
    assert load_trunk(EncoderSettings(name=str(folder)), cache_dir=tmp_path).pooling == "native"
    settings = write(folder, MEAN)
    assert load_trunk(settings, cache_dir=tmp_path).pooling == "mean"
    assert load_trunk(settings.model_copy(update={"pooling": "cls"}), cache_dir=tmp_path).pooling == "cls"


def test_left_out_it_hashes_as_it_did() -> None:
    """`native` was the default when results were published, and was part of their hashes."""
    hashes = {
        pooling: content_hash(TrialSettings.model_validate({"encoder": {"name": "e/e", "pooling": pooling}}))
        for pooling in ("native", "mean", "auto")
    }
    assert hashes["auto"] == hashes["native"] != hashes["mean"]
    assert content_hash(EncoderSettings()) == content_hash(EncoderSettings(pooling="native"))


@pytest.mark.parametrize("away", [True, False])
def test_a_hub_that_does_not_answer_is_not_asked_for_files(
    away: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client would try for a minute; a hub that answers is asked."""
    asked: list[str] = []

    def download(name: str, file: str, **options: Any) -> str:
        asked.append(file)
        write(tmp_path, MEAN)
        return str(tmp_path / file)

    monkeypatch.setattr("sdm_ray.models.pooling.is_away", lambda: away)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **options: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    encoder, _ = choose_pooling(EncoderSettings(name="somebody/encoder"))
    assert (encoder.pooling, bool(asked)) == (("native", False) if away else ("mean", True))
