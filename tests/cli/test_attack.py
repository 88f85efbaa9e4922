"""Data that do not belong to the model that is attacked are refused in a sentence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdm_ray.cli.attack import _check_head, _opened
from sdm_ray.config import EncoderSettings, TrialSettings
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
