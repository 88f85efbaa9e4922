"""Fixtures shared by all areas."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from sdm_ray.config import DataSettings, EncoderSettings, ResourceSettings
from sdm_ray.core.errors import RunError
from sdm_ray.sweep.cluster.connection import cluster
from tests.fakes import files as helpers

torch.set_num_threads(1)
for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_CONTEXT"):
    os.environ.pop(name, None)  # a test that wants one sets it
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves trials beside the suite's other processes
TESTS = Path(__file__).parent


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


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for all tests of this process that need one and do not test how it starts."""
    with ExitStack() as stack:
        for attempt in range(3):  # Ray gives a start thirty seconds, which a busy machine may not have
            try:
                stack.enter_context(cluster(ResourceSettings()))
                break
            except RunError:
                if attempt == 2:
                    raise
        yield


SHORT_READERS = ("trial", "cli", "tracking", "reproduce", "test_old_state.py")
"""Areas whose attacks and audits are real but need not find anything: what they find is tested in `attack`."""
COUNTED = ("test_cost.py", "test_benign.py")
"""Files that test the FLOPs of a training. Counting makes a small step much slower."""


@pytest.fixture(scope="module", autouse=True)
def _short_measurements(request: pytest.FixtureRequest) -> Iterator[None]:
    """Readers of tokens take few steps in `SHORT_READERS`; FLOPs are counted in two steps except in `COUNTED`."""
    from sdm_ray.meta import cost
    from tests.fakes.token_fits import few_steps

    with ExitStack() as stack:
        if request.path.relative_to(TESTS).parts[0] in SHORT_READERS:
            stack.enter_context(few_steps())
        if request.path.name not in COUNTED:
            stack.enter_context(mock.patch.object(cost, "NUM_MEASURED", 2))
        yield


@pytest.fixture
def in_process() -> Iterator[None]:
    """Sweeps of this test run their trials in its process: no Ray starts, and nothing can be killed."""
    from tests.fakes import tune

    with tune.in_process():
        yield


ON_RAY = ("sweep/test_processes", "sweep/cluster/test_attack_runner", "core/test_cache", "test_untrusted")
"""Files with tests that take `ray_cluster`; one process runs all of them, and starts Ray once."""

LONGEST = (
    *ON_RAY, "sweep/test_faults", "attack/findings/test_planted", "meta/test_trainer", "test_golden", "trial/test_run",
    "attack/test_planted", "test_old_state", "tracking/test_runs", "reproduce/test_reproduce", "test_style",
    "meta/inner/test_kernels", "meta/inner/test_loop", "attack/test_protocol", "sweep/test_runner", "meta/test_resume",
    "tracking/test_mlflow", "models/test_hub", "sweep/cluster/test_mirror", "sweep/cluster/test_worker",
    "cli/test_app", "test_benchmarks",
)  # fmt: skip
"""Files that take twenty seconds or more begin first, so that no process is left alone with one at the end; those that
wait for Ray and those that compute take turns."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """As `--dist loadfile` does it, with the files of `ON_RAY` as one; None for any other `--dist`."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "on Ray" if file.removesuffix(".py").endswith(ON_RAY) else file

    return Files(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Once MLflow is imported, have it copy its tables in place of making them anew for each test."""
    if "mlflow" in sys.modules:
        from tests.fakes import mlflow_tables

        mlflow_tables.install()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none, and slow tests unless `-m` speaks of them."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.relative_to(TESTS).with_suffix("").as_posix(), len(ranks)))
    cuda, slow = torch.cuda.is_available(), "slow" in config.option.markexpr
    for item in items:
        if "gpu" in item.keywords and not cuda:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if "slow" in item.keywords and not slow:
            item.add_marker(pytest.mark.skip(reason="slow; run it with -m slow"))
