"""The published settings on stand-ins for the hub: its caches on disk, in its layout, and no network.

The data set has the columns of `LabHC/bias_in_bios` (integer classes with names, three splits), the encoder the
architecture of BERT-Tiny; both are small, and both are asked for by the ids that `sweeps/paper_bios.yaml` names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from sdm_ray.attack.report import AttackReport
from sdm_ray.config import to_yaml
from sdm_ray.core.result import Status, read_result
from sdm_ray.models.export import load_exported
from sdm_ray.reproduce import SUITES, suite_settings
from tests.fakes import files as helpers

REVISION = "0123456789abcdef0123456789abcdef01234567"
TINY = (
    "data.max_length=64", "train.num_outer_steps=3", "train.adversary.num_steps=4", "attack.preset=quick",
    "scratch.enabled=false", "attack.families=[fine_tune, knn]", "attack.num_examples=[8]",
    "attack.num_search_trials=2", "attack.num_searches=1", "attack.num_rerun_seeds=2", "attack.num_steps_min=2",
    "attack.num_steps_max=4", "attack.measure_information=false", "attack.benign_families=[]",
)  # fmt: skip


def cached_encoder(home: Path, name: str) -> None:
    """A model where `huggingface_hub` keeps what it has downloaded."""
    folder = home / "hub" / f"models--{name.replace('/', '--')}"
    helpers.write_encoder(folder / "snapshots" / REVISION, "bert")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(REVISION)


def cached_dataset(home: Path, name: str) -> None:
    """A data set where `datasets` keeps what it has prepared."""
    import datasets

    rows = helpers.make_rows(480)
    features = datasets.Features(
        {
            "hard_text": datasets.Value("string"),
            "profession": datasets.ClassLabel(names=sorted(set(rows["profession"]))),
            "gender": datasets.ClassLabel(names=["m", "f"]),
        }
    )
    columns = {"hard_text": rows["text"], "profession": rows["profession"], "gender": rows["gender"]}
    whole = datasets.Dataset.from_dict(columns, features=features)
    files = {}
    for index, split in enumerate(("train", "dev", "test")):
        files[split] = str(home / f"{split}.parquet")
        whole.select(range(160 * index, 160 * (index + 1))).to_parquet(files[split])
    datasets.load_dataset("parquet", data_files=files, cache_dir=str(home / "prepared"))
    (info,) = (home / "prepared").glob("parquet/*/*/*/dataset_info.json")
    owner, _, short = name.partition("/")
    kept = home / "datasets" / f"{owner}___{short}" / "default" / "0.0.0" / REVISION
    kept.mkdir(parents=True)
    for path in info.parent.iterdir():
        shutil.copy(path, kept / path.name.replace("parquet-", f"{short}-"))


def test_the_published_settings_run_on_what_the_hub_has_left_in_its_caches(tmp_path: Path) -> None:
    trial = suite_settings(SUITES["paper-bios"], small=False).trial
    home = tmp_path / "home"
    home.mkdir()
    cached_encoder(home, trial.encoder.name)
    cached_dataset(home, trial.data.source)
    (tmp_path / "trial.yaml").write_text(to_yaml(trial))
    environment = {
        **os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "SDM_RAY_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        environment.pop(name, None)
    overrides = [word for text in TINY for word in ("--set", text)]
    command = [sys.executable, "-m", "sdm_ray", "train", "trial.yaml", "--out", "out", *overrides]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    result = read_result(tmp_path / "out")
    assert result is not None
    assert (result.status, result.method) == (Status.COMPLETE, "mlac")
    assert result.provenance["data_source"] == "LabHC/bias_in_bios"
    assert result.provenance["encoder_name"] == "google/bert_uncased_L-2_H-128_A-2"
    report = AttackReport.read_json(tmp_path / "out" / "attack.json")
    assert {cell.family for cell in report.family_cells if cell.valid} == {"fine_tune", "knn"}
    exported = load_exported(tmp_path / "out" / "model")
    assert exported.meta is not None
    assert exported.meta.label_names == ("nurse", "pilot", "tailor")
