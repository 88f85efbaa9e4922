"""The attack on real encoders and real data tables, on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdm_ray.attack.findings.regret import regret
from sdm_ray.attack.protocol import AttackReport, attack_model
from sdm_ray.config import AttackSettings, DataSettings, EncoderSettings
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.types import Params
from sdm_ray.data.device import DeviceData
from sdm_ray.data.tokenized import prepare
from sdm_ray.models.encoder import load_tokenizer, load_trunk, tokenizer_digest
from tests.fakes.attack_world import drain
from tests.fakes.files import make_rows, write_encoder, write_rows

SETTINGS = AttackSettings.model_validate(
    {
        "num_examples": (8, 20),
        "num_search_trials": 4,
        "num_rerun_seeds": 2,
        "families": ("fine_tune",),
        "learning_rate": {"low": 1e-3, "high": 1e-2},
        "num_steps_min": 20,
        "num_steps_max": 40,
        "batch_sizes": (8,),
    }
)


def open_world(
    folder: Path, device: str, initialisation: str = "pretrained"
) -> tuple[torch.nn.Module, Params, DeviceData]:
    encoder = EncoderSettings(name=str(write_encoder(folder / "encoder", "bert")), pooling="mean")
    table = write_rows(folder / "rows.parquet", make_rows(480))
    settings = DataSettings(source=str(table), max_length=32)
    tokenizer = load_tokenizer(encoder, cache_dir=folder)
    data = DeviceData(prepare(settings, tokenizer, tokenizer_digest(tokenizer), folder), torch.device(device))
    trunk = load_trunk(encoder, cache_dir=folder, initialisation=initialisation).to(device)  # type: ignore[arg-type]
    return trunk, {name: value.detach() for name, value in trunk.named_parameters()}, data


def run(folder: Path, device: str, initialisation: str = "pretrained") -> AttackReport:
    return drain(attack_model(*open_world(folder, device, initialisation), SETTINGS))


def test_an_attack_on_tables_and_an_encoder(tmp_path: Path) -> None:
    """Names give the gender away and occur in every split here: twenty examples are enough."""
    report = run(tmp_path, "cpu")
    assert all(cell.valid for cell in report.cells)
    assert report.cells[1].accuracy > 0.8
    assert {record.frozen for record in report.records} == {True, False}
    again = run(tmp_path, "cpu")
    assert [cell.seed_losses for cell in report.cells] == [cell.seed_losses for cell in again.cells]
    floor = run(tmp_path, "cpu", "random")
    assert str(Metric.REGRET_LOSS) in regret(report, floor)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu(tmp_path: Path) -> None:
    cpu, cuda = run(tmp_path, "cpu"), run(tmp_path, "cuda")
    for left, right in zip(cpu.cells, cuda.cells, strict=True):
        assert left.winner == right.winner
        assert left.seed_losses == pytest.approx(right.seed_losses, abs=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_steps_do_not_wait_for_the_device(tmp_path: Path) -> None:
    from sdm_ray.attack.engine import stack as batch_module
    from sdm_ray.attack.engine.executor import Executor
    from sdm_ray.attack.families import Attacker
    from sdm_ray.core.types import Task

    trunk, params, data = open_world(tmp_path, "cuda")
    executor = Executor(trunk, params, data, SETTINGS, Task.HARMFUL)
    attacker = Attacker(family="fine_tune", num_examples=8, learning_rate=1e-3, num_steps=5, batch_size=8)
    original = batch_module.__dict__["_gradients"]

    def gradients(*arguments: object) -> object:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return original(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_module, "_gradients", gradients)
        executor.train(executor.plan([attacker] * 3))
