"""Sources: every format gives the same examples, and everything that is wrong is one clear sentence."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdm_ray.config import DataSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.data.sources import Examples, load_examples, normalise
from tests.fakes import files as helpers


def load(source: Path | str, **changes: Any) -> Examples:
    return load_examples(DataSettings.model_validate({"source": str(source), **changes}))


def small(**columns: list[Any]) -> dict[str, list[Any]]:
    """Four good rows, with columns replaced."""
    rows: dict[str, list[Any]] = {
        "text": ["one", "two", "three", "four"],
        "profession": ["nurse", "pilot", "nurse", "pilot"],
        "gender": [0, 1, 1, 0],
    }
    return {**rows, **columns}


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl", ".arrow"])
def test_every_format_gives_the_same_examples(suffix: str, tmp_path: Path) -> None:
    rows = helpers.make_rows(60)
    rows["text"][3] = 'a "quoted", long\nline with ünïcode'
    examples = load(helpers.write_rows(tmp_path / f"rows{suffix}", rows), group_column="name")
    assert examples.texts == rows["text"]
    assert examples.groups == rows["name"]
    assert examples.desired_labels == ("nurse", "pilot", "tailor")
    assert examples.harmful_labels == ("f", "m")
    assert [examples.desired_labels[code] for code in examples.desired] == rows["profession"]
    assert [examples.harmful_labels[code] for code in examples.harmful] == rows["gender"]
    assert examples.desired.dtype == np.int64
    reference = load(helpers.write_rows(tmp_path / "reference.parquet", rows), group_column="name")
    assert examples.digest == reference.digest


def test_a_folder_is_read_file_by_file_in_the_order_of_names(tmp_path: Path) -> None:
    rows = helpers.make_rows(60)
    parts = [{name: values[start : start + 30] for name, values in rows.items()} for start in (0, 30)]
    helpers.write_rows(tmp_path / "data" / "b.csv", parts[1])
    helpers.write_rows(tmp_path / "data" / "a" / "a.parquet", parts[0])
    (tmp_path / "data" / "README.md").write_text("no data")
    (tmp_path / "data" / ".cache").mkdir()
    (tmp_path / "data" / ".cache" / "x.csv").write_text("no data")
    assert load(tmp_path / "data").texts == rows["text"]


def test_arrow_files_and_streams_are_read(tmp_path: Path) -> None:
    table = pa.table(helpers.make_rows(12))
    with pa.ipc.new_file(tmp_path / "file.arrow", table.schema) as writer:
        writer.write_table(table)
    helpers.write_rows(tmp_path / "stream.arrow", helpers.make_rows(12))
    assert load(tmp_path / "file.arrow").digest == load(tmp_path / "stream.arrow").digest


def test_columns_are_found_by_the_settings(tmp_path: Path) -> None:
    rows = helpers.make_rows(12)
    renamed = {"hard_text": rows["text"], "job": rows["profession"], "sex": rows["gender"], "more": list(range(12))}
    path = helpers.write_rows(tmp_path / "rows.jsonl", renamed)
    examples = load(path, text_column="hard_text", desired_column="job", harmful_column="sex")
    assert examples.texts == rows["text"]


def test_integer_labels_are_sorted_as_numbers(tmp_path: Path) -> None:
    rows = small(profession=[10, 9, 10, 2])
    for suffix in (".parquet", ".csv", ".jsonl"):
        examples = load(helpers.write_rows(tmp_path / f"rows{suffix}", rows))
        assert examples.desired_labels == ("2", "9", "10")
        assert examples.desired.tolist() == [2, 1, 2, 0]
        assert examples.harmful_labels == ("0", "1")


def test_boolean_and_dictionary_labels(tmp_path: Path) -> None:
    table = pa.table(small(gender=[True, False, False, True]))
    encoded = table.set_column(1, "profession", table["profession"].dictionary_encode())
    pq.write_table(encoded, tmp_path / "rows.parquet")
    examples = load(tmp_path / "rows.parquet")
    assert examples.desired_labels == ("nurse", "pilot")
    assert examples.harmful_labels == ("false", "true")
    assert examples.harmful.tolist() == [1, 0, 0, 1]


def labelled_dataset() -> datasets.Dataset:
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "profession": datasets.ClassLabel(names=["pilot", "nurse"]),
            "gender": datasets.Value("int64"),
        }
    )
    return datasets.Dataset.from_dict(small(profession=[1, 0, 1, 0]), features=features)


def test_class_names_in_parquet_files_of_datasets_are_used(tmp_path: Path) -> None:
    labelled_dataset().to_parquet(tmp_path / "rows.parquet")
    examples = load(tmp_path / "rows.parquet")
    assert examples.desired_labels == ("nurse", "pilot")
    assert examples.desired.tolist() == [0, 1, 0, 1]


def test_hub_dataset_concatenates_its_splits_and_names_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fake(name: str, revision: str | None = None) -> datasets.DatasetDict:
        asked.append((name, revision))
        return datasets.DatasetDict({"train": labelled_dataset(), "test": labelled_dataset()})

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.setattr("sdm_ray.data.hub.is_away", lambda: False)
    examples = load("owner/name", revision="v2")
    assert asked == [("owner/name", "v2")]
    assert examples.texts == ["one", "two", "three", "four"] * 2
    assert examples.desired_labels == ("nurse", "pilot")
    assert examples.desired.tolist() == [0, 1, 0, 1] * 2
    with pytest.raises(
        UsageError, match=r"data.harmful_column: owner/name has no column 'gendre'.*did you mean 'gender'"
    ):
        load("owner/name", harmful_column="gendre")


def test_a_hub_id_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match=r"'nobody/nothing' could not be had .*point data.source at a local \.parquet"):
        load("nobody/nothing")


def test_a_hub_that_is_away_is_asked_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client tries five times, which takes twenty seconds or more."""
    asked: list[Any] = []
    monkeypatch.setattr("sdm_ray.data.hub.is_away", lambda: True)
    monkeypatch.setattr("huggingface_hub.utils._http.http_backoff", lambda *args, **options: asked.append(args))
    before = datasets.config.HF_HUB_OFFLINE
    started = time.monotonic()
    with pytest.raises(RunError, match=r"'nobody/nothing' could not be had"):
        load("nobody/nothing")
    assert not asked
    assert time.monotonic() - started < 5.0
    assert before == datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("revision", "reference", "works"),
    [(None, None, True), ("a" * 40, None, True), ("b" * 40, None, False), ("v2", None, False), ("v2", "a" * 40, True),
     ("v2", "b" * 40, False)],
)  # fmt: skip
def test_without_the_hub_no_other_revision_is_read_from_the_cache(
    revision: str | None, reference: str | None, works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` itself takes the latest version that it finds in its cache, whatever revision is asked for."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("sdm_ray.data.hub.is_away", lambda: True)
    labelled_dataset().to_parquet(tmp_path / "rows.parquet")
    datasets.load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "prepared"))
    (info,) = (tmp_path / "prepared").glob("parquet/*/*/*/dataset_info.json")
    kept = tmp_path / "datasets" / "owner___name" / "default" / "0.0.0" / ("a" * 40)
    kept.mkdir(parents=True)
    for path in info.parent.iterdir():
        path.rename(kept / path.name.replace("parquet-", "name-"))
    if reference is not None:
        file = tmp_path / "hub" / "datasets--owner--name" / "refs" / "v2"
        file.parent.mkdir(parents=True)
        file.write_text(reference)
    if works:
        assert load("owner/name", revision=revision).texts == ["one", "two", "three", "four"]
    else:
        with pytest.raises(
            RunError, match=f"revision '{revision}' is not in the cache, which has {'a' * 40}.*set data"
        ):
            load("owner/name", revision=revision)


def test_a_hub_dataset_with_several_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(name: str, revision: str | None = None) -> None:
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']")

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.setattr("sdm_ray.data.hub.is_away", lambda: False)
    with pytest.raises(UsageError, match=r"'owner/name': Config name is missing; point data.source at a local file"):
        load("owner/name")


def test_the_synthetic_world_is_grouped_by_name() -> None:
    examples = load("synthetic", synthetic={"version": 1, "num_examples": 400, "num_names": 40})
    assert len(examples.texts) == 400
    assert examples.groups is not None
    assert len(set(examples.groups)) <= 40
    assert len(examples.harmful_labels) == 2
    genders: dict[str, int] = {}
    for group, label in zip(examples.groups, examples.harmful.tolist(), strict=True):
        assert genders.setdefault(group, label) == label


def test_scrubbing_comes_first_and_counts_in_the_digest(tmp_path: Path) -> None:
    path = helpers.write_rows(tmp_path / "rows.parquet", small(text=["She sang.", "he sang.", "his song", "a song"]))
    plain, scrubbed = load(path), load(path, scrub_pronouns=True)
    assert scrubbed.texts == ["They sang.", "they sang.", "their song", "a song"]
    assert plain.digest != scrubbed.digest


def test_max_examples_keeps_the_same_texts_whatever_the_order(tmp_path: Path) -> None:
    rows = helpers.make_rows(100)
    backwards = {name: values[::-1] for name, values in rows.items()}
    one = load(helpers.write_rows(tmp_path / "a.parquet", rows), max_examples=40, group_column="name")
    two = load(helpers.write_rows(tmp_path / "b.parquet", backwards), max_examples=40, group_column="name")
    assert len(one.texts) == 40
    assert one.groups is not None
    assert sorted(one.texts) == sorted(two.texts)
    assert set(load(tmp_path / "a.parquet", max_examples=10).texts) < set(one.texts)
    for text, group, label in zip(one.texts, one.groups, one.harmful, strict=True):
        row = rows["text"].index(text)
        assert (group, one.harmful_labels[label]) == (rows["name"][row], rows["gender"][row])


def test_digest_follows_every_part(data_file: Path, tmp_path: Path) -> None:
    rows = helpers.make_rows(24)
    digests = set()
    for column in ("text", "profession", "gender", "name", None):
        changed = {name: list(values) for name, values in rows.items()}
        if column is not None:
            changed[column][5] = changed[column][7]
        path = helpers.write_rows(tmp_path / f"{column}.parquet", changed)
        digests.add(load(path, group_column="name").digest)
    assert len(digests) == 5


def test_normalise_ignores_case_and_white_space() -> None:
    assert normalise(" A  b\n\tC ") == normalise("a B c") != normalise("a bc")


WRONG_ROWS: dict[str, tuple[dict[str, list[Any]], str]] = {
    "null text": (
        small(text=["one", None, "three", None]),
        r"data.text_column: column 'text' has 2 missing or empty values \(row 2, 4\)",
    ),
    "blank text": (small(text=["one", " \n", "three", "four"]), r"1 missing or empty value \(row 2\)"),
    "null label": (
        small(gender=[0, None, 1, 0]),
        r"data.harmful_column: column 'gender' has 1 missing or empty value \(row 2\)",
    ),
    "empty label": (small(profession=["a", "", "", "b"]), r"data.desired_column: .* 2 missing or empty values"),
    "only nulls": (small(gender=[None] * 4), r"4 missing or empty values \(row 1, 2, 3, 4\)"),
    "one class": (small(gender=["f"] * 4), "data.harmful_column: column 'gender' has one class, 'f'"),
    "real labels": (small(gender=[0.5, 1, 0, 1]), "data.harmful_column: column 'gender' holds double, labels must be"),
    "numbers as text": (small(text=[1, 2, 3, 4]), "data.text_column: column 'text' holds int64, it must hold text"),
    "no rows": ({"text": pa.array([], pa.string()), "profession": [], "gender": []}, "holds no rows"),
}


@pytest.mark.parametrize("wrong", WRONG_ROWS)
def test_wrong_rows(wrong: str, tmp_path: Path) -> None:
    rows, message = WRONG_ROWS[wrong]
    with pytest.raises(UsageError, match=message):
        load(helpers.write_rows(tmp_path / "rows.parquet", rows))


def test_missing_values_in_csv(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,profession,gender\none,a,0\ntwo,,1\n,b,1\n")
    with pytest.raises(UsageError, match=r"column 'text' has 1 missing or empty value \(row 3\)"):
        load(tmp_path / "rows.csv")


def test_missing_groups(tmp_path: Path) -> None:
    path = helpers.write_rows(tmp_path / "rows.parquet", small(name=["a", None, "b", "c"]))
    with pytest.raises(UsageError, match=r"data.group_column: column 'name' has 1 missing"):
        load(path, group_column="name")


def test_unlabelled_rows_of_a_class_label_column(tmp_path: Path) -> None:
    features = labelled_dataset().features
    datasets.Dataset.from_dict(small(profession=[1, -1, 0, 0]), features=features).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(UsageError, match=r"1 unlabelled value \(row 2\)"):
        load(tmp_path / "rows.parquet")


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".arrow"])
def test_absent_column_names_what_is_there_and_the_nearest(suffix: str, tmp_path: Path) -> None:
    path = helpers.write_rows(tmp_path / f"rows{suffix}", helpers.make_rows(6))
    message = r"data.desired_column: .* has no column 'proffesion', only 'text', .*did you mean 'profession'\?"
    with pytest.raises(UsageError, match=message):
        load(path, desired_column="proffesion")


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".arrow"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00garbage\n\xff", b'{"text": '])
def test_unreadable_file(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"data\.") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("row", [r'"said \"hi\" and left",a,0', '"closed" and on,a,0', '"never closed,a,0'])
def test_text_after_a_closing_quote_is_refused(tmp_path: Path, row: str) -> None:
    (tmp_path / "rows.csv").write_text(f"text,profession,gender\n{row}\ntwo,b,1\n")
    with pytest.raises(UsageError, match=r'rows.csv, line \d: a quote is wrong .* as "" '):
        load(tmp_path / "rows.csv")


def test_quotes_and_long_fields_of_csv_are_read(tmp_path: Path) -> None:
    rows = ['"said ""hi"" and left",a,0', r'"ends with \",b,1', 'in"side,a,0', f'"{"x" * 200_000}",b,1']
    (tmp_path / "rows.csv").write_text("\n".join(["text,profession,gender", *rows]))
    texts = load(tmp_path / "rows.csv").texts
    assert [text[:20] for text in texts] == ['said "hi" and left', "ends with \\", 'in"side', "x" * 20]


def test_ragged_csv(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,profession,gender\none,a,0\ntwo,b\n")
    with pytest.raises(UsageError, match=r"rows.csv cannot be read as csv: .*Expected 3 columns, got 2"):
        load(tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./missing.parquet", "file ./missing.parquet does not exist"),
        ("missing.csv", "file missing.csv does not exist"),
        ("data/missing.tsv", "file data/missing.tsv does not exist"),
        ("/missing/folder", "file /missing/folder does not exist"),
        ("synthetik", "'synthetik' is neither 'synthetic', nor an existing file or folder, nor a hub id"),
        ("a/b/c", "'a/b/c' is neither"),
    ],
)
def test_a_source_that_is_not_there(source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        load(source)


def test_unsupported_format(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_text("x")
    with pytest.raises(UsageError, match=r"rows.xlsx has an unsupported format '.xlsx'; known formats: .parquet, .csv"):
        load(tmp_path / "rows.xlsx")
    (tmp_path / "folder").mkdir()
    shutil.copy(tmp_path / "rows.xlsx", tmp_path / "folder")
    with pytest.raises(UsageError, match=r"folder .* holds no data file \(known formats"):
        load(tmp_path / "folder")


def test_files_of_a_folder_must_agree(tmp_path: Path) -> None:
    helpers.write_rows(tmp_path / "a.parquet", small())
    helpers.write_rows(tmp_path / "b.parquet", small(gender=[[1], [2], [3], [4]]))
    with pytest.raises(UsageError, match="the files do not have the same columns and types"):
        load(tmp_path)


def test_one_column_for_two_purposes(data_file: Path) -> None:
    with pytest.raises(UsageError, match="text, desired and harmful column must differ"):
        load(data_file, harmful_column="profession")


def test_a_folder_that_datasets_saved_is_read_without_its_caches(tmp_path: Path) -> None:
    rows = helpers.make_rows(24)
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    helpers.write_rows(tmp_path / "saved" / "cache-1.arrow", {name: values[:4] for name, values in rows.items()})
    assert load(tmp_path / "saved").texts == rows["text"]


def test_a_folder_leaves_nothing_out_and_reads_nothing_twice(tmp_path: Path) -> None:
    rows = helpers.make_rows(24)
    helpers.write_rows(tmp_path / "a.csv", rows).rename(tmp_path / "a.CSV")
    assert load(tmp_path).texts == rows["text"]
    (tmp_path / "b.csv.gz").write_bytes(b"")
    with pytest.raises(UsageError, match=r"b\.csv\.gz is packed, which is not read; unpack it"):
        load(tmp_path)
    (tmp_path / "b.csv.gz").unlink()
    helpers.write_rows(tmp_path / "a.parquet", rows)
    with pytest.raises(UsageError, match=r"a\.CSV and a\.parquet would be read one after the other"):
        load(tmp_path)


def test_one_number_means_one_class_in_all_files(tmp_path: Path) -> None:
    for name, order in (("a", ["f", "m"]), ("b", ["m", "f"])):
        data = datasets.Dataset.from_dict(small())
        data = data.cast_column("gender", datasets.ClassLabel(names=order))
        data.to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(UsageError, match=r"'gender' numbers its classes m, f in .*b\.parquet, and f, m before"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("gender", "words"),
    [(["f", "m", " ", "m"], "missing or empty value"), (["f", "f ", "m", "m"], "differ by white space alone")],
)
def test_labels_of_white_space_are_no_classes(gender: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        load(helpers.write_rows(tmp_path / "rows.csv", small(gender=gender)))


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize(
    ("gender", "mark"), [([0, 1, -1, 0], "-1"), ([-1, 2, 0, 1], "-1"), (["f", "m", "NaN", "m"], "NaN")]
)
def test_marks_of_missing_labels_are_no_classes(gender: list[Any], mark: str, suffix: str, tmp_path: Path) -> None:
    message = rf"data.harmful_column: column 'gender' holds '{mark}' in 1 of 4 rows, .*give it a name"
    with pytest.raises(UsageError, match=message):
        load(helpers.write_rows(tmp_path / f"rows{suffix}", small(gender=gender)))


@pytest.mark.parametrize("gender", [[-1, 1, 1, -1], [-1, 1, 2, 1], ["-1", "none", "x", "none"]])
def test_numbers_below_zero_may_be_classes(gender: list[Any], tmp_path: Path) -> None:
    examples = load(helpers.write_rows(tmp_path / "rows.parquet", small(gender=gender)))
    assert examples.harmful_labels == tuple(sorted(set(map(str, gender))))


def test_dates_in_json_are_text(tmp_path: Path) -> None:
    days = ["2024-01-01", "2024-01-02", "2024-01-01", "2024-01-02"]
    assert load(helpers.write_rows(tmp_path / "rows.jsonl", small(profession=days))).desired_labels == tuple(days[:2])


def test_a_repeated_name_of_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,gender,profession,text\na,f,x,b\nc,m,y,d\n")
    with pytest.raises(UsageError, match=r"has 2 columns 'text'; rename all but one"):
        load(tmp_path / "rows.csv")
