"""Fixtures shared by all areas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdm_ray.config import DataSettings, EncoderSettings
from tests import helpers

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ModernBERT (mean pooling) with random weights and a word-level tokenizer, as a Hugging Face folder."""
    return helpers.write_encoder(tmp_path_factory.mktemp("encoder") / "modernbert")


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights and a word-level tokenizer, as a Hugging Face folder."""
    return helpers.write_encoder(tmp_path_factory.mktemp("encoder") / "bert", "bert")


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 distinct biographies in Parquet: text, profession (3 classes), gender (2), name (12)."""
    return helpers.write_rows(tmp_path_factory.mktemp("data") / "biographies.parquet", helpers.make_rows())


@pytest.fixture
def encoder_settings(encoder_folder: Path) -> EncoderSettings:
    """Settings of `encoder_folder`."""
    return EncoderSettings(name=str(encoder_folder))


@pytest.fixture
def data_settings(data_file: Path) -> DataSettings:
    """Settings of `data_file`; each text is its own group."""
    return DataSettings(source=str(data_file), max_length=24)


LONGEST = (
    "test_sweep_run", "test_attack_planted", "test_sweep_faults", "test_attack_evaluate", "test_tracking_runs",
    "test_meta_resume", "test_sweep_mirror", "test_trial", "test_shelf", "test_sweep_cluster", "test_cli",
    "test_tracking_mlflow",
)  # fmt: skip
"""Files that take a minute or more begin first, so that no process is left alone with one at the end; those that start
Ray and those that compute take turns."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none, and slow tests unless `-m` speaks of them."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))
    cuda, slow = torch.cuda.is_available(), "slow" in config.option.markexpr
    for item in items:
        if "gpu" in item.keywords and not cuda:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if "slow" in item.keywords and not slow:
            item.add_marker(pytest.mark.skip(reason="slow; run it with -m slow"))
