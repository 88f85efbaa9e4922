"""Loading encoders: initialisation, safetensors only, no foreign code, one clear sentence for what cannot be loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdm_ray.config import EncoderSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.models.encoder import load_tokenizer, load_trunk, tokenizer_digest
from tests.fakes import files as helpers


def settings_of(folder: Path | str, **changes: Any) -> EncoderSettings:
    return EncoderSettings.model_validate({"name": str(folder), **changes})


@pytest.fixture
def own_folder(encoder_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(encoder_folder, tmp_path / "encoder")


def test_pretrained_weights_are_the_checkpoint_s(encoder_folder: Path) -> None:
    from safetensors.torch import load_file

    stored = load_file(encoder_folder / "model.safetensors")
    trunk = load_trunk(settings_of(encoder_folder), cache_dir=encoder_folder)
    loaded = {name.removeprefix("hf_model."): value for name, value in trunk.named_parameters()}
    assert len(loaded) > 10
    for name, value in loaded.items():
        assert torch.equal(value, stored[name]), name


@pytest.mark.parametrize("kind", helpers.MODEL_TYPES)
def test_random_initialisation_depends_on_the_seed_alone(kind: str, tmp_path: Path) -> None:
    settings = settings_of(helpers.write_encoder(tmp_path, kind))
    pretrained = dict(load_trunk(settings, cache_dir=tmp_path).named_parameters())
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one = load_trunk(settings, cache_dir=tmp_path, initialisation="random", seed=1)
    assert torch.equal(torch.random.get_rng_state(), state), "global random state was touched"
    torch.manual_seed(6)
    again = load_trunk(settings, cache_dir=tmp_path, initialisation="random", seed=1)
    other = load_trunk(settings, cache_dir=tmp_path, initialisation="random", seed=2)
    assert one.digest() == again.digest() != other.digest()
    # Matrices (embeddings included) are drawn; what is constant at initialisation no longer has trained values either.
    for name, value in one.named_parameters():
        assert not torch.equal(value, pretrained[name]) or "bias" in name, name
        if value.dim() > 1:
            assert not torch.equal(value, other.get_parameter(name)), name


def test_pretrained_loading_leaves_global_random_state_and_does_not_depend_on_it(bert_folder: Path) -> None:
    # The masked-LM checkpoint has no pooler: its weights are new.
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = load_trunk(settings_of(bert_folder), cache_dir=bert_folder)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    assert load_trunk(settings_of(bert_folder), cache_dir=bert_folder, seed=3).digest() == first.digest()


def test_loading_says_nothing(bert_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_trunk(settings_of(bert_folder, num_layers=1), cache_dir=bert_folder)
    load_tokenizer(settings_of(bert_folder), cache_dir=bert_folder)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(own_folder: Path, tmp_path: Path, value: float) -> None:
    weights = load_file(own_folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("word_embeddings.weight") or "tok_embeddings" in name)
    weights[name][0, :2] = value
    save_file(weights, own_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"2 of \d+ values of .* are NaN or infinite; take another copy"):
        load_trunk(EncoderSettings(name=str(own_folder), pooling="mean"), cache_dir=tmp_path)
    load_trunk(EncoderSettings(name=str(own_folder), pooling="mean"), cache_dir=tmp_path, initialisation="random")


def test_half_precision_checkpoints_become_float32(tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    helpers.write_encoder(tmp_path, "bert")
    AutoModelForMaskedLM.from_pretrained(tmp_path).half().save_pretrained(tmp_path)
    for initialisation in ("pretrained", "random"):
        trunk = load_trunk(settings_of(tmp_path), cache_dir=tmp_path, initialisation=initialisation)  # type: ignore[arg-type]
        assert {value.dtype for value in trunk.parameters()} == {torch.float32}


def test_an_architecture_outside_the_table_works_with_mean_and_refuses_native(tmp_path: Path) -> None:
    helpers.write_encoder(tmp_path, "camembert")
    trunk = load_trunk(settings_of(tmp_path, pooling="mean"), cache_dir=tmp_path)
    assert trunk.model_type == "camembert"
    with pytest.raises(
        UsageError, match=r"native.*'camembert'.*bert, distilbert, electra, modernbert.*'mean' or 'cls'"
    ):
        load_trunk(settings_of(tmp_path), cache_dir=tmp_path)


def test_an_architecture_that_reads_masks_its_own_way_is_refused(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("deberta-v2", vocab_size=40, **sizes)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(
        UsageError, match="'deberta-v2' does not work with a prebuilt attention mask; known to work: bert"
    ):
        load_trunk(settings_of(tmp_path, pooling="mean"), cache_dir=tmp_path)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def other_encoder(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"unrelated.weight": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"has no model.safetensors$"),
    "pickle only": (
        only_pickle,
        r"no model.safetensors \(it holds pytorch_model.bin: save it again with safetensors\)",
    ),
    "damaged weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 64),
        "weights cannot be loaded",
    ),
    "other weights": (other_encoder, r"\d+ of its weights are missing .*does not hold a trained modernbert encoder"),
    "damaged config": (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded|not usable"),
    "config that is a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json holds a list"),
    "no layers": (
        lambda folder: edit_config(folder, num_hidden_layers=0, layer_types=None),
        "has 0 for num_hidden_layers, .* from 1 ",
    ),
    "negative layers": (
        lambda folder: edit_config(folder, num_hidden_layers=-1, layer_types=None),
        "has -1 for num_hidden_layers",
    ),
    "endless layers": (
        lambda folder: edit_config(folder, num_hidden_layers=10**7, layer_types=None),
        "has 10000000 for num_hidden_layers, .* to 1000",
    ),
    "layers in words": (lambda folder: edit_config(folder, num_hidden_layers="two"), "has 'two' for num_hidden_layers"),
    "unknown type": (lambda folder: edit_config(folder, model_type="nonesuch"), "config.json is not usable.*nonesuch"),
    "wrong shape": (lambda folder: edit_config(folder, hidden_size=32), "weights cannot be loaded"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_cannot_be_loaded_is_one_clear_sentence(damage: str, own_folder: Path) -> None:
    break_it, message = DAMAGES[damage]
    break_it(own_folder)
    with pytest.raises(UsageError, match=message) as caught:
        load_trunk(settings_of(own_folder), cache_dir=own_folder)
    assert "\n" not in str(caught.value)
    assert str(own_folder) in str(caught.value)


def test_pickled_weights_are_never_read(own_folder: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save(Bomb(), own_folder / "pytorch_model.bin")
    load_trunk(settings_of(own_folder), cache_dir=own_folder)
    (own_folder / "model.safetensors").unlink()
    with pytest.raises(UsageError):
        load_trunk(settings_of(own_folder), cache_dir=own_folder)
    assert not (tmp_path / "ran").exists()


def test_code_in_a_model_folder_is_never_run(own_folder: Path, tmp_path: Path) -> None:
    (own_folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    edit_config(own_folder, model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"})
    with pytest.raises(UsageError):
        load_trunk(settings_of(own_folder), cache_dir=own_folder)
    assert not (tmp_path / "ran").exists()


def test_more_layers_than_there_are(encoder_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"num_layers is 3, but .* has 2 layers"):
        load_trunk(settings_of(encoder_folder, num_layers=3), cache_dir=encoder_folder)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "a/b/c", "no such model"])
def test_a_folder_that_is_not_there(name: str, tmp_path: Path) -> None:
    for load in (load_trunk, load_tokenizer):
        with pytest.raises(UsageError, match=f"folder {name} does not exist"):
            load(settings_of(name), cache_dir=tmp_path)


def test_a_file_instead_of_a_folder(encoder_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"is a file; give the folder"):
        load_trunk(settings_of(encoder_folder / "model.safetensors"), cache_dir=encoder_folder)


@pytest.mark.parametrize("load", [load_trunk, load_tokenizer])
def test_a_hub_id_without_network(load: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match=r"'nobody/nothing' \(revision 'v1'\) .*point encoder.name at a local folder"):
        load(settings_of("nobody/nothing", revision="v1"), cache_dir=tmp_path)


def test_tokenizer_that_is_missing(own_folder: Path) -> None:
    for path in own_folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UsageError, match="tokenizer"):
        load_tokenizer(settings_of(own_folder), cache_dir=own_folder)


def test_tokenizer_without_padding(own_folder: Path) -> None:
    path = own_folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    del values["pad_token"]
    path.write_text(json.dumps(values))
    with pytest.raises(UsageError, match="no padding token"):
        load_tokenizer(settings_of(own_folder), cache_dir=own_folder)


def test_tokenizer_digest_does_not_depend_on_use(encoder_folder: Path, own_folder: Path) -> None:
    tokenizer = load_tokenizer(settings_of(encoder_folder), cache_dir=encoder_folder)
    before = tokenizer_digest(tokenizer)
    tokenizer(["mara works"], truncation=True, max_length=8, padding="max_length")
    assert tokenizer_digest(tokenizer) == before
    path = own_folder / "tokenizer.json"
    path.write_text(path.read_text().replace("mara", "mira"))
    assert tokenizer_digest(load_tokenizer(settings_of(own_folder), cache_dir=own_folder)) != before


def test_a_hub_that_does_not_answer_is_given_up_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own client tries every file again and again, which takes minutes."""

    class Away:
        def head(self, url: str, timeout: float) -> None:
            assert timeout <= 5
            raise ConnectionError(url)

    asked: list[str] = []

    def from_hub(name: str, **options: Any) -> None:
        if not options.get("local_files_only"):
            asked.append(name)
        raise OSError("We couldn't connect")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_session", Away)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", from_hub)
    with pytest.raises(RunError, match=r"could not be had .*--encoder of `sdm-ray init`"):
        load_trunk(settings_of("nobody/nothing"), cache_dir=tmp_path)
    assert not asked
