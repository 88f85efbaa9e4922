"""What an attack takes from the command, from files and from the model's folder, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdm_ray.cli.attack import _check_head, _opened, attack_settings
from sdm_ray.config import AttackSettings, EncoderSettings, TrialSettings
from sdm_ray.core.errors import UsageError


def test_numbers_to_predict_are_refused_for_a_model_of_classes() -> None:
    settings = TrialSettings.model_validate({"data": {"source": "regression"}, "encoder": {"name": "mlp"}})
    with pytest.raises(UsageError, match=r"data.source 'regression' is vectors with numbers to predict, and model/"):
        _opened("model/", settings, None, None)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_data_have_as_many_classes_as_the_released_head(count: int) -> None:
    exported: Any = SimpleNamespace(head=torch.zeros(3, 8))
    work: Any = SimpleNamespace(data=SimpleNamespace(num_classes=lambda task: count))
    _check_head("model", None, work)
    _check_head("model", SimpleNamespace(head=None), work)  # type: ignore[arg-type]
    if count == 3:
        _check_head("model", exported, work)
        return
    with pytest.raises(UsageError, match=rf"has {count} classes, and the head of model tells 3 apart"):
        _check_head("model", exported, work)


def test_the_encoder_is_the_model() -> None:
    """What is attacked is named by the command and not by a file."""
    from sdm_ray.cli.attack import _released_encoder

    public = EncoderSettings(name="somebody/encoder", pooling="mean")
    assert _released_encoder("model", TrialSettings(), public) == EncoderSettings(name="model", pooling="mean")


def test_a_preset_takes_any_trial_file(tmp_path: Path) -> None:
    """An empty file is the defaults, and numbers are read as everywhere: YAML 1.1 takes `1e-8` for text."""
    empty, file = tmp_path / "empty.yaml", tmp_path / "trial.yaml"
    empty.write_text("")
    assert attack_settings(empty, "quick", (), None).attack == AttackSettings(preset="quick")
    file.write_text("train: {learning_rate: 1e-8}\nattack: {seed: 7}\n")
    settings = attack_settings(file, "quick", (), None)
    assert settings.train.learning_rate == 1e-8
    assert settings.attack == AttackSettings(preset="quick", seed=7)


def test_a_released_folder_does_not_steer_its_attack(tmp_path: Path) -> None:
    """Its author could put floors into a cache of their own, weaken the attack, or have code loaded."""
    released = TrialSettings.model_validate(
        {
            "name": "theirs", "seed": 7, "modules": {"gone": "0123456789ab"},
            "data": {"max_length": 24}, "train": {"method": "tuned", "term_modules": ["gone"]},
            "scratch": {"patience": 1}, "attack": {"num_search_trials": 1, "num_examples": [20]},
            "runtime": {"cache_dir": str(tmp_path), "num_threads": 64},
        }
    )  # fmt: skip
    for preset in (None, "quick"):
        settings = attack_settings(None, preset, (), released)
        assert settings.data == released.data, "what it says it was trained for"
        assert settings.train == released.train.model_copy(update={"term_modules": ()})
        defaults = TrialSettings(attack=AttackSettings(preset=preset))
        for name in TrialSettings.model_fields.keys() - {"data", "encoder", "train"}:
            assert getattr(settings, name) == getattr(defaults, name), name
    assert attack_settings(None, None, ("attack.seed=3",), released).attack.seed == 3
