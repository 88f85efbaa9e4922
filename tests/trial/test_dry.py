"""One pass before training tells what would fail after it has begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdm_ray.config import TermSettings, TrialSettings, override
from sdm_ray.core.errors import UsageError
from sdm_ray.models.trunk import Trunk
from sdm_ray.trial.workspace import check_inputs


@pytest.fixture
def settings(encoder_folder: Path, data_file: Path, tmp_path: Path) -> TrialSettings:
    return TrialSettings.model_validate(
        {
            "data": {"source": str(data_file), "max_length": 24},
            "encoder": {"name": str(encoder_folder)},
            "train": {"method": "mlac", "desired_batch_size": 8, "harmful_batch_size": 8},
            "attack": {"num_examples": [8], "num_rerun_seeds": 1},
            "runtime": {"cache_dir": str(tmp_path / "cache")},
        }
    )


class Fails(torch.autograd.Function):
    """Has no gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        raise NotImplementedError("no kernel")


class Once(Fails):
    """Has a gradient that has none."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        passed: Tensor = Fails.apply(gradient)  # type: ignore[no-untyped-call]
        return passed


def no_hidden_states(trunk: Trunk, output: Any, mask: Tensor) -> Tensor:
    output.hidden_states = None
    features: Tensor = output.last_hidden_state[:, 0]
    return features


FAULTS: dict[str, tuple[Any, str]] = {
    "hidden states that are not there": (no_hidden_states, r"fails \(\w+Error: "),
    "another width": (
        lambda trunk, output, mask: output.last_hidden_state[:, 0, :-1],
        r"ValueError: features are \(2, ",
    ),
    "a shape": (lambda trunk, output, mask: output.last_hidden_state @ mask.float(), r"RuntimeError: "),
    "gradients": (lambda trunk, output, mask: Fails.apply(output.last_hidden_state[:, 0]), "no kernel"),
    "gradients of gradients": (lambda trunk, output, mask: Once.apply(output.last_hidden_state[:, 0]), "no kernel"),
    "nan": (
        lambda trunk, output, mask: output.last_hidden_state[:, 0] * torch.nan,
        "gives features or gradients .* NaN",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_encoder_that_would_fail_in_training_is_refused_before_it(
    fault: str, settings: TrialSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, message = FAULTS[fault]
    monkeypatch.setattr(Trunk, "_pool", pool)
    monkeypatch.setattr("sdm_ray.models.encoder._check_masks", lambda trunk, name: None)
    with pytest.raises(UsageError, match=rf"encoder.name .*: a first pass over 2 texts of \d+ tokens .*{message}"):
        check_inputs(settings)


def test_a_sound_encoder_passes(settings: TrialSettings) -> None:
    assert set(check_inputs(settings)) == {"data", "encoder"}


def test_terms_that_encoder_or_data_do_not_allow_are_refused_together(settings: TrialSettings) -> None:
    """Those of the trial, and those that variants and a search would compute."""
    own = {"train.blocking": {"representation_noise": 1}, "train.terms.representation_noise_layers": [0, 9]}
    searched = ({"collapse"}, TermSettings(collapse_class=99))
    with pytest.raises(UsageError) as refusal:
        check_inputs(override(settings, own), terms=[searched])
    assert "representation_noise_layers names hidden state 9, but the encoder has 0 to" in str(refusal.value)
    assert "collapse_class is 99, but the desired task has classes 0 to" in str(refusal.value)
    check_inputs(override(settings, {**own, "train.blocking": {"weight_distance": 1}}))
