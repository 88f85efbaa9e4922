"""An exported folder computes what the trained model computes, and is written and read safely."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

import sdm_ray.models.export as export_module
from sdm_ray.config import Method, TrainSettings, TrialSettings, content_hash
from sdm_ray.config.attack import FAMILIES
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.models.export import Exported, export_model, load_exported
from sdm_ray.models.heads import init_head, logits
from sdm_ray.models.model_card import UNTRIED, model_card, not_tried
from sdm_ray.models.trunk import Trunk

WORDS = ["alex", "works", "as", "a", "nurse", "judge", "poet", "in", "the", "city"]
NAMES = ("nurse", "judge", "poet")
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 20}
BERT_LIKE = {**SMALL, "max_position_embeddings": 40, "pad_token_id": 0}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": BERT_LIKE,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 20, "pad_token_id": 0},
    "electra": {**BERT_LIKE, "embedding_size": 12},
    "modernbert": {**BERT_LIKE, "classifier_pooling": "mean", "bos_token_id": 2, "cls_token_id": 2,
                   "eos_token_id": 3, "sep_token_id": 3, "global_attn_every_n_layers": 2, "local_attention": 4},
    "roberta": {**BERT_LIKE, "bos_token_id": 2, "eos_token_id": 3},
    "xlm-roberta": {**BERT_LIKE, "bos_token_id": 2, "eos_token_id": 3},
}  # fmt: skip


def make_tokenizer() -> Any:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(special + WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=32, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def make_trunk(model_type: str, pooling: str, seed: int = 0) -> Trunk:
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(model_type, **ARCHITECTURES[model_type])
    kind = transformers.AutoModelForSequenceClassification if pooling == "native" else transformers.AutoModel
    return Trunk(kind.from_config(config, attn_implementation="eager"), pooling)  # type: ignore[arg-type]


def trained_params(trunk: Trunk, seed: int = 5) -> dict[str, torch.Tensor]:
    """Weights other than those in the module, as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value.detach() + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in trunk.named_parameters()
    }


def settings_for(pooling: str) -> TrialSettings:
    return TrialSettings.model_validate({"name": "unit", "encoder": {"pooling": pooling}})


def export(folder: Path, trunk: Trunk, seed: int = 5) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    params = trained_params(trunk, seed)
    head = init_head(trunk.feature_dim, len(NAMES), torch.Generator().manual_seed(seed)) * 10
    export_model(
        folder,
        trunk=trunk,
        params=params,
        desired_head=head,
        tokenizer=make_tokenizer(),
        label_names=NAMES,
        settings=settings_for(trunk.pooling),
        metrics={"desired/accuracy": 0.9375, "harmful/worst_accuracy": float("nan")},
    )
    return params, head


def tokens() -> dict[str, torch.Tensor]:
    encoded = make_tokenizer()(["alex works as a nurse", "the poet", "judge in the city as"], padding=True)
    return {key: torch.tensor(encoded[key]) for key in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_native_export_equals_the_trained_model_to_the_bit(model_type: str, tmp_path: Path) -> None:
    trunk = make_trunk(model_type, "native")
    params, head = export(tmp_path / "model", trunk)
    batch = tokens()
    with torch.no_grad():
        wanted = logits(torch.func.functional_call(trunk, params, tuple(batch.values())), head)
        released = transformers.AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "model", attn_implementation="eager"
        )
        found = released(**batch).logits
    assert wanted.std() > 1e-3, "all logits are alike, so equality would prove nothing"
    assert torch.equal(found, wanted)
    assert released.config.id2label == dict(enumerate(NAMES))
    assert released.config.label2id == {name: index for index, name in enumerate(NAMES)}


@pytest.mark.parametrize(
    ("model_type", "pooling"),
    [
        *((name, "native") for name in sorted(ARCHITECTURES)),
        ("bert", "mean"),
        ("roberta", "cls"),
        ("modernbert", "mean"),
    ],
)
def test_load_exported_gives_back_trunk_head_and_meta(model_type: str, pooling: str, tmp_path: Path) -> None:
    trunk = make_trunk(model_type, pooling)
    params, head = export(tmp_path / "model", trunk)
    loaded = load_exported(tmp_path / "model")
    assert loaded.head is not None
    assert loaded.meta is not None
    with torch.no_grad():
        batch = tuple(tokens().values())
        wanted = logits(torch.func.functional_call(trunk, params, batch), head)
        found = logits(torch.func.functional_call(loaded.trunk, loaded.params, batch), loaded.head)
    assert torch.equal(found, wanted)
    assert loaded.meta.label_names == NAMES
    assert loaded.meta.settings == settings_for(pooling)
    assert loaded.meta.config_hash == content_hash(settings_for(pooling))
    assert loaded.meta.metrics["desired/accuracy"] == 0.9375
    assert (tmp_path / "model" / "head.safetensors").exists() == (pooling != "native")


def test_pipeline_predicts_the_names_of_classes(tmp_path: Path) -> None:
    trunk = make_trunk("modernbert", "native")
    params, head = export(tmp_path / "model", trunk)
    text = "alex works as a nurse"
    classify = transformers.pipeline("text-classification", model=str(tmp_path / "model"))
    with torch.no_grad():
        encoded = make_tokenizer()([text], return_tensors="pt")
        features = torch.func.functional_call(trunk, params, (encoded["input_ids"], encoded["attention_mask"]))
    answer = classify(text)[0]
    probabilities = logits(features, head).softmax(-1)[0]
    assert answer["label"] == NAMES[int(probabilities.argmax())]
    assert answer["score"] == pytest.approx(float(probabilities.max()), abs=1e-5)


def test_the_card_says_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    export(tmp_path / "native", make_trunk("bert", "native"))
    export(tmp_path / "mean", make_trunk("bert", "mean"))
    native, mean = ((tmp_path / name / "README.md").read_text() for name in ("native", "mean"))
    assert native.startswith("---\nlicense: unknown\n")
    for words in (
        "## Threat model",
        "0.938",
        "not measured",
        "n in {20, 50, 100, 200}",
        "16 settings",
        "## What was not",
    ):
        assert words in native
    assert "pipeline_tag: text-classification" in native
    assert "pipeline_tag" not in mean
    assert "head.safetensors" in mean
    assert "head.safetensors" not in native


def test_the_card_lists_what_its_attack_left_open() -> None:
    few = TrialSettings.model_validate({"attack": {"families": ["fine_tune"], "num_examples": [20]}})
    many = TrialSettings.model_validate({"attack": {"families": ["full", "lora", "knn"], "num_examples": [20, "all"]}})
    few_items, many_items = not_tried(few), not_tried(many)
    assert "optimisers other than Adam, and learning-rate schedules" in few_items
    assert "low-rank adapters" in few_items
    assert any("more labelled examples" in item for item in few_items)
    assert not {"optimisers other than Adam, and learning-rate schedules", "low-rank adapters"} & set(many_items)
    assert not any("nearest neighbours" in item or "more labelled examples" in item for item in many_items)
    assert {name for names in UNTRIED for name in names.split()} == set(FAMILIES), "each family has words"
    assert "training a head alone" in many_items
    for item in many_items:
        assert f"- {item}" in model_card(many, label_names=NAMES, metrics={}, model_type="bert")


def test_the_card_is_one_that_the_hub_takes() -> None:
    document = {"data": {"source": "LabHC/bias_in_bios"}, "encoder": {"name": "google/bert_uncased_L-2_H-128_A-2"}}
    settings = TrialSettings.model_validate(document)
    metrics = {"desired/accuracy": 0.9125, "harmful/worst_accuracy": 0.5, "regret/accuracy": math.nan}
    card = ModelCard(model_card(settings, label_names=NAMES, metrics=metrics, model_type="bert"))
    assert card.data.base_model == "google/bert_uncased_L-2_H-128_A-2"
    assert card.data.datasets == ["LabHC/bias_in_bios"]
    assert card.data.license == "unknown"
    assert [(result.metric_name, result.metric_value) for result in card.data.eval_results] == [
        ("desired accuracy (desired/accuracy)", 0.9125),
        ("worst harmful accuracy (harmful/worst_accuracy)", 0.5),
    ]
    local = TrialSettings.model_validate(document | {"data": {"source": "/home/me/bios.parquet"}})
    header = model_card(local, label_names=NAMES, metrics=metrics, model_type="bert").split("---")[1]
    assert "/home" not in header


def test_the_card_says_the_verdict_and_that_it_is_of_a_model_trained_again() -> None:
    metrics = {"regret/accuracy": 0.0, "regret/accuracy/low": -0.1, "regret/accuracy/high": 0.01, "audit/passed": 0.0}
    origin = {"sweep": "demo", "trial_id": "t3", "rule": "knee"}
    settings = TrialSettings.model_validate({"name": "mine", "origin": origin, "attack": {"num_rerun_seeds": 2}})
    card = model_card(settings, label_names=NAMES, metrics=metrics, model_type="bert", failed_checks=["sub_chance"])
    assert "# mine, trained again\n\nTrained again from the settings of trial `t3` of sweep `demo`" in card
    assert "**cannot be concluded: the audit failed" in card
    assert "failed checks: sub chance.**" in card
    assert "intervals rest on 2 re-runs" in card
    own = model_card(TrialSettings(name="mine"), label_names=NAMES, metrics={}, model_type="bert")
    assert "# mine\n" in own
    assert "Verdict" not in own


@pytest.mark.parametrize(("method", "blocks"), [("mlac", True), ("ac", True), ("tuned", False), ("random", False)])
def test_the_card_claims_resistance_for_blocked_models_only(method: Method, blocks: bool) -> None:
    settings = TrialSettings(train=TrainSettings(method=method))
    card = model_card(settings, label_names=NAMES, metrics={}, model_type="bert")
    assert ("to be hard to adapt" in card) == blocks
    assert ("nothing in it resists" in card) != blocks
    assert "Nothing yet." in card


def test_names_of_others_do_not_steer_the_card() -> None:
    data = {"desired_column": "<script>x</script>", "harmful_column": "a\n\n# b | [c](d)", "source": "x`\n\n## Verdict"}
    settings = TrialSettings.model_validate(
        {"name": "<b>\n# x", "data": data, "encoder": {"name": "x`y", "pooling": "native"}}
    )
    card = model_card(settings, label_names=["a\n# y", "<i>"], metrics={}, model_type="bert").split("---", 2)[2]
    assert "<script" not in card.replace("\\<", "")
    assert "<i>" not in card.replace("\\<", "")
    headings = [line for line in card.splitlines() if line.startswith("#")]
    assert headings[0].startswith("# \\<b\\>")
    assert {"## Verdict", "# b", "# x", "# y"}.isdisjoint(headings)
    assert "](d)" not in card.replace("\\]", "")


def test_a_head_of_nan_is_refused(tmp_path: Path) -> None:
    export(tmp_path / "model", make_trunk("bert", "mean"))
    path = tmp_path / "model" / "head.safetensors"
    weight = load_file(path)["weight"]
    weight[0, 0] = math.nan
    save_file({"weight": weight}, path)
    with pytest.raises(RunError, match=r"head\.safetensors: weight holds NaN or infinite values"):
        load_exported(tmp_path / "model")


def test_nothing_but_safetensors_is_written(tmp_path: Path) -> None:
    export(tmp_path / "model", make_trunk("bert", "native"))
    suffixes = {path.suffix for path in (tmp_path / "model").iterdir()}
    assert suffixes <= {".json", ".safetensors", ".md", ".txt"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "temporary folders are left behind"


def test_an_earlier_export_is_replaced_and_another_folder_is_not(tmp_path: Path) -> None:
    trunk = make_trunk("bert", "native")
    export(tmp_path / "model", trunk, seed=1)
    first = load_file(tmp_path / "model" / "model.safetensors")["classifier.weight"]
    export(tmp_path / "model", trunk, seed=2)
    second = load_file(tmp_path / "model" / "model.safetensors")["classifier.weight"]
    assert not torch.equal(first, second)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is no exported model"):
        export(tmp_path / "thesis", trunk)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_a_failed_write_leaves_the_old_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = make_trunk("bert", "native")
    export(tmp_path / "model", trunk, seed=1)
    before = (tmp_path / "model" / "model.safetensors").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "_describe", full)
    with pytest.raises(RunError, match="No space left on device; free space"):
        export(tmp_path / "model", trunk, seed=2)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_names_must_match_the_head(tmp_path: Path) -> None:
    trunk = make_trunk("bert", "native")
    with pytest.raises(UsageError, match="2 classes, 3 names"):
        export_model(
            tmp_path / "model", trunk=trunk, params=trained_params(trunk), desired_head=torch.zeros(2, 16),
            tokenizer=make_tokenizer(), label_names=NAMES, settings=settings_for("native"), metrics={},
        )  # fmt: skip


def test_a_foreign_encoder_loads_without_head_and_meta(tmp_path: Path) -> None:
    trunk = make_trunk("bert", "native")
    trunk.export_hf(trained_params(trunk), torch.zeros(3, 16), NAMES).save_pretrained(tmp_path)
    loaded = load_exported(tmp_path)
    assert isinstance(loaded, Exported)
    assert loaded.head is None
    assert loaded.meta is None
    assert set(loaded.params) == {name for name, _ in trunk.named_parameters()}


def test_files_outside_the_folder_are_refused(tmp_path: Path) -> None:
    export(tmp_path / "model", make_trunk("bert", "mean"))
    secret = tmp_path / "secret.safetensors"
    (tmp_path / "model" / "head.safetensors").rename(secret)
    (tmp_path / "model" / "head.safetensors").symlink_to(secret)
    with pytest.raises(UsageError, match="points outside the model folder"):
        load_exported(tmp_path / "model")
    (tmp_path / "model" / "head.safetensors").unlink()
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="lies outside the folder"):
        load_exported(tmp_path / "model")


def test_damage_is_one_clear_error(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    export(folder, make_trunk("bert", "mean"))
    head, meta = (folder / "head.safetensors").read_bytes(), (folder / "sdm_ray.json").read_text()
    (folder / "head.safetensors").write_bytes(head[: len(head) // 2])
    with pytest.raises(RunError, match="holds no readable weight"):
        load_exported(folder)
    (folder / "head.safetensors").write_bytes(head)
    (folder / "sdm_ray.json").write_text(meta.replace('"format": 1', '"format": 9'))
    with pytest.raises(RunError, match="has format 9"):
        load_exported(folder)
    (folder / "sdm_ray.json").write_text(meta[:50])
    with pytest.raises(RunError, match=r"cannot read .*sdm_ray\.json"):
        load_exported(folder)
    (folder / "sdm_ray.json").write_text('{"format": 1}')
    with pytest.raises(RunError, match=r"is damaged \(KeyError: 'settings'\)"):
        load_exported(folder)
    with pytest.raises(UsageError, match="does not exist"):
        load_exported(tmp_path / "nowhere")


def test_weights_that_need_unpickling_are_refused(tmp_path: Path) -> None:
    trunk = make_trunk("bert", "native")
    model = trunk.export_hf(trained_params(trunk), torch.zeros(3, 16), NAMES)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"has no model\.safetensors"):
        load_exported(tmp_path)
