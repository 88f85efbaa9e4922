"""The built-in encoder: what is shipped is what the code would build, and it knows the gender of names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from sdm_ray.config import DataSettings, EncoderSettings, SyntheticWorld
from sdm_ray.core.errors import RunError
from sdm_ray.core.types import Split, Task
from sdm_ray.data.device import DeviceData
from sdm_ray.data.synthetic import people, pretraining_texts, task_table
from sdm_ray.data.synthetic.names import indicator_words
from sdm_ray.data.synthetic.phrases import FILLER, PASTIMES
from sdm_ray.data.tokenized import prepare
from sdm_ray.models import builtin, masking, pretrain
from sdm_ray.models.builtin import builtin_folder, recorded_hash
from sdm_ray.models.encoder import load_tokenizer, load_trunk, tokenizer_digest
from sdm_ray.models.masked_lm import load_masked_lm
from sdm_ray.models.pretrain import (
    RECORD_FILE,
    SHIPPED_FOLDERS,
    SPECIAL_TOKENS,
    build_tokenizer,
    pretrain_builtin,
    pretraining_record,
)
from sdm_ray.models.pretrain_settings import PairPretrainSettings, PretrainSettings

SHIPPED_FOLDER = SHIPPED_FOLDERS[1]
TINY_WORLD = SyntheticWorld(version=1, num_names=12, num_examples=40, num_pretraining_texts=60, num_professions=2)
TINY = PretrainSettings(num_layers=1, hidden_size=8, num_heads=1, intermediate_size=8, num_steps=3, batch_size=4)


def test_shipped_encoder_is_the_one_that_the_code_would_build() -> None:
    record = json.loads((SHIPPED_FOLDER / RECORD_FILE).read_text())
    loss = record.pop("final_loss")
    rebuild = "the generator or the pretraining changed: run `python -m sdm_ray.models.pretrain --version 1`"
    assert record == pretraining_record(SyntheticWorld(version=1), PretrainSettings()), rebuild
    assert 0.5 < loss < 2.5


@pytest.mark.parametrize("version", SHIPPED_FOLDERS)
def test_shipped_folder_is_small_and_holds_no_pickles(version: int) -> None:
    files = [path for path in SHIPPED_FOLDERS[version].rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 2_000_000
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    weights = load_file(SHIPPED_FOLDERS[version] / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


@pytest.mark.parametrize("version", SHIPPED_FOLDERS)
def test_default_worlds_use_the_shipped_folders_and_write_nothing(version: int, tmp_path: Path) -> None:
    cache, world = tmp_path / "cache", SyntheticWorld.model_validate({"version": version})
    assert builtin_folder(world, cache_dir=cache) == SHIPPED_FOLDERS[version]
    # The encoder never sees the task table, so its size makes no difference.
    smaller = world.model_copy(update={"num_examples": 500})
    assert builtin_folder(smaller, cache_dir=cache) == SHIPPED_FOLDERS[version]
    assert builtin_folder(cache_dir=cache) == SHIPPED_FOLDERS[SyntheticWorld().version]
    assert not cache.exists()


@pytest.mark.parametrize("version", SHIPPED_FOLDERS)
def test_tokenizer_knows_every_word_as_one_token(version: int) -> None:
    world = SyntheticWorld.model_validate({"version": version, "num_examples": 300, "num_pretraining_texts": 300})
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_FOLDERS[version])
    ids = tokenizer(task_table(world)["text"].to_pylist() + pretraining_texts(world))["input_ids"]
    assert all(row[0] == tokenizer.cls_token_id and row[-1] == tokenizer.sep_token_id for row in ids)
    assert tokenizer.unk_token_id not in {token for row in ids for token in row}
    pieces = [piece for name in people(world) for piece in name.title().split()]
    assert all(len(row) == 1 for row in tokenizer(pieces, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("version", SHIPPED_FOLDERS)
def test_masked_lm_head_is_shipped(version: int, tmp_path: Path) -> None:
    encoder, world = EncoderSettings(), SyntheticWorld.model_validate({"version": version})
    tokenizer = load_tokenizer(encoder, cache_dir=tmp_path, world=world)
    head = load_masked_lm(encoder, tokenizer, cache_dir=tmp_path, world=world)
    assert head.mask_id == tokenizer.mask_token_id
    assert not any(tmp_path.iterdir())


def test_special_token_ids_of_config_and_tokenizer_agree() -> None:
    tokenizer, config = AutoTokenizer.from_pretrained(SHIPPED_FOLDER), AutoConfig.from_pretrained(SHIPPED_FOLDER)
    assert (config.pad_token_id, config.cls_token_id, config.sep_token_id) == (
        tokenizer.pad_token_id,
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
    )
    assert config.vocab_size == len(tokenizer)
    assert config.classifier_pooling == "mean"


def test_sequence_classification_reuses_all_but_the_last_layer() -> None:
    _, info = AutoModelForSequenceClassification.from_pretrained(SHIPPED_FOLDER, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not info["mismatched_keys"]


def test_pretraining_is_deterministic_and_leaves_global_random_state_alone(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    for name in ("a", "b"):
        pretrain_builtin(TINY_WORLD, tmp_path / name, TINY)
    assert torch.equal(torch.random.get_rng_state(), state)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    pretrain_builtin(TINY_WORLD, tmp_path / "c", TINY.model_copy(update={"seed": 1}))
    assert not all(
        torch.equal(value, first[key]) for key, value in load_file(tmp_path / "c" / "model.safetensors").items()
    )


def test_another_world_is_pretrained_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = builtin_folder(TINY_WORLD, cache_dir=tmp_path, settings=TINY)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    AutoModelForSequenceClassification.from_pretrained(folder)
    monkeypatch.setattr(builtin, "pretrain_builtin", _refuse)
    assert builtin_folder(TINY_WORLD, cache_dir=tmp_path, settings=TINY) == folder
    with pytest.raises(AssertionError, match="pretrained again"):
        builtin_folder(TINY_WORLD.model_copy(update={"seed": 5}), cache_dir=tmp_path, settings=TINY)


def test_two_processes_at_once_end_with_one_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(world: SyntheticWorld, out_dir: Path, settings: PretrainSettings) -> dict[str, Any]:
        monkeypatch.setattr(builtin, "pretrain_builtin", pretrain_builtin)
        builtin_folder(world, cache_dir=tmp_path, settings=settings)  # the other process finishes first
        return pretrain_builtin(world, out_dir, settings)

    monkeypatch.setattr(builtin, "pretrain_builtin", overtaken)
    folder = builtin_folder(TINY_WORLD, cache_dir=tmp_path, settings=TINY)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert recorded_hash(folder) == pretraining_record(TINY_WORLD, TINY)["content_hash"]


def test_a_damaged_folder_is_replaced_and_a_failure_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = builtin_folder(TINY_WORLD, cache_dir=tmp_path, settings=TINY)
    (folder / RECORD_FILE).write_text("{")
    assert builtin_folder(TINY_WORLD, cache_dir=tmp_path, settings=TINY) == folder
    assert recorded_hash(folder) is not None

    def interrupted(world: SyntheticWorld, out_dir: Path, settings: PretrainSettings) -> dict[str, Any]:
        out_dir.mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(builtin, "pretrain_builtin", interrupted)
    with pytest.raises(KeyboardInterrupt):
        builtin_folder(TINY_WORLD.model_copy(update={"seed": 2}), cache_dir=tmp_path, settings=TINY)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_an_unwritable_cache_is_one_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunError, match="choose another cache folder"):
        builtin_folder(TINY_WORLD, cache_dir=blocked, settings=TINY)


@pytest.mark.parametrize("scrub_share", [0.0, 1.0])
def test_gendered_words_are_predicted_from_names_alone(scrub_share: float) -> None:
    world = SyntheticWorld(version=1)
    tokenizer = build_tokenizer(world, 512)
    texts = pretraining_texts(world.model_copy(update={"num_pretraining_texts": 200}))
    ids, mask = pretrain.encode_texts(tokenizer, texts, 32)
    scrubbed = masking.scrubbed_ids(tokenizer)
    settings = PretrainSettings(mask_share=0.0, gendered_mask_share=1.0, scrub_share=scrub_share)
    corrupted, labels = masking.corrupt_texts(ids, scrubbed, settings, torch.Generator().manual_seed(0))
    gendered = scrubbed[ids] >= 0
    assert torch.equal(labels != -100, gendered)
    assert torch.equal(labels[gendered], ids[gendered])
    assert torch.equal(corrupted[~gendered], ids[~gendered])
    read_as = set(tokenizer.convert_ids_to_tokens(corrupted[gendered].tolist()))
    assert read_as == ({"they", "their", "[MASK]"} if scrub_share else {"[MASK]"})
    assert mask.shape == ids.shape


def test_masking_leaves_special_tokens_alone_and_masks_the_stated_share() -> None:
    tokenizer = build_tokenizer(TINY_WORLD, 512)
    ids, _ = pretrain.encode_texts(tokenizer, pretraining_texts(TINY_WORLD) * 50, 32)
    settings = PretrainSettings(mask_share=0.3, gendered_mask_share=0.0)
    generator = torch.Generator().manual_seed(0)
    corrupted, labels = masking.corrupt_texts(ids, masking.scrubbed_ids(tokenizer), settings, generator)
    words = ids >= len(SPECIAL_TOKENS)
    chosen = labels != -100
    assert not (chosen & ~words).any()
    assert torch.equal(corrupted[~chosen], ids[~chosen])
    assert abs(chosen.sum() / words.sum() - 0.3) < 0.02
    assert abs((corrupted[chosen] == masking.MASK).float().mean() - 0.8) < 0.02


def test_version_2_predicts_its_words_as_often_as_they_teach() -> None:
    world = SyntheticWorld(version=2, num_pretraining_texts=3000)
    tokenizer, settings = build_tokenizer(world, 512), PairPretrainSettings(gendered_mask_share=0.0)
    ids, _ = pretrain.encode_texts(tokenizer, pretraining_texts(world), settings.max_length)
    shares = masking.word_shares(world, tokenizer, settings)
    assert shares is not None
    generator = torch.Generator().manual_seed(0)
    corrupted, labels = masking.corrupt_texts(ids, masking.scrubbed_ids(tokenizer), settings, generator, shares)
    pieces = [piece for name in people(world) for piece in name.split()]
    for words, share in ((indicator_words(), 0.6), (FILLER, 0.05), (pieces, 0.03), (PASTIMES["music"], 0.15)):
        found = torch.isin(ids, torch.tensor(tokenizer.convert_tokens_to_ids(list(words))))
        chosen = labels[found] != masking.IGNORED
        assert abs(chosen.float().mean() - share) < 0.015
        always = (corrupted[found][chosen] == masking.MASK).float().mean()
        assert (always == 1) == (share == 0.6)
    assert masking.word_shares(SyntheticWorld(version=1), tokenizer, PretrainSettings()) is None


def test_scrubbing_of_version_2_knows_the_reflexive() -> None:
    tokenizer = build_tokenizer(SyntheticWorld(version=2), 512)
    scrubbed = masking.scrubbed_ids(tokenizer)
    read_as = {
        word: tokenizer.convert_ids_to_tokens(int(scrubbed[tokenizer.convert_tokens_to_ids(word)]))
        for word in ("she", "his", "herself", "himself", "mother")
    }
    assert list(read_as.values()) == ["they", "their", "themselves", "themselves", "[MASK]"]


def test_pretrained_features_know_new_names_and_random_ones_do_not(tmp_path: Path) -> None:
    """The head start in short: a linear probe on frozen features; `tests.benchmarks.headroom` measures it in full."""
    encoder = EncoderSettings()
    world = SyntheticWorld(version=1)
    tokenizer = load_tokenizer(encoder, cache_dir=tmp_path, world=world)
    data = DeviceData(prepare(DataSettings(synthetic=world), tokenizer, tokenizer_digest(tokenizer), tmp_path), "cpu")
    accuracy = {}
    for initialisation in ("pretrained", "random"):
        trunk = load_trunk(encoder, cache_dir=tmp_path, world=world, initialisation=initialisation)
        with torch.no_grad():
            parts = []
            for split in (Split.ATTACKER_TRAIN, Split.TEST):
                batch = data.batch(data.indices(split), Task.HARMFUL)
                parts.append((trunk(batch.input_ids, batch.attention_mask), batch.labels))
        (train, train_labels), (test, test_labels) = parts
        head = torch.zeros(2, trunk.feature_dim, requires_grad=True)
        optimizer = torch.optim.Adam([head], lr=1e-2)
        for _ in range(200):
            optimizer.zero_grad()
            F.cross_entropy(train @ head.T, train_labels).backward()
            optimizer.step()
        accuracy[initialisation] = ((test @ head.T).argmax(1) == test_labels).float().mean().item()
    assert accuracy["pretrained"] > 0.85
    assert accuracy["random"] < 0.6


def _refuse(*_: Any) -> dict[str, Any]:
    raise AssertionError("pretrained again")
