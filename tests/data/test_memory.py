"""A data set in memory is the same examples as the file that it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

import sdm_ray
from sdm_ray.config import DataSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.data.memory import dataset_source
from sdm_ray.data.sources import load_examples
from tests.fakes import files as helpers


def load(source: str) -> Any:
    return load_examples(DataSettings(source=source))


def test_a_dataset_a_dict_and_a_table_are_what_their_rows_are(tmp_path: Path) -> None:
    rows = helpers.make_rows(60)
    whole = datasets.Dataset.from_dict(rows)
    reference = load(str(helpers.write_rows(tmp_path / "rows.parquet", rows)))
    split = datasets.DatasetDict({"a": whole.select(range(20)), "b": whole.select(range(20, 60))})
    for data in (whole, split, pa.table(rows)):
        assert load(dataset_source(data, tmp_path / "kept")).digest == reference.digest
    picked = dataset_source(whole.select([5, 1, 4]), tmp_path / "kept")
    assert load(picked).texts == [rows["text"][row] for row in (5, 1, 4)]


def test_the_same_rows_are_kept_once_under_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDM_RAY_CACHE", str(tmp_path))
    data = datasets.Dataset.from_dict(helpers.make_rows(12))
    assert sdm_ray.dataset_source(data) == sdm_ray.dataset_source(data)
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_names_of_classes_are_kept(tmp_path: Path) -> None:
    rows = helpers.make_rows(24)
    data = datasets.Dataset.from_dict(rows).class_encode_column("gender")
    examples = load(dataset_source(data, tmp_path))
    assert examples.harmful_labels == ("f", "m")
    assert [examples.harmful_labels[code] for code in examples.harmful] == rows["gender"]


@pytest.mark.parametrize("data", [[{"text": "a"}], {}, pa.table({"text": []})])
def test_what_is_no_data_set_is_refused(data: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no rows|must be a datasets\.Dataset"):
        dataset_source(data, tmp_path)
